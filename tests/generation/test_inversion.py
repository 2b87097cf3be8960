# SPDX-License-Identifier: Apache-2.0
"""Projection: the schedule, the start, and that images of a network come back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from generation import Network, inversion
from tests.support import TinyDetector


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


@pytest.fixture(scope="module")
def target(network) -> np.ndarray:
    return network.generate(5, 1)[0]


def distance(target: np.ndarray) -> inversion.FeatureDistance:
    return inversion.FeatureDistance(TinyDetector(), target)


def test_the_learning_rate_rises_and_falls_as_published():
    rates = [inversion.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == 0 and rates[25] == pytest.approx(0.05) and rates[50] == pytest.approx(0.1)
    assert all(rate == pytest.approx(0.1) for rate in rates[50:751])
    assert rates[875] == pytest.approx(0.05) and rates[-1] < 1e-5


def test_the_start_is_the_mean_of_mapped_latents(network):
    z = torch.from_numpy(np.random.RandomState(123).randn(10_000, network.G.z_dim).astype(np.float32))
    with torch.no_grad():
        expected = network.G.mapping(z, torch.full([10_000], 2))[:, 0].mean(dim=0)
    found = inversion.mean_style(network, np.array([0, 0, 1.0]))
    assert found.shape == (1, 1, network.G.w_dim)
    torch.testing.assert_close(found[0, 0], expected, atol=1e-5, rtol=1e-4)
    mixed = inversion.mean_style(network, np.array([0.5, 0, 0.5]), 100)
    assert not torch.allclose(mixed, found, atol=0.1)


def test_an_image_of_the_network_comes_back(network, target):
    start = inversion.mean_style(network, np.eye(3)[1], 1000)
    seen = []
    ws = inversion.project(
        network, distance(target), start, 40, done=lambda projection: seen.append(projection.value)
    )
    before = network.render(start.repeat(1, network.G.num_ws, 1))[0]
    after = network.render(ws)[0]
    assert inversion.psnr(after, target) > inversion.psnr(before, target) + 4
    assert len(seen) == 40 and seen[-1] < seen[0] / 3
    assert (ws == ws[:, :1]).all()


def test_the_network_does_not_change_and_gets_no_gradients(network, target):
    before = {name: value.clone() for name, value in network.G.state_dict().items()}
    network.G.synthesis.reduced_dtype = torch.bfloat16
    seen = []
    handle = network.G.synthesis.register_forward_pre_hook(
        lambda module, inputs: seen.append(module.reduced_dtype)
    )
    inversion.project(network, distance(target), network.styles(0), 1)
    handle.remove()
    assert seen == [None] and network.G.synthesis.reduced_dtype is torch.bfloat16  # float32 within
    network.G.synthesis.reduced_dtype = None
    assert all(torch.equal(value, before[name]) for name, value in network.G.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.G.parameters())


def test_a_resumed_projection_of_one_style_per_layer_is_the_same(network, target):
    def new() -> inversion.Projection:
        return inversion.Projection(network, distance(target), network.styles(0), 6, "w+")

    whole, first, second = new(), new(), new()
    for _ in range(6):
        whole.advance()
    for _ in range(3):
        first.advance()
    second.restore(first.state())
    for _ in range(3):
        second.advance()
    assert torch.equal(whole.ws, second.ws) and second.step == 6


def test_nan_is_one_line(network, target):
    with pytest.raises(ValueError, match=r"cond\.pkl: the distance is nan at step 0"):
        inversion.project(network, distance(target), network.styles(0) * math.nan, 1)


def test_large_images_are_averaged_down_and_small_ones_enlarged():
    class Size(TinyDetector):
        def perceptual(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[images.shape[2], images.shape[3]]], dtype=torch.float32)

    for side, seen in ((512, 256), (256, 256), (16, 16), (8, 16)):
        pictures = torch.zeros(1, 1, side, side)
        assert inversion.perceptual(Size(), pictures).tolist() == [[seen, seen]]


def test_psnr():
    a = np.zeros((2, 2, 3), np.uint8)
    assert inversion.psnr(a, a) == math.inf
    assert inversion.psnr(a, a + 255) == 0 and inversion.psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)
