# SPDX-License-Identifier: Apache-2.0
"""Quantities that depend on the number of images shown.

Units: nimg = images, kimg = thousands of images.
"""

from __future__ import annotations

from training.config import EMA_RAMPUP


def blur_sigma(nimg: int, init_sigma: float = 2.0, fade_kimg: float = 300.0) -> float:
    """Width of the blur before the discriminator in pixels: linear from `init_sigma` to 0 (StyleGAN-XL).

    Args:
        nimg: Images shown.
        init_sigma: Width at the start, in pixels.
        fade_kimg: When the blur reaches 0, in kimg. 0 = no blur.
    """
    if fade_kimg <= 0:
        return 0.0
    return init_sigma * max(1 - nimg / (fade_kimg * 1000), 0.0)


def ema_beta(nimg: int, batch: int, half_life_kimg: float, rampup: float = EMA_RAMPUP) -> float:
    """Weight of the old average in one step: 0.5 ** (batch / half-life) (StyleGAN2, with its ramp-up).

    Args:
        nimg: Images shown *before* the step.
        batch: Images per step.
        half_life_kimg: Half-life of the average, in kimg.
        rampup: Limit of the half-life as a fraction of `nimg`; 0 = no limit.
    """
    half_life = half_life_kimg * 1000
    if rampup > 0:
        half_life = min(half_life, nimg * rampup)
    return float(0.5 ** (batch / max(half_life, 1e-8)))


def lazy_adam(lr: float, betas: tuple[float, float], interval: int) -> tuple[float, tuple[float, float]]:
    """Correct Adam constants for lazy regularisation (StyleGAN2, appendix B).

    The result is lr * r and betas ** r with r = interval / (interval + 1). The published discriminator has no
    regularisation but is still corrected with interval 16.

    Args:
        lr: Learning rate.
        betas: Beta 1 and beta 2.
        interval: Steps between regularisation steps; 0 = no correction.
    """
    if interval <= 0:
        return lr, betas
    ratio = interval / (interval + 1)
    return lr * ratio, (betas[0] ** ratio, betas[1] ** ratio)
