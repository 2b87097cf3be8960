# SPDX-License-Identifier: Apache-2.0
"""Slicing adversarial networks (SAN): last layers whose direction and features have objectives of their own.

    D = san.convert(D, example=images)            # once; then D returns SANLogits(fun, dir)
    san.discriminator_objective(D(real), D(fake.detach()), "hinge").backward()  # the discriminator's step ...
    san.normalize_(D)                                                           # ... after its optimizer's
    san.generator_terms(D(fake), "logit").mean().backward()                     # the generator's

Usable with any discriminator; imports torch alone. Takida et al., "SAN: Inducing Metrizability of GAN with
Discriminative Normalized Linear Layer", ICLR 2024.
"""

from san import diagnostics
from san.convert import convert, restore
from san.layers import SANConv1d, SANConv2d, SANConv3d, SANEmbedding, SANLinear, SANLogits, normalize_
from san.objectives import (
    DISCRIMINATOR_LOSSES,
    FALLING_OBJECTIVES,
    GENERATOR_OBJECTIVES,
    check_increasing,
    discriminator_loss,
    discriminator_objective,
    discriminator_pair_terms,
    discriminator_terms,
    gan_logits,
    generator_objective,
    generator_terms,
    is_paired,
    vector_field,
)

__version__ = "0.2.0"

__all__ = [
    "DISCRIMINATOR_LOSSES",
    "FALLING_OBJECTIVES",
    "GENERATOR_OBJECTIVES",
    "SANConv1d",
    "SANConv2d",
    "SANConv3d",
    "SANEmbedding",
    "SANLinear",
    "SANLogits",
    "check_increasing",
    "convert",
    "diagnostics",
    "discriminator_loss",
    "discriminator_objective",
    "discriminator_pair_terms",
    "discriminator_terms",
    "gan_logits",
    "generator_objective",
    "generator_terms",
    "is_paired",
    "normalize_",
    "restore",
    "vector_field",
]
