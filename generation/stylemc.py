# SPDX-License-Identifier: Apache-2.0
"""StyleMC: a direction in style space that moves images towards texts (Kocasari et al., WACV 2022).

The direction is a parameter per output of the affine layers, added to the styles of every seed. It minimises
the squared spherical distance of CLIP's embeddings, summed over the prompts. AdamW makes a step every
STEP_SEEDS seeds. Afterwards the coordinates on which the seeds disagree are set to zero.

Shapes: P prompts, D dimensions of CLIP's embeddings, C styles of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from generation import direction_files, render, walk

STEP_SEEDS = 8
LEARNING_RATE, BETAS, WEIGHT_DECAY = 0.05, (0.0, 0.999), 0.25
MAX_CHANGES = 0.25  # of the seeds; where the gradient's sign changes more often the direction is 0


class ImageEncoder(Protocol):
    """What StyleMC needs of CLIP for images (`clip.Clip`)."""

    def images(self, x: Tensor) -> Tensor:
        """Normalised embeddings [N, D] of images [N, C, H, W] in [-1, 1]."""
        ...


def distance(x: Tensor, t: Tensor) -> Tensor:
    """Squared spherical distances [N, P] of normalised embeddings x [N, D] and t [P, D].

    2 arcsin^2(|x - t| / 2), which equals arccos^2(x.t) / 2. Where x = t the gradient is 0.
    """
    squared = (x[:, None] - t[None]).square().sum(dim=2)
    half = squared.clamp(min=1e-12).sqrt() / 2  # the square root has no gradient at 0
    return 2 * half.clamp(max=1 - 1e-7).arcsin().square()


def prompts_of(text: str) -> list[str]:
    """Split --text-prompt at '|'. Raises ValueError."""
    prompts = [part.strip() for part in text.split("|")]
    if not all(prompts):
        raise ValueError(f"--text-prompt={text!r}: a prompt is empty")
    return prompts


def find(
    network: render.Network,
    encoder: ImageEncoder,
    targets: Tensor,
    seeds: Sequence[int],
    layers: Sequence[str],
    label: int | None = None,
    truncation: float = 1.0,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """Find a direction that moves images towards texts.

    Args:
        network: The network.
        encoder: CLIP.
        targets: Embeddings of the texts [P, D].
        seeds: The images that the direction is found on.
        layers: Synthesis layers whose styles may change.
        label: Class of all images; None = the classes that the seeds draw.
        truncation: psi of the images.
        done: Called with 1 after each seed.

    Returns:
        The direction: layer name -> float32 [1, C].

    Raises:
        ValueError: A gradient is not finite. One line.
    """
    sizes = direction_files.layer_sizes(network.G)
    steps = {name: torch.zeros([sizes[name]], device=network.device, requires_grad=True) for name in layers}
    parameters = list(steps.values())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    signs = [torch.zeros_like(value) for value in parameters]
    changes = [torch.zeros_like(value) for value in parameters]
    optimizer.zero_grad(set_to_none=False)
    with added(network, steps):
        for number, seed in enumerate(seeds, 1):
            with torch.no_grad():
                ws = walk.seed_styles(network, seed, label, truncation, None)[None]
            image = network.G.synthesis(ws, noise_mode="const", force_fp32=True)
            loss = distance(encoder.images(image), targets).sum()
            gradients = torch.autograd.grad(loss, parameters)
            _collect(parameters, gradients, signs, changes)
            if number % STEP_SEEDS == 0 or number == len(seeds):
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            done(1)
    agreed = [count <= MAX_CHANGES * len(seeds) for count in changes]
    return {
        name: torch.where(keep, value.detach(), 0)[None]
        for (name, value), keep in zip(steps.items(), agreed, strict=True)
    }


@torch.no_grad()
def _collect(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], signs: list[Tensor], changes: list[Tensor]
) -> None:
    """Add the gradients of a seed to those of the step, and count the changes of their signs."""
    for index, (value, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError("a gradient is NaN or Inf: use another network, or --device=cpu")
        value.grad = gradient / STEP_SEEDS if value.grad is None else value.grad + gradient / STEP_SEEDS
        sign = gradient.sign()
        changes[index] += (sign * signs[index] < 0).to(gradient.dtype)
        signs[index] = torch.where(sign == 0, signs[index], sign)


@contextmanager
def added(network: render.Network, steps: dict[str, Tensor]) -> Iterator[None]:
    """Within, `steps` are added to the outputs of the affine layers, with gradients."""

    def hook_of(value: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
        return lambda module, inputs, output: output + value.to(output.dtype)

    handles = [
        getattr(network.G.synthesis, name).affine.register_forward_hook(hook_of(value))
        for name, value in steps.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
