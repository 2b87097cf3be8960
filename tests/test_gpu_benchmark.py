# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py on a CPU: what it measures is written result by result with predictions, failures of
every part are results, and mistakes are one line.
"""

import importlib
import json
import re
import subprocess
import time
from pathlib import Path

import click.testing
import psutil
import pytest
import torch

from benchmarks import gpu, gpu_results, gpu_training, machine
from tests import waiting
from tests.toy_data import write_dataset

ROOT = Path(__file__).resolve().parent.parent


def run(out: Path, *arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(
        gpu.main, ["--device", "cpu", "--small", "--out", str(out), *arguments]
    )


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


@pytest.fixture
def job(tmp_path) -> gpu.Job:
    out = gpu.Results(tmp_path / "out.json", machine.describe("cpu"))
    return gpu.Job("cpu", True, dict.fromkeys(gpu.MINUTES, 1000.0), None, (16,), "", out)


@pytest.fixture
def in_process(monkeypatch) -> list[list[str]]:
    """Processes of benchmarks/gpu_training.py run in this one; their command lines."""
    commands: list[list[str]] = []

    def start(arguments, log, limit, environment, meanwhile) -> str:
        commands.append(arguments)
        meanwhile()
        result = click.testing.CliRunner().invoke(gpu_training.main, arguments[2:])
        log.write_text(result.output)
        return str(result.exit_code)

    monkeypatch.setattr(gpu, "_run", start)
    return commands


def test_a_training_step_is_measured_beside_its_prediction(in_process, tmp_path) -> None:
    out = tmp_path / "out.json"
    result = run(out, "--parts", "steps", "--stages", "16", "--levers", "float32 g")
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["torch"] == torch.__version__ and len(record["commit"]) in (0, 40) and record["small"]
    (row,) = record["results"]
    assert row["stage"] == 16 and row["flops_per_image"] > 1e6 and row["predicted_gb"] > 0
    assert row["images_per_second"] * row["seconds"] == pytest.approx(row["batch"])
    assert 0 < row["predicted_images_per_second"]["H100"] <= row["predicted_images_per_second"]["H200"]
    table = out.with_suffix(".md").read_text()
    assert "| 16 | float32 generator | 8 |" in table and table in result.output


@pytest.mark.exhaustive
def test_every_part_runs_on_a_cpu(monkeypatch, tmp_path) -> None:
    """With stages that end after some images, however long these take: status 0 and not 3."""
    real_options = gpu.real_options
    monkeypatch.setattr(gpu, "real_options", lambda *args: [*real_options(*args), "--kimg=0.032"])
    data = write_dataset(tmp_path / "toy.zip", n=32, size=64, class_names=["a", "b"])
    out = tmp_path / "out.json"
    options = ["--stages", "16", "--levers", "four", "--data", str(data), "--minutes", "1000"]
    assert run(out, *options).exit_code == 0
    rows = results(out)
    assert {row["part"] for row in rows} == set(gpu.PARTS)
    assert [row["stage"] for row in rows if row["part"] == "real"] == list(gpu.REAL_STAGES)
    assert all(row.get("status", "ok") in ("ok", "0") for row in rows), rows
    assert (tmp_path / "out" / "real-16-curves.png").exists()


def log_and(status: str):
    def start(arguments, log, limit, environment, meanwhile=lambda: None) -> str:
        log.write_text("it does not work\n")
        return status

    return start


@pytest.mark.parametrize("status", ["1", gpu.OUT_OF_TIME])
@pytest.mark.parametrize("part", gpu.PARTS)
def test_the_failure_of_a_part_is_a_result(monkeypatch, tmp_path, part: str, status: str) -> None:
    monkeypatch.setattr(gpu, "_run", log_and(status))
    out = tmp_path / "out.json"
    result = run(out, "--parts", part, "--stages", "16", "--levers", "generator", "--data", str(tmp_path))
    assert result.exit_code == 0, result.output
    rows = results(out)
    assert rows and all(row["part"] == part and status in row["status"] for row in rows)
    if part in ("networks", "steps"):  # after a failure the next case, without time none
        cases = gpu_training.cases(part, (16,), "generator")
        assert len(rows) == (len(cases) if status == "1" else 1)
    if part != "ops":  # which has rows of operations only
        assert status in out.with_suffix(".md").read_text()


def test_cases_continue_in_a_new_process_after_one_that_made_the_device_unusable(
    in_process, monkeypatch, job
) -> None:
    monkeypatch.setattr(gpu_training, "measured", lambda chosen, device, small: ({"n": 1} for _ in chosen))
    answers = iter([True, False])
    monkeypatch.setattr(gpu_training, "usable", lambda device: next(answers, True))
    gpu.run_cases(job, "steps", lambda case: {"predicted": case.levers.name})
    rows = results(job.results.path)
    assert [command[-1] for command in in_process] == ["--skip=0", "--skip=2"]
    cases = gpu_training.cases("steps", (16,), "")
    assert [row["levers"] for row in rows] == [case.levers.name for case in cases]
    assert all(row["n"] == 1 and row["predicted"] == row["levers"] for row in rows)


def test_an_error_of_a_case_is_its_result(monkeypatch) -> None:
    def fail(device, small, resolution, levers, flops):
        if levers.name.startswith("as train"):
            raise RuntimeError("out of\nmemory")
        return {"flops_per_image": 1}

    monkeypatch.setattr(gpu_training, "time_steps", fail)
    cases = gpu_training.cases("steps", (64,), "")
    assert len(cases) == len(gpu_training.LEVERS) and cases[-1].levers.compiled == "regions"
    rows = list(gpu_training.measured(cases[:2], "cpu", True))
    assert rows == [{"status": "RuntimeError: out of memory"}, {"flops_per_image": 1}]


def test_a_prediction_that_fails_stops_no_measurement(in_process, monkeypatch, job) -> None:
    monkeypatch.setattr(gpu_training, "measured", lambda chosen, device, small: ({"n": 1} for _ in chosen))
    job.levers = "float32 g"
    gpu.run_cases(job, "steps", lambda case: {}["nothing"])
    (row,) = results(job.results.path)
    assert row["n"] == 1 and row["prediction"] == "KeyError: 'nothing'"


def test_commands_are_recorded_with_their_end(job) -> None:
    found = [
        job.run("a", ["echo", "fine"]),
        job.run("b", ["no-such-program"]),
        job.run("c", ["sleep", "1000000"], limit=0.1),
        job.run("d", ["sh", "-c", "echo ERROR SUMMARY: 1 error; echo more >&2; exit 9"]),
    ]
    assert [row["status"] for row in found] == ["0", "no-such-program is not installed", gpu.OUT_OF_TIME, "9"]
    assert [row["last_line"] for row in found] == ["fine", "", "", "ERROR SUMMARY: 1 error"]
    assert (job.folder / "d.log").read_text() == "ERROR SUMMARY: 1 error\nmore\n"


def test_what_a_command_started_ends_with_it_and_its_output_stays(job, monkeypatch) -> None:
    class OutOfTimeOnceItPrinted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            waiting.until(lambda: (job.folder / "tests.log").read_text().endswith("\n"), self)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(gpu.subprocess, "Popen", OutOfTimeOnceItPrinted)
    row = job.run("tests", ["sh", "-c", "sleep 1000000 & echo $!; wait"])
    assert row["status"] == gpu.OUT_OF_TIME

    def gone() -> bool:
        try:
            return psutil.Process(int(row["output"])).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    waiting.until(gone, int(row["output"]))


def test_a_part_that_raises_is_recorded_and_none_begins_too_late(job) -> None:
    def fail(job) -> None:
        raise ValueError("not today")

    gpu.run_part(job, "networks", fail)
    job.end = time.monotonic() - 1
    gpu.run_part(job, "ops", fail)
    assert [row["status"] for row in results(job.results.path)] == ["ValueError: not today", gpu.OUT_OF_TIME]


def test_every_part_has_its_own_limit(job) -> None:
    seconds = []
    job.minutes = {"tests": 2.0, "ops": 60.0}
    job.end = time.monotonic() + 600
    for part in job.minutes:
        gpu.run_part(job, part, lambda job: seconds.append(job.seconds()))
    assert 60 < seconds[0] <= 120 and 120 < seconds[1] <= 600


def test_the_sanitizer_must_find_the_planted_mistake_and_nothing_else(job, monkeypatch) -> None:
    commands: list[list[str]] = []

    def start(arguments, log, limit, environment, meanwhile) -> str:
        log.touch()
        commands.append(arguments)
        return "0"

    monkeypatch.setattr(gpu, "_run", start)
    job.device = "cuda"
    gpu.run_sanitizer(job)
    assert [(row["tool"], row["over"], row["expected"]) for row in results(job.results.path)] == [
        ("memcheck", "kernels", "0"),
        ("memcheck", "mistake", "9"),
        ("racecheck", "kernels", "0"),
        ("synccheck", "kernels", "0"),
    ]
    assert all(
        command[0] == "compute-sanitizer" and command[-1] in ("kernels", "mistake") for command in commands
    )


def test_without_kernels_nothing_is_said_to_be_checked(monkeypatch) -> None:
    monkeypatch.setattr(gpu.extension, "load", lambda: False)
    for check in (gpu.every_kernel, gpu.planted_mistake):
        with pytest.raises(click.ClickException, match="the kernels cannot be used"):
            check("cuda")


def test_the_machine_is_described_without_git(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    facts = machine.describe("cpu")
    assert facts["commit"] == "" and not facts["changed"] and len(facts["kernels"]) == 16


OPERATION = {
    "case": "bias_act lrelu 256",
    "dtype": "float16",
    "forward_copy_share": 0.5,
    "both_copy_share": 0.4,
    "predicted_forward_copy_share": (0.8, 0.9),
}
LAYER = f"{gpu_results.ON_TENSOR_CORES} 36 -> 36 x 1024"
STEP = {
    "part": "steps",
    "stage": 64,
    "levers": "as train.py does it",
    "batch": 128,
    "images_per_second": 100.0,
    "predicted_images_per_second": {"H100": 134.0, "H200": 146.0},
    "share_of_peak": 0.25,
}


def test_tables_have_predictions_of_the_device_beside_what_was_measured(tmp_path, monkeypatch) -> None:
    facts = {"torch": "2.11", "cuda": "13.0", "python": "3.12", "commit": "c" * 40, "changed": False}
    rows = [
        {
            "part": "ops",
            "rows": [OPERATION, OPERATION | {"case": "bias_act swish 256", "both_copy_share": 0.2}],
        },
        {"part": "ops", "rows": [OPERATION | {"compiled_both_ratio": 1.5}]},
        {"part": "ops", "rows": [OPERATION | {"case": LAYER, "without_both_ratio": 2.5}]},
        STEP,
        STEP | {"levers": "a|b", "images_per_second": None, "status": "out of time"},
        {"part": "real", "stage": 16, "status": "3", "fd_lite0": [9.0, 8.5], "predicted_sec_per_kimg": {}},
    ]
    content = {"device": "NVIDIA H100 80GB", **facts, "small": False, "command": "x", "results": rows}
    file = tmp_path / "r.json"
    file.write_text(json.dumps(content))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu_results.BEGIN}\nold\n{gpu_results.END}\nafter\n")
    result = click.testing.CliRunner().invoke(gpu_results.main, [str(file), "--write", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith(f"before\n{gpu_results.BEGIN}\n") and text.endswith(f"{gpu_results.END}\nafter\n")
    assert "old" not in text and "torch 2.11, CUDA 13.0, Python 3.12, commit cccccccccc: `x`." in text
    for line in (
        "| bias_act lrelu 256 | float16 | 1 | 0.50 | 0.80 to 0.90 | 0.40 |  | 1.5 |  |",
        "| filtered_lrelu on tensor cores | float16 | 1 | 0.50 | 0.80 to 0.90 | 0.40 |  |  | 2.5 |",
        "| 64 | as train.py does it | 128 | 100 | 134 | 10 |  |  | 25% |",
        "| 16 |  |  |  |  | 9.0 8.5 | 3 |",
    ):
        assert line in text
    for head in re.findall(r"^(\|.*\|)\n\|---", text, flags=re.MULTILINE):  # tables are whole
        below = text.split(head)[1].split("\n\n")[0].splitlines()[1:]
        assert {line.count("|") - line.count("a|b") for line in below} == {head.count("|")}
    page.write_text("no markers")
    result = click.testing.CliRunner().invoke(gpu_results.main, [str(file), "--write", str(page)])
    assert result.exit_code == 1 and "does not have the lines" in result.output


def test_performance_md_has_the_place_of_the_tables() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.index(gpu_results.BEGIN + "\n") < text.index("\n" + gpu_results.END)


def test_every_operation_has_a_prediction() -> None:
    ops = importlib.import_module("benchmarks.ops")
    for case in ops.layer_cases(1, 256, "cpu") + ops.other_cases(1, 256, "cpu"):
        for dtype in ("float16", "float32"):
            low, high = gpu_results.predicted_share(case.name, dtype)
            assert 0 < low < high < 1
    (least, most), without = (
        gpu_results.predicted_share(name, "bfloat16") for name in (LAYER, "filtered_lrelu 36 -> 36")
    )
    assert without[0] < least < most < 1 and len(ops.tensor_core_cases(1, 256, "cpu")) > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "ops,speed"], "unknown part speed; the parts are tests, sanitizer"),
        (["--stages", "16,48"], "the stages are 16, 32"),
        (["--levers", "faster"], "no name contains this; the names are 'as train.py does it'"),
        (["--data", "nowhere.zip"], "nowhere.zip does not exist"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments: list[str], words: str) -> None:
    result = run(tmp_path / "out.json", *arguments)
    assert result.exit_code != 0 and words in result.output and not (tmp_path / "out.json").exists()


def test_a_missing_device_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = click.testing.CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "out.json")])
    assert result.exit_code == 1 and "no CUDA device found" in result.output
