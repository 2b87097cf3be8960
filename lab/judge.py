# SPDX-License-Identifier: Apache-2.0
"""Evaluates small generated images: a classifier, and the distance between features of images and of data.

Shapes: N images, C channels, R pixels a side (a multiple of four).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics import detectors
from metrics.fid import frechet_distance
from metrics.statistics import Moments
from torch_utils import images as image_tools

HELD_OUT = 0.1  # share of the images on which the classifier's own accuracy is measured


class Judge:
    """A small convolutional classifier. The same data give the same classifier.

    It is trained on all images except a tenth; `held_out_accuracy` is its accuracy on that tenth.

    Args:
        pixels: uint8 [N, C, R, R].
        labels: int64 [N] in [0, classes).
        classes: number of classes.
        epochs: passes over the images.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes: int, epochs: int = 3) -> None:
        self.classes = classes
        channels, side = pixels.shape[1], pixels.shape[2]
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                nn.Linear(64 * (side // 4) ** 2, classes),
            )  # fmt: skip
            order = torch.randperm(len(pixels))
            kept, held_out = order[round(HELD_OUT * len(order)) :], order[: round(HELD_OUT * len(order))]
            optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
            for _ in range(epochs):
                for part in torch.split(kept[torch.randperm(len(kept))], 128):
                    optimizer.zero_grad()
                    logits = self.network(image_tools.to_float(pixels[part]))
                    torch.autograd.backward(F.cross_entropy(logits, labels[part]))
                    optimizer.step()
        self.network.eval()
        self.held_out_accuracy = float(
            (self.classes_of(pixels[held_out]) == labels[held_out]).double().mean()
        )

    @torch.no_grad()
    def classes_of(self, pixels: Tensor) -> Tensor:
        """Return the predicted classes int64 [N] of images uint8 [N, C, R, R]."""
        parts = torch.split(pixels, 500)
        return torch.cat([self.network(image_tools.to_float(part)).argmax(1) for part in parts])

    def scores(self, pixels: Tensor, asked: Tensor | None) -> dict[str, float]:
        """Return balance and, if classes were requested, accuracy.

        Balance is the entropy of the predicted classes over log(classes); 1 = all equally often. Accuracy is
        the share of images whose predicted class is the requested one.
        """
        seen = self.classes_of(pixels)
        share = torch.bincount(seen, minlength=self.classes).double() / len(seen)
        found = {"balance": float(torch.special.entr(share).sum()) / math.log(self.classes)}
        return found | ({"accuracy": float((seen == asked).double().mean())} if asked is not None else {})


class FeatureDistance:
    """fd_lite0: the Frechet distance between EfficientNet-Lite0 features of images and of `real`.

    Args:
        real: uint8 [N, C, R, R].
    """

    def __init__(self, real: Tensor) -> None:
        self.detector = detectors.load_lite0()
        self.real = self._moments(real)

    def _moments(self, pixels: Tensor) -> Moments:
        store = Moments(self.detector.dims["features"])
        for part in torch.split(pixels, 100):
            store.append(self.detector(part)["features"].numpy())
        return store

    def __call__(self, pixels: Tensor) -> float:
        """Return the distance of images uint8 [N, C, R, R].

        It increases for few images: compare only distances of the same number of images.
        """
        found = self._moments(pixels)
        return float(frechet_distance(found.mean, found.covariance, self.real.mean, self.real.covariance))
