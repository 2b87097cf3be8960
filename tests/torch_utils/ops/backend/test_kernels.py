# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' sources, run on the host: against float64 references, in every dtype, with odd sizes,
many tiles and small grids.

Outputs, codes and shared memory start as NaN patterns in the host build, so an element that a kernel does not
write fails its comparison.
"""

import functools
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.example_counts import examples
from tests.parity import golden_ops as goldens
from tests.torch_utils.ops.host_kernels import NAMESPACE, host  # noqa: F401
from tests.torch_utils.ops.references import (
    LAYERS,
    OTHERS,
    check_gradient_on_the_kinks,
    close,
    close_gradients,
    compare_layer,
    normal,
    radial,
    run_layer,
)
from torch_utils.ops.backend import library
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

pytestmark = [pytest.mark.usefixtures("host"), pytest.mark.once]
relaxed = settings(
    max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@relaxed
@given(
    data=st.data(),
    act=st.sampled_from(list(activation_funcs)),
    dtype=st.sampled_from(list(TOLERANCES)),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    clamp=st.sampled_from([None, 0.7]),
    gain=st.sampled_from([None, -1.5, 0.0]),
    alpha=st.sampled_from([None, 0.0, -0.5]),
    bias=st.booleans(),
    last=st.booleans(),
    slice_size=st.sampled_from([0, 16, 23]),
    blocks=st.sampled_from([0, 1]),
)
def test_bias_act(host, data, act, dtype, shape, clamp, gain, alpha, bias, last, slice_size, blocks) -> None:  # noqa: F811
    dim = data.draw(st.integers(0, len(shape) - 1))
    x, dy, v = (normal(*shape, seed=s).to(dtype) for s in range(3))
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    b = normal(shape[dim], seed=3).to(dtype) if bias else None
    host.set_limits(blocks=blocks, slice=slice_size)

    def both(impl: str, kind: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(kind).requires_grad_() for t in (x, dy, *([] if b is None else [b]))]
        y = bias_act(leaves[0], leaves[2] if bias else None, dim, act, alpha, gain, clamp, impl)
        inputs = [leaves[0], *leaves[2:]]
        first = torch.autograd.grad(y, inputs, leaves[1], create_graph=True)
        second = torch.autograd.grad(
            first[0], [leaves[1], *inputs], v.to(kind), allow_unused=True, materialize_grads=True
        )
        return [t.detach() for t in (y, *first, *second)]

    found, wanted = both("cuda", dtype), both("ref", torch.float64)
    close(found[0], wanted[0], max(TOLERANCES[dtype], 1e-10) * (10 if dtype == torch.float32 else 1))
    if dtype in (torch.float32, torch.float64):
        close_gradients(found[1:], wanted[1:], max(TOLERANCES[dtype] * 10, 1e-10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("act", range(9))
def test_bias_act_derivatives_in_half_precision(host, act: int, dtype: torch.dtype) -> None:  # noqa: F811
    """From the same saved tensors as the float64 formulas: whole gradients would differ where rounding
    crosses a kink or the clamp.
    """
    x, b, dy, ddx = (
        t.to(dtype)
        for t in (normal(3, 5, 7), normal(5, seed=1), normal(3, 5, 7, seed=2), normal(3, 5, 7, seed=3))
    )
    rest = (1, act, 0.25, 1.5, 0.75)
    y = host.bias_act(x, b, *rest)
    saved = (x, b, None) if act == 8 else (None, None, y)
    reference = getattr(torch.ops, library.NAMESPACE)
    for name, arguments in (("bias_act_grad", (dy, *saved)), ("bias_act_grad2", (ddx, dy, *saved))):
        wanted = getattr(reference, name)(*(None if t is None else t.double() for t in arguments), *rest)
        close(getattr(host, name)(*arguments, *rest), wanted, 2 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bias_act_passes_no_gradient_on_a_clamp_that_rounding_moved(host, dtype: torch.dtype) -> None:  # noqa: F811
    for clamp in (0.7, 0.3):  # one of them rounds up, one down, in either type
        x = torch.full((40,), 5.0, dtype=dtype).requires_grad_()
        y = bias_act(x, act="linear", clamp=clamp)
        assert (
            torch.equal(y.detach(), torch.full_like(x, clamp))
            and not torch.autograd.grad(y.sum(), x)[0].any()
        )


@pytest.mark.parametrize("slice_size", [16, 35, 48])
def test_bias_act_in_slices_of_long_channels(host, slice_size: int) -> None:  # noqa: F811
    x, b = normal(2, 3, 35), normal(3, seed=1)
    host.set_limits(slice=slice_size)
    close(bias_act(x, b), bias_act(x, b, impl="ref"), 1e-12)


def test_bias_act_saves_nothing_it_does_not_need() -> None:
    x = normal(3, 4).requires_grad_()
    linear, lrelu, swish = (
        bias_act(x, act="linear", gain=2.0),
        bias_act(x, act="lrelu"),
        bias_act(x, act="swish"),
    )  # the graph lives with them
    assert all(t is None for t in linear.grad_fn.saved_tensors)
    assert lrelu.grad_fn.saved_tensors[0] is None
    assert swish.grad_fn.saved_tensors[0] is x


@relaxed
@given(
    data=st.data(),
    dtype=st.sampled_from(list(TOLERANCES)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    up=st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.sampled_from([(1, 1), (2, 2)]),
    down=st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.sampled_from([(1, 1), (2, 2)]),
    padding=st.tuples(*[st.integers(-3, 9)] * 4),
    rank=st.sampled_from([0, 1, 2]),
    flip_filter=st.booleans(),
    last=st.booleans(),
    blocks=st.sampled_from([0, 2]),
)
def test_upfirdn2d(host, data, dtype, size, up, down, padding, rank, flip_filter, last, blocks) -> None:  # noqa: F811
    shape = [data.draw(st.integers(1, 14)) for _ in range(rank)]
    f = normal(*shape, seed=1) if rank else None
    x = normal(1, 3, *size, seed=2).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    arguments = {"up": up, "down": down, "padding": padding, "flip_filter": flip_filter, "gain": -1.5}
    host.set_limits(blocks=blocks)
    leaf, reference = x.clone().requires_grad_(), x.double().requires_grad_()
    try:
        wanted = upfirdn2d(reference, f, impl="ref", **arguments)
    except ValueError:
        return
    found = upfirdn2d(leaf, f if dtype == torch.float64 or f is None else f.float(), **arguments)
    assert found.dtype == dtype and found.stride() == torch.empty_like(found).stride()
    close(found.detach(), wanted.detach(), 2 * TOLERANCES[dtype])
    dy = normal(*wanted.shape, seed=3).to(dtype)
    (dx,), (wanted_dx,) = (
        torch.autograd.grad(found, leaf, dy),
        torch.autograd.grad(wanted, reference, dy.double()),
    )
    close(dx, wanted_dx, 2 * TOLERANCES[dtype])


def test_upfirdn2d_with_more_taps_than_shared_memory_holds() -> None:
    x, f = normal(1, 1, 40, 3).float(), normal(2000, seed=1)
    arguments = {"padding": [1000, 1000, 990, 1000]}
    close(upfirdn2d(x, f.float(), **arguments), upfirdn2d(x.double(), f, impl="ref", **arguments), 1e-5)


def compare(layer, size, dtype, clamp=0.8, batch=1, **options) -> None:
    compare_layer(layer, (batch, 2, *size), dtype, TOLERANCES[dtype], clamp, **options)


@pytest.mark.parametrize("size", [(36, 38), (27, 70), (75, 41)])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_recipes(name: str, size: tuple[int, int]) -> None:
    compare(LAYERS[name], size, torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("name", LAYERS | OTHERS)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    compare((LAYERS | OTHERS)[name], (30, 27), dtype, clamp=256.0)


@pytest.mark.parametrize(
    "options",
    [
        {"slope": 0.0},
        {"slope": -0.3, "gain": -1.2},
        {"flip": True},
        {"layout": "last"},
        {"batch": 3},
    ],
)
@pytest.mark.parametrize("name", ["up", "same radial", "odd factors"])
def test_options(name: str, options) -> None:
    compare((LAYERS | OTHERS)[name], (20, 23), torch.float32, **options)


@relaxed
@given(
    name=st.sampled_from(list(LAYERS)),
    size=st.tuples(st.integers(16, 50), st.integers(16, 50)),
    pads=st.tuples(*[st.integers(-20, 14)] * 4),
    clamp=st.sampled_from([None, 0.5]),
    blocks=st.sampled_from([0, 1, 3]),
)
def test_any_padding_and_grid(host, name, size, pads, clamp, blocks) -> None:  # noqa: F811
    layer = (*LAYERS[name][:4], list(pads), LAYERS[name][5])
    host.set_limits(blocks=blocks)
    try:
        filtered_lrelu(
            torch.zeros(1, 1, *size),
            torch.ones(layer[2]),
            torch.ones(layer[3]),
            up=layer[0],
            down=layer[1],
            padding=layer[4],
        )
    except ValueError:
        return
    compare(layer, size, torch.float32, clamp)


@pytest.mark.parametrize("name", LAYERS)
def test_fused_kernels_save_the_codes_of_the_passes(host, name: str) -> None:  # noqa: F811
    up, down, taps_up, taps_down, padding, full = LAYERS[name]
    fu, fd = (
        normal(taps_up, seed=5).float(),
        (radial(taps_down) if full else normal(taps_down, seed=7)).float(),
    )
    x = normal(1, 2, 75, 70).float()
    calls = []
    original = library.filtered_lrelu
    codes = []
    for fuse in (True, False):
        host.set_limits(fuse=fuse)
        leaf = x.clone().requires_grad_()
        y = original(NAMESPACE, *_operator_arguments(leaf, fu, fd, up, down, padding))
        codes.append(next(t for t in y.grad_fn.saved_tensors if t is not None and t.dtype == torch.uint8))
        calls.append(y.detach())
    torch.testing.assert_close(calls[0], calls[1], rtol=0, atol=1e-5 * float(calls[1].abs().max()))
    assert not torch.equal(calls[0], calls[1])  # they add up in different orders: two different kernels ran
    assert codes[0].shape == codes[1].shape
    assert float((codes[0] != codes[1]).double().mean()) < 1e-4


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fuse", [False, True])
def test_gradient_on_the_kinks_themselves(host, fuse: bool, dtype: torch.dtype, full: bool) -> None:  # noqa: F811
    host.set_limits(fuse=fuse)
    check_gradient_on_the_kinks(dtype, full, channels=1)


@pytest.fixture
def tensor_cores(host):  # noqa: F811
    """The kernels on the host, of which filtered_lrelu uses emulated tensor cores where it can."""
    host.use_tensor_cores(True)
    return host


HALF = [torch.float16, torch.bfloat16]
BANDED = ["same", "crop", "up"]


def through(host, tensor_cores: bool, call):  # noqa: F811
    """The result of a call with or without tensor cores."""
    before = host.use_tensor_cores(tensor_cores)
    try:
        return call()
    finally:
        host.use_tensor_cores(before)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [(36, 38), (27, 122), (68, 42)])
@pytest.mark.parametrize("name", BANDED)
def test_images_through_tensor_cores(tensor_cores, name: str, size: tuple[int, int], dtype) -> None:
    shape = (1, 3, *size)
    y, *_, plain = run_layer(LAYERS[name], shape, dtype, dtype, "cuda", 0.8)
    close(y, run_layer(LAYERS[name], shape, dtype, torch.float64, "ref", 0.8)[0], 2 * TOLERANCES[dtype])
    torch.testing.assert_close(plain, y, rtol=0, atol=0)
    others = through(tensor_cores, False, lambda: run_layer(LAYERS[name], shape, dtype, dtype, "cuda", 0.8))
    assert not torch.equal(y, others[0])  # another kernel ran


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", BANDED)
def test_derivatives_through_tensor_cores(name: str, dtype: torch.dtype, tensor_cores) -> None:
    """Without kinks, where rounding decides on the slope of a sample."""
    compare_layer(LAYERS[name], (1, 2, 36, 58), dtype, TOLERANCES[dtype], clamp=None, slope=1.0)


@relaxed
@given(
    name=st.sampled_from(BANDED),
    size=st.tuples(st.integers(16, 50), st.integers(8, 25).map(lambda n: 2 * n)),
    pads=st.tuples(*[st.integers(-20, 14)] * 4),
    dtype=st.sampled_from(HALF),
    transposed=st.booleans(),
    blocks=st.sampled_from([0, 1, 3]),
)
def test_gates_through_tensor_cores(tensor_cores, name, size, pads, dtype, transposed, blocks) -> None:
    """With any codes and paddings, as in float32 outside the tensor cores."""
    up, down, taps_up, taps_down, _, _ = LAYERS[name]
    fu, fd = normal(taps_up, seed=5).float() / taps_up**0.5, normal(taps_down, seed=7).float() / 3
    (h, w), (left, right, top, bottom) = size, pads
    out = [
        ((n * up + a + b - taps_up + 1) - taps_down) // down + 1
        for n, a, b in ((w, left, right), (h, top, bottom))
    ]
    if min(out) < 1:
        return
    mid_w, mid_h = ((n - 1) * down + taps_down for n in out)
    geometry = [up, up, down, down, left, top, w, h, mid_w, mid_h, *out]
    codes = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (1, 2, mid_h, -(-mid_w // 4)), np.uint8)
    )
    t = normal(1, 2, *((out[1], out[0]) if transposed else (h, w)), seed=8).to(dtype)

    def gated(t: torch.Tensor) -> torch.Tensor:
        rest = (codes, None, None, geometry, False, -1.5, 0.2, 0.8, transposed)
        return tensor_cores.filtered_lrelu_gated(t, fu, fd, *rest)

    tensor_cores.set_limits(blocks=blocks)
    wanted = through(tensor_cores, False, lambda: gated(t.float()))
    # an output may be a sum of few of the terms
    close(gated(t), wanted.double(), 4 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", BANDED)
def test_tensor_cores_save_the_codes_of_the_other_kernels(
    tensor_cores, name: str, dtype: torch.dtype
) -> None:
    """But for samples so near to zero or the clamp that rounding decides."""
    up, down, taps_up, taps_down, padding, _ = LAYERS[name]
    fu, fd = normal(taps_up, seed=5).float(), normal(taps_down, seed=7).float()
    leaf = normal(1, 2, 75, 70).to(dtype).requires_grad_()

    def codes() -> torch.Tensor:
        y = library.filtered_lrelu(NAMESPACE, *_operator_arguments(leaf, fu, fd, up, down, padding))
        return next(t for t in y.grad_fn.saved_tensors if t is not None and t.dtype == torch.uint8)

    found, wanted = codes(), through(tensor_cores, False, codes)
    assert found.shape == wanted.shape
    for bits in (1, 2, 4, 8, 16, 32, 64, 128):
        assert float(((found ^ wanted) & bits != 0).double().mean()) < 3 * TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", HALF)
def test_gradient_on_the_kinks_through_tensor_cores(tensor_cores, dtype: torch.dtype) -> None:
    check_gradient_on_the_kinks(dtype, False, channels=2)


@pytest.mark.parametrize("dtype", HALF)
def test_the_grid_changes_no_bit_on_tensor_cores(tensor_cores, dtype: torch.dtype) -> None:
    results = []
    for blocks in (0, 1):
        tensor_cores.set_limits(blocks=blocks)
        results.append(run_layer(LAYERS["same"], (1, 2, 80, 66), dtype, dtype, "cuda", 0.8))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (36, 37)},
        {"slope": -0.1},
        {"slope": 0.0},
        {"slope": 1.5},
        {"gain": -1.0},
        {"name": "same radial"},
        {"dtype": torch.float32},
    ],
)
def test_where_tensor_cores_cannot_be_used_the_other_kernels_run(tensor_cores, options) -> None:
    layer, dtype = LAYERS[options.pop("name", "same")], options.pop("dtype", torch.float16)
    shape = (1, 2, *options.pop("size", (36, 38)))

    def output() -> torch.Tensor:
        return run_layer(layer, shape, dtype, dtype, "cuda", 0.8, **options)[0]

    torch.testing.assert_close(output(), through(tensor_cores, False, output), rtol=0, atol=0)


def test_an_unaligned_image_does_not_go_through_tensor_cores(tensor_cores) -> None:
    f = normal(12, seed=5).float() / 3
    x = normal(1 + 36 * 38).half()[1:].view(1, 1, 36, 38)
    call = functools.partial(filtered_lrelu, x, f, f, up=2, down=2, padding=9)
    torch.testing.assert_close(call(), through(tensor_cores, False, call), rtol=0, atol=0)


def test_nan_goes_through_tensor_cores(tensor_cores) -> None:
    f, x = normal(12, seed=5).float() / 3, normal(1, 2, 36, 38)
    x[0, 1, 20, 9] = torch.nan
    arguments = {"up": 2, "down": 2, "padding": [9, 8, 9, 8], "clamp": 1.0}
    found = filtered_lrelu(x.half(), f, f, **arguments).isnan()
    assert bool((found | ~filtered_lrelu(x, f.double(), f.double(), impl="ref", **arguments).isnan()).all())
    assert not found[0, 0].any() and not found[0, 1, :, 26:].any()


def _operator_arguments(x, fu, fd, up, down, padding):
    from torch_utils.ops.backend.resampling import AxisPlan

    (h, w), (left, right, top, bottom) = x.shape[2:], padding
    rows, columns = AxisPlan(h, len(fu), up, 1, top, bottom), AxisPlan(w, len(fu), up, 1, left, right)
    down_plans = (AxisPlan(rows.out_size, len(fd), 1, down), AxisPlan(columns.out_size, len(fd), 1, down))
    return x, (fu, fd), None, (rows, columns), down_plans, False, 2**0.5, 0.2, 0.9


# pixels of a side: one plane has more than 2^31 elements; the last tile of every kernel has more than 8 x 8
HUGE = 46540


def zeros(*shape: int) -> torch.Tensor:
    """Float16, takes memory only where it is touched."""
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20 << 30:
        pytest.skip("needs a machine with 20 GB of memory")
    return torch.from_numpy(np.zeros(shape, np.float16))


def huge(corner: torch.Tensor, last: bool = False, size: int = HUGE) -> torch.Tensor:
    """[2, C, size, size] float16 (`last`: channels_last), zero but for the far corner."""
    channels, height, width = corner.shape
    x = zeros(2, size, size, channels).permute(0, 3, 1, 2)
    x = x if last else x.reshape(2, channels, size, size)
    x[1, :, -height:, -width:] = corner
    return x


def test_bias_act_counts_beyond_32_bits(host) -> None:  # noqa: F811
    corner, b = normal(1, 2, 3000).half(), torch.tensor([5.0, -0.5]).half()
    host.set_limits(tail=3000)
    y = bias_act(huge(corner), b, 0, "swish")
    torch.testing.assert_close(
        y[1, 0, -1, -3000:].double(),
        bias_act(corner[0, -1].double() - 0.5, act="swish", impl="ref"),
        rtol=0,
        atol=4e-3,
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("taps", [(3,), (3, 3)])
def test_upfirdn2d_counts_beyond_32_bits(host, taps: tuple[int, ...], last: bool) -> None:  # noqa: F811
    corner, f = normal(2 if last else 1, 20, 20, seed=1).half(), normal(*taps, seed=2).float()
    host.set_limits(tail=2 if taps == (3,) and not last else 40)
    y = upfirdn2d(huge(corner, last), f, padding=1)
    wanted = upfirdn2d(corner[None].double(), f.double(), padding=1, impl="ref")
    torch.testing.assert_close(y[1, :, -1, -19:].double(), wanted[0, :, -1, -19:], rtol=0, atol=1e-2)


def test_upfirdn2d_counts_rows_beyond_32_bits(host) -> None:  # noqa: F811
    """With the channels last a single row may have more than 2^31 elements."""
    channels = HUGE
    corner, f = normal(1, channels, 1, 4, seed=1).half(), normal(1, 3, seed=2).float()
    x = zeros(1, 1, HUGE, channels).permute(0, 3, 1, 2)
    x[:, :, :, -4:] = corner
    host.set_limits(tail=40)
    y = upfirdn2d(x, f, padding=[1, 1, 0, 0])
    wanted = upfirdn2d(corner[:, -40:].double(), f.double(), padding=[1, 1, 0, 0], impl="ref")
    torch.testing.assert_close(y[0, -40:, 0, -1].double(), wanted[0, :, 0, -1], rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["same", "same radial"])
def test_filtered_lrelu_counts_beyond_32_bits(host, name: str) -> None:  # noqa: F811
    up, down, taps_up, taps_down, padding, full = LAYERS[name]
    fu, fd = (
        normal(taps_up, seed=5).float() / 3,
        (radial(taps_down) if full else normal(taps_down, seed=7) / 3).float(),
    )
    arguments = {"up": up, "down": down, "padding": padding}
    corner, gradient = normal(1, 50, 50, seed=1).half(), torch.zeros(1, 50, 50, dtype=torch.half)
    gradient[:, -6:, -6:] = normal(1, 6, 6, seed=2)
    small = corner[None].double().requires_grad_()
    wanted = filtered_lrelu(small, fu.double(), fd.double(), impl="ref", **arguments)
    (wanted_dx,) = torch.autograd.grad(
        wanted, small, gradient[None].double()[:, :, 50 - wanted.shape[2] :, 50 - wanted.shape[3] :]
    )
    host.set_limits(tail=1)
    x = huge(corner).requires_grad_()
    y = filtered_lrelu(x, fu, fd, **arguments)
    assert y.shape[2:] == (HUGE - 50 + wanted.shape[2], HUGE - 50 + wanted.shape[3])
    (dx,) = torch.autograd.grad(y, x, huge(gradient, size=y.shape[3]))
    close(y.detach()[1, 0, -8:, -8:], wanted.detach()[0, 0, -8:, -8:], 4 * TOLERANCES[torch.half])
    close(dx[1, 0, -8:, -8:], wanted_dx[0, 0, -8:, -8:], 4 * TOLERANCES[torch.half])


def test_tensor_cores_count_beyond_32_bits(tensor_cores) -> None:
    """The last of many planes, like one alone."""
    f = normal(12, seed=5).float() / 3
    arguments = {"up": 2, "down": 2, "padding": [9, 8, 9, 8], "clamp": 1.0}
    corner, gradient = normal(1, 1, 60, 50, seed=1).half(), normal(1, 1, 58, 48, seed=2).half()
    planes = (1 << 31) // corner.numel() + 2
    x, dy = zeros(1, planes, 60, 50), zeros(1, planes, 58, 48)
    x[0, -1], dy[0, -1] = corner[0, 0], gradient[0, 0]
    results = []
    tensor_cores.set_limits(tail=1)
    for image, by in ((x, dy), (corner, gradient)):
        y = filtered_lrelu(image.requires_grad_(), f, f, **arguments)
        (dx,) = torch.autograd.grad(y, image, by)
        results.append((y.detach()[0, -1], dx[0, -1]))
        tensor_cores.set_limits()
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_passes_count_beyond_32_bits(host) -> None:  # noqa: F811
    corner = normal(1, 40, 40, seed=1).half()
    host.set_limits(tail=100)
    x = huge(corner).requires_grad_()
    y = filtered_lrelu(x, None, None, down=3)
    wanted = filtered_lrelu(corner[None].double(), None, None, down=3, impl="ref")
    close(y.detach()[1, 0, -1, -10:], wanted[0, 0, -1, -10:], 4 * TOLERANCES[torch.half])


def test_empty_batches() -> None:
    x = torch.zeros(0, 3, 20, 20, requires_grad=True)
    y = filtered_lrelu(x, torch.ones(12), torch.ones(12), torch.zeros(3), up=2, down=2, padding=9)
    y.sum().backward()
    assert x.grad is not None and bias_act(torch.zeros(0, 3), torch.ones(3), act="relu").shape == (0, 3)
    assert upfirdn2d(torch.zeros(2, 0, 8, 8), torch.ones(4), down=2).shape == (2, 0, 3, 3)


def test_derivatives_numerically() -> None:
    x, b = normal(1, 2, 5, 4, seed=7).requires_grad_(), normal(2, seed=8).requires_grad_()
    f = normal(4, seed=9)
    for call in (
        lambda x, b: filtered_lrelu(x, f, f, b, up=2, down=2, padding=4, clamp=0.9),
        lambda x, b: upfirdn2d(bias_act(x, b, act="swish", clamp=2.0), f, up=2, down=3, padding=3),
        lambda x, b: bias_act(x, b, act="softplus"),
        lambda x, b: bias_act(x, b, act="tanh", clamp=0.9),
    ):
        assert torch.autograd.gradcheck(call, (x, b), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (x, b), fast_mode=True)


@pytest.mark.parametrize("case", goldens.LRELU)
def test_filtered_lrelu_goldens(case: str) -> None:
    goldens.check_filtered_lrelu(case, "cuda")


@pytest.mark.parametrize("case", [name for name, t in goldens.UPFIRDN.items() if "x" in t])
def test_upfirdn2d_goldens(case: str) -> None:
    goldens.check_upfirdn2d_and_its_wrappers(case, "cuda")


@pytest.mark.parametrize("case", goldens.BIAS_ACT)
def test_bias_act_goldens(case: str) -> None:
    (goldens.check_bias_act_on_kinks_and_clamps if case.startswith("edge") else goldens.check_bias_act)(case)
