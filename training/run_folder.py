# SPDX-License-Identifier: Apache-2.0
"""A run folder and the folder of a recipe: the names of their files, and how these are read and written.
Nobody else spells them.

Only the names of the metrics' records are in dnnlib.records, since metrics, which may not import this, write
them too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnlib.records import Damaged as Damaged
from dnnlib.records import append_jsonl as append_jsonl
from dnnlib.records import drop_lines_after as drop_lines_after
from dnnlib.records import metric_file as metric_file
from dnnlib.records import metric_files as metric_files
from dnnlib.records import read_json as read_json
from dnnlib.records import read_jsonl as read_jsonl
from dnnlib.records import read_object as read_object
from dnnlib.records import replace_with_copy as replace_with_copy
from dnnlib.records import set_aside as set_aside
from dnnlib.records import set_aside_if_damaged as set_aside_if_damaged
from dnnlib.records import write_json as write_json
from dnnlib.util import atomic_write
from torch_utils import checkpoint
from training.config import AUTO, TrainConfig, from_json

FINISHED, INTERRUPTED, RESTART = "finished", "interrupted", "restart"

# The files of a run folder.
OPTIONS_FILE = "training_options.json"  # the configuration and the command line
STATUS_FILE = "status.json"  # how the last process ended: {"outcome", "nimg"}
LOG_FILE = "log.txt"  # what was printed, and what ended the run
STATS_FILE = "stats.jsonl"  # a line per tick
ALARMS_FILE = "alarms.jsonl"  # a line per alarm
ABOUT_FILE = "about.json"  # what the data is and how large the networks are
LINEAGE_FILE = (
    "lineage.json"  # the stem and its own stems; of a recipe: how each stage ended, and its best network
)
INIT_FROM_FILE = "init_from.json"  # what --init-from took over
FINAL_FILE = "final.json"  # of a recipe's stage: its measurement at the last stage's resolution
RECIPE_FILE = "recipe.json"  # of a recipe: the schedule, the data and every override of a command line
CURVES_FILE, REPORT_FILE = "curves.png", "report.html"
CONTACT_SHEET_FILE, CONTACT_FOLDER = "contact-sheet.png", "contact"  # the sheet and its columns
REALS_FILE, FAKES_INIT_FILE = "reals.png", "fakes_init.png"
NEWEST_NETWORK, BEST_NETWORK = "network-snapshot.pkl", "best_model.pkl"
BEST_NIMG_FILE = "best_nimg.txt"  # images shown when BEST_NETWORK was written
CHECKPOINT_FOLDER = "checkpoints"
CHECKPOINTED_FILE = "checkpointed.txt"  # images shown at the first checkpoint: there has been one
JOB_FILE = "job.json"  # under torchrun: {"agents"}, the torchrun processes that the run belongs to
_FAKES, _SNAPSHOT, _STAGE = "fakes", "network-snapshot-", "stage-"  # a number follows
LOCK_FILE, WRITER_LOCK_FILE = ".lock", ".lock-writer"
EARLIER_FOLDER = "earlier"  # with a number: what --from-scratch put away


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
    return run_dir / f"{_FAKES}{number}.png"


def fakes_files(run_dir: Path) -> list[Path]:
    """All grids of generated images with a number, oldest first."""
    return _numbered(run_dir, _FAKES, ".png")


def snapshot_file(run_dir: Path, number: str) -> Path:
    """The network pickle of a snapshot (`snapshot_number`)."""
    return run_dir / f"{_SNAPSHOT}{number}.pkl"


def snapshot_files(run_dir: Path) -> list[Path]:
    """All network pickles of a run with a number, oldest first."""
    return _numbered(run_dir, _SNAPSHOT, ".pkl")


def kimg_of_file(path: Path) -> float:
    """Thousands of images shown, as exactly as the name of a numbered file says it."""
    kimg, _, images = path.stem.removeprefix(_FAKES).removeprefix(_SNAPSHOT).partition("_")
    return int(kimg) + int(images or 0) / 1000


def _numbered(run_dir: Path, start: str, end: str) -> list[Path]:
    """Files with a snapshot's number between `start` and `end`, in its order; others are somebody else's."""
    name = re.compile(re.escape(start) + r"[0-9]{1,12}(_[0-9]{3})?" + re.escape(end))
    return sorted((p for p in run_dir.glob(f"{start}*{end}") if name.fullmatch(p.name)), key=kimg_of_file)


def best_file(run_dir: str | os.PathLike[str], metric: str | None = None) -> Path:
    """The best network by a metric: best-NAME.pkl; None = the first metric, whose file is best_model.pkl."""
    return Path(run_dir) / (BEST_NETWORK if metric is None else f"best-{metric}.pkl")


def best_network(run_dir: str | os.PathLike[str]) -> Path | None:
    """The network that a run hands on: the best by its first metric, the newest without one, None before
    there is any.
    """
    found = [Path(run_dir) / name for name in (BEST_NETWORK, NEWEST_NETWORK)]
    return next((path for path in found if path.is_file()), None)


def best_nimg(run_dir: Path) -> int | None:
    """Images shown when the best network was written; None if that is not known."""
    with contextlib.suppress(OSError, ValueError):
        return int((run_dir / BEST_NIMG_FILE).read_text())
    return None


def write_best_nimg(run_dir: Path, nimg: int) -> None:
    """Record the images shown when the best network was written."""
    with atomic_write(run_dir / BEST_NIMG_FILE, "w") as f:
        f.write(f"{nimg}\n")


def metric_at(run_dir: str | os.PathLike[str], nimg: int | None) -> dict[str, Any] | None:
    """{"name", "value"} of a run's first metric at `nimg` images shown, or None if it was not measured
    there.
    """
    try:
        name = load_run(str(run_dir)).run.metrics[0]
        found = [
            r["results"]
            for r in read_jsonl(metric_file(run_dir, name))
            if nimg is not None and r.get("kimg") == nimg / 1000
        ]
        return {"name": name, "value": next(iter(found[-1].values()))} if found else None
    except (OSError, ValueError, LookupError, AttributeError, StopIteration):
        return None  # no run folder, or one without metrics


def checkpoint_folder(run_dir: str | os.PathLike[str]) -> Path:
    """Where the checkpoints of a run lie."""
    return Path(run_dir) / CHECKPOINT_FOLDER


def stage_name(resolution: int) -> str:
    """The run folder of a recipe's stage, within the recipe's."""
    return f"{_STAGE}{resolution:03d}x{resolution:03d}"


def stage_folders(folder: Path) -> list[Path]:
    """Run folders of a recipe's stages, in order."""
    return (
        sorted(p for p in folder.iterdir() if p.is_dir() and p.name.startswith(_STAGE))
        if folder.is_dir()
        else []
    )


def is_run_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run's: it has recorded options."""
    return (Path(path) / OPTIONS_FILE).is_file()


def is_recipe_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a recipe's, with a run folder for each stage."""
    return (Path(path) / RECIPE_FILE).is_file()


# Numbers.


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
    """Create the next numbered folder. Runs that start at once get different numbers, whatever their
    descriptions.
    """
    Path(outdir).mkdir(parents=True, exist_ok=True)
    number = max(run_folders(outdir), default=-1) + 1
    while True:
        claim = (
            Path(outdir) / f".{number:05d}.claim"
        )  # the same name for every description; a folder: atomic everywhere
        try:
            claim.mkdir()
        except FileExistsError:
            number += 1  # another run is making this one, or was killed then
            continue
        try:
            path = Path(outdir) / f"{number:05d}-{desc}"
            if number not in run_folders(outdir) and not path.exists():
                path.mkdir()
                return path
        finally:
            claim.rmdir()
        number += 1


def unfinished_run(outdir: str, desc: str, config: TrainConfig) -> Path | None:
    """The newest folder of the same description and options whose run has not finished (what --restart_every
    goes on with).
    """
    for _, path in sorted(run_folders(outdir).items(), reverse=True):
        if path.name.split("-", 1)[-1] != desc or not is_run_folder(path):
            continue
        if recorded_outcome(path) == FINISHED:
            return None
        recorded = load_run(str(path))
        same = recorded.override({"run.batch_gpu": AUTO}) if config.run.batch_gpu == AUTO else recorded
        return path if same == config else None
    return None


# Options, outcome, checkpoints.


def load_run(run_dir: str) -> TrainConfig:
    """The config of an existing run folder.

    Raises:
        ValueError: it is none of ours.
    """
    if not is_run_folder(run_dir):
        raise ValueError(
            f"--resume={run_dir}: no {OPTIONS_FILE} there; name a run folder of this project, or a network "
            "pickle to start from its weights"
        )
    try:
        saved = read_object(Path(run_dir) / OPTIONS_FILE)
    except Damaged as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE} is damaged ({err.reason})") from None
    if "config" not in saved:
        raise ValueError(
            f"--resume={run_dir}: {OPTIONS_FILE} is of another project; start from its network pickle with "
            "--init-from"
        )
    try:
        return from_json(saved["config"])
    except ValueError as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE}: {err}") from None


def recorded_outcome(run_dir: Path) -> str | None:
    """How the last process of a run folder ended; None if none has, or if that cannot be read any more."""
    outcome = read_json(run_dir / STATUS_FILE).get("outcome")
    return None if outcome is None else str(outcome)


def recorded_nimg(run_dir: Path) -> int | None:
    """Images shown when the last process of a run folder ended; None if none has, or if that cannot be read
    any more.
    """
    nimg = read_json(run_dir / STATUS_FILE).get("nimg")
    return nimg if type(nimg) is int else None


def write_status(run_dir: Path, outcome: str, nimg: int) -> None:
    """Record how a process ended, and the images shown by then."""
    write_json(run_dir / STATUS_FILE, {"outcome": outcome, "nimg": nimg})


def job_agents(run_dir: Path) -> set[str]:
    """The agents that a run or recipe belongs to (`distributed.agent`); empty if none are recorded."""
    agents = read_json(run_dir / JOB_FILE).get("agents")
    return {str(agent) for agent in agents} if isinstance(agents, list) else set()


def write_job(run_dir: Path, agents: set[str]) -> None:
    """Record the agents that a run or recipe belongs to."""
    write_json(run_dir / JOB_FILE, {"agents": sorted(agents)})


def clear_status(run_dir: Path) -> None:
    """A process begins."""
    set_aside_if_damaged(run_dir / STATUS_FILE)
    (run_dir / STATUS_FILE).unlink(missing_ok=True)


def newest_checkpoint(run_dir: str | os.PathLike[str], set_aside: bool = False) -> Path | None:
    """The checkpoint to go on from; None in a folder that never had one. set_aside: as for
    `checkpoint.latest`.

    Raises:
        OSError: a checkpoint cannot be read. ValueError: there was one, and there is none that can be used.
    """
    path = checkpoint.latest(checkpoint_folder(run_dir), set_aside)
    trace = None if path is not None else _trace_of_checkpoints(Path(run_dir))
    if trace:
        raise ValueError(
            f"{run_dir} holds no checkpoint to go on from, though {trace}: put one back into "
            f"{CHECKPOINT_FOLDER}/, start a new run from "
            "its network with --init-from, or start this one anew with --from-scratch"
        )
    return path


def newest_checkpoint_nimg(run_dir: Path) -> int | None:
    """Images shown at the newest checkpoint, by its name; None without one."""
    return checkpoint.newest_nimg(checkpoint_folder(run_dir))


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run folder holds something to go on from. Raises as `newest_checkpoint`."""
    return newest_checkpoint(run_dir) is not None


def _trace_of_checkpoints(run_dir: Path) -> str:
    """How one sees that a folder without a usable checkpoint had one; '' if it had none. Version 0.1 left no
    CHECKPOINTED_FILE.
    """
    if checkpoint.exists(checkpoint_folder(run_dir)):
        return "there are damaged ones"
    if nimg := recorded_nimg(run_dir):
        return f"{nimg} images were shown by the end of its last process"
    had = (
        (run_dir / CHECKPOINTED_FILE).exists()
        or (run_dir / BEST_NIMG_FILE).exists()
        or len(snapshot_files(run_dir)) > 1
    )
    return "it had some" if had else ""


def record_first_checkpoint(run_dir: Path, nimg: int) -> None:
    """Remember that there has been a checkpoint, even if all of them are lost."""
    if not (run_dir / CHECKPOINTED_FILE).exists():
        with atomic_write(run_dir / CHECKPOINTED_FILE, "w") as f:
            f.write(f"{nimg}\n")


def kimg_text(kimg: float) -> str:
    """Thousands of images as text, exact to the image: 25000 -> '25000', 4.096 -> '4.096', 0.5 -> '0.5'."""
    return f"{kimg:.3f}".rstrip("0").rstrip(".") if math.isfinite(kimg) else "?"


# The good end of metrics whose records do not say it, by the beginning of the name: records of version 0.1
# and of the published calc_metrics.py. Every later record has `lower_is_better`; a new metric has no place
# here.
_ENDS_BY_NAME = (
    ("min", re.compile(r"(s|r)?fid|fd[_\d]|kid|ppl")),
    ("max", re.compile(r"is\d|inception|pr[_\d]|prec|rec|acc|dens|cov|eq[tr]")),
)


def better_direction(record: Mapping[str, Any], name: str | None = None) -> str | None:
    """Which end of a metric's numbers is good, from a line of metric-NAME.jsonl: "min", "max", None = not
    known.

    name: of the number, for a record that does not say and holds several; None = the metric's.
    """
    lower = record.get("lower_is_better")
    if isinstance(lower, bool):
        return "min" if lower else "max"
    results = record.get("results")
    name = name or str(record.get("metric") or next(iter(results if isinstance(results, dict) else ()), ""))
    return next((end for end, names in _ENDS_BY_NAME if names.match(name)), None)
