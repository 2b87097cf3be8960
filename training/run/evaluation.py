# SPDX-License-Identifier: Apache-2.0
"""The evaluation of snapshots: metric-NAME.jsonl, the best network, and how long there has been no better
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_utils import distributed
from training import run_folder
from training.generator import Generator
from training.run.snapshots import Snapshots
from training.run.statistics import Statistics
from training.state import Progress, TrainState


@dataclass
class Score:
    """One evaluated metric."""

    name: str
    value: float
    lower_is_better: bool = True
    record: dict[str, Any] | None = None  # what metric-NAME.jsonl keeps beside name and value


Evaluate = Callable[[Generator], list[Score]]


class Evaluation:
    """Measures G_ema by `evaluate` in every process; the first one writes."""

    def __init__(
        self, run_dir: Path, evaluate: Evaluate | None, snapshots: Snapshots, statistics: Statistics
    ) -> None:
        self.run_dir, self.evaluate, self.snapshots, self.statistics = (
            run_dir,
            evaluate,
            snapshots,
            statistics,
        )

    def begin(self, progress: Progress) -> None:
        """Drop the lines that were written after the checkpoint, and a score that the checkpoint does not
        know. Main process.
        """
        for path in run_folder.metric_files(self.run_dir):
            run_folder.drop_lines_after(path, progress.nimg / 1000, and_at=progress.unscored)

    def score(self, state: TrainState) -> bool:
        """Measure the snapshot of now and record the scores; the first metric finds the best network. False
        without metrics.

        All processes must call it, and save a checkpoint afterwards, which remembers that it is done.
        """
        if self.evaluate is None:
            return False
        for i, score in enumerate(self.evaluate(state.G_ema)):
            improved = i == 0 and _is_best(score, state.progress)
            if distributed.is_main():
                self._record(score, state.progress, improved)
        state.progress.unscored = False
        return True

    def _record(self, score: Score, progress: Progress, improved: bool) -> None:
        print(f"  {score.name} {score.value:.4f}" + ("  (best so far)" if improved else ""), flush=True)
        line = {
            "metric": score.name,
            "results": {score.name: score.value},
            "lower_is_better": score.lower_is_better,
            "kimg": progress.nimg / 1000,
            **(score.record or {}),
            "snapshot_pkl": self.snapshots.path(progress.nimg).name,
        }
        run_folder.append_jsonl(run_folder.metric_file(self.run_dir, score.name), line)
        self.statistics.scalars({f"Metrics/{score.name}": score.value}, progress.nimg)
        if improved:
            self.snapshots.mark_best(progress)


def _is_best(score: Score, progress: Progress) -> bool:
    """Whether the first metric has improved; counts in `progress` the evaluations since it has."""
    value = score.value if score.lower_is_better else -score.value
    improved = progress.best_metric is None or value < progress.best_metric
    if improved:
        progress.best_metric, progress.best_nimg = value, progress.nimg
    progress.stale = 0 if improved else progress.stale + 1
    return improved
