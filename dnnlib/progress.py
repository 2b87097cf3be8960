# SPDX-License-Identifier: Apache-2.0
"""Progress of long operations on one line: amount done, rate and remaining time. Used by every script."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TextIO

# Seconds between two updates: on a terminal, where the line is rewritten, and in other streams.
_SCREEN_SECONDS, _LOG_SECONDS = 0.2, 30.0


def format_time(seconds: float) -> str:
    """Format whole seconds as '42s', '3m 07s', '2h 05m 09s' or '1d 03h 20m'."""
    total = round(float(seconds))
    if total < 0:
        return "-" + format_time(-total)
    minutes, s = divmod(total, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days > 0:
        return f"{days}d {h:02d}h {m:02d}m"
    if hours > 0:
        return f"{h}h {m:02d}m {s:02d}s"
    if minutes > 0:
        return f"{m}m {s:02d}s"
    return f"{s}s"


class Progress:
    """Shows the progress of a long operation in a stream.

        progress = Progress(label="Real images")
        for done in range(total):
            ...
            progress(done + 1, total)

    On a terminal the line is rewritten and not copied to a log file (dnnlib.util.Logger). Other streams get a
    line every 30 seconds. The last line contains the total time.

    Args:
        stream: the stream; None = sys.stderr at the time of the call.
        label: the operation, at the start of the line.
        unit: the unit of the counts; "bytes" are shown as MB.
        silent: show nothing for this many seconds (on a terminal at most one); a shorter operation prints no
            line.
    """

    def __init__(
        self, stream: TextIO | None = None, label: str = "", unit: str = "images", silent: float = 0.0
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.label, self.unit = label, unit
        self.terminal = self.stream.isatty()
        self.silent = min(silent, 1.0) if self.terminal else silent
        self.started = self.shown = time.monotonic()
        self.first: int | None = None  # the amount at the first call; not 0 for a resumed download
        self.done = 0
        self._open = False  # whether the terminal shows a line without its newline

    def __call__(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` units are done (None: the total is unknown)."""
        now = time.monotonic()
        self.first, self.done = self._start(done), done
        complete = total is not None and done >= total
        interval = _SCREEN_SECONDS if self.terminal else _LOG_SECONDS
        if now - self.started < self.silent or (now - self.shown < interval and not complete):
            return
        self.shown = now
        line = self._line(done, total, now - self.started)
        if self.terminal and not complete:
            self._on_screen(f"\r\033[K{line}")
            self._open = True
            return
        if self.terminal:
            self._on_screen("\r\033[K")
        self._open = False
        self.stream.write(f"{line}\n")
        self.stream.flush()

    def advance(self, count: int, total: int | None) -> None:
        """Show that `count` more units are done."""
        self(self.done + count, total)

    def close(self) -> None:
        """End the line of an operation that stopped early."""
        if self._open:
            self._on_screen("\n")
            self._open = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, done: int) -> int:
        """The amount that does not count for the rate: 0, or what a resumed download already had."""
        if self.first is not None:
            return self.first
        return done if self.unit == "bytes" else 0

    def _line(self, done: int, total: int | None, seconds: float) -> str:
        rate = (done - (self.first or 0)) / max(seconds, 1e-9)
        if self.unit == "bytes":
            amount = f"{done / 1e6:,.1f}" + (f"/{total / 1e6:,.1f} MB" if total else " MB")
            speed = f"{rate / 1e6:,.1f} MB/s"
        else:
            amount = f"{done:,}" + (f"/{total:,}" if total else "") + (f" {self.unit}" if self.unit else "")
            speed = f"{rate:,.0f}/s" if rate >= 10 or rate == 0 else f"{rate:.2g}/s"
        parts = [f"{self.label}: {amount}" if self.label else amount, speed]
        if total is not None and done >= total:
            parts.append(f"took {format_time(seconds)}")
        elif total is not None and rate > 0:
            parts.append(f"{format_time((total - done) / rate)} left")
        return "  ".join(parts)

    def _on_screen(self, text: str) -> None:
        screen = getattr(self.stream, "screen", self.stream)
        screen.write(text)
        screen.flush()


class Stages:
    """Progress of an operation with several stages, one line each. Call it with (stage, done, total).

    Args:
        labels: the label of each stage.
        silent: see `Progress`.
    """

    def __init__(self, labels: Mapping[str, str], silent: float = 0.0) -> None:
        self.labels, self.silent = labels, silent
        self.stage = ""
        self.line: Progress | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are done."""
        if self.line is None or stage != self.stage or done < self.line.done:
            self.stage, self.line = stage, Progress(label=self.labels[stage], unit="", silent=self.silent)
        self.line(done, total)


@contextlib.contextmanager
def show_elapsed(what: str, stream: TextIO | None = None, after: float = 3.0) -> Iterator[None]:
    """Show `what` and the elapsed time while the block runs, starting after `after` seconds.

    For operations whose progress cannot be counted.
    """
    stream = sys.stderr if stream is None else stream
    started, ended = time.monotonic(), threading.Event()
    terminal = stream.isatty()
    screen = getattr(stream, "screen", stream) if terminal else stream

    def show() -> None:
        wait = after
        while not ended.wait(wait):
            line = f"{what}: {format_time(time.monotonic() - started)}"
            screen.write(f"\r\033[K{line}" if terminal else f"{line}\n")
            screen.flush()
            wait = 1.0 if terminal else _LOG_SECONDS
        if terminal:
            screen.write("\r\033[K")
            screen.flush()

    printer = threading.Thread(target=show, daemon=True)
    printer.start()
    try:
        yield
    finally:
        ended.set()
        printer.join()
