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

# -d and d, the Wasserstein form: its optimum is the direction along which real and generated features differ most (SAN)
DIRECTION_LOSS = DiscriminatorLoss(real=lambda d: -d, fake=lambda d: d)

# Strictly increasing h of the generator's loss -E[h(d(G(z)))]: Yi, Zhu & Liu, "MonoFlow", ICML 2023
GENERATOR_OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda d: d,
}


Entry = TypeVar("Entry")


def _pick(table: dict[str, Entry], name: str, what: str) -> Entry:
    if name not in table:
        raise ValueError(f"unknown {what} '{name}': choose one of {', '.join(sorted(table))}")
    return table[name]


def hinge_real(fun: Tensor) -> Tensor:
    """max(0, 1 - fun), of the logits' shape: the discriminator's hinge loss on real samples."""
    return DISCRIMINATOR_LOSSES["hinge"].real(fun)


def hinge_fake(fun: Tensor) -> Tensor:
    """max(0, 1 + fun), of the logits' shape: the discriminator's hinge loss on generated samples."""
    return DISCRIMINATOR_LOSSES["hinge"].fake(fun)


def hinge_d(fun_real: Tensor, fun_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge loss of the discriminator on `fun`: (terms of real samples, terms of generated ones), each of its logits' shape."""
    return hinge_real(fun_real), hinge_fake(fun_fake)


def wasserstein_dir(dir_real: Tensor, dir_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Wasserstein form on `dir`: (-real, fake), each of its logits' shape. Trains the directions alone."""
    return DIRECTION_LOSS.real(dir_real), DIRECTION_LOSS.fake(dir_fake)


def discriminator_loss(name: str = "hinge") -> DiscriminatorLoss:
    """The discriminator loss of that name, for `fun`. Raises ValueError for an unknown one."""
    return _pick(DISCRIMINATOR_LOSSES, name, "discriminator loss")


def generator_objective(name: str = "logit") -> Callable[[Tensor], Tensor]:
    """The increasing h of the generator's loss -E[h(fun)] (MonoFlow). Raises ValueError for an unknown one."""
    return _pick(GENERATOR_OBJECTIVES, name, "generator objective")


def discriminator_terms(logits: SANLogits, real: bool, loss: str = "hinge") -> SANLogits:
    """Terms that the discriminator minimises for a batch that is all real or all generated.

    Returns SANLogits(fun term, dir term); their sum, without further weights, is the SAN objective.
    Raises ValueError for an unknown loss.
    """
    chosen = discriminator_loss(loss)
    if real:
        return SANLogits(chosen.real(logits.fun), DIRECTION_LOSS.real(logits.dir))
    return SANLogits(chosen.fake(logits.fun), DIRECTION_LOSS.fake(logits.dir))


def generator_terms(fun: Tensor, objective: str = "logit") -> Tensor:
    """-h(fun), what the generator minimises, of the logits' shape. Raises ValueError for an unknown objective."""
    return -generator_objective(objective)(fun)
