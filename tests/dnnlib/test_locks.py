# SPDX-License-Identifier: Apache-2.0
"""Locks between processes: held, waited for, freed by a kill, and missing."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib import locks, util

ROOT = Path(util.__file__).resolve().parent.parent
HOLD = "import sys; from dnnlib.locks import Lock; lock = Lock(sys.argv[1])\n"
HOLD += "held = lock.acquire(); lock.write_holder(); print(held, flush=True); sys.stdin.read()"


def holder(path) -> subprocess.Popen:
    """A process that holds a lock until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout.readline() == "True\n"
    return child


def test_a_lock_keeps_others_out_until_its_process_dies(tmp_path):
    child = holder(tmp_path / "lock")
    try:
        mine = locks.Lock(tmp_path / "lock")
        assert not mine.acquire() and not mine.acquire(0.2)
        with util.file_lock(tmp_path / "lock", "works", patience=0.1) as held:
            assert not held
    finally:
        child.kill()
        child.communicate()
    assert mine.acquire() and mine.supported
    assert mine.last_holder() == locks.Holder(child.pid, platform.node())
    mine.write_holder()
    assert mine.holder_text() == f"process {os.getpid()} on {platform.node()}"
    assert not locks.Lock(tmp_path / "lock").acquire()
    mine.release()
    mine.release()
    assert (tmp_path / "lock").exists() and locks.Lock(tmp_path / "lock").acquire()


def test_a_line_says_for_whom_one_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "TELL_SECONDS", 0.0)
    child = holder(tmp_path / "lock")
    real = locks.Lock.acquire

    def acquire(self, patience=0.0):
        if patience > 0:  # while this one waits, the other leaves
            child.communicate("")
        return real(self, patience)

    monkeypatch.setattr(locks.Lock, "acquire", acquire)
    with util.file_lock(tmp_path / "lock", "builds the kernels") as held:
        assert held
    assert (
        capsys.readouterr().err
        == f"waiting for process {child.pid} on {platform.node()}, which builds the kernels\n"
    )


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_one_warning(error, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    for name in ("a", "b"):
        lock = locks.Lock(tmp_path / name)
        assert lock.acquire() and not lock.supported
        lock.release()
        with util.file_lock(tmp_path / name, "works") as held:
            assert not held
    told = capsys.readouterr().err.splitlines()
    assert (
        len(told) == 1
        and str(tmp_path) in told[0]
        and "does not support locks" in told[0]
        and os.strerror(error) in told[0]
    )


def test_a_lock_that_goes_with_its_file(tmp_path):
    for _ in range(2):
        with util.file_lock(tmp_path / "lock", "works", remove=True) as held:
            assert held and not locks.Lock(tmp_path / "lock").acquire()
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), util.file_lock(tmp_path / "file" / "lock", "works"):
        pass


def test_what_a_lock_says_may_be_anything(tmp_path):
    for content in (b"", b"\xff\x00", b"process x on y", b"123\n", b"x" * 1000):
        (tmp_path / "lock").write_bytes(content)
        lock = locks.Lock(tmp_path / "lock")
        assert lock.last_holder() is None and 0 < len(lock.holder_text()) <= 200
        assert lock.acquire()
        lock.release()


def test_nobody_locks_by_other_means():
    """fcntl.flock is filelock's business alone."""
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in ("tests", ".venv", "build"):
            assert "flock(" not in path.read_text(), relative
