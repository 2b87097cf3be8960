# SPDX-License-Identifier: Apache-2.0
"""--local-checkpoint: what is written there, and which checkpoint a run resumes from."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from torch_utils import checkpoint, distributed, launcher
from training import run_folder
from training.run import enter, local_copies


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run folder with a checkpoint at 8 images, and an empty local disk next to it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "disk").mkdir()
    save(run_folder.checkpoint_folder(folder), 8)
    return folder


def save(folder: Path, nimg: int) -> Path:
    return checkpoint.save(folder, nimg, {"x": torch.full((3,), float(nimg))})


def local(run_dir: Path) -> str:
    return str(run_dir.parent / "disk")


def copies(run_dir: Path) -> Path:
    place = local_copies.folder(local(run_dir), run_dir)
    assert place is not None
    return place


def newest(run_dir: Path) -> int | None:
    """Images shown at the checkpoint that the run resumes from."""
    local_copies.restore_newest(local(run_dir), run_dir)
    path = run_folder.newest_checkpoint(run_dir)
    return None if path is None else checkpoint.nimg_of(path)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_the_newest_checkpoint_alone_is_on_the_local_disk(run_dir):
    shared = run_folder.checkpoint_folder(run_dir)
    writer = checkpoint.Writer(shared, 2, lambda nimg: None, copies(run_dir))
    for nimg in (16, 24):
        writer.save(nimg, {"x": torch.zeros(3)})
    writer.wait()
    assert [path.name for path in copies(run_dir).iterdir()] == [checkpoint.latest(shared).name]
    assert len(list(shared.iterdir())) == 2


@pytest.mark.parametrize("harm", ["absent", "full"])
def test_a_local_disk_that_fails_is_a_warning(harm, run_dir, monkeypatch):
    shared, real = run_folder.checkpoint_folder(run_dir), os.fsync

    def full(descriptor: int) -> None:
        if f"{os.sep}disk{os.sep}" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    if harm == "absent":
        os.rmdir(local(run_dir))
    elif not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell the disks apart")
    else:
        monkeypatch.setattr(os, "fsync", full)
    writer = checkpoint.Writer(shared, 2, lambda nimg: None, copies(run_dir))
    reason = "No such file" if harm == "absent" else "No space left"
    with pytest.warns(UserWarning, match=f"no local copy of the checkpoint: .*{reason}"):
        writer.save(16, {"x": torch.zeros(3)})
        writer.wait()
    assert newest(run_dir) == 16
    assert not [path for path in run_dir.parent.glob("disk/*/*")]


def test_a_run_resumes_from_the_newest_intact_checkpoint(run_dir, capsys):
    assert newest(run_dir) == 8  # there is no copy yet
    save(copies(run_dir), 8)
    assert newest(run_dir) == 8 and capsys.readouterr().out == ""
    path = save(copies(run_dir), 16)
    assert newest(run_dir) == 16
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Copied the newer checkpoint {path} on ")
    damage(run_folder.newest_checkpoint(run_dir))  # the copy is intact
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest(run_dir) == 16
    damage(save(copies(run_dir), 24))
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest(run_dir) == 16


def test_lost_checkpoints_are_restored_before_the_folder_is_refused(run_dir):
    shutil.rmtree(run_folder.checkpoint_folder(run_dir))
    run_folder.record_first_checkpoint(run_dir, 8)
    save(copies(run_dir), 16)
    with pytest.raises(ValueError, match="has no usable checkpoint"), enter.entered(run_dir):
        pass
    with enter.entered(run_dir, local=local(run_dir)):
        assert newest(run_dir) == 16


def test_checkpoints_of_other_runs_are_ignored(run_dir):
    save(copies(run_dir), 16)
    other = Path(shutil.copytree(run_dir, run_dir.parent / "copy of the folder"))
    assert newest(other) == 8
    with enter.entered(run_dir, from_scratch=True, local=local(run_dir)):
        assert newest(run_dir) is None
    assert not os.listdir(local(run_dir))


def _resume_on_two_nodes(run_dir: Path) -> list[object]:
    distributed.init("cpu")
    os.environ["LOCAL_RANK"] = "0"  # each is the first process of its node
    disk = f"{local(run_dir)}{distributed.rank()}"
    local_copies.restore_newest(disk, run_dir)
    path = run_folder.newest_checkpoint(run_dir)
    digest = checkpoint.load_with_digest(path)[1]
    return distributed.all_gather_object((path.name, digest))


def test_the_newest_checkpoint_of_all_nodes_is_taken_by_all(run_dir):
    name = copies(run_dir).name
    for rank, nimg in ((0, 16), (1, 24)):
        disk = Path(f"{local(run_dir)}{rank}")
        disk.mkdir()
        save(disk / name, nimg)
    first, second = launcher.launch(_resume_on_two_nodes, 2, run_dir)
    assert first == second and first[0].startswith(f"checkpoint-{24:012d}")


def test_a_full_run_folder_is_an_error_in_all_processes(run_dir, monkeypatch):
    save(copies(run_dir), 16)

    def full(path: Path, folder: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "copy", full)
    with pytest.raises(OSError, match="No space left"):
        newest(run_dir)
    assert len(list(copies(run_dir).iterdir())) == 1
