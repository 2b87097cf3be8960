# SPDX-License-Identifier: Apache-2.0
"""Other ways to run a training step: torch.compile, CUDA graphs, and activation checkpointing.

With torch.compile (--compile=regions), the generator's synthesis and the discriminator are one graph each,
without breaks. The mapping network and the step around them stay as they are. A network that the compiler
refuses runs as it is. CUDA graphs are in graphs.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from torch_utils import distributed
from training.config import COMPILE_MODES
from training.generator import Generator
from training.graphs import CudaRecorder, Graphs
from training.state import TrainState

OFF, REGIONS, GRAPHS = COMPILE_MODES
BACKEND = "inductor"


def compile_step(state: TrainState, mode: str) -> None:
    """Compile at the first use. Names in state dicts do not change, and copies are not compiled.

    Args:
        state: on its device.
        mode: 'off'; 'regions': the networks, with torch.compile; 'graphs': CUDA graphs of the step's
            phases, on other devices as 'off'.
    """
    device = state.pl_mean.device
    if mode == GRAPHS and device.type == "cuda":
        state.graphs = Graphs(CudaRecorder(device))
    elif mode == GRAPHS:
        _say(f"--compile={GRAPHS} needs CUDA: using --compile={OFF}")
    elif mode == REGIONS:
        _compile_networks(state)


def _compile_networks(state: TrainState) -> None:
    functorch = torch._functorch.config
    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        functorch.force_non_lazy_backward_lowering = True  # so that the first forward pass shows all errors
    for name, module in (("generator", state.G.synthesis), ("discriminator", state.D)):
        module.compile(backend=BACKEND, fullgraph=True, dynamic=False)
        compiled: Callable[..., Any] = module._compiled_call_impl  # type: ignore[assignment]
        module._compiled_call_impl = functools.partial(_call, module, name, compiled)


def _call(module: torch.nn.Module, name: str, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return compiled(*args, **kwargs)
    except torch._dynamo.exc.TorchDynamoException as error:
        module._compiled_call_impl = None
        reason = " ".join(str(error).split())[:200]
        _say(f"--compile: the {name} runs without torch.compile, which failed: {reason}")
        return module(*args, **kwargs)


def _say(line: str) -> None:
    if distributed.is_main():
        print(f"Warning: {line}", flush=True)


def checkpoint_activations(G: Generator) -> None:
    """Keep only the inputs of the trained layers, and compute the rest again in the backward pass.

    Chen et al. 2016, arXiv 1604.06174. First and second derivatives are the same to the bit. Names in state
    dicts do not change, and copies keep their activations.
    """
    for name in G.head_layer_names:
        layer = getattr(G.synthesis, name)
        # What takes the place of a module's call, and is not copied or saved; torch.compile sets it, too.
        layer._compiled_call_impl = functools.partial(_checkpointed, layer)


def _checkpointed(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return layer._call_impl(*args, **kwargs)
    return checkpoint(layer._call_impl, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextlib.contextmanager
def eager(module: torch.nn.Module) -> Iterator[None]:
    """Within, calls of the module are not compiled: for second derivatives and for hooks."""
    compiled = module._compiled_call_impl
    if compiled is None:
        yield
        return
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
