# SPDX-License-Identifier: Apache-2.0
"""Labelled images for attribute directions: a list of seeds, two folders of generated PNGs, or classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import bounded
from generation import commands, edits, render
from generation.direction_methods import Sample
from image_data import archives

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


def read_list(path: str, network: render.Network, truncation: float) -> list[Sample]:
    """Read labels of seeds.

    Args:
        path: A .csv file with the columns seed, label and optionally class; or a .json file with
            {"SEED": LABEL, ...} or a list of objects with these keys. Labels are 0 and 1.
        network: The network, for its classes.
        truncation: psi of the images that were labelled.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a list. One line.
    """
    text = bounded.read_text(path)
    rows = _json_rows(path, text) if Path(path).suffix.lower() == ".json" else _csv_rows(path, text)
    found = []
    for row in rows:
        where = f"--labels={path}: {row}"
        seed, label = str(row.get("seed", "")).strip(), str(row.get("label", "")).strip().lower()
        if not seed.isdecimal() or int(seed) > commands.MAX_SEED:
            raise ValueError(f"{where[:200]}: the seed must be an integer from 0 to {commands.MAX_SEED}")
        if label not in (*TRUE, *FALSE):
            raise ValueError(f"{where[:200]}: the label must be 0 or 1")
        chosen = row.get("class")
        index = None if chosen in (None, "") else _class(where[:200], str(chosen), network)
        found.append(Sample(int(seed), label in TRUE, index, truncation))
    return found


def _class(where: str, text: str, network: render.Network) -> int:
    try:
        return render.class_index(network, text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _csv_rows(path: str, text: str) -> list[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))  # the mark that spreadsheets write
    try:
        if not {"seed", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"--labels={path}: its first line must name the columns seed,label or seed,label,class"
            )
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"--labels={path}: not a CSV file ({error})") from None


def _json_rows(path: str, text: str) -> list[Mapping[str, Any]]:
    content = bounded.parse_json(text.encode(), f"--labels={path}")
    if isinstance(content, dict):
        return [{"seed": seed, "label": _plain(label)} for seed, label in content.items()]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return [{**row, "label": _plain(row.get("label"))} for row in content]
    raise ValueError(
        f'--labels={path}: write {{"SEED": LABEL, ...}} or a list of objects with seed and label'
    )


def _plain(label: Any) -> Any:
    return int(label) if isinstance(label, bool) else label


def read_folder(flag: str, folder: str, label: bool, network: render.Network) -> list[Sample]:
    """Read the seeds of the PNG files in a folder, which gen_images.py wrote into them.

    Args:
        flag: The option that names the folder, for messages.
        folder: The folder.
        label: The label of its images.
        network: The network that must have made them.

    Raises:
        ValueError: No PNG file, or one of another network or of several images. One line.
    """
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise ValueError(f"{flag}={folder}: contains no PNG files")
    return [_sample(f"{flag}={folder}: {path.name}", path, label, network) for path in paths]


def _sample(where: str, path: Path, label: bool, network: render.Network) -> Sample:
    try:
        data = archives.FolderReader(path.parent).read(archives.Entry(path.name))
        with archives.open_image(data) as image:
            text = {key: str(value) for key, value in image.info.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    seed, index = text.get("seed", ""), text.get("class")
    if not seed.isdecimal() or "images_per_seed" in text or "grid" in text:
        raise ValueError(f"{where} does not name its one seed: use the PNG files of gen_images.py")
    if text.get("network_sha256") != str(network.sha256):
        raise ValueError(f"{where} was made by another network than {network.path}")
    if "edits" in text or "centroids" in text:
        raise ValueError(f"{where} was made with --edit or --centroids-path: make it without them")
    chosen = None if index is None else _class(where, index, network)
    truncation = edits.numbers(f"{where}: truncation", text.get("truncation", "1"))[0]
    return Sample(int(seed), label, chosen, truncation)


def of_classes(positive: int, negative: int, count: int, seed: int, truncation: float) -> list[Sample]:
    """Images of two classes, `count` of each: the attribute is the class.

    Args:
        positive: The class with the attribute.
        negative: The class without it.
        count: Number of images of each.
        seed: Random seed of the images' seeds.
        truncation: psi.
    """
    seeds = np.random.RandomState(seed).randint(0, commands.MAX_SEED, 2 * count, dtype=np.int64).tolist()
    return [
        Sample(value, row < count, positive if row < count else negative, truncation)
        for row, value in enumerate(seeds)
    ]
