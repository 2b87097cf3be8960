# SPDX-License-Identifier: Apache-2.0
"""Measures time and bandwidth of bias_act, upfirdn2d and filtered_lrelu at the layers of the recipes.

    python benchmarks/ops.py --out benchmarks/results/ops.json            # on a GPU
    python benchmarks/ops.py --tensor-cores                               # filtered_lrelu on tensor cores
    python benchmarks/ops.py --device cpu --scale 16 --repeats 1          # a test run of the same code

The bandwidth counts the bytes that an operation must read and write. `copy` is this bandwidth relative to
that of a copy of a gigabyte in the same run. `eager` and `compiled` are how many times as long impl='ref'
takes. With --tensor-cores, `without` is how many times as long the other kernels take. The layers come from
the tables of the published networks in tests/parity/goldens.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.signal
import scipy.special
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib
from benchmarks import machine
from benchmarks.gpu_results import ON_TENSOR_CORES
from torch_utils.ops.backend import extension
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("structure_imagenet_t_syn10", "structure_cifar10_r_syn6")
CACHE_BYTES = 1 << 28  # several times the last-level cache of any GPU
HEAD_START_CYCLES = 4_000_000  # about 2 ms
Call = Callable[[torch.Tensor, str], torch.Tensor]


class Case(NamedTuple):
    """An operation at a size.

    Attributes:
        name: description.
        shape: shape of the input.
        call: (x, impl) -> y.
        code_bytes: bytes that filtered_lrelu writes for its gradient, and reads in it.
    """

    name: str
    shape: tuple[int, int, int, int]
    call: Call
    code_bytes: int


class Times(NamedTuple):
    """Seconds of the forward pass without gradient, and of the forward and backward pass with one."""

    forward: float
    both: float


def low_pass(taps: int, radial: bool) -> torch.Tensor:
    """Return a filter with a layer's number of taps; its values do not affect the time."""
    if not radial:
        return torch.from_numpy(scipy.signal.firwin(taps, cutoff=0.3, width=0.25)).float()
    position = np.arange(taps) - (taps - 1) / 2
    radius = np.hypot(*np.meshgrid(position, position))
    f = scipy.special.j1(0.8 * radius) / radius
    return torch.from_numpy(f / f.sum()).float()


def layer_cases(batch: int, scale: int, device: str) -> list[Case]:
    """Return filtered_lrelu of every distinct layer in the tables, with channels divided by `scale`."""
    layers: dict[tuple[Any, ...], dict[str, Any]] = {}
    for table in TABLES:
        for stage in json.loads((ROOT / "tests" / "parity" / "goldens" / f"{table}.json").read_text())[
            "stages"
        ]:
            for layer in stage["layers"]:
                if layer.get("up_factor", 1) > 1:
                    fields = (
                        "in_size",
                        "out_size",
                        "up_factor",
                        "down_factor",
                        "out_channels",
                        "down_radial",
                        "padding",
                    )
                    layers.setdefault(tuple(str(layer[name]) for name in fields), layer)
    return [_layer_case(layer, batch, scale, device) for layer in layers.values()]


def _layer_case(layer: dict[str, Any], batch: int, scale: int, device: str) -> Case:
    up, down, padding = layer["up_factor"], layer["down_factor"], layer["padding"]
    fu, fd = (
        low_pass(layer["up_taps"], False).to(device),
        low_pass(layer["down_taps"], layer["down_radial"]).to(device),
    )
    channels = max(layer["out_channels"] // scale, 1)
    width, height = (size + layer["conv_kernel"] - 1 for size in layer["in_size"])
    out_w, out_h = layer["out_size"]
    mid_w, mid_h = ((out - 1) * down + layer["down_taps"] for out in (out_w, out_h))
    bias = torch.randn(channels, device=device)

    def call(x: torch.Tensor, impl: str) -> torch.Tensor:
        return filtered_lrelu(
            x, fu, fd, bias.to(x.dtype), up=up, down=down, padding=padding, clamp=256, impl=impl
        )

    name = (
        f"filtered_lrelu {layer['in_size'][0]} -> {out_w} x "
        f"{channels}{' radial' if layer['down_radial'] else ''}"
    )
    return Case(name, (batch, channels, height, width), call, batch * channels * mid_h * -(-mid_w // 4))


def tensor_core_cases(batch: int, scale: int, device: str) -> list[Case]:
    """Return the layers whose filtered_lrelu can use tensor cores: those with separable filters."""
    layers = layer_cases(batch, scale, device)
    return [
        case._replace(name=case.name.replace("filtered_lrelu", ON_TENSOR_CORES))
        for case in layers
        if not case.name.endswith("radial")
    ]


def other_cases(batch: int, scale: int, device: str) -> list[Case]:
    """Return cases of bias_act, and of resampling images and feature maps."""
    box = setup_filter([1, 3, 3, 1], device=device)
    blur = torch.exp2(-((torch.arange(-6.0, 7.0, device=device) / 2) ** 2))
    channels = max(128 // scale, 1)
    bias = torch.randn(channels, device=device)
    maps = (batch, channels, 256, 256)
    return [
        Case(
            "bias_act lrelu 256",
            maps,
            lambda x, impl: bias_act(x, bias.to(x.dtype), act="lrelu", clamp=256, impl=impl),
            0,
        ),
        Case(
            "bias_act swish 256",
            maps,
            lambda x, impl: bias_act(x, bias.to(x.dtype), act="swish", impl=impl),
            0,
        ),
        Case(
            "upfirdn2d up 2, 4x4, 128 -> 256",
            (batch, channels, 128, 128),
            lambda x, impl: upfirdn2d(x, box, up=2, padding=[2, 1] * 2, impl=impl),
            0,
        ),
        Case(
            "upfirdn2d down 2, 4x4, 256 -> 128",
            maps,
            lambda x, impl: upfirdn2d(x, box, down=2, padding=1, impl=impl),
            0,
        ),
        Case(
            "upfirdn2d blur, 13 taps, 256", maps, lambda x, impl: upfirdn2d(x, blur, padding=6, impl=impl), 0
        ),
    ]


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median time of a call after two warm-up calls.

    On a GPU, other data fills the cache before each call, and the device is kept busy until the host has
    submitted the whole call. The result therefore does not depend on data left in the cache or on Python's
    speed.
    """
    for _ in range(2):
        call()
    times = []
    others = torch.empty(CACHE_BYTES if device == "cuda" else 0, dtype=torch.uint8, device=device)
    for _ in range(repeats):
        if device == "cuda":
            others.zero_()
            cuda: Any = torch.cuda
            cuda._sleep(HEAD_START_CYCLES)
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) / 1000)
        else:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def copy_bandwidth(device: str, repeats: int) -> float:
    """Return the bytes read and written per second by a copy of a gigabyte (on a CPU: 64 MB)."""
    source = torch.empty((1 << 30) if device == "cuda" else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device, repeats)


def measure(call: Call, impl: str, x: torch.Tensor, device: str, repeats: int) -> Times:
    """Return the times of an implementation."""
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        gradient = torch.randn_like(call(x, impl))
        forward = seconds(lambda: call(x, impl), device, repeats)
    return Times(
        forward, seconds(lambda: torch.autograd.grad(call(leaf, impl), leaf, gradient), device, repeats)
    )


def run_case(case: Case, dtype: torch.dtype, args: argparse.Namespace, copy: float) -> dict[str, Any]:
    """Measure one row of the table."""
    x = torch.randn(case.shape, device=args.device).to(dtype)
    with torch.no_grad():
        moved = (x.numel() + case.call(x, "cuda").numel()) * x.element_size()
    row: dict[str, Any] = {
        "case": case.name,
        "shape": list(case.shape),
        "dtype": str(dtype).removeprefix("torch."),
    }
    ours = measure(case.call, "cuda", x, args.device, args.repeats)
    floors = Times(moved, 2 * moved + 2 * case.code_bytes)
    row |= {
        "forward_us": ours.forward * 1e6,
        "both_us": ours.both * 1e6,
        "floor_bytes": floors.forward,
        "both_floor_bytes": floors.both,
    }
    row |= {
        "forward_copy_share": floors.forward / ours.forward / copy,
        "both_copy_share": floors.both / ours.both / copy,
    }
    if args.tensor_cores:
        torch.ops.stylesan_xl.use_tensor_cores(False)
        others = measure(case.call, "cuda", x, args.device, args.repeats)
        torch.ops.stylesan_xl.use_tensor_cores(True)
        return row | {
            "without_forward_ratio": others.forward / ours.forward,
            "without_both_ratio": others.both / ours.both,
        }
    baselines: list[tuple[str, Call]] = [("eager", case.call)]
    if args.compile:
        torch._dynamo.reset()
        baselines.append(("compiled", torch.compile(case.call, dynamic=False)))
    for name, call in baselines:
        try:
            times = measure(call, "ref", x, args.device, args.repeats)
        except Exception as error:  # out of memory, or any error of the compiler
            row[f"{name}_error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        row |= {
            f"{name}_forward_ratio": times.forward / ours.forward,
            f"{name}_both_ratio": times.both / ours.both,
        }
    return row


def format_row(row: dict[str, Any]) -> str:
    """Format a line of the table."""
    baseline = "without" if "without_both_ratio" in row else "eager"
    forward_ratio, both_ratio, compiled_ratio = (
        row.get(f"{name}_ratio", float("nan"))
        for name in (f"{baseline}_forward", f"{baseline}_both", "compiled_both")
    )
    forward = f"{row['forward_us']:10.1f}{row['forward_copy_share']:6.2f}{forward_ratio:7.1f}x"
    both = f"{row['both_us']:10.1f}{row['both_copy_share']:6.2f}{both_ratio:7.1f}x{compiled_ratio:8.1f}x"
    return f"{row['case']:54s}{row['dtype']:>9s}{forward}{both}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="compare the custom operations with a copy and with torch's own operations"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scale", type=int, default=1, help="divide the channels by this")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dtypes", default="float16,bfloat16,float32")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--compile", action="store_true", help="compare with impl='ref' under torch.compile, too (slow start)"
    )
    parser.add_argument(
        "--tensor-cores", action="store_true", help="only filtered_lrelu on tensor cores, and without them"
    )
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    args = parser.parse_args()
    if args.tensor_cores and args.device != "cuda":
        parser.error("--tensor-cores needs --device cuda")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device found; --device cpu runs the same code on a CPU")
    dtypes = args.dtypes.split(",")
    size = (args.batch, args.scale, args.device)
    cases = layer_cases(*size) + other_cases(*size)
    if args.tensor_cores:
        if not extension.load():
            parser.error("the kernels cannot be used: run python -m torch_utils.ops doctor")
        torch.ops.stylesan_xl.use_tensor_cores(True)
        dtypes = [name for name in dtypes if name != "float32"]
        cases = tensor_core_cases(*size)
    copy = copy_bandwidth(args.device, args.repeats)
    facts = machine.describe(args.device) | {"copy_bytes_per_second": copy}
    print(json.dumps(facts))
    baseline = "without" if args.tensor_cores else "eager"
    print(
        f"{'case':54s}{'dtype':>9s}{'fwd us':>10s}{'copy':>6s}{baseline:>8s}"
        f"{'both us':>10s}{'copy':>6s}{baseline:>8s}{'compiled':>9s}"
    )
    rows = []
    for case in cases:
        if args.cases not in case.name:
            continue
        for dtype in dtypes:
            row = run_case(case, getattr(torch, dtype), args, copy)
            rows.append(row)
            print(format_row(row), flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with dnnlib.util.atomic_write(args.out, "w") as f:
                    f.write(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
