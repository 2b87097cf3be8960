# SPDX-License-Identifier: Apache-2.0
from .util import EasyDict  # noqa: F401
