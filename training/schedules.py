# SPDX-License-Identifier: Apache-2.0
"""Quantities that depend on the number of images shown. Units: nimg = images, kimg = thousands of them."""

from __future__ import annotations


def blur_sigma(nimg: int, init_sigma: float = 2.0, fade_kimg: float = 300.0) -> float:
    """Width of the blur before the discriminator, in pixels: linear from `init_sigma` to 0 over `fade_kimg`
    (StyleGAN-XL).

    fade_kimg = 0 disables the blur.
    """
    if fade_kimg <= 0:
        return 0.0
    return init_sigma * max(1 - nimg / (fade_kimg * 1000), 0.0)


def ema_beta(nimg: int, batch: int, half_life_kimg: float, rampup: float = 0.05) -> float:
    """Weight of the old average in one step: 0.5 ** (batch / half life) (StyleGAN2, with its ramp-up).

    Args:
        nimg: images shown *before* the step.
        rampup: the half-life is at most this fraction of `nimg`; 0 = no ramp-up.
    """
    half_life = half_life_kimg * 1000
    if rampup > 0:
        half_life = min(half_life, nimg * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


def lazy_adam(lr: float, betas: tuple[float, float], interval: int) -> tuple[float, tuple[float, float]]:
    """Adam constants corrected for lazy regularisation (StyleGAN2, appendix B): lr * r and betas ** r with r
    = interval / (interval + 1).

    interval = 0 leaves them as they are. The published discriminator has no regularisation and is still
    corrected with interval 16.
    """
    if interval <= 0:
        return lr, betas
    ratio = interval / (interval + 1)
    return lr * ratio, (betas[0] ** ratio, betas[1] ** ratio)
