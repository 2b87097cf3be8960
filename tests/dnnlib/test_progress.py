# SPDX-License-Identifier: Apache-2.0
"""The one progress line: what it says, where, how often, and what a log file gets of it."""

import io
import re
import sys
import threading

import pytest

from dnnlib import progress, util
from dnnlib.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (Terminal(), "\r\x1b[K2.0/4.0 MB  1.0 MB/s  2s left\r\x1b[K4.0/4.0 MB  1.5 MB/s  took 2s\n"),
        (io.StringIO(), "4.0/4.0 MB  1.5 MB/s  took 2s\n"),
    ],
)
def test_downloads_count_megabytes_from_where_they_go_on(stream, text, clock):
    meter = Progress(stream, unit="bytes", silent=1)
    for clock[0], done in (
        (0.0, 1_000_000),
        (0.5, 1_250_000),
        (1.0, 2_000_000),
        (1.1, 2_100_000),
        (2.0, 4_000_000),
    ):
        meter(done, 4_000_000)
    assert stream.getvalue() == text


def test_an_unknown_total_has_no_end(clock):
    stream = io.StringIO()
    meter = Progress(stream, unit="bytes")
    meter(0, None)
    clock[0] = 31
    meter(62_000_000, None)
    assert stream.getvalue() == "62.0 MB  2.0 MB/s\n"


def test_a_log_gets_a_line_every_30_seconds_and_the_end(clock):
    stream = io.StringIO()
    line = Progress(stream, label="Real images", unit="")
    for clock[0] in range(0, 101, 10):
        line(int(clock[0]) * 6, 600)
    assert stream.getvalue().splitlines() == [
        "Real images: 180/600  6/s  1m 10s left", "Real images: 360/600  6/s  40s left",
        "Real images: 540/600  6/s  10s left", "Real images: 600/600  6/s  took 1m 40s",
    ]  # fmt: skip


@pytest.mark.parametrize(("stream", "seconds"), [(Terminal(), 0.9), (io.StringIO(), 1.9)])
def test_short_work_is_silent(stream, seconds, clock):
    line = Progress(stream, silent=2)
    for clock[0] in (0, seconds / 2, seconds):
        line(int(10 * clock[0] / seconds), 10)
    assert stream.getvalue() == ""


def test_rewritten_lines_stay_out_of_the_log_file(clock, tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with util.Logger(tmp_path / "log.txt", "w"):
        line = Progress(label="Frames", unit="")
        for clock[0], done in ((1.0, 10), (2.0, 20)):
            line(done, 20)
    assert (tmp_path / "log.txt").read_text() == "Frames: 20/20  10/s  took 2s\n"
    assert "\r\x1b[KFrames: 10/20  10/s  1s left" in screen.getvalue()


def test_work_that_ends_early_ends_its_line(clock):
    stream = Terminal()
    with Progress(stream) as line:
        clock[0] = 1
        line.advance(5, 10)
    assert stream.getvalue().endswith("left\n") and line.done == 5


class Told(io.StringIO):
    """Says when something has been written."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal, self.told = is_terminal, threading.Event()

    def isatty(self) -> bool:
        return self.is_terminal

    def flush(self) -> None:
        self.told.set()


@pytest.mark.parametrize(
    ("is_terminal", "form"),
    [(True, r"(\r\x1b\[KWriting x: \d+s)+\r\x1b\[K"), (False, r"(Writing x: \d+s\n)+")],
)
def test_work_without_a_count_says_that_it_goes_on(is_terminal, form):
    stream = Told(is_terminal)
    with progress.show_elapsed("Writing x", stream, after=0):
        assert stream.told.wait(60)
    assert re.fullmatch(form, stream.getvalue())
    quiet = io.StringIO()
    with pytest.raises(KeyError), progress.show_elapsed("Writing x", quiet, after=3600):
        raise KeyError
    assert quiet.getvalue() == ""
