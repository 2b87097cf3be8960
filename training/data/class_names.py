# SPDX-License-Identifier: Apache-2.0
"""Classes by name: whether two lists of classes mean the same things, in whatever order, and which is
which.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from dnnlib import bounded
from image_data.archives import MAX_CLASSES

SHOWN = 3  # names in an error message
_WORDNET_ID = re.compile(r"\bn\d{8}\b")


def has_names(names: list[str] | None) -> TypeGuard[list[str]]:
    """Whether the classes have names at all: numbered folders (0, 1, 2, ...) say nothing about what is in
    them.
    """
    return names is not None and not all(name.isdecimal() for name in names)


def class_map(
    names: Sequence[str], known: Sequence[str], descriptions: Mapping[str, str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """For every class of `names` its place among the `known` ones: (int64 [len(names)], -1 for those that are
    not there; the names of those).

    Names agree when they differ in nothing but case, underscores and surrounding blanks. A name that holds a
    WordNet id, as 'crane (n02012849)', stands for that id; `descriptions` (id -> 'tench, Tinca tinca') lets a
    class be called by its description or by the first word of it, if no other class shares that.
    """
    places: dict[str, int] = {}
    described = [(descriptions or {}).get(name, "") for name in known]
    for spelling in (known, described, [text.split(",")[0] for text in described]):  # the plainest first
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
    """Class names from JSON: a list in the order of the classes, or an object from index to name.

    Raises:
        ValueError: the file cannot be read, or says something else.
    """
    try:
        content = bounded.read_json(path)
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: no readable JSON ({str(error)[:120]})") from None
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
    """The first of some names, for messages: 'a', 'b', 'c', ..."""
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def label_text(index: int, names: Sequence[str] | None) -> str:
    """'3 sad'; '3' without names, and where the name is that number."""
    name = names[index] if names and index < len(names) else ""
    return f"{index} {name}" if name and name != str(index) else str(index)


def spaced_labels(c_dim: int, rows: int) -> list[int]:
    """`rows` classes, evenly spaced; all of them in turn where there are fewer."""
    return (
        [int(v) for v in np.linspace(0, c_dim - 1, rows)]
        if c_dim > rows
        else [i % c_dim for i in range(rows)]
    )
