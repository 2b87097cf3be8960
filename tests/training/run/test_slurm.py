# SPDX-License-Identifier: Apache-2.0
"""--slurm and the sbatch file: a job that is warned saves, requeues itself, resumes, and does so for its own
run only. Slurm's commands are stand-ins that run the job here.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import train
from tests import waiting
from tests.sources import ROOT
from training.run import slurm

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and scripts")

# sbatch starts the script, or refuses it; srun runs its command; scontrol requeues: the script runs again.
CLUSTER = """#!/bin/bash
export SLURM_JOB_ID=77 SLURM_JOB_NODELIST=localhost SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
export SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_GPUS_ON_NODE=1
case "$(basename "$0") $1" in
    sbatch*) for script; do :; done
        if grep -q -e "partition=nowhere" "$script"; then
            echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1; fi
        echo "$script" > "$CLUSTER/script"
        bash "$script" >> "$CLUSTER/output" 2>&1 < /dev/null & echo $! >> "$CLUSTER/batch"
        echo "Submitted batch job 77";;
    srun*) while [[ "$1" != torchrun && "$1" != */python* ]]; do shift; done; exec "$@";;
    torchrun*) while [[ "$1" != train.py ]]; do shift; done; shift; exec "$PYTHON" "$TRAIN" "$@";;
    "scontrol show") echo localhost;;
    "scontrol requeue") echo "$2" >> "$CLUSTER/requeued"
        setsid bash "$(cat "$CLUSTER/script")" >> "$CLUSTER/output" 2>&1 < /dev/null &
        echo $! >> "$CLUSTER/batch";;
esac
"""
# In the place of train.py: the first start trains until it is told to leave, the second to the end.
TRAIN = """
import json, os, pathlib, signal, sys
outdir = pathlib.Path(next(a for a in reversed(sys.argv) if a.startswith("--outdir=")).partition("=")[2])
run = outdir / "00000-toy"
run.mkdir(parents=True, exist_ok=True)
(run / "training_options.json").write_text("{}")
status = run / "status.json"
resumed = status.exists()
def end(outcome, code):
    status.write_text(json.dumps({"outcome": outcome, "nimg": 8}))
    sys.exit(code)
if resumed:
    end("finished", 0)
signal.signal(signal.SIGTERM, lambda *_: end("interrupted", 130))
(outdir / "pid").write_text(str(os.getpid()))
(outdir / "arguments").write_text(" ".join(sys.argv[1:]))
signal.pause()
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with a log of what the stand-ins did."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun", "scontrol", "torchrun"):
        path = programs / name
        path.write_text(CLUSTER)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    script = tmp_path / "fake_train.py"
    script.write_text(TRAIN)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", slurm.sys.executable)
    monkeypatch.setenv("TRAIN", str(script))
    monkeypatch.setenv("CLUSTER", str(tmp_path))
    monkeypatch.setattr(slurm, "SCRIPT", script)
    yield tmp_path
    for path in tmp_path.glob("runs/*/pid"):  # after a failure
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def outcome(folder: Path) -> str | None:
    path = folder / "00000-toy" / "status.json"
    return json.loads(path.read_text())["outcome"] if path.exists() and path.read_text() else None


def other_run(runs: Path) -> None:
    """A run of somebody else, which wants a restart."""
    run = runs / "job-76" / "00000-toy"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"outcome": "restart", "nimg": 8}')


def test_the_sbatch_file_requeues_its_own_unfinished_run(cluster, monkeypatch):
    runs, output = cluster / "runs", cluster / "output"
    other_run(runs)
    monkeypatch.setenv("RUNS", str(runs))
    script = ROOT / "tools" / "slurm" / "train.sbatch"
    slurm.subprocess.run(["sbatch", script], check=True, capture_output=True)
    waiting.until((runs / "job-77" / "arguments").exists)
    os.kill(int((cluster / "batch").read_text()), signal.SIGUSR1)
    waiting.until(lambda: outcome(runs / "job-77") == "finished")
    assert (cluster / "requeued").read_text() == "77\n"
    waiting.until(lambda: not running(cluster))
    slurm.subprocess.run(["sbatch", script], check=True, capture_output=True)  # requeued after the end
    waiting.until(lambda: "nothing is left to do" in output.read_text())
    assert (cluster / "requeued").read_text() == "77\n" and output.read_text().count("is saved") == 1


def running(cluster: Path) -> list[int]:
    """Ids of the batch scripts that run."""
    ids = [int(line) for line in (cluster / "batch").read_text().split()]
    return [pid for pid in ids if Path(f"/proc/{pid}/status").exists() and not is_zombie(pid)]


def is_zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def submit(runs: Path, *more: str):
    return CliRunner().invoke(
        train.main, [f"--outdir={runs}", "--gpus=1", "--slurm", "nodes=1,mem=4GB", "--batch=8", *more]
    )


def test_slurm_submits_a_job_that_requeues_itself(cluster):
    pytest.importorskip("submitit")
    runs = cluster / "runs"
    other_run(runs)
    result = submit(runs)
    assert result.exit_code == 0 and "Submitted job 77: run in " in result.output, result.output
    waiting.until((runs / "job-77" / "arguments").exists)
    arguments = (runs / "job-77" / "arguments").read_text().split()
    assert "--batch=8" in arguments and "nodes=1,mem=4GB" not in arguments
    assert arguments[-2:] == [f"--outdir={runs}/job-77", "--restart_every=1e9"]
    trainer = int((runs / "job-77" / "pid").read_text())
    os.kill(waiting.psutil.Process(trainer).ppid(), signal.SIGUSR2)
    waiting.until(lambda: outcome(runs / "job-77") == "finished")
    assert (cluster / "requeued").read_text() == "77\n"


def test_a_job_of_submitits_local_executor_is_preempted_requeued_and_finishes_in_its_folder(
    cluster, monkeypatch
):
    """submitit starts the tasks, and starts them again for its exit code. train.py is the stand-in above:

    a real one, killed and resumed, is in tests/e2e/test_restarts.py, and would cost 20 s of CPU here.
    """
    pytest.importorskip("submitit")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    runs = cluster / "runs"
    other_run(runs)
    line = slurm.submit("nodes=1,time=60", ["--batch=8"], str(runs), gpus=1, cluster="local")
    job = line.split()[2].rstrip(":")
    run = runs / f"job-{job}"
    assert line == f"Submitted job {job}: run in {run}, output in {runs}/slurm-{job}"
    waiting.until((run / "arguments").exists, int(job))
    first = waiting.psutil.Process(int((run / "pid").read_text())).ppid()
    os.kill(first, signal.SIGUSR2)  # as submitit's controller does before the time limit
    waiting.until(lambda: outcome(run) == "finished", int(job))
    waiting.until(lambda: not waiting.psutil.pid_exists(int(job)) or is_zombie(int(job)))
    output = next((runs / f"slurm-{job}").glob("*.out")).read_text()
    assert output.count(f"job {job}: requeued, its run in {run} is saved") == 1
    assert [path.name for path in run.glob("0*")] == ["00000-toy"]
    assert outcome(runs / "job-76") == "restart" and not (cluster / "requeued").exists()


def test_a_requeue_after_the_end_and_a_cancelled_job(cluster, monkeypatch, capsys):
    submitit_helpers = pytest.importorskip("submitit.helpers")

    class Group:
        rank = 0

        def export(self, **options: bool) -> "Group":
            return self

    monkeypatch.setattr(submitit_helpers, "TorchDistributedEnvironment", Group)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    job = slurm.Job([], str(cluster))
    run = cluster / "job-77" / "00000-toy"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"outcome": "finished", "nimg": 8}')
    assert job() == 0
    line = f"job 77: its run in {cluster}/job-77 is finished, nothing is left to do\n"
    assert capsys.readouterr().out == line
    (run / "status.json").write_text('{"outcome": "interrupted", "nimg": 8}')
    monkeypatch.setattr(job, "_train", lambda folder: 130)  # scancel, or Ctrl-C: no warning came before
    assert job() == 130 and not (cluster / "requeued").exists()
    (run / "status.json").write_text('{"outcome": "restart", "nimg": 8}')
    asked: list[list[str]] = []
    monkeypatch.setattr(slurm.subprocess, "run", lambda command, check: asked.append(command))
    monkeypatch.setattr(job, "_train", lambda folder: 3)
    assert job() == 3 and asked == [["scontrol", "requeue", "77"]]
    (run / "status.json").write_text('{"outcome": "interrupted"}')  # a recipe, between two stages
    (run / "stage-016x016").mkdir()
    (run / "stage-016x016" / "status.json").write_text('{"outcome": "finished", "nimg": 8}')
    job.warned = True
    monkeypatch.setattr(job, "_train", lambda folder: 130)
    assert job() == 130 and len(asked) == 2
    shutil.rmtree(run / "stage-016x016")
    (run / "status.json").unlink()  # before the first step
    assert job() == 130 and len(asked) == 3
    (run / "status.json").write_text('{"outcome": "finished", "nimg": 8}')
    with monkeypatch.context() as patch:
        finished = iter([False, True])
        patch.setattr(slurm, "is_finished", lambda folder: next(finished))
        assert job() == 130 and len(asked) == 3, "the run has finished after the warning"
    job.warned = False
    (run / "status.json").unlink()
    monkeypatch.setattr(job, "_train", lambda folder: 1)
    with pytest.raises(SystemExit):
        job()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nodes=two", "--slurm=nodes=two: nodes must be a whole number above 0"),
        ("gpu", "--slurm=gpu: 'gpu' is not of the form KEY=VALUE"),
        ("nodes=3", "--gpus=1 cannot be divided among 3 nodes (--slurm=nodes=3)"),
        ("partition=nowhere", "invalid partition specified: nowhere"),
    ],
)
def test_a_mistake_is_one_line(cluster, options, message):
    if "partition" in options:
        pytest.importorskip("submitit")
    result = submit(cluster / "runs", f"--slurm={options}")
    assert result.exit_code == 1 and message in result.output, result.output
    assert result.output.count("\n") == 1


def test_without_sbatch_or_submitit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(slurm.sys.modules, "submitit", None)
    assert "--slurm needs submitit: pip install" in submit(tmp_path).output
    monkeypatch.setitem(slurm.sys.modules, "submitit", slurm)
    assert "Error: --slurm: sbatch is not on PATH" in submit(tmp_path).output
    result = CliRunner().invoke(train.main, ["--gpus=1", "--slurm=nodes=1"])
    assert "--slurm needs --outdir" in result.output
