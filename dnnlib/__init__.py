# SPDX-License-Identifier: Apache-2.0
"""Helpers without torch: attribute dictionaries, files, downloads, objects by name, number parsing."""

from . import util
from .util import EasyDict

__all__ = ["EasyDict", "util"]
