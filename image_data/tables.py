# SPDX-License-Identifier: Apache-2.0
"""Labels in metadata.csv and metadata.jsonl, the tables of Hugging Face image folders.

A table has a column file_name, relative to its own folder, and may have a column with labels.
"""

import csv
import io
import json
from typing import Any, NamedTuple

from image_data.archives import INDEX_BYTES_PER_IMAGE, MAX_INDEX_BYTES, Archive, Entry
from image_data.classes import LABEL_COLUMNS, listed, pick_column
from image_data.entries import plain_name

FILE_COLUMN = "file_name"
FLAG = "--label-column"
_BASE_BYTES = 4 * 2**20
_Rows = tuple[list[str], list[dict[str, Any]]]  # names of the columns; rows, values by column


class Table(NamedTuple):
    """Label values by image name."""

    column: str
    values: dict[str, Any]


def read(archive: Archive, entry: Entry, column: str | None) -> Table | None:
    """Read the labels of a table.

    Args:
        archive: the archive, with names relative to the folder of the table.
        entry: the table.
        column: the column with labels; None = the first of LABEL_COLUMNS that exists.

    Returns:
        The table; None if it has no column of labels.

    Raises:
        ValueError: not a table, a column is missing, or a row is malformed.
    """
    where = f"{archive.path}: {archive.prefix}{entry.name}"
    limit = min(_BASE_BYTES + INDEX_BYTES_PER_IMAGE * len(archive.images), MAX_INDEX_BYTES)
    try:
        text = archive.reader.read(entry, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise ValueError(f"{archive.path}: {error}") from None
    columns, rows = _csv_rows(text, where) if entry.name.endswith(".csv") else _json_rows(text, where)
    if not rows:
        raise ValueError(
            f"{where} has no rows: remove it, or use dataset_tool.py --labels=folders or --labels=none"
        )
    found = pick_column(where, columns, column, LABEL_COLUMNS, FLAG)
    if found is None:
        return None
    if FILE_COLUMN not in columns:
        raise ValueError(
            f"{where} has no column {FILE_COLUMN} (it has {listed(columns)}), so its column {found} belongs "
            "to no images: add it, or use dataset_tool.py --labels=folders or --labels=none"
        )
    values: dict[str, Any] = {}
    for number, row in enumerate(rows, 1):
        name = row.get(FILE_COLUMN)
        if not isinstance(name, str) or not name or found not in row:
            missing = found if isinstance(name, str) and name else FILE_COLUMN
            raise ValueError(f"{where}: row {number} has no {missing}")
        name = plain_name(name, where)
        if name in values:
            raise ValueError(f"{where}: row {number} is a second row for {name}")
        values[name] = row[found]
    return Table(found, values)


def _csv_rows(text: str, where: str) -> _Rows:
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{where} is not a CSV file ({error})") from None
    columns = list(reader.fieldnames or [])
    _check_header(columns, where)
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(
                f"{where}: row {number} has {'more' if None in row else 'fewer'} columns than the header"
            )
    return columns, rows


def _check_header(columns: list[str], where: str) -> None:
    """Raise ValueError for columns that are not separated by commas, or have the same name."""
    if len(columns) == 1 and (other := next((c for c in ";\t|" if c in columns[0]), None)):
        raise ValueError(f"{where}: its columns are separated by {other!r}: separate them by commas")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where} has two columns {twice!r}: rename or remove one")


def _json_rows(text: str, where: str) -> _Rows:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: line {number} is not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: line {number} must be an object, not a {type(row).__name__}")
        rows.append(row)
    return list(rows[0]) if rows else [], rows
