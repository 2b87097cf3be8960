# SPDX-License-Identifier: Apache-2.0
"""What train.py does once its command line is parsed: configurations, plans, checks, and the start of runs.

train.py itself imports only the options, so that --help does not wait for torch.
"""

from __future__ import annotations

import functools
import glob
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

import dnnlib
from dnnlib import outputs
from generation import measures
from metrics.detector import Detector
from metrics.evaluate import Evaluator
from metrics.registry import parse_metric
from torch_utils import distributed, prefetch, timm_weights
from training import build, launch, run_folder
from training.config import FLAGS, TrainConfig, changes_of
from training.data.dataset import ImageDataset
from training.networks import stems
from training.progressive import launch as recipe_launch
from training.progressive import plan as recipe_plan
from training.progressive.stages import Schedule
from training.run import dry_run, restore, slurm
from training.run import plan as run_plan
from training.run_folder import description, load_run, run_folders, unfinished_run

RESTART_EXIT_CODE = 3


def run(values: dict[str, Any]) -> None:
    """Execute the command line, and exit with its status.

    Args:
        values: The flags of the command line by name.

    Raises:
        click.ClickException: One line about what is wrong.
    """
    try:
        for flag in ("resume", "init_from", "path_stem"):
            values[flag] = values[flag] and dnnlib.util.plain_path(values[flag])
        check_outputs(values)
        if values["prefetch"] is not None:
            prefetch_all(values)
            return
        if values["slurm"] is not None and not values["dry_run"]:
            print(submit_job(values, click.get_current_context().meta["arguments"]))
            return
        outcome = run_main(values)
    except timm_weights.MissingWeights as err:
        raise click.ClickException(
            f"{err}; or, on a machine with internet access, run: {prefetch_command()}"
        ) from None
    except (ValueError, OSError) as err:
        raise click.ClickException(str(err)) from None
    distributed.shutdown()
    if outcome == run_folder.RESTART and not distributed.restarted_by_agent():
        sys.exit(RESTART_EXIT_CODE)
    if outcome == run_folder.INTERRUPTED:
        sys.exit(130)


def submit_job(values: dict[str, Any], arguments: list[str]) -> str:
    """Submit the command line as a Slurm job, but for --slurm itself.

    Raises:
        ValueError: One line.
    """
    for flag in ("outdir", "gpus"):
        if values[flag] is None:
            raise ValueError(f"--slurm needs --{flag}; a requeued job resumes its run by itself")
    rest = [a for i, a in enumerate(arguments) if "--slurm" not in (a.partition("=")[0], arguments[i - 1])]
    return slurm.submit(values["slurm"], rest, values["outdir"], values["gpus"])


def check_outputs(values: dict[str, Any]) -> None:
    """Check the output folders.

    Raises:
        ValueError: A folder cannot be written to, lies inside a data set, or has no effect, or --desc
            contains a slash.
    """
    outdir, resume = values["outdir"], values["resume"]
    own = os.path.dirname(os.path.realpath(resume)) if resume and os.path.isdir(resume) else None
    if outdir and own and os.path.realpath(outdir) != own:
        raise ValueError(
            f"--outdir={outdir} has no effect: --resume={resume} goes on in that folder; remove --outdir, or "
            f"start a new run from its network with --init-from={resume}"
        )
    data: list[str | None] = [
        *glob.glob("*".join(glob.escape(part) for part in (values["data"] or "").split("{res}")))
    ]
    for flag in ("outdir", "prefetch"):
        if values[flag] is not None and (flag, values[flag]) != ("prefetch", ""):
            for path in data or [None]:
                outputs.check_output(f"--{flag}", values[flag], data={"--data": path}, folder=True)
    if values["desc"] and {"/", "\\", "\0"} & set(values["desc"]):
        raise ValueError(f"--desc={values['desc']} becomes part of a folder name: remove / and \\")


def folder_of_recipe(values: dict[str, Any]) -> Path | None:
    """Return the folder of --resume if it belongs to a recipe, else None."""
    folder = Path(values["resume"] or "")
    return folder if values["resume"] and run_folder.is_recipe_folder(folder) else None


def run_main(values: dict[str, Any]) -> str | None:
    """Run the command, with library errors still as exceptions.

    Returns:
        The outcome of the run; None after --dry-run.

    Raises:
        ValueError, OSError: One line about what is wrong.
    """
    check_compatibility_flags(values)
    resume = values["resume"]
    resuming = resume is not None and os.path.isdir(resume)
    resolve_start(values, resuming)
    if values["from_scratch"]:
        check_from_scratch(values, resuming)
    if values["recipe"] or folder_of_recipe(values):
        if resume is not None and not resuming:
            raise ValueError(
                f"--resume={resume}: to resume a recipe, give its folder; to start from a network, use "
                "--init-from"
            )
        return run_recipe(values)
    if values["stages"]:
        raise ValueError(f"--stages={values['stages']} has no effect without --recipe")
    return run_once(values, resume if resuming else None)


def check_compatibility_flags(values: dict[str, Any]) -> None:
    """Check the flags that are accepted with one value only.

    Raises:
        ValueError: Another value.
    """
    for flag, value, why in (
        ("freezed", 0, "has no effect on a projected discriminator"),
        ("map_depth", 2, "is not supported: the mapping network has 2 layers"),
    ):
        if values[flag] != value:
            raise ValueError(f"--{flag.replace('_', '-')}={values[flag]} {why}; remove the flag")


def resolve_start(values: dict[str, Any], resuming: bool) -> None:
    """Set values["init_from"] to the network file that --resume or --init-from names.

    Raises:
        ValueError: The file does not exist or is a run's checkpoint or record, or both flags name a start.
    """
    resume = values["resume"]
    if resume is not None and not resuming:
        if values["init_from"]:
            raise ValueError("--resume with a network file and --init-from do the same: give one of them")
        check_is_network(resume)
        values["init_from"] = stems.network_file("--resume", resume)
    elif values["init_from"]:
        values["init_from"] = stems.network_path("--init-from", values["init_from"])
    if resuming and values["init_from"]:
        raise ValueError(f"--resume={resume} uses the weights of that run: remove --init-from")


def check_is_network(resume: str) -> None:
    """Check that --resume does not name a checkpoint or a record of a run in place of its folder.

    Raises:
        ValueError: It does.
    """
    path = Path(resume)
    is_checkpoint = path.parent.name == run_folder.CHECKPOINT_FOLDER
    folder = path.parent.parent if is_checkpoint else path.parent
    is_run = run_folder.is_run_folder(folder) or run_folder.is_recipe_folder(folder)
    if is_run and path.is_file() and (is_checkpoint or path.suffix == ".json"):
        raise ValueError(f"--resume={resume} is no network: to resume its run, use --resume={folder}")


def check_from_scratch(values: dict[str, Any], resuming: bool) -> None:
    """Check --from-scratch.

    Raises:
        ValueError: It has no effect, or would discard more than the user may intend.
    """
    if not resuming:
        raise ValueError("--from-scratch needs --resume=RUN_DIR; a new run starts at image 0 in any case")
    if folder_of_recipe(values) and not values["stages"]:
        raise ValueError(
            "--from-scratch with the folder of a recipe needs --stages: name the stages to restart"
        )
    if values["restart_every"] is not None:
        raise ValueError(
            "--from-scratch with --restart_every would discard the run at every restart: use "
            "--from-scratch once, without --restart_every"
        )


def build_config(values: dict[str, Any], base: TrainConfig) -> tuple[TrainConfig, set[str]]:
    """Apply the flags that were given to `base`.

    Args:
        values: The flags of the command line by name; None = not given.
        base: The configuration to start from.

    Returns:
        The configuration, and the names of the options that were given.

    Raises:
        ValueError: Values are out of range or conflict.
    """
    changes = changes_of(values)
    config = base.override(changes)
    config.validate()
    for name in config.run.metrics:
        parse_metric(name)
    return config, set(changes)


def run_once(values: dict[str, Any], resume: str | None) -> str | None:
    """Execute a run without a recipe.

    Args:
        values: The flags of the command line by name.
        resume: The run folder to resume, or None.

    Returns:
        The outcome of the run; None after --dry-run.
    """
    config, given = build_config(values, load_run(resume) if resume else TrainConfig())
    launch.check_processes(config)
    if resume is None:
        required = ["outdir", *(flag for flag, option in FLAGS.items() if option.required)]
        missing = [f"--{flag}" for flag in required if values[flag] is None]
        if missing:
            raise ValueError(f"missing {', '.join(missing)} (or --resume=RUN_DIR to resume a run)")
    dataset = build.make_dataset(config.data, config.run.seed, prepare=not values["dry_run"])
    desc, outdir = description(config, dataset.name), values["outdir"]
    existing = Path(resume) if resume else None
    if existing is None and values["restart_every"] is not None:
        existing = unfinished_run(outdir, desc, config)
    resumed = None if values["from_scratch"] else existing
    saved = restore.checkpoint_here(config, resumed) if resumed else None
    if resumed and saved:
        restore.check(config, dataset, resumed, saved)
    if values["dry_run"]:
        run_plan.check_options(config, dataset, resuming=saved is not None, download=False)
        run_plan.check_guidance(config, dataset)
    print_labels([dataset])
    if values["dry_run"]:
        target = existing or Path(outdir) / f"{max(run_folders(outdir), default=-1) + 1:05d}-{desc}"
        click.echo("\n".join(dry_run.lines(config, given, dataset, resumed)))
        evaluator = measures.make_evaluator(config, dataset)
        evaluator.check_data()
        missing = print_missing(measures.missing_files([config]))
        print_preparation([] if missing else measures.work_before(config, dataset, resumed, evaluator))
        click.echo(f"Run folder: {target}")
        return None
    lineage = stems.read(resumed) if resumed and saved else None
    run_plan.check(config, dataset, lineage=lineage, resuming=saved is not None)
    evaluator = measures.make_evaluator(config, dataset)
    evaluator.check()
    warn_of_changes(evaluator, resumed)
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
    """Execute a run with --recipe, or with --resume and the folder of a recipe.

    Args:
        values: The flags of the command line by name.

    Returns:
        The outcome of the run; None after --dry-run.
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
    if folder is not None and not values["from_scratch"]:
        recipe_plan.check_resumed(schedule, planned, folder, bool(values["stages"] and values["resume"]))
        note = recipe_launch.note_of_done(values, schedule, folder) if values["resume"] else ""
        if note and distributed.is_main():
            click.echo(note, err=True)
    resumed = None if values["from_scratch"] else folder
    if values["dry_run"]:
        recipe_plan.check_options(planned, resumed)
    print_labels(p.dataset for p in planned)
    if values["dry_run"]:
        print_recipe_plan(schedule, planned, resumed)
        return None
    recipe_launch.check(planned, resumed)
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
    factories = recipe_launch.Measures(measures.make_evaluate, measures.final_evaluator)
    return recipe_launch.start(
        schedule, folder, values, desc, factories, started + planned[0].config.run.restart_every
    )


def print_recipe_plan(
    schedule: Schedule, planned: Sequence[recipe_plan.Planned], folder: Path | None
) -> None:
    """Print what --dry-run shows for a recipe.

    Args:
        schedule: The recipe with its data and overrides.
        planned: The selected stages.
        folder: The recipe's folder if its stages are resumed, else None.
    """
    click.echo("\n".join(recipe_plan.lines(schedule, planned)))
    loaded: dict[str, Detector] = {}
    evaluators = {
        p: measures.make_evaluator(p.config, p.dataset, loaded=loaded)
        for p in planned
        if p.dataset is not None
    }
    for evaluator in evaluators.values():
        evaluator.check_data()
    if print_missing(measures.missing_files([p.config for p in planned], schedule.recipe.final_metric)):
        return
    for p, evaluator in evaluators.items():
        assert p.dataset is not None
        work = measures.work_before(p.config, p.dataset, folder and folder / p.stage.name, evaluator)
        print_preparation(f"stage {p.stage.resolution}: {line}" for line in work)


def print_labels(datasets: Iterable[ImageDataset | None]) -> None:
    """Print one line per data set: where its labels come from and which files are ignored."""
    lines = dict.fromkeys(
        f"Labels: {dataset.path}: {dataset.labels_summary}" for dataset in datasets if dataset is not None
    )
    for line in lines if distributed.is_main() else ():
        click.echo(line)


def print_missing(lines: Iterable[str]) -> list[str]:
    """Print the missing weights files of a plan, each once, and the command that downloads them.

    Returns:
        The distinct lines.
    """
    lines = list(dict.fromkeys(lines))
    for line in lines:
        click.echo(f"Missing: {line}")
    if lines:
        click.echo(f"Download what is available with: {prefetch_command()}")
    return lines


def warn_of_changes(evaluator: Evaluator, run_dir: Path | None) -> None:
    """Warn if a resumed run is measured differently from before, because its scores do not compare then."""
    for change in evaluator.changes_since(run_dir) if run_dir is not None else ():
        click.echo(
            f"Warning: {run_dir}: metrics are now computed differently, so new scores do not compare with "
            f"earlier ones: {change}",
            err=True,
        )


def print_preparation(lines: Iterable[str]) -> None:
    """Print what a run computes and caches besides its training steps."""
    for line in lines:
        click.echo(f"To compute: {line}")


def prefetch_command() -> str:
    """Return the command that downloads the weights for this command line."""
    return shlex.join(
        ["python", "train.py", "--prefetch", *(a for a in sys.argv[1:] if a not in ("-n", "--dry-run"))]
    )


def requested_configs(values: dict[str, Any]) -> tuple[list[TrainConfig], str | None]:
    """Return the configurations that a command line requests, without reading data.

    Args:
        values: The flags of the command line by name.

    Returns:
        The configuration of the run, or of every selected stage of the recipe; and the metric that is
            computed after each stage, or None.

    Raises:
        ValueError: The command line is not valid.
    """
    folder = folder_of_recipe(values)
    if values["recipe"] or folder:
        schedule = recipe_launch.schedule_of({**values, "dry_run": True}, folder)
        return [schedule.config(stage) for stage in schedule.stages], schedule.recipe.final_metric
    resuming = values["resume"] is not None and os.path.isdir(values["resume"])
    return [build_config(values, load_run(values["resume"]) if resuming else TrainConfig())[0]], None


def prefetch_all(values: dict[str, Any]) -> None:
    """Download frozen networks, metric detectors and networks named by URL (--prefetch).

    They go into the caches, or into the folder given by --prefetch=DIR.

    Raises:
        ValueError: One line for all downloads that failed.
    """
    hub = None
    if values["prefetch"]:
        folder = os.path.abspath(values["prefetch"])
        os.environ["DNNLIB_CACHE_DIR"], hub = folder, os.path.join(folder, "hub")
    configs, final = requested_configs(values)
    log: Callable[[str], None] = functools.partial(print, flush=True)
    items = measures.prefetch_items(configs, final, values["resume"], hub, log)
    failures = prefetch.fetch_all(items, log)
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(items)} downloads failed: {failures[0]}"
            + (" (see above for the others)" if failures[1:] else "")
        )
    if hub:
        log(
            f"To use them in jobs: export DNNLIB_CACHE_DIR={shlex.quote(folder)} "
            f"HF_HUB_CACHE={shlex.quote(hub)} HF_HUB_OFFLINE=1"
        )
    else:
        log(
            f"Jobs find them in the same cache folders: {dnnlib.util.make_cache_dir_path()} and "
            f"{timm_weights.hub_cache()}"
        )
