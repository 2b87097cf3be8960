# SPDX-License-Identifier: Apache-2.0
"""Predicts training steps of the ImageNet recipe on GPUs, from operations and bytes; needs no GPU.

    python benchmarks/roofline.py                     # tables as in docs/performance.md, about a minute
    python benchmarks/roofline.py --stages 16

training/run/roofline.py has the model and its assumptions.
"""

import dataclasses
import sys
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu_training
from training.config import TrainConfig
from training.run import roofline

STAGES = (16, 32, 64, 128, 256)
PROCESSES = 8
MICRO_BATCHES = (8, 32)


def config(resolution: int, micro_batch: int, small: bool) -> TrainConfig:
    """Options of a stage of recipes/imagenet256.yaml on eight GPUs."""
    batch = 2048 if resolution < 128 else 256
    guidance = 8 if resolution >= 64 and not small else 0
    cfg = gpu_training.make_config(small, batch, gpu_training.LEVERS[0])
    return cfg.override({"run.gpus": PROCESSES, "run.batch_gpu": micro_batch, "loss.cls_weight": guidance})


def seconds(step: roofline.Step, graphs: bool = False) -> str:
    """Return seconds per kimg of eight processes, one cell for each GPU."""
    return " | ".join(f"{step.sec_per_kimg(g, graphs) / PROCESSES:.2f}" for g in roofline.GPUS)


def _resolutions(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    known = {str(resolution): resolution for resolution in STAGES}
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(known):
        raise click.BadParameter(f"{text}: use some of {', '.join(known)}")
    return [known[name] for name in names]


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--stages",
    default=",".join(map(str, STAGES)),
    show_default=True,
    callback=_resolutions,
    help="Resolutions.",
)
@click.option("--small", is_flag=True, help="Networks that are counted in a second, to try the command.")
def main(stages: list[int], small: bool) -> None:
    """Print the tables; the help text is the module's docstring."""
    names = [g.name for g in roofline.GPUS]
    parts = [f"| stage | part | GFLOP per image | MB | operations | ms on {' | ms on '.join(names)} |"]
    parts.append("|---" * (5 + len(names)) + "|")
    rows = [f"| stage | images per micro-batch | options | s/kimg on 8 x {' | 8 x '.join(names)} |"]
    rows.append("|---" * (3 + len(names)) + "|")
    for resolution in stages:
        with torch.device("meta"):
            G = gpu_training.published_generator(resolution, small)
        for micro_batch in MICRO_BATCHES:
            cfg = config(resolution, micro_batch, small)
            step = roofline.count(cfg, G)
            if micro_batch == MICRO_BATCHES[0]:
                for name, part in step.parts().items():
                    times = " | ".join(f"{1e3 * step.device_seconds(g, name):.2f}" for g in roofline.GPUS)
                    counts = f"{part.flops / 1e9:.1f} | {part.bytes / 1e6:.0f} | {part.ops:.0f}"
                    parts.append(f"| {resolution} | {name} | {counts} | {times} |")
                published = cfg.override({"discriminator.precision": "fp32", "run.allow_tf32": False})
                as_published = roofline.count(published, G)
                rows.append(
                    f"| {resolution} | {micro_batch} | discriminator in float32, as published | "
                    f"{seconds(as_published)} |"
                )
                rows.append(
                    f"| {resolution} | {micro_batch} | and TF32 | "
                    f"{seconds(dataclasses.replace(as_published, tf32=True))} |"
                )
            rows.append(f"| {resolution} | {micro_batch} | defaults | {seconds(step)} |")
            rows.append(
                f"| {resolution} | {micro_batch} | defaults, CUDA graphs | {seconds(step, graphs=True)} |"
            )
    click.echo("\n".join([*parts, "", *rows]))


if __name__ == "__main__":
    main()
