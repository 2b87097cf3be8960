# SPDX-License-Identifier: Apache-2.0
"""Vision transformers as detectors, built by timm: DINOv2 ViT-L/14 and CLIP's ViT-L/14 at 336 pixels.

Not checked on the real weights: tests use random ones.

Shapes: N batch, R resolution, D features, P patches per side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detector import Detector, full_float32, lpips_features
from metrics.names import CLIP, DINOV2
from torch_utils import timm_weights

DINOV2_MODEL, DINOV2_INPUT = "vit_large_patch14_dinov2", 224
CLIP_MODEL, CLIP_INPUT = "vit_large_patch14_clip_quickgelu_336", 336
POSITION_OFFSET = 0.1  # that DINOv2 adds to the patches per side when it resamples position embeddings
MODELS = {DINOV2: DINOV2_MODEL, CLIP: CLIP_MODEL}


def resize_pil(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images [N, 3, H, W] as PIL's bicubic filter: float32 [N, 3, size, size], whole numbers.

    PIL filters along rows, rounds to 8 bits, then filters along columns and rounds again. Values differ by
    one from PIL's in the rare case that its fixed-point weights round otherwise.
    """
    x = images.float()
    for shape in ((x.shape[2], size), (size, size)):
        if x.shape[2:] != shape:
            x = F.interpolate(x, shape, mode="bicubic", antialias=True, align_corners=False)
            x = x.round().clamp(0, 255)
    return x


def resample_positions(embedding: Tensor, patches: int) -> Tensor:
    """DINOv2's position embedding [1, 1 + P^2, D] for another number of patches per side.

    The class token's stays. The others are a P x P map, resampled bicubically without antialiasing at the
    scale (patches + 0.1) / P, as the original does it.
    """
    token, grid = embedding[:, :1], embedding[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    if side == patches:
        return embedding
    scale = (patches + POSITION_OFFSET) / side
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    assert grid.shape[2:] == (patches, patches)
    return torch.cat([token, grid.permute(0, 2, 3, 1).reshape(1, patches * patches, -1)], dim=1)


class DinoDetector(Detector):
    """The class token after the last norm; images at 224 pixels, PIL's bicubic filter."""

    name = DINOV2

    def __init__(self, network: Any, sha256: str, device: torch.device | str = "cpu") -> None:
        super().__init__(network, device, torch.float32)
        self.sha256 = sha256
        self.dims = {"features": network.num_features}
        self._mean, self._std = _statistics(network, self.device)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        x = (resize_pil(images, DINOV2_INPUT) / 255 - self._mean) / self._std
        return {"features": self.network.forward_features(x)[:, 0]}

    def perceptual(self, images: Tensor) -> Tensor:
        """LPIPS features of the patches after the last block of each quarter, without weights."""
        x = F.interpolate(
            images.to(self.device),
            (DINOV2_INPUT, DINOV2_INPUT),
            mode="bicubic",
            antialias=True,
            align_corners=False,
        )
        depth = len(self.network.blocks)
        blocks = [round(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)]
        with full_float32():
            maps = self.network.forward_intermediates(
                (x / 255 - self._mean) / self._std, indices=blocks, intermediates_only=True
            )
            return lpips_features(maps)


class ClipDetector(Detector):
    """CLIP's image embedding (768); images at 336 pixels, bicubic."""

    name = CLIP

    def __init__(self, network: Any, sha256: str, device: torch.device | str = "cpu") -> None:
        super().__init__(network, device, torch.float32)
        self.sha256 = sha256
        self.dims = {"features": network.num_classes}
        self._mean, self._std = _statistics(network, self.device)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        x = (resize_pil(images, CLIP_INPUT) / 255 - self._mean) / self._std
        return {"features": self.network(x)}


def _statistics(network: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the network's input, [1, 3, 1, 1]."""
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    return mean, std


def load(
    name: str, weights: str | None = None, device: torch.device | str = "cpu", seed: int = 0
) -> Detector:
    """The detector `name`.

    Args:
        name: DINOV2 or CLIP.
        weights: file with timm's names, 'random', or None for timm's hub.
        device: where it runs.
        seed: of random weights.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: the weights do not fit.
    """
    import timm  # imported here because it takes as long as torch to import

    model = MODELS[name]
    path = timm_weights.resolve(model, weights)
    options: dict[str, Any] = {"img_size": DINOV2_INPUT} if name == DINOV2 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = timm.create_model(model, pretrained=False, **options).eval().requires_grad_(False)
    sha256 = f"{timm_weights.RANDOM}:{seed}"
    if path is not None:
        state, sha256 = timm_weights.read_resolved(model, weights, path)
        if name == DINOV2 and "pos_embed" in state:
            state["pos_embed"] = resample_positions(state["pos_embed"], DINOV2_INPUT // 14)
        try:
            network.load_state_dict({key: value for key, value in state.items() if key != "mask_token"})
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"'{path}' does not fit {model}: {reason[:200]}") from None
    return DinoDetector(network, sha256, device) if name == DINOV2 else ClipDetector(network, sha256, device)
