# SPDX-License-Identifier: Apache-2.0
"""EasyDict, the one class that network pickles name."""


class EasyDict(dict):
    """A dict with attributes for keys."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__
