# SPDX-License-Identifier: Apache-2.0
"""StyleSAN-XL against StyleGAN-XL in the projected setting: train.py with --san=True and with --san=False, same budget, same seeds.

    python -m lab.projected --seeds=3 -- --data=emoji16.zip --cond=True --kimg=500 --batch=64 --syn_layers=7 --cbase=16384 --cmax=256
    python -m lab.projected --seeds=3 --collect-only                      # the table of runs that are there

What follows `--` goes to train.py; --cfg=stylegan3-t, --gpus=1 and --metrics=fd_lite0_5000 are added where they are not given. The heads of both
kinds are the same networks from the same weights; without SAN their directions are trained by the hinge loss like everything else (they are
weight-normalised linear layers). Runs lie in --runs, a folder per kind and seed; finished ones are kept, unfinished ones resumed.
Writes projected.json: per metric the best and the last value of each run, intervals, and the difference paired by seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from lab import report

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {"cfg": "stylegan3-t", "gpus": "1", "metrics": "fd_lite0_5000"}
KINDS = {"StyleGAN-XL": "False", "StyleSAN-XL": "True"}


def run_dirs(runs: Path, kind: str, seed: int) -> list[Path]:
    """Folders that train.py made for this kind and seed."""
    return sorted((runs / f"{kind}-seed{seed}").glob("[0-9]*-*"))


def command(runs: Path, kind: str, seed: int, options: list[str]) -> list[str] | None:
    """What to run next for this kind and seed; None if it has finished."""
    train = [sys.executable, str(ROOT / "train.py")]
    for folder in run_dirs(runs, kind, seed):
        status = folder / "status.json"
        if status.is_file() and json.loads(status.read_text())["outcome"] == "finished":
            return None
        return [*train, f"--resume={folder}"]
    given = {o.split("=")[0].lstrip("-").replace("-", "_") for o in options}
    added = [f"--{k}={v}" for k, v in DEFAULTS.items() if k not in given]
    return [*train, f"--outdir={runs / f'{kind}-seed{seed}'}", *added, *options, f"--seed={seed}", f"--san={KINDS[kind]}"]


def collect(runs: Path, seeds: int) -> dict[str, Any]:
    """Metric -> kind -> last and best values by seed; and intervals of the paired improvement (positive = StyleSAN-XL better)."""
    values: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for kind in KINDS:
        for seed in range(seeds):
            for folder in run_dirs(runs, kind, seed)[:1]:
                for path in folder.glob("metric-*.jsonl"):
                    lines = [json.loads(line) for line in path.read_text().splitlines()]
                    for name in lines[-1]["results"] if lines else ():
                        series = [line["results"][name] for line in lines]
                        better = min if lines[-1].get("lower_is_better", True) else max
                        values.setdefault(name, {}).setdefault(kind, {})[seed] = {
                            "last": series[-1],
                            "best": better(series),
                            "kimg": lines[-1]["kimg"],
                        }
    found: dict[str, Any] = {}
    for name, kinds in values.items():
        found[name] = {"runs": kinds}
        seeds_of_both = sorted(set.intersection(*(set(k) for k in kinds.values()))) if len(kinds) == 2 else []
        for which in ("last", "best") if seeds_of_both else ():
            gan, own = ([kinds[kind][s][which] for s in seeds_of_both] for kind in KINDS)
            improvement = report.interval([a - b for a, b in zip(gan, own, strict=True)])
            found[name][which] = {
                "StyleGAN-XL": report.interval(gan),
                "StyleSAN-XL": report.interval(own),
                "improvement if lower is better": improvement,
                "StyleSAN-XL is": report.verdict(improvement),
            }
    return found


@click.command(help=str(__doc__), context_settings={"ignore_unknown_options": True})
@click.option("--seeds", default=3, show_default=True)
@click.option("--runs", default="training-runs/lab-projected", show_default=True)
@click.option("--out", default=str(report.RESULTS), show_default=True)
@click.option("--collect-only", is_flag=True, help="train nothing")
@click.argument("options", nargs=-1)
def main(seeds: int, runs: str, out: str, collect_only: bool, options: tuple[str, ...]) -> None:
    """Train, one run after the other, then tabulate."""
    for seed in range(0 if collect_only else seeds):
        for kind in KINDS:
            line = command(Path(runs), kind, seed, list(options))
            if line is not None:
                click.echo(" ".join(line))
                code = subprocess.run(line, cwd=ROOT).returncode
                if code:
                    raise click.ClickException(f"train.py left with exit code {code}; call again to go on")
    found = collect(Path(runs), seeds)
    report.write(Path(out), "projected", {"options": list(options), "metrics": found})
    for name, rows in found.items():
        for which in ("last", "best"):
            if which in rows:
                row = rows[which]
                click.echo(
                    f"{name} ({which}): StyleGAN-XL {report.text(row['StyleGAN-XL'])}   StyleSAN-XL {report.text(row['StyleSAN-XL'])}   "
                    f"StyleSAN-XL is {row['StyleSAN-XL is']}"
                )


if __name__ == "__main__":
    main()
