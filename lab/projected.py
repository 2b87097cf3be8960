# SPDX-License-Identifier: Apache-2.0
r"""Compares StyleSAN-XL and StyleGAN-XL: train.py with --san=True and --san=False, same budget and seeds.

    python -m lab.projected --seeds=3 -- --data=fashion16.zip --cond=True --kimg=500 --batch=64 \
        --syn_layers=7 --cbase=16384 --cmax=256
    python -m lab.projected --seeds=3 --collect-only                      # the table of existing runs

    python -m lab.projected --arm="SONA=--heads=sona --d-loss=bce" --seeds=5 -- ...    # a third method
    python -m lab.projected --only-arms --arm="from scratch=" --arm="fine-tuned=--init-from=digits.pkl" \
        --name=finetuning -- --metrics=fd_lite0_1k ...                    # other methods, in other files

Options after `--` are passed to train.py; --cfg=stylegan3-t, --gpus=1 and --metrics=none are added if
missing. The heads of both kinds are the same networks with the same initial weights. Without SAN, their
directions are trained by the hinge loss like all other weights (they are weight-normalised linear layers).
Each --arm adds a method with options of its own; all are compared with StyleGAN-XL, seed by seed: the runs of
a seed have the same order of the data and the same latents. With --only-arms, the methods of --arm are
compared with the first of them.
The runs are in --runs, a folder per kind and seed. Finished runs are kept, unfinished ones are resumed, and
all are continued if --kimg is increased.

At every snapshot it measures, if there are classes, accuracy (the share of --generate images that a
classifier, trained on the data set, assigns to the requested class) and balance (the entropy of the predicted
classes over log(classes)). At the last snapshot it measures fd_lite0, the Frechet distance between lite0
features of these images and of as many images of the data set. Included are the metrics that train.py
evaluates, variety and recall within classes at every tick (their nearness to those of the data, at most 1),
and the number of images from which on a method is as good as the reference at its end. Writes projected.json
(values, intervals, differences paired by seed) and projected.png.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from dnnlib import outputs
from lab import power, shared
from lab.judge import FeatureDistance, Judge
from torch_utils import images as image_tools
from training import run_folder
from training.config import DataConfig
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.networks.reader import load as load_generator
from training.run_folder import better_direction

EXPERIMENTS = ("dcgan", "direction", "mixture", "monoflow", "projected", "screening")  # names in docs/lab
ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {"cfg": "stylegan3-t", "gpus": "1", "metrics": "none"}
VARIETY = ("Variety/within", "Variety/recall")  # of every tick, 1 = as the data (training/watch/variety.py)
Kinds = Mapping[str, tuple[str, ...]]  # method -> its options of train.py; the first one is the reference
KINDS: Kinds = {"StyleGAN-XL": ("--san=False",), "StyleSAN-XL": ("--san=True",)}


def run_dirs(runs: Path, kind: str, seed: int) -> list[Path]:
    """Return the folders that train.py created for this kind and seed."""
    return sorted((runs / f"{kind}-seed{seed}").glob("[0-9]*-*"))


def arms(texts: Sequence[str], alone: bool = False) -> Kinds:
    """Return KINDS and the methods of --arm, "NAME=FLAGS".

    Args:
        texts: Values of --arm.
        alone: Leave KINDS out.

    Raises:
        ValueError: a text has another form, or a name is taken or cannot be part of a folder name; or there
            are fewer than two methods.
    """
    found = {} if alone else dict(KINDS)
    for text in texts:
        name, _, flags = text.partition("=")
        bad = not re.fullmatch(r"\w[\w.+ -]*", name) or "=" not in text
        if bad or (flags and not flags.startswith("--")):
            raise ValueError(f"--arm={text}: write NAME=FLAGS, such as SONA=--heads=sona")
        if name in found:
            raise ValueError(f"--arm={text}: there is a method {name} already; choose another name")
        found[name] = tuple(shlex.split(flags))
    if len(found) < 2:
        raise ValueError("--only-arms compares the methods of --arm: give at least two")
    return found


def command(runs: Path, kind: str, seed: int, options: list[str], kinds: Kinds = KINDS) -> list[str] | None:
    """Return the next command for this kind and seed; None if its run has reached the requested --kimg."""
    train = [sys.executable, str(ROOT / "train.py")]
    given = {o.split("=")[0].lstrip("-").replace("-", "_"): o for o in options}
    for folder in run_dirs(runs, kind, seed):
        longer = (
            "kimg" in given
            and (run_folder.recorded_nimg(folder) or 0) < float(given["kimg"].split("=")[1]) * 1000
        )
        if run_folder.recorded_outcome(folder) == run_folder.FINISHED and not longer:
            return None
        return [*train, f"--resume={folder}", *([given["kimg"]] if longer else [])]
    added = [f"--{k}={v}" for k, v in DEFAULTS.items() if k not in given]
    return [
        *train,
        f"--outdir={runs / f'{kind}-seed{seed}'}",
        *added,
        *options,
        f"--seed={seed}",
        *kinds[kind],
    ]


@torch.no_grad()
def generate(G: Generator, count: int) -> tuple[Tensor, Tensor | None]:
    """Generate uint8 images [count, 3, R, R] of fixed latents and their labels, all classes equally often."""
    z = torch.randn(count, G.z_dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % G.c_dim if G.c_dim > 1 else None
    parts = [
        image_tools.to_uint8(G(z[i : i + 100], None if labels is None else labels[i : i + 100]))
        for i in range(0, count, 100)
    ]
    return torch.cat(parts), labels


class Bench:
    """Measures the snapshots of runs on one data set, and keeps the results in the run folders."""

    def __init__(self, data: DataConfig, count: int) -> None:
        dataset = ImageDataset(data.path, use_labels=data.cond, channels=data.channels)
        pixels = torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))]))
        self.count, self.distance = count, FeatureDistance(pixels[:count])
        self.judge = (
            None
            if dataset.labels is None
            else Judge(pixels, torch.from_numpy(dataset.labels), dataset.label_dim)
        )

    def measure(self, folder: Path) -> None:
        """Write FOLDER/lab.json with an entry per snapshot."""
        known = shared.read(folder, "lab") or {}
        lines = known.get("snapshots", {}) if known.get("images") == self.count else {}
        paths = run_folder.snapshot_files(folder)
        for path in paths:
            if path.name not in lines:
                pixels, asked = generate(load_generator(str(path)), self.count)
                found = {"kimg": run_folder.kimg_of_file(path)} | (
                    self.judge.scores(pixels, asked) if self.judge else {}
                )
                lines[path.name] = found | ({"fd_lite0": self.distance(pixels)} if path == paths[-1] else {})
                accuracy = self.judge.held_out_accuracy if self.judge else None
                shared.write(
                    folder,
                    "lab",
                    {
                        "images": self.count,
                        "accuracy of the classifier on held-out images": accuracy,
                        "snapshots": lines,
                    },
                )


def measure(runs: Path, seeds: int, count: int, kinds: Kinds = KINDS) -> None:
    """Measure the snapshots of all finished runs."""
    bench = None
    for kind in kinds:
        for seed in range(seeds):
            for folder in run_dirs(runs, kind, seed)[:1]:
                if command(runs, kind, seed, [], kinds) is None:
                    bench = bench or Bench(run_folder.load_run(str(folder)).data, count)
                    bench.measure(folder)


def series(folder: Path) -> dict[str, tuple[list[float], list[float], bool]]:
    """Return name -> (kimg, values, lower is better) of all measurements of one run."""
    found: dict[str, tuple[list[float], list[float], bool]] = {}
    lines = list((shared.read(folder, "lab") or {}).get("snapshots", {}).values())
    for name in [key for key in (lines[-1] if lines else {}) if key != "kimg"]:
        having = [line for line in lines if name in line]
        found[name] = [line["kimg"] for line in having], [line[name] for line in having], name == "fd_lite0"
    ticks = run_folder.read_jsonl(folder / run_folder.STATS_FILE)
    for name in (name for name in VARIETY if any(name in line for line in ticks)):
        points = [(line["kimg"], _nearness(line[name]["mean"])) for line in ticks if name in line]
        found[name] = [kimg for kimg, _ in points], [value for _, value in points], False
    for path in run_folder.metric_files(folder):
        lines = run_folder.read_jsonl(path)
        for name in lines[-1]["results"] if lines else ():
            lower = better_direction(lines[-1]) != "max"
            found[name] = [line["kimg"] for line in lines], [line["results"][name] for line in lines], lower
    return found


def _nearness(ratio: float) -> float:
    """Return how near a ratio to the data's value is to 1, the best: artefacts can make spreads larger."""
    return min(ratio, 1 / ratio) if ratio > 0 else 0.0


def collect(runs: Path, seeds: int, kinds: Kinds = KINDS) -> dict[str, Any]:
    """Collect the measurements of all runs.

    Longer runs are used up to the length of the shortest one.

    Returns:
        For each metric, the values by kind and seed, and intervals of the last and the best value and of the
        improvement. The improvement is paired by seed, for the seeds that both kinds have; positive = the
        second kind is better. "power" has the smallest difference that so many seeds can show (lab/power.py).
        "reached" has the kimg from which on the second kind is as good as the first one's last value, for
        each seed with several measurements (None = never). "others" has the same for the other kinds.
    """
    found: dict[str, Any] = {}
    places = [
        (kind, seed, folder)
        for kind in kinds
        for seed in range(seeds)
        for folder in run_dirs(runs, kind, seed)[:1]
    ]
    measured = [(kind, seed, found_there) for kind, seed, folder in places if (found_there := series(folder))]
    for kind, seed, one in measured:
        for name, (kimg, values, lower) in one.items():
            shortest = min(other[name][0][-1] for _, _, other in measured if name in other)
            values = [v for k, v in zip(kimg, values, strict=True) if k <= shortest]
            row = found.setdefault(name, {"lower is better": lower, "runs": {k: {} for k in kinds}})
            best = min(values) if lower else max(values)
            row["runs"][kind][str(seed)] = {
                "last": values[-1],
                "best": best,
                "kimg": kimg[: len(values)],
                "values": values,
            }
    first, second, *others = kinds
    for row in found.values():
        for which in ("last", "best"):
            cell = _paired(row, which, first, second)
            others_found = {kind: _paired(row, which, first, kind) for kind in others}
            if cell:
                row[which] = cell
                if others:
                    row[which]["others"] = {kind: one for kind, one in others_found.items() if one}
    return found


def _paired(row: dict[str, Any], which: str, first: str, second: str) -> dict[str, Any]:
    """Compare two methods over the seeds that both have; empty without any."""
    runs = row["runs"]
    both = sorted(runs[first].keys() & runs[second].keys())
    if not both:
        return {}
    values = [[runs[kind][seed][which] for seed in both] for kind in (first, second)]
    lower = row["lower is better"]
    compared = shared.compared(values[0], values[1], lower, (first, second))

    def reached(seed: str) -> float | None:
        run, goal, found = runs[second][seed], runs[first][seed]["last"], None
        for kimg, value in zip(reversed(run["kimg"]), reversed(run["values"]), strict=True):
            if value > goal if lower else value < goal:
                break
            found = kimg
        return found

    return {
        **compared,
        "power": power.statement(compared["improvement"]["std"], len(both)),
        "reached": [reached(seed) for seed in both if len(runs[second][seed]["kimg"]) > 1],
    }


def still_rises(row: dict[str, Any]) -> float:
    """Return the mean change between the last two measurements of all runs, over their std between seeds.

    Above about 1 the seeds differ mostly in when they began to improve, and longer runs differ less.
    """
    values = [run["values"] for by_seed in row["runs"].values() for run in by_seed.values()]
    spread = np.mean([row["last"][kind]["std"] for kind in list(row["runs"])[:2]])
    changes = [abs(v[-1] - v[-2]) for v in values if len(v) > 1]
    return float(np.mean(changes) / spread) if changes and spread > 0 else 0.0


def picture(runs: Path, found: dict[str, Any], path: Path) -> None:
    """Draw samples of the first seed of every method, and all metrics over images shown.

    Curves are means over seeds with 95% intervals.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(next(iter(found.values()))["runs"])
    figure = plt.figure(figsize=(4 + 3.2 * len(found), 2.3 * len(kinds)), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(2.2, 1.6 * len(found)))
    for axes, kind in zip(panels[0].subplots(len(kinds), 1), kinds, strict=True):
        folders = run_dirs(runs, kind, 0)
        if folders and (folders[0] / run_folder.NEWEST_NETWORK).is_file():
            G = load_generator(str(folders[0] / run_folder.NEWEST_NETWORK))
            columns = G.c_dim if 1 < G.c_dim <= 20 else 10
            axes.imshow(image_tools.grid(generate(G, 6 * columns)[0], columns), cmap="gray")
        axes.set_title(kind, fontsize=10)
        axes.axis("off")
    for axes, (name, row) in zip(
        np.atleast_1d(panels[1].subplots(1, len(found))), found.items(), strict=True
    ):
        for number, (kind, by_seed) in enumerate(row["runs"].items()):
            colour = f"C{number}"
            if by_seed:
                shared.band(axes, [(run["kimg"], run["values"]) for run in by_seed.values()], colour, kind)
                shared.dots(axes, [(run["kimg"][-1], run["last"]) for run in by_seed.values()], colour)
        axes.set(title=f"{name} ({'lower' if row['lower is better'] else 'higher'} is better)", xlabel="kimg")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


@click.command(
    help=str(__doc__).replace("\n\n", "\n\n\b\n"), context_settings={"ignore_unknown_options": True}
)
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--runs", default="training-runs/lab-projected", show_default=True, callback=outputs.checked_folder
)
@click.option("--generate", "count", default=500, show_default=True, help="Images per measurement.")
@click.option("--arm", "arm", multiple=True, help='A further method: NAME="train.py flags".')
@click.option("--only-arms", is_flag=True, help="Compare the methods of --arm with the first of them.")
@click.option("--name", default="projected", show_default=True, help="Name of the result files.")
@click.option("--out", default=str(shared.RESULTS), show_default=True, callback=outputs.checked_folder)
@click.option("--collect-only", is_flag=True, help="Do not train.")
@click.argument("options", nargs=-1)
def main(
    seeds: int, runs: str, count: int, arm: tuple[str, ...], only_arms: bool, name: str, out: str,
    collect_only: bool, options: tuple[str, ...],
) -> None:  # fmt: skip
    """Train one run after the other, then measure and print the table."""
    try:
        kinds = arms(arm, only_arms)
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"--name={name}: use letters, digits, '_', '.' and '-'")
        if name in EXPERIMENTS and (only_arms or name != "projected"):
            raise ValueError(f"--name={name} is that of other results: choose another name")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    for seed in range(0 if collect_only else seeds):
        for kind in kinds:
            line = command(Path(runs), kind, seed, list(options), kinds)
            if line is not None:
                click.echo(shlex.join(line))
                code = subprocess.run(line, cwd=ROOT).returncode
                if code:
                    raise click.ClickException(
                        f"train.py failed with exit status {code}; run the command again to resume"
                    )
    measure(Path(runs), seeds, count, kinds)
    found = collect(Path(runs), seeds, kinds)
    if not found:
        raise click.ClickException(
            f"--runs={runs} contains no finished run: train some (without --collect-only)"
        )
    shared.write(Path(out), name, {"seeds": seeds, "images": count, "metrics": found})
    picture(Path(runs), found, Path(out) / f"{name}.png")
    for text in lines_of(found):
        click.echo(text)


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines to print about the results of `collect`."""
    for name, row in found.items():
        first, second, *_ = row["runs"]
        for which in [w for w in ("last", "best") if w in row]:
            for other, cell in {second: row[which], **row[which].get("others", {})}.items():
                pair = "   ".join(f"{kind} {shared.text(cell[kind])}" for kind in (first, other))
                yield (
                    f"{name} ({which}): {pair}   {other} is {cell[f'{other} is']} "
                    f"(so many seeds show differences from {cell['power']['detectable']:.3g})"
                )
                if which == "last" and (kimg := [k for k in cell["reached"] if k is not None]):
                    yield (
                        f"{name}: {other} reaches the last value of {first} after {np.mean(kimg):.3g} kimg "
                        f"({min(kimg):g} to {max(kimg):g}), in {len(kimg)} of {len(cell['reached'])} seeds"
                    )
        if "last" in row and (rise := still_rises(row)) > 1:
            yield (
                f"{name}: the last two measurements differ by {rise:.1f} times the std between seeds: the "
                "runs end during the rise; continue them with a larger --kimg"
            )


if __name__ == "__main__":
    main()
