# SPDX-License-Identifier: Apache-2.0
"""train.py where things go wrong: disks that are away, damaged files, a second process, file systems without
locks, NaN, no memory.
"""

import errno
import fcntl
import fnmatch
import itertools
import json
import multiprocessing
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import train
from dnnlib import files
from tests import waiting
from tests.toy_data import make_zip
from tests.toy_runs import FLAGS, assert_equal_states, command_line, config, final_state, train_here
from torch_utils import checkpoint
from training import launch, loop, run_folder
from training.networks import stems
from training.run.enter import RunLock

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def data(toy_zip) -> str:
    return toy_zip


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A finished run of two ticks with two checkpoints."""
    outdir = tmp_path_factory.mktemp("runs")
    result = invoke(*command_line(outdir, data))
    assert result.exit_code == 0, result.output
    return next(outdir.iterdir())


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))


def invoke(*arguments: str):
    result = CliRunner().invoke(train.main, [*arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        result.output,
        result.exception,
    )
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != run_folder.LOG_FILE
    }


def the_error(result) -> str:
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1
    return line


def checkpoints_fail(monkeypatch, times: int) -> None:
    """Opening a checkpoint fails so many times with EIO."""
    failures = iter(range(times))

    def faulty(path, *args, **kwargs):
        if str(path).endswith(".pt") and next(failures, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(path, *args, **kwargs)

    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(checkpoint, "open", faulty, raising=False)


def test_a_disk_that_is_away_stops_a_resume_and_changes_nothing(run_dir, monkeypatch):
    before, state = contents(run_dir), final_state(run_dir)
    checkpoints_fail(monkeypatch, 10**6)
    line = the_error(invoke(f"--resume={run_dir}", "--kimg=0.048"))
    assert "cannot be read (Input/output error" in line and ".pt" in line and contents(run_dir) == before
    checkpoints_fail(monkeypatch, 6)
    result = invoke(f"--resume={run_dir}", "--kimg=0.048")
    assert result.exit_code == 0 and "retrying" in result.output, result.output
    lines = run_folder.read_jsonl(run_dir / run_folder.STATS_FILE)
    assert [line["kimg"] for line in lines] == [0.016, 0.032, 0.048] and final_state(run_dir)["progress"][
        "nimg"
    ] == 48 > state["progress"]["nimg"]


def test_a_resume_that_finds_other_data_records_nothing(run_dir, data, tmp_path):
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / "images")
    index = tmp_path / "images" / "dataset.json"
    index.write_text(index.read_text() + " ")
    before = contents(run_dir)
    line = the_error(invoke(f"--resume={run_dir}", f"--data={tmp_path / 'images'}", "--kimg=0.048"))
    assert "has changed since" in line and contents(run_dir) == before


def test_another_outdir_is_refused_with_a_run_to_resume(run_dir, tmp_path):
    before = contents(run_dir)
    line = the_error(invoke(f"--resume={run_dir}", f"--outdir={tmp_path / 'other'}", "--kimg=0.048"))
    assert line.startswith(f"Error: --outdir={tmp_path / 'other'} has no effect: --resume={run_dir} goes on")
    assert contents(run_dir) == before and not (tmp_path / "other").exists()
    assert invoke(f"--resume={run_dir}", f"--outdir={run_dir.parent}", "--dry-run").exit_code == 0


@pytest.mark.parametrize("harm", ["damaged", "gone", "folder gone"])
def test_lost_checkpoints_start_nothing_anew_unless_asked(harm, run_dir):
    for path in list(run_folder.checkpoint_folder(run_dir).iterdir()):
        path.write_bytes(b"zero") if harm == "damaged" else path.unlink()
    if harm == "folder gone":
        run_folder.checkpoint_folder(run_dir).rmdir()
    before = contents(run_dir)
    line = the_error(invoke(f"--resume={run_dir}", "--kimg=0.016"))
    assert "--from-scratch" in line and str(run_dir) in line and contents(run_dir) == before


def test_from_scratch_puts_away_what_there_is(run_dir):
    before = contents(run_dir)
    result = invoke(f"--resume={run_dir}", "--kimg=0.016", "--from-scratch")
    assert result.exit_code == 0 and "earlier-1" in result.output, result.output
    assert [x["kimg"] for x in run_folder.read_jsonl(run_dir / run_folder.STATS_FILE)] == [0.016]
    assert final_state(run_dir)["progress"]["nimg"] == 16
    put_away = contents(run_dir / "earlier-1")
    assert {name: content for name, content in before.items() if not name.startswith(".lock")} == put_away
    assert (
        invoke(f"--resume={run_dir}", "--kimg=0.024").exit_code == 0
    )  # goes on: --from-scratch was for once
    assert final_state(run_dir)["progress"]["nimg"] == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outdir={tmp}", "--cfg=stylegan3-t"], "--from-scratch needs --resume=RUN_DIR"),
        (["--resume={tmp}"], "--from-scratch with the folder of a recipe needs --stages"),
        (["--resume={tmp}", "--stages=8", "--restart_every=60"], "would discard the run at every restart"),
    ],
)
def test_from_scratch_is_refused_where_it_means_too_much(arguments, message, tmp_path):
    (tmp_path / run_folder.RECIPE_FILE).write_text("{}")
    assert message in the_error(invoke(*(a.format(tmp=tmp_path) for a in arguments), "--from-scratch"))


def test_damaged_bookkeeping_is_set_aside_and_the_run_goes_on(run_dir, tmp_path):
    metric = run_folder.metric_file(run_dir, "fd_lite0_4")
    harm = {
        run_dir / run_folder.STATS_FILE: (run_dir / run_folder.STATS_FILE).read_bytes()
        + b"null\n5\n\xff\x00\n",
        run_dir / run_folder.ALARMS_FILE: b'"garbage"\n{"kimg": "x"}\n',
        metric: b'{"kimg": 0.016, "results": {"fd_lite0_4": 1.0}}\ngarbage\n',
        run_dir / run_folder.STATUS_FILE: b"5",
        run_dir / run_folder.ABOUT_FILE: b"\xff\xfe",
    }
    for path, content in harm.items():
        path.write_bytes(content)
    result = invoke(f"--resume={run_dir}", "--kimg=0.048")
    assert result.exit_code == 0, result.output
    for path, content in harm.items():
        assert path.with_name(f"{path.name}.damaged").read_bytes() == content
        for text in (result.output, (run_dir / run_folder.LOG_FILE).read_text()):
            assert any(line.startswith("WARNING: ") and str(path) in line for line in text.splitlines()), path
    assert [x["kimg"] for x in run_folder.read_jsonl(run_dir / run_folder.STATS_FILE)] == [
        0.016,
        0.032,
        0.048,
    ]
    assert run_folder.recorded_outcome(run_dir) == run_folder.FINISHED and run_folder.read_json(
        run_dir / run_folder.ABOUT_FILE
    )
    assert [x["kimg"] for x in run_folder.read_jsonl(metric)] == [0.016]


def hold(run_dir: Path, writer: bool, held: Any, over: Any) -> None:
    lock = RunLock(run_dir, writer=writer)
    held.set()
    over.wait()
    lock.release()


@pytest.mark.parametrize("writer", [False, True])
def test_a_second_process_touches_nothing(writer, run_dir):
    """The first may be the launching process, or the one that writes and has outlived it."""
    context = multiprocessing.get_context("spawn")
    held, over = context.Event(), context.Event()
    first = context.Process(target=hold, args=(run_dir, writer, held, over))
    first.start()
    waiting.until(held.is_set, first)
    before = contents(run_dir)
    log = (run_dir / run_folder.LOG_FILE).read_bytes()
    line = the_error(invoke(f"--resume={run_dir}", "--kimg=0.5", "--glr=0.1"))
    assert "in use by another training process" in line and f"process {first.pid} on " in line
    assert contents(run_dir) == before and (run_dir / run_folder.LOG_FILE).read_bytes() == log
    over.set()
    waiting.join(first)


def test_a_second_process_is_kept_out_while_the_first_starts_others(run_dir, monkeypatch):
    """With --gpus=2 the writing process needs seconds until it is there; the launching one holds the folder
    meanwhile.
    """
    real = launch.launcher.launch
    seen = []

    def slow(fn, *args, **options_of_launch):
        monkeypatch.setattr(launch.launcher, "launch", real)
        options = (run_dir / run_folder.OPTIONS_FILE).read_bytes()
        seen.append(the_error(invoke(f"--resume={run_dir}", "--kimg=5")))
        assert (run_dir / run_folder.OPTIONS_FILE).read_bytes() == options
        return real(fn, *args, **options_of_launch)

    monkeypatch.setattr(launch.launcher, "launch", slow)
    result = invoke(f"--resume={run_dir}", "--kimg=0.04")
    assert result.exit_code == 0 and "in use by another training process" in seen[0], result.output
    assert final_state(run_dir)["progress"]["nimg"] == 40
    lock = RunLock(run_dir)  # all let go
    lock.release()


def test_without_locks_training_goes_on_with_a_warning(data, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    result = invoke(
        f"--outdir={tmp_path}",
        f"--data={data}",
        "--cfg=stylegan3-t",
        "--gpus=1",
        "--cond=True",
        *FLAGS,
        "--kimg=0.008",
    )
    (run_dir,) = tmp_path.iterdir()
    assert (
        result.exit_code == 0 and f"the file system of {run_dir} does not support locks" in result.output
    ), result.output
    assert final_state(run_dir)["progress"]["nimg"] == 8


def test_a_start_removes_what_killed_processes_left(run_dir):
    here, elsewhere = files.owner_name(2**22 + 1), files.owner_name(7, "another-machine")
    (run_dir / run_folder.WRITER_LOCK_FILE).write_text(
        "process 7 on another-machine"
    )  # who was here last, and was killed
    left = [
        *(run_dir / f".network-snapshot-000001.pkl.{owner}-abcd1234.tmp" for owner in (here, elsewhere)),
        run_dir / f".{run_folder.BEST_NETWORK}.{here}-link.tmp",
        run_folder.checkpoint_folder(run_dir) / f".checkpoint-000000000064.{elsewhere}-x.tmp",
        run_dir / run_folder.CONTACT_FOLDER / f".000000064.png.{here}-abcd1234.tmp",
        run_dir / ".network-snapshot-000002.pkl.ab12cd34.tmp",  # of version 0.1, as the next two
        run_dir / ".best_model.pkl.4711",
        run_folder.checkpoint_folder(run_dir) / ".checkpoint-000000000064-4711.tmp",
    ]
    live = run_dir / f".sheet.png.{files.owner_name()}-abcd1234.tmp"
    for path in (*left, live):
        path.write_bytes(b"x")
    assert invoke(f"--resume={run_dir}").exit_code == 0
    assert [p for p in (*left, live) if p.exists()] == [live]
    assert [p for p in run_dir.rglob(".*") if p.name.endswith(".tmp")] == [live]


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only_disk(descriptor):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


NAN = "Error: discriminator: step 1, at 8 images: 'discriminators.*' is not finite. "


@pytest.mark.parametrize(
    ("name", "ending", "saved"),
    [
        ("nan", NAN + "There is no checkpoint yet: start again at a lower --glr/--dlr", False),
        (
            "nan",
            NAN + "Nothing was overwritten: resume from the last checkpoint, of 8 images, with --resume=*",
            True,
        ),
        ("full disk", "Error: *No space left on device*", False),
        ("read-only disk", "Error: *Read-only file system*", False),
        ("memory", "Error: out of memory on cpu: lower --batch-gpu*", False),
        ("timeout", "Error: the others did not answer", False),
        ("interrupt", "Stopped by the user (KeyboardInterrupt)", False),
        ("fault", "Error: ZeroDivisionError: *", True),
    ],
)
def test_what_ends_a_run_is_in_its_log(name, ending, saved, data, tmp_path, monkeypatch):
    real = loop.one_step

    def second_step(cfg, state, *rest):
        if state.progress.step == 0:
            return real(cfg, state, *rest)
        if name == "nan":
            with torch.no_grad():
                next(iter(state.d_params.values())).fill_(float("nan"))
            return real(cfg, state, *rest)
        if name == "full disk":
            monkeypatch.setattr(os, "fsync", full_disk)
            return real(cfg, state, *rest)
        if name == "read-only disk":
            monkeypatch.setattr(os, "fsync", read_only_disk)
            return real(cfg, state, *rest)
        raise {
            "memory": MemoryError(),
            "timeout": TimeoutError("the others did not answer"),
            "interrupt": KeyboardInterrupt(),
        }.get(name, ZeroDivisionError("of the program"))

    monkeypatch.setattr(loop, "one_step", second_step)
    command = command_line(tmp_path, data)
    result = CliRunner().invoke(
        train.main, [*command, "--checkpoint-minutes=0", "--snap=1"] if saved else command
    )
    (run_dir,) = tmp_path.iterdir()
    log = (run_dir / run_folder.LOG_FILE).read_text()
    assert any(fnmatch.fnmatch(line.partition(" ")[2], ending) for line in log.splitlines()), log
    if name == "fault":
        assert "Traceback" in log and "of the program" in log
    elif name != "interrupt":
        assert the_error(result) in log
    assert run_folder.recorded_outcome(run_dir) is None
    assert run_folder.has_checkpoint(run_dir) == saved


def test_processes_that_decode_resume_the_run_of_threads(data, tmp_path, capsys):
    options = {"data__workers": 2, "data__cache_mb": 0, "run__tick": 0.008}
    train_here(config(data, **options, run__kimg=0.032), tmp_path / "threads")
    for kimg in (0.016, 0.032):
        cfg = config(data, **options, run__kimg=kimg, data__workers_kind="processes")
        train_here(cfg, tmp_path / "processes")
    assert "--workers-kind" not in capsys.readouterr().out
    assert_equal_states(final_state(tmp_path / "processes"), final_state(tmp_path / "threads"))
    train_here(config(data, data__workers_kind="processes", run__kimg=0.008), tmp_path / "cached")
    assert "--workers-kind=processes: all images fit in --cache-mb" in capsys.readouterr().out


def test_a_damaged_lineage_is_that_of_the_checkpoint(data, tmp_path):
    train_here(config(data, run__kimg=0.008), tmp_path / "stem")
    data32 = make_zip(tmp_path, "three32", classes=3, count=24, resolution=32)
    head = {
        "generator__superres": True,
        "generator__path_stem": str(tmp_path / "stem"),
        "generator__head_layers": 4,
        "run__tick": 0.008,
    }
    for name, kimg in (("whole", 0.016), ("hurt", 0.008)):
        train_here(config(data32, **head, run__kimg=kimg), tmp_path / name)
    path = tmp_path / "hurt" / run_folder.LINEAGE_FILE
    recorded = json.loads(path.read_text())
    (tmp_path / "stem" / run_folder.NEWEST_NETWORK).rename(tmp_path / "moved.pkl")
    for damage in (b"\xff", b"null", b'{"stems": 5}', None):
        path.unlink() if damage is None else path.write_bytes(damage)
        lineage = stems.resumed_lineage(tmp_path / "hurt")
        assert damage is None or vars(lineage) == recorded
        if damage != b"null":
            continue
        train_here(config(data32, **head, run__kimg=0.016), tmp_path / "hurt")
        assert (
            json.loads(path.read_text()) == recorded
            and path.with_name(f"{path.name}.damaged").read_bytes() == damage
        )
        assert_equal_states(final_state(tmp_path / "hurt"), final_state(tmp_path / "whole"))


def test_a_vanished_run_folder_is_not_made_anew(data, tmp_path, monkeypatch):
    real, away = loop.one_step, tmp_path / "away"

    def second_step(cfg, state, *rest):
        if state.progress.step == 1:
            next((tmp_path / "runs").iterdir()).rename(away)
        return real(cfg, state, *rest)

    monkeypatch.setattr(loop, "one_step", second_step)
    line = the_error(invoke(*command_line(tmp_path / "runs", data), "--checkpoint-minutes=0"))
    assert "is gone (moved, removed, or its disk is not mounted)" in line and "at 16 images" in line
    assert not list((tmp_path / "runs").iterdir()) and (away / run_folder.OPTIONS_FILE).exists()


def test_jumps_of_the_clock_change_nothing(finished, data, tmp_path, monkeypatch):
    jumps = itertools.cycle((0.0, -1e9, 1e9))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    result = invoke(*command_line(tmp_path / "runs", data))
    assert result.exit_code == 0, result.output
    assert_equal_states(final_state(next((tmp_path / "runs").iterdir())), final_state(finished))


def test_a_slow_disk_delays_the_next_checkpoint_alone(data, tmp_path, monkeypatch):
    """The first checkpoint is not written before the second step is done."""
    real, fsync, trained = loop.one_step, os.fsync, threading.Event()

    def step(cfg, state, *rest):
        real(cfg, state, *rest)
        if state.progress.step == 2:
            trained.set()

    def slow(descriptor: int) -> None:
        if threading.current_thread().name == "checkpoint":
            trained.wait()
        fsync(descriptor)

    monkeypatch.setattr(loop, "one_step", step)
    monkeypatch.setattr(os, "fsync", slow)
    result = invoke(*command_line(tmp_path, data), "--checkpoint-minutes=0", "--kimg=0.016", "--tick=1")
    (run_dir,) = tmp_path.iterdir()
    assert result.exit_code == 0 and trained.is_set(), result.output
    assert final_state(run_dir)["progress"]["nimg"] == 16


def test_a_run_resumes_from_the_local_copy_of_a_lost_checkpoint(finished, data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*command_line(tmp_path / "runs", data), f"--local-checkpoint={disk}"]
    assert invoke(*command, "--restart_every=0").exit_code == 3
    (run_dir,) = (tmp_path / "runs").iterdir()
    (copy,), (lost,) = disk.glob("*/*"), run_folder.checkpoint_folder(run_dir).iterdir()
    assert copy.name == lost.name and copy.read_bytes() == lost.read_bytes()
    lost.write_bytes(b"cut")
    result = invoke(f"--resume={run_dir}", "--restart_every=1e9")
    assert result.exit_code == 0 and "Copied the newer checkpoint" in result.output, result.output
    assert_equal_states(final_state(run_dir), final_state(finished))
    assert not list(disk.iterdir())  # the run is finished
