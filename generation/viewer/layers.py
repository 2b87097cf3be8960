# SPDX-License-Identifier: Apache-2.0
"""The layers of a network at work: pictures of their activations and of their power spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generation.network import Network

MAX_CHANNELS = 64  # shown at a time
DYNAMIC_RANGE = 80.0  # decibels from black to white in a spectrum


def layer_names(network: Network) -> list[str]:
    """Names of what can be shown: the input and every synthesis layer."""
    return ["input", *network.G.synthesis.layer_names]


@torch.no_grad()
def capture(network: Network, ws: Tensor, name: str) -> Tensor:
    """Return the activations of a layer, float32 [C, H, W] on the CPU, for style codes [1, num_ws, W].

    Raises:
        ValueError: The network has no such layer.
    """
    if name not in layer_names(network):
        raise ValueError(
            f"the network has no layer {name!r}: choose one of {', '.join(layer_names(network))}"
        )
    found: list[Tensor] = []

    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        found.append(output[0].detach().float().cpu())

    handle = getattr(network.G.synthesis, name).register_forward_hook(hook)
    try:
        network.G.synthesis(ws)
    finally:
        handle.remove()
    return found[0]


def activation_picture(activations: Tensor, first: int = 0) -> np.ndarray:
    """Arrange up to MAX_CHANNELS channels [C, H, W] as a grid, uint8 [rows * H, columns * W].

    All channels have one scale: grey is 0, black and white are three standard deviations.
    """
    shown = activations[first : first + MAX_CHANNELS]
    if not len(shown):
        raise ValueError(f"the layer has {len(activations)} channels: the first one shown cannot be {first}")
    scale = 3 * float(activations.std()) or 1.0
    grey = ((shown / scale).clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8).numpy()
    columns = math.ceil(math.sqrt(len(grey)))
    rows = -(-len(grey) // columns)
    height, width = grey.shape[1:]
    cells = np.zeros((rows * columns, height, width), np.uint8)
    cells[: len(grey)] = grey
    picture: np.ndarray = cells.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
    return picture.reshape(rows * height, columns * width)


def spectrum(activations: Tensor) -> np.ndarray:
    """Return the power spectrum of [C, H, W], averaged over channels, in decibels below its maximum.

    A Kaiser window (beta 8) suppresses the frequencies that the borders would cause. Frequency 0 is in the
    centre. float64 [H, W].
    """
    x = activations.double()
    x = x - x.mean(dim=(1, 2), keepdim=True)
    windows = [torch.kaiser_window(size, periodic=False, beta=8, dtype=torch.float64) for size in x.shape[1:]]
    power = torch.fft.fft2(x * windows[0][:, None] * windows[1][None]).abs().square().mean(dim=0)
    shifted = torch.fft.fftshift(power)
    decibels: np.ndarray = (10 * torch.log10(shifted / shifted.max().clamp(min=1e-300) + 1e-30)).numpy()
    return decibels


def spectrum_picture(activations: Tensor) -> np.ndarray:
    """Draw `spectrum` as uint8 [H, W]: white is the maximum, black is DYNAMIC_RANGE below it."""
    picture: np.ndarray = (255 * np.clip(1 + spectrum(activations) / DYNAMIC_RANGE, 0, 1)).astype(np.uint8)
    return picture
