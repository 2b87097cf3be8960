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
MAX_OPERATIONS = 2_000_000  # a snapshot with a discriminator on two feature networks has a few hundred thousand
MAX_HEADER_OPERATIONS = 1000  # of each part of a tensor's header
MAX_COPIES = 2**20  # bytes and elements copied beyond twice the file's size: a file can ask for a copy of what it holds again and again
MAX_GLOBALS = 5000  # different names
MAX_NAME = 512  # characters of a global's, a class's or a module's name
MAX_ODD_KEYS = 10_000  # keys that are no text: a file can choose their hashes, and make a table of them arbitrarily slow
MAX_DEPTH = 64  # of modules in modules
MAX_MODULES = 10_000  # of one network; one module under two names counts twice
MAX_TENSORS = 100_000


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
    data: memoryview = dataclasses.field(repr=False)


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
        """A contiguous copy on the CPU. Costs its own elements, whatever the storage holds besides."""
        integer = np.dtype(f"i{self.dtype.itemsize}")  # numpy has no bfloat16, and takes unaligned data
        elements = np.frombuffer(self.storage.data, integer)[self.offset :]
        view = np.lib.stride_tricks.as_strided(elements, self.shape, [step * integer.itemsize for step in self.stride], writeable=False)
        copy_ = torch.from_numpy(np.array(view, order="C"))
        return copy_ != 0 if self.dtype == torch.bool else copy_.view(self.dtype)


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
        if not isinstance(table, dict) or len(table) > MAX_MODULES or not all(isinstance(key, str) and _is_name(key) for key in table):
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

    def named_modules(self) -> Iterator[tuple[str, "Record"]]:
        """This record and all below it with their dotted names, parents first.

        Raises ValueError for modules nested too deep (or in themselves), and for too many of them: a few records that contain each other
        twice make any number of names.
        """
        waiting = [("", self, 0)]
        for _ in range(MAX_MODULES):
            if not waiting:
                return
            path, module, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise ValueError(f"modules are nested more than {MAX_DEPTH} deep: {path[:80]}...")
            yield path, module
            children = [(f"{path}.{name}" if path else name, child, depth + 1) for name, child in module.modules().items()]
            waiting.extend(reversed(children))
        raise ValueError(f"{self.origin} has more than {MAX_MODULES} modules")

    def named_tensors(self) -> dict[str, TensorRecord]:
        """Parameters and buffers of this record and all below it, by state_dict name."""
        found: dict[str, TensorRecord] = {}
        for path, module in self.named_modules():
            found.update({f"{path}.{name}" if path else name: value for name, value in module.tensors().items()})
            if len(found) > MAX_TENSORS:
                raise ValueError(f"{self.origin} has more than {MAX_TENSORS} tensors")
        return found


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


def _is_name(text: str) -> bool:
    """Whether `text` can be the name of something: short, and nothing that a terminal would obey."""
    return len(text) <= MAX_NAME and text.isprintable()


_MARK = object()


class _Bounded(io.RawIOBase):
    """A stream that never reads past its end, so that a length field in a hostile file allocates nothing."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left, self.size = file, size, size

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
        return self.size - self._left


class _CutShort(ValueError):
    pass


class _Machine:
    """The stack machine of one pickle stream. Subclasses say what a global, a call and a persistent id mean."""

    max_operations = MAX_OPERATIONS

    def __init__(self, stream: _Bounded):
        self.stream = stream
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals_used: Counter[str] = Counter()
        self.copied = 0
        self.odd_keys = 0

    def run(self) -> Any:
        """The object that the next pickle of the stream describes. Raises ValueError, naming the place, for whatever is not understood."""
        code, position = "start", 0
        try:
            for count, (opcode, arg, position_) in enumerate(pickletools.genops(self.stream)):  # type: ignore[arg-type]
                code, position = opcode.name, position_ or 0
                if count >= self.max_operations:
                    raise ValueError(f"it has more than {self.max_operations} operations")
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
        if not _is_name(module) or not _is_name(name):
            raise ValueError(f"a global with an impossible name {describe(module[:40] + '.' + name[:40])}")
        self.globals_used[f"{module}.{name}"] += 1
        if len(self.globals_used) > MAX_GLOBALS:
            raise ValueError(f"it names more than {MAX_GLOBALS} globals")
        self.push(self.resolve(module, name))

    def put_items(self, pairs: Sequence[Any]) -> None:
        target = self.top()
        if len(pairs) % 2 or not isinstance(target, (dict, Record)):
            raise ValueError("items for something that takes none")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, Record):
                target.items.append((key, value))
            else:
                target[self.key(key)] = value

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
            target.update(map(self.key, values))

    def charge(self, count: int) -> None:
        """Called before `count` bytes or elements are copied. Raises ValueError for a file that lives on copies."""
        self.copied += count
        if self.copied > 2 * self.stream.size + MAX_COPIES:
            raise ValueError("it copies its own data too often")

    def key(self, value: Any) -> Any:
        """`value`, if it can be hashed without walking through a structure that a file made deep or long on purpose."""
        if isinstance(value, str):
            return value
        self.odd_keys += 1
        if self.odd_keys > MAX_ODD_KEYS:
            raise ValueError(f"it has more than {MAX_ODD_KEYS} keys that are no text")
        flat = (str, int, float, bool, bytes, type(None), GlobalName, Record, np.dtype, np.generic)
        if isinstance(value, flat) or (isinstance(value, tuple) and len(value) <= 16 and all(isinstance(item, flat) for item in value)):
            return value
        raise ValueError(f"a {type(value).__name__} as a key")

    def resolve(self, module: str, name: str) -> Any:
        raise NotImplementedError

    def call(self, function: Any, args: Any, new: bool = False) -> Any:
        raise NotImplementedError

    def set_state(self, target: Any, state: Any) -> None:
        raise NotImplementedError

    def persistent_id(self, value: Any) -> Any:
        raise ValueError("a persistent id outside of a storage")


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


def _dict_of(machine: "_Machine", items: list[Any]) -> dict[Any, Any]:
    return {machine.key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(["PROTO", "FRAME"], lambda m, arg: None),
    **dict.fromkeys(["BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"], _Machine.push),
    **dict.fromkeys(["BINSTRING", "SHORT_BINSTRING"], _Machine.push),
    "BYTEARRAY8": lambda m, arg: m.push(bytes(arg)),
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
    "DICT": lambda m, arg: m.push(_dict_of(m, m.pop_mark())),
    "FROZENSET": lambda m, arg: m.push(frozenset(map(m.key, m.pop_mark()))),
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

    max_operations = MAX_HEADER_OPERATIONS

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


def _read_storage(machine: _Machine, blob: Any) -> StorageRecord:
    """Parse a storage serialised by torch.save's legacy format; its elements stay where they are. Raises ValueError for anything else."""
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
    data = memoryview(blob)[stream.tell() :]
    if not _is_size(numel) or len(data) != 8 + numel * dtype.itemsize or int.from_bytes(data[:8], "little") != numel:
        raise ValueError(f"a tensor's storage of {numel} elements has {len(data) - 8} bytes")
    return StorageRecord(dtype, numel, data[8:])


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _tensor(machine: _Machine, storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False, *_: Any) -> TensorRecord:
    """torch._utils._rebuild_tensor(_v2). Raises ValueError where the tensor would reach outside of its storage."""
    if isinstance(shape, Record) and shape.origin == "torch.Size" and isinstance(shape.args, tuple) and shape.args:
        shape = shape.args[0]
    valid = isinstance(storage, StorageRecord) and _is_size(offset) and isinstance(shape, tuple) and isinstance(stride, tuple)
    if not valid or len(shape) != len(stride) or len(shape) > 16 or not all(map(_is_size, (*shape, *stride))):
        raise ValueError("a tensor with a malformed shape or stride")
    if math.prod(max(size, 1) for size in (*shape, *stride)) >= 2**62:
        raise ValueError("a tensor with impossible sizes")
    numel = math.prod(shape)
    if numel > 0 and offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) >= storage.numel:
        raise ValueError(f"a tensor of shape {list(shape)} reaches outside of its storage of {storage.numel} elements")
    if numel > storage.numel:  # overlapping: a few bytes could claim any amount of memory
        raise ValueError(f"a tensor of shape {list(shape)} overlaps itself in a storage of {storage.numel} elements")
    return TensorRecord(storage, offset, shape, stride, bool(requires_grad))


def _parameter(machine: _Machine, data: Any, requires_grad: Any = True, *_: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter that is no tensor")
    return dataclasses.replace(data, requires_grad=bool(requires_grad), is_parameter=True)


def _elements(machine: _Machine, items: Any) -> Any:
    """What a set or a table is made of, once the copy is paid for."""
    if not isinstance(items, (list, tuple, dict, set, frozenset)):
        raise ValueError(f"elements in {describe(items)}")
    machine.charge(len(items))
    return items


def _ordered_dict(machine: _Machine, pairs: Any = ()) -> dict[Any, Any]:
    pairs = _elements(machine, pairs)
    return {machine.key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _set(machine: _Machine, items: Any = ()) -> set[Any]:
    return set(map(machine.key, _elements(machine, items)))


def _frozenset(machine: _Machine, items: Any = ()) -> frozenset[Any]:
    return frozenset(map(machine.key, _elements(machine, items)))


def _bytes(machine: _Machine, data: Any = b"") -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"bytes made of {describe(data)}")
    return data


def _encode(machine: _Machine, text: Any, encoding: Any = "utf-8", *_: Any) -> bytes:
    """_codecs.encode: how protocol 2, which knows no bytes, writes them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    machine.charge(len(text))
    return text.encode("latin-1")


def _dtype(machine: _Machine, code: Any, *_: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or not re.fullmatch(r"[<=|]?[a-zA-Z]\d{0,2}", code) or np.dtype(code).kind not in _ARRAY_KINDS:
        raise ValueError(f"refused numpy dtype {code!r}: only numbers are read")
    return np.dtype(code)


def _scalar(machine: _Machine, dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError("a malformed numpy scalar")
    return np.frombuffer(data, dtype)[0]


def _empty_array(machine: _Machine, *_: Any) -> np.ndarray:
    return np.empty([0], dtype=np.uint8)


def _array_state(machine: _Machine, array: np.ndarray, state: Any) -> None:
    """numpy.ndarray.__setstate__ for numbers, in place, with the size checked first."""
    version, shape, dtype, fortran, data = state
    good = isinstance(shape, tuple) and all(map(_is_size, shape)) and isinstance(dtype, np.dtype) and isinstance(data, bytes) and len(shape) <= 16
    if not good or version != 1 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("a malformed numpy array")
    machine.charge(len(data))
    array.__setstate__((1, shape, dtype, bool(fortran), data))  # type: ignore[arg-type]


def _dill_array(machine: _Machine, function: Any, args: Any, state: Any, extra: Any = None) -> np.ndarray:
    array = _empty_array(machine)
    _array_state(machine, array, state)
    return array


def _buffer_array(machine: _Machine, data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    """numpy's _frombuffer: how protocol 5 writes arrays."""
    array = _empty_array(machine)
    _array_state(machine, array, (1, shape, dtype, order == "F", data))
    return array


def _persistent(machine: _Machine, meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != VERSION:
        raise ValueError(f"a persistent object that is not of type class, version {VERSION}")
    class_name, source, state = meta.get("class_name"), meta.get("module_src"), meta.get("state")
    if not isinstance(class_name, str) or not _is_name(class_name) or not isinstance(source, str) or not isinstance(state, dict):
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
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _buffer_array for core in ("core", "_core")},
}


class _NetworkMachine(_Machine):
    """Reads a network pickle into records."""

    def __init__(self, stream: _Bounded, strict: bool):
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
            return meaning(self, *args)
        if isinstance(function, Record):
            return Record(f"result of {function.origin.removeprefix('result of ')}", function.class_name, args)
        raise ValueError(f"a call of {describe(function)}")

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, np.ndarray):
            _array_state(self, target, state)
        elif isinstance(target, np.dtype):
            if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", "|", "=") or state[2:5] != (None, None, None):
                raise ValueError(f"refused numpy dtype {target}: only little-endian numbers are read")
        elif isinstance(target, Record) and not target.persistent:
            if isinstance(state, dict) and target.attributes:
                self.charge(len(target.attributes) + len(state))
                state = {**target.attributes, **state}
            target.state = state
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
        if not isinstance(data, dict) or not all(isinstance(key, str) and _is_name(key) for key in data):
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
    names = [name for name in record.attributes if isinstance(name, str) and _is_name(name) and not name.startswith("_") and name != "training"]
    plain = {name: record.attributes[name] for name in names}
    lines += [f"  {name} = {_value(value)}" for name, value in plain.items() if isinstance(value, (str, int, float, np.generic))]
    rows = []
    for path, module in record.named_modules():
        if path and module.persistent and all(name in module.attributes for name in _LAYER_COLUMNS):
            parts = [module, *module.modules().values()]
            count = sum(value.numel for part in parts for value in part.tensors().values() if value.is_parameter)
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
