# SPDX-License-Identifier: Apache-2.0
"""Projection: find the style code whose image is nearest to a target in the features of a frozen network.

The method is that of StyleGAN2 as StyleGAN-XL's run_inversion.py uses it: start at a mean style code, then
Adam on w with a ramp of the learning rate. The loss is the squared distance of perceptual features.

Shapes: C channels, R resolution, W style.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generation.render import Network
from metrics.detector import Detector, full_float32
from metrics.path_length import prepared
from torch_utils import images

LEARNING_RATE = 0.1
BETAS = (0.9, 0.999)
RAMP_DOWN, RAMP_UP = 0.25, 0.05  # shares of the steps
MIN_SIDE = 16  # smaller images are enlarged for the features: VGG16 halves them four times
_Z_SEED, _Z_GROUP = 123, 1000  # of the mean style code


class FeatureDistance:
    """The distance between images and a target in perceptual features.

    Images above 256 pixels are averaged down to 256 first.

    Args:
        detector: Has the features (`Detector.perceptual`).
        target: uint8 [R, R, 1 or 3].
    """

    def __init__(self, detector: Detector, target: np.ndarray) -> None:
        self.detector = detector
        pixels = torch.from_numpy(target).permute(2, 0, 1)[None].to(detector.device)
        self.target = images.to_float(pixels)  # [1, C, R, R] in [-1, 1]
        with torch.no_grad():
            self.features = self.of(self.target)

    def of(self, pictures: Tensor) -> Tensor:
        """Return the features [N, D] of images [N, C, R, R] in [-1, 1]."""
        return perceptual(self.detector, pictures)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the sum of the squared distances of images [N, C, R, R] to the target; scalar."""
        return squared_distance(self.of(pictures), self.features)


def perceptual(detector: Detector, pictures: Tensor) -> Tensor:
    """Return features [N, D] of images [N, C, R, R] in [-1, 1], averaged down to at most 256 pixels."""
    small = prepared(pictures)
    while small.shape[-1] < MIN_SIDE:
        small = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return detector.perceptual(small)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """The sum of squared differences."""
    return (a - b).square().sum()


def learning_rate(step: int, steps: int) -> float:
    """The learning rate of a step: linear ramp-up, cosine ramp-down."""
    done = step / steps
    down = min(1.0, (1.0 - done) / RAMP_DOWN)
    return LEARNING_RATE * (0.5 - 0.5 * math.cos(math.pi * down)) * min(1.0, done / RAMP_UP)


@torch.no_grad()
def mean_style(network: Network, probabilities: np.ndarray | None, count: int = 10_000) -> Tensor:
    """Return the mean of many style codes, float32 [1, 1, W].

    Args:
        network: The network.
        probabilities: Of the classes, float [c_dim]: their labels are drawn from it. None = no classes.
        count: Number of codes.
    """
    rng = np.random.RandomState(_Z_SEED)
    z = rng.randn(count, network.G.z_dim).astype(np.float32)
    labels = None if probabilities is None else rng.choice(len(probabilities), count, p=probabilities)
    total = torch.zeros([network.G.w_dim], dtype=torch.float64)
    for start in range(0, count, _Z_GROUP):
        rows = slice(start, start + _Z_GROUP)
        c = None if labels is None else torch.from_numpy(labels[rows].astype(np.int64)).to(network.device)
        ws = network.G.mapping(torch.from_numpy(z[rows]).to(network.device), c)
        total += ws[:, 0].cpu().double().sum(dim=0)
    return (total / count).float().to(network.device).reshape(1, 1, -1)


@contextlib.contextmanager
def full_precision(network: Network) -> Iterator[None]:
    """Within, all layers of the network compute in float32, without TF32."""
    synthesis = network.G.synthesis
    before = getattr(synthesis, "reduced_dtype", None)
    if before is not None:
        synthesis.reduced_dtype = None
    try:
        with full_float32():
            yield
    finally:
        if before is not None:
            synthesis.reduced_dtype = before


class Projection:
    """The search for a style code. Its result depends only on the arguments.

    Args:
        network: The network, which does not change.
        distance: Distance to the target.
        start: Style code to start from, [1, 1 or num_ws, W].
        steps: Number of steps.
        space: w: one style for all layers; w+: one per layer.
    """

    def __init__(
        self, network: Network, distance: FeatureDistance, start: Tensor, steps: int, space: str = "w"
    ) -> None:
        self.network, self.distance, self.steps, self.step = network, distance, steps, 0
        rows = network.G.num_ws if space == "w+" else 1
        mean = start.mean(dim=1, keepdim=True) if space == "w" else start
        self.w = mean.detach().repeat(1, rows // mean.shape[1], 1).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.w], lr=LEARNING_RATE, betas=BETAS)
        self.value = math.nan  # distance before the last step
        self.is_whole = True  # False during an update, which an interruption may leave half done

    @property
    def ws(self) -> Tensor:
        """The style codes found so far, [1, num_ws, W]."""
        return self.w.detach().expand(-1, self.network.G.num_ws, -1).clone()

    def advance(self) -> Tensor:
        """Make one step. Returns the image before it, [1, C, R, R] in about [-1, 1].

        Raises:
            ValueError: The network or the features gave NaN or Inf.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps)
        with torch.enable_grad(), full_precision(self.network):
            picture: Tensor = self.network.G.synthesis(
                self.w.expand(-1, self.network.G.num_ws, -1), noise_mode="const"
            )
            loss = self.distance(picture)
            (self.w.grad,) = torch.autograd.grad(loss, [self.w])
        self.value = checked(float(loss.detach()), self.network, self.step)
        self.is_whole = False
        self.optimizer.step()
        self.step += 1
        self.is_whole = True
        return picture.detach()

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs: tensors and numbers."""
        return {"step": self.step, "w": self.w.detach(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`."""
        self.step = int(state["step"])
        with torch.no_grad():
            self.w.copy_(state["w"])
        self.optimizer.load_state_dict(state["optimizer"])


def checked(value: float, network: Network, step: int) -> float:
    """Return a loss. Raises ValueError if it is not finite."""
    if not math.isfinite(value):
        raise ValueError(
            f"{network.path}: the distance is {value} at step {step}: give another start or target"
        )
    return value


def project(
    network: Network,
    distance: FeatureDistance,
    start: Tensor,
    steps: int,
    space: str = "w",
    done: Callable[[Projection], None] = lambda projection: None,
) -> Tensor:
    """Find a style code: all steps of a `Projection`.

    Args:
        network: The network.
        distance: Distance to the target.
        start: Style code to start from, [1, 1 or num_ws, W].
        steps: Number of steps.
        space: See `Projection`.
        done: Called after each step.

    Returns:
        Style codes [1, num_ws, W].
    """
    projection = Projection(network, distance, start, steps, space)
    for _ in range(steps):
        projection.advance()
        done(projection)
    return projection.ws


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in decibels; infinite for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
