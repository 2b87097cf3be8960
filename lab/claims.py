# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/method.md from the numbers in docs/lab, so that every claim is backed by a run.

    python -m lab.claims            # after an experiment has written its JSON
    python -m lab.claims --check    # exit status 1 if the page differs from the numbers

A table is between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dnnlib.util import atomic_write
from lab import power, screening, shared

PAGE = shared.RESULTS.parent / "method.md"
ANSWERS = {"better": "yes", "worse": "no: worse", "no difference seen": "no difference seen"}
TOY = {  # experiment, score -> claim, digits
    ("direction", "cosine"): ("SAN's direction is nearer the optimal one (cosine)", 3),
    ("direction", "separability"): ("SAN is more separable", 5),
    ("mixture", "sliced_wasserstein"): (
        "samples are nearer the data (sliced Wasserstein, lower is better)",
        3,
    ),
    ("mixture", "modes"): ("more modes are covered, of 8", 3),
    ("mixture", "quality"): ("more samples lie at a mode", 3),
}
IMAGES = {  # score -> claim, digits
    "fd_lite0": ("images are nearer the data (fd_lite0, lower is better)", 0),
    "accuracy": ("more images obey the class asked for", 3),
    "balance": ("classes are more evenly drawn", 3),
}


def _row(
    claim: str, where: str, cell: dict[str, Any], names: tuple[str, str], verdict: str, digits: int
) -> list[str]:
    gan, own = (shared.text(cell[name], digits) for name in names)
    seeds, std = int(cell["improvement"]["n"]), cell["improvement"]["std"]
    return [
        claim,
        where,
        str(seeds),
        gan,
        own,
        shared.text(cell["improvement"], digits),
        ANSWERS[cell[verdict]],
        f"{power.detectable(std, seeds):.{digits}f}",
    ]


def _rows(folder: Path) -> Iterator[list[str]]:
    for (experiment, score), (claim, digits) in TOY.items():
        found = shared.read(folder, experiment)
        for loss, scores in (found["table"] if found else {}).items():
            yield _row(claim, f"`lab.{experiment}`, {loss}", scores[score], ("GAN", "SAN"), "SAN is", digits)
    small, large = shared.read(folder, "dcgan"), shared.read(folder, "projected")
    for score, (claim, digits) in IMAGES.items():
        for setting, scores in (small["table"] if small else {}).items():
            if score in scores:
                yield _row(claim, f"`lab.dcgan`, {setting}", scores[score], ("GAN", "SAN"), "SAN is", digits)
        cell = (large["metrics"] if large else {}).get(score, {}).get("last")
        if cell:
            yield _row(
                claim, "`lab.projected`", cell, ("StyleGAN-XL", "StyleSAN-XL"), "StyleSAN-XL is", digits
            )


def comparison(folder: Path) -> str:
    """Return the table of GAN and SAN: a row per claim and experiment."""
    heads = ["SAN's claim", "experiment", "seeds", "GAN", "SAN", "improvement", "holds?", "shown from"]
    return shared.markdown([heads, *_rows(folder)])


def monoflow(folder: Path) -> str:
    """Return the table of the results of each h from a near and from a far start."""
    found = shared.read(folder, "monoflow")
    assert found is not None, f"{folder}/monoflow.json is missing: run python -m lab.monoflow"
    heads = [
        "h",
        *(
            f"{start}: {what}"
            for start in found["starts"]
            for what in ("mean h′ at the start", "arrived", "sliced distance")
        ),
    ]
    rows = []
    for objective in next(iter(found["starts"].values())):
        cells = [found["starts"][start][objective] for start in found["starts"]]
        parts = [
            (
                f"{c['mean h' + chr(39) + ' at the start']:.2g}",
                shared.text(c["share of particles that arrived"]),
                shared.text(c["sliced_wasserstein"]),
            )
            for c in cells
        ]
        rows.append([f"`{objective}`", *(text for part in parts for text in part)])
    return shared.markdown([heads, *rows])


def screened(folder: Path) -> str:
    """Return the table of lab.screening."""
    found = shared.read(folder, "screening")
    assert found is not None, f"{folder}/screening.json is missing: run python -m lab.screening"
    return screening.table(screening.compared(found["runs"]))


def page(text: str, folder: Path) -> str:
    """Return `text` with all tables filled from the numbers in `folder`.

    Raises:
        ValueError: `text` has no place for a table.
    """
    for name, table in (("comparison", comparison), ("screening", screened), ("monoflow", monoflow)):
        place = re.search(rf"(?<=<!-- begin {name} -->\n).*?(?=\n<!-- end {name} -->)", text, re.DOTALL)
        if place is None:
            raise ValueError(f"no '<!-- begin {name} -->' ... '<!-- end {name} -->' found for the table")
        text = text[: place.start()] + table(folder) + text[place.end() :]
    return text


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--check", is_flag=True, help="Compare without changing the page.")
def main(check: bool) -> None:
    """Write the page, or compare it."""
    before = PAGE.read_text()
    after = page(before, shared.RESULTS)
    if check and after != before:
        raise click.ClickException(
            f"{PAGE} differs from the numbers in {shared.RESULTS}: run python -m lab.claims"
        )
    if after != before:
        with atomic_write(PAGE, "w") as file:
            file.write(after)


if __name__ == "__main__":
    main()
