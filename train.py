# SPDX-License-Identifier: Apache-2.0
"""Train StyleSAN-XL.

    # a stem at 16x16 on labelled images, on whatever device there is
    python train.py --outdir=training-runs --cfg=stylegan3-t --data=emoji16.zip --gpus=1 --batch=64 --cond=True --syn_layers=7

    # the next stage: a superresolution head on that stem
    python train.py --outdir=training-runs --cfg=stylegan3-t --data=emoji32.zip --gpus=1 --batch=64 --cond=True --superres \\
        --up_factor=2 --head_layers=4 --path_stem=training-runs/00000-stylegan3-t-emoji16-gpus1-batch64

    # all stages of a schedule in one command; --stages=64,128 for a part, --dry-run for the plan
    python train.py --outdir=training-runs --recipe=imagenet256 --data=imagenet256.zip --gpus=8
    python train.py --resume=training-runs/00000-imagenet256

    # fetch all weights that this needs, where there is a network, for machines that have none (--prefetch=DIR: into this folder)
    python train.py --prefetch --recipe=imagenet256

    # go on exactly where a run stopped
    python train.py --resume=training-runs/00000-stylegan3-t-emoji16-gpus1-batch64

    # several processes: --gpus=8 starts them; under torchrun they are there already
    torchrun --nproc-per-node=8 train.py --outdir=training-runs --cfg=stylegan3-t --data=imagenet16.zip --gpus=8 --batch=2048 --cond=True
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import torch

import dnnlib
from dnnlib import outputs
from metrics import detectors
from metrics.evaluate import Evaluator
from metrics.registry import parse_metric
from torch_utils import devices, distributed, memory, prefetch, timm_weights
from training import build, loop, run_folder
from training.config import AUTO, TrainConfig, describe, from_json, option_type, to_json
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.networks import files, stems
from training.networks.reader import load as load_generator
from training.networks.stems import begun
from training.progressive import recipe, stages
from training.run import auto_batch
from training.run.periodic import Score
from training.run_folder import (
    OPTIONS_FILE,
    RunLock,
    description,
    has_checkpoint,
    load_run,
    new_run_folder,
    recorded_outcome,
    run_folders,
    unfinished_run,
    write_json,
)
from training.steps import NonFiniteError

RESTART_EXIT_CODE = 3

# flag -> option of TrainConfig; the flags' defaults are the config's
FLAGS = {
    "data": "data.path",
    "resolution": "data.resolution",
    "cond": "data.cond",
    "mirror": "data.mirror",
    "balanced": "data.balanced",
    "max_images": "data.max_images",
    "workers": "data.workers",
    "cache_mb": "data.cache_mb",
    "class_embedding": "data.class_embedding",
    "embed_dim": "data.embed_dim",
    "cfg": "generator.cfg",
    "syn_layers": "generator.syn_layers",
    "cbase": "generator.cbase",
    "cmax": "generator.cmax",
    "z_dim": "generator.z_dim",
    "w_dim": "generator.w_dim",
    "map_depth": "generator.map_depth",
    "margin_size": "generator.margin_size",
    "superres": "generator.superres",
    "path_stem": "generator.path_stem",
    "pin_stem": "generator.pin_stem",
    "up_factor": "generator.up_factor",
    "head_layers": "generator.head_layers",
    "backbones": "discriminator.backbones",
    "backbone_weights": "discriminator.backbone_weights",
    "feature_size": "discriminator.feature_size",
    "proj_channels": "discriminator.proj_channels",
    "head_channels": "discriminator.head_channels",
    "cond_channels": "discriminator.cond_channels",
    "bn_group": "discriminator.bn_group",
    "augment": "discriminator.augment",
    "d_precision": "discriminator.precision",
    "d_loss": "loss.d_loss",
    "g_loss": "loss.g_loss",
    "san": "loss.san",
    "diagnostics": "loss.diagnostics",
    "cls_weight": "loss.cls_weight",
    "cls_model": "loss.cls_model",
    "cls_weights": "loss.cls_weights",
    "cls_classes": "loss.cls_classes",
    "blur_init_sigma": "loss.blur_init_sigma",
    "blur_fade_kimg": "loss.blur_fade_kimg",
    "pl_weight": "loss.pl_weight",
    "pl_start_kimg": "loss.pl_start_kimg",
    "glr": "optim.glr",
    "dlr": "optim.dlr",
    "beta2": "optim.beta2",
    "ema_kimg": "optim.ema_kimg",
    "ema_rampup": "optim.ema_rampup",
    "seed": "run.seed",
    "gpus": "run.gpus",
    "batch": "run.batch",
    "batch_gpu": "run.batch_gpu",
    "kimg": "run.kimg",
    "tick": "run.tick",
    "snap": "run.snap",
    "metrics": "run.metrics",
    "patience": "run.patience",
    "checkpoint_minutes": "run.checkpoint_minutes",
    "keep_checkpoints": "run.keep_checkpoints",
    "keep_snapshots": "run.keep_snapshots",
    "restart_every": "run.restart_every",
    "device": "run.device",
    "precision": "run.precision",
    "nobench": "run.nobench",
    "desc": "run.desc",
    "variety": "run.variety",
    "grid": "run.grid",
}
STAGE_FLAGS = {**FLAGS, "init_from": "run.init_from"}  # what a command line may change in a recipe's stages


def _list(value: str) -> tuple[str, ...]:
    return () if value.strip().lower() in ("", "none") else tuple(v.strip() for v in value.split(","))


def _mapping(value: str) -> dict[str, str]:
    pairs = [item.split("=", 1) for item in _list(value)]
    if any(len(p) != 2 or not all(p) for p in pairs):
        raise click.BadParameter(f"'{value}': give NAME=FILE, several separated by commas")
    return {name: path for name, path in pairs}


class _Parsed(click.ParamType):
    """A click type from a parsing function."""

    def __init__(self, parse: Callable[[str], Any], name: str) -> None:
        self.parse, self.name = parse, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.parse(value) if isinstance(value, str) else value


def _rounds(value: str) -> int | str:
    word = value.strip().lower()
    if word == AUTO:
        return AUTO
    if not word.isdecimal() and word != "none":
        raise click.BadParameter(f"'{value}': give a number of images, or auto")
    return 0 if word == "none" else int(word)


LIST = _Parsed(_list, "LIST")
MAPPING = _Parsed(_mapping, "NAME=FILE,...")
SPECIAL_TYPES = {"backbones": LIST, "metrics": LIST, "backbone_weights": MAPPING, "batch_gpu": _Parsed(_rounds, "INTEGER|auto")}


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add one option per entry of FLAGS, with type, default and help from the config's fields. `--a-b` and `--a_b` are the same flag."""
    rows = {name: (value, about, origin.removeprefix("default of ")) for name, value, origin, about in describe(TrainConfig(), set())}
    tree = to_json(TrainConfig())
    for flag, option in reversed(list(FLAGS.items())):
        section, key = option.split(".")
        default = tree[section][key]
        value, about, source = rows[option]
        kind: Any = SPECIAL_TYPES.get(flag) or option_type(option)
        text = about if default == "" else f"{about} [default: {','.join(default) or 'none' if isinstance(default, list) else value}, from {source}]"
        names = list(dict.fromkeys([f"--{flag.replace('_', '-')}", f"--{flag}"]))
        if flag in ("superres", "pin_stem"):
            command = click.option(*names, flag, is_flag=True, default=None, help=text)(command)
        else:
            command = click.option(*names, flag, type=kind, default=None, help=text)(command)
    return command


def build_config(values: dict[str, Any], base: TrainConfig) -> tuple[TrainConfig, set[str]]:
    """Apply the given flags to `base`. Returns the config and the names of the options that were given.

    Raises:
        ValueError: values that do not go together, in one line.
    """
    changes = {FLAGS[flag]: value for flag, value in values.items() if flag in FLAGS and value is not None}
    if values.get("fp32"):
        changes["run.precision"] = "fp32"
    if values.get("init_from"):
        changes["run.init_from"] = values["init_from"]
    config = base.override({k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()})
    config.validate()
    for name in config.run.metrics:
        parse_metric(name)
    return config, set(changes)


def make_evaluator(config: TrainConfig, dataset: ImageDataset, device: torch.device) -> Evaluator:
    """Metrics against the training images, all of them and unflipped."""
    return Evaluator(
        build.plain_dataset(dataset), list(config.run.metrics), device=device, batch=evaluation_batch(config), progress=announce_real_images
    )


def announce_real_images(what: str, done: int, total: int) -> None:
    """The first evaluation goes through the data, which may take longer than the training so far: say so."""
    if what == "real" and done == 0:
        print(f"  metrics: {total:,} real images, once", flush=True)


def evaluation_batch(config: TrainConfig) -> int:
    """Images at a time, per process, for metrics: a detector's activations are no part of what --batch-gpu was chosen by."""
    return min(max(config.batch_gpu, 16), 64)


def make_evaluate(config: TrainConfig, device: torch.device) -> Callable[[Generator], list[Score]] | None:
    """The callable that the loop calls at every snapshot to measure G_ema."""
    if not config.run.metrics:
        return None
    evaluator = make_evaluator(config, build.make_dataset(config.data, config.run.seed), device)

    def evaluate(generator: Generator) -> list[Score]:
        return [Score(r.metric, r.value, r.lower_is_better, r.as_dict()) for r in evaluator(generator)]

    return evaluate


def join(config: TrainConfig) -> torch.device:
    """Make this process one of the run's, and return its device."""
    return distributed.init(devices.pick_device(config.run.device, int(os.environ.get("LOCAL_RANK", 0))).type)


def train_process(tree: dict[str, Any], run_dir: str, resume: str) -> None:
    """One process of a run. resume: the folder to go on from, for messages: the run's, or that of the recipe it is a stage of."""
    config = from_json(tree)
    device = join(config)
    lock = RunLock(Path(run_dir)) if distributed.is_main() else None  # this process writes; the launching one may die before it
    log = dnnlib.util.Logger(os.path.join(run_dir, "log.txt"), file_mode="a", should_flush=True) if lock else nullcontext()
    with log:
        try:
            with memory.shortage_named(device, memory_remedy(config, f"; go on with --resume={resume}")):
                outcome = loop.train(config, run_dir, device, make_evaluate(config, device))
        except NonFiniteError as err:
            raise click.ClickException(
                f"{err}. Nothing was overwritten: go on from the last checkpoint with --resume={resume}, at a lower --glr/--dlr"
            ) from None
        if distributed.is_main():
            saved = {run_folder.INTERRUPTED: f"Saved. Go on with --resume={resume}", run_folder.RESTART: "Saved for the restart."}
            print(saved.get(outcome, "Finished."))
    if lock is not None:
        lock.release()


def memory_remedy(config: TrainConfig, then: str = "") -> str:
    """What to change when a run is out of memory."""
    return f"lower --batch-gpu (now {config.batch_gpu}) or let --batch-gpu=auto find it, else lower --cbase and --cmax{then}"


def rounds_process(tree: dict[str, Any], run_lineage: stems.Lineage | None) -> auto_batch.Choice:
    """One process of the search for --batch-gpu=auto."""
    config = from_json(tree)
    device = join(config)
    loop.configure(config, device)
    return auto_batch.choose(config, build.make_dataset(config.data, config.run.seed), device, run_lineage)


def settle_rounds(config: TrainConfig, existing: Path | None, again: bool) -> TrainConfig:
    """`config` with a number in the place of --batch-gpu=auto.

    existing: the run folder that goes on, whose recorded number is kept if the batch is still a multiple of it, unless the search is wanted `again`.
    """
    if config.run.batch_gpu != AUTO:
        return config
    recorded = existing is not None and (existing / OPTIONS_FILE).is_file() and not again
    kept = distributed.broadcast_object(load_run(str(existing)).batch_gpu if recorded else None)
    if kept is not None and config.run.batch % (config.run.gpus * kept) == 0:
        return auto_batch.settled(config, kept)
    choice = distributed.launch(rounds_process, config.run.gpus, to_json(config), begun(existing))
    if distributed.is_main():
        print(choice.line(config), flush=True)
    return auto_batch.settled(config, choice.batch_gpu)


def print_plan(config: TrainConfig, given: set[str], dataset: ImageDataset, run_dir: str) -> None:
    """What --dry-run shows: every option with its origin, the data, the layers, parameters and memory."""
    G, D = build.plan(config, dataset, lineage=begun(run_dir))
    heads, frozen = build.parameter_counts(D)
    click.echo("\nOptions (name, value, origin)")
    for name, value, origin, _ in describe(config, given):
        click.echo(f"  {name:34s} {value:44s} {origin}")
    if config.run.batch_gpu == AUTO:
        choice = auto_batch.planned(config, G, heads, frozen)
        click.echo(choice.line(config))
        config = auto_batch.settled(config, choice.batch_gpu)
    click.echo(f"  {'derived: images per round':34s} {config.batch_gpu:<44d} batch / gpus unless --batch-gpu is given")
    click.echo(f"  {'derived: blur at the start, pixels':34s} {config.blur_init_sigma:<44g} unless --blur-init-sigma is given")
    click.echo(f"  {'derived: EMA ramp-up':34s} {config.ema_rampup:<44g} unless --ema-rampup is given")
    click.echo(f"  {'derived: EMA half-life, kimg':34s} {config.ema_kimg:<44g} batch * 10 / 32 unless --ema-kimg is given")
    flips = " (half of them flipped copies)" if config.data.mirror else ""
    click.echo(
        f"\nData: {dataset.path}: {len(dataset)} images{flips}, {dataset.resolution}x{dataset.resolution}, {dataset.label_dim or 'no'} classes"
    )
    click.echo("\nGenerator\n" + build.layer_table(G))
    trained = sum(p.numel() for p in G.parameters() if p.requires_grad)
    click.echo(
        f"\nParameters: generator {sum(p.numel() for p in G.parameters()):,} ({trained:,} trained), heads {heads:,}, backbones {frozen:,} (frozen)"
    )
    click.echo(
        f"Memory: about {build.estimate_memory_gb(config, G, heads, frozen):.1f} GiB per process at {config.batch_gpu} images per round (estimate)"
    )
    missing = build.check_weights(config, download=False)
    if config.run.init_from and not missing and not has_checkpoint(Path(run_dir)):
        click.echo("\n" + build.start_report(config, dataset))
    try:
        make_evaluator(config, dataset, torch.device("cpu")).check(download=False)
    except FileNotFoundError as err:
        missing.append(str(err))
    print_missing(missing)
    click.echo(f"Run folder: {run_dir}")


def print_missing(lines: list[str]) -> None:
    """The weights that a plan lacks, and how to get them."""
    for line in lines:
        click.echo(f"Missing: {line}")
    if lines:
        click.echo(f"Fetch what can be fetched with: {prefetch_command()}")


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


@click.command(cls=TrainCommand, context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--outdir", metavar="DIR", help="where run folders are made; each run gets a new numbered one")
@click.option("--recipe", metavar="FILE|NAME", help="a progressive schedule: all its stages in order (recipes/)")
@click.option("--stages", metavar="LIST", help="with a recipe: only the stages of these resolutions, such as 64,128")
@config_options
@click.option("--fp32", type=bool, default=False, help="float32 everywhere (--precision=fp32)")
@click.option("--resume", metavar="RUN_DIR|PATH|URL", help="a run folder: go on exactly; a network pickle: start from its weights (= --init-from)")
@click.option(
    "--init-from",
    "init_from",
    metavar="PATH|URL",
    help="start from a network's weights, as far as they fit: other classes, resolution or size",
)
@click.option("--freezed", type=int, default=0, help="accepted for compatibility; must be 0")
@click.option("--stem", is_flag=True, help="accepted for compatibility: without --superres a stem is trained")
@click.option(
    "--prefetch",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[=DIR]",
    help="fetch every weights file that the other flags, the recipe or the run folder ask for, list them, and leave; DIR: instead of the caches",
)
@click.option("-n", "--dry-run", is_flag=True, help="print the whole plan and leave")
def main(**values: Any) -> None:
    """Parse, check everything that can be checked, choose the run folder, start the processes."""
    try:
        for flag in ("resume", "init_from", "path_stem"):
            values[flag] = values[flag] and dnnlib.util.plain_path(values[flag])
        check_outputs(values)
        prefetch_all(values) if values["prefetch"] is not None else run_main(values)
    except timm_weights.MissingWeights as err:
        raise click.ClickException(f"{err}; or, where there is a network, run: {prefetch_command()}") from None
    except (ValueError, OSError) as err:
        raise click.ClickException(str(err)) from None


def prefetch_command() -> str:
    """The command that fetches what this one needs."""
    return shlex.join(["python", "train.py", "--prefetch", *(a for a in sys.argv[1:] if a not in ("-n", "--dry-run"))])


def configs_asked_for(values: dict[str, Any]) -> tuple[list[TrainConfig], str | None]:
    """(the configuration of the run, or of every selected stage of the recipe; the metric that is measured after each stage). Reads no data.

    Raises:
        ValueError: one line.
    """
    folder = values["resume"] if values["resume"] is not None and os.path.isdir(values["resume"]) else None
    if values["recipe"] or (folder and os.path.isfile(os.path.join(folder, stages.RECIPE_FILE))):
        schedule = recipe_schedule({**values, "dry_run": True}, Path(folder) if folder else None)
        return [schedule.config(stage, STAGE_FLAGS) for stage in schedule.stages], schedule.recipe.final_metric
    return [build_config(values, load_run(folder) if folder else TrainConfig())[0]], None


def prefetch_all(values: dict[str, Any]) -> None:
    """--prefetch: frozen networks, metrics' detectors and networks named by URL, into the caches or a folder that takes their place.

    Raises:
        ValueError: one line for all that could not be had.
    """
    hub = None
    if values["prefetch"]:
        folder = os.path.abspath(values["prefetch"])
        os.environ["DNNLIB_CACHE_DIR"], hub = folder, os.path.join(folder, "hub")
    configs, final = configs_asked_for(values)
    say: Callable[[str], None] = functools.partial(print, flush=True)
    items: dict[tuple[str, ...], prefetch.Item] = {}
    for config in configs:
        for need in build.needed_weights(config):
            get = functools.partial(timm_weights.fetch, need.name, need.weights, hub, say)
            items[need.name, need.weights or "", need.purpose] = prefetch.Item(f"{need.name} ({need.purpose})", get)
        for metric in filter(None, (*config.run.metrics, final)):
            name = parse_metric(metric).family.detector
            items[name, metric] = prefetch.Item(f"{name} ({metric})", functools.partial(detectors.fetch, name, hub, say))
        for flag, url in (("--init-from", config.run.init_from), ("--path_stem", config.generator.path_stem), ("--resume", values["resume"])):
            if url and dnnlib.util.is_url(url):
                items[flag, url] = prefetch.Item(f"{flag}={url}", functools.partial(files.fetch, url, 10))
    failures = prefetch.fetch_all(items.values(), say)
    if failures:
        raise ValueError(f"{len(failures)} of {len(items)} could not be fetched: {failures[0]}" + (" (and more above)" if failures[1:] else ""))
    if hub:
        say(f"Jobs find them with: export DNNLIB_CACHE_DIR={shlex.quote(folder)} HF_HUB_CACHE={shlex.quote(hub)} HF_HUB_OFFLINE=1")
    else:
        say(f"Jobs find them in the same folders: {dnnlib.util.make_cache_dir_path()} and {timm_weights.hub_cache()}")


def check_outputs(values: dict[str, Any]) -> None:
    """Raises ValueError for a place that nothing can be written to, or that the data set would swallow."""
    for flag in ("outdir", "prefetch"):
        if values[flag] is not None and not (flag == "prefetch" and values[flag] == ""):
            outputs.check_output(f"--{flag}", values[flag], data={"--data": values["data"]}, folder=True)
    if values["desc"] and re.search(r"[/\\\0]", values["desc"]):
        raise ValueError(f"--desc={values['desc']!r} becomes part of a folder's name: leave out / and \\")


def run_main(values: dict[str, Any]) -> None:
    """`main` with library errors still as exceptions."""
    if values["freezed"]:
        raise ValueError(f"--freezed={values['freezed']} has no effect on a projected discriminator: leave it out")
    resume = values["resume"]
    resuming = resume is not None and os.path.isdir(resume)
    if resume is not None and not resuming:
        if values["init_from"]:
            raise ValueError("--resume with a network pickle and --init-from are the same thing: give one")
        values["init_from"] = stems.network_file("--resume", resume)
    elif values["init_from"]:
        stems.network_file("--init-from", values["init_from"])
    if resuming and values["init_from"]:
        raise ValueError(f"--resume={resume} goes on with that run's weights: leave out --init-from")
    if values["recipe"] or (resuming and os.path.isfile(os.path.join(resume, stages.RECIPE_FILE))):
        if resume is not None and not resuming:
            raise ValueError(f"--resume={resume}: to go on with a recipe, name its folder; to start from a network, use --init-from")
        run_recipe(values)
        return
    if values["stages"]:
        raise ValueError(f"--stages={values['stages']} has no effect without --recipe")
    config, given = build_config(values, load_run(resume) if resuming else TrainConfig())
    check_processes(config)
    if not resuming:
        missing = [f"--{flag}" for flag in ("outdir", "cfg", "data", "gpus", "batch") if values[flag] is None]
        if missing:
            raise ValueError(f"missing {', '.join(missing)} (or --resume=RUN_DIR to go on)")
    dataset = build.make_dataset(config.data, config.run.seed, prepare=not values["dry_run"])
    desc = description(config, dataset.name)
    goes_on = None if resuming or values["restart_every"] is None else unfinished_run(values["outdir"], desc, config)
    if values["dry_run"]:
        target = (
            resume if resuming else str(goes_on or os.path.join(values["outdir"], f"{max(run_folders(values['outdir']), default=-1) + 1:05d}-{desc}"))
        )
        print_plan(config, given, dataset, target)
        return
    existing = Path(resume) if resuming else goes_on
    build.check(config, dataset, lineage=begun(existing), goes_on=existing is not None and has_checkpoint(existing))
    make_evaluator(config, dataset, torch.device("cpu")).check()
    start(config, existing, values["outdir"], desc, again=resuming)


def check_processes(config: TrainConfig) -> None:
    """Raises ValueError if torchrun has started another number of processes than --gpus."""
    started = distributed.started_processes()
    if started not in (None, config.run.gpus):
        raise ValueError(f"--gpus={config.run.gpus}, but torchrun started {started} processes on all machines together: use --gpus={started}")


def start(config: TrainConfig, existing: Path | None, outdir: str, desc: str, again: bool = False) -> None:
    """Make or lock the run folder, record the options, run, exit with 3 for a restart and 130 after an interruption. again: as for settle_rounds."""
    if distributed.under_torchrun():
        join(config)
    config = settle_rounds(config, existing, again)
    run_dir = existing
    if distributed.is_main():
        run_dir = existing or new_run_folder(outdir, desc)
        print(f"Run folder: {run_dir}")
    run_dir = distributed.broadcast_object(run_dir)
    assert run_dir is not None
    try:
        outcome = run_in_folder(config, run_dir)
    except KeyboardInterrupt:  # outside of the loop, which answers signals itself
        print(f"Stopped. Go on with --resume={run_dir}", flush=True)
        outcome = run_folder.INTERRUPTED
    leave(outcome)


def run_in_folder(config: TrainConfig, run_dir: Path, resume: Path | None = None, seconds: float | None = None) -> str:
    """Lock a run folder, record the options, start the processes. Returns the loop's outcome.

    resume: the folder to go on from; None = this one. seconds: replaces --restart_every for the processes.
    """
    if distributed.is_main():
        lock = RunLock(run_dir)
        record = {"config": to_json(config), "command": sys.argv, "torch": torch.__version__, "resumed": (run_dir / OPTIONS_FILE).is_file()}
        write_json(run_dir / OPTIONS_FILE, record)
        (run_dir / "status.json").unlink(missing_ok=True)
        lock.release()  # train_process takes it
    distributed.barrier()
    limited = config if seconds is None else config.override({"run.restart_every": max(seconds, 0.0)})
    distributed.launch(train_process, config.run.gpus, to_json(limited), str(run_dir), str(resume or run_dir))
    return recorded_outcome(run_dir) or run_folder.INTERRUPTED


def leave(outcome: str) -> None:
    """End the process as the outcome asks: exit code 3 for a restart, 130 after an interruption."""
    distributed.shutdown()
    if outcome == run_folder.RESTART:
        sys.exit(RESTART_EXIT_CODE)
    if outcome == run_folder.INTERRUPTED:
        sys.exit(130)


def flag_parsers() -> dict[str, Callable[[str], Any]]:
    """Flag -> how its text becomes a value, as on a command line. Raises ValueError."""

    def parser(flag: str) -> Callable[[str], Any]:
        kind = SPECIAL_TYPES.get(flag) or click.types.convert_type(option_type(FLAGS[flag]))

        def parse(text: str) -> Any:
            try:
                return kind.convert(text, None, None)
            except click.BadParameter as err:
                raise ValueError(err.message) from None

        return parse

    return {flag: parser(flag) for flag in FLAGS}


def recipe_schedule(values: dict[str, Any], folder: Path | None) -> stages.Schedule:
    """The schedule that a command line asks for: a new recipe's, or that of `folder` with what the command line changes.

    Raises:
        ValueError: one line.
    """
    for flag in ("superres", "up_factor", "resolution"):
        if values[flag] is not None:
            raise ValueError(f"--{flag} has no place with a recipe, whose stages say their resolutions")
    if folder is None:
        missing = [f"--{flag}" for flag in ("outdir", "data") if values[flag] is None]
        if missing and not values["dry_run"]:
            raise ValueError(f"missing {', '.join(missing)} (or --resume=FOLDER to go on)")
        schedule = stages.Schedule(recipe.load(values["recipe"], flag_parsers()), values["data"] or "")
    else:
        schedule = stages.read(folder)
        changed = stages.differences(recipe.load(values["recipe"], flag_parsers()), schedule.recipe) if values["recipe"] else ""
        if changed:
            raise ValueError(
                f"--recipe={values['recipe']} is not what {folder} was made with ({changed}): leave out --recipe to go on with the recorded one, "
                "or start a new folder with --outdir"
            )
    explicit = folder is None or values["stages"] is not None
    selected = stages.parse_selected(values["stages"], schedule.recipe) if explicit else schedule.selected
    given = {flag: values[flag] for flag in FLAGS if values[flag] is not None and flag not in ("data", "path_stem")}
    if values["fp32"]:
        given["precision"] = "fp32"
    first = {name: values[name] for name in ("path_stem", "init_from") if values[name]}
    new = [stages.Override(given, selected if values["stages"] else None), stages.Override(first, selected[:1])]
    overrides = (*schedule.overrides, *(o for o in new if o.flags))
    schedule = dataclasses.replace(schedule, data=values["data"] or schedule.data, overrides=overrides, selected=selected)
    if not all("gpus" in schedule.flags(s) for s in schedule.stages) and not values["dry_run"]:
        raise ValueError("missing --gpus: the number of processes, which this recipe leaves open")
    return schedule


def unfinished_recipe(outdir: str, desc: str, schedule: stages.Schedule) -> Path | None:
    """The newest folder of this schedule, if it is not done (what --restart_every goes on with)."""
    for _, path in sorted(run_folders(outdir).items(), reverse=True):
        if path.name.split("-", 1)[-1] == desc and (path / stages.RECIPE_FILE).is_file():
            same = json.loads(json.dumps(stages.read(path).to_json())) == json.loads(json.dumps(schedule.to_json()))
            return path if same and not stages.is_done(schedule, path) else None
    return None


def final_evaluator(config: TrainConfig, metric: str, device: torch.device, prepare: bool = True) -> Evaluator:
    """What measures every stage's best network: the last stage's data."""
    dataset = build.plain_dataset(build.make_dataset(config.data, config.run.seed, prepare))
    return Evaluator(dataset, [metric], device=device, batch=evaluation_batch(config))


def measure_process(tree: dict[str, Any], network: str, run_dir: str, metric: str) -> None:
    """One process of a measurement at the last stage's resolution. tree: that stage's configuration. Leaves final.json in `run_dir`."""
    config = from_json(tree)
    device = join(config)
    evaluator = final_evaluator(config, metric, device)
    G = load_generator(network).to(device)
    G.synthesis.reduced_dtype = devices.pick_precision(config.run.precision, device)
    source = stages.Upsampled(G, evaluator.dataset.resolution)
    with memory.shortage_named(device, memory_remedy(config)):
        (record,) = evaluator(source, snapshot=network, details=source.details())
    if distributed.is_main():
        print(f"  {record.metric} {record.value:.4f} at {evaluator.dataset.resolution}x{evaluator.dataset.resolution}", flush=True)
        write_json(Path(run_dir) / stages.FINAL_FILE, {**record.as_dict(), "sha256": dnnlib.util.sha256_file(network)})


def run_recipe(values: dict[str, Any]) -> None:
    """`main` for --recipe, and for --resume with the folder of one."""
    started = time.monotonic()
    resumed = Path(values["resume"]) if values["resume"] else None
    schedule = recipe_schedule(values, resumed)
    desc = f"{schedule.recipe.name}-{values['desc']}" if values["desc"] else schedule.recipe.name
    folder = resumed
    if folder is None and values["restart_every"] is not None and values["outdir"]:
        folder = unfinished_recipe(values["outdir"], desc, schedule)
    planned = stages.plan(schedule, STAGE_FLAGS, folder)
    for p in planned:
        check_processes(p.config)
    if values["dry_run"]:
        print_schedule(schedule, planned)
        return
    last = schedule.config(schedule.recipe.stages[-1], STAGE_FLAGS)
    check_schedule(schedule, planned, last)
    if distributed.under_torchrun():
        join(last)
    lock = None
    if distributed.is_main():
        folder = folder or new_run_folder(values["outdir"], desc)
        lock = RunLock(folder)
        write_json(folder / stages.RECIPE_FILE, {**schedule.to_json(), "command": sys.argv, "torch": torch.__version__})
        print(f"Recipe folder: {folder}")
    folder = distributed.broadcast_object(folder)
    assert folder is not None
    deadline = started + planned[0].config.run.restart_every

    def train_stage(config: TrainConfig, run_dir: Path) -> str:
        if distributed.is_main():
            run_dir.mkdir(exist_ok=True)
        again = resumed is not None and values["batch_gpu"] == AUTO
        return run_in_folder(settle_rounds(config, run_dir, again), run_dir, folder, deadline - time.monotonic())

    def measure(network: Path, run_dir: Path, metric: str) -> None:
        distributed.launch(measure_process, last.run.gpus, to_json(last), str(network), str(run_dir), metric)

    def say(line: str) -> None:
        print(line, flush=True) if distributed.is_main() else None

    with terminated_as_interrupted():
        try:
            outcome = stages.run(schedule, STAGE_FLAGS, folder, bool(values["stages"] and resumed), stages.Hooks(train_stage, measure, say, deadline))
        except KeyboardInterrupt:
            say(f"Stopped. Go on with --resume={folder}")
            outcome = run_folder.INTERRUPTED
    if lock is not None:
        lock.release()
    leave(outcome)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, where the loop does not answer it itself: between stages all is on disk."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def check_schedule(schedule: stages.Schedule, planned: list[stages.Planned], last: TrainConfig) -> None:
    """Find before the first stage starts what would stop any of them.

    Raises:
        ValueError, OSError: one line.
    """
    for p in planned:
        assert p.dataset is not None
        try:
            build.check(p.config, p.dataset, p.stem)
            if p.config.loss.cls_weight > 0:
                build.make_classifier(p.config.loss, p.dataset)
        except ValueError as err:
            raise ValueError(f"stage {p.stage.resolution}: {err}") from None
        make_evaluator(p.config, p.dataset, torch.device("cpu")).check()
    if schedule.recipe.final_metric is not None:
        final_evaluator(last, schedule.recipe.final_metric, torch.device("cpu"), prepare=False).check()


def print_schedule(schedule: stages.Schedule, planned: list[stages.Planned]) -> None:
    """What --dry-run shows of a recipe."""
    source = schedule.recipe
    click.echo(f"Recipe {source.name}\n{textwrap.indent(source.about, '  ')}\n")
    for p in planned:
        if p.dataset is None:
            continue
        flips = " (half of them flipped copies)" if p.config.data.mirror else ""
        click.echo(f"Data {p.stage.resolution}: {p.dataset.path}: {len(p.dataset)} images{flips}, {p.dataset.label_dim or 'no'} classes")
    if planned[0].dataset is None:
        click.echo(f"No --data: planned for {source.classes or 'no'} classes")
    table = recipe.measured_speeds()
    for p in planned:
        click.echo("\n" + "\n".join(stages.stage_lines(p, stages.time_lines(schedule, p, STAGE_FLAGS, table))))
    if schedule.overrides:
        click.echo("\nOverrides: " + "; ".join(stages.describe_override(o) for o in schedule.overrides))
    if source.final_metric:
        click.echo(f"After each stage: {source.final_metric} of its best network, brought to {source.stages[-1].resolution} pixels")
    print_missing(list(dict.fromkeys(line for p in planned for line in build.check_weights(p.config, download=False))))


if __name__ == "__main__":
    main()
