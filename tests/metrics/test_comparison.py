# SPDX-License-Identifier: Apache-2.0
"""Metric records side by side: verdicts, refusals and bad input."""

import json

import pytest

from metrics import comparison


def record(value, metric="fid50k_full", **changes):
    return {
        "results": {metric: value},
        "metric": metric,
        "value": value,
        "lower_is_better": True,
        "format": 1,
        "num_gen": 50000,
        "num_real": 1000,
        "detector": {"name": "inception-2015-12-05", "sha256": "67", "dtype": "float32"},
        "covariance": "population",
        "reference": {"content_hash": "abc", "view": "v", "filter": "lanczos", "resolution": 256},
        "labels": "dataset",
        "truncation": 1.0,
        "seed": 0,
        "snapshot_pkl": "a.pkl",
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def to(name, *records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return str(path)

    return to


def seeds(*values, **changes):
    return [record(value, seed=seed, **changes) for seed, value in enumerate(values)]


def test_a_published_tie(write):
    (verdict,) = comparison.compare([write("a", record(2.14)), write("b", record(2.18))])
    assert verdict.is_tie and verdict.text == "a tie: below the 2.0% that training again moves it by"
    assert verdict.noise is None and "sampling noise unknown" in verdict.notes[0]
    (verdict,) = comparison.compare([write("a", record(2.14)), write("b", record(2.18))], retraining=0.01)
    assert not verdict.is_tie and verdict.text == "worse by 1.9%"


def test_seeds_give_means_and_noise(write):
    a, b = write("a", *seeds(10.0, 10.2, 10.4)), write("b", *seeds(10.7, 10.9, 11.1))
    (verdict,) = comparison.compare([a, b], retraining=0)
    assert verdict.first.value == pytest.approx(10.2) and verdict.first.deviation == pytest.approx(0.2)
    assert verdict.noise == pytest.approx(1.96 * (2 * 0.2**2 / 3) ** 0.5)
    assert not verdict.is_tie and verdict.text == "worse by 6.9%" and not verdict.notes
    (verdict,) = comparison.compare([a, write("c", *seeds(10.2, 10.4, 10.6))], retraining=0)
    assert verdict.is_tie and verdict.text == "a tie: within the sampling noise"


def test_intervals_of_records_give_noise(write):
    interval = {"std": {"fid50k_full": 0.3}}
    a, b = write("a", record(10.0, interval=interval)), write("b", record(9.0, interval=interval))
    (verdict,) = comparison.compare([a, b])
    assert verdict.noise == pytest.approx(1.96 * 0.3 * 2**0.5) and verdict.text == "better by 10.0%"


def test_higher_may_be_better(write):
    scores = [
        record(v, "is50k", lower_is_better=False, results={"is50k_mean": v, "is50k_std": 3}) for v in (9, 8)
    ]
    for line in scores:
        del line["covariance"]
    (verdict,) = comparison.compare([write("a", scores[0]), write("b", scores[1])])
    assert verdict.first.name == "is50k_mean" and verdict.text == "worse by 11.1%"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_gen": 10000}, "num_gen 50000 against 10000"),
        ({"reference": {"content_hash": "abc", "filter": "box"}}, "filter lanczos against box"),
        ({"reference": {"content_hash": "other"}}, "content_hash abc against other"),
        (
            {"detector": {"name": "inception-2015-12-05", "sha256": "99", "dtype": "float32"}},
            "detector sha256 67",
        ),
        ({"covariance": "unbiased"}, "covariance population against unbiased"),
        ({"labels": "uniform"}, "labels dataset against uniform"),
        ({"truncation": 0.7}, "truncation 1.0 against 0.7"),
        ({"centroids": {"sha256": "c"}}, "centroids None against"),
    ],
)
def test_other_conditions_are_refused_by_name(write, changes, reason):
    a, b = write("a", record(2.0)), write("b", record(3.0, **changes))
    with pytest.raises(ValueError, match="were measured differently") as error:
        comparison.compare([a, b])
    assert reason in str(error.value) and "\n" not in str(error.value)
    (verdict,) = comparison.compare([a, b], force=True)
    assert reason in verdict.notes[0] and verdict.difference == 1.0


def test_records_of_other_programs_are_refused(write):
    published = {
        "results": {"fid50k_full": 2.3},
        "metric": "fid50k_full",
        "total_time": 9,
        "snapshot_pkl": "x",
    }
    with pytest.raises(ValueError, match="the second does not record its detector: it is of another program"):
        comparison.compare([write("a", record(2.0)), write("b", published)])
    assert comparison.compare([write("a", record(2.0)), write("b", published)], force=True)


def test_the_newest_or_the_best_line_of_a_run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [record(v, snapshot_pkl=f"{v}.pkl", kimg=k) for k, v in enumerate((5.0, 3.0, 4.0))]
    (folder / "metric-fid50k_full.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    assert comparison.read(str(folder))["fid50k_full"].value == 4.0
    assert comparison.read(str(folder), best=True)["fid50k_full"].value == 3.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no metric records"),
        ("{\n", "line 1: not a metric record"),
        ('\n{"kimg": 3}\n', "line 2: not a metric record"),
        ("[1]\n", "line 1: not a metric record"),
        (json.dumps(record(1.0, format=2)), "line 1: a metric record of format 2; formats up to 1 are known"),
        (json.dumps(record(float("nan"))), "line 1: a result is not a finite number"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, content, message):
    (tmp_path / "a").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        comparison.read(str(tmp_path / "a"))
    assert str(tmp_path / "a") in str(error.value) and "\n" not in str(error.value)


def test_files_without_a_common_number_are_refused(write):
    with pytest.raises(ValueError, match="no number is in all of them"):
        comparison.compare([write("a", record(1.0)), write("b", record(1.0, "is50k"))])
