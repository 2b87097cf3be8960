# SPDX-License-Identifier: Apache-2.0
"""Reads network pickles without executing code from them.

A small stack machine interprets the pickle stream as data. It never creates an object that the file names;
`read_network_pickle` returns stubs (torch_utils.pickle_stubs) that the caller inspects. `_Machine` implements
the operations of pickle streams. Its subclasses `_StorageMachine` and `_NetworkMachine` define the meaning of
globals and calls in the two kinds of streams: tensor storages and network pickles.

Time and memory are bounded by the file's size or by a constant. Time: the number of operations is limited,
and containers, which a file can nest without limit, are never compared, hashed or printed. Memory:
`_Machine.charge` limits allocations.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from dnnlib.util import Damaged, reason
from torch_utils.pickle_stubs import (
    MAX_NAME,
    GlobalName,
    NetworkPickle,
    ObjectStub,
    StorageStub,
    TensorStub,
    describe,
    is_name,
)

LAYOUT_VERSION = 6  # version of persistent objects that dnnlib's loaders accept
MAX_FILE_BYTES = 16 * 2**30
# Includes the headers of tensors. A snapshot with a discriminator on two feature networks has about 300,000.
MAX_OPERATIONS = 1_000_000
MAX_HEADER_OPERATIONS = 1000  # per part of a tensor's header
MAX_EXTRA_BYTES = 64 * 2**20  # for containers and copies, beyond twice the file's size
MAX_GLOBALS = 5000  # distinct names
# Keys that are not strings. A file can choose their hashes, and collisions make a dict arbitrarily slow.
MAX_ODD_KEYS = 10_000
MAX_KEYS = 1000  # keys of the outermost dict
MAX_NETWORKS = 8  # networks in the outermost dict
CONTAINER_BYTES = 216  # size of an empty set, the largest of the empty containers
ENTRY_BYTES = 100  # upper bound for one entry of a set or dict

# Modules that no network needs and that malicious pickles use. Stubs of their functions would be harmless,
# but a file that names them is refused anyway. Leading underscores are ignored: Python 3.12 writes io.open
# as _io.open.
_HOSTILE_MODULES = frozenset(
    """
    asyncio bdb cProfile code commands concurrent ctypes distutils ensurepip http idlelib imaplib importlib io
    linecache marshal multiprocessing
    nt operator os pdb pickle pip pkgutil platform posix posixpath posixsubprocess profile pty pydoc requests
    resource runpy setuptools shelve
    shutil signal site smtplib socket sqlite3 ssl subprocess sys tempfile thread threading timeit trace types
    urllib venv webbrowser zipimport
    """.split()  # noqa: SIM905
)
_HARMLESS_BUILTINS = frozenset(
    [
        "getattr",
        "setattr",
        "set",
        "frozenset",
        "list",
        "tuple",
        "dict",
        "int",
        "float",
        "bool",
        "complex",
        "str",
        "bytes",
        "bytearray",
        "object",
        "slice",
        "range",
        "type",
    ]
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
_STORAGE_MAGIC = 0x1950A86A20F9469CFC6C  # first value in torch.save's legacy format
_ARRAY_DTYPE = re.compile(r"[<=|]?(b1|[iu][1248]|f(2|4|8|16))")  # numeric: no objects, strings or structures

_MARK = object()


class _Truncated(ValueError):
    """The stream ended in the middle of an operation."""


class _Refused(ValueError):
    """The file is intact but contains something that is not accepted. Other errors mean a damaged file."""


class _Stream:
    """A stream that never reads past its end, so that a false length field allocates nothing."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left, self.size = file, size, size
        self.operation_at = 0

    def operation(self) -> bytes:
        """Read the opcode of the next operation."""
        self.operation_at = self.size - self._left
        return self.read(1)

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes.

        Raises:
            _Truncated: fewer bytes are left.
        """
        if count > self._left:
            raise _Truncated
        data = self._file.read(count)
        if len(data) != count:
            raise _Truncated
        self._left -= count
        return data

    def line(self) -> str:
        """Read a module or name of GLOBAL: a line of at most 1024 bytes."""
        data = self._file.readline(min(1024, self._left))
        self._left -= len(data)
        if not data.endswith(b"\n"):
            raise _Truncated if self._left == 0 else ValueError("a global's name is too long")
        return str(data[:-1], "utf-8")

    def tell(self) -> int:
        """Return how many bytes have been read."""
        return self.size - self._left


class _Machine:
    """The stack machine of one pickle stream. Subclasses define globals, calls and persistent ids."""

    max_operations = MAX_OPERATIONS

    def __init__(self, stream: _Stream):
        self.stream = stream
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals_used: Counter[str] = Counter()
        self.known: dict[tuple[str, str], GlobalName] = {}
        self.operations = 0
        self.charged = 0
        self.odd_keys = 0

    def run(self) -> Any:
        """Return the object that the next pickle of the stream describes.

        Raises:
            ValueError: with the byte offset, for everything that is malformed or not supported.
        """
        name, stream, table = "start", self.stream, _OPERATIONS
        try:
            while True:
                byte = stream.operation()
                if byte == b".":
                    return self.pop()
                if byte not in table:
                    raise ValueError(
                        f"{_NAMES.get(byte, f'byte {byte[0]}')} is not supported in a network pickle"
                    )
                name, argument, action = table[byte]
                self.operations += 1
                if self.operations > self.max_operations:
                    raise _Refused(f"it has more than {self.max_operations} operations")
                action(self, argument(stream) if argument else None)
        except _Truncated:
            raise ValueError("the file is truncated") from None
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            OverflowError,
            RecursionError,
            MemoryError,
        ) as err:
            words = str(err) if isinstance(err, ValueError) else f"malformed {name} ({reason(err)})"
            kind = _Refused if isinstance(err, _Refused) else ValueError
            raise kind(
                f"{words.splitlines()[0] if words else name} (at byte {stream.operation_at})"
            ) from None

    def pop(self) -> Any:
        """Remove the top value of the stack and return it."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the stack is empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Remove everything down to the topmost mark and return the values above the mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise ValueError("a mark is missing")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_new(self, container: Any) -> None:
        """Put a new container on the stack and charge its memory."""
        self.charge(CONTAINER_BYTES)
        self.stack.append(container)

    def top(self) -> Any:
        """Return the top value of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the stack is empty")
        return self.stack[-1]

    def memoize(self, index: int | None) -> None:
        """Store the top value in the memo under `index`; None = the next free index."""
        self.memo[len(self.memo) if index is None else index] = self.top()

    def find_global(self, module: Any, name: Any) -> None:
        """Put a global on the stack."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global's name is not a string")
        if (module, name) not in self.known and not (is_name(module) and is_name(name)):
            raise ValueError(f"a global has the invalid name {describe(module[:40] + '.' + name[:40])}")
        if (module, name) not in self.known:
            if len(self.known) >= MAX_GLOBALS:
                raise _Refused(f"it names more than {MAX_GLOBALS} globals")
            self.known[module, name] = self.resolve(module, name)
        found = self.known[module, name]
        self.globals_used[found.dotted] += 1
        self.push(found)

    def put_items(self, pairs: Sequence[Any]) -> None:
        """Add (key, value, key, value, ...) to the dict or stub on top of the stack."""
        target = self.top()
        if len(pairs) % 2 or not isinstance(target, (dict, ObjectStub)):
            raise ValueError("items for an object that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, ObjectStub):
                target.items.append((key, value))
            else:
                target[self.key(key)] = value

    def extend(self, values: Sequence[Any]) -> None:
        """Append values to the list or stub on top of the stack."""
        target = self.top()
        if not isinstance(target, (list, ObjectStub)):
            raise ValueError("elements for an object that is not a list")
        (target.items if isinstance(target, ObjectStub) else target).extend(values)

    def add(self, values: Sequence[Any]) -> None:
        """Add values to the set or stub on top of the stack."""
        target = self.top()
        if not isinstance(target, (set, ObjectStub)):
            raise ValueError("elements for an object that is not a set")
        if isinstance(target, ObjectStub):
            target.items.extend(values)
        else:
            target.update(map(self.key, values))

    def charge(self, count: int) -> None:
        """Count `count` bytes that are about to be allocated in addition to the file's own bytes.

        Raises:
            ValueError: the total exceeds twice the file's size plus `MAX_EXTRA_BYTES`.
        """
        self.charged += count
        if self.charged > 2 * self.stream.size + MAX_EXTRA_BYTES:
            raise ValueError("it copies its own data too often")

    def key(self, value: Any) -> Any:
        """Return `value` if hashing it is cheap: a string, a number or a short tuple of such values.

        Raises:
            ValueError: any other value, or too many keys that are not strings.
        """
        if isinstance(value, str):
            return value
        self.odd_keys += 1
        if self.odd_keys > MAX_ODD_KEYS:
            raise ValueError(f"it has more than {MAX_ODD_KEYS} keys that are not strings")
        flat = (str, int, float, bool, bytes, type(None), GlobalName, ObjectStub, np.dtype, np.generic)
        if isinstance(value, flat):
            return value
        if (
            isinstance(value, tuple)
            and len(value) <= 16
            and all(isinstance(item, flat) and not _is_long(item) for item in value)
        ):
            return value
        raise ValueError(f"a {type(value).__name__} as a key")

    def table(self, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return a new dict of `pairs` and charge its memory."""
        self.charge(CONTAINER_BYTES + ENTRY_BYTES * len(pairs))
        return {self.key(key): value for key, value in pairs}

    def resolve(self, module: str, name: str) -> GlobalName:
        """Return the global that a name stands for."""
        raise NotImplementedError

    def call(self, function: Any, args: Any) -> Any:
        """Return the result of REDUCE, NEWOBJ or NEWOBJ_EX."""
        raise NotImplementedError

    def set_state(self, target: Any, state: Any) -> None:
        """Apply BUILD to `target`."""
        raise NotImplementedError

    def persistent_id(self, value: Any) -> Any:
        """Return the object that a persistent id stands for."""
        raise ValueError("a persistent id outside of a storage")


# Readers of the operations' arguments: functions of the stream.


def _unsigned(size: int) -> Callable[[_Stream], int]:
    return lambda stream: int.from_bytes(stream.read(size), "little")


def _signed(stream: _Stream) -> int:
    return int.from_bytes(stream.read(4), "little", signed=True)


def _float(stream: _Stream) -> float:
    return float(struct.unpack(">d", stream.read(8))[0])


def _bytes_of(size: int) -> Callable[[_Stream], bytes]:
    """Return a reader of bytes that follow their length, an integer of `size` bytes."""
    return lambda stream: stream.read(int.from_bytes(stream.read(size), "little"))


def _text_of(size: int) -> Callable[[_Stream], str]:
    return lambda stream: str(
        stream.read(int.from_bytes(stream.read(size), "little")), "utf-8", "surrogatepass"
    )


def _old_text_of(size: int) -> Callable[[_Stream], str]:
    return lambda stream: str(stream.read(int.from_bytes(stream.read(size), "little")), "latin-1")


def _integer_of(size: int) -> Callable[[_Stream], int]:
    def read(stream: _Stream) -> int:
        count = int.from_bytes(stream.read(size), "little")
        if count > 33:
            raise ValueError("an integer has more than 256 bits")
        return int.from_bytes(stream.read(count), "little", signed=True)

    return read


def _protocol(stream: _Stream) -> None:
    protocol = stream.read(1)[0]
    if not 2 <= protocol <= 5:
        raise ValueError(f"pickle protocol {protocol} is not supported: only 2 to 5 are")


def _names(stream: _Stream) -> tuple[str, str]:
    return stream.line(), stream.line()


# Actions of the operations: functions of the machine and the argument.


def _swap(machine: _Machine, count: int, make: Callable[[list[Any]], Any]) -> None:
    """Replace the top `count` values of the stack by `make(values)`."""
    values = [machine.pop() for _ in range(count)][::-1]
    machine.push(make(values))


def _action_stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.find_global(module, name)


def _action_call(machine: _Machine, _: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, args))


def _action_newobj_ex(machine: _Machine, _: Any) -> None:
    kwargs, args, cls = machine.pop(), machine.pop(), machine.pop()
    machine.push(machine.call(cls, (args, kwargs)))


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


def _action_dict(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.push(machine.table(list(zip(items[::2], items[1::2], strict=True))))


_Argument = Callable[[_Stream], Any]
_Action = Callable[[_Machine, Any], object]

# opcode -> (name, reader of its argument, action). `_Machine.run` handles STOP.
_OPERATIONS: dict[bytes, tuple[str, _Argument | None, _Action]] = {
    b"\x80": ("PROTO", _protocol, lambda m, arg: None),
    b"\x95": ("FRAME", _unsigned(8), lambda m, arg: None),
    b"N": ("NONE", None, lambda m, arg: m.push(None)),
    b"\x88": ("NEWTRUE", None, lambda m, arg: m.push(True)),
    b"\x89": ("NEWFALSE", None, lambda m, arg: m.push(False)),
    b"K": ("BININT1", _unsigned(1), _Machine.push),
    b"M": ("BININT2", _unsigned(2), _Machine.push),
    b"J": ("BININT", _signed, _Machine.push),
    b"\x8a": ("LONG1", _integer_of(1), _Machine.push),
    b"\x8b": ("LONG4", _integer_of(4), _Machine.push),
    b"G": ("BINFLOAT", _float, _Machine.push),
    b"\x8c": ("SHORT_BINUNICODE", _text_of(1), _Machine.push),
    b"X": ("BINUNICODE", _text_of(4), _Machine.push),
    b"\x8d": ("BINUNICODE8", _text_of(8), _Machine.push),
    b"U": ("SHORT_BINSTRING", _old_text_of(1), _Machine.push),
    b"T": ("BINSTRING", _old_text_of(4), _Machine.push),
    b"C": ("SHORT_BINBYTES", _bytes_of(1), _Machine.push),
    b"B": ("BINBYTES", _bytes_of(4), _Machine.push),
    b"\x8e": ("BINBYTES8", _bytes_of(8), _Machine.push),
    b"\x96": ("BYTEARRAY8", _bytes_of(8), _Machine.push),
    b"]": ("EMPTY_LIST", None, lambda m, arg: m.push_new([])),
    b"}": ("EMPTY_DICT", None, lambda m, arg: m.push_new({})),
    b"\x8f": ("EMPTY_SET", None, lambda m, arg: m.push_new(set())),
    b")": ("EMPTY_TUPLE", None, lambda m, arg: m.push(())),
    b"\x85": ("TUPLE1", None, lambda m, arg: _swap(m, 1, tuple)),
    b"\x86": ("TUPLE2", None, lambda m, arg: _swap(m, 2, tuple)),
    b"\x87": ("TUPLE3", None, lambda m, arg: _swap(m, 3, tuple)),
    b"t": ("TUPLE", None, lambda m, arg: m.push(tuple(m.pop_mark()))),
    b"l": ("LIST", None, lambda m, arg: m.push_new(m.pop_mark())),
    b"d": ("DICT", None, _action_dict),
    b"\x91": ("FROZENSET", None, lambda m, arg: m.push_new(frozenset(map(m.key, m.pop_mark())))),
    b"(": ("MARK", None, lambda m, arg: m.push(_MARK)),
    b"0": ("POP", None, _action_pop),
    b"1": ("POP_MARK", None, lambda m, arg: m.pop_mark()),
    b"2": ("DUP", None, lambda m, arg: m.push(m.top())),
    b"a": ("APPEND", None, lambda m, arg: m.extend([m.pop()])),
    b"e": ("APPENDS", None, lambda m, arg: m.extend(m.pop_mark())),
    b"\x90": ("ADDITEMS", None, lambda m, arg: m.add(m.pop_mark())),
    b"s": ("SETITEM", None, _action_setitem),
    b"u": ("SETITEMS", None, lambda m, arg: m.put_items(m.pop_mark())),
    b"\x94": ("MEMOIZE", None, _Machine.memoize),
    b"q": ("BINPUT", _unsigned(1), _Machine.memoize),
    b"r": ("LONG_BINPUT", _unsigned(4), _Machine.memoize),
    b"h": ("BINGET", _unsigned(1), lambda m, arg: m.push(m.memo[arg])),
    b"j": ("LONG_BINGET", _unsigned(4), lambda m, arg: m.push(m.memo[arg])),
    b"c": ("GLOBAL", _names, lambda m, arg: m.find_global(*arg)),
    b"\x93": ("STACK_GLOBAL", None, _action_stack_global),
    b"R": ("REDUCE", None, _action_call),
    b"\x81": ("NEWOBJ", None, _action_call),
    b"\x92": ("NEWOBJ_EX", None, _action_newobj_ex),
    b"b": ("BUILD", None, _action_build),
    b"Q": ("BINPERSID", None, lambda m, arg: m.push(m.persistent_id(m.pop()))),
}
_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}


class _StorageMachine(_Machine):
    """Reads the header of one serialised storage.

    Names of torch storages are data type tags; no other global is accepted.
    """

    max_operations = MAX_HEADER_OPERATIONS

    def resolve(self, module: str, name: str) -> GlobalName:
        if module != "torch" or name not in _STORAGE_DTYPES:
            raise _Refused(f"refused global {module}.{name} inside a tensor's storage")
        return GlobalName(module, name, f"torch.{name}")

    def call(self, function: Any, args: Any) -> Any:
        raise ValueError("a call inside a tensor's storage")

    def set_state(self, target: Any, state: Any) -> None:
        raise ValueError("a call inside a tensor's storage")

    def persistent_id(self, value: Any) -> Any:
        return ("storage id", value)


def _read_storage(machine: _Machine, blob: Any) -> StorageStub:
    """Parse a storage in torch.save's legacy format. Its elements are not copied.

    Raises:
        ValueError: the blob is malformed or not supported.
    """
    if not isinstance(blob, bytes):
        raise ValueError("a tensor's storage is not a bytes object")
    stream = _Stream(io.BytesIO(blob), len(blob))
    parts = []
    for _ in range(5):
        header = _StorageMachine(stream)
        parts.append(header.run())
        machine.operations += header.operations  # counted because a file can refer to one blob many times
    magic, protocol, system, storage, keys = parts
    if (
        type(magic) is not int
        or magic != _STORAGE_MAGIC
        or type(protocol) is not int
        or protocol != 1001
        or not isinstance(system, dict)
    ):
        raise ValueError("a tensor's storage has an unknown format")
    if system.get("little_endian") is not True:
        raise ValueError("a tensor's storage is big-endian")
    ident = (
        storage[1]
        if isinstance(storage, tuple)
        and len(storage) == 2
        and isinstance(storage[0], str)
        and storage[0] == "storage id"
        else None
    )
    # Types are checked before values are compared or printed: containers can be nested without limit.
    kinds = (str, GlobalName, str, str, int)
    if (
        not isinstance(ident, tuple)
        or len(ident) < 5
        or not all(map(isinstance, ident, kinds))
        or ident[0] != "storage"
    ):
        raise ValueError("a tensor's storage has an unknown header")
    dtype, key, numel = _STORAGE_DTYPES[ident[1].name], ident[2], ident[4]
    if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], str) or keys[0] != key:
        raise ValueError("a tensor's storage blob holds more than one storage")
    data = memoryview(blob)[stream.tell() :]
    if (
        not _is_size(numel)
        or len(data) != 8 + numel * dtype.itemsize
        or int.from_bytes(data[:8], "little") != numel
    ):
        raise ValueError(f"a tensor's storage of {numel} elements has {len(data) - 8} bytes")
    return StorageStub(dtype, numel, data[8:])


def _is_long(value: Any) -> bool:
    return isinstance(value, (str, bytes)) and len(value) > MAX_NAME


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _tensor(
    machine: _Machine, storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False, *_: Any
) -> TensorStub:
    """Stand in for torch._utils._rebuild_tensor and _rebuild_tensor_v2.

    Raises:
        ValueError: the tensor is malformed, or extends beyond its storage or overlaps itself.
    """
    if (
        isinstance(shape, ObjectStub)
        and shape.origin == "torch.Size"
        and isinstance(shape.args, tuple)
        and shape.args
    ):
        shape = shape.args[0]
    valid = (
        isinstance(storage, StorageStub)
        and _is_size(offset)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
    )
    if not valid or len(shape) != len(stride) or len(shape) > 16 or not all(map(_is_size, (*shape, *stride))):
        raise ValueError("a tensor has a malformed shape or stride")
    # Below this limit, every offset fits into an int64, in bytes as well.
    if math.prod(max(size, 1) for size in (*shape, *stride)) >= 2**58:
        raise ValueError("a tensor has impossible sizes")
    numel = math.prod(shape)
    if (
        numel > 0
        and offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) >= storage.numel
    ):
        raise ValueError(
            f"a tensor of shape {list(shape)} extends beyond its storage of {storage.numel} elements"
        )
    if numel > storage.numel:  # overlapping elements: a few bytes could request any amount of memory
        raise ValueError(
            f"a tensor of shape {list(shape)} overlaps itself in a storage of {storage.numel} elements"
        )
    return TensorStub(storage, offset, shape, stride, requires_grad is True)


def _parameter(machine: _Machine, data: Any, requires_grad: Any = True, *_: Any) -> TensorStub:
    if not isinstance(data, TensorStub):
        raise ValueError("a parameter is not a tensor")
    return TensorStub(
        data.storage, data.offset, data.shape, data.stride, requires_grad is True, is_parameter=True
    )


def _elements(machine: _Machine, items: Any) -> list[Any]:
    """Return the elements of a new set and charge its memory."""
    if not isinstance(items, (list, tuple, dict, set, frozenset)):
        raise ValueError(f"a set cannot be made of {describe(items)}")
    machine.charge(CONTAINER_BYTES + ENTRY_BYTES * len(items))
    return [machine.key(item) for item in items]


def _ordered_dict(machine: _Machine, pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return machine.table(list(pairs.items()))
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError(f"a dict cannot be made of {describe(pairs)}")
    return machine.table([(pair[0], pair[1]) for pair in pairs])


def _set(machine: _Machine, items: Any = ()) -> set[Any]:
    return set(_elements(machine, items))


def _frozenset(machine: _Machine, items: Any = ()) -> frozenset[Any]:
    return frozenset(_elements(machine, items))


def _bytes(machine: _Machine, data: Any = b"") -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"bytes cannot be made of {describe(data)}")
    return data


def _encode(machine: _Machine, text: Any, encoding: Any = "utf-8", *_: Any) -> bytes:
    """Stand in for _codecs.encode, which protocol 2 uses for bytes because it has no opcode for them."""
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes have an unknown encoding")
    machine.charge(len(text))
    return text.encode("latin-1")


def _dtype(machine: _Machine, code: Any, *_: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or len(code) > 8 or not _ARRAY_DTYPE.fullmatch(code):
        raise _Refused(
            f"refused numpy dtype {repr(code[:40]) if isinstance(code, str) else describe(code)}: only "
            "numeric types are supported"
        )
    return np.dtype(code)


def _scalar(machine: _Machine, dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError("a malformed numpy scalar")
    scalar: np.generic = np.frombuffer(data, dtype)[0]
    return scalar


def _empty_array(machine: _Machine, *_: Any) -> np.ndarray:
    machine.charge(CONTAINER_BYTES)
    return np.empty([0], dtype=np.uint8)


def _array_state(machine: _Machine, array: np.ndarray, state: Any) -> None:
    """Stand in for numpy.ndarray.__setstate__: numeric arrays only, in place, after checking the size."""
    version, shape, dtype, fortran, data = state
    good = (
        isinstance(shape, tuple)
        and all(map(_is_size, shape))
        and isinstance(dtype, np.dtype)
        and isinstance(data, bytes)
        and len(shape) <= 16
    )
    good = (
        good and type(version) is int and version == 1 and math.prod(max(size, 1) for size in shape) < 2**58
    )
    if not good or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("a malformed numpy array")
    machine.charge(len(data))
    array.__setstate__((1, shape, dtype, fortran is True, data))  # type: ignore[arg-type]


def _dill_array(machine: _Machine, function: Any, args: Any, state: Any, extra: Any = None) -> np.ndarray:
    array = _empty_array(machine)
    _array_state(machine, array, state)
    return array


def _buffer_array(machine: _Machine, data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    """Stand in for numpy's _frombuffer, which protocol 5 uses for arrays."""
    array = _empty_array(machine)
    _array_state(machine, array, (1, shape, dtype, isinstance(order, str) and order == "F", data))
    return array


def _version(machine: _Machine, text: Any = "", *_: Any) -> str:
    """Stand in for torch's class of torch.__version__; snapshots of version 0.1 contain one."""
    if not isinstance(text, str):
        raise ValueError("a malformed torch version")
    return text


def _persistent(machine: _Machine, meta: Any) -> ObjectStub:
    meta = meta if isinstance(meta, dict) else {}
    kind, version = meta.get("type"), meta.get("version")
    if not isinstance(kind, str) or kind != "class" or type(version) is not int or version != LAYOUT_VERSION:
        raise ValueError(f"a persistent object that is not of type class, version {LAYOUT_VERSION}")
    class_name, source, state = meta.get("class_name"), meta.get("module_src"), meta.get("state")
    if (
        not isinstance(class_name, str)
        or not is_name(class_name)
        or not isinstance(source, str)
        or not isinstance(state, dict)
    ):
        raise ValueError("a malformed persistent object")
    return ObjectStub(f"persistent {class_name}", class_name, state=state, module_src=source, persistent=True)


# Globals that are understood, and the functions here that stand in for them. All others become inert stubs.
_MEANINGS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.torch_version.TorchVersion": _version,
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
    """Reads a network pickle into stubs."""

    def __init__(self, stream: _Stream, strict: bool):
        super().__init__(stream)
        self.strict = strict

    def resolve(self, module: str, name: str) -> GlobalName:
        root = module.partition(".")[0]
        builtin = root in ("builtins", "__builtin__")
        if self.strict and (
            root.lstrip("_") in _HOSTILE_MODULES or (builtin and name not in _HARMLESS_BUILTINS)
        ):
            raise _Refused(f"refused global {module}.{name}: no network needs it, and it can run code")
        module = "builtins" if builtin else module
        return GlobalName(module, name, f"{module}.{name}")

    def call(self, function: Any, args: Any) -> Any:
        if isinstance(function, GlobalName):
            meaning = _MEANINGS.get(function.dotted)
            if meaning is None:
                return self.stub(function.dotted, function.name, args)
            if not isinstance(args, tuple):
                raise ValueError(f"malformed arguments for {function}")
            return meaning(self, *args)
        if isinstance(function, ObjectStub):
            return self.stub(
                f"result of {function.origin.removeprefix('result of ')}", function.class_name, args
            )
        raise ValueError(f"a call of {describe(function)}")

    def stub(self, origin: str, class_name: str, args: Any) -> ObjectStub:
        """Return a stub of an object that is not created, and charge its memory."""
        self.charge(CONTAINER_BYTES + len(origin))
        return ObjectStub(origin, class_name, args)

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, np.ndarray):
            _array_state(self, target, state)
        elif isinstance(target, np.dtype):
            valid = (
                isinstance(state, tuple)
                and len(state) >= 5
                and isinstance(state[1], str)
                and state[1] in ("<", "|", "=")
            )
            if not valid or not all(part is None for part in state[2:5]):
                raise _Refused(f"refused numpy dtype {target}: only little-endian numbers are supported")
        elif isinstance(target, ObjectStub) and not target.persistent:
            if isinstance(state, dict) and target.attributes:
                state = self.table([*target.attributes.items(), *state.items()])
            target.state = state
        elif not isinstance(target, dict):  # the attributes of an OrderedDict are ignored
            raise ValueError(f"{describe(target)} cannot have a state")


def read_network_pickle(path: str | os.PathLike[str] | BinaryIO, strict: bool = True) -> NetworkPickle:
    """Read a network pickle without importing or running anything that it names.

    Args:
        path: path of the file, or an open binary file.
        strict: refuse a file that names modules which malicious files use (os, subprocess, ...).

    Returns:
        The content by key (G, D, G_ema, training_set_kwargs, ...). Networks are `ObjectStub`s, tensors are
        `TensorStub`s; numbers, strings and containers are themselves. An object of an unknown class is an
        inert `ObjectStub`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line about what in the file was refused or malformed, with the global if there is one.
            It is a `dnnlib.util.Damaged` if the file is not a network pickle or is incomplete.
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
        other = _other_format(file.read(512))
        if other:
            raise ValueError(other)
        file.seek(start)
        machine = _NetworkMachine(_Stream(file, size), strict)
        data = machine.run()
        _check_outermost(data)
    except ValueError as err:
        kind = ValueError if isinstance(err, _Refused) else Damaged
        raise kind(f"{name}: not a network pickle that can be read: {err}") from None
    result = NetworkPickle(data)
    result.globals_used = machine.globals_used
    return result


def _check_outermost(data: Any) -> None:
    if type(data) is int and data == _STORAGE_MAGIC:
        raise ValueError("it was written by torch.save: a checkpoint or a state dict")
    if not isinstance(data, dict) or not all(isinstance(key, str) and is_name(key) for key in data):
        raise ValueError(f"it contains {describe(data)}, not a dict of networks")
    networks = sum(isinstance(value, ObjectStub) for value in data.values())
    if len(data) > MAX_KEYS or networks > MAX_NETWORKS:
        raise ValueError(
            f"it contains {len(data)} entries, {networks} of them networks: the limits are {MAX_KEYS} and "
            f"{MAX_NETWORKS}"
        )


def _other_format(head: bytes) -> str:
    """Guess the format of a file that is not a pickle from its first bytes; '' if it may be a pickle."""
    if head[:1] == b"\x80" or not head:
        return ""
    known = {
        b"PK\x03\x04": "it is a zip file: a checkpoint written by torch.save, or an archive",
        b"\x1f\x8b": "it is compressed with gzip: unpack it first",
        b"version https://git-lfs": "it is a git-lfs pointer, not the file itself: run git lfs pull",
        b"\x89HDF": "it is an HDF5 file",
    }
    found = next((words for start, words in known.items() if head.startswith(start)), "")
    if not found and head.lstrip()[:1] == b"<":
        found = "it is a web page, not the file: open its URL in a browser to see the server's answer"
    if not found and head[8:10] == b'{"':
        found = "it is a safetensors file: its name must end with .safetensors"
    return found or "it is not a pickle of protocol 2 or newer"
