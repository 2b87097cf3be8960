# SPDX-License-Identifier: Apache-2.0
"""Persistent classes as other projects have them: the decorator makes a subclass, and loading runs the source
that a pickle carries.
"""

import inspect
import sys
import types
import uuid

from dnnlib import EasyDict

loaded = []  # class names, in the order of reconstruction
_sources = {}


def persistent_class(cls):
    """A subclass of `cls` that remembers its arguments."""
    source = _sources.get(cls.__module__) or inspect.getsource(sys.modules[cls.__module__])

    class Persistent(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._init_args, self._init_kwargs = args, kwargs

        @property
        def init_args(self):
            return self._init_args

        @property
        def init_kwargs(self):
            return EasyDict(self._init_kwargs)

        def __reduce__(self):
            meta = dict(
                type="class", version=6, module_src=source, class_name=cls.__name__, state=self.__dict__
            )
            return _reconstruct_persistent_obj, (meta,)

    Persistent.__name__ = cls.__name__
    return Persistent


def _reconstruct_persistent_obj(meta):
    assert meta["type"] == "class" and meta["version"] == 6
    name = next((name for name, source in _sources.items() if source == meta["module_src"]), None)
    if name is None:
        name = "_imported_" + uuid.uuid4().hex
        sys.modules[name] = types.ModuleType(name)
        _sources[name] = meta["module_src"]
        exec(meta["module_src"], sys.modules[name].__dict__)
    cls = sys.modules[name].__dict__[meta["class_name"]]
    obj = cls.__new__(cls)
    obj.__setstate__(meta["state"])
    loaded.append(meta["class_name"])
    return obj
