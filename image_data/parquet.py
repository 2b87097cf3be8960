# SPDX-License-Identifier: Apache-2.0
"""Parquet files with encoded images, as the package `datasets` writes them. Needs pyarrow.

The column of images is a struct {bytes, path} or binary. The column of labels has class indices or names. The
schema's metadata "huggingface" lists the features: which columns are images, and the names of classes.
"""

import bisect
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnnlib import util
from image_data import archives, parts
from image_data.classes import (
    LABEL_COLUMNS,
    ONE_CLASS,
    Classes,
    classes_of,
    listed,
    pick_column,
    with_names,
)
from image_data.entries import AGAIN, check_name
from image_data.streams import Item, Streamed

ENDING = ".parquet"
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "images")
IMAGE_FLAG, LABEL_FLAG = "--image-column", "--label-column"
_BATCH_ROWS = 32
_BUFFER_BYTES = 2**20


class Found(NamedTuple):
    """The images of Parquet files, their classes (None without a column of labels), and its name."""

    refs: Streamed
    names: list[str]  # of the images, from the column of images
    classes: Classes | None
    label_column: str | None
    others: list[str]  # files of other splits


class _Schema(NamedTuple):
    image: str
    label: str | None
    class_names: list[str] | None
    has_lists: bool  # of classes, as labels


def find(path: str) -> tuple[list[str], list[str]]:
    """The Parquet files of a path, and those of other splits that are left out.

    Raises:
        ValueError: a file of a pattern is missing, or the folder has several sets.
    """
    if parts.is_pattern(path, ENDING):
        return parts.files(path), []
    if os.path.isfile(path):
        return ([path], []) if path.endswith(ENDING) else ([], [])
    found = parts.in_folder(path, ENDING) if os.path.isdir(path) else []
    return parts.training_set(path, found) if found else ([], [])


def open_images(
    path: str, image_column: str | None = None, label_column: str | None = None, use_labels: bool = True
) -> Found:
    """Open the images of a Parquet file, a pattern or folder of such files, and read their labels.

    Args:
        path: the file, brace pattern or folder.
        image_column: the column of images; None = the one that the features or its type show.
        label_column: the column of labels; None = that of the features, or the first of LABEL_COLUMNS.
        use_labels: read the labels.

    Raises:
        ValueError: one line about the problem, or that pyarrow is missing.
    """
    files, others = find(path)
    readers = [_open(file) for file in files]
    rows = [reader.metadata.num_rows for reader in readers]
    if not any(rows):
        raise ValueError(f"{path}: contains no rows")
    schemas = [
        _schema(file, reader, image_column, label_column) for file, reader in zip(files, readers, strict=True)
    ]
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if schema != schemas[0]:
            raise ValueError(f"{file}: its columns or class names differ from those of {files[0]}")
    schema = schemas[0]
    opened = list(zip(files, readers, strict=True))
    names = [name for file, reader in opened for name in _names(file, reader, schema)]
    classes = None
    if schema.label is not None and use_labels:
        values = [_column(file, reader, schema.label) for file, reader in opened]
        classes = _classes(path, schema, values, names)
    refs = Streamed(path, sum(rows), _Blocks(files, schema.image, names), _starts(readers))
    return Found(refs, names, classes, schema.label, others)


def _module(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from None
    return pyarrow.parquet


def _open(path: str) -> Any:
    module = _module(path)
    try:
        # Without these options whole row groups, up to gigabytes, are read at once.
        return module.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except Exception as error:  # ArrowInvalid, OSError, and others for damaged metadata
        raise ValueError(f"{path}: not a readable Parquet file ({util.reason(error)}): {AGAIN}") from None


def _schema(path: str, reader: Any, image_column: str | None, label_column: str | None) -> _Schema:
    """Choose the columns."""
    arrow, features = reader.schema_arrow, _features(path, reader)
    columns = list(arrow.names)
    image = pick_column(path, columns, image_column, _image_columns(arrow, features), IMAGE_FLAG)
    if image is None:
        raise ValueError(
            f"{path}: no column of images (struct {{bytes, path}} or binary) among {listed(columns)}: choose "
            f"one with {IMAGE_FLAG}"
        )
    if not _is_image(arrow.field(image).type):
        raise ValueError(
            f"{path}: column {image} is {arrow.field(image).type}; images must be a struct {{bytes, path}} "
            "or binary"
        )
    labelled = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    known = [*(name for name in LABEL_COLUMNS if name in labelled), *labelled, *LABEL_COLUMNS]
    label = pick_column(path, columns, label_column, known, LABEL_FLAG)
    feature = features.get(label or "", {})
    names = feature.get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path}: the class names of column {label} are not a list of strings")
    return _Schema(image, label, names, _lists_classes(feature))


def _features(path: str, reader: Any) -> dict[str, dict[str, Any]]:
    """The features in the schema's metadata, by column; {} without any."""
    stored = (reader.schema_arrow.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        features = json.loads(stored)["info"]["features"]
        return {
            str(name): {"_type": "List", "feature": feature[0]} if isinstance(feature, list) else feature
            for name, feature in features.items()
            if isinstance(feature, dict) or (isinstance(feature, list) and feature)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f'{path}: the metadata "huggingface" of the schema is damaged') from None


def _lists_classes(feature: dict[str, Any]) -> bool:
    """Whether a feature is a list of classes."""
    inside = feature.get("feature")
    return isinstance(inside, dict) and inside.get("_type") == "ClassLabel"


def _image_columns(arrow: Any, features: dict[str, dict[str, Any]]) -> list[str]:
    """The names of columns that may be images, in order of preference."""
    declared = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    typed = [name for name in arrow.names if _is_image(arrow.field(name).type)]
    known = [name for name in IMAGE_COLUMNS if name in typed]
    return [
        *(name for name in IMAGE_COLUMNS if name in declared),
        *declared,
        *known,
        *typed[: len(typed) == 1],
    ]


def _is_image(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        # A column without any bytes, only paths, has the type null.
        return any(
            field.name == "bytes" and (_is_image(field.type) or types.is_null(field.type)) for field in fields
        )
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _column(path: str, reader: Any, column: str) -> Any:
    """The values of a column, an array of pyarrow."""
    try:
        return reader.read(columns=[column], use_threads=False).column(0).combine_chunks()
    except Exception as error:  # as in _open
        raise ValueError(f"{path}: column {column} cannot be read ({util.reason(error)}): {AGAIN}") from None


def _names(path: str, reader: Any, schema: _Schema) -> list[str]:
    """The paths beside the bytes of images; 'row 5' for rows without one."""
    kind, count = reader.schema_arrow.field(schema.image).type, reader.metadata.num_rows
    paths: list[str | None] = [None] * count
    if hasattr(kind, "num_fields") and "path" in [kind.field(i).name for i in range(kind.num_fields)]:
        paths = _column(path, reader, f"{schema.image}.path").field("path").to_pylist()
    return [name or f"{os.path.basename(path)} row {row}" for row, name in enumerate(paths)]


def _classes(where: str, schema: _Schema, columns: Sequence[Any], names: Sequence[str]) -> Classes:
    import pyarrow.types as types

    where = f"{where}: column {schema.label}"
    if schema.has_lists:
        raise ValueError(
            f"{where} has lists of classes: {ONE_CLASS}; choose another with {LABEL_FLAG}, or use "
            "--labels=none"
        )
    if all(_fits_int64(types, column) for column in columns):
        labels = np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns])
        return with_names(labels.astype(np.int64), where, schema.class_names)
    values = list(itertools.chain.from_iterable(column.to_pylist() for column in columns))
    return classes_of(values, where, names, schema.class_names)


def _fits_int64(types: Any, column: Any) -> bool:
    return types.is_integer(column.type) and not types.is_uint64(column.type) and not column.null_count


def _group_starts(readers: Sequence[Any]) -> list[int]:
    """The indices of the first images of all row groups."""
    counts = [
        reader.metadata.row_group(group).num_rows
        for reader in readers
        for group in range(reader.metadata.num_row_groups)
    ]
    return [0, *itertools.accumulate(counts)][:-1] or [0]


def _starts(readers: Sequence[Any]) -> Any:
    starts = _group_starts(readers)
    return lambda index: starts[bisect.bisect_right(starts, index) - 1]


class _Blocks:
    """Yields blocks of images from the row group that contains an index (see `Streamed`)."""

    def __init__(self, files: Sequence[str], column: str, names: Sequence[str]) -> None:
        self.files, self.column, self.names = files, column, names

    def __call__(self, index: int) -> Iterator[tuple[int, list[Item]]]:
        first = 0
        for file in self.files:
            reader = _open(file)
            for group in range(reader.metadata.num_row_groups):
                count = reader.metadata.row_group(group).num_rows
                if first + count > index:
                    yield from self._group(file, reader, group, first)
                first += count

    def _group(self, file: str, reader: Any, group: int, first: int) -> Iterator[tuple[int, list[Item]]]:
        batches = reader.iter_batches(_BATCH_ROWS, [group], [self.column], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                payloads = [] if batch is None else batch.column(0).to_pylist()
            except Exception as error:  # as in _open
                raise ValueError(f"{file}: damaged Parquet file ({util.reason(error)}): {AGAIN}") from None
            if batch is None:
                return
            names = self.names[first : first + len(payloads)]
            yield (
                first,
                [(name, _payload(file, name, value)) for name, value in zip(names, payloads, strict=True)],
            )
            first += len(payloads)


def _payload(file: str, name: str, value: Any) -> bytes | ValueError | None:
    """The bytes of an image; those of the file beside the Parquet file if only its path is stored.

    The error of such a file is that of its image alone.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    if data is None and path:
        beside = archives.FolderReader(os.path.dirname(os.path.abspath(file)))
        try:
            return beside.read(archives.Entry(check_name(path, f"{file}: {name}")))
        except ValueError as error:
            return error
    return data if data is None else bytes(data)
