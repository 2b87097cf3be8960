# SPDX-License-Identifier: Apache-2.0
"""Compares GAN and SAN in a DCGAN on Fashion-MNIST, conditional and unconditional.

    python -m lab.dcgan --data=fashion/train-images-idx3-ubyte.gz         # 15 to 30 minutes on one core
    python -m lab.dcgan --data=fashion/train-images-idx3-ubyte.gz --seeds=1 --steps=50 --generate=500

There are 4 kinds with 3 seeds each. The discriminator is an ordinary one with spectral_norm; san.convert
converts it to a SAN. Any pair of IDX files with 28x28 grey images can be used.

fd_lite0 is the Frechet distance between EfficientNet-Lite0 features of generated images and of as many
training images, by default 500; for 5,000, the features would take longer than the training. accuracy
(conditional only) is the share of generated images that a classifier, trained on the data, assigns to the
requested class. balance is the entropy of its predicted classes over log(classes).

Writes dcgan.json and dcgan.png. Finished runs are kept: numbers in dcgan.json, generators in --runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import san
from dnnlib import outputs
from dnnlib.util import atomic_write
from image_data.sources import open_source
from lab import shared
from lab.judge import FeatureDistance, Judge
from torch_utils import images as image_tools

Z, SIDE = 64, 28
SETTINGS = ("unconditional", "conditional")
CURVE_POINTS, CURVE_IMAGES = 10, 500  # of the classifier's scores during training


class Method(NamedTuple):
    """The last layer of the discriminator, and the losses.

    Attributes:
        head: gan, san, or (with classes only) sona.
        d_loss: name in san.objectives.DISCRIMINATOR_LOSSES.
        g_loss: name in san.objectives.GENERATOR_OBJECTIVES.
    """

    head: str = "gan"
    d_loss: str = "hinge"
    g_loss: str = "logit"

    @property
    def compares_with_real(self) -> bool:
        """Whether generated images are compared with real ones of their class."""
        return self.head == "sona" or san.objectives.is_paired(self.d_loss)


KINDS = {"GAN": Method("gan"), "SAN": Method("san")}


@dataclass(frozen=True)
class Plan:
    """Settings of the training.

    It uses Adam with betas (0, 0.9), and one generator step per discriminator step.

    Attributes:
        steps: number of steps.
        batch: images per batch.
        width: channels; the middle of the networks has four times as many.
        lr: learning rate.
        ema: decay of the generator's moving average per step.
        generate: images per measurement.
        bf16: compute convolutions in bfloat16 (up to twice as fast on CPUs that support it); the last layers
            stay in float32.
    """

    steps: int = 1500
    batch: int = 32
    width: int = 16
    lr: float = 4e-4
    ema: float = 0.995
    generate: int = 500
    bf16: bool = True


class Generator(nn.Module):
    """Maps latents [N, Z] and, with classes, labels int64 [N] to images [N, 1, 28, 28] in [-1, 1]."""

    def __init__(self, classes: int, plan: Plan) -> None:
        super().__init__()
        self.classes, self.bf16, width = classes, plan.bf16, plan.width
        self.middle = 4 * width
        self.first = nn.Linear(Z + classes, 4 * width * 7 * 7, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Generate images."""
        if c is not None:
            z = torch.cat([z, F.one_hot(c, self.classes).to(z.dtype)], dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            images: Tensor = self.body(self.first(z).view(len(z), self.middle, 7, 7))
        return images.float()


class Discriminator(nn.Module):
    """Maps images [N, 1, 28, 28] to logits [N, 1]: linear(h), with classes linear(h) + <embed(c), h>.

    The projection is from Miyato & Koyama, ICLR 2018. With `sona`, a san.SONAHead takes the place of both.
    """

    def __init__(self, classes: int, plan: Plan, sona: bool = False) -> None:
        super().__init__()
        self.bf16, width = plan.bf16, plan.width
        self.body = nn.Sequential(
            spectral_norm(nn.Conv2d(1, width, 4, 2, 1)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Conv2d(2 * width, 4 * width, 3, 1, 1)),
            nn.LeakyReLU(0.1),
        )
        self.sona = san.SONAHead(4 * width, classes) if sona else None
        if not sona:
            self.linear = nn.Linear(4 * width, 1)
            self.embed = nn.Embedding(classes, 4 * width) if classes else None

    def forward(self, x: Tensor, c: Tensor | None) -> Any:
        """Compute the logits."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            h = self.body(x)
        h = h.float().sum((2, 3)) / 7
        if self.sona is not None:
            return self.sona(h, c)
        logits = self.linear(h)
        return logits if self.embed is None else logits + (self.embed(c) * h).sum(1, keepdim=True)


def discriminator(classes: int, head: str, plan: Plan) -> nn.Module:
    """Return the discriminator with a head of `Method`.

    Raises:
        ValueError: SONA without classes.
    """
    if head == "sona" and not classes:
        raise ValueError("SONA needs classes")
    D = Discriminator(classes, plan, head == "sona")
    return san.convert(D, ["linear", "embed"] if classes else "linear") if head == "san" else D


def _d_loss(method: Method, real: Any, fake: Any, weights: Tensor) -> Tensor:
    if method.head == "sona":
        return san.sona_discriminator_terms(real, fake, weights, method.d_loss).total()
    return san.discriminator_objective(real, fake, method.d_loss)


def _g_loss(method: Method, fake: Any, real: Any) -> Tensor:
    """`real`: logits of real images of the same classes, for a method that compares with them."""
    if method.head == "sona":
        return san.sona_generator_terms(fake, real, method.g_loss).total()
    return san.generator_terms(fake, method.g_loss, real).mean()


def train(
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    method: Method,
    seed: int,
    plan: Plan,
    watch: Callable[[int, Generator], None] = lambda step, G: None,
) -> Generator:
    """Train one GAN and return the moving average of its generator.

    Runs of the same seed have the same generator at the start, order of the data and latents.

    Args:
        pixels: float [N, 1, 28, 28] in [-1, 1].
        labels: int64 [N].
        classes: number of classes; 0 = unconditional.
        method: head and losses.
        seed: seed of the run.
        plan: settings.
        watch: called with the step and the average before training and at CURVE_POINTS equally spaced steps.
    """
    torch.manual_seed(seed)
    G = Generator(classes, plan)
    with torch.random.fork_rng(devices=()):
        D = discriminator(classes, method.head, plan)
    weights = san.SONAWeights()
    swa: Any = torch.optim.swa_utils
    average = swa.AveragedModel(G, multi_avg_fn=swa.get_ema_multi_avg_fn(plan.ema), use_buffers=True)
    averaged: Generator = average.module.eval()
    trained: dict[str, Any] = {"lr": plan.lr, "betas": (0.0, 0.9)}
    g_opt = torch.optim.Adam(G.parameters(), **trained)
    d_opt = torch.optim.Adam([*D.parameters(), *weights.parameters()], **trained)
    san.normalize_(D)
    watch(0, averaged)
    for step in range(1, plan.steps + 1):
        pick = torch.randint(len(pixels), (plan.batch,))
        drawn = labels[torch.randint(len(labels), (plan.batch,))]
        real_c = labels[pick] if classes else None
        c = real_c if method.compares_with_real or real_c is None else drawn
        with torch.no_grad():
            fake = G(torch.randn(plan.batch, Z), c)
        torch.autograd.backward(_d_loss(method, D(pixels[pick], real_c), D(fake, c), weights()))
        d_opt.step()
        d_opt.zero_grad()
        san.normalize_(D)
        with torch.no_grad():
            real = D(pixels[pick], real_c) if method.compares_with_real else None
        torch.autograd.backward(_g_loss(method, D(G(torch.randn(plan.batch, Z), c), c), real))
        g_opt.step()
        g_opt.zero_grad()
        d_opt.zero_grad()
        average.update_parameters(G)
        if step % max(1, plan.steps // CURVE_POINTS) == 0:
            watch(step, averaged)
    return averaged


@torch.no_grad()
def generate(G: Generator, n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Generate uint8 images [n, 1, 28, 28] and their labels, all classes equally often."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, Z, generator=generator)
    c = torch.arange(n) % classes if classes else None
    parts = [
        image_tools.to_uint8(G(z[i : i + 250], None if c is None else c[i : i + 250]))
        for i in range(0, n, 250)
    ]
    return torch.cat(parts), c


class Bench:
    """The data, and the evaluation of generators with it.

    Args:
        raw: uint8 [N, 1, 28, 28].
        labels: int64 [N].
        classes: number of classes.
        plan: settings.
    """

    def __init__(self, raw: Tensor, labels: Tensor, classes: int, plan: Plan) -> None:
        self.pixels, self.labels, self.plan = image_tools.to_float(raw), labels, plan
        self.judge = Judge(raw, labels, classes)
        self.distance = FeatureDistance(raw[: plan.generate])

    def run(self, classes: int, method: Method, seed: int) -> tuple[Generator, dict[str, Any]]:
        """Train one GAN (classes = 0: unconditional) and measure it.

        Returns:
            The generator, and a dict of its final scores, the classifier's scores over steps and the CPU
            seconds.
        """
        curve: dict[str, list[float]] = {"step": []}

        def watch(step: int, G: Generator) -> None:
            curve["step"].append(step)
            for name, value in self.judge.scores(*generate(G, CURVE_IMAGES, classes)).items():
                curve.setdefault(name, []).append(value)

        started = time.process_time()
        G = train(self.pixels, self.labels, classes, method, seed, self.plan, watch)
        seconds = time.process_time() - started
        pixels, asked = generate(G, self.plan.generate, classes)
        return G, {
            "scores": {"fd_lite0": self.distance(pixels)} | self.judge.scores(pixels, asked),
            "curve": curve,
            "cpu_seconds": seconds,
        }


def table(runs: dict[str, Any]) -> dict[str, Any]:
    """Return setting -> score -> intervals for GAN and SAN, the improvement and its verdict.

    The improvement is paired by seed, for the seeds that both have; positive = SAN is better.
    """
    rows: dict[str, Any] = {}
    for setting in ("unconditional", "conditional"):
        gan, own = runs.get(f"GAN {setting}", {}), runs.get(f"SAN {setting}", {})
        seeds = sorted(gan.keys() & own.keys())
        for score in gan[seeds[0]]["scores"] if seeds else ():
            a, b = ([kind[s]["scores"][score] for s in seeds] for kind in (gan, own))
            rows.setdefault(setting, {})[score] = shared.compared(a, b, score == "fd_lite0")
    return rows


def load(path: str, limit: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Load grey images uint8 [N, 28, 28], labels and the number of classes.

    Raises:
        ValueError: the data set has other images or no labels.
    """
    source = open_source(path)
    count = min(len(source), limit or len(source))
    pixels = np.stack([np.asarray(source.opener.load(source.refs[i])[1]) for i in range(count)])
    if pixels.shape[1:] != (SIDE, SIDE) or source.labels is None:
        raise ValueError(
            f"--data={path}: labelled grey images of {SIDE}x{SIDE} pixels are needed, not "
            f"{list(pixels.shape[1:])}"
        )
    return pixels, np.asarray(source.labels[:count]), source.num_classes


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--data", required=True, help="IDX file of images, next to that of their labels.")
@click.option("--limit", type=int, default=None, help="Use only the first images.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=Plan.steps, show_default=True)
@click.option("--width", default=Plan.width, show_default=True, help="Channels of the networks.")
@click.option("--generate", "count", default=Plan.generate, show_default=True, help="Images per measurement.")
@click.option("--bf16/--no-bf16", default=Plan.bf16, show_default=True, help="Convolutions in bfloat16.")
@click.option(
    "--runs",
    "folder",
    default="training-runs/lab-dcgan",
    show_default=True,
    help="Folder of the generators.",
    callback=outputs.checked_folder,
)
@click.option("--out", default=str(shared.RESULTS), show_default=True, callback=outputs.checked_folder)
def main(
    data: str,
    limit: int | None,
    seeds: int,
    steps: int,
    width: int,
    count: int,
    bf16: bool,
    folder: str,
    out: str,
) -> None:
    """Train and measure the missing runs, print the table and draw the picture."""
    if seeds < 1 or steps < 1 or count < 2:
        raise click.ClickException(
            f"--seeds={seeds} --steps={steps} --generate={count}: at least 1, 1 and 2 are needed"
        )
    plan, results, bench = Plan(steps=steps, width=width, generate=count, bf16=bf16), Path(out), None
    try:
        raw, raw_labels, classes = load(data, limit)
        settings = {"plan": dataclasses.asdict(plan), "images": len(raw)}
        found = shared.read_same(results, "dcgan", settings)
    except (ValueError, OSError) as err:
        raise click.ClickException(str(err)) from None
    Path(folder).mkdir(parents=True, exist_ok=True)
    runs: dict[str, Any] = found.get("runs", {})
    accuracy = found.get("accuracy of the classifier on held-out images")
    for seed, setting, kind in itertools.product(range(seeds), SETTINGS, KINDS):
        name, network = f"{kind} {setting}", Path(folder) / f"{kind}-{setting}-seed{seed}.pt"
        if str(seed) in runs.get(name, {}) and network.is_file():
            continue
        if bench is None:
            bench = Bench(torch.from_numpy(raw).unsqueeze(1), torch.from_numpy(raw_labels), classes, plan)
            accuracy = bench.judge.held_out_accuracy
        G, run = bench.run(classes if setting == "conditional" else 0, KINDS[kind], seed)
        with atomic_write(network) as file:
            torch.save(G.state_dict(), file)
        runs.setdefault(name, {})[str(seed)] = run
        shared.write(
            results,
            "dcgan",
            {
                **settings,
                "accuracy of the classifier on held-out images": accuracy,
                "table": table(runs),
                "runs": runs,
            },
        )
        click.echo(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in run["scores"].items()))
    for setting, rows in table(runs).items():
        for score, row in rows.items():
            click.echo(
                f"{setting:14s} {score:9s} GAN {shared.text(row['GAN'])}   SAN {shared.text(row['SAN'])}   "
                f"SAN is {row['SAN is']}"
            )
    picture(samples(Path(folder), classes, plan), runs, results / "dcgan.png")


def samples(folder: Path, classes: int, plan: Plan) -> dict[str, np.ndarray]:
    """Return a sheet of samples of the first seed for each kind; with classes, a column per class."""
    sheets = {}
    for setting, kind in itertools.product(SETTINGS, KINDS):
        conditioned = classes if setting == "conditional" else 0
        G = Generator(conditioned, plan)
        G.load_state_dict(torch.load(folder / f"{kind}-{setting}-seed0.pt", weights_only=True))
        sheets[f"{kind} {setting}"] = image_tools.grid(
            generate(G.eval(), 6 * max(classes, 1), conditioned)[0], max(classes, 1)
        )
    return sheets


def picture(sheets: dict[str, np.ndarray], runs: dict[str, Any], path: Path) -> None:
    """Draw samples of the first seed of each kind, scores with 95% intervals, and the classifier's curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 6), layout="constrained")
    panels: Any = figure.subfigures(2, 1)
    above, below = panels
    for place, (name, sheet) in zip(above.subplots(1, len(sheets)), sheets.items(), strict=True):
        place.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255)
        place.set_title(name, fontsize=10)
        place.axis("off")
    left, middle, right = below.subplots(1, 3)
    for k, (kind, colour) in enumerate(zip(KINDS, ("tab:blue", "tab:orange"), strict=True)):
        for i, setting in enumerate(SETTINGS):
            values = [run["scores"]["fd_lite0"] for run in runs[f"{kind} {setting}"].values()]
            summary = shared.interval(values)
            left.errorbar(
                [i + 0.2 * (k - 0.5)],
                [summary["mean"]],
                [summary["half_width"]],
                fmt="o",
                color=colour,
                capsize=3,
                label=kind if not i else None,
            )
            left.scatter([i + 0.2 * (k - 0.5) + 0.04] * len(values), values, s=8, color=colour, alpha=0.4)
        for axes, setting, score in (
            (middle, "unconditional", "balance"),
            (right, "conditional", "accuracy"),
        ):
            shared.band(
                axes,
                [(run["curve"]["step"], run["curve"][score]) for run in runs[f"{kind} {setting}"].values()],
                colour,
                kind,
            )
            axes.set(title=f"{setting}: {score}", xlabel="step", ylim=(0, 1.02))
    left.set_xticks(range(len(SETTINGS)), SETTINGS)
    left.set(title="fd_lite0 (lower is better)", xlim=(-0.5, 1.5))
    left.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
