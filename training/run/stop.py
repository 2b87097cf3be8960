# SPDX-License-Identifier: Apache-2.0
"""Requests to stop (SIGINT, SIGTERM, the restart deadline), on which all processes agree."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch

from torch_utils import distributed, watchdog

_current: StopRequest | None = None  # of this process: signals are the process's, too


class Stopped(Exception):
    """SIGINT or SIGTERM was answered in the middle of long work."""


class StopRequest:
    """SIGINT, SIGTERM or the --restart_every deadline: the run saves and leaves between two steps."""

    GO_ON, SAVE, INTERRUPTED, RESTART = 0, 1, 2, 3

    def __init__(self, restart_every: float) -> None:
        global _current
        self.deadline = time.monotonic() + restart_every
        self.signalled = False
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        _current = self

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once
        self.signalled = True

    def close(self) -> None:
        """Restore the signal handlers."""
        global _current
        _current = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device, checkpoint_is_due: bool) -> int:
        """What all processes do now: the highest of their answers."""
        mine = self.SAVE if checkpoint_is_due else self.GO_ON
        if self.signalled:
            mine = self.INTERRUPTED
        elif time.monotonic() > self.deadline:
            mine = self.RESTART
        return _highest(mine, device)


def _highest(answer: int, device: torch.device) -> int:
    """Of all processes."""
    if distributed.world_size() == 1:
        return answer
    return int(distributed.all_gather_cat(torch.tensor([answer], device=device)).max())


def pause(alone: bool = False) -> None:
    """Raise Stopped after SIGINT or SIGTERM; for calls between the parts of long work.

    The restart deadline is not answered here: a restart would begin the work again, and might never end it.

    Args:
        alone: the other processes wait for this one. Otherwise all must call it equally often, and all raise.
    """
    watchdog.progress()
    if _current is not None:
        mine = int(_current.signalled)
        if mine if alone else _highest(mine, torch.device("cpu")):
            raise Stopped


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, where no StopRequest answers it: what is done is on disk."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
