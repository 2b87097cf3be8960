# SPDX-License-Identifier: Apache-2.0
"""train.py: what is convenient does not end a run, what would end it is said first, what takes long is
announced.
"""

import errno
import json
import os
import re

import numpy as np
import pytest
import torch
import torch.utils.tensorboard
from click.testing import CliRunner

import train
from dnnlib.util import format_time
from metrics import detectors
from tests.support import TinyDetector
from tests.toy_data import write_dataset
from tests.toy_runs import FLAGS
from torch_utils import images
from training import run_folder
from training.watch import plots, report, watch

pytestmark = pytest.mark.e2e
NAMES = ["a", "b", "c"]
COMMON = ["--cfg=stylegan3-t", "--gpus=1", "--cond=True", *FLAGS]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Detectors that cost nothing, and a cache of the test's own."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(detectors, "load", lambda name, device="cpu", **options: TinyDetector(name))
    monkeypatch.setattr(detectors, "check", lambda name, **options: None)


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(train.main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("place", ["/proc/none/cache", "file"])
def test_a_cache_that_cannot_be_written_is_a_warning_at_the_start_and_at_a_resume(
    tmp_path, monkeypatch, place
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / place))
    data = write_dataset(tmp_path / "data.zip", n=24, class_names=NAMES)
    runs = tmp_path / "runs"
    with pytest.warns(UserWarning, match=r"metrics cache .* cannot be written .* DNNLIB_CACHE_DIR"):
        run(f"--outdir={runs}", f"--data={data}", *COMMON, "--metrics=fd_lite0_8", "--kimg=0.016")
    (folder,) = runs.iterdir()
    with pytest.warns(UserWarning, match="metrics cache"):
        run(f"--resume={folder}", "--kimg=0.032")
    lines = [json.loads(line) for line in (folder / "metric-fd_lite0_8.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032]


@pytest.mark.parametrize("dry", [["-n"], []])
def test_data_too_small_for_a_metric_is_said_before_there_is_a_folder(tmp_path, dry):
    data = write_dataset(tmp_path / "few.zip", n=3, size=64, class_names=NAMES)
    runs = tmp_path / "runs"
    for args in (COMMON, ["--recipe=demo64"]):
        message = run(f"--outdir={runs}", f"--data={data}", *args, "--metrics=pr_inception_10", *dry, code=1)
        assert (
            "Error: metric pr_inception_10 needs at least 4 real images" in message
            and "few.zip has 3" in message
        )
    assert not runs.exists()


def test_what_is_computed_once_is_announced_with_its_time(tmp_path):
    data = write_dataset(tmp_path / "data.zip", n=24, size=64, class_names=NAMES)
    single = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *COMMON, "--metrics=fd_lite0_8", "-n"]
    announced = [line for line in run(*single).splitlines() if line.startswith("To compute: ")]
    assert len(announced) == 1 and announced[0].startswith(
        "To compute: 24 real images through lite0 for fd_lite0_8: about "
    )
    embedded = run(*single, "--class-embedding=auto")
    assert "To compute: class embeddings from 24 images through tf_efficientnet_lite0: about " in embedded
    of_stages = [
        line
        for line in run("--recipe=demo64", f"--data={data}", "-n").splitlines()
        if line.startswith("To compute: ")
    ]
    assert [line.split(": ")[1] for line in of_stages] == ["stage 16", "stage 16", "stage 32", "stage 64"]


def test_nothing_that_is_convenient_ends_a_run(tmp_path, monkeypatch):
    """Pictures, sheets, TensorBoard, the newest and the best network under their own names, notes for the
    report: all fail.
    """

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken(*args, **kwargs):
        raise RuntimeError("TensorBoard's own trouble")

    monkeypatch.setattr(images, "save_png", full)
    monkeypatch.setattr(run_folder, "replace_with_copy", full)
    monkeypatch.setattr(watch, "write_json", full)
    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", broken)
    monkeypatch.setattr(plots, "draw", broken)
    data = write_dataset(tmp_path / "data.zip", n=24, class_names=NAMES)
    with pytest.warns(UserWarning) as told:
        run(
            f"--outdir={tmp_path / 'runs'}", f"--data={data}", *COMMON, "--metrics=fd_lite0_8", "--kimg=0.016"
        )
    text = "\n".join(str(warning.message) for warning in told)
    for name in ("reals.png", "fakes_init.png", "fakes000000.png", "contact-sheet.png", "about.json"):
        assert f"{name} cannot be written: No space left on device; continuing without it" in text, (
            name,
            text,
        )
    for name in ("network-snapshot.pkl", "best_model.pkl"):
        assert f"{name} cannot be written" in text
    assert (
        "--tracker=tensorboard failed (TensorBoard's own trouble)" in text
        and "curves.png cannot be drawn" in text
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["outcome"] == "finished"
    assert (folder / "metric-fd_lite0_8.jsonl").is_file() and list(folder.glob("network-snapshot-*.pkl"))


def test_status_line_report_and_dry_run_tell_the_same_time(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "data.zip", n=24, class_names=NAMES)
    output = run(
        f"--outdir={tmp_path / 'runs'}",
        f"--data={data}",
        *COMMON,
        "--metrics=fd_lite0_8",
        "--kimg=0.08",
        "--tick=0.008",
        "--snap=3",
    )
    (folder,) = (tmp_path / "runs").iterdir()
    etas = re.findall(r"^tick .* eta (.+?)  +sec/kimg", output, re.MULTILINE)
    lines = (folder / "stats.jsonl").read_text().splitlines(keepends=True)
    assert len(etas) == len(lines) == 10 and etas[-1].strip() == "0s"
    for count in range(1, 11):  # as it was when the tick was printed
        (folder / "stats.jsonl").write_text("".join(lines[:count]))
        assert format_time(report.Run.read(folder).seconds_left) == etas[count - 1].strip()
    (folder / "stats.jsonl").write_text("".join(lines[:7]))
    assert f"Time: about {etas[6].strip()} left" in run(f"--resume={folder}", "-n")


def test_a_dry_run_refuses_values_and_files_that_the_run_refuses(tmp_path):
    data = write_dataset(tmp_path / "data.zip", n=24, size=64, class_names=NAMES)
    np.save(tmp_path / "seven.npy", np.zeros((7, 8), dtype=np.float32))
    (tmp_path / "text.pkl").write_text("no network")
    for args, stage in ((COMMON, ""), (["--recipe=demo64"], "stage 16: ")):
        for flag, message in (
            ("--grid=99x99x9", "--grid=99x99x9"),
            (f"--class-embedding={tmp_path}/none.npy", f"--class-embedding={tmp_path}/none.npy: file not"),
            (f"--class-embedding={tmp_path}/seven.npy", f"--class-embedding={tmp_path}/seven.npy has shape"),
            (f"--init-from={tmp_path}/text.pkl", str(tmp_path / "text.pkl")),
        ):
            command = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *args, flag]
            planned, refused = (run(*command, *more, code=1).splitlines() for more in (["-n"], []))
            assert planned[-1] == refused[-1] and len(planned) == 1, (planned, refused)
            assert planned[0].startswith(f"Error: {stage}{message}"), planned
    assert not (tmp_path / "runs").exists()


def test_a_resume_with_other_networks_is_refused_before_anything_else(tmp_path):
    """By --dry-run as by the run: one line that names the option, and the run folder stays as it was."""
    data = write_dataset(tmp_path / "data.zip", n=24, class_names=NAMES)
    other = write_dataset(tmp_path / "other.zip", n=23, class_names=NAMES)
    runs = tmp_path / "runs"
    run(f"--outdir={runs}", f"--data={data}", *COMMON, "--kimg=0.016")
    (folder,) = runs.iterdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for flags, began in (
        (["--cmax=8"], "--cmax=4"),
        (["--syn-layers=5"], "--syn-layers=4"),
        (["--z-dim=4", "--glr=0.1"], "--z-dim=8"),
        (["--cond=False"], "--cond=True"),
        (["--heads=sona", "--d-loss=bce"], "--heads=projection"),
        (["--proj-channels=8"], "--proj-channels=4"),
        ([f"--data={other}"], ""),
    ):
        planned, refused = (run(f"--resume={folder}", *flags, *more, code=1) for more in (["-n"], []))
        assert planned == refused and planned.count("\n") == 1, planned
        assert planned.startswith(f"Error: {flags[0]}"), planned
        assert (f": the run started with {began}, and" if began else " has changed since ") in planned
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "Run folder: " in run(f"--resume={folder}", "--glr=0.1", "--mirror=True", "-n")
    assert "Run folder: " in run(f"--resume={folder}", "--from-scratch", "--cmax=8", "-n")
