# SPDX-License-Identifier: Apache-2.0
"""Measures how many images a class's mean feature needs, and how many real images a Frechet distance needs.

    python -m benchmarks.class_means fashion32.zip        # 1,000 images per class; 5 minutes on one CPU core
    python -m benchmarks.class_means fashion32.zip 200

The first table is the basis of `images_per_class` (training's class embedding), the second of
`LITE0_REAL_IMAGES` (metrics.registry).
"""

from __future__ import annotations

import sys

import numpy as np
import scipy.spatial
import torch

from dnnlib.progress import Progress
from metrics.detectors import load_lite0
from metrics.fid import frechet_distance
from metrics.statistics import Moments
from training.data.class_embedding import _choose, spread_class_embedding
from training.data.dataset import ImageDataset

REPEATS = 10


def features(dataset: ImageDataset, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lite0 features [n, D] and labels [n] of `per_class` images of each class, in random order."""
    assert dataset.labels is not None
    chosen = np.random.RandomState(0).permutation(_choose(dataset.labels, per_class, seed=0))
    detector, progress, rows = load_lite0(), Progress(label="Features", unit=""), []
    for start in range(0, len(chosen), 16):
        part = chosen[start : start + 16]
        rows.append(detector(torch.from_numpy(dataset.load(part)))["features"].double().numpy())
        progress.advance(len(part), len(chosen))
    return np.concatenate(rows), dataset.labels[chosen]


def class_means(rows: np.ndarray, labels: np.ndarray) -> None:
    """Print the error of the spread means of n images per class relative to those of all images."""
    groups = [rows[labels == label] for label in np.unique(labels)]

    def table(count: int | None, random: np.random.RandomState) -> np.ndarray:
        means = [group[random.permutation(len(group))[:count]].mean(axis=0) for group in groups]
        return spread_class_embedding(torch.from_numpy(np.stack(means))).numpy()

    full = table(None, np.random.RandomState(0))
    between = scipy.spatial.distance.cdist(full, full) + np.diag(np.full(len(full), np.inf))
    print("images per class error / distance to the nearest class   cosine distance   (mean over classes)")
    for count in (20, 50, 100, 200, 500):
        errors, cosines = [], []
        for repeat in range(REPEATS):
            found = table(count, np.random.RandomState(repeat))
            errors.append(np.linalg.norm(found - full, axis=1) / between.min(axis=1))
            cosines.append(np.diag(scipy.spatial.distance.cdist(found, full, "cosine")))
        print(f"{count:14d}   {np.mean(errors):37.3f}   {np.mean(cosines):15.4f}")


def reference_sizes(rows: np.ndarray, generated: int = 2000) -> None:
    """Print the distance of `generated` images from n other images of the same set.

    A perfect generator would reach this distance.
    """

    def moments(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        store = Moments(part.shape[1])
        store.append(part)
        return store.mean, store.covariance

    print(f"real images   fd_lite0 of {generated} images of the same set")
    for count in (1000, 2000, 4000, 8000, 16000):
        values = []
        for repeat in range(REPEATS):
            order = np.random.RandomState(repeat).permutation(len(rows))
            if len(order) >= generated + count:
                sides = order[:generated], order[generated : generated + count]
                values.append(frechet_distance(*moments(rows[sides[0]]), *moments(rows[sides[1]])))
        if values:
            print(f"{count:11d}   {np.mean(values):.2f} +- {np.std(values):.2f}")


def main() -> None:
    """Run the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit(str(__doc__))
    rows, labels = features(
        ImageDataset(sys.argv[1], use_labels=True), int(sys.argv[2]) if len(sys.argv) == 3 else 1000
    )
    class_means(rows, labels)
    reference_sizes(rows)


if __name__ == "__main__":
    main()
