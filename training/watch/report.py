# SPDX-License-Identifier: Apache-2.0
"""Write report.html: one self-contained page about a run, or about all stages of a recipe.

    python -m training.watch.report training-runs/00000-stylegan3-t-emoji16-gpus1-batch64      # a run folder
    python -m training.watch.report training-runs/00000-demo64      # a recipe: its stages side by side
    python -m training.watch.report training-runs/00000-demo64 --bundle      # 00000-demo64-report.zip, too

A run writes its page at every snapshot and at its end. All content is read from the folder. Images are scaled
and inlined, so that the page stays below a few megabytes and can be sent to others. Templates are in
templates/ and use jinja2's autoescape: class names and other untrusted text are shortened and escaped, and
the page contains no script.

--bundle also packs page, logs, statistics, metric records, options, lineage and pictures into one zip beside
the folder, to publish with a model. Weights are left out; their SHA-256 are in it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import PIL.Image
from markupsafe import Markup

from dnnlib import outputs
from dnnlib.util import atomic_write, format_time, reason
from image_data.transforms import to_rgb
from torch_utils import images
from training import run_folder
from training.config import SAVED_IN_RUN, TrainConfig, describe, from_json
from training.run_folder import better_direction, kimg_text, read_json, read_jsonl
from training.watch import estimate, plots, release, sheets, ticks
from training.watch.ticks import number

BUDGET = 450_000  # maximum bytes of an inlined image
RECIPE_BUDGET = 3_300_000  # maximum bytes of all images of a recipe's page; base64 adds a third
MAX_WIDTH, SMALL_WIDTH = 1600, 800  # maximum width of an inlined image in pixels
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_STAGES, MAX_ALARMS, MAX_TEXT, MAX_NAME, MAX_DEPTH, MAX_ROWS = 8, 20, 500, 40, 5, 40


@dataclass
class Run:
    """The content of a run folder."""

    folder: Path
    config: TrainConfig | None = None
    about: dict[str, Any] = field(default_factory=dict)
    stats: list[dict[str, Any]] = field(default_factory=list)
    # (kimg, value, snapshot) by name
    metrics: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    directions: dict[str, str | None] = field(default_factory=dict)  # "min" or "max" by name
    alarms: list[dict[str, Any]] = field(default_factory=list)
    outcome: str = "running or killed"

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run folder. All files are optional."""
        options = read_json(folder / run_folder.OPTIONS_FILE)
        config = None
        # A config that is damaged or of another version is left out.
        with contextlib.suppress(KeyError, ValueError, TypeError):
            config = from_json(options["config"])
        run = cls(
            folder,
            config,
            read_json(folder / run_folder.ABOUT_FILE),
            read_jsonl(folder / run_folder.STATS_FILE),
        )
        for path in run_folder.metric_files(folder):
            for record in read_jsonl(path):
                results = record.get("results")
                for name, value in results.items() if isinstance(results, dict) else ():
                    kimg = number(record.get("kimg"))
                    if math.isfinite(number(value)) and math.isfinite(kimg):
                        point = (kimg, number(value), str(record.get("snapshot_pkl", "")))
                        run.metrics.setdefault(name, []).append(point)
                        run.directions[name] = better_direction(record, name)
        run.alarms = [
            a for a in read_jsonl(folder / run_folder.ALARMS_FILE) if isinstance(a.get("seen"), str)
        ]
        run.outcome = run_folder.recorded_outcome(folder) or run.outcome
        return run

    def last(self, name: str) -> float:
        """The newest value of a statistic; NaN if there is none."""
        return next(
            (v for record in reversed(self.stats) if math.isfinite(v := number(record.get(name)))), math.nan
        )

    @property
    def kimg(self) -> float:
        """Thousands of images shown."""
        return max(self.last("kimg"), 0.0) if self.stats else 0.0

    @property
    def speed(self) -> float:
        """Images per second of the newest whole tick; NaN if unknown."""
        return ticks.speed(self.stats)

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of the run, including maintenance; NaN if unknown."""
        return estimate.seconds_left(self.stats, self.config.run) if self.config else math.nan

    def best(self) -> tuple[str, float, float, str] | None:
        """(name, value, kimg, snapshot) of the first metric's best evaluation; None without evaluations."""
        wanted = [
            name
            for m in (self.config.run.metrics if self.config else ())
            for name in self.metrics
            if name in (m, f"{m}_mean")
        ]
        first = next(iter([*wanted, *self.metrics]), None)
        if first is None:
            return None
        pick = max if self.directions[first] == "max" else min
        kimg, value, snapshot = pick(self.metrics[first], key=lambda point: point[1])
        return first, value, kimg, snapshot


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """Convert anything to text with a maximum length and without control characters. Not yet escaped."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = _CONTROLS.sub("\ufffd", plain[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def _holds_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value)


@functools.cache
def _templates() -> jinja2.Environment:
    """The templates beside this file. All values are cut by `text` and escaped, except Markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.watch"),  # finds templates/ in an installed package, too
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else text(value),
    )
    environment.globals |= {"max_depth": MAX_DEPTH, "max_rows": MAX_ROWS}
    environment.tests["empty"] = lambda value: value is None or value in ("", [], {})
    environment.tests["holding_tables"] = _holds_tables
    return environment


def _page(template: str, title: str, **parts: Any) -> str:
    written = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    return _templates().get_template(template).render(title=title, written=written, **parts)


@dataclass
class Picture:
    """An image for a page: file name, size in pixels, and content as a data: URL."""

    name: str
    width: int
    height: int
    source: Markup


def _data(kind: str, content: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def inlined(path: Path, width: int = MAX_WIDTH, budget: int = BUDGET) -> Picture | None:
    """Read an image with at most `budget` bytes and `width` pixels; None if it cannot be read."""
    try:
        with PIL.Image.open(path) as opened:
            image = to_rgb(opened, (255, 255, 255))
        content = path.read_bytes()
    except OSError:
        return None
    if image.width <= width and len(content) <= budget:
        return Picture(path.name, image.width, image.height, _data("png", content))
    return _squeezed(path.name, image, width, budget)


def _squeezed(name: str, image: PIL.Image.Image, width: int, budget: int) -> Picture:
    """Convert to JPEG of at most `width` pixels, and `budget` bytes if 32 pixels are enough for that."""
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), PIL.Image.Resampling.LANCZOS)
    while len(content := _jpeg(image, budget)) > budget and image.width >= 32:
        smaller = (image.width * 2 // 3, max(1, image.height * 2 // 3))
        image = image.resize(smaller, PIL.Image.Resampling.LANCZOS)
    return Picture(name, image.width, image.height, _data("jpeg", content))


def _jpeg(image: PIL.Image.Image, budget: int) -> bytes:
    """Encode with the best quality that fits in `budget` bytes; with the lowest if none does."""
    data = b""
    for quality in (88, 70, 50):
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=quality, optimize=True)
        data = stream.getvalue()
        if len(data) <= budget:
            break
    return data


def newest_grid(folder: Path) -> Path | None:
    """The newest fakesNNNNNN.png."""
    return next(reversed(run_folder.fakes_files(folder)), None)


def grid_kimg(path: Path) -> float:
    """The kimg shown when a fakesNNNNNN.png was drawn: from its metadata, else from its name."""
    with contextlib.suppress(OSError, ValueError, KeyError), PIL.Image.open(path) as image:
        return int(image.info["nimg"]) / 1000
    return run_folder.kimg_of_file(path)


def _short(value: float, form: str = ".3g") -> str:
    return "?" if not math.isfinite(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:{form}}"


def _kimg(value: float) -> str:
    """Format kimg with thousands separators, exact to one image."""
    whole, _, rest = kimg_text(value).partition(".")
    return "?" if whole == "?" else f"{int(whole):,}" + (f".{rest}" if rest else "")


def _duration(seconds: float) -> str:
    return format_time(max(seconds, 0)) if math.isfinite(seconds) else "?"


def _about(run: Run) -> dict[str, str]:
    """Texts about model and data; an empty text if unknown."""
    about, config = run.about, run.config
    sizes = ""
    if "g_parameters" in about:
        counts = ("g_parameters", "g_trained", "d_parameters")
        g, trained, d = (number(about.get(name)) / 1e6 for name in counts)
        sizes = f"{g:.3g} M generator parameters ({trained:.3g} M trained), {d:.3g} M discriminator heads"
    if config is None:
        return {"model": "", "stage": "", "data": "", "images": "", "sizes": sizes}
    classes = about.get("classes")
    shown = f"{number(about.get('images')):,.0f} images" if "images" in about else "images"
    shown += f" in {classes} classes" if classes else ", unconditional" if classes == 0 else ""
    size = f"{about['resolution']}x{about['resolution']} pixels, " if "resolution" in about else ""
    generator = config.generator
    stem = Path(str(generator.path_stem)).name
    return {
        "model": generator.cfg,
        "stage": f"superresolution x{generator.up_factor} on {stem}" if generator.superres else "stem",
        "data": Path(config.data.path).name,
        "images": size + shown,
        "sizes": sizes,
    }


def _card(title: str, value: str, small: str = "", share: float | None = None) -> dict[str, Any]:
    """A number with its title. `share`: length of a bar below it, from 0 to 1."""
    return {
        "title": title,
        "value": value,
        "small": small,
        "share": None if share is None else min(max(share, 0), 1) * 100,
    }


def _cards(run: Run) -> list[dict[str, Any]]:
    target = run.config.run.kimg if run.config else math.nan
    share = run.kimg / target if target and math.isfinite(target) else None
    finished = run.outcome == "finished"
    written = number(run.stats[-1].get("timestamp")) if run.stats else math.nan
    when = ""
    if math.isfinite(written):
        when = datetime.datetime.fromtimestamp(written).astimezone().isoformat(" ", "minutes")
    to_go = "" if finished else f"about {_duration(run.seconds_left)} left"
    cards = [
        _card("state", run.outcome, f"last tick: {when}" if when else ""),
        _card("images shown", f"{_kimg(run.kimg)} kimg", f"of {_kimg(target)}", share),
        _card("trained", _duration(run.last("Timing/total_sec")), to_go),
        _card("speed", f"{_short(run.speed)} img/s", _speed_note(run)),
    ]
    if (best := run.best()) is not None:
        name, value, kimg, snapshot = best
        cards.append(_card(f"best {name}", f"{value:.4g}", f"at {_kimg(kimg)} kimg, {snapshot}"))
    for name, title in (
        ("Variety/within", "variety within classes"),
        ("Variety/between", "variety between classes"),
        ("Variety/recall", "recall within classes"),
    ):
        if math.isfinite(run.last(name)):
            cards.append(_card(title, f"{run.last(name):.2f}", "1 = as varied as the data"))
    return cards


def _speed_note(run: Run) -> str:
    """Seconds per kimg, the share in which steps waited for images, MFU, and memory of a process."""
    parts = [f"{_short(1000 / run.speed)} s per kimg"]
    steps = number(run.stats[-1].get("Timing/data_wait_sec"), "num") if run.stats else math.nan
    shown = run.last("Timing/sec_per_tick")
    if math.isfinite(steps) and shown > 0:
        processes = max(number(run.config.run.gpus) if run.config else 1, 1)
        waited = run.last("Timing/data_wait_sec") * steps / processes / shown
        parts.append(f"{waited:.0%} waiting for images")
    mfu = run.last("Timing/mfu") * run.speed / run.last("Timing/images_per_sec")  # of the newest whole tick
    if math.isfinite(mfu):
        parts.append(f"{mfu:.1%} of the GPU's peak arithmetic")
    for name, title in (("Resources/peak_gpu_mem_gb", "GPU"), ("Resources/peak_cpu_mem_gb", "memory")):
        if math.isfinite(run.last(name)):
            parts.append(f"{title} {run.last(name):.1f} GiB")
    return ", ".join(parts)


def _alarms(run: Run) -> dict[str, Any]:
    """Rows (when, what, since when) of the newest alarms, the number of older ones, advice for each cause."""
    newest = run.alarms[-MAX_ALARMS:]
    by_cause = {a.get("cause"): a for a in run.alarms}.values()
    times = [[f"{_kimg(number(a.get(key)))} kimg" for key in ("kimg", "since_kimg")] for a in newest]
    return {
        "rows": [(at, a["seen"], f"since {since}") for a, (at, since) in zip(newest, times, strict=True)],
        "left_out": len(run.alarms) - len(newest),
        "advice": [(f"{a['seen'].split(':')[0]}: try {a.get('advice', '')}",) for a in by_cause],
    }


def _classes_note(run: Run, shown: int) -> str:
    """How many classes a picture shows; '' if it shows all."""
    classes = run.about.get("classes")
    total = classes if isinstance(classes, int) else 0
    return f"Shows {shown} of {total:,} classes." if 0 < shown < total else ""


def _grids(run: Run, width: int = SMALL_WIDTH, budget: int = BUDGET) -> list[dict[str, Any]]:
    """The newest grid of generated images and the grid of real images, with the names of their rows."""
    newest = newest_grid(run.folder)
    paths = [] if newest is None else [(f"generated, {_kimg(grid_kimg(newest))} kimg", newest)]
    names = run.about.get("grid_rows")
    rows = [str(name) for name in names] if isinstance(names, list) else []
    note = _classes_note(run, len(set(rows)))
    fits = 0 < len(rows) <= MAX_ROWS
    return [
        {
            "caption": caption,
            "picture": picture,
            "rows": [text(name, MAX_NAME) for name in rows] if fits else [],
            "note": note,
        }
        for caption, path in [*paths, ("data", run.folder / run_folder.REALS_FILE)]
        if (picture := inlined(path, width, budget)) is not None
    ]


def _sheet(run: Run, width: int = MAX_WIDTH, budget: int = BUDGET) -> dict[str, Any] | None:
    """The contact sheet without its text, which the page shows itself; for older runs the whole picture."""
    names = run.about.get("sheet_rows")
    rows = [text(name, MAX_NAME) for name in names] if isinstance(names, list) else []
    columns = sheets.read_columns(run.folder)
    if not rows or not columns or len(rows) > MAX_ROWS:
        whole = inlined(run.folder / run_folder.CONTACT_SHEET_FILE, width, budget)
        note = _classes_note(run, sheets.CLASSES)
        return None if whole is None else {"picture": whole, "heads": [], "rows": [], "note": note}
    pixels = images.grid(sheets.columns_grid([cells for _, cells in columns]), len(columns))
    return {
        "picture": _squeezed(run_folder.CONTACT_SHEET_FILE, PIL.Image.fromarray(pixels), width, budget),
        "heads": sheets.headings(columns),
        "rows": rows,
        "note": _classes_note(run, len(rows)),
    }


def _panels(panels: Sequence[plots.Panel]) -> list[dict[str, Any]]:
    """Each panel as a picture with its legend as text."""
    if not panels:
        return []
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        warnings.warn(
            "matplotlib is not installed, so the report has no curves (pip install matplotlib)", stacklevel=2
        )
        return []
    kimg = plots.last_kimg(panels)
    width, height = (round(inches * 96) for inches in plots.SVG_SIZE)  # CSS pixels
    return [
        {
            "title": panel.title,
            "picture": Picture(panel.title, width, height, _data("svg+xml", plots.panel_svg(panel, kimg))),
            "lines": [{"color": s.color, "text": plots.legend(s)} for s in panel.series],
        }
        for panel in panels
    ]


def _options(run: Run) -> list[tuple[str, str, str]]:
    if run.config is None:
        return []
    rows = describe(run.config, set())
    return [(name, value, about) for name, value, origin, about in rows if origin == SAVED_IN_RUN]


def _metrics(run: Run) -> list[tuple[Any, ...]]:
    """Rows (metric, newest value, best value, best snapshot, number of evaluations)."""
    rows = []
    for name, points in sorted(run.metrics.items()):
        pick = max if run.directions[name] == "max" else min
        best, last = pick(points, key=lambda point: point[1]), points[-1]
        newest, top = (f"{value:.4g} at {_kimg(kimg)} kimg" for kimg, value, _ in (last, best))
        rows.append((name, newest, top, best[2], len(points)))
    return rows


def run_page(folder: Path, outcome: str | None = None) -> str:
    """The page of a run folder. `outcome`: as for `write`."""
    run = Run.read(folder)
    run.outcome = outcome or run.outcome
    return _page(
        "run.html.jinja",
        folder.name,
        about=_about(run),
        cards=_cards(run),
        alarms=_alarms(run),
        grids=_grids(run),
        sheet=_sheet(run),
        panels=_panels(plots.panels_of(folder)),
        metrics=_metrics(run),
        options=_options(run),
        lineage=read_json(folder / run_folder.LINEAGE_FILE),
    )


def _final(folder: Path) -> str:
    """The metric of a stage's best network at the resolution of the last stage."""
    final = read_json(folder / run_folder.FINAL_FILE)
    value = number(final.get("value"))
    return f"{final.get('metric', '')} {value:.4g}" if math.isfinite(value) else ""


def _stage_row(run: Run) -> tuple[str, ...]:
    """A stage's row in the table of stages, with the columns of _STAGE_HEAD."""
    best = run.best()
    target = run.config.run.kimg if run.config else math.nan
    return (
        run.folder.name,
        run.outcome,
        f"{_kimg(run.kimg)} of {_kimg(target)}",
        _duration(run.last("Timing/total_sec")),
        _short(run.speed),
        "" if best is None else f"{best[0]} {best[1]:.4g} at {_kimg(best[2])} kimg",
        _short(run.last("Variety/within")),
        _short(run.last("Variety/between")),
        _short(run.last("Variety/recall")),
        str(len(run.alarms)),
        _final(run.folder),
    )


_STAGE_HEAD = (
    *("stage", "state", "kimg", "trained", "img/s", "best"),
    *("variety within", "between", "recall", "alarms", "at the last resolution"),
)


def recipe_page(folder: Path) -> str:
    """The page of a recipe's folder."""
    every = run_folder.stage_folders(folder)
    folders = every[:MAX_STAGES]
    plots.redraw(folder, folders)
    runs = [Run.read(p) for p in folders]
    budget = min(BUDGET, RECIPE_BUDGET // (3 * len(runs) or 1))
    return _page(
        "recipe.html.jinja",
        folder.name,
        left_out=len(every) - len(folders),
        head=_STAGE_HEAD,
        rows=[_stage_row(run) for run in runs],
        panels=_panels(plots.panels_of(folder, folders)),
        stages=[
            {
                "name": run.folder.name,
                "alarms": _alarms(run),
                "grids": _grids(run, SMALL_WIDTH // 2, budget),
                "sheet": _sheet(run, SMALL_WIDTH, budget),
                "panels": _panels(plots.panels_of(run.folder)),
            }
            for run in runs
        ],
        lineage=read_json(folder / run_folder.LINEAGE_FILE),
        recipe=read_json(folder / run_folder.RECIPE_FILE),
    )


def write(folder: str | Path, outcome: str | None = None) -> Path | None:
    """Write report.html of a run folder or a recipe's folder, atomically.

    Never raises, because a page must not stop a training run. A failure is a warning.

    Args:
        folder: the folder.
        outcome: how the run in it ends; None = as recorded.

    Returns:
        The path; None after a failure.
    """
    path = Path(folder).resolve()
    try:
        page = recipe_page(path) if run_folder.stage_folders(path) else run_page(path, outcome)
        with atomic_write(str(path / run_folder.REPORT_FILE), "w") as f:
            f.write(page)
        return path / run_folder.REPORT_FILE
    except Exception as e:
        warnings.warn(f"{run_folder.REPORT_FILE} cannot be written ({reason(e)})", stacklevel=2)
        return None


def main() -> int:
    """The command line."""
    arguments = sys.argv[1:]
    folders = [argument for argument in arguments if argument != "--bundle"]
    if not folders or folders[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if folders else 2
    for folder in folders:
        if not (Path(folder) / run_folder.STATS_FILE).exists() and not run_folder.stage_folders(Path(folder)):
            message = (
                f"{folder} contains neither {run_folder.STATS_FILE} nor folders of stages: give a run folder "
                "or a recipe's folder"
            )
            print(f"Error: {message}", file=sys.stderr)
            return 1
        try:
            with outputs.interruptible():
                print(write(folder))
                if "--bundle" in arguments:
                    bundle = release.write(Path(folder))
                    print(f"{bundle}: its {run_folder.LOG_FILE} and options name folders of this machine")
        except KeyboardInterrupt:
            return 130
        except OSError as error:
            print(f"Error: {reason(error)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
