# SPDX-License-Identifier: Apache-2.0
"""The laboratory: its measures against cases with known answers, and every command end to end, small."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from lab import direction, mixture, monoflow, report, toy


def test_interval():
    summary = report.interval([1.0, 2.0, 3.0, 4.0])
    assert summary["mean"] == 2.5 and summary["n"] == 4
    assert summary["half_width"] == pytest.approx(3.18245 * summary["std"] / 2, rel=1e-4)  # t quantile of 3 degrees of freedom
    assert report.verdict({"mean": 1.0, "half_width": 0.5}) == "better"
    assert report.verdict({"mean": -1.0, "half_width": 0.5}) == "worse"
    assert report.verdict({"mean": -1.0, "half_width": 1.5}) == "no difference seen"


def test_scores_know_the_mixture_and_a_collapse():
    generator = torch.Generator().manual_seed(0)
    good = toy.mixture((2, 4000), generator)
    collapsed = toy.centres()[:1].expand(1, 4000, 2) + 0.01 * torch.randn(1, 4000, 2, generator=generator)
    reference = toy.mixture((4000,), generator)
    found = toy.scores(torch.cat([good, collapsed]), reference)
    assert found["modes"] == [8, 8, 1]
    assert found["quality"][0] > 0.99
    assert found["sliced_wasserstein"][0] < 0.2 < 1 < found["sliced_wasserstein"][2]


def test_sliced_wasserstein_of_a_shift():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shifted = x + torch.tensor([3.0, 4.0])
    assert float(toy.sliced_wasserstein(x, shifted)) == pytest.approx(5 / math.sqrt(2), rel=1e-3)  # mean of |<shift, u>|^2 over directions u


@pytest.mark.parametrize("is_san", [False, True])
def test_seeds_share_nothing(is_san):
    """The gradient of a seed is that of its own loss: with other seeds beside it, it takes the same step."""
    arm = toy.Arm("x", "hinge", "logit", is_san)
    pair, alone = toy.Toy(arm, toy.Plan(seeds=2, batch=16)), toy.Toy(arm, toy.Plan(seeds=1, batch=16))
    real, noise = torch.randn(2, 16, 2), torch.randn(2, 16, toy.Z)
    gradients = []
    for toys, part in ((pair, slice(0, 2)), (alone, slice(0, 1))):
        loss = toy.san.discriminator_objective(toys.D(real[part]), toys.D(toys.G(noise[part]).detach()), "hinge") * toys.plan.seeds
        gradients.append(torch.autograd.grad(loss, list(toys.D.params.values()), allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-6)


def test_gan_and_san_start_from_the_same_function():
    x = torch.randn(2, 5, 2)
    gan, own = (toy.Toy(toy.Arm("x", "hinge", "logit", is_san), toy.Plan(seeds=2)) for is_san in (False, True))
    torch.testing.assert_close(gan.D(x), own.D(x).fun)


def test_particles_follow_the_field():
    """The logit's gradient against finite differences, and a step that lowers the divergence."""
    x = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    _, gradient = monoflow.logit(x)
    step = 1e-3
    moved = x.clone()
    moved[0, 3, 0] += step
    up = monoflow.log_p(moved) - monoflow.log_q(moved, x)
    moved[0, 3, 0] -= 2 * step
    down = monoflow.log_p(moved) - monoflow.log_q(moved, x)
    assert float((up - down)[0, 3] / (2 * step)) == pytest.approx(float(gradient[0, 3, 0]), rel=1e-2)


def test_vanilla_stands_still_where_it_vanishes():
    still, _, _ = monoflow.flow("vanilla", 2, 20, 20)
    moving, _, _ = monoflow.flow("logit", 2, 20, 20)
    assert float((still[-1] - still[0]).norm(dim=-1).mean()) < 0.2 * float((moving[-1] - moving[0]).norm(dim=-1).mean())


def test_commands(tmp_path):
    """Each writes its numbers and its picture; mixture.json is taken up again."""
    small = [f"--out={tmp_path}", "--seeds=2", "--steps=10"]
    for command, name in ((mixture, "mixture"), (direction, "direction"), (monoflow, "monoflow")):
        result = CliRunner().invoke(command.main, small, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / "monoflow.gif").stat().st_size > 1000
    assert "s of CPU" not in CliRunner().invoke(mixture.main, small, catch_exceptions=False).output
    result = CliRunner().invoke(mixture.main, ["--seeds=1"])
    assert result.exit_code != 0 and "--seeds=1" in result.output
