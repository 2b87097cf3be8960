# SPDX-License-Identifier: Apache-2.0
"""Decoding in processes: the images of threads, and an end in every case."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import heap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest
import torch

from image_data import conversion, sources
from tests import waiting
from tests.image_data import formats
from training.config import PROCESSES, THREADS, TrainConfig
from training.data import processes
from training.data.dataset import ImageDataset, Loader, sample_indices
from training.data.processes import Processes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    """Twelve images of 8 pixels with three classes."""
    images = np.random.RandomState(0).randint(0, 256, [12, 8, 8, 3], dtype=np.uint8)
    path = tmp_path / "small.zip"
    conversion.convert(sources.array_source("small", images, np.arange(12) % 3), path, workers=1)
    return path


def damaged(path: Path) -> Path:
    """The same with a changed pixel of image 4."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("4.png"))
    place = info.header_offset + 150
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    return path


def batches(count: int = 8, size: int = 7, images: int = 24) -> list[np.ndarray]:
    return [sample_indices(0, start, size, images) for start in range(0, count * size, size)]


def read(path: Path, indices: list[np.ndarray], **options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    dataset = ImageDataset(path, use_labels=True, xflip=True)
    with Loader(dataset, indices, cache_mb=0, **options) as loader:
        return list(loader)  # type: ignore[arg-type]


def workers_of(loader: Loader) -> list[psutil.Process]:
    """The processes of a loader that has started them."""
    pool: Any = loader._pool
    return [psutil.Process(process.pid) for process in pool._pool._processes]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("kind", ["zip", "folder", "tar", "copy"])
def test_processes_decode_the_images_of_threads(kind: str, zipped: Path, tmp_path: Path) -> None:
    path = zipped
    if kind != "zip":
        with zipfile.ZipFile(zipped) as archive:
            archive.extractall(tmp_path / "set")
            path = tmp_path / "set"
            if kind == "tar":
                names = [n for n in archive.namelist() if n.endswith(".png")]
                path = formats.write_tar(tmp_path / "set.tar", {n: archive.read(n) for n in names})
    dataset = ImageDataset(path, xflip=True)
    if kind == "copy":
        dataset.use_local_copy(str(tmp_path / "copies"))
    expected = [dataset.load(indices) for indices in batches()]
    for workers in (1, 2):
        with Loader(dataset, batches(), workers=workers, cache_mb=0, kind=PROCESSES) as loader:
            for (images, labels), pixels in zip(loader, expected, strict=True):
                assert labels is None and images.dtype == torch.uint8
                np.testing.assert_array_equal(images.numpy(), pixels)


def test_batches_and_labels_are_kept(zipped: Path) -> None:
    expected = read(zipped, batches(20), workers=0)
    found = read(zipped, batches(20), workers=2, kind=PROCESSES, prefetch=3)  # more than there are blocks
    gc.collect()  # after the end of the processes
    assert len(found) == 20
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_memory_of_a_batch_is_used_again_once_nothing_refers_to_it(zipped: Path) -> None:
    dataset, indices = ImageDataset(zipped), batches(40, images=12)
    with Loader(dataset, indices, workers=1, cache_mb=0, kind=PROCESSES) as loader:
        images, _ = next(loader)
        part = images[3:5].transpose(2, 3)  # a view keeps its batch
        pool: Any = loader._pool
        blocks = pool._pool._blocks
        ends = blocks.ctypes.data + np.array([0, blocks.nbytes])
        places = [images.data_ptr() for images, _ in loader]
    expected = torch.from_numpy(dataset.load(indices[0])[3:5]).transpose(2, 3)
    assert torch.equal(part, expected)
    inside = [place for place in places if ends[0] <= place < ends[1]]  # the others are copies
    assert len(inside) > len(set(inside)) and len(set(inside)) < len(blocks)


def test_views_of_arrays_keep_their_memory(zipped: Path) -> None:
    dataset, indices = ImageDataset(zipped), batches(9, images=12)
    images = [[dataset.locate(index) for index in batch.tolist()] for batch in indices]
    with closing(Processes(dataset.decoder, 1, 7, 3)) as pool:
        part = pool.finish(pool.start(images[0]))[3:5]
        for batch in images[1:]:
            pool.finish(pool.start(batch))
        np.testing.assert_array_equal(part, dataset.load(indices[0])[3:5])
        assert len(pool.finish(pool.start([]))) == 0


def test_sets_in_the_cache_are_decoded_by_threads(zipped: Path) -> None:
    dataset = ImageDataset(zipped)
    with Loader(dataset, [np.arange(8)], kind=PROCESSES, cache_mb=1) as loader:
        assert loader.kind == THREADS and len(next(loader)[0]) == 8
    with Loader(ImageDataset(zipped), [np.arange(8)], kind=PROCESSES, cache_mb=0, workers=0) as loader:
        assert loader.kind == THREADS and len(next(loader)[0]) == 8


def test_what_is_not_supported_is_refused(zipped: Path) -> None:
    with pytest.raises(ValueError, match="kind=fibres"):
        Loader(ImageDataset(zipped), [], kind="fibres")
    with pytest.raises(ValueError, match="--workers-kind=fibres: use threads or processes"):
        TrainConfig().override({"data.workers_kind": "fibres"}).validate()
    with (
        Loader(ImageDataset(zipped), [np.arange(7), np.arange(8)], kind=PROCESSES, cache_mb=0) as loader,
        pytest.raises(ValueError, match="8 images follows one of 7"),
    ):
        list(loader)


def test_errors_are_those_of_threads_and_the_iteration_goes_on(zipped: Path) -> None:
    dataset = ImageDataset(damaged(zipped))
    indices = [np.arange(4), np.arange(2, 6), np.arange(6, 10)]
    found = []
    for kind in (THREADS, PROCESSES):
        with Loader(dataset, indices, workers=2, cache_mb=0, kind=kind) as loader:
            next(loader)
            with pytest.raises(ValueError, match=r"img00000004\.png: damaged zip entry") as error:
                next(loader)
            assert torch.equal(next(loader)[0], torch.from_numpy(dataset.load(indices[2])))
            processes = workers_of(loader) if kind == PROCESSES else []
        found.append(str(error.value))
        assert are_gone(processes)
    assert found[0] == found[1] and "\n" not in found[0]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_process_is_an_error_in_one_line(zipped: Path, real_processes: None) -> None:
    with Loader(
        ImageDataset(zipped), batches(50, images=12), workers=2, cache_mb=0, kind=PROCESSES
    ) as loader:
        next(loader)
        processes = workers_of(loader)
        processes[1].kill()
        with pytest.raises(ValueError, match=r"killed by signal 9.*--workers-kind=threads") as error:
            list(loader)
    assert "\n" not in str(error.value) and are_gone(processes)
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_signals_to_all_processes_are_left_to_the_parent(zipped: Path, real_processes: None) -> None:
    dataset = ImageDataset(zipped)
    with Loader(dataset, batches(6, images=12), workers=1, cache_mb=0, kind=PROCESSES) as loader:
        next(loader)
        (process,) = workers_of(loader)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            process.send_signal(number)
        rest = [images for images, _ in loader]
    assert len(rest) == 5
    assert torch.equal(rest[-1], torch.from_numpy(dataset.load(batches(6, images=12)[-1])))


# Sends each of its processes signals as soon as it has been started.
SIGNALS = """
import os, pickle, signal, sys
from multiprocessing.context import SpawnProcess

if __name__ == "__main__":
    from training.data.processes import Processes

    start = SpawnProcess.start

    def start_and_send(process):
        start(process)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(process.pid, number)

    SpawnProcess.start = start_and_send
    with open(sys.argv[1], "rb") as file:
        decoder, images = pickle.load(file)
    pool = Processes(decoder, 2, len(images), 2)
    sys.stdout.buffer.write(pool.finish(pool.start(images)).tobytes())
    pool.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_signals_during_the_start_are_left_to_the_parent(zipped: Path, tmp_path: Path) -> None:
    dataset = ImageDataset(zipped)
    script, arguments = tmp_path / "signals.py", tmp_path / "arguments.pickle"
    script.write_text(SIGNALS)
    arguments.write_bytes(pickle.dumps((dataset.decoder, [dataset.locate(index) for index in range(4)])))
    command = [sys.executable, str(script), str(arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = waiting.run(command, env=environment, text=False)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout == dataset.load(np.arange(4)).tobytes()


class TwoArgumentsError(ValueError):
    """Pickle calls it with one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class HandleError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("no handle")
        self.warn = warnings.catch_warnings().__enter__


@dataclass
class Failing:
    """In the place of a Decoder."""

    how: str
    channels: int = 3
    resolution: int = 8

    def decode(self, entry: Any, out: np.ndarray) -> NoReturn:
        if self.how == "two arguments":
            raise TwoArgumentsError("what", "why")
        if self.how == "handle":
            raise HandleError
        os._exit(3)


@contextmanager
def failing(how: str, dataset: ImageDataset) -> Iterator[tuple[Processes, list[Any]]]:
    decoder: Any = Failing(how)
    with closing(Processes(decoder, 1, 2, 2)) as pool:
        yield pool, [dataset.locate(0)]


def test_errors_that_cannot_be_pickled_are_described(zipped: Path) -> None:
    dataset = ImageDataset(zipped)
    with failing("two arguments", dataset) as (pool, images):
        for _ in range(3):
            with pytest.raises(ValueError, match=r"^TwoArgumentsError: what: why$"):
                pool.finish(pool.start(images))
    with (
        failing("handle", dataset) as (pool, images),
        pytest.raises(RuntimeError, match=r"^HandleError: no handle$"),
    ):
        pool.finish(pool.start(images))


def test_the_end_of_a_process_is_remembered(zipped: Path) -> None:
    with failing("exit", ImageDataset(zipped)) as (pool, images):
        batch = pool.start(images)
        pool._processes[0].join()
        message = "^a process that decodes images ended with exit code 3: see the error above$"
        for _ in range(4):  # more than there are blocks
            with pytest.raises(ValueError, match=message):
                pool.start(images)
        assert len(pool._free) == 1  # all but that of the batch
        with pytest.raises(ValueError, match=message):
            pool.finish(batch)
        pool.close()
        with pytest.raises(ValueError, match=message):
            pool.start(images)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_others_are_not_asked_after_the_end_of_one(zipped: Path) -> None:
    dataset = ImageDataset(zipped)
    images = [dataset.locate(index) for index in range(2)]
    with closing(Processes(dataset.decoder, 2, 2, 2)) as pool:
        pool._processes[1].kill()
        pool._processes[1].join()
        for batch in (images, images[:1]):  # the second would need the first process alone
            with pytest.raises(ValueError, match="killed by signal 9"):
                pool.start(batch)


def test_nothing_is_decoded_after_the_end(zipped: Path) -> None:
    with failing("exit", ImageDataset(zipped)) as (pool, images):
        pool.close()
        for _ in range(3):
            with pytest.raises(ValueError, match="have been closed"):
                pool.start(images)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_how_a_process_ended() -> None:
    memory = "memory may be short; use"
    assert processes._ending(-9, 2) == (
        f"was killed by signal 9: {memory} fewer --workers than 2, or --workers-kind=threads"
    )
    assert processes._ending(-9, 1) == f"was killed by signal 9: {memory} --workers-kind=threads"
    assert memory in processes._ending(-signal.SIGBUS, 1)
    for code in (None, 0, 1, -signal.SIGSEGV):
        assert "memory" not in processes._ending(code, 2)
    assert "exit code" not in processes._ending(None, 2)


def mapped_file(address: int) -> str:
    """What this process has mapped at an address, or ""."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, *_, name = line.split(maxsplit=5)
        first, end = (int(place, 16) for place in places.split("-"))
        if first <= address < end:
            return name
    return ""


def forbidden(*args: Any) -> NoReturn:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("memory", ["memfd", "/dev/shm", "disk"])
def test_the_memory_has_no_name(memory: str, zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageDataset(zipped)
    images = [dataset.locate(index) for index in range(12)]
    if memory != "memfd":
        monkeypatch.setattr(os, "memfd_create", forbidden)
    space = 0 if memory == "disk" else 2**30
    monkeypatch.setattr(heap.BufferWrapper, "_heap", heap.Heap())  # which has nothing left of other tests
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=space, f_frsize=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = Processes(dataset.decoder, 2, 12, 2)
    with closing(pool):
        np.testing.assert_array_equal(pool.finish(pool.start(images)), dataset.load(np.arange(12)))
        name = mapped_file(pool._blocks.ctypes.data)
    assert name.endswith("(deleted)") and name.startswith("/memfd:") == (memory == "memfd")
    assert name.startswith("/dev/shm/") == (memory == "/dev/shm")
    found = [str(warning.message) for warning in caught]
    assert len(found) == (memory == "disk") and all("--shm-size" in text for text in found)


# Prints the ids of its processes, and ends in a way that gives the loader no say.
ABRUPT = """
import os, signal, sys
import numpy as np

if __name__ == "__main__":
    from training.data.dataset import ImageDataset, Loader

    loader = Loader(ImageDataset(sys.argv[1]), [np.arange(4)] * 9, workers=2, cache_mb=0, kind="processes")
    next(loader)
    print(*[process.pid for process in loader._pool._pool._processes], flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "raise":
        raise ValueError("another error")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("how", "code"), [("kill", -9), ("raise", 1), ("leave", 0)])
def test_processes_end_with_their_parent(how: str, code: int, zipped: Path, tmp_path: Path) -> None:
    script = tmp_path / "abrupt.py"
    script.write_text(ABRUPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(zipped), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ((out, err),) = waiting.finish(parent)
    ids = [int(text) for text in out.split()]
    assert parent.returncode == code and len(ids) == 2
    assert how == "kill" or err.count("Traceback") == (how == "raise")
    left = [psutil.Process(pid) for pid in ids if psutil.pid_exists(pid)]
    waiting.until(lambda: are_gone(left))


def test_processes_do_not_import_torch(real_processes: None) -> None:
    code = "import sys, training.data.processes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
