# SPDX-License-Identifier: Apache-2.0
"""Everybody who reads metric records knows which end is good: from the record, and by its name in records of
version 0.1.
"""

import json

import pytest

from lab import projected
from metrics import registry
from training.config import TrainConfig, to_json
from training.networks import hub
from training.run_folder import better_direction
from training.watch import alarms, plots, report

# The numbers of a metric at 1, 2 and 3 kimg; 2 kimg has the best of a metric that is better low, 3 kimg of
# one that is better high.
VALUES = (5.0, 3.0, 8.0)
NAMES = ("fid50k_full", "is50k", "pr_inception_50k_full", "fd_lite0_500", "kid50k_full")
HIGH = ("is50k", "pr_inception_50k_full")


def write_run(folder, name: str, says: bool | None):
    """A run folder with one metric. says: whether the records hold the key, and what (None: of version
    0.1).
    """
    folder.mkdir(exist_ok=True)
    config = TrainConfig().override({"run.metrics": [name], "run.kimg": 4.0})
    (folder / "training_options.json").write_text(json.dumps({"config": to_json(config)}))
    suffix = {"is50k": "_mean", "pr_inception_50k_full": "_precision"}.get(name, "")
    lines = []
    for kimg, value in enumerate(VALUES, 1):
        line = {"results": {name + suffix: value}, "metric": name, "value": value, "kimg": float(kimg)}
        line["snapshot_pkl"] = f"network-snapshot-{kimg:06d}.pkl"
        lines.append(line if says is None else {**line, "lower_is_better": says})
    (folder / f"metric-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, name + suffix


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_report_curves_card_and_table_take_the_same_best(tmp_path, name, old):
    lower = registry.parse_metric(name).family.lower_is_better
    assert lower == (name not in HIGH)
    folder, number = write_run(tmp_path / "run", name, None if old else lower)
    best = 3.0 if lower else 8.0
    assert report.Run.read(folder).best()[:2] == (number, best)
    (panel,) = plots.metric_panels(
        json.loads(line) for line in (folder / f"metric-{name}.jsonl").read_text().splitlines()
    )
    assert panel.series[0].best == ("min" if lower else "max") and panel.title != "Metrics"
    (record,) = hub.read_metrics(str(folder / "best_model.pkl"))
    assert record["value"] == best
    assert projected.series(folder)[number] == ([1.0, 2.0, 3.0], list(VALUES), lower)


def test_the_record_wins_over_its_name(tmp_path):
    folder, number = write_run(tmp_path / "run", "fid50k_full", False)
    assert report.Run.read(folder).best()[:2] == (number, 8.0)
    assert hub.read_metrics(str(folder / "best_model.pkl"))[0]["value"] == 8.0
    assert better_direction({"lower_is_better": True, "metric": "is50k"}) == "min"


@pytest.mark.parametrize("name", ["pr_inception_50k_full", "is50k", "fid50k_full"])
@pytest.mark.parametrize("old", [False, True])
def test_the_alarm_knows_a_rise_from_a_fall(name, old):
    record = {"metric": name} if old else {"metric": name, "lower_is_better": name not in HIGH}
    stats = [{"kimg": float(k), "Progress/tick": float(k)} for k in range(1, 200)]
    end = better_direction(record)
    risen, fallen = ([(10.0 * i, 0.2 + 0.1 * (i if up else 8 - i)) for i in range(9)] for up in (True, False))
    told = [bool(alarms.find(stats, points, TrainConfig(), name, end)) for points in (risen, fallen)]
    assert told == ([False, True] if name in HIGH else [True, False])


@pytest.mark.parametrize(
    ("record", "end"),
    [
        ({"results": {"ppl2_wend": 1.0}}, "min"),
        ({"results": {"pr50k3_full_recall": 1.0}}, "max"),
        ({"results": {"eqt50k_int": 60.0}}, "max"),
        ({"metric": "sfid50k_full"}, "min"),
        ({"metric": "own", "lower_is_better": "yes"}, None),
        ({"results": 3}, None),
        ({}, None),
    ],
)
def test_published_names_and_odd_records(record, end):
    assert better_direction(record) == end
