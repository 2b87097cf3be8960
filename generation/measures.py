# SPDX-License-Identifier: Apache-2.0
"""Evaluate the networks of a run: connects `training` and `metrics`, which do not import each other."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

import dnnlib.util
from dnnlib.progress import Stages
from generation.measured import MeasuredGenerator
from metrics import collect, detectors
from metrics.detector import Detector
from metrics.evaluate import Evaluator
from metrics.registry import detectors_of, parse_list, parse_metric
from torch_utils import prefetch, timm_weights
from training import build
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.networks import files, frozen
from training.run import dry_run, stop
from training.run.evaluation import Score


def make_evaluator(
    config: TrainConfig,
    dataset: ImageDataset,
    device: torch.device | str = "cpu",
    loaded: dict[str, Detector] | None = None,
) -> Evaluator:
    """An evaluator that compares a run's networks with all training images, without flips.

    Args:
        config: the run.
        dataset: its data set.
        device: where to compute.
        loaded: detectors shared with other evaluators.
    """
    plain, batch, shown = build.plain_dataset(dataset), evaluation_batch(config), EvaluationProgress()
    return Evaluator(
        plain,
        list(config.run.metrics),
        device=torch.device(device),
        batch=batch,
        progress=shown,
        pause=stop.pause,
        loaded=loaded,
    )


def final_evaluator(
    config: TrainConfig, metric: str, device: torch.device, prepare: bool = True
) -> Evaluator:
    """The evaluator of every stage's best network on the data of the last stage.

    Args:
        config: the last stage.
        metric: the metric.
        device: where to compute.
        prepare: see `build.make_dataset`.
    """
    dataset = build.plain_dataset(build.make_dataset(config.data, config.run.seed, prepare))
    return Evaluator(
        dataset, [metric], device=device, batch=evaluation_batch(config), progress=EvaluationProgress()
    )


def evaluation_batch(config: TrainConfig) -> int:
    """Images at a time per process for metrics. --batch-gpu does not account for a detector's activations."""
    return min(max(config.batch_gpu, 16), 64)


class EvaluationProgress(Stages):
    """Progress of an evaluation: a line before the first pass over the data, then the remaining time."""

    def __init__(self) -> None:
        super().__init__(collect.STAGES, silent=10)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Stages`."""
        if stage == "real" and done == 0:
            print(f"  metrics: processing {total:,} real images (only once)", flush=True)
        super().__call__(stage, done, total)


def make_evaluate(config: TrainConfig, device: torch.device) -> Callable[[Generator], list[Score]] | None:
    """The function that evaluates G_ema at every snapshot of the training loop; None without metrics."""
    if not config.run.metrics:
        return None
    evaluator = make_evaluator(config, build.make_dataset(config.data, config.run.seed), device)

    def evaluate(generator: Generator) -> list[Score]:
        return [
            Score(r.metric, r.value, r.lower_is_better, r.as_dict())
            for r in evaluator(MeasuredGenerator(generator), identity=identity_of(generator))
        ]

    return evaluate


def identity_of(generator: Generator) -> dict[str, str]:
    """What the images of a generator depend on: the hash of its weights and its precision.

    With it, an evaluation that was killed continues after the run is resumed.
    """
    digest = hashlib.sha256()
    for name, tensor in generator.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"weights": digest.hexdigest(), "dtype": str(generator.synthesis.reduced_dtype)}


def metrics_of(configs: Iterable[TrainConfig], final: str | None = None) -> list[str]:
    """The metrics of several runs without duplicates. `final`: the metric after each stage of a recipe."""
    return list(
        dict.fromkeys(filter(None, [*(name for config in configs for name in config.run.metrics), final]))
    )


def missing_files(configs: Sequence[TrainConfig], final: str | None = None) -> Iterator[str]:
    """Yield a line for each missing file of frozen networks and detectors. `final`: see `metrics_of`."""
    for config in configs:
        yield from frozen.check_weights(config, download=False)
    for name in detectors_of(parse_list(metrics_of(configs, final))):
        try:
            detectors.check(name, download=False)
        except FileNotFoundError as err:
            yield str(err)


def work_before(
    config: TrainConfig, dataset: ImageDataset, run_dir: Path | None, evaluator: Evaluator
) -> list[str]:
    """What a run computes once, before its first step and in its first evaluation, with the time it takes."""
    # The statistics of a data set that is copied to a smaller resolution cannot be cached yet.
    is_copied = evaluator.dataset.resolution != dataset.resolution
    return [*dry_run.once(config, dataset, run_dir), *evaluator.announce(anew=is_copied)]


def prefetch_items(
    configs: Sequence[TrainConfig],
    final: str | None,
    resume: str | None,
    hub: str | None,
    say: Callable[[str], None],
) -> list[prefetch.Item]:
    """The files of runs that can be downloaded: frozen networks, detectors, networks given as URLs.

    Args:
        configs: the runs.
        final: see `metrics_of`.
        resume: the value of --resume.
        hub: folder to use instead of the cache of torch.hub.
        say: prints what is downloaded.
    """
    items: dict[tuple[str, ...], prefetch.Item] = {}
    for config in configs:
        for need in frozen.needed_weights(config):
            get = functools.partial(timm_weights.fetch, need.name, need.weights, hub, say)
            items[need.name, need.weights or "", need.purpose] = prefetch.Item(
                f"{need.name} ({need.purpose})", get
            )
        for metric in metrics_of([config], final):
            for name in detectors_of([parse_metric(metric)]):
                items[name, metric] = prefetch.Item(
                    f"{name} ({metric})", functools.partial(detectors.fetch, name, hub, say)
                )
        for flag, url in (
            ("--init-from", config.run.init_from),
            ("--path_stem", config.generator.path_stem),
            ("--resume", resume),
        ):
            if url and dnnlib.util.is_url(url):
                items[flag, url] = prefetch.Item(f"{flag}={url}", functools.partial(files.fetch, url, 10))
    return list(items.values())
