# SPDX-License-Identifier: Apache-2.0
"""VGG16 (Simonyan and Zisserman 2015) as a detector: precision and recall, and perceptual path length.

Two sources of weights, under two detector names, because the metrics' published names mean the published
weights:

* `vgg16-stylegan`: the file metrics/vgg16.pt of StyleGAN2-ADA and its successors, named by the user. It is a
  TorchScript archive; its tensors are read without running it. With `trust` the archive is run instead.
* `vgg16-torchvision`: torchvision's ImageNet weights, from timm's hub.

Not checked on the real weights: tests use random ones.

Shapes: N batch, H W height and width, D features.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnlib.util
from metrics import inception
from metrics.detector import Detector, full_float32, lpips_features
from metrics.names import VGG16
from torch_utils import timm_weights, torchscript

TIMM_MODEL = "vgg16.tv_in1k"
FILE, ENV = "vgg16.pt", "STYLESAN_VGG16"
INPUT_SIZE = 224
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # of the five blocks
HIDDEN = 4096
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16Network(nn.Module):
    """Convolutions and the first two fully connected layers, with the weights of LPIPS for each block.

    Parameters are random until `load_vgg_state`. LPIPS weights of 1 give the unweighted distance.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        channels = [3, *(width for block in WIDTHS for width in block)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(channels))
        self.fc1 = nn.Linear(WIDTHS[-1][-1] * 7 * 7, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        for index, block in enumerate(WIDTHS):
            self.register_buffer(f"lpips{index}", torch.ones(block[-1]))
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def blocks(self, x: Tensor) -> list[Tensor]:
        """The last activation of each block, before pooling, of images [N, 3, H, W] in [0, 255]."""
        x, outputs, index = (x - self.mean) / self.std, [], 0
        for number, block in enumerate(WIDTHS):
            if number:
                x = F.max_pool2d(x, 2)
            for _ in block:
                x = F.relu(self.convs[index](x))
                index += 1
            outputs.append(x)
        return outputs

    def hidden(self, x: Tensor) -> Tensor:
        """The second fully connected layer after its ReLU, [N, 4096], of images at 224 pixels."""
        x = F.max_pool2d(self.blocks(x)[-1], 2).flatten(1)
        return F.relu(self.fc2(F.relu(self.fc1(x))))

    def perceptual(self, x: Tensor) -> Tensor:
        """LPIPS features [N, D]: the squared distance of two rows is the LPIPS distance of two images."""
        weights = [self.get_buffer(f"lpips{index}").clamp(min=0) for index in range(len(WIDTHS))]
        return lpips_features(self.blocks(x), weights)


def load_vgg_state(network: VGG16Network, state: Mapping[str, Tensor]) -> bool:
    """Copy weights into the network, whatever their names: layers are told apart by shape and order.

    Numbered names are sorted as numbers (conv2 before conv10). Linear layers may be stored as convolutions.

    Returns:
        Whether `state` had LPIPS weights for all five blocks.

    Raises:
        ValueError: the tensors are not those of a VGG16; names the first layer that does not fit.
    """
    weights: dict[str, list[tuple[str, Tensor]]] = {"conv": [], "linear": [], "lpips": []}
    for name in sorted(state, key=_natural):
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        if tensor.ndim == 4 and tensor.shape[2:] == (3, 3):
            weights["conv"].append((name, tensor))
        elif tensor.ndim in (2, 4) and tensor.shape[0] >= HIDDEN:
            weights["linear"].append((name, tensor.flatten(1)))
        elif "lpips" in name or re.match(r"lin\d", name):
            weights["lpips"].append((name, tensor.flatten()))
    layers: list[tuple[Any, tuple[str, Tensor]]] = [
        *zip(network.convs, weights["conv"], strict=False),
        *zip((network.fc1, network.fc2), weights["linear"], strict=False),
    ]
    if len(weights["conv"]) != len(network.convs) or len(weights["linear"]) < 2:
        found = f"{len(weights['conv'])} convolutions and {len(weights['linear'])} large linear layers"
        raise ValueError(f"not VGG16's weights: {found}, expected 13 and at least 2")
    for layer, (name, tensor) in layers:
        bias = state.get(re.sub(r"weight$", "bias", name))
        if tensor.shape != layer.weight.shape or bias is None or bias.shape != layer.bias.shape:
            raise ValueError(
                f"not VGG16's weights: {name} has shape {list(tensor.shape)} "
                f"{'and no bias' if bias is None else ''}, expected {list(layer.weight.shape)} with a bias"
            )
        layer.weight.data.copy_(tensor)
        layer.bias.data.copy_(bias)
    fits = [tensor.shape for _, tensor in weights["lpips"]] == [(block[-1],) for block in WIDTHS]
    for index, (_, tensor) in enumerate(weights["lpips"] if fits else ()):
        network.get_buffer(f"lpips{index}").copy_(tensor)
    return fits


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which numbers count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


class VGG16Detector(Detector):
    """fc2 features (4096) of images resized to 224 pixels as TensorFlow 1 does, and LPIPS features."""

    dims = {"features": HIDDEN}

    def __init__(
        self,
        name: str,
        network: VGG16Network,
        sha256: str,
        has_lpips: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(network, device, torch.float32)
        self.name, self.sha256, self.has_lpips = name, sha256, has_lpips

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.network.hidden(inception.resize_tf1(images.float(), INPUT_SIZE, INPUT_SIZE))}

    def perceptual(self, images: Tensor) -> Tensor:
        """LPIPS features [N, D] of float images [N, 3, H, W] in [0, 255], on the device."""
        with full_float32():
            features: Tensor = self.network.perceptual(images.to(self.device))
        return features


class ScriptedVGG16Detector(VGG16Detector):
    """The published archive, run as it is. It resizes and normalises by itself."""

    def __init__(self, network: Any, sha256: str, device: torch.device | str = "cpu") -> None:
        super().__init__(VGG16, network, sha256, True, device)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.network(images.float(), return_features=True)}

    def perceptual(self, images: Tensor) -> Tensor:
        """LPIPS features of the archive itself."""
        with full_float32():
            features: Tensor = self.network(images.to(self.device), resize_images=False, return_lpips=True)
        return features


def find(path: str | None = None) -> Path:
    """The published file: the one named, or in $STYLESAN_VGG16, or in dnnlib's cache.

    Raises:
        FileNotFoundError: it is none of them; one line says where to put it.
    """
    cached = Path(dnnlib.util.make_cache_dir_path("detectors", FILE))
    place = path or os.environ.get(ENV) or cached
    if not Path(place).is_file():
        raise FileNotFoundError(
            f"VGG16 weights: there is no file {place}; put metrics/vgg16.pt of StyleGAN2-ADA at {cached}, or "
            f"name it with --detector={VGG16}=PATH or ${ENV}; metrics with vgg16 in their name use "
            "torchvision's weights instead"
        )
    return Path(place)


def load(
    name: str,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    trust: bool = False,
    seed: int = 0,
) -> VGG16Detector:
    """The detector `name`.

    Args:
        name: VGG16 or VGG16_TORCHVISION.
        weights: a file, 'random', or None for the places of `find` or timm's hub.
        device: where it runs.
        trust: run a TorchScript archive instead of reading its tensors.
        seed: of random weights.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VGG16Network()
    if weights == timm_weights.RANDOM:
        return VGG16Detector(name, network, f"{timm_weights.RANDOM}:{seed}", True, device)
    path = find(weights) if name == VGG16 else timm_weights.resolve(TIMM_MODEL, weights)
    assert path is not None
    if torchscript.is_archive(path):
        sha256 = dnnlib.util.sha256_file(path)
        if trust:
            return ScriptedVGG16Detector(torch.jit.load(str(path), map_location="cpu").eval(), sha256, device)
        state = torchscript.read_tensors(path)
    else:
        state, sha256 = timm_weights.read_state(path)
    try:
        has_lpips = load_vgg_state(network, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return VGG16Detector(name, network, sha256, has_lpips, device)
