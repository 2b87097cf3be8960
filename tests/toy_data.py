# SPDX-License-Identifier: Apache-2.0
"""Small images and data sets, written as files."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
from click.testing import CliRunner
from PIL import Image


def write_dataset(
    path: Path,
    n: int = 12,
    size: int = 16,
    class_names: list[str] | None = None,
    seed: int = 0,
    **metadata: str,
) -> Path:
    """A zip of n random RGB images; with class_names, image i has label i modulo their number."""
    rng = np.random.RandomState(seed)
    names = [f"00000/img{i:08d}.png" for i in range(n)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            coarse = PIL.Image.fromarray(rng.randint(0, 256, (4, 4, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((size, size), PIL.Image.Resampling.BICUBIC).save(buffer, format="PNG")
            archive.writestr(name, buffer.getvalue())
        labels = [[name, i % len(class_names)] for i, name in enumerate(names)] if class_names else None
        archive.writestr(
            "dataset.json",
            json.dumps({"labels": labels, "metadata": {"class_names": class_names, **metadata}}),
        )
    return path


def pixels(index: int, size: int = 16) -> np.ndarray:
    return np.random.RandomState(index).randint(0, 256, [size, size, 3], dtype=np.uint8)


def png(content: np.ndarray | int, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(content, size) if isinstance(content, int) else content).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, files: Mapping[str, bytes | None]) -> Path:
    """Files by relative path; None makes an empty folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = root / name
        if content is None:
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}/" if content is None else name, content or b"")
    return path


def write_images(folder: Path, classes: int, count: int, resolution: int = 16) -> None:
    """Noise, another brightness in each class."""
    random = np.random.RandomState(0)
    for i in range(count):
        label = i % classes
        target = folder / f"class{label:04d}" if classes > 1 else folder
        target.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 128, (resolution, resolution, 3)) + (label % 8) * 16
        Image.fromarray(pixels.astype(np.uint8)).save(target / f"{i:05d}.png")


def make_zip(folder: Path, name: str, classes: int, count: int, resolution: int = 16) -> str:
    import dataset_tool  # with its worker processes: not every test needs it

    write_images(folder / name, classes, count, resolution)
    dest = folder / f"{name}.zip"
    result = CliRunner().invoke(
        dataset_tool.main, [f"--source={folder / name}", f"--dest={dest}", "--workers=1"]
    )
    assert result.exit_code == 0, result.output
    return str(dest)
