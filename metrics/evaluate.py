# SPDX-License-Identifier: Apache-2.0
"""Image source -> features -> numbers, each with a record of what it was measured on.

    evaluator = Evaluator(dataset, "fid50k_full,is50k,fd_lite0_10k", device="cuda")
    evaluator.check()                                 # weights there? Downloads Inception's if they are not
    records = evaluator(generator)                    # [Record, ...]; numbers(records) -> {name: float}
    records = evaluator.compare(other_dataset)        # an image set instead of a generator
    write_record(run_dir, records[0])                 # one line of metric-fid50k_full.jsonl

`generator` is any callable (z float32 [N, z_dim], labels int64 [N] or None) -> float images [N, C, R, R] in [-1, 1], with attributes z_dim and
c_dim; both tensors arrive on the evaluator's device. `dataset` is anything with len(), [i] -> (uint8 [C, R, R], label), content_hash(), name,
resolution, metadata and, for labels drawn as in the data set, label_distribution() (counts per class). All real images are taken unflipped.

Sample i's latent and label are functions of (seed, i), so a number depends neither on the batch size nor on the number of processes, except for
the rounding of the features. With several processes (torch_utils.distributed) every one calls the evaluator; each does its share of the batches,
process 0 computes, and all get the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy
import timm
import torch
from torch import Tensor

import dnnlib.util
from metrics import detectors, registry, statistics
from torch_utils import distributed, images, rng

LABEL_RULES = ("dataset", "uniform")
REAL_SUBSET_SEED = 0  # one subset per data set and size, whatever the seed of the latents: numbers of different seeds share their reference
_CACHE_VERSION = 1  # of what the cached statistics mean; a change of preparation must raise it
_PREPARATION_KEYS = ("crop", "filter", "background", "resolution")  # what must agree before two image sets are compared

Progress = Callable[[str, int, int], None]  # what is being done, images done, images in all


@dataclasses.dataclass(frozen=True)
class Record:
    """A number and what it was measured on."""

    metric: str
    value: float
    lower_is_better: bool
    results: dict[str, float]  # keyed as in published files: {'fid50k_full': 2.1}, {'is50k_mean': 274.2, 'is50k_std': 4.0}
    conditions: dict[str, Any]  # images generated and real, detector, reference, truncation, labels, seed, device, versions, time; JSON values

    def as_dict(self) -> dict[str, Any]:
        """The JSON line."""
        return {"results": self.results, "metric": self.metric, "value": self.value, **self.conditions}


class _Need(NamedTuple):
    """What is kept of one detector output over the first `num_images` images of a source."""

    detector: str
    output: str
    keep: str
    num_images: int


class ImageSource(Protocol):
    """uint8 images by sample index."""

    def __call__(self, indices: Sequence[int]) -> Tensor: ...


class GeneratedImages:
    """A generator's images, quantised as all images of the project are. Latent and label of sample i depend on (seed, i) alone."""

    def __init__(self, generator: Any, seed: int, device: torch.device, label_counts: np.ndarray | None, resolution: int | None) -> None:
        self.generator = generator
        self.seed = seed
        self.device = device
        self.resolution = resolution  # refuse images of another one; None = take any
        self.num_classes = int(getattr(generator, "c_dim", 0))
        self._cumulative: np.ndarray | None = None
        if self.num_classes and label_counts is not None:
            if len(label_counts) != self.num_classes:
                raise ValueError(f"the generator knows {self.num_classes} classes, the data set {len(label_counts)}; use labels 'uniform'")
            self._cumulative = np.cumsum(label_counts, dtype=np.float64)

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """int64 [N] on the CPU, or None for an unconditional generator."""
        if not self.num_classes:
            return None
        if self._cumulative is None:
            return rng.integers(self.seed, "metrics/label", 0, indices, self.num_classes)
        position = rng.uniform(self.seed, "metrics/label", 0, indices).numpy().astype(np.float64) * self._cumulative[-1]
        return torch.from_numpy(np.searchsorted(self._cumulative, position, side="right").astype(np.int64))

    def __call__(self, indices: Sequence[int]) -> Tensor:
        z = rng.normal(self.seed, "metrics/z", 0, indices, (self.generator.z_dim,)).to(self.device)
        labels = self.labels(indices)
        with torch.no_grad():
            x = self.generator(z, None if labels is None else labels.to(self.device))
        if not torch.isfinite(x).all():
            bad = int(torch.isfinite(x).flatten(1).all(dim=1).logical_not().nonzero()[0])
            raise ValueError(f"the generator returned NaN or Inf for sample {indices[bad]} (seed {self.seed})")
        if self.resolution is not None and x.shape[-1] != self.resolution:
            sizes = f"the generator makes images of {x.shape[-1]} pixels, the data set holds {self.resolution}"
            raise ValueError(f"{sizes}; use --force to compare them")
        return images.to_uint8(x)


class RealImages:
    """A data set's images, unflipped: all of them, or a seeded random subset in the order of the set."""

    def __init__(self, dataset: Any, count: int | None = None) -> None:
        self.dataset = dataset
        total = len(dataset) // 2 if getattr(dataset, "xflip", False) else len(dataset)
        self.num_images = total
        if total < 2:
            raise ValueError(f"{dataset.name}: metrics need at least 2 images, the data set has {total}")
        if count is None or count >= total:
            self.indices = np.arange(total)
        else:
            self.indices = np.sort(rng.permutation(REAL_SUBSET_SEED, "metrics/real", 0, total)[:count])

    def __len__(self) -> int:
        return len(self.indices)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self.dataset[int(self.indices[i])][0] for i in indices]))

    def view(self) -> str:
        """Hash of which archive entries the indices mean: data sets can be opened as a subset."""
        details = getattr(self.dataset, "get_details", None)
        entries = self.indices if details is None else np.array([details(int(i)).raw_index for i in self.indices])
        return hashlib.sha256(np.ascontiguousarray(entries, np.int64).tobytes()).hexdigest()[:16]


def preparation(dataset: Any) -> dict[str, Any]:
    """How a data set's images were made, as far as its metadata says, and the resolution they have."""
    return preparation_from(getattr(dataset, "metadata", None) or {}, int(dataset.resolution))


def preparation_from(metadata: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Crop, filter, background (what transparent images were laid on) and source from a data set's metadata as dataset_tool.py writes it."""
    known = {key: metadata.get(key) for key in ("filter", "background", "source")}
    return {"crop": metadata.get("crop", metadata.get("transform")), **known, "resolution": resolution}


def preparation_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """['filter lanczos against box', ...] for what both sides state and state differently."""
    pairs = ((key, a.get(key), b.get(key)) for key in _PREPARATION_KEYS)
    return [f"{key} {x} against {y}" for key, x, y in pairs if x is not None and y is not None and x != y]


def require_same_preparation(what: str, a: Mapping[str, Any], b: Mapping[str, Any], force: bool = False) -> None:
    """Raises ValueError if two image sets were made differently: that moves FID by more than methods differ by."""
    differences = preparation_differences(a, b)
    if differences and not force:
        raise ValueError(f"{what} were prepared differently ({'; '.join(differences)}), which moves the number; use --force to have it anyway")


class Evaluator:
    """Measures generators or image sets against a data set. See the module's head for what the arguments must offer.

    Args:
        dataset: the reference; None if no metric needs one (is50k with uniform labels).
        metrics: names ('fid50k_full,is50k') or a list of names.
        device: where generator and detectors run. batch: images at a time, per process.
        seed: of latents, labels and shuffles. num_gen: replaces the count in the names.
        labels: 'dataset' draws them from the data set's distribution (published StyleGAN), 'uniform' over the classes (published StyleSAN-XL).
        inception, lite0: weights' files, see metrics.detectors. lite0_dtype: torch.bfloat16 is faster on CPUs; recorded.
        cache_dir: for statistics of real images; None = dnnlib's cache. progress: called with (what, done, total) on process 0.
        force: measure across differing preparations and resolutions; recorded.
        loaded: detectors by name, instead of loading them.
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
        inception: str | None = None,
        lite0: str | None = None,
        lite0_dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
        progress: Progress | None = None,
        force: bool = False,
        loaded: Mapping[str, detectors.Detector] | None = None,
    ) -> None:
        self.metrics = registry.parse_list(metrics, num_gen)
        if labels not in LABEL_RULES:
            raise ValueError(f"labels {labels!r}: say 'dataset' (drawn as the data set's are) or 'uniform' (over the classes)")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
        needing = [metric.name for metric in self.metrics if metric.family.needs_real]
        if dataset is None and needing:
            raise ValueError(f"metric {needing[0]} needs a data set to compare with")
        self.dataset = dataset
        self.device = torch.device(device)
        self.batch = batch
        self.seed = seed
        self.label_rule = labels
        self.force = force
        self.progress = progress
        self.cache_dir = cache_dir or dnnlib.util.make_cache_dir_path("metrics")
        self._weights = {"inception_path": inception, "lite0_weights": lite0}
        self._lite0_dtype = lite0_dtype
        self._content_hash: str | None = None
        self._detectors: dict[str, detectors.Detector] = dict(loaded or {})
        self._real: dict[_Need, tuple[statistics.Store, dict[str, Any]]] = {}

    def check(self, download: bool = True) -> None:
        """Make sure the detectors' weights are there; Inception's are downloaded to the cache if not. Raises as `detectors.check`."""
        for name in {metric.family.detector for metric in self.metrics} - self._detectors.keys():
            detectors.check(name, **self._weights, download=download)

    def check_records(self, folder: str | os.PathLike[str]) -> None:
        """Raises ValueError, before hours of work, if `write_record` would refuse this evaluator's records for what the folder holds already."""
        for metric in self.metrics:
            reference = self._reference(RealImages(self.dataset, metric.num_real)) if metric.family.needs_real else None
            line = {"metric": metric.name, "reference": reference, "detector": self._detector(metric.family.detector).description}
            _check_against_last(record_path(folder, metric.name), line, self.force)

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

        truncation, snapshot, details: for the record (truncating is the generator's own affair). trained_on: preparation of its training images.
        """
        if trained_on is not None and self.dataset is not None:
            require_same_preparation("the generator's training images and the data set", trained_on, preparation(self.dataset), self.force)
        conditional = bool(getattr(generator, "c_dim", 0))
        counts = None
        if conditional and self.label_rule == "dataset":
            if self.dataset is None or not getattr(self.dataset, "has_labels", True):
                raise ValueError("labels 'dataset' need a labelled data set; use --labels uniform, or a data set with labels")
            counts = np.asarray(self.dataset.label_distribution())
        resolution = None if self.force or self.dataset is None else int(self.dataset.resolution)
        source = GeneratedImages(generator, self.seed, self.device, counts, resolution)
        reduced = getattr(getattr(generator, "synthesis", None), "reduced_dtype", None)  # of its flagged layers; None = float32 everywhere
        about = {
            "truncation": truncation,
            "labels": self.label_rule if conditional else None,
            "snapshot_pkl": snapshot,
            "generator_dtype": str(reduced or torch.float32).removeprefix("torch."),
            **(details or {}),
        }
        return self._measure(source, "generated", self.metrics, about)

    def compare(self, image_set: Any) -> list[Record]:
        """Measure an image set against the data set. A set smaller than a metric's count is taken whole, and the metric's name says its size."""
        if self.dataset is not None:
            require_same_preparation(f"{image_set.name} and {self.dataset.name}", preparation(image_set), preparation(self.dataset), self.force)
        available = len(RealImages(image_set))
        fitted = [m if m.num_gen <= available else registry.make(m.family, available, m.full) for m in self.metrics]
        fitted = list({metric.name: metric for metric in fitted}.values())
        records: list[Record] = []
        for count in sorted({metric.num_gen for metric in fitted}):
            source = RealImages(image_set, count)
            about = {"images": {"name": image_set.name, "content_hash": image_set.content_hash(), "view": source.view(), **preparation(image_set)}}
            records += self._measure(source, "compared", [metric for metric in fitted if metric.num_gen == count], about)
        return records

    def _measure(self, source: ImageSource, what: str, metrics: Sequence[registry.Metric], about: Mapping[str, Any]) -> list[Record]:
        started = time.time()
        real = {metric.name: self._real_statistics(metric) for metric in metrics if metric.family.needs_real}
        needs = {metric.name: _Need(metric.family.detector, metric.family.output, metric.family.keep, metric.num_gen) for metric in metrics}
        stores = self._collect(source, what, list(dict.fromkeys(needs.values())))

        def records() -> list[Record]:
            results = []
            for metric in metrics:
                store, reference = real.get(metric.name, (None, None))
                values = metric.family.compute(stores[needs[metric.name]], store, self.seed)
                results.append(self._record(metric, values, reference, about, started))
            return results

        return _on_main(records)

    def _record(
        self, metric: registry.Metric, values: Mapping[str, float], reference: dict[str, Any] | None, about: Mapping[str, Any], started: float
    ) -> Record:
        seconds = time.time() - started
        conditions = {
            "num_gen": metric.num_gen,
            "num_real": None if reference is None else reference["num_real"],
            "detector": self._detector(metric.family.detector).description,
            "reference": reference,
            "seed": self.seed,
            "forced": self.force,
            **about,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "versions": {"python": platform.python_version(), **{module.__name__: module.__version__ for module in (torch, timm, np, scipy)}},
            "num_gpus": distributed.world_size(),
            "total_time": seconds,
            "total_time_str": dnnlib.util.format_time(seconds),
            "timestamp": time.time(),
        }
        results = {metric.name + suffix: value for suffix, value in values.items()}
        return Record(metric.name, next(iter(values.values())), metric.family.lower_is_better, results, conditions)

    def _detector(self, name: str) -> detectors.Detector:
        if name not in self._detectors:
            self._detectors[name] = detectors.load(name, self.device, lite0_dtype=self._lite0_dtype, **self._weights)
        return self._detectors[name]

    def _reference(self, source: RealImages) -> dict[str, Any]:
        """What a record says of the real images."""
        if self._content_hash is None:
            self._content_hash = self.dataset.content_hash()  # reads through a folder: once is enough
        return {
            "dataset": self.dataset.name,
            "content_hash": self._content_hash,
            "view": source.view(),
            "num_images": source.num_images,
            "num_real": len(source),
            **preparation(self.dataset),
        }

    def _real_statistics(self, metric: registry.Metric) -> tuple[statistics.Store | None, dict[str, Any]]:
        """(what is kept of the real images, description), from memory, the cache, or the images. The store is whole on process 0 only."""
        source = RealImages(self.dataset, metric.num_real)
        need = _Need(metric.family.detector, metric.family.output, metric.family.keep, len(source))
        if need not in self._real:
            description = self._reference(source)
            key = {
                **{name: description[name] for name in ("content_hash", "view", "resolution")},
                "detector": self._detector(need.detector).description,
                "kept": [need.output, need.keep],
                "version": _CACHE_VERSION,
            }
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
            path = Path(self.cache_dir) / f"{Path(self.dataset.name).stem}-{need.detector}-{need.keep}-{digest}.npz"
            store = _on_main(lambda: _load_cached(path, key), share=False)
            if distributed.broadcast_object(store is None):
                store = self._collect(source, "real", [need])[need]
                if distributed.is_main():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    statistics.save(path, store, {**key, "reference": description})
            self._real[need] = (store, description)
        return self._real[need]

    def _collect(self, source: ImageSource, what: str, needs: Sequence[_Need]) -> dict[_Need, statistics.Store]:
        """Run images through the detectors once, for all that is needed. The returned stores are merged on process 0, partial elsewhere."""
        stores = {need: statistics.new_store(need.keep, self._detector(need.detector).dims[need.output]) for need in needs}
        total = max(need.num_images for need in needs)
        batches = [range(start, min(start + self.batch, total)) for start in range(0, total, self.batch)]
        mine = batches[distributed.rank() :: distributed.world_size()]
        if self.progress and distributed.is_main():
            self.progress(what, 0, total)
        with ThreadPoolExecutor(max_workers=1) as pool:  # the next batch is read from disk while this one is in the network
            ahead = isinstance(source, RealImages)
            pending = pool.submit(source, mine[0]) if ahead and mine else None
            for position, batch in enumerate(mine):
                pixels = pending.result() if pending else source(batch)
                pending = pool.submit(source, mine[position + 1]) if ahead and position + 1 < len(mine) else None
                self._run_detectors(pixels, batch, stores)
                if self.progress and distributed.is_main():
                    self.progress(what, min(total, (position + 1) * self.batch * distributed.world_size()), total)
        if distributed.world_size() > 1:
            for store in stores.values():
                for other_rank, other in enumerate(distributed.all_gather_object(store)):
                    if distributed.is_main() and other_rank > 0:
                        store.merge(other)
        return stores

    def _run_detectors(self, pixels: Tensor, batch: range, stores: Mapping[_Need, statistics.Store]) -> None:
        for name in {need.detector for need in stores}:
            wanted = {need: store for need, store in stores.items() if need.detector == name and need.num_images > batch.start}
            if wanted:
                outputs = self._detector(name)(pixels[: max(need.num_images for need in wanted) - batch.start])
                for need, store in wanted.items():
                    indices = range(batch.start, min(batch.stop, need.num_images))
                    store.append(outputs[need.output][: len(indices)].numpy(), indices)


def _on_main(compute: Callable[[], Any], share: bool = True) -> Any:
    """compute() on process 0; its result, if `share`, and its exception in any case, on all. Without `share` the others get None."""
    result: Any = None
    error: Exception | None = None
    if distributed.is_main():
        try:
            result = compute()
        except Exception as e:
            error = e
    error, shared = distributed.broadcast_object((error, result if share else None))
    if error is not None:
        raise error
    return result if distributed.is_main() else shared


def _load_cached(path: Path, key: Mapping[str, Any]) -> statistics.Store | None:
    """The cached statistics, or None if there are none or they are damaged or of something else (they are then made again)."""
    if not path.is_file():
        return None
    try:
        store, description = statistics.load(path)
    except (ValueError, OSError):
        return None
    return store if all(description.get(name) == value for name, value in json.loads(json.dumps(key)).items()) else None


def numbers(records: Sequence[Record]) -> dict[str, float]:
    """{'fid50k_full': 2.1, 'is50k_mean': 274.2, 'is50k_std': 4.0, ...} of what an Evaluator returned."""
    return {name: value for record in records for name, value in record.results.items()}


def record_path(folder: str | os.PathLike[str], metric_name: str) -> Path:
    """metric-<name>.jsonl in a run's folder."""
    return Path(folder) / f"metric-{metric_name}.jsonl"


def check_comparable(later: Mapping[str, Any], earlier: Mapping[str, Any], force: bool = False) -> None:
    """Raises ValueError if two record dicts of a metric were not measured against the same reference with the same detector."""
    a, b = earlier.get("reference") or {}, later.get("reference") or {}
    differences = preparation_differences(a, b)
    for key in ("content_hash", "view"):
        if key in a and key in b and a[key] != b[key]:
            differences.append(f"{key} {str(a[key])[:12]} against {str(b[key])[:12]}")
    detector_a, detector_b = earlier.get("detector") or {}, later.get("detector") or {}
    differences += [f"detector {key} {detector_a[key]} against {detector_b.get(key)}" for key in detector_a if detector_a[key] != detector_b.get(key)]
    if differences and not force:
        reasons = "; ".join(differences)
        raise ValueError(f"this {later['metric']} cannot stand beside the recorded one: {reasons}; write it elsewhere, or use --force")


def write_record(folder: str | os.PathLike[str], record: Record, force: bool = False) -> Path:
    """Append a record to the metric's JSONL file and return its path; only process 0 should.

    Raises ValueError if the file's last record has another reference or detector, unless `force`.
    """
    path = record_path(folder, record.metric)
    line = record.as_dict()
    _check_against_last(path, line, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    return path


def _check_against_last(path: Path, line: Mapping[str, Any], force: bool) -> None:
    lines = [text for text in path.read_text(encoding="utf-8").splitlines() if text.strip()] if path.is_file() else []
    if lines:
        try:
            earlier = json.loads(lines[-1])
        except json.JSONDecodeError:
            raise ValueError(f"{path}: the last line is not JSON; move the file away") from None
        check_comparable(line, earlier, force)
