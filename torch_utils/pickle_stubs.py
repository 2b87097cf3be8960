# SPDX-License-Identifier: Apache-2.0
"""What comes out of a network pickle that was read without running it (torch_utils.pickle_reader): inert
stubs of its objects and tensors.

A few stubs that contain one another can stand for any number of modules, names and elements. Whatever walks
through stubs here is bounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

MAX_NAME = 512  # characters of a global's, a class's, an attribute's or a tensor's whole dotted name
MAX_DEPTH = 64  # of modules in modules
MAX_MODULES = 10_000  # of one network; one module under two names counts twice
MAX_TENSORS = 100_000  # of one network, and places for modules


def is_name(text: str) -> bool:
    """Whether `text` can be the name of something: short, and nothing that a terminal would obey."""
    return len(text) <= MAX_NAME and text.isprintable()


def describe(value: Any) -> str:
    """A value of a stub in a few words, for messages. Never walks through a container: a file may nest them
    without end.
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
    """The first of some names, for messages."""
    names = sorted(names)
    return (
        ", ".join(name[:80] for name in names[:limit])
        + (f" and {len(names) - limit} more" if len(names) > limit else "")
        or "none"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalName:
    """A name in a module that a pickle refers to. Nothing is imported."""

    module: str
    name: str
    dotted: str

    def __str__(self) -> str:
        return self.dotted


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class StorageStub:
    """Raw elements of a tensor."""

    dtype: torch.dtype
    numel: int
    data: memoryview = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class TensorStub:
    """A tensor in a pickle, checked against the bounds of its storage; `tensor()` makes it."""

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
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def tensor(self) -> torch.Tensor:
        """A contiguous copy on the CPU. Costs its own elements, whatever the storage holds besides."""
        integer = np.dtype(f"i{self.dtype.itemsize}")  # numpy has no bfloat16, and takes unaligned data
        elements = np.frombuffer(self.storage.data, integer)[self.offset :]
        view = np.lib.stride_tricks.as_strided(
            elements, self.shape, [step * integer.itemsize for step in self.stride], writeable=False
        )
        copy_ = torch.from_numpy(np.array(view, order="C"))
        return copy_ != 0 if self.dtype == torch.bool else copy_.view(self.dtype)


class ObjectStub:
    """An object in a pickle that was not made: the global it was to be made of, and everything it was to be
    given.

    persistent: made by _reconstruct_persistent_obj; then class_name and module_src are what the file claims.
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
        """Children by name. Raises ValueError for a child that is no stub."""
        children = {name: value for name, value in self._table("_modules").items() if value is not None}
        for name, value in children.items():
            if not isinstance(value, ObjectStub):
                raise ValueError(f"{self.origin}: child {name!r} is no module but {describe(value)}")
        return children

    def tensors(self) -> dict[str, TensorStub]:
        """Parameters and buffers of this module alone, by name."""
        own = {**self._table("_parameters"), **self._table("_buffers")}
        own = {name: value for name, value in own.items() if value is not None}
        for name, value in own.items():
            if not isinstance(value, TensorStub):
                raise ValueError(f"{self.origin}: {name!r} is no tensor but {describe(value)}")
        return own

    def _places(self) -> int:
        """How many names a walk over this module alone looks at, taken or not."""
        tables = (self.attributes.get(name) for name in ("_modules", "_parameters", "_buffers"))
        return sum(len(table) for table in tables if isinstance(table, dict))

    def named_modules(self) -> Iterator[tuple[str, ObjectStub]]:
        """This stub and all below it with their dotted names, parents first.

        Raises ValueError for modules nested too deep (or in themselves), and for too many of them: a few
        stubs that contain each other twice make any number of names.
        """
        waiting = [("", self, 0)]
        places = 0
        for _ in range(MAX_MODULES):
            if not waiting:
                return
            path, module, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise ValueError(f"modules are nested more than {MAX_DEPTH} deep: {path[:80]}...")
            if len(path) > MAX_NAME:
                raise ValueError(f"a module's name has more than {MAX_NAME} characters: {path[:80]}...")
            places += module._places()
            if places > MAX_TENSORS:
                raise ValueError(f"{self.origin} has more than {MAX_TENSORS} places for modules and tensors")
            yield path, module
            children = [
                (f"{path}.{name}" if path else name, child, depth + 1)
                for name, child in module.modules().items()
            ]
            waiting.extend(reversed(children))
        raise ValueError(f"{self.origin} has more than {MAX_MODULES} modules")

    def named_tensors(self) -> dict[str, TensorStub]:
        """Parameters and buffers of this stub and all below it, by state_dict name.

        Raises ValueError as `named_modules` does, and for tensors that together have more than twice the
        elements of the file: their copies would take any amount of memory.
        """
        found: dict[str, TensorStub] = {}
        for path, module in self.named_modules():
            found.update(
                {f"{path}.{name}" if path else name: value for name, value in module.tensors().items()}
            )
        storages = {id(tensor.storage): tensor.storage.numel for tensor in found.values()}
        if sum(tensor.numel for tensor in found.values()) > 2 * sum(storages.values()):
            raise ValueError(f"the tensors of {self.origin} are the same few numbers again and again")
        return found


class NetworkPickle(dict[str, Any]):
    """Content of a network pickle by key: stubs, tensor stubs and plain values. `globals_used` counts the
    names it refers to.
    """

    globals_used: Counter[str]
