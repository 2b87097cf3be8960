# SPDX-License-Identifier: Apache-2.0
"""The energy distance between the shapes of generated and real images of a class (--energy-weight).

Sources: Szekely and Rizzo, "Energy statistics", 2013; in GANs: Bellemare et al., "The Cramer Distance", 2017.

Shapes: N images, C classes, K real images of a class, F features (pixels that are compared).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_utils import images as image_tools
from torch_utils import rng
from training.data.dataset import ImageDataset
from training.discriminator.heads import group_size

# Generated images among which pairs are made, so that the distance does not depend on the size of
# micro-batches of whole groups, and the side of the images that are compared, in pixels.
GROUP, SIZE = 8, 32
TOTAL, FEWEST, MOST = 4096, 8, 128  # real images: of all classes, and of each


class Reals(NamedTuple):
    """Real images that generated ones are compared with."""

    shapes: Tensor  # float32 [C, K, F]
    spread: Tensor  # float32 [C], the mean distance between two of a class


def choose(
    dataset: ImageDataset,
    seed: int,
    device: torch.device | str = "cpu",
    pause: Callable[[], None] = lambda: None,
) -> Reals:
    """Choose real images of every class: up to MOST, fewer with many classes, the same in every process.

    A class with fewer images shows them repeatedly. Without labels all images are one class.

    Args:
        dataset: The training set.
        seed: Of the choice.
        device: Of the result.
        pause: Called before each class; an exception it raises stops the choice.
    """
    labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
    classes = max(dataset.label_dim, 1)
    count = min(max(TOTAL // classes, FEWEST), MOST)
    order = rng.permutation(seed, "energy/reals", 0, len(dataset))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels, minlength=classes)
    found, spread = [], []
    for members in np.split(by_class, np.cumsum(sizes)[:-1]):
        pause()
        picked = np.resize(members, count) if len(members) else members
        own = [torch.from_numpy(np.array(dataset[int(i)][0])) for i in picked]
        pixels = torch.stack(own) if own else torch.zeros(count, *dataset.image_shape, dtype=torch.uint8)
        shapes = _shapes(image_tools.to_float(pixels))
        found.append(shapes)
        spread.append(_distances(shapes, shapes).mean())
    return Reals(torch.stack(found).to(device), torch.stack(spread).to(device))


def distance(images: Tensor, labels: Tensor | None, reals: Reals) -> Tensor:
    """Return the energy distance between the shapes of generated and real images, from pairs.

    A pair of generated images x_i, x_j of a class and group contributes E|x_i - y| + E|x_j - y| - |x_i - x_j|
    - E|y - y'|, y and y' among the real images of the class. The expectation is the energy distance. It is 0
    only if both distributions are the same, so images of a class that are more alike than those of the data
    make it larger. Images are compared by shape, which leaves out brightness and contrast: without their
    mean, of unit length, averaged to at most SIZE pixels.

    Args:
        images: Generated images [N, C', R, R]; the result is differentiable in them.
        labels: int64 [N]; None = all are of one class.
        reals: The real images.

    Returns:
        The mean over the pairs of a group of GROUP consecutive images, averaged over groups. A group without
        a pair adds 0. If N is not a multiple of GROUP, all images are one group.
    """
    size = group_size(len(images), GROUP)
    c = torch.zeros(len(images), dtype=torch.long, device=images.device) if labels is None else labels
    x = _shapes(images)
    to_reals = _distances(x[:, None], reals.shapes[c]).mean(dim=(1, 2))
    halves = (to_reals - reals.spread[c] / 2).unflatten(0, (-1, size))  # [groups, size]
    x, groups = x.unflatten(0, (-1, size)), c.unflatten(0, (-1, size))
    terms = halves[:, :, None] + halves[:, None, :] - _distances(x, x)
    pairs = (groups[:, :, None] == groups[:, None, :]).triu(1)
    counts = pairs.sum(dim=(1, 2)).clamp(min=1)
    found: Tensor = ((terms * pairs).sum(dim=(1, 2)) / counts).mean()
    return found


def _shapes(images: Tensor) -> Tensor:
    """Return images [N, C', R, R] as float32 [N, F] without mean, of unit length; 0 if constant."""
    x = images.float()
    if x.shape[1] == 4:  # what alpha hides has no shape
        alpha = (x[:, 3:] + 1) / 2
        x = torch.cat([(x[:, :3] + 1) * alpha, x[:, 3:]], dim=1)
    if x.shape[-1] > SIZE:
        x = F.avg_pool2d(x, x.shape[-1] // SIZE)
    x = x.flatten(1)
    return F.normalize(x - x.mean(dim=1, keepdim=True), eps=1e-3)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j| [..., I, J]. Products would lose small distances, above all in TF32."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
