# SPDX-License-Identifier: Apache-2.0
"""SONA: a discriminator head that is the sum of naturalness and alignment with a condition.

A projection head has one effective direction per class. SONA keeps two orthogonal parts (Takida et al.,
"SONA: Learning Conditional, Unconditional, and Matching-Aware Discriminator", ICLR 2026, arXiv 2510.04576):

    f(x, y) = f_N(x) + f_A(x, y)    f_N = <omega, h>    f_A = <omega_y, h - <omega, h> omega>

omega and omega_y are unit vectors. f_N is trained as a SAN, without the condition. f_A is trained by two
Bradley-Terry comparisons of f, in which the gradient does not reach f_N. The winner is always a real sample
with its condition:

    conditional     the loser is generated for the same y
    matching        the loser is a real sample drawn without regard to y

Each term's log sigmoid(t) is log sigmoid(s t) / s with a learnt s > 0; the squares of the three s sum to 1.
The generator minimises its own SAN term and the conditional comparison with the roles exchanged.

    head = san.SONAHead(features, classes)         # the last layer of D; D(x, y) returns its SONALogits
    weights = san.SONAWeights()                    # the three s; give its parameters to D's optimizer
    fake = G(z, y)                                 # y: the conditions of the real batch
    san.sona_discriminator_terms(D(real, y), D(fake.detach(), y), weights()).total().backward()
    ...                                            # D's step, then san.normalize_(D)
    san.sona_generator_terms(D(fake, y), D(real, y)).total().backward()

Shapes: N samples, I features, C classes, g samples of a group.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from san.layers import EPS, SANLinear, SONALogits, _SANLayer, unit_directions, widened
from san.objectives import Objective, discriminator_loss, generator_terms

TERMS = ("san", "conditional", "matching")  # the order of the three s


class Directions(_SANLayer):
    """Unit directions without scales, one per class: labels int64 [N] -> [N, I]."""

    def __init__(self, classes: int, features: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            unit_directions(torch.empty(classes, features).normal_(generator=generator))
        )

    def forward(self, labels: Tensor) -> Tensor:
        """Return the unit vectors of the labels' classes."""
        return unit_directions(F.embedding(labels, self.weight))

    def extra_repr(self) -> str:
        """Return the shape of the weight."""
        return ", ".join(str(size) for size in self.weight.shape)


class SONAHead(nn.Module):
    """The last layer of a conditional discriminator.

    `omega` is a SANLinear, so that san.normalize_ and san.diagnostics treat it as any other. Its bias is
    added to the features, and its scale multiplies them: both belong to h. The alignment does not train
    omega.

    Args:
        in_features: I.
        num_classes: C; None = conditions are given as vectors [N, I], such as frozen embeddings of a text.
        bias: add a trained bias to the features.
        generator: source of the initial weights; None = torch's global generator.

    Examples:
        >>> import san, torch
        >>> head = san.SONAHead(16, num_classes=3)
        >>> logits = head(torch.randn(6, 16, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> [tuple(part.shape) for part in logits]  # fun, dir, align, crossed
        [(6, 4, 4), (6, 4, 4), (6,), (6, 6)]
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.omega = SANLinear(in_features, 1, bias, generator)
        nn.init.ones_(self.omega.scale)
        self.embed = None if num_classes is None else Directions(num_classes, in_features, generator)

    def forward(self, x: Tensor, condition: Tensor, group: int | None = None) -> SONALogits:
        """Compute the two parts of f.

        Args:
            x: Features [N, I], or maps of them [N, I, ...]; the alignment is the mean over positions.
            condition: Labels int64 [N], or vectors [N, I] if the head has no classes.
            group: Consecutive samples that are compared with each other's conditions; None, or a number that
                does not divide N = the whole batch.

        Raises:
            ValueError: The condition does not fit the head.
        """
        naturalness = self.omega(x.movedim(1, -1))
        rows = self._rows(condition)
        pooled = widened(x) if x.ndim == 2 else widened(x.flatten(2)).mean(2)
        features = self.omega.scale * self.omega.features(pooled)
        omega = widened(unit_directions(self.omega.weight).detach()[0])
        rest = features - (features @ omega)[:, None] * omega
        size = group if group and len(x) % group == 0 else len(x)
        members = rows.unflatten(0, (-1, size))
        crossed = (rest.unflatten(0, (-1, size)) @ members.transpose(1, 2)).flatten(0, 1)
        return SONALogits(
            fun=naturalness.fun.squeeze(-1),
            dir=naturalness.dir.squeeze(-1),
            align=(rest * rows).sum(1),
            crossed=crossed,
        )

    def _rows(self, condition: Tensor) -> Tensor:
        if condition.is_floating_point() == (self.embed is None):
            if self.embed is not None:
                return widened(self.embed(condition))
            return F.normalize(widened(condition), dim=-1, eps=EPS)
        wanted = (
            "vectors [N, I], as the head has no classes" if self.embed is None else "labels of type int64"
        )
        raise ValueError(f"SONAHead: the condition has the type {condition.dtype}; give {wanted}")


def concatenated(logits: list[SONALogits]) -> SONALogits:
    """Join the logits of several heads into those of one.

    Naturalness keeps each logit [N, K]; the alignment is the mean over all K positions.
    """
    fun, dir = (
        torch.cat([getattr(x, part).reshape(len(x.fun), -1) for x in logits], dim=1)
        for part in ("fun", "dir")
    )
    shares = [x.fun[0].numel() / fun.shape[1] for x in logits]
    align, crossed = (
        torch.stack([share * getattr(x, part) for share, x in zip(shares, logits, strict=True)]).sum(0)
        for part in ("align", "crossed")
    )
    return SONALogits(fun, dir, align, crossed)


class SONAWeights(nn.Module):
    """The three s of the discriminator's terms: positive, with squares that sum to 1; equal at the start.

    They are trained by the discriminator's objective itself. Each of its terms decreases as its s increases,
    so the sphere makes them compete.

    Examples:
        >>> import san
        >>> s = san.SONAWeights()()
        >>> s.detach().square().sum().round(decimals=4)
        tensor(1.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_squares = nn.Parameter(torch.zeros(len(TERMS)))

    def forward(self) -> Tensor:
        """Return s, [3], in the order of TERMS."""
        return self.log_squares.float().log_softmax(0).div(2).exp()


class SONATerms(NamedTuple):
    """The discriminator's terms, scalars to be minimised.

    Attributes:
        fun: GAN loss of the naturalness.
        dir: loss of its direction, which has no s.
        conditional: real samples against generated ones, for the same condition.
        matching: conditions against those of other real samples.
    """

    fun: Tensor
    dir: Tensor
    conditional: Tensor
    matching: Tensor

    def total(self) -> Tensor:
        """Return their sum, the objective."""
        return self.fun + self.dir + self.conditional + self.matching


class SONAGeneratorTerms(NamedTuple):
    """The generator's terms, scalars to be minimised.

    Attributes:
        san: -h of the naturalness.
        conditional: generated samples against real ones, for the same condition.
    """

    san: Tensor
    conditional: Tensor

    def total(self) -> Tensor:
        """Return their sum, the objective."""
        return self.san + self.conditional


def _scores(logits: SONALogits) -> Tensor:
    """Return f [N], whose gradient does not reach the naturalness."""
    return widened(logits.fun.detach()).reshape(len(logits.fun), -1).mean(1) + logits.align


def _comparison(gap: Tensor, s: Tensor | float = 1.0) -> Tensor:
    """Return the mean of -log sigmoid(s t) / s over differences t = f(winner) - f(loser)."""
    return (F.softplus(-s * gap) / s).mean()


def _mismatches(real: SONALogits) -> Tensor:
    """Return f(x_k, y_k) - f(x_j, y_k) for all pairs j != k of each group."""
    size = real.crossed.shape[1]
    if size < 2:
        raise ValueError(
            "SONA's matching comparison needs at least 2 real samples per group: give larger batches"
        )
    naturalness = _scores(real) - real.align
    table = (naturalness[:, None] + real.crossed).unflatten(0, (-1, size))  # [groups, j, k]
    gaps = table.diagonal(dim1=1, dim2=2)[:, None, :] - table
    # Without its first element, the flat table has an element of the diagonal after each row of size others.
    found: Tensor = gaps.flatten(1)[:, 1:].unflatten(1, (size - 1, size + 1))[:, :, :-1].flatten(1)
    return found


def sona_discriminator_terms(
    real: SONALogits, fake: SONALogits, weights: Tensor, loss: str = "bce"
) -> SONATerms:
    """Compute the discriminator's terms.

    Args:
        real: Logits of real samples.
        fake: Logits of samples generated for the same conditions, in the same order.
        weights: The three s, as SONAWeights returns them.
        loss: Name in DISCRIMINATOR_LOSSES of the naturalness; the paper's is bce. For any other loss l, l(t)
            becomes l(s t) / s.

    Raises:
        ValueError: The loss is unknown or compares pairs, or there is nothing to compare.
    """
    chosen = discriminator_loss(loss)
    if chosen.real is None or chosen.fake is None:
        raise ValueError(
            f"the discriminator loss '{loss}' compares pairs: use another one for SONA, such as bce"
        )
    s = weights.unbind()
    direction = chosen.direction
    return SONATerms(
        fun=((chosen.real(s[0] * real.fun).mean() + chosen.fake(s[0] * fake.fun).mean()) / s[0]),
        dir=direction.real(real.dir).mean() + direction.fake(fake.dir).mean(),
        conditional=_comparison(_scores(real) - _scores(fake), s[1]),
        matching=_comparison(_mismatches(real), s[2]),
    )


def sona_generator_terms(
    fake: SONALogits, real: SONALogits, objective: Objective = "logit"
) -> SONAGeneratorTerms:
    """Compute the generator's terms.

    Args:
        fake: Logits of generated samples.
        real: Logits of real samples with the same conditions, in the same order.
        objective: h of the naturalness, as for `generator_terms`.

    Raises:
        ValueError: As `generator_terms`.
    """
    return SONAGeneratorTerms(
        san=generator_terms(fake.fun, objective).mean(),
        conditional=_comparison(_scores(fake) - _scores(real).detach()),
    )
