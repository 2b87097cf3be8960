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
import functools
import importlib.metadata
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

import dnnlib.util
from dnnlib.records import metric_file as record_path
from metrics import detectors, network_metrics, registry
from metrics.collect import Collector, Need, Pause, Progress
from metrics.detector import Detector
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
from metrics.intervals import Extras
from metrics.names import COVARIANCES, LABEL_RULES, POPULATION, UNBIASED
from metrics.records import (
    Record,
    check_against_last,
    check_comparable,
    differences_between,
    last_record,
    numbers,
    write_record,
)
from metrics.reference import References
from metrics.statistics import Store
from metrics.statistics_file import StatisticsFile
from torch_utils import distributed

__all__ = [
    "LABEL_RULES", "Evaluator", "GeneratedImages", "ImageFiles", "Pause", "Progress", "RealImages",
    "Record", "check_comparable",
    "lossy_difference", "numbers", "preparation", "preparation_from", "record_path",
    "require_same_preparation", "write_record",
]  # fmt: skip

MAX_BATCH = 4096  # images at a time
MAX_BOOTSTRAP = 1000


class Evaluator:
    """Measures generators or image sets against a data set. The module's docstring has what they must offer.

    Args:
        dataset: The reference: images or a `StatisticsFile`; None if no metric needs one.
        metrics: Names ('fid50k_full,is50k') or a list of names.
        device: Where generator and detectors run.
        batch: Images at a time, per process.
        seed: Of latents, labels and shuffles.
        num_gen: Replaces the count in the names.
        labels: 'dataset' draws them from the data set's distribution (published StyleGAN), 'uniform' over the
            classes (published StyleSAN-XL).
        covariance: Of Frechet distances: 'population' (over n, as published) or 'unbiased' (over n - 1).
        bootstrap: Random halves of the generated samples that give an interval; 0 = no interval.
        extrapolate: Also the value of Frechet distances for infinitely many samples.
        inception: Weights file, see metrics.detectors.
        lite0: Weights file.
        lite0_dtype: torch.bfloat16 is faster on CPUs.
        weights: Weights files of detectors by their names, or 'random'.
        trust: Run TorchScript archives among them instead of reading their tensors.
        cache_dir: For statistics of real images and unfinished passes; None = dnnlib's cache.
        progress: Called with (stage, done, total) on process 0; metrics.collect has the stages.
        pause: Called in every process before each batch; may raise to end the work.
        force: Measure across differing preparations and resolutions.
        loaded: Detectors by name; those that are loaded are added.

    Raises:
        ValueError: Names, rules or data set do not fit.
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
        covariance: str = POPULATION,
        bootstrap: int = 0,
        extrapolate: bool = False,
        inception: str | None = None,
        lite0: str | None = None,
        lite0_dtype: torch.dtype = torch.float32,
        weights: Mapping[str, str] | None = None,
        trust: bool = False,
        cache_dir: str | None = None,
        progress: Progress | None = None,
        pause: Pause | None = None,
        force: bool = False,
        loaded: dict[str, Detector] | None = None,
    ) -> None:
        self.metrics = registry.parse_list(metrics, num_gen)
        _check_options(self.metrics, dataset, labels, covariance, batch, seed)
        self.dataset = dataset
        self.device = torch.device(device)
        self.seed = seed
        self.label_rule = labels
        self.covariance = covariance
        self.extras = Extras(bootstrap, extrapolate)
        self.extras.check(self.metrics)
        self.force = force
        self._weights: dict[str, Any] = {
            "inception_path": inception,
            "lite0_weights": lite0,
            "weights": weights,
        }
        self._load_options: dict[str, Any] = {"lite0_dtype": lite0_dtype, "trust": trust}
        self._detectors: dict[str, Detector] = {} if loaded is None else loaded
        folder = cache_dir or dnnlib.util.make_cache_dir_path("metrics")
        self.collector = Collector(self._detector, batch, progress, pause, Path(folder))
        self.references = References(dataset, self.collector, folder)

    def check(self, download: bool = True) -> None:
        """Make sure, before any work, that the metrics can be measured.

        The data set is large enough and the detectors' weights are there (Inception's are downloaded to the
        cache if not, unless `download` is False). Warns if statistics cannot be cached.

        Raises:
            FileNotFoundError, ValueError: As `detectors.check`; the data set is too small.
        """
        self.check_data()
        self.check_weights(download)
        if self._needing():
            self.references.check_cache()

    def check_weights(self, download: bool = True) -> None:
        """Make sure that the detectors' weights are there, as `check` does."""
        for name in [n for n in registry.detectors_of(self.metrics) if n not in self._detectors]:
            detectors.check(name, **self._weights, download=download)

    def check_data(self) -> None:
        """Raises ValueError if the data set has too few images for a metric."""
        self.references.check_size(self._needing())

    def announce(self, anew: bool = False) -> list[str]:
        """Lines about the statistics that the first evaluation computes, with the time on this device.

        Args:
            anew: Ignore what is cached.
        """
        lines = []
        for (name, count), metrics in self.references.missing(self._needing(), anew).items():
            seconds = self.collector.seconds_per_image(name, int(self.dataset.resolution))
            lines.append(
                f"{count:,} real images through {name} for {', '.join(metrics)}: about "
                f"{dnnlib.util.format_time(count * seconds)} "
                f"on {_device_name(self.device)} ({1 / seconds:,.3g} images/s measured), once"
            )
        return lines

    def check_records(self, folder: str | os.PathLike[str]) -> None:
        """Raises ValueError if `write_record` would refuse this evaluator's records in a folder."""
        for metric in self.metrics:
            check_against_last(record_path(folder, metric.name), self._to_be_recorded(metric), self.force)

    def changes_since(self, folder: str | os.PathLike[str]) -> list[str]:
        """In words, by metric, what differs from the conditions of the last records in a folder."""
        changes = []
        for metric in self.metrics:
            with contextlib.suppress(ValueError):  # a damaged file has no last record
                earlier = last_record(record_path(folder, metric.name))
                found = differences_between(self._to_be_recorded(metric), earlier) if earlier else []
                changes += [f"{metric.name}: {', '.join(found)}"] if found else []
        return changes

    def _to_be_recorded(self, metric: registry.Metric) -> dict[str, Any]:
        """The conditions of a record that are known before anything is measured."""
        reference = self.references.describe_for(metric) if metric.family.needs_real else None
        return {"metric": metric.name, "reference": reference, **self._conditions(metric)}

    def __call__(
        self,
        generator: Any,
        *,
        truncation: float = 1.0,
        snapshot: str | None = None,
        trained_on: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> list[Record]:
        """Measure a generator: one record per metric, in their order.

        Args:
            generator: See the module's docstring.
            truncation: For the record; truncating is the generator's own affair.
            snapshot: For the record.
            trained_on: Preparation of the generator's training images.
            details: For the record.
            identity: JSON values: what the generator's images depend on, beside latents and labels, such as
                the hash of its weights. With it, a killed evaluation resumes.
        """
        if trained_on is not None and self.dataset is not None:
            what = "the generator's training images and the data set"
            require_same_preparation(what, trained_on, preparation(self.dataset), self.force)
        source = self.generated(generator)
        reduced = getattr(getattr(generator, "synthesis", None), "reduced_dtype", None)
        about = {
            "truncation": truncation,
            "labels": self.label_rule if source.num_classes else None,
            "snapshot_pkl": snapshot,
            "generator_dtype": str(reduced or torch.float32).removeprefix("torch."),
            **(details or {}),
        }
        key = None if identity is None else {**identity, **source.identity(), "device": self.device.type}
        return self._measure(source, "generated", self.metrics, about, key)

    def generated(self, generator: Any) -> GeneratedImages:
        """The images of a generator, with the latents and labels that this evaluator draws."""
        conditional = bool(getattr(generator, "c_dim", 0))
        counts = label_counts(self.dataset) if conditional and self.label_rule == "dataset" else None
        size = None if self.force or self.dataset is None else self.dataset.resolution
        return GeneratedImages(generator, self.seed, self.device, counts, size)

    def fitted(self, image_set: Any) -> list[registry.Metric]:
        """The metrics of an image set: a smaller set is taken whole, and the metric's name has its size.

        Raises:
            ValueError: The set has too few images, or was prepared otherwise than the data set.
        """
        if self.dataset is not None:
            what = f"{image_set.name} and {self.dataset.name}"
            require_same_preparation(what, preparation(image_set), preparation(self.dataset), self.force)
        for metric in self.metrics:
            if metric.family.of_network:
                network_metrics.as_network(image_set, metric.name)
        if isinstance(image_set, StatisticsFile):
            if self.extras != Extras():
                raise ValueError(f"{image_set.path} holds statistics: intervals need images or a network")
            sizes = {m: image_set.require(_kind(m), None).num_images or m.num_gen for m in self.metrics}
        else:
            sizes = {m: min(m.num_gen, len(RealImages(image_set))) for m in self.metrics}
        for metric, size in sizes.items():
            if size < metric.family.min_images:
                raise ValueError(
                    f"metric {metric.name} needs at least {metric.family.min_images} images, "
                    f"{image_set.name} has {size}"
                )
        fitted = [m if m.num_gen == n else registry.make(m.family, n, m.full) for m, n in sizes.items()]
        return list({metric.name: metric for metric in fitted}.values())

    def compare(self, image_set: Any) -> list[Record]:
        """Measure an image set, or a `StatisticsFile`, against the data set: one record per fitted metric."""
        fitted = self.fitted(image_set)
        records: list[Record] = []
        for count in sorted({metric.num_gen for metric in fitted}):
            group = [metric for metric in fitted if metric.num_gen == count]
            made = {"name": image_set.name, "content_hash": image_set.content_hash()}
            if isinstance(image_set, StatisticsFile):
                entry = image_set.require(_kind(group[0]), None)
                given = {"images": {**made, **entry.reference}, "num_gen": entry.num_images}
                records += self._measure(image_set, "compared", group, given, None)
                continue
            source = RealImages(image_set, count)
            about: dict[str, Any] = {"images": {**made, "view": source.view(), **preparation(image_set)}}
            adapted = getattr(image_set, "adapted", None)
            if adapted is not None:
                adapted.clear()
            records += self._measure(source, "compared", group, about, about["images"])
            if adapted is not None:
                about["images"]["adapted"] = dict(sum(distributed.all_gather_object(adapted), Counter()))
        return records

    def _needing(self) -> list[registry.Metric]:
        """The metrics that compare with real images."""
        return [metric for metric in self.metrics if metric.family.needs_real]

    def _measure(
        self,
        source: Any,
        what: str,
        metrics: Sequence[registry.Metric],
        about: Mapping[str, Any],
        key: Mapping[str, Any] | None,
    ) -> list[Record]:
        started = time.time()
        try:
            real = self.references([metric for metric in metrics if metric.family.needs_real])
            needs = {m.name: self._need(m) for m in metrics if not m.family.of_network}
            stores = self._stores(source, what, list(dict.fromkeys(needs.values())), key)
            measured = {m.name: self._measure_network(source, m, key) for m in metrics if m.family.of_network}

            def record(metric: registry.Metric) -> Record:
                store, reference = real.get(metric.name, (None, None))
                own = {"reference": reference, "seed": self.seed, "forced": self.force}
                conditions = {**self._conditions(metric), **own, **about, "device": _device_name(self.device)}
                extra: dict[str, Any] = {}
                if metric.name in measured:
                    values, extra = self.extras.compute_network(metric, measured[metric.name], self.seed)
                    extra["generator_dtype"] = "float32"  # whatever the network uses otherwise
                else:
                    rules = self._rules(metric, source)
                    values, extra = self.extras.compute(metric, stores[needs[metric.name]], store, rules)
                    extra |= self._rank(metric, reference)
                return _record(metric, values, {**conditions, **extra}, started)

            records: list[Record] = distributed.on_main(lambda: [record(metric) for metric in metrics])
        except BaseException:
            self.collector.interrupted()
            raise
        self.collector.finished()
        return records

    def _need(self, metric: registry.Metric) -> Need:
        keep = "array" if self.extras.needs_rows(metric.family) else metric.family.keep
        return Need(metric.family.detector, metric.family.output, keep, metric.num_gen)

    def _stores(
        self, source: Any, what: str, needs: Sequence[Need], key: Mapping[str, Any] | None
    ) -> dict[Need, Store]:
        if not isinstance(source, StatisticsFile):
            return self.collector(source, what, needs, key) if needs else {}
        return {
            need: source.load(source.require(need[:3], None), self._detector(need.detector).description)
            for need in needs
        }

    def _rules(self, metric: registry.Metric, source: ImageSource | StatisticsFile) -> registry.Rules:
        labels = None
        if metric.family.uses_labels and isinstance(source, GeneratedImages | RealImages):
            drawn = source.labels(range(metric.num_gen))
            labels = None if drawn is None else drawn.numpy()
        return registry.Rules(self.seed, self.covariance, labels, self.collector.computing)

    def _rank(self, metric: registry.Metric, reference: Mapping[str, Any] | None) -> dict[str, Any]:
        """{"singular": True} for a covariance of fewer images than features."""
        family = metric.family
        counts = (metric.num_gen, (reference or {}).get("num_real") or metric.num_gen)
        is_singular = (
            family.has_covariance and min(counts) <= self._detector(family.detector).dims[family.output]
        )
        return {"singular": True} if is_singular else {}

    def _measure_network(
        self,
        source: ImageSource | StatisticsFile,
        metric: registry.Metric,
        key: Mapping[str, Any] | None,
    ) -> network_metrics.Measured:
        assert isinstance(source, GeneratedImages) and metric.family.measure is not None
        network = network_metrics.as_network(source.generator, metric.name)
        collector = self.collector
        name = metric.family.detector
        whole = {
            "images": key,
            "network metric": metric.name,
            "detector": self._detector(name).description if name else None,
        }
        task = network_metrics.Task(
            network,
            source,
            metric.num_gen,
            collector.batch,
            self._detector,
            collector.progress,
            collector.pause,
            None if key is None else functools.partial(collector.open_partial, whole),
        )
        return metric.family.measure(task)

    def _conditions(self, metric: registry.Metric) -> dict[str, Any]:
        """Detector and, where the number depends on one, covariance."""
        rules = {"covariance": self.covariance} if metric.family.has_covariance else {}
        name = metric.family.detector
        return {"detector": self._detector(name).description if name else None, **rules}

    def _detector(self, name: str) -> Detector:
        if name not in self._detectors:
            self._detectors[name] = detectors.load(name, self.device, **self._load_options, **self._weights)
        return self._detectors[name]


def _record(
    metric: registry.Metric, values: Mapping[str, float], conditions: Mapping[str, Any], started: float
) -> Record:
    """The record of a metric's values, with what they were measured under and the time since `started`."""
    seconds = time.time() - started
    reference = conditions["reference"]
    libraries = (torch, np, scipy)
    whole = {
        "num_gen": metric.num_gen,
        "num_real": (reference or {}).get("num_real"),
        **conditions,
        "versions": {
            "python": platform.python_version(),
            "timm": importlib.metadata.version("timm"),  # not imported by every detector
            **{module.__name__: str(module.__version__) for module in libraries},
        },
        "num_gpus": distributed.world_size(),
        "total_time": seconds,
        "total_time_str": dnnlib.util.format_time(seconds),
        "timestamp": time.time(),
    }
    results = {metric.name + suffix: value for suffix, value in values.items()}
    return Record(metric.name, next(iter(values.values())), metric.family.lower_is_better, results, whole)


def _kind(metric: registry.Metric) -> tuple[str, str, str]:
    """What a statistics file needs for a metric: detector, output and what is kept."""
    return metric.family.detector, metric.family.output, metric.family.keep


def label_counts(dataset: Any) -> np.ndarray:
    """Images of each class, int64 [classes], from which labels are drawn.

    Raises:
        ValueError: The data set has no labels.
    """
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
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance {covariance!r}: say {' or '.join(map(repr, COVARIANCES))}")
    if covariance == UNBIASED and not any(metric.family.has_covariance for metric in metrics):
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
