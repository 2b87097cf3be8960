# SPDX-License-Identifier: Apache-2.0
"""Runs MonoFlow without networks: particles move along h'(d) grad d with d = log p/q.

    python -m lab.monoflow
    python -m lab.monoflow --seeds=3 --steps=50

p is a known mixture of three Gaussians. q is the density of the particles, estimated with a Gaussian kernel
in every step. The discriminator is therefore optimal up to this estimate, and the runs differ only in h.
Particles start away from the data, where d is negative: h' = sigmoid(d + C) of `vanilla` vanishes there for C
= 0, and C = 5 helps down to d of about -5. All h have the same step length. Writes monoflow.json,
monoflow.png and monoflow.gif.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import san
from dnnlib import outputs
from lab import shared
from lab.toy import sliced_wasserstein

OBJECTIVES = ("logit", "ns", "vanilla", "vanilla(5)", "mle", "arcsinh")
CENTRES = torch.tensor([[1.5, 0.9], [1.5, -0.9], [2.6, 0.0]])
STD, START_STD = 0.5, 0.35
STARTS = {"near": (0.0, 0.0), "far": (-2.0, 0.0)}  # initial centre of the particles; pictures show the first
PARTICLES, BANDWIDTH, STEP_LENGTH, LONGEST = 200, 0.25, 0.02, 0.15


def kernel_density(x: Tensor, points: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return the log density of equal Gaussians centred at `points`, and its gradient.

    Args:
        x: [S, N, 2], where to evaluate the density.
        points: [S, M, 2] or [M, 2].
        width: standard deviation.

    Returns:
        [S, N] and [S, N, 2].
    """
    points = points.expand(len(x), -1, -1)
    exponents = -torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * width**2)
    density = torch.logsumexp(exponents, -1) - math.log(points.shape[1] * 2 * math.pi * width**2)
    return density, (exponents.softmax(-1) @ points - x) / width**2


def logit(particles: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logit log p/q at the particles, and its gradient: [S, N], [S, N, 2]."""
    data, data_gradient = kernel_density(particles, CENTRES, STD)
    own, own_gradient = kernel_density(particles, particles, BANDWIDTH)
    return data - own, data_gradient - own_gradient


def flow(
    objective: str, seeds: int, steps: int, record: int, start: str = "near"
) -> tuple[Tensor, list[float], list[float]]:
    """Move particles by STEP_LENGTH h'(d) grad d per step, but at most by LONGEST.

    Returns:
        The particles [T, S, N, 2] at every `record`-th step, and the mean h'(d) and mean d at these steps.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor(STARTS[start]) + START_STD * torch.randn(seeds, PARTICLES, 2, generator=generator)
    kept, slopes, logits = [], [], []
    for step in range(steps + 1):
        d, gradient = logit(x)
        slope = san.vector_field(objective, d)
        if step % record == 0:
            kept.append(x)
            slopes.append(float(slope.mean()))
            logits.append(float(d.mean()))
        move = STEP_LENGTH * slope.unsqueeze(-1) * gradient
        x = x + move * (LONGEST / move.norm(dim=-1, keepdim=True).clamp_min(LONGEST))
    return torch.stack(kept), slopes, logits


def reference(n: int) -> Tensor:
    """Draw samples [n, 2] of the data."""
    generator = torch.Generator().manual_seed(1)
    return CENTRES[torch.randint(len(CENTRES), (n,), generator=generator)] + STD * torch.randn(
        n, 2, generator=generator
    )


def picture(frames: dict[str, Tensor], results: dict[str, Any], path: Path) -> None:
    """Draw the particles after the last step, h' over d, and the sliced distance over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 5.4), layout="constrained")
    panels: Any = figure.subfigures(2, 1)
    above, below = panels
    for axes, objective in zip(above.subplots(1, len(OBJECTIVES)), OBJECTIVES, strict=True):
        _scatter(axes, frames[objective][-1, 0], objective)
    left, right = below.subplots(1, 2)
    d = torch.linspace(-12, 6, 400)
    for objective in OBJECTIVES:
        left.semilogy(d, san.vector_field(objective, d).clamp(1e-6, 1e3), label=objective)
        series = results["starts"]["near"][objective]
        right.plot(results["recorded steps"], series["sliced_wasserstein over steps"], label=objective)
    left.axvspan(-12, -5, color="0.9")
    left.text(-11.8, 2e2, "vanilla with C = 0 vanishes", fontsize=8)
    left.set(xlabel="d", ylabel="h'(d)")
    right.set(xlabel="step", ylabel="sliced Wasserstein distance", yscale="log")
    left.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _scatter(axes: Any, particles: Tensor, title: str) -> None:
    for centre in CENTRES:
        axes.add_patch(_circle(centre.tolist()))
    axes.scatter(particles[:, 0], particles[:, 1], s=2, color="tab:blue")
    axes.set(xlim=(-2.5, 4), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def _circle(centre: list[float]) -> Any:
    from matplotlib.patches import Circle

    return Circle((centre[0], centre[1]), 2 * STD, color="tab:orange", alpha=0.25, linewidth=0)


def animation(frames: dict[str, Tensor], path: Path) -> None:
    """Write a GIF with a panel per h and a frame per recorded step, with few colours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    images = []
    for t in range(len(frames[OBJECTIVES[0]])):
        figure, grid = plt.subplots(2, 3, figsize=(5.4, 3.2), layout="constrained")
        for axes, objective in zip(grid.flat, OBJECTIVES, strict=True):
            _scatter(axes, frames[objective][t, 0], objective)
        figure.canvas.draw()
        pixels = figure.canvas.buffer_rgba()  # type: ignore[attr-defined]
        images.append(
            Image.frombytes("RGBA", figure.canvas.get_width_height(), bytes(pixels))
            .convert("RGB")
            .quantize(12, dither=Image.Dither.NONE)
        )
        plt.close(figure)
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=[120] * (len(images) - 1) + [2000],
        loop=0,
        optimize=True,
    )


def measure(frames: Tensor, slopes: list[float], logits: list[float], target: Tensor) -> dict[str, Any]:
    """Measure one flow. A particle has arrived if it is within two standard deviations of a centre."""
    distances = [[float(sliced_wasserstein(x, target)) for x in frame] for frame in frames]
    arrived = (
        (torch.cdist(frames[-1], CENTRES.expand(frames.shape[1], -1, -1)).amin(2) < 2 * STD).double().mean(1)
    )
    return {
        "sliced_wasserstein": shared.interval(distances[-1]),
        "share of particles that arrived": shared.interval(arrived.tolist()),
        "mean h' at the start": slopes[0],
        "mean d at the start": logits[0],
        "sliced_wasserstein over steps": [sum(row) / len(row) for row in distances],
    }


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--seeds", default=10, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--out", default=str(shared.RESULTS), show_default=True, callback=outputs.checked_folder)
def main(seeds: int, steps: int, out: str) -> None:
    """Run the flows, print the table and draw the pictures."""
    if seeds < 2 or steps < 10:
        raise click.ClickException(
            f"--seeds={seeds} --steps={steps}: at least 2 seeds and 10 steps are needed"
        )
    torch.set_num_threads(1)
    record = max(1, steps // 40)
    frames: dict[str, Tensor] = {}
    samples = torch.split(reference(PARTICLES * (seeds + 1)), PARTICLES)
    floor = shared.interval([float(sliced_wasserstein(s, samples[0])) for s in samples[1:]])
    results: dict[str, Any] = {
        "seeds": seeds,
        "steps": steps,
        "recorded steps": list(range(0, steps + 1, record)),
        "two samples of the data": floor,
    }
    click.echo(f"two samples of the data: sliced distance {shared.text(floor)}")
    results["starts"] = {start: {} for start in STARTS}
    for start in reversed(STARTS):
        for objective in OBJECTIVES:
            frames[objective], slopes, logits = flow(objective, seeds, steps, record, start)
            row = results["starts"][start][objective] = measure(frames[objective], slopes, logits, samples[0])
            click.echo(
                f"{start:5s} {objective:11s} d at the start {logits[0]:6.1f}   h' {slopes[0]:.1e}   "
                f"arrived {shared.text(row['share of particles that arrived'])}   sliced distance "
                f"{shared.text(row['sliced_wasserstein'])}"
            )
    shared.write(Path(out), "monoflow", results)
    picture(frames, results, Path(out) / "monoflow.png")
    animation(frames, Path(out) / "monoflow.gif")


if __name__ == "__main__":
    main()
