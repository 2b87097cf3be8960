# SPDX-License-Identifier: Apache-2.0
"""Restarts of a run whose processes failed: by the launcher of --gpus, or by torchrun, in the same folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

from torch_utils import distributed, launcher
from training import run_folder
from training.run.enter import append_to_log, ending, remove_leftovers


class Restarts:
    """Decides for every failure whether the processes of a run start again (--max-restarts).

    A process that was killed, or does not answer, says nothing about the next attempt: it is started again.
    An exception is repeated by the next attempt unless there is a new checkpoint; a mistake in the options
    (ValueError) and a signal of the user never restart.
    """

    def __init__(self, run_dir: Path, most: int) -> None:
        self.run_dir, self.most = run_dir, most
        self.began = self._newest()

    def __call__(self, error: Exception, attempt: int) -> bool:
        """Whether to start again; says so on the terminal and in the log. attempt: restarts so far."""
        newest = self._newest()
        passing = isinstance(error, launcher.ProcessDied) or newest not in (None, self.began)
        mistake = isinstance(error, ValueError) or hasattr(error, "format_message")
        if attempt >= self.most or mistake or not passing:
            return False
        where = "image 0" if newest is None else f"the checkpoint of {newest} images"
        reason = ending(error).partition("\n")[0]
        line = f"{reason}; restart {attempt + 1} of {self.most} from {where}"
        print(line, flush=True)
        append_to_log(self.run_dir, line)
        remove_leftovers(self.run_dir)
        self.began = newest
        return True

    def _newest(self) -> int | None:
        with contextlib.suppress(OSError):
            return run_folder.newest_checkpoint_nimg(self.run_dir)
        return None


def folder_of_job(outdir: str, desc: str) -> Path | None:
    """The folder in `outdir` that this job made before torchrun restarted it; None for a new command.

    All processes call it. A folder remembers the agents (torchruns) that began it (`note_job`): if any of
    them is still there, it is the same job. TORCHELASTIC_RUN_ID does not tell: it is "none" by default.
    """
    agents = _agents()
    if not agents:
        return None

    def find() -> Path | None:
        found = sorted(run_folder.run_folders(outdir).items(), reverse=True)
        ours = (path for _, path in found if path.name.split("-", 1)[-1] == desc)
        return next((path for path in ours if agents & run_folder.job_agents(path)), None)

    path: Path | None = distributed.on_main(find)
    return path


def is_of_job(folder: Path) -> bool:
    """Whether this job entered the folder before torchrun restarted it. All processes call it."""
    agents = _agents()
    return bool(agents) and bool(distributed.on_main(lambda: bool(agents & run_folder.job_agents(folder))))


def note_job(folder: Path) -> None:
    """Remember the agents of this job in a folder. All processes call it."""
    agents = _agents()
    if agents and distributed.is_main():
        run_folder.write_job(folder, agents)


def _agents() -> set[str]:
    if distributed.agent() is None:
        return set()
    return {agent for agent in distributed.all_gather_object(distributed.agent()) if agent is not None}
