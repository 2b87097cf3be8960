# SPDX-License-Identifier: Apache-2.0
"""Train StyleSAN-XL.

    # a stem at 16x16 on labelled images, on whatever device there is
    python train.py --outdir=training-runs --cfg=stylegan3-t --data=emoji16.zip --gpus=1 --batch=64
    --cond=True --syn_layers=7

    # the next stage: a superresolution head on that stem
    python train.py --outdir=training-runs --cfg=stylegan3-t --data=emoji32.zip --gpus=1 --batch=64
    --cond=True --superres \\
        --up_factor=2 --head_layers=4 --path_stem=training-runs/00000-stylegan3-t-emoji16-gpus1-batch64

    # all stages of a schedule in one command; --stages=64,128 for a part, --dry-run for the plan
    python train.py --outdir=training-runs --recipe=imagenet256 --data=imagenet256.zip --gpus=8
    python train.py --resume=training-runs/00000-imagenet256

    # fetch all weights that this needs, where there is a network, for machines that have none
    (--prefetch=DIR: into this folder) python train.py --prefetch --recipe=imagenet256

    # go on exactly where a run stopped
    python train.py --resume=training-runs/00000-stylegan3-t-emoji16-gpus1-batch64

    # several processes: --gpus=8 starts them; under torchrun they are there already
    torchrun --nproc-per-node=8 train.py --outdir=training-runs --cfg=stylegan3-t --data=imagenet16.zip
    --gpus=8 --batch=2048 --cond=True
"""

from __future__ import annotations

import functools
import glob
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch

import dnnlib
from dnnlib import outputs
from generation import measures
from metrics.detectors import Detector
from metrics.evaluate import Evaluator
from metrics.registry import parse_metric
from torch_utils import distributed, prefetch, timm_weights
from training import build, launch, run_folder
from training.config import FLAGS, TrainConfig, changes_of
from training.data.dataset import ImageDataset
from training.networks import stems
from training.options import Option
from training.progressive import launch as recipe_launch
from training.progressive import plan as recipe_plan
from training.run import dry_run
from training.run import plan as run_plan
from training.run_folder import description, has_checkpoint, load_run, run_folders, unfinished_run

RESTART_EXIT_CODE = 3


class OptionType(click.ParamType):
    """How click reads an option of the configuration."""

    def __init__(self, option: Option) -> None:
        self.option, self.name = option, option.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; an error is click's."""
        try:
            return self.option.parse(value) if isinstance(value, str) else value
        except ValueError as err:
            self.fail(str(err), param, ctx)


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add a click option for every flag of the configuration. `--a-b` and `--a_b` are the same flag."""
    for flag, option in reversed(FLAGS.items()):
        names = list(dict.fromkeys([f"--{flag.replace('_', '-')}", f"--{flag}"]))
        default = f"default: {option.text(option.default)}, from {option.source}"
        text = f"{option.about} [{'required for a new run' if option.required else default}]"
        if option.switch:
            command = click.option(*names, flag, is_flag=True, default=None, help=text)(command)
        else:
            command = click.option(*names, flag, type=OptionType(option), default=None, help=text)(command)
    return command


# Flags of StyleGAN's own trainer that a projected discriminator has no use for, and what to do about them.
ABSENT = {
    "gamma": "a projected discriminator has no R1 penalty: leave it out",
    "aug": "DiffAugment takes ADA's place and is on: leave it out, or see --augment",
    "target": "it belongs to ADA; DiffAugment takes its place and is on: leave it out",
    "p": "it belongs to ADA; DiffAugment takes its place and is on: leave it out",
    "mbstd-group": "a projected discriminator has no minibatch statistics: leave it out",
    "subset": "it is called --max-images",
}


class TrainCommand(click.Command):
    """Says of flags that StyleGAN has and this project has not why they are missing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            reason = ABSENT.get(err.option_name.lstrip("-").replace("_", "-"))
            if reason is None:
                raise
            raise click.ClickException(f"{err.option_name} does not exist here: {reason}") from None


@click.command(
    cls=TrainCommand,
    context_settings={"max_content_width": 140},
    help=str(__doc__).replace("\n\n", "\n\n\b\n"),
)
@click.option(
    "--outdir",
    metavar="DIR",
    help="where run folders are made; each run gets a new numbered one [required for a new run]",
)
@click.option(
    "--recipe", metavar="FILE|NAME", help="a progressive schedule: all its stages in order (recipes/)"
)
@click.option(
    "--stages", metavar="LIST", help="with a recipe: only the stages of these resolutions, such as 64,128"
)
@config_options
@click.option("--fp32", type=bool, default=False, help="float32 everywhere (--precision=fp32)")
@click.option(
    "--resume",
    metavar="RUN_DIR|PATH|URL",
    help="a run folder: go on exactly; a network pickle: start from its weights (= --init-from)",
)
@click.option(
    "--from-scratch",
    is_flag=True,
    help="with --resume: put away what the run has made, and train it anew from image 0",
)
@click.option("--freezed", type=int, default=0, help="accepted for compatibility; must be 0")
@click.option("--map-depth", "--map_depth", type=int, default=2, help="accepted for compatibility; must be 2")
@click.option("--stem", is_flag=True, help="accepted for compatibility: without --superres a stem is trained")
@click.option(
    "--prefetch",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[=DIR]",
    help="fetch every weights file that the other flags, the recipe or the run folder ask for, list them, "
    "and leave; DIR: instead of the caches",
)
@click.option("-n", "--dry-run", is_flag=True, help="print the whole plan and leave")
def main(**values: Any) -> None:
    """Parse, check everything that can be checked, choose the run folder, start the processes."""
    values = outputs.expand_home(values)
    dnnlib.util.plain_warnings()
    if values["fp32"]:
        values["precision"] = "fp32"
    try:
        for flag in ("resume", "init_from", "path_stem"):
            values[flag] = values[flag] and dnnlib.util.plain_path(values[flag])
        check_outputs(values)
        if values["prefetch"] is not None:
            prefetch_all(values)
            return
        outcome = run_main(values)
    except timm_weights.MissingWeights as err:
        raise click.ClickException(
            f"{err}; or, where there is a network, run: {prefetch_command()}"
        ) from None
    except (ValueError, OSError) as err:
        raise click.ClickException(str(err)) from None
    distributed.shutdown()
    if outcome == run_folder.RESTART and not distributed.restarted_by_agent():
        sys.exit(RESTART_EXIT_CODE)
    if outcome == run_folder.INTERRUPTED:
        sys.exit(130)


def check_outputs(values: dict[str, Any]) -> None:
    """Raises ValueError for a place that nothing can be written to, or that a data set would swallow."""
    data: list[str | None] = [
        *glob.glob("*".join(glob.escape(part) for part in (values["data"] or "").split("{res}")))
    ]
    for flag in ("outdir", "prefetch"):
        if values[flag] is not None and (flag, values[flag]) != ("prefetch", ""):
            for path in data or [None]:
                outputs.check_output(f"--{flag}", values[flag], data={"--data": path}, folder=True)
    if values["desc"] and {"/", "\\", "\0"} & set(values["desc"]):
        raise ValueError(f"--desc={values['desc']} becomes part of a folder's name: leave out / and \\")


def folder_of_recipe(values: dict[str, Any]) -> Path | None:
    """The folder of --resume, if it is a recipe's."""
    folder = Path(values["resume"] or "")
    return folder if values["resume"] and run_folder.is_recipe_folder(folder) else None


def run_main(values: dict[str, Any]) -> str | None:
    """`main` with library errors still as exceptions. Returns the outcome; None after --dry-run."""
    for flag, value, why in (
        ("freezed", 0, "has no effect on a projected discriminator"),
        ("map_depth", 2, "is not possible: the method's mapping network has 2 layers"),
    ):
        if values[flag] != value:
            raise ValueError(f"--{flag.replace('_', '-')}={values[flag]} {why}: leave it out")
    resume = values["resume"]
    resuming = resume is not None and os.path.isdir(resume)
    if resume is not None and not resuming:
        if values["init_from"]:
            raise ValueError("--resume with a network pickle and --init-from are the same thing: give one")
        values["init_from"] = stems.network_file("--resume", resume)
    elif values["init_from"]:
        values["init_from"] = stems.network_path("--init-from", values["init_from"])
    if resuming and values["init_from"]:
        raise ValueError(f"--resume={resume} goes on with that run's weights: leave out --init-from")
    if values["from_scratch"]:
        check_from_scratch(values, resuming)
    if values["recipe"] or folder_of_recipe(values):
        if resume is not None and not resuming:
            raise ValueError(
                f"--resume={resume}: to go on with a recipe, name its folder; to start from a network, use "
                "--init-from"
            )
        return run_recipe(values)
    if values["stages"]:
        raise ValueError(f"--stages={values['stages']} has no effect without --recipe")
    return run_once(values, resume if resuming else None)


def check_from_scratch(values: dict[str, Any], resuming: bool) -> None:
    """Raises ValueError where --from-scratch says nothing, or would throw away more than is meant."""
    if not resuming:
        raise ValueError("--from-scratch is for --resume=RUN_DIR: a new run starts at image 0 anyway")
    if folder_of_recipe(values) and not values["stages"]:
        raise ValueError(
            "--from-scratch with a recipe's folder needs --stages: name the stages to train anew"
        )
    if values["restart_every"] is not None:
        raise ValueError(
            "--from-scratch with --restart_every would start anew at every restart: give it once, without "
            "the other"
        )


def build_config(values: dict[str, Any], base: TrainConfig) -> tuple[TrainConfig, set[str]]:
    """Apply the given flags to `base`. Returns the config and the names of the options that were given.

    Raises:
        ValueError: values that do not go together, in one line.
    """
    changes = changes_of(values)
    config = base.override(changes)
    config.validate()
    for name in config.run.metrics:
        parse_metric(name)
    return config, set(changes)


def run_once(values: dict[str, Any], resume: str | None) -> str | None:
    """A run without a recipe. resume: the run folder that goes on. Returns the outcome; None after
    --dry-run.
    """
    config, given = build_config(values, load_run(resume) if resume else TrainConfig())
    launch.check_processes(config)
    if resume is None:
        required = ["outdir", *(flag for flag, option in FLAGS.items() if option.required)]
        missing = [f"--{flag}" for flag in required if values[flag] is None]
        if missing:
            raise ValueError(f"missing {', '.join(missing)} (or --resume=RUN_DIR to go on)")
    dataset = build.make_dataset(config.data, config.run.seed, prepare=not values["dry_run"])
    desc, outdir = description(config, dataset.name), values["outdir"]
    existing = Path(resume) if resume else None
    if existing is None and values["restart_every"] is not None:
        existing = unfinished_run(outdir, desc, config)
    goes_on = None if values["from_scratch"] else existing
    print_labels([dataset])
    if values["dry_run"]:
        target = existing or Path(outdir) / f"{max(run_folders(outdir), default=-1) + 1:05d}-{desc}"
        click.echo("\n".join(dry_run.lines(config, given, dataset, goes_on)))
        evaluator = measures.make_evaluator(config, dataset)
        evaluator.check_data()
        missing = print_missing(measures.missing_files([config]))
        print_once([] if missing else measures.work_before(config, dataset, goes_on, evaluator))
        click.echo(f"Run folder: {target}")
        return None
    begun = goes_on is not None and has_checkpoint(goes_on)
    run_plan.check(config, dataset, lineage=stems.read(goes_on) if goes_on and begun else None, goes_on=begun)
    evaluator = measures.make_evaluator(config, dataset)
    evaluator.check()
    warn_of_changes(evaluator, goes_on)
    return launch.start(
        config,
        existing,
        outdir,
        desc,
        measures.make_evaluate,
        again=resume is not None,
        from_scratch=values["from_scratch"],
    )


def run_recipe(values: dict[str, Any]) -> str | None:
    """A run with --recipe, or with --resume and the folder of one. Returns the outcome; None after
    --dry-run.
    """
    started = time.monotonic()
    folder = Path(values["resume"]) if values["resume"] else None
    schedule = recipe_launch.schedule_of(values, folder)
    desc = f"{schedule.recipe.name}-{values['desc']}" if values["desc"] else schedule.recipe.name
    if folder is None and values["restart_every"] is not None and values["outdir"]:
        folder = recipe_launch.unfinished_folder(values["outdir"], desc, schedule)
    planned = recipe_plan.plan(schedule, folder)
    for p in planned:
        launch.check_processes(p.config)
    print_labels(p.dataset for p in planned)
    if values["dry_run"]:
        click.echo("\n".join(recipe_plan.lines(schedule, planned)))
        loaded: dict[str, Detector] = {}
        evaluators = {
            p: measures.make_evaluator(p.config, p.dataset, loaded=loaded)
            for p in planned
            if p.dataset is not None
        }
        for evaluator in evaluators.values():
            evaluator.check_data()
        missing = print_missing(
            measures.missing_files([p.config for p in planned], schedule.recipe.final_metric)
        )
        for p, evaluator in evaluators.items() if not missing else ():
            assert p.dataset is not None
            run_dir = None if folder is None or values["from_scratch"] else folder / p.stage.name
            work = measures.work_before(p.config, p.dataset, run_dir, evaluator)
            print_once(f"stage {p.stage.resolution}: {line}" for line in work)
        return None
    recipe_launch.check(planned)
    for p in planned:
        assert p.dataset is not None
        evaluator = measures.make_evaluator(p.config, p.dataset)
        evaluator.check()
        warn_of_changes(evaluator, folder and folder / p.stage.name)
    if schedule.recipe.final_metric is not None:
        last = schedule.config(schedule.recipe.stages[-1])
        measures.final_evaluator(
            last, schedule.recipe.final_metric, torch.device("cpu"), prepare=False
        ).check()
    lent = recipe_launch.Measures(measures.make_evaluate, measures.final_evaluator)
    return recipe_launch.start(
        schedule, folder, values, desc, lent, started + planned[0].config.run.restart_every
    )


def print_labels(datasets: Iterable[ImageDataset | None]) -> None:
    """What says which image has which class, and what is left out: a line for every data set."""
    lines = dict.fromkeys(
        f"Labels: {dataset.path}: {dataset.labels_summary}" for dataset in datasets if dataset is not None
    )
    for line in lines if distributed.is_main() else ():
        click.echo(line)


def print_missing(lines: Iterable[str]) -> list[str]:
    """The weights that a plan lacks, each once, and how to get them; returns the lines."""
    lines = list(dict.fromkeys(lines))
    for line in lines:
        click.echo(f"Missing: {line}")
    if lines:
        click.echo(f"Fetch what can be fetched with: {prefetch_command()}")
    return lines


def warn_of_changes(evaluator: Evaluator, run_dir: Path | None) -> None:
    """Say it where a run that goes on is measured otherwise than before: its scores are then of two kinds."""
    for change in evaluator.changes_since(run_dir) if run_dir is not None else ():
        click.echo(
            f"Warning: {run_dir}: from now on measured otherwise than before, so that scores do not "
            f"compare: {change}",
            err=True,
        )


def print_once(lines: Iterable[str]) -> None:
    """What a run computes and keeps, beside its steps."""
    for line in lines:
        click.echo(f"To compute: {line}")


def prefetch_command() -> str:
    """The command that fetches what this one needs."""
    return shlex.join(
        ["python", "train.py", "--prefetch", *(a for a in sys.argv[1:] if a not in ("-n", "--dry-run"))]
    )


def configs_asked_for(values: dict[str, Any]) -> tuple[list[TrainConfig], str | None]:
    """(the configuration of the run, or of every selected stage of the recipe; the metric that is measured
    after each stage). Reads no data.

    Raises:
        ValueError: one line.
    """
    folder = folder_of_recipe(values)
    if values["recipe"] or folder:
        schedule = recipe_launch.schedule_of({**values, "dry_run": True}, folder)
        return [schedule.config(stage) for stage in schedule.stages], schedule.recipe.final_metric
    resuming = values["resume"] is not None and os.path.isdir(values["resume"])
    return [build_config(values, load_run(values["resume"]) if resuming else TrainConfig())[0]], None


def prefetch_all(values: dict[str, Any]) -> None:
    """--prefetch: frozen networks, metrics' detectors and networks named by URL, into the caches or a folder
    that takes their place.

    Raises:
        ValueError: one line for all that could not be had.
    """
    hub = None
    if values["prefetch"]:
        folder = os.path.abspath(values["prefetch"])
        os.environ["DNNLIB_CACHE_DIR"], hub = folder, os.path.join(folder, "hub")
    configs, final = configs_asked_for(values)
    say: Callable[[str], None] = functools.partial(print, flush=True)
    items = measures.prefetch_items(configs, final, values["resume"], hub, say)
    failures = prefetch.fetch_all(items, say)
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(items)} could not be fetched: {failures[0]}"
            + (" (and more above)" if failures[1:] else "")
        )
    if hub:
        say(
            f"Jobs find them with: export DNNLIB_CACHE_DIR={shlex.quote(folder)} "
            f"HF_HUB_CACHE={shlex.quote(hub)} HF_HUB_OFFLINE=1"
        )
    else:
        say(
            f"Jobs find them in the same folders: {dnnlib.util.make_cache_dir_path()} and "
            f"{timm_weights.hub_cache()}"
        )


if __name__ == "__main__":
    main()
