# SPDX-License-Identifier: Apache-2.0
"""When and with what a run writes its checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch_utils import checkpoint, distributed
from training import run_folder
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.state import TrainState


class Checkpoints:
    """Writes all that resume needs, every --checkpoint-minutes at least."""

    def __init__(self, cfg: TrainConfig, run_dir: Path, dataset: ImageDataset) -> None:
        self.run_dir, self.folder, self.dataset = run_dir, run_folder.checkpoint_folder(run_dir), dataset
        self.keep, self.seconds = cfg.run.keep_checkpoints, cfg.run.checkpoint_minutes * 60
        self.saved = time.monotonic()

    def save(self, state: TrainState, running: dict[str, Any]) -> None:
        """Write one, atomically. running: statistics and seconds of the tick that has begun. All processes
        must call it.
        """
        if distributed.is_main():
            saved = {
                "train": state.state_dict(),
                "running": running,
                "data_hash": self.dataset.content_hash(),
            }
            saved["lineage"] = vars(state.lineage)
            checkpoint.save(self.folder, state.progress.nimg, saved, keep=self.keep)
            run_folder.record_first_checkpoint(self.run_dir, state.progress.nimg)
        self.saved = time.monotonic()

    def is_due(self) -> bool:
        """True when --checkpoint-minutes have passed since the last one."""
        return time.monotonic() - self.saved > self.seconds
