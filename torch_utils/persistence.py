# SPDX-License-Identifier: Apache-2.0
"""Network pickles: persistent classes as dnnlib knows them, writing, and a look at what a file holds.

    python -m torch_utils.persistence network-snapshot.pkl      # what a file holds; runs nothing

A network pickle is a dict (G, D, G_ema, ...) in Python's pickle format whose networks carry the source text
of the module that defines them. Loading one the published way (`pickle.load`) runs whatever the file says.
`read_network_pickle` (torch_utils.pickle_reader) does not, and this project's own tools read only so. Its
names can be had from here.
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

import numpy as np
import torch

import dnnlib
from torch_utils.pickle_reader import LAYOUT_VERSION, read_network_pickle
from torch_utils.pickle_stubs import (
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
_origins: dict[
    type, str | None
] = {}  # class -> source text of its module; None where there is no text to find
_embedded_sources: dict[str, str] = {}  # name of a module made from embedded source -> that source
_import_hooks: list[Callable[[dnnlib.EasyDict], dnnlib.EasyDict]] = []
_trusting = False


def persistent_class(cls: _Class) -> _Class:
    """Class decorator: instances remember their constructor arguments and pickle together with the source
    text of their module.

    The pickle holds the whole `__dict__` of an instance. `init_args` and `init_kwargs` give the arguments,
    with dataclasses turned into dicts. A subclass is not persistent unless it is decorated itself.
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
                f"{cls.__name__} cannot be saved: there is no source text of its module {cls.__module__}"
            )
        meta = dict(
            type="class",
            version=LAYOUT_VERSION,
            module_src=source,
            class_name=cls.__name__,
            state=self.__dict__,
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
    """Whether `obj` is a persistent class or an instance of one."""
    return (obj if isinstance(obj, type) else type(obj)) in _origins


def import_hook(
    hook: Callable[[dnnlib.EasyDict], dnnlib.EasyDict | None],
) -> Callable[[dnnlib.EasyDict], dnnlib.EasyDict | None]:
    """Function decorator: `hook(meta)` sees each persistent object before `pickle.load` makes it, and may
    return a changed meta.
    """
    _import_hooks.append(hook)  # type: ignore[arg-type]
    return hook


@contextlib.contextmanager
def trust_pickles() -> Iterator[None]:
    """Inside this context `pickle.load` may run the source text that network pickles carry. For files you
    trust as you trust a program.
    """
    global _trusting
    before, _trusting = _trusting, True
    try:
        yield
    finally:
        _trusting = before


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """What `pickle.load` calls for each persistent object of a network pickle. Exists for other programs: our
    tools never call it.

    When the embedded source is the text of a module that is installed here, the installed class is used and
    nothing is run. Any other source is run, which is what dnnlib does with all of them, and only after opting
    in: inside `trust_pickles()`, or with STYLESAN_TRUST_PICKLE=1 in the environment. Note that the opt-in
    guards this function alone; `pickle.load` itself calls whatever a hostile file names.

    Raises ValueError for a layout that is not known, and where the opt-in is missing.
    """
    info = dnnlib.EasyDict(meta)
    for hook in _import_hooks:
        info = hook(info) or info
    if info.get("type") != "class" or info.get("version") != LAYOUT_VERSION:
        raise ValueError(
            f"persistent object of type {info.get('type')!r}, version {info.get('version')!r}: only class, "
            f"{LAYOUT_VERSION} is known"
        )
    cls = _installed_class(info.module_src, info.class_name)
    if cls is None:
        if not _trusting and os.environ.get("STYLESAN_TRUST_PICKLE", "0") not in ("1", "true", "True"):
            raise ValueError(
                f"this pickle carries source code for {info.class_name} that is not installed here; it "
                "would have to be run. If you trust the file, "
                "set STYLESAN_TRUST_PICKLE=1, or read it without running anything: training.generator.load"
            )
        cls = persistent_class(getattr(_run_source(info.module_src), info.class_name))
    obj: Any = object.__new__(cls)
    if hasattr(obj, "__setstate__"):
        obj.__setstate__(info.state)
    else:
        obj.__dict__.update(info.state)
    return obj


def _plain(value: Any) -> Any:
    """A constructor argument as a pickle should hold it: dataclasses, which would need their module to load,
    become dicts.
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
    """The class of an installed module whose text is exactly `source`, or None. Imports that module if need
    be, and only after comparing.
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
    """The module that embedded source defines; one per text."""
    name = f"_embedded_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        sys.modules[name] = module
        _embedded_sources[name] = source
        try:
            exec(
                compile(source, f"<source embedded in a network pickle: {name}>", "exec", dont_inherit=True),
                module.__dict__,
            )  # the caller opted in
        except BaseException:
            del sys.modules[name], _embedded_sources[name]
            raise
    return sys.modules[name]


def save_network_pickle(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a network pickle that StyleGAN-family tools and `read_network_pickle` load: G, D, G_ema,
    training_set_kwargs, ...

    Modules are written as copies on the CPU, in eval mode, without gradients. The file appears under its name
    only when it is complete.
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
    """Texts of bounded depth and length, made in bounded time, whatever a file nests."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxother, self.maxstring = 3, 16, 100, 100

    def repr_ndarray(self, value: np.ndarray, level: int) -> str:
        return (
            f"{value.dtype} {value.tolist()}"
            if 0 < value.size <= 8
            else f"<{value.dtype} {list(value.shape)}>"
        )

    def repr_bytes(self, value: bytes, level: int) -> str:
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
    """Lines about one network: its class, its plain attributes, a table of its layers."""
    tensors = stub.named_tensors()
    parameters = sum(value.numel for value in tensors.values() if value.is_parameter)
    lines = [f"{key}: {stub.class_name} ({stub.origin}), {parameters:,} parameters, {len(tensors)} tensors"]
    if stub.module_src is not None:
        digest = hashlib.sha256(stub.module_src.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        lines.append(
            f"  carries source code: {len(stub.module_src):,} characters, sha256 {digest}... (not run)"
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
    """Print what network pickles hold. Returns 1 where a file could not be read or is suspicious."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m torch_utils.persistence FILE", file=sys.stderr)
        return 2
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # names may be in any script, terminals may be of one
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
            except ValueError as err:  # an odd network does not hide the others
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
