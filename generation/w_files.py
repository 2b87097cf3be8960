# SPDX-License-Identifier: Apache-2.0
"""Files of style codes: an .npz with `w`, float32 [N, num_ws, W], as `projected_w.npz` of StyleGAN.

Files that this project writes also have `network`, the hash of the mapping network that the codes belong to
(`render.mapping_sha256`). All stages of a network, its copies in other formats and a network after pivotal
tuning share it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from dnnlib import bounded
from generation import render

MAX_BYTES = 2**30  # of the arrays in a file, and of the codes for all layers


def save_w(
    path: str | os.PathLike[str], w: Tensor | np.ndarray, network: render.Network, **more: Any
) -> None:
    """Write style codes, atomically.

    Args:
        path: File to write.
        w: Style codes [N, num_ws, W].
        network: The network that they belong to.
        more: Further arrays, numbers or texts for the file.
    """
    codes = torch.as_tensor(w).detach().float().cpu().numpy()
    sha256 = _mapping_sha256(network)
    own = {"w": codes} if sha256 is None else {"w": codes, "network": np.array(sha256)}
    arrays: dict[str, Any] = {**own, **{key: np.asarray(value) for key, value in more.items()}}
    with dnnlib.util.atomic_write(path) as file:
        np.savez(file, **arrays)


def save_shown(path: str, ws: Tensor, network: render.Network) -> None:
    """Write the style codes [N, num_ws, W] of images for --save-w, and print how many."""
    if network.edits is not None and not all(edit.in_w for edit in network.edits.edits):
        click.echo(f"note: --save-w={path}: edits in style space are not part of w", err=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_w(path, ws, network)
    click.echo(f"{len(ws)} style codes: {path}")


def load_one(path: str, network: render.Network, flag: str) -> Tensor:
    """Read a file with a single style code, float32 [1, num_ws, W]. Raises as `load_w`."""
    codes = load_w(path, network, flag)
    if len(codes) != 1:
        raise ValueError(f"{flag}={path}: contains {len(codes)} style codes: give a file with one")
    return codes


def load_w(path: str | os.PathLike[str], network: render.Network, flag: str = "--projected-w") -> Tensor:
    """Read style codes for a network.

    Codes [N, W] apply to all layers. So do codes of another number of layers, if they are the same for every
    layer (another stage of the same network).

    Args:
        path: File to read. Nothing in it is unpickled.
        network: The network to use them with.
        flag: The option that names the file, for messages.

    Returns:
        float32 [N, num_ws, W] on the device of the network.

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be read.
        ValueError: It contains no style codes for this network. One line.
    """
    where = f"{flag}={os.fspath(path)}"
    arrays = _read(path, flag)
    if "w" not in arrays:
        raise ValueError(f"{where}: contains no array w: give a file of style codes, such as projected_w.npz")
    found = str(arrays["network"]) if "network" in arrays and arrays["network"].ndim == 0 else None
    if found is not None and found != (_mapping_sha256(network) or found):
        raise ValueError(
            f"{where}: the style codes belong to another network than {network.path}: give the network that "
            "they were made with, or a stage of it"
        )
    codes = _broadcast(arrays["w"], network, where)
    if not np.isfinite(codes).all():
        raise ValueError(f"{where}: w contains NaN or Inf")
    return torch.from_numpy(codes).to(network.device)


def _read(path: str | os.PathLike[str], flag: str) -> dict[str, np.ndarray]:
    try:
        return bounded.read_npz(path, MAX_BYTES, ("w", "network"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{flag}={os.fspath(path)}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{flag}={error}") from None


def _broadcast(w: np.ndarray, network: render.Network, where: str) -> np.ndarray:
    """Turn codes [N, W] or [N, L, W] into float32 [N, num_ws, W]."""
    num_ws, w_dim = int(network.G.num_ws), int(network.G.w_dim)
    codes = w[:, None] if w.ndim == 2 else w
    fits = codes.ndim == 3 and codes.shape[2] == w_dim and codes.dtype.kind in "iuf" and codes.size > 0
    if fits and codes.shape[1] != num_ws:
        fits = bool((codes == codes[:, :1]).all())
        codes = codes[:, :1]
    if not fits:
        raise ValueError(
            f"{where}: w is {w.dtype} {list(w.shape)}, but {network.path} needs numbers [N, {num_ws}, "
            f"{w_dim}]"
        )
    if len(codes) * num_ws * w_dim * 4 > MAX_BYTES:
        raise ValueError(
            f"{where}: {len(codes):,} style codes take more than {MAX_BYTES // 2**20:,} MiB of memory: give "
            "files with fewer"
        )
    with np.errstate(over="ignore"):  # Inf is refused later
        return np.array(np.broadcast_to(codes, (len(codes), num_ws, w_dim)), dtype=np.float32)


def _mapping_sha256(network: render.Network) -> str | None:
    """The hash of the mapping network; None for a network that only its own code can run."""
    return render.mapping_sha256(network.G) if hasattr(network.G.mapping, "state_dict") else None
