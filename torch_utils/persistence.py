# SPDX-License-Identifier: Apache-2.0
"""Network pickles: write them, and read them without running what is in them.

    python -m torch_utils.persistence network-snapshot.pkl      # what a file holds; runs nothing

A network pickle is a dict (G, D, G_ema, ...) in Python's pickle format whose networks carry the source text of the module that defines them.
Loading one the published way (`pickle.load`) runs whatever the file says. `read_network_pickle` does not: it is a small stack machine of its own
that understands data, builds no object that a file names, and hands back records for the caller to judge. This project's own tools read only so.
"""

import contextlib
import copy
import copyreg
import dataclasses
import functools
import hashlib
import importlib
import inspect
import io
import math
import os
import pickle
import pickletools
import re
import reprlib
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

import dnnlib

VERSION = 6  # of the layout inside a pickle; what dnnlib's loaders accept

_Class = TypeVar("_Class", bound=type)
_registry: dict[tuple[str, str], type] = {}  # (source text of the module, class name) -> class
_origins: dict[type, str | None] = {}  # class -> source text of its module; None where there is no text to find
_embedded_sources: dict[str, str] = {}  # name of a module made from embedded source -> that source
_import_hooks: list[Callable[[dnnlib.EasyDict], dnnlib.EasyDict]] = []
_trusting = False


def persistent_class(cls: _Class) -> _Class:
    """Class decorator: instances remember their constructor arguments and pickle together with the source text of their module.

    The pickle holds the whole `__dict__` of an instance. `init_args` and `init_kwargs` give the arguments, with dataclasses turned into dicts.
    A subclass is not persistent unless it is decorated itself.
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
            raise pickle.PicklingError(f"{cls.__name__} cannot be saved: there is no source text of its module {cls.__module__}")
        meta = dict(type="class", version=VERSION, module_src=source, class_name=cls.__name__, state=self.__dict__)
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


def import_hook(hook: Callable[[dnnlib.EasyDict], dnnlib.EasyDict | None]) -> Callable[[dnnlib.EasyDict], dnnlib.EasyDict | None]:
    """Function decorator: `hook(meta)` sees each persistent object before `pickle.load` makes it, and may return a changed meta."""
    _import_hooks.append(hook)  # type: ignore[arg-type]
    return hook


@contextlib.contextmanager
def trust_pickles() -> Iterator[None]:
    """Inside this context `pickle.load` may run the source text that network pickles carry. For files you trust as you trust a program."""
    global _trusting
    before, _trusting = _trusting, True
    try:
        yield
    finally:
        _trusting = before


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """What `pickle.load` calls for each persistent object of a network pickle. Exists for other programs: our tools never call it.

    When the embedded source is the text of a module that is installed here, the installed class is used and nothing is run. Any other source is
    run, which is what dnnlib does with all of them, and only after opting in: inside `trust_pickles()`, or with STYLESAN_TRUST_PICKLE=1 in the
    environment. Note that the opt-in guards this function alone; `pickle.load` itself calls whatever a hostile file names.

    Raises ValueError for a layout that is not known, and where the opt-in is missing.
    """
    info = dnnlib.EasyDict(meta)
    for hook in _import_hooks:
        info = hook(info) or info
    if info.get("type") != "class" or info.get("version") != VERSION:
        raise ValueError(f"persistent object of type {info.get('type')!r}, version {info.get('version')!r}: only class, {VERSION} is known")
    cls = _installed_class(info.module_src, info.class_name)
    if cls is None:
        if not _trusting and os.environ.get("STYLESAN_TRUST_PICKLE", "0") not in ("1", "true", "True"):
            raise ValueError(
                f"this pickle carries source code for {info.class_name} that is not installed here; it would have to be run. If you trust the file, "
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
    """A constructor argument as a pickle should hold it: dataclasses, which would need their module to load, become dicts."""
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
    """The class of an installed module whose text is exactly `source`, or None. Imports that module if need be, and only after comparing."""
    if (source, class_name) not in _registry:
        home = re.search(r'^__persistent_module__ = "([A-Za-z_][\w.]*)"', source, re.MULTILINE)
        if home:
            relative = Path(*home[1].split(".")).with_suffix(".py")
            file = next((path for path in (Path(folder or ".") / relative for folder in sys.path) if path.is_file()), None)
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
            exec(compile(source, f"<source embedded in a network pickle: {name}>", "exec", dont_inherit=True), module.__dict__)  # the caller opted in
        except BaseException:
            del sys.modules[name], _embedded_sources[name]
            raise
    return sys.modules[name]


def save_network_pickle(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a network pickle that StyleGAN-family tools and `read_network_pickle` load: G, D, G_ema, training_set_kwargs, ...

    Modules are written as copies on the CPU, in eval mode, without gradients. The file appears under its name only when it is complete.
    """
    out = {}
    for key, value in data.items():
        if isinstance(value, torch.nn.Module):
            value = copy.deepcopy(value).eval().requires_grad_(False).cpu()
            value.zero_grad(set_to_none=True)
        out[key] = value
    with dnnlib.util.atomic_write(path) as file:
        pickle.dump(out, file, protocol=4)


MAX_FILE_BYTES = 16 * 2**30
MAX_OPERATIONS = 20_000_000  # a snapshot with a discriminator on two feature networks has a few hundred thousand
MAX_DEPTH = 64  # of modules in modules


@dataclasses.dataclass(frozen=True)
class GlobalName:
    """A name in a module that a pickle refers to. Nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class StorageRecord:
    """Raw elements of a tensor."""

    dtype: torch.dtype
    numel: int
    data: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor in a pickle, checked against the bounds of its storage; `tensor()` makes it."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    is_parameter: bool = False

    def __repr__(self) -> str:
        return f"<{str(self.dtype).removeprefix('torch.')} {list(self.shape)}>"

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def tensor(self) -> torch.Tensor:
        """A contiguous copy on the CPU."""
        if self.numel == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(self.storage.data), dtype=self.dtype)
        view = flat.as_strided(self.shape, self.stride, self.offset)
        return view.contiguous() if self.numel == self.storage.numel else view.clone(memory_format=torch.contiguous_format)


class Record:
    """An object in a pickle that was not made: the global it was to be made of, and everything it was to be given.

    persistent: made by _reconstruct_persistent_obj; then class_name and module_src are what the file claims.
    """

    __slots__ = ("args", "class_name", "items", "module_src", "origin", "persistent", "state")

    def __init__(self, origin: str, class_name: str, args: Any = (), state: Any = None, module_src: str | None = None, persistent: bool = False):
        self.origin = origin
        self.class_name = class_name
        self.args = args
        self.state = state
        self.items: list[Any] = []
        self.module_src = module_src
        self.persistent = persistent

    def __repr__(self) -> str:  # flat: records may contain one another
        return f"<record of {self.origin}>"

    @property
    def attributes(self) -> dict[str, Any]:
        return self.state if isinstance(self.state, dict) else {}

    def _table(self, name: str) -> dict[str, Any]:
        table = self.attributes.get(name, {})
        if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
            raise ValueError(f"{self.origin}: {name} is not a table of names")
        return table

    def modules(self) -> dict[str, "Record"]:
        """Children by name. Raises ValueError for a child that is no record."""
        children = {name: value for name, value in self._table("_modules").items() if value is not None}
        for name, value in children.items():
            if not isinstance(value, Record):
                raise ValueError(f"{self.origin}: child {name!r} is no module but {describe(value)}")
        return children

    def tensors(self) -> dict[str, TensorRecord]:
        """Parameters and buffers of this module alone, by name."""
        own = {**self._table("_parameters"), **self._table("_buffers")}
        own = {name: value for name, value in own.items() if value is not None}
        for name, value in own.items():
            if not isinstance(value, TensorRecord):
                raise ValueError(f"{self.origin}: {name!r} is no tensor but {describe(value)}")
        return own

    def named_modules(self, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, "Record"]]:
        """This record and all below it with their dotted names. Raises ValueError for modules nested too deep (or in themselves)."""
        if depth > MAX_DEPTH:
            raise ValueError(f"modules are nested more than {MAX_DEPTH} deep: {prefix[:80]}...")
        yield prefix, self
        for name, child in self.modules().items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name, depth + 1)

    def named_tensors(self) -> dict[str, TensorRecord]:
        """Parameters and buffers of this record and all below it, by state_dict name."""
        return {f"{path}.{name}" if path else name: value for path, module in self.named_modules() for name, value in module.tensors().items()}


class NetworkPickle(dict[str, Any]):
    """Content of a network pickle by key: records, tensor records and plain values. `globals_used` counts the names it refers to."""

    globals_used: Counter[str]


def describe(value: Any) -> str:
    """A value of a record in a few words, for messages."""
    if isinstance(value, (Record, GlobalName)):
        return f"an object of {value.origin if isinstance(value, Record) else value}"
    return f"{type(value).__name__} {value!r}"[:80] if isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"


# Names that no network is made of and every hostile file uses. Being inert, they would do no harm; a file that has them is refused all the same.
_HOSTILE_MODULES = frozenset(
    """
    asyncio bdb cProfile code commands concurrent ctypes distutils ensurepip http idlelib imaplib importlib io linecache marshal multiprocessing nt
    operator os pdb pickle pip pkgutil platform posix posixpath profile pty pydoc requests resource runpy setuptools shelve shutil signal site smtplib
    socket sqlite3 ssl subprocess sys tempfile threading timeit trace types urllib venv webbrowser zipimport
    """.split()  # noqa: SIM905
)
_HARMLESS_BUILTINS = frozenset(
    "getattr setattr set frozenset list tuple dict int float bool complex str bytes bytearray object slice range type".split()  # noqa: SIM905
)

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ARRAY_KINDS = "biuf"  # bool, integers, floats: no objects, strings or structures
_MARK = object()


class _Bounded(io.RawIOBase):
    """A stream that never reads past its end, so that a length field in a hostile file allocates nothing."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left, self._size = file, size, size

    def read(self, count: int = -1) -> bytes:
        if count > self._left:
            raise _CutShort
        data = self._file.read(count)
        self._left -= len(data)
        return data

    def readline(self, limit: int | None = -1) -> bytes:  # names in GLOBAL; nothing longer is text
        data = self._file.readline(1024)
        self._left -= len(data)
        return data

    def tell(self) -> int:
        return self._size - self._left


class _CutShort(ValueError):
    pass


class _Machine:
    """The stack machine of one pickle stream. Subclasses say what a global, a call and a persistent id mean."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals_used: Counter[str] = Counter()

    def run(self) -> Any:
        """The object that the next pickle of the stream describes. Raises ValueError, naming the place, for whatever is not understood."""
        code, position = "start", 0
        try:
            for count, (opcode, arg, position_) in enumerate(pickletools.genops(self.stream)):
                code, position = opcode.name, position_ or 0
                if count >= MAX_OPERATIONS:
                    raise ValueError(f"it has more than {MAX_OPERATIONS} operations")
                if code == "STOP":
                    return self.pop()
                action = _ACTIONS.get(code)
                if action is None:
                    raise ValueError(f"{code} has no place in a network pickle")
                action(self, arg)
        except _CutShort:
            raise ValueError("the file is cut short") from None
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError) as err:
            if "exhausted before seeing" in str(err) or "not enough data" in str(err):
                raise ValueError("the file is cut short") from None
            reason = str(err) if isinstance(err, ValueError) else f"malformed {code} ({type(err).__name__})"
            raise ValueError(f"{reason.splitlines()[0] if reason else code} (at byte {position})") from None
        raise ValueError("the file is cut short")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the stack is empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise ValueError("a mark is missing")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the stack is empty")
        return self.stack[-1]

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.top()

    def find_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global whose name is no text")
        self.globals_used[f"{module}.{name}"] += 1
        self.push(self.resolve(module, name))

    def put_items(self, pairs: Sequence[Any]) -> None:
        target = self.top()
        if len(pairs) % 2 or not isinstance(target, (dict, Record)):
            raise ValueError("items for something that takes none")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, Record):
                target.items.append((key, value))
            else:
                target[_key(key)] = value

    def extend(self, values: Sequence[Any]) -> None:
        target = self.top()
        if not isinstance(target, (list, Record)):
            raise ValueError("elements for something that takes none")
        (target.items if isinstance(target, Record) else target).extend(values)

    def add(self, values: Sequence[Any]) -> None:
        target = self.top()
        if not isinstance(target, (set, Record)):
            raise ValueError("elements for something that is no set")
        if isinstance(target, Record):
            target.items.extend(values)
        else:
            target.update(_key(value) for value in values)

    def resolve(self, module: str, name: str) -> Any:
        raise NotImplementedError

    def call(self, function: Any, args: Any, new: bool = False) -> Any:
        raise NotImplementedError

    def set_state(self, target: Any, state: Any) -> None:
        raise NotImplementedError

    def persistent_id(self, value: Any) -> Any:
        raise ValueError("a persistent id outside of a storage")


def _key(value: Any) -> Any:
    """`value`, if it can be hashed without walking through a structure that a file made deep on purpose."""
    flat = (str, int, float, bool, bytes, type(None), GlobalName, Record, np.dtype, np.generic)
    if isinstance(value, flat) or (isinstance(value, tuple) and all(isinstance(item, flat) for item in value)):
        return value
    raise ValueError(f"a {type(value).__name__} as a key")


def _integer(value: int) -> int:
    if value.bit_length() > 256:
        raise ValueError("an integer of more than 256 bits")
    return value


def _swap(machine: _Machine, count: int, make: Callable[[list[Any]], Any]) -> None:
    """Replace the top `count` values by one made of them."""
    values = [machine.pop() for _ in range(count)][::-1]
    machine.push(make(values))


def _action_stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.find_global(module, name)


def _action_reduce(machine: _Machine, _: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, args))


def _action_newobj(machine: _Machine, _: Any) -> None:
    args, cls = machine.pop(), machine.pop()
    machine.push(machine.call(cls, args, new=True))


def _action_newobj_ex(machine: _Machine, _: Any) -> None:
    kwargs, args, cls = machine.pop(), machine.pop(), machine.pop()
    machine.push(machine.call(cls, (args, kwargs), new=True))


def _action_build(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    machine.set_state(machine.top(), state)


def _action_setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.put_items([key, value])


def _action_pop(machine: _Machine, _: Any) -> None:
    if not machine.stack:
        raise ValueError("the stack is empty")
    machine.stack.pop()


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(["PROTO", "FRAME"], lambda m, arg: None),
    **dict.fromkeys(["BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"], _Machine.push),
    **dict.fromkeys(["BINSTRING", "SHORT_BINSTRING"], _Machine.push),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "LONG4"], lambda m, arg: m.push(_integer(arg))),
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "EMPTY_SET": lambda m, arg: m.push(set()),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "TUPLE1": lambda m, arg: _swap(m, 1, tuple),
    "TUPLE2": lambda m, arg: _swap(m, 2, tuple),
    "TUPLE3": lambda m, arg: _swap(m, 3, tuple),
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_mark())),
    "LIST": lambda m, arg: m.push(m.pop_mark()),
    "DICT": lambda m, arg: m.push(_pairs(m.pop_mark())),
    "FROZENSET": lambda m, arg: m.push(frozenset(map(_key, m.pop_mark()))),
    "MARK": lambda m, arg: m.push(_MARK),
    "POP": _action_pop,
    "POP_MARK": lambda m, arg: m.pop_mark(),
    "DUP": lambda m, arg: m.push(m.top()),
    "APPEND": lambda m, arg: m.extend([m.pop()]),
    "APPENDS": lambda m, arg: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m, arg: m.add(m.pop_mark()),
    "SETITEM": _action_setitem,
    "SETITEMS": lambda m, arg: m.put_items(m.pop_mark()),
    "MEMOIZE": lambda m, arg: m.memoize(None),
    "BINPUT": lambda m, arg: m.memoize(arg),
    "LONG_BINPUT": lambda m, arg: m.memoize(arg),
    "BINGET": lambda m, arg: m.push(m.memo[arg]),
    "LONG_BINGET": lambda m, arg: m.push(m.memo[arg]),
    "GLOBAL": lambda m, arg: m.find_global(*arg.split(" ", 1)),
    "STACK_GLOBAL": _action_stack_global,
    "REDUCE": _action_reduce,
    "NEWOBJ": _action_newobj,
    "NEWOBJ_EX": _action_newobj_ex,
    "BUILD": _action_build,
    "BINPERSID": lambda m, arg: m.push(m.persistent_id(m.pop())),
}


class _StorageMachine(_Machine):
    """Reads the header of one serialised storage: names of torch storages are tags, and nothing else has a name."""

    def resolve(self, module: str, name: str) -> Any:
        if module != "torch" or name not in _STORAGE_DTYPES:
            raise ValueError(f"refused global {module}.{name} inside a tensor's storage")
        return GlobalName(module, name)

    def call(self, function: Any, args: Any, new: bool = False) -> Any:
        raise ValueError("a call inside a tensor's storage")

    def set_state(self, target: Any, state: Any) -> None:
        raise ValueError("a call inside a tensor's storage")

    def persistent_id(self, value: Any) -> Any:
        return ("storage id", value)


def _read_storage(blob: Any) -> StorageRecord:
    """Parse a storage serialised by torch.save's legacy format. Raises ValueError for anything else."""
    if not isinstance(blob, bytes):
        raise ValueError("a tensor's storage is no bytes")
    stream = _Bounded(io.BytesIO(blob), len(blob))
    magic, protocol, system, storage, keys = (_StorageMachine(stream).run() for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or protocol != 1001 or not isinstance(system, dict):
        raise ValueError("a tensor's storage has an unknown format")
    if system.get("little_endian") is not True:
        raise ValueError("a tensor's storage is big-endian")
    marker, ident = storage if isinstance(storage, tuple) and len(storage) == 2 else (None, None)
    if marker != "storage id" or not isinstance(ident, tuple) or len(ident) < 5 or ident[0] != "storage" or not isinstance(ident[1], GlobalName):
        raise ValueError("a tensor's storage has an unknown header")
    dtype, key, numel = _STORAGE_DTYPES[ident[1].name], ident[2], ident[4]
    if keys != [key]:
        raise ValueError("a tensor's storage blob holds more than one storage")
    data = stream.read(len(blob) - stream.tell())
    if not _is_size(numel) or len(data) != 8 + numel * dtype.itemsize or int.from_bytes(data[:8], "little") != numel:
        raise ValueError(f"a tensor's storage of {numel} elements has {len(data) - 8} bytes")
    return StorageRecord(dtype, numel, data[8:])


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False, *_: Any) -> TensorRecord:
    """torch._utils._rebuild_tensor(_v2). Raises ValueError where the tensor would reach outside of its storage."""
    if isinstance(shape, Record) and shape.origin == "torch.Size":
        shape = shape.args[0]
    valid = isinstance(storage, StorageRecord) and _is_size(offset) and isinstance(shape, tuple) and isinstance(stride, tuple)
    if not valid or len(shape) != len(stride) or len(shape) > 16 or not all(map(_is_size, (*shape, *stride))):
        raise ValueError("a tensor with a malformed shape or stride")
    numel = math.prod(shape)
    if numel > 0 and offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) >= storage.numel:
        raise ValueError(f"a tensor of shape {list(shape)} reaches outside of its storage of {storage.numel} elements")
    if numel > storage.numel:  # overlapping: a few bytes could claim any amount of memory
        raise ValueError(f"a tensor of shape {list(shape)} overlaps itself in a storage of {storage.numel} elements")
    return TensorRecord(storage, offset, shape, stride, bool(requires_grad))


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter that is no tensor")
    return dataclasses.replace(data, requires_grad=bool(requires_grad), is_parameter=True)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _dtype(code: Any, *_: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or not re.fullmatch(r"[<=|]?[a-zA-Z]\d{0,2}", code) or np.dtype(code).kind not in _ARRAY_KINDS:
        raise ValueError(f"refused numpy dtype {code!r}: only numbers are read")
    return np.dtype(code)


def _scalar(dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError("a malformed numpy scalar")
    return np.frombuffer(data, dtype)[0]


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty([0], dtype=np.uint8)


def _array_state(array: np.ndarray, state: Any) -> None:
    """numpy.ndarray.__setstate__ for numbers, in place, with the size checked first."""
    version, shape, dtype, fortran, data = state
    good = isinstance(shape, tuple) and all(map(_is_size, shape)) and isinstance(dtype, np.dtype) and isinstance(data, bytes) and len(shape) <= 16
    if not good or version != 1 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("a malformed numpy array")
    array.__setstate__((1, shape, dtype, bool(fortran), data))  # type: ignore[arg-type]


def _dill_array(function: Any, args: Any, state: Any, extra: Any = None) -> np.ndarray:
    array = _empty_array()
    _array_state(array, state)
    return array


def _persistent(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != VERSION:
        raise ValueError(f"a persistent object that is not of type class, version {VERSION}")
    class_name, source, state = meta.get("class_name"), meta.get("module_src"), meta.get("state")
    if not isinstance(class_name, str) or not isinstance(source, str) or not isinstance(state, dict):
        raise ValueError("a malformed persistent object")
    return Record(f"persistent {class_name}", class_name, state=state, module_src=source, persistent=True)


# The names that mean something, and our own functions for them. Every other name becomes an inert record.
_MEANINGS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _read_storage,
    "collections.OrderedDict": _ordered_dict,
    "dnnlib.util.EasyDict": _ordered_dict,
    "numpy.dtype": _dtype,
    "dill._dill._create_array": _dill_array,
    "builtins.set": lambda items=(): set(map(_key, items)),
    "builtins.frozenset": lambda items=(): frozenset(map(_key, items)),
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}


class _NetworkMachine(_Machine):
    """Reads a network pickle into records."""

    def __init__(self, stream: Any, strict: bool):
        super().__init__(stream)
        self.strict = strict

    def resolve(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        builtin = root in ("builtins", "__builtin__")
        if self.strict and (root in _HOSTILE_MODULES or (builtin and name not in _HARMLESS_BUILTINS)):
            raise ValueError(f"refused global {module}.{name}: no network is made of it, and it runs code")
        return GlobalName("builtins" if builtin else module, name)

    def call(self, function: Any, args: Any, new: bool = False) -> Any:
        if isinstance(function, GlobalName):
            meaning = _MEANINGS.get(str(function))
            if meaning is None:
                return Record(str(function), function.name, args)
            if not isinstance(args, tuple):
                raise ValueError(f"malformed arguments of {function}")
            return meaning(*args)
        if isinstance(function, Record):
            return Record(f"result of {function.origin}", function.class_name, args)
        raise ValueError(f"a call of {describe(function)}")

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, np.ndarray):
            _array_state(target, state)
        elif isinstance(target, np.dtype):
            if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", "|", "=") or state[2:5] != (None, None, None):
                raise ValueError(f"refused numpy dtype {target}: only little-endian numbers are read")
        elif isinstance(target, Record) and not target.persistent:
            target.state = {**target.attributes, **state} if isinstance(state, dict) else state
        elif not isinstance(target, dict):  # an OrderedDict's own attributes say nothing here
            raise ValueError(f"a state for {describe(target)}")


def read_network_pickle(path: str | os.PathLike[str] | BinaryIO, strict: bool = True) -> NetworkPickle:
    """Content of a network pickle, by key (G, D, G_ema, training_set_kwargs, ...), without importing or running anything it names.

    Networks come as `Record`s, tensors as `TensorRecord`s, numbers, texts and containers as they are; an object of any class that is not understood
    is an inert `Record`. path: a file's path or an open binary file. strict: refuse a file that names modules of hostile files (os, subprocess, ...).

    Raises FileNotFoundError, and ValueError in one line: what in the file was refused or malformed, naming the global where there is one.
    """
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            return _read(file, os.fspath(path), strict)
    return _read(path, getattr(path, "name", "network pickle"), strict)


def _read(file: BinaryIO, name: Any, strict: bool) -> NetworkPickle:
    if not file.seekable():
        file = io.BytesIO(file.read(MAX_FILE_BYTES + 1))
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    try:
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        machine = _NetworkMachine(_Bounded(file, size), strict)
        data = machine.run()
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise ValueError(f"it holds {describe(data)}, not a table of networks")
    except ValueError as err:
        raise ValueError(f"{name}: not a network pickle that can be read: {err}") from None
    result = NetworkPickle(data)
    result.globals_used = machine.globals_used
    return result


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


_brief = reprlib.Repr()  # bounded in depth and length, whatever a file nests
_brief.maxlevel, _brief.maxdict, _brief.maxother, _brief.maxstring = 3, 16, 100, 100


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        sizes = [_value(item) for item in value[:4] if isinstance(item, (int, float, np.number))]
        return sizes[0] if sizes and len(set(sizes)) == 1 else "x".join(sizes)
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "-"
    return f"{float(value):g}" if isinstance(value, (int, float, np.number)) else _brief.repr(value)


_LAYER_COLUMNS = ("in_channels", "out_channels", "in_size", "out_size", "up_factor", "down_factor", "out_cutoff", "down_radial", "use_fp16")


def _describe_network(key: str, record: Record) -> list[str]:
    """Lines about one network: its class, its plain attributes, a table of its layers."""
    tensors = record.named_tensors()
    parameters = sum(value.numel for value in tensors.values() if value.is_parameter)
    lines = [f"{key}: {record.class_name} ({record.origin}), {parameters:,} parameters, {len(tensors)} tensors"]
    if record.module_src is not None:
        digest = hashlib.sha256(record.module_src.encode()).hexdigest()[:16]
        lines.append(f"  carries source code: {len(record.module_src):,} characters, sha256 {digest}... (not run)")
    plain = {name: value for name, value in record.attributes.items() if not name.startswith("_") and name != "training"}
    lines += [f"  {name} = {_value(value)}" for name, value in plain.items() if isinstance(value, (str, int, float, np.generic))]
    rows = []
    for path, module in record.named_modules():
        if path and module.persistent and all(name in module.attributes for name in _LAYER_COLUMNS):
            count = sum(value.numel for name, value in module.named_tensors().items() if value.is_parameter)
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
    try:
        data = read_network_pickle(arguments[0], strict=False)
        for key, value in data.items():
            if isinstance(value, Record):
                print("\n".join(_describe_network(key, value)))
            else:
                print(f"{key} = {_brief.repr(value)}")
    except (OSError, ValueError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    print("globals: " + ", ".join(f"{name} x{count}" for name, count in sorted(data.globals_used.items())))
    try:
        read_network_pickle(arguments[0])
    except ValueError as err:
        print(f"warning: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
