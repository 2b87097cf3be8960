# SPDX-License-Identifier: Apache-2.0
"""The frozen networks of a run: a list of them, and a check of their weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch_utils import timm_weights
from training.config import COMPUTED_EMBEDDINGS, EMBEDDING_NETWORK, TrainConfig


@dataclass(frozen=True)
class NeededNetwork:
    """A frozen network of a run.

    Attributes:
        name: timm model name.
        weights: As for `features.load`.
        purpose: What the run uses it for.
        flag: How to give a weights file, or to avoid the network.
    """

    name: str
    weights: str | None
    purpose: str
    flag: str


def needed_weights(cfg: TrainConfig) -> list[NeededNetwork]:
    """Return every frozen network that training needs, without those of metrics."""
    disc, loss = cfg.discriminator, cfg.loss
    needed = [
        NeededNetwork(name, disc.backbone_weights.get(name), "backbone", f"--backbone-weights={name}=FILE")
        for name in disc.backbones
    ]
    if cfg.data.cond and cfg.data.class_embedding in COMPUTED_EMBEDDINGS and not cfg.generator.superres:
        needed.append(
            NeededNetwork(EMBEDDING_NETWORK, None, "class embedding", "or use --class-embedding=random")
        )
    if loss.cls_weight > 0:
        needed.append(NeededNetwork(loss.cls_model, loss.cls_weights, "guidance", "--cls-weights=FILE"))
    return needed


def check_weights(cfg: TrainConfig, download: bool = True) -> list[str]:
    """Look for the weights of every frozen network of a run, before it starts.

    Args:
        cfg: Configuration of the run.
        download: Download weights that are on timm's hub and not in its cache, and fail if that is not
            possible. False = make no connections.

    Returns:
        One line per missing file (always empty with download=True).

    Raises:
        ValueError: timm does not know a network.
        FileNotFoundError: With download=True: one line that names the file and where to put it;
            timm_weights.MissingWeights if it can be downloaded.
    """
    missing = []
    for need in needed_weights(cfg):
        try:
            timm_weights.check(need.name, need.weights, download)
        except FileNotFoundError as error:
            if download:
                raise type(error)(f"{error} ({need.flag})") from None
            missing.append(f"{error} ({need.flag})")
    return list(dict.fromkeys(missing))
