# SPDX-License-Identifier: Apache-2.0
"""Compares heads and losses in the class-conditional DCGAN of lab.dcgan: few seeds, then more for some.

    python -m lab.screening --data=fashion/train-images-idx3-ubyte.gz --limit=10000
    python -m lab.screening --data=fashion/train-images-idx3-ubyte.gz --limit=10000 --seeds=8 \
        --methods=gan/bce/ns,san/bce/ns,sona/bce/ns

A method is the discriminator's last layer (gan, san, sona), its loss, and the generator's objective. Losses
are compared under the head gan, with gan/hinge/logit. Heads are compared under equal losses, with gan. Runs
of the same seed have the same generator at the start, order of the data and latents, and differences are
paired by seed. "Shown from" is the smallest true difference that so many seeds show with a probability of
80%.

Writes screening.json and screening.png. Finished runs are kept, also those of other methods, so the second
command adds seeds to the first one's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

import san
from dnnlib import outputs
from lab import dcgan, power, shared

REFERENCE = dcgan.Method("gan", "hinge", "logit")
METHODS = (
    *("gan/hinge/logit", "san/hinge/logit", "sona/hinge/logit"),
    *("gan/bce/ns", "san/bce/ns", "sona/bce/ns"),
    *("gan/bce/arcsinh", "gan/ls/logit", "gan/relativistic/ns"),
)
SCORES = {"fd_lite0": 0, "accuracy": 3, "balance": 3}  # -> digits
LOWER_IS_BETTER = ("fd_lite0",)


def parse(text: str) -> dcgan.Method:
    """Return a method from HEAD/LOSS/OBJECTIVE.

    Raises:
        click.ClickException: A part is unknown, or the parts do not fit.
    """
    parts = text.strip().split("/")
    if len(parts) != 3:
        raise click.ClickException(
            f"--methods: '{text}' must be HEAD/LOSS/OBJECTIVE, such as san/hinge/logit"
        )
    method = dcgan.Method(*parts)
    if method.head not in ("gan", "san", "sona"):
        raise click.ClickException(f"--methods: the head of '{text}' must be gan, san or sona")
    try:
        san.discriminator_loss(method.d_loss)
        san.generator_objective(method.g_loss)
    except ValueError as error:
        raise click.ClickException(f"--methods: '{text}': {error}") from None
    if method.head == "sona" and san.objectives.is_paired(method.d_loss):
        raise click.ClickException(f"--methods: '{text}': SONA needs a loss that does not compare pairs")
    return method


def name_of(method: dcgan.Method) -> str:
    """Return HEAD/LOSS/OBJECTIVE."""
    return "/".join(method)


def reference_of(method: dcgan.Method) -> dcgan.Method:
    """Return what a method is compared with."""
    return REFERENCE if method.head == "gan" else method._replace(head="gan")


def compared(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the values of every method, and its differences from its reference.

    Args:
        runs: method -> seed -> run.

    Returns:
        Method -> score -> `value` and, if both have two seeds in common, `improvement` (paired by seed,
        positive = better), `verdict` and `shown from`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, own in runs.items():
        base_name = name_of(reference_of(parse(name)))
        base = runs.get(base_name, {}) if base_name != name else {}
        seeds = sorted(own.keys() & base.keys(), key=int)
        for score in SCORES:
            cell: dict[str, Any] = {"value": shared.interval([run["scores"][score] for run in own.values()])}
            if len(seeds) > 1:
                a, b = ([method[seed]["scores"][score] for seed in seeds] for method in (base, own))
                improvement = shared.improvement(a, b, score in LOWER_IS_BETTER)
                cell |= {
                    "than": base_name,
                    "improvement": improvement,
                    "verdict": shared.verdict(improvement),
                }
                cell["shown from"] = power.detectable(improvement["std"], len(seeds))
            rows.setdefault(name, {})[score] = cell
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the comparisons as a Markdown table."""
    found = [["method", "score", "seeds", "value", "than", "improvement (seeds)", "verdict", "shown from"]]
    for name, scores in rows.items():
        for score, cell in scores.items():
            digits, value = SCORES[score], cell["value"]
            cells = [name, score, str(int(value["n"])), shared.text(value, digits)]
            if "improvement" in cell:
                improvement = cell["improvement"]
                cells += [cell["than"], f"{shared.text(improvement, digits)} ({int(improvement['n'])})"]
                cells += [cell["verdict"], f"{cell['shown from']:.{digits}f}"]
            found.append(cells + [""] * (len(found[0]) - len(cells)))
    return shared.markdown(found)


def picture(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw every method's scores with their 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(SCORES), figsize=(11, 1 + 0.35 * len(rows)), layout="constrained", sharey=True
    )
    colours = {"gan": "tab:blue", "san": "tab:orange", "sona": "tab:green"}
    for axes, score in zip(panels, SCORES, strict=True):
        for i, (name, scores) in enumerate(rows.items()):
            value, half = scores[score]["value"]["mean"], scores[score]["value"]["half_width"] or 0.0
            axes.errorbar([value], [-i], xerr=[half], fmt="o", color=colours[parse(name).head], capsize=3)
        axes.set_yticks([-i for i in range(len(rows))], list(rows))
        axes.set(title=f"{score} ({'lower' if score in LOWER_IS_BETTER else 'higher'} is better)")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def missing(
    runs: Mapping[str, Mapping[str, Any]], methods: Sequence[dcgan.Method], seeds: int
) -> list[tuple[int, dcgan.Method]]:
    """Return the runs to be made, all methods of a seed before the next seed."""
    return [
        (seed, method)
        for seed, method in itertools.product(range(seeds), methods)
        if str(seed) not in runs.get(name_of(method), {})
    ]


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--data", required=True, help="IDX file of images, next to that of their labels.")
@click.option("--limit", type=click.IntRange(1), help="Use only the first images.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Separated by commas.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=dcgan.Plan.steps, show_default=True)
@click.option(
    "--generate", type=click.IntRange(2), default=500, show_default=True, help="Images per measurement."
)
@click.option("--bf16/--no-bf16", default=False, show_default=True, help="Convolutions in bfloat16.")
@click.option("--out", default=str(shared.RESULTS), show_default=True, callback=outputs.checked_folder)
def main(
    data: str, limit: int | None, methods: str, seeds: int, steps: int, generate: int, bf16: bool, out: str
) -> None:
    """Train and measure the missing runs, print the table and draw the picture."""
    chosen = [parse(text) for text in methods.split(",")]
    chosen += [r for r in dict.fromkeys(map(reference_of, chosen)) if r not in chosen]
    plan, results = dcgan.Plan(steps=steps, generate=generate, bf16=bf16), Path(out)
    settings: dict[str, Any] = {"plan": dataclasses.asdict(plan), "limit": limit}
    try:
        found = shared.read_same(results, "screening", settings)
    except ValueError as err:
        raise click.ClickException(str(err)) from None
    runs: dict[str, dict[str, Any]] = found.get("runs", {})
    todo = missing(runs, chosen, seeds)
    if todo:
        try:
            raw, labels, classes = dcgan.load(data, limit)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None
        bench = dcgan.Bench(torch.from_numpy(raw).unsqueeze(1), torch.from_numpy(labels), classes, plan)
        settings["accuracy of the classifier on held-out images"] = bench.judge.held_out_accuracy
    else:
        settings = {name: value for name, value in found.items() if name not in ("runs", "rows")}
    for seed, method in todo:
        _, run = bench.run(classes, method, seed)
        runs.setdefault(name_of(method), {})[str(seed)] = run
        shared.write(results, "screening", {**settings, "rows": compared(runs), "runs": runs})
        click.echo(
            f"{name_of(method)}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in run["scores"].items())
        )
    rows = compared(runs)
    click.echo(table(rows))
    picture(rows, results / "screening.png")


if __name__ == "__main__":
    main()
