# SPDX-License-Identifier: Apache-2.0
"""Run the stages of a recipe in order. Each is an ordinary run folder inside the recipe's folder.

    00000-imagenet256/recipe.json        the recipe, the data, and all overrides from command lines, by stage
    00000-imagenet256/status.json        how the last process ended; "interrupted" while one runs
    00000-imagenet256/lineage.json       for each stage: how it ended, its best network, its stem, and its
                                         metric at the resolution of the last stage
    00000-imagenet256/stage-016x016/     as written by train.py, plus final.json: that metric
    00000-imagenet256/stage-032x032/     ...

The progress is read from these folders only, so a schedule that was stopped at any point can be resumed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import reason, sha256_file
from torch_utils import distributed
from training import run_folder
from training.config import FLAGS, TrainConfig, changes_of
from training.generator import Generator
from training.networks import stems
from training.progressive import recipe
from training.progressive.recipe import Recipe, Stage
from training.run_folder import (
    FINAL_FILE,
    LINEAGE_FILE,
    RECIPE_FILE,
    best_network,
    read_json,
    read_object,
    write_json,
)


@dataclass(frozen=True)
class Override:
    """Flags of a command line, and the stages that they apply to (None = all)."""

    flags: dict[str, Any]
    stages: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Schedule:
    """A recipe with the changes from command lines.

    `data` is the path of a data set for all stages, or a pattern with {res} for one per stage. `selected` are
    the resolutions to run.
    """

    recipe: Recipe
    data: str
    overrides: tuple[Override, ...] = ()
    selected: tuple[int, ...] = ()

    @property
    def stages(self) -> list[Stage]:
        """The selected stages."""
        return [s for s in self.recipe.stages if s.resolution in self.selected]

    def below(self, stage: Stage) -> Stage | None:
        """The previous stage in the whole recipe; None for the first."""
        index = self.recipe.stages.index(stage)
        return self.recipe.stages[index - 1] if index else None

    def flags(self, stage: Stage) -> dict[str, Any]:
        """The recipe's flags of a stage, with overrides applied."""
        flags = dict(stage.flags)
        for override in self.overrides:
            if override.stages is None or stage.resolution in override.stages:
                flags |= override.flags
        return flags

    def config(self, stage: Stage, folder: Path | None = None) -> TrainConfig:
        """The configuration of a stage.

        Args:
            stage: the stage.
            folder: folder of the schedule; None for plans.

        Raises:
            ValueError: the flags do not fit together. The message names the stage.
        """
        changes = changes_of(self.flags(stage))
        below = self.below(stage)
        changes["data.path"] = self.data.replace("{res}", str(stage.resolution))
        changes["data.resolution"] = stage.resolution
        if below is not None:
            changes["generator.superres"] = True
            changes["generator.up_factor"] = stage.resolution // below.resolution
            changes.setdefault("generator.path_stem", str((folder or Path(self.recipe.name)) / below.name))
        elif "generator.path_stem" in changes:
            raise ValueError(
                f"--path_stem: stage {stage.resolution} of {self.recipe.name} is a stem itself: remove the "
                "flag, or use --stages"
            )
        try:
            config = TrainConfig().override(changes)
            config.validate()
        except ValueError as err:
            raise ValueError(f"stage {stage.resolution}: {err}") from None
        return config

    def to_json(self) -> dict[str, Any]:
        """The content of recipe.json."""
        overrides = [
            {"stages": o.stages and list(o.stages), "flags": {k: _plain(v) for k, v in o.flags.items()}}
            for o in self.overrides
        ]
        return {
            "recipe": self.recipe.to_json(),
            "data": self.data,
            "overrides": overrides,
            "selected": list(self.selected),
        }


def describe_override(override: Override) -> str:
    """Describe an override in a few words."""
    where = "" if override.stages is None else f" (stages {', '.join(map(str, override.stages))})"
    return (
        " ".join(
            f"--{flag}={FLAGS[flag].text(value)}" for flag, value in override.flags.items() if flag in FLAGS
        )
        + where
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_json(tree: Any) -> Schedule:
    """Inverse of `Schedule.to_json`.

    Raises:
        ValueError: `tree` is not a schedule.
    """
    try:
        overrides = tuple(
            Override(o["flags"], tuple(o["stages"]) if o["stages"] else None) for o in tree["overrides"]
        )
        return Schedule(
            recipe.from_json(tree["recipe"]), str(tree["data"]), overrides, tuple(tree["selected"])
        )
    except (KeyError, TypeError) as err:
        raise ValueError(f"the recorded schedule is damaged ({reason(err)})") from None


def read(folder: Path) -> Schedule:
    """Read the schedule of a folder.

    Raises:
        ValueError: missing or damaged.
    """
    path = folder / RECIPE_FILE
    try:
        return from_json(read_object(path))
    except (OSError, ValueError) as err:
        raise ValueError(f"{path} cannot be read ({err})") from None


def parse_selected(text: str | None, source: Recipe) -> tuple[int, ...]:
    """Parse --stages to resolutions; all resolutions if it is not given.

    Raises:
        ValueError: the recipe has no such stage.
    """
    known = [s.resolution for s in source.stages]
    if text is None:
        return tuple(known)
    wanted = [part.strip() for part in text.split(",")]
    for part in wanted:
        if not part.isdecimal() or int(part) not in known:
            raise ValueError(
                f"--stages={text}: '{part}' is not a stage of recipe {source.name}; its stages are "
                f"{', '.join(map(str, known))}"
            )
    return tuple(sorted({int(part) for part in wanted}))


def differences(ours: Recipe, theirs: Recipe) -> str:
    """Describe the first difference between two recipes; '' if there is none."""
    a, b = json.loads(json.dumps(ours.to_json())), json.loads(json.dumps(theirs.to_json()))
    if a == b:
        return ""
    sides = [{s["resolution"]: s["flags"] for s in tree["stages"]} for tree in (a, b)]
    if sides[0].keys() != sides[1].keys():
        return f"stages {', '.join(map(str, sides[0]))} against {', '.join(map(str, sides[1]))}"
    for resolution, flags in sides[0].items():
        for name in sorted(flags.keys() | sides[1][resolution].keys()):
            mine, other = flags.get(name), sides[1][resolution].get(name)
            if mine != other:
                return f"stage {resolution}: {name} {mine} against {other}"
    return next(
        (f"{k} {a[k]!r} against {b[k]!r}" for k in ("name", "final_metric", "classes") if a[k] != b[k]), ""
    )


def is_trained(run_dir: Path) -> bool:
    """Whether a stage has finished training."""
    return run_folder.recorded_outcome(run_dir) == run_folder.FINISHED and best_network(run_dir) is not None


def is_measured(run_dir: Path, metric: str | None) -> bool:
    """Whether the best network of a stage has been evaluated at the resolution of the last stage."""
    if metric is None:
        return True
    final, network = read_json(run_dir / FINAL_FILE), best_network(run_dir)
    return (
        network is not None and final.get("metric") == metric and final.get("sha256") == sha256_file(network)
    )


def is_stage_done(schedule: Schedule, stage: Stage, folder: Path) -> bool:
    """Whether a stage is trained and evaluated."""
    run_dir = folder / stage.name
    return is_trained(run_dir) and is_measured(run_dir, schedule.recipe.final_metric)


def is_done(schedule: Schedule, folder: Path) -> bool:
    """Whether all selected stages are trained and evaluated."""
    return all(is_stage_done(schedule, stage, folder) for stage in schedule.stages)


def changed(schedule: Schedule, flags: dict[str, Any], first: dict[str, Any], folder: Path) -> Schedule:
    """The schedule of `folder` with flags of a command line that selects no stages.

    They are not recorded for stages that are done, which do not train with them.

    Args:
        schedule: the schedule.
        flags: for all stages.
        first: for the first selected stage.
        folder: its folder.
    """
    left = tuple(s.resolution for s in schedule.recipe.stages if not is_stage_done(schedule, s, folder))
    everywhere = len(left) == len(schedule.recipe.stages)
    new = []
    if flags and left:
        new.append(Override(flags, None if everywhere else left))
    if first and schedule.selected[0] in left:
        new.append(Override(first, schedule.selected[:1]))
    return replace(schedule, overrides=(*schedule.overrides, *new))


def stage_record(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """The entry of a stage in lineage.json; None before it has a network."""
    run_dir = folder / stage.name
    network = best_network(run_dir)
    if network is None:
        return None
    outcome, shown = run_folder.recorded_outcome(run_dir), run_folder.recorded_nimg(run_dir)
    best = run_folder.best_nimg(run_dir) if network.name == run_folder.BEST_NETWORK else None
    nimg = shown if best is None else best
    stem = stems.read(run_dir)
    spent = shown is not None and shown >= run_folder.load_run(str(run_dir)).run.kimg * 1000
    return {
        "stage": stage.name,
        "resolution": stage.resolution,
        "outcome": outcome,
        "ended_by": None if outcome != run_folder.FINISHED else "kimg" if spent else "patience",
        "nimg": shown,
        "best": {
            "file": f"{stage.name}/{network.name}",
            "sha256": sha256_file(network),
            "nimg": nimg,
            "metric": run_folder.metric_at(run_dir, nimg),
        },
        "stem": stem.stem if stem else None,
        "stem_changes": stem.changes if stem else [],
        "final": read_json(run_dir / FINAL_FILE) or None,
    }


def write_lineage(schedule: Schedule, folder: Path) -> None:
    """Write lineage.json of a schedule from the contents of its stages' folders."""
    records = [
        record for stage in schedule.recipe.stages if (record := stage_record(folder, stage)) is not None
    ]
    write_json(
        folder / LINEAGE_FILE,
        {"recipe": schedule.recipe.name, "final_metric": schedule.recipe.final_metric, "stages": records},
    )


@dataclass
class Hooks:
    """Functions that train.py provides.

    Attributes:
        train: trains a stage, given its configuration and folder; returns the outcome.
        measure: evaluates a network, given its file, its run folder and the metric; writes final.json there.
        say: prints a line.
        deadline: time.monotonic() after which no further stage starts.
    """

    train: Callable[[TrainConfig, Path], str]
    measure: Callable[[Path, Path, str], None]
    say: Callable[[str], None]
    deadline: float = field(default=float("inf"))


def run(schedule: Schedule, folder: Path, explicit: bool, hooks: Hooks) -> str:
    """Train and evaluate the selected stages that are not done.

    Args:
        schedule: the schedule.
        folder: its folder.
        explicit: whether the command line selected the stages; then a finished stage continues if its limits
            were raised.
        hooks: see `Hooks`.

    Returns:
        The outcome of the last stage that ran.
    """
    stages = schedule.stages
    for stage in stages:
        run_dir, metric = folder / stage.name, schedule.recipe.final_metric
        trained, measured = distributed.broadcast_object((is_trained(run_dir), is_measured(run_dir, metric)))
        if trained and measured and not explicit:
            hooks.say(f"Stage {stage.resolution}: already done")
            continue
        if not trained or explicit:
            hooks.say(f"Stage {stage.resolution} of {', '.join(str(s.resolution) for s in stages)}")
            outcome = hooks.train(schedule.config(stage, folder), run_dir)
            if outcome != run_folder.FINISHED:
                _record(schedule, folder)
                return outcome
        if metric is not None and not distributed.broadcast_object(is_measured(run_dir, metric)):
            network = best_network(run_dir)
            assert network is not None
            hooks.measure(network, run_dir, metric)
        _record(schedule, folder)
        late = distributed.broadcast_object(time.monotonic() > hooks.deadline)
        if late and stage is not stages[-1]:
            return run_folder.RESTART
    return run_folder.FINISHED


def _record(schedule: Schedule, folder: Path) -> None:
    if distributed.is_main():
        write_lineage(schedule, folder)


class Upsampled:
    """A generator with resized images: bicubic, antialiased, before quantisation."""

    def __init__(self, G: Generator, resolution: int) -> None:
        self.G, self.resolution = G, resolution
        self.z_dim, self.c_dim, self.synthesis = G.z_dim, G.c_dim, G.synthesis

    def __call__(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Generate images [N, 3, resolution, resolution] in [-1, 1]."""
        x: torch.Tensor = self.G(z, labels)
        if x.shape[-1] == self.resolution:
            return x
        return torch.nn.functional.interpolate(
            x.float(), size=(self.resolution, self.resolution), mode="bicubic", antialias=True
        )

    def details(self) -> dict[str, Any]:
        """The entry for metric records which says that the images were resized."""
        size = self.G.img_resolution
        return {
            "upsampled": None
            if size == self.resolution
            else {"from": size, "to": self.resolution, "filter": "bicubic, antialiased"}
        }
