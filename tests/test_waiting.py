# SPDX-License-Identifier: Apache-2.0
"""Waits end by an end, or by a standstill, and never by the clock."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import waiting

SLEEPS = (
    "import pathlib, sys, time; print('up', flush=True); pathlib.Path(sys.argv[1]).touch(); "
    "time.sleep(10_000)"
)
# One child works, now and then, for longer than the limit on idleness.
WORKS = """
import time
for _ in range(4):
    end = time.process_time() + 0.1
    while time.process_time() < end: pass
    time.sleep(0.2)
print("done")
"""
PARENT = [
    sys.executable,
    "-c",
    f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {WORKS!r}]).returncode)",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.05)


def test_work_of_a_descendant_is_progress(monkeypatch) -> None:
    """However long it takes: the times looked at are made up."""
    looks = iter(range(1_000_000))
    work = iter(range(1_000_000))
    monkeypatch.setattr(waiting.time, "monotonic", lambda: 0.1 * next(looks))
    monkeypatch.setattr(waiting, "_work", lambda pids: {1: next(work)})
    calls = iter(range(1000))
    assert waiting.until(lambda: next(calls) == 999, poll=0, idle=1.0)
    monkeypatch.setattr(waiting, "_work", lambda pids: {1: 0})
    with pytest.raises(waiting.StandstillError, match="no progress for 1 seconds"):
        waiting.until(lambda: False, poll=0, idle=1.0)


def test_cpu_time_of_the_whole_tree_counts() -> None:
    with subprocess.Popen(PARENT, stdout=subprocess.PIPE, text=True) as process:
        found = waiting.until(
            lambda: [w for pid, w in waiting._work([process.pid]).items() if pid != process.pid and w > 0],
            process,
        )
        assert found
        ((out, _),) = waiting.finish(process)
    assert out == "done\n" and process.returncode == 0
    assert waiting._work([process.pid]) == {}


def test_a_machine_that_slept_is_no_standstill(monkeypatch) -> None:
    looks = iter([0.0, 0.1, *(1000.0 * i for i in range(1, 1000))])
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(looks))
    watch = waiting._Watch([], 0.5)
    for _ in range(3):
        watch.look()


def test_a_standstill_is_told_with_the_output_and_leaves_no_process(tmp_path: Path) -> None:
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}, "
        f"{str(tmp_path / 'up')!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    waiting.until((tmp_path / "up").exists, process)
    family = psutil.Process(process.pid).children()
    with pytest.raises(waiting.StandstillError, match=r"no progress.*they wrote: \[\('up\\n', None\)\]"):
        waiting.finish(process, idle=1.0)
    waiting.until(
        lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family),
        poll=0.01,
    )
    assert process.poll() is not None


def test_an_end_without_what_was_waited_for(tmp_path: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "pass"]) as process,
        pytest.raises(AssertionError, match=r"ended with \[0\]"),
    ):
        waiting.until((tmp_path / "never").exists, process)
    with subprocess.Popen([sys.executable, "-c", f"open({str(tmp_path / 'late')!r}, 'w')"]) as process:
        assert waiting.until((tmp_path / "late").exists, process)  # made just before the end


def test_run_and_join() -> None:
    done = waiting.run(
        [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"]
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(AssertionError, match="exit status 3: out\nerr"):
        waiting.run(done.args, check=True)
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(10_000,))
    process.start()
    with pytest.raises(waiting.StandstillError):
        waiting.join(process, idle=1.0)
    assert process.exitcode is not None and process.exitcode < 0


def test_many_outputs_are_read_at_once() -> None:
    """The second fills its pipe before the first, which waits for it, can end."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        writes = "import sys; sys.stderr.write('x' * 1_000_000); sys.stderr.flush(); print('y' * 10)"
        with subprocess.Popen(
            [sys.executable, "-c", writes], stdout=first.stdin, stderr=subprocess.PIPE, text=True
        ) as second:
            assert first.stdin is not None
            first.stdin.close()
            first.stdin = None
            assert waiting.finish(first, second) == [("11\n", None), (None, "x" * 1_000_000)]
