# SPDX-License-Identifier: Apache-2.0
"""--local-checkpoint: each node keeps a copy of the newest checkpoint on a disk of its own.

The copy is written before the checkpoint in the run folder. It survives a run folder that is slow, cut off or
damaged. When the run resumes, a copy that is newer than all intact checkpoints of the run folder is copied
there, and all processes load it from there. A local disk that fails causes a warning.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import warnings
from pathlib import Path

from torch_utils import checkpoint, distributed
from training import run_folder


def folder(local: str | None, run_dir: Path) -> Path | None:
    """The folder of this run's copy on this node; None without --local-checkpoint. All processes call it.

    Its name contains a hash of the run's identity and path, so that a new run, a run that restarts with
    --from-scratch and a copied run folder never use the checkpoint of another run.
    """
    if not local:
        return None
    identity = distributed.on_main(lambda: f"{run_folder.identity(run_dir)}:{run_dir.resolve()}")
    return Path(local) / f"stylesan-xl-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def newest(local: str | None, run_dir: Path) -> Path | None:
    """The newest checkpoint of this run of which this node has a whole copy, or None."""
    if not local or not (run_dir / run_folder.IDENTITY_FILE).is_file():
        return None
    place = folder(local, run_dir)
    return None if place is None else _newest(place)


def restore_newest(local: str | None, run_dir: Path) -> None:
    """Copy the newest checkpoint of all nodes into the run folder if it is newer. All processes call it.

    Raises:
        OSError: a checkpoint of the run folder cannot be read, or the copy cannot be written there.
    """
    place = folder(local, run_dir)
    if place is None:
        return
    checkpoints = run_folder.checkpoint_folder(run_dir)
    shared = distributed.on_main(lambda: checkpoint.latest(checkpoints))
    mine = _newest(place) if distributed.local_rank() == 0 else None
    if mine is not None and shared is not None and checkpoint.nimg_of(mine) <= checkpoint.nimg_of(shared):
        mine = None
    found = distributed.all_gather_object(mine and mine.name)
    newest = max((name for name in found if name), default=None)
    if newest is None:
        return
    error: OSError | None = None
    if mine is not None and found.index(newest) == distributed.rank():
        try:
            path = checkpoint.copy(mine, checkpoints)
            run_folder.record_first_checkpoint(run_dir, checkpoint.nimg_of(path))
            print(f"Copied the newer checkpoint {mine} on {platform.node()} to the run folder", flush=True)
        except OSError as err:
            error = err
    for failure in distributed.all_gather_object(error):
        if failure is not None:
            raise failure


def remove(place: Path | None) -> None:
    """Remove the `folder` of this node."""
    if place is not None and distributed.local_rank() == 0:
        shutil.rmtree(place, ignore_errors=True)


def _newest(place: Path) -> Path | None:
    try:
        return checkpoint.latest(place)
    except OSError as error:
        warnings.warn(f"--local-checkpoint: {error}", stacklevel=2)
        return None
