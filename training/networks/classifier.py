# SPDX-License-Identifier: Apache-2.0
"""A classifier of a data set's own classes for the guidance: a linear layer on a frozen timm network.

The layer is a logistic regression on the features that the network's own classifier gets. Images are prepared
as `training.losses.guidance` prepares generated ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

from dnnlib.util import atomic_write
from torch_utils import features, images, rng
from training import losses
from training.data.dataset import ImageDataset, Loader

HELD_OUT = 5  # every fifth image of a class measures the accuracy
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # weights of the squared weights; the best on held-out images is used
STEPS = 100  # of L-BFGS


class Head(NamedTuple):
    """A fitted layer: weight [classes, F], bias [classes], and what held-out images say of it."""

    weight: torch.Tensor
    bias: torch.Tensor
    penalty: float
    accuracy: float
    per_class: list[float]


def chosen(labels: np.ndarray, classes: int, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose at most `most` images of every class: indices to fit, and held-out ones.

    Raises:
        ValueError: A class has fewer than two images.
    """
    counts = np.minimum(np.bincount(labels, minlength=classes), most)
    few = np.flatnonzero(counts < 2)
    if few.size:
        raise ValueError(
            f"class {few[0]} has {counts[few[0]]} images; a classifier needs two of every class: add images, "
            "or leave the class out (dataset_tool.py --classes)"
        )
    held = np.maximum(1, counts // HELD_OUT)[labels]  # images held out of the class of each image
    ranks = rng.ranks_within(labels, seed, "classifier/choice")
    return np.flatnonzero((ranks >= held) & (ranks < most)), np.flatnonzero(ranks < held)


def layer_name(network: features.Classifier) -> str:
    """Name of the network's last layer.

    Raises:
        ValueError: It has no single linear layer at its end.
    """
    head = network.body.get_classifier()  # type: ignore[operator]
    name: str | None = next((n for n, m in network.body.named_modules() if m is head), None)
    if name is None or not isinstance(head, torch.nn.Linear) or not hasattr(network.body, "forward_head"):
        raise ValueError(
            f"{network.name} does not end with one linear layer: choose another network, such as "
            "tf_efficientnet_lite0"
        )
    return name


@torch.no_grad()
def compute_features(
    network: features.Classifier,
    dataset: ImageDataset,
    indices: np.ndarray,
    batch: int,
    workers: int,
    done: Callable[[int], None] = lambda n: None,
) -> torch.Tensor:
    """Features of images before the last layer, float32 [N, F] on the CPU."""
    found = []
    batches = (indices[i : i + batch] for i in range(0, len(indices), batch))
    with Loader(dataset, batches, workers=workers, cache_mb=0) as loader:
        for pixels, _ in loader:
            x = losses.classifier_input(network, images.to_float(pixels.to(network.mean.device)))
            maps = network.body.forward_features(x.to(network.dtype))  # type: ignore[operator]
            pooled = network.body.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            found.append(pooled.float().cpu())
            done(len(pixels))
    return torch.cat(found)


def fit(
    x: torch.Tensor, labels: torch.Tensor, classes: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression with the mean cross-entropy + penalty |weight|^2 / 2.

    Args:
        x: features [N, F]; they are standardised, and the result takes the original ones.
        labels: int64 [N].
        classes: number of classes.
        penalty: on the weights of standardised features.

    Returns:
        weight [classes, F] and bias [classes], float32.
    """
    x = x.double()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)
    z = (x - mean) / scale
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(z, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        scaled = weight / scale
        return scaled.float(), (bias - scaled @ mean).float()


def fit_head(
    x: torch.Tensor, labels: torch.Tensor, held_x: torch.Tensor, held_labels: torch.Tensor, classes: int
) -> Head:
    """Fit with the penalty that gives held-out images the smallest cross-entropy; then fit all images.

    The accuracy is that of held-out images before the last fit.
    """
    results = []
    for penalty in PENALTIES:
        weight, bias = fit(x, labels, classes, penalty)
        logits = F.linear(held_x, weight, bias)
        results.append((float(F.cross_entropy(logits, held_labels)), penalty, logits.argmax(dim=1)))
    _, penalty, predicted = min(results, key=lambda r: r[0])
    right = predicted == held_labels
    per_class = [float(right[held_labels == c].float().mean()) for c in range(classes)]
    weight, bias = fit(torch.cat([x, held_x]), torch.cat([labels, held_labels]), classes, penalty)
    return Head(weight, bias, penalty, float(right.float().mean()), per_class)


def write(
    dest: Path, network: features.Classifier, head: Head, names: list[str], about: dict[str, object]
) -> None:
    """Write the network with its new layer, and the names of its classes to DEST.classes.json.

    Raises:
        OSError: A file cannot be written. No incomplete file is left.
    """
    state = {name: x.detach().cpu().contiguous() for name, x in network.body.state_dict().items()}
    layer = layer_name(network)
    state |= {f"{layer}.weight": head.weight, f"{layer}.bias": head.bias}
    content = safetensors.torch.save(state, {key: json.dumps(value) for key, value in about.items()})
    with atomic_write(dest) as f:
        f.write(content)
        f.flush()
        # Before the weights get their name, and not if the disk is full: other weights keep their names.
        with atomic_write(f"{dest}.classes.json", "w") as names_file:
            names_file.write(json.dumps(names, indent=1) + "\n")
