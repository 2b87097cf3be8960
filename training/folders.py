# SPDX-License-Identifier: Apache-2.0
"""Numbered run folders: their names, their options, who is in them, and whether there is anything to go on with."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from torch_utils import checkpoint
from training import loop
from training.config import AUTO, TrainConfig, from_json
from training.networks import stems

OPTIONS_FILE = "training_options.json"


def description(config: TrainConfig, data_name: str) -> str:
    """What follows the number in a run folder's name, as StyleGAN3 writes it."""
    run = config.run
    text = f"{config.generator.cfg}-{data_name}-gpus{run.gpus}-batch{run.batch}"
    return f"{text}-{run.desc}" if run.desc else text


def run_folders(outdir: str) -> dict[int, Path]:
    """Number -> run folder below `outdir`."""
    if not os.path.isdir(outdir):
        return {}
    found = ((re.match(r"(\d+)(-|$)", p.name), p) for p in Path(outdir).iterdir() if p.is_dir())
    return {int(m.group(1)): p for m, p in found if m}


def new_run_folder(outdir: str, desc: str) -> Path:
    """Create the next numbered folder; safe when several runs start at once."""
    Path(outdir).mkdir(parents=True, exist_ok=True)
    number = max(run_folders(outdir), default=-1) + 1
    while True:
        path = Path(outdir) / f"{number:05d}-{desc}"
        taken = any(n == number for n in run_folders(outdir))
        try:
            if not taken:
                path.mkdir()
                return path
        except FileExistsError:
            pass  # another run was faster
        number += 1


def recorded_outcome(run_dir: Path) -> str | None:
    """How the last process of a run folder ended, or None if none has.

    Raises:
        ValueError: its status.json is damaged.
    """
    path = run_dir / "status.json"
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["outcome"])
    except (ValueError, TypeError, KeyError) as err:
        raise ValueError(f"{path} is damaged ({str(err)[:100]}): delete it, the run goes on from its checkpoint") from None


def unfinished_run(outdir: str, desc: str, config: TrainConfig) -> Path | None:
    """The newest folder of the same description and options whose run has not finished (what --restart_every goes on with)."""
    for _, path in sorted(run_folders(outdir).items(), reverse=True):
        options = path / OPTIONS_FILE
        if path.name.split("-", 1)[-1] != desc or not options.is_file():
            continue
        if recorded_outcome(path) == loop.FINISHED:
            return None
        recorded = load_run(str(path))
        same = recorded.override({"run.batch_gpu": AUTO}) if config.run.batch_gpu == AUTO else recorded
        return path if same == config else None
    return None


class RunLock:
    """Keeps a second process out of a run folder, for as long as this one lives.

    Raises:
        ValueError: another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.file = open(run_dir / ".lock", "a+")  # noqa: SIM115 (held until the process ends)
        try:
            import fcntl
        except ImportError:  # Windows has no flock
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{run_dir} is in use by another training process: wait for it or stop it") from None
        self.file.truncate(0)
        self.file.write(f"{os.getpid()}\n")
        self.file.flush()

    def release(self) -> None:
        """Let go."""
        self.file.close()


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return checkpoint.latest(run_dir / "checkpoints") is not None


def load_run(run_dir: str) -> TrainConfig:
    """The config of an existing run folder.

    Raises:
        ValueError: it is none of ours.
    """
    path = Path(run_dir) / OPTIONS_FILE
    if not path.is_file():
        raise ValueError(
            f"--resume={run_dir}: no {OPTIONS_FILE} there; name a run folder of this project, or a network pickle to start from its weights"
        )
    try:
        saved = json.loads(path.read_text())
    except json.JSONDecodeError as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE} is damaged ({err})") from None
    if not isinstance(saved, dict) or "config" not in saved:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE} is of another project; start from its network pickle with --init-from")
    try:
        return from_json(saved["config"])
    except ValueError as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE}: {err}") from None


def begun(run_dir: str | Path | None) -> stems.Lineage | None:
    """The lineage of a run folder that has a checkpoint to go on from."""
    return stems.read(run_dir) if run_dir is not None and has_checkpoint(Path(run_dir)) else None
