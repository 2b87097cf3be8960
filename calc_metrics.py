# SPDX-License-Identifier: Apache-2.0
"""Numbers for a network pickle or an image set.

    # FID and Inception Score of a network against the data set it was trained on
    python calc_metrics.py --network=training-runs/00000-stylegan3-t-emoji16-gpus1-batch64/best_model.pkl
    --metrics=fid50k_full,is50k

    # the same distance on EfficientNet-Lite0's features, which needs no download; 5,000 generated images
    against 10,000 real ones python calc_metrics.py --network=network-snapshot.pkl --metrics=fd_lite0_5k
    --data=emoji16.zip

    # one image set against another: any size, grey or transparent images
    python calc_metrics.py --images=out/ --data=emoji16.zip --metrics=fd_lite0

    # Inception's weights from a file
    python calc_metrics.py --network=network-snapshot.pkl --metrics=fid50k_full
    --inception=pt_inception-2015-12-05-6726825d.pth

Metric names: fid, is, kid, pr_inception and fd_lite0, each with any count of generated images
(metrics/registry.py has the grammar, docs/metrics.md the conventions). Image files are turned upright and
made 8-bit RGB, with grey values in all channels and transparency laid on white; those of another size than
the data set become their largest centred square, resized with Lanczos. A data set with a dataset.json is
taken as it is.

Every number comes as one JSON line on stdout that says what it was measured on; the table and the progress go
to stderr. The line is also appended to metric-NAME.jsonl in --outdir, by default the folder of the network if
that is a run folder.
"""

from __future__ import annotations

import json
import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

import click
import torch

import dnnlib.util
from dnnlib import outputs
from dnnlib.progress import Stages
from generation import commands, render
from generation.measured import MeasuredGenerator
from image_data import archives, labels
from metrics import collect, evaluate, registry
from metrics.detectors import INCEPTION_FILE
from metrics.registry import COVARIANCES
from torch_utils import distributed, timm_weights
from torch_utils.devices import pick_device
from training import run_folder
from training.build import make_dataset
from training.config import DataConfig
from training.data.dataset import ImageDataset


def reference_path(network: render.Network | None, data: str | None) -> str:
    """The data set to compare with: --data, or what the pickle was trained on. Raises ValueError if neither
    is here.
    """
    if data is not None:
        return data
    trained_on = network.training_set_kwargs.get("path") if network else None
    if not isinstance(trained_on, str):
        raise ValueError("--data is missing: name the data set to compare with")
    if not Path(trained_on).exists():
        raise ValueError(
            f"--data is missing, and the data set that the pickle names ({trained_on}) is not here: name "
            "the data set to compare with"
        )
    return trained_on


def trained_on(network: render.Network) -> dict[str, Any] | None:
    """How the network's training images were prepared, if its pickle says."""
    data = network.provenance.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    return (
        evaluate.preparation_from(metadata, network.G.img_resolution) if isinstance(metadata, dict) else None
    )


def record_folder(options: dict[str, Any]) -> Path | None:
    """Where records are kept: --outdir, or the run folder that the network lies in, if it can be written.

    Raises ValueError if --outdir cannot.
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


def make_evaluator(
    options: dict[str, Any], network: render.Network | None, device: torch.device
) -> evaluate.Evaluator:
    """The evaluator that the options ask for; opens the data set, loads no detector. Raises ValueError for
    options that do not go together.
    """
    metrics = registry.parse_list(options["metrics"], options["num_gen"])
    if not metrics:
        raise ValueError("--metrics names no metric")
    conditional = network is not None and network.G.c_dim > 0
    needs_labels = conditional and options["labels"] == "dataset"
    dataset: Any = None
    if needs_labels or any(metric.family.needs_real for metric in metrics):
        path = reference_path(network, options["data"])
        if network is None and not is_prepared(path):
            dataset = evaluate.ImageFiles(path, options["resolution"])
        else:
            data = DataConfig(path=path, cond=needs_labels, resolution=options["resolution"])
            dataset = make_dataset(data, options["seed"])
    return evaluate.Evaluator(
        dataset,
        options["metrics"],
        num_gen=options["num_gen"],
        device=device,
        batch=options["batch"],
        seed=options["seed"],
        labels=options["labels"],
        covariance=options["covariance"],
        inception=options["inception"],
        force=options["force"],
        progress=Stages(collect.STAGES, silent=2) if options["verbose"] else None,
    )


def is_prepared(path: str) -> bool:
    """Whether a folder or zip says in a dataset.json what it is; its images are then taken as they are."""
    if not os.path.isdir(path) and not zipfile.is_zipfile(path):
        return False
    return labels.unwrapped(archives.open_archive(path)).index is not None


def open_image_set(options: dict[str, Any], reference: Any) -> Any:
    """The images to measure: a prepared data set as it is, other images at the size of what they are compared
    with.
    """
    if is_prepared(options["images"]):
        return ImageDataset(options["images"])
    size = options["resolution"] or (None if reference is None else int(reference.resolution))
    return evaluate.ImageFiles(options["images"], size)


def load_network(options: dict[str, Any], device: torch.device | str) -> render.Network | None:
    """The network to measure, if it is one."""
    if not options["network"]:
        return None
    return render.load_network(
        options["network"], device, trust_pickle=options["trust_pickle"], precision=options["precision"]
    )


def measure(options: dict[str, Any]) -> None:
    """One process of the measurement; process 0 prints and keeps the records."""
    with outputs.interruptible():  # in processes of their own, too
        _measure(options)


def _measure(options: dict[str, Any]) -> None:
    device = distributed.init(pick_device(options["device"]).type)
    network = load_network(options, device)
    evaluator = make_evaluator(options, network, device)
    folder = options["records"]
    if folder and distributed.is_main():
        evaluator.check_records(folder)
    if network is None:
        records = evaluator.compare(open_image_set(options, evaluator.dataset))
    else:
        path = options["centroids_path"]
        centroids = render.load_centroids(path, network.G.w_dim) if path else None
        records = evaluator(
            MeasuredGenerator(network.G, options["truncation"], centroids),
            truncation=options["truncation"],
            snapshot=options["network"],
            trained_on=trained_on(network),
            details={"centroids": {"path": path, "sha256": dnnlib.util.sha256_file(dnnlib.util.fetch(path))}}
            if path
            else None,
        )
    if distributed.is_main():
        report(records, folder, options)
    distributed.shutdown()


def report(records: list[evaluate.Record], folder: Path | None, options: dict[str, Any]) -> None:
    """Table to stderr, JSON lines to stdout and, where there is a folder for them, to files."""
    width = max(len(name) for name in evaluate.numbers(records))
    for record in records if options["verbose"] else ():
        notes = f"  ({'; '.join(record.notes)})" if record.notes else ""
        for name, value in record.results.items():
            click.echo(f"  {name.ljust(width)}  {value:.4f}{notes}", err=True)
    adapted = records[0].conditions.get("images", {}).get("adapted") if options["verbose"] else None
    if adapted:
        done = ", ".join(f"{count:,} {what}" for what, count in adapted.items())
        click.echo(
            f"Images of another size than {records[0].conditions['images']['resolution']} pixels: {done}",
            err=True,
        )
    for record in records:
        click.echo(json.dumps(record.as_dict()))
        if folder:
            evaluate.write_record(folder, record, options["force"])
    if folder and options["verbose"]:
        click.echo(f"Records: {run_folder.metric_file(folder, 'NAME')}", err=True)


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--network",
    metavar="PATH|URL",
    help="network pickle to measure, or run folder, or .safetensors with its .json, or hf://OWNER/NAME",
)
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@click.option("--images", metavar="DIR|ZIP", help="image set to measure, instead of a network")
@click.option(
    "--metrics", default="fid50k_full", show_default=True, metavar="LIST", help="comma-separated names"
)
@click.option(
    "--data", metavar="ZIP|DIR", help="data set to compare with  [default: the one the pickle was trained on]"
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
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="where to compute",
)
@commands.precision_option
@click.option(
    "--batch", type=click.IntRange(min=1), default=32, show_default=True, help="images at a time, per process"
)
@click.option(
    "--seed",
    type=click.IntRange(0, render.MAX_SEED),
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
@click.option(
    "--covariance",
    type=click.Choice(COVARIANCES),
    default=COVARIANCES[0],
    show_default=True,
    help="of Frechet distances: over n, as the published FID, or unbiased, over n - 1, as torch-fidelity "
    "and pytorch-fid",
)
@click.option("--outdir", metavar="DIR", help="where records are kept  [default: the network's run folder]")
@click.option(
    "--force",
    is_flag=True,
    help="compare image sets of different preparation or resolution; the record says so",
)
@commands.one_line_errors
def main(**options: Any) -> None:
    if bool(options["network"]) == bool(options["images"]):
        raise ValueError("give either --network or --images")
    if options["images"] and (options["truncation"] != 1 or options["centroids_path"]):
        raise ValueError("--truncation and --centroids-path are for networks, not for --images")
    if options["outdir"] is not None:
        outputs.check_output(
            "--outdir",
            options["outdir"],
            data={"--images": options["images"], "--data": options["data"]},
            folder=True,
        )
    # Everything that can be wrong is looked at here, once, before processes start and hours pass.
    network = load_network(options, "cpu")
    if network is not None:
        options["network"] = network.path  # the file, where a run folder was named
        if options["centroids_path"]:
            render.load_centroids(options["centroids_path"], network.G.w_dim)
    evaluator = make_evaluator(options, network, pick_device(options["device"]))
    image_set = None
    if network is None:
        image_set = open_image_set(options, evaluator.dataset)
        evaluator.fitted(image_set)
        warning = (
            evaluate.lossy_difference(image_set, evaluator.dataset) if evaluator.dataset is not None else None
        )
        if warning:
            click.echo(f"Warning: {warning}", err=True)
    try:
        evaluator.check()
    except timm_weights.MissingWeights as error:
        command = shlex.join(
            [
                "python",
                "train.py",
                "--prefetch",
                f"--metrics={options['metrics']}",
                "--backbones=tf_efficientnet_lite0",
            ]
        )
        raise timm_weights.MissingWeights(f"{error}; or, where there is a network, run: {command}") from None
    if options["verbose"]:
        for flag, shown in (("--images", image_set), ("--data", evaluator.dataset)):
            if shown is not None:
                click.echo(f"{flag}={shown.path}: {len(shown):,} images; {shown.labels_summary}", err=True)
    options["records"] = record_folder(options)
    del network, evaluator
    distributed.launch(measure, options["gpus"], options)


if __name__ == "__main__":
    main()
