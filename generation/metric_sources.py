# SPDX-License-Identifier: Apache-2.0
"""The two sides of calc_metrics.py: networks, run folders, image files, data sets and statistics."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import dnnlib.util
from dnnlib.progress import Stages
from generation import render
from generation.measured import MeasuredGenerator
from image_data import archives, labels
from metrics import collect, detectors, evaluate, registry
from metrics.statistics_file import open_npz
from training import run_folder
from training.build import make_dataset
from training.config import DataConfig
from training.data.dataset import ImageDataset, Unlabelled

Options = Mapping[str, Any]  # of the command line


def load_network(options: Options, device: torch.device | str) -> render.Network | None:
    """The network to measure; None without --network."""
    if not options["network"]:
        return None
    return render.load_network(
        options["network"], device, trust_pickle=options["trust_pickle"], precision=options["precision"]
    )


def generator_of(network: render.Network, options: Options) -> MeasuredGenerator:
    """The network's generator, truncated as asked."""
    path = options["centroids_path"]
    centroids = render.load_centroids(path, network.G.w_dim) if path else None
    return MeasuredGenerator(network.G, options["truncation"], centroids)


def identity_of(network: render.Network, options: Options) -> dict[str, Any]:
    """What the network's images depend on, so that a killed evaluation can resume."""
    return {
        "network": network.sha256,
        "truncation": options["truncation"],
        "centroids": centroids_details(options),
        "precision": options["precision"],
    }


def centroids_details(options: Options) -> dict[str, Any] | None:
    """What a record says of --centroids-path."""
    path = options["centroids_path"]
    return {"path": path, "sha256": dnnlib.util.sha256_file(dnnlib.util.fetch(path))} if path else None


def reference_path(network: render.Network | None, data: str | None) -> str:
    """The data set to compare with: --data, or the one that the network file names.

    Raises:
        ValueError: Neither is here.
    """
    if data is not None:
        return data
    path = network.training_set_kwargs.get("path") if network else None
    if not isinstance(path, str):
        raise ValueError("--data is missing: name the data set to compare with")
    if not Path(path).exists():
        raise ValueError(
            f"--data is missing, and the data set that the network file names ({path}) is not here: name the "
            "data set to compare with"
        )
    return path


def trained_on(network: render.Network) -> dict[str, Any] | None:
    """How the network's training images were prepared; None if its file does not say."""
    data = network.provenance.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return None
    return evaluate.preparation_from(metadata, network.G.img_resolution)


class NoDataset:
    """Stands for the data set of a network that draws its labels evenly, or has none."""

    name, has_labels = "no data set", False

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def __len__(self) -> int:
        return 0


def labels_source(options: Options, network: render.Network) -> Any:
    """The data set that labels of generated images are drawn from.

    Raises:
        ValueError, OSError: It is needed, and is missing or cannot be read.
    """
    if network.G.c_dim and options["labels"] == "dataset":
        return open_reference(options, network, needs_labels=True)
    return NoDataset(network.G.img_resolution)


def is_prepared(path: str) -> bool:
    """Whether a folder or zip has a dataset.json; its images are then taken as they are.

    Raises:
        ValueError: It has one in another letter case.
    """
    if is_npz(path) or (not os.path.isdir(path) and not zipfile.is_zipfile(path)):
        return False
    archive = labels.unwrapped(archives.open_archive(path))
    labels.check_index_name(archive)
    return archive.index is not None


def is_npz(path: str) -> bool:
    """Whether a path names an .npz file."""
    return path.lower().endswith(".npz")


def open_reference(options: Options, network: render.Network | None, needs_labels: bool) -> Any:
    """The images or statistics to compare with.

    Raises:
        ValueError, OSError: There are none, or they cannot be read.
    """
    path = reference_path(network, options["data"])
    if is_npz(path):
        return open_npz(path, options["resolution"])
    if network is None and not is_prepared(path):
        return evaluate.ImageFiles(path, options["resolution"])
    if not needs_labels and options.get("report"):
        with contextlib.suppress(ValueError):  # the page has classes, if there are some
            return open_reference({**options, "report": None}, network, True)
    data = DataConfig(path=path, cond=needs_labels, resolution=options["resolution"])
    evenly = "use --labels=uniform, which draws the classes of generated images evenly"
    try:
        return make_dataset(data, options["seed"])
    except Unlabelled as error:
        raise ValueError(f"{error.problem}: {evenly}") from None
    except labels.Undecided as error:
        raise ValueError(f"{error}; or {evenly}") from None


def open_image_set(options: Options, reference: Any) -> Any:
    """The images or statistics to measure: a data set as it is, other images in the reference's size."""
    path = options["images"]
    if run_folder.is_run_folder(path) or run_folder.is_recipe_folder(path):
        raise ValueError(f"--images={path} is the folder of a run, whose pictures are grids: use --network")
    if is_prepared(path):
        with contextlib.suppress(ValueError):  # without labels, or damaged: the next line says which
            return ImageDataset(path, use_labels=True)
        return ImageDataset(path)
    size = options["resolution"] or getattr(reference, "resolution", None)
    return open_npz(path, size) if is_npz(path) else evaluate.ImageFiles(path, size)


def make_evaluator(
    options: Options, network: render.Network | None, device: torch.device
) -> evaluate.Evaluator:
    """The evaluator for a command line; opens the data set, loads no detector.

    Raises:
        ValueError: Options do not go together.
    """
    metrics = registry.parse_list(options["metrics"], options["num_gen"])
    if not metrics:
        raise ValueError("--metrics names no metric")
    conditional = network is not None and network.G.c_dim > 0
    needs_labels = conditional and options["labels"] == "dataset"
    needs_real = any(metric.family.needs_real for metric in metrics) or bool(options["report"])
    dataset = open_reference(options, network, needs_labels) if needs_labels or needs_real else None
    return evaluate.Evaluator(
        dataset,
        options["metrics"],
        num_gen=options["num_gen"],
        device=device,
        batch=options["batch"],
        seed=options["seed"],
        labels=options["labels"],
        covariance=options["covariance"],
        bootstrap=options["bootstrap"],
        extrapolate=options["extrapolate"],
        inception=options["inception"],
        weights=detectors.parse_weights(options["detector"]),
        trust=options["trust_pickle"],
        force=options["force"],
        progress=Stages(collect.STAGES, silent=2) if options["verbose"] else None,
    )
