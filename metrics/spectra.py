# SPDX-License-Identifier: Apache-2.0
"""Average power spectra of image sets (Karras et al. 2021, "Alias-Free GAN", the figures of spectra)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of the pixel values of a set, in [0, 255]."""

    mean: float
    std: float
    num_images: int


def pixel_statistics(batches: Iterable[Tensor]) -> PixelStatistics:
    """Mean and standard deviation over all pixels and channels of uint8 images [N, C, R, R].

    Raises:
        ValueError: There are no images.
    """
    count = images = 0
    total = squares = 0.0  # integers below 2**53 stay exact in float64
    for batch in batches:
        x = batch.to(torch.float64)
        count, images = count + x.numel(), images + len(x)
        total, squares = total + float(x.sum()), squares + float(x.square().sum())
    if not count:
        raise ValueError("there are no images")
    mean = total / count
    return PixelStatistics(mean, math.sqrt(max(squares / count - mean**2, 0.0)), images)


def window(size: int, beta: float) -> Tensor:
    """The separable Kaiser window [size, size], float64, of unit power: white noise keeps its variance."""
    line = torch.kaiser_window(size, periodic=False, beta=beta, dtype=torch.float64)
    return torch.outer(line / line.square().sum().sqrt(), line / line.square().sum().sqrt())


def average_spectrum(
    batches: Iterable[Tensor], mean: float, std: float, beta: float = 8.0, interp: int = 4
) -> tuple[np.ndarray, int]:
    """The average power spectrum of uint8 images [N, C, R, R].

    Each image is whitened with the statistics of the training data, multiplied with a Kaiser window and
    zero-padded to R * interp pixels; the squared magnitudes of its discrete Fourier transform are averaged
    over channels and images. White noise of the given standard deviation has 1 everywhere.

    Args:
        batches: The images.
        mean: Of the pixels of the training data.
        std: Of the pixels of the training data.
        beta: Of the window.
        interp: Samples of the spectrum per frequency.

    Returns:
        The spectrum [R * interp, R * interp], float64, zero frequency first, and R.

    Raises:
        ValueError: There are no images, or they differ in size.
    """
    total, count, size = None, 0, 0
    weights: Tensor | None = None
    for batch in batches:
        if weights is None:
            size = int(batch.shape[-1])
            weights = window(size, beta).to(batch.device)
        if batch.shape[-1] != size or batch.shape[-2] != size:
            raise ValueError(f"images of {list(batch.shape[-2:])} and {[size, size]} pixels in one set")
        x = (batch.to(torch.float64) - mean) / std * weights
        power = torch.fft.fftn(x, s=[size * interp] * 2, dim=[2, 3]).abs().square().mean(dim=1).sum(dim=0)
        total = power if total is None else total + power
        count += len(batch)
    if total is None:
        raise ValueError("there are no images")
    return (total / count).cpu().numpy(), size


def decibels(spectrum: np.ndarray, smooth: float = 0.0) -> np.ndarray:
    """A spectrum [N, N] in dB, smoothed by a Gaussian that wraps around.

    Args:
        spectrum: Zero frequency first.
        smooth: Standard deviation of the Gaussian, in samples; 0 = none.

    Returns:
        [N + 1, N + 1], zero frequency in the centre, with both ends at the Nyquist frequency.
    """
    shown = 10 * np.log10(np.maximum(spectrum, 1e-30))
    shown = np.fft.fftshift(shown)
    shown = np.pad(shown, [[0, 1], [0, 1]], mode="wrap")
    return scipy.ndimage.gaussian_filter(shown, smooth, mode="wrap") if smooth > 0 else shown


def slices(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lines from the centre of `decibels` along 0 and 45 degrees, to the Nyquist frequency of the axes.

    Along 45 degrees the samples are those of the diagonal, whose frequencies are sqrt(2) times as high.
    """
    centre = levels.shape[0] // 2
    return levels[centre, centre:], np.diagonal(levels)[centre:]
