# SPDX-License-Identifier: Apache-2.0
"""DiffAugment as a function of its draws: per sample, differentiable, within its ranges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.discriminator import augment

NEUTRAL = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0])


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, augment.NUM_DRAWS, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([8, 16, 20, 33]), count=st.integers(1, 6))
def test_a_sample_depends_on_its_own_draws_alone(seed, size, count):
    x, u = images(count, size, seed), draws(count, seed)
    whole = augment.diff_augment(x, u)
    assert whole.shape == x.shape
    for i in range(count):
        torch.testing.assert_close(augment.diff_augment(x[i : i + 1], u[i : i + 1])[0], whole[i])


def test_the_same_draws_give_the_same_images():
    state = torch.get_rng_state()
    assert torch.equal(
        augment.diff_augment(images(3, 16), draws(3)), augment.diff_augment(images(3, 16), draws(3))
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_neutral_draws_only_cut_a_corner():
    x = images(2, 16)
    y = augment.diff_augment(x, NEUTRAL.expand(2, 7))
    expected = x.clone()
    expected[:, :, :2, :2] = 0  # a 3x3 square centred on the first pixel
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("draw", range(7))
def test_every_draw_has_an_effect_on_its_own_axis(draw):
    x = images(1, 32)
    low, high = NEUTRAL.clone(), NEUTRAL.clone()
    low[draw], high[draw] = 0.02, 0.98
    assert not torch.equal(*(augment.diff_augment(x, u[None]) for u in (low, high)))


def test_translation_moves_rows_and_columns_by_the_drawn_shift():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8, 8] = 1
    u = torch.arange(5).add(0.5) / 5  # every interval of the five shifts -2..2
    rows = [augment.translation(x, draw[None], u[2][None]).nonzero()[0].tolist() for draw in u]
    assert rows == [[0, 0, row, 8] for row in (10, 9, 8, 7, 6)]
    columns = [augment.translation(x, u[2][None], draw[None]).nonzero()[0].tolist() for draw in u]
    assert columns == [[0, 0, 8, column] for column in (10, 9, 8, 7, 6)]


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_extreme_draws_stay_in_range(edge):
    y = augment.diff_augment(images(2, 17), torch.full((2, 7), edge))
    assert torch.isfinite(y).all()


def test_gradient_reaches_what_remains_visible():
    x = images(2, 16).double().requires_grad_()
    u = draws(2, 3).double()
    assert torch.autograd.gradcheck(lambda x: augment.diff_augment(x, u), x)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"draws of shape \(2, 7\)"):
        augment.diff_augment(images(2, 16), torch.rand(2, 5))


def test_a_policy_applies_its_operations_with_the_draws_of_the_whole():
    x, u = images(3, 16), draws(3)
    color = augment.diff_augment(x, u, ["color"])
    assert torch.equal(augment.diff_augment(color, u, ["translation", "cutout"]), augment.diff_augment(x, u))
    assert torch.equal(augment.diff_augment(x, u, ["cutout"]), augment.cutout(x, u[:, 5], u[:, 6]))
    assert torch.equal(augment.diff_augment(x, u, []), x)
