# SPDX-License-Identifier: Apache-2.0
"""Helpers that need no torch: attribute dictionaries, files and downloads, names of objects, number and range
parsing.
"""

from . import util
from .util import EasyDict

__all__ = ["EasyDict", "util"]
