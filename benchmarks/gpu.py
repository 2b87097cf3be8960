# SPDX-License-Identifier: Apache-2.0
"""Runs everything that needs a GPU: checks of correctness, operations, training steps, a real training.

    python benchmarks/gpu.py --data emoji64.zip                                   # everything
    python benchmarks/gpu.py --parts tests,sanitizer,networks --total-minutes 9   # only correctness
    python benchmarks/gpu.py --parts steps --stages 64 --levers compiled --minutes 8
    python benchmarks/gpu.py --device cpu --small --data emoji64.zip              # the same, small, on a CPU

The kernels are built first. The parts run in this order. Each has a time limit of its own (--minutes: another
one for each), and all together one of --total-minutes; the results say if a part reached its limit.

    tests      pytest tests/gpu
    sanitizer  compute-sanitizer (memcheck, racecheck, synccheck) on a small case of every kernel, forward and
               backward, and on a deliberate error that memcheck must find
    networks   gradients of a generator and a discriminator step on the device, compared with float32 on the
               CPU
    ops        benchmarks/ops.py: every layer of the recipes compared with a copy and with torch's operations,
               and filtered_lrelu on tensor cores with the other kernels
    steps      images per second, peak memory and share of peak arithmetic of training steps at ImageNet's
               published sizes, with one optimisation at a time
    real       train.py on --data, class-conditional, at 16, 32 and 64 pixels; statistics, curves, images

Results go to benchmarks/results/gpu.json (with --parts: gpu-PARTS.json), with predictions beside what was
measured, and as tables to the .md file next to it. The .json is written after every result, so an interrupted
run keeps its measurements. Output of commands, and pictures of the training, go to the folder next to it. A
part that fails is a result, and the next part starts. The networks of `networks` and `steps` have random
weights, also the frozen ones; the speed does not depend on them.
"""

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu_results, gpu_training, machine
from benchmarks.gpu_results import Results, one_line
from dnnlib.util import atomic_write
from torch_utils import timm_weights
from torch_utils.ops.backend import extension
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d
from training import build, run_folder
from training.run import plan, roofline

ROOT = Path(__file__).resolve().parent.parent
MINUTES = {
    "build": 2.0,
    "tests": 3.0,
    "sanitizer": 4.0,
    "networks": 2.0,
    "ops": 4.5,
    "steps": 4.5,
    "real": 8.0,
}
PARTS = tuple(name for name in MINUTES if name != "build")
STAGES = (16, 64, 256)
REAL_STAGES = {16: 0.5, 32: 0.3, 64: 0.2}  # resolution -> share of the part's time
METRIC = "fd_lite0_500"
OUT_OF_TIME = "out of time"
_OVERHEAD_SECONDS = 20.0  # of the first stage, to start and to end
_TOOL_SECONDS = 150.0  # limit of one run of compute-sanitizer
# The summary line of pytest and compute-sanitizer.
_VERDICT = re.compile(r"SUMMARY|\d+ (passed|failed|skipped|error)")
_KEPT_CHARACTERS = 6000  # of a command's output, in the results


@dataclasses.dataclass
class Job:
    """The arguments of every part.

    Attributes:
        minutes: Time limit of each part.
        end: Time limit of all parts together, by time.monotonic().
        part_end: Time limit of the part that runs.
    """

    device: str
    small: bool
    minutes: Mapping[str, float]
    data: str | None
    stages: tuple[int, ...]
    levers: str
    results: Results
    end: float = math.inf
    part_end: float = math.inf

    @property
    def folder(self) -> Path:
        """Return the folder of logs and pictures."""
        return self.results.path.with_suffix("")

    def begin(self, part: str) -> None:
        """Begin a part: its time runs from here."""
        self.part_end = time.monotonic() + 60 * self.minutes[part]

    def seconds(self) -> float:
        """Return the time that is left for the part."""
        return max(min(self.part_end, self.end) - time.monotonic(), 0.0)

    def run(
        self,
        name: str,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        limit: float = math.inf,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Run a command.

        Args:
            name: Of the file in `folder` that gets the output.
            arguments: The command.
            environment: Additional environment variables.
            limit: Time limit in seconds; the part's, if that is less.
            meanwhile: Is called while the command runs.

        Returns:
            The fields of its result: status (the exit status, 'out of time', or that it is not installed),
            last_line, seconds and output.
        """
        start, log = time.monotonic(), self.folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            status = _run(arguments, log, min(self.seconds(), limit), environment or {}, meanwhile)
        except FileNotFoundError:
            status = f"{arguments[0]} is not installed"
        text = log.read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if _VERDICT.search(line)), lines[-1] if lines else "")
        seconds = time.monotonic() - start
        return {"status": status, "last_line": last, "seconds": seconds, "output": text[-_KEPT_CHARACTERS:]}

    def command(self, part: str, *arguments: str) -> None:
        """Run a command and add its result to those of the part."""
        self.results.add(part, **self.run(part, list(arguments)))


def _run(
    arguments: list[str],
    log: Path,
    limit: float,
    environment: Mapping[str, str],
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """Return the exit status of a command, or 'out of time'.

    The command has its own process group, so that its child processes end with it.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    end = time.monotonic() + limit
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
            meanwhile()
            return str(process.wait(max(end - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_build(job: Job) -> None:
    """Build the kernels for the available devices. Errors become results, not only warnings."""
    job.command("build", sys.executable, "-m", "torch_utils.ops", "build", "--verbose")


def run_tests(job: Job) -> None:
    """Run tests/gpu, which are skipped without a device."""
    options = ["-q", "-p", "no:cacheprovider", "-rs", "--tb=short", "--durations=8"]
    job.command("tests", sys.executable, "-m", "pytest", *options, "tests/gpu")


def every_kernel(device: str) -> None:
    """Run one small case of each kernel, forward and backward, for compute-sanitizer."""
    require_kernels(device)
    f, radial = torch.ones(12, device=device) / 12, torch.ones(12, 12, device=device) / 144
    f4 = torch.ones(24, device=device) / 24
    runs = [(dtype, False) for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)]
    if device == "cuda":
        runs += [(torch.float16, True), (torch.bfloat16, True)]
    for dtype, tensor_cores in runs:
        if device == "cuda":
            torch.ops.stylesan_xl.use_tensor_cores(tensor_cores)
        # Tensor cores take even widths only.
        x = torch.randn(2, 3, 37, 42 if tensor_cores else 41, device=device).to(dtype).requires_grad_()
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
    # torch queries the driver for optional features, and those errors are harmless. Kernels of other
    # libraries are not checked, because they take time.
    options = ["--error-exitcode", "9", "--report-api-errors", "no", "--kernel-name", "kns=_ZN3ops"]
    options += ["--print-limit", "20"]
    runs = [
        ("memcheck", "kernels", "0"),
        ("memcheck", "mistake", "9"),
        ("racecheck", "kernels", "0"),
        ("synccheck", "kernels", "0"),
    ]
    for tool, what, expected in runs if job.device == "cuda" else [("none", "kernels", "0")]:
        checked = ["compute-sanitizer", "--tool", tool, *options] if tool != "none" else []
        ended = job.run(f"sanitizer-{tool}-{what}", [*checked, *script, what], environment, _TOOL_SECONDS)
        job.results.add("sanitizer", tool=tool, over=what, expected=expected, **ended)


def run_cases(job: Job, part: str, predict: Callable[[gpu_training.Case], dict[str, Any]]) -> None:
    """Run benchmarks/gpu_training.py until every case of a part has a result, or the time is over.

    A process that a kernel's error ends is followed by another one, for the cases that are left.

    Args:
        job: The arguments.
        part: The part.
        predict: Returns what is predicted for a case. It runs beside the measurements.
    """
    cases = gpu_training.cases(part, job.stages, job.levers)
    predictions: list[dict[str, Any]] = []

    def fill() -> None:
        while len(predictions) < len(cases) and job.seconds() > 0:
            try:
                predictions.append(predict(cases[len(predictions)]))
            except Exception as error:  # the measurement goes on
                predictions.append({"prediction": one_line(error)})

    command = [sys.executable, "benchmarks/gpu_training.py", f"--part={part}", f"--device={job.device}"]
    command += [f"--results={job.results.path}", f"--levers={job.levers}"]
    command += [f"--stages={','.join(map(str, job.stages))}", *(["--small"] if job.small else [])]
    while (done := len(job.results.rows(part))) < len(cases):
        ended = job.run(f"{part}-{done}", [*command, f"--skip={done}"], meanwhile=fill)
        left = cases[len(job.results.rows(part)) :]
        if left and ended["status"] == OUT_OF_TIME:
            job.results.add(part, **left[0].facts(), status=OUT_OF_TIME)
            break
        if len(left) == len(cases) - done:  # it ended in the middle of the first case
            status = f"ended with status {ended['status']}"
            job.results.add(part, **left[0].facts(), **ended | {"status": status})
    job.results.complete(part, predictions)


def run_networks(job: Job) -> None:
    """Compare gradients on the device in each precision with float32 on the CPU."""
    run_cases(job, "networks", lambda case: {})


def run_steps(job: Job) -> None:
    """Measure each stage with each optimisation."""
    run_cases(job, "steps", lambda case: gpu_training.predict(job.small, case.stage, case.levers))


def run_ops(job: Job) -> None:
    """Run benchmarks/ops.py."""
    # torch.compile takes seconds per case: run it last, and for one type only.
    small = ["--scale", "256", "--batch", "1", "--repeats", "1", "--dtypes", "float32", "--cases", "52"]
    runs = {"eager": [], "tensor-cores": ["--tensor-cores"], "compiled": ["--compile", "--dtypes", "float16"]}
    if job.small:
        runs = {"small": small}
    for name, options in runs.items():
        out = job.folder / f"ops-{name}.json"
        out.unlink(missing_ok=True)  # of an earlier run
        command = [sys.executable, "benchmarks/ops.py", "--device", job.device, "--out", str(out), *options]
        ended = job.run(f"ops-{name}", command)
        measured = json.loads(out.read_text()) if out.exists() else {"rows": []}
        for row in measured["rows"]:
            row["predicted_forward_copy_share"] = gpu_results.predicted_share(row["case"], row["dtype"])
        copy = measured.get("copy_bytes_per_second")
        job.results.add("ops", baselines=name, copy_bytes_per_second=copy, **ended, rows=measured["rows"])


def real_options(job: Job, resolution: int, stem: Path | None) -> list[str]:
    """Return the options of train.py for a stage of the part 'real'."""
    options = ["--cfg=stylegan3-t", f"--data={job.data}", f"--resolution={resolution}", "--cond=True"]
    options += ["--gpus=1", f"--device={job.device}", f"--backbones={timm_weights.LITE0}", "--kimg=100000"]
    if stem is None:
        options += ["--syn_layers=5" if job.small else "--syn_layers=7", "--class-embedding=random"]
    else:
        options += ["--superres", "--up_factor=2", "--head_layers=4", f"--path_stem={stem}"]
    if job.small:
        options += ["--batch=8", "--cbase=256", "--cmax=16", "--feature-size=32", "--proj-channels=8"]
        return [*options, "--head-channels=8", "--tick=0.016", "--snap=1", "--metrics=none"]
    options += ["--batch=256", "--d-precision=bf16", "--tick=5", "--snap=4", "--keep-snapshots=1"]
    try:
        timm_weights.check(timm_weights.LITE0)
        return [*options, f"--metrics={METRIC}"]
    except (FileNotFoundError, ValueError):
        # The results do not show the quality then.
        weights = f"{timm_weights.LITE0}={timm_weights.RANDOM}"
        return [*options, f"--backbone-weights={weights}", "--metrics=none"]


def run_real(job: Job) -> None:
    """Run train.py at 16, 32 and 64 pixels. Its exit status is 3 when it reaches the time of a stage."""
    if job.data is None:
        job.results.add("real", status="no --data")
        return
    overhead, stem = _OVERHEAD_SECONDS, None
    for i, (resolution, share) in enumerate(REAL_STAGES.items()):
        own = job.seconds() * share / sum([*REAL_STAGES.values()][i:])
        trains = max(own - overhead, 1.0)
        outdir = job.folder / f"runs-{resolution}"
        shutil.rmtree(outdir, ignore_errors=True)  # of an earlier run, which would be resumed
        limit = ["--restart_every", f"{trains:g}", "--outdir", str(outdir)]
        command = [sys.executable, "train.py", *limit, *real_options(job, resolution, stem)]
        ended = job.run(f"real-{resolution}", command)
        overhead = ended["seconds"] - trains
        found = sorted(run_folder.run_folders(str(outdir)).items()) if outdir.exists() else []
        stem = found[-1][1] if found else None
        more = trained(stem) if stem is not None else {}
        job.results.add("real", stage=resolution, expected="3", **ended, **more)
        if stem is None or run_folder.best_network(stem) is None:
            return
        pictures = [stem / run_folder.CURVES_FILE, *run_folder.fakes_files(stem)[-1:]]
        for picture in filter(Path.exists, pictures):
            shutil.copyfile(picture, job.folder / f"real-{resolution}-{picture.name}")


def trained(folder: Path) -> dict[str, Any]:
    """Return what a run folder says: its statistics, its metric, and what was predicted for it."""
    config = run_folder.load_run(str(folder))
    dataset = build.make_dataset(config.data, config.run.seed)
    step = roofline.count(config, plan.plan(config, dataset)[0])
    found: dict[str, Any] = {
        "run": str(folder),
        "predicted_sec_per_kimg": {gpu.name: step.sec_per_kimg(gpu) for gpu in roofline.GPUS},
    }
    lines = run_folder.read_jsonl(folder / run_folder.STATS_FILE)
    if lines:
        numbers = {name: x["mean"] if isinstance(x, dict) else x for name, x in lines[-1].items()}
        found["last_statistics"] = numbers
    records = run_folder.metric_file(folder, METRIC)
    if records.exists():
        found["fd_lite0"] = [record["value"] for record in run_folder.read_jsonl(records)]
    return found


def run_part(job: Job, name: str, runner: Callable[[Job], None]) -> None:
    """Run a part if there is time left. An error is stored as a result."""
    job.begin(name)
    if job.seconds() == 0:
        job.results.add(name, status=OUT_OF_TIME)
        return
    try:
        runner(job)
    except Exception as error:
        job.results.add(name, status=one_line(error))


RUNNERS: dict[str, Callable[[Job], None]] = {
    "tests": run_tests,
    "sanitizer": run_sanitizer,
    "networks": run_networks,
    "ops": run_ops,
    "steps": run_steps,
    "real": run_real,
}


def _parts(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    """Return the parts in a comma-separated list, in the order in which they run."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise click.BadParameter(f"{text}: unknown part {unknown[0]}; the parts are {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]


def _stages(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    known = [str(stage) for stage in gpu_training.BATCHES]
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(known):
        raise click.BadParameter(f"{text}: the stages are {', '.join(known)}")
    return tuple(int(name) for name in names)


def _levers(context: click.Context, parameter: click.Parameter, text: str) -> str:
    if not gpu_training.chosen_levers(text):
        names = ", ".join(f"'{levers.name}'" for levers in gpu_training.LEVERS)
        raise click.BadParameter(f"{text}: no name contains this; the names are {names}")
    return text


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--parts", default=",".join(PARTS), show_default=True, callback=_parts)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Use tiny networks and few repeats, to test the command.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help=f"Time limit of each part.  [default: {', '.join(f'{k} {v:g}' for k, v in MINUTES.items())}]",
)
@click.option("--data", type=click.Path(resolve_path=True), help="Data set of the part 'real'.")
@click.option(
    "--stages",
    default=",".join(map(str, STAGES)),
    show_default=True,
    callback=_stages,
    help="Resolutions of the part 'steps'.",
)
@click.option(
    "--levers",
    default="",
    callback=_levers,
    help="Optimisations of the part 'steps': only those whose name contains this.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The .json file of the results.")
@click.option("--total-minutes", type=float, help="Time limit of all parts together.  [default: no limit]")
@click.option("--check", type=click.Choice(["kernels", "mistake"]), hidden=True)
def main(
    parts: list[str],
    device: str,
    small: bool,
    minutes: float | None,
    data: str | None,
    stages: tuple[int, ...],
    levers: str,
    out: Path | None,
    total_minutes: float | None,
    check: str | None,
) -> None:
    """Run the chosen parts; the help text is the module's docstring."""
    end = math.inf if total_minutes is None else time.monotonic() + 60 * total_minutes
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "no CUDA device found; --device cpu --small runs the same commands on a CPU"
        )
    if data is not None and not Path(data).exists():
        raise click.ClickException(f"--data={data} does not exist")
    if check is not None:
        {"kernels": every_kernel, "mistake": planted_mistake}[check](device)
        return
    name = "gpu" if parts == list(PARTS) else f"gpu-{'-'.join(parts)}"
    path = (out or ROOT / "benchmarks" / "results" / f"{name}.json").resolve()
    command = " ".join(["python benchmarks/gpu.py", *map(shlex.quote, sys.argv[1:])])
    results = Results(path, machine.describe(device) | {"small": small, "command": command})
    limits = MINUTES if minutes is None else dict.fromkeys(MINUTES, minutes)
    job = Job(device, small, limits, data, stages, levers, results, end)
    if device == "cuda":
        run_part(job, "build", run_build)
    for part in parts:
        run_part(job, part, RUNNERS[part])
    text = gpu_results.table([results.content])
    with atomic_write(path.with_suffix(".md"), "w") as f:
        f.write(text)
    click.echo(f"\n{text}\n{path}: {len(results.content['results'])} results")


if __name__ == "__main__":
    main()
