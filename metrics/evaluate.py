# SPDX-License-Identifier: Apache-2.0
"""Image source -> features -> numbers, each with a record of what it was measured on.

    evaluator = Evaluator(dataset, "fid50k_full,is50k,fd_lite0_10k", device="cuda")
    evaluator.check()                                 # data large enough, weights there? Downloads
                                                      Inception's if not
    records = evaluator(generator)                    # [Record, ...]; numbers(records) -> {name: float}
    records = evaluator.compare(other_dataset)        # an image set instead of a generator
    write_record(run_dir, records[0])                 # one line of metric-fid50k_full.jsonl

`generator` is any callable (z float32 [N, z_dim], labels int64 [N] or None) -> float images [N, C, R, R] in
[-1, 1], with attributes z_dim and c_dim; both tensors arrive on the evaluator's device. `dataset` is anything
with len(), [i] -> (uint8 [C, R, R], label), content_hash(), name, resolution, metadata and, for labels drawn
as in the data set, label_distribution() (counts per class). All real images are taken unflipped.

Sample i's latent and label are functions of (seed, i), so a number depends neither on the batch size nor on
the number of processes, except for the rounding of the features. With several processes
(torch_utils.distributed) every one calls the evaluator; each does its share of the batches, process 0
computes, and all get the records.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
import timm
import torch

import dnnlib.util
from metrics import detectors, network_metrics, registry
from metrics.collect import Collector, Need, Pause, Progress
from metrics.image_sets import (
    GeneratedImages,
    ImageFiles,
    ImageSource,
    RealImages,
    lossy_difference,
    preparation,
    preparation_from,
    require_same_preparation,
)
from metrics.records import (
    Record,
    check_against_last,
    check_comparable,
    differences_between,
    last_record,
    numbers,
    record_path,
    write_record,
)
from metrics.reference import References
from torch_utils import distributed

__all__ = [
    "LABEL_RULES", "Evaluator", "GeneratedImages", "ImageFiles", "Pause", "Progress", "RealImages",
    "Record", "check_comparable",
    "lossy_difference", "numbers", "preparation", "preparation_from", "record_path",
    "require_same_preparation", "write_record",
]  # fmt: skip

LABEL_RULES = ("dataset", "uniform")
MAX_BATCH = 4096  # images at a time


class Evaluator:
    """Measures generators or image sets against a data set. See the module's head for what the arguments must
    offer.

    Args:
        dataset: the reference; None if no metric needs one (is50k with uniform labels).
        metrics: names ('fid50k_full,is50k') or a list of names.
        device: where generator and detectors run. batch: images at a time, per process.
        seed: of latents, labels and shuffles. num_gen: replaces the count in the names.
        labels: 'dataset' draws them from the data set's distribution (published StyleGAN), 'uniform' over the
        classes
            (published StyleSAN-XL).
        covariance: of Frechet distances: 'population' (over n, as published) or 'unbiased' (over n - 1);
        recorded. inception, lite0: weights' files, see metrics.detectors. lite0_dtype: torch.bfloat16 is
        faster on CPUs; recorded. cache_dir: for statistics of real images; None = dnnlib's cache. progress:
        called with (what, done, total) on process 0; what: real, generated, compared, distances. pause:
        called in every process before each batch, to raise what ends the work; see metrics.collect. force:
        measure across differing preparations and resolutions; recorded. loaded: detectors by name, instead of
        loading them; those that are loaded are added.
    Raises ValueError for names, rules and data sets that do not fit.
    """

    def __init__(
        self,
        dataset: Any,
        metrics: str | Sequence[str],
        *,
        device: torch.device | str = "cpu",
        batch: int = 32,
        seed: int = 0,
        num_gen: int | None = None,
        labels: str = "dataset",
        covariance: str = registry.POPULATION,
        inception: str | None = None,
        lite0: str | None = None,
        lite0_dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
        progress: Progress | None = None,
        pause: Pause | None = None,
        force: bool = False,
        loaded: dict[str, detectors.Detector] | None = None,
    ) -> None:
        self.metrics = registry.parse_list(metrics, num_gen)
        _check_options(self.metrics, dataset, labels, covariance, batch, seed)
        self.dataset = dataset
        self.device = torch.device(device)
        self.seed = seed
        self.label_rule = labels
        self.covariance = covariance
        self.force = force
        self._weights = {"inception_path": inception, "lite0_weights": lite0}
        self._lite0_dtype = lite0_dtype
        self._detectors: dict[str, detectors.Detector] = {} if loaded is None else loaded
        self._collector = Collector(self._detector, batch, progress, pause)
        self._references = References(dataset, self._collector, cache_dir)

    def check(self, download: bool = True) -> None:
        """Make sure, before any work, that the numbers can be had.

        The data set is large enough, the detectors' weights are there (Inception's are downloaded to the
        cache if not, unless `download` is False), and a line says so if statistics cannot be cached. Raises
        as `detectors.check`, and ValueError.
        """
        self.check_data()
        for name in [n for n in registry.detectors_of(self.metrics) if n not in self._detectors]:
            detectors.check(name, **self._weights, download=download)
        if self._needing():
            self._references.check_cache()

    def check_data(self) -> None:
        """Raises ValueError if the data set has too few images for a metric."""
        self._references.check_size(self._needing())

    def announce(self, anew: bool = False) -> list[str]:
        """Lines about the statistics that the first evaluation must compute, with the time they take on this
        device, measured now.

        anew: whatever is cached.
        """
        lines = []
        for (name, count), metrics in self._references.missing(self._needing(), anew).items():
            seconds = self._collector.seconds_per_image(name, int(self.dataset.resolution))
            lines.append(
                f"{count:,} real images through {name} for {', '.join(metrics)}: about "
                f"{dnnlib.util.format_time(count * seconds)} "
                f"on {_device_name(self.device)} ({1 / seconds:,.3g} images/s measured), once"
            )
        return lines

    def check_records(self, folder: str | os.PathLike[str]) -> None:
        """Raises ValueError, before hours of work, if `write_record` would refuse this evaluator's records
        for what `folder` holds.
        """
        for metric in self.metrics:
            check_against_last(record_path(folder, metric.name), self._to_be_recorded(metric), self.force)

    def changes_since(self, folder: str | os.PathLike[str]) -> list[str]:
        """What sets this evaluator's numbers apart from the last ones in a folder, by metric, in words."""
        changes = []
        for metric in self.metrics:
            with contextlib.suppress(ValueError):  # a damaged file has no last record
                earlier = last_record(record_path(folder, metric.name))
                found = differences_between(self._to_be_recorded(metric), earlier) if earlier else []
                changes += [f"{metric.name}: {', '.join(found)}"] if found else []
        return changes

    def _to_be_recorded(self, metric: registry.Metric) -> dict[str, Any]:
        """What of a record is known before anything is measured."""
        reference = None
        if metric.family.needs_real:
            reference = self._references.describe(RealImages(self.dataset, metric.num_real))
        return {"metric": metric.name, "reference": reference, **self._conditions(metric)}

    def __call__(
        self,
        generator: Any,
        *,
        truncation: float = 1.0,
        snapshot: str | None = None,
        trained_on: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> list[Record]:
        """Measure a generator: one record per metric, in their order.

        truncation, snapshot, details: for the record (truncating is the generator's own affair). trained_on:
        preparation of its training images.
        """
        if trained_on is not None and self.dataset is not None:
            what = "the generator's training images and the data set"
            require_same_preparation(what, trained_on, preparation(self.dataset), self.force)
        conditional = bool(getattr(generator, "c_dim", 0))
        counts = _label_counts(self.dataset) if conditional and self.label_rule == "dataset" else None
        resolution = None if self.force or self.dataset is None else int(self.dataset.resolution)
        source = GeneratedImages(generator, self.seed, self.device, counts, resolution)
        reduced = getattr(
            getattr(generator, "synthesis", None), "reduced_dtype", None
        )  # of its flagged layers; None = float32
        about = {
            "truncation": truncation,
            "labels": self.label_rule if conditional else None,
            "snapshot_pkl": snapshot,
            "generator_dtype": str(reduced or torch.float32).removeprefix("torch."),
            **(details or {}),
        }
        return self._measure(source, "generated", self.metrics, about)

    def fitted(self, image_set: Any) -> list[registry.Metric]:
        """The metrics of an image set: one smaller than a metric's count is taken whole, and the metric's
        name says its size.

        Raises ValueError if it has too few images, or was prepared otherwise than the data set.
        """
        if self.dataset is not None:
            what = f"{image_set.name} and {self.dataset.name}"
            require_same_preparation(what, preparation(image_set), preparation(self.dataset), self.force)
        available = len(RealImages(image_set))
        for metric in self.metrics:
            if metric.family.of_network:
                network_metrics.as_network(image_set, metric.name)
            if available < metric.family.min_images:
                raise ValueError(
                    f"metric {metric.name} needs at least {metric.family.min_images} images, "
                    f"{image_set.name} has {available}"
                )
        fitted = [
            m if m.num_gen <= available else registry.make(m.family, available, m.full) for m in self.metrics
        ]
        return list({metric.name: metric for metric in fitted}.values())

    def compare(self, image_set: Any) -> list[Record]:
        """Measure an image set against the data set: one record per metric of `fitted`."""
        fitted = self.fitted(image_set)
        records: list[Record] = []
        for count in sorted({metric.num_gen for metric in fitted}):
            source = RealImages(image_set, count)
            made = {"content_hash": image_set.content_hash(), "view": source.view(), **preparation(image_set)}
            about: dict[str, Any] = {"images": {"name": image_set.name, **made}}
            adapted = getattr(image_set, "adapted", None)
            if adapted is not None:
                adapted.clear()
            records += self._measure(
                source, "compared", [metric for metric in fitted if metric.num_gen == count], about
            )
            if adapted is not None:
                about["images"]["adapted"] = dict(sum(distributed.all_gather_object(adapted), Counter()))
        return records

    def _needing(self) -> list[registry.Metric]:
        """The metrics that compare with real images."""
        return [metric for metric in self.metrics if metric.family.needs_real]

    def _measure(
        self, source: ImageSource, what: str, metrics: Sequence[registry.Metric], about: Mapping[str, Any]
    ) -> list[Record]:
        started = time.time()
        real = self._references([metric for metric in metrics if metric.family.needs_real])
        needs = {
            m.name: Need(m.family.detector, m.family.output, m.family.keep, m.num_gen)
            for m in metrics
            if not m.family.of_network
        }
        stores = self._collector(source, what, list(dict.fromkeys(needs.values()))) if needs else {}
        measured = {m.name: self._measure_network(source, m) for m in metrics if m.family.of_network}

        def records() -> list[Record]:
            results = []
            for metric in metrics:
                store, reference = real.get(metric.name, (None, None))
                values = measured.get(metric.name)
                if values is None:
                    rules = self._rules(metric, source)
                    values = metric.family.compute(stores[needs[metric.name]], store, rules)
                own = {
                    **self._conditions(metric),
                    "reference": reference,
                    "seed": self.seed,
                    "forced": self.force,
                }
                results.append(
                    _record(metric, values, {**own, **about, "device": _device_name(self.device)}, started)
                )
            return results

        return distributed.on_main(records)

    def _rules(self, metric: registry.Metric, source: ImageSource) -> registry.Rules:
        labels = None
        if metric.family.uses_labels and isinstance(source, GeneratedImages):
            drawn = source.labels(range(metric.num_gen))
            labels = None if drawn is None else drawn.numpy()
        return registry.Rules(self.seed, self.covariance, labels, self._collector.computing)

    def _measure_network(self, source: ImageSource, metric: registry.Metric) -> dict[str, float]:
        assert isinstance(source, GeneratedImages) and metric.family.measure is not None
        network = network_metrics.as_network(source.generator, metric.name)
        collector = self._collector
        task = network_metrics.Task(
            network,
            source,
            metric.num_gen,
            collector.batch,
            self._detector,
            collector.progress,
            collector.pause,
        )
        return metric.family.measure(task)

    def _conditions(self, metric: registry.Metric) -> dict[str, Any]:
        """Detector and, where the number depends on one, covariance."""
        rules = {"covariance": self.covariance} if metric.family.has_covariance else {}
        name = metric.family.detector
        return {"detector": self._detector(name).description if name else None, **rules}

    def _detector(self, name: str) -> detectors.Detector:
        if name not in self._detectors:
            self._detectors[name] = detectors.load(
                name, self.device, lite0_dtype=self._lite0_dtype, **self._weights
            )
        return self._detectors[name]


def _record(
    metric: registry.Metric, values: Mapping[str, float], conditions: Mapping[str, Any], started: float
) -> Record:
    """The record of a metric's values, with what they were measured under and the time since `started`."""
    seconds = time.time() - started
    reference = conditions["reference"]
    libraries = (torch, timm, np, scipy)
    whole = {
        "num_gen": metric.num_gen,
        "num_real": None if reference is None else reference["num_real"],
        **conditions,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in libraries},
        },
        "num_gpus": distributed.world_size(),
        "total_time": seconds,
        "total_time_str": dnnlib.util.format_time(seconds),
        "timestamp": time.time(),
    }
    results = {metric.name + suffix: value for suffix, value in values.items()}
    return Record(metric.name, next(iter(values.values())), metric.family.lower_is_better, results, whole)


def _label_counts(dataset: Any) -> np.ndarray:
    """Images of each class, int64 [classes], from which labels are drawn."""
    if dataset is None or not getattr(dataset, "has_labels", True):
        raise ValueError(
            "labels 'dataset' need a labelled data set; use --labels uniform, or a data set with labels"
        )
    return np.asarray(dataset.label_distribution())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _check_options(
    metrics: Sequence[registry.Metric], dataset: Any, labels: str, covariance: str, batch: int, seed: int
) -> None:
    """Raises ValueError for an evaluator's arguments that do not go together."""
    if labels not in LABEL_RULES:
        raise ValueError(
            f"labels {labels!r}: say 'dataset' (drawn as the data set's are) or 'uniform' (over the classes)"
        )
    if covariance not in registry.COVARIANCES:
        raise ValueError(f"covariance {covariance!r}: say {' or '.join(map(repr, registry.COVARIANCES))}")
    if covariance == registry.UNBIASED and not any(metric.family.has_covariance for metric in metrics):
        raise ValueError(
            f"--covariance={covariance} has no effect on {', '.join(m.name for m in metrics)}: leave it "
            "out, or add a Frechet distance"
        )
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch must be at least 1 and at most {MAX_BATCH}, got {batch}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
    needing = [metric.name for metric in metrics if metric.family.needs_real]
    if dataset is None and needing:
        raise ValueError(f"metric {needing[0]} needs a data set to compare with")
