# SPDX-License-Identifier: Apache-2.0
"""Compares GAN and SAN on a mixture of eight Gaussians with the losses of the SAN paper.

    python -m lab.mixture                        # 16 seeds, 3000 steps per kind; a few minutes on one core
    python -m lab.mixture --seeds=4 --steps=200 --out=quick  # a quick test

It measures covered modes, the share of samples near a mode, and the sliced distance. Writes mixture.json and
mixture.png. Finished kinds are kept; a second call trains only the missing ones.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib import outputs
from lab import shared
from lab.toy import Arm, Plan, centres, train

LOSSES = {  # name -> (discriminator loss, generator objective)
    "hinge": ("hinge", "logit"),
    "saturating": ("bce", "vanilla"),
    "non-saturating": ("bce", "ns"),
}
ARMS = [
    Arm(f"{kind} {name}", *losses, kind == "SAN")
    for name, losses in LOSSES.items()
    for kind in ("GAN", "SAN")
]
SCORES = {
    "modes": (1, "modes covered of 8"),
    "quality": (1, "share of samples near a mode"),
    "sliced_wasserstein": (-1, "sliced Wasserstein distance"),
}


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Train the kinds that OUT/mixture.json does not have for this plan.

    Returns:
        All results, with intervals over seeds and paired differences.

    Raises:
        ValueError: the file has those of another plan.
    """
    arms = shared.read_same(out, "mixture", {"plan": dataclasses.asdict(plan)}).get("arms", {})
    for arm in ARMS:
        if arm.name not in arms:
            started = time.process_time()
            arms[arm.name] = train(arm, plan)
            arms[arm.name]["cpu_seconds"] = time.process_time() - started
            click.echo(f"{arm.name}: {arms[arm.name]['cpu_seconds']:.0f} s of CPU")
            shared.write(out, "mixture", {"plan": dataclasses.asdict(plan), "arms": arms})
    results = {"plan": dataclasses.asdict(plan), "table": table(arms), "arms": arms}
    shared.write(out, "mixture", results)
    return results


def table(arms: dict[str, Any]) -> dict[str, Any]:
    """Return loss -> score -> intervals over seeds for GAN and SAN, the improvement and its verdict.

    The improvement is paired by seed; positive = SAN is better.
    """
    rows: dict[str, Any] = {}
    for loss in LOSSES:
        rows[loss] = {}
        for score, (sign, _) in SCORES.items():
            gan, own = (arms[f"{kind} {loss}"]["scores"][score] for kind in ("GAN", "SAN"))
            rows[loss][score] = shared.compared(gan, own, sign < 0)
    return rows


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw samples of the first seed of each kind above, and scores with 95% intervals below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    above, below = panels
    modes = centres()
    for axes, (name, arm) in zip(above.subplots(1, len(ARMS)), results["arms"].items(), strict=True):
        points = torch.tensor(arm["samples"])
        axes.scatter(modes[:, 0], modes[:, 1], s=60, color="0.85")
        axes.scatter(points[:, 0], points[:, 1], s=2, color="tab:orange" if "SAN" in name else "tab:blue")
        axes.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
    for axes, (score, (_, label)) in zip(below.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        for k, (kind, colour) in enumerate((("GAN", "tab:blue"), ("SAN", "tab:orange"))):
            cells = [results["table"][loss][score][kind] for loss in LOSSES]
            places = [i + 0.3 * (k - 0.5) for i in range(len(LOSSES))]
            axes.errorbar(
                places,
                [c["mean"] for c in cells],
                [c["half_width"] for c in cells],
                fmt="o",
                color=colour,
                capsize=3,
                label=kind,
            )
            for place, loss in zip(places, LOSSES, strict=True):
                each = results["arms"][f"{kind} {loss}"]["scores"][score]
                axes.scatter([place + 0.07] * len(each), each, s=6, color=colour, alpha=0.3)
        axes.set_xticks(range(len(LOSSES)), list(LOSSES))
        axes.set_ylabel(label)
    below.axes[0].legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--seeds", default=Plan.seeds, show_default=True)
@click.option("--steps", default=Plan.steps, show_default=True)
@click.option("--out", default=str(shared.RESULTS), show_default=True, callback=outputs.checked_folder)
def main(seeds: int, steps: int, out: str) -> None:
    """Train, print the table and draw the picture."""
    if seeds < 2 or steps < 1:
        raise click.ClickException(f"--seeds={seeds} --steps={steps}: at least 2 seeds and 1 step are needed")
    torch.set_num_threads(1)
    try:
        results = run(Plan(seeds=seeds, steps=steps), Path(out))
    except ValueError as err:
        raise click.ClickException(str(err)) from None
    for loss, rows in results["table"].items():
        for score, row in rows.items():
            click.echo(
                f"{loss:15s} {score:20s} GAN {shared.text(row['GAN'])}   SAN {shared.text(row['SAN'])}   "
                f"SAN is {row['SAN is']}"
            )
    picture(results, Path(out) / "mixture.png")


if __name__ == "__main__":
    main()
