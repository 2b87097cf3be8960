# SPDX-License-Identifier: Apache-2.0
"""The shape of the fake grids."""

from __future__ import annotations

from training.config import RunConfig


def grid_shape(run: RunConfig, resolution: int, c_dim: int) -> tuple[int, int]:
    """Columns and rows of the fake grids. `auto`: a row per class up to 32 classes, else what fits about 1920 x 1080 pixels.

    Raises:
        ValueError: --grid is not COLUMNSxROWS.
    """
    if run.grid != "auto":
        try:
            columns, rows = (int(v) for v in run.grid.lower().split("x"))
        except ValueError:
            raise ValueError(f"--grid={run.grid}: give COLUMNSxROWS, such as 10x4") from None
        if columns < 1 or rows < 1:
            raise ValueError(f"--grid={run.grid}: columns and rows must be positive")
        return columns, rows
    columns = min(max(1920 // resolution, 4), 16)
    rows = c_dim if 1 < c_dim <= 32 else min(max(1080 // resolution, 4), 9)
    return columns, rows
