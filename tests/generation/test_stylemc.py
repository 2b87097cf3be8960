# SPDX-License-Identifier: Apache-2.0
"""StyleMC's direction, with stand-ins for CLIP."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from generation import Network, stylemc


class Means:
    """An encoder that sees the mean of each channel and the contrast."""

    def images(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))[:, :1]], dim=1)
        return F.normalize(features, dim=1)


class Alternating(Means):
    """Its embeddings change their sign from image to image, and so do the gradients."""

    def __init__(self) -> None:
        self.sign = 1

    def images(self, x: torch.Tensor) -> torch.Tensor:
        self.sign = -self.sign
        return self.sign * super().images(x)


@pytest.fixture(scope="module")
def network(toy_networks) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


TARGET = F.normalize(torch.tensor([[1.0, -1.0, 0.2, 0.1]]), dim=1)


def test_the_distance_is_that_of_the_sphere():
    x = F.normalize(torch.randn([5, 8], generator=torch.Generator().manual_seed(0)), dim=1).double()
    expected = (x @ x.T).clamp(-1, 1).arccos().square() / 2
    torch.testing.assert_close(stylemc.distance(x, x), expected, rtol=1e-4, atol=1e-5)
    same = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(stylemc.distance(same, x[:1]).sum(), same)
    assert torch.isfinite(gradient).all()
    opposite = stylemc.distance(x[:1], -x[:1])
    torch.testing.assert_close(opposite.item(), torch.pi**2 / 2, rtol=1e-3, atol=0)


def test_the_direction_moves_images_towards_the_text(network):
    names = network.G.synthesis.layer_names[1:4]
    found = stylemc.find(network, Means(), TARGET, range(16), names, label=1)
    assert list(found) == names and all(torch.isfinite(value).all() for value in found.values())
    assert sum(int(value.ne(0).sum()) for value in found.values()) > 0
    ws = network.styles([100, 101, 102, 103], 1)

    def distance(scale: float) -> float:
        with (
            stylemc.added(network, {name: scale * value[0] for name, value in found.items()}),
            torch.no_grad(),
        ):
            return float(stylemc.distance(Means().images(network.G.synthesis(ws)), TARGET).mean())

    assert distance(1) < distance(0) < distance(-1)
    layers = [getattr(network.G.synthesis, name) for name in network.G.synthesis.layer_names]
    assert not any(layer.affine._forward_hooks for layer in layers)
    assert all(parameter.grad is None for parameter in network.G.parameters())


def test_a_step_is_adamw_on_the_mean_gradient_of_eight_seeds(network):
    name = network.G.synthesis.layer_names[2]
    (found,) = stylemc.find(network, Means(), TARGET, range(8), [name]).values()
    bias = getattr(network.G.synthesis, name).affine.bias
    gradients = []
    for seed in range(8):
        value = torch.zeros_like(bias, requires_grad=True)
        with stylemc.added(network, {name: value}):
            image = network.G.synthesis(network.styles(seed))
        (gradient,) = torch.autograd.grad(stylemc.distance(Means().images(image), TARGET).sum(), value)
        gradients.append(gradient)
    mean = torch.stack(gradients).mean(dim=0)
    step = -0.05 * mean.sign()  # the first step of Adam from 0
    changes = sum((a * b < 0).int() for a, b in itertools.pairwise(gradients))
    expected = torch.where(changes <= 2, step, 0)
    clear = mean.abs() > 1e-2 * mean.abs().max()  # where rounding does not decide the sign
    torch.testing.assert_close(found[0][clear], expected[clear], rtol=1e-3, atol=1e-3)


def test_coordinates_on_which_seeds_disagree_are_zero(network):
    names = network.G.synthesis.layer_names[1:3]
    found = stylemc.find(network, Alternating(), TARGET, range(16), names)
    assert all(value.eq(0).double().mean() > 0.9 for value in found.values())


def test_prompts_are_separated_by_bars():
    assert stylemc.prompts_of("a chimpanzee | smile") == ["a chimpanzee", "smile"]
    with pytest.raises(ValueError, match="a prompt is empty"):
        stylemc.prompts_of("a || b")
