# SPDX-License-Identifier: Apache-2.0
"""--compile=graphs: phases of a training step as CUDA graphs, which the host launches as one operation.

A phase computes the gradients of one micro-batch: forward and backward pass. Whenever a graph is replayed, it
launches the same kernels on the same memory. Therefore

- the tensors among a phase's arguments are copied into static ones, such as latents, random draws, images and
  the kernel of the blur. All other arguments are Python values, which a graph cannot change: each combination
  of them, and of shapes, has a graph of its own;
- gradients are added to static tensors, which are the `.grad` of their parameters;
- everything that a phase allocates lies in one memory pool of all graphs;
- values that a phase reports are added to the statistics after each replay.

The first two steps of a phase run without a graph, and are watched: an operation that reads a value, draws a
random number or copies between devices, or a second step that is not the first one's sequence of operations,
disqualifies the phase. The third step is captured. A phase without a graph runs as always.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils import distributed, training_stats

WATCHED_STEPS = 2
During = Callable[[], contextlib.AbstractContextManager[None]]  # contexts of a phase's last backward pass
Phase = Callable[..., Any]  # (*args, during) -> tensors
Capture = tuple[Callable[[], None], Any]  # what replays a phase; its results, which each replay overwrites


class Recorder(Protocol):
    """Turns calls into graphs."""

    def apart(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which calls run that are captured later."""

    def capture(self, call: Callable[[], Any]) -> Capture:
        """Capture a call, which takes effect once.

        Raises:
            RuntimeError: It cannot be captured, and has had no effect.
        """


class CudaRecorder:
    """Captures CUDA graphs on a stream of their own, in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Use the stream of the captures: libraries keep a workspace for each stream."""
        main = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            yield
        main.wait_stream(self.stream)

    def capture(self, call: Callable[[], Any]) -> Capture:
        """See `Recorder`. Other threads, which decode images or watch collectives, may use CUDA meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            results = call()
        graph.replay()
        return graph.replay, results


class Watch(TorchDispatchMode):
    """Lists the operations within, with all arguments but the values of tensors.

    Attributes:
        program: The operations.
        problem: The first one that a graph cannot contain, and why; '' = none.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.program: list[str] = []
        self.problem = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and list it."""
        result = func(*args, **(kwargs or {}))
        inputs = pytree.tree_leaves((args, kwargs))
        values = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in inputs]
        if func is torch.ops.aten.lift_fresh.default and args[0].numel() <= 16:  # a tensor of Python numbers
            values += args[0].flatten().tolist()
        self.program.append(f"{func}{values}")
        problem = _problem(func, inputs, pytree.tree_leaves(result))
        if problem and not self.problem:
            self.problem = f"{func} {problem}"
        return result


def _problem(func: Any, inputs: list[Any], results: list[Any]) -> str:
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    integers = not any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])
    if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        return "" if integers else "selects by values"
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        return "reads values"
    # Attention has the tag for its dropout, which frozen networks do not use.
    if torch.Tag.nondeterministic_seeded in func.tags and "_attention" not in str(func):
        return "draws random numbers"
    devices = {x.device for x in (*tensors, *results) if isinstance(x, torch.Tensor)}
    copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    return "copies between devices" if copies and len(devices) > 1 else ""


def _signature(x: Any) -> Hashable:
    if isinstance(x, torch.Tensor):
        return tuple(x.shape), x.stride(), x.dtype, x.device
    return type(x), x


@dataclass
class _Watched:
    """What the steps before the capture have shown."""

    program: list[str] | None = None
    params: list[torch.nn.Parameter] = field(default_factory=list)  # those that get gradients
    steps: set[int] = field(default_factory=set)


@dataclass
class _Graph:
    """A captured phase."""

    inputs: list[torch.Tensor]
    params: list[torch.nn.Parameter]
    replay: Callable[[], None]
    results: Any
    reports: list[Callable[[], object]]


class Graphs:
    """The graphs of one training state, by phase and arguments.

    Args:
        recorder: makes the graphs.

    Attributes:
        refused: Phases that run without graphs, and why.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder: Recorder | None = recorder  # None = after an error, captures nothing more
        self.refused: dict[str, str] = {}
        self._entries: dict[Hashable, _Watched | _Graph] = {}
        self._gradients: dict[torch.nn.Parameter, torch.Tensor] = {}

    def run(
        self,
        name: str,
        phase: Phase,
        params: Mapping[str, torch.nn.Parameter],
        args: tuple[Any, ...],
        during: During,
        step: int,
    ) -> Any:
        """Run a phase: watch, capture or replay it, or call it if it is refused.

        Args:
            name: of the phase.
            phase: Adds to the gradients of `params`, and returns tensors. Values that change after the first
                two steps must be among `args`, or be weights and buffers that are written in place.
            params: All parameters that may get gradients.
            args: Its arguments: trees of tensors and of values that can be hashed.
            during: The context of its last backward pass. A graph cannot enter it, so it follows the graph.
            step: The number of the training step.

        Returns:
            What the phase returns.
        """
        leaves, tree = pytree.tree_flatten(args)
        key = (name, str(tree), *map(_signature, leaves))
        entry = self._entries.setdefault(key, _Watched())
        if isinstance(entry, _Graph):
            results = self._replay(entry, leaves)
        elif name in self.refused or self.recorder is None:
            return phase(*args, during=during)
        elif len(entry.steps - {step}) < WATCHED_STEPS:
            entry.steps.add(step)
            results = self._watch(self.recorder, name, phase, params, args, entry)
        else:
            try:
                graph = self._capture(self.recorder, phase, params, leaves, tree, entry.params)
            except RuntimeError as error:
                self.recorder = None  # the state of its stream and pool is not known
                self._refuse(name, str(_root(error)))
                return phase(*args, during=during)
            self._entries[key] = graph
            results = self._finish(graph)
        with during():  # begins the means of gradients over processes, if this micro-batch is the last
            return results

    def _watch(
        self,
        recorder: Recorder,
        name: str,
        phase: Phase,
        params: Mapping[str, torch.nn.Parameter],
        args: tuple[Any, ...],
        watched: _Watched,
    ) -> Any:
        trainable = {k: p for k, p in params.items() if p.requires_grad}
        had_none = [p for p in trainable.values() if p.grad is None]
        trained: set[torch.Tensor] = set()
        self._use_static_gradients(trainable.values())
        hooks = [p.register_post_accumulate_grad_hook(trained.add) for p in trainable.values()]
        try:
            with recorder.apart(), training_stats.recorded() as reports, Watch() as watch:
                results = phase(*args, during=contextlib.nullcontext)
        finally:
            for hook in hooks:
                hook.remove()
        for add in reports:
            add()
        for p in had_none:
            p.grad = p.grad if p in trained else None
        watched.params = [p for p in trainable.values() if p in trained]
        program = watch.program + [f"a gradient of {k}" for k, p in trainable.items() if p in trained]
        changed = _difference(watched.program or program, program)
        if watch.problem or changed:
            self._refuse(name, watch.problem or f"its operations change: {changed}")
        watched.program = program
        return results

    def _capture(
        self,
        recorder: Recorder,
        phase: Phase,
        params: Mapping[str, torch.nn.Parameter],
        leaves: list[Any],
        tree: pytree.TreeSpec,
        trained: list[torch.nn.Parameter],
    ) -> _Graph:
        before = {p: p.grad for p in params.values()}
        static = [x.clone() if isinstance(x, torch.Tensor) else x for x in leaves]
        args = pytree.tree_unflatten(static, tree)
        inputs = [x for x in static if isinstance(x, torch.Tensor)]
        try:
            self._use_static_gradients(trained)
            with training_stats.recorded() as reports:
                replay, results = recorder.capture(lambda: phase(*args, during=contextlib.nullcontext))
        except RuntimeError:
            for p, grad in before.items():
                p.grad = grad
            raise
        return _Graph(inputs, trained, replay, results, reports)

    def _replay(self, graph: _Graph, leaves: list[Any]) -> Any:
        torch._foreach_copy_(graph.inputs, [x for x in leaves if isinstance(x, torch.Tensor)])
        self._use_static_gradients(graph.params)
        graph.replay()
        return self._finish(graph)

    def _finish(self, graph: _Graph) -> Any:
        for add in graph.reports:
            add()
        return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, graph.results)

    @torch.no_grad()
    def _use_static_gradients(self, params: Collection[torch.nn.Parameter]) -> None:
        for p in params:
            if p not in self._gradients:
                self._gradients[p] = torch.zeros_like(p)
        unset = [self._gradients[p] for p in params if p.grad is None]
        if unset:
            torch._foreach_zero_(unset)
        for p in params:
            static = self._gradients[p]
            if p.grad is not None and p.grad is not static:
                static.copy_(p.grad)
            p.grad = static

    def _refuse(self, name: str, why: str) -> None:
        self.refused[name] = why
        if distributed.is_main():
            reason = " ".join(why.split())[:200]
            print(f"Warning: --compile=graphs: the phase '{name}' runs without a graph: {reason}", flush=True)


def _difference(a: list[str], b: list[str]) -> str:
    pairs = itertools.zip_longest(a, b, fillvalue="nothing")
    return next((f"{x}, then {y}" for x, y in pairs if x != y), "")


def _root(error: BaseException) -> BaseException:
    """The end of a failed capture raises an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return error
