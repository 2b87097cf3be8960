# SPDX-License-Identifier: Apache-2.0
"""Watching quality during a run: class variety every tick."""

from __future__ import annotations

from torch_utils import training_stats
from training.config import TrainConfig
from training.data import ImageDataset
from training.generator import Generator
from training.state import TrainState
from training.variety import Variety, images_per_tick


class Watch:
    """What a run watches beside its losses. Every process makes one; the first one writes."""

    def __init__(self, cfg: TrainConfig, run_dir: str, dataset: ImageDataset, state: TrainState) -> None:
        self.cfg = cfg
        count = images_per_tick(cfg.run.variety, cfg.run.tick)
        self.variety = Variety(dataset, state.D, count, max(cfg.batch_gpu, 8), cfg.run.seed) if cfg.run.variety else None

    def measure(self, G: Generator) -> None:
        """Report class variety. All processes."""
        if self.variety is None:
            return
        found = self.variety.measure(G)
        training_stats.report0("Variety/within", found.within)
        if found.between is not None:
            training_stats.report0("Variety/between", found.between)
