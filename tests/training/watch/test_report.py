# SPDX-License-Identifier: Apache-2.0
"""report.html: what it says, that it is one safe file of bounded size, and that nothing in a folder can stop
a run.
"""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from tests.quick_processes import empty_curves
from training import run_folder
from training.config import TrainConfig, to_json
from training.watch import report

EVIL = "<script>alert(1)</script>&\"'"


def _jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def make_run(folder, kimg=8.0, names=("cat", EVIL), outcome="finished"):
    folder.mkdir(parents=True, exist_ok=True)
    changes = {
        "data.path": "/somewhere/pets16.zip",
        "data.cond": True,
        "run.kimg": 16.0,
        "optim.glr": 0.005,
        "run.metrics": ["fd_lite0_500"],
    }
    config = TrainConfig().override(changes)
    (folder / "training_options.json").write_text(json.dumps({"config": to_json(config)}))
    about = {
        "images": 3812,
        "classes": len(names),
        "resolution": 16,
        "grid_rows": list(names),
        "g_parameters": 2_500_000,
        "g_trained": 2_000_000,
    }
    (folder / run_folder.ABOUT_FILE).write_text(json.dumps(about))
    stat = lambda value: {"num": 1, "mean": value, "std": 0.0}  # noqa: E731
    names_of = (
        "Timing/sec_per_kimg",
        "Timing/images_per_sec",
        "Timing/total_sec",
        "Variety/within",
        "Loss/D/fun",
    )
    _jsonl(
        folder / "stats.jsonl",
        [
            {
                "kimg": float(k),
                "timestamp": 1.7e9,
                **dict(zip(names_of, map(stat, (20.0, 50.0, 20.0 * k, 0.87, 5.0)), strict=True)),
            }
            for k in range(1, int(kimg) + 1)
        ],
    )
    scores = [(4.0, 30.0), (6.0, 12.5), (8.0, 14.0)]
    _jsonl(
        folder / "metric-fd_lite0_500.jsonl",
        [
            {"kimg": k, "results": {"fd_lite0_500": v}, "snapshot_pkl": f"network-snapshot-{k:.0f}.pkl"}
            for k, v in scores
        ],
    )
    (folder / "status.json").write_text(json.dumps({"outcome": outcome}))
    noise = np.random.RandomState(0)
    for name, size in (
        ("reals.png", 64),
        ("fakes000004.png", 64),
        ("fakes000008.png", 64),
        ("curves.png", 300),
        ("contact-sheet.png", 200),
    ):
        PIL.Image.fromarray(noise.randint(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name)
    return folder


class _Checker(HTMLParser):
    """Tags, and whether every one is closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words, self.sources, self.names = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.names += [value for name, value in attrs if name == "alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def checked(path):
    parser = _Checker()
    page = path.read_text()
    parser.feed(page)
    assert (
        parser.open == []
        and "script" not in parser.tags
        and all(s.startswith("data:image/") for s in parser.sources)
    )
    return parser, re.sub(r"\s+", " ", " ".join(parser.words))


def test_a_run(tmp_path):
    run = make_run(tmp_path / "00000-pets")
    alarm = {
        "cause": "variety",
        "kimg": 7.0,
        "tick": 7,
        "since_kimg": 5.0,
        "seen": "samples of a class look alike",
        "advice": "more data.",
    }
    _jsonl(run / "alarms.jsonl", [alarm])
    assert report.write(run) == run / "report.html"
    parser, words = checked(run / "report.html")
    for wanted in (
        *(
            "00000-pets",
            "pets16.zip",
            "16x16 pixels",
            "3,812 images in 2 classes",
            "finished",
            "8 kimg",
            "of 16",
            "50 img/s",
            "0.87",
            "cat",
        ),
        *(
            "12.5",
            "network-snapshot-6.pkl",
            "at 6 kimg",
            "samples of a class look alike",
            "since 5 kimg",
            "more data.",
            "optim.glr",
            "0.005",
        ),
        *("2.5 M generator parameters", EVIL, "generated, 8 kimg"),
    ):
        assert wanted in words, wanted
    assert "optim.dlr" not in words  # a default
    assert parser.tags.count("img") == 3 + 4  # two grids and the contact sheet; four panels
    assert parser.names[-4:] == [
        *("Fréchet distance  (lower is better)", "Discriminator loss"),
        *("Class variety  (1: as varied as the data)", "Images per second"),
    ]
    assert "fd_lite0_500 14 (best 12.5 at 6 kimg)" in words  # a panel's legend is text


def test_time_left(tmp_path):
    run = report.Run.read(make_run(tmp_path / "r", outcome="interrupted"))
    assert run.seconds_left == pytest.approx(8 * 20) and run.best() == (
        "fd_lite0_500",
        12.5,
        6.0,
        "network-snapshot-6.pkl",
    )


def test_stages_side_by_side(tmp_path):
    folder = tmp_path / "00001-demo64"
    for name in ("stage-016x016", "stage-032x032"):
        make_run(folder / name)
    (folder / "lineage.json").write_text(json.dumps({"stages": [{"stem": EVIL, "kimg": 3}]}))
    (folder / "recipe.json").write_text(json.dumps({"name": "demo64"}))
    (folder / "stage-nothing-yet").mkdir()
    (folder / "stage-016x016" / "final.json").write_text(
        json.dumps({"metric": "fd_lite0_2k", "value": 77.25})
    )
    report.write(str(folder))
    parser, words = checked(folder / "report.html")
    # table, images, contact sheet, own curves; and in the legends of the three panels that compare the stages
    assert words.count("stage-016x016") == words.count("stage-032x032") == 4 + 3
    assert (folder / "curves.png").exists()
    assert EVIL in words and "demo64" in words
    assert "stage-nothing-yet" in words and "fd_lite0_2k 77.25" in words
    assert parser.tags.count("img") == 3 + 2 * (3 + 4)  # of a stage: two grids, a sheet, four panels


def test_a_page_of_many_stages_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RECIPE_BUDGET", 60_000)
    for i in range(3):
        make_run(tmp_path / f"stage-{i}")
    report.write(tmp_path)
    parser, _ = checked(tmp_path / "report.html")
    sources = [(source.partition(",")[0], len(source)) for source in parser.sources]
    drawn = [size for kind, size in sources if kind == "data:image/svg+xml;base64"]
    assert len(sources) == 3 + 3 * (3 + 4) and len(drawn) == 3 + 3 * 4 and max(drawn) < 30_000
    assert (tmp_path / "report.html").stat().st_size < 60_000 * 4 / 3 + 30_000 + sum(drawn)


def test_panels_of_a_long_run_are_bounded(tmp_path):
    run = make_run(tmp_path / "long", kimg=20_000)
    report.write(run)
    parser, words = checked(run / "report.html")
    assert "20,000 kimg" in words
    drawn = [len(source) for source in parser.sources if "svg" in source[:20]]
    assert len(drawn) == 4 and max(drawn) < 60_000


def test_size_is_bounded(tmp_path):
    run = make_run(tmp_path / "big")
    huge = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (900, 1700, 3), dtype=np.uint8))
    for name in ("reals.png", "fakes000008.png", "curves.png", "contact-sheet.png"):
        huge.save(run / name)
    (run / run_folder.ABOUT_FILE).write_text(json.dumps({"grid_rows": ["x" * 100_000] * 3, "classes": 3}))
    report.write(run)
    assert (run / "report.html").stat().st_size < 5_000_000
    assert (run / "report.html").read_text().count("data:image/jpeg") == 3


@pytest.mark.filterwarnings("error")
def test_an_empty_folder_and_a_damaged_one(tmp_path):
    assert report.write(tmp_path) is not None
    for name in (
        "training_options.json",
        "about.json",
        "stats.jsonl",
        "metric-x.jsonl",
        "alarms.jsonl",
        "status.json",
        "reals.png",
        "fakes1.png",
        "fakesx.png",
    ):
        for content in (
            b"",
            b"\xff\x00",
            b"[]",
            b'{"config": {"run": 3}}',
            b'{"kimg": "x", "results": {"x": "y"}}',
            b'{"seen": 3, "grid_rows": 7}',
        ):
            (tmp_path / name).write_bytes(content)
            assert report.write(tmp_path) is not None, (name, content)
    checked(tmp_path / "report.html")


def test_failures_are_warnings(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("the old one")
    monkeypatch.setattr(report, "run_page", lambda folder: 1 / 0)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert report.write(tmp_path) is None
    assert (tmp_path / "report.html").read_text() == "the old one"


HOSTILE = (
    EVIL + " $\\frac{$ {{ 7919 * 7907 }}{% raw %} </style><script>x()</script> \x00\u202e",
    "a" * 100_000,
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("evil", HOSTILE)
def test_texts_of_strangers_stay_texts(tmp_path, evil):
    """Names of classes, options, metrics, files, alarms, lineage are no markup, no template and no
    formula.
    """
    folder = tmp_path / "00000-<b>&amp;{{ x }}"
    run = make_run(folder / "stage-<i>$x", names=("cat", evil))
    changes = {"data.path": f"/data/{evil[:50]}.zip", "generator.path_stem": evil, "run.desc": evil}
    config = TrainConfig().override({**changes, "data.cond": True, "run.kimg": 16.0})
    (run / "training_options.json").write_text(json.dumps({"config": to_json(config)}))
    _jsonl(run / "metric-x.jsonl", [{"kimg": 1.0, "results": {evil: 1.0}, "snapshot_pkl": evil}])
    alarm = {"cause": evil, "kimg": 1, "tick": 1, "since_kimg": 1, "seen": evil, "advice": evil}
    _jsonl(run / "alarms.jsonl", [alarm])
    (run / "status.json").write_text(json.dumps({"outcome": evil}))
    (run / "lineage.json").write_text(json.dumps({evil: {evil: [evil, {evil: evil}]}}))
    about = {**json.loads((run / "about.json").read_text()), "sheet_rows": [evil] * 2, "classes": evil}
    (run / "about.json").write_text(json.dumps({**about, "resolution": evil}))
    (run / "final.json").write_text(json.dumps({"metric": evil, "value": 1.0}))
    for path in (run, folder):
        assert report.write(path) is not None
        parser, words = checked(path / "report.html")
        assert parser.tags.count("style") == 1
        assert path.name in words and "62615533" not in words
        assert re.sub(r"[\x00\u202e]", "\ufffd", evil)[:300] in words and not set("\x00\u202e") & set(words)
        assert (path / "report.html").stat().st_size < 500_000


def test_every_template_can_be_loaded_from_the_package():
    names = report._templates().list_templates()
    pages = [f"{name}.html.jinja" for name in ("page", "run", "recipe", "parts")]
    assert {*pages, "style.css"} == set(names)
    for name in names:
        report._templates().get_template(name)


def test_the_page_fits_a_phone(tmp_path):
    """No box is wider than 320 pixels by its style, pictures shrink, and what cannot shrink scrolls."""
    run = make_run(tmp_path / "run")
    report.write(run)
    page = (run / "report.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert all(int(pixels) <= 320 for pixels in re.findall(r"(?<!max-)\bwidth:(\d+)px", style))
    for columns in re.findall(r"grid-template-columns:([^;}]*)", style):
        least = re.search(r"minmax\((?:min\(100%,(?P<safe>\d+)px\)|(?P<fixed>\d+)px),1fr\)", columns)
        assert least and int(least["fixed"] or 0) <= 280, columns  # stacks when two do not fit
    assert "img{max-width:100%" in style and ".wide{overflow-x:auto" in style
    for match in re.finditer(r"<table", page):
        assert page.rfind('<div class="wide">', 0, match.start()) > page.rfind("</section>", 0, match.start())


def test_curves_are_drawn_one_by_one_with_whole_ticks(tmp_path):
    """The last tick of a run is short: its speed is told together with the tick before."""
    run = make_run(tmp_path / "run")
    stat = lambda value: {"num": 1, "mean": value, "std": 0.0}  # noqa: E731
    with (run / "stats.jsonl").open("a") as f:
        f.write(json.dumps({"kimg": 8.1, "Timing/images_per_sec": stat(5.0)}))
    # 1.1 kimg in 1000 / 50 + 100 / 5 seconds
    assert report.Run.read(run).speed == pytest.approx(1100 / 40)
    report.write(run)
    _, words = checked(run / "report.html")
    assert "27.5 img/s" in words and "36.4 s per kimg" in words and "8.1 kimg" in words


def test_what_is_left_out_is_said(tmp_path, monkeypatch):
    for name, function in empty_curves().items():
        monkeypatch.setattr(report.plots, name, function)
    run = make_run(tmp_path / "run")
    about = json.loads((run / "about.json").read_text())
    (run / "about.json").write_text(json.dumps({**about, "classes": 1000}))
    report.write(run)
    _, words = checked(run / "report.html")
    assert words.count("Shows 2 of 1,000 classes.") == 2  # the grids
    assert words.count("Shows 8 of 1,000 classes.") == 1  # the contact sheet of an older run
    (run / "lineage.json").write_text(json.dumps({str(i): i for i in range(50)}))
    for i in range(10):
        make_run(tmp_path / "recipe" / f"stage-{i}")
    report.write(run)
    assert "10 more are not shown." in checked(run / "report.html")[1]
    report.write(tmp_path / "recipe")
    assert "8 stages; 2 more are not shown" in checked(tmp_path / "recipe" / "report.html")[1]


def test_the_speed_card_has_the_wait_for_images_mfu_and_memory(tmp_path):
    run = make_run(tmp_path / "run")
    line = {
        "kimg": 9.0,
        "Timing/images_per_sec": {"num": 1, "mean": 10.0},
        "Timing/sec_per_tick": {"num": 1, "mean": 100.0},
        "Timing/data_wait_sec": {"num": 125, "mean": 0.2},
        "Timing/mfu": {"num": 1, "mean": 0.125},
        "Resources/peak_cpu_mem_gb": {"num": 1, "mean": 3.25},
    }
    with (run / "stats.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    report.write(run)
    found = "s per kimg, 25% waiting for images, 12.5% of the GPU's peak arithmetic, memory 3.2 GiB"
    assert found in html.unescape(checked(run / "report.html")[1])


def test_command_line(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["report", str(run)])
    assert report.main() == 0 and (run / "report.html").exists()
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "nowhere")])
    assert report.main() == 1
    assert "nowhere contains neither" in capsys.readouterr().err
