# SPDX-License-Identifier: Apache-2.0
"""Random faults in a small run of two processes, and whether it ends with the weights of an undisturbed one.

    python -m tools.soak --outdir=/tmp/soak --faults=100

Each episode trains the same run with FAULTS_INSIDE faults in it: processes killed, stopped and told to leave,
checkpoints cut and flipped. The launcher restarts the processes; where the command itself ends, it is given
again with --resume. With --quick, processes are forked from one that has imported torch, which saves most of
the time of a restart. soak.jsonl gets a line per fault and per episode. A soak that was stopped continues
with the same command. The table at the end counts the faults, and the seconds until training continued.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click
import psutil
import torch

from dnnlib.locks import Lock
from dnnlib.records import append_jsonl, read_jsonl
from tests import quick_processes
from tests.toy_data import make_zip
from tests.toy_runs import FLAGS
from torch_utils import checkpoint
from training import run_folder

ROOT = Path(__file__).resolve().parent.parent
FAULTS_INSIDE = 10  # of an episode
LIMIT = 3600.0  # seconds without a new checkpoint, after which the soak gives up
OPTIONS = ["--cfg=stylegan3-t", "--gpus=2", "--cond=True", *FLAGS, "--kimg=0.4", "--tick=0.2", "--variety=0"]
OPTIONS += ["--checkpoint-minutes=0", "--keep-checkpoints=3", "--max-restarts=1000", "--hang-timeout=15"]


class Started:
    """A command that runs, as a program."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        with open(output, "a", encoding="utf-8") as log:
            command = [sys.executable, "train.py", *arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ranks(self) -> list[psutil.Process]:
        """The training processes."""
        children = psutil.Process(self.process.pid).children()
        return [p for p in children if "spawn_main" in " ".join(p.cmdline())]


class Forked:
    """As `Started`, without the imports."""

    server: ClassVar[Any] = multiprocessing.forkserver._forkserver
    commands: ClassVar[set[int]] = set()

    def __init__(self, arguments: list[str], output: Path) -> None:
        multiprocessing.set_forkserver_preload(quick_processes._PRELOADED)
        self.server.ensure_running()
        address = self.server._forkserver_address
        context = quick_processes.get_context("spawn")
        self.process = context.Process(target=_command, args=(arguments, str(output), address))
        self.process.start()
        self.commands.add(self.process.pid)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return bool(self.process.is_alive())

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def ranks(self) -> list[psutil.Process]:
        """The training processes: the server's children but for the commands."""
        children = psutil.Process(self.server._forkserver_pid).children()
        return [p for p in children if p.pid not in self.commands and p.status() != psutil.STATUS_ZOMBIE]


def _command(arguments: list[str], output: str, address: str) -> None:
    """train.py in a forked process, whose own processes are forked by the same server."""
    import train

    Forked.server._forkserver_address, Forked.server.ensure_running = address, lambda: None

    with open(output, "a", encoding="utf-8") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    multiprocessing.get_context = quick_processes.get_context
    train.main(arguments)


class Run:
    """A run of train.py, given again with --resume as often as it ends before its end."""

    command: ClassVar[type[Started] | type[Forked]] = Started

    def __init__(self, outdir: Path, data: str) -> None:
        self.outdir, self.data = outdir, data
        self.process: Started | Forked | None = None
        if not self.finished():
            self.start()

    @property
    def folder(self) -> Path | None:
        """The run folder, once there is one."""
        return next(iter(run_folder.run_folders(str(self.outdir)).values()), None)

    def start(self) -> None:
        """Give the command, again if there is a folder."""
        self.outdir.mkdir(exist_ok=True, parents=True)
        resume = [f"--resume={self.folder}"] if self.folder else []
        arguments = [f"--data={self.data}", f"--outdir={self.outdir}", *OPTIONS, *resume]
        self.process = self.command(arguments, self.outdir / "output.txt")

    def finished(self) -> bool:
        """Whether the run has ended by itself."""
        return self.folder is not None and run_folder.recorded_outcome(self.folder) == run_folder.FINISHED

    def keep_going(self) -> bool:
        """Start again if the command has ended too early. False when the run is finished."""
        if self.process is not None and self.process.runs():
            return True
        if self.finished():
            return False
        time.sleep(1)  # the processes of a killed launcher may still hold the folder
        self.start()
        return True

    def trainers(self) -> list[psutil.Process]:
        """The two training processes, the writing one first; [] while there are not two."""
        if self.process is None or self.folder is None:
            return []
        holder = Lock(self.folder / run_folder.WRITER_LOCK_FILE).last_holder()
        try:
            found = self.process.ranks()
        except psutil.Error:
            return []
        if holder is None or len(found) != 2 or holder.pid not in [p.pid for p in found]:
            return []
        return sorted(found, key=lambda p: p.pid != holder.pid)

    def newest(self) -> tuple[int, float]:
        """Images shown at the newest checkpoint, and when it was written; zeros without one."""
        if self.folder is None:
            return 0, 0.0
        files = run_folder.checkpoint_folder(self.folder).glob("checkpoint-*.pt")
        found = [(int(p.name.split("-")[1]), p.stat().st_mtime) for p in files if p.exists()]
        return max(found, default=(0, 0.0))

    def trains(self, nimg: int = 0, since: float = 0.0, without: frozenset[int] = frozenset()) -> bool:
        """Whether both processes run, and have written a checkpoint of `nimg` images after a time.

        Args:
            nimg: images shown.
            since: of time.time().
            without: ids of earlier processes, which do not count.
        """
        shown, written = self.newest()
        found = self.trainers()
        try:
            began = max((p.create_time() for p in found), default=0.0)
        except psutil.Error:
            return False
        new = len(found) == 2 and not {p.pid for p in found} & without
        return new and shown >= nimg and written > max(since, began)


def _damage(run: Run, how: Callable[[bytearray], bytes]) -> None:
    """Kill the writing process, and change its newest checkpoint."""
    run.trainers()[0].kill()
    assert run.folder is not None
    path = max(run_folder.checkpoint_folder(run.folder).glob("checkpoint-*.pt"))
    written = path.stat()
    path.write_bytes(how(bytearray(path.read_bytes())))
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))  # it is no new one


def _flip(content: bytearray) -> bytes:
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def _signal_launcher(run: Run, number: int) -> None:
    assert run.process is not None
    run.process.signal(number)


FAULTS: dict[str, Callable[[Run], None]] = {
    "SIGKILL of the writing process": lambda run: run.trainers()[0].kill(),
    "SIGKILL of the other process": lambda run: run.trainers()[1].kill(),
    "SIGSTOP of the writing process": lambda run: run.trainers()[0].suspend(),
    "SIGSTOP of the other process": lambda run: run.trainers()[1].suspend(),
    "SIGTERM to one process": lambda run: run.trainers()[1].terminate(),
    "SIGTERM to the launcher": lambda run: _signal_launcher(run, signal.SIGTERM),
    "SIGKILL of the launcher": lambda run: _signal_launcher(run, signal.SIGKILL),
    "SIGKILL, newest checkpoint cut": lambda run: _damage(run, lambda c: bytes(c[: len(c) // 2])),
    "SIGKILL, newest checkpoint flipped": lambda run: _damage(run, _flip),
}


def wait(run: Run, ready: Callable[[], bool]) -> bool:
    """Wait until `ready`; False when the run is finished before."""
    until = time.monotonic() + LIMIT
    while not ready():
        if not run.keep_going():
            return False
        if time.monotonic() > until:
            raise SystemExit(f"no progress for {LIMIT:g} s in {run.outdir}")
        time.sleep(0.2)
    return True


def resumed_at(run: Run) -> int:
    """Images shown where the run was last resumed."""
    assert run.folder is not None
    lines = (run.folder / run_folder.LOG_FILE).read_text(encoding="utf-8").splitlines()
    last = next(line for line in reversed(lines) if "Resuming from" in line)
    return int(last.rpartition("checkpoint-")[2].split("-")[0])


def episode(outdir: Path, data: str, log: Path, draws: random.Random) -> None:
    """One run with faults, to its end."""
    run = Run(outdir, data)
    for _ in range(FAULTS_INSIDE):
        wanted = run.newest()[0] + 8 * draws.randint(1, 4)
        name = draws.choice(list(FAULTS))
        if not wait(run, functools.partial(run.trains, nimg=wanted)):
            break
        (before, _), began = run.newest(), time.time()
        earlier = frozenset(p.pid for p in run.trainers())
        FAULTS[name](run)
        if not wait(run, functools.partial(run.trains, since=began, without=earlier)):
            break
        seconds, lost = time.time() - began, max(before - resumed_at(run), 0)
        append_jsonl(log, {"fault": name, "at": before, "seconds": round(seconds, 1), "lost": lost})
        print(f"{name} at {before} images: training again after {seconds:.0f} s", flush=True)
    wait(run, lambda: False)


def equal(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same state, bit for bit."""

    def same(x: object, y: object) -> bool:
        if isinstance(x, dict) and isinstance(y, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x if k != "seconds")
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
            return len(x) == len(y) and all(map(same, x, y))
        return x == y

    paths = [
        run_folder.newest_checkpoint(next(iter(run_folder.run_folders(str(d)).values()))) for d in (a, b)
    ]
    states = [checkpoint.load(path)["train"] for path in paths if path is not None]
    return len(states) == 2 and same(*states)


def table(lines: list[dict[str, object]]) -> str:
    """The faults: times, saved images lost, seconds until training continued; the episodes."""
    seconds, lost = defaultdict(list), defaultdict(list)
    for line in lines:
        if "fault" in line:
            seconds[str(line["fault"])].append(float(str(line["seconds"])))
            lost[str(line["fault"])].append(int(str(line["lost"])))
    rows = [
        "| fault | times | saved images lost, at most | seconds, median | longest |",
        "|---|---|---|---|---|",
    ]
    for name, values in sorted(seconds.items()):
        middle = statistics.median(values)
        rows.append(f"| {name} | {len(values)} | {max(lost[name])} | {middle:.0f} | {max(values):.0f} |")
    ends = [line["equal"] for line in lines if "equal" in line]
    total = sum(map(len, seconds.values()))
    return "\n".join([*rows, "", f"{total} faults; {ends.count(True)} of {len(ends)} runs ended bit-equal"])


@click.command(help=str(__doc__))
@click.option("--outdir", required=True, type=click.Path(path_type=Path), help="for runs and soak.jsonl")
@click.option("--faults", default=100, help="how many, at least")
@click.option("--seed", default=0, help="of the faults and their times")
@click.option("--quick", is_flag=True, help="fork processes that have imported torch")
def main(outdir: Path, faults: int, seed: int, quick: bool) -> None:
    """Run episodes until there were enough faults."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    Run.command = Forked if quick else Started
    outdir.mkdir(parents=True, exist_ok=True)
    log = outdir / "soak.jsonl"
    data = outdir / "toy.zip"
    if not data.exists():
        make_zip(outdir, "toy", classes=3, count=24)
    reference = outdir / "undisturbed"
    wait(Run(reference, str(data)), lambda: False)
    while True:
        lines = read_jsonl(log) if log.exists() else []
        if sum("fault" in line for line in lines) >= faults:
            break
        number = sum("equal" in line for line in lines)
        episode(outdir / f"episode-{number}", str(data), log, random.Random(f"{seed}-{number}-{len(lines)}"))
        same = equal(reference, outdir / f"episode-{number}")
        append_jsonl(log, {"episode": number, "equal": same})
        print(f"episode {number}: {'bit-equal' if same else 'DIFFERENT'}", flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
