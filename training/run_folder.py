# SPDX-License-Identifier: Apache-2.0
"""Run folders and recipe folders: the names of their files, and reading and writing them.

No other module spells these names. Only the names of the metric records are in dnnlib.records, because
metrics, which must not import this module, write them too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnlib import bounded
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
STATUS_FILE = "status.json"  # how the last process ended: {"outcome", "nimg"}; of a recipe: {"outcome"}
LOG_FILE = "log.txt"  # console output, and the error that ended the run
STATS_FILE = "stats.jsonl"  # a line per tick
ALARMS_FILE = "alarms.jsonl"  # a line per alarm
ABOUT_FILE = "about.json"  # the data set and the sizes of the networks
# the stem and its own stems; in a recipe's folder: how each stage ended, and its best network
LINEAGE_FILE = "lineage.json"
INIT_FROM_FILE = "init_from.json"  # the parts that --init-from copied
FINAL_FILE = "final.json"  # in a recipe's stage: its metric at the resolution of the last stage
RECIPE_FILE = "recipe.json"  # in a recipe's folder: the schedule, the data and all command-line overrides
CURVES_FILE, REPORT_FILE = "curves.png", "report.html"
CONTACT_SHEET_FILE, CONTACT_FOLDER = "contact-sheet.png", "contact"  # the sheet and its columns
REALS_FILE, FAKES_INIT_FILE = "reals.png", "fakes_init.png"
NEWEST_NETWORK, BEST_NETWORK = "network-snapshot.pkl", "best_model.pkl"
BEST_NIMG_FILE = "best_nimg.txt"  # images shown when BEST_NETWORK was written
CHECKPOINT_FOLDER = "checkpoints"
RANKS_FOLDER = "ranks"
CHECKPOINTED_FILE = "checkpointed.txt"  # images shown at the first checkpoint
JOB_FILE = "job.json"  # under torchrun: {"agents"}, the torchrun processes that the run belongs to
TRACKER_FILE, PROMETHEUS_FILE = "tracker.json", "metrics.prom"  # --tracker: {"id"} of the run; its values
IDENTITY_FILE = "identity.json"  # with --local-checkpoint: {"id"}, in the name of the local folder
_FAKES, _SNAPSHOT, _STAGE = "fakes", "network-snapshot-", "stage-"  # a number follows
LOCK_FILE, WRITER_LOCK_FILE = ".lock", ".lock-writer"
EARLIER_FOLDER = "earlier"  # followed by a number: files that --from-scratch moved aside


def snapshot_number(nimg: int, last_nimg: int | None) -> str:
    """Return the number in the names of a snapshot and its image grid.

    It is the published one, thousands of images rounded down: '000012'. If the previous snapshot has that
    number already, the remaining images follow: '000012_544'. Names sort in the order of training
    (docs/run-folder.md).

    Args:
        nimg: Images shown at the snapshot.
        last_nimg: Images shown at the previous snapshot, or None.
    """
    kimg, images = divmod(nimg, 1000)
    taken = last_nimg is not None and last_nimg // 1000 == kimg
    return f"{kimg:06d}_{images:03d}" if taken else f"{kimg:06d}"


def tensorboard_step(nimg: int) -> int:
    """Return the TensorBoard step of what was measured at `nimg` images shown.

    Deviation: the step counts images. StyleGAN counts thousands of images, so shorter ticks share a step.
    """
    return nimg


def fakes_file(run_dir: Path, number: str) -> Path:
    """Return the path of the grid of generated images of a snapshot (`snapshot_number`)."""
    return run_dir / f"{_FAKES}{number}.png"


def fakes_files(run_dir: Path) -> list[Path]:
    """Return all numbered grids of generated images, oldest first."""
    return _numbered(run_dir, _FAKES, ".png")


def snapshot_file(run_dir: Path, number: str) -> Path:
    """Return the path of the network pickle of a snapshot (`snapshot_number`)."""
    return run_dir / f"{_SNAPSHOT}{number}.pkl"


def snapshot_files(run_dir: Path) -> list[Path]:
    """Return all numbered network pickles of a run, oldest first."""
    return _numbered(run_dir, _SNAPSHOT, ".pkl")


def kimg_of_file(path: Path) -> float:
    """Return the thousands of images shown in the name of a numbered file, with the precision of the name."""
    kimg, _, images = path.stem.removeprefix(_FAKES).removeprefix(_SNAPSHOT).partition("_")
    return int(kimg) + int(images or 0) / 1000


def _numbered(run_dir: Path, start: str, end: str) -> list[Path]:
    """Return the files named `start`, snapshot number, `end`, sorted by number. Other files are ignored."""
    name = re.compile(re.escape(start) + r"[0-9]{1,12}(_[0-9]{3})?" + re.escape(end))
    return sorted((p for p in run_dir.glob(f"{start}*{end}") if name.fullmatch(p.name)), key=kimg_of_file)


def best_file(run_dir: str | os.PathLike[str], metric: str | None = None) -> Path:
    """The best network by a metric: best-NAME.pkl; None = the first metric, whose file is best_model.pkl."""
    return Path(run_dir) / (BEST_NETWORK if metric is None else f"best-{metric}.pkl")


def best_network(run_dir: str | os.PathLike[str]) -> Path | None:
    """Return the network that other runs use from a run folder.

    It is the best by the first metric, or the newest without metrics; None before there is any.
    """
    found = [Path(run_dir) / name for name in (BEST_NETWORK, NEWEST_NETWORK)]
    return next((path for path in found if path.is_file()), None)


def best_nimg(run_dir: Path) -> int | None:
    """Return the images shown when the best network was written; None if unknown."""
    with contextlib.suppress(OSError, ValueError):
        return int(bounded.read_text(run_dir / BEST_NIMG_FILE, 100))
    return None


def write_best_nimg(run_dir: Path, nimg: int | None) -> None:
    """Store the images shown when the best network was written; None = unknown."""
    if nimg is None:
        (run_dir / BEST_NIMG_FILE).unlink(missing_ok=True)
        return
    with atomic_write(run_dir / BEST_NIMG_FILE, "w") as f:
        f.write(f"{nimg}\n")


def metric_at(run_dir: str | os.PathLike[str], nimg: int | None) -> dict[str, Any] | None:
    """Return {"name", "value"} of the first metric of a run at `nimg` images shown.

    Returns None if it was not computed there.
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
    """Return the folder of a run's checkpoints."""
    return Path(run_dir) / CHECKPOINT_FOLDER


def ranks_folder(run_dir: str | os.PathLike[str]) -> Path:
    """What the processes but the first print (NNN.log), and the stacks of all after a hang."""
    return Path(run_dir) / RANKS_FOLDER


def stage_name(resolution: int) -> str:
    """Return the name of the run folder of a recipe's stage, inside the recipe's folder."""
    return f"{_STAGE}{resolution:03d}x{resolution:03d}"


def stage_folders(folder: Path) -> list[Path]:
    """Return the run folders of a recipe's stages, in order."""
    return (
        sorted(p for p in folder.iterdir() if p.is_dir() and p.name.startswith(_STAGE))
        if folder.is_dir()
        else []
    )


def is_run_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a run folder: it contains saved options."""
    return (Path(path) / OPTIONS_FILE).is_file()


def is_recipe_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder belongs to a recipe, with a run folder for each stage."""
    return (Path(path) / RECIPE_FILE).is_file()


# Numbers.


def description(config: TrainConfig, data_name: str) -> str:
    """Return the text after the number in the name of a run folder, in StyleGAN3's format."""
    run = config.run
    text = f"{config.generator.cfg}-{data_name}-gpus{run.gpus}-batch{run.batch}"
    return f"{text}-{run.desc}" if run.desc else text


def run_folders(outdir: str) -> dict[int, Path]:
    """Return number -> run folder in `outdir`."""
    if not os.path.isdir(outdir):
        return {}
    found = ((re.match(r"(\d+)(-|$)", p.name), p) for p in Path(outdir).iterdir() if p.is_dir())
    return {int(m.group(1)): p for m, p in found if m}


def new_run_folder(outdir: str, desc: str) -> Path:
    """Create the next numbered run folder.

    Runs that start at the same time get different numbers, whatever their descriptions.
    """
    Path(outdir).mkdir(parents=True, exist_ok=True)
    number = max(run_folders(outdir), default=-1) + 1
    while True:
        # the same name for every description; a folder, because mkdir is atomic on every file system
        claim = Path(outdir) / f".{number:05d}.claim"
        try:
            claim.mkdir()
        except FileExistsError:
            number += 1  # another run is creating this folder, or was killed while doing so
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
    """Return the newest folder with this description and these options, if its run has not finished.

    --restart_every resumes it.
    """
    for _, path in sorted(run_folders(outdir).items(), reverse=True):
        if path.name.split("-", 1)[-1] != desc or not is_run_folder(path):
            continue
        if recorded_outcome(path) == FINISHED:
            return None
        recorded = load_run(str(path)).override({"run.local_checkpoint": config.run.local_checkpoint})
        if config.run.elastic:  # the number of processes may change
            ours = {"run.gpus": config.run.gpus, "run.batch_gpu": config.run.batch_gpu}
            recorded = recorded.override(ours)
        same = recorded.override({"run.batch_gpu": AUTO}) if config.run.batch_gpu == AUTO else recorded
        return path if same == config else None
    return None


# Options, outcome, checkpoints.


def load_run(run_dir: str) -> TrainConfig:
    """Load the configuration of a run folder.

    Raises:
        ValueError: The folder is not a run folder of this project.
    """
    if not is_run_folder(run_dir):
        raise ValueError(
            f"--resume={run_dir}: {OPTIONS_FILE} not found; give a run folder of this project, or a network "
            "file to start from its weights"
        )
    try:
        saved = read_object(Path(run_dir) / OPTIONS_FILE)
    except Damaged as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE} is damaged ({err.reason})") from None
    if "config" not in saved:
        raise ValueError(
            f"--resume={run_dir}: {OPTIONS_FILE} belongs to another project; to start from its network use "
            "--init-from"
        )
    try:
        return from_json(saved["config"])
    except ValueError as err:
        raise ValueError(f"--resume={run_dir}: {OPTIONS_FILE}: {err}") from None


def recorded_outcome(run_dir: Path) -> str | None:
    """Return how the last process of a run ended; None if no process has ended or the file is unreadable."""
    outcome = read_json(run_dir / STATUS_FILE).get("outcome")
    return None if outcome is None else str(outcome)


def recorded_nimg(run_dir: Path) -> int | None:
    """Return the images shown when the last process of a run ended.

    Returns None if no process has ended or the file is unreadable.
    """
    nimg = read_json(run_dir / STATUS_FILE).get("nimg")
    return nimg if type(nimg) is int else None


def write_status(run_dir: Path, outcome: str, nimg: int | None = None) -> None:
    """Store how a process ended, and the images shown by then; None for a recipe, whose stages count them."""
    write_json(run_dir / STATUS_FILE, {"outcome": outcome} | ({} if nimg is None else {"nimg": nimg}))


def job_agents(run_dir: Path) -> set[str]:
    """The agents that a run or recipe belongs to (`distributed.agent`); empty if none are recorded."""
    agents = read_json(run_dir / JOB_FILE).get("agents")
    return {str(agent) for agent in agents} if isinstance(agents, list) else set()


def write_job(run_dir: Path, agents: set[str]) -> None:
    """Record the agents that a run or recipe belongs to."""
    write_json(run_dir / JOB_FILE, {"agents": sorted(agents)})


def identity(run_dir: Path, file: str = IDENTITY_FILE, digits: int = 32) -> str:
    """Return a random hexadecimal name that a run keeps when it resumes or its folder moves.

    It is stored in `file`. For the process that writes there.
    """
    known = read_json(run_dir / file).get("id")
    if not isinstance(known, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", known):
        known = uuid.uuid4().hex[:digits]
        write_json(run_dir / file, {"id": known})
    return known


def record_start(run_dir: Path, options: dict[str, Any] | None = None) -> None:
    """Remove the status of the previous process, and write the options of the one that starts, if given."""
    set_aside_if_damaged(run_dir / STATUS_FILE)
    (run_dir / STATUS_FILE).unlink(missing_ok=True)
    if options is not None:
        write_json(run_dir / OPTIONS_FILE, options)


def newest_checkpoint(run_dir: str | os.PathLike[str], set_aside: bool = False) -> Path | None:
    """Return the checkpoint to resume from; None in a folder that never had one.

    Args:
        run_dir: The run folder.
        set_aside: As for `checkpoint.latest`.

    Raises:
        OSError: A checkpoint cannot be read.
        ValueError: There were checkpoints, but none can be used.
    """
    path = checkpoint.latest(checkpoint_folder(run_dir), set_aside)
    trace = None if path is not None else _trace_of_checkpoints(Path(run_dir))
    if trace:
        raise ValueError(
            f"{run_dir} has no usable checkpoint, although {trace}: restore one in {CHECKPOINT_FOLDER}/, "
            "start a new run from its network with --init-from, or restart this run with --from-scratch"
        )
    return path


def newest_checkpoint_nimg(run_dir: Path) -> int | None:
    """Return the images shown at the newest checkpoint, from its name; None without one."""
    return checkpoint.newest_nimg(checkpoint_folder(run_dir))


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run folder can be resumed. Raises as `newest_checkpoint`."""
    return newest_checkpoint(run_dir) is not None


def _trace_of_checkpoints(run_dir: Path) -> str:
    """Return evidence that a folder without a usable checkpoint had one; '' if it never had one.

    Version 0.1 did not write CHECKPOINTED_FILE.
    """
    if checkpoint.exists(checkpoint_folder(run_dir)):
        return "it has damaged ones"
    if nimg := recorded_nimg(run_dir):
        return f"its last process ended after {nimg} images"
    had = (
        (run_dir / CHECKPOINTED_FILE).exists()
        or (run_dir / BEST_NIMG_FILE).exists()
        or len(snapshot_files(run_dir)) > 1
    )
    return "it had some" if had else ""


def record_first_checkpoint(run_dir: Path, nimg: int) -> None:
    """Store that a checkpoint has been written, in case all checkpoints are lost."""
    if not (run_dir / CHECKPOINTED_FILE).exists():
        with atomic_write(run_dir / CHECKPOINTED_FILE, "w") as f:
            f.write(f"{nimg}\n")


def kimg_text(kimg: float) -> str:
    """Format thousands of images exactly: 25000 -> '25000', 4.096 -> '4.096', 0.5 -> '0.5'."""
    return f"{kimg:.3f}".rstrip("0").rstrip(".") if math.isfinite(kimg) else "?"


# The better direction of metrics by the beginning of their name, for records without `lower_is_better`: those
# of version 0.1 and of the published calc_metrics.py. Do not add new metrics here.
_DIRECTIONS = (
    ("min", re.compile(r"(s|r)?fid|fd[_\d]|kid|ppl")),
    ("max", re.compile(r"is\d|inception|pr[_\d]|prec|rec|acc|dens|cov|eq[tr]")),
)


def better_direction(record: Mapping[str, Any], name: str | None = None) -> str | None:
    """Return whether lower or higher values of a metric are better: "min", "max", or None = unknown.

    Args:
        record: A metric record (a line of metric-NAME.jsonl).
        name: Name of the value, for a record without `lower_is_better` that contains several; None = the
            metric's name.
    """
    lower = record.get("lower_is_better")
    if isinstance(lower, bool):
        return "min" if lower else "max"
    results = record.get("results")
    name = name or str(record.get("metric") or next(iter(results if isinstance(results, dict) else ()), ""))
    return next((end for end, names in _DIRECTIONS if names.match(name)), None)
