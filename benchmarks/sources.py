# SPDX-License-Identifier: Apache-2.0
"""Measures how fast dataset_tool.py converts the same JPEGs from every format, and how fast training reads.

    python benchmarks/sources.py                   # 4,000 images of 128 pixels to 64, a few minutes
    python benchmarks/sources.py --smoke           # eight small images

All numbers are images per CPU second of one process, the medians of rounds in which every row runs once. The
arrays (.npz, HDF5) have the decoded pixels. Formats whose package is missing are left out.
"""

import functools
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, rounds
from benchmarks.loader import load, make_images, rate
from dnnlib.records import write_json
from image_data import archives, conversion

SHARDS = 4
GROUP_ROWS = 100  # rows of a Parquet file's group, as `datasets` writes them


def write_all(folder: Path, images: np.ndarray) -> list[Path]:
    """Write the images in every format. Returns the paths."""
    jpegs = {f"{i:06d}": _jpeg(pixels) for i, pixels in enumerate(images)}
    labels = [i % 10 for i in range(len(images))]
    (folder / "folder").mkdir()
    for name, data in jpegs.items():
        (folder / "folder" / f"{name}.jpg").write_bytes(data)
    rows = [f"{name}.jpg,{label}" for name, label in zip(jpegs, labels, strict=True)]
    (folder / "folder" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    with open(folder / "images.zip", "wb") as file:
        writer = archives.StoredZipWriter(file)
        for name, data in jpegs.items():
            writer.write(f"{name}.jpg", data)
        writer.close()
    (folder / "shards").mkdir()
    write_shards(folder / "shards", {f"{name}.jpg": data for name, data in jpegs.items()}, labels)
    np.savez(folder / "images.npz", images=images, labels=labels)
    found = [folder / name for name in ("folder", "images.zip", "shards", "images.npz")]
    if find_spec("pyarrow") is not None:
        found.append(_write_parquet(folder / "images.parquet", jpegs, labels))
    if find_spec("h5py") is not None:
        found.append(_write_hdf5(folder / "images.h5", images, labels))
    return found


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_shards(folder: Path, images: dict[str, bytes], labels: list[int]) -> None:
    """Write tar shards with .cls files."""
    items = list(zip(images.items(), labels, strict=True))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for (name, data), label in items[
                shard * len(items) // SHARDS : (shard + 1) * len(items) // SHARDS
            ]:
                for file, content in ((name, data), (f"{Path(name).stem}.cls", str(label).encode())):
                    info = tarfile.TarInfo(file)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _write_parquet(path: Path, jpegs: dict[str, bytes], labels: list[int]) -> Path:
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": data, "path": f"{name}.jpg"} for name, data in jpegs.items()]
    table = pyarrow.table({"image": images, "label": labels})
    pyarrow.parquet.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def _write_hdf5(path: Path, images: np.ndarray, labels: list[int]) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(8, *images.shape[1:]), compression="gzip")
        file["labels"] = labels
    return path


def write_prepared(folder: Path, plain: Path) -> list[Path]:
    """The prepared data set as a folder and as tar shards."""
    conversion.convert(plain, folder / "prepared", workers=1)
    archive = archives.open_archive(plain)
    images = {entry.name.rpartition("/")[2]: archive.reader.read(entry) for entry in archive.images}
    (folder / "prepared-shards").mkdir()
    write_shards(folder / "prepared-shards", images, [i % 10 for i in range(len(images))])
    return [plain, folder / "prepared", folder / "prepared-shards"]


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--images", "count", default=4000, show_default=True, help="Number of images.")
@click.option("--repeats", default=3, show_default=True, help="Rounds.")
@click.option("--smoke", is_flag=True, help="Use eight small images, to check the benchmark itself.")
@click.option("--out", help="JSON file for the results.")
def main(count: int, repeats: int, smoke: bool, out: str | None) -> None:
    """Measure all rows; the help text is the module's docstring."""
    count, repeats, size = (8, 1, 32) if smoke else (count, repeats, 128)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: dict[str, Callable[[], int]] = {}
        for path in write_all(folder, make_images(count, size)):
            rows[f"convert to {size // 2}: {path.name}"] = functools.partial(_convert, path, size // 2)
        conversion.convert(folder / "images.zip", folder / "plain.zip", [size], workers=1)
        for path in write_prepared(folder, folder / "plain.zip"):
            load(path)  # which makes the index of shards
            rows[f"read for training: {path.name}"] = functools.partial(load, path)
        found = rounds.medians(rows, rate, repeats)
    click.echo(f"{machine.processor()}, {count} images of {size} pixels, images per CPU second")
    for title, value in found.items():
        click.echo(f"{title:44s}{value:8.0f}")
    if out is not None:
        facts = {**machine.describe("cpu"), "images": count, "size": size, "repeats": repeats}
        write_json(Path(out), {**facts, "images_per_cpu_second": found})


def _convert(path: Path, size: int) -> int:
    dest = path.parent / "out.zip"
    return conversion.convert(path, dest, [size], workers=1, overwrite=True).num_images


if __name__ == "__main__":
    main()
