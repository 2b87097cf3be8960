# SPDX-License-Identifier: Apache-2.0
"""SAN beside what discriminators are trained with: gradient penalties, mixed precision, moving averages."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import san

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1))


def batch(seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) + shift


def r1(D, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Mescheder et al., ICML 2018: the squared gradient at real samples."""
    x = real.clone().requires_grad_()
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return grad.square().sum(1).mean()


def gp(D, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Gulrajani et al., NeurIPS 2017: gradients of norm 1 between real and generated samples."""
    x = torch.lerp(real, fake, torch.linspace(0, 1, len(real))[:, None]).requires_grad_()
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return (grad.norm(dim=1) - 1).square().mean()


@pytest.mark.parametrize("penalty", [r1, gp])
def test_gradient_penalties_are_those_of_the_original(penalty):
    plain, D = make(), san.convert(make())
    real, fake = batch(0, 1), batch(1)
    expected, found = penalty(plain, real, fake), penalty(lambda x: D(x).fun, real, fake)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        torch.testing.assert_close(D.get_parameter(name).grad, plain.get_parameter(name).grad)
    last = D[4]
    assert last.weight.grad is None, "the penalty does not train the direction"
    along = (plain[4].weight.grad * F.normalize(plain[4].weight)).sum().detach()  # the weight's length
    torch.testing.assert_close(last.scale.grad.squeeze(), along)


@pytest.mark.parametrize("penalty", [r1, gp])
def test_gradient_penalties_of_sona_heads(penalty):
    torch.manual_seed(0)
    body, head = make()[:4], san.SONAHead(8, 3)
    logits = lambda x: head(body(x), LABELS)  # noqa: E731
    penalty(lambda x: logits(x).fun + logits(x).align, batch(0, 1), batch(1)).backward()
    assert head.omega.weight.grad is None
    for p in (body[0].weight, head.omega.scale, head.embed.weight):
        assert torch.isfinite(p.grad).all() and p.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp_with_a_grad_scaler(dtype):
    """Gradients agree with those in float32, a step of infinite gradients is skipped, norms stay 1."""
    D, reference = san.convert(make()), san.convert(make())
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    real, fake = batch(0, 1), batch(1)
    san.discriminator_objective(reference(real), reference(fake), "bce").backward()
    with torch.autocast("cpu", dtype):
        loss = san.discriminator_objective(D(real), D(fake), "bce")
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for p, q in zip(D.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0.1, atol=0.02)
    before = [p.detach().clone() for p in D.parameters()]
    scaler.update()
    optimizer.zero_grad()
    for factor in (torch.inf, 1.0):
        with torch.autocast("cpu", dtype):
            loss = san.discriminator_objective(D(real), D(fake), "bce") * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        san.normalize_(D)
        optimizer.zero_grad()
        torch.testing.assert_close(D[4].weight.detach().norm(), torch.tensor(1.0))
        moved = any(not torch.allclose(p, q) for p, q in zip(D.parameters(), before, strict=True))
        assert moved == (factor == 1.0)
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("head", ["converted", "sona"])
def test_the_moving_average_of_a_discriminator(head):
    """Means of unit directions are shorter than 1: the output does not depend on it, and they can be
    normalised.
    """
    torch.manual_seed(0)
    D = san.convert(make()) if head == "converted" else san.SONAHead(5, 3)
    call = (lambda m, x: m(x)) if head == "converted" else (lambda m, x: m(x, LABELS))
    average = torch.optim.swa_utils.AveragedModel(
        D, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(D)
    with torch.no_grad():
        for p in D.parameters():
            p.add_(torch.randn_like(p))
    san.normalize_(D)
    average.update_parameters(D)
    directions = [m.weight for m in average.modules() if hasattr(m, "normalize_")]
    assert directions and all((w.flatten(1).norm(dim=1) < 0.999).all() for w in directions)
    x = batch(0)
    before = call(average, x).fun.detach().clone()
    san.normalize_(average)
    assert all(torch.allclose(w.flatten(1).norm(dim=1), torch.ones(len(w))) for w in directions)
    torch.testing.assert_close(call(average, x).fun, before)
    assert not torch.allclose(call(D, x).fun, before)
