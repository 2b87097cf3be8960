# SPDX-License-Identifier: Apache-2.0
r"""Train StyleSAN-XL.

Examples:
    # train all stages of a recipe, or some (--stages=64,128); --dry-run prints the plan
    python train.py --outdir=training-runs --recipe=small --data=photos256.zip --cond=True --gpus=1 --dry-run
    python train.py --outdir=training-runs --recipe=imagenet256 --data=imagenet256.zip --gpus=8

    # resume a run or a recipe from its checkpoint
    python train.py --resume=training-runs/00000-imagenet256

    # train a single stage: a stem at 16x16 on labelled images
    python train.py --outdir=training-runs --cfg=stylegan3-t --data=photos16.zip --gpus=1 --batch=64 \
        --cond=True --syn_layers=7

    # the next stage: train a superresolution head on that stem
    python train.py --outdir=training-runs --cfg=stylegan3-t --data=photos32.zip --gpus=1 --batch=64 \
        --cond=True --superres --up_factor=2 --head_layers=4 \
        --path_stem=training-runs/00000-stylegan3-t-photos16-gpus1-batch64

    # download all pretrained weights of a run, for machines without internet access
    python train.py --prefetch --recipe=imagenet256

    # several GPUs: --gpus=8 starts 8 processes; on several machines, torchrun starts them
    torchrun --nproc-per-node=8 train.py --outdir=training-runs --cfg=stylegan3-t --data=imagenet16.zip \
        --gpus=8 --batch=2048 --cond=True

docs/training.md explains the recipes and which flags matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

import dnnlib.util
from dnnlib import outputs
from dnnlib.one_path import OnePath
from training.config import FLAGS
from training.options import Option


class OptionType(click.ParamType[Any]):
    """The click type of an option of the configuration."""

    def __init__(self, option: Option) -> None:
        self.option, self.name = option, option.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of the option; click shows the error message."""
        try:
            return self.option.parse(value) if isinstance(value, str) else value
        except ValueError as err:
            self.fail(str(err), param, ctx)


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add a click option for every flag of the configuration.

    `--a-b` and `--a_b` are the same flag.
    """
    for flag, option in reversed(FLAGS.items()):
        names = list(dict.fromkeys([f"--{flag.replace('_', '-')}", f"--{flag}"]))
        default = "required for a new run" if option.required else f"default: {option.default_text}"
        text = f"{option.about} [{default}]"
        if option.switch:
            command = click.option(*names, flag, is_flag=True, default=None, help=text)(command)
        else:
            repeated = option.kind is tuple  # lists may be given in parts
            more: dict[str, Any] = {"multiple": True, "callback": _joined} if repeated else {}
            if flag == "data":
                more["cls"] = OnePath
            command = click.option(
                *names, flag, type=OptionType(option), default=None, help=text, **more
            )(command)  # fmt: skip
    return command


def _joined(
    context: click.Context, parameter: click.Parameter, lists: tuple[tuple[str, ...], ...] | None
) -> tuple[str, ...] | None:
    return None if not lists else tuple(dict.fromkeys(item for items in lists for item in items))


# Flags of StyleGAN's train.py that a projected discriminator does not need, with the remedy.
UNSUPPORTED = {
    "gamma": "a projected discriminator has no R1 penalty; remove the flag",
    "aug": "DiffAugment replaces ADA and is on by default; remove the flag, or see --augment and --diffaug",
    "target": "DiffAugment replaces ADA and is on by default; remove the flag",
    "p": "DiffAugment replaces ADA and is on by default; remove the flag",
    "mbstd-group": "--mbstd=True compares the images of --bn-group; remove the flag, or replace it",
    "subset": "use --max-images instead",
}

# Sections of the configuration -> headings of --help.
HEADINGS = {
    "data": "Data",
    "generator": "Generator",
    "discriminator": "Discriminator",
    "loss": "Losses",
    "optim": "Optimizers",
    "run": "Training and output",
}
COMPATIBILITY = ("fp32", "freezed", "map_depth", "stem")  # flags that are listed last
HELP_COLUMN = 20  # leaves 54 of 80 columns for the texts, so that no default is broken in two


class TrainCommand(click.Command):
    """The command, with remedies for unsupported flags of StyleGAN and --help in sections."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. An unsupported flag of StyleGAN raises an error with a remedy."""
        ctx.meta["arguments"] = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            reason = UNSUPPORTED.get(err.option_name.lstrip("-").replace("_", "-"))
            if reason is None:
                raise
            raise click.ClickException(f"{err.option_name} is not supported: {reason}") from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of --help under one heading per section of the configuration."""
        names = ("Options", *HEADINGS.values(), "Compatibility")
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        for param in self.get_params(ctx):
            option = FLAGS.get(param.name or "")
            row = param.get_help_record(ctx)
            if row is not None:
                other = "Compatibility" if param.name in COMPATIBILITY else "Options"
                groups[HEADINGS[option.section] if option else other].append(row)
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=HELP_COLUMN)


@click.command(
    cls=TrainCommand,
    context_settings={"max_content_width": 140},
    help=str(__doc__).replace("\n\n", "\n\n\b\n"),
)
@click.option(
    "--outdir",
    metavar="DIR",
    help="Parent of the run folders. Each run gets a new numbered folder in it. [required for a new run]",
)
@click.option(
    "--recipe",
    metavar="FILE|NAME",
    help="Train all stages of a progressive schedule: a YAML file, or a name in recipes/.",
)
@click.option(
    "--stages",
    metavar="LIST",
    help="With a recipe: train only the stages of these resolutions, such as 64,128.",
)
@config_options
@click.option("--fp32", type=bool, default=False, help="Same as --precision=fp32. [default: False]")
@click.option(
    "--resume",
    metavar="RUN_DIR|PATH|URL",
    help="A run folder: resume the run from its checkpoint. A network file: start from its weights, as "
    "--init-from.",
)
@click.option(
    "--from-scratch",
    is_flag=True,
    help="With --resume=RUN_DIR: move the run's files aside and restart it from image 0.",
)
@click.option("--freezed", type=int, default=0, help="Accepted for compatibility; must be 0.")
@click.option(
    "--map-depth", "--map_depth", type=int, default=2, help="Accepted for compatibility; must be 2."
)
@click.option(
    "--stem", is_flag=True, help="Accepted for compatibility; a stem is trained unless --superres is given."
)
@click.option(
    "--prefetch",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[=DIR]",
    help="Download and list all weights files that the run needs, then exit. DIR = folder to use instead of "
    "the caches.",
)
@click.option(
    "--slurm",
    metavar="KEY=VALUE,...",
    help="Submit this command as a Slurm job that requeues itself until the run is finished: nodes, time "
    "(minutes), partition, account, or any other option of sbatch. Needs submitit.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan of the run and exit.")
def main(**values: Any) -> None:
    """Parse and check the command line, choose the run folder, and start the processes."""
    values = outputs.expand_home(values)
    dnnlib.util.plain_warnings()
    dnnlib.util.print_any_name()
    if values["fp32"]:
        values["precision"] = "fp32"
    from generation import train_command

    train_command.run(values)


if __name__ == "__main__":
    main()
