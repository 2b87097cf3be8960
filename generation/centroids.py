# SPDX-License-Identifier: Apache-2.0
"""Compute cluster centres of a network's style codes, for --centroids-path.

    python -m generation.centroids --network=network.pkl --dest=centroids.npy

Truncation towards the nearest of many centres keeps the modes of a diverse data set (Mokady et al.,
"Self-Distilled StyleGAN", 2022). The defaults are the published use: 10,000 centres of 600,000 samples. The
result is a .npy file, float32 [K, W], and NAME.json beside it with the network and the settings.

Later stages of a progressively trained network have the mapping network of the first one, so one file serves
all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from dnnlib import outputs
from generation import commands

CHUNK_VALUES = 2**25  # of a block of distances: 128 MiB


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--network", required=True, metavar="PATH|URL", help="Network file, run folder or repository.")
@click.option("--dest", required=True, metavar="NPY", help="File to write.")
@click.option(
    "--num", type=click.IntRange(min=1), default=10_000, show_default=True, help="Number of centres."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=600_000, show_default=True, help="Number of style codes."
)
@click.option(
    "--iterations", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most, of k-means."
)
@click.option(
    "--seed", type=click.IntRange(0, commands.MAX_SEED), default=0, show_default=True, help="Random seed."
)
@commands.device_option
@commands.one_line_errors
def main(network: str, dest: str, num: int, samples: int, iterations: int, seed: int, device: str) -> None:
    """Compute cluster centres of a network's style codes."""
    from generation import render
    from torch_utils.devices import use_device

    outputs.check_output("--dest", dest, inputs={"--network": network})
    if Path(dest).suffix.lower() != ".npy":
        raise ValueError(f"--dest={dest}: end the name with .npy")
    if num > samples:
        raise ValueError(f"--num={num}: at most the number of samples, {samples}")
    for path in (Path(dest), Path(dest).with_suffix(".json")):
        if path.exists():
            raise ValueError(f"--dest={dest}: {path} exists: remove it, or choose another name")
    loaded = render.load_network(network, use_device(device))
    with commands.progress_bar(samples, "Style codes") as done:
        codes = sample(loaded, samples, seed, done)
    with commands.progress_bar(iterations, "Iterations") as done:
        centres, error = kmeans(codes, num, iterations, seed, done)
    write(dest, centres, about(loaded, samples=samples, seed=seed, mean_squared_distance=error))
    click.echo(f"{num:,} centres of {samples:,} style codes: {dest}")


def sample(network: Any, count: int, seed: int, done: Callable[[int], None] = lambda n: None) -> Any:
    """Return the style codes float32 [count, W] of random latents and classes, on the network's device."""
    import torch

    G, random = network.G, np.random.RandomState(seed)
    codes = torch.empty([count, G.w_dim], device=network.device)
    with torch.no_grad():
        for start in range(0, count, 1024):
            size = min(1024, count - start)
            z = torch.from_numpy(random.randn(size, G.z_dim).astype(np.float32)).to(network.device)
            labels = torch.from_numpy(random.randint(0, G.c_dim, size)) if G.c_dim else None
            labels = None if labels is None else labels.to(network.device, torch.int64)
            codes[start : start + size] = G.mapping(z, labels)[:, 0]
            done(size)
    return codes


def kmeans(
    codes: Any, num: int, iterations: int, seed: int, done: Callable[[int], None] = lambda n: None
) -> tuple[np.ndarray, float]:
    """Cluster codes [N, W] by Lloyd's iterations from random ones of them.

    A centre that no code is nearest to moves to the code that is farthest from its centre.

    Returns:
        Centres float32 [num, W], and the mean squared distance of a code to its centre.
    """
    import torch

    order = np.random.RandomState(seed).permutation(len(codes))[:num]
    centres = codes[torch.from_numpy(order).to(codes.device)].clone()
    before = None
    for _ in range(iterations):
        nearest, distance = _nearest(codes, centres)
        done(1)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        counts = torch.bincount(nearest, minlength=num)
        sums = torch.zeros(centres.shape, dtype=torch.float64, device=codes.device)
        for rows in _chunks(len(codes), codes.shape[1]):
            sums.index_add_(0, nearest[rows], codes[rows].double())
        used = counts > 0
        centres[used] = (sums[used] / counts[used][:, None]).to(centres.dtype)
        if not bool(used.all()):
            farthest = distance.topk(int((~used).sum())).indices
            centres[~used] = codes[farthest]
    _, distance = _nearest(codes, centres)
    return centres.cpu().numpy(), float(distance.double().mean())


def _nearest(codes: Any, centres: Any) -> tuple[Any, Any]:
    """The nearest centre of each code, int64 [N], and its squared distance [N]."""
    import torch

    norms = centres.square().sum(dim=1)
    nearest = torch.empty(len(codes), dtype=torch.int64, device=codes.device)
    distance = torch.empty(len(codes), device=codes.device)
    for rows in _chunks(len(codes), len(centres)):
        part = codes[rows]
        values, nearest[rows] = torch.addmm(norms[None], part, centres.T, alpha=-2).min(dim=1)
        distance[rows] = (values + part.square().sum(dim=1)).clamp(min=0)
    return nearest, distance


def _chunks(count: int, width: int) -> list[slice]:
    size = max(1, CHUNK_VALUES // max(width, 1))
    return [slice(start, start + size) for start in range(0, count, size)]


def about(network: Any, **settings: Any) -> dict[str, Any]:
    """What NAME.json says about centres: the network, the hash of its mapping network, and settings."""
    from generation.render import mapping_sha256

    return {
        "format": "stylesan-xl centroids",
        "network": os.path.basename(str(network.path)),
        "network_sha256": network.sha256,
        "mapping_sha256": mapping_sha256(network.G),
        **settings,
    }


def write(dest: str, centres: np.ndarray, description: dict[str, Any]) -> None:
    """Write NAME.npy and NAME.json, each atomically."""
    from dnnlib.records import write_json
    from dnnlib.util import atomic_write

    with atomic_write(dest) as file:
        np.save(file, centres.astype(np.float32))
    write_json(Path(dest).with_suffix(".json"), description)


if __name__ == "__main__":
    main()
