# SPDX-License-Identifier: Apache-2.0
"""lab.screening: what is compared with what, and that finished runs are kept."""

import json

import click
import numpy as np
import pytest
from click.testing import CliRunner

from lab import dcgan, screening


def scored(*values: float) -> dict:
    """Runs of the seeds 0, 1, ... with these distances."""
    return {
        str(seed): {"scores": {"fd_lite0": value, "accuracy": -value, "balance": 1.0}}
        for seed, value in enumerate(values)
    }


def test_heads_are_compared_under_equal_losses_and_losses_under_the_gan_head():
    runs = {
        "gan/hinge/logit": scored(10, 20, 30),
        "gan/bce/ns": scored(11, 22, 33),
        "san/bce/ns": scored(9, 20, 31, 50),
        "sona/ls/logit": scored(1, 2, 3),
    }
    rows = screening.compared(runs)
    assert set(rows["gan/hinge/logit"]["fd_lite0"]) == {"value"}
    assert set(rows["sona/ls/logit"]["fd_lite0"]) == {"value"}  # gan/ls/logit has not run
    loss, head = rows["gan/bce/ns"], rows["san/bce/ns"]
    assert loss["fd_lite0"]["than"] == "gan/hinge/logit" and head["fd_lite0"]["than"] == "gan/bce/ns"
    assert loss["fd_lite0"]["improvement"]["mean"] == -2 and loss["accuracy"]["improvement"]["mean"] == -2
    assert head["fd_lite0"]["improvement"] == {"mean": 2, "half_width": 0, "std": 0, "n": 3}
    assert head["fd_lite0"]["verdict"] == head["accuracy"]["verdict"] == "better"
    assert head["fd_lite0"]["value"]["n"] == 4 and loss["fd_lite0"]["shown from"] > 2
    table = screening.table(rows)
    assert len(table.splitlines()) == 2 + 4 * 3
    assert "| san/bce/ns | fd_lite0 | 4 | 28 ± 28 | gan/bce/ns | 2 ± 0 (3) | better | 0 |" in table


def test_missing_runs_are_those_without_a_result_seed_by_seed():
    gan, sona = dcgan.Method(), dcgan.Method("sona", "bce", "ns")
    assert screening.missing({"gan/hinge/logit": scored(1.0)}, [gan, sona], 2) == [
        (0, sona), (1, gan), (1, sona)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("san/hinge", "must be HEAD/LOSS/OBJECTIVE"),
        ("sam/hinge/logit", "must be gan, san or sona"),
        ("san/hing/logit", "'hing'"),
        ("san/hinge/logid", "'logid'"),
        ("sona/relativistic/ns", "does not compare pairs"),
    ],
)
def test_unknown_methods_are_one_line(text, says):
    with pytest.raises(click.ClickException, match=says) as error:
        screening.parse(text)
    assert "\n" not in error.value.message


def test_the_default_methods_exist():
    assert [screening.name_of(screening.parse(text)) for text in screening.METHODS] == [*screening.METHODS]


def test_finished_runs_are_kept_and_others_added(tmp_path, monkeypatch):
    made = []

    class Bench:
        def __init__(self, *args: object) -> None:
            self.judge = type("Judge", (), {"held_out_accuracy": 0.9})

        def run(self, classes: int, method: dcgan.Method, seed: int) -> tuple[None, dict]:
            made.append((screening.name_of(method), seed))
            return None, scored(seed + 1.0)["0"]

    monkeypatch.setattr(dcgan, "Bench", Bench)
    monkeypatch.setattr(dcgan, "load", lambda data, limit: (np.zeros(2), np.zeros(2), 2))

    def run(*more: str) -> str:
        options = ["--data=x", f"--out={tmp_path}", *more]
        result = CliRunner().invoke(screening.main, options)
        assert result.exit_code == 0, result.output
        return result.output

    run("--methods=san/bce/ns", "--seeds=1")
    assert made == [("san/bce/ns", 0), ("gan/bce/ns", 0)]
    made.clear()
    output = run("--methods=san/bce/ns", "--seeds=2")
    assert made == [("san/bce/ns", 1), ("gan/bce/ns", 1)] and "no difference seen" in output
    made.clear()
    run("--methods=san/bce/ns", "--seeds=2")
    assert not made and (tmp_path / "screening.png").stat().st_size > 1000
    found = json.loads((tmp_path / "screening.json").read_text())
    assert found["accuracy of the classifier on held-out images"] == 0.9
    result = CliRunner().invoke(screening.main, ["--data=x", f"--out={tmp_path}", "--steps=7"])
    assert result.exit_code == 1 and "runs of other options" in result.output
