# SPDX-License-Identifier: Apache-2.0
"""For foreign StyleGAN-family code and pickles alone: cached constants, shape checks, an endless sampler,
module copies, summaries.
"""

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """A tensor of constant values that is made once and reused, so that it costs one copy to the device.
    Never write into it.

    Args:
        value: number, nested list or array.
        shape: shape that the value is broadcast to; None = its own.
        dtype, device: None = torch's defaults.
        memory_format: None = contiguous.
    """
    array = np.asarray(value)
    return _constant(
        array.tobytes(),
        array.shape,
        array.dtype.str,
        None if shape is None else tuple(shape),
        torch.get_default_dtype() if dtype is None else dtype,
        torch.device("cpu" if device is None else device),
        torch.contiguous_format if memory_format is None else memory_format,
    )


@functools.lru_cache(maxsize=512)
def _constant(
    data: bytes,
    data_shape: tuple[int, ...],
    data_dtype: str,
    shape: tuple[int, ...] | None,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    array = np.frombuffer(data, dtype=data_dtype).reshape(data_shape).copy()
    # A tensor born under inference_mode could never enter a graph later.
    with torch.inference_mode(False):
        tensor = torch.as_tensor(array, dtype=dtype, device=device)
        if shape is not None:
            tensor = tensor.expand(shape)
        return tensor.contiguous(memory_format=memory_format)


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | None]) -> None:
    """Raises AssertionError unless the tensor has this shape; None stands for any size."""
    if tensor.ndim != len(ref_shape):
        raise AssertionError(
            f"expected {len(ref_shape)} axes {list(ref_shape)}, found the shape {list(tensor.shape)}"
        )
    for axis, (size, wanted) in enumerate(zip(tensor.shape, ref_shape, strict=True)):
        if wanted is not None and int(size) != int(wanted):
            raise AssertionError(
                f"expected {int(wanted)} at axis {axis} of {list(ref_shape)}, found the shape "
                f"{list(tensor.shape)}"
            )


def profiled_function(fn: _Function) -> _Function:
    """Decorator: the function shows up under its own name in torch's profiler."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Hides torch.jit's tracer warnings inside the context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        yield


class InfiniteSampler(torch.utils.data.Sampler[int]):
    """Indices of a data set for ever, pass after pass; each of `num_replicas` processes gets every
    num_replicas-th of one sequence.

    Args:
        dataset: anything with a length; at least one item.
        rank, num_replicas: this process and how many there are.
        shuffle: False = 0, 1, 2, ... again and again.
        seed: of the shuffling; the same in every process.
        window_size: how far an item may move from one pass to the next, as a fraction of the data set, in [0,
        1]; 0 = the same order again.

    Raises:
        ValueError: an empty data set or arguments outside their ranges.
    """

    def __init__(
        self,
        dataset: Any,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        window_size: float = 0.5,
    ) -> None:
        super().__init__()
        if len(dataset) == 0:
            raise ValueError("an InfiniteSampler needs a data set with at least one item")
        if num_replicas < 1 or not 0 <= rank < num_replicas:
            raise ValueError(f"rank={rank} must be in [0, num_replicas={num_replicas})")
        if not 0 <= window_size <= 1:
            raise ValueError(f"window_size={window_size} must be in [0, 1]")
        self.dataset = dataset
        self.rank = rank
        self.num_replicas = num_replicas
        self.shuffle = shuffle
        self.seed = seed
        self.window_size = window_size

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)
        random = np.random.default_rng(self.seed)
        order = random.permutation(size) if self.shuffle else np.arange(size)
        position = 0
        while True:
            for index in order:
                if position % self.num_replicas == self.rank:
                    yield int(index)
                position += 1
            if self.shuffle:
                # Late by a random time of at most the window: each pass has each item once, and none comes
                # back at once.
                order = order[np.argsort(np.arange(size) + random.uniform(0, self.window_size * size, size))]


def params_and_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters, then buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters, then buffers of a module, with their names."""
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copies values between modules by name, dtype and device of the target kept.

    Args:
        src_module, dst_module: from, to.
        require_all: raise KeyError if the source lacks one of the target's tensors; False = leave those
        alone.

    Raises:
        KeyError: see `require_all`.
        ValueError: a tensor has another shape in the source.
    """
    source = dict(named_params_and_buffers(src_module))
    with torch.no_grad():
        for name, tensor in named_params_and_buffers(dst_module):
            if name not in source:
                if require_all:
                    raise KeyError(f"the source module has no tensor {name!r}")
                continue
            if source[name].shape != tensor.shape:
                raise ValueError(
                    f"{name}: the source has shape {list(source[name].shape)}, the target "
                    f"{list(tensor.shape)}"
                )
            tensor.copy_(source[name])


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Raises RuntimeError if a parameter or buffer differs between processes (bitwise, NaN equal to NaN). All
    processes must call it.

    Args:
        module: what to compare.
        ignore_regex: names `ClassName.tensor.name` that match it in full may differ.
    """
    from . import distributed

    for name, tensor in named_params_and_buffers(module):
        full_name = f"{type(module).__name__}.{name}"
        if ignore_regex is not None and re.fullmatch(ignore_regex, full_name):
            continue
        here = tensor.detach()
        first = here.clone()
        distributed.broadcast_([first], src=0)
        same = (here == first) | ((here != here) & (first != first))
        # Every process learns of a difference, so that all of them stop and none waits for the others.
        if not all(distributed.all_gather_object(bool(same.all()))):
            raise RuntimeError(f"{full_name} differs between processes")


class _Row:
    """One line of `print_module_summary`."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        self.module = module
        self.params: list[torch.Tensor] = []
        self.buffers: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []


def print_module_summary(
    module: torch.nn.Module, inputs: Sequence[Any], max_nesting: int = 3, skip_redundant: bool = True
) -> Any:
    """Runs the module and prints a table of its parts: parameters, buffers, output shapes and dtypes. Returns
    the module's output.

    Args:
        module: what to show; it runs in the mode in which it is.
        inputs: positional arguments of one call.
        max_nesting: calls nested deeper than this are left out.
        skip_redundant: leave out parts that own no tensors of their own and return what a part inside them
        returned.
    """
    rows: list[_Row] = []
    names = {part: name for name, part in module.named_modules()}
    nesting = 0

    def before(part: torch.nn.Module, _inputs: Any) -> None:
        nonlocal nesting
        nesting += 1

    def after(part: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        nonlocal nesting
        nesting -= 1
        if nesting <= max_nesting:
            row = _Row(names[part] or "<top-level>", part)
            row.outputs = [
                t
                for t in (outputs if isinstance(outputs, tuple | list) else [outputs])
                if isinstance(t, torch.Tensor)
            ]
            rows.append(row)

    hooks = [part.register_forward_pre_hook(before) for part in names] + [
        part.register_forward_hook(after) for part in names
    ]
    try:
        outputs = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    print(_summary_table(_assign_tensors(rows, skip_redundant)))
    return outputs


def _assign_tensors(rows: list[_Row], skip_redundant: bool) -> list[_Row]:
    """Gives each tensor to the first (innermost) row that has it; drops rows that then say nothing new."""
    seen: set[int] = set()
    seen_outputs: set[int] = set()
    kept = []
    for row in rows:
        for store, tensors in ((row.params, row.module.parameters()), (row.buffers, row.module.buffers())):
            for tensor in tensors:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    store.append(tensor)
        new_outputs = [t for t in row.outputs if id(t) not in seen_outputs]
        seen_outputs.update(id(t) for t in row.outputs)
        if row.params or row.buffers or new_outputs or not skip_redundant:
            kept.append(row)
    return kept


def _summary_table(rows: list[_Row]) -> str:
    def count(tensors: list[torch.Tensor]) -> int:
        return sum(math.prod(t.shape) for t in tensors)

    table = [["Module", "Parameters", "Buffers", "Output shape", "Datatype"]]
    table.append(["---"] * 5)
    for row in rows:
        shapes = [str(list(t.shape)) for t in row.outputs] or ["-"]
        dtypes = [str(t.dtype).removeprefix("torch.") for t in row.outputs] or ["-"]
        table.append(
            [row.name, str(count(row.params) or "-"), str(count(row.buffers) or "-"), shapes[0], dtypes[0]]
        )
        table += [[f"{row.name}:{i}", "-", "-", shapes[i], dtypes[i]] for i in range(1, len(shapes))]
    table.append(["---"] * 5)
    table.append(
        [
            "Total",
            str(sum(count(row.params) for row in rows)),
            str(sum(count(row.buffers) for row in rows)),
            "-",
            "-",
        ]
    )
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )
