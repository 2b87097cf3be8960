# SPDX-License-Identifier: Apache-2.0
"""Runs everything that needs a GPU: checks of correctness, operations, training steps, a short training.

    python benchmarks/gpu.py --data emoji64.zip                             # everything
    python benchmarks/gpu.py --parts tests,sanitizer,networks --total-minutes 9   # only correctness
    python benchmarks/gpu.py --parts steps --stages 64 --levers compiled --minutes 8
    python benchmarks/gpu.py --device cpu --small --data emoji64.zip        # the same, small, on a CPU

The kernels are built first. The parts run in this order. Each has a limit of --minutes, and all together of
--total-minutes; the results say if a part reached its limit.

    tests      pytest tests/gpu
    sanitizer  compute-sanitizer (memcheck, racecheck, synccheck) on a small case of every kernel, forward and
               backward, and on a deliberate error that memcheck must find
    networks   gradients of a generator and a discriminator step on the device, compared with float32 on the
               CPU
    ops        benchmarks/ops.py: every layer of the recipes compared with a copy and with torch's operations
    steps      images per second, peak memory and share of peak arithmetic of training steps at ImageNet's
               published sizes, with one optimisation at a time
    real       train.py on --data, class-conditional, at 16 pixels; its last statistics

The results file is written after every result, and the output of each command goes to a file next to it, so
an interrupted run keeps its measurements. If a part fails, this is a result, and the next part starts. The
networks of `networks` and `steps` have random weights, also the frozen ones; the speed does not depend on
them.
"""

import dataclasses
import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from torch_utils import timm_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib
from benchmarks import machine
from torch_utils.ops.backend import extension
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d
from training import build, compiled, generator, run_folder, steps
from training.config import TrainConfig
from training.inputs import InputSource
from training.networks.stems import Lineage
from training.run import roofline
from training.state import TrainState

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "sanitizer", "networks", "ops", "steps", "real")
STAGES = (16, 64, 256)
CLASSES = 1000
_GRACE_SECONDS = 20.0
_TOOL_SECONDS = 150.0  # limit of one run of compute-sanitizer
# Largest ||found - wanted|| / ||wanted|| of a step's gradients, where wanted is float32 on the CPU. The
# values of reduced types are about five times those on a CPU; larger differences are errors and not rounding.
_FAR = {"float32": 1e-2, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 0.4}


@dataclasses.dataclass(frozen=True)
class Levers:
    """The optimisations that a measurement of the training step uses."""

    name: str
    precision: str = "auto"  # float16 on a GPU
    d_precision: str = "auto"  # bfloat16 on a GPU
    channels_last: bool = False
    compiled: str = "off"  # as --compile
    tf32: bool = True
    fused: bool = True
    batch_factor: int = 1


LEVERS = (
    Levers("as train.py does it"),
    Levers("discriminator in fp32, without TF32, as published", d_precision="fp32", tf32=False),
    Levers("discriminator in fp32", d_precision="fp32"),
    Levers("compiled", compiled="regions"),
    Levers("compiled with CUDA graphs", compiled="graphs"),
    Levers("float32 generator", precision="fp32"),
    Levers("bfloat16 generator", precision="bf16"),
    Levers("channels_last", channels_last=True),
    Levers("twice the batch", batch_factor=2),
    Levers("four times the batch", batch_factor=4),
    Levers("Adam in separate kernels", fused=False),
)


class Results:
    """The results of a run, rewritten to disk after every result."""

    def __init__(self, path: Path, device: str, small: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = {**machine.describe(device), "small": small, "results": []}

    def add(self, part: str, **result: Any) -> None:
        """Store and print a result."""
        self.content["results"].append({"part": part, **result})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with dnnlib.util.atomic_write(self.path, "w") as f:
            f.write(json.dumps(self.content, indent=1) + "\n")
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in result.items() if k != "output"}
        click.echo(f"{part:10s}" + "  ".join(f"{k}={v}" for k, v in shown.items()))


# The summary line of pytest and compute-sanitizer.
_VERDICT = re.compile(r"SUMMARY|\d+ (passed|failed|skipped|error)")
_KEPT_CHARACTERS = 6000  # of a command's output, in the results


@dataclasses.dataclass
class Job:
    """The arguments of every part."""

    device: str
    small: bool
    minutes: float
    data: str | None
    stages: tuple[int, ...]
    levers: tuple[Levers, ...]
    results: Results
    end: float = math.inf  # time limit of all parts, by time.monotonic()

    def seconds(self) -> float:
        """Return the time limit of a part that starts now."""
        return max(min(60 * self.minutes, self.end - time.monotonic()), 0.0)

    def command(
        self,
        part: str,
        arguments: list[str],
        environment: dict[str, str] | None = None,
        limit: float = math.inf,
        expected: str = "0",
        **facts: Any,
    ) -> bool:
        """Run a command, and add its exit status and output to the results.

        The output goes to <results>-<part>[-<fact>...].log.

        Args:
            part: name of the part.
            arguments: the command.
            environment: additional environment variables.
            limit: time limit in seconds, in addition to the part's. The command gets a little more to end by
                itself.
            expected: expected exit status.
            **facts: additional fields of the result.

        Returns:
            Whether the exit status is the expected one.
        """
        start, limit = time.monotonic(), min(self.seconds(), limit) + _GRACE_SECONDS
        log = self.results.path.with_name(
            "-".join([self.results.path.stem, part, *map(str, facts.values())]) + ".log"
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            status = _run(arguments, log, limit, environment or {})
        except FileNotFoundError:
            status = f"{arguments[0]} is not installed"
        text = log.read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if _VERDICT.search(line)), lines[-1] if lines else "")
        verdict = {} if expected == "0" else {"expected": expected}
        seconds = time.monotonic() - start
        self.results.add(
            part,
            **facts,
            status=status,
            **verdict,
            last_line=last,
            seconds=seconds,
            output=text[-_KEPT_CHARACTERS:],
        )
        return status == expected


def _run(arguments: list[str], log: Path, limit: float, environment: dict[str, str]) -> str:
    """Return the exit status of a command, or 'out of time'.

    The command has its own process group, so that its child processes end with it.
    """
    variables = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    with open(log, "wb") as output:
        process = subprocess.Popen(
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=variables,
            start_new_session=True,
        )
        try:
            return str(process.wait(limit))
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_build(job: Job) -> None:
    """Build the kernels for the available devices. Errors become results, not only warnings."""
    job.command("build", [sys.executable, "-m", "torch_utils.ops", "build", "--verbose"])


def run_tests(job: Job) -> None:
    """Run tests/gpu, which are skipped without a device."""
    job.command(
        "tests",
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-rs",
            "--tb=short",
            "--durations=8",
            "tests/gpu",
        ],
    )


def every_kernel(device: str) -> None:
    """Run one small case of each kernel, forward and backward, for compute-sanitizer."""
    require_kernels(device)
    f, radial = torch.ones(12, device=device) / 12, torch.ones(12, 12, device=device) / 144
    f4 = torch.ones(24, device=device) / 24
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x = torch.randn(2, 3, 37, 41, device=device).to(dtype).requires_grad_()
        b = torch.randn(3, device=device).to(dtype).requires_grad_()
        results = [bias_act(x, b, act=act, clamp=2.0) for act in activation_funcs]
        for taps in (f, radial[:4, :3].contiguous()):
            for image in (x, x.contiguous(memory_format=torch.channels_last)):
                results += [
                    upfirdn2d(image, taps, up=2, padding=5),
                    upfirdn2d(image, taps, down=2, padding=5),
                    upfirdn2d(image, taps, padding=5),
                ]
        for fu, fd, up, padding in (
            (f, f, 2, 9),
            (f4, f, 4, -3),
            (f, radial, 2, 9),
            (f4, radial, 4, 3),
            (f[:7], None, 3, 3),
        ):
            results.append(filtered_lrelu(x, fu, fd, b, up=up, down=2, padding=padding, clamp=1.0))
            with torch.no_grad():
                filtered_lrelu(x, fu, fd, b, up=up, down=2, padding=padding, clamp=1.0)
        first = torch.autograd.grad(
            torch.stack([y.double().square().sum() for y in results]).sum(), (x, b), create_graph=True
        )
        torch.autograd.backward(torch.stack([g.double().square().sum() for g in first]).sum())
    if device == "cuda":
        torch.cuda.synchronize()


def require_kernels(device: str) -> None:
    """Raise an error if the kernels cannot be used, because all checks would then pass."""
    if device == "cuda" and not extension.load():
        raise click.ClickException("the kernels cannot be used: run python -m torch_utils.ops doctor")


def planted_mistake(device: str) -> None:
    """Compute a gradient with codes that end after their first row, so that the kernel reads beyond them.

    This shows that compute-sanitizer checks the kernels.
    """
    require_kernels(device)
    f, x = torch.ones(12, device=device) / 12, torch.randn(4, 8, 36, 36, device=device)
    # (x, y) each: up, down, padding, input, middle grid, output
    geometry = [*(2, 2), *(2, 2), *(9, 9), *(36, 36), *(78, 78), *(34, 34)]
    codes = torch.zeros(4, 8, 1, 20, dtype=torch.uint8, device=device)
    torch.ops.stylesan_xl.filtered_lrelu_gated(
        x[..., :34, :34], f, f, codes, None, None, geometry, False, 1.0, 0.2, -1.0, True
    )
    torch.cuda.synchronize()


def run_sanitizer(job: Job) -> None:
    """Run `every_kernel` under compute-sanitizer; on a CPU, the same script without it."""
    script = [sys.executable, str(Path(__file__).resolve()), "--device", job.device, "--check"]
    # Without the caching allocator, an access beyond a tensor is outside its allocation.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    if job.device == "cpu":
        job.command("sanitizer", [*script, "kernels"], environment, tool="none")
        return
    # torch queries the driver for optional features, and those errors are harmless. Kernels of other
    # libraries are not checked, because they take time.
    options = [
        "--error-exitcode",
        "9",
        "--report-api-errors",
        "no",
        "--kernel-name",
        "kns=_ZN3ops",
        "--print-limit",
        "20",
    ]
    for tool, what, expected in (
        ("memcheck", "kernels", "0"),
        ("memcheck", "mistake", "9"),
        ("racecheck", "kernels", "0"),
        ("synccheck", "kernels", "0"),
    ):
        command = ["compute-sanitizer", "--tool", tool, *options, *script, what]
        job.command(
            "sanitizer", command, environment, limit=_TOOL_SECONDS, expected=expected, tool=tool, over=what
        )


def published_generator(resolution: int, small: bool) -> generator.Generator:
    """Return the ImageNet network (-t) of a stage with new weights: a stem at 16 pixels, then heads."""
    sizes = {"syn_layers": 5, "cbase": 256, "cmax": 16} if small else {"syn_layers": 10}
    G = generator.build_stem("stylegan3-t", 16, CLASSES, **sizes)
    while G.img_resolution < resolution:
        G = generator.build_superres(G, "stylegan3-t", 2, 4 if small else 7)
    return G


def make_config(
    small: bool, batch: int, levers: Levers, backbones: tuple[str, ...] | None = None
) -> TrainConfig:
    """Return the published options; `small`: those of a network that a CPU trains in seconds."""
    cfg = TrainConfig().override(
        {"run.batch": batch, "run.precision": levers.precision, "discriminator.precision": levers.d_precision}
    )
    cfg = cfg.override({"loss.pl_weight": 0, "loss.diagnostics": False})
    if small:
        tiny = {
            "feature_size": 32,
            "proj_channels": 8,
            "head_channels": 8,
            "cond_channels": 8,
            "backbones": [timm_weights.LITE0],
        }
        cfg = cfg.override({f"discriminator.{k}": v for k, v in tiny.items()})
    return cfg if backbones is None else cfg.override({"discriminator.backbones": list(backbones)})


@dataclasses.dataclass
class Training:
    """A training state on random images of all classes."""

    cfg: TrainConfig
    state: TrainState
    inputs: InputSource
    pixels: torch.Tensor
    labels: torch.Tensor

    def step(self) -> None:
        """Run one training step, as train.py does."""
        steps.train_step(self.state, self.inputs, self.cfg, self.pixels, self.labels)

    def g_step(self) -> None:
        """Run only the generator's part."""
        steps.g_step(self.state, self.inputs.micro_batches("G", 0), self.cfg.loss, self.cfg.blur_init_sigma)

    def d_step(self) -> None:
        """Run only the discriminator's part."""
        reals = self.inputs.real_micro_batches(0, self.pixels, self.labels)
        steps.d_step(
            self.state, self.inputs.micro_batches("D", 0), reals, self.cfg.loss, self.cfg.blur_init_sigma
        )


def make_training(cfg: TrainConfig, resolution: int, device: str, small: bool) -> Training:
    """Create the networks from a fixed seed; the frozen ones have random weights."""
    torch.manual_seed(0)
    weights = dict.fromkeys(cfg.discriminator.backbones, timm_weights.RANDOM)
    D = build.make_discriminator(
        dataclasses.replace(cfg.discriminator, backbone_weights=weights), CLASSES, resolution, 0
    )
    state = build.assemble(cfg, published_generator(resolution, small), D, Lineage(), torch.device(device))
    inputs = InputSource.of(cfg, np.arange(CLASSES), state.G.z_dim, torch.device(device), processes=1, rank=0)
    pixels = torch.randint(0, 256, (cfg.run.batch, 3, resolution, resolution), dtype=torch.uint8)
    return Training(cfg, state, inputs, pixels, torch.arange(cfg.run.batch) % CLASSES)


def run_networks(job: Job) -> None:
    """Compare gradients on the device in each precision with float32 on the CPU.

    They are read from Adam's first moment, which is the gradient for beta1 = 0.
    """

    def gradients(device: str, levers: Levers) -> dict[str, torch.Tensor]:
        use_tf32(levers.tf32)
        found = {}
        for which in ("G", "D"):
            # Both steps use the initial weights: Adam's first update depends on the signs of the gradients,
            # which differ where a gradient is near zero.
            training = make_training(make_config(True, 8, levers), 32, device, True)
            (training.g_step if which == "G" else training.d_step)()
            state = training.state
            params, optimizer = (
                (state.g_params, state.g_opt) if which == "G" else (state.d_params, state.d_opt)
            )
            parts = [
                optimizer.state[p]["exp_avg"] if p in optimizer.state else torch.zeros_like(p)
                for p in params.values()
            ]
            found[which] = torch.cat([part.detach().double().cpu().flatten() for part in parts])
        return found

    exact = Levers("float32", precision="fp32", d_precision="fp32", tf32=False)
    wanted = gradients("cpu", exact)
    for levers in (
        exact,
        dataclasses.replace(exact, name="tf32", tf32=True),
        dataclasses.replace(exact, name="float16", precision="fp16"),
        dataclasses.replace(exact, name="bfloat16", precision="bf16", d_precision="bf16"),
    ):
        found = gradients(job.device, levers)
        for which, reference in wanted.items():
            error = float((found[which] - reference).norm() / reference.norm())
            cosine = float(torch.nn.functional.cosine_similarity(found[which], reference, dim=0))
            status = "ok" if error <= _FAR[levers.name] else f"larger than {_FAR[levers.name]:g}"
            job.results.add(
                "networks",
                step=which,
                precision=levers.name,
                relative_error=error,
                cosine=cosine,
                status=status,
            )


def run_ops(job: Job) -> None:
    """Run benchmarks/ops.py; its table goes to a file next to the results."""
    # torch.compile takes seconds per case: run it last, and for one type only.
    small = ["--scale", "256", "--batch", "1", "--repeats", "1", "--dtypes", "float32", "--cases", "52"]
    runs = {"small": small} if job.small else {"eager": [], "compiled": ["--compile", "--dtypes", "float16"]}
    end = time.monotonic() + job.seconds()
    for name, options in runs.items():
        out = job.results.path.with_name(f"{job.results.path.stem}-ops-{name}.json")
        out.unlink(missing_ok=True)  # of an earlier run
        command = [sys.executable, "benchmarks/ops.py", "--device", job.device, "--out", str(out), *options]
        if job.command("ops", command, limit=max(end - time.monotonic(), 0), baselines=name) or out.exists():
            job.results.add("ops", table=out.name, rows=len(json.loads(out.read_text())["rows"]))


def use_tf32(on: bool) -> None:
    """Enable or disable TF32. torch enables it for convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def apply_levers(state: TrainState, levers: Levers, device: str) -> None:
    """Enable the optimisations for which the training configuration has no option."""
    use_tf32(levers.tf32)
    torch.backends.cudnn.benchmark = True
    if levers.channels_last:
        for module in (state.G.synthesis, state.D):
            module.to(memory_format=torch.channels_last)
    if not levers.fused:
        for optimizer in (state.g_opt, state.d_opt):
            for group in optimizer.param_groups:
                group.update(fused=False, foreach=False)
        state.guard.deferred = False  # which needs fused optimizers
    if levers.compiled != "off":
        torch._dynamo.reset()
        compiled.compile_networks(state, levers.compiled)


def time_steps(
    job: Job, resolution: int, levers: Levers, batch: int, flops: int | None, deadline: float
) -> dict[str, Any]:
    """Return images per second of whole steps: generator, discriminator and moving average.

    It is the median of a few steps after two warm-up steps.
    """
    on_gpu = job.device == "cuda"
    cfg = make_config(job.small, batch * levers.batch_factor, levers)
    training = make_training(cfg, resolution, job.device, job.small)
    apply_levers(training.state, levers, job.device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        training.step()
        if on_gpu:
            torch.cuda.synchronize()

    result: dict[str, Any] = {"batch": cfg.run.batch}
    if flops is None:
        with FlopCounterMode(display=False) as counter:
            training.step()
        result["flops_per_image"] = flops = counter.get_total_flops() // cfg.run.batch
    times = []
    for i in range(2 if job.small else 10):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        if time.monotonic() > deadline and i >= 2:
            break
    training.state.guard.check()
    seconds = float(np.median(times[2:] if len(times) > 2 else times[-1:]))
    result |= {
        "images_per_second": cfg.run.batch / seconds,
        "seconds": seconds,
        "timed_steps": max(len(times) - 2, 1),
    }
    if on_gpu:
        result["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        peak = roofline.peak(torch.cuda.get_device_name())
        if peak is not None:
            result["share_of_peak"] = flops * cfg.run.batch / seconds / peak.half
    return result


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def run_steps(job: Job) -> None:
    """Measure each stage with each optimisation until the time limit; errors are results."""
    deadline = time.monotonic() + job.seconds()
    batches = (
        {16: 256, 32: 256, 64: 128, 128: 64, 256: 32}
        if not job.small
        else dict.fromkeys((16, 32, 64, 128, 256), 8)
    )
    for resolution in job.stages:
        flops = None
        for levers in job.levers:
            if time.monotonic() > deadline:
                job.results.add("steps", stage=resolution, levers=levers.name, status="out of time")
                return
            try:
                result = time_steps(job, resolution, levers, batches[resolution], flops, deadline)
                flops = result.get("flops_per_image", flops)
                job.results.add("steps", stage=resolution, levers=levers.name, **result)
            except Exception as error:  # out of memory, or any error of the compiler
                job.results.add("steps", stage=resolution, levers=levers.name, status=_one_line(error))
            gc.collect()
            if job.device == "cuda":
                torch.cuda.empty_cache()


def run_real(job: Job) -> None:
    """Run train.py for the part's time. The exit status is 3 when it reaches the limit."""
    if job.data is None:
        job.results.add("real", status="no --data")
        return
    outdir = job.results.path.with_name(job.results.path.stem + "-runs")
    options = [
        "--cfg=stylegan3-t",
        f"--data={job.data}",
        "--resolution=16",
        "--cond=True",
        "--gpus=1",
        "--metrics=none",
        f"--device={job.device}",
    ]
    options += [
        f"--backbones={timm_weights.LITE0}",
        "--class-embedding=random",
        "--syn_layers=7",
        "--kimg=100000",
    ]
    if job.small:
        options += [
            "--batch=8",
            "--cbase=256",
            "--cmax=16",
            "--feature-size=32",
            "--proj-channels=8",
            "--head-channels=8",
            "--tick=0.016",
        ]
    else:
        options += ["--batch=256", "--d-precision=bf16", "--tick=10", "--snap=5"]
    try:
        timm_weights.check(timm_weights.LITE0)
    except (FileNotFoundError, ValueError) as error:
        job.results.add(
            "real",
            backbones="random weights: the results do not show the quality",
            reason=_one_line(error),
        )
        options.append(f"--backbone-weights={timm_weights.LITE0}={timm_weights.RANDOM}")
    seconds = job.seconds()
    job.command(
        "real",
        [sys.executable, "train.py", f"--outdir={outdir}", f"--restart_every={seconds:g}", *options],
        expected="3",
    )
    for _, folder in sorted(run_folder.run_folders(str(outdir)).items())[-1:]:
        last = run_folder.read_jsonl(folder / run_folder.STATS_FILE)[-1]
        numbers = {name: value["mean"] if isinstance(value, dict) else value for name, value in last.items()}
        job.results.add("real", run=str(folder), last_statistics=numbers)


def run_part(job: Job, name: str, runner: Callable[[Job], None]) -> None:
    """Run a part if there is time left. An error is stored as a result."""
    if job.seconds() == 0 and job.end < math.inf:
        job.results.add(name, status="out of time")
        return
    try:
        runner(job)
    except Exception as error:
        job.results.add(name, status=_one_line(error))


RUNNERS: dict[str, Callable[[Job], None]] = {
    "tests": run_tests,
    "sanitizer": run_sanitizer,
    "networks": run_networks,
    "ops": run_ops,
    "steps": run_steps,
    "real": run_real,
}


def chosen_parts(text: str) -> Iterator[str]:
    """Yield the parts in a comma-separated list, in the order in which they run."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise click.ClickException(
            f"--parts={text}: unknown part {unknown[0]}; the parts are {', '.join(PARTS)}"
        )
    yield from (part for part in PARTS if part in names)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--parts", default=",".join(PARTS), show_default=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Use tiny networks and few repeats, to test the command.")
@click.option("--minutes", default=8.0, show_default=True, help="Time limit of each part.")
@click.option("--data", type=click.Path(exists=True), help="Labelled data set of the part 'real'.")
@click.option(
    "--stages", default=",".join(map(str, STAGES)), show_default=True, help="Resolutions of the part 'steps'."
)
@click.option(
    "--levers", default="", help="Optimisations of the part 'steps': only those whose name contains this."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=ROOT / "benchmarks" / "results" / "gpu.json",
    show_default=True,
)
@click.option("--total-minutes", type=float, help="Time limit of all parts together.  [default: no limit]")
@click.option("--check", type=click.Choice(["kernels", "mistake"]), hidden=True)
def main(
    parts: str, device: str, small: bool, minutes: float, data: str | None, stages: str, levers: str,
    out: Path, total_minutes: float | None,
    check: str | None,
) -> None:  # fmt: skip
    """Run the chosen parts; the help text is the module's docstring."""
    end = math.inf if total_minutes is None else time.monotonic() + 60 * total_minutes
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "no CUDA device found; --device cpu --small runs the same commands on a CPU"
        )
    if check is not None:
        {"kernels": every_kernel, "mistake": planted_mistake}[check](device)
        return
    chosen = list(chosen_parts(parts))
    try:
        resolutions = tuple(int(stage) for stage in stages.split(","))
    except ValueError:
        raise click.ClickException(f"--stages={stages}: give resolutions, such as 16,64,256") from None
    if not set(resolutions) <= {16, 32, 64, 128, 256}:
        raise click.ClickException(f"--stages={stages}: the stages are 16, 32, 64, 128 and 256")
    job = Job(
        device,
        small,
        minutes,
        data,
        resolutions,
        tuple(x for x in LEVERS if levers in x.name),
        Results(out.resolve(), device, small),
        end,
    )
    if device == "cuda":
        run_part(job, "build", run_build)
    for part in chosen:
        run_part(job, part, RUNNERS[part])
    click.echo(f"{out}: {len(job.results.content['results'])} results")


if __name__ == "__main__":
    main()
