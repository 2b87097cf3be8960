# SPDX-License-Identifier: Apache-2.0
"""The source of a gradient that is not finite: a network, and one of its tensors.

The step of one network shows faults of the other: a logit of the discriminator that is not finite makes the
generator's gradients not finite.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from torch_utils import distributed
from training import compiled, losses
from training.guard import Cause
from training.inputs import MicroBatch, RealMicroBatch
from training.state import TrainState

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


def find(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    reals: Sequence[RealMicroBatch],
    kernel: torch.Tensor | None,
) -> Cause | None:
    """The first tensor that is not finite, from the weights to the logits and back to the images.

    The weights are those of the beginning of the step, and the kernel is that of the blur. All processes must
    call it.

    Returns:
        The same in all processes; None if all tensors are finite.
    """
    with compiled.eager(state.D), compiled.eager(state.G.synthesis):
        here = next(_causes(state, micro_batches, reals, kernel), None)
    return next((cause for cause in distributed.all_gather_object(here) if cause is not None), None)


def _causes(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    reals: Sequence[RealMicroBatch],
    kernel: torch.Tensor | None,
) -> Iterator[Cause]:
    for network, module in ((DISCRIMINATOR, state.D), (GENERATOR, state.G)):
        for name, x in itertools.chain(module.named_parameters(), module.named_buffers()):
            if not _is_finite(x):
                yield Cause(network, f"'{name}'")
    for real in reals:
        yield from _in_logits(state.D(losses.blur(real.images, kernel), real.labels, real.draws), "real")
    for r in micro_batches:
        with torch.no_grad():
            images = state.G(r.z, r.labels)
        if not _is_finite(images):
            yield Cause(GENERATOR, "an image")
        with torch.enable_grad():
            images.requires_grad_(True)
            logits = state.D(losses.blur(images, kernel), r.labels, r.draws)
        yield from _in_logits(logits, "generated")
        for name, x in logits.items():
            (gradient,) = torch.autograd.grad(x.fun.sum(), images, retain_graph=True)
            if not _is_finite(gradient):
                yield Cause(DISCRIMINATOR, f"the gradient of {name}'s logits with respect to the images")


def _in_logits(logits: losses.Logits | losses.SONA, kind: str) -> Iterator[Cause]:
    for name, x in logits.items():
        if not all(_is_finite(part) for part in x):
            yield Cause(DISCRIMINATOR, f"a logit of {name} for {kind} images")


def _is_finite(x: torch.Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x).all())
