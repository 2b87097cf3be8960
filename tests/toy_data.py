# SPDX-License-Identifier: Apache-2.0
"""Small data sets in StyleGAN's format for tests of the scripts."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image


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
