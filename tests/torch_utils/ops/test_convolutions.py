# SPDX-License-Identifier: Apache-2.0
"""conv2d_gradfix and conv2d_resample: switched-off weight gradients, second derivatives, mistakes."""

import pytest
import torch
import torch.nn.functional as F

from torch_utils import cpu_speed
from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.backend import weight_gradient, winograd
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import setup_filter

CONVOLUTIONS = {
    "plain": (conv2d_gradfix.conv2d, F.conv2d, (4, 3, 3, 3)),
    "transposed": (conv2d_gradfix.conv_transpose2d, F.conv_transpose2d, (3, 4, 3, 3)),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    ours, torchs, weight_shape = CONVOLUTIONS[request.param]
    return (
        ours,
        torchs,
        normal(2, 3, 5, 6).requires_grad_(),
        normal(*weight_shape, seed=1).requires_grad_(),
        normal(4, seed=2).requires_grad_(),
    )


def test_values_and_gradients_are_those_of_torch(convolution) -> None:
    ours, torchs, x, w, b = convolution
    y, wanted = (f(x, w, b, stride=2, padding=1) for f in (ours, torchs))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), (x, w, b)),
        torch.autograd.grad(wanted.square().sum(), (x, w, b)),
    )
    assert torch.autograd.gradgradcheck(lambda x, w, b: ours(x, w, b, stride=2, padding=1), (x, w, b))


def test_flag_counts_when_the_backward_pass_runs(convolution) -> None:
    ours, _, x, w, b = convolution
    y = ours(x, w, b)
    with conv2d_gradfix.no_weight_gradients():
        dx, dw, db = torch.autograd.grad(y.sum(), (x, w, b), allow_unused=True, retain_graph=True)
        inside = ours(x, w, b)
    assert dw is None and dx is not None and db is not None
    assert torch.autograd.grad(y.sum(), w)[0] is not None
    assert torch.autograd.grad(inside.sum(), w)[0] is not None


def test_flag_nests_and_ends_with_an_error() -> None:
    x, w = normal(1, 1, 3, 3), normal(1, 1, 1, 1).requires_grad_()

    def has_gradient() -> bool:
        return torch.autograd.grad(conv2d_gradfix.conv2d(x, w).sum(), w, allow_unused=True)[0] is not None

    with conv2d_gradfix.no_weight_gradients():
        with conv2d_gradfix.no_weight_gradients(disable=False):
            assert not has_gradient()
        assert not has_gradient()
    with conv2d_gradfix.no_weight_gradients(disable=False):
        assert has_gradient()
    with pytest.raises(RuntimeError, match="stop"), conv2d_gradfix.no_weight_gradients():
        raise RuntimeError("stop")
    assert has_gradient()


def test_second_pass_reaches_the_weights_through_the_input_gradient(convolution) -> None:
    """A path-length penalty has the same weight gradient whether or not the first pass leaves weight
    gradients out.
    """
    ours, torchs, x, w, _ = convolution
    noise = normal(*ours(x, w).shape, seed=3)

    def penalty_gradient(function) -> torch.Tensor:
        with conv2d_gradfix.no_weight_gradients():
            (dx,) = torch.autograd.grad((torch.tanh(function(x, w)) * noise).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), w)[0]

    wanted = penalty_gradient(torchs)
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(penalty_gradient(ours), wanted)


def test_flag_cuts_the_path_through_a_weight_that_depends_on_the_style() -> None:
    style = normal(3).requires_grad_()
    y = conv2d_gradfix.conv2d(normal(1, 3, 4, 4), normal(2, 3, 3, 3, seed=1) * style[None, :, None, None])
    with conv2d_gradfix.no_weight_gradients():
        assert torch.autograd.grad(y.sum(), style, allow_unused=True)[0] is None


def test_enabled_false_is_torch_itself(monkeypatch) -> None:
    monkeypatch.setattr(conv2d_gradfix, "enabled", False)
    w = normal(1, 1, 1, 1).requires_grad_()
    with conv2d_gradfix.no_weight_gradients():
        assert torch.autograd.grad(conv2d_gradfix.conv2d(normal(1, 1, 2, 2), w).sum(), w)[0] is not None


@pytest.mark.parametrize("arguments", [{"up": 2}, {"down": 2}, {"up": 2, "down": 3}])
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv2d_resample_second_derivatives(kernel: int, arguments: dict[str, int]) -> None:
    x, w = normal(1, 2, 5, 4).requires_grad_(), normal(2, 2, kernel, kernel, seed=1).requires_grad_()
    f = setup_filter([1, 3, 3, 1]).double()
    assert torch.autograd.gradgradcheck(lambda x, w: conv2d_resample(x, w, f, padding=1, **arguments), (x, w))


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"up": 0}, "up=0 must be a positive integer"),
        ({"down": 1.5}, "down=1.5 must be a positive integer"),
        ({"w": torch.zeros(2, 3, 3)}, "weight must be"),
        ({"w": torch.zeros(2, 3, 3, 3, dtype=torch.float64)}, "of x's dtype torch.float32"),
        ({"f": torch.zeros(2, 2, 2)}, "filter f must be None or"),
        ({"padding": "same"}, "padding='same' must be"),
    ],
)
def test_conv2d_resample_mistakes(arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conv2d_resample(**{"x": torch.zeros(1, 3, 8, 8), "w": torch.zeros(2, 3, 3, 3), **arguments})


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "layout"),
    [
        ((3, 64, 9, 12), (4, 4), 2, 1, torch.channels_last),
        ((2, 128, 6, 5), (3, 3), 1, 2, torch.contiguous_format),
        ((2, 64, 4, 4), (4, 4), 1, 0, torch.channels_last),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_weight_gradients_by_products_are_those_of_torch(
    monkeypatch, shape, kernel, stride, padding, layout, chunk
):
    """Values, gradients and second derivatives; the input gradient alone where weight gradients are off."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=layout).requires_grad_()
    w = torch.randn((128, shape[1], *kernel), generator=generator).requires_grad_()
    monkeypatch.setattr(weight_gradient, "_CHUNK", chunk)
    found = []
    for products in (True, False):
        choices = cpu_speed.Choices(product_gradients=products)
        monkeypatch.setattr(cpu_speed, "choices", lambda choices=choices: choices)
        y = conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding)
        assert isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction) == products
        first = torch.autograd.grad(y.square().mean(), [x, w])
        y = conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding)
        with conv2d_gradfix.no_weight_gradients():
            (dx,) = torch.autograd.grad(y.square().mean(), [x], create_graph=True)
        found.append((y, *first, *torch.autograd.grad(dx.square().sum(), [x, w])))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def winograd_case(shape, outputs, padding):
    """An input, a weight and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    w = torch.randn((outputs, shape[1], 3, 3), generator=generator)
    height, width = (shape[dim + 2] + 2 * padding[dim] - 2 for dim in (0, 1))
    return x, w, torch.randn((shape[0], outputs, height, width), generator=generator)


WINOGRAD = {
    "whole tiles": ((2, 5, 10, 18), 3, (0, 0)),
    "parts of tiles": ((3, 4, 9, 12), 6, (1, 1)),
    "uneven padding": ((1, 7, 5, 8), 2, (0, 2)),
    "one output": ((2, 3, 3, 3), 4, (0, 0)),
    "one pixel": ((1, 3, 1, 1), 4, (2, 1)),
}


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize("case", WINOGRAD)
def test_passes_by_winograd_are_those_of_torch(monkeypatch, case: str, chunk: int) -> None:
    shape, outputs, padding = WINOGRAD[case]
    x, w, grad = winograd_case(shape, outputs, padding)
    monkeypatch.setattr(winograd, "_CHUNK", chunk)
    monkeypatch.setattr(winograd, "_CHUNK_TILES", 1)
    leaves = [x.double().requires_grad_(), w.double().requires_grad_()]
    y = F.conv2d(*leaves, padding=padding)
    wanted = y, *torch.autograd.grad(y, leaves, grad.double())
    found = (
        winograd.convolve(x, w, padding),
        winograd.input_gradient(grad, w, padding),
        winograd.weight_gradient(x, w, grad, padding),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-5


@pytest.mark.parametrize("trained", [False, True])
def test_wide_convolutions_in_float32_use_winograd(monkeypatch, trained: bool) -> None:
    """Values, gradients and second derivatives are torch's; nothing else than the stated case is taken."""
    x, w, _ = winograd_case((6, 128, 14, 18), 130, (1, 2))
    monkeypatch.setattr(cpu_speed, "choices", lambda: cpu_speed.Choices(winograd=True))
    used = []
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *a: used.append(a) or convolve(*a))

    def uses(x=x, w=w, **options) -> bool:
        used.clear()
        conv2d_gradfix.conv2d(x, w, **options)
        return bool(used)

    assert uses(padding=(1, 2)) and uses()
    for changed in (
        {"x": x[:1]},
        {"x": x.to(memory_format=torch.channels_last)},
        {"x": x.double(), "w": w.double()},
        {"w": w[:100]},
        {"w": w[..., :1]},
        {"padding": 3},
        {"stride": 2},
        {"dilation": 2},
        {"bias": torch.zeros(130)},
    ):
        assert not uses(**changed), changed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not uses()
    traced = torch.jit.trace(lambda x: conv2d_gradfix.conv2d(x, w), x, check_trace=False)
    assert traced(x[:1, :, :8, :8]).shape == (1, 130, 6, 6)

    x.requires_grad_()
    w.requires_grad_(trained)
    found = []
    for convolution in (conv2d_gradfix.conv2d, F.conv2d):
        y = convolution(x, w, padding=(1, 2))
        leaves = [x, w] if trained else [x]
        first = torch.autograd.grad(y.square().mean(), leaves, retain_graph=True)
        with conv2d_gradfix.no_weight_gradients():
            (dx,) = torch.autograd.grad(y.square().mean(), [x], create_graph=True)
        found.append((y, *first, *torch.autograd.grad(dx.square().sum(), leaves)))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 2e-5
