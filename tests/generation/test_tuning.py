# SPDX-License-Identifier: Apache-2.0
"""Pivotal tuning: the loss is the published one, the image comes nearer, the network stays as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from generation import Network, inversion, tuning
from tests.support import TinyDetector


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


def new(network: Network, steps: int, seed: int = 42) -> tuning.Tuning:
    pixels = np.random.RandomState(1).randint(0, 256, (16, 16, 3), dtype=np.uint8)
    distance = inversion.FeatureDistance(TinyDetector(), pixels)
    return tuning.Tuning(network, distance, network.styles(5, 1), steps, seed)


def test_the_loss_has_three_terms_with_images_in_the_range_of_the_features(network):
    tuned = new(network, 2)
    tuned.advance()
    with torch.no_grad():
        pivot = network.G.synthesis(tuned.pivot)
        other = tuned.neighbour(1)
        before = network.G.synthesis(other)
        changed = tuned.tuned.G.synthesis(other)
        now = tuned.tuned.G.synthesis(tuned.pivot)
    first = tuned.distance(pivot) + (pivot - tuned.distance.target).square().mean()
    assert tuned.value == pytest.approx(float(first), rel=1e-4)  # both networks are equal at the first step
    tuned.advance()
    features = [TinyDetector().perceptual((image + 1) * 127.5) for image in (changed, before)]
    expected = tuned.distance(now) + (now - tuned.distance.target).square().mean()
    expected = expected + 10 * (features[0] - features[1]).square().sum()
    assert tuned.value == pytest.approx(float(expected), rel=1e-4)


def test_the_locality_term_is_at_a_fixed_distance_from_the_pivot(network):
    tuned = new(network, 1)
    assert network.G.w_dim == 512
    codes = [tuned.neighbour(step) for step in range(3)]
    for code in codes:
        torch.testing.assert_close(
            (code - tuned.pivot).norm(dim=2), torch.full([1, network.G.num_ws], 30.0), atol=1e-3, rtol=0
        )
    assert not torch.equal(codes[0], codes[1]) and torch.equal(codes[2], new(network, 1).neighbour(2))
    assert not torch.equal(codes[0], new(network, 1, seed=1).neighbour(0))


def test_the_image_comes_nearer_and_the_network_stays(network):
    before = {name: value.clone() for name, value in network.G.state_dict().items()}
    tuned = new(network, 6)
    with torch.no_grad():
        first = float(tuned.distance(network.G.synthesis(tuned.pivot)))
    for _ in range(6):
        tuned.advance()
    with torch.no_grad():
        last = float(tuned.distance(tuned.tuned.G.synthesis(tuned.pivot)))
    assert last < first
    assert all(torch.equal(value, before[name]) for name, value in network.G.state_dict().items())
    assert all(parameter.grad is None for parameter in network.G.parameters())
    moved = {
        name
        for name, value in tuned.tuned.G.named_parameters()
        if not torch.equal(value, network.G.get_parameter(name))
    }
    assert moved == {name for name, _ in network.G.named_parameters() if name.startswith("synthesis.")}


def test_a_network_that_runs_its_own_code_is_refused():
    foreign = Network("foreign.pkl", object(), {}, {}, None)
    with pytest.raises(ValueError, match=r"foreign\.pkl runs its own code, .*remove --run-pti"):
        tuning.check(foreign)
