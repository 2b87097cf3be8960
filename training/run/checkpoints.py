# SPDX-License-Identifier: Apache-2.0
"""When a run writes its checkpoints, and what is in them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch_utils import checkpoint, distributed, training_stats
from training import run_folder
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.run import local_copies
from training.state import TrainState


class Checkpoints:
    """Writes all that resume needs, every --checkpoint-minutes at least."""

    def __init__(self, cfg: TrainConfig, run_dir: Path, dataset: ImageDataset) -> None:
        self.run_dir, self.folder, self.dataset = run_dir, run_folder.checkpoint_folder(run_dir), dataset
        self.keep, self.seconds = cfg.run.keep_checkpoints, cfg.run.checkpoint_minutes * 60
        self.saved = time.monotonic()
        self.local = local_copies.folder(cfg.run.local_checkpoint, run_dir)
        self.writer = checkpoint.Writer(
            self.folder,
            self.keep,
            lambda nimg: run_folder.record_first_checkpoint(run_dir, nimg),
            self.local,
        )

    def save(self, state: TrainState, running: dict[str, Any]) -> None:
        """Write one, atomically, while training continues (`checkpoint.Writer`). All processes must call it.

        Training stands still while the state is copied to host memory, and until the checkpoint before is
        written: Timing/checkpoint_stall_sec.

        Args:
            state: what is saved.
            running: statistics and seconds of the tick that has begun.

        Raises:
            FileNotFoundError: the run folder is gone. It is not made anew: what else was in it would be
                missing.
        """
        began = time.monotonic()
        if distributed.is_main():
            self.check_folder(state.progress.nimg)
            saved = {
                "train": state.state_dict(),
                "running": running,
                "data_hash": self.dataset.content_hash(),
                "data_sample": self.dataset.sample_hash(),
                "backbones": state.D.backbone_hashes(),
            }
            saved["lineage"] = vars(state.lineage)
            self.writer.save(state.progress.nimg, saved)
        self.saved = time.monotonic()
        training_stats.report0("Timing/checkpoint_stall_sec", self.saved - began)

    def end(self, outcome: str) -> None:
        """Wait for the last one. The local copy of a finished run is removed. All processes call it."""
        if distributed.is_main():
            self.writer.wait()
        if outcome == run_folder.FINISHED:
            local_copies.remove(self.local)

    def check_folder(self, nimg: int) -> None:
        """Raise FileNotFoundError if the run folder is gone. nimg: images shown, for the message."""
        if not self.run_dir.is_dir():
            raise FileNotFoundError(
                f"the run folder {self.run_dir} is gone (moved, removed, or its disk is not mounted); the "
                f"run ends at {nimg} images; resume it from its last checkpoint"
            )

    def is_due(self) -> bool:
        """True when --checkpoint-minutes have passed since the last one."""
        return time.monotonic() - self.saved > self.seconds
