# SPDX-License-Identifier: Apache-2.0
"""Requests to stop (signals, the restart deadline), on which all processes agree."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch_utils import distributed, launcher, watchdog

_current: StopRequest | None = None  # of this process: signals are the process's, too
_signalled = False  # during the last StopRequest that was closed


class Stopped(Exception):
    """A signal was answered in the middle of long work."""


class StopRequest:
    """A signal or the --restart_every deadline: the run saves and leaves between two steps.

    The signals are those of `launcher.answered`.
    """

    GO_ON, SAVE, INTERRUPTED, RESTART = 0, 1, 2, 3

    def __init__(self, restart_every: float) -> None:
        global _current
        self.deadline = time.monotonic() + restart_every
        self.signalled = False
        self._previous = {s: signal.signal(s, self._on_signal) for s in launcher.answered()}
        _current = self

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once
        self.signalled = True

    def close(self) -> None:
        """Restore the signal handlers."""
        global _current, _signalled
        _current, _signalled = None, self.signalled
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def ask(self, checkpoint_is_due: Callable[[], bool]) -> Callable[[], int]:
        """Ask all processes what to do after the step that begins: the highest of their answers.

        All processes call it. They compare their answers during the step, so that none waits: what happens in
        the step is answered after the next. A single process answers after the step.

        Returns:
            A function that returns the answer, for the end of the step.
        """
        if distributed.world_size() == 1:
            return lambda: self._mine(checkpoint_is_due())
        return distributed.start_highest(self._mine(checkpoint_is_due()))

    def _mine(self, checkpoint_is_due: bool) -> int:
        if self.signalled:
            return self.INTERRUPTED
        if time.monotonic() > self.deadline:
            return self.RESTART
        return self.SAVE if checkpoint_is_due else self.GO_ON


def pause(alone: bool = False) -> None:
    """Raise Stopped after a signal; for calls between the parts of long work.

    The restart deadline is not answered here: a restart would begin the work again, and might never end it.

    Args:
        alone: the other processes wait for this one. Otherwise all must call it equally often, and all raise.
    """
    watchdog.progress()
    if _current is not None:
        mine = int(_current.signalled)
        if mine if alone else distributed.start_highest(mine)():
            raise Stopped


def was_asked() -> bool:
    """Whether a signal has asked any process of the run that ended last to stop. All processes call it.

    If that run has finished all the same, the signal is for what follows it.
    """
    return any(distributed.all_gather_object(_signalled))


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Signals raise KeyboardInterrupt, where no StopRequest answers them: what is done is on disk."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in launcher.answered()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
