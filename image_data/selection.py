# SPDX-License-Identifier: Apache-2.0
"""Which images of a source to use: a list of names or indices, some classes, a number of images."""

import difflib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dnnlib import bounded
from image_data import archives
from image_data.sources import Source

MAX_SUBSET_BYTES = 2**31


class Subset(NamedTuple):
    """A list of images: names, base names that occur once, or indices."""

    path: str  # of the file, for messages
    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: str) -> "Subset":
        """Read a file with one name or index per line.

        Raises:
            ValueError: it cannot be read, is empty, or has a line twice.
        """
        try:
            text = bounded.read_text(path, MAX_SUBSET_BYTES)
        except OSError as error:
            raise ValueError(f"--subset={path}: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"--subset={error}") from None
        lines = tuple(line.strip().removeprefix("./") for line in text.splitlines() if line.strip())
        if not lines:
            raise ValueError(f"--subset={path}: the list is empty")
        twice = next((line for line, count in Counter(lines).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"--subset={path}: {twice} occurs twice")
        return cls(path, lines)

    def describe(self) -> dict[str, Any]:
        """The name, length and hash of the list, for the metadata of the data set."""
        digest = hashlib.sha256("\n".join(self.lines).encode(errors="surrogateescape")).hexdigest()
        return {"name": os.path.basename(self.path), "entries": len(self.lines), "sha256": digest}

    def indices(self, source: Source) -> np.ndarray:
        """The indices of the images, int64, ascending.

        Raises:
            ValueError: an image does not exist, or a base name occurs more than once.
        """
        if all(line.isascii() and line.isdecimal() for line in self.lines):
            largest = max(self.lines, key=int)
            if int(largest) >= len(source):
                raise ValueError(
                    f"--subset={self.path}: index {largest}: the source has {len(source):,} images"
                )
            return np.unique(np.array([int(line) for line in self.lines], dtype=np.int64))
        return np.sort(np.array(self._places(source), dtype=np.int64))

    def _places(self, source: Source) -> list[int]:
        names = _names(source)
        if names is None:
            raise ValueError(
                f"--subset={self.path}: the images of {source.name} ({source.kind}) have no names: list "
                "indices"
            )
        places: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            for key in {name, name.rpartition("/")[2]}:
                places.setdefault(key, []).append(index)
        exact = {name: index for index, name in enumerate(names)}
        found = []
        for line in self.lines:
            chosen = [exact[line]] if line in exact else places.get(line, [])
            if len(chosen) != 1:
                problem = (
                    f"names {len(chosen)} images; give its folder, too"
                    if chosen
                    else f"is not in the source, whose first image is {names[0]}"
                )
                raise ValueError(f"--subset={self.path}: {line} {problem}")
            found += chosen
        if len(set(found)) < len(found):
            raise ValueError(f"--subset={self.path}: an image is listed twice, with and without its folder")
        return found


def _names(source: Source) -> Sequence[str] | None:
    """The names of a source's images; None if they have none."""
    if source.names is not None:
        return source.names
    if len(source) and isinstance(source.refs[0], archives.Entry):
        return [ref.name for ref in source.refs]
    return None


def select(
    source: Source,
    max_images: int | None,
    subset_seed: int | None,
    classes: Sequence[str] | None,
    subset: Subset | None = None,
) -> tuple[np.ndarray, Source]:
    """Choose the images to use: first `subset`, then `classes`, then `max_images`.

    Returns:
        (their indices in source order; the source, with labels renumbered if classes are chosen, and with
        updated counts of what is left out).
    """
    left_out = archives.LeftOut()
    left_out.merge(source.left_out)
    source = replace(source, left_out=left_out)
    indices = np.arange(len(source), dtype=np.int64)
    if subset is not None:
        indices = subset.indices(source)
        if len(indices) < len(source):
            left_out.add("outside of --subset", count=len(source) - len(indices))
    if classes is not None:
        chosen, source = _select_classes(source, classes)
        indices = np.intersect1d(indices, chosen)
    if subset_seed is not None and max_images is None:
        raise ValueError("--subset-seed chooses which images --max-images keeps; pass --max-images too")
    if max_images is not None:
        if max_images < 1:
            raise ValueError(f"--max-images={max_images} must be at least 1")
        order = (
            np.arange(len(indices))
            if subset_seed is None
            else np.random.RandomState(subset_seed % 2**32).permutation(len(indices))
        )
        if max_images < len(indices):
            left_out.add("beyond --max-images", count=len(indices) - max_images)
        indices = indices[np.sort(order[:max_images])]
    if not len(indices):
        raise ValueError(f"{source.name}: --subset and --classes leave no images")
    return indices, source


def _select_classes(source: Source, classes: Sequence[str]) -> tuple[np.ndarray, Source]:
    """(indices of the images of these classes; the source, with labels in the order of `classes`)."""
    if source.labels is None:
        raise ValueError(f"{source.name}: --classes given, but the images have no labels")
    given = source.class_names or map(str, range(source.num_classes))
    names = [unicodedata.normalize("NFC", name) for name in given]
    classes = [unicodedata.normalize("NFC", name) for name in classes]
    unknown = [name for name in classes if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near and len(names) > 20 else ""
        raise ValueError(
            f"{source.name}: --classes: unknown class {unknown[0]!r}; the classes are {', '.join(names[:20])}"
            f"{', ...' if names[20:] else ''}{hint}"
        )
    if len(set(classes)) < len(classes):
        raise ValueError("--classes contains a class twice")
    renumbered = np.full(len(names), -1, dtype=np.int64)
    renumbered[[names.index(name) for name in classes]] = np.arange(len(classes))
    labels = renumbered[source.labels]  # -1 for images of other classes
    indices = np.flatnonzero(labels >= 0)
    if len(indices) < len(source):
        source.left_out.add("of other classes (--classes)", count=len(source) - len(indices))
    return indices, replace(source, labels=labels, class_names=list(classes))
