# SPDX-License-Identifier: Apache-2.0
"""The terms of the objectives: functions from tensors to scalars.

Shapes: N samples, K logits of one backbone's heads, L layers that take a style, W style width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from san.layers import SANLogits, SONALogits
from san.objectives import discriminator_pair_terms, discriminator_terms, gan_logits, generator_terms
from san.sona import SONAGeneratorTerms, SONATerms, sona_discriminator_terms, sona_generator_terms
from torch_utils.images import to_rgb
from torch_utils.ops import upfirdn2d

Logits = Mapping[str, SANLogits]  # backbone -> fun, dir [N, K]
SONA = Mapping[str, SONALogits]  # the same with align [N] and crossed [N, g]

# The published code sums the adversarial term of each backbone over the samples of one micro-batch and
# averages over logits only. Its micro-batches have 8 samples, so the term is 8 times a mean. This code uses 8
# times the mean for every micro-batch size.
ADVERSARIAL_SCALE = 8.0


def blur_kernel(sigma: float, device: torch.device | str = "cpu") -> torch.Tensor | None:
    """Return the kernel 2^-(x/sigma)^2 of radius floor(3 sigma) (StyleGAN-XL, section 3.2).

    Args:
        sigma: Width in pixels.
        device: Where to compute it.

    Returns:
        float32 [2 radius + 1] with the sum 1, or None if the radius is 0.
    """
    radius = int(sigma * 3)
    if radius == 0:
        return None
    x = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    taps = x.div(sigma).square().neg().exp2()
    return taps / taps.sum()


def blur(images: torch.Tensor, kernel: torch.Tensor | None) -> torch.Tensor:
    """Blur images [N, C, R, R] with a kernel [n] along both axes; None = not at all."""
    return images if kernel is None else upfirdn2d.filter2d(images, kernel)


def generator_adversarial(
    logits: Logits,
    objective: str = "logit",
    scale: float = ADVERSARIAL_SCALE,
    logits_real: Logits | None = None,
) -> torch.Tensor:
    """Adversarial loss of the generator: -scale * sum over backbones of the mean of h(fun) (MonoFlow).

    Args:
        logits: Logits of generated samples.
        objective: Name of h; `logit` is the identity.
        scale: Factor on the loss.
        logits_real: Logits of as many real samples. If given, the loss uses h(fun - fun of real), the
            generator's side of a relativistic pairing.

    Raises:
        ValueError: Unknown objective.
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
    """Discriminator loss of a batch that is all real or all generated.

    The result is scale * sum over backbones of the mean of two terms: the GAN loss on fun (hinge: max(0, 1 -
    fun) for real, max(0, 1 + fun) for generated samples), and the Wasserstein loss on dir (- dir for real, +
    dir for generated samples).

    Args:
        logits: Logits of the batch.
        real: Whether the batch is real.
        objective: Name of the GAN loss.
        scale: Factor on the loss.
        san: False = the GAN loss on the ordinary logit, which also trains the direction, and 0 for dir.

    Returns:
        The scalars (fun, dir). The discriminator minimises their sum (SAN).

    Raises:
        ValueError: Unknown objective, or one that needs pairs.
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
    """As `discriminator`, for objectives of pairs (i-th real sample, i-th generated sample)."""
    pairs = [(real[name], fake[name]) if san else (_plain(real[name]), _plain(fake[name])) for name in real]
    return _scalars([discriminator_pair_terms(r, f, objective) for r, f in pairs], scale, san)


def _plain(logits: SANLogits) -> SANLogits:
    return SANLogits(gan_logits(logits), logits.dir.detach())


def _scalars(terms: list[SANLogits], scale: float, san: bool) -> SANLogits:
    total = SANLogits(*(scale * torch.stack([t[part].mean() for t in terms]).sum() for part in (0, 1)))
    return total if san else SANLogits(total.fun, torch.zeros_like(total.fun))


def sona_discriminator(
    real: SONA,
    fake: SONA,
    weights: Mapping[str, torch.Tensor],
    objective: str = "bce",
    scale: float = ADVERSARIAL_SCALE,
) -> SONATerms:
    """Discriminator loss of SONA heads: scale * sum over backbones of each term (san/sona.py).

    Args:
        real: Logits of real samples.
        fake: Logits of samples generated for the classes of the real ones, in the same order.
        weights: The three s of each backbone.
        objective: Name of the GAN loss of the naturalness.
        scale: Factor on the loss.

    Raises:
        ValueError: Unknown objective, one that needs pairs, or no two samples to compare.
    """
    terms = [sona_discriminator_terms(real[name], fake[name], weights[name], objective) for name in real]
    return SONATerms(*(scale * torch.stack(parts).sum() for parts in zip(*terms, strict=True)))


def sona_generator(
    fake: SONA, real: SONA, objective: str = "logit", scale: float = ADVERSARIAL_SCALE
) -> SONAGeneratorTerms:
    """Adversarial loss of the generator against SONA heads; arguments are as above.

    Raises:
        ValueError: Unknown objective.
    """
    terms = [sona_generator_terms(fake[name], real[name], objective) for name in fake]
    return SONAGeneratorTerms(*(scale * torch.stack(parts).sum() for parts in zip(*terms, strict=True)))


def guidance(
    classifier: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of a frozen classifier on generated images (StyleGAN-XL, section 3.3).

    Args:
        classifier: Callable from normalised images to class logits, with the attributes `mean` and `std` ([1,
            3, 1, 1]) and `input_size`. If it also has `class_map` (int64 [c_dim]), that is its class for each
            class of the data set.
        images: [N, C, R, R] in [-1, 1].
        labels: int64 [N].
    """
    class_map = getattr(classifier, "class_map", None)
    logits = classifier(classifier_input(classifier, images))
    return F.cross_entropy(logits, labels if class_map is None else class_map[labels])


def classifier_input(classifier: Any, images: torch.Tensor) -> torch.Tensor:
    """Prepare images [N, C, R, R] in [-1, 1] for a classifier: RGB, normalised, at its size."""
    size = classifier.input_size
    normalised = ((to_rgb(images) + 1) / 2 - classifier.mean) / classifier.std
    return F.interpolate(normalised, (size, size), mode="bilinear", align_corners=False)


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Path lengths of the generator (StyleGAN2, equation 4).

    The length is that of d(images . y)/d(ws) with y = noise / sqrt(H W): the root of the mean over L of the
    sum of squares.

    Args:
        images: [N, C, R, R], computed from `ws`.
        ws: [N, L, W].
        noise: Standard normal, with the shape of the images.

    Returns:
        [N], differentiable.
    """
    direction = noise / (images.shape[2] * images.shape[3]) ** 0.5
    (grad,) = torch.autograd.grad([(images * direction).sum()], [ws], create_graph=True, only_inputs=True)
    return grad.square().sum(2).mean(1).sqrt()


def path_length_penalty(
    lengths: torch.Tensor, mean: torch.Tensor, decay: float, all_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean squared deviation of path lengths from their running mean.

    As published, the running mean is updated first and is not detached.

    Args:
        lengths: Path lengths of this process, [n], differentiable.
        mean: The running mean, scalar.
        decay: Weight of the new mean.
        all_lengths: Path lengths of all processes, detached.

    Returns:
        (penalty, new running mean, surrogate). The gradient of the surrogate, averaged over processes of
            equal n, is that of the penalty: with m' = m + decay (avg(l) - m), d penalty / d l_i = 2/n (l_i -
            m') - 2 decay / n * avg(l - m').
    """
    new_mean = mean + decay * (all_lengths.mean() - mean)
    deviation = all_lengths - new_mean
    coefficients = 2 * (lengths.detach() - new_mean) - 2 * decay * deviation.mean()
    return deviation.square().mean(), new_mean, (coefficients * lengths).mean()
