# SPDX-License-Identifier: Apache-2.0
"""The projected discriminator: frozen features, a fixed random projection and small SAN heads."""

from training.discriminator.discriminator import ProjectedDiscriminator

__all__ = ["ProjectedDiscriminator"]
