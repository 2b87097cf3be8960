# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py on a CPU: what it measures is written result by result, and mistakes are one line."""

import importlib.util
import json
import subprocess
import time
from pathlib import Path

import click.testing
import psutil
import pytest
import torch

from tests import waiting

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(gpu, out: Path, *arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(
        gpu.main, ["--device", "cpu", "--small", "--out", str(out), *arguments]
    )


def test_a_training_step_is_measured(gpu, tmp_path) -> None:
    result = run(gpu, tmp_path / "out.json", "--parts", "steps", "--stages", "16", "--levers", "float32")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["torch"] == torch.__version__ and len(record["commit"]) in (0, 40) and record["small"]
    (row,) = record["results"]
    assert (
        row["stage"] == 16
        and row["flops_per_image"] > 1e6
        and row["images_per_second"] * row["seconds"] == pytest.approx(row["batch"])
    )


def test_what_fails_or_runs_out_of_time_is_recorded(gpu, monkeypatch, tmp_path) -> None:
    def fail(job, resolution, levers, *rest):
        if levers.name.startswith("as train"):
            raise RuntimeError("out of\nmemory")
        return {"images_per_second": 1.0}

    monkeypatch.setattr(gpu, "time_steps", fail)
    assert run(gpu, tmp_path / "a.json", "--parts", "steps", "--stages", "64").exit_code == 0
    rows = json.loads((tmp_path / "a.json").read_text())["results"]
    assert (
        len(rows) == len(gpu.LEVERS)
        and rows[0]["status"] == "RuntimeError: out of memory"
        and rows[1]["images_per_second"] == 1
    )
    assert run(gpu, tmp_path / "b.json", "--parts", "steps", "--minutes", "0").exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text())["results"] == [
        {"part": "steps", "stage": 16, "levers": gpu.LEVERS[0].name, "status": "out of time"}
    ]


@pytest.fixture
def job(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_GRACE_SECONDS", 0.0)
    return gpu.Job("cpu", True, 1000, None, (16,), (), gpu.Results(tmp_path / "out.json", "cpu", True))


def results(job) -> list[dict]:
    return json.loads(job.results.path.read_text())["results"]


def test_commands_are_recorded_with_their_end(job) -> None:
    assert job.command("tests", ["echo", "fine"])
    assert not job.command("tests", ["no-such-program"])
    assert not job.command("tests", ["sleep", "1000000"], limit=0.1)
    assert job.command(
        "tests",
        ["sh", "-c", "echo ERROR SUMMARY: 1 error; echo more >&2; exit 9"],
        expected="9",
        tool="memcheck",
    )
    assert [row["status"] for row in results(job)] == [
        "0",
        "no-such-program is not installed",
        "out of time",
        "9",
    ]
    assert [row["last_line"] for row in results(job)] == ["fine", "", "", "ERROR SUMMARY: 1 error"]
    assert (
        job.results.path.parent / "out-tests-memcheck.log"
    ).read_text() == "ERROR SUMMARY: 1 error\nmore\n"


def test_what_a_command_started_ends_with_it_and_its_output_stays(gpu, job, monkeypatch, tmp_path) -> None:
    class OutOfTimeOnceItPrinted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            waiting.until(
                lambda: (job.results.path.parent / "out-tests.log").read_text().endswith("\n"), self
            )
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(gpu.subprocess, "Popen", OutOfTimeOnceItPrinted)
    assert not job.command("tests", ["sh", "-c", "sleep 1000000 & echo $!; wait"])
    (row,) = results(job)
    assert row["status"] == "out of time"

    def gone() -> bool:
        try:
            return psutil.Process(int(row["output"])).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    waiting.until(gone, int(row["output"]))


def test_a_part_that_fails_is_recorded_and_none_begins_too_late(gpu, job) -> None:
    def fail(job) -> None:
        raise ValueError("not today")

    gpu.run_part(job, "networks", fail)
    job.end = time.monotonic() - 1
    gpu.run_part(job, "ops", fail)
    assert [row["status"] for row in results(job)] == ["ValueError: not today", "out of time"]


def test_the_sanitizer_must_find_the_planted_mistake_and_nothing_else(gpu, job, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(
        gpu,
        "_run",
        lambda arguments, log, limit, environment: (log.touch(), commands.append(arguments), "0")[2],
    )
    job.device = "cuda"
    gpu.run_sanitizer(job)
    assert [(row["tool"], row["over"], row.get("expected", "0")) for row in results(job)] == [
        ("memcheck", "kernels", "0"),
        ("memcheck", "mistake", "9"),
        ("racecheck", "kernels", "0"),
        ("synccheck", "kernels", "0"),
    ]
    assert all(
        command[0] == "compute-sanitizer" and command[-1] in ("kernels", "mistake") for command in commands
    )


def test_without_kernels_nothing_is_said_to_be_checked(gpu, monkeypatch) -> None:
    monkeypatch.setattr(gpu.extension, "load", lambda: False)
    for check in (gpu.every_kernel, gpu.planted_mistake):
        with pytest.raises(click.ClickException, match="the kernels cannot be used"):
            check("cuda")


def test_the_machine_is_described_without_git(gpu, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    facts = gpu.machine.describe("cpu")
    assert facts["commit"] == "" and not facts["changed"] and len(facts["kernels"]) == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "ops,speed"], "unknown part speed; the parts are tests, sanitizer"),
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
    assert result.exit_code == 1 and "no CUDA device found" in result.output
