# SPDX-License-Identifier: Apache-2.0
"""The frozen networks of a run: which they are, and whether their weights are there."""

from __future__ import annotations

from dataclasses import dataclass

from torch_utils import timm_weights
from training.config import EMBEDDING_NETWORK, TrainConfig


@dataclass(frozen=True)
class Needed:
    """A frozen network of a run. weights: as for `features.load`. flag: how to name a file of one's own, or
    to do without.
    """

    name: str
    weights: str | None
    purpose: str
    flag: str


def needed_weights(cfg: TrainConfig) -> list[Needed]:
    """Every frozen network that training itself needs; metrics' are not among them."""
    disc, loss = cfg.discriminator, cfg.loss
    needed = [
        Needed(name, disc.backbone_weights.get(name), "backbone", f"--backbone-weights={name}=FILE")
        for name in disc.backbones
    ]
    if cfg.data.cond and cfg.data.class_embedding == "auto" and not cfg.generator.superres:
        needed.append(
            Needed(EMBEDDING_NETWORK, None, "class embedding", "--class-embedding=random does without")
        )
    if loss.cls_weight > 0:
        needed.append(Needed(loss.cls_model, loss.cls_weights, "guidance", "--cls-weights=FILE"))
    return needed


def check_weights(cfg: TrainConfig, download: bool = True) -> list[str]:
    """Look for the weights of every frozen network that a run needs, before it starts.

    Args:
        download: fetch what lives on timm's hub and is not in its cache, and fail for what cannot be had.
        False: do not touch the network.

    Returns one line per missing file (download=True: none is missing then).

    Raises:
        ValueError: a network that timm does not know. FileNotFoundError (download=True): one line naming the
        file and where to put it;
            features.MissingWeights if the network had it.
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
