# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a device: values, first and second derivatives against float64, CUDA graphs, huge
tensors. Skips itself without a device.
"""

import pytest
import torch

from torch_utils.ops.backend import extension
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2**-8, torch.bfloat16: 2**-5}
# up, down, taps up, taps down, padding, full downsampling filter
LAYERS = {
    "same": (2, 2, 12, 12, [9, 8, 9, 8], False),
    "crop": (2, 2, 12, 12, [-11, -12, -11, -12], False),
    "up": (4, 2, 24, 12, [-6, -9, -6, -9], False),
    "same radial": (2, 2, 12, 12, [11, 10, 11, 10], True),
    "up radial": (4, 2, 24, 12, [-2, -5, -2, -5], True),
    "odd factors": (3, 2, 8, 5, [5, 5, 3, 6], True),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare(call, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """call(impl, *inputs) on the device in a dtype against the same in float64: value, first and second
    derivatives (by the gradient and by all inputs).
    """
    results = []
    for impl, kind in (("cuda", dtype), ("ref", torch.float64)):
        leaves = [t.to(dtype).to(kind).cuda().requires_grad_() for t in inputs]
        y = call(impl, *leaves)
        dy = normal(*y.shape, seed=11).to(dtype).to(kind).cuda().requires_grad_()
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        v = normal(*first[0].shape, seed=12).to(dtype).to(kind).cuda()
        second = torch.autograd.grad(first[0], [dy, *leaves], v, allow_unused=True, materialize_grads=True)
        results.append([t.detach().double() for t in (y, *first, *second)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=TOLERANCES[dtype] * max(float(wanted.abs().max()), 1e-3)
        )


def away_from_the_kink(size: tuple[int, int], dtype: torch.dtype, upsample) -> list[torch.Tensor]:
    """An image and a bias whose upsampled image has no sample so near to zero that rounding decides on its
    sign, and with it on a gradient.

    Of two million samples one or two lie within float32's errors, a millionth of their spread: most draws
    have one, not all.
    """
    for seed in range(0, 400, 2):
        x, b = normal(2, 3, *size, seed=seed), normal(3, seed=seed + 1)
        u = upsample((x.to(dtype).double() + b.to(dtype).double()[:, None, None]).cuda())
        if float(u[u != 0].abs().min()) > 1e-6 * float(u.std()):
            return [x, b]
    raise AssertionError("every draw has a sample at the kink")


def test_the_kernels_are_in_use() -> None:
    assert extension.load()


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("size", [(36, 38), (75, 41), (150, 150)])
@pytest.mark.parametrize("name", LAYERS)
def test_filtered_lrelu(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    up, down, taps_up, taps_down, padding, full = LAYERS[name]
    fu = (normal(taps_up, seed=5) / taps_up**0.5).float().cuda()
    fd = (normal(*[taps_down] * (2 if full else 1), seed=6) / (taps_down if full else 3)).float().cuda()

    def call(impl: str, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        filters = (fu, fd) if impl == "cuda" else (fu.double(), fd.double())
        return filtered_lrelu(x, *filters, b, up=up, down=down, padding=padding, clamp=256, impl=impl)

    def upsample(x: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(x, fu.double(), up=up, padding=padding, gain=up * up, impl="ref")

    compare(call, away_from_the_kink(size, dtype, upsample), dtype)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs Ampere or newer"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(36, 38), (75, 42), (150, 150), (27, 278)])
@pytest.mark.parametrize("name", ["same", "crop", "up"])
def test_filtered_lrelu_on_tensor_cores(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Images compared with float64, and derivatives with those of the other kernels."""
    assert extension.load()
    ops = torch.ops.stylesan_xl
    up, down, taps_up, taps_down, padding, _ = LAYERS[name]
    fu, fd = ((normal(n, seed=s) / n**0.5).float().cuda() for n, s in ((taps_up, 5), (taps_down, 6)))
    arguments = {"up": up, "down": down, "padding": padding, "clamp": 0.8}
    x, b = normal(2, 3, *size).to(dtype).cuda(), normal(3, seed=1).to(dtype).cuda()
    results = []
    for use in (True, False):
        ops.use_tensor_cores(use)
        try:
            leaf = x.clone().requires_grad_()
            image = filtered_lrelu(leaf, fu, fd, b, **arguments)
            # Slope 1 without a clamp is linear: no rounding decides on a gradient.
            y = filtered_lrelu(leaf, fu, fd, b, **arguments | {"slope": 1.0, "clamp": None})
            dy = normal(*y.shape, seed=3).to(dtype).cuda().requires_grad_()
            (dx,) = torch.autograd.grad(y, leaf, dy, create_graph=True)
            (second,) = torch.autograd.grad(dx, dy, x)
            results.append([t.detach() for t in (image, y, dx, second)])
        finally:
            ops.use_tensor_cores(False)
    wanted = filtered_lrelu(x.double(), fu.double(), fd.double(), b.double(), impl="ref", **arguments)
    torch.testing.assert_close(
        results[0][0].double(), wanted, rtol=0, atol=TOLERANCES[dtype] * float(wanted.abs().max())
    )
    for found, other in zip(*results, strict=True):
        assert not torch.equal(found, other)  # another kernel ran
        torch.testing.assert_close(
            found, other, rtol=0, atol=2 * TOLERANCES[dtype] * float(other.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("act", activation_funcs)
def test_bias_act(act: str, dtype: torch.dtype) -> None:
    for shape, dim in (((5, 7), 1), ((2, 8, 16, 16), 1), ((2, 3, 5, 7), 3)):
        compare(
            lambda impl, x, b, dim=dim: bias_act(x, b, dim, act, clamp=2.0, impl=impl),
            [normal(*shape), normal(shape[dim], seed=1)],
            dtype,
        )


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_upfirdn2d(dtype: torch.dtype) -> None:
    for taps, up, down in (([12], 2, 1), ([13], 1, 1), ([4, 4], 1, 2), ([3, 5], (3, 2), (2, 5))):
        f = normal(*taps, seed=3).float().cuda() / 3

        def call(impl: str, x: torch.Tensor, f: torch.Tensor = f, up=up, down=down) -> torch.Tensor:
            return upfirdn2d(x, f if impl == "cuda" else f.double(), up=up, down=down, padding=6, impl=impl)

        compare(call, [normal(2, 3, 75, 70)], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_images_of_every_layout(dtype: torch.dtype) -> None:
    """Unaligned, transposed, expanded and empty images are what their contiguous copies are."""
    f, b = torch.ones(12, device="cuda") / 12, torch.randn(4, device="cuda", dtype=dtype)
    block = torch.randn(3, 4, 40, 43, device="cuda", dtype=dtype)
    views = [
        block[..., 1:, 3:],
        block.transpose(2, 3),
        block[:1].expand(3, -1, -1, -1),
        block[:, :, ::2],
        block[:0],
        block.flatten()[1:-3].view(-1, 4, 1, 1),
    ]
    for x in views:
        calls = [lambda x: bias_act(x, b, act="lrelu", clamp=1.0)]
        if x.shape[2] > 1:
            calls += [
                lambda x: upfirdn2d(x, f, up=2, padding=6),
                lambda x: filtered_lrelu(x, f, f, b, up=2, down=2, padding=9, clamp=256),
            ]
        for call in calls:
            y = call(x)
            torch.testing.assert_close(y, call(x.contiguous().clone()), rtol=0, atol=0)
            assert torch.isfinite(y).all()


def test_tensors_of_another_device_are_refused() -> None:
    x, f = torch.randn(1, 4, 40, 40, device="cuda"), torch.ones(12, device="cuda") / 12
    with pytest.raises(ValueError, match="is on cpu"):
        bias_act(x, torch.zeros(4))
    with pytest.raises(ValueError, match="is on cpu"):
        filtered_lrelu(x, f, f, torch.zeros(4), up=2, down=2, padding=9)
    with pytest.raises(RuntimeError, match="on one device"):
        torch.ops.stylesan_xl.bias_act(x, torch.zeros(4), 1, 2, 0.2, 1.0, -1.0)
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one() -> None:
    f, x = torch.ones(12) / 12, torch.randn(2, 4, 40, 40)
    first, second = (
        filtered_lrelu(x.to(d), f.to(d), f.to(d), up=2, down=2, padding=9, clamp=256)
        for d in ("cuda:0", "cuda:1")
    )
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(first.cpu(), second.cpu(), rtol=0, atol=0)


def test_cuda_graphs_capture_forward_and_backward_passes() -> None:
    """A capture fails where anything waits for the device or reads from it."""
    f, radial = torch.ones(12, device="cuda") / 12, torch.ones(12, 12, device="cuda") / 144
    x = torch.randn(2, 4, 36, 36, device="cuda", dtype=torch.half).requires_grad_()
    b = torch.randn(4, device="cuda", dtype=torch.half).requires_grad_()

    def call() -> tuple[torch.Tensor, ...]:
        y = filtered_lrelu(x, f, f, b, up=2, down=2, padding=9, clamp=256) + filtered_lrelu(
            x, f, radial, b, up=2, down=2, padding=9, clamp=256
        )
        y = bias_act(upfirdn2d(y, f, down=2, padding=5), b, act="swish")
        return y, *torch.autograd.grad(y.float().square().sum(), (x, b))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for captured, wanted in zip(found, call(), strict=True):
        torch.testing.assert_close(captured, wanted, rtol=0, atol=0)


def test_a_stream_beside_the_default_one_is_used() -> None:
    x, side = torch.zeros(1 << 24, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # about 50 ms, before which the addition must not be seen
        x += 1
        y = bias_act(x, act="linear", gain=2.0)
    side.synchronize()
    assert bool((y == 2).all())


def test_autocast_and_compile() -> None:
    f = torch.ones(12, device="cuda") / 12
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, device="cuda")
    x = torch.randn(2, 3, 36, 36, device="cuda")

    def network(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return filtered_lrelu(layer(x), f, f, layer.bias, up=2, down=2, padding=9, clamp=256)

    y = network(x)
    assert y.dtype == torch.bfloat16
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)(x)
    torch.testing.assert_close(compiled, y, rtol=0, atol=0.05)


@pytest.mark.parametrize("taps", [(4,), (4, 4), (13,)])
def test_channels_last(taps: tuple[int, ...]) -> None:
    x, f = (
        torch.randn(2, 16, 37, 41, device="cuda", dtype=torch.half),
        normal(*taps, seed=1).float().cuda() / 4,
    )
    last = x.contiguous(memory_format=torch.channels_last)
    for call in (
        lambda x: upfirdn2d(x, f, up=2, padding=3),
        lambda x: upfirdn2d(x, f, down=2, padding=3),
        lambda x: bias_act(x, torch.arange(16, device="cuda").half(), act="lrelu"),
    ):
        y = call(last)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, call(x), rtol=0, atol=2**-8 * float(y.abs().max()))


def test_more_than_two_billion_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free device memory")
    x = torch.zeros(3, 1, 27000, 27000, device="cuda", dtype=torch.half)
    x[2, 0, -1, -1] = 1
    assert float(bias_act(x, act="lrelu", gain=1.0)[2, 0, -1, -1]) == 1
    assert float(upfirdn2d(x, torch.ones(2, device="cuda"), padding=[0, 1, 0, 1])[2, 0, -2:, -2:].sum()) == 4
