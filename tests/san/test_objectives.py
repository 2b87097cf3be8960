# SPDX-License-Identifier: Apache-2.0
"""Objectives: values, signs and shapes; training a SAN on a toy problem finds the direction it should."""

import pytest
import torch

import san

LOGITS = torch.tensor([[-2.0, -1.0, 0.0], [0.5, 1.0, 3.0]])


def test_hinge():
    real, fake = san.hinge_d(LOGITS, LOGITS)
    torch.testing.assert_close(real, torch.tensor([[3.0, 2.0, 1.0], [0.5, 0.0, 0.0]]))
    torch.testing.assert_close(fake, torch.tensor([[0.0, 0.0, 1.0], [1.5, 2.0, 4.0]]))
    assert torch.equal(san.hinge_real(LOGITS), real) and torch.equal(san.hinge_fake(LOGITS), fake)


def test_wasserstein_direction():
    real, fake = san.wasserstein_dir(LOGITS, 2 * LOGITS)
    assert torch.equal(real, -LOGITS) and torch.equal(fake, 2 * LOGITS)


def test_terms_pair_each_output_with_its_loss():
    logits = san.SANLogits(fun=LOGITS, dir=10 * LOGITS)
    real, fake = san.discriminator_terms(logits, real=True), san.discriminator_terms(logits, real=False)
    assert torch.equal(real.fun, san.hinge_real(LOGITS)) and torch.equal(real.dir, -10 * LOGITS)
    assert torch.equal(fake.fun, san.hinge_fake(LOGITS)) and torch.equal(fake.dir, 10 * LOGITS)


def test_generator_logit():
    assert torch.equal(san.generator_terms(LOGITS), -LOGITS)
    assert torch.equal(san.generator_objective("logit")(LOGITS), LOGITS)


def test_generator_objectives_increase():
    x = torch.linspace(-5, 5, 101)
    for name in san.GENERATOR_OBJECTIVES:
        assert (san.generator_objective(name)(x).diff() > 0).all(), name


@pytest.mark.parametrize(("call", "known"), [(lambda: san.discriminator_loss("hingee"), "hinge"), (lambda: san.generator_objective("ns?"), "logit")])
def test_unknown_names_are_refused_with_the_known_ones(call, known):
    with pytest.raises(ValueError, match=known) as error:
        call()
    assert "\n" not in str(error.value)


def test_direction_loss_turns_the_direction_to_the_difference_of_means():
    """The optimum of the Wasserstein form on the unit sphere is the normalised difference of the feature means (SAN: direction optimality)."""
    generator = torch.Generator().manual_seed(0)
    layer = san.SANLinear(8, 1, bias=False, generator=generator)
    shift = torch.randn(8, generator=generator)
    real, fake = torch.randn(512, 8, generator=generator) + shift, torch.randn(512, 8, generator=generator)
    optimizer = torch.optim.SGD([layer.weight], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        sum(term.mean() for term in san.wasserstein_dir(layer(real).dir, layer(fake).dir)).backward()
        optimizer.step()
        san.normalize_(layer)
    best = torch.nn.functional.normalize(real.mean(0) - fake.mean(0), dim=0)
    assert layer.weight[0] @ best > 0.999
