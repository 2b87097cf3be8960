# SPDX-License-Identifier: Apache-2.0
"""Read and check recipes: progressive schedules in YAML files.

    name: tiny
    about: what it trains, on which data, how long it takes, which results to expect
    classes: 10              # of the intended data set; used by --dry-run without --data
    final_metric: fd_lite0   # evaluated after each stage, at the last resolution; none = off
    extends: other           # start with the stages and options of another recipe in this folder
    options:                 # flags of train.py for all stages
      batch: 64
    stages:                  # in order; the first is a stem, the others are superresolution stages
      - resolution: 16
        syn_layers: 7
      - resolution: 32
        kimg: 2000           # flags of a stage override the options

A stage ends after its kimg, or when its first metric has not improved for `patience` evaluations.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dnnlib import bounded, util
from training.config import FLAGS, RunConfig
from training.run_folder import stage_name
from training.watch.estimate import Pace

SHIPPED = Path(__file__).resolve().parent.parent.parent / "recipes"
SPEED_TABLE = "speed.yaml"
UP_FACTORS = (2, 4, 8, 16)
MAX_CHAIN = 16  # length of a chain of recipes that extend each other
MAX_BYTES = 64 * 2**10  # maximum size of a recipe; the worst case of this size takes seconds to parse
KEYS = ("name", "about", "classes", "final_metric", "extends", "options", "stages")
NOT_HERE = {
    "data": "pass it on the command line",
    "path_stem": "the stem of a stage is the previous stage; pass a first stem on the command line",
    "superres": "every stage except the first is a superresolution stage",
    **dict.fromkeys(("desc", "outdir", "resume", "stages"), "pass it on the command line"),
    "init_from": "pass it on the command line, for the first stage",
    "recipe": "use extends",
}


@dataclass(frozen=True)
class Stage:
    """One resolution of a schedule.

    `flags` are flags of train.py by name, with underscores, including the options of the recipe.
    """

    resolution: int
    flags: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the stage's folder."""
        return stage_name(self.resolution)


@dataclass(frozen=True)
class Recipe:
    """A schedule. `classes` and `final_metric` are None if the file does not define them."""

    name: str
    about: str
    classes: int | None
    final_metric: str | None
    stages: tuple[Stage, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to dicts, lists and scalars."""
        stages = [
            {"resolution": s.resolution, "flags": {k: _plain(v) for k, v in s.flags.items()}}
            for s in self.stages
        ]
        return {**vars(self), "stages": stages}


def from_json(tree: Any) -> Recipe:
    """Inverse of `Recipe.to_json`.

    Raises:
        ValueError: `tree` is not a recipe.
    """
    try:
        stages = tuple(
            Stage(int(s["resolution"]), {str(k): v for k, v in s["flags"].items()}) for s in tree["stages"]
        )
        return Recipe(str(tree["name"]), str(tree["about"]), tree["classes"], tree["final_metric"], stages)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise ValueError(f"the recorded recipe is damaged ({util.reason(err)})") from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def shipped() -> list[str]:
    """The names of the recipes in the project."""
    return sorted(p.stem for p in SHIPPED.glob("*.yaml") if p.name != SPEED_TABLE)


def find(name_or_path: str) -> Path:
    """The file of a recipe, given as a path or as the name of a recipe in the project.

    Raises:
        ValueError: not found.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if re.fullmatch(r"[\w-]+", name_or_path) and (SHIPPED / f"{name_or_path}.yaml").is_file():
        return SHIPPED / f"{name_or_path}.yaml"
    raise ValueError(f"--recipe={name_or_path}: no such file or recipe (recipes: {', '.join(shipped())})")


def load(name_or_path: str) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: one line with file, line and remedy.
    """
    return _load(find(name_or_path), ())[0]


def _load(path: Path, above: tuple[Path, ...]) -> tuple[Recipe, dict[str, Any]]:
    """(the recipe, its options for all stages). A recipe that extends it starts with these options."""
    file = _File(path)
    top = file.table(file.root(), "a recipe")
    file.known(top, KEYS, "key")
    base, shared = _base(file, top, (*above, path.resolve()))
    name = file.text(top, "name") or path.stem
    if not re.fullmatch(r"[\w.-]+", name):
        raise file.error(
            top["name"],
            f"name '{name}' becomes part of a folder name: use only letters, digits, '-', '_' and '.'",
        )
    options = file.flags(file.table(top["options"], "options") if "options" in top else {}, ("resolution",))
    stages = [Stage(s.resolution, {**s.flags, **options}) for s in base.stages] if base else []
    shared = {**shared, **options}
    if "stages" in top:
        if not isinstance(top["stages"], yaml.SequenceNode):
            raise file.error(top["stages"], "stages must be a list with a resolution for each stage")
        for node in top["stages"].value:
            stages.append(_stage(file, node, shared, stages[-1] if stages else None))
    if not stages:
        raise ValueError(f"{path}: no stages: add at least one with a resolution")
    metric = file.text(top, "final_metric") if "final_metric" in top else base.final_metric if base else None
    classes = (
        file.number(top["classes"], "classes", 0) if "classes" in top else base.classes if base else None
    )
    about = file.text(top, "about") or (base.about if base else "")
    return Recipe(
        name, about.strip(), classes, None if metric in (None, "none") else metric, tuple(stages)
    ), shared


def _base(
    file: _File, top: Mapping[str, yaml.Node], chain: tuple[Path, ...]
) -> tuple[Recipe | None, dict[str, Any]]:
    name = file.text(top, "extends")
    if name is None:
        return None, {}
    other = file.path.parent / f"{name}.yaml"
    if not re.fullmatch(r"[\w-]+", name) or not other.is_file():
        raise file.error(top["extends"], f"extends '{name}': {name}.yaml is not in the folder of this file")
    if other.resolve() in chain:
        raise file.error(
            top["extends"], f"extends '{name}', which extends this recipe: remove one of the two"
        )
    if len(chain) > MAX_CHAIN:
        raise file.error(top["extends"], f"extends '{name}': more than {MAX_CHAIN} recipes extend each other")
    return _load(other, chain)


def _stage(file: _File, node: yaml.Node, shared: dict[str, Any], below: Stage | None) -> Stage:
    table = file.table(node, "a stage")
    if "resolution" not in table:
        raise file.error(node, "a stage has no resolution")
    resolution = file.number(table["resolution"], "resolution", 8)
    if resolution & (resolution - 1):
        raise file.error(table["resolution"], f"resolution {resolution}: must be a power of two, at least 8")
    own = file.flags({k: v for k, v in table.items() if k != "resolution"})
    if below is not None:
        factor = resolution / below.resolution
        if factor not in UP_FACTORS:
            raise file.error(
                table["resolution"],
                f"from {below.resolution} to {resolution} pixels: a stage multiplies the resolution by 2, "
                "4, 8 or 16",
            )
        if own.get("up_factor") not in (None, int(factor)):
            raise file.error(
                table["up_factor"],
                f"up_factor {own['up_factor']}, but {below.resolution} to {resolution} pixels is {factor:g}",
            )
    return Stage(resolution, {**shared, **own})


class _File:
    """A YAML file as nodes, which know their lines. The errors of every method contain file and line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, node: yaml.Node, message: str) -> ValueError:
        """An exception that contains file and line."""
        return ValueError(f"{self.path}, line {node.start_mark.line + 1}: {message}")

    def root(self) -> yaml.Node:
        """The document with plain scalars, lists and tables. YAML tags are never constructed."""
        try:
            node = yaml.compose(bounded.read_text(self.path, MAX_BYTES), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as err:
            raise ValueError(f"{self.path} is not a YAML file: {' '.join(str(err).split())[:200]}") from None
        if node is None:
            raise ValueError(f"{self.path} is empty")
        return node

    def table(self, node: yaml.Node, what: str) -> dict[str, yaml.Node]:
        """The entries of a table by name. '-' in names becomes '_'."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a table of names and values")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value).replace("-", "_")
            if name in found:
                raise self.error(key, f"'{name}' occurs twice")
            found[name] = value
        return found

    def known(self, table: Mapping[str, yaml.Node], names: Any, what: str) -> None:
        """Raise ValueError for an entry whose name is not one of `names`."""
        for name, node in table.items():
            if name not in names:
                close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
                raise self.error(
                    node,
                    f"unknown {what} '{name}'"
                    + (f": did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"),
                )

    def value(self, node: yaml.Node, what: str) -> str | None:
        """A scalar, a list of scalars or a table of scalars, in the form of a command-line value."""
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)
        if isinstance(node, yaml.SequenceNode) and all(isinstance(n, yaml.ScalarNode) for n in node.value):
            return ",".join(n.value for n in node.value) or "none"
        if isinstance(node, yaml.MappingNode) and all(
            isinstance(n, yaml.ScalarNode) for pair in node.value for n in pair
        ):
            return ",".join(f"{k.value}={v.value}" for k, v in node.value)
        raise self.error(node, f"{what}: give a value, a list of values or a table of values")

    def text(self, table: Mapping[str, yaml.Node], name: str) -> str | None:
        """A text entry of a table; None if it is missing."""
        if name not in table:
            return None
        if not isinstance(table[name], yaml.ScalarNode):
            raise self.error(table[name], f"{name} must be a text")
        return self.value(table[name], name)

    def number(self, node: yaml.Node, name: str, low: int) -> int:
        """An integer of at least `low`."""
        text = self.value(node, name) or ""
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < low:
            raise self.error(
                node, f"{name} must be a whole number of at least {low}, not {text or 'nothing'}"
            )
        return int(text)

    def flags(self, table: Mapping[str, yaml.Node], refused: tuple[str, ...] = ()) -> dict[str, Any]:
        """Parse flags. Flags without a value (null) keep their defaults."""
        for name, node in table.items():
            if name in NOT_HERE:
                raise self.error(node, f"'{name}' cannot be set in a recipe: {NOT_HERE[name]}")
            if name in refused:
                raise self.error(node, f"'{name}' must be set for each stage")
        self.known(table, sorted(set(FLAGS) - set(NOT_HERE)), "flag of train.py")
        found = {}
        for name, node in table.items():
            text = self.value(node, name)
            if text is None:
                continue
            try:
                found[name] = FLAGS[name].parse(text)
            except ValueError as err:
                raise self.error(node, f"{name}: {err}") from None
        return found


@dataclass(frozen=True)
class Speed:
    """A measured training speed: one row of recipes/speed.yaml. None: not measured.

    For `sec_per_kimg`, `sec_per_tick` and `sec_per_snapshot` see `training.watch.estimate.Pace`. `sec_once`
    is the time before the first step and for the evaluation after the stage.
    """

    recipe: str
    resolution: int
    hardware: str
    processes: int
    batch: int
    batch_gpu: int
    sec_per_kimg: float
    commit: str
    command: str
    sec_per_tick: float | None = None
    sec_per_snapshot: float | None = None
    sec_once: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all parts were measured."""
        return None not in (self.sec_per_tick, self.sec_per_snapshot, self.sec_once)

    def seconds(self, run: RunConfig) -> float:
        """The duration of a stage on this hardware, as far as it was measured."""
        pace = Pace(self.sec_per_kimg, self.sec_per_tick or 0.0, self.sec_per_snapshot or 0.0)
        return pace.seconds(run) + (self.sec_once or 0.0)


def measured_speeds(path: Path | None = None) -> list[Speed]:
    """The table of measured speeds; empty if the file does not exist.

    Raises:
        ValueError: the file is damaged.
    """
    path = path or SHIPPED / SPEED_TABLE
    if not path.is_file():
        return []
    try:
        rows = yaml.safe_load(bounded.read_text(path, MAX_BYTES)) or []
        return [Speed(**row) for row in rows]
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as err:
        raise ValueError(
            f"{path}: not a table of measured speeds ({' '.join(str(err).split())[:200]})"
        ) from None
