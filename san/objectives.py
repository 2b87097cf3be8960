# SPDX-License-Identifier: Apache-2.0
"""Objectives of SAN discriminators and of generators.

A SAN discriminator minimises its GAN's discriminator loss of `fun` plus a loss of `dir`: the Wasserstein
form, or the one that its entry in the table names. A generator minimises -h(d).

There are two tables. DISCRIMINATOR_LOSSES contains the losses of logits d of real and of generated samples;
for SANLogits, the same entry gives the SAN form. GENERATOR_OBJECTIVES contains increasing functions h: a
generator that minimises -E[h(d)] moves its samples along h'(d) grad d (Yi, Zhu & Liu, "MonoFlow", ICML 2023),
so any increasing h defines a GAN.

All terms are elementwise, are minimised, and have the shape of their logits: the caller chooses the
reduction. Logits of several heads can be a list, tuple or dict (also nested); the result is then the sum over
heads of each head's mean. A new loss is one entry in a table; a generator objective can also be an expression
in d or a callable.
"""

import ast
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from san.layers import SANLogits, SONALogits
from san.logits import DualLogits

Elementwise = Callable[[Tensor], Tensor]
Objective = str | Elementwise
Logits = SANLogits | Sequence[Any] | Mapping[str, Any]  # of one head or of several

CHECKED_RANGE = (-15.0, 15.0)  # range of logits in which h must increase
CHECKED_POINTS = 3001
LONGEST_EXPRESSION = 200  # characters; limits malicious input
LARGEST_POWER = 16.0


class DirectionLoss(NamedTuple):
    """An elementwise loss of `dir`, which trains the direction alone.

    Attributes:
        real: term of the logits of real samples.
        fake: term of the logits of generated samples.
    """

    real: Elementwise
    fake: Elementwise


# -d and d: its optimum is the direction along which real and generated features differ most (SAN)
WASSERSTEIN_DIRECTION = DirectionLoss(real=lambda d: -d, fake=lambda d: d)


class DiscriminatorLoss(NamedTuple):
    """An elementwise loss of the discriminator.

    Attributes:
        real: term of the logits of real samples.
        fake: term of the logits of generated samples.
        pair: replaces both: term of the differences d(real) - d(generated) of pairs.
        direction: terms of `dir` in the SAN form.
    """

    real: Elementwise | None = None
    fake: Elementwise | None = None
    pair: Elementwise | None = None
    direction: DirectionLoss = WASSERSTEIN_DIRECTION


def _softplus_square(d: Tensor) -> Tensor:
    """Return softplus(1 - d)^2: a least-squares term with target 1 that decreases everywhere."""
    return F.softplus(1 - d).square()


# max(0, 1 - d) and max(0, 1 + d): Lim & Ye, "Geometric GAN", 2017
_HINGE = DiscriminatorLoss(real=lambda d: F.relu(1 - d), fake=lambda d: F.relu(1 + d))
# -log sigmoid(d) and -log(1 - sigmoid(d)): Goodfellow et al., 2014. At its optimum d = log p_data / p_gen.
_BCE = DiscriminatorLoss(real=lambda d: F.softplus(-d), fake=F.softplus)

DISCRIMINATOR_LOSSES: dict[str, DiscriminatorLoss] = {
    "hinge": _HINGE,
    "bce": _BCE,
    "ns": _BCE,  # the discriminator of the non-saturating GAN, whose name refers to the generator
    # (d - 1)^2 / 2 and (d + 1)^2 / 2: Mao et al., "Least Squares GAN", ICCV 2017, with a = -1, b = 1
    "ls": DiscriminatorLoss(real=lambda d: (d - 1).square() / 2, fake=lambda d: (d + 1).square() / 2),
    # (d - 1)^2 and d^2: the same with a = 0, b = 1 and without the factor 1/2, as in LSGAN's code and Kong,
    # Kim & Bae, "HiFi-GAN", NeurIPS 2020
    "ls01": DiscriminatorLoss(real=lambda d: (d - 1).square(), fake=lambda d: d.square()),
    # -d and d: Arjovsky, Chintala & Bottou, ICML 2017. This gives a distance only if the discriminator is
    # Lipschitz by construction or through a penalty.
    "wasserstein": DiscriminatorLoss(real=lambda d: -d, fake=lambda d: d),
    # -log sigmoid(d(real) - d(generated)): the paired loss of Huang et al., "R3GAN", NeurIPS 2024 (without
    # its gradient penalties). At its optimum d = log p_data / p_gen + constant, so every h below can be used.
    "relativistic": DiscriminatorLoss(pair=lambda gap: F.softplus(-gap)),
    # softplus(1 - d)^2 and softplus(d)^2: Shibuya, Takida & Mitsufuji, "BigVSAN", ICASSP 2024. ls01 with
    # softplus in place of the identity, which makes both terms monotonic. The direction is trained by the
    # difference of the term of real samples.
    "ls_softplus": DiscriminatorLoss(
        real=_softplus_square,
        fake=lambda d: F.softplus(d).square(),
        direction=DirectionLoss(real=_softplus_square, fake=lambda d: -_softplus_square(d)),
    ),
}


def _vanilla(shift: float) -> Elementwise:
    """Return h(d) = -log(1 - sigmoid(d + C)) = softplus(d + C).

    C = 0 is the minimax loss of Goodfellow et al. The field sigmoid(d + C) vanishes for d << -C.
    """
    if shift < 0:
        raise ValueError(
            f"vanilla({shift:g}): C must not be negative: the gradient would vanish in a larger region"
        )
    return lambda d: F.softplus(d + shift)


# Strictly increasing h of the generator's loss -E[h(d(G(z)))], with the factor h'(d) of the vector field
GENERATOR_OBJECTIVES: dict[str, Elementwise] = {
    "logit": lambda d: d,  # h' = 1
    "ns": F.logsigmoid,  # log sigmoid(d), h' = 1 - sigmoid(d)
    "vanilla": _vanilla(0),  # -log(1 - sigmoid(d)), h' = sigmoid(d); vanilla(C) shifts d by C
    "mle": torch.exp,  # exp(d), h' = exp(d)
    "arcsinh": torch.asinh,  # h' = 1 / sqrt(1 + d^2)
    # BigVSAN's -softplus(1 - d)^2, h' = 2 softplus(1 - d) sigmoid(1 - d)
    "ls_softplus": lambda d: -_softplus_square(d),
}


# Published objectives that do not increase everywhere and are therefore not in MonoFlow's table. They are
# available by name only and are not checked. ls01: -(1 - d)^2, the generator loss of HiFi-GAN, decreases
# logits above 1, where h' = 2 (1 - d) is negative.
FALLING_OBJECTIVES: dict[str, Elementwise] = {"ls01": lambda d: -(1 - d).square()}

Entry = TypeVar("Entry")


def _pick(table: dict[str, Entry], name: str, what: str) -> Entry:
    if name not in table:
        raise ValueError(f"unknown {what} '{name}': choose one of {', '.join(sorted(table))}")
    return table[name]


def discriminator_loss(name: str = "hinge") -> DiscriminatorLoss:
    """Return the discriminator loss with this name, for `fun`. Raises ValueError for an unknown name."""
    return _pick(DISCRIMINATOR_LOSSES, name, "discriminator loss")


def is_paired(loss: str) -> bool:
    """Return whether the loss compares pairs of real and generated samples.

    Raises:
        ValueError: the loss is unknown.
    """
    return discriminator_loss(loss).pair is not None


def _is_head(logits: Any) -> bool:
    return isinstance(logits, (Tensor, SANLogits, DualLogits))


def _heads(*sides: Any, at: str = "") -> Iterator[tuple[Any, ...]]:
    """Yield the corresponding heads of all sides: the logits themselves, or those in lists, tuples and dicts.

    Raises:
        ValueError: another type, no logits, or sides that do not match. One line.
    """
    one, where = sides[0], f" at {at.lstrip('.')}" if at else ""
    if any(isinstance(side, SONALogits) for side in sides):
        raise ValueError(
            f"logits{where} are SONALogits: use sona_discriminator_terms and sona_generator_terms"
        )
    if all(_is_head(side) for side in sides):
        yield tuple(SANLogits(x.fun, x.dir) if isinstance(x, DualLogits) else x for x in sides)
    elif all(isinstance(side, (list, tuple)) and not _is_head(side) for side in sides):
        if len({len(side) for side in sides}) != 1 or not one:
            counts = " and ".join(str(len(side)) for side in sides)
            raise ValueError(
                f"logits{where}: {counts} heads; all sides must have the same number, at least 1"
            )
        for i, parts in enumerate(zip(*sides, strict=True)):
            yield from _heads(*parts, at=f"{at}.{i}")
    elif all(isinstance(side, Mapping) for side in sides):
        if any(side.keys() != one.keys() for side in sides) or not one:
            names = " and ".join(f"({', '.join(map(str, side))})" for side in sides)
            raise ValueError(f"logits{where}: heads {names}; each side must have the same ones, at least one")
        for key in one:
            yield from _heads(*(side[key] for side in sides), at=f"{at}.{key}")
    else:
        kinds = " and ".join(type(side).__name__ for side in sides)
        raise ValueError(
            f"logits{where} have the type {kinds}: give tensors, SANLogits, or lists or dicts of them"
        )


def _kinds(heads: Sequence[tuple[Any, ...]]) -> bool:
    """Return whether heads are SANLogits. Raises ValueError if some are and others are plain tensors."""
    found = {isinstance(x, SANLogits) for head in heads for x in head}
    if len(found) > 1:
        raise ValueError(
            "logits have different kinds, some SANLogits and some plain tensors: give the logits of real "
            "and generated samples from the same discriminator, without feature maps"
        )
    return found.pop()


def _san_heads(*sides: Any) -> list[tuple[SANLogits, ...]]:
    """Return the heads as `_heads` does, for SANLogits only. Raises ValueError for plain tensors."""
    heads = list(_heads(*sides))
    if not _kinds(heads):
        raise ValueError(
            "logits are plain tensors, but SANLogits are needed: convert the discriminator first"
        )
    return heads


def _differences(first: Tensor, second: Tensor) -> Tensor:
    """Return the differences of pairs of logits. Raises ValueError if there are not equally many."""
    if first.shape != second.shape:
        raise ValueError(
            f"logits of shape {tuple(first.shape)} and {tuple(second.shape)} are not pairs: "
            "give as many real as generated samples"
        )
    return first - second


def _summed(terms: Sequence[SANLogits], logits: Any) -> SANLogits:
    """Return the terms of a single head; for a list, tuple or dict of heads, the sum of their means."""
    if _is_head(logits):
        return terms[0]
    return SANLogits(_sum([t.fun.mean() for t in terms]), _sum([t.dir.mean() for t in terms]))


def _sum(scalars: Sequence[Tensor]) -> Tensor:
    return functools.reduce(operator.add, scalars)


def gan_logits(logits: SANLogits) -> Tensor:
    """Return the ordinary logit of the same layer: a GAN instead of a SAN.

    It has the same value, and gradients for direction, scale, bias and features.

    Examples:
        >>> import san, torch
        >>> layer = san.SANLinear(8, 1, bias=False)
        >>> san.gan_logits(layer(torch.ones(4, 8))).sum().backward()
        >>> sorted(name for name, p in layer.named_parameters() if p.grad is not None)
        ['scale', 'weight']
    """
    return logits.fun + (logits.dir - logits.dir.detach())


def discriminator_terms(logits: Logits, real: bool, loss: str = "hinge") -> SANLogits:
    """Compute the discriminator's terms for a batch of only real or only generated samples.

    Args:
        logits: logits of the batch.
        real: the samples are real.
        loss: name in DISCRIMINATOR_LOSSES.

    Returns:
        SANLogits(fun term, dir term), to be minimised. Their sum, without further weights, is the SAN
        objective. They have the logits' shape; for a list, tuple or dict of heads they are scalars: the sum
        over heads of each head's mean.

    Raises:
        ValueError: the loss is unknown, or needs pairs of samples (`discriminator_pair_terms`).
    """
    chosen = discriminator_loss(loss)
    direction = chosen.direction
    on_fun, on_dir = (chosen.real, direction.real) if real else (chosen.fake, direction.fake)
    if on_fun is None:
        what = "compares pairs of real and generated samples: use discriminator_pair_terms"
        raise ValueError(f"the discriminator loss '{loss}' {what}")
    return _summed([SANLogits(on_fun(head.fun), on_dir(head.dir)) for (head,) in _san_heads(logits)], logits)


def discriminator_pair_terms(real: Logits, fake: Logits, loss: str = "relativistic") -> SANLogits:
    """Compute the discriminator's terms of pairs (i-th real, i-th generated sample), for any loss.

    Args:
        real: logits of real samples.
        fake: logits of generated samples.
        loss: name in DISCRIMINATOR_LOSSES.

    Returns:
        SANLogits(fun term, dir term), as `discriminator_terms`.

    Raises:
        ValueError: the loss is unknown, or the heads do not match.
    """
    on_pair, direction = discriminator_loss(loss).pair, discriminator_loss(loss).direction
    heads = _san_heads(real, fake)
    if on_pair is None:
        sides = [(discriminator_terms(r, True, loss), discriminator_terms(f, False, loss)) for r, f in heads]
        return _summed([SANLogits(a.fun + b.fun, a.dir + b.dir) for a, b in sides], real)
    terms = [
        SANLogits(on_pair(_differences(r.fun, f.fun)), direction.real(r.dir) + direction.fake(f.dir))
        for r, f in heads
    ]
    return _summed(terms, real)


def discriminator_objective(real: Logits | Tensor, fake: Logits | Tensor, loss: str = "hinge") -> Tensor:
    """Compute the discriminator's loss as a scalar mean.

    For SANLogits it is the SAN form, for plain logits the ordinary GAN loss.

    Args:
        real: logits of real samples. For lists, tuples or dicts of several heads (also nested), the result is
            the sum over heads.
        fake: logits of generated samples, of the same kind; of the same shape if the loss is paired.
        loss: name in DISCRIMINATOR_LOSSES.

    Raises:
        ValueError: the loss is unknown, the logits have different kinds, or the heads do not match.

    Examples:
        >>> import san, torch
        >>> real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
        >>> san.discriminator_objective(real, fake, "ls01")  # (2 - 1)^2 + (-1)^2
        tensor(2.)
        >>> heads = [san.SANLogits(real, real), san.SANLogits(real, real)]  # adds -dir of real samples
        >>> san.discriminator_objective(heads, heads, "wasserstein")
        tensor(0.)
    """
    discriminator_loss(loss)
    heads = list(_heads(real, fake))
    one = _san_objective if _kinds(heads) else _gan_objective
    return _sum([one(r, f, loss) for r, f in heads])


def _san_objective(real: SANLogits, fake: SANLogits, loss: str) -> Tensor:
    if is_paired(loss):
        return _total(discriminator_pair_terms(real, fake, loss))
    return _total(discriminator_terms(real, True, loss)) + _total(discriminator_terms(fake, False, loss))


def _gan_objective(real: Tensor, fake: Tensor, loss: str) -> Tensor:
    chosen = discriminator_loss(loss)
    if chosen.pair is not None:
        return chosen.pair(_differences(real, fake)).mean()
    assert chosen.real is not None and chosen.fake is not None
    return chosen.real(real).mean() + chosen.fake(fake).mean()


def _total(terms: SANLogits) -> Tensor:
    return terms.fun.mean() + terms.dir.mean()


def generator_objective(objective: Objective = "logit") -> Elementwise:
    """Return the increasing h of the generator's loss -E[h(fun)] (MonoFlow).

    Args:
        objective: a name in GENERATOR_OBJECTIVES; `vanilla(C)` with a number C >= 0; an expression in d such
            as "d + 0.1*exp(d)" (numbers, + - * / **, and the functions in EXPRESSION_FUNCTIONS); or an
            elementwise callable. The last two are checked by `check_increasing`. A name in FALLING_OBJECTIVES
            is also accepted and not checked: it does not increase everywhere, and MonoFlow's guarantee does
            not hold.

    Raises:
        ValueError: the objective is unknown, or h does not increase. One line, with the logit.

    Examples:
        >>> import san, torch
        >>> san.generator_objective("d + d**3")(torch.tensor(2.0))
        tensor(10.)
        >>> san.generator_objective("-d")
        Traceback (most recent call last):
        ...
        ValueError: '-d': h must increase, but it decreases at d = -15 (h' = -1)
    """
    if not isinstance(objective, str):
        check_increasing(objective, getattr(objective, "__name__", "the given h"))
        return objective
    return _named_objective(objective)


@functools.lru_cache(maxsize=64)  # every training step requests the same one
def _named_objective(objective: str) -> Elementwise:
    for table in (GENERATOR_OBJECTIVES, FALLING_OBJECTIVES):
        if objective in table:
            return table[objective]
    shifted = re.fullmatch(r"vanilla\(\s*(?:C\s*=\s*)?([-+]?[0-9.eE+-]+)\s*\)", objective)
    if shifted:
        try:
            return _vanilla(float(shifted.group(1)))
        except ValueError as err:
            raise ValueError(f"generator objective '{objective}': {err}") from None
    if not re.search(r"\bd\b", objective):
        known = ", ".join(sorted({*GENERATOR_OBJECTIVES, *FALLING_OBJECTIVES}))
        choice = f"choose one of {known}, vanilla(C), or write h as an expression in d"
        raise ValueError(f"unknown generator objective '{objective}': {choice}")
    h = expression(objective)
    check_increasing(h, f"'{objective}'")
    return h


def generator_terms(
    fun: Logits | Tensor,
    objective: Objective = "logit",
    fun_real: Logits | Tensor | None = None,
) -> Tensor:
    """Compute -h(fun), which the generator minimises.

    Args:
        fun: logits of generated samples; of SANLogits, `fun` is used.
        objective: h, as for `generator_objective`.
        fun_real: logits of real samples, one for each generated one. The result is then -h(fun - fun_real),
            the generator's part of a relativistic loss (R3GAN: h = ns).

    Returns:
        A tensor of the logits' shape. For a list, tuple or dict of several heads (also nested) it is a
        scalar: the sum over heads of each head's mean.

    Raises:
        ValueError: as `generator_objective`, or the heads do not match.
    """
    h = generator_objective(objective)
    heads = list(_heads(fun) if fun_real is None else _heads(fun, fun_real))
    _kinds([head[:1] for head in heads])
    terms = []
    for head in heads:
        fake, *real = (x.fun if isinstance(x, SANLogits) else x for x in head)
        terms.append(-h(_differences(fake, real[0]) if real else fake))
    return terms[0] if _is_head(fun) else _sum([t.mean() for t in terms])


def vector_field(objective: Objective, d: Tensor) -> Tensor:
    """Compute h'(d): how strongly a generated sample with logit d is moved along grad d (MonoFlow).

    Args:
        objective: h, as for `generator_objective`.
        d: logits.

    Returns:
        A tensor of d's shape.

    Raises:
        ValueError: as `generator_objective`.

    Examples:
        >>> import san, torch
        >>> san.vector_field("ns", torch.tensor([-20.0, 0.0, 20.0])).round(decimals=3)
        tensor([1.0000, 0.5000, 0.0000])
    """
    return _slope(generator_objective(objective), d)


def _slope(h: Elementwise, d: Tensor) -> Tensor:
    with torch.enable_grad():
        d = d.detach().requires_grad_()
        value = h(d)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return torch.full_like(d, torch.nan)
        (slope,) = torch.autograd.grad(value.sum(), d, allow_unused=True)
    return torch.full_like(d, torch.nan) if slope is None else slope


def check_increasing(
    h: Elementwise, name: str = "h", low: float = CHECKED_RANGE[0], high: float = CHECKED_RANGE[1]
) -> None:
    """Check that h strictly increases between two logits, at 3001 points in float64.

    Args:
        h: the function.
        name: name of h in the error message.
        low: smallest logit.
        high: largest logit.

    Raises:
        ValueError: one line with the problem and the logit: h is not an elementwise function of tensors, not
            differentiable, not finite, decreasing or flat.
    """
    d = torch.linspace(low, high, CHECKED_POINTS, dtype=torch.float64)
    value = h(d)
    if (
        not isinstance(value, Tensor)
        or value.shape != d.shape
        or not torch.allclose(h(d[100:200]), value[100:200], equal_nan=True)
    ):
        raise ValueError(f"{name}: h must be elementwise, from a tensor of logits to a tensor of its shape")
    slope = _slope(h, d)
    rise = value.detach().diff()
    unusable = ~(torch.isfinite(value) & torch.isfinite(slope))
    if bool(unusable.any()):
        raise ValueError(f"{name}: h or its derivative is not finite at d = {float(d[unusable][0]):.4g}")
    wrong = torch.cat([rise <= 0, rise.new_zeros(1, dtype=torch.bool)]) | (slope < 0)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        verdict = "is flat" if first < len(rise) and float(rise[first]) == 0 else "decreases"
        raise ValueError(
            f"{name}: h must increase, but it {verdict} at d = {float(d[first]):.4g} (h' = "
            f"{float(slope[first]):.3g})"
        )


EXPRESSION_FUNCTIONS: dict[str, Elementwise] = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "arctan": torch.atan,
    "arcsinh": torch.asinh,
    "relu": F.relu,
}
_OPERATORS: dict[type, Callable[..., Tensor]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def expression(text: str) -> Elementwise:
    """Parse an elementwise function of d, such as "d + 0.1*exp(d)". It is never executed as Python code.

    Raises:
        ValueError: the text contains something other than numbers, d, + - * / **, parentheses and the names
            in EXPRESSION_FUNCTIONS. One line.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"expression of {len(text)} characters: at most {LONGEST_EXPRESSION} are allowed")
    try:
        return _compile(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"'{text}' is not an expression in d") from None


def _compile(node: ast.AST, text: str) -> Elementwise:
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)
    ):
        number = float(node.value)
        return lambda d: torch.full_like(d, number)
    if isinstance(node, ast.Name) and node.id == "d":
        return lambda d: d
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(node, text)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        combine, left, right = (
            _OPERATORS[type(node.op)],
            _compile(node.left, text),
            _compile(node.right, text),
        )
        return lambda d: combine(left(d), right(d))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        sign, operand = _OPERATORS[type(node.op)], _compile(node.operand, text)
        return lambda d: sign(operand(d))
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in EXPRESSION_FUNCTIONS
    ):
        if len(node.args) != 1 or node.keywords:
            raise ValueError(f"'{text}': {node.func.id} takes one argument")
        function, argument = EXPRESSION_FUNCTIONS[node.func.id], _compile(node.args[0], text)
        return lambda d: function(argument(d))
    known = ", ".join(EXPRESSION_FUNCTIONS)
    raise ValueError(
        f"'{text}': '{ast.unparse(node)}' is not supported: use d, numbers, + - * / ** and {known}"
    )


def _power(node: ast.BinOp, text: str) -> Elementwise:
    exponent = node.right
    if not (
        isinstance(exponent, ast.Constant)
        and isinstance(exponent.value, (int, float))
        and 0 <= exponent.value <= LARGEST_POWER
    ):
        raise ValueError(f"'{text}': the exponent of ** must be a number between 0 and {LARGEST_POWER:g}")
    base, power = _compile(node.left, text), float(exponent.value)
    return lambda d: base(d) ** power
