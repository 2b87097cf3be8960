# SPDX-License-Identifier: Apache-2.0
"""Processes that decode training images into shared memory. Without torch, so that they start in a moment.

The memory has no name: it is gone with the last process that has it mapped, however that one ends. A process
ends when the pipe to its parent closes, so none outlives a parent that is killed.
"""

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np

from dnnlib import util
from image_data.archives import Entry
from training.data.decoding import Decoder
from training.data.views import View

# They reach all processes of a terminal or a job. The parent answers them, and they end with it.
_LEFT_TO_PARENT = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
_SIGNALS_OF_SHORT_MEMORY = [getattr(signal, name, None) for name in ("SIGKILL", "SIGBUS")]
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
        memory = _shared_memory(context, int(np.prod(shape)))
        self._blocks: np.ndarray = np.frombuffer(memory, np.uint8).reshape(shape)
        self._free = deque(range(blocks))
        self._failure: str | None = None  # nothing can be decoded any more
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
        """Start to decode images, each into one copy. A block must be free: `finish` leaves one.

        Raises:
            ValueError: A process has ended, now or earlier, or `close` was called.
        """
        if self._failure is not None:
            raise ValueError(self._failure)
        block, size = self._free.popleft(), max(1, -(-len(images) // len(self._processes)))
        starts = range(0, len(images), size)
        for number, first in enumerate(starts):
            try:
                self._connections[number].send((block, first, images[first : first + size]))
            except BaseException as error:
                self._free.append(block)
                if isinstance(error, OSError):
                    raise self._death(number) from None
                raise
        return Batch(block, len(images), len(starts))

    def finish(self, batch: Batch, out: np.ndarray | None = None) -> np.ndarray:
        """Wait for the oldest batch that has been started.

        Args:
            batch: That batch.
            out: Array to copy it to, or None.

        Returns:
            uint8 [B, C, R, R]: the shared memory, which is used again once neither this array nor a view or
            tensor of it is left; a copy if no other block is free.

        Raises:
            ValueError: A process has ended, or `close` was called.
            Exception: The first error of its images, mostly a ValueError.
        """
        errors = [error for error in map(self._answer, range(batch.parts)) if error is not None]
        images = self._blocks[batch.block, : batch.size]
        if out is None and self._free and not errors:
            # Its base is no array, so numpy's views, and views of these, refer to it and not to `_blocks`.
            images = np.asarray(images.data)
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
        self._failure = self._failure or "the processes that decode images have been closed"
        self._end()

    def _answer(self, number: int) -> Exception | None:
        """Wait until a process has decoded its part of the oldest batch. Returns the error of an image."""
        try:
            answer: bytes | None = self._connections[number].recv()
        except (EOFError, OSError):
            raise self._death(number) from None
        return None if answer is None else pickle.loads(answer)

    def _death(self, number: int) -> ValueError:
        """The error that a process has ended; the first one, if there were several."""
        if self._failure is None:
            process = self._processes[number]
            process.join(_END_SECONDS)
            self._failure = f"a process that decodes images {_ending(process.exitcode, len(self._processes))}"
        return ValueError(self._failure)


def _ending(code: int | None, workers: int) -> str:
    """How one of several processes ended, and what to do. `code` is as in `BaseProcess.exitcode`."""
    if code is None:
        return "does not answer any more: use --workers-kind=threads"
    if code > 0:
        return f"ended with exit code {code}: see the error above"
    how = f"was killed by signal {-code}" if code else "ended too early"
    if -code not in _SIGNALS_OF_SHORT_MEMORY:
        return f"{how}: use --workers-kind=threads"
    fewer = f"fewer --workers than {workers}, or " if workers > 1 else ""
    return f"{how}: memory may be short; use {fewer}--workers-kind=threads"


class _Map(mmap.mmap):
    """Memory of a file, which processes that are being started can map as well."""

    descriptor: int  # of the file; open as long as this object

    def __reduce__(self) -> tuple[Any, ...]:
        return _map, (reduction.DupFd(self.descriptor), len(self))


def _map(inherited: Any, size: int) -> mmap.mmap:
    """The memory of a `_Map` in a process that was started with it."""
    descriptor = inherited.detach()
    try:
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _nameless(size: int) -> _Map:
    """Memory of a file that has no name and is on no disk. OSError if the system forbids it."""
    descriptor = os.memfd_create("images")
    try:
        os.ftruncate(descriptor, size)
        memory = _Map(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    memory.descriptor = descriptor
    weakref.finalize(memory, os.close, descriptor).atexit = False
    return memory


def _shared_memory(context: SpawnContext, size: int) -> Any:
    """Memory of `size` bytes, as an argument of processes that are started.

    Python's own on Linux is a file in /dev/shm if it has space for all of it, or else on a disk.
    """
    if hasattr(os, "memfd_create"):  # Linux, unless Python was compiled for an old C library
        with contextlib.suppress(OSError):
            return _nameless(size)
    if os.path.isdir("/dev/shm"):
        space = os.statvfs("/dev/shm")
        if space.f_bavail * space.f_frsize < size:
            warnings.warn(
                f"{size / 1e6:.0f} MB for images do not fit in /dev/shm and are written to disk: "
                "make it larger (docker run --shm-size), or use --workers-kind=threads",
                stacklevel=2,
            )
    return context.RawArray("B", size)


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
    resource_tracker.ensure_running()  # which ends by unblocking SIGINT and SIGTERM, at its first start
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


def _decode(decoder: Decoder, images: list[tuple[Entry, View]], out: np.ndarray) -> bytes | None:
    """Decode images. Returns the error of the first that cannot be decoded, pickled."""
    try:
        for (entry, view), place in zip(images, out, strict=False):
            decoder.decode(entry, view.target(place))
    except Exception as error:
        return util.pickled_error(error)
    return None
