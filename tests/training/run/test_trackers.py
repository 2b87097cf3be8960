# SPDX-License-Identifier: Apache-2.0
"""Trackers get what a run measures, and none of them ends it."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from training.run.trackers import Trackers

CONFIG = {"run": {"batch": 8}}


class Run:
    """What wandb.init and trackio.init return: it notes its calls."""

    def __init__(self) -> None:
        self.calls: list = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.fixture(params=["wandb", "trackio"])
def board(request, monkeypatch):
    """A module in place of a tracker's: (its name, arguments of init, its runs)."""
    runs: list[Run] = []
    started: list[dict] = []

    def init(**kwargs):
        started.append(kwargs)
        runs.append(Run())
        return runs[-1]

    kinds = {kind: lambda value, kind=kind: (kind, value) for kind in ("Image", "Histogram")}
    module = SimpleNamespace(__name__=request.param, init=init, **kinds)
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, started, runs


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "00003-run"
    path.mkdir()
    PIL.Image.new("RGB", (4, 2), (255, 0, 0)).save(path / "fakes000000.png")
    return path


def send(trackers: Trackers, folder) -> None:
    trackers.scalars({"Loss/D/loss": 1.5}, 16)
    trackers.histogram("Logits/real", np.array([1.0, np.nan, 3.0], np.float32), 16)
    trackers.image("fakes", folder / "fakes000000.png", 16)
    trackers.image("fakes", folder / "missing.png", 16)
    trackers.alarm("images of a class look alike", 16)
    trackers.close()


def test_boards_get_everything_by_images_shown(board, folder):
    name, started, runs = board
    send(Trackers([name], folder, CONFIG, 0), folder)
    (first,) = started
    assert first["config"] == CONFIG and first["project"] == "stylesan-xl" and first["resume"] == "allow"
    assert folder.name in first["name"]
    logged = [(args[0], kwargs) for call, args, kwargs in runs[0].calls if call == "log"]
    steps = [kwargs.get("step", values.get("images")) for values, kwargs in logged]
    assert steps == [16, 16, 16]
    assert logged[0][0]["Loss/D/loss"] == 1.5
    kind, values = logged[1][0]["Logits/real"]
    assert kind == "Histogram" and values.tolist() == [1.0, 3.0]
    assert logged[2][0]["fakes"] == ("Image", str(folder / "fakes000000.png"))
    assert [call for call, *_ in runs[0].calls][-2:] == ["alert", "finish"]


@pytest.mark.parametrize("board", ["wandb"], indirect=True)
def test_the_end_of_a_run_waits_for_wandb_within_bounds(board, folder, monkeypatch):
    for name in ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES"):
        monkeypatch.setenv(name, "5")
        monkeypatch.delenv(name)
    Trackers(["wandb"], folder, CONFIG, 0)
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "60"
    assert os.environ["WANDB_FINISH_TIMEOUT_RAISES"] == "true"
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    Trackers(["wandb"], folder, CONFIG, 0)
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "5"


def test_a_resumed_run_continues_its_board(board, folder):
    name, started, _ = board
    for nimg in (0, 16):
        Trackers([name], folder, CONFIG, nimg)
    identities = [(kwargs.get("id"), kwargs["name"]) for kwargs in started]
    assert identities[0] == identities[1]
    other = folder.parent / "other"
    other.mkdir()
    Trackers([name], other, CONFIG, 0)
    assert (started[2].get("id"), started[2]["name"]) != identities[0]


def test_a_tracker_that_fails_is_left_out_and_the_others_continue(folder, monkeypatch):
    def no_connection(**kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__name__="wandb", init=no_connection))
    with pytest.warns(UserWarning, match=r"--tracker=wandb failed \(no route to host\); continuing without"):
        trackers = Trackers(["wandb", "prometheus"], folder, CONFIG, 0)
    assert list(trackers.active) == ["prometheus"]

    def full(values, nimg):
        raise OSError("No space left on device")

    monkeypatch.setattr(trackers.active["prometheus"], "scalars", full)
    with pytest.warns(UserWarning, match="--tracker=prometheus failed .No space left on device"):
        trackers.scalars({"a": 1.0}, 8)
    send(trackers, folder)
    assert not trackers.active


def test_a_package_that_is_missing_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert not Trackers(["trackio"], folder, CONFIG, 0).active
    assert (
        capsys.readouterr().out
        == "trackio is not installed: this run does not use it (pip install trackio)\n"
    )


def test_prometheus_reads_the_newest_values(folder):
    trackers = Trackers(["prometheus"], folder, CONFIG, 0)
    trackers.scalars({"Loss/D/loss": 1.5, "Metrics/fid": float("nan")}, 16)
    trackers.scalars({"Loss/D/loss": float("inf")}, 32)
    assert (folder / "metrics.prom").read_text().splitlines() == [
        "# TYPE stylesan_xl gauge",
        'stylesan_xl{run="00003-run",name="Loss/D/loss"} +Inf',
        'stylesan_xl{run="00003-run",name="Metrics/fid"} NaN',
        'stylesan_xl{run="00003-run",name="images"} 32.0',
    ]


def test_tensorboard_has_curves_histograms_pictures_options_and_alarms(folder):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    send(Trackers(["tensorboard"], folder, CONFIG, 0), folder)
    found = events.EventAccumulator(str(folder))
    found.Reload()
    assert [(p.step, p.value) for p in found.Scalars("Loss/D/loss")] == [(16, 1.5)]
    assert found.Histograms("Logits/real")[0].histogram_value.num == 2
    assert found.Images("fakes")[0].width == 4
    options = found.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(options.replace("\n    ", "\n")) == CONFIG
    assert found.Tensors("alarm/text_summary")[0].step == 16
