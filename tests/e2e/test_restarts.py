# SPDX-License-Identifier: Apache-2.0
"""Kills in a run of two processes: restarts resume the same folder and end with the same weights."""

import signal
from pathlib import Path

import psutil
import pytest
import torch.distributed.run

from dnnlib.locks import Lock
from tests import waiting
from tests.quick_processes import Script, quick_environment
from tests.sources import ROOT
from tests.toy_data import make_zip
from tests.toy_runs import FLAGS, assert_equal_states, final_state
from torch_utils import checkpoint
from training import run_folder

pytestmark = [pytest.mark.e2e, pytest.mark.once]
TORCHRUN = ["--nproc-per-node=2", "--standalone", "--max-restarts=1"]
NAME = "00000-stylegan3-t-three16-gpus2-batch8"
TRAIN = [str(ROOT / "train.py"), "--cfg=stylegan3-t", "--gpus=2", "--cond=True", *FLAGS]
TRAIN += ["--kimg=0.16", "--tick=0.16", "--checkpoint-minutes=0", "--variety=0"]


def torchrun(arguments: list[str]) -> Script:
    return Script(torch.distributed.run.__file__, [*TORCHRUN, *TRAIN, *arguments], env=quick_environment())


def train(*arguments: str) -> Script:
    """The same without torchrun."""
    return Script(TRAIN[0], [*TRAIN[1:], *arguments], env=quick_environment(), fork=True)


def first_rank(run_dir: Path) -> psutil.Process:
    """The training process that holds the folder."""
    holder = Lock(run_dir / run_folder.WRITER_LOCK_FILE).last_holder()
    assert holder is not None
    return psutil.Process(holder.pid)


def ranks(process: Script, run_dir: Path) -> list[psutil.Process]:
    """The two training processes of torchrun."""
    children = psutil.Process(process.pid).children()
    trainers = [p for p in children if "resource_tracker" not in " ".join(p.cmdline())]
    assert len(trainers) == 2, children
    return sorted(trainers, key=lambda p: p != first_rank(run_dir))


def after_checkpoint(run_dir: Path, process: Script, nimg: int = 0) -> None:
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
    process = train(f"--data={data}", f"--outdir={outdir}")
    after_checkpoint(outdir / NAME, process)
    first_rank(outdir / NAME).send_signal(signal.SIGKILL)
    ((output, _),) = waiting.finish(process)
    assert process.returncode == 0, output
    line = "process 0 of 2 was ended by SIGKILL (out of memory?); restart 1 of 3 from the checkpoint of"
    for text in (output, (outdir / NAME / run_folder.LOG_FILE).read_text()):
        assert sum(line in row for row in text.splitlines()) == 1 and "Traceback" not in text, text
    return outdir / NAME


def test_restarts_by_the_launcher_and_by_torchrun_end_with_the_same_weights(restarted, data, tmp_path):
    """Kill a rank of torchrun, then torchrun itself: its ranks save and leave, and the launcher resumes."""
    process = torchrun([f"--data={data}", f"--outdir={tmp_path}"])
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
    process = train(f"--data={data}", f"--outdir={tmp_path}", f"--resume={run_dir}")
    ((output, _),) = waiting.finish(process)
    assert process.returncode == 0, output
    assert_equal_states(final_state(restarted), final_state(run_dir))
