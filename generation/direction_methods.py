# SPDX-License-Identifier: Apache-2.0
"""Find directions in W: in closed form, by principal components, and from labelled images.

Every direction is scaled so that strength 1 is one standard deviation of w along it: for SeFa and PCA of
random w within a class, for attributes of the w of the labelled images. The computations are in float64. The
sign of SeFa and PCA directions makes the largest component positive.

Shapes: N codes, W dimensions of w, K directions, S styles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from generation import render, walk

FOLDS = 5  # of cross-validation
MIN_OF_EACH = FOLDS  # labelled images of each kind


@dataclass(frozen=True)
class Found:
    """Directions float64 [K, W], and the share of each in the trace of A^T A (SeFa) or the variance (PCA)."""

    directions: np.ndarray
    shares: list[float]


@dataclass(frozen=True)
class Sample:
    """An image with a label: what its w is computed from.

    Attributes:
        seed: The seed.
        label: Whether the image has the attribute.
        class_index: The class; None = the one that gen_images.py draws for the seed.
        truncation: psi.
    """

    seed: int
    label: bool
    class_index: int | None = None
    truncation: float = 1.0


@torch.no_grad()
def sample(
    network: render.Network,
    count: int,
    seed: int,
    classes: Sequence[int] | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the style codes float64 [N, W] of random latents, and their classes int64 [N].

    Args:
        network: The network.
        count: N.
        seed: Random seed.
        classes: Draw only from these classes; None = all.
        done: Called with n after every n codes.
    """
    G, random = network.G, np.random.RandomState(seed)
    pool = np.arange(max(G.c_dim, 1)) if not classes else np.asarray(classes, dtype=np.int64)
    parts, labels = [], pool[random.randint(0, len(pool), count)]
    for start in range(0, count, 1024):
        chosen = torch.from_numpy(labels[start : start + 1024]).to(network.device)
        z = torch.from_numpy(random.randn(len(chosen), G.z_dim).astype(np.float32)).to(network.device)
        parts.append(render.styles(G, z, chosen if G.c_dim else None)[:, 0].cpu().double().numpy())
        done(len(chosen))
    return np.concatenate(parts), labels


def within_classes(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Subtract from each code [N, W] the mean of its class.

    The mean of n codes takes a share 1 / n of their variance with it, which the scale makes up for.
    """
    centred = np.empty_like(codes)
    for label in np.unique(labels):
        rows = labels == label
        count = int(rows.sum())
        centred[rows] = (codes[rows] - codes[rows].mean(axis=0)) * (count / max(count - 1, 1)) ** 0.5
    return centred


def scaled(directions: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """Scale directions [K, W] to one standard deviation of centred codes [N, W], and fix their signs."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    largest = np.take_along_axis(unit, np.abs(unit).argmax(axis=1)[:, None], axis=1)
    spread = np.sqrt(np.square(centred @ unit.T).mean(axis=0))
    result: np.ndarray = unit * np.sign(largest) * spread[:, None]
    return result


def affine_weights(network: render.Network, layers: Sequence[int] | None) -> np.ndarray:
    """The weights of the affine layers of rows of ws, below one another: float64 [S, W].

    Row 0 belongs to the input layer, row i to synthesis layer i. None = all.
    """
    synthesis = network.G.synthesis
    names = ["input", *synthesis.layer_names]
    rows = range(len(names)) if layers is None else layers
    weights = [getattr(synthesis, names[row]).affine.weight for row in rows]
    return np.concatenate([weight.detach().cpu().double().numpy() for weight in weights])


def sefa(network: render.Network, layers: Sequence[int] | None, num: int, centred: np.ndarray) -> Found:
    """Find the directions that change the styles of some layers most (SeFa: Shen and Zhou, CVPR 2021).

    They are the eigenvectors of A^T A with the largest eigenvalues. A [S, W] are the weights of the affine
    layers.

    Args:
        network: The network.
        layers: Rows of ws; None = all.
        num: K.
        centred: Style codes [N, W] within classes, for the scale.
    """
    weights = affine_weights(network, layers)
    return _largest(weights.T @ weights, num, centred)


def principal(num: int, centred: np.ndarray) -> Found:
    """Find the principal components of w within classes (GANSpace: Harkonen et al., NeurIPS 2020).

    Args:
        num: K.
        centred: Style codes [N, W] within classes.
    """
    return _largest(centred.T @ centred / len(centred), num, centred)


def _largest(matrix: np.ndarray, num: int, centred: np.ndarray) -> Found:
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(values)[::-1][:num]
    total = max(float(values.clip(min=0).sum()), np.finfo(np.float64).tiny)
    shares = [float(value) / total for value in values[order].clip(min=0)]
    return Found(scaled(vectors[:, order].T, centred), shares)


@dataclass(frozen=True)
class Attribute:
    """A direction [1, W] towards an attribute, and how well it separates held-out samples.

    Attributes:
        direction: float64 [1, W].
        accuracy: Share of correct held-out samples (cross-validation).
        majority: Share of the more frequent label, which is the accuracy of a constant answer.
    """

    direction: np.ndarray
    accuracy: float
    majority: float


def attribute(codes: np.ndarray, labels: np.ndarray, seed: int = 0) -> Attribute:
    """Find the direction towards an attribute: the normal of a logistic regression.

    Args:
        codes: Style codes [N, W] of the labelled images.
        labels: bool [N].
        seed: Of the folds of cross-validation.

    Raises:
        ValueError: Too few samples of a label.
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if min(positive, negative) < MIN_OF_EACH:
        raise ValueError(
            f"{positive} images with the attribute and {negative} without it: give at least {MIN_OF_EACH} of "
            "each"
        )
    folds = np.empty(len(labels), dtype=np.int64)
    random = np.random.RandomState(seed)
    for value in (False, True):  # every fold has both
        rows = random.permutation(np.flatnonzero(labels == value))
        folds[rows] = np.arange(len(rows)) % FOLDS
    correct = 0
    for fold in range(FOLDS):
        normal, bias = logistic(codes[folds != fold], labels[folds != fold])
        held = folds == fold
        correct += int((((codes[held] @ normal + bias) > 0) == labels[held]).sum())
    normal, _ = logistic(codes, labels)
    unit = normal[None] / np.linalg.norm(normal)
    spread = float((codes @ unit[0]).std())
    return Attribute(unit * spread, correct / len(labels), max(positive, negative) / len(labels))


def logistic(codes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit a logistic regression with a unit L2 penalty, both labels weighing the same.

    Args:
        codes: [N, W]. They are standardised with one scale for all dimensions.
        labels: bool [N].

    Returns:
        Normal [W] and bias: the attribute is predicted where codes @ normal + bias > 0.
    """
    import scipy.optimize
    import scipy.special

    mean, scale = codes.mean(axis=0), max(float(codes.std()), 1e-12)
    x, sign = (codes - mean) / scale, np.where(labels, 1.0, -1.0)
    weight = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        normal, bias = parameters[:-1], parameters[-1]
        margin = sign * (x @ normal + bias)
        slope = -weight * sign * scipy.special.expit(-margin)
        value = weight @ np.logaddexp(0, -margin) + 0.5 * normal @ normal
        return value, np.append(slope @ x + normal, slope.sum())

    best = scipy.optimize.minimize(loss, np.zeros(codes.shape[1] + 1), jac=True, method="L-BFGS-B").x
    normal = best[:-1] / scale
    return normal, float(best[-1] - normal @ mean)


@torch.no_grad()
def codes_of(network: render.Network, samples: Sequence[Sample]) -> np.ndarray:
    """The style codes float64 [N, W] of labelled images."""
    codes = [
        walk.seed_styles(network, item.seed, item.class_index, item.truncation, None)[0] for item in samples
    ]
    return torch.stack(codes).cpu().double().numpy()
