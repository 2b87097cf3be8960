# SPDX-License-Identifier: Apache-2.0
"""Monitor a run: class variety and alarms every tick; contact sheet, curves and report every snapshot."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnnlib.util import warn_if_unwritable
from torch_utils import distributed, training_stats
from training.config import TrainConfig
from training.data.class_names import spaced_labels
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.run_folder import (
    ABOUT_FILE,
    ALARMS_FILE,
    CONTACT_SHEET_FILE,
    STATS_FILE,
    append_jsonl,
    better_direction,
    drop_lines_after,
    metric_file,
    read_jsonl,
    write_json,
)
from training.state import TrainState
from training.watch import alarms, estimate, plots, report, ticks
from training.watch.sheets import ContactSheet
from training.watch.variety import Variety, images_per_tick


class Watch:
    """Monitors a run. Every process creates one; the main process writes the files."""

    def __init__(self, cfg: TrainConfig, run_dir: str, dataset: ImageDataset, state: TrainState) -> None:
        self.cfg, self.run_dir, self.dataset = cfg, Path(run_dir), dataset
        self.main = distributed.is_main()
        batch = max(cfg.batch_gpu, 8)
        self.variety = None
        if cfg.run.variety:
            self.variety = Variety(
                dataset, state.D, images_per_tick(cfg.run.variety, cfg.run.tick), batch, cfg.run.seed
            )
        self.sheet = ContactSheet(self.run_dir, dataset, cfg.run.seed, batch)
        self.stats: list[dict[str, Any]] = []

    def begin(self, state: TrainState, grid_rows: int) -> None:
        """Write about.json for the report. When resuming, remove what was written after the checkpoint.

        Main process only.

        Args:
            state: the state of the run.
            grid_rows: rows of the grids; the report shows their classes.
        """
        p = state.progress
        with warn_if_unwritable(ALARMS_FILE):
            drop_lines_after(self.run_dir / ALARMS_FILE, p.nimg / 1000)
        self.stats = [_excerpt(record) for record in read_jsonl(self.run_dir / STATS_FILE)]
        with warn_if_unwritable(CONTACT_SHEET_FILE):
            self.sheet.drop_after(p.nimg)
        names, classes = self.dataset.class_names, self.dataset.label_dim
        shown = spaced_labels(classes, grid_rows) if classes > 0 else []
        about = {
            "images": len(self.dataset),
            "classes": classes,
            "resolution": self.dataset.resolution,
            "grid_rows": [names[i] if names else f"class {i}" for i in shown],
            "sheet_rows": self.sheet.row_names(),
            "g_parameters": sum(x.numel() for x in state.G.parameters()),
            "g_trained": sum(x.numel() for x in state.g_params.values()),
            "d_parameters": sum(x.numel() for x in state.d_params.values()),
        }
        with warn_if_unwritable(ABOUT_FILE):
            write_json(self.run_dir / ABOUT_FILE, about)
        if p.nimg == 0:
            with warn_if_unwritable(CONTACT_SHEET_FILE):
                self.sheet.add(state.G_ema, 0)

    def measure(self, G: Generator) -> None:
        """Measure and report class variety. All processes."""
        if self.variety is None:
            return
        started = time.monotonic()
        found = self.variety.measure(G)
        training_stats.report0("Timing/variety_sec", time.monotonic() - started)
        for name, value in found._asdict().items():
            if value is not None:
                training_stats.report0(f"Variety/{name}", value)

    def alarm(self, stats: dict[str, Any]) -> list[str]:
        """Check the statistics after a tick; print, store and return new alarms. Main process only."""
        self.stats.append(_excerpt(stats))
        alarms_file = self.run_dir / ALARMS_FILE
        name = next(iter(self.cfg.run.metrics), "")
        scores = self._scores(name)
        values = [r["results"].get(name, r.get("value")) for r in scores]
        points = [(ticks.number(r.get("kimg")), ticks.number(v)) for r, v in zip(scores, values, strict=True)]
        end = better_direction(next(reversed(scores), {"metric": name})) or "min"
        found = alarms.find(self.stats, points, self.cfg, name, end)
        new = alarms.new_alarms(found, read_jsonl(alarms_file))
        for alarm in new:
            with warn_if_unwritable(alarms_file.name):
                append_jsonl(alarms_file, asdict(alarm))
            print(f"WARNING: {alarm.line}", flush=True)
        return [alarm.line for alarm in new]

    def _scores(self, name: str) -> list[dict[str, Any]]:
        return [
            r
            for r in read_jsonl(metric_file(self.run_dir, name))
            if "kimg" in r and isinstance(r.get("results"), dict)
        ]

    def column(self, state: TrainState, network: str) -> None:
        """Add a snapshot's column to the contact sheet. `network`: name of its file. Main process only."""
        with warn_if_unwritable(CONTACT_SHEET_FILE):
            self.sheet.add(state.G_ema, state.progress.nimg, network)

    def redraw(self, page: bool, outcome: str | None = None) -> None:
        """Draw curves.png and, with `page`, report.html. Main process only.

        Args:
            page: whether to write report.html.
            outcome: how the run ends, if it ends now.
        """
        plots.redraw(self.run_dir)
        if page:
            report.write(self.run_dir, outcome)


def _excerpt(record: dict[str, Any]) -> dict[str, Any]:
    """The values of a line of stats.jsonl that alarms and the estimate of the remaining time need."""
    return {**alarms.excerpt(record), **estimate.excerpt(record)}
