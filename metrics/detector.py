# SPDX-License-Identifier: Apache-2.0
"""The base class of detectors: uint8 images -> feature arrays, by a frozen network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_utils import timm_weights
from torch_utils.images import to_rgb


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """TF32 off, for matrix products and convolutions alike: it moves FID in the second decimal."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


LPIPS_EPS = 1e-10
CPU_GROUP = 8  # images at a time on a CPU: larger groups need more memory, and no less time


def lpips_features(maps: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Features [N, D] of maps [N, C, H, W]: the squared distance of two rows is the distance of LPIPS.

    Zhang et al. 2018: activations of unit length over channels, weighted, averaged over positions.

    Args:
        maps: Feature maps.
        weights: For each map the weights of its channels, not negative; None = 1.
    """
    parts = []
    for index, y in enumerate(maps):
        # the epsilon inside of the root keeps the gradient finite where all channels are 0
        unit = y * (y.square().sum(dim=1, keepdim=True) + LPIPS_EPS**2).rsqrt()
        if weights is not None:
            unit = unit * weights[index].sqrt().view(1, -1, 1, 1)
        parts.append((unit / (y.shape[2] * y.shape[3]) ** 0.5).flatten(1))
    return torch.cat(parts, dim=1)


class Detector:
    """A frozen network with its input preparation.

    Subclasses define `dims` (width of each output) and `_run`.
    """

    name: str
    sha256: str
    dims: Mapping[str, int]

    def __init__(self, network: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        # channels_last is twice as fast on CPUs and lets GPUs use their faster kernels
        self.network: Any = network.to(device=self.device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def description(self) -> dict[str, str]:
        """What a record says of the detector. Random weights are marked."""
        mark = {"weights": "random"} if self.sha256.startswith(timm_weights.RANDOM) else {}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "dtype": str(self.dtype).removeprefix("torch."),
            **mark,
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [N, 1, 3 or 4, H, W] on any device -> {'features': float32 [N, D], ...} on the CPU.

        Grey values are repeated, and transparent pixels are composited on white.

        Raises:
            ValueError: the images have another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            raise ValueError(
                f"detectors take uint8 images [N, 1, 3 or 4, H, W], got {images.dtype} {list(images.shape)}"
            )
        with torch.inference_mode(), full_float32():
            found: list[dict[str, Tensor]] = []
            for group in images.split(self._group(len(images))):
                outputs = self._run(to_rgb(group.to(self.device)))
                found.append({key: value.float().cpu() for key, value in outputs.items()})
            return {key: torch.cat([part[key] for part in found]) for key in found[0]}

    def perceptual(self, images: Tensor) -> Tensor:
        """Return features of which the squared distance is a perceptual distance; differentiable.

        Args:
            images: Float [N, 3, H, W] in [0, 255].

        Returns:
            [N, D] on the device.

        Raises:
            NotImplementedError: The detector has no such features.
        """
        raise NotImplementedError(f"{self.name} has no perceptual distance")

    def _group(self, count: int) -> int:
        """Images of `count` that pass the network at a time."""
        if self.device.type != "cpu":
            return max(count, 1)
        return max(CPU_GROUP, torch.get_num_threads())

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError
