# SPDX-License-Identifier: Apache-2.0
"""Flipped and turned copies of the images of a data set.

A copy is a view of the array that it is written to, so decoding into a copy costs nothing extra.
"""

from typing import NamedTuple

import numpy as np


class View(NamedTuple):
    """An image, flipped horizontally if `xflip`, then turned counterclockwise by `turns` quarters."""

    xflip: bool = False
    turns: int = 0

    def mirrored(self) -> "View":
        """This copy, then flipped horizontally."""
        return View(not self.xflip, -self.turns % 4)

    def turned(self, quarters: int) -> "View":
        """This copy, then turned counterclockwise."""
        return View(self.xflip, (self.turns + quarters) % 4)

    def target(self, out: np.ndarray) -> np.ndarray:
        """The view of `out` [C, R, R] into which the original image is written to make this copy."""
        inner = np.rot90(out, -self.turns, axes=(1, 2))
        return inner[:, :, ::-1] if self.xflip else inner


def views(xflip: bool = False, yflip: bool = False, quarter_turns: bool = False) -> list[View]:
    """The copies of every image, the original first.

    Args:
        xflip: add horizontally flipped copies.
        yflip: add vertically flipped copies, also of those.
        quarter_turns: add copies of all of these turned by 90, 180 and 270 degrees.

    Returns:
        1, 2, 4 or 8 different copies.
    """
    found = [View()]
    if xflip:
        found += [view.mirrored() for view in found]
    if yflip:
        found += [view.mirrored().turned(2) for view in found]
    if quarter_turns:
        found += [view.turned(quarters) for quarters in (1, 2, 3) for view in found]
    return list(dict.fromkeys(found))
