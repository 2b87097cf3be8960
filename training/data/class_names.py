# SPDX-License-Identifier: Apache-2.0
"""Class names: matching the classes of one list with those of another, in any order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from dnnlib import bounded
from image_data.classes import MAX_CLASSES

SHOWN = 3  # largest number of names in an error message
_WORDNET_ID = re.compile(r"\bn\d{8}\b")


def has_names(names: list[str] | None) -> TypeGuard[list[str]]:
    """Return whether the classes have names.

    The names of numbered folders (0, 1, 2, ...) do not describe their content and do not count.
    """
    return names is not None and not all(name.isdecimal() for name in names)


def class_map(
    names: Sequence[str], known: Sequence[str], descriptions: Mapping[str, str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Find the place of every class of `names` among the `known` ones.

    Names match if they differ only in case, underscores and surrounding blanks. A name that contains a
    WordNet id, such as 'crane (n02012849)', stands for that id.

    Args:
        names: Class names to look up.
        known: Class names to look in.
        descriptions: id -> description, such as 'tench, Tinca tinca'. A class also matches by its
            description, or by the text before its first comma, if that is unique.

    Returns:
        Places, int64 [len(names)], -1 = not found; and the names that were not found.
    """
    places: dict[str, int] = {}
    described = [(descriptions or {}).get(name, "") for name in known]
    for spelling in (known, described, [text.split(",")[0] for text in described]):  # in order of preference
        spelt = [_plain(text) for text in spelling]
        counts = Counter(spelt)
        for place, text in enumerate(spelt):
            if text and counts[text] == 1:
                places.setdefault(text, place)
    found = []
    for name in names:
        wordnet = _WORDNET_ID.search(name)
        place = places.get(_plain(name), -1)
        found.append(places.get(wordnet.group(), place) if wordnet else place)
    return np.array(found, dtype=np.int64), [
        name for name, place in zip(names, found, strict=True) if place < 0
    ]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def read_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Read class names from JSON: a list in the order of the classes, or an object from index to name.

    Raises:
        ValueError: The file cannot be read, or has other content.
    """
    try:
        content = bounded.read_json(path)
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: cannot read this JSON file ({str(error)[:120]})") from None
    if (
        isinstance(content, dict)
        and len(content) < MAX_CLASSES
        and set(content) == {str(i) for i in range(len(content))}
    ):
        content = [content[str(i)] for i in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise ValueError(
            f'{os.fspath(path)}: must be a list of class names, ["cat", "dog"], or an object '
            '{"0": "cat", "1": "dog"}'
        )
    return content


def quoted(names: Sequence[str]) -> str:
    """Return the first few names for a message: 'a', 'b', 'c', ..."""
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def label_text(index: int, names: Sequence[str] | None) -> str:
    """Return '3 sad', or '3' without names or if the name is that number."""
    name = names[index] if names and index < len(names) else ""
    return f"{index} {name}" if name and name != str(index) else str(index)


def spaced_labels(c_dim: int, rows: int) -> list[int]:
    """Return `rows` classes, evenly spaced; if there are fewer classes, repeat all of them in turn."""
    return (
        [int(v) for v in np.linspace(0, c_dim - 1, rows)]
        if c_dim > rows
        else [i % c_dim for i in range(rows)]
    )
