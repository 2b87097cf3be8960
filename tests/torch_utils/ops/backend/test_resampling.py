# SPDX-License-Identifier: Apache-2.0
"""upfirdn2d and filtered_lrelu: the fast path against the plain one, derivatives, layouts, dtypes,
mistakes.
"""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.example_counts import examples
from torch_utils.ops.backend import resampling
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lowpass(taps: int) -> torch.Tensor:
    f = torch.hann_window(taps + 2, periodic=False, dtype=torch.float64)[1:-1]
    return f / f.sum()


def radial(taps: int = 12) -> torch.Tensor:
    position = np.arange(taps) - (taps - 1) / 2
    radius = np.hypot(*np.meshgrid(position, position))
    f = scipy.special.j1(0.8 * radius) / radius * np.outer(np.kaiser(taps, 4), np.kaiser(taps, 4))
    return torch.from_numpy(f / f.sum())


@settings(max_examples=examples(60), deadline=None)
@given(
    data=st.data(),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    up=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    down=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(*[st.integers(-3, 9)] * 4),
    rank=st.sampled_from([0, 1, 2]),
    flip_filter=st.booleans(),
    gain=st.sampled_from([1.0, 4.0, -0.5]),
)
def test_fast_and_plain_paths_agree(data, size, up, down, padding, rank, flip_filter, gain) -> None:
    shape = [data.draw(st.integers(1, 7)) for _ in range(rank)]
    f = normal(*shape, seed=1) if rank else None
    x = normal(2, 3, *size, seed=2).requires_grad_()
    arguments = {"up": up, "down": down, "padding": padding, "flip_filter": flip_filter, "gain": gain}
    try:
        wanted = upfirdn2d(x, f, impl="ref", **arguments)
    except ValueError as error:
        assert "would be empty" in str(error)
        with pytest.raises(ValueError, match="would be empty"):
            upfirdn2d(x, f, **arguments)
        return
    found = upfirdn2d(x, f, **arguments)
    torch.testing.assert_close(found, wanted)
    dy = normal(*wanted.shape, seed=3)
    torch.testing.assert_close(torch.autograd.grad(found, x, dy), torch.autograd.grad(wanted, x, dy))


@pytest.mark.parametrize("chunk", [1, 2000, 1 << 20])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("n,c", [(1, 1), (3, 5), (2, 70)])
def test_chunks_and_layouts_change_nothing(
    monkeypatch, chunk: int, layout: torch.memory_format, n: int, c: int
) -> None:
    monkeypatch.setattr(resampling, "_CHUNK_ELEMENTS", chunk)
    x = normal(n, c, 9, 8).contiguous(memory_format=layout).requires_grad_()
    b, f = normal(c, seed=1), lowpass(12)
    results = {}
    for impl in ("ref", "cuda"):
        y = filtered_lrelu(x, f, f, b, up=2, down=2, padding=[9, 10, 11, 8], clamp=0.5, impl=impl)
        assert impl == "ref" or y.is_contiguous(memory_format=layout)
        (dx,) = torch.autograd.grad(y, x, torch.ones(()).double().expand(y.shape))
        results[impl] = y.detach(), dx
    torch.testing.assert_close(results["cuda"], results["ref"])


@pytest.mark.parametrize("size", [100, 277])
def test_long_axes_are_cut_into_tiles(size: int) -> None:
    f = lowpass(12)
    x = normal(1, 2, size, 5)
    rows = resampling.AxisPlan(size, 12, 2, 1, 9, 8)
    made = resampling.make_resampler(
        f, rows, resampling.AxisPlan(5, 12, 2, 1, 9, 8), False, 4.0, torch.float64
    )
    assert made is not None
    tiles = made.terms[0][0].tiles
    assert [t.out_start for t in tiles[1:]] == [t.out_stop for t in tiles[:-1]] and tiles[
        -1
    ].out_stop == rows.out_size
    assert sum(t.matrix.numel() for t in tiles) < 24 * rows.out_size  # a dense matrix has `size` per output
    arguments = {"up": 2, "padding": [9, 8, 9, 8], "gain": 4.0}
    torch.testing.assert_close(upfirdn2d(x, f, **arguments), upfirdn2d(x, f, impl="ref", **arguments))


def test_radial_filter_takes_few_terms_and_keeps_its_precision() -> None:
    f = radial()
    plan = resampling.AxisPlan(40, 12, 1, 2)
    single = resampling.make_resampler(f, plan, plan, False, 1.0, torch.float32)
    assert single is not None and 2 <= len(single.terms) <= 6
    x = normal(2, 3, 40, 40)
    wanted = upfirdn2d(x, f, down=2, impl="ref")
    torch.testing.assert_close(upfirdn2d(x, f, down=2), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        upfirdn2d(x.float(), f, down=2), wanted.float(), rtol=0, atol=1e-6 * float(wanted.abs().max())
    )


def test_filters_with_a_gradient_get_it() -> None:
    x, f = normal(1, 2, 6, 7), normal(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: upfirdn2d(x, f, up=2, down=3, padding=2, gain=3), f)


FILTERS = {
    "separable": (lowpass(4), lowpass(6)),
    "full": (normal(3, 4, seed=5), normal(4, 3, seed=6)),
    "up only": (lowpass(4), None),
}


@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize("gain,slope", [(2**0.5, 0.2), (1.0, 0.0), (-1.2, 1.5)])
@pytest.mark.parametrize("filters", FILTERS)
def test_filtered_lrelu_derivatives(filters: str, gain: float, slope: float, clamp: float | None) -> None:
    fu, fd = FILTERS[filters]
    x, b = normal(2, 2, 4, 3, seed=7).requires_grad_(), normal(2, seed=8).requires_grad_()

    def call(x: torch.Tensor, b: torch.Tensor | None, impl: str = "cuda") -> torch.Tensor:
        return filtered_lrelu(
            x, fu, fd, b, up=2, down=1, padding=3, gain=gain, slope=slope, clamp=clamp, impl=impl
        )

    torch.testing.assert_close(call(x, b), call(x, b, "ref"))
    assert torch.autograd.gradcheck(call, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, b), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: call(x, None), (x,), fast_mode=True)


def test_upfirdn2d_derivatives() -> None:
    x = normal(1, 2, 5, 4).requires_grad_()
    for f in (lowpass(5), normal(2, 3)):
        assert torch.autograd.gradgradcheck(lambda x, f=f: upfirdn2d(x, f, up=3, down=2, padding=2), (x,))


def test_gradient_on_kinks_and_clamps_is_that_of_the_plain_path() -> None:
    values = torch.tensor([-10.0, -5.0, -1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    x = values.expand(1, 1, 7, 7).clone().requires_grad_()
    f = normal(3)
    grads = []
    for impl in ("ref", "cuda"):
        y = filtered_lrelu(x, None, f, gain=1.0, clamp=1.0, impl=impl)
        grads.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(grads[1], grads[0])
    assert (grads[1][..., [0, 1, 5, 6]] == 0).all() and (grads[1][..., 2, 3:5] != 0).all()


def test_rarely_reached_clamp_masks_only_where_it_is_reached() -> None:
    x = normal(1, 40, 8, 8)
    x[0, 3, 4, 4] = 1e4
    x.requires_grad_()
    f = lowpass(12)
    grads = [
        torch.autograd.grad(
            filtered_lrelu(x, f, f, up=2, down=2, padding=[9, 8, 9, 8], clamp=256, impl=i).sum(), x
        )[0]
        for i in ("ref", "cuda")
    ]
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 2**-7), (torch.float16, 2**-9)])
def test_half_precision_is_close_to_float32(dtype: torch.dtype, tolerance: float) -> None:
    f = lowpass(12).float()
    x, b = (
        normal(2, 6, 12, 12, dtype=torch.float32).to(dtype),
        normal(6, seed=1, dtype=torch.float32).to(dtype),
    )
    outputs = []
    for kind in (torch.float32, dtype):
        leaf = x.to(kind).requires_grad_()
        y = filtered_lrelu(leaf, f, f, b.to(kind), up=2, down=2, padding=[9, 8, 9, 8], clamp=256)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        assert y.dtype == dx.dtype == kind
        outputs.append((y.detach().float(), dx.float()))
    for low, high in zip(outputs[1], outputs[0], strict=True):
        assert float((low - high).abs().max()) <= tolerance * float(high.abs().max())


def test_half_precision_gradients_sum_into_a_float32_bias() -> None:
    x = normal(2, 3, 6, 6, dtype=torch.float32).bfloat16()
    b = torch.zeros(3, requires_grad=True)
    filtered_lrelu(x, lowpass(4).float(), None, b, up=2, padding=2).float().sum().backward()
    assert b.grad is not None and b.grad.dtype == torch.float32 and (b.grad != 0).all()


def test_empty_batches_pass() -> None:
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = filtered_lrelu(x, lowpass(4).float(), lowpass(4).float(), torch.zeros(3), up=2, down=2, padding=4)
    assert y.shape == (0, 3, 9, 9)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert upfirdn2d(torch.zeros(2, 0, 8, 8), lowpass(4).float(), down=2).shape == (2, 0, 3, 3)


def test_a_changed_filter_is_not_mistaken_for_its_old_self() -> None:
    x, f = normal(1, 1, 5, 5), lowpass(3).clone()
    before = upfirdn2d(x, f)
    f *= 2
    torch.testing.assert_close(upfirdn2d(x, f), before * 4)


def test_matrices_made_in_inference_mode_work_in_training() -> None:
    f = normal(5, seed=11)
    with torch.inference_mode():
        upfirdn2d(torch.zeros(1, 1, 6, 6), f.float())
    x = torch.zeros(1, 1, 6, 6, requires_grad=True)
    upfirdn2d(x, f.float()).sum().backward()
    assert x.grad is not None


def test_wrappers_keep_sizes_and_means() -> None:
    x, f = torch.ones(1, 2, 8, 6), setup_filter([1, 3, 3, 1])
    assert filter2d(x, f).shape == (1, 2, 8, 6)
    assert upsample2d(x, f, up=(2, 3)).shape == (1, 2, 24, 12)
    assert downsample2d(x, f, down=2).shape == (1, 2, 4, 3)
    torch.testing.assert_close(upsample2d(x, f)[..., 4:-4, 4:-4], torch.ones(1, 2, 8, 4))
    torch.testing.assert_close(downsample2d(x, f)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 1))


X = torch.zeros(1, 2, 8, 8)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: upfirdn2d(X[0], None), r"x must be a floating-point tensor \[N, C, H, W\]"),
        (lambda: upfirdn2d(X.byte(), None), "not torch.uint8"),
        (lambda: upfirdn2d(X, torch.ones(2, 2, 2)), "filter f must be None or"),
        (lambda: upfirdn2d(X, torch.ones(2, dtype=torch.int64)), "filter f must be None or"),
        (lambda: upfirdn2d(X, None, up=0), "up=0 must be a positive integer"),
        (lambda: upfirdn2d(X, None, down=(1, 2, 3)), r"down=\(1, 2, 3\) must be"),
        (lambda: upfirdn2d(X, None, padding=[1, 2, 3]), r"padding=\[1, 2, 3\] must be"),
        (lambda: upfirdn2d(X, None, padding=-4), "would be empty"),
        (lambda: upfirdn2d(X, None, impl="fast"), "impl='fast' is not a known implementation"),
        (lambda: filtered_lrelu(X, impl="fast"), "impl='fast' is not a known implementation"),
        (lambda: filtered_lrelu(X, torch.ones(4), up=2, b=torch.ones(3)), r"bias must have shape \(2,\)"),
        (lambda: filtered_lrelu(X, torch.ones(4), up=2, clamp=-1), "clamp=-1 must not be negative"),
        (lambda: filtered_lrelu(X, None, torch.ones(1, 1, 1)), "filter fd must be None or"),
        (lambda: filtered_lrelu(X, None, torch.ones(12)), "would be empty"),
        (lambda: setup_filter([]), "at least one tap"),
        (lambda: setup_filter([[1, 2], [3, 4]], separable=True), "separable=True needs"),
    ],
)
def test_mistakes_get_one_line(call, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
