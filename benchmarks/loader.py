# SPDX-License-Identifier: Apache-2.0
"""Measures the loader, dataset_tool.py and writing pictures, beside bare Pillow loops over the same images.

    python benchmarks/loader.py                    # 500 images of 256 pixels, about a minute
    python benchmarks/loader.py --out benchmarks/results/loader.json
    python benchmarks/loader.py --files 100000     # also a folder of so many small files
    python benchmarks/loader.py --smoke            # eight small images

All numbers are images per CPU second of one process, the medians of rounds in which every row runs once.
"filtered" sets have the PNGs that Pillow writes at level 0, as the published tool and version 0.1 do.
"plain" sets have those that dataset_tool.py writes by default. Rows with threads or processes read the set
several times: images per second of the clock, CPU time per image of all processes, both from the first batch
of 64 on, and the time until that is there, the start of processes included. They need idle cores. The last
two rows are the PNG files of gen_images.py, one after the other and by its threads, of images that are there
at once.
"""

import io
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import rounds
from dnnlib.records import write_json
from image_data import conversion, sources
from training.config import WORKERS_KINDS

# torch is imported where it is used: processes that decode import this file, as they import train.py.

BATCH = 64
KIND_OF_ONE = {"threads": "thread", "processes": "process"}


def make_images(count: int, size: int) -> np.ndarray:
    """Return smooth random images with a little noise, uint8 [count, size, size, 3]."""
    rng = np.random.RandomState(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.randint(0, 256, (12, 12, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        images.append((smooth + rng.randint(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(images)


def write_filtered(path: Path, images: np.ndarray) -> None:
    """Write a zip of the PNGs that Pillow writes without compression."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, pixels in enumerate(images):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
            archive.writestr(f"{i // 1000:05d}/img{i:08d}.png", stream.getvalue())


def pillow_loop(path: Path, size: int | None = None) -> int:
    """Decode every image of a zip, and resize it to `size` if given. Returns the number of images."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        for name in names:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            if size is None:
                np.asarray(image).transpose(2, 0, 1).copy()
            else:
                image.resize((size, size), Image.Resampling.LANCZOS)
    return len(names)


def load(path: Path) -> int:
    """Read every image of a data set with the loader of training. Returns the number of images."""
    from training.data.dataset import ImageDataset, Loader

    dataset = ImageDataset(path)
    batches = [np.arange(start, min(start + BATCH, len(dataset))) for start in range(0, len(dataset), BATCH)]
    with Loader(dataset, batches, cache_mb=0) as loader:
        return sum(len(images) for images, _ in loader)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started and waited for."""
    times = os.times()  # in steps of 10 ms
    return time.process_time() + times.children_user + times.children_system


def read(path: Path, workers: int, kind: str, num_batches: int) -> tuple[float, float, float]:
    """Read a data set again and again with threads or processes.

    Returns:
        Seconds until the first batch, seconds of the rest, and CPU seconds of all.
    """
    from training.data.dataset import ImageDataset, Loader

    dataset = ImageDataset(path)
    batches = (np.arange(i * BATCH, (i + 1) * BATCH) % len(dataset) for i in range(num_batches))
    started, before = time.perf_counter(), cpu_seconds()
    with Loader(dataset, batches, workers=workers, cache_mb=0, kind=kind) as loader:
        next(loader)
        first = time.perf_counter()
        for _ in loader:
            pass
        rest = time.perf_counter() - first
    return first - started, rest, cpu_seconds() - before


def in_workers(path: Path, workers: int, kind: str, num_images: int) -> dict[str, float]:
    """The rows of a number of threads or processes."""
    batches = max(num_images // BATCH, 1)
    _, _, cpu_of_start = read(path, workers, kind, 1)
    first, rest, cpu = read(path, workers, kind, 1 + batches)
    return {
        "per s": batches * BATCH / rest,
        "CPU ms": 1000 * (cpu - cpu_of_start) / (batches * BATCH),
        "first batch, ms": 1000 * first,
    }


def write_pictures(folder: Path, pixels: np.ndarray, in_threads: bool) -> float:
    """Write uint8 images [N, H, W, C] as PNG files. Returns images per second of the clock."""
    import torch

    from generation import pictures
    from torch_utils.images import grid, save_png

    folder.mkdir(exist_ok=True)
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    started = time.perf_counter()
    if in_threads:
        with pictures.PictureWriter(pixels[0, :, :, 0].size) as writer:
            for i in range(len(planes)):
                writer.save(planes[i : i + 1], 1, 1, folder / f"{i}.png", {})
    else:
        for i in range(len(planes)):
            save_png(grid(planes[i : i + 1], 1), folder / f"{i}.png")
    return len(planes) / (time.perf_counter() - started)


def small_files(folder: Path, count: int) -> dict[str, float]:
    """Open a folder of `count` images of 16 pixels, and read a thousand of them at random."""
    from training.data.dataset import ImageDataset, Loader

    target = folder / "small"
    pixels = make_images(64, 16)
    pngs = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG", compress_level=0)
        pngs.append(stream.getvalue())
    for i in range(count):
        path = target / f"{i // 1000:05d}" / f"img{i:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pngs[i % len(pngs)])
    started = time.process_time()
    dataset = ImageDataset(target)
    opened = time.process_time() - started
    indices = np.random.RandomState(0).randint(0, count, (16, BATCH))
    with Loader(dataset, indices, workers=0, cache_mb=0) as loader:
        speed = rate(lambda: sum(len(images) for images, _ in loader))
    return {f"open a folder of {count:,} files, CPU s": opened, "images of it, per CPU s": speed}


def prepare(path: Path, size: int) -> int:
    """Resize a data set with dataset_tool.py's engine. Returns the number of images."""
    return conversion.convert(path, path.with_name("out.zip"), [size], workers=1, overwrite=True).num_images


def rate(work: Callable[[], int]) -> float:
    """Return the images per CPU second of this process."""
    started = time.process_time()
    count = work()
    return count / (time.process_time() - started)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--images", "count", default=500, show_default=True, help="Number of images.")
@click.option("--repeats", default=5, show_default=True, help="Rounds.")
@click.option("--files", default=0, help="Also measure a folder of this many small files; 0 = none.")
@click.option("--smoke", is_flag=True, help="Use eight small images, to check the benchmark itself.")
@click.option("--out", help="JSON file for the results.")
def main(count: int, repeats: int, files: int, smoke: bool, out: str | None) -> None:
    """Measure all rows; the help text is the module's docstring."""
    import torch

    from benchmarks import machine

    torch.set_num_threads(1)
    count, repeats, size = (8, 1, 32) if smoke else (count, repeats, 256)
    with tempfile.TemporaryDirectory() as folder:
        filtered, plain = Path(folder, "filtered.zip"), Path(folder, "plain.zip")
        pixels = make_images(count, size)
        write_filtered(filtered, pixels)
        conversion.convert(sources.array_source("images", pixels), plain, workers=1)
        rows: dict[str, Callable[[], int]] = {
            "decode, filtered: Pillow": lambda: pillow_loop(filtered),
            "decode, filtered: loader": lambda: load(filtered),
            "decode, plain: Pillow": lambda: pillow_loop(plain),
            "decode, plain: loader": lambda: load(plain),
            f"resize to {size // 4}, filtered: Pillow": lambda: pillow_loop(filtered, size // 4),
            f"resize to {size // 4}, filtered: dataset_tool": lambda: prepare(filtered, size // 4),
            f"resize to {size // 4}, plain: Pillow": lambda: pillow_loop(plain, size // 4),
            f"resize to {size // 4}, plain: dataset_tool": lambda: prepare(plain, size // 4),
        }
        found = rounds.medians(rows, rate, repeats)
        other: dict[str, float] = {}
        places = [
            (name, path, kind, workers)
            for name, path in (("plain", plain), ("filtered", filtered))[: 1 if smoke else 2]
            for kind in WORKERS_KINDS
            for workers in (1, 2)
        ]
        passes = 1 if smoke else 8
        results = [
            [in_workers(path, workers, kind, passes * count) for _, path, kind, workers in places]
            for _ in range(repeats)
        ]
        for (name, _, kind, workers), rows_of_place in zip(places, zip(*results, strict=True), strict=True):
            title = f"{name}: loader, {workers} {kind if workers > 1 else KIND_OF_ONE[kind]}"
            for what in rows_of_place[0]:
                other[f"{title}, {what}"] = statistics.median(row[what] for row in rows_of_place)
        for title, in_threads in (("one by one", False), ("in threads", True)):
            speeds = [write_pictures(Path(folder, "pictures"), pixels, in_threads) for _ in range(repeats)]
            other[f"write pictures {title}, per s"] = statistics.median(speeds)
        if files:
            other |= small_files(Path(folder), files)
    click.echo(f"{machine.processor()}, {count} images of {size} pixels, images per CPU second")
    for title, value in {**found, **other}.items():
        click.echo(f"{title:52s}{value:10.4g}")
    if out is not None:
        facts = {**machine.describe("cpu"), "images": count, "size": size, "repeats": repeats}
        write_json(Path(out), {**facts, "images_per_cpu_second": found, "other": other})


if __name__ == "__main__":
    main()
