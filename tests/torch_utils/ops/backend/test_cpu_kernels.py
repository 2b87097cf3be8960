# SPDX-License-Identifier: Apache-2.0
"""The native CPU kernels against float64 references, and how they are built and found.

torch fills new tensors with NaN while these tests run, so an element that a kernel leaves out fails its
comparison.
"""

import itertools
import multiprocessing
import platform
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnnlib.util import make_cache_dir_path
from tests import waiting
from tests.example_counts import examples
from tests.torch_utils.ops.references import (
    LAYERS,
    OTHERS,
    check_gradient_on_the_kinks,
    close,
    close_gradients,
    compare_layer,
    lay_out,
    normal,
    run_layer,
)
from torch_utils.ops.backend import cpu_extension, cpu_kernels, extension, library
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

ROOT = Path(__file__).resolve().parents[4]
relaxed = settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pytestmark = pytest.mark.once
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
needs_compiler = pytest.mark.skipif(extension.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def kernels():
    """Fails where there is a compiler and yet no kernels."""
    if cpu_extension.instructions() is None or (
        extension.compiler() is None and cpu_extension.find() is None
    ):
        pytest.skip("needs the kernels or a C++ compiler")
    assert cpu_kernels.ready(torch.float32) and not cpu_kernels.ready(torch.float64)
    torch.use_deterministic_algorithms(True)
    yield cpu_kernels
    torch.use_deterministic_algorithms(False)


OPS = getattr(torch.ops, library.NAMESPACE)
ACTS = list(activation_funcs)


@relaxed
@given(
    data=st.data(),
    act=st.sampled_from(ACTS),
    dtype=st.sampled_from(list(TOLERANCES)),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3)
    | st.tuples(*[st.integers(1, 40)] * 2, *[st.integers(1, 24)] * 2),
    clamp=st.sampled_from([None, 0.7]),
    gain=st.sampled_from([None, -1.5, 0.0]),
    alpha=st.sampled_from([None, 0.0, -0.5]),
    bias=st.booleans(),
    layout=st.sampled_from(["first", "last", "strided"]),
)
def test_bias_act(kernels, data, act, dtype, shape, clamp, gain, alpha, bias, layout) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    x, dy, v = (normal(*shape, seed=s).to(dtype) for s in range(3))
    if len(shape) == 4 or layout == "strided":
        x = lay_out(x, layout)
    b = normal(shape[dim], seed=3).to(dtype) if bias else None
    spec = activation_funcs[act]
    # Elements on a kink or near the clamp, where rounding decides on the slope, pass no gradient.
    places = [-1 if axis == dim else 1 for axis in range(len(shape))]
    biased = x.double() if b is None else x.double() + b.double().reshape(places)
    slope, factor = (spec.def_alpha if alpha is None else alpha), (spec.def_gain if gain is None else gain)

    value = factor * spec.func(biased, slope)
    decided = biased != 0 if clamp is None else (biased != 0) & ((value.abs() - clamp).abs() > 1e-5)
    dy, v = dy * decided, v * decided

    def both(native: bool, kind: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(kind).requires_grad_() for t in (x, dy, *([] if b is None else [b]))]
        bias = leaves[2] if b is not None else None
        if native:
            y = library.bias_act(library.NAMESPACE, leaves[0], bias, dim, act, slope, factor, clamp)
        else:
            y = bias_act(leaves[0], bias, dim, act, slope, factor, clamp, impl="ref")
        inputs = [leaves[0], *leaves[2:]]
        first = torch.autograd.grad(y, inputs, leaves[1], create_graph=True)
        second = torch.autograd.grad(
            first[0], [leaves[1], *inputs], v.to(kind), allow_unused=True, materialize_grads=True
        )
        return [t.detach() for t in (y, *first, *second)]

    found, wanted = both(True, dtype), both(False, torch.float64)
    close(found[0], wanted[0], TOLERANCES[dtype])
    if (
        dtype == torch.float32
    ):  # in bfloat16 whole gradients differ where rounding crosses a kink or the clamp
        close_gradients(found[1:], wanted[1:], 10 * TOLERANCES[dtype])


@pytest.mark.parametrize("act", range(9))
def test_bias_act_derivatives_in_bfloat16(kernels, act: int) -> None:
    """From the same saved tensors as the float64 formulas."""
    x, b, dy, ddx = (
        t.bfloat16()
        for t in (normal(3, 5, 7), normal(5, seed=1), normal(3, 5, 7, seed=2), normal(3, 5, 7, seed=3))
    )
    rest = (1, act, 0.25, 1.5, 0.75)
    saved = (x, b, None) if ACTS[act] == "swish" else (None, None, OPS.bias_act(x, b, *rest))
    for operator, arguments in ((OPS.bias_act_grad, (dy, *saved)), (OPS.bias_act_grad2, (ddx, dy, *saved))):
        wanted = operator(*(None if t is None else t.double() for t in arguments), *rest)
        close(operator(*arguments, *rest), wanted, 2 * TOLERANCES[torch.bfloat16])


def test_bias_act_passes_no_gradient_on_a_clamp_that_rounding_moved(kernels) -> None:
    for clamp in (0.7, 0.3):  # one rounds up, one down
        y = torch.full((40,), clamp).bfloat16()
        assert not OPS.bias_act_grad(
            torch.ones_like(y), None, None, y, 0, ACTS.index("linear"), 0.0, 1.0, clamp
        ).any()


@pytest.mark.parametrize("act", ["tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
def test_functions_are_exact_to_two_units_in_the_last_place(kernels, act: str) -> None:
    x = torch.cat(
        [
            normal(20000, seed=i).float() * scale
            for i, scale in enumerate((1e-30, 1e-3, 0.1, 1.0, 10.0, 40.0, 1e10))
        ]
    )
    x = x[(x > -80) | (x < -200)]  # between them results leave the normal numbers
    wanted = activation_funcs[act].func(x.double(), 0.0)
    found = OPS.bias_act(x, None, 0, ACTS.index(act), 0.0, 1.0, -1.0).double()
    assert bool(((found - wanted).abs() <= 2 * torch.finfo(torch.float32).eps * wanted.abs() + 1e-37).all())
    special = torch.tensor([0.0, -0.0, float("inf"), float("nan"), -1e30, 3e38])
    found = OPS.bias_act(special, None, 0, ACTS.index(act), 0.0, 1.0, -1.0)
    torch.testing.assert_close(
        found, activation_funcs[act].func(special, 0.0), rtol=1e-6, atol=0, equal_nan=True
    )


def test_sigmoid_of_large_numbers_leaves_the_normal_numbers_slowly(kernels) -> None:
    x = torch.tensor([-86.0, -88.5, -95.0, -103.0, -109.0, -1e9])
    found = OPS.bias_act(x, None, 0, ACTS.index("sigmoid"), 0.0, 1.0, -1.0)
    torch.testing.assert_close(found.double(), torch.sigmoid(x.double()), rtol=1e-6, atol=2.0**-148)


@pytest.mark.parametrize(
    "shape,dim",
    [
        ((3, 40000), 0),
        ((5, 70001), 1),
        ((2, 3, 150, 151), 1),
        ((700, 3, 5, 5), 1),
        ((90001, 3), 1),
        ((2, 3, 9001), -1),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_bias_act_and_its_sums_in_many_tasks_and_threads(
    kernels, shape: tuple[int, ...], dim: int, last: bool
) -> None:
    x, b = normal(*shape).float(), normal(shape[dim], seed=1).float()
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    rest = (dim % len(shape), ACTS.index("lrelu"), 0.2, 1.5, 0.9)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((OPS.bias_act(x, b, *rest), OPS.channel_sums(x, dim)))
    finally:
        torch.set_num_threads(before)
    close(
        results[0][0],
        bias_act(x.double(), b.double(), *rest[:1], "lrelu", *rest[2:], impl="ref"),
        TOLERANCES[torch.float32],
    )
    close(
        results[0][1],
        x.double().sum([axis for axis in range(x.ndim) if axis != dim % x.ndim]),
        TOLERANCES[torch.float32],
    )
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("layout", ["first", "last", "strided"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 4, 4), (2, 17, 8, 9), (0, 3, 4, 4), (4, 130, 1, 1)]
)
def test_channel_sums(kernels, dtype: torch.dtype, layout: str, shape: tuple[int, ...]) -> None:
    x = lay_out(normal(*shape).to(dtype), layout)
    close(OPS.channel_sums(x, 1), x.double().sum((0, 2, 3)), TOLERANCES[torch.float32])


def test_bias_act_uses_the_kernel_where_it_pays(kernels, monkeypatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(library, "bias_act", lambda namespace, x, *rest: calls.append(x.numel()) or x)
    for count in (1000, 20_000, 200_000):
        x = torch.zeros(count)
        for arguments in (
            {"act": "lrelu"},
            {"act": "swish"},
            {"act": "linear"},
            {"act": "linear", "clamp": 1.0},
            {"act": "lrelu", "impl": "ref"},
        ):
            bias_act(x, **arguments)
        torch.func.vmap(lambda x: bias_act(x, act="lrelu"))(x.reshape(2, -1))
    assert calls == [20_000, 20_000, 200_000, 200_000, 200_000]


@relaxed
@given(
    data=st.data(),
    dtype=st.sampled_from(list(TOLERANCES)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 60), st.integers(1, 60)),
    up=st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.sampled_from([(1, 1), (2, 2)]),
    down=st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.sampled_from([(1, 1), (2, 2)]),
    padding=st.tuples(*[st.integers(-9, 30)] * 4),
    rank=st.sampled_from([0, 1, 2]),
    flip_filter=st.booleans(),
    layout=st.sampled_from(["first", "last", "strided"]),
)
def test_upfirdn2d(kernels, data, dtype, shape, up, down, padding, rank, flip_filter, layout) -> None:
    taps = [data.draw(st.integers(1, 14)) for _ in range(rank)]
    f = normal(*taps, seed=1) if rank else None
    x = normal(*shape, seed=2).to(dtype)
    arguments = {"up": up, "down": down, "padding": padding, "flip_filter": flip_filter, "gain": -1.5}
    leaf, reference = lay_out(x, layout).detach().requires_grad_(), x.double().requires_grad_()
    try:
        wanted = upfirdn2d(reference, f, impl="ref", **arguments)
    except ValueError:
        return
    found = upfirdn2d(leaf, None if f is None else f.float(), **arguments)
    assert found.dtype == dtype and (
        layout == "strided" or found.stride() == torch.empty_like(found).stride()
    )
    close(found.detach(), wanted.detach(), TOLERANCES[dtype])
    dy = normal(*wanted.shape, seed=3).to(dtype)
    (dx,), (wanted_dx,) = (
        torch.autograd.grad(found, leaf, dy),
        torch.autograd.grad(wanted, reference, dy.double()),
    )
    close(dx, wanted_dx, TOLERANCES[dtype])


def compare(layer, shape, dtype, clamp=0.8, **options) -> None:
    compare_layer(layer, shape, dtype, TOLERANCES[dtype], clamp, **options)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("shape", [(1, 18, 36, 38), (2, 5, 27, 70), (1, 3, 75, 41)])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_recipes(kernels, name: str, shape: tuple[int, ...], layout: str) -> None:
    compare(LAYERS[name], shape, torch.float32, layout=layout)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("name", LAYERS | OTHERS)
def test_dtypes(kernels, name: str, dtype: torch.dtype) -> None:
    compare((LAYERS | OTHERS)[name], (2, 17, 30, 27), dtype, clamp=256.0)


def test_wide_and_tall_images_are_cut_into_tiles(kernels) -> None:
    compare(LAYERS["same"], (1, 2, 130, 251), torch.float32)
    compare(LAYERS["up radial"], (1, 1, 110, 109), torch.float32)


@pytest.mark.parametrize(
    "options",
    [{"slope": 0.0}, {"slope": -0.3, "gain": -1.2}, {"gain": 0.0}, {"flip": True}, {"layout": "strided"}],
)
@pytest.mark.parametrize("name", ["up", "same radial", "odd factors"])
def test_options(kernels, name: str, options) -> None:
    compare((LAYERS | OTHERS)[name], (1, 3, 20, 23), torch.float32, **options)


@relaxed
@given(
    name=st.sampled_from(list(LAYERS | OTHERS)),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(8, 28), st.integers(8, 28)),
    pads=st.tuples(*[st.integers(-12, 24)] * 4),
    clamp=st.sampled_from([None, 0.5]),
    layout=st.sampled_from(["first", "last"]),
)
def test_any_padding(kernels, name, shape, pads, clamp, layout) -> None:
    layer = (*(LAYERS | OTHERS)[name][:4], list(pads), (LAYERS | OTHERS)[name][5])
    up, down, taps_up, taps_down = layer[:4]
    try:
        filtered_lrelu(
            torch.zeros(1, 1, *shape[2:]),
            torch.ones(taps_up or 1),
            torch.ones(taps_down or 1),
            up=up,
            down=down,
            padding=list(pads),
        )
    except ValueError:
        return
    compare(layer, shape, torch.float32, clamp, layout=layout)


def test_results_do_not_depend_on_threads(kernels) -> None:
    before = torch.get_num_threads()
    results = []
    many, f = (
        normal(16, 64, 40, 40).float(),
        normal(12).float() / 3,
    )  # work for long enough that all threads take part
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert cpu_kernels._threads(1 << 20) == threads and cpu_kernels._threads(100) == 1
            runs = [[filtered_lrelu(many, f, f, up=2, down=2, padding=9), upfirdn2d(many, f, padding=6)]]
            runs += [
                run_layer(LAYERS[name], (2, 20, 60, 60), torch.float32, torch.float32, "cuda", 0.8)
                for name in LAYERS
            ]
            results.append(
                [t for run in runs for i, t in enumerate(run) if i != 2]
            )  # the bias gradient is torch's own sum
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_visible(kernels) -> None:
    for layout, dtype in itertools.product(("first", "last"), TOLERANCES):
        x = lay_out(torch.zeros(1, 17, 20, 20), layout).to(dtype)
        x[0, 16, 10, 10] = float("nan")
        f = torch.ones(12) / 12
        y = filtered_lrelu(x, f, f, up=2, down=2, padding=[9, 8, 9, 8], clamp=1.0)
        assert (
            y[0, 16, 10, 10].isnan()
            and y[0, :16].isfinite().all()
            and upfirdn2d(x, f, padding=6)[0, 16, 11, 11].isnan()
        )


def test_results_are_rounded_to_bfloat16_as_torch_does(kernels) -> None:
    x = torch.arange(1, 1 << 10).bfloat16()[:, None] + torch.zeros(1, 40)
    b = torch.linspace(
        -3, 3, 40
    ).bfloat16()  # sums in float32 are exact, and every other one of many is a tie
    found = OPS.bias_act(x.bfloat16(), b, 1, ACTS.index("linear"), 0.0, 1.0, -1.0)
    assert torch.equal(found, (x + b.float()).bfloat16())
    # A NaN whose bits rounding would carry into the sign.
    f = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    for layout in ("first", "last"):
        assert upfirdn2d(lay_out(torch.ones(1, 17, 20, 20), layout).bfloat16(), f).isnan().all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_gradient_on_the_kinks_themselves(kernels, dtype: torch.dtype, full: bool) -> None:
    check_gradient_on_the_kinks(dtype, full, channels=18)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("channels", [70, 512, 520])
def test_many_channels(kernels, channels: int, layout: str) -> None:
    """More than are computed together; steps of memory whose lines fall into few sets of a cache, and others
    as long.
    """
    compare(LAYERS["same"], (1, channels, 8, 9), torch.float32, layout=layout)
    x, f = lay_out(normal(1, channels, 7, 6), layout), normal(5, seed=1)
    close(
        upfirdn2d(x.float(), f.float(), up=2, padding=4),
        upfirdn2d(x, f, up=2, padding=4, impl="ref"),
        TOLERANCES[torch.float32],
    )


def test_planes_that_are_not_evenly_spaced(kernels) -> None:
    x, f = normal(3, 7, 20, 21).float()[:, 2:5], normal(5, seed=1)
    close(
        upfirdn2d(x, f.float(), padding=4),
        upfirdn2d(x.double(), f, padding=4, impl="ref"),
        TOLERANCES[torch.float32],
    )


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("layout", ["first", "last"])
def test_nothing_is_written_beside_the_output(monkeypatch, kernels, layout: str, dtype: torch.dtype) -> None:
    """Outputs within larger memory, whose other elements stay as they are."""
    guards: list[tuple[torch.Tensor, torch.Tensor]] = []
    empty, like = torch.empty, torch.empty_like

    def guarded(t: torch.Tensor) -> torch.Tensor:
        memory = torch.full((t.numel() + 2048,), 7.0, dtype=t.dtype)
        guards.append((memory[:1024], memory[1024 + t.numel() :]))
        return torch.as_strided(memory, t.shape, t.stride(), 1024).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", lambda *args, **options: guarded(empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda t: guarded(like(t)))
    f = torch.ones(12) / 12
    for shape in ((2, 3, 20, 21), (1, 18, 9, 8), (1, 1, 100, 130)):
        x, b = lay_out(torch.ones(shape), layout).to(dtype), torch.ones(shape[1], dtype=dtype)
        found = [
            cpu_kernels.bias_act(0, x, None, None, b, None, 1, ACTS.index("lrelu"), 0.2, 1.0, -1.0),
            upfirdn2d(x, f, padding=6),
            filtered_lrelu(x, f, f, b, up=2, down=2, padding=[9, 8, 9, 8]),
        ]
        assert all(t.isfinite().all() for t in found)
    assert len(guards) >= 9 and all(bool((side == 7).all()) for pair in guards for side in pair)


def test_codes_take_two_bits_per_sample_and_the_input_is_not_kept(kernels) -> None:
    x, f = normal(1, 16, 20, 20).float().requires_grad_(), torch.ones(12) / 12
    y = filtered_lrelu(x, f, f, up=2, down=2, padding=[9, 8, 9, 8])  # the graph lives with it
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert sorted(t.dtype == torch.uint8 for t in saved) == [False, False, True] and not any(
        t is x for t in saved
    )
    assert next(t for t in saved if t.dtype == torch.uint8).numel() == 16 * 46 * 46 / 4


def test_derivatives_pass_opcheck(kernels) -> None:
    ops = getattr(torch.ops, library.NAMESPACE)
    geometry = [2, 2, 2, 2, 9, 9, 8, 7, 22, 20, 6, 5]  # 8 x 7 pixels, 12 taps both ways
    image, b, f = (
        normal(1, 2, 7, 8).float().requires_grad_(),
        normal(2, seed=1).float().requires_grad_(),
        normal(12, seed=5).float() / 3,
    )
    tail = (geometry, False, 1.4, 0.2, 0.9)
    torch.library.opcheck(ops.filtered_lrelu.default, (image, f, f, b, *tail, True))
    torch.library.opcheck(ops.upfirdn2d.default, (image, f, [2, 1, 1, 2, 5, 4, 14, 3], True, 2.0))
    _, codes = ops.filtered_lrelu(image, f, f, b, *tail, True)
    for transposed in (False, True):
        t = normal(*((1, 2, 5, 6) if transposed else (1, 2, 7, 8)), seed=6).float().requires_grad_()
        torch.library.opcheck(
            ops.filtered_lrelu_gated.default, (t, f, f, codes, None, None, *tail, transposed)
        )


def test_a_forked_process_does_not_wait_for_its_parents_threads(kernels) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_layer(LAYERS["same"], (1, 32, 40, 40), torch.float32, torch.float32, "cuda", 0.8)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(
            target=_threads_in_a_child, args=(queue,), daemon=True
        )  # one that waits for ever ends with this process
        child.start()
        waiting.join(child)
        assert child.exitcode == 0 and queue.get() == 1
    finally:
        torch.set_num_threads(before)


def _threads_in_a_child(queue) -> None:
    f = torch.ones(12) / 12
    x = torch.zeros(
        1, 8, 60, 60
    )  # few enough pixels for torch's own operations to stay in one thread, too many for the kernel
    filtered_lrelu(x, f, f, up=2, down=2, padding=[9, 8, 9, 8])
    queue.put(cpu_kernels._threads(1 << 30))


def test_one_pool_of_threads(kernels) -> None:
    code = (
        "import torch\nfrom pathlib import Path\nfrom torch_utils.ops.backend import cpu_kernels\n"
        "pools = lambda: {line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line or "
        "'libiomp' in line or '/libomp' in line}\n"
        "before = pools()\nassert cpu_kernels.ready(torch.float32)\nassert pools() == before, pools()\n"
    )
    waiting.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_machines_that_differ_do_not_share_a_library(monkeypatch) -> None:
    name = cpu_extension.library_name()
    monkeypatch.setattr(cpu_extension, "_cpu", lambda: "another")
    cpu_extension.library_name.cache_clear()
    assert cpu_extension.library_name() != name
    cpu_extension.library_name.cache_clear()


@pytest.fixture
def unloaded(monkeypatch, tmp_path):
    """Nothing built, nothing loaded."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    for variable in (extension.FOLDER_VARIABLE, cpu_extension.INSTRUCTIONS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    caches = cpu_extension.load, cpu_kernels._library, cpu_extension.library_name
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instruction sets of x86-64")
@pytest.mark.parametrize("cpu", ["x86-64-v3", pytest.param("x86-64", marks=pytest.mark.slow)])
def test_processors_with_shorter_vectors(monkeypatch, unloaded, cpu: str) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text() and cpu != "x86-64":
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv(cpu_extension.INSTRUCTIONS_VARIABLE, cpu)
    assert cpu_kernels.ready(torch.float32) and cpu_extension.load().ops_lanes() == 8
    for name, layout in itertools.product(LAYERS | OTHERS, ("first", "last")):
        compare((LAYERS | OTHERS)[name], (2, 21, 30, 27), torch.float32, layout=layout)
    compare(LAYERS["same"], (2, 21, 30, 27), torch.bfloat16, clamp=256.0)
    test_nan_stays_visible(cpu_kernels)
    test_results_are_rounded_to_bfloat16_as_torch_does(cpu_kernels)
    for dtype, full in itertools.product(TOLERANCES, (False, True)):
        test_gradient_on_the_kinks_themselves(cpu_kernels, dtype, full)


def test_without_a_compiler_matrix_products_run_silently(monkeypatch, unloaded) -> None:
    monkeypatch.setattr(cpu_extension, "compiler", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpu_kernels.ready(torch.float32)
        compare(LAYERS["same"], (1, 3, 20, 23), torch.float32)
    with pytest.raises(extension.BuildError, match=r"install g\+\+"):
        cpu_extension.build(unloaded)


def test_switched_off_matrix_products_run_silently(monkeypatch, unloaded) -> None:
    monkeypatch.setenv(cpu_extension.INSTRUCTIONS_VARIABLE, "off")
    with pytest.raises(extension.BuildError, match="=off"):
        cpu_extension.build(unloaded)
    monkeypatch.setattr(cpu_extension, "build", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpu_kernels.ready(torch.float32)
        compare(LAYERS["same"], (1, 3, 20, 23), torch.float32)
    assert "STYLESAN_XL_CPU_KERNELS=off" in cpu_extension.describe()


@needs_compiler
def test_an_unknown_instruction_set_is_one_warning(monkeypatch, unloaded) -> None:
    native = cpu_extension.library_name()
    cpu_extension.library_name.cache_clear()
    monkeypatch.setenv(cpu_extension.INSTRUCTIONS_VARIABLE, "abacus")
    with pytest.warns(UserWarning, match="CPU kernels are not used .*abacus") as caught:
        assert not cpu_kernels.ready(torch.float32)
    assert len(caught) == 1 and cpu_extension.library_name() != native


@needs_compiler
def test_a_failing_compiler_is_one_warning_and_leaves_nothing(monkeypatch, unloaded) -> None:
    monkeypatch.setattr(cpu_extension, "_FLAGS", ("-fno-such-thing",))
    with pytest.warns(UserWarning, match="CPU kernels are not used .*fno-such-thing") as caught:
        assert not cpu_kernels.ready(torch.float32) and not cpu_kernels.ready(torch.float32)
    assert len(caught) == 1
    assert [path.suffix for path in Path(make_cache_dir_path("ops")).iterdir()] == [".lock"]


def _build(folder: Path) -> None:
    def call(*arguments: str) -> None:
        with open(folder / "log", "a") as log:
            log.write("called\n")
        Path(arguments[-1]).write_text("library")

    cpu_extension._call = call  # type: ignore[assignment]
    cpu_extension.build(folder)


@needs_compiler
def test_processes_that_start_together_build_once(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(cpu_extension.INSTRUCTIONS_VARIABLE, raising=False)  # "off" would refuse to build
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    waiting.join(*processes)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "called\ncalled\n"  # compile and link
