# SPDX-License-Identifier: Apache-2.0
"""The goldens' rule for large weights: a tensor's values follow from its full name and its shape.

Standard normal numbers of numpy's RandomState(crc32(name)), brought to a size that suits the tensor's role.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from torch_utils.features import FeatureNetwork
from training.discriminator.projection import RandomProjection

GOLDENS = Path(__file__).parent / "goldens"


def normal(name: str, shape) -> np.ndarray:
    """Standard normal float32 numbers of a name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)


def value(name: str, shape, kind: str) -> np.ndarray:
    """Values of the tensor `name`; kind: 'disc' (heads), 'vit' (transformer and its reassemble), 'proj'
    (random projection).
    """
    shape = tuple(shape)
    leaf = name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in ("running_mean", "running_var"):
        return np.full(shape, float(leaf == "running_var"), np.float32)
    x = normal(name, shape)
    if leaf in ("weight_u", "weight_v"):
        return (x / np.sqrt(np.sum(x.astype(np.float64) ** 2))).astype(np.float32)
    if leaf == "weight" and (".embed." in name or ".last_layer." in name):
        squares = np.sum(x.astype(np.float64) ** 2, axis=tuple(range(1, x.ndim)), keepdims=True)
        return (x / np.sqrt(squares)).astype(np.float32)
    if kind == "vit" and leaf in ("cls_token", "dist_token", "pos_embed"):
        return (0.02 * x).astype(np.float32)
    if leaf == "bias":
        return ((0.02 if kind == "vit" else 0.1) * x).astype(np.float32)
    if leaf == "scale" or x.ndim == 1:
        return (1 + 0.1 * x).astype(np.float32)
    return (x / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)


def fill_(tensors: Mapping[str, torch.Tensor], prefix: str, kind: str) -> None:
    """Overwrite tensors in place with the values of prefix + their name."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.asarray(value(prefix + name, tensor.shape, kind))))


def close(actual, expected, rel: float = 1e-4) -> None:
    """Assert that the largest difference is within `rel` of the largest expected magnitude."""
    actual = actual.detach().float().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    assert actual.shape == expected.shape
    error, size = np.abs(actual - expected).max(), np.abs(expected).max()
    assert error <= rel * max(size, 1e-12), f"error {error:.3g} of {size:.3g}"


def published_reassemble(name: str) -> str:
    """The published name of a buffer of Reassemble."""
    return "pretrained." + name.replace(".project.", ".3.").replace(".resample.", ".4.")


def fill_deit_projection_(network: FeatureNetwork, projection: RandomProjection) -> None:
    """The projection of the transformer; the network itself is filled already (conftest.py)."""
    prefix = f"feature_networks.{network.name}."
    for name, tensor in projection.reassemble.state_dict().items():
        fill_({published_reassemble(name): tensor}, prefix, "vit")
    fill_(projection.scratch.state_dict(), prefix + "scratch.", "vit")
