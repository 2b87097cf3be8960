# SPDX-License-Identifier: Apache-2.0
"""Diagnostics against cases whose answers are known."""

import math

import pytest
import torch
from torch import nn

import san
from san import diagnostics
from san.convert import ConvertedLayer


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_direction_optimality_is_a_cosine():
    delta = seeded(1, 6)
    other = seeded(1, 6, seed=1)
    assert float(diagnostics.direction_optimality(3 * delta, delta)) == pytest.approx(1)
    assert float(diagnostics.direction_optimality(-delta, delta)) == pytest.approx(-1)
    cosine = torch.nn.functional.cosine_similarity(delta, other)
    assert float(diagnostics.direction_optimality(other, delta)) == pytest.approx(float(cosine), abs=1e-6)


def test_direction_optimality_of_several_heads_is_the_share_of_the_attainable():
    delta, scale = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([2.0, 1.0])
    direction = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(diagnostics.direction_optimality(direction, delta, scale)) == pytest.approx(2 / 5)


def test_separability():
    x = seeded(400)
    assert float(diagnostics.separability(x + 1, x)) == pytest.approx(1, abs=1e-6)
    assert float(diagnostics.separability(x, x + 1)) == pytest.approx(-1, abs=1e-6)
    assert abs(float(diagnostics.separability(3 * x, x))) < 0.2  # wider, not higher: no dominance
    assert float(diagnostics.separability(x[:300] + 5, x)) == pytest.approx(1, abs=1e-6)


def test_injectivity_and_effective_dimension():
    x = seeded(50, 8)
    assert float(diagnostics.injectivity(x)) > 0.1
    assert float(diagnostics.injectivity(torch.cat([x, x[:1]]))) == 0
    assert math.isnan(float(diagnostics.injectivity(x[:1])))
    line = seeded(50, 1) * seeded(1, 8, seed=1)
    assert float(diagnostics.effective_dimension(line)) == pytest.approx(1, abs=1e-4)
    assert 5 < float(diagnostics.effective_dimension(x)) <= 8


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: san.SANLinear(6, 3), (5, 6)),
        (lambda: san.SANConv1d(4, 2, 3, padding=1), (5, 4, 7)),
        (lambda: san.SANConv2d(4, 2, 3, stride=2), (5, 4, 7, 7)),
        (lambda: san.SANConv3d(2, 1, 2), (5, 2, 3, 3, 3)),
        (lambda: san.convert(nn.Conv2d(4, 2, 3, groups=2)), (5, 4, 6, 6)),
    ],
)
def test_mean_features_is_what_the_direction_multiplies(layer, shape):
    """<omega, mean features> = mean logit over scale, for every output."""
    layer, x = layer(), seeded(*shape)
    mean = diagnostics.mean_features(layer, layer.features(x))
    assert mean.shape == layer.weight.shape
    bias = layer.bias if isinstance(layer, ConvertedLayer) else torch.zeros(len(layer.weight))
    logits = layer(x).fun
    channel = logits.ndim - 1 if len(shape) == 2 else 1
    expected = (logits.movedim(channel, 0).flatten(1).mean(1) - bias) / layer.scale
    torch.testing.assert_close((mean * layer.weight).flatten(1).sum(1), expected, rtol=1e-4, atol=1e-5)


def test_recorder_finds_the_optimal_direction():
    real, fake = seeded(256, 4) + 1, seeded(256, 4, seed=1)
    D = nn.Sequential(nn.Identity(), san.SANLinear(4, 1))
    with torch.no_grad():
        D[1].weight.copy_((real[:64].mean(0) - fake[:64].mean(0))[None])
    with diagnostics.Recorder(D) as recorder:
        with recorder.side("real"):
            D(real[:40]), D(real[40:])
        with recorder.side("fake"):
            D(fake)
        D(real * 100)  # outside of a side: not read
    report = recorder.report()["1"]
    assert report.direction == pytest.approx(1, abs=1e-5)
    assert report.separability > 0.9
    assert not D[1]._forward_hooks


def test_recorder_reads_class_embeddings():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.embed = nn.Conv2d(2, 3, 1), san.SANEmbedding(2, 3)

        def forward(self, x, c):
            return torch.einsum("nchw,nc->nhw", self.body(x), self.embed(c).fun)

    head, c = Head(), torch.arange(32) % 2
    real, fake = seeded(32, 2, 2, 2), seeded(32, 2, 2, 2, seed=1)
    with torch.no_grad():
        h = [head.body(x).mean((2, 3)) for x in (real, fake)]
        for k in (0, 1):
            head.embed.weight[k] = h[0][c == k].mean(0) - h[1][c == k].mean(0)
    with diagnostics.Recorder(head, {"embed": "body"}) as recorder:
        for kind, x in (("real", real), ("fake", fake)):
            with recorder.side(kind):
                head(x, c)
    apart = recorder.report()["embed"]
    assert apart.direction == pytest.approx(1, abs=1e-5)
    with diagnostics.Recorder(head, {"embed": "body"}) as recorder, recorder.side("fake", "real"):
        head(torch.cat([fake, real]), torch.cat([c, c]))
    assert recorder.report()["embed"] == pytest.approx(apart, rel=1e-4)


def test_recorder_reads_converted_layers():
    D = san.convert(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)))
    with diagnostics.Recorder(D) as recorder:
        for kind in ("real", "fake"):
            with recorder.side(kind):
                D(seeded(16, 3, seed=len(kind) + (kind == "fake")))
    assert -1 <= recorder.report()["2"].direction <= 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: diagnostics.Recorder(nn.Linear(2, 1)), "no SAN layer"),
        (
            lambda: diagnostics.Recorder(nn.Sequential(san.SANLinear(2, 1)), {"x": "0"}),
            "has no module 'x'",
        ),
        (
            lambda: diagnostics.mean_features(san.SANEmbedding(2, 2), torch.zeros(1, 2)),
            "does not map features",
        ),
    ],
)
def test_mistakes(call, says):
    with pytest.raises(ValueError, match=says):
        call()
