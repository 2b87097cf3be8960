# SPDX-License-Identifier: Apache-2.0
"""Network pickles: persistent classes compatible with dnnlib, writing pickles and inspecting them.

    python -m torch_utils.persistence network-snapshot.pkl      # prints the contents; executes nothing

A network pickle is a dict (G, D, G_ema, ...) in Python's pickle format. Its networks carry the source text of
the module that defines them. The published loader (`pickle.load`) executes whatever the file contains.
`read_network_pickle` (torch_utils.pickle_reader, exported here as well) does not, and this project's tools
use nothing else.
"""

import contextlib
import copy
import copyreg
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import pickle
import re
import reprlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

USAGE = "usage: python -m torch_utils.persistence FILE"
if __name__ == "__main__" and sys.argv[1:] in (["--help"], ["-h"]):  # does not wait for torch
    sys.exit(print(f"{USAGE}\n\nPrint the contents of a network pickle. Nothing in it is executed."))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import dnnlib  # noqa: E402
from torch_utils.pickle_reader import LAYOUT_VERSION, read_network_pickle  # noqa: E402
from torch_utils.pickle_stubs import (  # noqa: E402
    GlobalName,
    NetworkPickle,
    ObjectStub,
    StorageStub,
    TensorStub,
    describe,
    is_name,
)

__all__ = [
    "GlobalName",
    "NetworkPickle",
    "ObjectStub",
    "StorageStub",
    "TensorStub",
    "describe",
    "import_hook",
    "is_persistent",
    "main",
    "persistent_class",
    "read_network_pickle",
    "save_network_pickle",
    "trust_pickles",
]

_Class = TypeVar("_Class", bound=type)
_registry: dict[tuple[str, str], type] = {}  # (source text of the module, class name) -> class
_origins: dict[type, str | None] = {}  # class -> source text of its module; None if it was not found
_embedded_sources: dict[str, str] = {}  # name of a module created from embedded source -> that source
_import_hooks: list[Callable[[dnnlib.EasyDict], dnnlib.EasyDict]] = []
_trusting = False


def persistent_class(cls: _Class) -> _Class:
    """Make a class persistent (decorator): its instances are pickled with the source text of their module.

    The pickle contains the whole `__dict__` of an instance. The properties `init_args` and `init_kwargs`
    return the constructor arguments, with dataclasses converted to dicts. A subclass is persistent only if it
    is decorated itself.
    """
    if cls in _origins:
        return cls
    source = _module_source(cls.__module__)
    _origins[cls] = source
    if source is not None:
        _registry[source, cls.__name__] = cls
    original_init = cls.__init__  # type: ignore[misc]

    @functools.wraps(original_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is cls:  # not when a subclass calls its parent
            self.__dict__["_init_args"] = tuple(_plain(value) for value in args)
            self.__dict__["_init_kwargs"] = {key: _plain(value) for key, value in kwargs.items()}
        original_init(self, *args, **kwargs)

    def reduce(self: Any) -> Any:
        if type(self) is not cls:
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        if source is None:
            raise pickle.PicklingError(
                f"{cls.__name__} cannot be saved: the source of its module {cls.__module__} was not found"
            )
        meta = dict(
            type="class",
            version=LAYOUT_VERSION,
            module_src=source,
            class_name=cls.__name__,
            # as torch's modules do: graphs of torch.compile stay here
            state={name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"},
        )
        return _reconstruct_persistent_obj, (meta,)

    patches: dict[str, Any] = dict(
        __init__=init,
        __reduce__=reduce,
        init_args=property(lambda self: copy.deepcopy(self._init_args)),
        init_kwargs=property(lambda self: dnnlib.EasyDict(copy.deepcopy(self._init_kwargs))),
    )
    for name, value in patches.items():
        setattr(cls, name, value)
    return cls


def is_persistent(obj: Any) -> bool:
    """Return whether `obj` is a persistent class or an instance of one."""
    return (obj if isinstance(obj, type) else type(obj)) in _origins


def import_hook(
    hook: Callable[[dnnlib.EasyDict], dnnlib.EasyDict | None],
) -> Callable[[dnnlib.EasyDict], dnnlib.EasyDict | None]:
    """Register a hook (decorator) that `pickle.load` calls before it creates a persistent object.

    `hook(meta)` receives the object's meta dict and may return a changed one.
    """
    _import_hooks.append(hook)  # type: ignore[arg-type]
    return hook


@contextlib.contextmanager
def trust_pickles() -> Iterator[None]:
    """Allow `pickle.load` to execute the source code in network pickles within this context.

    Use it only for files that you trust as much as a program that you install.
    """
    global _trusting
    before, _trusting = _trusting, True
    try:
        yield
    finally:
        _trusting = before


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """Create a persistent object. `pickle.load` calls this for each one in a network pickle.

    It exists for other programs; this project's tools never call it.

    If the embedded source equals the text of an installed module, the installed class is used and nothing is
    executed. Other source is executed, as dnnlib does with all source, but only after opting in: inside
    `trust_pickles()`, or with STYLESAN_TRUST_PICKLE=1 in the environment. The opt-in protects this function
    only: `pickle.load` itself calls whatever a malicious file names.

    Raises:
        ValueError: the layout is unknown, or the source would have to be executed without the opt-in.
    """
    info = dnnlib.EasyDict(meta)
    for hook in _import_hooks:
        info = hook(info) or info
    if info.get("type") != "class" or info.get("version") != LAYOUT_VERSION:
        raise ValueError(
            f"a persistent object of type {info.get('type')!r}, version {info.get('version')!r} is not "
            f"supported: only type 'class', version {LAYOUT_VERSION} is"
        )
    cls = _installed_class(info.module_src, info.class_name)
    if cls is None:
        if not _trusting and os.environ.get("STYLESAN_TRUST_PICKLE", "0") not in ("1", "true", "True"):
            raise ValueError(
                f"this pickle contains source code for {info.class_name} that is not installed here and "
                "would have to be executed. If you trust the file, set STYLESAN_TRUST_PICKLE=1; otherwise "
                "load it with training.generator.load, which executes nothing"
            )
        cls = persistent_class(getattr(_run_source(info.module_src), info.class_name))
    obj: Any = object.__new__(cls)
    if hasattr(obj, "__setstate__"):
        obj.__setstate__(info.state)
    else:
        obj.__dict__.update(info.state)
    return obj


def _plain(value: Any) -> Any:
    """Convert dataclasses in a constructor argument to dicts.

    Loading a pickled dataclass would need the module that defines it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return value


def _module_source(name: str) -> str | None:
    if name in _embedded_sources:
        return _embedded_sources[name]
    try:
        return inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):
        return None


def _installed_class(source: str, class_name: str) -> type | None:
    """Return the class from the installed module with exactly this source, or None.

    The module is imported if necessary, after its text has been compared.
    """
    if (source, class_name) not in _registry:
        home = re.search(r'^__persistent_module__ = "([A-Za-z_][\w.]*)"', source, re.MULTILINE)
        if home:
            relative = Path(*home[1].split(".")).with_suffix(".py")
            file = next(
                (path for path in (Path(folder or ".") / relative for folder in sys.path) if path.is_file()),
                None,
            )
            if file is not None and file.read_bytes() == source.encode():
                importlib.import_module(home[1])
    return _registry.get((source, class_name))


def _run_source(source: str) -> types.ModuleType:
    """Execute embedded source as a module and return it. Each text is executed once."""
    name = f"_embedded_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        sys.modules[name] = module
        _embedded_sources[name] = source
        try:
            exec(
                compile(source, f"<source embedded in a network pickle: {name}>", "exec", dont_inherit=True),
                module.__dict__,
            )  # only after the caller's opt-in
        except BaseException:
            del sys.modules[name], _embedded_sources[name]
            raise
    return sys.modules[name]


def save_network_pickle(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a network pickle that StyleGAN-family tools and `read_network_pickle` can read.

    Modules are written as copies on the CPU, in eval mode, without gradients. The file appears under its name
    only when it is complete.

    Args:
        path: path of the file.
        data: content by key: G, D, G_ema, training_set_kwargs, ...
    """
    out = {}
    for key, value in data.items():
        if isinstance(value, torch.nn.Module):
            value = copy.deepcopy(value).eval().requires_grad_(False).cpu()
            value.zero_grad(set_to_none=True)
        out[key] = value
    with dnnlib.util.atomic_write(path) as file:
        pickle.dump(out, file, protocol=4)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


class _Brief(reprlib.Repr):
    """A repr of bounded depth and length, computed in bounded time for any nesting in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxother, self.maxstring = 3, 16, 100, 100

    def repr_ndarray(self, value: np.ndarray, level: int) -> str:
        """Format a small array with its values and a large one with its shape."""
        return (
            f"{value.dtype} {value.tolist()}"
            if 0 < value.size <= 8
            else f"<{value.dtype} {list(value.shape)}>"
        )

    def repr_bytes(self, value: bytes, level: int) -> str:
        """Format short bytes in full and long ones with their length."""
        return repr(value) if len(value) <= 24 else f"<{len(value):,} bytes>"


_brief = _Brief()


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.ravel()[:4].tolist()
    if isinstance(value, (list, tuple)):
        sizes = [_value(item) for item in value[:4] if isinstance(item, (int, float, np.number))]
        return sizes[0] if sizes and len(set(sizes)) == 1 else "x".join(sizes)
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "-"
    return f"{float(value):g}" if isinstance(value, (int, float, np.number)) else _brief.repr(value)


_LAYER_COLUMNS = (
    "in_channels",
    "out_channels",
    "in_size",
    "out_size",
    "up_factor",
    "down_factor",
    "out_cutoff",
    "down_radial",
    "use_fp16",
)


def _describe_network(key: str, stub: ObjectStub) -> list[str]:
    """Return lines about one network: its class, its plain attributes and a table of its layers."""
    tensors = stub.named_tensors()
    parameters = sum(value.numel for value in tensors.values() if value.is_parameter)
    lines = [f"{key}: {stub.class_name} ({stub.origin}), {parameters:,} parameters, {len(tensors)} tensors"]
    if stub.module_src is not None:
        digest = hashlib.sha256(stub.module_src.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        lines.append(
            f"  contains source code: {len(stub.module_src):,} characters, sha256 {digest}... (not executed)"
        )
    names = [
        name
        for name in stub.attributes
        if isinstance(name, str) and is_name(name) and not name.startswith("_") and name != "training"
    ]
    plain = {name: stub.attributes[name] for name in names}
    lines += [
        f"  {name} = {_value(value)}"
        for name, value in plain.items()
        if isinstance(value, (str, int, float, np.generic))
    ]
    rows = []
    for path, module in stub.named_modules():
        if path and module.persistent and all(name in module.attributes for name in _LAYER_COLUMNS):
            parts = [module, *module.modules().values()]
            count = sum(
                value.numel for part in parts for value in part.tensors().values() if value.is_parameter
            )
            rows.append([path, f"{count:,}", *(_value(module.attributes[name]) for name in _LAYER_COLUMNS)])
    if rows:
        lines += _columns([["layer", "parameters", *_LAYER_COLUMNS], *rows])
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the contents of a network pickle.

    Returns:
        The exit status: 0, 1 if the file could not be read or is suspicious, 2 for wrong usage.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    if hasattr(sys.stdout, "reconfigure"):
        # A name can contain characters that the terminal's encoding does not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    problems = []
    try:
        data = read_network_pickle(arguments[0], strict=False)
        for key, value in data.items():
            try:
                print(
                    "\n".join(_describe_network(key, value))
                    if isinstance(value, ObjectStub)
                    else f"{key} = {_brief.repr(value)}"
                )
            except ValueError as err:  # the other networks are still printed
                problems.append(f"error: {key}: {err}")
        print(
            "globals: " + ", ".join(f"{name} x{count}" for name, count in sorted(data.globals_used.items()))
        )
        read_network_pickle(arguments[0])
    except (OSError, ValueError) as err:
        problems.append(f"error: {err}")
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
