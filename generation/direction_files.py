# SPDX-License-Identifier: Apache-2.0
"""Direction files: directions in the styles of a network, with the network and the method they come from.

A direction file is a .safetensors file. Directions in W are the tensor `w` [K, W] with a list of layers.
Directions in style space are one tensor `style.LAYER` [K, C] per synthesis layer, C the outputs of its affine
layer. The metadata is JSON: format, space, method, layers, the hash of the mapping network
(`render.mapping_sha256`), and how good the directions are.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dnnlib.util
from dnnlib import bounded
from generation import render
from training.generator import Generator

FORMAT, VERSION = "stylesan-xl directions", 1
ENDING = ".safetensors"
MAX_BYTES = 2**28
_STYLE = "style."


@dataclass(frozen=True)
class Directions:
    """The content of a direction file.

    Attributes:
        path: The file.
        about: Its metadata.
        w: Directions in W, float32 [K, W]; None in style space.
        layers: Rows of ws that `w` moves; None = all.
        styles: Directions in style space: layer name -> float32 [K, C].
    """

    path: str
    about: Mapping[str, Any]
    w: Tensor | None
    layers: tuple[int, ...] | None
    styles: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Number of directions."""
        return len(self.w if self.w is not None else next(iter(self.styles.values())))

    def label(self, index: int) -> str:
        """A few words about a direction for sheets and sliders: 'sefa 0 (31%)'."""
        name = str(self.about.get("name") or self.about.get("method", "direction"))[:40]
        number = f" {index}" if len(self) > 1 else ""
        shares = self.about.get("shares")
        share = shares[index] if isinstance(shares, list) and len(shares) == len(self) else None
        return f"{name}{number} ({share:.0%})" if isinstance(share, int | float) else f"{name}{number}"


def layer_sizes(G: Generator) -> dict[str, int]:
    """The layers of a network and the number of their styles, in the order of ws[:, 1:]."""
    return {name: int(getattr(G.synthesis, name).affine.bias.numel()) for name in G.synthesis.layer_names}


def check_generator(network: render.Network, flag: str) -> Generator:
    """Return the generator of a network, for what needs its layers. Raises ValueError."""
    if not isinstance(network.G, Generator):
        raise ValueError(f"{flag}: {network.path} runs its own code, so its layers cannot be changed")
    return network.G


def write(
    path: str,
    network: render.Network,
    about: Mapping[str, Any],
    w: Tensor | None = None,
    layers: Sequence[int] | None = None,
    styles: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a direction file, atomically.

    Args:
        path: The file.
        network: The network of the directions.
        about: Method, quality and command for the metadata: JSON values.
        w: Directions [K, W], or None.
        layers: Rows of ws that `w` moves; None = all.
        styles: Directions in style space, in place of `w`.

    Raises:
        ValueError: A direction is not finite.
    """
    import safetensors.torch

    named = {"w": w} if w is not None else {_STYLE + name: value for name, value in (styles or {}).items()}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in named.items()}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError(f"{path}: the direction contains NaN or Inf, so it was not written")
    source = {
        "network": render.about(network, [], None)["network"],
        "network_sha256": network.sha256,
        "mapping_sha256": render.mapping_sha256(network.G),
        "num_ws": int(network.G.num_ws),
    }
    chosen = None if layers is None else list(layers)
    meta = {"version": VERSION, "space": "w" if w is not None else "style", "layers": chosen}
    text = json.dumps({**meta, **source, **about})
    data = safetensors.torch.save(tensors, {"format": FORMAT, "about": text})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with dnnlib.util.atomic_write(path) as file:
        file.write(data)


def read(path: str) -> Directions:
    """Read a direction file. No code in it is run.

    The last files are kept in memory, until they change on the disk: the viewer reads them for every picture.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not a direction file, or is damaged. One line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    now = os.stat(path)
    return _read(path, (now.st_mtime_ns, now.st_size, now.st_ino))


@functools.lru_cache(maxsize=8)
def _read(path: str, state: tuple[int, int, int]) -> Directions:
    """`read` for a file in this state (st_mtime_ns, st_size, st_ino)."""
    if state[1] > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES // 2**20} MiB, so not a direction file")
    metadata, tensors = _content(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a direction file: make one with directions.py or run_stylemc.py")
    about = bounded.parse_json(metadata.get("about", "").encode(), path)
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise ValueError(f"{path}: this version of the format is not supported, only version {VERSION}")
    styles = {name[len(_STYLE) :]: value for name, value in tensors.items() if name.startswith(_STYLE)}
    found = Directions(path, about, tensors.get("w"), _layers(path, about.get("layers")), styles)
    _check_tensors(found)
    return found


def _content(path: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return dict(file.metadata() or {}), {name: file.get_tensor(name).float() for name in names}
    except (SafetensorError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a safetensors file: {first[:160]}") from None


def _layers(path: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    good = isinstance(value, list) and value and all(type(row) is int and 0 <= row < 2**16 for row in value)
    if not good:
        raise ValueError(f"{path}: damaged: its list of layers is {str(value)[:40]}")
    return tuple(value)


def _check_tensors(found: Directions) -> None:
    tensors = [*([] if found.w is None else [found.w]), *found.styles.values()]
    if not tensors or (found.w is not None) == bool(found.styles):
        raise ValueError(f"{found.path}: damaged: it has no directions in W or in style space")
    if any(value.ndim != 2 or not value.numel() or len(value) != len(tensors[0]) for value in tensors):
        shapes = [list(value.shape) for value in tensors[:4]]
        raise ValueError(f"{found.path}: damaged: its tensors have the shapes {shapes}")
    if not all(bool(torch.isfinite(value).all()) for value in tensors):
        raise ValueError(f"{found.path}: contains NaN or Inf")


def check_fits(found: Directions, network: render.Network, flag: str) -> None:
    """Raise ValueError for directions of another network than this one or a stage of it."""
    G = check_generator(network, flag)
    if found.about.get("mapping_sha256") != render.mapping_sha256(G):
        made = str(found.about.get("network", "another network"))[:80]
        raise ValueError(
            f"{flag}: the directions belong to another network ({made}) than {network.path}: give the "
            "network that they were made with, or a stage of it"
        )
    if found.w is not None:
        beyond = [row for row in found.layers or () if row >= G.num_ws]
        if found.w.shape[1] != G.w_dim or beyond:
            raise ValueError(
                f"{flag}: the directions have {found.w.shape[1]} dimensions and layers up to "
                f"{max(found.layers or (0,))}, but {network.path} has {G.w_dim} and layers up to "
                f"{G.num_ws - 1}"
            )
        return
    sizes = layer_sizes(G)
    if not any(sizes.get(name) == value.shape[1] for name, value in found.styles.items()):
        raise ValueError(f"{flag}: {network.path} has none of the layers that the direction changes")
