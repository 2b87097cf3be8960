# SPDX-License-Identifier: Apache-2.0
"""The networks of a run measured by metrics: the place where training and metrics, which do not know each
other, meet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

import dnnlib.util
from dnnlib.progress import Stages
from generation.measured import MeasuredGenerator
from metrics import collect, detectors
from metrics.detectors import Detector
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
    """Metrics against the training images, all of them and unflipped. loaded: detectors, shared with other
    evaluators.
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
    """What measures every stage's best network: `metric` on the last stage's data. config: the last
    stage's.
    """
    dataset = build.plain_dataset(build.make_dataset(config.data, config.run.seed, prepare))
    return Evaluator(
        dataset, [metric], device=device, batch=evaluation_batch(config), progress=EvaluationProgress()
    )


def evaluation_batch(config: TrainConfig) -> int:
    """Images at a time, per process, for metrics: a detector's activations are no part of what --batch-gpu
    was chosen by.
    """
    return min(max(config.batch_gpu, 16), 64)


class EvaluationProgress(Stages):
    """What is shown of an evaluation: that the first one goes through the data, and then the remaining
    time.
    """

    def __init__(self) -> None:
        super().__init__(collect.STAGES, silent=10)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "real" and done == 0:
            print(f"  metrics: {total:,} real images, once", flush=True)
        super().__call__(stage, done, total)


def make_evaluate(config: TrainConfig, device: torch.device) -> Callable[[Generator], list[Score]] | None:
    """The callable that the loop calls at every snapshot to measure G_ema."""
    if not config.run.metrics:
        return None
    evaluator = make_evaluator(config, build.make_dataset(config.data, config.run.seed), device)

    def evaluate(generator: Generator) -> list[Score]:
        return [
            Score(r.metric, r.value, r.lower_is_better, r.as_dict())
            for r in evaluator(MeasuredGenerator(generator))
        ]

    return evaluate


def metrics_of(configs: Iterable[TrainConfig], final: str | None = None) -> list[str]:
    """The metrics of runs, each once. final: what is measured after each stage of a recipe."""
    return list(
        dict.fromkeys(filter(None, [*(name for config in configs for name in config.run.metrics), final]))
    )


def missing_files(configs: Sequence[TrainConfig], final: str | None = None) -> Iterator[str]:
    """A line for each file that frozen networks and metrics read and that is not there. final: as for
    `metrics_of`.
    """
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
    """What a run computes once, before its first step and at its first evaluation, with the time that it
    takes here.
    """
    is_copied = (
        evaluator.dataset.resolution != dataset.resolution
    )  # to a smaller one, whose statistics cannot be there yet
    return [*dry_run.once(config, dataset, run_dir), *evaluator.announce(anew=is_copied)]


def prefetch_items(
    configs: Sequence[TrainConfig],
    final: str | None,
    resume: str | None,
    hub: str | None,
    say: Callable[[str], None],
) -> list[prefetch.Item]:
    """The files that runs read and that can be fetched: frozen networks, metrics' detectors and networks
    named by address, each once.

    final: as for `metrics_of`. resume: the value of --resume. hub: a folder in the place of the hub's cache.
    say: told what is fetched.
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
