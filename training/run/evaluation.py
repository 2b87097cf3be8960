# SPDX-License-Identifier: Apache-2.0
"""Evaluation of snapshots: metric-NAME.jsonl, the best network of each metric, and the time that it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_utils import distributed
from training import run_folder
from training.config import RunConfig
from training.generator import Generator
from training.run.snapshots import Snapshots
from training.run.trackers import Trackers
from training.state import Progress, TrainState


@dataclass
class Score:
    """The result of one metric; `record`: the other entries of its line in metric-NAME.jsonl."""

    name: str
    value: float
    lower_is_better: bool = True
    record: dict[str, Any] | None = None


Evaluate = Callable[[Generator], list[Score]]


class Evaluation:
    """Measures G_ema with `evaluate` in every process; the main process writes the results.

    Args:
        run_dir: Run folder.
        evaluate: Called in all processes; None without metrics.
        snapshots: Marks the best network of each metric.
        trackers: Receive the values.
        run: Options of the run; `metric_share` limits the time spent on metrics.
        now: Clock in seconds.
    """

    def __init__(
        self,
        run_dir: Path,
        evaluate: Evaluate | None,
        snapshots: Snapshots,
        trackers: Trackers,
        run: RunConfig,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_dir, self.evaluate, self.run, self.now = run_dir, evaluate, run, now
        self.snapshots, self.trackers = snapshots, trackers

    def begin(self, progress: Progress) -> None:
        """Drop the lines written after the checkpoint, and those of an evaluation that it does not include.

        For the main process.
        """
        for path in run_folder.metric_files(self.run_dir):
            run_folder.drop_lines_after(path, progress.nimg / 1000, and_at=progress.unscored)

    def score(self, state: TrainState) -> bool:
        """Measure the current snapshot, record the results and mark the best networks.

        All processes must call it. The caller saves a checkpoint afterwards, which then includes the result.

        Returns:
            False without metrics. A skipped evaluation (--metric-share) counts as done.
        """
        if self.evaluate is None:
            return False
        if not self._is_skipped(state.progress):
            started = self.now()
            scores = self.evaluate(state.G_ema)
            state.progress.metric_seconds += float(distributed.broadcast_object(self.now() - started))
            for i, score in enumerate(scores):
                if i == 0:
                    self._begin_first(score.name, state.progress)
                improved = (
                    _is_best(score, state.progress) if i == 0 else _is_best_other(score, state.progress)
                )
                if distributed.is_main():
                    self._record(score, state.progress, improved, is_first=i == 0)
        state.progress.unscored = False
        return True

    def _begin_first(self, name: str, progress: Progress) -> None:
        """Note which metric is the first. If it was another one before, the best networks change places."""
        former, progress.first_metric = progress.first_metric, name
        if former in (None, name):
            return
        if progress.best_metric is not None:
            progress.best_others[former] = progress.best_metric
        progress.best_metric, progress.stale = progress.best_others.pop(name, None), 0
        progress.best_nimg = distributed.on_main(lambda: self._nimg_of(name, progress.best_metric))
        if distributed.is_main():
            self.snapshots.change_first(former, name, progress.best_nimg)

    def _nimg_of(self, name: str, best: float | None) -> int | None:
        """Images shown at the best value of a metric, from its records; None if unknown."""
        if best is None:
            return None
        for record in run_folder.read_jsonl(run_folder.metric_file(self.run_dir, name)):
            if (record.get("results") or {}).get(name) in (best, -best) and "kimg" in record:
                kimg: float = record["kimg"]
                return round(kimg * 1000)
        return None

    def _is_skipped(self, progress: Progress) -> bool:
        """Whether metrics have taken more than their share of the time. The last evaluation always runs."""
        share = metric_share(progress)
        is_last = progress.nimg >= self.run.kimg * 1000
        limit = self.run.metric_share
        skipped = bool(distributed.broadcast_object(share > limit and not is_last))
        if skipped and distributed.is_main():
            print(
                f"  metrics: skipped, they have taken {share:.1%} of the run's time "
                f"(--metric-share={limit:g})",
                flush=True,
            )
        return skipped

    def _record(self, score: Score, progress: Progress, improved: bool, is_first: bool) -> None:
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
        self.trackers.scalars({f"Metrics/{score.name}": score.value}, progress.nimg)
        if improved:
            self.snapshots.mark_best(progress, None if is_first else score.name)


def metric_share(progress: Progress) -> float:
    """Share of metrics in the time spent on training and metrics so far, from 0 to 1."""
    total = progress.seconds + progress.metric_seconds
    return progress.metric_seconds / total if total > 0 else 0.0


def _is_best(score: Score, progress: Progress) -> bool:
    """Whether the first metric has improved; counts the evaluations since it has in `progress`."""
    value = score.value if score.lower_is_better else -score.value
    improved = value < (math.inf if progress.best_metric is None else progress.best_metric)  # NaN: never
    if improved:
        progress.best_metric, progress.best_nimg = value, progress.nimg
    progress.stale = 0 if improved else progress.stale + 1
    return improved


def _is_best_other(score: Score, progress: Progress) -> bool:
    """Whether a metric after the first has improved; remembers its best value in `progress`."""
    value = score.value if score.lower_is_better else -score.value
    improved = value < progress.best_others.get(score.name, float("inf"))
    if improved:
        progress.best_others[score.name] = value
    return improved
