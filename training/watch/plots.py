# SPDX-License-Identifier: Apache-2.0
"""The curves of a run folder: losses, logits, class variety, SAN's conditions, metrics and speed.

They are drawn from stats.jsonl and metric-*.jsonl, all together as curves.png, and one by one as SVG for the
report. The code uses matplotlib's objects and never pyplot, whose global state belongs to the user.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import atomic_write, reason
from training.run_folder import CURVES_FILE, STATS_FILE, better_direction, kimg_text, metric_files, read_jsonl
from training.watch import ticks

SMOOTH_FROM = 30  # points; shorter series are not smoothed
MAX_LABEL = 80  # characters of a line's name in a legend
SVG_SIZE = (3.9, 2.4)  # size of a panel of the report in inches: 374 x 230 CSS pixels, the width of a phone
SVG_POINTS = 300  # maximum number of points of a line, enough for any screen
# Okabe and Ito's colours, which colour-blind readers can distinguish.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _YELLOW = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)
_PALETTE = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _YELLOW)
_INK, _GRID = "#333333", "#E4E4E4"


@dataclass
class Series:
    """A line of a panel: x in kimg, y, and the half width of a band around it (None: no band)."""

    label: str
    x: np.ndarray
    y: np.ndarray
    color: str
    band: np.ndarray | None = None
    weight: np.ndarray | None = None  # weight of each point for smoothing (None: all equal)
    best: str | None = None  # mark the point with the minimum ('min') or maximum ('max')


@dataclass
class Panel:
    """A diagram with its lines."""

    title: str
    series: list[Series] = field(default_factory=list)
    limits: tuple[float, float] | None = None  # limits of y; None: from the data
    log: bool = False
    zero: bool = False  # draw the line y = 0


# (title, limits, zero line, (statistic, label, colour) of each line). Panels without data are not drawn.
_STATS_PANELS: tuple[tuple[str, tuple[float, float] | None, bool, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Discriminator loss",
        None,
        True,
        (
            ("Loss/D/fun", "fun (the selected loss)", _BLUE),
            ("Loss/D/dir", "dir (the loss of the direction)", _ORANGE),
        ),
    ),
    (
        "SONA: weights of the terms",
        (0, 1),
        False,
        (
            ("SONA/weight/san", "naturalness", _BLUE),
            ("SONA/weight/conditional", "real against generated", _ORANGE),
            ("SONA/weight/matching", "matching class", _GREEN),
        ),
    ),
    (
        "Generator loss",
        None,
        True,
        (
            ("Loss/G/loss", "adversarial", _BLUE),
            ("Loss/G/guidance_loss", "guidance", _GREEN),
            ("Loss/G/reg", "path length", _PURPLE),
        ),
    ),
    (
        "Sign of the logits  (\u00b11: D separates, 0: it cannot)",
        (-1.05, 1.05),
        True,
        (("Loss/signs/real", "real", _GREEN), ("Loss/signs/fake", "generated", _ORANGE)),
    ),
    (
        "Logits  (mean \u00b1 std)",
        None,
        True,
        (("Loss/scores/real", "real", _GREEN), ("Loss/scores/fake", "generated", _ORANGE)),
    ),
    (
        "Class variety  (1: as varied as the data)",
        None,
        True,
        (
            ("Variety/within", "within classes", _BLUE),
            ("Variety/between", "between classes", _ORANGE),
            ("Variety/recall", "recall within classes", _GREEN),
        ),
    ),
    (
        "SAN's conditions, mean over heads  (1: met)",
        (-1.05, 1.05),
        True,
        (
            ("Diagnostics/direction", "direction optimality", _BLUE),
            ("Diagnostics/separability", "separability", _ORANGE),
            ("Diagnostics/injectivity", "injectivity (proxy)", _GREEN),
        ),
    ),
    (
        "Effective dimension of the heads' features",
        None,
        True,
        (("Diagnostics/effective_dim", "mean over heads", _PURPLE),),
    ),
    ("Images per second", None, True, ((ticks.SPEED, "img/s", _BLUE),)),
)
_BANDS = ("Loss/scores/real", "Loss/scores/fake")
# Metrics that share a panel: (pattern of the name, title, logarithmic). Which direction is better is in the
# records.
_METRIC_PANELS = (
    (re.compile(r"s?fid|fd[_\d]"), "Fr\u00e9chet distance  (lower is better)", True),
    (re.compile(r"kid"), "Kernel distance  (lower is better)", True),
    (re.compile(r"is\d|inception"), "Inception score  (higher is better)", False),
    (re.compile(r"pr[_\d]|prec|rec|acc|dens|cov"), "Precision, recall, accuracy", False),
    (re.compile(r""), "Metrics", False),
)


def smooth(
    y: Sequence[float] | np.ndarray,
    half_life: float,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Exponential moving average [N] of y [N].

    Unbiased at the start. NaNs are skipped.

    Args:
        y: values [N].
        half_life: points after which a weight has halved.
        weights: weights of the points [N]; None = all equal.
    """
    keep = 0.5 ** (1 / half_life)
    result = np.full(len(y), math.nan)
    total = weight = 0.0
    for i, (value, own) in enumerate(zip(y, np.ones(len(y)) if weights is None else weights, strict=True)):
        total, weight = total * keep, weight * keep
        if math.isfinite(value):
            total, weight = total + own * value, weight + own
        if weight > 0:
            result[i] = total / weight
    return result


def stats_panels(records: Iterable[dict[str, Any]]) -> list[Panel]:
    """The panels of the lines of stats.jsonl. Panels without data are left out."""
    ordered = ticks.in_order(records)
    x = np.array([kimg for kimg, _ in ordered])
    panels = []
    for title, limits, zero, lines in _STATS_PANELS:
        panel = Panel(title, limits=limits, zero=zero)
        for name, label, color in lines:
            y = np.array([ticks.number(record.get(name)) for _, record in ordered])
            known = np.isfinite(y)
            if not known.any():
                continue
            if name == ticks.SPEED:
                panel.series.append(Series(label, *ticks.whole_ticks(x[known], y[known]), color))
                continue
            std = np.array([ticks.number(record.get(name), "std") for _, record in ordered])
            band = std[known] if name in _BANDS else None
            panel.series.append(Series(label, x[known], y[known], color, band, ticks.lengths(x)[known]))
        if panel.series:
            panels.append(panel)
    return panels


def metric_panels(records: Iterable[dict[str, Any]]) -> list[Panel]:
    """The panels of metric-*.jsonl's records ({'kimg', 'results': {name: value}, ...}) by kind of metric."""
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if isinstance(results := record.get("results"), dict):
            for name, value in results.items():
                if not name.endswith("_std") and math.isfinite(ticks.number(value)):
                    point = {
                        "kimg": record.get("kimg"),
                        "value": value,
                        "best": better_direction(record, name),
                    }
                    by_metric.setdefault(name, []).append(point)
    panels: dict[str, Panel] = {}
    for name in sorted(by_metric):
        points = ticks.in_order(by_metric[name])
        if not points:
            continue
        _, title, log = next(kind for kind in _METRIC_PANELS if kind[0].match(name))
        panel = panels.setdefault(title, Panel(title, log=log))
        y = np.array([ticks.number(record["value"]) for _, record in points])
        x, color = np.array([kimg for kimg, _ in points]), _PALETTE[len(panel.series) % len(_PALETTE)]
        panel.series.append(Series(name, x, y, color, best=points[-1][1]["best"]))
    for panel in panels.values():
        panel.log = panel.log and all((s.y > 0).all() for s in panel.series)
    return list(panels.values())


def _limits(panel: Panel) -> tuple[float, float] | None:
    """Limits of y that are robust against a few outliers in a long run."""
    if panel.limits is not None or panel.log:
        return panel.limits
    bands = [np.zeros(1) if s.band is None else np.nan_to_num(s.band) for s in panel.series]
    values = np.concatenate(
        [s.y + sign * band for s, band in zip(panel.series, bands, strict=True) for sign in (-1, 1)]
    )
    low, high = (values.min(), values.max()) if len(values) < SMOOTH_FROM else np.percentile(values, [1, 99])
    if panel.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _text(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line(s: Series) -> np.ndarray:
    """The values drawn in full colour: the points, or their moving average if there are many."""
    many = len(s.x) >= SMOOTH_FROM and s.best is None
    return smooth(s.y, max(2.0, len(s.x) / 50), s.weight) if many else s.y


def _best(s: Series) -> int:
    return int(np.argmin(s.y) if s.best == "min" else np.argmax(s.y))


def legend(s: Series) -> str:
    """The name of a line with its newest value and, for a metric, its best value."""
    best = "" if s.best is None else f"  (best {_text(s.y[_best(s)])} at {kimg_text(s.x[_best(s)])} kimg)"
    name = s.label if len(s.label) <= MAX_LABEL else s.label[: MAX_LABEL - 3] + "..."
    return f"{name}  {_text(_line(s)[-1])}{best}"


def _draw_series(axes: Any, s: Series, most: int | None) -> None:
    """Draw a line. `most`: maximum number of points (None: all)."""
    dots = {"marker": "o", "markersize": 3.5} if len(s.x) < SMOOTH_FROM else {}
    shown = _line(s)
    some = _subsample(s.y, most)
    if shown is not s.y:
        axes.plot(s.x[some], s.y[some], color=s.color, linewidth=0.8, alpha=0.25)
    if s.band is not None:
        low, high = (s.y - s.band)[some], (s.y + s.band)[some]
        axes.fill_between(s.x[some], low, high, color=s.color, alpha=0.12, linewidth=0)
    if s.best is not None:
        ring = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2}
        axes.plot(s.x[_best(s)], s.y[_best(s)], marker="o", markeredgecolor=s.color, **ring)
    axes.plot(s.x[some], shown[some], color=s.color, linewidth=1.7, label=legend(s), **dots)


def _subsample(y: np.ndarray, most: int | None) -> np.ndarray:
    """Ascending indices of about `most` points: lowest and highest of each interval, first and last."""
    if most is None or len(y) <= most:
        return np.arange(len(y))
    stretches = np.array_split(np.arange(len(y)), most // 2)
    picks = [index for part in stretches for index in (part[np.argmin(y[part])], part[np.argmax(y[part])])]
    return np.unique([0, *picks, len(y) - 1])


def _legend_place(axes: Any, panel: Panel, kimg: float) -> str:
    """The corner, or the middle of the right side, with the fewest points of the lines.

    matplotlib's own search takes most of the time of drawing.
    """
    low, high = axes.get_ylim()
    scale = np.log if panel.log else np.asarray
    x = np.concatenate([s.x for s in panel.series]) / (kimg or 1)
    y = (scale(np.concatenate([s.y for s in panel.series])) - scale(low)) / (scale(high) - scale(low))
    places = {
        "upper right": (x > 0.5) & (y > 0.72),
        "center right": (x > 0.5) & (abs(y - 0.5) < 0.14),
        "lower right": (x > 0.5) & (y < 0.28),
        "upper left": (x < 0.5) & (y > 0.72),
        "lower left": (x < 0.5) & (y < 0.28),
    }
    return min(places, key=lambda place: int(places[place].sum()))


def _draw_panel(axes: Any, panel: Panel, kimg: float, most: int | None = None) -> None:
    """Draw lines and axes. `kimg`: end of the horizontal axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    if panel.zero:
        axes.axhline(0, color="#999999", linewidth=0.8)
    for s in panel.series:
        _draw_series(axes, s, most)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_locator(LogLocator(base=10, subs=(), numticks=12))
    elif (limits := _limits(panel)) is not None:
        axes.set_ylim(*limits)
    axes.set_xlim(0, 1.02 * kimg or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def _draw_text(axes: Any, panel: Panel, kimg: float) -> None:
    """Draw the title and the legend inside the picture."""
    axes.set_title(panel.title, loc="left", fontsize=10, color=_INK, fontweight="bold", parse_math=False)
    box = axes.legend(
        fontsize=8,
        frameon=True,
        framealpha=0.75,
        edgecolor="none",
        labelcolor=_INK,
        loc=_legend_place(axes, panel, kimg),
        handlelength=1.4,
    )
    for text in box.get_texts():
        text.set_parse_math(False)  # names may contain dollar signs


def draw(panels: Sequence[Panel], title: str) -> Any:
    """Draw the panels in up to three columns. Returns a matplotlib Figure with its Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    width, height = max(5.2 * columns, 7), 3.4 * rows + 0.5  # inches
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    kimg = last_kimg(panels)
    figure.text(0.5 / width, 1 - 0.16 / height, title, va="top", fontsize=11, color=_INK, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    # Fixed margins in inches, because matplotlib's layout engines draw everything twice.
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - 0.2 / width,
        bottom=0.55 / height,
        top=1 - 0.75 / height,
        wspace=0.17,
        hspace=0.26,
    )
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, kimg)
        _draw_text(axes, panel, kimg)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("thousands of images shown (kimg)", fontsize=8, color=_INK)
    return figure


def last_kimg(panels: Iterable[Panel]) -> float:
    """The largest kimg of all lines."""
    return float(max(s.x.max() for panel in panels for s in panel.series))


def panel_svg(panel: Panel, kimg: float) -> bytes:
    """Draw a panel as SVG, without title and legend, which the page shows as text.

    Text stays text, which is small and uses the reader's fonts. A line has at most about SVG_POINTS points.

    Args:
        panel: the panel.
        kimg: end of the horizontal axis.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    width, height = SVG_SIZE
    figure = Figure(figsize=SVG_SIZE, facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    sides = {"left": 0.5 / width, "right": 1 - 0.12 / width}
    figure.subplots_adjust(bottom=0.42 / height, top=1 - 0.08 / height, **sides)
    _draw_panel(axes, panel, kimg, SVG_POINTS)
    axes.set_xlabel("kimg", fontsize=9, color=_INK, labelpad=1)
    axes.tick_params(labelsize=9)
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stylesan-xl"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


# Panels that compare the stages of a recipe: (title, statistic, limits, zero line).
_STAGE_PANELS: tuple[tuple[str, str, tuple[float, float] | None, bool], ...] = (
    ("Variety within classes  (1: as varied as the data)", "Variety/within", None, True),
    ("Variety between classes  (1: as varied as the data)", "Variety/between", None, True),
    ("Recall within classes  (1: as that of the data)", "Variety/recall", None, True),
    ("Sign of the logits of real images", "Loss/signs/real", (-1.05, 1.05), True),
    ("Discriminator loss, fun", "Loss/D/fun", None, True),
    ("Discriminator loss, dir", "Loss/D/dir", None, True),
)


def stage_panels(
    stages: Sequence[tuple[str, Sequence[dict[str, Any]], Sequence[dict[str, Any]]]],
) -> list[Panel]:
    """The panels that compare the stages of a recipe (metrics, variety, logits, losses), a line per stage.

    Args:
        stages: (name, lines of stats.jsonl, records of metric-*.jsonl) of each stage.
    """
    panels: dict[str, Panel] = {}
    for i, (stage, stats, metrics) in enumerate(stages):
        color = _PALETTE[i % len(_PALETTE)]
        for found in metric_panels(metrics):
            panel = panels.setdefault(found.title, Panel(found.title, log=found.log))
            panel.log = panel.log and found.log
            panel.series += [Series(f"{stage} {s.label}", s.x, s.y, color, best=s.best) for s in found.series]
        ordered = ticks.in_order(stats)
        x = np.array([kimg for kimg, _ in ordered])
        for title, name, limits, zero in _STAGE_PANELS:
            y = np.array([ticks.number(record.get(name)) for _, record in ordered])
            if (known := np.isfinite(y)).any():
                panels.setdefault(title, Panel(title, limits=limits, zero=zero)).series.append(
                    Series(stage, x[known], y[known], color)
                )
    order = [title for title, *_ in _STAGE_PANELS]
    return sorted(panels.values(), key=lambda panel: order.index(panel.title) if panel.title in order else -1)


def _save(folder: Path, panels: Sequence[Panel]) -> Path | None:
    if not panels:
        return None
    figure = draw(panels, f"{folder.resolve().name}    {kimg_text(last_kimg(panels))} kimg")
    with atomic_write(folder / CURVES_FILE) as f, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack characters of a name
        figure.savefig(f, format="png")
    return folder / CURVES_FILE


def _metric_records(folder: Path) -> list[dict[str, Any]]:
    return [record for path in metric_files(folder) for record in read_jsonl(path)]


def panels_of(folder: Path, stages: Sequence[Path] = ()) -> list[Panel]:
    """The panels of a run folder; with `stages` (run folders), the panels that compare them."""
    if stages:
        return stage_panels([(p.name, read_jsonl(p / STATS_FILE), _metric_records(p)) for p in stages])
    return metric_panels(_metric_records(folder)) + stats_panels(read_jsonl(folder / STATS_FILE))


def redraw(run_dir: str | os.PathLike[str], stages: Sequence[Path] = ()) -> Path | None:
    """Draw run_dir/curves.png atomically.

    Never raises, because a diagram must not stop a training run. A failure (no matplotlib, a full disk) is a
    warning.

    Args:
        run_dir: the run folder, or a recipe's folder.
        stages: the run folders of a recipe's stages, which are compared in one picture.

    Returns:
        The path; None if there is nothing to draw or drawing failed.
    """
    folder = Path(run_dir)
    try:
        return _save(folder, panels_of(folder, stages))
    except Exception as e:
        warnings.warn(f"{CURVES_FILE} cannot be drawn ({reason(e)})", stacklevel=2)
        return None
