# SPDX-License-Identifier: Apache-2.0
"""Keyframes of gen_video.py: a walk over style codes, seeds, classes, truncation, motion and edits.

Each property of the keyframes is a list, and shorter lists repeat. So one seed with 32 classes is a walk over
the classes, and eight seeds with two strengths of an edit alternate between them.

Shapes: K keyframes, E edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from generation import render, w_files

T = TypeVar("T")
FIXED = 3  # columns of `motion` before the strengths


@dataclass(frozen=True)
class Walk:
    """The lists on the command line.

    Attributes:
        seeds: Seeds.
        files: Files of style codes; their codes come before those of the seeds.
        classes: Classes of the seeds, as --class; None = drawn by the seeds.
        truncations: psi of the seeds.
        shifts: Right and down, in image widths.
        rotations: Degrees anticlockwise.
    """

    seeds: Sequence[int]
    files: Sequence[str]
    classes: str | None
    truncations: Sequence[float]
    shifts: Sequence[tuple[float, float]]
    rotations: Sequence[float]


@dataclass(frozen=True)
class Lists:
    """The lists of a walk for a network: sources (style codes and seeds), classes and numbers.

    Attributes:
        walk: The lists on the command line.
        sources: Style codes [num_ws, W] of files, then seeds.
        classes: Indices of the classes; None = drawn by the seeds.
        strengths: Of each edit.
    """

    walk: Walk
    sources: list[Tensor | int]
    classes: list[int] | None
    strengths: list[tuple[float, ...]]

    def __len__(self) -> int:
        """Number of keyframes: the longest list."""
        walk, classes = self.walk, self.classes or []
        moved = len(walk.truncations), len(walk.shifts), len(walk.rotations)
        return max(len(self.sources), len(classes), *moved, *(len(values) for values in self.strengths))


def lists_of(walk: Walk, network: render.Network) -> Lists:
    """Read the files of a walk and find its classes.

    Raises:
        ValueError: A file or class does not fit the network. One line.
    """
    classes = render.class_indices(network, walk.classes) if walk.classes else None
    stored = [code for path in walk.files for code in w_files.load_w(path, network)]
    edits = [] if network.edits is None else network.edits.edits
    return Lists(walk, [*stored, *walk.seeds], classes, [edit.spec.strengths for edit in edits])


@dataclass(frozen=True)
class Keyframes:
    """Keyframes of a network.

    Attributes:
        ws: Style codes float32 [K, num_ws, W], without edits.
        motion: Shift right, shift down, rotation and the strengths of the edits, float32 [K, 3 + E].
        seeds: Seeds, for metadata.
        classes: Classes, for metadata; None = drawn by the seeds.
    """

    ws: np.ndarray
    motion: np.ndarray
    seeds: list[int]
    classes: list[int] | None

    def __len__(self) -> int:
        """K."""
        return len(self.ws)

    @property
    def is_moving(self) -> bool:
        """Whether motion or strengths differ between keyframes."""
        return bool((self.motion != self.motion[:1]).any())


def at(values: Sequence[T], index: int) -> T:
    """A value of a list that repeats."""
    return values[index % len(values)]


@torch.no_grad()
def keyframes(lists: Lists, network: render.Network, centroids: Tensor | None) -> Keyframes:
    """Compute the keyframes of a walk.

    Args:
        lists: Result of `lists_of`.
        network: The network with its edits.
        centroids: See `render.styles`.
    """
    walk, classes, strengths = lists.walk, lists.classes, lists.strengths
    ws, motion = [], np.zeros([len(lists), FIXED + len(strengths)], np.float32)
    for index in range(len(lists)):
        source = at(lists.sources, index)
        if isinstance(source, int):
            label = None if classes is None else at(classes, index)
            ws.append(seed_styles(network, source, label, at(walk.truncations, index), centroids))
        else:
            ws.append(source)
        motion[index] = [
            *at(walk.shifts, index),
            at(walk.rotations, index),
            *(at(values, index) for values in strengths),
        ]
    return Keyframes(torch.stack(ws).float().cpu().numpy(), motion, list(walk.seeds), classes)


def save(frames: Keyframes, network: render.Network, path: str) -> None:
    """Write the style codes of the keyframes, with the edits in W (--save-w)."""
    ws = torch.from_numpy(frames.ws).to(network.device)
    codes = []
    for code, motion in zip(torch.split(ws, 1), frames.motion, strict=True):
        if network.edits is not None:
            network.edits.strengths = motion[FIXED:].tolist()
        codes.append(code if network.edits is None else network.edits.on_w(code))
    w_files.save_shown(path, torch.cat(codes), network)


def seed_styles(
    network: render.Network, seed: int, label: int | None, truncation: float, centroids: Tensor | None
) -> Tensor:
    """The style codes [num_ws, W] of a seed. Without a label it has the class that gen_images.py gives it."""
    labels = render.seed_labels(network, seed, 1, label)
    z = render.latents(seed, 1, network.G.z_dim).to(network.device)
    labels = None if labels is None else labels.to(network.device)
    return render.styles(network.G, z, labels, truncation, centroids)[0]


def move(network: render.Network, motion: np.ndarray) -> None:
    """Shift, rotate and edit all later images of a network.

    Args:
        network: The network.
        motion: A row of `Keyframes.motion`.
    """
    x, y, angle, *strengths = (float(value) for value in motion)
    render.set_transform(network.G, (x, y), angle)
    if network.edits is not None:
        network.edits.strengths = strengths
