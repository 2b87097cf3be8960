# SPDX-License-Identifier: Apache-2.0
"""Style mixing: images with the styles of one seed in some layers and of another seed in the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from generation import render, walk
from generation.commands import progress_bar
from generation.pictures import magnified
from torch_utils import images


def mixed(row: Tensor, column: Tensor, layers: Sequence[int]) -> Tensor:
    """Style codes [num_ws, W] of `row`, with some layers of `column`."""
    ws = row.clone()
    ws[list(layers)] = column[list(layers)]
    return ws


@torch.no_grad()
def write(
    network: render.Network,
    rows: Sequence[int],
    cols: Sequence[int],
    layers: Sequence[int],
    folder: Path,
    *,
    index: int | None = None,
    truncation: float = 1,
    centroids: Tensor | None = None,
    scale: int = 1,
    about: dict[str, Any],
) -> None:
    """Write ROW-COL.png, SEED-SEED.png and grid.png.

    Args:
        network: The network.
        rows: Seeds of the rows.
        cols: Seeds of the columns.
        layers: Rows of ws that come from the columns.
        folder: Existing folder.
        index: Class of all images; None = the classes that the seeds draw.
        truncation: psi.
        centroids: See `render.styles`.
        scale: Magnify the pictures.
        about: Entries of the files' metadata (see `render.about`).
    """
    seeds = list(dict.fromkeys([*rows, *cols]))
    codes = {seed: walk.seed_styles(network, seed, index, truncation, centroids) for seed in seeds}
    pairs = dict.fromkeys([(row, col) for row in rows for col in cols if row != col])
    ws = {(seed, seed): codes[seed] for seed in seeds}
    ws |= {(row, col): mixed(codes[row], codes[col], layers) for row, col in pairs}
    text = {**about, "style_layers": images.number_list(layers)}
    known = None if index is None or not network.G.c_dim else [index]
    pictures: dict[tuple[int, int], Tensor] = {}
    with progress_bar(len(ws), "Images") as done:
        for pair, code in ws.items():
            pictures[pair] = render.synthesize(network, code[None])[0]
            chunks = render.about(network, list(dict.fromkeys(pair)), known, **text)
            shown = magnified(images.grid(pictures[pair][None], 1), scale)
            images.save_png(shown, folder / f"{pair[0]}-{pair[1]}.png", chunks)
            done(1)
    cells = [torch.zeros_like(next(iter(pictures.values()))), *(pictures[col, col] for col in cols)]
    for row in rows:
        cells += [pictures[row, row], *(pictures[row, col] for col in cols)]
    sheet = magnified(images.grid(torch.stack(cells), len(cols) + 1), scale)
    images.save_png(sheet, folder / "grid.png", render.about(network, [*rows, *cols], known, **text))
    click.echo(f"{len(ws)} images and grid.png in {folder}")
