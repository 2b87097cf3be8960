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

import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import dnnlib.util
from dnnlib import outputs
from generation import commands, metric_commands, metric_report, metric_sources, render
from metrics import evaluate
from metrics.detectors import INCEPTION_FILE
from metrics.registry import COVARIANCES
from torch_utils import distributed, launcher, memory, timm_weights
from torch_utils.devices import pick_device
from training import run_folder


def record_folder(options: dict[str, Any]) -> Path | None:
    """Where records are kept: --outdir, or the network's run folder if it can be written.

    Raises:
        ValueError: --outdir cannot be written.
    """
    if options["outdir"]:
        reason = dnnlib.util.why_not_writable(options["outdir"])
        if reason:
            raise ValueError(
                f"--outdir={options['outdir']} cannot be written ({reason}): name another folder"
            )
        return Path(options["outdir"])
    network = options["network"]
    if (
        network
        and not dnnlib.util.is_url(network)
        and not network.startswith("hf://")
        and run_folder.is_run_folder(Path(network).parent)
    ):
        reason = dnnlib.util.why_not_writable(Path(network).parent)
        if not reason:
            return Path(network).parent
        click.echo(
            f"Warning: {Path(network).parent} cannot be written ({reason}): no record is kept there; see "
            "--outdir",
            err=True,
        )
    return None


def measure(options: dict[str, Any]) -> None:
    """One process of the measurement; process 0 prints and keeps the records."""
    with outputs.interruptible():  # in processes of their own, too
        _measure(options)


def _measure(options: dict[str, Any]) -> None:
    memory.keep_freed_memory()
    device = distributed.init(pick_device(options["device"]).type)
    network = metric_sources.load_network(options, device)
    evaluator = metric_sources.make_evaluator(options, network, device)
    folder = options["records"]
    if folder and distributed.is_main():
        evaluator.check_records(folder)
    measured = None if network else metric_sources.open_image_set(options, evaluator.dataset)
    records: list[evaluate.Record] = []
    for seed in range(options["seed"], options["seed"] + options["repeats"]):
        evaluator.seed = seed
        if network is None:
            found = evaluator.compare(measured)
        else:
            measured = metric_sources.generator_of(network, options)
            centroids = metric_sources.centroids_details(options)
            found = evaluator(
                measured,
                truncation=options["truncation"],
                snapshot=options["network"],
                trained_on=metric_sources.trained_on(network),
                details={"centroids": centroids} if centroids else None,
                identity=metric_sources.identity_of(network, options),
            )
        if distributed.is_main():
            keep(found, folder, options)
        records += found
    if distributed.is_main():
        if options["verbose"]:
            show(records, folder)
        evaluator.seed = options["seed"]
        metric_report.write_if_asked(options["report"], evaluator, measured, records)
    distributed.shutdown()


def keep(records: Sequence[evaluate.Record], folder: Path | None, options: dict[str, Any]) -> None:
    """Print records as JSON lines and append them to their files, if there is a folder for them."""
    for record in records:
        click.echo(json.dumps(record.as_dict()))
        if folder:
            evaluate.write_record(folder, record, options["force"])


def show(records: Sequence[evaluate.Record], folder: Path | None) -> None:
    """Print the table to stderr."""
    width = max(len(name) for name in evaluate.numbers(records))
    for metric in dict.fromkeys(record.metric for record in records):
        repeats = [record for record in records if record.metric == metric]
        for name in repeats[0].results:
            values = [record.results[name] for record in repeats]
            notes = f"  ({'; '.join(repeats[0].notes)})" if repeats[0].notes else ""
            click.echo(f"  {name.ljust(width)}  {_summary(values)}{notes}", err=True)
        for line in _intervals(repeats[-1]):
            click.echo(f"    {line}", err=True)
    adapted = records[0].conditions.get("images", {}).get("adapted")
    if adapted:
        done = ", ".join(f"{count:,} {what}" for what, count in adapted.items())
        click.echo(
            f"Images of another size than {records[0].conditions['images']['resolution']} pixels: {done}",
            err=True,
        )
    if folder:
        click.echo(f"Records: {run_folder.metric_file(folder, 'NAME')}", err=True)


def _summary(values: Sequence[float]) -> str:
    """A number, or minimum, mean and standard deviation of several seeds."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return (
        f"{mean:.4f}  ({len(values)} seeds: minimum {min(values):.4f}, mean {mean:.4f}, standard deviation "
        f"{deviation:.4f})"
    )


def _intervals(record: evaluate.Record) -> list[str]:
    """Lines about the interval and the extrapolation of a record."""
    lines = []
    interval = record.conditions.get("interval")
    if interval:
        halves = f"({interval['repeats']} random halves)"
        for name, deviation in interval["std"].items():
            lines.append(f"{name}: standard deviation {deviation:.4f} under other samples {halves}")
    infinity = record.conditions.get("infinity")
    if infinity:
        lines.append(f"{record.metric}: {infinity['value']:.4f} extrapolated to infinitely many samples")
    return lines


@click.group(
    invoke_without_command=True,
    context_settings={"max_content_width": 140},
    help=str(__doc__).replace("\n\n", "\n\n\b\n"),
)
@click.option(
    "--network",
    metavar="PATH|URL",
    help="network file to measure (.pkl, or .safetensors with its .json), run folder or hf://OWNER/NAME",
)
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@click.option("--images", metavar="DIR|ZIP|NPZ", help="images or statistics to measure, instead of a network")
@click.option(
    "--metrics", default="fid50k_full", show_default=True, metavar="LIST", help="comma-separated names"
)
@click.option(
    "--data",
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
@click.option(
    "--labels",
    type=click.Choice(evaluate.LABEL_RULES),
    default="dataset",
    show_default=True,
    help="of generated images: drawn as the data set's are, or evenly",
)
@click.option(
    "--inception",
    metavar="PATH|random",
    help=f"{INCEPTION_FILE}; random = untrained weights, whose numbers are marked  [default: cache, else "
    "download]",
)
@metric_commands.detector_option
@click.option(
    "--covariance",
    type=click.Choice(COVARIANCES),
    default=COVARIANCES[0],
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
    check_options(options)
    # Mistakes are found here, once, before processes start and hours pass.
    network = metric_sources.load_network(options, "cpu")
    if network is not None:
        options["network"] = network.path  # the file, where a run folder was named
        if options["centroids_path"]:
            render.load_centroids(options["centroids_path"], network.G.w_dim)
    evaluator = metric_sources.make_evaluator(options, network, pick_device(options["device"]))
    check_measured(options, network, evaluator)
    options["records"] = record_folder(options)
    del network, evaluator
    launcher.launch(measure, options["gpus"], options)


def check_options(options: dict[str, Any]) -> None:
    """Raises ValueError for options that do not go together."""
    if bool(options["network"]) == bool(options["images"]):
        raise ValueError("give either --network or --images")
    if options["images"] and (options["truncation"] != 1 or options["centroids_path"]):
        raise ValueError("--truncation and --centroids-path are for networks, not for --images")
    if options["images"] and options["repeats"] > 1:
        raise ValueError("--repeats draws other latents and needs --network: use --bootstrap for --images")
    if options["seed"] + options["repeats"] - 1 > commands.MAX_SEED:
        raise ValueError(f"--seed={options['seed']}: seeds go up to {commands.MAX_SEED}")
    inputs = {"--images": options["images"], "--data": options["data"]}
    if options["outdir"] is not None:
        outputs.check_output("--outdir", options["outdir"], data=inputs, folder=True)
    if options["report"] is not None:
        outputs.check_output(
            "--report", options["report"], data=inputs, inputs={"--network": options["network"]}
        )


def check_measured(
    options: dict[str, Any], network: render.Network | None, evaluator: evaluate.Evaluator
) -> None:
    """Check the images and the detectors' weights, and print what the sets are.

    Raises:
        ValueError, OSError: They cannot be measured.
    """
    image_set = None
    if network is None:
        image_set = metric_sources.open_image_set(options, evaluator.dataset)
        evaluator.fitted(image_set)
        warning = (
            evaluate.lossy_difference(image_set, evaluator.dataset) if evaluator.dataset is not None else None
        )
        if warning:
            click.echo(f"Warning: {warning}", err=True)
    for warning in filter(None, (metric.warning for metric in evaluator.metrics)):
        click.echo(f"Warning: {warning}", err=True)
    try:
        evaluator.check()
    except timm_weights.MissingWeights as error:
        words = ["python", "train.py", "--prefetch", f"--metrics={options['metrics']}"]
        command = shlex.join([*words, "--backbones=tf_efficientnet_lite0"])
        raise timm_weights.MissingWeights(f"{error}; or, with internet access, run: {command}") from None
    if options["verbose"]:
        for flag, shown in (("--images", image_set), ("--data", evaluator.dataset)):
            if shown is not None:
                click.echo(f"{flag}={shown.path}: {len(shown):,} images; {shown.labels_summary}", err=True)


for command in metric_commands.SUBCOMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
