# SPDX-License-Identifier: Apache-2.0
"""Pictures are written in threads: the same files, the first error, nothing incomplete."""

import errno
import os
import threading

import pytest
import torch

from generation import pictures
from torch_utils import images

SIZE = 8
ABOUT = {"seeds": [3, 4]}


def tiles(seed: int) -> torch.Tensor:
    """Three images of one picture."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.fixture(params=[SIZE**2, 2 * pictures._MAX_WAITING_PIXELS], ids=["in threads", "at once"])
def writer(request):
    return pictures.PictureWriter(request.param)


def test_files_are_those_of_save_png(writer, tmp_path):
    with writer:
        for seed in range(20):
            writer.save(tiles(seed), 2, 3, tmp_path / f"{seed}.png", ABOUT)
    assert len(list(tmp_path.iterdir())) == 20
    for seed in range(20):
        picture = pictures.magnified(images.grid(tiles(seed), 2), 3)
        images.save_png(picture, tmp_path / "alone.png", ABOUT)
        assert (tmp_path / f"{seed}.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_large_pictures_do_not_wait(tmp_path):
    with pictures.PictureWriter(2 * pictures._MAX_WAITING_PIXELS) as writer:
        writer.save(tiles(0), 2, 1, tmp_path / "x.png", ABOUT)
        assert (tmp_path / "x.png").is_file()


def test_the_first_error_ends_the_command(writer, tmp_path, monkeypatch):
    save = images.save_png

    def full(picture, path, about):
        if int(path.stem) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(picture, path, about)

    monkeypatch.setattr(images, "save_png", full)
    with pytest.raises(OSError, match=r"No space left on device.*/5\.png'") as error, writer:
        for seed in range(20):
            writer.save(tiles(seed), 2, 1, tmp_path / f"{seed}.png", ABOUT)
    assert error.value.errno == errno.ENOSPC
    assert {path.name for path in tmp_path.iterdir()} == {f"{seed}.png" for seed in range(5)}


def test_an_interruption_leaves_no_partial_file(tmp_path, monkeypatch):
    begun, go, save = threading.Event(), threading.Event(), images.save_png

    def slow(picture, path, about):
        begun.set()
        go.wait()
        save(picture, path, about)

    monkeypatch.setattr(images, "save_png", slow)
    monkeypatch.setattr(pictures, "available_cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt), pictures.PictureWriter(SIZE**2) as writer:
        assert writer._pool is not None
        shutdown = writer._pool.shutdown

        def released(**options):
            go.set()
            shutdown(**options)

        monkeypatch.setattr(writer._pool, "shutdown", released)
        for seed in range(2):
            writer.save(tiles(seed), 2, 1, tmp_path / f"{seed}.png", ABOUT)
        begun.wait()
        raise KeyboardInterrupt
    assert (tmp_path / "0.png").is_file()
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}
