# SPDX-License-Identifier: Apache-2.0
"""Statistics of images in an .npz file, which stand for the images in --data and --images.

Two layouts are read:

* what `write` makes: the statistics of any detectors, with what they were measured on;
* `mu`, `sigma` (pool3 of Inception) and `mu_s`, `sigma_s` (its spatial features), as ADM's evaluator and
  pytorch-fid have them. Such a file does not say which images it describes, nor how many.

`write` adds `mu` and `sigma`, so that those programs read its files, too. Their covariances are over n - 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dnnlib.util
from dnnlib import arrays, bounded
from image_data import npz
from metrics import statistics
from metrics.image_sets import ImageFiles
from metrics.names import INCEPTION

FORMAT = 1
_DESCRIPTION, _LABELS = "stylesan_xl", "label_counts"
# The output of Inception that ADM's names stand for: (mean, covariance).
_ADM = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_MAX_BYTES = 2**36


class GivenMoments(statistics.Moments):
    """A mean and a covariance of an unknown number of images: the covariance is used as it is.

    Args:
        mean: [D].
        sigma: [D, D].
    """

    def __init__(self, mean: np.ndarray, sigma: np.ndarray) -> None:
        super().__init__(len(mean))
        self._given_mean, self._given_sigma = mean.astype(np.float64), sigma.astype(np.float64)

    @property
    def mean(self) -> np.ndarray:
        """[D] float64."""
        return self._given_mean

    @property
    def covariance(self) -> np.ndarray:
        """[D, D] float64."""
        return self._given_sigma

    @property
    def unbiased_covariance(self) -> np.ndarray:
        """[D, D] float64, the same: whether the file's is over n or n - 1 is not known."""
        return self._given_sigma


@dataclasses.dataclass(frozen=True)
class Entry:
    """One statistic of a file: an output of a detector over a number of images.

    Attributes:
        detector: Description of the detector; its name alone in a file of another program.
        output: Of the detector.
        keep: 'moments' or 'array'.
        reference: What a metric record says of the images.
        names: Of the arrays in the file, by what the store calls them.
    """

    detector: Mapping[str, Any]
    output: str
    keep: str
    reference: Mapping[str, Any]
    names: Mapping[str, str]

    @property
    def num_images(self) -> int | None:
        """Images that the statistic covers; None where the file does not say."""
        count = self.reference.get("num_real")
        return count if isinstance(count, int) else None

    @property
    def is_whole(self) -> bool:
        """Whether it covers every image of its set, as far as is known."""
        return self.num_images is None or self.num_images == self.reference.get("num_images")


class StatisticsFile:
    """The statistics in an .npz file.

    Args:
        path: Of the file.

    Raises:
        ValueError: One line about what is wrong with it.
        OSError: It cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.name = os.path.basename(self.path)
        found = arrays.members(self.path)
        self._hash = hashlib.sha256(
            "".join(f"{m.name}\0{m.info.file_size}\0{m.info.CRC}\n" for m in found.values()).encode()
        ).hexdigest()
        self.entries = self._own() if _DESCRIPTION in found else self._foreign(found)
        self.labels_summary = f"statistics of {', '.join(self.texts())}"
        sizes = {entry.reference.get("resolution") for entry in self.entries}
        self.resolution = next(iter(sizes)) if len(sizes) == 1 else None
        self.has_labels = _LABELS in found
        self.metadata = dict(self.entries[0].reference)

    def __len__(self) -> int:
        return max((entry.num_images or 0 for entry in self.entries), default=0)

    def texts(self) -> list[str]:
        """The statistics, in words."""
        return [
            f"{entry.detector['name']} {entry.output} ({entry.keep}"
            + (f" of {entry.num_images:,} images)" if entry.num_images else ")")
            for entry in self.entries
        ]

    def content_hash(self) -> str:
        """Hash of the directory of the file: names, sizes and CRC-32 of its arrays."""
        return self._hash

    def label_distribution(self) -> np.ndarray:
        """Images of each class, int64 [classes]."""
        return arrays.read(self.path, [_LABELS])[_LABELS].astype(np.int64)

    def find(self, kind: tuple[str, str, str], count: int | None) -> Entry | None:
        """The statistic of a kind.

        Args:
            kind: Detector, its output, and what is kept of it ('moments' or 'array').
            count: Images that it must cover; None = all of them.

        Returns:
            None if the file has no such statistic.
        """
        for entry in self.entries:
            has = (entry.detector["name"], entry.output, entry.keep)
            total = entry.reference.get("num_images")
            enough = entry.is_whole if count is None or not total else entry.num_images == min(count, total)
            if has == kind and enough:
                return entry
        return None

    def require(self, kind: tuple[str, str, str], count: int | None) -> Entry:
        """As `find`. Raises ValueError, naming the file and what it holds, if there is none."""
        entry = self.find(kind, count)
        if entry is None:
            detector, output, keep = kind
            images = "all images" if count is None else f"{count:,} images"
            raise ValueError(
                f"{self.path} holds {', '.join(self.texts())}; the metric needs {detector} {output} "
                f"({keep} of {images})"
            )
        return entry

    def load(self, entry: Entry, detector: Mapping[str, Any]) -> statistics.Store:
        """The store of an entry.

        Args:
            entry: Of this file.
            detector: Description of the detector that the other side is measured with.

        Raises:
            ValueError: The statistics are damaged, or those of other weights.
        """
        differing = [key for key in entry.detector if entry.detector[key] != detector.get(key)]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{self.path}: its statistics are those of {detector['name']} with {key} "
                f"{entry.detector[key]}, this measurement has {detector.get(key)}"
            )
        found = arrays.read(self.path, set(entry.names.values()), _MAX_BYTES)
        try:
            content = {name: found[stored] for name, stored in entry.names.items()}
            return self._store(entry, content)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: damaged statistics ({error})") from None

    def _store(self, entry: Entry, content: dict[str, np.ndarray]) -> statistics.Store:
        if not all(np.isfinite(array).all() for array in content.values()):
            raise ValueError("they hold NaN or Inf")
        if "sigma" in content:
            return GivenMoments(content["mean"], content["sigma"])
        if entry.keep == "moments":
            return statistics.Moments.from_arrays(content)
        return statistics.FeatureArray.from_arrays(content)

    def _own(self) -> list[Entry]:
        text = str(arrays.read(self.path, [_DESCRIPTION], bounded.MAX_TEXT_BYTES * 4)[_DESCRIPTION])
        said = bounded.parse_json(text.encode(), self.path)
        version = said.get("format") if isinstance(said, dict) else None
        if version != FORMAT:
            raise ValueError(
                f"{self.path}: statistics in format {version}, and format {FORMAT} is read: write them again "
                "with calc_metrics.py statistics"
            )
        try:
            return [
                Entry(e["detector"], e["output"], e["keep"], e["reference"], e["names"])
                for e in said["entries"]
                if str(e["detector"]["name"])
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: damaged statistics ({error} is missing)") from None

    def _foreign(self, found: Mapping[str, arrays.Member]) -> list[Entry]:
        entries = []
        for output, (mean, sigma) in _ADM.items():
            if mean not in found and sigma not in found:
                continue
            shapes = [found[name].shape if name in found else None for name in (mean, sigma)]
            kinds = {found[name].dtype.kind for name in (mean, sigma) if name in found}
            width = shapes[0][0] if shapes[0] else 0
            if shapes != [(width,), (width, width)] or not width or kinds != {"f"}:
                raise ValueError(
                    f"{self.path}: {mean} and {sigma} must be floats [D] and [D, D], not {kinds} {shapes}"
                )
            reference = {"dataset": self.name, "content_hash": self._hash, "statistics": f"{mean}, {sigma}"}
            detector = {"name": INCEPTION}
            entries.append(Entry(detector, output, "moments", reference, {"mean": mean, "sigma": sigma}))
        if not entries:
            npz.open_images(self.path)  # which says what the file holds
            raise ValueError(f"{self.path}: neither images (arr_0) nor statistics (mu, sigma)")
        return entries


def open_npz(path: str, resolution: int | None = None) -> ImageFiles | StatisticsFile:
    """The images of an .npz file, with its statistics if it has some, or its statistics alone.

    Args:
        path: Of the file.
        resolution: Of the images; None = their own.

    Raises:
        ValueError: It holds neither.
        OSError: It cannot be read.
    """
    found = arrays.members(path)
    names = {_DESCRIPTION, *(name for pair in _ADM.values() for name in pair)}
    given = StatisticsFile(path) if names & found.keys() else None
    if given is not None and npz.IMAGES not in found:
        return given
    images = ImageFiles(path, resolution)
    images.statistics = given
    return images


def write(
    path: str | Path,
    stores: Sequence[tuple[statistics.Store, Mapping[str, Any]]],
    label_counts: np.ndarray | None = None,
) -> None:
    """Write statistics atomically.

    Args:
        path: Of the file.
        stores: Each with its entry: {"detector", "output", "keep", "reference"}.
        label_counts: Images of each class, from which the labels of generated images are drawn.
    """
    entries: list[dict[str, Any]] = []
    content: dict[str, np.ndarray] = {}
    for i, (store, entry) in enumerate(stores):
        parts = store.arrays()
        names = {name: f"{i}_{name}" for name in parts}
        entries.append({**entry, "names": names})
        content |= {names[name]: array for name, array in parts.items()}
    content |= _for_others(stores)
    if label_counts is not None:
        content[_LABELS] = np.asarray(label_counts, np.int64)
    text = json.dumps({"format": FORMAT, "project": "StyleSAN-XL", "entries": entries}, sort_keys=True)
    with dnnlib.util.atomic_write(path) as file:
        np.savez(file, **{_DESCRIPTION: np.asarray(text)}, **content)  # type: ignore[arg-type]


def _for_others(stores: Sequence[tuple[statistics.Store, Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """Mean and unbiased covariance under ADM's names, of the store with the most images for each."""
    content: dict[str, np.ndarray] = {}
    for store, entry in sorted(stores, key=lambda pair: -len(pair[0])):
        names = _ADM.get(entry["output"]) if entry["detector"]["name"] == INCEPTION else None
        if names and names[0] not in content and isinstance(store, statistics.Moments) and len(store) > 1:
            content |= {names[0]: store.mean, names[1]: store.unbiased_covariance}
    return content
