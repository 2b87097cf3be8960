# SPDX-License-Identifier: Apache-2.0
"""Times several implementations of the same work in turns, each in a process of its own.

Turns cancel slow changes of the machine, and processes separate peak memory and allocator settings. CPU
seconds count the work of all threads and depend little on other work on the machine.
"""

import functools
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from dnnlib.records import write_json

Work = Callable[[], object]
Maker = Callable[..., Work]

# Names of torch operators -> part of a step.
_PARTS = (
    ("convolution, backward", r"convolution_backward|Conv.*Backward"),
    ("convolution", r"convolution|conv2d"),
    ("attention", r"attention|softmax"),
    ("products", r"mm|linear|baddbmm|dot|matmul|bmm"),
    ("resampling and activation", r"stylesan_xl|_Activation|upfirdn|filtered_lrelu"),
    ("normalisation", r"batch_norm|layer_norm"),
    ("interpolation", r"upsample"),
    ("optimizer and average", r"_fused_adam|_foreach|addcdiv|lerp"),
    ("copies", r"copy_|clone|contiguous|_to_copy|cat"),
)


class Measured(NamedTuple):
    """One implementation's medians."""

    cpu: float  # seconds
    wall: float  # seconds
    peak: float  # GiB of the process
    gflop: float  # of convolutions and products
    parts: dict[str, float]  # seconds by part (wall clock: torch.profiler has no other)


def chosen(names: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the named rows.

    Args:
        names: Separated by commas.
        rows: All rows by name.

    Raises:
        click.ClickException: A name is unknown.
    """
    for name in names.split(","):
        if name not in rows:
            raise click.ClickException(f"--rows={names}: unknown row {name!r}; use {', '.join(rows)}")
    return {name: rows[name] for name in names.split(",")}


def peak_gib() -> float:
    """Return the largest resident memory of this process since `forget_peak`, in GiB; NaN where unknown."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found.group(1)) / 2**20 if found else float("nan")


def forget_peak() -> None:
    """Start a new measurement of the peak, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def parts_of(work: Work) -> dict[str, float]:
    """Return the seconds of the parts of a run, by torch.profiler (wall clock)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        part = next((name for name, pattern in _PARTS if re.search(pattern, event.key)), "other")
        found[part] = found.get(part, 0.0) + event.self_cpu_time_total / 1e6
    return found


def _linear_flop(x: Sequence[int], w: Sequence[int], *_: object, **__: object) -> int:
    size = 2
    for side in x:
        size *= side
    return size * w[0]


def gflop_of(work: Work) -> float:
    """Return the 10^9 floating-point operations of convolutions and products in a run."""
    own = {torch.ops.mkldnn._linear_pointwise.default: _linear_flop} if hasattr(torch.ops, "mkldnn") else {}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return float(counter.get_total_flops()) / 1e9


def floors(scale: int = 1) -> dict[str, float]:
    """Return this machine's GFLOP/s of a large convolution and a large product, in float32 and bfloat16.

    Args:
        scale: Divisor of the sizes.
    """
    c = max(256 // scale, 16)
    x, w, a, b = (
        torch.randn(4, c, 36, 36),
        torch.randn(c, c, 3, 3),
        torch.randn(788, c),
        torch.randn(4 * c, c),
    )

    def rate(work: Work, gflop: float) -> float:
        work()
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            work()
            best = min(best, time.process_time() - start)
        return gflop / best

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        xs = x.to(dtype)
        xs = xs if dtype == torch.float32 else xs.contiguous(memory_format=torch.channels_last)
        ws, as_, bs = w.to(dtype), a.to(dtype), b.to(dtype)
        name = str(dtype)[6:]
        convolve = functools.partial(torch.conv2d, xs, ws)
        multiply = functools.partial(torch.nn.functional.linear, as_, bs)
        found[f"convolution {name}"] = rate(convolve, 8 * c * c * 9 * 34 * 34 / 1e9)
        found[f"product {name}"] = rate(multiply, 8 * 788 * c * c / 1e9)
    return found


def _serve(pipe: Connection, make: Maker, arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    work = make(*arguments)
    commands: dict[str, Callable[[], object]] = {
        "gflop": lambda: gflop_of(work),
        "parts": lambda: parts_of(work),
        "time": lambda: _timed(work),
    }
    while (name := pipe.recv()) != "stop":
        pipe.send(commands[name]())


def _timed(work: Work) -> tuple[float, float, float]:
    forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall, peak_gib()


class _Process:
    """An implementation in its own process."""

    def __init__(self, make: Maker, arguments: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments, threads), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, name: str) -> Any:
        """Run a command there and return its result."""
        self.pipe.send(name)
        return self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.pipe.send("stop")
        self.process.join()


def compare(
    makers: Mapping[str, Maker],
    arguments: tuple[Any, ...],
    repeats: int,
    threads: int = 1,
    parts: bool = True,
    unit: int = 1,
) -> dict[str, Measured]:
    """Measure implementations in turns, after one run each to warm up, which counts the operations.

    Args:
        makers: Name -> picklable function of `arguments` that returns the work.
        arguments: Of every maker.
        repeats: Runs of each.
        threads: Of each process.
        parts: Also run once under the profiler.
        unit: Divisor of times and operations, such as images.
    """
    processes = {name: _Process(make, arguments, threads) for name, make in makers.items()}
    gflop = {name: process.ask("gflop") for name, process in processes.items()}
    for process in processes.values():
        process.ask("time")
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in processes}
    for turn in range(repeats):
        for name in processes if turn % 2 == 0 else reversed(processes):
            times[name].append(processes[name].ask("time"))
    found = {}
    for name, process in processes.items():
        cpu, wall, peak = zip(*times[name], strict=True)
        split = {part: s / unit for part, s in process.ask("parts").items()} if parts else {}
        found[name] = Measured(median(cpu) / unit, median(wall) / unit, max(peak), gflop[name] / unit, split)
        process.close()
    return found


def table(rows: Mapping[str, Mapping[str, Measured]], rates: Mapping[str, float]) -> str:
    """Return a table with a line per row: the first implementation beside each of the others.

    Args:
        rows: Row -> implementation -> its medians.
        rates: Of `floors`.
    """
    peak = rates["convolution float32"]
    lines = [
        "| work | implementation | CPU s | wall s | peak GiB | times as fast | GFLOP | GFLOP/s "
        "| above the float32 floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, measured in rows.items():
        first = next(iter(measured.values())).cpu
        for name, m in measured.items():
            lines.append(
                f"| {row} | {name} | {m.cpu:.2f} | {m.wall:.2f} | {m.peak:.2f} "
                f"| {first / m.cpu:.2f} | {m.gflop:.0f} | {m.gflop / m.cpu:.0f} "
                f"| {m.cpu / (m.gflop / peak):.1f} |"
            )
    return "\n".join(lines)


def part_table(rows: Mapping[str, Mapping[str, Measured]]) -> str:
    """Return a table of the share of each part in percent, a column per row and implementation."""
    columns = [(row, name, m) for row, measured in rows.items() for name, m in measured.items() if m.parts]
    names = [*(name for name, _ in _PARTS), "other"]
    lines = [
        "| % of the time | " + " | ".join(f"{row}: {name}" for row, name, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [
        f"| {part} | "
        + " | ".join(f"{100 * m.parts.get(part, 0) / sum(m.parts.values()):.1f}" for _, _, m in columns)
        + " |"
        for part in names
    ]
    return "\n".join(lines)


def save(
    out: str | None, rows: Mapping[str, Mapping[str, Measured]], rates: Mapping[str, float], threads: int
) -> None:
    """Write the machine, the floors and the results as JSON; nothing for None."""
    if out is None:
        return
    content = {
        **machine.describe("cpu"),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gflop_per_second": dict(rates),
        "rows": {row: {name: m._asdict() for name, m in found.items()} for row, found in rows.items()},
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(out), content)


def options(rows: Mapping[str, Any], default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of a benchmark, which `run` takes.

    Args:
        rows: All rows by name.
        default: Names of those that run without --rows, separated by commas.
    """
    added = (
        click.option("--rows", default=default, show_default=True, help=f"Of {', '.join(rows)}."),
        click.option("--repeats", default=3, show_default=True, help="Measured runs of each implementation."),
        click.option("--threads", default=1, show_default=True, help="Threads of each process."),
        click.option("--parts/--no-parts", default=True, show_default=True, help="Print shares of parts."),
        click.option("--smoke", is_flag=True, help="Run tiny networks only, to check the benchmark itself."),
        click.option("--out", help="JSON file for the results."),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


def run(
    makers: Mapping[str, Maker],
    rows: Mapping[str, Any],
    *,
    repeats: int,
    threads: int,
    parts: bool,
    smoke: bool,
    out: str | None,
    unit: Callable[[Any], int] = lambda row: 1,
) -> None:
    """Compare implementations on rows, print the tables and write the JSON file.

    Args:
        makers: As for `compare`, of one row.
        rows: Have a `title`.
        repeats: Runs of each; one with `smoke`.
        threads: Of each process.
        parts: Also print the share of each part.
        smoke: Check the benchmark itself with small floors.
        out: JSON file, or None.
        unit: Divisor of the times of a row.
    """
    torch.set_num_threads(threads)
    rates, found = floors(8 if smoke else 1), {}
    for row in rows.values():
        found[row.title] = compare(makers, (row,), 1 if smoke else repeats, threads, parts, unit(row))
        click.echo(table({row.title: found[row.title]}, rates).splitlines()[-1])
    show(found, rates, out, threads)


def show(
    rows: Mapping[str, Mapping[str, Measured]], rates: Mapping[str, float], out: str | None, threads: int
) -> None:
    """Print the tables and write the JSON file."""
    click.echo(f"\n{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {threads} thread(s)")
    click.echo("GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    click.echo(table(rows, rates))
    if any(m.parts for found in rows.values() for m in found.values()):
        click.echo("\n" + part_table(rows))
    save(out, rows, rates, threads)
