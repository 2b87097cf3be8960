# SPDX-License-Identifier: Apache-2.0
"""Processes that decode training images into shared memory. Without torch, so that they start in a moment.

The memory has no name: it is gone with the last process that has it mapped, however that one ends. A process
ends when the pipe to its parent closes, so none outlives a parent that is killed.
"""

import contextlib
import multiprocessing
import signal
import weakref
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np

from image_data.archives import Entry
from training.data.decoding import Decoder
from training.data.views import View

# They reach all processes of a terminal or a job. The parent answers them, and its end is that of the others.
_LEFT_TO_PARENT = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
_END_SECONDS = 5.0  # for the exit code of a process whose pipe has closed


class Batch(NamedTuple):
    """A batch that is being decoded."""

    block: int
    size: int  # number of images
    parts: int  # the first so many processes decode one part each


class Processes:
    """Decodes batches in the order of `start`; every process decodes one part of every batch.

    Args:
        decoder: Reads and decodes an image.
        workers: Number of processes, at least 1.
        most_images: Size of the largest batch.
        blocks: Number of batches in memory, at least 1.
    """

    def __init__(self, decoder: Decoder, workers: int, most_images: int, blocks: int) -> None:
        context = multiprocessing.get_context("spawn")
        shape = [blocks, most_images, decoder.channels, decoder.resolution, decoder.resolution]
        memory = context.RawArray("B", int(np.prod(shape)))
        self._blocks: np.ndarray = np.frombuffer(memory, np.uint8).reshape(shape)
        self._free = deque(range(blocks))
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # At the interpreter's exit, too: before multiprocessing waits for all processes.
        self._end = Finalize(self, _end, (self._connections, self._processes), exitpriority=1)
        with _signals_blocked():
            for _ in range(workers):
                mine, theirs = context.Pipe()
                self._connections.append(mine)
                with theirs:
                    process = context.Process(
                        target=_work, args=(decoder, theirs, memory, shape), name="image-decoder", daemon=True
                    )
                    process.start()
                self._processes.append(process)

    def start(self, images: list[tuple[Entry, View]]) -> Batch:
        """Start to decode images, each into one copy. A block must be free: `finish` leaves one."""
        block, size = self._free.popleft(), max(1, -(-len(images) // len(self._processes)))
        starts = range(0, len(images), size)
        for number, first in enumerate(starts):
            try:
                self._connections[number].send((block, first, images[first : first + size]))
            except OSError:
                raise self._death(number) from None
        return Batch(block, len(images), len(starts))

    def finish(self, batch: Batch, out: np.ndarray | None = None) -> np.ndarray:
        """Wait for the oldest batch that has been started.

        Args:
            batch: That batch.
            out: Array to copy it to, or None.

        Returns:
            uint8 [B, C, R, R], in the shared memory until it is garbage; a copy if no other block is free.

        Raises:
            ValueError: The first error of its images, or that a process has ended.
        """
        errors = [error for error in map(self._answer, range(batch.parts)) if error is not None]
        images = self._blocks[batch.block, : batch.size]
        if out is None and self._free and not errors:
            weakref.finalize(images, self._free.append, batch.block).atexit = False
            return images
        try:
            if errors:
                raise errors[0]
            if out is None:
                return images.copy()
            out[...] = images
            return out
        finally:
            self._free.append(batch.block)

    def close(self) -> None:
        """End the processes, whatever they do. Can be called more than once."""
        self._end()

    def _answer(self, number: int) -> Exception | None:
        """Wait until a process has decoded its part of the oldest batch. Returns the error of an image."""
        try:
            error: Exception | None = self._connections[number].recv()
        except (EOFError, OSError):
            raise self._death(number) from None
        return error

    def _death(self, number: int) -> ValueError:
        process = self._processes[number]
        process.join(_END_SECONDS)
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ValueError(
            f"a process that decodes images {how}: memory may be short; use fewer --workers than "
            f"{len(self._processes)}, or --workers-kind=threads"
        )


def _end(connections: list[Connection], processes: list[BaseProcess]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.kill()  # it only reads files and writes to memory that is not used any more
    for process in processes:
        process.join()
        process.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Within, signals wait, also in the processes that are started, until they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(decoder: Decoder, connection: Connection, memory: Any, shape: list[int]) -> None:
    """One of the processes."""
    for number in _LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_PARENT)
    blocks = np.frombuffer(memory, np.uint8).reshape(shape)
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe, or is gone
        while True:
            block, first, images = connection.recv()
            connection.send(_decode(decoder, images, blocks[block, first:]))


def _decode(decoder: Decoder, images: list[tuple[Entry, View]], out: np.ndarray) -> Exception | None:
    """Decode images. Returns the error of the first that cannot be decoded."""
    try:
        for (entry, view), place in zip(images, out, strict=False):
            decoder.decode(entry, view.target(place))
    except Exception as error:
        return error
    return None
