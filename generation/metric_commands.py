# SPDX-License-Identifier: Apache-2.0
"""The subcommands of calc_metrics.py: records side by side, and statistics written to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dnnlib import outputs
from generation import commands
from metrics import names

if TYPE_CHECKING:
    from metrics.comparison import Measurement, Verdict
    from metrics.evaluate import Evaluator


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.6g}"


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """Lines that show comparisons, a block per number."""
    lines: list[str] = []
    for name in dict.fromkeys(verdict.first.name for verdict in verdicts):
        group = [verdict for verdict in verdicts if verdict.first.name == name]
        lines += [name, f"  {_measured(group[0].first)}"]
        for verdict in group:
            noise = "" if verdict.noise is None else f" +- {_number(verdict.noise)}"
            sign = "+" if verdict.difference >= 0 else ""
            change = f"{sign}{_number(verdict.difference)}{noise}"
            lines.append(f"  {_measured(verdict.second)}  {change}  {verdict.text}")
            lines += [f"    note: {note}" for note in verdict.notes]
    return lines


def _measured(measurement: Measurement) -> str:
    count = len(measurement.values)
    seeds = f", mean of {count} seeds" if count > 1 else ""
    deviation = measurement.deviation
    spread = "" if deviation is None else f", standard deviation {_number(deviation)}"
    return f"{measurement.path}: {_number(measurement.value)}{seeds}{spread}"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """A comparison as JSON values."""
    first, second = verdict.first, verdict.second
    return {
        "metric": first.name,
        "first": {"path": first.path, "value": first.value, "seeds": len(first.values)},
        "second": {"path": second.path, "value": second.value, "seeds": len(second.values)},
        "difference": verdict.difference,
        "noise": verdict.noise,
        "tie": verdict.is_tie,
        "verdict": verdict.text,
        "notes": list(verdict.notes),
    }


@click.command()
@click.argument("records", nargs=-1, required=True, metavar="A B ...")
@click.option("--best", is_flag=True, help="the best line of each metric, not the newest")
@click.option(
    "--retraining",
    type=click.FloatRange(0, 1),
    default=names.RETRAINING,
    show_default=True,
    help="relative difference of a Frechet distance below which two training runs are a tie",
)
@click.option("--force", is_flag=True, help="compare numbers that were measured differently, with a note")
@click.option("--json", "use_json", is_flag=True, help="print JSON lines")
@commands.one_line_errors
def compare(records: tuple[str, ...], best: bool, retraining: float, force: bool, use_json: bool) -> None:
    """Compare metric records: each of B ... with A.

    A, B, ... are files of metric records (metric-*.jsonl, or the output of calc_metrics.py) or run folders.
    Lines that differ in the seed alone are repetitions: their mean is compared, and their spread is the
    uncertainty. Numbers that were measured differently are refused.
    """
    if len(records) < 2:
        raise ValueError(f"compare needs at least two files or run folders, got {len(records)}")
    from metrics import comparison

    verdicts = comparison.compare(records, best, retraining, force)
    for line in [json.dumps(as_json(v)) for v in verdicts] if use_json else table(verdicts):
        click.echo(line)


detector_option = click.option(
    "--detector",
    multiple=True,
    metavar="NAME=PATH|random",
    help=f"weights of a detector, may be repeated; NAME is {', '.join(names.DETECTORS)}",
)


labels_option = click.option(
    "--labels",
    type=click.Choice(names.LABEL_RULES),
    default="dataset",
    show_default=True,
    help="of generated images: drawn as the data set's are, or evenly",
)


def check_one_source(options: dict[str, Any]) -> None:
    """Raise ValueError unless exactly one of --network and --images is given."""
    if bool(options["network"]) == bool(options["images"]):
        raise ValueError("give either --network or --images")


@click.command()
@click.option("--images", metavar="DIR|ZIP|NPZ", help="data set or images")
@click.option("--network", metavar="PATH|URL", help="network file, run folder or hf://OWNER/NAME, instead")
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@click.option("--dest", required=True, metavar="NPZ", help="file to write")
@click.option(
    "--metrics", default="fid50k_full", show_default=True, metavar="LIST", help="metrics to prepare for"
)
@click.option(
    "--data",
    metavar="ZIP|DIR|NPZ",
    help="labels of a conditional network are drawn as this set's are  [default: the data set named in the "
    "network file]",
)
@labels_option
@click.option("--num-gen", type=click.IntRange(min=2), metavar="N", help="generated images")
@click.option("--seed", type=click.IntRange(0, commands.MAX_SEED), default=0, show_default=True)
@click.option("--truncation", type=float, default=1.0, show_default=True, help="truncation psi")
@commands.precision_option
@click.option("--resolution", type=int, metavar="N", help="bring images to this size")
@click.option("--inception", metavar="PATH|random", help="as for calc_metrics.py")
@detector_option
@commands.device_option
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="images at a time")
@commands.one_line_errors
def statistics(**options: Any) -> None:
    """Write statistics of images or of a network's images, which can stand for them in --data and --images.

    The file also has mu and sigma, by which ADM's evaluator and pytorch-fid read it.
    """
    from generation import metric_sources
    from metrics import export
    from torch_utils.devices import use_device

    check_one_source(options)
    if options["images"] and (options["data"] or options["truncation"] != 1):
        raise ValueError("--data and --truncation are for --network, not for --images")
    if not metric_sources.is_npz(options["dest"]):
        raise ValueError(f"--dest={options['dest']}: name a file that ends in .npz")
    outputs.check_output(
        "--dest",
        options["dest"],
        data={"--images": options["images"], "--data": options["data"]},
        inputs={"--network": options["network"]},
    )
    written: dict[str, Any]
    if options["network"]:
        options = {**options, "centroids_path": None}
        network = metric_sources.load_network(options, use_device(options["device"]))
        assert network is not None
        evaluator = _statistics_evaluator(options, metric_sources.labels_source(options, network))
        identity = metric_sources.identity_of(network, options)
        details = {"dataset": Path(network.path).name, "label_rule": options["labels"], **identity}
        written = {"generator": metric_sources.generator_of(network, options), "details": details}
    else:
        images = metric_sources.open_image_set(options, None)
        if not hasattr(images, "__getitem__"):
            raise ValueError(f"--images={options['images']} holds statistics already")
        evaluator = _statistics_evaluator(options, images)
        evaluator.check_data()
        written = {"image_set": images}
    Path(options["dest"]).parent.mkdir(parents=True, exist_ok=True)
    export.write_statistics(evaluator, options["dest"], **written)
    click.echo(options["dest"])


def _statistics_evaluator(options: dict[str, Any], dataset: Any) -> Evaluator:
    """The evaluator of the command `statistics`; its detectors' weights are there."""
    from metrics import detectors, evaluate
    from torch_utils.devices import use_device

    evaluator = evaluate.Evaluator(
        dataset,
        options["metrics"],
        num_gen=options["num_gen"],
        device=use_device(options["device"]),
        batch=options["batch"],
        seed=options["seed"],
        labels=options["labels"],
        inception=options["inception"],
        weights=detectors.parse_weights(options["detector"]),
        trust=options["trust_pickle"],
    )
    evaluator.check_weights()
    return evaluator


SUBCOMMANDS = (compare, statistics)
MAX_REPEATS = 1000
repeats_option = click.option(
    "--repeats",
    type=click.IntRange(1, MAX_REPEATS),
    default=1,
    show_default=True,
    help="seeds that a network is measured with; the table has minimum, mean and standard deviation",
)
interval_options = (
    click.option(
        "--bootstrap",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        metavar="N",
        help="standard deviation by N random halves of the generated images; their features stay in memory",
    ),
    click.option(
        "--extrapolate", is_flag=True, help="also the Frechet distance for infinitely many generated images"
    ),
)
