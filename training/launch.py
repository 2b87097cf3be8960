# SPDX-License-Identifier: Apache-2.0
"""Start a run: its folder, the processes that train in it, how they ended. Metrics come from the caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

import dnnlib
from torch_utils import agreement, devices, distributed, launcher, memory, watchdog
from training import build, loop, run_folder
from training.config import AUTO, TrainConfig, from_json, to_json
from training.guard import NonFiniteError
from training.networks.stems import Lineage, resumed_lineage
from training.run import auto_batch, restart
from training.run.enter import RunLock, append_to_log, ending_logged, entered
from training.run.periodic import Evaluate
from training.run.stop import terminated_as_interrupted, was_asked
from training.run_folder import OPTIONS_FILE, load_run, new_run_folder, recorded_outcome, write_json

# What measures G_ema in a process of the run, or None. A function of a module or script, since other
# processes receive it.
MakeEvaluate = Callable[[TrainConfig, torch.device], Evaluate | None]


class Ending(NamedTuple):
    """How the processes of a run ended.

    Attributes:
        outcome: as status.json records it.
        was_asked: a signal asked them to stop, be it too late for this run.
    """

    outcome: str
    was_asked: bool


def join(config: TrainConfig) -> torch.device:
    """Make this process one of the run's, and return its device."""
    device = devices.use_device(config.run.device, int(os.environ.get("LOCAL_RANK", 0)))
    return distributed.init(device.type, config.run.collective_timeout)


def check_processes(config: TrainConfig) -> None:
    """Check --gpus.

    Raises:
        ValueError: torchrun has started another number of processes, or it is too many for one machine.
    """
    started = distributed.started_processes()
    try:
        launcher.check_local(config.run.gpus)
    except ValueError as error:
        raise ValueError(f"--gpus={config.run.gpus}: {error}") from None
    if fit_processes(config).run.gpus != (started or config.run.gpus):
        raise ValueError(
            f"--gpus={config.run.gpus}, but torchrun started {started} processes on all machines together: "
            f"use --gpus={started}"
        )


def fit_processes(config: TrainConfig) -> TrainConfig:
    """`config` for the number of processes that torchrun started, with --elastic. The batch stays.

    Raises:
        ValueError: the batch cannot be divided among them; names the numbers of processes that can do it.
    """
    started, run = distributed.started_processes(), config.run
    if not run.elastic or started in (None, run.gpus):
        return config
    assert started is not None
    if run.batch % started:
        possible = [n for n in range(1, run.batch + 1) if run.batch % n == 0]
        raise ValueError(
            f"--batch={run.batch} cannot be divided among the {started} processes that torchrun started; "
            f"numbers of processes that divide it: {', '.join(map(str, possible))}"
        )
    changes: dict[str, Any] = {"run.gpus": started}
    if isinstance(run.batch_gpu, int) and run.batch_gpu:
        share, runs = run.batch // started, config.data.class_run
        divisors = [n for n in range(1, min(share, run.batch_gpu) + 1) if share % n == 0]
        changes["run.batch_gpu"] = max(divisors, key=lambda n: (n % runs == 0, n))
    fitted = config.override(changes)
    fitted.validate()
    return fitted


def memory_remedy(config: TrainConfig, then: str = "") -> str:
    """What to change when a run is out of memory."""
    return (
        f"lower --batch-gpu (now {config.batch_gpu}) or let --batch-gpu=auto find it, else lower --cbase "
        f"and --cmax{then}"
    )


def start(
    config: TrainConfig,
    existing: Path | None,
    outdir: str,
    desc: str,
    make_evaluate: MakeEvaluate,
    again: bool = False,
    from_scratch: bool = False,
) -> str:
    """Make or lock the run folder, record the options, run.

    When torchrun restarts a job, the folder is the one that the job began in, and `from_scratch` has been
    done already.

    Args:
        config: the options.
        existing: the folder to resume in; None = a new one in `outdir`.
        outdir: where run folders are made.
        desc: the folder's name, after its number.
        make_evaluate: for the metrics.
        again: as for `settle_batch_gpu`.
        from_scratch: as for `entered`.

    Returns:
        The outcome.

    Raises:
        ValueError, OSError: in one line; a folder that another process uses, or whose checkpoints cannot be
            used, is as it was.
    """
    config = fit_processes(config)
    if distributed.under_torchrun():
        join(config)
    existing = distributed.broadcast_object(existing) or restart.folder_of_job(outdir, desc)
    from_scratch = from_scratch and not (existing and restart.is_of_job(existing))
    run_dir = existing
    with ExitStack() as stack, terminated_as_interrupted():
        try:
            if run_dir is not None:
                enter(stack, run_dir, config, from_scratch)
            config = settle_batch_gpu(config, run_dir, again)
            if run_dir is None:
                run_dir = distributed.on_main(lambda: new_run_folder(outdir, desc))
                enter(stack, run_dir, config)
            restart.note_job(run_dir)
            if distributed.is_main():
                print(f"Run folder: {run_dir}")
            return run_in_folder(config, run_dir, make_evaluate).outcome
        except KeyboardInterrupt:  # outside of the loop, which answers signals itself
            began = run_dir is not None and run_folder.is_run_folder(run_dir)
            remedy = f"Resume with --resume={run_dir}" if began else "Start again: nothing is recorded yet"
            print(f"Stopped. {remedy}", flush=True)
            return run_folder.INTERRUPTED


def enter(stack: ExitStack, run_dir: Path, config: TrainConfig, from_scratch: bool = False) -> None:
    """Enter a run folder until `stack` is closed: process 0 does, and all raise its error."""
    local = config.run.local_checkpoint
    distributed.on_main(lambda: stack.enter_context(entered(run_dir, from_scratch, local)), share=False)


def settle_batch_gpu(config: TrainConfig, existing: Path | None, again: bool) -> TrainConfig:
    """`config` with a number in the place of --batch-gpu=auto.

    Args:
        config: the options.
        existing: the run folder that is resumed, if any. Its recorded number is kept if the options still
            allow it.
        again: search even so.
    """
    if config.run.batch_gpu != AUTO:
        return config
    recorded = existing is not None and (existing / OPTIONS_FILE).is_file() and not again
    kept = distributed.broadcast_object(load_run(str(existing)).batch_gpu if recorded else None)
    if kept in auto_batch.allowed(config):
        return auto_batch.settled(config, kept)
    choice = launcher.launch(batch_gpu_process, config.run.gpus, to_json(config), resumed_lineage(existing))
    if distributed.is_main():
        print(choice.line(config), flush=True)
    return auto_batch.settled(config, choice.batch_gpu)


def batch_gpu_process(tree: dict[str, Any], run_lineage: Lineage | None) -> auto_batch.Choice:
    """One process of the search for --batch-gpu=auto."""
    config = from_json(tree)
    device = join(config)
    loop.configure(config, device)
    return auto_batch.choose(config, build.make_dataset(config.data, config.run.seed), device, run_lineage)


def run_in_folder(
    config: TrainConfig,
    run_dir: Path,
    make_evaluate: MakeEvaluate,
    resume: Path | None = None,
    seconds: float | None = None,
) -> Ending:
    """Record the options in a run folder that has been `entered`, and start the processes.

    A run that resumes records them once its checkpoint is loaded, so that a resume that is refused records
    nothing.

    Args:
        config: the options.
        run_dir: the folder.
        make_evaluate: for the metrics.
        resume: what to give to --resume, for messages; None = this folder.
        seconds: replaces --restart_every for the processes.

    Returns:
        How they ended.
    """
    resumed = distributed.on_main(lambda: (run_dir / OPTIONS_FILE).is_file())
    record = {
        "config": to_json(config),
        "command": sys.argv,
        "torch": str(torch.__version__),
        "resumed": resumed,
    }
    if not resumed and distributed.is_main():
        write_json(run_dir / OPTIONS_FILE, record)
    distributed.barrier()
    limited = config if seconds is None else config.override({"run.restart_every": max(seconds, 0.0)})
    process = f"Process {distributed.rank()}: " if distributed.world_size() > 1 else ""
    with ending_logged(run_dir, process):
        asked = launcher.launch(
            train_process,
            config.run.gpus,
            to_json(limited),
            str(run_dir),
            str(resume or run_dir),
            make_evaluate,
            record,
            restart=restart.Restarts(run_dir, config.run.max_restarts),
        )
    return Ending(recorded_outcome(run_dir) or run_folder.INTERRUPTED, asked)


def train_process(
    tree: dict[str, Any],
    run_dir: str,
    resume: str,
    make_evaluate: MakeEvaluate,
    record: dict[str, Any] | None = None,
) -> bool:
    """One process of a run.

    Args:
        tree: the options, as `to_json` returns them.
        run_dir: the run folder.
        resume: what to give to --resume, for messages: the run folder, or that of its recipe.
        make_evaluate: for the metrics.
        record: as for `loop.train`.

    Returns:
        Whether a signal asked any process to stop.

    Raises:
        ValueError: a gradient is not finite, the processes disagree, or memory is short: one line that says
            how to continue.
    """
    config = from_json(tree)
    device = join(config)
    lock = (
        RunLock(Path(run_dir), writer=True) if distributed.is_main() else None
    )  # the launching process may die before this one
    log = dnnlib.util.Logger(log_file(Path(run_dir), distributed.rank()), file_mode="a")
    dog = watchdog.Watchdog(
        run_folder.ranks_folder(run_dir), config.run.hang_timeout, lambda line: end_hang(run_dir, line)
    )
    try:
        hint = memory_remedy(config, f"; resume with --resume={resume}")
        with dog, log, memory.out_of_memory_hint(device, hint):
            outcome = loop.train(config, run_dir, device, make_evaluate(config, device), record)
            if distributed.is_main():
                saved = {
                    run_folder.INTERRUPTED: f"Saved. Resume with --resume={resume}",
                    run_folder.RESTART: "Saved for the restart.",
                }
                print(saved.get(outcome, "Finished."))
            return was_asked()
    except NonFiniteError as err:
        raise ValueError(f"{err}. {nan_remedy(Path(run_dir), resume)}") from None
    except agreement.Disagreement as err:
        raise ValueError(f"the processes do not agree: {err}. {remedy(Path(run_dir), resume)}") from None
    finally:
        if lock is not None:
            lock.release()


def log_file(run_dir: Path, rank: int) -> Path:
    """Where a process writes what it prints: the first one log.txt, the others ranks/NNN.log."""
    if rank == 0:
        return run_dir / run_folder.LOG_FILE
    run_folder.ranks_folder(run_dir).mkdir(exist_ok=True)
    return run_folder.ranks_folder(run_dir) / f"{rank:03d}.log"


def end_hang(run_dir: str, line: str) -> NoReturn:
    """End this process because one of them hangs; one of them tells the user."""
    if distributed.agent() is not None and distributed.rank() == int(line.startswith("process 0 ")):
        print(f"Error: {line}", file=sys.stderr, flush=True)  # the launcher of --gpus does it itself
        append_to_log(Path(run_dir), f"Error: {line}")
    launcher.end_process(launcher.ProcessHung(line))


def nan_remedy(run_dir: Path, resume: str) -> str:
    """What to do after a gradient that is not finite. resume: as for `train_process`."""
    return remedy(run_dir, resume, " at a lower --glr/--dlr")


def remedy(run_dir: Path, resume: str, change: str = "") -> str:
    """How to continue after a failure. resume: as for `train_process`; change: what to do differently."""
    nimg = None
    with suppress(OSError):
        nimg = run_folder.newest_checkpoint_nimg(run_dir)
    if nimg is None:
        return f"There is no checkpoint yet: start again{change}"
    comma = "," if change else ""
    return (
        f"Nothing was overwritten: resume from the last checkpoint, of {nimg} images, with "
        f"--resume={resume}{comma}{change}"
    )
