# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py on a CPU: what it measures is written result by result, and mistakes are one line."""

import importlib.util
import json
from pathlib import Path

import click.testing
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(gpu, out: Path, *arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(gpu.main, ["--device", "cpu", "--small", "--out", str(out), *arguments])


def test_a_training_step_is_measured(gpu, tmp_path) -> None:
    result = run(gpu, tmp_path / "out.json", "--parts", "steps", "--stages", "16", "--levers", "float32")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["torch"] == torch.__version__ and len(record["commit"]) in (0, 40) and record["small"]
    (row,) = record["results"]
    assert row["stage"] == 16 and row["flops_per_image"] > 1e6 and row["images_per_second"] * row["seconds"] == pytest.approx(row["batch"])


def test_what_fails_or_runs_out_of_time_is_recorded(gpu, monkeypatch, tmp_path) -> None:
    def fail(job, resolution, levers, *rest):
        if levers.name.startswith("as train"):
            raise RuntimeError("out of\nmemory")
        return {"images_per_second": 1.0}

    monkeypatch.setattr(gpu, "time_steps", fail)
    assert run(gpu, tmp_path / "a.json", "--parts", "steps", "--stages", "64").exit_code == 0
    rows = json.loads((tmp_path / "a.json").read_text())["results"]
    assert len(rows) == len(gpu.LEVERS) and rows[0]["status"] == "out of memory" and rows[1]["images_per_second"] == 1
    assert run(gpu, tmp_path / "b.json", "--parts", "steps", "--minutes", "0").exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text())["results"] == [
        {"part": "steps", "stage": 16, "levers": gpu.LEVERS[0].name, "status": "out of time"}
    ]


def test_commands_are_recorded_with_their_end(gpu, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu, "_GRACE_SECONDS", 0.0)
    job = gpu.Job("cpu", True, 1 / 60, None, (16,), (), gpu.Report(tmp_path / "out.json", "cpu", True))
    assert job.command("tests", ["echo", "fine"])
    assert not job.command("tests", ["no-such-program"])
    assert not job.command("tests", ["sleep", "30"])
    statuses = [row["status"] for row in json.loads((tmp_path / "out.json").read_text())["results"]]
    assert statuses == ["0", "no-such-program is not installed", "out of time"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "ops,speed"], "there is no speed; the parts are tests, sanitizer"),
        (["--stages", "16,48"], "the stages are 16, 32"),
        (["--stages", "all"], "give resolutions"),
    ],
)
def test_mistakes_are_one_line(gpu, tmp_path, arguments: list[str], words: str) -> None:
    result = run(gpu, tmp_path / "out.json", *arguments)
    assert result.exit_code == 1 and words in result.output and not (tmp_path / "out.json").exists()


def test_a_missing_device_is_one_line(gpu, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = click.testing.CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "out.json")])
    assert result.exit_code == 1 and "there is no CUDA device" in result.output
