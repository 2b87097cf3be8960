# SPDX-License-Identifier: Apache-2.0
"""Slicing adversarial networks (SAN): discriminators with a normalised last layer that has its own objective.

    D = san.convert(D, example=images)            # once; D then returns SANLogits(fun, dir)
    san.discriminator_objective(D(real), D(fake.detach()), "hinge").backward()  # discriminator step
    d_opt.step()
    san.normalize_(D)                                                           # after each such step
    san.generator_terms(D(fake), "logit").mean().backward()                     # generator step

It works with any discriminator and imports only torch. Takida et al., "SAN: Inducing Metrizability of GAN
with Discriminative Normalized Linear Layer", ICLR 2024.
"""

from san import diagnostics
from san.convert import convert, restore
from san.layers import (
    SANConv1d,
    SANConv2d,
    SANConv3d,
    SANEmbedding,
    SANLinear,
    SANLogits,
    SONALogits,
    normalize_,
)
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
from san.sona import (
    SONAGeneratorTerms,
    SONAHead,
    SONATerms,
    SONAWeights,
    sona_discriminator_terms,
    sona_generator_terms,
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
    "SONAGeneratorTerms",
    "SONAHead",
    "SONALogits",
    "SONATerms",
    "SONAWeights",
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
    "sona_discriminator_terms",
    "sona_generator_terms",
    "vector_field",
]
