# SPDX-License-Identifier: Apache-2.0
"""Inert stand-ins (stubs) for the objects and tensors of a network pickle.

`torch_utils.pickle_reader` returns them instead of building the objects that the file names.

A few stubs that contain one another can describe an unlimited number of modules, names and elements. Every
walk over stubs in this file is therefore bounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

MAX_NAME = 512  # characters in the full dotted name of a global, class, attribute or tensor
MAX_DEPTH = 64  # nesting of modules
MAX_MODULES = 10_000  # per network; a module with two names counts twice
MAX_TENSORS = 100_000  # per network; entries of module tables count as well


def is_name(text: str) -> bool:
    """Return whether `text` is acceptable as a name: short, and without terminal control characters."""
    return len(text) <= MAX_NAME and text.isprintable()


def describe(value: Any) -> str:
    """Describe a value of a stub in a few words, for messages.

    Never walks through a container, because a file can nest containers without limit.
    """
    if isinstance(value, (ObjectStub, GlobalName)):
        return f"an object of {value.origin if isinstance(value, ObjectStub) else value}"
    if isinstance(value, str):
        value = value[:80]
    return (
        f"{type(value).__name__} {value!r}"[:80]
        if isinstance(value, (str, int, float, bool))
        else f"a {type(value).__name__}"
    )


def listed(names: Iterable[str], limit: int = 6) -> str:
    """Join the first `limit` names in sorted order, for messages."""
    names = sorted(names)
    return (
        ", ".join(name[:80] for name in names[:limit])
        + (f" and {len(names) - limit} more" if len(names) > limit else "")
        or "none"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalName:
    """A global (module and name) that a pickle refers to. Nothing is imported."""

    module: str
    name: str
    dotted: str

    def __str__(self) -> str:
        return self.dotted


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class StorageStub:
    """The storage of a tensor: `numel` elements of type `dtype` as raw bytes."""

    dtype: torch.dtype
    numel: int
    data: memoryview = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class TensorStub:
    """A tensor in a pickle, already checked against the bounds of its storage; `tensor()` creates it."""

    storage: StorageStub
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    is_parameter: bool = False

    def __repr__(self) -> str:
        return f"<{str(self.dtype).removeprefix('torch.')} {list(self.shape)}>"

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def tensor(self) -> torch.Tensor:
        """Return a contiguous copy on the CPU. Allocates the tensor's own elements only, not its storage."""
        integer = np.dtype(f"i{self.dtype.itemsize}")  # numpy has no bfloat16; it accepts unaligned data
        elements = np.frombuffer(self.storage.data, integer)[self.offset :]
        view = np.lib.stride_tricks.as_strided(
            elements, self.shape, [step * integer.itemsize for step in self.stride], writeable=False
        )
        copy_ = torch.from_numpy(np.array(view, order="C"))
        return copy_ != 0 if self.dtype == torch.bool else copy_.view(self.dtype)


class ObjectStub:
    """An object in a pickle that was not created: its class or function, its arguments and its state.

    Attributes:
        origin: dotted name of the global that would have created the object, or a description of it.
        class_name: name of the class, without its module.
        args: arguments of the constructor or function.
        state: state that `BUILD` would have set.
        items: list elements, set elements or (key, value) pairs that the pickle adds to the object.
        module_src: source text that a persistent object carries; None for other objects.
        persistent: the object is a call of `_reconstruct_persistent_obj`. `class_name` and `module_src` are
            then what the file claims.
    """

    __slots__ = ("args", "class_name", "items", "module_src", "origin", "persistent", "state")

    def __init__(
        self,
        origin: str,
        class_name: str,
        args: Any = (),
        state: Any = None,
        module_src: str | None = None,
        persistent: bool = False,
    ):
        self.origin = origin
        self.class_name = class_name
        self.args = args
        self.state = state
        self.items: list[Any] = []
        self.module_src = module_src
        self.persistent = persistent

    def __repr__(self) -> str:  # flat: stubs may contain one another
        return f"<stub of {self.origin}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's `__dict__`; empty if its state is not a dict."""
        return self.state if isinstance(self.state, dict) else {}

    def _table(self, name: str) -> dict[str, Any]:
        table = self.attributes.get(name, {})
        if (
            not isinstance(table, dict)
            or len(table) > MAX_MODULES
            or not all(isinstance(key, str) and is_name(key) for key in table)
        ):
            raise ValueError(f"{self.origin}: {name} is not a table of names")
        return table

    def modules(self) -> dict[str, ObjectStub]:
        """Return the child modules by name.

        Raises:
            ValueError: a child is not an `ObjectStub`.
        """
        children = {name: value for name, value in self._table("_modules").items() if value is not None}
        for name, value in children.items():
            if not isinstance(value, ObjectStub):
                raise ValueError(f"{self.origin}: child {name!r} is not a module but {describe(value)}")
        return children

    def tensors(self) -> dict[str, TensorStub]:
        """Return this module's own parameters and buffers by name, without those of its children.

        Raises:
            ValueError: a value is not a `TensorStub`.
        """
        own = {**self._table("_parameters"), **self._table("_buffers")}
        own = {name: value for name, value in own.items() if value is not None}
        for name, value in own.items():
            if not isinstance(value, TensorStub):
                raise ValueError(f"{self.origin}: {name!r} is not a tensor but {describe(value)}")
        return own

    def _count_entries(self) -> int:
        """Return how many table entries a walk over this one module reads, those that are None included."""
        tables = (self.attributes.get(name) for name in ("_modules", "_parameters", "_buffers"))
        return sum(len(table) for table in tables if isinstance(table, dict))

    def named_modules(self) -> Iterator[tuple[str, ObjectStub]]:
        """Yield this stub and all modules below it with their dotted names, parents first.

        Raises:
            ValueError: modules are nested too deeply (or contain themselves), or there are too many of them.
                A few stubs that contain each other twice can produce any number of names.
        """
        waiting = [("", self, 0)]
        entries = 0
        for _ in range(MAX_MODULES):
            if not waiting:
                return
            path, module, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise ValueError(f"modules are nested more than {MAX_DEPTH} deep: {path[:80]}...")
            if len(path) > MAX_NAME:
                raise ValueError(f"a module's name has more than {MAX_NAME} characters: {path[:80]}...")
            entries += module._count_entries()
            if entries > MAX_TENSORS:
                raise ValueError(f"{self.origin} has more than {MAX_TENSORS} entries for modules and tensors")
            yield path, module
            children = [
                (f"{path}.{name}" if path else name, child, depth + 1)
                for name, child in module.modules().items()
            ]
            waiting.extend(reversed(children))
        raise ValueError(f"{self.origin} has more than {MAX_MODULES} modules")

    def named_tensors(self) -> dict[str, TensorStub]:
        """Return the parameters and buffers of this stub and of all modules below it, by state_dict name.

        Raises:
            ValueError: as `named_modules`, or the tensors together have more than twice as many elements as
                their storages in the file. Copying such tensors could take any amount of memory.
        """
        found: dict[str, TensorStub] = {}
        for path, module in self.named_modules():
            found.update(
                {f"{path}.{name}" if path else name: value for name, value in module.tensors().items()}
            )
        storages = {id(tensor.storage): tensor.storage.numel for tensor in found.values()}
        if sum(tensor.numel for tensor in found.values()) > 2 * sum(storages.values()):
            raise ValueError(f"the tensors of {self.origin} overlap: they repeat the same few elements")
        return found


class NetworkPickle(dict[str, Any]):
    """Content of a network pickle by key: object stubs, tensor stubs and plain values.

    Attributes:
        globals_used: how often the pickle refers to each global.
    """

    globals_used: Counter[str]
