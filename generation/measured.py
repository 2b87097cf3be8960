# SPDX-License-Identifier: Apache-2.0
"""A generator as metrics see it: truncated as asked, with its parts open to the metrics that need them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from generation import render
from training.generator import Generator


class MeasuredGenerator:
    """What metrics measure: (z, labels) -> images, and the parts that a StyleNetwork of metrics has.

    Args:
        G: the network.
        truncation: psi; 1 = none.
        centroids: truncate towards the nearest of these centres [K, W] instead of the class's mean.
    """

    def __init__(self, G: Generator, truncation: float = 1.0, centroids: Tensor | None = None) -> None:
        self.G, self.truncation, self.centroids = G, truncation, centroids
        self.z_dim, self.c_dim, self.synthesis = G.z_dim, G.c_dim, G.synthesis

    def __call__(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Images [N, C, R, R] of latents [N, Z] and labels [N]."""
        images: Tensor = self.synthesis(self.styles(z, labels))
        return images

    def styles(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latents [N, Z] and labels [N] to truncated styles [N, L, W]."""
        return render.styles(self.G, z, labels, self.truncation, self.centroids)

    def synthesize(self, styles: Tensor) -> Tensor:
        """Styles to float32 images [N, C, R, R], with every layer in float32."""
        images: Tensor = self.synthesis(styles, noise_mode="const", force_fp32=True)
        return images

    @contextlib.contextmanager
    def transformed(self, matrix: Tensor) -> Iterator[None]:
        """Within, the synthesis input uses this 3x3 matrix. Raises ValueError if the network has none."""
        transform = getattr(getattr(self.synthesis, "input", None), "transform", None)
        if transform is None:
            raise ValueError(
                "equivariance metrics need a network with an input transform (stylegan3-t or stylegan3-r)"
            )
        before = transform.clone()
        with torch.no_grad():
            transform.copy_(matrix)
            try:
                yield
            finally:
                transform.copy_(before)
