# SPDX-License-Identifier: Apache-2.0
"""The terms of the objectives: tensors in, scalars out.

Shapes: N samples, K logits of one backbone's heads, L layers that take a style, W style width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from san.layers import SANLogits
from san.objectives import discriminator_pair_terms, discriminator_terms, gan_logits, generator_terms
from torch_utils.ops import upfirdn2d

Logits = Mapping[str, SANLogits]  # backbone -> fun, dir [N, K]

# The published code sums each network's adversarial term over the samples of one accumulation round and
# averages over logits only. Its rounds hold 8 samples, so the term is 8 times a mean. Here it is that at any
# round size.
ADVERSARIAL_SCALE = 8.0


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Low-pass with the kernel 2^-(x/sigma)^2 of radius floor(3 sigma) (StyleGAN-XL, section 3.2). images [N,
    3, R, R]; sigma in pixels.
    """
    radius = int(sigma * 3)
    if radius == 0:
        return images
    full = torch.promote_types(images.dtype, torch.float32)
    taps = (
        torch.arange(-radius, radius + 1, device=images.device, dtype=full).div(sigma).square().neg().exp2()
    )
    return upfirdn2d.filter2d(images, taps / taps.sum())


def generator_adversarial(
    logits: Logits,
    objective: str = "logit",
    scale: float = ADVERSARIAL_SCALE,
    logits_real: Logits | None = None,
) -> torch.Tensor:
    """-scale * sum over backbones of the mean of h(fun) (MonoFlow; `logit`: h = identity). Raises ValueError
    for an unknown objective.

    logits_real: of as many real samples; then h(fun - fun of real), the generator's side of a relativistic
    pairing.
    """
    reals = {name: None if logits_real is None else logits_real[name].fun for name in logits}
    return (
        scale
        * torch.stack(
            [generator_terms(x.fun, objective, reals[name]).mean() for name, x in logits.items()]
        ).sum()
    )


def discriminator(
    logits: Logits, real: bool, objective: str = "hinge", scale: float = ADVERSARIAL_SCALE, san: bool = True
) -> SANLogits:
    """The scalars (fun, dir) of a batch that is all real or all generated; their sum is minimised (SAN).

    scale * sum over backbones of the mean of: the GAN's own loss on fun (hinge: max(0, 1 - fun) real, max(0,
    1 + fun) generated), and the Wasserstein form on dir (- dir real, + dir generated). san=False: the GAN's
    own loss on the ordinary logit, which trains the direction too, and 0 for dir. Raises ValueError for an
    unknown objective, or a paired one.
    """
    return _scalars(
        [discriminator_terms(x if san else _plain(x), real, objective) for x in logits.values()], scale, san
    )


def discriminator_pairs(
    real: Logits,
    fake: Logits,
    objective: str = "relativistic",
    scale: float = ADVERSARIAL_SCALE,
    san: bool = True,
) -> SANLogits:
    """As `discriminator`, for an objective of pairs (i-th real, i-th generated sample)."""
    pairs = [(real[name], fake[name]) if san else (_plain(real[name]), _plain(fake[name])) for name in real]
    return _scalars([discriminator_pair_terms(r, f, objective) for r, f in pairs], scale, san)


def _plain(logits: SANLogits) -> SANLogits:
    return SANLogits(gan_logits(logits), logits.dir.detach())


def _scalars(terms: list[SANLogits], scale: float, san: bool) -> SANLogits:
    total = SANLogits(*(scale * torch.stack([t[part].mean() for t in terms]).sum() for part in (0, 1)))
    return total if san else SANLogits(total.fun, torch.zeros_like(total.fun))


def guidance(
    classifier: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of a frozen classifier on generated images (StyleGAN-XL, section 3.3).

    Args:
        classifier: a callable with `mean` and `std` ([1, 3, 1, 1]) and `input_size`, from normalised images
        to class logits, and perhaps with
            `class_map` (int64 [c_dim]), its class for each of the data set's.
        images: [N, 3, R, R] in [-1, 1]. labels: int64 [N].
    """
    mean, std, size = classifier.mean, classifier.std, classifier.input_size  # type: ignore[attr-defined]
    normalised = ((images + 1) / 2 - mean) / std
    resized = F.interpolate(normalised, (size, size), mode="bilinear", align_corners=False)
    class_map = getattr(classifier, "class_map", None)
    return F.cross_entropy(classifier(resized), labels if class_map is None else class_map[labels])


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Length of d(images . y)/d(ws) for y = noise / sqrt(H W): sqrt(mean over L of the sum of squares)
    (StyleGAN2, eq. 4).

    images [N, 3, R, R] computed from ws [N, L, W]; noise like images, standard normal. Returns [N],
    differentiable.
    """
    direction = noise / (images.shape[2] * images.shape[3]) ** 0.5
    (grad,) = torch.autograd.grad([(images * direction).sum()], [ws], create_graph=True, only_inputs=True)
    return grad.square().sum(2).mean(1).sqrt()


def path_length_penalty(
    lengths: torch.Tensor, mean: torch.Tensor, decay: float, all_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean squared deviation of path lengths from their running mean, which is updated first and not detached
    (as published).

    Args:
        lengths: this process's [n], differentiable. all_lengths: every process's, detached. mean: the running
        mean, scalar.

    Returns:
        (penalty, new running mean, surrogate). The surrogate's gradient, averaged over processes of equal n,
        is the penalty's: with m' = m + decay (avg(l) - m), d penalty / d l_i = 2/n (l_i - m') - 2 decay / n *
        avg(l - m').
    """
    new_mean = mean + decay * (all_lengths.mean() - mean)
    deviation = all_lengths - new_mean
    coefficients = 2 * (lengths.detach() - new_mean) - 2 * decay * deviation.mean()
    return deviation.square().mean(), new_mean, (coefficients * lengths).mean()
