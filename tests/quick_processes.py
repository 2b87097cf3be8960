# SPDX-License-Identifier: Apache-2.0
"""Processes of the spawn method, forked from a server that has imported torch and our modules.

A real one takes four seconds to import them. A forked one sees the same: our modules in the state in
which they were imported, its arguments through pickle, the environment and the outputs of the process that
starts it. Tests of what happens while modules are imported start real ones (the fixture `real_processes`).
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import context, reduction
from typing import Any

_PRELOADED = [
    "torch",
    "torch.utils.tensorboard",
    "training.launch",
    "training.progressive.launch",
    "metrics.evaluate",
]
real_get_context = multiprocessing.get_context


class _Adopted:
    """A target that takes over environment and outputs of the process that starts it.

    A forked server hands on its own, of the time when it was started.
    """

    def __init__(self, target: Callable[..., Any]) -> None:
        self.target = target

    def __getstate__(self) -> tuple[Any, ...]:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return self.target, dict(os.environ), [reduction.DupFd(number) for number in (1, 2)]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.target, environment, outputs = state
        os.environ.clear()
        os.environ.update(environment)
        for number, output in enumerate(outputs, start=1):
            descriptor = output.detach()
            os.dup2(descriptor, number)
            os.close(descriptor)

    def __call__(self, *args: Any) -> Any:
        return self.target(*args)


class _Process(context.ForkServerProcess):
    def __init__(self, *args: Any, target: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(*args, target=_Adopted(target), **kwargs)


class _Context(context.ForkServerContext):
    Process = _Process


def get_context(method: str | None = None) -> Any:
    """In the place of `multiprocessing.get_context`."""
    if method != "spawn" or not hasattr(os, "fork"):
        return real_get_context(method)
    forked = _Context()
    forked.set_forkserver_preload(_PRELOADED)
    return forked
