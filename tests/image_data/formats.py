# SPDX-License-Identifier: Apache-2.0
"""The same images as a folder, and in every other format that dataset_tool.py reads."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.toy_data import pixels, png, write_folder, write_zip

CLASSES = ["bus", "cat"]
LABELS = [1, 0, 1, 1, 0]
NAMES = [f"{i:03d}.png" for i in range(len(LABELS))]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": CLASSES},
}


def images() -> dict[str, bytes]:
    return {name: png(i) for i, name in enumerate(NAMES)}


def write_twin(folder: Path) -> Path:
    """The folder that the other formats are compared with: its names sort like NAMES."""
    labels = [[name, label] for name, label in zip(NAMES, LABELS, strict=True)]
    index = {"labels": labels, "metadata": {"class_names": CLASSES}}
    return write_folder(folder / "twin", {**images(), "dataset.json": json.dumps(index).encode()})


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, record: bool = False, values: list[Any] | None = None) -> Path:
    """Two shards, train-000 and train-001, with .cls or .json files."""
    values = [CLASSES[label] for label in LABELS] if values is None else values
    for shard, part in enumerate((slice(0, 3), slice(3, None))):
        files: dict[str, bytes] = {}
        for name, value in zip(NAMES[part], values[part], strict=True):
            files[name] = images()[name]
            ending, text = ("json", json.dumps({"label": value})) if record else ("cls", str(value))
            files[name.replace("png", ending)] = text.encode()
        write_tar(folder / f"train-{shard:03d}.tar", files)
    return folder


def write_parquet(path: Path, table: Mapping[str, Any], features: Any = None, **options: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    arrow = pyarrow.table(dict(table))
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        arrow = arrow.replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(arrow, path, **options)
    return path


def image_structs(part: slice = slice(None)) -> list[dict[str, Any]]:
    return [{"bytes": content, "path": name} for name, content in list(images().items())[part]]


def _table(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == "jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def table_rows() -> list[dict[str, Any]]:
    return [
        {"file_name": name, "text": "a, b", "label": CLASSES[label]}
        for name, label in zip(NAMES, LABELS, strict=True)
    ]


def write_image_folder(folder: Path, ending: str, prefix: str = "train/") -> dict[str, bytes]:
    files = {f"{prefix}{name}": content for name, content in images().items()}
    return {**files, f"{prefix}metadata.{ending}": _table(table_rows(), ending)}


def write(kind: str, folder: Path) -> Path:
    """The images in a format, by its name in KINDS."""
    stack = np.stack([pixels(i) for i in range(len(LABELS))])
    names = np.array([CLASSES[label].encode() for label in LABELS])
    if kind in ("csv", "jsonl"):
        return write_folder(folder / kind, write_image_folder(folder, kind))
    if kind == "csv in zip":
        return write_zip(folder / "csv.zip", write_image_folder(folder, "csv", ""))
    if kind in ("shards", "shards with .json"):
        return write_shards(folder / "shards", record=kind != "shards")
    if kind == "pattern":
        write_shards(folder / "shards")
        return folder / "shards" / "train-{000..001}.tar"
    if kind == "tar of folders":
        named = zip(images().items(), LABELS, strict=True)
        return write_tar(
            folder / "x.tar", {f"{CLASSES[label]}/{name}": data for (name, data), label in named}
        )
    if kind == "parquet":
        for file, part in enumerate((slice(0, 3), slice(3, None))):
            columns = {"image": image_structs(part), "label": LABELS[part]}
            write_parquet(
                folder / "set" / f"train-0000{file}-of-00002.parquet", columns, FEATURES, row_group_size=2
            )
        return folder / "set"
    if kind == "parquet of binaries":
        columns = {"jpg": list(images().values()), "cls": [CLASSES[label] for label in LABELS]}
        return write_parquet(folder / "x.parquet", columns)
    if kind == "npz":
        np.savez_compressed(folder / "x.npz", images=stack, labels=names)
        return folder / "x.npz"
    import h5py

    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("images", data=stack, chunks=(2, *stack.shape[1:]), compression="gzip")
        file["labels"] = names
    return folder / "x.h5"


KINDS = [
    "csv",
    "jsonl",
    "csv in zip",
    "shards",
    "shards with .json",
    "pattern",
    "tar of folders",
    "parquet",
    "parquet of binaries",
    "npz",
    "hdf5",
]
NEEDS = {"parquet": "pyarrow", "parquet of binaries": "pyarrow", "hdf5": "h5py"}
