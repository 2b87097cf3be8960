# SPDX-License-Identifier: Apache-2.0
"""report.html: one self-contained page about a run, or about all stages of a recipe, to be judged in a minute.

    python -m training.watch.report training-runs/00000-stylegan3-t-emoji16-gpus1-batch64      # a run folder
    python -m training.watch.report training-runs/00000-demo64                                 # a recipe's folder: all stages side by side

A run writes its page at every snapshot and at its end. Everything on it is read from the folder; images are scaled and inlined, so that the page
stays below a few megabytes and can be sent to somebody. Class names and other texts of strangers are escaped, and no script is in it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import html
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from dnnlib.util import atomic_write, format_time
from training.config import TrainConfig, describe, from_json
from training.run_folder import read_json, read_jsonl
from training.watch import plots, sheets

FILE = "report.html"
ABOUT_FILE = "about.json"  # of a run folder: what the data is and how large the networks are
ALARMS_FILE = "alarms.jsonl"
STAGE_FOLDER = re.compile(r"stage-")
BUDGET = 450_000  # bytes of one inlined image, at most
RECIPE_BUDGET = 3_300_000  # of all those of a recipe's page; base64 makes them a third longer
MAX_WIDTH, SMALL_WIDTH = 1600, 800  # pixels of an inlined image
MAX_STAGES, MAX_ALARMS, MAX_TEXT, MAX_DEPTH, MAX_ROWS = 8, 20, 500, 5, 40

_STYLE = """
body{margin:0;background:#f4f5f7;color:#222;font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px}
h1{font-size:22px;margin:4px 0 2px;overflow-wrap:anywhere}h2{font-size:16px;margin:0 0 10px}
.sub{color:#667;margin:0 0 16px}.sub b{color:#222}
section{background:#fff;border:1px solid #e1e4e8;border-radius:8px;padding:16px;margin:0 0 16px;overflow-x:auto}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 16px}
.card{background:#fff;border:1px solid #e1e4e8;border-radius:8px;padding:10px 14px}
.card span{display:block;color:#667;font-size:12px}.card b{font-size:20px}.card small{display:block;color:#667;overflow-wrap:anywhere}
.bar{height:6px;background:#e1e4e8;border-radius:3px;margin-top:6px}.bar i{display:block;height:6px;background:#0072B2;border-radius:3px}
.warn{border-left:5px solid #D55E00;background:#fff7f0}.ok{border-left:5px solid #009E73}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px}.stages{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(280px,1fr);gap:16px}
figure{margin:0}figcaption{font-weight:600;margin-bottom:6px}img{max-width:100%;display:block}
.pix{image-rendering:pixelated;width:100%}
.rows{display:flex}.rows div{flex:1;min-width:0}
.rows ol{list-style:none;margin:0;padding:0 8px 0 0;display:flex;flex-direction:column;width:8em;flex:none;font-size:12px;text-align:right}
.rows li{flex:1;display:flex;align-items:center;justify-content:flex-end;min-height:0;overflow:hidden;line-height:1.1;overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:13px}
td,th{padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid #eee;overflow-wrap:anywhere}
th{color:#667;font-weight:600}
"""


@dataclass
class Run:
    """What a run folder tells about its run."""

    folder: Path
    config: TrainConfig | None = None
    about: dict[str, Any] = field(default_factory=dict)
    stats: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)  # name -> (kimg, value, snapshot)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    outcome: str = "running or killed"

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read what is there; nothing is required."""
        options = read_json(folder / "training_options.json")
        config = None
        with contextlib.suppress(KeyError, ValueError, TypeError):  # of another version or damaged: the page goes without
            config = from_json(options["config"])
        run = cls(folder, config, read_json(folder / ABOUT_FILE), read_jsonl(folder / "stats.jsonl"))
        for path in sorted(folder.glob("metric-*.jsonl")):
            for record in read_jsonl(path):
                results = record.get("results")
                for name, value in results.items() if isinstance(results, dict) else ():
                    kimg = number(record.get("kimg"))
                    if math.isfinite(number(value)) and math.isfinite(kimg):
                        run.metrics.setdefault(name, []).append((kimg, number(value), str(record.get("snapshot_pkl", ""))))
        run.alarms = [a for a in read_jsonl(folder / ALARMS_FILE) if isinstance(a.get("seen"), str)]
        run.outcome = str(read_json(folder / "status.json").get("outcome", run.outcome))
        return run

    def last(self, name: str) -> float:
        """The newest value of a statistic, NaN without one."""
        return next((v for record in reversed(self.stats) if math.isfinite(v := number(record.get(name)))), math.nan)

    @property
    def kimg(self) -> float:
        """Thousands of images shown."""
        return max(self.last("kimg"), 0.0) if self.stats else 0.0

    @property
    def seconds_left(self) -> float:
        """Until --kimg, at the median speed of the last ticks; NaN if unknown."""
        speeds = sorted(v for r in self.stats[-9:] if math.isfinite(v := number(r.get("Timing/sec_per_kimg"))))
        return (self.config.run.kimg - self.kimg) * speeds[len(speeds) // 2] if self.config and speeds else math.nan

    def best(self) -> tuple[str, float, float, str] | None:
        """Name, value, kimg and snapshot of the best evaluation by the first metric."""
        wanted = [name for m in (self.config.run.metrics if self.config else ()) for name in self.metrics if name in (m, f"{m}_mean")]
        first = next(iter([*wanted, *self.metrics]), None)
        if first is None:
            return None
        pick = max if plots.good_end(first) == "max" else min
        kimg, value, snapshot = pick(self.metrics[first], key=lambda point: point[1])
        return first, value, kimg, snapshot


def number(value: Any) -> float:
    """A number, or the mean of a statistic; NaN for anything else."""
    if isinstance(value, dict):
        value = value.get("mean")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """Anything as escaped text of bounded length."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return html.escape(plain if len(plain) <= limit else plain[: limit - 3] + "...")


def inlined(path: Path, width: int = MAX_WIDTH, pixelated: bool = False, budget: int = BUDGET) -> str:
    """An <img> that holds the picture itself, in at most `budget` bytes and `width` pixels; '' if it cannot be read."""
    try:
        with PIL.Image.open(path) as opened:
            image = opened.convert("RGB")
        kind, data = "png", path.read_bytes()
    except OSError:
        return ""
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), PIL.Image.Resampling.LANCZOS)
        kind = "jpeg"
    while kind == "jpeg" or len(data) > budget:
        kind, data = "jpeg", _jpeg(image, budget)
        if len(data) <= budget or image.width < 32:
            break
        image = image.resize((image.width * 2 // 3, max(1, image.height * 2 // 3)), PIL.Image.Resampling.LANCZOS)
    style = ' class="pix"' if pixelated else ""
    return f'<img{style} alt="{text(path.name)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _jpeg(image: PIL.Image.Image, budget: int) -> bytes:
    """At the best quality that fits; at the lowest if none does."""
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
    numbered = ((p.stem.removeprefix("fakes"), p) for p in folder.glob("fakes*.png"))
    found = [(int(digits), p) for digits, p in numbered if digits.isdecimal()]
    return max(found)[1] if found else None


def card(title: str, value: str, small: str = "", share: float | None = None) -> str:
    """One number with its name. Arguments are plain text."""
    bar = "" if share is None else f'<div class="bar"><i style="width:{min(max(share, 0), 1) * 100:.1f}%"></i></div>'
    return f'<div class="card"><span>{text(title)}</span><b>{text(value)}</b><small>{text(small)}</small>{bar}</div>'


def table(rows: Iterable[Iterable[Any]], head: Iterable[str] = ()) -> str:
    """A table of plain values."""
    top = "".join(f"<th>{text(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{'<tr>' + top + '</tr>' if top else ''}{body}</table>"


def section(title: str, body: str, kind: str = "") -> str:
    """A titled box; nothing if it is empty."""
    return f'<section class="{kind}"><h2>{text(title)}</h2>{body}</section>' if body else ""


def figure(caption: str, image: str) -> str:
    """An image with its caption; nothing without an image."""
    return f"<figure><figcaption>{text(caption)}</figcaption>{image}</figure>" if image else ""


def _short(value: float, form: str = ".3g") -> str:
    return "?" if not math.isfinite(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:{form}}"


def _duration(seconds: float) -> str:
    return format_time(max(seconds, 0)) if math.isfinite(seconds) else "?"


def _subtitle(run: Run) -> str:
    about, cfg = run.about, run.config
    parts = []
    if cfg is not None:
        classes = about.get("classes")
        of = f"{number(about.get('images')):,.0f} images" if "images" in about else "images"
        of += f" in {classes} classes" if classes else ", unconditional" if classes == 0 else ""
        size = f"{about['resolution']}x{about['resolution']} pixels, " if "resolution" in about else ""
        kind = f"superresolution x{cfg.generator.up_factor} on {Path(str(cfg.generator.path_stem)).name}" if cfg.generator.superres else "stem"
        parts.append(f"<b>{text(cfg.generator.cfg)}</b> ({text(kind)}) on <b>{text(Path(cfg.data.path).name)}</b>: {text(size + of)}")
    if "g_parameters" in about:
        parts.append(
            text(
                f"{number(about['g_parameters']) / 1e6:.3g} M generator parameters ({number(about.get('g_trained')) / 1e6:.3g} M trained), "
                f"{number(about.get('d_parameters')) / 1e6:.3g} M discriminator heads"
            )
        )
    return ". ".join(parts)


def _cards(run: Run) -> str:
    target = run.config.run.kimg if run.config else math.nan
    share = run.kimg / target if target and math.isfinite(target) else None
    finished = run.outcome == "finished"
    written = number(run.stats[-1].get("timestamp")) if run.stats else math.nan
    when = datetime.datetime.fromtimestamp(written).astimezone().isoformat(" ", "minutes") if math.isfinite(written) else ""
    cards = [
        card("state", run.outcome, f"last tick {when}" if when else ""),
        card("images shown", f"{_short(run.kimg, '.4g')} kimg", f"of {_short(target, '.4g')}", share),
        card("trained", _duration(run.last("Timing/total_sec")), "" if finished else f"about {_duration(run.seconds_left)} to go"),
        card("speed", f"{_short(run.last('Timing/images_per_sec'))} img/s", f"{_short(run.last('Timing/sec_per_kimg'))} s per kimg"),
    ]
    if (best := run.best()) is not None:
        name, value, kimg, snapshot = best
        cards.append(card(f"best {name}", f"{value:.4g}", f"at {_short(kimg, '.4g')} kimg, {snapshot}"))
    for name, title in (("Variety/within", "variety within classes"), ("Variety/between", "variety between classes")):
        if math.isfinite(run.last(name)):
            cards.append(card(title, f"{run.last(name):.2f}", "1 = as varied as the data"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _alarms(run: Run) -> str:
    if not run.alarms:
        return ""
    rows = [
        (f"{_short(number(a.get('kimg')), '.4g')} kimg", a["seen"], f"since {_short(number(a.get('since_kimg')), '.4g')} kimg") for a in run.alarms
    ]
    tips = [[f"{a['seen'].split(':')[0]}: try {a.get('advice', '')}"] for a in {a.get("cause"): a for a in run.alarms}.values()]
    more = f"<p>The last {MAX_ALARMS} of {len(rows)}.</p>" if len(rows) > MAX_ALARMS else ""
    return more + table(rows[-MAX_ALARMS:], ("told at", "what was seen", "")) + "<p></p>" + table(tips, ("what to try",))


def _class_rows(run: Run, image: str) -> str:
    """The grid with the names of its rows to the left."""
    names = run.about.get("grid_rows")
    if not image or not isinstance(names, list) or not 0 < len(names) <= MAX_ROWS:
        return image
    items = "".join(f"<li>{text(name, 40)}</li>" for name in names)
    return f'<div class="rows"><ol>{items}</ol><div>{image}</div></div>'


def _grids(run: Run, width: int = SMALL_WIDTH, budget: int = BUDGET) -> list[str]:
    newest = newest_grid(run.folder)
    shown = [] if newest is None else [figure(f"generated, {int(newest.stem[5:])} kimg", _class_rows(run, inlined(newest, width, True, budget)))]
    return [*shown, figure("data", _class_rows(run, inlined(run.folder / "reals.png", width, True, budget)))]


def _options(run: Run) -> str:
    if run.config is None:
        return ""
    given = [(name, value, about) for name, value, origin, about in describe(run.config, set()) if origin == "the run's own"]
    return table(given, ("option", "value", "meaning"))


def nested(value: Any, depth: int = 0) -> str:
    """JSON of any shape as nested tables, cut where it is deep or long."""
    if depth < MAX_DEPTH and isinstance(value, dict) and value:
        rows = "".join(f"<tr><th>{text(key)}</th><td>{nested(v, depth + 1)}</td></tr>" for key, v in list(value.items())[:MAX_ROWS])
        return f"<table>{rows}</table>"
    if depth < MAX_DEPTH and isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        return "".join(f"<div>{nested(v, depth + 1)}</div>" for v in value[:MAX_ROWS])
    return text("" if value in (None, [], {}) else value)


def _page(title: str, body: str) -> str:
    now = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f'<title>{text(title)}</title><style>{_STYLE}</style></head><body><main>{body}<p class="sub">Written {now}.</p></main></body></html>\n'
    )


def run_page(folder: Path) -> str:
    """The page of a run folder."""
    run = Run.read(folder)
    alarms = _alarms(run)
    pair = "".join(_grids(run))
    body = [
        f'<h1>{text(folder.name)}</h1><p class="sub">{_subtitle(run)}</p>',
        _cards(run),
        section("Alarms", alarms, "warn") if alarms else '<section class="ok">No alarms.</section>',
        section("Newest images beside the data", f'<div class="pair">{pair}</div>' if pair else ""),
        section("The same latents through time", inlined(folder / sheets.FILE, pixelated=False)),
        section("Curves", inlined(folder / "curves.png")),
        section("Metrics", _metric_table(run)),
        section("Options that differ from their defaults", _options(run)),
        section("Lineage", nested(read_json(folder / "lineage.json"))),
    ]
    return _page(folder.name, "".join(body))


def _metric_table(run: Run) -> str:
    rows = []
    for name, points in sorted(run.metrics.items()):
        pick = max if plots.good_end(name) == "max" else min
        best = pick(points, key=lambda point: point[1])
        last = points[-1]
        rows.append((name, f"{last[1]:.4g} at {last[0]:g} kimg", f"{best[1]:.4g} at {best[0]:g} kimg", best[2], len(points)))
    return table(rows, ("metric", "newest", "best", "best snapshot", "evaluations")) if rows else ""


def _final(folder: Path) -> str:
    """A stage's measurement at the last stage's resolution."""
    final = read_json(folder / "final.json")
    value = number(final.get("value"))
    return f"{final.get('metric', '')} {value:.4g}" if math.isfinite(value) else ""


def stage_folders(folder: Path) -> list[Path]:
    """Run folders of a recipe's stages, in order."""
    found = [p for p in folder.iterdir() if p.is_dir() and STAGE_FOLDER.match(p.name)] if folder.is_dir() else []
    return sorted(found)[:MAX_STAGES]


def recipe_page(folder: Path) -> str:
    """The page of a recipe's folder."""
    stages = stage_folders(folder)
    plots.redraw(folder, stages)
    runs = [Run.read(p) for p in stages]
    budget = min(BUDGET, RECIPE_BUDGET // (4 * len(runs) + 1))
    rows = []
    for run in runs:
        best = run.best()
        target = run.config.run.kimg if run.config else math.nan
        rows.append(
            (
                run.folder.name,
                run.outcome,
                f"{_short(run.kimg, '.4g')} of {_short(target, '.4g')}",
                _duration(run.last("Timing/total_sec")),
                _short(run.last("Timing/images_per_sec")),
                "" if best is None else f"{best[0]} {best[1]:.4g} at {best[2]:g} kimg",
                _short(run.last("Variety/within")),
                _short(run.last("Variety/between")),
                str(len(run.alarms)),
                _final(run.folder),
            )
        )
    head = ("stage", "state", "kimg", "trained", "img/s", "best", "variety within", "between", "alarms", "at the last resolution")
    columns = [f"<div><h2>{text(run.folder.name)}</h2>{''.join(_grids(run, SMALL_WIDTH // 2, budget))}</div>" for run in runs]
    alarms = "".join(f"<h2>{text(run.folder.name)}</h2>{_alarms(run)}" for run in runs if run.alarms)
    times = "".join(figure(run.folder.name, inlined(run.folder / sheets.FILE, SMALL_WIDTH, budget=budget)) for run in runs)
    body = [
        f'<h1>{text(folder.name)}</h1><p class="sub">{len(runs)} stages</p>',
        section("Stages", table(rows, head)),
        section("Alarms", alarms, "warn") if alarms else "",
        section("Curves of all stages", inlined(folder / "curves.png", budget=budget)),
        section("Newest images of each stage, beside the data", f'<div class="stages">{"".join(columns)}</div>' if columns else ""),
        section("The same latents through time", f'<div class="stages">{times}</div>' if times else ""),
        *(section(f"{run.folder.name}: curves", inlined(run.folder / "curves.png", budget=budget)) for run in runs),
        section("Lineage", nested(read_json(folder / "lineage.json"))),
        section("Recipe", nested(read_json(folder / "recipe.json"))),
    ]
    return _page(folder.name, "".join(body))


def write(folder: str | Path) -> Path | None:
    """Write report.html of a run folder or of a recipe's folder, atomically; returns its path.

    Never raises: a page must not stop a training run. A failure is one warning, and None.
    """
    path = Path(folder).resolve()
    try:
        page = recipe_page(path) if stage_folders(path) else run_page(path)
        with atomic_write(str(path / FILE), "w") as f:
            f.write(page)
        return path / FILE
    except Exception as e:
        warnings.warn(f"{FILE} is not written ({type(e).__name__}: {e})", stacklevel=2)
        return None


def main() -> int:
    """The command line."""
    folders = sys.argv[1:]
    if not folders or folders[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if folders else 2
    for folder in folders:
        if not (Path(folder) / "stats.jsonl").exists() and not stage_folders(Path(folder)):
            print(f"Error: {folder} holds neither stats.jsonl nor folders of stages: name a run folder or a recipe's folder", file=sys.stderr)
            return 1
        print(write(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
