# SPDX-License-Identifier: Apache-2.0
"""The page of calc_metrics.py --report: numbers, nearest real images, best and worst classes."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
from markupsafe import Markup

from dnnlib.util import atomic_write
from metrics.collect import Need
from metrics.evaluate import Evaluator, Record
from metrics.image_sets import GeneratedImages, RealImages
from metrics.registry import Metric
from torch_utils import distributed
from training.watch.report import text

SAMPLES = 1000  # generated images, at most
REAL_IMAGES = 10_000  # at most: a seeded random subset
SHOWN, NEIGHBOURS = 12, 5  # generated images with their nearest real ones
CLASSES, PER_CLASS = 5, 8  # best and worst classes; images of each
PIXELS = 96  # of a picture on the page, at most


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with its caption; source: a data: address."""

    source: Markup
    caption: str


@dataclasses.dataclass(frozen=True)
class Side:
    """Images of one side with their features [n, D] and labels [n]; -1 = no label."""

    images: Any
    rows: np.ndarray
    labels: np.ndarray

    def picture(self, index: int, caption: str) -> Picture:
        """The image of that sample."""
        pixels = self.images([index])[0].cpu().numpy().transpose(1, 2, 0)
        return Picture(
            data_address(PIL.Image.fromarray(np.ascontiguousarray(pixels)[..., :3].squeeze())), caption
        )


def data_address(image: PIL.Image.Image) -> Markup:
    """A PNG of at most PIXELS pixels as a data: address."""
    if image.width > PIXELS:
        image = image.resize((PIXELS, PIXELS), PIL.Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="PNG")
    return Markup(f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}")


def nearest(generated: np.ndarray, real: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest real rows of each generated row.

    Args:
        generated: [n, D].
        real: [m, D].
        count: Neighbours, at most m.

    Returns:
        Indices and distances [n, count], nearest first.
    """
    centre = real.mean(axis=0, dtype=np.float64)
    a, b = generated.astype(np.float64) - centre, real.astype(np.float64) - centre
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    order = np.argsort(squared, axis=1, kind="stable")[:, : min(count, len(real))]
    return order, np.sqrt(np.maximum(np.take_along_axis(squared, order, axis=1), 0))


def class_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """The unbiased squared distance between the means of two sets of rows; it can be negative.

    The squared maximum mean discrepancy with a linear kernel, E x.x' + E y.y' - 2 E x.y over pairs of
    distinct rows. A plain squared distance of means would be larger for classes with fewer images.

    Args:
        generated: [n, D] with n >= 2.
        real: [m, D] with m >= 2.
    """
    x, y = generated.astype(np.float64), real.astype(np.float64)
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre

    def within(rows: np.ndarray) -> float:
        count = len(rows)
        return float(((rows.sum(axis=0) ** 2).sum() - (rows**2).sum()) / (count * (count - 1)))

    return within(x) + within(y) - 2 * float(x.mean(axis=0) @ y.mean(axis=0))


def class_distances(generated: Side, real: Side) -> dict[int, float]:
    """The distance of each class that has two images on both sides, the nearest first."""
    found = {}
    for label in np.intersect1d(generated.labels, real.labels):
        sides = [side.rows[side.labels == label] for side in (generated, real)]
        if label >= 0 and min(map(len, sides)) >= 2:
            found[int(label)] = class_distance(*sides)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _labels(source: GeneratedImages | RealImages, count: int) -> np.ndarray:
    if isinstance(source, GeneratedImages):
        labels = source.labels(range(count))
        return np.full(count, -1) if labels is None else labels.numpy()
    if not getattr(source.dataset, "has_labels", False):
        return np.full(count, -1)
    return np.array([int(source.dataset[int(i)][1]) for i in source.indices])


def _generated_side(evaluator: Evaluator, measured: Any, detector: str, count: int) -> Side:
    is_generator = hasattr(measured, "z_dim")
    source: Any = evaluator.generated(measured) if is_generator else RealImages(measured, count)
    count = count if is_generator else len(source)
    need = Need(detector, "features", "array", count)
    rows = evaluator.collector(source, "generated", [need])[need].array  # type: ignore[union-attr]
    return Side(source, rows, _labels(source, count))


def _real_side(evaluator: Evaluator, metric: Metric) -> Side:
    family = dataclasses.replace(
        metric.family, output="features", keep="array", real_images=REAL_IMAGES, bare_is_full=False
    )
    wanted = Metric("report", family, SAMPLES, False)
    store, _ = evaluator.references([wanted])[wanted.name]
    source = RealImages(evaluator.dataset, wanted.num_real)
    return Side(source, store.array, _labels(source, len(source)))  # type: ignore[union-attr]


def _class_entry(
    label: int, distance: float, generated: Side, real: Side, names: list[str] | None
) -> dict[str, Any]:
    chosen = [np.flatnonzero(side.labels == label) for side in (generated, real)]
    pictures = [
        [side.picture(int(i), "") for i in found[:PER_CLASS]]
        for side, found in zip((generated, real), chosen, strict=True)
    ]
    return {
        "name": f"class {label}" + (f" ({names[label]})" if names and label < len(names) else ""),
        "distance": f"{distance:.4g}",
        "generated": len(chosen[0]),
        "real": len(chosen[1]),
        "generated_images": pictures[0],
        "real_images": pictures[1],
    }


def _class_name(label: int, names: list[str] | None) -> str:
    return names[label] if names and label < len(names) else f"class {label}"


def _plot(distances: dict[int, float], names: list[str] | None) -> Markup:
    """A bar for each class, sorted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(distances)), list(distances.values()), width=0.9)
    if len(distances) <= 40:
        ticks = [_class_name(label, names)[:20] for label in distances]
        axes.set_xticks(range(len(distances)), ticks, rotation=30, ha="right", rotation_mode="anchor")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="from the best class to the worst", ylabel="distance")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return Markup(f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}")


def _row(record: Record, name: str, value: float) -> tuple[str, ...]:
    conditions = record.conditions
    notes = list(record.notes)
    interval = conditions.get("interval")
    spread = f"{interval['std'][name]:.4f}" if interval and name in interval["std"] else ""
    if "infinity" in conditions:
        notes.append(f"{conditions['infinity']['value']:.4f} extrapolated to infinitely many samples")
    real = conditions.get("num_real")
    seed = f"seed {conditions.get('seed')}"
    return (
        name,
        f"{value:.4f}",
        spread,
        "low" if record.lower_is_better else "high",
        f"{conditions['num_gen']:,}" if conditions["num_gen"] else "unknown",
        f"{real:,}" if real else "",
        "; ".join([seed, *notes]),
    )


def pictures_of(evaluator: Evaluator, measured: Any, metric: Metric) -> dict[str, Any]:
    """The parts of the page that show images; empty lists where there is nothing to show.

    Args:
        evaluator: Has measured the numbers.
        measured: The generator or image set.
        metric: The detector of which is used.
    """
    detector = metric.family.detector
    generated = _generated_side(evaluator, measured, detector, min(metric.num_gen, SAMPLES))
    real = _real_side(evaluator, metric)
    shown = range(min(SHOWN, len(generated.rows)))
    order, distances = nearest(generated.rows[: len(shown)], real.rows, NEIGHBOURS)
    rows = [
        [
            generated.picture(i, f"sample {i}"),
            *(real.picture(int(j), f"{d:.4g}") for j, d in zip(order[i], distances[i], strict=True)),
        ]
        for i in shown
    ]
    found = class_distances(generated, real)
    names = getattr(evaluator.dataset, "class_names", None)
    ends = [("Best classes", list(found)[:CLASSES]), ("Worst classes", list(found)[: -CLASSES - 1 : -1])]
    groups = [
        (title, [_class_entry(label, found[label], generated, real, names) for label in labels])
        for title, labels in ends
    ]
    return {
        "neighbours": rows,
        "detector": detector,
        "classes": groups if len(found) > 1 else [],
        "plot": _plot(found, names) if len(found) > 1 else "",
        "samples": len(generated.rows),
    }


@functools.cache
def _templates() -> jinja2.Environment:
    """The templates beside this file, in the frame of a run's report; texts are cut and escaped."""
    loaders = [jinja2.PackageLoader("generation"), jinja2.PackageLoader("training.watch")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else text(value),
    )


def page(evaluator: Evaluator, measured: Any, records: Sequence[Record]) -> str:
    """The page of a measurement, as HTML.

    Args:
        evaluator: Has measured it.
        measured: The generator, image set or statistics.
        records: Its results.
    """
    parts: dict[str, Any] = {"neighbours": [], "classes": [], "plot": "", "detector": "", "samples": 0}
    metric = next((m for m in evaluator.metrics if m.family.detector), None)
    has_images = all(
        hasattr(side, "__getitem__") or hasattr(side, "z_dim") for side in (measured, evaluator.dataset)
    )
    if metric is not None and has_images:
        with distributed.alone():
            parts = pictures_of(evaluator, measured, metric)
    conditions = records[0].conditions
    what = conditions.get("snapshot_pkl") or conditions.get("images", {}).get("name") or "a generator"
    return _templates().get_template("metrics.html.jinja").render(
        title=f"Metrics of {Path(str(what)).name}",
        written=datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
        measured=str(what),
        reference=getattr(evaluator.dataset, "name", "nothing"),
        rows=[_row(record, name, value) for record in records for name, value in record.results.items()],
        size=PIXELS,
        columns=1 + NEIGHBOURS,
        per_class=PER_CLASS,
        **parts,
    )  # fmt: skip


def write_if_asked(path: str | None, evaluator: Evaluator, measured: Any, records: Sequence[Record]) -> None:
    """Write the page atomically; nothing without a path."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = page(evaluator, measured, records)
    with atomic_write(path, "w") as file:
        file.write(content)
