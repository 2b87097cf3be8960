# SPDX-License-Identifier: Apache-2.0
"""A run folder: its number and name, its options, who is in it, and its small files: JSON and JSON lines that survive a kill."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnlib.util import atomic_write
from torch_utils import checkpoint
from training.config import AUTO, TrainConfig, from_json

FINISHED, INTERRUPTED, RESTART = "finished", "interrupted", "restart"

# The files of a run folder. Their names are spelt here and nowhere else.
OPTIONS_FILE = "training_options.json"  # the configuration and the command line
STATUS_FILE = "status.json"  # how the last process ended: {"outcome", "nimg"}
STATS_FILE = "stats.jsonl"  # a line per tick
INIT_FROM_FILE = "init_from.json"  # what --init-from took over
REALS_FILE, FAKES_INIT_FILE = "reals.png", "fakes_init.png"
NEWEST_NETWORK, BEST_NETWORK = "network-snapshot.pkl", "best_model.pkl"
BEST_NIMG_FILE = "best_nimg.txt"  # images shown when BEST_NETWORK was written


def snapshot_number(nimg: int, last_nimg: int | None) -> str:
    """The number in the names of a snapshot and its grid at `nimg` images shown, after one at `last_nimg`.

    The published one, thousands of images rounded down: '000012'. Where the snapshot before has that
    already, the
    other images follow: '000012_544'. Names sort in the order of training (docs/run-folder.md).
    """
    kimg, images = divmod(nimg, 1000)
    taken = last_nimg is not None and last_nimg // 1000 == kimg
    return f"{kimg:06d}_{images:03d}" if taken else f"{kimg:06d}"


def tensorboard_step(nimg: int) -> int:
    """The step under which TensorBoard keeps what was measured at `nimg` images shown.

    Deviation: images, where StyleGAN takes thousands of them and ticks shorter than that share a step.
    """
    return nimg


def fakes_file(run_dir: Path, number: str) -> Path:
    """The grid of generated images of a snapshot (`snapshot_number`)."""
    return run_dir / f"fakes{number}.png"


def fakes_files(run_dir: Path) -> list[Path]:
    """All grids of generated images with a number, oldest first."""
    return _numbered(run_dir, "fakes", ".png")


def snapshot_file(run_dir: Path, number: str) -> Path:
    """The network pickle of a snapshot (`snapshot_number`)."""
    return run_dir / f"network-snapshot-{number}.pkl"


def snapshot_files(run_dir: Path) -> list[Path]:
    """All network pickles of a run with a number, oldest first."""
    return _numbered(run_dir, "network-snapshot-", ".pkl")


def named_kimg(path: Path) -> float:
    """Thousands of images shown, as exactly as the name of a numbered file says it."""
    kimg, _, images = path.stem.removeprefix("fakes").removeprefix("network-snapshot-").partition("_")
    return int(kimg) + int(images or 0) / 1000


def _numbered(run_dir: Path, start: str, end: str) -> list[Path]:
    """Files with a snapshot's number between `start` and `end`, in its order; others are somebody else's."""
    name = re.compile(re.escape(start) + r"[0-9]{1,12}(_[0-9]{3})?" + re.escape(end))
    return sorted((p for p in run_dir.glob(f"{start}*{end}") if name.fullmatch(p.name)), key=named_kimg)


def metric_file(run_dir: Path, metric: str) -> Path:
    """The records of a metric, one line per evaluation."""
    return run_dir / f"metric-{metric}.jsonl"


def metric_files(run_dir: Path) -> list[Path]:
    """The records of all metrics that were measured, by name."""
    return sorted(run_dir.glob("metric-*.jsonl"))


def checkpoint_folder(run_dir: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return run_dir / "checkpoints"


def description(config: TrainConfig, data_name: str) -> str:
    """What follows the number in a run folder's name, as StyleGAN3 writes it."""
    run = config.run
    text = f"{config.generator.cfg}-{data_name}-gpus{run.gpus}-batch{run.batch}"
    return f"{text}-{run.desc}" if run.desc else text


def run_folders(outdir: str) -> dict[int, Path]:
    """Number -> run folder below `outdir`."""
    if not os.path.isdir(outdir):
        return {}
    found = ((re.match(r"(\d+)(-|$)", p.name), p) for p in Path(outdir).iterdir() if p.is_dir())
    return {int(m.group(1)): p for m, p in found if m}


def new_run_folder(outdir: str, desc: str) -> Path:
    """Create the next numbered folder; safe when several runs start at once."""
    Path(outdir).mkdir(parents=True, exist_ok=True)
    number = max(run_folders(outdir), default=-1) + 1
    while True:
        path = Path(outdir) / f"{number:05d}-{desc}"
        taken = any(n == number for n in run_folders(outdir))
        try:
            if not taken:
                path.mkdir()
                return path
        except FileExistsError:
            pass  # another run was faster
        number += 1


def recorded_outcome(run_dir: Path) -> str | None:
    """How the last process of a run folder ended, or None if none has.

    Raises:
        ValueError: its status.json is damaged.
    """
    path = run_dir / STATUS_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["outcome"])
    except (ValueError, TypeError, KeyError) as err:
        raise ValueError(f"{path} is damaged ({str(err)[:100]}): delete it, the run goes on from its checkpoint") from None


def write_status(run_dir: Path, outcome: str, nimg: int) -> None:
    """Record how a process ended, and the images shown by then."""
    write_json(run_dir / STATUS_FILE, {"outcome": outcome, "nimg": nimg})


def unfinished_run(outdir: str, desc: str, config: TrainConfig) -> Path | None:
    """The newest folder of the same description and options whose run has not finished (what --restart_every goes on with)."""
    for _, path in sorted(run_folders(outdir).items(), reverse=True):
        options = path / OPTIONS_FILE
        if path.name.split("-", 1)[-1] != desc or not options.is_file():
            continue
        if recorded_outcome(path) == FINISHED:
            return None
        recorded = load_run(str(path))
        same = recorded.override({"run.batch_gpu": AUTO}) if config.run.batch_gpu == AUTO else recorded
        return path if same == config else None
    return None


class RunLock:
    """Keeps a second process out of a run folder, for as long as this one lives.

    Raises:
        ValueError: another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.file = open(run_dir / ".lock", "a+")  # noqa: SIM115 (held until the process ends)
        try:
            import fcntl
        except ImportError:  # Windows has no flock
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{run_dir} is in use by another training process: wait for it or stop it") from None
        self.file.truncate(0)
        self.file.write(f"{os.getpid()}\n")
        self.file.flush()

    def release(self) -> None:
        """Let go."""
        self.file.close()


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return checkpoint.latest(checkpoint_folder(run_dir)) is not None


def load_run(run_dir: str) -> TrainConfig:
    """The config of an existing run folder.

    Raises:
        ValueError: it is none of ours.
    """
    path = Path(run_dir) / OPTIONS_FILE
    if not path.is_file():
        raise ValueError(
            f"--resume={run_dir}: no {OPTIONS_FILE} there; name a run folder of this project, or a network pickle to start from its weights"
        )
    try:
        saved = json.loads(path.read_text())
    except json.JSONDecodeError as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE} is damaged ({err})") from None
    if not isinstance(saved, dict) or "config" not in saved:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE} is of another project; start from its network pickle with --init-from")
    try:
        return from_json(saved["config"])
    except ValueError as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE}: {err}") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(str(path), "w") as f:
        json.dump(value, f, indent=2)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing, damaged or no object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def append_jsonl(path: Path, value: dict[str, Any]) -> None:
    """Append one line."""
    with open(path, "a") as f:
        f.write(json.dumps(value) + "\n")


def drop_lines_after(path: Path, kimg: float, and_at: bool = False) -> None:
    """Forget the lines that a killed run wrote after the checkpoint from which it goes on (`and_at`: also those of that very moment)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            at = json.loads(line).get("kimg", -1.0)  # a line of calc_metrics.py has none, and stays
            if at < kimg or (at == kimg and not and_at):
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the process died
    with atomic_write(str(path), "w") as f:
        f.write("".join(line + "\n" for line in kept))


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file in order; lines that are damaged, half written or no objects are passed over. No file: an empty list."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def replace_with_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link where the file system has them, a copy elsewhere. Atomic."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        with atomic_write(str(target), "wb") as f:
            f.write(source.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


def kimg_text(kimg: float) -> str:
    """Thousands of images as text, exact to the image: 25000 -> '25000', 4.096 -> '4.096', 0.5 -> '0.5'."""
    return f"{kimg:.3f}".rstrip("0").rstrip(".") if math.isfinite(kimg) else "?"


# The good end of metrics whose records do not say it, by the beginning of the name: records of version 0.1 and of the published
# calc_metrics.py. Every later record has `lower_is_better`; a new metric has no place here.
_ENDS_BY_NAME = (
    ("min", re.compile(r"(s|r)?fid|fd[_\d]|kid|ppl")),
    ("max", re.compile(r"is\d|inception|pr[_\d]|prec|rec|acc|dens|cov|eq[tr]")),
)


def good_end(record: Mapping[str, Any], name: str | None = None) -> str | None:
    """Which end of a metric's numbers is good, from a line of metric-NAME.jsonl: "min", "max", None = not known.

    name: of the number, for a record that does not say and holds several; None = the metric's.
    """
    lower = record.get("lower_is_better")
    if isinstance(lower, bool):
        return "min" if lower else "max"
    results = record.get("results")
    name = name or str(record.get("metric") or next(iter(results if isinstance(results, dict) else ()), ""))
    return next((end for end, names in _ENDS_BY_NAME if names.match(name)), None)
