# SPDX-License-Identifier: Apache-2.0
"""contact-sheet.png of a run folder: the same latents and classes at every snapshot, one column each.

The last column shows images of the data. Columns are stored as small images in contact/NNNNNNNNN.png (the
number of images shown), so that a resumed run continues the sheet. There are at most MAX_COLUMNS. Beyond
that, the column whose neighbours are closest to each other is removed, so that columns stay spread over the
run. If there are many classes, CLASSES evenly spaced ones are shown, and a caption says how many are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from torch_utils import images, rng
from training.data.class_names import spaced_labels
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.run_folder import CONTACT_FOLDER, CONTACT_SHEET_FILE, kimg_text

MAX_COLUMNS = 20
CLASSES, PER_CLASS, UNCONDITIONAL_ROWS = 8, 2, 8
CELL = 64  # maximum size of a stored image in pixels
DATA_FILE = "data.png"


class ContactSheet:
    """Stores the columns of one run folder and draws the sheet. Used by one process."""

    def __init__(self, run_dir: Path, dataset: ImageDataset, seed: int, batch: int) -> None:
        self.run_dir, self.dataset, self.seed, self.batch = run_dir, dataset, seed, batch
        self.classes = (
            spaced_labels(dataset.label_dim, min(dataset.label_dim, CLASSES)) if dataset.label_dim > 0 else []
        )
        self.rows = len(self.classes) * PER_CLASS or UNCONDITIONAL_ROWS

    def drop_after(self, nimg: int) -> None:
        """Remove the columns that a killed run drew after the checkpoint that is being resumed."""
        for shown, path in _column_files(self.run_dir):
            if shown > nimg:
                path.unlink()

    def add(self, G: Generator, nimg: int, network: str | None = None) -> None:
        """Draw the column of G and the sheet. `network`: the name of G's file."""
        folder = self.run_dir / CONTACT_FOLDER
        folder.mkdir(exist_ok=True)
        if not (folder / DATA_FILE).exists():
            reals = images.grid(_shrink(images.to_rgb(self._reals())), 1)
            images.save_png(reals, folder / DATA_FILE, self._about(data=True))
        # The file's hash is left out, so that a resumed run draws a column with the same bytes.
        text = {"nimg": nimg, "network": network, "truncation": 1, **self._about()}
        images.save_png(
            images.grid(_shrink(images.to_rgb(self._draw(G))), 1), folder / f"{nimg:09d}.png", text
        )
        while len(columns := _column_files(self.run_dir)) > MAX_COLUMNS:
            at = [shown for shown, _ in columns]
            gaps = [
                at[i + 1] - at[i - 1] for i in range(1, len(at) - 1)
            ]  # the first and the last column are kept
            columns[1 + gaps.index(min(gaps))][1].unlink()
        self._compose()

    @torch.no_grad()
    def _draw(self, G: Generator) -> torch.Tensor:
        device = next(G.parameters()).device
        z = rng.normal(self.seed, "contact/z", 0, range(self.rows), (G.z_dim,)).to(device)
        labels = torch.tensor(self.classes).repeat_interleave(PER_CLASS).to(device) if self.classes else None
        parts = [
            images.to_uint8(G(z[i : i + self.batch], None if labels is None else labels[i : i + self.batch]))
            for i in range(0, self.rows, self.batch)
        ]
        return torch.cat(parts).cpu()

    def _reals(self) -> torch.Tensor:
        order = rng.permutation(self.seed, "contact/reals", 0, len(self.dataset))
        if not self.classes or self.dataset.labels is None:
            picks = np.resize(order, self.rows)
        else:
            of_class = [order[self.dataset.labels[order] == label] for label in self.classes]
            picks = np.concatenate([np.resize(own if len(own) else order, PER_CLASS) for own in of_class])
        return torch.stack([torch.from_numpy(np.array(self.dataset[int(i)][0])) for i in picks])

    def _about(self, data: bool = False) -> dict[str, Any]:
        """The metadata of files: the seed and classes; with `data` also the data set."""
        known = {"data": self.dataset.name, "data_hash": self.dataset.content_hash()} if data else {}
        return {"run_seed": self.seed, "classes": self.classes or None, **known}

    def row_names(self) -> list[str]:
        """The names of the rows: one per class (PER_CLASS rows), or one per latent without classes."""
        names = self.dataset.class_names or [f"class {i}" for i in range(self.dataset.label_dim)]
        return [names[label] for label in self.classes] or [f"latent {i + 1}" for i in range(self.rows)]

    def _compose(self) -> None:
        """Draw the sheet from the stored columns."""
        columns = read_columns(self.run_dir, self.rows)
        if not columns:
            return
        cells = columns_grid([cells for _, cells in columns])
        names = self.row_names()
        rows = [name for name in names for _ in range(self.rows // len(names))]
        left_out = self.dataset.label_dim - len(self.classes)
        caption = f"{len(self.classes)} of {self.dataset.label_dim:,} classes"
        sheet = images.labelled_grid(
            cells,
            rows,
            len(columns),
            min_cell=48,
            column_labels=headings(columns),
            caption=caption if left_out > 0 else None,
        )
        kimg = ",".join(kimg_text(nimg / 1000) for nimg, _ in columns if nimg is not None)
        images.save_png(sheet, self.run_dir / CONTACT_SHEET_FILE, {"kimg": kimg, **self._about(data=True)})


def _column_files(run_dir: Path) -> list[tuple[int, Path]]:
    """(images shown, file) of the stored columns, oldest first."""
    found = ((path.stem, path) for path in (run_dir / CONTACT_FOLDER).glob("*.png"))
    return sorted((int(stem), path) for stem, path in found if stem.isdecimal())


def read_columns(run_dir: Path, rows: int | None = None) -> list[tuple[int | None, np.ndarray]]:
    """Read the stored columns, ending with that of the data.

    Damaged columns, and columns with another size or number of rows, are skipped.

    Args:
        run_dir: the run folder.
        rows: number of rows; None = that of the first column.

    Returns:
        (images shown or None for the data, cells as uint8 [rows, cell, cell, 3]) of each column.
    """
    files: list[tuple[int | None, Path]] = [
        *_column_files(run_dir),
        (None, run_dir / CONTACT_FOLDER / DATA_FILE),
    ]
    columns: list[tuple[int | None, np.ndarray]] = []
    for nimg, path in files:
        try:
            with PIL.Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError:
            continue
        cell = pixels.shape[1]
        wanted = (rows or pixels.shape[0] // cell, cell, cell, 3) if not columns else columns[0][1].shape
        if pixels.shape == (wanted[0] * wanted[1], wanted[2], 3):
            columns.append((nimg, pixels.reshape(wanted)))
    return columns


def headings(columns: Sequence[tuple[int | None, np.ndarray]]) -> list[str]:
    """The heading of each column: kimg with as few decimals as keep them distinct, or "data"."""
    shown = [nimg for nimg, _ in columns if nimg is not None]
    least = 0 if all(nimg >= 1000 or nimg == 0 for nimg in shown) else 1
    texts = ([f"{nimg / 1000:.{decimals}f}" for nimg in shown] for decimals in range(least, 4))
    chosen = next(found for found in texts if len(set(found)) == len(found))
    return chosen + ["data"] * (len(columns) - len(shown))


def columns_grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns, uint8 [rows, cell, cell, 3] each, to uint8 [rows * columns, 3, cell, cell], row by row."""
    return np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:]).transpose(0, 3, 1, 2)


def _shrink(x: torch.Tensor) -> torch.Tensor:
    """Reduce uint8 [N, C, H, W] by averaging to at most about CELL pixels."""
    factor = x.shape[2] // CELL
    return x if factor < 2 else torch.nn.functional.avg_pool2d(x.float(), factor).round().to(torch.uint8)
