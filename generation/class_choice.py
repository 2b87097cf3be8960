# SPDX-License-Identifier: Apache-2.0
"""The class of a target image: by a classifier of the network's classes, or by the nearest class mean.

A class mean is the image of the class's mean style code, so it needs neither a classifier nor a data set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generation import inversion, render
from generation.render import Network
from metrics.detector import Detector
from torch_utils import features, images
from training.data import class_names

PUBLISHED_CLASSIFIER = "deit_base_distilled_patch16_224"
IMAGENET_CLASSES = 1000
CODES = 1000  # of which a class's mean is computed
MAX_SIDE = 64  # pixels of the images of class means: their features stay in memory


def load_classifier(network: Network, name: str, weights: str | None = None) -> features.Classifier:
    """Load a timm classifier and match its classes with those of the network, by name where both have names.

    Args:
        network: The network.
        name: timm's name of the classifier.
        weights: File of its weights, or None for timm's pretrained ones.

    Raises:
        FileNotFoundError: The weights are missing.
        ValueError: The classifier lacks classes of the network.
    """
    classifier = features.classifier(name, weights)
    flag, own = f"--classifier={name}", network.class_names
    known = classifier.class_names
    if class_names.has_names(own) and class_names.has_names(known):
        places, missing = class_names.class_map(own, known, features.imagenet_descriptions())
        if missing:
            raise ValueError(
                f"{flag}: it lacks {len(missing)} of the {network.G.c_dim} classes of {network.path}: "
                f"{class_names.quoted(missing)}: remove the flag, or give --class"
            )
        classifier.class_map = torch.from_numpy(places)
    elif classifier.num_classes != network.G.c_dim:
        raise ValueError(
            f"{flag}: it has {classifier.num_classes} classes, but {network.path} has {network.G.c_dim}: "
            "remove the flag, or give --class"
        )
    return classifier.to(network.device)


@torch.no_grad()
def probabilities(classifier: features.Classifier, target: np.ndarray) -> np.ndarray:
    """Return the classifier's probabilities of the network's classes, float64 [c_dim].

    The image uint8 [R, R, 1 or 3] is resized to the classifier's input and normalised as it was trained.
    """
    x = images.to_rgb(torch.from_numpy(target).permute(2, 0, 1)[None]).to(classifier.mean.device)
    size = (classifier.input_size, classifier.input_size)
    x = F.interpolate(x.float() / 255, size, mode="bicubic", antialias=True, align_corners=False)
    logits = classifier(classifier.normalize(x.clamp(0, 1)))[0].cpu().double()
    if classifier.class_map is not None:
        logits = logits[classifier.class_map.cpu()]
    found: np.ndarray = logits.softmax(dim=0).numpy()
    return np.asarray(found / found.sum())


class ClassMeans:
    """The images of the mean style codes of all classes, from which an inversion can start.

    Args:
        network: A conditional network.
        detector: Has the features (`Detector.perceptual`).
    """

    def __init__(self, network: Network, detector: Detector) -> None:
        self.network, self.detector = network, detector
        self.features: list[Tensor] = []  # of each class, float16 [D] on the CPU

    @property
    def is_ready(self) -> bool:
        """Whether the images are computed."""
        return len(self.features) == int(self.network.G.c_dim)

    @torch.no_grad()
    def compute(self, done: Callable[[int], None] = lambda count: None) -> None:
        """Compute the images and their features. `done` is called with 1 after each class."""
        self.features = []
        for chances in np.eye(self.network.G.c_dim):
            w = inversion.mean_style(self.network, chances, CODES)
            pictures = render.synthesize(self.network, w.repeat(1, self.network.G.num_ws, 1))
            self.features.append(self._features(pictures))
            done(1)

    @torch.no_grad()
    def nearest(self, target: np.ndarray) -> int:
        """Return the class with the nearest image to uint8 [R, R, 1 or 3]."""
        if not self.is_ready:
            self.compute()
        own = self._features(torch.from_numpy(target).permute(2, 0, 1)[None]).float()
        distances = [float((mean.float() - own).square().sum()) for mean in self.features]
        return int(np.argmin(distances))

    def _features(self, pictures: Tensor) -> Tensor:
        """Features float16 [D] of an image uint8 [1, C, R, R], averaged down to at most MAX_SIDE."""
        small = images.to_float(pictures.to(self.network.device))
        while small.shape[-1] > MAX_SIDE:
            small = F.avg_pool2d(small, 2)
        return inversion.perceptual(self.detector, small)[0].half().cpu()
