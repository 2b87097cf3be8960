# SPDX-License-Identifier: Apache-2.0
"""Perceptual path length: how much images change per small step in w (Karras et al. 2019 and 2020)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from metrics.network_metrics import Measured, Task
from torch_utils.images import to_rgb

EPSILON = 1e-4  # length of the step, as a share of the way between two latents
RESOLUTION = 256  # larger images are averaged down to it
PERCENTILES = (1, 99)  # distances outside of them do not count


def prepared(images: Tensor) -> Tensor:
    """Images [N, C, R, R] in [-1, 1] to [N, 3, r, r] in [0, 255], averaged down to at most 256 pixels."""
    images = to_rgb(images)
    factor = images.shape[-1] // RESOLUTION
    if factor > 1:
        size = images.shape[-1] // factor
        images = images.unflatten(3, (size, factor)).unflatten(2, (size, factor)).mean(dim=(3, 5))
    return (images + 1) * (255 / 2)


def trimmed_mean(distances: np.ndarray) -> float:
    """The mean of what lies between the 1st and the 99th percentile, both included."""
    low = np.percentile(distances, PERCENTILES[0], method="lower")
    high = np.percentile(distances, PERCENTILES[1], method="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())


def path_length(task: Task, detector: str, need_lpips: bool) -> Measured:
    """PPL in w at one end of the path, whole images: squared LPIPS features' difference / epsilon^2.

    Args:
        task: num_gen counts pairs of latents; both ends of a pair have the same label.
        detector: name of a VGG16 detector.
        need_lpips: refuse weights without those of LPIPS.

    Raises:
        ValueError: the detector has no LPIPS weights.
    """
    network = task.detector(detector)
    if need_lpips and not network.has_lpips:
        raise ValueError(
            f"path length: the file of {detector} has no LPIPS weights; ppl2_vgg16_wend does without them"
        )

    def work(samples: range) -> np.ndarray:
        z, labels = task.latents(samples)
        other, _ = task.latents(samples, "metrics/z of the other end")
        start = task.network.styles(z, labels)
        moved = start.lerp(task.network.styles(other, labels), EPSILON)
        features = [network.perceptual(prepared(task.network.synthesize(ws))) for ws in (start, moved)]
        distances = (features[0] - features[1]).square().sum(dim=1) / EPSILON**2
        return np.asarray(distances.double().cpu())[:, None]

    return Measured(task.rows(task.batch, 1, work), lambda rows: {"": trimmed_mean(rows[:, 0])})
