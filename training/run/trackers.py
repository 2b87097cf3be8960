# SPDX-License-Identifier: Apache-2.0
"""Sends what a run measures to TensorBoard, Weights & Biases, trackio or a file for Prometheus.

`--tracker` names them. Everything they get is also in the run folder. A tracker that fails, for example
because there is no connection, is left out for the rest of the run, with a warning. Steps are images shown.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dnnlib.util import atomic_write
from image_data.transforms import to_rgb
from training import run_folder
from training.config import TRACKERS

_PROJECT = "stylesan-xl"
# Without it, wandb waits without end if the connection is lost before a run ends.
_WANDB_ENDS = {"WANDB_FINISH_TIMEOUT": "60", "WANDB_FINISH_TIMEOUT_RAISES": "true"}  # seconds


class Tracker(Protocol):
    """A receiver of measurements; `nimg` = images shown."""

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """Take the values of a tick or an evaluation."""

    def histogram(self, name: str, values: np.ndarray, nimg: int) -> None:
        """Take samples of a distribution, float32 [n]."""

    def image(self, name: str, path: Path, nimg: int) -> None:
        """Take a picture from a PNG file."""

    def alarm(self, line: str, nimg: int) -> None:
        """Take an alarm."""

    def close(self) -> None:
        """Finish."""


class TensorBoard:
    """Event files in the run folder. What a killed run wrote after `nimg` images is dropped."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], nimg: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run_folder.tensorboard_step(nimg) + 1 if nimg else None
        self.writer: Any = SummaryWriter(str(run_dir), purge_step=purge)
        if not nimg:
            lines = json.dumps(config, indent=1).splitlines()
            self.writer.add_text("options", "\n".join(f"    {line}" for line in lines), global_step=0)

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, global_step=run_folder.tensorboard_step(nimg))
        self.writer.flush()

    def histogram(self, name: str, values: np.ndarray, nimg: int) -> None:
        """See `Tracker`."""
        self.writer.add_histogram(name, values, global_step=run_folder.tensorboard_step(nimg))

    def image(self, name: str, path: Path, nimg: int) -> None:
        """See `Tracker`."""
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(to_rgb(picture, (255, 255, 255)))
        step = run_folder.tensorboard_step(nimg)
        self.writer.add_image(name, pixels, global_step=step, dataformats="HWC")

    def alarm(self, line: str, nimg: int) -> None:
        """See `Tracker`."""
        self.writer.add_text("alarm", line, global_step=run_folder.tensorboard_step(nimg))

    def close(self) -> None:
        """See `Tracker`."""
        self.writer.close()


class Board:
    """Weights & Biases, or trackio, which has the same interface. A resumed run continues its own board.

    Args:
        module: 'wandb' or 'trackio'. Their environment variables apply: WANDB_MODE=offline, WANDB_PROJECT.
        run_dir: its name is the name of the run.
        config: the options.
        nimg: images shown so far.
    """

    def __init__(self, module: str, run_dir: Path, config: Mapping[str, Any], nimg: int) -> None:
        if module == "wandb":
            for name, value in _WANDB_ENDS.items():
                os.environ.setdefault(name, value)
        self.module: Any = importlib.import_module(module)
        self.run_dir = run_dir
        project = os.environ.get(f"{module.upper()}_PROJECT", _PROJECT)
        shared = {"project": project, "config": dict(config), "resume": "allow"}
        identity = run_folder.identity(run_dir, run_folder.TRACKER_FILE, digits=12)
        if module == "wandb":
            self.run = self.module.init(name=run_dir.name, id=identity, dir=str(run_dir), **shared)
            self.run.define_metric("images")
            self.run.define_metric("*", step_metric="images")
        else:  # trackio finds a run by its name
            self.run = self.module.init(name=f"{run_dir.name}-{identity}", **shared)

    def _log(self, values: Mapping[str, Any], nimg: int) -> None:
        if self.module.__name__ == "wandb":  # its own step only rises; that of a resumed run does not
            self.run.log({**values, "images": nimg})
        else:
            self.run.log(dict(values), step=nimg)

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """See `Tracker`."""
        self._log(values, nimg)

    def histogram(self, name: str, values: np.ndarray, nimg: int) -> None:
        """See `Tracker`."""
        self._log({name: self.module.Histogram(values)}, nimg)

    def image(self, name: str, path: Path, nimg: int) -> None:
        """See `Tracker`."""
        self._log({name: self.module.Image(str(path))}, nimg)

    def alarm(self, line: str, nimg: int) -> None:
        """See `Tracker`."""
        self.run.alert(title=f"{self.run_dir.name}: alarm", text=line)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class Prometheus:
    """The newest values in `metrics.prom`, in the text format of Prometheus' textfile collector."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], nimg: int) -> None:
        self.path, self.run_dir = run_dir / run_folder.PROMETHEUS_FILE, run_dir
        self.values: dict[str, float] = {}

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """See `Tracker`."""
        self.values |= {**values, "images": float(nimg)}
        run = self.run_dir.name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        # Names of quantities differ by more than the characters that names may have, so they are labels.
        lines = [
            f'stylesan_xl{{run="{run}",name="{name}"}} {_prometheus_number(value)}'
            for name, value in sorted(self.values.items())
        ]
        with atomic_write(self.path, "w") as f:
            f.write("\n".join(["# TYPE stylesan_xl gauge", *lines]) + "\n")

    def histogram(self, name: str, values: np.ndarray, nimg: int) -> None:
        """Left out: a file has the newest values only."""

    def image(self, name: str, path: Path, nimg: int) -> None:
        """Left out: a file has numbers only."""

    def alarm(self, line: str, nimg: int) -> None:
        """Left out: a file has numbers only."""

    def close(self) -> None:
        """Leave the file: it has the last values."""


def _prometheus_number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


_MAKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda *args: Board("wandb", *args),
    "trackio": lambda *args: Board("trackio", *args),
    "prometheus": Prometheus,
}
assert tuple(_MAKERS) == TRACKERS


class Trackers:
    """All trackers of a run; those that fail are left out.

    Args:
        names: of the trackers, as --tracker has them; none in all processes but the main one.
        run_dir: the run folder.
        config: options and lineage, as JSON values.
        nimg: images shown so far.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any], nimg: int) -> None:
        self.active: dict[str, Tracker] = {}
        for name in names:
            try:
                self.active[name] = _MAKERS[name](run_dir, config, nimg)
            except ImportError:
                print(f"{name} is not installed: this run does not use it (pip install {name})")
            except Exception as error:
                _warn(name, error)

    def scalars(self, values: Mapping[str, float], nimg: int) -> None:
        """Send the values of a tick or an evaluation."""
        self._each(lambda tracker: tracker.scalars(values, nimg))

    def histogram(self, name: str, values: np.ndarray, nimg: int) -> None:
        """Send the finite samples of a distribution, float32 [n]."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._each(lambda tracker: tracker.histogram(name, finite, nimg))

    def image(self, name: str, path: Path, nimg: int) -> None:
        """Send a picture of the run folder, if it is there."""
        if path.is_file():
            self._each(lambda tracker: tracker.image(name, path, nimg))

    def alarm(self, line: str, nimg: int) -> None:
        """Send an alarm."""
        self._each(lambda tracker: tracker.alarm(line, nimg))

    def close(self) -> None:
        """Finish."""
        self._each(lambda tracker: tracker.close())

    def _each(self, send: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.active.items()):
            try:
                send(tracker)
            except Exception as error:  # of its own threads and packages, its file or its connection
                del self.active[name]
                _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    warnings.warn(f"--tracker={name} failed ({reason}); continuing without it", stacklevel=4)
