# SPDX-License-Identifier: Apache-2.0
"""The plan of a schedule: the stages' networks without weights, checks, and the text of --dry-run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from torch_utils import checkpoint
from training import build, run_folder
from training.config import AUTO, OPTIONS, TrainConfig
from training.data import downscaling
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator
from training.networks import stems
from training.progressive import recipe, stages
from training.progressive.recipe import Stage
from training.progressive.stages import Schedule
from training.run import auto_batch, restore, roofline
from training.run import plan as run_plan
from training.run.dry_run import data_line
from training.run_folder import best_network, checkpoint_folder
from training.watch.estimate import ticks_and_snapshots


@dataclass(frozen=True, eq=False)
class Planned:
    """A stage with its configuration, data set (images not read), and networks on the meta device."""

    stage: Stage
    config: TrainConfig
    dataset: ImageDataset | None  # None: no --data
    generator: Generator
    discriminator: ProjectedDiscriminator
    stem: Generator | None

    @property
    def disk(self) -> run_plan.Disk:
        """The maximum disk space of the stage."""
        return run_plan.estimate_disk(self.config, self.generator, self.discriminator, self.dataset)


def plan_generators(schedule: Schedule, c_dim: int, channels: int | None = None) -> list[Generator]:
    """Build the generators of all stages on the meta device, each on the previous one. Reads no file.

    Args:
        schedule: the recipe and its overrides.
        c_dim: classes.
        channels: channels of the images; None = those of the options, or else 3.

    Raises:
        ValueError: a stage cannot be built. The message names it.
    """
    generators: list[Generator] = []
    for stage in schedule.recipe.stages:
        config = schedule.config(stage)
        with torch.device("meta"):
            try:
                generators.append(
                    build.fresh_generator(
                        config.generator,
                        stage.resolution,
                        c_dim,
                        config.data.embed_dim,
                        generators[-1] if generators else None,
                        channels or config.data.channels or 3,
                    )
                )
            except ValueError as err:
                raise ValueError(f"stage {stage.resolution}: {err}") from None
    return generators


def check_stems(schedule: Schedule, folder: Path | None, c_dim: int) -> None:
    """Check that each selected stage has a stem: from a selected stage, from the folder, or from --path_stem.

    Raises:
        ValueError: a stem is missing or does not match.
    """
    for stage in schedule.stages:
        if folder is not None and stems.read(folder / stage.name) is not None:
            continue  # already started with its stem
        below = schedule.below(stage)
        given = schedule.flags(stage).get("path_stem")
        if below is None or below in schedule.stages:
            continue
        if given is None and (folder is None or best_network(folder / below.name) is None):
            where = f"in {folder}" if folder else "yet"
            raise ValueError(
                f"--stages: stage {stage.resolution} needs the network of stage {below.resolution}, which "
                f"is not {where}: pass --path_stem"
            )
        if given is not None:
            stem = stems.read_stem(given).generator
            if (stem.img_resolution, stem.c_dim) != (below.resolution, c_dim):
                raise ValueError(
                    f"--path_stem={given} makes {stem.img_resolution}x{stem.img_resolution} images of "
                    f"{stem.c_dim or 'no'} classes, but stage {stage.resolution} needs a stem of "
                    f"{below.resolution}x{below.resolution} pixels and {c_dim or 'no'} classes"
                )


def check_data(planned: Sequence[Planned]) -> None:
    """Raise ValueError if the data sets of the stages do not match each other."""
    first = planned[0].dataset
    assert first is not None
    for p in planned:
        assert p.dataset is not None
        if p.dataset.resolution != p.stage.resolution:
            raise ValueError(
                f"--data={p.dataset.path} has {p.dataset.resolution}x{p.dataset.resolution} images, but "
                "stage "
                f"{p.stage.resolution} needs {p.stage.resolution}x{p.stage.resolution}"
            )
        if p.dataset.label_dim != first.label_dim or p.dataset.class_names != first.class_names:
            raise ValueError(
                f"--data={p.dataset.path} has {p.dataset.label_dim} classes, but --data={first.path} has "
                f"{first.label_dim}: all stages need the same classes"
            )


def plan(schedule: Schedule, folder: Path | None) -> list[Planned]:
    """Plan the selected stages, and check everything that needs neither weights nor images.

    Without data, the recipe's number of classes is used.

    Raises:
        ValueError: one line about the first problem.
        OSError: a file cannot be read.
    """
    configs = {s.resolution: schedule.config(s, folder) for s in schedule.stages}
    datasets = {r: _stage_data(r, c) for r, c in configs.items() if schedule.data}
    first = datasets[schedule.stages[0].resolution] if datasets else None
    c_dim = first.label_dim if first else schedule.recipe.classes or 0
    built = plan_generators(schedule, c_dim, first.num_channels if first else None)
    generators = {s.resolution: G for s, G in zip(schedule.recipe.stages, built, strict=True)}
    planned = []
    for stage in schedule.stages:
        below = schedule.below(stage)
        stem = generators[below.resolution] if below else None
        r = stage.resolution
        D = run_plan.plan_discriminator(configs[r].discriminator, c_dim, r, generators[r].img_channels)
        planned.append(Planned(stage, configs[r], datasets.get(r), generators[r], D, stem))
    if datasets:
        check_data(planned)
    check_stems(schedule, folder, c_dim)
    return planned


def check_resumed(schedule: Schedule, planned: Sequence[Planned], folder: Path, explicit: bool) -> None:
    """Check that stages that have begun can resume with their present options and data.

    Args:
        schedule: the schedule.
        planned: its selected stages.
        folder: folder of the schedule.
        explicit: as for `stages.run`.

    Raises:
        ValueError, OSError: as `restore.check`; the message names the stage.
    """
    for p in planned:
        run_dir = folder / p.stage.name
        if p.dataset is None or (not explicit and stages.is_stage_done(schedule, p.stage, folder)):
            continue
        if not explicit and stages.is_trained(run_dir) and not checkpoint.exists(checkpoint_folder(run_dir)):
            continue  # what is left to do needs its network alone
        try:
            saved = restore.checkpoint_here(p.config, run_dir)
            if saved is not None:
                restore.check(p.config, p.dataset, run_dir, saved)
        except ValueError as err:
            raise ValueError(f"stage {p.stage.resolution}: {err}") from None


def has_begun(stage: Stage, folder: Path | None) -> bool:
    """Whether a stage has a checkpoint or a result in `folder`: what it started from is no longer needed."""
    if folder is None:
        return False
    run_dir = folder / stage.name
    return run_folder.newest_checkpoint_nimg(run_dir) is not None or stages.is_trained(run_dir)


def check_options(planned: Sequence[Planned], folder: Path | None) -> None:
    """Check what --dry-run can check of all stages that have data.

    Args:
        planned: the selected stages.
        folder: folder of the schedule if its stages resume.

    Raises:
        ValueError, OSError: as `run_plan.check_options` and `run_plan.check_guidance`; names the stage.
    """
    for p in planned:
        if p.dataset is None:
            continue
        try:
            run_plan.check_options(p.config, p.dataset, has_begun(p.stage, folder), download=False)
            run_plan.check_guidance(p.config, p.dataset)
        except ValueError as err:
            raise ValueError(f"stage {p.stage.resolution}: {err}") from None


def _stage_data(resolution: int, config: TrainConfig) -> ImageDataset:
    try:
        return build.make_dataset(config.data, config.run.seed, prepare=False)
    except downscaling.TooSmall as err:
        raise ValueError(
            f"stage {resolution}: the images of --data={config.data.path} are "
            f"{err.resolution}x{err.resolution}, and images are not enlarged: choose smaller stages with "
            "--stages, or prepare larger images"
        ) from None


def short_plan(G: Generator) -> str:
    """The layers in one line: which are kept frozen and which are trained."""
    names = G.synthesis.layer_names
    kept, head = names[: G.num_frozen_layers], names[G.num_frozen_layers :]
    before = f"{len(kept)} frozen ({kept[0]} ... {kept[-1]}), then " if kept else ""
    return f"{before}{', '.join(head)}"


def stage_lines(p: Planned, speeds: Sequence[str]) -> list[str]:
    """The lines of --dry-run about a stage. `speeds`: lines about measured times."""
    G, run, gen = p.generator, p.config.run, p.config.generator
    D = p.discriminator
    heads, frozen = run_plan.parameter_counts(D)
    total = sum(x.numel() for x in G.parameters())
    trained = sum(x.numel() for x in G.parameters() if x.requires_grad)
    kind = (
        f"{gen.head_layers}-layer head x{gen.up_factor}"
        if gen.superres
        else f"stem of {gen.syn_layers} layers"
    )
    ends = f"{run.kimg:g} kimg" + (
        f", or {run.patience} evaluations without improvement" if run.patience else ""
    )
    size, tried = p.config, []
    if run.batch_gpu == AUTO:
        choice = auto_batch.planned(p.config, G, heads, frozen)
        size, tried = (
            auto_batch.settled(p.config, choice.batch_gpu),
            [f"  micro-batch  {choice.line(p.config)}"],
        )
    memory = run_plan.estimate_memory_gb(size, G, heads, frozen)
    return [
        f"Stage {p.stage.resolution}x{p.stage.resolution}: {gen.cfg}, {kind}",
        f"  layers       {short_plan(G)}",
        f"  parameters   generator {total:,} ({trained:,} trained), discriminator heads {heads:,}, "
        f"backbones {frozen:,} (frozen)",
        f"  memory       about {memory:.1f} GiB per process at {size.batch_gpu} images per micro-batch "
        "(estimate)",
        *tried,
        f"  length       {ends}; batch {run.batch} on {run.gpus} process(es): "
        f"{round(run.kimg * 1000 / run.batch):,} steps",
        f"  snapshots    {ticks_and_snapshots(run)[1]}, metrics: {', '.join(run.metrics) or 'none'}",
        f"  disk         {run_plan.disk_text(p.disk)}",
        *(f"  time         {line}" for line in speeds or [NOT_MEASURED]),
        *(f"  on a GPU     {line}" for line in roofline.lines(size, G)),
    ]


NOT_MEASURED = "not measured for this stage (recipes/speed.yaml)"


def speeds_of(schedule: Schedule, p: Planned, table: Sequence[recipe.Speed]) -> list[recipe.Speed]:
    """The measurements of this stage; none if an override changes its networks or their precision."""
    plain, own = replace(schedule, overrides=()).config(p.stage), p.config
    for name in ("generator.cbase", "generator.cmax", "run.precision"):
        if OPTIONS[name].of(plain) != OPTIONS[name].of(own):
            return []
    if plain.discriminator != own.discriminator:
        return []
    return [
        row for row in table if (row.recipe, row.resolution) == (schedule.recipe.name, p.stage.resolution)
    ]


def time_lines(schedule: Schedule, p: Planned, table: Sequence[recipe.Speed]) -> list[str]:
    """Lines about the duration of a stage, from measurements of this stage only."""
    speeds = speeds_of(schedule, p, table)
    if not speeds and any(
        (row.recipe, row.resolution) == (schedule.recipe.name, p.stage.resolution) for row in table
    ):
        return ["not measured with these overrides"]
    lines = []
    for row in speeds:
        whole = "" if row.is_whole else ", training only, without ticks and snapshots"
        measured = (
            f"measured on {row.hardware} x {row.processes} at batch {row.batch} (commit {row.commit}{whole})"
        )
        lines.append(
            f"{device_time(row.seconds(p.config.run) * row.processes)} at {row.sec_per_kimg:g} s/kimg, "
            f"{measured}"
        )
    return lines


def device_time(seconds: float) -> str:
    """Format as device-days, -hours or -minutes."""
    hours = seconds / 3600
    if hours >= 24:
        return f"{hours / 24:.1f} device-days"
    return f"{hours:.1f} device-hours" if hours >= 1 else f"{hours * 60:.1f} device-minutes"


def total_lines(schedule: Schedule, planned: Sequence[Planned], table: Sequence[recipe.Speed]) -> list[str]:
    """Images, time and disk space of all selected stages together.

    Time is listed by hardware, with the stages that were not measured on it.
    """
    images = sum(round(p.config.run.kimg * 1000) for p in planned)
    patient = any(p.config.run.patience for p in planned)
    lines = [f"{'at most ' if patient else ''}{images:,} images in {len(planned)} stage(s)"]
    rows = {p.stage.resolution: speeds_of(schedule, p, table) for p in planned}
    for hardware in dict.fromkeys((row.hardware, row.processes) for found in rows.values() for row in found):
        seconds, unmeasured, partly = 0.0, [], False
        for p in planned:
            row = next((r for r in rows[p.stage.resolution] if (r.hardware, r.processes) == hardware), None)
            if row is None:
                unmeasured.append(str(p.stage.resolution))
            else:
                seconds += row.seconds(p.config.run) * row.processes
                partly |= not row.is_whole
        without = f", without stages {', '.join(unmeasured)}, which were not measured" if unmeasured else ""
        alone = ", training only" if partly else ""
        lines.append(f"{device_time(seconds)} on {hardware[0]} x {hardware[1]}{without}{alone}")
    if not any(rows.values()):
        lines.append(
            "time: not measured for any of these stages (recipes/speed.yaml); the status lines of a run show "
            "the remaining time"
        )
    run, copy = (sum(getattr(p.disk, part) for p in planned) for part in ("run", "copy"))
    lines.append(f"disk: {run_plan.disk_text(run_plan.Disk(run, copy))}")
    return [f"{'Total' if i == 0 else '':8s}{line}" for i, line in enumerate(lines)]


def lines(schedule: Schedule, planned: Sequence[Planned]) -> list[str]:
    """The text of --dry-run about a schedule, except for the missing files."""
    source = schedule.recipe
    text = [f"Recipe {source.name}\n{textwrap.indent(source.about, '  ')}\n"]
    text += [
        data_line(f"Data {p.stage.resolution}", p.config, p.dataset) for p in planned if p.dataset is not None
    ]
    if planned[0].dataset is None:
        text.append(f"No --data: the plan assumes {source.classes or 'no'} classes")
    table = recipe.measured_speeds()
    for p in planned:
        text.append("\n" + "\n".join(stage_lines(p, time_lines(schedule, p, table))))
    text.append("\n" + "\n".join(total_lines(schedule, planned, table)))
    if schedule.overrides:
        text.append("\nOverrides: " + "; ".join(stages.describe_override(o) for o in schedule.overrides))
    if source.final_metric:
        text.append(
            f"After each stage: {source.final_metric} of its best network, with images resized to "
            f"{source.stages[-1].resolution} pixels"
        )
    return text
