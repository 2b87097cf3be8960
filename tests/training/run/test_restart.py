# SPDX-License-Identifier: Apache-2.0
"""Which failures restart a run, and in which folder a job that torchrun restarts finds itself."""

import click
import pytest

from torch_utils import distributed, launcher
from training import run_folder
from training.run import restart


def new_checkpoint(run_dir, nimg: int) -> None:
    run_folder.checkpoint_folder(run_dir).mkdir(exist_ok=True)
    (run_folder.checkpoint_folder(run_dir) / f"checkpoint-{nimg:012d}-{'0' * 16}.pt").touch()


DIED = launcher.ProcessDied("process 1 of 2 was ended by SIGKILL")


def test_a_killed_process_restarts_a_limited_number_of_times(tmp_path, capsys):
    restarts = restart.Restarts(tmp_path, 2)
    assert restarts(DIED, 0)
    new_checkpoint(tmp_path, 800)
    assert restarts(DIED, 1) and not restarts(DIED, 2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("process 1 of 2 was ended by SIGKILL; restart 1 of 2 from image 0")
    assert second.endswith("restart 2 of 2 from the checkpoint of 800 images")
    log = (tmp_path / run_folder.LOG_FILE).read_text().splitlines()
    assert [line.partition(" ")[2] for line in log] == [first, second]


def test_an_exception_restarts_only_after_progress(tmp_path):
    restarts = restart.Restarts(tmp_path, 9)
    assert not restarts(RuntimeError("CUDA error"), 0)
    new_checkpoint(tmp_path, 800)
    assert restarts(RuntimeError("CUDA error"), 0)
    assert not restarts(RuntimeError("CUDA error"), 1)  # it comes back


@pytest.mark.parametrize("mistake", [ValueError("--batch=7"), click.ClickException("--batch=7")])
def test_a_mistake_never_restarts(mistake, tmp_path):
    restarts = restart.Restarts(tmp_path, 9)
    new_checkpoint(tmp_path, 800)
    assert not restarts(mistake, 0)


def test_a_restarted_job_finds_its_folder_and_a_new_command_does_not(tmp_path, monkeypatch):
    def agents(*names):
        monkeypatch.setattr(distributed, "agent", lambda: names[0] if names else None)
        monkeypatch.setattr(distributed, "all_gather_object", lambda _: list(names))

    ours, other = tmp_path / "00001-run", tmp_path / "00002-other"
    for folder in (tmp_path / "00000-run", ours, other):
        folder.mkdir()
    agents("a", "a", "b", "b")
    assert restart.folder_of_job(str(tmp_path), "run") is None and not restart.is_of_job(ours)
    restart.note_job(ours)
    restart.note_job(other)
    assert restart.folder_of_job(str(tmp_path), "run") == ours and restart.is_of_job(ours)
    agents("c", "b")  # a machine was replaced
    assert restart.folder_of_job(str(tmp_path), "run") == ours
    agents("c", "d")  # a new command
    assert restart.folder_of_job(str(tmp_path), "run") is None and not restart.is_of_job(ours)
    agents()  # without torchrun
    restart.note_job(tmp_path / "00000-run")
    assert not (tmp_path / "00000-run" / run_folder.JOB_FILE).exists()
    assert restart.folder_of_job(str(tmp_path), "run") is None


def test_a_job_whose_machines_are_replaced_one_after_another_keeps_its_folder(tmp_path, monkeypatch):
    """With --nnodes=2:4, torchrun admits a machine that comes back, or a new one, at each restart."""
    ours = tmp_path / "00000-run"
    ours.mkdir()

    def start(*agents: str) -> bool:
        """Whether every process finds the folder, whichever agent started it."""
        found = set()
        for agent in agents:
            monkeypatch.setattr(distributed, "agent", lambda agent=agent: agent)
            monkeypatch.setattr(distributed, "all_gather_object", lambda _: list(agents))
            found.add(restart.folder_of_job(str(tmp_path), "run"))
            found.add(ours if restart.is_of_job(ours) else None)
        if found == {ours}:
            restart.note_job(ours)
        return found == {ours}

    run_folder.write_job(ours, {"a:1", "b:1"})
    assert start("a:1")  # b is gone
    assert start("a:1", "b:2")  # it comes back, with a new torchrun
    assert start("b:2", "c:1")  # a is gone, c joins
    assert start("c:1", "a:2", "b:2")
    assert not start("a:1", "b:1")  # a command with none of those that remain
    assert run_folder.job_agents(ours) == {"a:2", "b:2", "c:1"}
