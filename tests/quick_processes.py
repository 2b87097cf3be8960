# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from a server that has imported torch and our modules.

A real one takes four seconds to import them. A forked one sees the same: our modules in the state in
which they were imported, its arguments through pickle, the environment and the outputs of the process that
starts it, and the empty curves of the fixture `quick_plots`. Tests of what happens while modules are imported
start real ones (the fixture `real_processes`).

Two kinds: those of the spawn method of multiprocessing (`get_context`), and scripts (`Script`).
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import context, forkserver, reduction
from pathlib import Path
from typing import Any, TextIO

_PRELOADED = [
    "torch",
    "torch.utils.tensorboard",
    "timm",
    "matplotlib.figure",
    "training.launch",
    "training.progressive.launch",
    "metrics.evaluate",
    "generation.video",
]
real_get_context = multiprocessing.get_context


def empty_curves() -> dict[str, Callable[..., Any]]:
    """What takes the place of functions of training.watch.plots, which take seconds per tick."""
    return {
        "draw": lambda panels, title: _EmptyFigure(),
        "panel_svg": lambda panel, kimg: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    }


class _EmptyFigure:
    """By the part of matplotlib's Figure that we use; importing that takes a second."""

    def savefig(self, file: Any, format: str) -> None:
        import PIL.Image

        PIL.Image.new("L", (1, 1)).save(file, format)


def quick_environment(**more: str) -> dict[str, str]:
    """Environment of real processes of a test: empty curves in them and in those they start."""
    here = Path(__file__).resolve().parent
    paths = [str(here / "startup"), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


class _Adopted:
    """A target that takes over environment, outputs and curves of the process that starts it.

    A forked server hands on its own, of the time when it was started.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        streams: Mapping[int, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.target, self.streams, self.environment = target, streams or {1: 1, 2: 2}, environment

    def __getstate__(self) -> tuple[Any, ...]:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        plots = sys.modules.get("training.watch.plots")
        quick = plots is not None and plots.draw.__module__ == __name__
        environment = dict(os.environ if self.environment is None else self.environment)
        streams = {number: reduction.DupFd(ours) for number, ours in self.streams.items()}
        return self.target, environment, streams, quick

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.target, environment, streams, quick = state
        os.environ.clear()
        os.environ.update(environment)
        if threads := environment.get("OMP_NUM_THREADS"):  # which torch has read in the server, long ago
            import torch

            torch.set_num_threads(int(threads))
        for number, stream in streams.items():
            descriptor = stream.detach()
            os.dup2(descriptor, number)
            os.close(descriptor)
        if quick:
            for name, function in empty_curves().items():
                setattr(sys.modules["training.watch.plots"], name, function)

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
    forkserver.ensure_running()  # with the signal mask of now: one of a start would be that of all it forks
    return forked


def _run(script: str, arguments: Sequence[str], folder: str) -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    os.chdir(folder)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    multiprocessing.get_context = real_get_context
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which processes of multiprocessing leave out


class Script:
    """A script in a forked process, by the part of subprocess.Popen that tests use.

    Standard input is empty; both outputs are one text, unless `split` is given.
    """

    def __init__(
        self,
        script: str | Path,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        split: bool = False,
    ) -> None:
        forked = real_get_context("forkserver")
        forked.set_forkserver_preload(_PRELOADED)
        pipes = [os.pipe() for _ in range(1 + split)]
        ends = [pipe[1] for pipe in pipes]
        with open(os.devnull) as nothing:
            target = _Adopted(_run, {0: nothing.fileno(), 1: ends[0], 2: ends[-1]}, env)
            self._process = forked.Process(
                target=target, args=(str(script), list(arguments), str(Path(cwd).resolve()))
            )
            self._process.start()
        for end in ends:
            os.close(end)
        self.stdout: TextIO = os.fdopen(pipes[0][0])
        self.stderr: TextIO | None = os.fdopen(pipes[1][0]) if split else None

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str | None]:
        """Read the outputs to their ends and wait for the process."""
        texts: list[str | None] = [None, None]

        def read(i: int, stream: TextIO) -> None:
            with stream:
                texts[i] = stream.read()

        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        threads = [threading.Thread(target=read, args=item) for item in enumerate(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._process.join()
        return texts[0] or "", texts[1]
