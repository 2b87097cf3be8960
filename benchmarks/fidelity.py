# SPDX-License-Identifier: Apache-2.0
"""FID, KID, Inception Score, precision and recall beside torch-fidelity, on the same images and weights.

    PYTHONPATH=other/lib/python3.11/site-packages python -m benchmarks.fidelity images.zip 100

`other` is an environment with torch-fidelity, which this project does not depend on. The first argument is
a folder, zip or IDX file of images, the second the number of images on each side: two halves of a random
subset. Both programs run in this process and use the same random weights of Inception and VGG16, so the
numbers mean nothing by themselves. 100 images take about five minutes on one CPU core.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metrics import fid, inception, inception_score, kid, precision_recall, vgg16
from metrics.detector import Detector
from metrics.detectors import load_random_inception
from metrics.image_sets import ImageFiles, RealImages
from metrics.names import VGG16_TORCHVISION

BATCH, SEED = 25, 2020  # torch-fidelity's seed of subsets and shuffles


class Pixels(torch.utils.data.Dataset[Tensor]):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def rows_of(detector: Detector, images: Tensor, output: str = "features") -> np.ndarray:
    """An output of a detector."""
    parts = [detector(part)[output].numpy() for part in images.split(BATCH)]
    return np.concatenate(parts)


def save_inception(path: Path) -> Detector:
    """Write the weights of the random Inception; return the detector that has them."""
    torch.manual_seed(0)
    network = inception.InceptionV3()
    inception.randomize_(network, 0)
    detector = load_random_inception()
    torch.save(network.state_dict(), path)
    return detector


def save_vgg16(path: Path) -> Detector:
    """Write random weights of VGG16 under torchvision's names; return the detector that has them."""
    from torchvision import models

    torch.manual_seed(0)
    network = models.vgg16(weights=None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return vgg16.load(VGG16_TORCHVISION, str(path))


def ours(images: Tensor, other: Tensor, inception_detector: Detector, vgg: Detector) -> dict[str, float]:
    """Our numbers of images against others."""
    sides = [rows_of(inception_detector, x).astype(np.float64) for x in (other, images)]
    means, sigmas = [x.mean(axis=0) for x in sides], [np.cov(x, rowvar=False) for x in sides]
    random, count = np.random.RandomState(SEED), len(images)
    distances = kid.kernel_distances(*sides, max_subset_size=count // 2, rng=random)
    order = np.random.RandomState(SEED).permutation(count)
    probabilities = rows_of(inception_detector, images, "probabilities")[order]
    score, spread = inception_score.inception_score(probabilities)
    precision, recall = precision_recall.precision_recall(rows_of(vgg, other), rows_of(vgg, images), 3)
    return {
        "FID": fid.frechet_distance(means[0], sigmas[0], means[1], sigmas[1]),
        "KID mean": float(distances.mean()),
        "KID std": float(distances.std()),
        "IS mean": score,
        "IS std": spread,
        "precision": precision,
        "recall": recall,
    }


def theirs(images: Tensor, other: Tensor, inception_file: Path, vgg_file: Path) -> dict[str, float]:
    """Their numbers of the same."""
    library: Any = importlib.import_module("torch_fidelity")
    common = {
        "input1": Pixels(images), "input2": Pixels(other), "cuda": False, "batch_size": BATCH,
        "verbose": False, "cache": False, "save_cpu_ram": True,
    }  # fmt: skip
    found = library.calculate_metrics(
        **common, fid=True, kid=True, isc=True, kid_subset_size=len(images) // 2,
        feature_extractor_weights_path=str(inception_file),
    )  # fmt: skip
    found |= library.calculate_metrics(
        **common, prc=True, feature_extractor="vgg16", feature_extractor_weights_path=str(vgg_file)
    )
    return {
        "FID": found["frechet_inception_distance"],
        "KID mean": found["kernel_inception_distance_mean"],
        "KID std": found["kernel_inception_distance_std"],
        "IS mean": found["inception_score_mean"],
        "IS std": found["inception_score_std"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def main() -> None:
    """The command line."""
    warnings.simplefilter("ignore")
    path, count = sys.argv[1], int(sys.argv[2])
    source = RealImages(ImageFiles(path), 2 * count)
    images, other = source(range(count)), source(range(count, 2 * count))
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "inception.pth", Path(folder) / "vgg16.pth"
        detectors = save_inception(files[0]), save_vgg16(files[1])
        rows = [ours(images, other, *detectors), theirs(images, other, *files)]
    print(f"{'metric':12s}{'ours':>18s}{'torch-fidelity':>18s}")
    for name in rows[0]:
        print(f"{name:12s}{rows[0][name]:18.9g}{rows[1][name]:18.9g}")


if __name__ == "__main__":
    main()
