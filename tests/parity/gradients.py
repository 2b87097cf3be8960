# SPDX-License-Identifier: Apache-2.0
"""How the parity tests compare gradients: no result depends on the side of a kink.

Leaky ReLU, ReLU6 and clamps have kinks. A value within rounding error of a kink takes the slope of either
side, depending on processor, thread count and kernel, and every gradient below it changes with it. A relative
error e of the activations flips about a share e of them, which moves gradients by about sqrt(e) in L2: 1e-3
in float32, whatever the network; sums that nearly cancel move more. Where nothing flips, float32 gradients
agree to 1e-5. There are three criteria:

- `exact`: element by element, for gradients computed in float64. No value lies within rounding error of a
  kink, so the result is the same on every processor. What remains is the rounding of the published numbers.
- `mostly_exact`: element by element, float32 against float64, draw after draw, until enough draws have met no
  kink. A mistake shows in every draw, a kink in some.
- `alike`: in relative L2, float32 against published numbers, where every draw meets kinks. This is coarse:
  what it guards must also be guarded by one of the others or by finite differences.
"""

from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

Gradients = Mapping[str, torch.Tensor | np.ndarray]


class Deviation(NamedTuple):
    """Largest difference per largest expected magnitude; L2 of the difference per L2 of what was expected."""

    largest: float
    l2: float


def deviation(found: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> Deviation:
    """How far two tensors of one shape are apart; a tensor that is not finite is infinitely far."""
    a, b = (torch.as_tensor(t).detach().double() for t in (found, expected))
    assert a.shape == b.shape, f"shape {list(a.shape)}, expected {list(b.shape)}"
    if not bool(torch.isfinite(a).all()):
        return Deviation(float("inf"), float("inf"))
    difference = a - b
    largest = float(difference.abs().max()) / max(float(b.abs().max()), 1e-12)
    return Deviation(largest, float(difference.norm()) / max(float(b.norm()), 1e-12))


def deviations(found: Gradients, expected: Gradients) -> dict[str, Deviation]:
    """Of every tensor of `expected`. Fails where one of them is missing."""
    missing = [name for name in expected if name not in found]
    assert expected and not missing, f"no gradient of {', '.join(missing) or 'anything'}"
    return {name: deviation(found[name], wanted) for name, wanted in expected.items()}


def _largest(found: dict[str, Deviation]) -> tuple[str, float]:
    name = max(found, key=lambda key: found[key].largest)
    return name, found[name].largest


def exact(found: Gradients, expected: Gradients, rel: float = 1e-5) -> None:
    """Every element of every float64 gradient within `rel` of the largest magnitude of its tensor."""
    apart = deviations(found, expected)
    wrong = [name for name in expected if torch.as_tensor(found[name]).dtype != torch.float64]
    assert not wrong, f"not float64: {', '.join(wrong)}"
    name, error = _largest(apart)
    assert error <= rel, f"{name}: error {error:.3g} of its largest element, allowed {rel:g}"


def mostly_exact(
    draw: Callable[[int], tuple[Gradients, Gradients]],
    rel: float = 5e-5,
    each: float = 2e-2,
    enough: int = 2,
    most: int = 16,
) -> None:
    """Float32 gradients beside float64 ones, in the first `enough` draws that meet no kink.

    Args:
        draw: number of a draw -> (found, expected), small enough that most draws meet no kink.
        rel: bound of every element, per largest magnitude of its tensor, where no kink is met.
        each: bound of every tensor's relative L2 in any draw.
        enough, most: draws that must agree, out of how many. Of a generator's draws one in eight meets a
        kink.
    """
    agreed, errors = 0, []
    for i in range(most):
        apart = deviations(*draw(i))
        for name, error in apart.items():
            assert error.l2 <= each, f"{name}, draw {i}: relative L2 {error.l2:.3g}, allowed {each:g}"
        errors.append(_largest(apart))
        agreed += errors[-1][1] <= rel
        if agreed == enough:
            return
    name, error = min(errors, key=lambda pair: pair[1])
    raise AssertionError(
        f"only {agreed} of {most} draws agree to {rel:g}; in the best, {name} is {error:.3g} apart"
    )


def alike(found: Gradients, expected: Gradients, each: float = 5e-2, typical: float = 1e-2) -> None:
    """Relative L2 within `each` in every tensor and within `typical` in half of them."""
    apart = {name: error.l2 for name, error in deviations(found, expected).items()}
    worst = max(apart, key=lambda name: apart[name])
    assert apart[worst] <= each, f"{worst}: relative L2 {apart[worst]:.3g}, allowed {each:g}"
    middle = median(apart.values())
    assert middle <= typical, (
        f"relative L2 {middle:.3g} in the median of {len(apart)} tensors, allowed {typical:g}"
    )
