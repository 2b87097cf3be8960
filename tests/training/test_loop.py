# SPDX-License-Identifier: Apache-2.0
"""The loop: when it ticks, saves and ends. Steps are counted and not computed here (tests/e2e trains)."""

from types import SimpleNamespace

import pytest

from training import loop
from training.config import TrainConfig
from training.run.stop import StopRequest
from training.run_folder import FINISHED, INTERRUPTED, RESTART
from training.state import Progress

BATCH = 8


class Calls:
    """In the place of Periodic: notes what the loop asks for, with the images shown then."""

    def __init__(self, due_at: int = -1) -> None:
        self.calls: list[tuple] = []
        self.due_at, self.checked, self.finished = due_at, [], False

    def after_step(self, state) -> None:
        self.now = state.progress.nimg

    def tick(self, state, done: bool) -> None:
        assert self.checked[-1] == state.progress.nimg  # before anything is written
        self.calls.append(("tick", state.progress.nimg, done))
        state.progress.tick_start_nimg = state.progress.nimg

    def finish(self, state) -> None:
        self.finished = True

    def checkpoint_is_due(self) -> bool:
        return self.now == self.due_at

    def save_between_ticks(self, state) -> None:
        assert self.checked[-1] == state.progress.nimg
        self.calls.append(("save", state.progress.nimg))


class Answers:
    """In the place of StopRequest: at so many images shown, this answer."""

    GO_ON, SAVE, INTERRUPTED, RESTART = (
        StopRequest.GO_ON,
        StopRequest.SAVE,
        StopRequest.INTERRUPTED,
        StopRequest.RESTART,
    )

    def __init__(self, state, answers: dict[int, int]) -> None:
        self.state, self.answers = state, answers

    def ask(self, due):
        return lambda: self.answers.get(self.state.progress.nimg, self.SAVE if due() else self.GO_ON)


def run(monkeypatch, answers=None, due_at: int = -1, **options):
    """(outcome, images shown, calls) of a run of 40 images in ticks of 16."""
    cfg = TrainConfig().override({"run.batch": BATCH, "run.kimg": 0.04, "run.tick": 0.016, **options})
    state, periodic = SimpleNamespace(progress=Progress()), Calls(due_at)
    state.guard = SimpleNamespace(check=lambda: periodic.checked.append(state.progress.nimg))

    def one_step(cfg, state, *rest) -> None:
        state.progress.nimg += BATCH

    monkeypatch.setattr(loop, "one_step", one_step)
    stop = Answers(state, answers or {})
    outcome = loop.run(cfg, state, None, None, None, None, periodic, stop)
    assert periodic.finished is (outcome == FINISHED)
    return outcome, state.progress.nimg, periodic.calls


TICKS = [("tick", 16, False), ("tick", 32, False), ("tick", 40, True)]


def test_ticks_and_the_last_one(monkeypatch):
    assert run(monkeypatch) == (FINISHED, 40, TICKS)


@pytest.mark.parametrize(
    ("answer", "outcome"), [(StopRequest.INTERRUPTED, INTERRUPTED), (StopRequest.RESTART, RESTART)]
)
def test_a_stop_saves_and_leaves(monkeypatch, answer, outcome):
    assert run(monkeypatch, {24: answer}) == (outcome, 24, [TICKS[0], ("save", 24)])
    assert run(monkeypatch, {40: answer}) == (FINISHED, 40, TICKS)  # the last tick has saved


def test_a_due_checkpoint_is_saved_between_ticks(monkeypatch):
    assert run(monkeypatch, due_at=24) == (FINISHED, 40, [TICKS[0], ("save", 24), *TICKS[1:]])


def test_patience_ends_a_run():
    cfg = TrainConfig().override({"run.kimg": 1.0, "run.patience": 2})
    over = [loop.is_over(cfg, SimpleNamespace(progress=Progress(nimg=8, stale=n))) for n in (0, 1, 2, 3)]
    assert over == [False, False, True, True]
    unlimited = cfg.override({"run.patience": 0})
    assert not loop.is_over(unlimited, SimpleNamespace(progress=Progress(nimg=8, stale=99)))
    assert loop.is_over(unlimited, SimpleNamespace(progress=Progress(nimg=1000)))
