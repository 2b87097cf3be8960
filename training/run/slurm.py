# SPDX-License-Identifier: Apache-2.0
"""--slurm: train.py as a Slurm job that requeues itself until its run is finished.

submitit writes and submits the job, one task per process. Shortly before the time limit or a preemption it
gets SIGUSR2: the run saves and leaves, and the job is requeued. The run lies in a folder of this job, so that
no other run decides about it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from training.run_folder import FINISHED, RESTART, STATUS_FILE, recorded_outcome, run_folders

ROOT = Path(__file__).resolve().parents[2]  # of the project
SCRIPT = ROOT / "train.py"
WARNING_SECONDS = 300  # between the signal and the time limit
NO_DEADLINE = "1e9"  # as --restart_every: the same command resumes its own run


class Job:
    """train.py in each task of a job. It is pickled, and called in the job.

    Args:
        arguments: of train.py.
        outdir: the job's own folder is made in it.
    """

    def __init__(self, arguments: Sequence[str], outdir: str) -> None:
        self.arguments, self.outdir, self.script = list(arguments), outdir, str(SCRIPT)
        self.warned = False

    def __call__(self) -> int:
        """Train until the run ends or the job must end. Returns the exit code of train.py."""
        from submitit.helpers import TorchDistributedEnvironment

        group = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
        folder = Path(self.outdir, f"job-{job}")
        if is_finished(folder):
            print(f"job {job}: its run in {folder} is finished, nothing is left to do", flush=True)
            return 0
        code = self._train(folder)
        unfinished = self.warned and not is_finished(folder)
        if group.rank == 0 and (unfinished or RESTART in outcomes(folder)):
            print(f"job {job}: requeued, its run in {folder} is saved", flush=True)
            requeue(job)
        elif code not in (0, 130):
            raise SystemExit(code)
        return code

    def _train(self, folder: Path) -> int:
        command = [sys.executable, self.script, *self.arguments, f"--outdir={folder}"]
        if not any(a.replace("-", "_").startswith("__restart_every") for a in self.arguments):
            command.append(f"--restart_every={NO_DEADLINE}")
        before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
        process = subprocess.Popen(command)

        def stop(number: int, frame: FrameType | None) -> None:
            self.warned = self.warned or number == signal.SIGUSR2
            process.terminate()

        try:
            for number in before:
                signal.signal(number, stop)
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def requeue(job: str) -> None:
    """Requeue this job: scontrol queues it again, and the controller of a local one looks at the exit code.

    Raises:
        SystemExit: the job is local.
    """
    from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

    if "SLURM_JOB_ID" not in os.environ:
        raise SystemExit(LOCAL_REQUEUE_RETURN_CODE)
    subprocess.run(["scontrol", "requeue", job], check=True)


def is_finished(folder: Path) -> bool:
    """Whether the run in a job's folder is finished, or all stages of its recipe."""
    return outcomes(folder) == {FINISHED}


def outcomes(folder: Path) -> set[str | None]:
    """Outcomes of the runs in a job's folder, those of a recipe and its stages included."""
    runs = run_folders(str(folder)).values() if folder.is_dir() else ()
    stages = [stage for run in runs for stage in (run, *run.iterdir()) if stage.is_dir()]
    return {recorded_outcome(stage) for stage in stages if (stage / STATUS_FILE).is_file()}


def parse(text: str) -> dict[str, Any]:
    """The value of --slurm, "nodes=2,time=480,partition=gpu", as parameters of submitit.

    Raises:
        ValueError: one line.
    """
    known = {"nodes": "nodes", "time": "timeout_min", "cpus": "cpus_per_task", "mem": "slurm_mem"}
    parameters: dict[str, Any] = {"nodes": 1}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        if not separator or not key or not value:
            raise ValueError(f"--slurm={text}: {part!r} is not of the form KEY=VALUE")
        name = known.get(key, f"slurm_{key.replace('-', '_')}")
        if key in ("nodes", "time", "cpus"):
            if not value.isdecimal() or int(value) == 0:
                raise ValueError(f"--slurm={text}: {key} must be a whole number above 0")
            parameters[name] = int(value)
        else:
            parameters[name] = value
    return parameters


def submit(text: str, arguments: Sequence[str], outdir: str, gpus: int, cluster: str | None = None) -> str:
    """Submit train.py as a job.

    Args:
        text: the value of --slurm.
        arguments: of train.py, without --slurm.
        outdir: --outdir.
        gpus: processes on all nodes.
        cluster: for submitit: None = Slurm, "local" = processes of this machine, for tests; without `time`
            these end after two minutes.

    Returns:
        One line about the job.

    Raises:
        ValueError: one line: submitit or sbatch is missing, or sbatch refuses the job.
    """
    parameters = parse(text)
    nodes = parameters["nodes"]
    if gpus % nodes:
        raise ValueError(f"--gpus={gpus} cannot be divided among {nodes} nodes (--slurm={text})")
    try:
        import submitit
    except ImportError:
        raise ValueError("--slurm needs submitit: pip install submitit") from None
    if cluster is None and shutil.which("sbatch") is None:
        raise ValueError("--slurm: sbatch is not on PATH; give the command on a login node of the cluster")
    parameters |= {"tasks_per_node": gpus // nodes, "name": "stylesan-xl"}
    if cluster is None:
        parameters |= {"slurm_gpus_per_node": gpus // nodes, "slurm_signal_delay_s": WARNING_SECONDS}
        parameters.setdefault("timeout_min", 480)
    folder = Path(outdir).resolve()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["PYTHONPATH"] = path  # for unpickling, in the job
    try:
        executor = submitit.AutoExecutor(folder / "slurm-%j", cluster=cluster or "slurm")
        executor.update_parameters(**parameters)
        with contextlib.redirect_stderr(io.StringIO()):  # the exception has it too
            job = executor.submit(Job(arguments, str(folder)))
    except Exception as error:  # sbatch's own words, whatever submitit wraps them in
        lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
        raise ValueError(f"--slurm={text}: {lines[-1] if lines else error}") from None
    return f"Submitted job {job.job_id}: run in {folder}/job-{job.job_id}, output in {job.paths.folder}"
