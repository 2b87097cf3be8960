# SPDX-License-Identifier: Apache-2.0
"""The image grids of a run folder: reals.png, and fakes_init.png and fakesNNNNNN.png of fixed latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dnnlib.util
from dnnlib.util import warn_if_unwritable
from torch_utils import images, rng
from training import run_folder
from training.config import RunConfig, TrainConfig
from training.data.class_names import spaced_labels
from training.data.dataset import ImageDataset
from training.generator import Generator


class Grids:
    """Draws grids of columns x rows images. With classes, each row shows one class. Used by one process."""

    def __init__(self, cfg: TrainConfig, run_dir: Path, dataset: ImageDataset, device: torch.device) -> None:
        self.run_dir, self.dataset, self.device = run_dir, dataset, device
        self.seed, self.batch = cfg.run.seed, max(cfg.batch_gpu, 8)
        self.columns, self.rows = grid_shape(cfg.run, dataset.resolution, dataset.label_dim)

    def begin(self, G: Generator) -> None:
        """Write reals.png and fakes_init.png."""
        data = {"data": self.dataset.name, "data_hash": self.dataset.content_hash()}
        self._save(self._reals(), run_folder.REALS_FILE, data)
        self._save(self._fakes(G), run_folder.FAKES_INIT_FILE, {"nimg": 0, "truncation": 1})

    def fakes(self, G: Generator, number: str, about: Mapping[str, Any]) -> None:
        """Write fakesNNNNNN.png of G.

        Args:
            G: the generator.
            number: number of the snapshot.
            about: metadata of the file.
        """
        path = run_folder.fakes_file(self.run_dir, number)
        self._save(self._fakes(G), path.name, {**about, "truncation": 1})

    def _save(self, pixels: torch.Tensor, name: str, about: Mapping[str, Any]) -> None:
        labelled = self.dataset.label_dim > 0
        classes = spaced_labels(self.dataset.label_dim, self.rows) if labelled else None
        text = {**about, "run_seed": self.seed, "classes": classes}
        with warn_if_unwritable(name):
            images.save_png(images.grid(pixels, self.columns), self.run_dir / name, text)

    def _reals(self) -> torch.Tensor:
        """uint8 [columns * rows, C, H, W]."""
        n, labels = len(self.dataset), self.dataset.labels
        order = rng.permutation(self.seed, "grid/reals", 0, n)
        picks: list[int] = []
        if labels is not None and self.dataset.label_dim > 0:
            for label in spaced_labels(self.dataset.label_dim, self.rows):
                of_class = order[labels[order] == label]
                picks += [int(i) for i in np.resize(of_class if len(of_class) else order, self.columns)]
        else:
            picks = [int(i) for i in np.resize(order, self.columns * self.rows)]
        return torch.stack([torch.from_numpy(np.array(self.dataset[i][0])) for i in picks])

    @torch.no_grad()
    def _fakes(self, G: Generator) -> torch.Tensor:
        """uint8 [columns * rows, C, H, W] on the CPU."""
        total = self.columns * self.rows
        z = rng.normal(self.seed, "grid/z", 0, range(total), (G.z_dim,))
        labels = None
        if G.c_dim > 0:
            labels = torch.tensor(spaced_labels(G.c_dim, self.rows)).repeat_interleave(self.columns)
        parts = []
        for i in range(0, total, self.batch):
            c = None if labels is None else labels[i : i + self.batch].to(self.device)
            parts.append(images.to_uint8(G(z[i : i + self.batch].to(self.device), c)).cpu())
        return torch.cat(parts)


def grid_shape(run: RunConfig, resolution: int, c_dim: int) -> tuple[int, int]:
    """Columns and rows of the grids of generated images.

    With `auto`, a row per class for up to 32 classes, otherwise as many images as fit in about 1920 x 1080
    pixels.

    Raises:
        ValueError: --grid is not columns x rows, or too large for a picture.
    """
    if run.grid != "auto":
        try:
            columns, rows = dnnlib.util.parse_grid(run.grid)
        except ValueError as error:
            raise ValueError(f"--grid={run.grid[:40]}: {error}") from None
        images.check_picture(f"--grid={run.grid}", columns * rows, resolution)
        return columns, rows
    columns = min(max(1920 // resolution, 4), 16)
    rows = c_dim if 1 < c_dim <= 32 else min(max(1080 // resolution, 4), 9)
    return columns, rows
