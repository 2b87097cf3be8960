# SPDX-License-Identifier: Apache-2.0
"""Temporaries and their owners, and reading from a disk that is away for a moment."""

import errno
import os
import subprocess
import sys

import pytest

from dnnlib import files, util


def test_temporaries_name_their_process_and_take_long_names(tmp_path):
    for name in ("network-snapshot-000001.pkl", "x" * 250, "ü" * 120):
        with util.atomic_write(tmp_path / name) as f:
            f.write(b"x")
            (temporary,) = tmp_path.iterdir()
            match = files._TEMPORARY.fullmatch(temporary.name)
            assert match["owner"] == files.owner_name() == files.owner_name(os.getpid(), os.uname().nodename)
            assert name.startswith(match["target"])
        (tmp_path / name).unlink()


def test_only_temporaries_of_processes_that_are_gone_are_removed(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    gone, elsewhere = int(child.stdout), files.owner_name(7, "another machine")
    kept = {
        f".a.pkl.{files.owner_name()}-abcd1234.tmp",
        f".a.pkl.{files.owner_name(os.getppid())}-abcd1234.tmp",
        f".a.pkl.{files.owner_name(8, 'another machine')}-abcd1234.tmp",
        ".hidden", "a.tmp", ".a.tmp", "checkpoint-000000000001.tmp",
        f"a.pkl.{files.owner_name(gone)}-abcd1234.tmp",
    }  # fmt: skip
    removed = {
        f".a.pkl.{files.owner_name(gone)}-abcd1234.tmp",
        f".b.json.{elsewhere}-x.tmp",
        f".c.{files.owner_name(2**30)}-link.tmp",
    }
    of_old = {
        ".network-snapshot-000001.pkl.k3_9abcd.tmp",
        ".checkpoint-000000000016-4711.tmp",
        ".best_model.pkl.4711",
    }
    for name in kept | removed | of_old:
        (tmp_path / name).touch()
    assert {p.name for p in files.remove_temporaries(tmp_path, [elsewhere])} == removed
    assert {p.name for p in files.remove_temporaries(tmp_path, old=True)} == of_old
    assert {p.name for p in tmp_path.iterdir()} == kept
    assert files.remove_temporaries(tmp_path / "none") == []


def failing(times, error):
    left = iter(range(times))

    def action():
        if next(left, None) is not None:
            raise OSError(error, os.strerror(error))
        return "read"

    return action


@pytest.fixture
def pauses(monkeypatch):
    noted: list[float] = []
    monkeypatch.setattr(files.time, "sleep", noted.append)
    return noted


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO])
def test_an_io_error_is_waited_for(error, pauses, capsys):
    assert files.retry_io(failing(6, error), "some file") == "read"
    assert pauses == list(files.PAUSES) and len(pauses) == 6 and pauses == sorted(pauses)
    assert capsys.readouterr().err.count("some file: ") == 6
    with pytest.raises(OSError, match=r"after 7 attempts: 'some file") as caught:
        files.retry_io(failing(7, error), "some file")
    assert caught.value.errno == error


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR])
def test_what_waiting_does_not_cure_fails_at_once(error, pauses):
    with pytest.raises(OSError):
        files.retry_io(failing(1, error), "some file")
    assert pauses == []


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left on device: 'some file'"), files.names_file("some file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="'other'"), files.names_file("some file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "other")
