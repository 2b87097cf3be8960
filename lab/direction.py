# SPDX-License-Identifier: Apache-2.0
"""Compares the discriminator's direction with the optimal one while GANs and SANs train on lab.mixture.

    python -m lab.direction                        # uses the runs in mixture.json, or trains them
    python -m lab.direction --seeds=4 --steps=200

The optimal direction for features h is E[h | real] - E[h | generated]. The last layer of a GAN is trained by
the GAN's loss and need not find it; the direction of a SAN is trained only for it. The separability of the
logits is measured as well. Writes direction.json and direction.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dnnlib import outputs
from lab import shared
from lab.mixture import LOSSES, run
from lab.toy import Plan

QUANTITIES = {"cosine": "cosine to the optimal direction", "separability": "separability"}


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Return loss -> quantity -> intervals over seeds for GAN and SAN, and the improvement paired by seed.

    A value is the mean over training without its first tenth.
    """
    rows: dict[str, Any] = {}
    for loss in LOSSES:
        rows[loss] = {}
        for quantity in QUANTITIES:
            means = {}
            for kind in ("GAN", "SAN"):
                series = np.array(results["arms"][f"{kind} {loss}"]["history"][quantity])
                means[kind] = series[min(max(1, len(series) // 10), len(series) - 1) :].mean(0)
            rows[loss][quantity] = shared.compared(means["GAN"], means["SAN"])
    return rows


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw a column per loss: the mean over seeds, and the range of their middle 80%."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        len(QUANTITIES), len(LOSSES), figsize=(11, 5), sharex=True, sharey="row", layout="constrained"
    )
    for column, loss in enumerate(LOSSES):
        for axes, (quantity, label) in zip(grid[:, column], QUANTITIES.items(), strict=True):
            for kind, colour in (("GAN", "tab:blue"), ("SAN", "tab:orange")):
                history = results["arms"][f"{kind} {loss}"]["history"]
                series = np.array(history[quantity])
                low, high = np.quantile(series, (0.1, 0.9), axis=1)
                axes.plot(history["step"], series.mean(1), color=colour, label=kind)
                axes.fill_between(history["step"], low, high, color=colour, alpha=0.2, linewidth=0)
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(loss)
        grid[-1, column].set_xlabel("step")
    grid[0, 0].legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--seeds", default=Plan.seeds, show_default=True)
@click.option("--steps", default=Plan.steps, show_default=True)
@click.option("--out", default=str(shared.RESULTS), show_default=True, callback=outputs.checked_folder)
def main(seeds: int, steps: int, out: str) -> None:
    """Load or train the runs, print the table and draw the picture."""
    torch.set_num_threads(1)
    results = run(Plan(seeds=seeds, steps=steps), Path(out))
    rows = summarise(results)
    shared.write(Path(out), "direction", {"plan": results["plan"], "table": rows})
    for loss, quantities in rows.items():
        for quantity, row in quantities.items():
            click.echo(
                f"{loss:15s} {quantity:13s} GAN {shared.text(row['GAN'])}   SAN {shared.text(row['SAN'])}   "
                f"SAN is {row['SAN is']}"
            )
    picture(results, Path(out) / "direction.png")


if __name__ == "__main__":
    main()
