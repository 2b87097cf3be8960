# SPDX-License-Identifier: Apache-2.0
"""States which differences between two methods a number of seeds can show.

    python -m lab.power                                   # for every comparison in docs/lab
    python -m lab.power --minutes=6 --budget=10           # what 10 hours of runs of 6 minutes can show

The test is the one of the tables: a t-test of differences paired by seed. Its power is the probability that
the interval of a true difference excludes zero. The standard deviation of the differences is an estimate as
well, from few seeds a poor one: its own interval is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from scipy import optimize, stats

from lab import shared

POWER, LEVEL = 0.8, 0.95
MOST_SEEDS = 100_000


def power(difference: float, std: float, seeds: int, level: float = LEVEL) -> float:
    """Return the probability that the interval of a true difference excludes zero on its side.

    Args:
        difference: between the means of the two methods.
        std: standard deviation of the differences paired by seed.
        seeds: pairs.
        level: level of the interval.
    """
    if seeds < 2:
        return 0.0
    if std == 0:
        return float(difference != 0)
    critical = stats.t.ppf(0.5 + level / 2, seeds - 1)
    return float(stats.nct.sf(critical, seeds - 1, abs(difference) / std * math.sqrt(seeds)))


def detectable(std: float, seeds: int, target: float = POWER, level: float = LEVEL) -> float:
    """Return the smallest difference whose power is `target`; infinite for fewer than two seeds."""
    if seeds < 2:
        return math.inf
    if std == 0:
        return 0.0
    found = optimize.brentq(lambda ratio: power(ratio, 1.0, seeds, level) - target, 1e-6, 1e3)
    return float(found) * std


def seeds_needed(difference: float, std: float, target: float = POWER, level: float = LEVEL) -> int:
    """Return the smallest number of seeds that shows a difference with the power `target`.

    Raises:
        ValueError: more than MOST_SEEDS would be needed.
    """
    low, high = 1, 2
    while power(difference, std, high, level) < target:
        if high >= MOST_SEEDS:
            raise ValueError(f"a difference of {difference:g} needs more than {MOST_SEEDS} seeds")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, std, middle, level) >= target else (middle, high)
    return high


def std_interval(std: float, seeds: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of a standard deviation that was estimated from `seeds` values."""
    if seeds < 2:
        return 0.0, math.inf
    chances = (0.5 + level / 2, 0.5 - level / 2)
    low, high = (std * math.sqrt((seeds - 1) / stats.chi2.ppf(chance, seeds - 1)) for chance in chances)
    return float(low), float(high)


def correlation(first: float, second: float, paired: float) -> float:
    """Return the correlation of two methods over seeds, from three standard deviations.

    Pairing by seed helps only if it is positive.

    Args:
        first: of the values of one method.
        second: of those of the other one.
        paired: of their differences.
    """
    product = 2 * first * second
    return (first**2 + second**2 - paired**2) / product if product else math.nan


class Comparison(NamedTuple):
    """Two methods under one measure.

    Attributes:
        name: experiment and measure.
        seeds: pairs.
        std: standard deviation of the paired differences.
        correlation: between the methods over seeds.
    """

    name: str
    seeds: int
    std: float
    correlation: float


def statement(std: float, seeds: int) -> dict[str, float]:
    """Return what the results of an experiment say of its power, for its JSON file."""
    low, high = std_interval(std, seeds)
    return {"std": std, "std low": low, "std high": high, "detectable": detectable(std, seeds)}


def _comparison(name: str, cell: dict[str, Any], kinds: tuple[str, str]) -> Comparison:
    stds = [cell[kind]["std"] or 0.0 for kind in (*kinds, "improvement")]
    return Comparison(name, int(cell["improvement"]["n"]), stds[2], correlation(*stds))


def comparisons(folder: Path) -> Iterator[Comparison]:
    """Yield the comparisons whose results are in a folder."""
    for experiment in ("direction", "mixture", "dcgan"):
        found = shared.read(folder, experiment) or {"table": {}}
        for setting, scores in found["table"].items():
            for score, cell in scores.items():
                yield _comparison(f"{experiment}, {setting}: {score}", cell, ("GAN", "SAN"))
    found = shared.read(folder, "projected") or {"metrics": {}}
    for score, row in found["metrics"].items():
        if "last" in row:
            yield _comparison(f"projected: {score}", row["last"], ("StyleGAN-XL", "StyleSAN-XL"))


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--results", default=str(shared.RESULTS), show_default=True, help="Folder with the results.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Minutes that one run takes.")
@click.option("--budget", type=click.FloatRange(0, min_open=True), help="Hours for all runs of both methods.")
def main(results: str, minutes: float | None, budget: float | None) -> None:
    """Print a line per comparison."""
    if (minutes is None) != (budget is None):
        raise click.ClickException("--minutes and --budget belong together: give both or neither")
    found = [one for one in comparisons(Path(results)) if one.std > 0 and one.seeds > 1]
    if not found:
        raise click.ClickException(f"--results={results} contains no comparison of at least 2 seeds")
    for one in found:
        low, high = std_interval(one.std, one.seeds)
        text = (
            f"{one.name}: {one.seeds} seeds, std of differences {one.std:.3g} ({low:.3g} to {high:.3g}), "
            f"correlation {one.correlation:+.2f}; shown with a power of {POWER:.0%}: "
            f"{detectable(one.std, one.seeds):.3g}"
        )
        if minutes is not None and budget is not None:
            seeds = int(budget * 60 / (2 * minutes))
            text += f"; in {budget:g} hours ({seeds} seeds): {detectable(one.std, seeds):.3g}"
        click.echo(text)


if __name__ == "__main__":
    main()
