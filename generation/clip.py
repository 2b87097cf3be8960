# SPDX-License-Identifier: Apache-2.0
"""CLIP's two towers through open_clip (extra `clip`): embeddings of images, with gradients, and of texts.

Weights come from a file, or from the Hugging Face Hub with a check of the file's hash. Tests use random
weights; no result with the published ones was measured here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils import images, timm_weights

MODEL = "ViT-B-32-quickgelu"
TAG = "openai"  # the published weights of a model, if it has some
HUB_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True)
class Clip:
    """CLIP in float32, frozen.

    Attributes:
        name: open_clip's name of the model.
        network: The model.
        tokenizer: Texts -> tokens.
        mean: Of the pixels, [1, 3, 1, 1] in [0, 1].
        std: Of the pixels.
        sha256: Of the weights' file, or "random:SEED".
    """

    name: str
    network: Any
    tokenizer: Any
    mean: Tensor
    std: Tensor
    sha256: str

    def images(self, x: Tensor) -> Tensor:
        """Normalised embeddings [N, D] of images [N, 1, 3 or 4, H, W] in [-1, 1], with gradients."""
        size = self.network.visual.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        x = ((images.to_rgb(x.float()) + 1) / 2).clamp(0, 1)
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        x = (x - self.mean) / self.std
        return F.normalize(self.network.encode_image(x).float(), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings [N, D] of texts.

        Raises:
            ValueError: A text has more tokens than the model reads.
        """
        most = self.tokenizer.context_length - 2  # without the marks of start and end
        for text in texts:
            count = len(self.tokenizer.encode(text))
            if count > most:
                raise ValueError(
                    f"--text-prompt: {text[:40]!r} has {count} tokens, but {self.name} reads {most}"
                )
        tokens = self.tokenizer(list(texts)).to(self.mean.device)
        return F.normalize(self.network.encode_text(tokens).float(), dim=1)


def check_installed() -> None:
    """Raise ValueError without the package open_clip."""
    if importlib.util.find_spec("open_clip") is None:
        raise ValueError("run_stylemc.py needs the package open_clip: pip install 'open_clip_torch>=2.30,<4'")


def load(name: str, weights: str | None, device: torch.device | str, seed: int = 0) -> Clip:
    """Load CLIP.

    Args:
        name: open_clip's name of the model.
        weights: A .safetensors or .pt file with open_clip's names; 'random'; None = the published ones.
        device: Where it runs.
        seed: Of random weights.

    Raises:
        FileNotFoundError: The weights are missing. The message gives the remedy.
        ValueError: Unknown model, or weights that do not fit.
    """
    check_installed()
    with _quiet():
        import open_clip  # imported here because it takes as long as torch to import

    if open_clip.get_model_config(name) is None:
        known = ", ".join(known for known in open_clip.list_models() if known.startswith("ViT-"))
        raise ValueError(f"--clip-model={name}: unknown; for example {known[:200]}")
    path = _find(open_clip, name, weights)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        network = open_clip.create_model(name, pretrained=None, load_weights=False)
        tokenizer = open_clip.get_tokenizer(name)
    sha256 = f"{timm_weights.RANDOM}:{seed}"
    if path is None:
        click.echo("note: --clip-weights=random: its embeddings have no meaning; for tests only", err=True)
    else:
        state, sha256 = timm_weights.read_state(path)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"--clip-weights={path}: does not fit {name}: {reason}") from None
    network = network.float().eval().requires_grad_(False).to(device)
    config = open_clip.get_pretrained_cfg(name, TAG) or {}
    pixels = [
        config.get("mean", open_clip.OPENAI_DATASET_MEAN),
        config.get("std", open_clip.OPENAI_DATASET_STD),
    ]
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in pixels)
    return Clip(name, network, tokenizer, mean, std, sha256)


def _find(open_clip: Any, name: str, weights: str | None) -> Path | None:
    """The file of the weights; None for random ones."""
    if weights == timm_weights.RANDOM:
        return None
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"--clip-weights={weights}: no such file")
        return Path(weights)
    repo, _, file = str((open_clip.get_pretrained_cfg(name, TAG) or {}).get("hf_hub", "")).rpartition("/")
    if not repo:
        raise FileNotFoundError(f"--clip-model={name} has no published weights: give --clip-weights=FILE")
    try:
        return timm_weights.from_hub(f"CLIP {name}", repo, file or HUB_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} with --clip-weights=FILE") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within, open_clip prints no warnings about weights that it was not asked to load."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
