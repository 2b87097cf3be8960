# SPDX-License-Identifier: Apache-2.0
"""What calc_metrics.py does once its command line is parsed: checks, measurement, records and table.

calc_metrics.py itself imports only the options, so that --help does not wait for torch.
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
from torch_utils import distributed, launcher, timm_weights
from torch_utils.devices import pick_device, use_device
from training import run_folder


def run(options: dict[str, Any]) -> None:
    """Execute the command line.

    Args:
        options: The flags by name.

    Raises:
        ValueError, OSError: One line about what is wrong.
    """
    check_options(options)
    # Mistakes are found here, once, before processes start and hours pass.
    network = metric_sources.load_network(options, "cpu")
    if network is not None:
        options["network"] = network.path  # the file, where a run folder was named
        check_resolution(options, network)
        if options["centroids_path"]:
            render.load_centroids(options["centroids_path"], network.G.w_dim)
    evaluator = metric_sources.make_evaluator(options, network, pick_device(options["device"]))
    check_measured(options, network, evaluator)
    options["records"] = record_folder(options)
    del network, evaluator
    launcher.launch(measure, options["gpus"], options)


def check_options(options: dict[str, Any]) -> None:
    """Raises ValueError for options that do not go together."""
    metric_commands.check_one_source(options)
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


def check_resolution(options: dict[str, Any], network: render.Network) -> None:
    """Raises ValueError for a --resolution that the network does not have, before the data are resized."""
    asked, made = options["resolution"], network.G.img_resolution
    if asked not in (None, made) and not options["force"]:
        raise ValueError(
            f"--resolution={asked}: the network makes images of {made} pixels; use --force to compare them"
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
    device = distributed.init(use_device(options["device"]).type)
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
