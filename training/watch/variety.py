# SPDX-License-Identifier: Apache-2.0
"""Measure how varied the generator's images are. This number drops first when a GAN collapses.

    python -m training.watch.variety training-runs/00000-stylegan3-t-emoji16      # all
    python -m training.watch.variety training-runs/00000-stylegan3-t-emoji16 0.7  # psi = 0.7

At every tick, G_ema generates images from a small fixed set of latents and classes. A frozen feature network
of the discriminator turns them into pooled features, which are compared with those of real images of the same
classes:

    within     root mean square distance of a sample's features from the mean of its class (unconditional:
               from the overall mean)
    between    root mean square distance of the class means from their common mean, minus what `within`
               contributes by chance
    recall     share of the real images that lie near a generated image of their class: within the distance
               from it to its second nearest generated image of that class (Kynkaanniemi et al. 2019, within
               classes). A few shapes in many brightnesses and patterns can have the spread of the data, and
               recall is low.

All are divided by the values of the data; for recall, that is how one half of the real images recalls the
other. 1 = as varied as the data, 0 = all alike. Spreads above 1 are common early in training, because
artefacts vary, too.

Measuring does not affect training: latents and choices are functions of the seed, and the only state is the
features of the data. Shapes: N images, C classes, F features.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_utils import distributed, images, rng
from torch_utils.features import FeatureNetwork
from training import build
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator
from training.networks.reader import load
from training.run_folder import load_run, snapshot_files

MIN_PER_CLASS = 4  # with fewer samples per class, fewer classes are used
MIN_IMAGES = 16
# A tick shows at least this many times as many images as are generated here: at most 2% of its time
# (docs/performance.md).
TICK_SHARE = 16
REALS_PER_FAKE = 2  # real images are measured only once; half of them recall the others
NEIGHBOURS = 2  # radius of a generated image, in neighbours of its class
SPLITS = 16  # random halves over which the recall of the data is averaged


class Spread(NamedTuple):
    """Spreads within and between classes. `between` is None if there are fewer than two classes."""

    within: float
    between: float | None


class Measured(NamedTuple):
    """Spreads and recall, divided by those of the data. None: there is nothing to compare with."""

    within: float
    between: float | None
    recall: float | None


def spread(features: Tensor, labels: Tensor) -> Spread:
    """Root mean square spreads within classes and between class means, summed over features.

    This is a one-way analysis of variance with random effects.

    Args:
        features: [N, F].
        labels: [N]. Classes with fewer than two samples are ignored. If there is no other class, within = 0.
    """
    x = features.double()
    means, counts, squares = [], [], 0.0
    for label in torch.unique(labels).tolist():
        of_class = x[labels == label]
        if len(of_class) > 1:
            means.append(of_class.mean(dim=0))
            counts.append(len(of_class))
            squares += float((of_class - means[-1]).square().sum())
    if not means:
        return Spread(0.0, None)
    within = squares / (sum(counts) - len(counts))  # variance, summed over features
    if len(means) < 2:
        return Spread(within**0.5, None)
    chance = within * float(np.mean(1 / np.array(counts)))
    between = float(torch.stack(means).var(dim=0).sum()) - chance
    return Spread(within**0.5, max(between, 0.0) ** 0.5)


def recall(real: Tensor, real_labels: Tensor, generated: Tensor, labels: Tensor) -> float | None:
    """The share of real rows in a ball around a generated row of their class.

    The ball reaches to the NEIGHBOURS-th nearest other generated row of the class, or to the farthest one if
    there are fewer.

    Args:
        real: [M, F].
        real_labels: [M].
        generated: [N, F].
        labels: [N]. Classes with fewer than two rows are ignored on both sides.

    Returns:
        The share; None if no class has real rows and two generated ones.
    """
    found, total = 0, 0
    for label in torch.unique(labels).tolist():
        x, y = real[real_labels == label].double(), generated[labels == label].double()
        if len(y) < 2 or len(x) == 0:
            continue
        to_others = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist")
        radii = to_others.kthvalue(min(NEIGHBOURS, len(y) - 1) + 1).values  # each row is its own nearest
        near = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") <= radii
        found += int(near.any(dim=1).sum())
        total += len(x)
    return found / total if total else None


class Variety:
    """Compares G_ema with the data. All processes share the work: each creates one and calls `measure`."""

    def __init__(
        self, dataset: ImageDataset, D: ProjectedDiscriminator, count: int, batch: int, seed: int
    ) -> None:
        """Choose classes, latents and real images, and measure the real images.

        Args:
            dataset: the data.
            D: the discriminator.
            count: generated images per measurement.
            batch: maximum number of images at a time.
            seed: seed of the choices.

        Raises:
            ValueError: the data has features that are not finite.
        """
        self.D, self.batch, self.seed = D, batch, seed
        self.network = _cheapest(D)
        self.classes, per_class, reals = _choose(dataset, count, seed)
        self.labels = torch.tensor(self.classes).repeat_interleave(per_class)  # [N]; unconditional: all 0
        picked = [int(i) for i in reals]
        self.reals = self._features(
            lambda part: torch.stack([torch.from_numpy(np.array(dataset[picked[i]][0])) for i in part]),
            len(picked),
        )
        self.real_labels = (
            torch.zeros(len(picked)) if dataset.labels is None else torch.from_numpy(dataset.labels[picked])
        )
        self.data = spread(self.reals, self.real_labels)
        if not np.isfinite(self.data.within):
            raise ValueError(
                f"{self.network} computes features that are not finite for {dataset.path}; check its weights"
            )
        self.halves = {
            int(c): min(per_class, int((self.real_labels == c).sum()) // 2) for c in set(self.labels.tolist())
        }
        self.recallers = self._first(self.labels)
        self.data_recall = self._recall_of_data()

    def _first(self, labels: Tensor) -> Tensor:
        """Indices of the first images of each class: at most half as many as real ones."""
        places = [torch.nonzero(labels == c)[:half, 0] for c, half in self.halves.items()]
        return torch.cat(places)

    def _recall_of_data(self) -> float | None:
        """How one half of the real images recalls the other, mean over SPLITS random halves."""
        values = []
        for i in range(SPLITS):
            order = torch.from_numpy(rng.permutation(self.seed, "variety/halves", i, len(self.reals)))
            x, labels = self.reals[order], self.real_labels[order]
            half = self._first(labels)
            others = torch.ones(len(x), dtype=torch.bool)
            others[half] = False
            values.append(recall(x[others], labels[others], x[half], labels[half]))
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    @torch.no_grad()
    def measure(self, G: Generator, psi: float = 1.0) -> Measured:
        """The spreads and the recall of G's images divided by those of the data.

        Spreads are 0 if the data's are 0 (identical images). Recall is None if the data's is 0 or unknown.

        Args:
            G: the generator.
            psi: truncation.
        """
        z = rng.normal(self.seed, "variety/z", 0, range(len(self.labels)), (G.z_dim,))
        device = next(G.parameters()).device
        truncation = {} if psi == 1 else {"truncation_psi": psi}

        def draw(part: list[int]) -> Tensor:
            return images.to_uint8(
                G(z[part].to(device), self.labels[part].to(device) if G.c_dim > 0 else None, **truncation)
            )

        found = self._features(draw, len(self.labels))
        mine = spread(found, self.labels)
        within = mine.within / self.data.within if self.data.within > 0 else 0.0
        between = None
        if mine.between is not None and self.data.between is not None:
            between = mine.between / self.data.between if self.data.between > 0 else 0.0
        recalled = None
        if self.data_recall:
            picked = self.recallers
            share = recall(self.reals, self.real_labels, found[picked], self.labels[picked])
            recalled = None if share is None else share / self.data_recall
        return Measured(within, between, recalled)

    @torch.no_grad()
    def _features(self, pixels: Callable[[list[int]], Tensor], count: int) -> Tensor:
        """Compute pooled features [count, F] on the CPU. Each process computes its share.

        Args:
            pixels: makes uint8 images from a list of indices.
            count: number of images.
        """
        processes, rank = distributed.world_size(), distributed.rank()
        share = -(-count // processes)
        # All shares have the same length, so the last ones may start again from the first image.
        mine = [(rank * share + i) % count for i in range(share)]
        network = self.D.feature_networks[self.network]
        assert isinstance(network, FeatureNetwork)
        parts = []
        for i in range(0, share, self.batch):
            x = images.to_float(pixels(mine[i : i + self.batch]).to(network.mean.device))
            parts.append(network.pooled(self.D.network_input(self.network, x)))
        return distributed.all_gather_cat(torch.cat(parts))[:count].cpu()


def images_per_tick(wanted: int, tick_kimg: float) -> int:
    """The number of images to generate: `wanted`, or fewer if ticks are short."""
    return min(wanted, max(MIN_IMAGES, int(tick_kimg * 1000) // TICK_SHARE))


def _cheapest(D: ProjectedDiscriminator) -> str:
    """The first convolutional network, or the first network if there is none."""
    kinds = {key: network.kind for key, network in D.feature_networks.items()}
    return next((key for key, kind in kinds.items() if kind == "cnn"), next(iter(kinds)))


def _choose(dataset: ImageDataset, count: int, seed: int) -> tuple[list[int], int, np.ndarray]:
    """Choose evenly spaced classes among those with at least two images.

    Returns:
        (classes, samples per class, indices of real images).
    """
    n = dataset.num_originals  # copies would reduce the variety
    order = rng.permutation(seed, "variety/reals", 0, n)
    if dataset.labels is None:
        return [0], count, order[: REALS_PER_FAKE * count]
    labels = dataset.labels[:n]
    usable = np.flatnonzero(np.bincount(labels, minlength=1) >= 2)
    if len(usable) == 0:
        usable = np.unique(labels)
    classes = usable[
        np.linspace(0, len(usable) - 1, min(len(usable), max(count // MIN_PER_CLASS, 1))).round().astype(int)
    ]
    per_class = max(count // len(classes), 2)
    reals = np.concatenate([order[labels[order] == c][: REALS_PER_FAKE * per_class] for c in classes])
    return [int(c) for c in classes], per_class, reals


def main() -> int:
    """Run the command line."""
    if not 2 <= len(sys.argv) <= 3:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    try:
        psi = float(sys.argv[2]) if len(sys.argv) == 3 else 1.0
        cfg = load_run(str(folder))
        dataset = build.make_dataset(cfg.data, cfg.run.seed)
        D = build.fresh_discriminator(cfg, dataset)
        variety = Variety(dataset, D, cfg.run.variety or 64, max(cfg.batch_gpu, 8), cfg.run.seed)
        for path in snapshot_files(folder):
            found = variety.measure(load(str(path)).eval(), psi)._asdict()
            values = [f"{name} {value:.3f}" for name, value in found.items() if value is not None]
            print("  ".join([path.name, *values]), flush=True)
    except (ValueError, OSError) as err:
        print(f"Error: {folder}: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
