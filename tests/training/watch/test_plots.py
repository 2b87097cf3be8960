# SPDX-License-Identifier: Apache-2.0
"""curves.png: what is read, what is drawn, and that nothing in a run folder can stop a run."""

import json
import math
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from training.watch import plots, ticks


def _stats(kimg, **values):
    return {
        "kimg": kimg,
        **{name.replace("__", "/"): {"num": 8, "mean": value, "std": 0.5} for name, value in values.items()},
        "timestamp": 1.0,
    }


def _write(path, records, tail=""):
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail)


@pytest.fixture
def run_dir(tmp_path):
    records = [
        _stats(
            4.0 * i,
            Loss__D__fun=9.0 + i,
            Loss__D__dir=-2.0,
            Loss__G__loss=1.0 / (i + 1),
            Loss__signs__real=0.5,
            Loss__signs__fake=-0.5,
            Loss__scores__real=1.0,
            Loss__scores__fake=-1.0,
            Timing__images_per_sec=30.0,
        )
        for i in range(1, 50)
    ]
    _write(tmp_path / "stats.jsonl", records, tail='{"kimg": 200.0, "Loss/D/f')
    _write(
        tmp_path / "metric-fd_lite0.jsonl",
        [{"metric": "fd_lite0", "results": {"fd_lite0": 300.0 / i}, "kimg": 50.0 * i} for i in range(1, 5)],
    )
    return tmp_path


def test_redraw(run_dir):
    path = run_dir / "curves.png"
    assert plots.redraw(run_dir) == path == plots.redraw(str(run_dir))
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert image.shape[0] > 500 and image.shape[1] > 1000
    for color in (plots._BLUE, plots._ORANGE, plots._GREEN):  # the lines are there
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(image - rgb).max(axis=2) < 8).sum() > 200
    assert sorted(p.name for p in run_dir.iterdir()) == ["curves.png", "metric-fd_lite0.jsonl", "stats.jsonl"]


def test_pyplot_is_left_alone(run_dir, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plots.redraw(run_dir)
    assert "matplotlib.pyplot" not in sys.modules


def test_panels_hold_what_was_written(run_dir):
    panels = {
        p.title.split("  ")[0]: p for p in plots.stats_panels(plots.read_jsonl(run_dir / "stats.jsonl"))
    }
    assert list(panels) == [
        "Discriminator loss",
        "Generator loss",
        "Sign of the logits",
        "Logits",
        "Images per second",
    ]
    fun, direction = panels["Discriminator loss"].series
    assert (
        fun.x.tolist() == [4.0 * i for i in range(1, 50)]
        and fun.y.tolist() == [9.0 + i for i in range(1, 50)]
        and set(direction.y) == {-2.0}
    )
    assert [s.label for s in panels["Generator loss"].series] == [
        "adversarial"
    ]  # guidance and path length were not reported
    assert panels["Logits"].series[0].band.tolist() == [0.5] * 49
    (metric,) = plots.metric_panels(plots.read_jsonl(run_dir / "metric-fd_lite0.jsonl"))
    assert (
        metric.log
        and metric.series[0].x.tolist() == [50, 100, 150, 200]
        and metric.series[0].y.tolist() == [300, 150, 100, 75]
    )


def test_the_short_last_tick_is_no_loss_of_speed():
    """What happens once a tick weighs more in a short tick: it is told together with the tick before."""
    lines = [(4.0, 50.0), (8.0, 50.0), (8.4, 5.0), (12.4, 40.0), (12.5, 1.0)]
    records = [_stats(kimg, Timing__images_per_sec=rate) for kimg, rate in lines]
    (panel,) = plots.stats_panels(records)
    (rates,) = panel.series
    assert rates.x.tolist() == [4.0, 8.4, 12.5]
    images_over_seconds = [50.0, 4400 / (80 + 80), 4100 / (100 + 100)]
    assert rates.y.tolist() == pytest.approx(images_over_seconds)
    assert plots.legend(rates) == "img/s  20.5"
    assert ticks.speed(records) == pytest.approx(20.5)
    assert math.isnan(ticks.speed([])) and math.isnan(ticks.speed([{"kimg": "x"}]))


def test_a_tick_counts_for_its_images_where_lines_are_smoothed():
    records = [_stats(4.0 * i, Loss__D__fun=1.0) for i in range(1, 60)]
    (panel,) = plots.stats_panels([*records, _stats(4.0 * 59 + 0.04, Loss__D__fun=101.0)])
    assert 1 < plots._line(panel.series[0])[-1] < 1.5  # it is a hundredth of a tick
    assert panel.series[0].y[-1] == 101.0  # the record itself stays


def test_panels_one_by_one(run_dir):
    panels = plots.panels_of(run_dir)
    drawn = plots.panel_svg(panels[0], plots.last_kimg(panels))
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg") and drawn == plots.panel_svg(panels[0], plots.last_kimg(panels))
    assert not [e for e in root.iter() if e.tag.endswith("script") or "://" in str(e.attrib.get("href"))]
    x = np.arange(100_000.0)
    long = plots.Panel("x", [plots.Series("a", x, np.sin(x), plots._BLUE, band=np.ones(len(x)))])
    assert len(plots.panel_svg(long, 1e5)) < 60_000


def test_points_left_out_of_a_line_are_not_its_extremes():
    y = np.sin(np.arange(5000.0))
    y[[1234, 4321]] = 9, -9
    some = plots._subsample(y, 300)
    assert len(some) <= 302 and {0, 1234, 4321, 4999} <= set(some.tolist()) and (np.diff(some) > 0).all()
    assert plots._subsample(y, None).tolist() == list(range(5000)) == plots._subsample(y, 5000).tolist()


def test_names_with_dollar_signs_are_names(tmp_path):
    run = tmp_path / r"00000-$\frac{$"
    run.mkdir()
    (run / "metric-x.jsonl").write_text(json.dumps({"kimg": 1, "results": {r"$\frac{$": 1.0}}))
    assert plots.redraw(run) is not None


def test_a_run_that_went_back():
    records = [_stats(k, Loss__G__loss=k) for k in (4, 8, 12, 16)] + [
        _stats(k, Loss__G__loss=-k) for k in (12, 16, 20)
    ]
    (panel,) = plots.stats_panels(records)
    assert panel.series[0].x.tolist() == [4, 8, 12, 16, 20] and panel.series[0].y.tolist() == [
        4,
        8,
        -12,
        -16,
        -20,
    ]


def test_published_stats_lines():
    """StyleGAN's own stats.jsonl has no 'kimg', and its evaluation lines no number for some names."""
    records = [
        {
            "Progress/kimg": {"num": 1, "mean": float(k), "std": 0.0},
            "Loss/signs/real": {"num": 9, "mean": 0.3, "std": 1.0},
        }
        for k in (0, 4)
    ]
    (panel,) = plots.stats_panels(records)
    assert panel.series[0].x.tolist() == [0, 4] and panel.limits == (-1.05, 1.05)


def test_metrics_by_kind():
    results = {
        "fid50k_full": 9.0,
        "is50k_mean": 50.0,
        "is50k_std": 1.0,
        "pr50k3_recall": 0.4,
        "kid50k_full": -0.001,
        "swiss": 3,
    }
    records = [
        {"results": results, "kimg": 1},
        {"results": {"fd_lite0": 7.0, "bad": "text", "worse": None}, "kimg": 2},
        {"results": 3, "kimg": 2},
        {"results": {"fid50k_full": 1.0}},
    ]
    panels = {p.title.split("  ")[0]: p for p in plots.metric_panels(records)}
    assert [s.label for s in panels["Fréchet distance"].series] == ["fd_lite0", "fid50k_full"] and panels[
        "Fréchet distance"
    ].log
    assert panels["Fréchet distance"].series[1].y.tolist() == [9.0]  # a line without kimg has no place
    assert not panels["Kernel distance"].log  # it can be negative
    assert [s.label for s in panels["Inception score"].series] == ["is50k_mean"] and panels[
        "Precision, recall, accuracy"
    ].series[0].best == "max"
    assert [s.label for s in panels["Metrics"].series] == ["swiss"] and len(panels) == 5


def test_the_good_end_comes_from_the_record():
    results = {"pr_inception_50k_full_precision": 0.7, "pr_inception_50k_full_recall": 0.3}
    for record, best in (
        ({}, "max"),
        ({"lower_is_better": True}, "min"),
        ({"lower_is_better": False}, "max"),
    ):
        (panel,) = plots.metric_panels([{"results": results, "kimg": 1, **record}])
        assert panel.title == "Precision, recall, accuracy" and [s.best for s in panel.series] == [best, best]
    (panel,) = plots.metric_panels([{"results": {"new_metric": 1.0}, "kimg": 1, "lower_is_better": False}])
    assert panel.series[0].best == "max"


def test_stages_are_compared():
    stages = [
        (f"stage-{r:03d}", [_stats(4.0 * i, Loss__D__fun=r, Variety__within=0.5) for i in (1, 2)], [])
        for r in (16, 32)
    ]
    stages[1][2].append({"results": {"fid50k_full": 3.0}, "kimg": 8.0})
    panels = {p.title.split("  ")[0]: p for p in plots.stage_panels(stages)}
    assert list(panels) == ["Fréchet distance", "Variety within classes", "Discriminator loss, fun"]
    assert [s.label for s in panels["Discriminator loss, fun"].series] == ["stage-016", "stage-032"]
    assert [set(s.y) for s in panels["Discriminator loss, fun"].series] == [{16}, {32}]
    assert [s.label for s in panels["Fréchet distance"].series] == ["stage-032 fid50k_full"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "stats",
    [
        None,
        "",
        "\n\n",
        '{"kimg": 4',
        '[1, 2]\n3\nnull\n"x"\n',
        '{"kimg": "x"}\n{"kimg": null}\n',
        '{"kimg": NaN, "Loss/G/loss": {"mean": 1}}\n',
        '{"kimg": 4, "Loss/G/loss": {"num": 0, "mean": NaN, "std": NaN}}\n',
        '{"kimg": 4, "Loss/G/loss": {"mean": null}, "Loss/D/fun": "a"}\n',
        "\x00\x00\xff\n",
    ],
)
def test_nothing_to_draw(tmp_path, stats):
    if stats is not None:
        (tmp_path / "stats.jsonl").write_text(stats)
    assert plots.redraw(tmp_path) is None and not (tmp_path / "curves.png").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "records",
    [
        [_stats(0.0, Loss__G__loss=1.0)],
        [_stats(4.0, Loss__G__loss=0.0), _stats(8.0, Loss__G__loss=0.0)],
        [
            _stats(4.0, Loss__scores__real=1.0),
            _stats(8.0, Loss__scores__real=math.nan),
            _stats(12.0, Loss__scores__real=math.inf),
        ],
        [{"kimg": 4.0, "Loss/scores/real": {"mean": 2.0}}],
        [_stats(float(k), Loss__G__loss=1e30 if k == 50 else 1.0) for k in range(100)],
    ],
)
def test_awkward_values_are_drawn(tmp_path, records):
    _write(tmp_path / "stats.jsonl", records)
    assert plots.redraw(tmp_path) is not None


def test_only_metrics(tmp_path):
    _write(tmp_path / "metric-fid50k_full.jsonl", [{"results": {"fid50k_full": 3.0}, "kimg": 0}])
    assert plots.redraw(tmp_path) is not None


def test_failures_are_warnings(run_dir, monkeypatch):
    (run_dir / "curves.png").write_bytes(b"the old one")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if matplotlib were not installed
    with pytest.warns(UserWarning, match="cannot be drawn"):
        assert plots.redraw(run_dir) is None
    assert (run_dir / "curves.png").read_bytes() == b"the old one"


def test_smooth():
    assert plots.smooth([5.0] * 10, 3) == pytest.approx([5.0] * 10)  # unbiased from the first point on
    step = plots.smooth([0.0] * 200 + [1.0] * 3, 3)
    assert step[199] == 0 and step[202] == pytest.approx(0.5)  # half the weight lies within one half-life
    assert plots.smooth([1.0, math.nan, 1.0], 2).tolist() == pytest.approx([1, 1, 1])
    assert np.isnan(plots.smooth([math.nan, math.inf], 2)).all() and len(plots.smooth([], 2)) == 0


def test_outliers_do_not_stretch_the_axis():
    y = np.r_[np.full(500, 1.0), 1e6]
    low, high = plots._limits(
        plots.Panel("x", [plots.Series("a", np.arange(501.0), y, plots._BLUE)], zero=True)
    )
    assert low < 0 < 1 < high < 2
