# SPDX-License-Identifier: Apache-2.0
"""The progressive schedule: a recipe's stages one after the other, each an ordinary run folder inside the
recipe's.

    00000-imagenet256/recipe.json        the recipe, the data and every override of a command line, by stage
    00000-imagenet256/lineage.json       per stage: how it ended, its best network, its stem, its quality at
                                         the last stage's resolution
    00000-imagenet256/stage-016x016/     as train.py makes it, and final.json: the measurement at the last
                                         stage's resolution
    00000-imagenet256/stage-032x032/     ...

Nothing but the folders says what is done, so a schedule that was stopped anywhere goes on from what lies
there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """Flags of a command line and the stages that they are for (None = all)."""

    flags: dict[str, Any]
    stages: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Schedule:
    """A recipe with what the command lines added to it.

    data: path of a data set for all stages, or a pattern with {res} for one per stage. selected: the
    resolutions to run.
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
        """The stage before, in the whole recipe."""
        index = self.recipe.stages.index(stage)
        return self.recipe.stages[index - 1] if index else None

    def flags(self, stage: Stage) -> dict[str, Any]:
        """The recipe's flags of a stage with the overrides."""
        flags = dict(stage.flags)
        for override in self.overrides:
            if override.stages is None or stage.resolution in override.stages:
                flags |= override.flags
        return flags

    def config(self, stage: Stage, folder: Path | None = None) -> TrainConfig:
        """The configuration of a stage.

        Args:
            folder: of the schedule; None for plans.

        Raises:
            ValueError: flags that do not go together, naming the stage.
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
                f"--path_stem: stage {stage.resolution} of {self.recipe.name} is a stem itself: leave it "
                "out, or use --stages"
            )
        try:
            config = TrainConfig().override(changes)
            config.validate()
        except ValueError as err:
            raise ValueError(f"stage {stage.resolution}: {err}") from None
        return config

    def to_json(self) -> dict[str, Any]:
        """What recipe.json keeps."""
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
    """An override in a few words."""
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
        ValueError: it is none.
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
    """The schedule of a folder.

    Raises:
        ValueError: it holds none, or a damaged one.
    """
    path = folder / RECIPE_FILE
    try:
        return from_json(read_object(path))
    except (OSError, ValueError) as err:
        raise ValueError(f"{path} cannot be used ({err})") from None


def parse_selected(text: str | None, source: Recipe) -> tuple[int, ...]:
    """The resolutions that --stages names; all without it.

    Raises:
        ValueError: one of them is no stage of the recipe.
    """
    known = [s.resolution for s in source.stages]
    if text is None:
        return tuple(known)
    wanted = [part.strip() for part in text.split(",")]
    for part in wanted:
        if not part.isdigit() or int(part) not in known:
            raise ValueError(
                f"--stages={text}: '{part}' is no stage of recipe {source.name}, which has "
                f"{', '.join(map(str, known))}"
            )
    return tuple(sorted({int(part) for part in wanted}))


def differences(ours: Recipe, theirs: Recipe) -> str:
    """Where two recipes differ, in a few words; '' if they do not."""
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
    """Whether a stage has ended by itself."""
    return run_folder.recorded_outcome(run_dir) == run_folder.FINISHED and best_network(run_dir) is not None


def is_measured(run_dir: Path, metric: str | None) -> bool:
    """Whether the best network of a stage has been measured at the last stage's resolution."""
    if metric is None:
        return True
    final, network = read_json(run_dir / FINAL_FILE), best_network(run_dir)
    return (
        network is not None and final.get("metric") == metric and final.get("sha256") == sha256_file(network)
    )


def is_done(schedule: Schedule, folder: Path) -> bool:
    """Whether all selected stages are trained and measured."""
    metric = schedule.recipe.final_metric
    return all(is_trained(folder / s.name) and is_measured(folder / s.name, metric) for s in schedule.stages)


def stage_record(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """What lineage.json says of a stage; None before it has a network."""
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
    """lineage.json of a schedule, from what the stages' folders hold."""
    records = [
        record for stage in schedule.recipe.stages if (record := stage_record(folder, stage)) is not None
    ]
    write_json(
        folder / LINEAGE_FILE,
        {"recipe": schedule.recipe.name, "final_metric": schedule.recipe.final_metric, "stages": records},
    )


@dataclass
class Hooks:
    """What train.py lends. train: a stage's configuration and folder -> outcome. measure: network, folder ->
    nothing, leaves final.json there.
    """

    train: Callable[[TrainConfig, Path], str]
    measure: Callable[[Path, Path, str], None]
    say: Callable[[str], None]
    deadline: float = field(default=float("inf"))  # of time.monotonic()


def run(schedule: Schedule, folder: Path, explicit: bool, hooks: Hooks) -> str:
    """Train and measure the selected stages that are not done; returns the loop's outcome of the last one
    that ran.

    explicit: the stages were named on this command line, so that one that has ended goes on if its limits
    were raised.
    """
    stages = schedule.stages
    for stage in stages:
        run_dir, metric = folder / stage.name, schedule.recipe.final_metric
        trained, measured = distributed.broadcast_object((is_trained(run_dir), is_measured(run_dir, metric)))
        if trained and measured and not explicit:
            hooks.say(f"Stage {stage.resolution}: done already")
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
    """A generator whose images are brought to another resolution: bicubic, antialiased, before they are
    quantised.
    """

    def __init__(self, G: Generator, resolution: int) -> None:
        self.G, self.resolution = G, resolution
        self.z_dim, self.c_dim, self.synthesis = G.z_dim, G.c_dim, G.synthesis

    def __call__(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """[N, 3, resolution, resolution] in [-1, 1]."""
        x = self.G(z, labels)
        if x.shape[-1] == self.resolution:
            return x
        return torch.nn.functional.interpolate(
            x.float(), size=(self.resolution, self.resolution), mode="bicubic", antialias=True
        )

    def details(self) -> dict[str, Any]:
        """For metric records: that these are not the network's own images."""
        size = self.G.img_resolution
        return {
            "upsampled": None
            if size == self.resolution
            else {"from": size, "to": self.resolution, "filter": "bicubic, antialiased"}
        }
