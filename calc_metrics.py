# SPDX-License-Identifier: Apache-2.0
"""Metrics of a network or of images.

    # FID and Inception Score of a network against the data set that its file names
    python calc_metrics.py --network=training-runs/00000-stylegan3-t-emoji16-gpus1-batch64/best_model.pkl
    --metrics=fid50k_full,is50k

    # the same distance on EfficientNet-Lite0's features, which needs no download; 5,000 generated images
    # against 10,000 real ones
    python calc_metrics.py --network=network-snapshot.pkl --metrics=fd_lite0_5k --data=emoji16.zip

    # one image set against another: any size, grey or transparent images; ADM's .npz
    python calc_metrics.py --images=out/ --data=emoji16.zip --metrics=fd_lite0
    python calc_metrics.py --images=samples.npz --data=VIRTUAL_imagenet256_labeled.npz --metrics=fid50k_full

    # how far the number moves with other samples, and a page to look at
    python calc_metrics.py --network=network-snapshot.pkl --metrics=fd_lite0_5k --repeats=3 --report=out.html

    # two runs side by side
    python calc_metrics.py compare training-runs/00000-first training-runs/00001-second

Metric names: fid, is, kid, fd_lite0 and others, each with any count of generated images (docs/metrics.md).
Image files are turned upright and made 8-bit RGB, with grey values in all channels and transparency laid on
white; those of another size than the data set become their largest centred square, resized with Lanczos. A
data set with a dataset.json is taken as it is.

Each number is printed as one JSON line on stdout with the conditions of its measurement; the table and the
progress go to stderr. The line is also appended to metric-NAME.jsonl in --outdir, by default the run folder
of the network. A killed measurement of a network continues where it was when it is started again.
"""

from __future__ import annotations

from typing import Any

import click

from dnnlib.one_path import OnePath
from generation import commands, metric_commands
from metrics import names


@click.group(
    invoke_without_command=True,
    context_settings={"max_content_width": 140},
    help=str(__doc__).replace("\n\n", "\n\n\b\n"),
)
@click.option(
    "--network",
    cls=OnePath,
    metavar="PATH|URL",
    help="network file to measure (.pkl, or .safetensors with its .json), run folder or hf://OWNER/NAME",
)
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@click.option(
    "--images",
    cls=OnePath,
    metavar="DIR|ZIP|NPZ",
    help="images or statistics to measure, instead of a network",
)
@click.option(
    "--metrics", default="fid50k_full", show_default=True, metavar="LIST", help="comma-separated names"
)
@click.option(
    "--data",
    cls=OnePath,
    metavar="ZIP|DIR|NPZ",
    help="data set, images or statistics to compare with  [default: the data set named in the network file]",
)
@click.option(
    "--resolution",
    type=int,
    metavar="N",
    help="bring larger images to this size; of a prepared data set as train.py --resolution does",
)
@click.option(
    "--mirror",
    type=bool,
    default=False,
    help="accepted for compatibility: real images are always taken unflipped, as the published metrics do",
)
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="processes")
@click.option("--verbose", type=bool, default=True, show_default=True, help="table and progress on stderr")
@click.option("--truncation", type=float, default=1.0, show_default=True, help="truncation psi")
@click.option(
    "--centroids-path",
    metavar="PATH|URL",
    help="truncate towards the nearest of these centres in W, a .npy file",
)
@commands.device_option
@commands.precision_option
@click.option(
    "--batch", type=click.IntRange(min=1), default=32, show_default=True, help="images at a time, per process"
)
@click.option(
    "--seed",
    type=click.IntRange(0, commands.MAX_SEED),
    default=0,
    show_default=True,
    help="of latents, labels and shuffles",
)
@click.option(
    "--num-gen",
    type=click.IntRange(min=2),
    metavar="N",
    help="generated images, instead of the count in the names",
)
@metric_commands.labels_option
@click.option(
    "--inception",
    metavar="PATH|random",
    help=f"{names.INCEPTION_FILE}; random = untrained weights, whose numbers are marked  [default: cache, "
    "else download]",
)
@metric_commands.detector_option
@click.option(
    "--covariance",
    type=click.Choice(names.COVARIANCES),
    default=names.COVARIANCES[0],
    show_default=True,
    help="of Frechet distances: over n, as the published FID, or unbiased, over n - 1, as torch-fidelity "
    "and pytorch-fid",
)
@metric_commands.repeats_option
@metric_commands.interval_options[0]
@metric_commands.interval_options[1]
@click.option("--report", metavar="HTML", help="page with the numbers, nearest real images and classes")
@click.option("--outdir", metavar="DIR", help="where records are kept  [default: the network's run folder]")
@click.option(
    "--force",
    is_flag=True,
    help="compare image sets of different preparation or resolution; the record says so",
)
@click.pass_context
@commands.one_line_errors
def main(context: click.Context, **options: Any) -> None:
    """The command line; its help is the module's docstring."""
    if context.invoked_subcommand is not None:
        return
    from generation import measure_command

    measure_command.run(options)


for command in metric_commands.SUBCOMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
