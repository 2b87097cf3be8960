# SPDX-License-Identifier: Apache-2.0
"""Where `gen_images.py --to` writes: a folder of PNGs, a zip, an .npz in ADM's layout, or tar shards.

Images are first written as parts into the folder TARGET.partial. `assemble` turns all parts into the target.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from dnnlib import outputs
from dnnlib.util import MAX_LIST, atomic_write
from image_data.archives import INDEX_NAME, StoredZipWriter
from image_data.npz import IMAGES, LABELS
from torch_utils import images

_SHARDS = re.compile(r"(?P<before>[^{}]*)\{(?P<first>\d{1,9})\.\.(?P<last>\d{1,9})\}(?P<after>[^{}]*\.tar)")


@dataclass(frozen=True)
class Target:
    """What --to names.

    Attributes:
        text: The value of --to.
        kind: folder, zip, npz or tar.
        paths: The files to write, or the folder.
    """

    text: str
    kind: str
    paths: tuple[Path, ...]

    @property
    def work(self) -> Path:
        """The folder for parts, beside the target."""
        path = Path(re.sub(r"[{}]", "", self.text))
        path = path if path.name.strip(".") else path.resolve()
        return path.with_name(f"{path.name}.partial")

    def existing(self) -> Path | None:
        """Something that the target would replace: a file, or a folder with files."""
        if self.kind == "folder":
            folder = self.paths[0]
            return folder if folder.is_dir() and any(folder.iterdir()) else None
        return next((path for path in self.paths if path.exists()), None)


def parse_target(text: str) -> Target:
    """Parse --to: DIR, x.zip, x.npz, x.tar or x-{000000..000099}.tar. Raises ValueError."""
    ending = Path(text).suffix.lower()
    if "{" in text or "}" in text:
        match = _SHARDS.fullmatch(text)
        if match is None or int(match["first"]) > int(match["last"]):
            raise ValueError(f"--to={text}: write shards as NAME-{{000000..000099}}.tar")
        first, last, width = int(match["first"]), int(match["last"]), len(match["first"])
        if last - first >= MAX_LIST:
            raise ValueError(f"--to={text}: at most {MAX_LIST:,} shards")
        names = [f"{match['before']}{n:0{width}d}{match['after']}" for n in range(first, last + 1)]
        target = Target(text, "tar", tuple(map(Path, names)))
    elif ending in (".zip", ".npz", ".tar"):
        target = Target(text, ending[1:], (Path(text),))
    elif ending in (".png", ".jpg", ".jpeg", ".gz", ".tgz", ".npy", ".lmdb", ".parquet"):
        raise ValueError(f"--to={text}: give a folder, NAME.zip, NAME.npz or NAME-{{000000..000099}}.tar")
    else:
        target = Target(text.rstrip("/") or text, "folder", (Path(text),))
    path = text if len(target.paths) == 1 else str(target.paths[0])
    outputs.check_output("--to", path, folder=target.kind == "folder")
    return target


def image_name(seed: int) -> str:
    """The name of a seed's image in every container but .npz."""
    return f"seed{seed:04d}.png"


def png(pixels: np.ndarray, about: dict[str, Any]) -> bytes:
    """Encode uint8 [H, W, C] as `images.save_png` does."""
    stream = io.BytesIO()
    images.write_png(pixels, stream, about)
    return stream.getvalue()


class Parts:
    """The finished parts of a target, each a file in the folder `Target.work`.

    A part of a folder is an empty file: its images are in the target already. A part of an .npz is an array,
    any other part a tar file of PNGs.

    Args:
        target: The target.
        sizes: Number of images in each part.
    """

    def __init__(self, target: Target, sizes: Sequence[int]) -> None:
        self.target, self.sizes = target, list(sizes)
        self.ending = {"npz": ".npy", "folder": ""}.get(target.kind, ".tar")

    def path(self, index: int) -> Path:
        """The file of a part."""
        return self.target.work / f"part-{index:07d}{self.ending}"

    def missing(self) -> list[int]:
        """The parts that are not finished."""
        try:
            found = {path.name for path in self.target.work.iterdir()}
        except FileNotFoundError:
            found = set()
        return [index for index in range(len(self.sizes)) if self.path(index).name not in found]

    def images_done(self) -> int:
        """Number of images in finished parts."""
        return sum(self.sizes) - sum(self.sizes[index] for index in self.missing())

    def write(
        self, index: int, pixels: np.ndarray, seeds: Sequence[int], about: Sequence[dict[str, Any]]
    ) -> None:
        """Write a part atomically.

        Args:
            index: The part.
            pixels: Its images, uint8 [N, H, W, C].
            seeds: Their seeds.
            about: Metadata of each PNG.
        """
        if self.target.kind == "npz":
            planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            colour = images.to_rgb(planes).permute(0, 2, 3, 1).contiguous().numpy()
            with atomic_write(self.path(index)) as file:
                np.save(file, colour)
            return
        files = [
            (image_name(seed), png(image, text))
            for seed, image, text in zip(seeds, pixels, about, strict=True)
        ]
        if self.target.kind == "folder":
            for name, data in files:
                with atomic_write(self.target.paths[0] / name) as file:
                    file.write(data)
            self.path(index).touch()
            return
        with atomic_write(self.path(index)) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for name, data in files:
                add_file(tar, name, data)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and bytes of every PNG, in order."""
        for index in range(len(self.sizes)):
            with tarfile.open(self.path(index)) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    if stream is not None:
                        yield member.name, stream.read()


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file without owner and date, so that the same content gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def assemble(
    parts: Parts, labels: Sequence[int] | None, class_names: Sequence[str] | None, done: Any
) -> None:
    """Write the target from its parts. The parts stay.

    Args:
        parts: All parts, finished.
        labels: The class of every image.
        class_names: For the dataset.json of a zip.
        done: Called with a number of images after writing them.
    """
    target = parts.target
    if target.kind == "npz":
        with atomic_write(target.paths[0]) as file:
            _write_npz(file, parts, labels, done)
    elif target.kind == "zip":
        with atomic_write(target.paths[0]) as file:
            _write_zip(file, parts, labels, class_names, done)
    elif target.kind == "tar":
        _write_shards(parts, labels, done)


def _write_npz(file: IO[bytes], parts: Parts, labels: Sequence[int] | None, done: Any) -> None:
    first = np.load(parts.path(0), mmap_mode="r")
    shape = (sum(parts.sizes), *first.shape[1:])
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(zipfile.ZipInfo(f"{IMAGES}.npy"), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for index, size in enumerate(parts.sizes):
                member.write(np.load(parts.path(index)).tobytes())
                done(size)
        if labels is not None:
            with archive.open(zipfile.ZipInfo(f"{LABELS}.npy"), "w", force_zip64=True) as member:
                np.save(member, np.asarray(labels, np.int64))


def _write_zip(
    file: IO[bytes], parts: Parts, labels: Sequence[int] | None, class_names: Sequence[str] | None, done: Any
) -> None:
    writer, names = StoredZipWriter(file), []
    for name, data in parts.files():
        writer.write(name, data)
        names.append(name)
        done(1)
    index: dict[str, Any] = {"labels": None}
    if labels is not None:
        index["labels"] = [[name, label] for name, label in zip(names, labels, strict=True)]
    if class_names is not None:
        index["metadata"] = {"class_names": list(class_names)}
    writer.write(INDEX_NAME, json.dumps(index).encode())
    writer.close()


def _write_shards(parts: Parts, labels: Sequence[int] | None, done: Any) -> None:
    """Write the shards in order. Shards that exist are those of an interrupted `assemble`."""
    paths, total, files = parts.target.paths, sum(parts.sizes), parts.files()
    for number, path in enumerate(paths):
        rows = range(number * total // len(paths), (number + 1) * total // len(paths))
        with contextlib.ExitStack() as stack:
            tar = None
            if not path.exists():
                file = stack.enter_context(atomic_write(path))
                tar = stack.enter_context(tarfile.open(fileobj=file, mode="w"))
            for row, (name, data) in zip(rows, files, strict=False):
                if tar is not None:
                    add_file(tar, name, data)
                if tar is not None and labels is not None:
                    add_file(tar, f"{Path(name).stem}.cls", str(labels[row]).encode())
                done(1)
