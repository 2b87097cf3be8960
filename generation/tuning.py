# SPDX-License-Identifier: Apache-2.0
"""Pivotal tuning: adapt a generator to one image, so that the code found by projection gives it exactly.

Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images" (2021), with the numbers of
StyleGAN-XL's run_inversion.py. All weights of the synthesis network are trained; the mapping network has no
part in the loss. A locality term keeps images of other codes near the pivot as they were.

Shapes: C channels, R resolution, W style.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from generation.inversion import FeatureDistance, checked, full_precision, squared_distance
from generation.render import Network
from torch_utils import rng

LEARNING_RATE = 3e-4
LOCALITY_WEIGHT = 10.0
LOCALITY_PSI = 0.5
LOCALITY_DISTANCE, PUBLISHED_W = 30.0, 512  # from the pivot, at this W


def check(network: Network) -> None:
    """Raise ValueError for a network that runs its own code: no file could be written of a tuned copy."""
    if not isinstance(network.G, torch.nn.Module):
        raise ValueError(
            f"{network.path} runs its own code, and a tuned copy of it could not be written: remove --run-pti"
        )


def trainable_copy(network: Network) -> Network:
    """Return the network with its own copy of the generator, of which all synthesis weights are trainable."""
    tuned = copy.copy(network)
    tuned.G = copy.deepcopy(network.G)
    tuned.G.synthesis.requires_grad_(True)
    return tuned


class Tuning:
    """The tuning of a generator. Its result depends only on the arguments.

    Args:
        network: The network, which does not change.
        distance: Distance to the target.
        pivot: Style codes [1, num_ws, W] whose image should become the target.
        steps: Number of steps.
        seed: Of the codes of the locality term.
    """

    def __init__(
        self, network: Network, distance: FeatureDistance, pivot: Tensor, steps: int, seed: int
    ) -> None:
        self.network, self.distance, self.pivot = network, distance, pivot.detach()
        self.steps, self.seed, self.step = steps, seed, 0
        self.tuned = trainable_copy(network)
        self.parameters = list(self.tuned.G.synthesis.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)
        self.value = math.nan  # loss before the last step
        self.is_whole = True  # False during an update, which an interruption may leave half done

    def advance(self) -> Tensor:
        """Make one step. Returns the image before it, [1, C, R, R] in about [-1, 1].

        Raises:
            ValueError: The network or the features gave NaN or Inf.
        """
        other = self.neighbour(self.step)
        with torch.no_grad(), full_precision(self.network):
            # Deviation: the published code gives images in [-1, 1] to features for [0, 255] here.
            before = self.distance.of(self.network.G.synthesis(other, noise_mode="const"))
        with torch.enable_grad(), full_precision(self.tuned):
            pictures: Tensor = self.tuned.G.synthesis(torch.cat([self.pivot, other]), noise_mode="const")
            features = self.distance.of(pictures)
            loss = squared_distance(features[:1], self.distance.features)
            loss = loss + (pictures[:1] - self.distance.target).square().mean()
            loss = loss + LOCALITY_WEIGHT * squared_distance(features[1:], before)
            gradients = torch.autograd.grad(loss, self.parameters)
        self.value = checked(float(loss.detach()), self.network, self.step)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.is_whole = False
        self.optimizer.step()
        self.step += 1
        self.is_whole = True
        return pictures[:1].detach()

    @torch.no_grad()
    def neighbour(self, step: int) -> Tensor:
        """The codes of a step's locality term, [1, num_ws, W].

        They lie on the line from the pivot to a random code of a random class (psi 0.5), at a distance of 30
        for W = 512. Deviation: the distance is scaled by sqrt(W / 512), because that of two codes grows so.
        """
        G = self.network.G
        z = rng.normal(self.seed, "inversion/z", step, [0], [G.z_dim])
        labels = rng.integers(self.seed, "inversion/class", step, [0], G.c_dim) if G.c_dim else None
        labels = None if labels is None else labels.to(self.pivot.device)
        ws: Tensor = G.mapping(z.to(self.pivot.device), labels, truncation_psi=LOCALITY_PSI)
        away = ws - self.pivot
        length = away.norm(dim=2, keepdim=True).clamp(min=1e-8)
        moved: Tensor = self.pivot + away / length * (LOCALITY_DISTANCE * math.sqrt(G.w_dim / PUBLISHED_W))
        return moved

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs: tensors and numbers."""
        weights = dict(self.tuned.G.synthesis.state_dict())
        return {"step": self.step, "weights": weights, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`."""
        self.step = int(state["step"])
        self.tuned.G.synthesis.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
