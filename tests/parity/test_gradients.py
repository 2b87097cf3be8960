# SPDX-License-Identifier: Apache-2.0
"""The criteria of `gradients`: a value on the other side of a kink passes, a mistake in one tensor does
not.
"""

from collections.abc import Callable

import pytest
import torch

from tests.parity import gradients
from tests.parity.gradients import Gradients

pytestmark = pytest.mark.once

MISTAKES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "1% too large": lambda g: g * 1.01,
    "a gain forgotten": lambda g: g / 2**0.5,
    "the wrong sign": lambda g: -g,
    "a term dropped": lambda g: torch.zeros_like(g),
    "one element wrong": lambda g: g.clone().index_fill_(0, torch.tensor([0]), 2.0),
    "not finite": lambda g: g * float("nan"),
}


def network(x: torch.Tensor, dtype: torch.dtype, kink: float) -> dict[str, torch.Tensor]:
    """Gradients of two layers; one value in between is `kink` off the kink of a leaky ReLU."""
    draws = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 200, generator=draws).to(dtype).requires_grad_() for _ in range(2))
    x = x.detach().to(dtype).requires_grad_()
    h = x @ first
    chosen = torch.zeros_like(h, dtype=torch.bool)
    chosen[0, 0] = True
    h = torch.where(chosen, h - h.detach() + kink, h)
    (torch.nn.functional.leaky_relu(h, 0.2) @ second).square().sum().backward()
    return {"x": x.grad, "first": first.grad, "second": second.grad}


def pair(i: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Float32 and float64 gradients of a draw; in every third the sides of the kink differ."""
    x = torch.randn(40, 200, generator=torch.Generator().manual_seed(i))
    return network(x, torch.float32, -1e-7 if i % 3 == 0 else 1e-7), network(x, torch.float64, 1e-7)


def with_mistake(found: Gradients, name: str, mistake: str) -> dict[str, torch.Tensor]:
    return {**found, name: MISTAKES[mistake](found[name])}


def test_a_kink_passes():
    found, expected = pair(0)
    assert max(error.largest for error in gradients.deviations(found, expected).values()) > 1e-3
    gradients.mostly_exact(pair)
    gradients.alike(found, expected)
    with pytest.raises(AssertionError, match="error"):
        gradients.exact({name: grad.double() for name, grad in found.items()}, expected)


@pytest.mark.parametrize("name", ["x", "first", "second"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_one_tensor_does_not(name, mistake):
    _, right = pair(1)
    gradients.exact(right, right)
    with pytest.raises(AssertionError, match=name):
        gradients.exact(with_mistake(right, name, mistake), right)

    def draw(i: int) -> tuple[Gradients, Gradients]:
        found, expected = pair(i)
        return with_mistake(found, name, mistake), expected

    with pytest.raises(AssertionError, match=name):
        gradients.mostly_exact(draw)


@pytest.mark.parametrize("mistake", ["a gain forgotten", "the wrong sign", "a term dropped", "not finite"])
def test_a_gross_mistake_is_not_alike(mistake):
    found, expected = pair(1)
    with pytest.raises(AssertionError, match="first"):
        gradients.alike(with_mistake(found, "first", mistake), expected)
    with pytest.raises(AssertionError, match="median"):
        gradients.alike({name: grad * 1.02 for name, grad in found.items()}, expected)


def test_nothing_may_be_missing_or_narrow():
    found, expected = pair(1)
    for criterion in (gradients.exact, gradients.alike):
        with pytest.raises((AssertionError, KeyError), match="second"):
            criterion({name: grad for name, grad in expected.items() if name != "second"}, expected)
        with pytest.raises(AssertionError, match="anything"):
            criterion({}, {})
    with pytest.raises(AssertionError, match="not float64: x"):
        gradients.exact(found, expected)
