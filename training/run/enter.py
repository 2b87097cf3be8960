# SPDX-License-Identifier: Apache-2.0
"""Enter and leave a run folder: lock it, remove what killed processes left, log what ended the run."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path

from dnnlib.files import owner_name, remove_temporaries
from dnnlib.locks import Lock
from dnnlib.util import Logger
from torch_utils import distributed
from training import run_folder
from training.run import local_copies


class RunLock:
    """Keeps a second process out of a run folder, for as long as this one lives.

    The process that a user starts holds one lock, the one that writes another: either may die before the
    other. Where the file system has no locks, there is a warning, and nothing is kept out.

    Raises:
        ValueError: another process is in the folder; nothing has been changed there.
    """

    def __init__(self, run_dir: Path, writer: bool = False) -> None:
        self.lock = _take(run_dir, run_folder.WRITER_LOCK_FILE if writer else run_folder.LOCK_FILE)
        self.dead: list[str] = []  # who was in the folder before, as temporaries name them
        holders = [self.lock.last_holder()]
        if not writer:
            try:
                other = _take(run_dir, run_folder.WRITER_LOCK_FILE)
            except ValueError:
                self.lock.release()
                raise
            holders.append(other.last_holder())
            other.release()
        if self.lock.supported:
            others = {owner_name(*holder) for holder in holders if holder is not None} - {owner_name()}
            self.dead = sorted(others)
            self.lock.write_holder()

    def release(self) -> None:
        """Release the lock."""
        self.lock.release()


def _take(run_dir: Path, name: str) -> Lock:
    lock = Lock(run_dir / name)
    if not lock.acquire():
        raise ValueError(
            f"{run_dir} is in use by another training process ({lock.holder_text()}): wait for it or stop it"
        )
    return lock


def check_free(run_dir: Path) -> None:
    """Check that no other process is in a run folder, which need not exist; `RunLock` keeps them out.

    Raises:
        ValueError: another process is there.
    """
    for name in (run_folder.LOCK_FILE, run_folder.WRITER_LOCK_FILE) if run_dir.is_dir() else ():
        _take(run_dir, name).release()


@contextlib.contextmanager
def entered(run_dir: Path, from_scratch: bool = False, local: str | None = None) -> Iterator[None]:
    """Within, the run folder is locked, without temporaries, with a usable checkpoint if it ever had one.

    Args:
        run_dir: the folder.
        from_scratch: first move what the run has made so far into the folder earlier-N.
        local: --local-checkpoint; a newer copy on this node is used.

    Raises:
        ValueError, OSError: another process is there, or the checkpoints are lost or cannot be read. Nothing
            has been changed.
    """
    with locked(run_dir):
        with Logger(run_dir / run_folder.LOG_FILE, file_mode="a"):
            with distributed.alone():  # the other processes are not here
                if from_scratch:
                    local_copies.remove(local_copies.folder(local, run_dir))
                    print(f"Starting anew; what was there is in {put_away(run_dir)}", flush=True)
                local_copies.restore_newest(local, run_dir)
            run_folder.newest_checkpoint(run_dir, set_aside=True)
        yield


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[RunLock]:
    """Within, no other process enters the folder, and what killed ones left is gone.

    Raises:
        ValueError: another process is there.
    """
    lock = RunLock(run_dir)
    try:
        remove_leftovers(run_dir, lock.dead, lock.lock.supported)
        yield lock
    finally:
        lock.release()


def remove_leftovers(run_dir: Path, dead: Collection[str] = (), old: bool = False) -> None:
    """Remove the temporaries of processes that are gone. dead, old: as for `remove_temporaries`."""
    parts = (run_folder.checkpoint_folder(run_dir), run_folder.ranks_folder(run_dir))
    for folder in (run_dir, *parts, run_dir / run_folder.CONTACT_FOLDER):
        remove_temporaries(folder, dead, old)


def put_away(run_dir: Path) -> Path:
    """Move what a run has made into a new folder in it; its log, and a copy of its options, stay."""
    numbers = (run_dir / f"{run_folder.EARLIER_FOLDER}-{i}" for i in range(1, 10**6))
    target = next(folder for folder in numbers if not folder.exists())
    target.mkdir()
    stay = {run_folder.LOCK_FILE, run_folder.WRITER_LOCK_FILE, run_folder.LOG_FILE, run_folder.OPTIONS_FILE}
    for path in sorted(run_dir.iterdir()):
        if path.name not in stay and not path.name.startswith(f"{run_folder.EARLIER_FOLDER}-"):
            os.replace(path, target / path.name)
    if run_folder.is_run_folder(run_dir):
        shutil.copy2(run_dir / run_folder.OPTIONS_FILE, target)
    return target


@contextlib.contextmanager
def ending_logged(run_dir: Path, process: str = "") -> Iterator[None]:
    """Within, what ends the run is also logged: one line for errors that users can mend, else a traceback.

    Args:
        run_dir: the folder.
        process: begins the line, where there are several processes.
    """
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (0, None)):
            append_to_log(run_dir, f"{process}{ending(error)}")
        raise


def ending(error: BaseException) -> str:
    """How the log describes what ended a run."""
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by the user (KeyboardInterrupt)"
    if isinstance(error, SystemExit):
        return f"Ended with exit code {error.code}"
    message = (
        error.format_message() if hasattr(error, "format_message") else str(error)
    )  # click's are asked for theirs
    if isinstance(error, (ValueError, OSError, MemoryError)) or hasattr(error, "format_message"):
        return f"Error: {message or type(error).__name__}"
    return f"Error: {type(error).__name__}: {error}\n" + "".join(traceback.format_exception(error)).rstrip()


def append_to_log(run_dir: Path, text: str) -> None:
    """Add lines to the log, with the time. On a full disk the terminal alone has them."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError), open(run_dir / run_folder.LOG_FILE, "a", encoding="utf-8") as f:
        f.write(f"{now} {text}\n")
