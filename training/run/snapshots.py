# SPDX-License-Identifier: Apache-2.0
"""Network pickles of a run: network-snapshot-NNNNNN.pkl, the newest one and the best one."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import sha256_file, warn_if_unwritable
from torch_utils import persistence
from training import run_folder
from training.build import training_set_kwargs
from training.bundle import bundle
from training.config import TrainConfig, to_json
from training.data.dataset import ImageDataset
from training.state import Progress, TrainState


class Snapshots:
    """Writes and removes the network pickles of a run folder. For one process."""

    def __init__(self, cfg: TrainConfig, run_dir: Path, dataset: ImageDataset) -> None:
        self.cfg, self.run_dir, self.dataset = cfg, run_dir, dataset
        self.newest: dict[str, Any] | None = None  # {"nimg", "number"} (`run_folder.snapshot_number`)

    def begin(self, progress: Progress, running: dict[str, Any] | None) -> None:
        """Go on after the newest snapshot at a checkpoint. All processes.

        A checkpoint of version 0.1 does not say which it was: it may have the published number.

        Args:
            progress: of the run.
            running: what `Periodic.running` returned for the checkpoint; None = the run begins.
        """
        if running is not None and "snapshot" in running:
            self.newest = running["snapshot"]
        elif progress.nimg:
            number = run_folder.snapshot_number(progress.nimg, None)
            self.newest = {"nimg": progress.nimg, "number": number}

    def number(self, nimg: int) -> str:
        """The number of the snapshot at `nimg` images shown, the newest one or the next. All processes."""
        last = self.newest_nimg
        if self.newest is None or last != nimg:
            self.newest = {"nimg": nimg, "number": run_folder.snapshot_number(nimg, last)}
        return str(self.newest["number"])

    @property
    def newest_nimg(self) -> int | None:
        """Images shown at the newest snapshot; None before the first one. All processes."""
        return None if self.newest is None else int(self.newest["nimg"])

    def path(self, nimg: int) -> Path:
        """The file of that snapshot."""
        return run_folder.snapshot_file(self.run_dir, self.number(nimg))

    def save(self, state: TrainState) -> dict[str, Any]:
        """Write the pickle, point network-snapshot.pkl at it, remove more than --keep-snapshots.

        Returns what pictures say of it: network, network_sha256, nimg (docs/run-folder.md).
        """
        path = self.path(state.progress.nimg)
        persistence.save_network_pickle(str(path), network_pickle(self.cfg, self.dataset, state))
        with warn_if_unwritable(run_folder.NEWEST_NETWORK):
            run_folder.replace_with_copy(path, self.run_dir / run_folder.NEWEST_NETWORK)
        if self.cfg.run.keep_snapshots > 0:
            for old in run_folder.snapshot_files(self.run_dir)[: -self.cfg.run.keep_snapshots]:
                old.unlink()
        return {"network": path.name, "network_sha256": sha256_file(path), "nimg": state.progress.nimg}

    def mark_best(self, progress: Progress, metric: str | None = None) -> None:
        """Keep the newest snapshot as the best one by a metric.

        Args:
            progress: The snapshot's number of images shown.
            metric: Name of the metric; None is the first one, whose best network is best_model.pkl, with its
                number of images shown in best_nimg.txt. The others have best-NAME.pkl.
        """
        target = run_folder.best_file(self.run_dir, metric)
        with warn_if_unwritable(target.name):
            run_folder.replace_with_copy(self.path(progress.nimg), target)
            if metric is None:
                run_folder.write_best_nimg(self.run_dir, progress.nimg)

    def change_first(self, former: str, first: str, nimg: int | None) -> None:
        """Rename the best networks, when another metric than the `former` one is the first.

        A run that was killed before the next checkpoint does it again, which must not replace the best
        network of the `former` metric by that of the new one.

        Args:
            former: Its name.
            first: Name of the metric that is the first from now on.
            nimg: Images shown at its best network so far; None if unknown.
        """
        best, own, other = (run_folder.best_file(self.run_dir, name) for name in (None, first, former))
        with warn_if_unwritable(best.name):
            if best.exists() and not other.exists():
                run_folder.replace_with_copy(best, other)
            if own.exists():
                run_folder.replace_with_copy(own, best)
                own.unlink()
                run_folder.write_best_nimg(self.run_dir, nimg)


def network_pickle(cfg: TrainConfig, dataset: ImageDataset, state: TrainState) -> dict[str, Any]:
    """What a network pickle holds, in the published order."""
    return {
        "G": state.G,
        "D": bundle(state.D.saved_state_dict()),
        "G_ema": state.G_ema,
        "augment_pipe": None,
        "training_set_kwargs": training_set_kwargs(cfg, dataset),
        "provenance": provenance(cfg, dataset, state),
    }


def provenance(cfg: TrainConfig, dataset: ImageDataset, state: TrainState) -> dict[str, Any]:
    """Where a snapshot comes from: config, data, images shown, versions."""
    return {
        "project": "StyleSAN-XL",
        "nimg": state.progress.nimg,
        "config": to_json(cfg),
        "lineage": state.lineage.provenance(),
        "class_names": dataset.class_names,
        "data": {
            "name": dataset.name,
            "hash": dataset.content_hash(),
            "images": len(dataset),
            "metadata": dataset.metadata,
        },
        "backbones": state.D.backbone_hashes(),
        "init_from": state.started_from,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
