# SPDX-License-Identifier: Apache-2.0
"""What makes a SAN layer: unit directions, equal numbers, and gradients that never mix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import san

KINDS = {
    "linear": (lambda g: san.SANLinear(6, 3, generator=g), (4, 6)),
    "conv1d": (lambda g: san.SANConv1d(6, 3, 3, padding=1, generator=g), (4, 6, 9)),
    "conv2d": (lambda g: san.SANConv2d(6, 3, (3, 1), stride=2, generator=g), (4, 6, 7, 5)),
    "conv3d": (lambda g: san.SANConv3d(6, 3, 2, generator=g), (2, 6, 4, 3, 5)),
    "embedding": (lambda g: san.SANEmbedding(10, 6, generator=g), (4,)),
}


def make(kind: str, seed: int = 0) -> tuple[torch.nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    build, shape = KINDS[kind]
    layer = build(generator)
    if kind == "embedding":
        return layer, torch.randint(10, shape, generator=generator)
    torch.nn.init.normal_(layer.bias, generator=generator)
    return layer, torch.randn(shape, generator=generator).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_fun_and_dir_are_equal_numbers(kind):
    layer, x = make(kind)
    y = layer(x)
    assert y._fields == ("fun", "dir")
    assert torch.equal(y.fun, y.dir)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_isolated(kind):
    """fun never reaches the direction; dir reaches nothing else. Swapping the two fields fails this test."""
    layer, x = make(kind)
    features = [layer.scale] + ([] if kind == "embedding" else [layer.bias, x])
    y = layer(x)
    fun = torch.autograd.grad(y.fun.square().sum(), [layer.weight, *features], allow_unused=True)
    assert fun[0] is None
    assert all(g is not None and g.abs().max() > 0 for g in fun[1:])
    direction = torch.autograd.grad(y.dir.square().sum(), [layer.weight, *features], allow_unused=True)
    assert direction[0] is not None and direction[0].abs().max() > 0
    assert all(g is None for g in direction[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_directions_start_at_unit_norm_and_scale_is_the_initial_norm(kind):
    layer, _ = make(kind)
    norms = layer.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert layer.scale.flatten().shape == norms.shape
    assert (layer.scale > 0).all()


def test_output_ignores_the_length_of_the_weight():
    layer, x = make("conv2d")
    before = layer(x).fun
    with torch.no_grad():
        layer.weight.mul_(7)
    torch.testing.assert_close(layer(x).fun, before)
    gradient = torch.autograd.grad(layer(x).dir.square().sum(), layer.weight)[0]
    along = (gradient * layer.weight).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)  # tangent to the sphere


def test_bias_belongs_to_the_input():
    layer, x = make("linear")
    expected = layer.scale * torch.nn.functional.linear(x + layer.bias, layer.weight)
    torch.testing.assert_close(layer(x).fun, expected)


def test_zero_weight_stays_finite():
    layer, x = make("linear")
    torch.nn.init.zeros_(layer.weight)
    assert torch.equal(layer(x).fun, torch.zeros(4, 3))
    san.normalize_(layer)
    assert torch.isfinite(layer.weight).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), factor=st.floats(1e-3, 1e3))
def test_normalize_restores_unit_norm_in_nested_modules(seed, factor):
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 6), torch.nn.Sequential(*(make(kind, seed)[0] for kind in KINDS))
    )
    linear = net[0].weight.clone()
    layers = list(net[1])
    directions = [layer.weight.detach().clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(factor)
    addresses = [layer.weight.data_ptr() for layer in layers]
    san.normalize_(net)
    for layer, direction, address in zip(layers, directions, addresses, strict=True):
        torch.testing.assert_close(layer.weight.detach(), direction)
        assert layer.weight.data_ptr() == address and layer.weight.grad_fn is None
    assert torch.equal(net[0].weight, linear)


def test_normalize_leaves_the_optimizer_alone():
    layer, x = make("linear")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(x).dir.sum().backward()
    optimizer.step()
    moments = optimizer.state[layer.weight]["exp_avg"].clone()
    san.normalize_(layer)
    assert torch.equal(optimizer.state[layer.weight]["exp_avg"], moments)
    assert layer.weight in optimizer.state


def test_arithmetic_on_the_pair_of_logits_is_refused():
    logits = san.SANLinear(6, 1)(torch.randn(4, 6))
    for wrong in (lambda: logits + logits, lambda: 2 * logits, lambda: logits * 2):
        with pytest.raises(TypeError, match=r"a pair, not a tensor: compute with \.fun and \.dir"):
            wrong()


def test_generator_decides_the_initial_weights():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second, other = make("embedding", 3)[0], make("embedding", 3)[0], make("embedding", 4)[0]
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_embedding_rows_without_samples_get_no_gradient():
    layer = san.SANEmbedding(5, 4)
    h = torch.randn(3, 4)
    y = layer(torch.tensor([1, 1, 4]))
    ((h * y.fun).sum() + (h * y.dir).sum()).backward()
    touched = torch.tensor([False, True, False, False, True])
    assert torch.equal(layer.weight.grad.abs().sum(1) > 0, touched)
    assert torch.equal(layer.scale.grad.abs().sum(1) > 0, touched)
