# SPDX-License-Identifier: Apache-2.0
"""Objectives of a SAN: a GAN's own discriminator loss on `fun`, the Wasserstein form on `dir`, and the generator's loss.

Everything is elementwise, to be minimised, and of the shape of its logits: the caller chooses the reduction.
A new loss is one entry in a table.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor
from torch.nn import functional as F

from san.layers import SANLogits


class DiscriminatorLoss(NamedTuple):
    """What the discriminator minimises, elementwise, on logits of real and of generated samples."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]


DISCRIMINATOR_LOSSES: dict[str, DiscriminatorLoss] = {
    # max(0, 1 - d) and max(0, 1 + d): Lim & Ye, "Geometric GAN", 2017
    "hinge": DiscriminatorLoss(real=lambda d: F.relu(1 - d), fake=lambda d: F.relu(1 + d)),
}

# -d and d, the Wasserstein form: its optimum is the direction along which real and generated features differ most (SAN, eq. 14 and 15)
DIRECTION_LOSS = DiscriminatorLoss(real=lambda d: -d, fake=lambda d: d)

# Strictly increasing h of the generator's loss -E[h(d(G(z)))]: Yi, Zhu & Liu, "MonoFlow", ICML 2023
GENERATOR_GAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda d: d,
}


Entry = TypeVar("Entry")


def _pick(table: dict[str, Entry], name: str, what: str) -> Entry:
    if name not in table:
        raise ValueError(f"unknown {what} '{name}': choose one of {', '.join(sorted(table))}")
    return table[name]


def hinge_d(fun_real: Tensor, fun_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge loss of the discriminator on `fun`: (max(0, 1 - real), max(0, 1 + fake)), each of its logits' shape."""
    loss = DISCRIMINATOR_LOSSES["hinge"]
    return loss.real(fun_real), loss.fake(fun_fake)


def wasserstein_dir(dir_real: Tensor, dir_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Wasserstein form on `dir`: (-real, fake), each of its logits' shape. Trains the directions alone."""
    return DIRECTION_LOSS.real(dir_real), DIRECTION_LOSS.fake(dir_fake)


def discriminator_terms(logits: SANLogits, real: bool, loss: str = "hinge") -> SANLogits:
    """Terms that the discriminator minimises for a batch that is all real or all generated.

    Returns SANLogits(fun term, dir term); their sum, without further weights, is the SAN objective (SAN, eq. 16).
    Raises ValueError for an unknown loss.
    """
    chosen = _pick(DISCRIMINATOR_LOSSES, loss, "discriminator loss")
    if real:
        return SANLogits(chosen.real(logits.fun), DIRECTION_LOSS.real(logits.dir))
    return SANLogits(chosen.fake(logits.fun), DIRECTION_LOSS.fake(logits.dir))


def generator_terms(fun: Tensor, loss: str = "logit") -> Tensor:
    """-h(fun), what the generator minimises (MonoFlow). Raises ValueError for an unknown loss."""
    return -_pick(GENERATOR_GAINS, loss, "generator loss")(fun)
