# SPDX-License-Identifier: Apache-2.0
"""Helpers for other StyleGAN-family code and pickles only; this project does not call them.

Cached constants, shape checks, an infinite sampler, copies between modules and module summaries.
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
from torch.jit._trace import TracerWarning

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """Return a cached tensor of constant values, so that repeated calls copy to the device only once.

    Never write into the tensor.

    Args:
        value: number, nested list or array.
        shape: shape that the value is broadcast to; None = its own.
        dtype: type of the tensor; None = torch's default.
        device: device of the tensor; None = the CPU.
        memory_format: memory layout; None = contiguous.
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
    # A tensor created under inference_mode can never be part of an autograd graph.
    with torch.inference_mode(False):
        tensor = torch.as_tensor(array, dtype=dtype, device=device)
        if shape is not None:
            tensor = tensor.expand(shape)
        return tensor.contiguous(memory_format=memory_format)


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | None]) -> None:
    """Check the shape of a tensor; None stands for any size.

    Raises:
        AssertionError: the shape differs.
    """
    if tensor.ndim != len(ref_shape):
        raise AssertionError(
            f"expected {len(ref_shape)} axes {list(ref_shape)}, got shape {list(tensor.shape)}"
        )
    for axis, (size, wanted) in enumerate(zip(tensor.shape, ref_shape, strict=True)):
        if wanted is not None and int(size) != int(wanted):
            raise AssertionError(
                f"expected {int(wanted)} at axis {axis} of {list(ref_shape)}, got shape {list(tensor.shape)}"
            )


def profiled_function(fn: _Function) -> _Function:
    """Show a function under its own name in torch's profiler (decorator)."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Hide torch.jit's tracer warnings in this context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=TracerWarning)
        yield


class InfiniteSampler(torch.utils.data.Sampler[int]):
    """Yields the indices of a data set in an infinite sequence of passes.

    All processes share one sequence; each yields every num_replicas-th element of it.

    Args:
        dataset: an object with a length of at least one.
        rank: rank of this process.
        num_replicas: number of processes.
        shuffle: False = 0, 1, 2, ... in each pass.
        seed: seed of the shuffling, equal in all processes.
        window_size: how far an item can move from one pass to the next, as a fraction of the data set in
            [0, 1]; 0 = the same order in each pass.

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
                # Delay each item by a random time of at most the window: each pass contains every item once,
                # and no item reappears immediately.
                order = order[np.argsort(np.arange(size) + random.uniform(0, self.window_size * size, size))]


def params_and_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return the parameters of a module, followed by its buffers."""
    return [*module.parameters(), *module.buffers()]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters of a module, followed by its buffers, with their names."""
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copy parameters and buffers between modules by name, keeping the target's dtype and device.

    Args:
        src_module: source.
        dst_module: target.
        require_all: the source must have all tensors of the target; False = keep the target's values of
            missing tensors.

    Raises:
        KeyError: `require_all` is set and the source lacks a tensor.
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
    """Check that parameters and buffers are bitwise equal in all processes. NaN counts as equal to NaN.

    All processes must call it.

    Args:
        module: module to compare.
        ignore_regex: tensors with a name `ClassName.tensor.name` that fully matches are not compared.

    Raises:
        RuntimeError: a tensor differs. It is raised in every process.
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
        # Share the result, so that all processes stop and none waits for the others.
        if not all(distributed.all_gather_object(bool(same.all()))):
            raise RuntimeError(f"{full_name} differs between processes")


class _Row:
    """One row of `print_module_summary`."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        self.module = module
        self.params: list[torch.Tensor] = []
        self.buffers: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []


def print_module_summary(
    module: torch.nn.Module, inputs: Sequence[Any], max_nesting: int = 3, skip_redundant: bool = True
) -> Any:
    """Run a module and print a table of its submodules: parameters, buffers, output shapes and dtypes.

    Args:
        module: module to run, in its current mode.
        inputs: positional arguments of the call.
        max_nesting: deeper nested calls are omitted.
        skip_redundant: omit submodules that own no tensors and return the output of one of their children.

    Returns:
        The module's output.
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
    """Assign each tensor to its first (innermost) row, and drop rows without new tensors or outputs."""
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
