# SPDX-License-Identifier: Apache-2.0
"""Statistics of real images: computed once, kept in memory and in a cache folder, or read from a file.

The cache is a convenience: where it cannot be written, there is a warning, and the statistics are computed
again next time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dnnlib.util
from dnnlib import trust
from metrics import registry, statistics
from metrics.collect import Collector, Need
from metrics.image_sets import RealImages, preparation
from metrics.statistics_file import Entry, StatisticsFile
from torch_utils import distributed

_CACHE_VERSION = 1  # of what the cached statistics mean; a change of preparation must raise it

Found = tuple[
    statistics.Store | None, dict[str, Any]
]  # what is kept of the real images; what a record says of them


class References:
    """The statistics of a data set's images, for each metric.

    Args:
        dataset: Images or a `StatisticsFile`; None if no metric needs one.
        collector: Runs images through detectors.
        cache_dir: None = `metrics` in dnnlib's cache folder.
    """

    def __init__(self, dataset: Any, collector: Collector, cache_dir: str | None) -> None:
        self.dataset, self.collector = dataset, collector
        self.cache_dir = Path(cache_dir or dnnlib.util.make_cache_dir_path("metrics"))
        self.has_images = not isinstance(dataset, StatisticsFile)
        self.given: StatisticsFile | None = (
            getattr(dataset, "statistics", None) if self.has_images else dataset
        )
        self._content_hash: str | None = None
        self._known: dict[Need, Found] = {}

    def check_size(self, metrics: Sequence[registry.Metric]) -> None:
        """Raises ValueError if the data set has too few images for a metric."""
        metrics = [metric for metric in metrics if self._given(metric) is None]
        if not metrics:
            return
        total = len(RealImages(self.dataset))
        for metric in metrics:
            if total < metric.family.min_images:
                place = getattr(self.dataset, "path", self.dataset.name)
                raise ValueError(
                    f"metric {metric.name} needs at least {metric.family.min_images} real images, {place} "
                    f"has {total}: leave the metric out of --metrics, or use more images"
                )

    def check_cache(self) -> None:
        """Warn, before hours of work, if statistics cannot be kept."""
        try:
            trust.make_private(self.cache_dir)
            with tempfile.TemporaryFile(dir=self.cache_dir):
                pass
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        warnings.warn(
            f"the metrics cache {self.cache_dir} cannot be written ({error.strerror or error}): statistics "
            "of real images are computed again next time; set DNNLIB_CACHE_DIR to a writable folder",
            stacklevel=3,
        )

    def _given(self, metric: registry.Metric) -> Entry | None:
        """The statistic that the data set brings for a metric, if it does.

        Raises:
            ValueError: It has no images, and no such statistic.
        """
        if self.given is None:
            return None
        kind = (metric.family.detector, metric.family.output, metric.family.keep)
        return self.given.find(kind, None) if self.has_images else self.given.require(kind, metric.num_real)

    def describe_for(self, metric: registry.Metric) -> dict[str, Any]:
        """What a record says of the real images of a metric."""
        given = self._given(metric)
        return (
            self.describe(RealImages(self.dataset, metric.num_real))
            if given is None
            else dict(given.reference)
        )

    def describe(self, source: RealImages) -> dict[str, Any]:
        """What a record says of the real images."""
        if self._content_hash is None:
            self._content_hash = self.dataset.content_hash()  # reads through a folder: once is enough
        subset = source.subset_seed()
        return {
            "dataset": self.dataset.name,
            "content_hash": self._content_hash,
            "view": source.view(),
            "num_images": source.num_images,
            "num_real": len(source),
            **({} if subset is None else {"subset": f"random, seed {subset}"}),
            **preparation(self.dataset),
        }

    def __call__(self, metrics: Sequence[registry.Metric]) -> dict[str, Found]:
        """The statistics by metric: from memory, the cache, or one pass over the images.

        The stores are complete on process 0 only. All processes must call it.
        """
        found = {
            metric.name: self._load_given(metric) for metric in metrics if self._given(metric) is not None
        }
        needs = {metric.name: self._need(metric) for metric in metrics if metric.name not in found}
        missing: dict[int, list[Need]] = {}
        for need, source in dict(needs.values()).items():
            if need not in self._known:
                key, path = self._place(need, source)
                store = distributed.on_main(functools.partial(_load_cached, path, key), share=False)
                if distributed.broadcast_object(store is None):
                    missing.setdefault(len(source), []).append(need)
                else:
                    self._known[need] = (store, self.describe(source))
        for count, group in missing.items():
            source = RealImages(self.dataset, count)
            for need, store in self.collector(source, "real", group, self.describe(source)).items():
                self._known[need] = (store, self.describe(source))
                if distributed.is_main():
                    self._save(need, source, store)
            self.collector.finished()
        return found | {name: self._known[need] for name, (need, _) in needs.items()}

    def _load_given(self, metric: registry.Metric) -> Found:
        entry = self._given(metric)
        assert self.given is not None and entry is not None
        detector = self.collector.detector(entry.detector["name"]).description
        store = distributed.on_main(functools.partial(self.given.load, entry, detector), share=False)
        return store, dict(entry.reference)

    def missing(
        self, metrics: Sequence[registry.Metric], anew: bool = False
    ) -> dict[tuple[str, int], list[str]]:
        """What the first evaluation must compute: (detector, real images) -> names of metrics.

        Args:
            metrics: To be measured.
            anew: Ignore what is cached.
        """
        found: dict[tuple[str, int], list[str]] = {}
        for metric in metrics:
            if self._given(metric) is not None:
                continue
            need, source = self._need(metric)
            if anew or (need not in self._known and not os.path.isfile(self._place(need, source)[1])):
                found.setdefault((need.detector, len(source)), []).append(metric.name)
        return found

    def _need(self, metric: registry.Metric) -> tuple[Need, RealImages]:
        source = RealImages(self.dataset, metric.num_real)
        return Need(metric.family.detector, metric.family.output, metric.family.keep, len(source)), source

    def _place(self, need: Need, source: RealImages) -> tuple[dict[str, Any], Path]:
        """What the statistics depend on, and the file that keeps them."""
        description = self.describe(source)
        key = {
            **{name: description[name] for name in ("content_hash", "view", "resolution")},
            **({"channels": description["channels"]} if "channels" in description else {}),
            "detector": self.collector.detector(need.detector).description,
            "kept": [need.output, need.keep],
            "version": _CACHE_VERSION,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return (
            key,
            self.cache_dir / f"{Path(self.dataset.name).stem}-{need.detector}-{need.keep}-{digest}.npz",
        )

    def _save(self, need: Need, source: RealImages, store: statistics.Store) -> None:
        key, path = self._place(need, source)
        try:
            trust.make_private(path.parent)
            statistics.save(path, store, {**key, "reference": self.describe(source)})
        except OSError as error:
            self._warn(error)


def _load_cached(path: Path, key: Mapping[str, Any]) -> statistics.Store | None:
    """The cached statistics; None if there are none, or they are damaged or those of other images."""
    try:
        if not os.path.isfile(path):
            return None
        store, description = statistics.load(path)
    except (ValueError, OSError):
        return None
    return (
        store
        if all(description.get(name) == value for name, value in json.loads(json.dumps(key)).items())
        else None
    )
