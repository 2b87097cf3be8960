# SPDX-License-Identifier: Apache-2.0
"""Kills in a run of two processes: restarts resume the same folder and end with the same weights."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

import train
from dnnlib.locks import Lock
from tests import waiting
from tests.quick_processes import quick_environment
from tests.sources import ROOT
from tests.toy_data import make_zip
from tests.toy_runs import FLAGS, assert_equal_states, final_state
from torch_utils import checkpoint
from training import run_folder

pytestmark = [pytest.mark.e2e, pytest.mark.once]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--max-restarts=1"]
NAME = "00000-stylegan3-t-three16-gpus2-batch8"
TRAIN = [str(ROOT / "train.py"), "--cfg=stylegan3-t", "--gpus=2", "--cond=True", *FLAGS]
TRAIN += ["--kimg=0.2", "--tick=0.2", "--checkpoint-minutes=0", "--variety=0"]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=quick_environment(),
    )


def ranks(process: subprocess.Popen, run_dir: Path) -> list[psutil.Process]:
    """The two training processes; the first one holds the folder."""
    holder = Lock(run_dir / run_folder.WRITER_LOCK_FILE).last_holder()
    children = psutil.Process(process.pid).children()
    trainers = [p for p in children if "resource_tracker" not in " ".join(p.cmdline())]
    assert holder is not None and len(trainers) == 2, children
    return sorted(trainers, key=lambda p: p.pid != holder.pid)


def after_checkpoint(run_dir: Path, process: subprocess.Popen, nimg: int = 0) -> None:
    """Wait for a checkpoint of more than `nimg` images."""
    folder = run_folder.checkpoint_folder(run_dir)
    waiting.until(lambda: (checkpoint.newest_nimg(folder) or 0) > nimg, process)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_zip(tmp_path_factory.mktemp("data"), "three16", classes=3, count=24)


@pytest.fixture(scope="module")
def restarted(data, tmp_path_factory) -> Path:
    """A run by --gpus=2 whose process 0 was killed once."""
    outdir = tmp_path_factory.mktemp("restarted")
    run_dir, over = outdir / NAME, threading.Event()

    def kill_the_first() -> None:
        folder = run_folder.checkpoint_folder(run_dir)
        while not over.wait(0.02):
            if folder.exists() and checkpoint.newest_nimg(folder):
                holder = Lock(run_dir / run_folder.WRITER_LOCK_FILE).last_holder()
                assert holder is not None and holder.pid != os.getpid()
                return os.kill(holder.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_the_first)
    thread.start()
    try:
        result = CliRunner().invoke(train.main, [*TRAIN[1:], f"--data={data}", f"--outdir={outdir}"])
    finally:
        over.set()
        thread.join()
    output = result.output
    assert result.exit_code == 0, output
    line = "process 0 of 2 was ended by SIGKILL (out of memory?); restart 1 of 3 from the checkpoint of"
    for text in (output, (run_dir / run_folder.LOG_FILE).read_text()):
        assert sum(line in row for row in text.splitlines()) == 1 and "Traceback" not in text, text
    return run_dir


def test_restarts_by_the_launcher_and_by_torchrun_end_with_the_same_weights(restarted, data, tmp_path):
    """Kill a rank of torchrun, then torchrun itself: its ranks save and leave, and the launcher resumes."""
    command = [*TORCHRUN, *TRAIN, f"--data={data}"]
    process = start([*command, f"--outdir={tmp_path}"])
    run_dir = tmp_path / NAME
    after_checkpoint(run_dir, process)
    before = checkpoint.newest_nimg(run_folder.checkpoint_folder(run_dir)) or 0
    ranks(process, run_dir)[1].send_signal(signal.SIGKILL)
    after_checkpoint(run_dir, process, before)
    orphans = ranks(process, run_dir)
    process.send_signal(signal.SIGKILL)
    waiting.until(lambda: not any(p.is_running() for p in orphans), *(p.pid for p in orphans))
    waiting.finish(process)
    assert run_folder.recorded_outcome(run_dir) == run_folder.INTERRUPTED
    assert [p.name for p in tmp_path.iterdir()] == [NAME]  # the restart made no other folder
    result = CliRunner().invoke(train.main, ["--gpus=2", f"--resume={run_dir}"])
    assert result.exit_code == 0, result.output
    assert_equal_states(final_state(restarted), final_state(run_dir))
