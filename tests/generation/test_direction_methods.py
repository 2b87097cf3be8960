# SPDX-License-Identifier: Apache-2.0
"""Directions in W: closed form, principal components, logistic regression."""

import numpy as np
import pytest
import torch

from generation import Network, direction_methods


@pytest.fixture(scope="module")
def network(toy_networks) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


@pytest.fixture(scope="module")
def codes(network) -> tuple[np.ndarray, np.ndarray]:
    return direction_methods.sample(network, 300, seed=1)


def test_samples_are_styles_of_the_chosen_classes(network, codes):
    assert codes[0].shape == (300, network.G.w_dim) and set(codes[1]) == {0, 1, 2}
    _, labels = direction_methods.sample(network, 40, seed=1, classes=[0, 2])
    assert set(labels) == {0, 2}
    z = torch.from_numpy(np.random.RandomState(1).randn(40, network.G.z_dim).astype(np.float32))
    assert not torch.equal(z[0], z[1])
    again, _ = direction_methods.sample(network, 300, seed=1)
    assert (again == codes[0]).all()


def test_sefa_directions_change_the_styles_most(network, codes):
    centred = direction_methods.within_classes(*codes)
    found = direction_methods.sefa(network, [1, 2], 3, centred)
    weights = direction_methods.affine_weights(network, [1, 2])
    first = [network.G.synthesis.layer_names[i] for i in (0, 1)]
    sizes = [getattr(network.G.synthesis, name).affine.weight.shape[0] for name in first]
    assert weights.shape == (sum(sizes), network.G.w_dim)
    unit = found.directions / np.linalg.norm(found.directions, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, np.eye(3), atol=1e-9)
    gains = np.linalg.norm(unit @ weights.T, axis=1)
    singular = np.linalg.svd(weights, compute_uv=False)
    np.testing.assert_allclose(gains, singular[:3], rtol=1e-6)
    np.testing.assert_allclose(found.shares, np.square(singular[:3]) / np.square(singular).sum(), rtol=1e-6)
    spread = (centred @ unit.T).std(axis=0)  # strength 1 is one standard deviation
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), spread, rtol=1e-6)
    assert (np.take_along_axis(unit, np.abs(unit).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_principal_components_find_the_axes_of_a_cloud():
    random = np.random.RandomState(0)
    axes, _ = np.linalg.qr(random.randn(6, 6))
    spreads = np.array([5.0, 3.0, 1.0, 0.1, 0.1, 0.1])
    labels = np.arange(4000) % 2
    codes = random.randn(4000, 6) * spreads @ axes.T + 100 * labels[:, None]  # classes far apart
    found = direction_methods.principal(2, direction_methods.within_classes(codes, labels))
    few = direction_methods.within_classes(random.randn(4000, 6), np.arange(4000) // 4)  # four of each class
    assert few.std() == pytest.approx(1, rel=0.03)
    for row, (direction, spread) in enumerate(zip(found.directions, spreads, strict=False)):
        np.testing.assert_allclose(abs(direction @ axes[:, row]), spread, rtol=0.05)
    np.testing.assert_allclose(found.shares, np.square(spreads[:2]) / np.square(spreads).sum(), rtol=0.1)


def test_logistic_regression_finds_the_attribute_and_its_accuracy():
    random = np.random.RandomState(0)
    normal = random.randn(8)
    codes = random.randn(400, 8)
    labels = codes @ normal > 1
    found = direction_methods.attribute(codes, labels)
    unit = found.direction[0] / np.linalg.norm(found.direction)
    assert unit @ normal / np.linalg.norm(normal) > 0.9
    np.testing.assert_allclose(np.linalg.norm(found.direction), (codes @ unit).std(), rtol=1e-6)
    assert found.accuracy > 0.9 > found.majority > 0.5
    noise = direction_methods.attribute(codes, random.rand(400) > 0.5)
    assert noise.accuracy < 0.65
    weights, bias = direction_methods.logistic(codes, labels)
    x, sign = (codes - codes.mean(axis=0)) / codes.std(), np.where(labels, 1, -1)
    probability = 1 / (1 + np.exp(sign * (codes @ weights + bias)))
    share = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    gradient = -(share * sign * probability) @ x + weights * codes.std()
    assert np.abs(gradient).max() < 0.05  # the minimum of the penalised loss
    with pytest.raises(ValueError, match="2 images with the attribute and 398 without it: give at least 5"):
        direction_methods.attribute(codes, np.arange(400) < 2)
