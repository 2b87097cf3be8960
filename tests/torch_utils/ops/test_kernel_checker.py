# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels make no access that kernel_checker.py objects to, and it does object to every kind of
mistake.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tools import check_kernels
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import upfirdn2d

from . import kernel_checker
from .kernel_checker import Checker, merge
from .references import LAYERS, OTHERS, normal, run_layer

# Numbers of samples.cu's mistakes, and what must be said of them: kind, and a part of the text or the places.
FAULTS = {
    1: ("no barrier", "race", "shared memory"),
    2: ("no barrier at the end of a loop", "race", "shared memory"),
    3: ("reads beyond its input", "memory", "byte 1024 of in, which has 1024"),
    4: ("writes beyond its output", "memory", "byte 1024 of out, which has 1024"),
    5: ("beyond its shared memory", "memory", "byte 256 of shared memory, which has 256"),
    6: ("reads what nobody wrote", "unwritten", "byte 28 of shared memory is read before it is written"),
    7: ("misaligned", "alignment", "8 bytes"),
    8: ("leaves out an output", "unwritten", "16 of 1024 bytes of out are never written, the first at 28"),
    9: ("writes its input", "memory", "writes its input in"),
    10: ("two blocks write one output", "race", "of out"),
    14: ("no barrier of the warp", "race", "shared memory"),
    15: ("reads what another warp wrote", "race", "shared memory"),
}
CONFLICTS, SCATTERED, OWN_WARP = 11, 12, 13


@pytest.fixture
def checker() -> Iterator[Checker]:
    """The public functions on CPU tensors run through the checked kernels."""
    if kernel_checker.missing():
        pytest.skip("needs " + ", ".join(kernel_checker.missing()))
    with kernel_checker.checked() as checker:
        yield checker


def clean(checker: Checker, kernels: set[str], analyse: bool = False) -> None:
    """Nothing was found, in at least these kernels."""
    report = checker.report()
    assert not report.findings, "\n".join(map(str, report.findings))
    assert kernels <= set(report.kernels), report.kernels
    assert report.accesses > 0
    checker.reset(analyse)


@pytest.mark.parametrize("fault", FAULTS)
def test_mistakes_are_reported(checker: Checker, fault: int) -> None:
    _, what, text = FAULTS[fault]
    assert checker.sample(fault)
    found = [f for f in checker.report().findings if f.what == what and text in f.text]
    assert found and all(
        f.place is None or (f.place.file, f.place.function) == ("samples.cu", "reverse_kernel") for f in found
    )
    if what == "race":
        assert all(f.other is not None and f.other.line > 0 for f in found)


def test_right_kernels_pass(checker: Checker) -> None:
    assert checker.sample(0) and checker.sample(OWN_WARP) and not checker.sample(max(FAULTS) + 1)
    clean(checker, {"sample reverse_kernel 0", f"sample reverse_kernel {OWN_WARP}"})


def test_warp_instructions_are_counted(checker: Checker) -> None:
    """Eight warps (2 blocks of 2 warps, 2 rounds) read and write memory and shared memory once each."""
    degrees = {}
    for fault in (0, CONFLICTS, SCATTERED):
        checker.reset(analyse=True)
        checker.sample(fault)
        usage = merge(checker.report().usage)
        assert [(u.instructions, u.threads, u.bytes) for u in usage] == [(8, 256, 4)] * 4
        degrees[fault] = {(u.shared, u.write): u.degree for u in usage}
    kinds = [(False, False), (False, True), (True, False), (True, True)]
    assert degrees[0] == dict.fromkeys(kinds, 1.0)
    assert degrees[CONFLICTS] == dict.fromkeys(kinds[:2], 1.0) | dict.fromkeys(kinds[2:], 32.0)
    assert degrees[SCATTERED] == dict.fromkeys(kinds, 1.0) | {(False, False): 2.0}


def sweep(first: object, second: object, dtypes: list[torch.dtype], again: set[torch.dtype]) -> list[Any]:
    """Every dtype with `first`; with `second` those of `again` alone in make test."""
    repeats = {dtype: () if dtype in again else pytest.mark.exhaustive for dtype in dtypes}
    return [(first, dtype) for dtype in dtypes] + [
        pytest.param(second, dtype, marks=marks) for dtype, marks in repeats.items()
    ]


@pytest.mark.parametrize(
    ("size", "dtype"),
    sweep(64, 61, [torch.float16, torch.bfloat16, torch.float32, torch.float64], {torch.float16}),
)
def test_bias_act(checker: Checker, size: int, dtype: torch.dtype) -> None:
    """All orders; whole and broken packs; slices; one block for all; a tensor that starts in the middle of a
    pack.
    """
    whole, b = normal(12 * size + 1).to(dtype), normal(4 * size, seed=1).to(dtype)
    for start in (0, 1):
        leaf = whole[start : start + 12 * size].view(3, 4 * size).requires_grad_()
        for blocks, slice_size in ((0, 0), (1, 0), (0, 35)):
            checker.ops.set_limits(blocks=blocks, slice=slice_size)
            for act in ("lrelu", "swish"):
                y = bias_act(leaf, b, act=act, clamp=0.7)
                (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y).requires_grad_(), create_graph=True)
                if act == "swish":
                    torch.autograd.grad(dx.sum(), leaf)
    kind = {"float16": "half_t", "bfloat16": "bfloat_t", "float32": "float", "float64": "double"}[
        str(dtype)[6:]
    ]
    clean(checker, {f"bias_act bias_act_kernel<{kind}, {order}> {str(dtype)[6:]}" for order in range(3)})


@pytest.mark.parametrize(
    ("blocks", "dtype"), sweep(0, 2, [torch.float16, torch.float32, torch.float64], {torch.float32})
)
def test_upfirdn2d(checker: Checker, blocks: int, dtype: torch.dtype) -> None:
    checker.ops.set_limits(blocks=blocks)
    kind, name = (
        {"float16": "half_t", "float32": "float", "float64": "double"}[str(dtype)[6:]],
        str(dtype)[6:],
    )
    x = normal(1, 3, 70, 67).to(dtype)
    for up, down, taps in ((1, 1, 13), (2, 1, 12), (1, 2, 12), (3, 2, 7), ((2, 1), (1, 2), 5)):
        f = normal(taps, seed=1).to(torch.float64 if dtype == torch.float64 else torch.float32)
        for layout in (torch.contiguous_format, torch.channels_last):
            leaf = x.contiguous(memory_format=layout).requires_grad_()
            y = upfirdn2d(leaf, f, up=up, down=down, padding=[5, 6, 7, 4])
            torch.autograd.grad(y, leaf, torch.ones_like(y))
            upfirdn2d(leaf.detach(), torch.outer(f, f)[:4, :3], up=up, down=down, padding=2)
    special = (
        {f"upfirdn2d separable_kernel<{kind}, {n}> {name}" for n in ("1, 1", "2, 1", "1, 2")}
        if dtype != torch.float64
        else set()
    )
    direct = {f"upfirdn2d direct_kernel<{kind}> {name}{last}" for last in ("", ", channels last")}
    clean(checker, {f"upfirdn2d separable_kernel<{kind}, 0, 0> {name}"} | special | direct)


FUSED = {
    "same": [f"separable_kernel<2, 6, 2, 12, {mode}>" for mode in range(3)],
    "crop": [f"separable_kernel<2, 6, 2, 12, {mode}>" for mode in range(3)],
    "up": [
        *(f"separable_kernel<4, 6, 2, 12, {mode}>" for mode in range(3)),
        "separable_kernel<2, 6, 4, 24, 2>",
    ],
    "same radial": [
        *(f"full_down_kernel<2, 6, 2, 12, {mode}>" for mode in range(3)),
        "full_up_kernel<2, 6, 2, 12>",
    ],
    "up radial": [
        *(f"full_down_kernel<4, 6, 2, 12, {mode}>" for mode in range(3)),
        "full_up_kernel<2, 6, 4, 24>",
    ],
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_filtered_lrelu(checker: Checker, name: str) -> None:
    """Plain, saving codes, gated forwards and backwards; odd sizes; one block that does all tiles of two
    planes, and as many as there are.
    """
    for size, dtype, blocks in (
        ((36, 38), torch.float16, 1),
        ((75, 41), torch.bfloat16, 2),
        ((24, 61), torch.float32, 0),
    ):
        checker.ops.set_limits(blocks=blocks)
        run_layer(LAYERS[name], (1, 2, *size), dtype, dtype, "cuda", 0.8)
        clean(checker, {f"filtered_lrelu {kernel} {str(dtype)[6:]}" for kernel in FUSED[name]})


BANDED = {
    "same": [f"2, 2, {mode}" for mode in range(3)],
    "crop": [f"2, 2, {mode}" for mode in range(3)],
    "up": [*(f"4, 2, {mode}" for mode in range(3)), "2, 4, 2"],
}


@pytest.mark.parametrize("name", BANDED)
def test_filtered_lrelu_on_tensor_cores(checker: Checker, name: str) -> None:
    checker.ops.use_tensor_cores(True)
    for size, dtype, blocks in (((36, 38), torch.float16, 1), ((75, 42), torch.bfloat16, 0)):
        checker.ops.set_limits(blocks=blocks)
        run_layer(LAYERS[name], (1, 2, *size), dtype, dtype, "cuda", 0.8)
        kind, of = {torch.float16: ("half_t", "float16"), torch.bfloat16: ("bfloat_t", "bfloat16")}[dtype]
        clean(checker, {f"filtered_lrelu banded_kernel<{kind}, {n}> {of}" for n in BANDED[name]})


@pytest.mark.parametrize("name", OTHERS)
def test_filtered_lrelu_in_passes(checker: Checker, name: str) -> None:
    for dtype, blocks in ((torch.float16, 0), (torch.float32, 2), (torch.float64, 0)):
        checker.ops.set_limits(blocks=blocks)
        run_layer(OTHERS[name], (1, 2, 30, 27), dtype, dtype, "cuda", 0.8)
        compute = "double" if dtype == torch.float64 else "float"
        clean(
            checker,
            {
                f"gate gate_kernel<{compute}, {mode}> float{64 if compute == 'double' else 32}"
                for mode in range(3)
            },
        )


def test_last_tiles_alone(checker: Checker) -> None:
    checker.ops.set_limits(tail=1)
    run_layer(LAYERS["same"], (1, 2, 75, 90), torch.float32, torch.float32, "cuda", 0.8)
    upfirdn2d(normal(1, 2, 80, 80).float(), normal(5).float(), padding=2)
    clean(checker, {"upfirdn2d separable_kernel<float, 1, 1> float32"})


def test_fused_kernels_use_shared_memory_well(checker: Checker) -> None:
    """How many times as long the kernels' accesses take as without bank conflicts, at the sizes of the
    recipes' first layers.
    """
    for name, size, output, limits in (
        ("same", 38, 36, {"separable_kernel": 1.5}),
        ("same", 38, 36, {"banded_kernel": 1.01}),
        ("same radial", 36, 36, {"full_down_kernel": 1.1, "full_up_kernel": 1.2}),
        ("up radial", 36, 52, {"full_down_kernel": 1.3, "full_up_kernel": 1.2}),
    ):
        checker.reset(analyse=True)
        checker.ops.use_tensor_cores("banded_kernel" in limits)
        assert (
            run_layer(LAYERS[name], (1, 2, size, size), torch.float16, torch.float16, "cuda", 0.8)[0].shape[3]
            == output
        )
        usage = [u for u in checker.report().usage if u.shared]
        for kernel, limit in limits.items():
            rows = [u for u in usage if kernel in u.kernel]
            assert 1 <= sum(u.waves for u in rows) / sum(u.ideal_waves for u in rows) < limit, (name, kernel)


def test_command(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(check_kernels.main, ["--cases", "36 -> 16", "--lines"])
    assert result.exit_code == 0 and "2 cases, 0 findings" in result.output
    assert "separable_kernel<2, 6, 2, 12, 2> float16 filtered_lrelu.h" in result.output
    result = CliRunner().invoke(check_kernels.main, ["--cases", "36 -> 16", "--tensor-cores"])
    assert result.exit_code == 0 and "banded_kernel<half_t, 2, 2, 2> float16" in result.output
    result = CliRunner().invoke(check_kernels.main, ["--cases", "nothing"])
    assert result.exit_code == 1 and result.output.startswith(
        "Error: --cases=nothing: no such case; known are: bias_act"
    )
    monkeypatch.setattr(check_kernels, "run_case", lambda *_: checker.sample(1))
    result = CliRunner().invoke(check_kernels.main, ["--cases", "36 -> 16"])
    assert result.exit_code == 1 and "race: sample reverse_kernel 1: samples.cu" in result.output
