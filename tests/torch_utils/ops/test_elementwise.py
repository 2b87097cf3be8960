# SPDX-License-Identifier: Apache-2.0
"""bias_act, fma and grid_sample: derivatives, dtypes, mistakes."""

import pytest
import torch

from torch_utils.ops import bias_act, fma, grid_sample_gradfix
from torch_utils.ops.backend import activations

from .references import normal


@pytest.mark.parametrize("act", activations.activation_funcs)
def test_bias_act_derivatives(act: str) -> None:
    x, b = normal(3, 4, 2).requires_grad_(), normal(4, seed=1).requires_grad_()
    for clamp in (None, 0.7):
        assert torch.autograd.gradcheck(
            lambda x, b, clamp=clamp: bias_act.bias_act(x, b, act=act, clamp=clamp), (x, b)
        )
        assert torch.autograd.gradgradcheck(
            lambda x, b, clamp=clamp: bias_act.bias_act(x, b, act=act, clamp=clamp), (x, b)
        )


def test_bias_act_keeps_dtype_layout_and_empty_batches() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = bias_act.bias_act(x, torch.ones(3), act="lrelu", clamp=1.0)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    assert bias_act.bias_act(torch.zeros(0, 3), torch.ones(3), act="relu").shape == (0, 3)


def test_bias_act_runs_along_the_last_axis_too() -> None:
    torch.testing.assert_close(
        bias_act.bias_act(torch.zeros(2, 3, 4), torch.arange(4.0), dim=-1)[1, 2], torch.arange(4.0)
    )


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"act": "gelu"}, "act='gelu' is not a known activation function: choose one of linear, relu"),
        ({"impl": "xla"}, "impl='xla' is not a known implementation"),
        ({"clamp": -1.0}, "clamp=-1.0 must not be negative"),
        ({"b": torch.ones(5)}, r"bias must have shape \(3,\)"),
        ({"b": torch.ones(3), "dim": 2}, "dim=2 is not an axis"),
    ],
)
def test_bias_act_mistakes(arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bias_act.bias_act(torch.zeros(2, 3), **arguments)


def test_fma_broadcasts_and_differentiates() -> None:
    a, b, c = (
        normal(2, 3, 1).requires_grad_(),
        normal(3, 4, seed=1).requires_grad_(),
        normal(1, seed=2).requires_grad_(),
    )
    torch.testing.assert_close(fma.fma(a, b, c), a * b + c)
    assert torch.autograd.gradcheck(fma.fma, (a, b, c)) and torch.autograd.gradgradcheck(fma.fma, (a, b, c))


def test_grid_sample_second_derivative_in_the_image() -> None:
    grid = (normal(2, 3, 4, 2, seed=1) * 0.6).clamp(-1.2, 1.2)
    x = normal(2, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: grid_sample_gradfix.grid_sample(x, grid), (x,))
    assert torch.autograd.gradgradcheck(lambda x: grid_sample_gradfix.grid_sample(x, grid), (x,))


def test_grid_sample_switch_and_mistakes(monkeypatch) -> None:
    x, grid = normal(1, 1, 4, 4), normal(1, 2, 2, 2, seed=1) * 0.5
    wanted = grid_sample_gradfix.grid_sample(x, grid)
    monkeypatch.setattr(grid_sample_gradfix, "enabled", False)
    torch.testing.assert_close(grid_sample_gradfix.grid_sample(x, grid), wanted)
    with pytest.raises(ValueError, match=r"grid_sample needs input \[N, C, H, W\]"):
        grid_sample_gradfix.grid_sample(x, grid[..., :1])
