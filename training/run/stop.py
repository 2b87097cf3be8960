# SPDX-License-Identifier: Apache-2.0
"""Requests to stop: SIGINT, SIGTERM and the restart deadline, agreed upon by all processes."""

from __future__ import annotations

import signal
import time
from typing import Any

import torch

from torch_utils import distributed


class StopRequest:
    """Remembers SIGINT, SIGTERM and the --restart_every deadline, so that the run saves itself and leaves between two steps."""

    GO_ON, SAVE, INTERRUPTED, RESTART = 0, 1, 2, 3

    def __init__(self, restart_every: float) -> None:
        self.deadline = time.monotonic() + restart_every
        self.signalled = False
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once
        self.signalled = True

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device, checkpoint_is_due: bool) -> int:
        """What all processes do now: the highest of their answers."""
        mine = self.SAVE if checkpoint_is_due else self.GO_ON
        if self.signalled:
            mine = self.INTERRUPTED
        elif time.monotonic() > self.deadline:
            mine = self.RESTART
        if distributed.world_size() == 1:
            return mine
        return int(distributed.all_gather_cat(torch.tensor([mine], device=device)).max())
