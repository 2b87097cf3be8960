# SPDX-License-Identifier: Apache-2.0
"""Decoding in processes: the images of threads, and an end in every case."""

import gc
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from image_data import conversion, sources
from tests import waiting
from tests.image_data import formats
from training.config import PROCESSES, THREADS, TrainConfig
from training.data.dataset import ImageDataset, Loader, sample_indices

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
    dataset = ImageDataset(zipped)
    with Loader(dataset, [np.arange(8)] * 40, workers=1, cache_mb=0, kind=PROCESSES) as loader:
        places, part = set(), None
        for images, _ in loader:
            places.add(images.data_ptr())
            if part is None:
                part, before = images[3:5].transpose(2, 3), images[3:5].transpose(2, 3).clone()
        assert part is not None and torch.equal(part, before)  # a view keeps its batch
        assert len(places) <= 6


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


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")
def test_the_memory_has_no_name(zipped: Path) -> None:
    with Loader(ImageDataset(zipped), batches(2, images=12), cache_mb=0, kind=PROCESSES) as loader:
        next(loader)
        assert not list(Path("/dev/shm").glob(f"*-{os.getpid()}-*"))


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
