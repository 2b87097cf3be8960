# SPDX-License-Identifier: Apache-2.0
"""A DCGAN on Fashion-MNIST, GAN against SAN, conditional and not: feature distance, classifier accuracy, balance of classes.

    python -m lab.dcgan --data=fashion/train-images-idx3-ubyte.gz                  # 3 seeds, 4 kinds; about an hour of a CPU
    python -m lab.dcgan --data=fashion/train-images-idx3-ubyte.gz --seeds=1 --steps=50 --generate=500

The discriminator is an ordinary one with spectral_norm; its SAN is made by san.convert. Any IDX pair of 28x28 grey images will do.
fd_lite0: Frechet distance between EfficientNet-Lite0 features of generated and of training images. accuracy: share of generated images that a
classifier trained on the data recognises as the class that was asked for (conditional only). balance: entropy of the classes that it sees over
log(classes). Writes dcgan.json and dcgan.png; what is finished is kept.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import san
from dnnlib.image_sources import open_source
from lab import report
from metrics import detectors
from metrics.fid import frechet_distance
from metrics.statistics import Moments
from torch_utils import images as image_tools

Z, SIDE, WIDTH = 64, 28, 32


@dataclass(frozen=True)
class Plan:
    """Adam with betas (0, 0.9), one generator step per discriminator step, hinge loss."""

    steps: int = 4000
    batch: int = 64
    lr: float = 2e-4
    ema: float = 0.995
    generate: int = 5000


class Generator(nn.Module):
    """Latents [N, Z] and, if there are classes, labels int64 [N] -> images [N, 1, 28, 28] in [-1, 1]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.first = nn.Linear(Z + classes, 4 * WIDTH * 7 * 7, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(4 * WIDTH),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * WIDTH),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * WIDTH, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        if c is not None:
            z = torch.cat([z, F.one_hot(c, self.classes).to(z.dtype)], dim=1)
        return self.body(self.first(z).view(len(z), 4 * WIDTH, 7, 7))


class Discriminator(nn.Module):
    """Images [N, 1, 28, 28] -> logits [N, 1]: linear(h), and + <embed(c), h> if there are classes (Miyato & Koyama, ICLR 2018)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            spectral_norm(nn.Conv2d(1, WIDTH, 4, 2, 1)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Conv2d(2 * WIDTH, 4 * WIDTH, 3, 1, 1)),
            nn.LeakyReLU(0.1),
        )
        self.linear = nn.Linear(4 * WIDTH, 1)
        self.embed = nn.Embedding(classes, 4 * WIDTH) if classes else None

    def forward(self, x: Tensor, c: Tensor | None) -> Any:
        h = self.body(x).sum((2, 3)) / 7
        logits = self.linear(h)
        return logits if self.embed is None else logits + (self.embed(c) * h).sum(1, keepdim=True)


def discriminator(classes: int, is_san: bool) -> nn.Module:
    """The discriminator, or its SAN."""
    D = Discriminator(classes)
    return san.convert(D, ["linear", "embed"] if classes else "linear") if is_san else D


def train(pixels: Tensor, labels: Tensor, classes: int, is_san: bool, seed: int, plan: Plan) -> Generator:
    """The moving average of the generator. pixels: float [N, 1, 28, 28] in [-1, 1]; classes = 0: unconditional."""
    torch.manual_seed(seed)
    G, D = Generator(classes), discriminator(classes, is_san)
    average = torch.optim.swa_utils.AveragedModel(G, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(plan.ema), use_buffers=True)
    g_opt, d_opt = (torch.optim.Adam(m.parameters(), plan.lr, betas=(0.0, 0.9)) for m in (G, D))
    san.normalize_(D)
    for _ in range(plan.steps):
        pick = torch.randint(len(pixels), (plan.batch,))
        c = labels[torch.randint(len(labels), (plan.batch,))] if classes else None
        with torch.no_grad():
            fake = G(torch.randn(plan.batch, Z), c)
        real_logits, fake_logits = D(pixels[pick], labels[pick] if classes else None), D(fake, c)
        san.discriminator_objective(real_logits, fake_logits, "hinge").backward()
        d_opt.step()
        d_opt.zero_grad()
        san.normalize_(D)
        logits = D(G(torch.randn(plan.batch, Z), c), c)
        san.generator_terms(logits.fun if is_san else logits, "logit").mean().backward()
        g_opt.step()
        g_opt.zero_grad()
        d_opt.zero_grad()
        average.update_parameters(G)
    averaged: Any = average.module
    return averaged.eval()


def train_classifier(pixels: Tensor, labels: Tensor, classes: int, epochs: int = 3) -> nn.Module:
    """A small convolutional network, in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, classes),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(pixels)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(pixels[part]), labels[part]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def generate(G: Generator, n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """uint8 images [n, 1, 28, 28] and their labels, every class equally often."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, Z, generator=generator)
    c = torch.arange(n) % classes if classes else None
    parts = [image_tools.to_uint8(G(z[i : i + 250], None if c is None else c[i : i + 250])) for i in range(0, n, 250)]
    return torch.cat(parts), c


def features(detector: detectors.Detector, pixels: Tensor) -> Moments:
    """Mean and covariance of lite0 features of uint8 images."""
    store = Moments(detector.dims["features"])
    for part in pixels.split(100):
        store.append(detector(part)["features"].numpy())
    return store


@torch.no_grad()
def measure(G: Generator, classes: int, plan: Plan, real: Moments, detector: detectors.Detector, classifier: nn.Module) -> dict[str, float]:
    """fd_lite0, balance and, with classes, accuracy."""
    pixels, labels = generate(G, plan.generate, classes)
    found = features(detector, pixels)
    seen = torch.cat([classifier(image_tools.to_float(part)).argmax(1) for part in pixels.split(500)])
    share = torch.bincount(seen).double() / len(seen)
    outputs = next(m.out_features for m in reversed(list(classifier.modules())) if isinstance(m, nn.Linear))
    scores = {
        "fd_lite0": float(frechet_distance(found.mean, found.covariance, real.mean, real.covariance)),
        "balance": float(torch.special.entr(share).sum()) / math.log(outputs),
    }
    return scores | ({"accuracy": float((seen == labels).double().mean())} if labels is not None else {})


def table(runs: dict[str, Any]) -> dict[str, Any]:
    """Setting -> score -> GAN, SAN, improvement paired by seed (positive = SAN better), verdict; for the seeds that both have."""
    rows: dict[str, Any] = {}
    for setting in ("unconditional", "conditional"):
        gan, own = runs.get(f"GAN {setting}", {}), runs.get(f"SAN {setting}", {})
        seeds = sorted(gan.keys() & own.keys())
        for score in gan[seeds[0]]["scores"] if seeds else ():
            a, b = ([kind[s]["scores"][score] for s in seeds] for kind in (gan, own))
            sign = -1 if score == "fd_lite0" else 1
            improvement = report.interval([sign * (y - x) for x, y in zip(a, b, strict=True)])
            rows.setdefault(setting, {})[score] = {
                "GAN": report.interval(a),
                "SAN": report.interval(b),
                "improvement": improvement,
                "SAN is": report.verdict(improvement),
            }
    return rows


def load(path: str, limit: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Grey images uint8 [N, 28, 28], labels, number of classes. Raises ValueError for others."""
    source = open_source(path)
    count = min(len(source), limit or len(source))
    pixels = np.stack([np.asarray(source.opener.load(source.refs[i])[1]) for i in range(count)])
    if pixels.shape[1:] != (SIDE, SIDE) or source.labels is None:
        raise ValueError(f"--data={path}: labelled grey images of {SIDE}x{SIDE} are needed, these are {list(pixels.shape[1:])}")
    return pixels, np.asarray(source.labels[:count]), source.num_classes


@click.command(help=str(__doc__))
@click.option("--data", required=True, help="IDX file of images, its labels beside it")
@click.option("--limit", type=int, default=None, help="use the first images only")
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=Plan.steps, show_default=True)
@click.option("--generate", "count", default=Plan.generate, show_default=True, help="images per measurement")
@click.option("--out", default=str(report.RESULTS), show_default=True)
def main(data: str, limit: int | None, seeds: int, steps: int, count: int, out: str) -> None:
    """Train every kind that is missing, measure, print the table, draw."""
    try:
        raw, raw_labels, classes = load(data, limit)
    except (ValueError, OSError) as err:
        raise click.ClickException(str(err)) from None
    plan, folder = Plan(steps=steps, generate=count), Path(out)
    pixels, labels = image_tools.to_float(torch.from_numpy(raw).unsqueeze(1)), torch.from_numpy(raw_labels)
    detector = detectors.load_lite0()
    real = features(detector, torch.from_numpy(raw[: max(count, 1000)]).unsqueeze(1))
    classifier = train_classifier(pixels, labels, classes)
    settings = {"plan": dataclasses.asdict(plan), "images": len(raw)}
    found = report.read(folder, "dcgan") or {}
    runs: dict[str, Any] = found.get("runs", {}) if {k: found.get(k) for k in settings} == settings else {}
    shown: dict[str, np.ndarray] = {}
    for seed in range(seeds):
        for setting, conditioned in (("unconditional", 0), ("conditional", classes)):
            for kind in ("GAN", "SAN"):
                name = f"{kind} {setting}"
                if str(seed) in runs.get(name, {}):
                    continue
                started = time.monotonic()
                G = train(pixels, labels, conditioned, kind == "SAN", seed, plan)
                scores = measure(G, conditioned, plan, real, detector, classifier)
                runs.setdefault(name, {})[str(seed)] = {"scores": scores, "seconds": time.monotonic() - started}
                shown.setdefault(name, image_tools.grid(generate(G, 40, conditioned)[0], 10))
                report.write(folder, "dcgan", {**settings, "table": table(runs), "runs": runs})
                click.echo(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    for setting, rows in table(runs).items():
        for score, row in rows.items():
            click.echo(f"{setting:14s} {score:9s} GAN {report.text(row['GAN'])}   SAN {report.text(row['SAN'])}   SAN is {row['SAN is']}")
    if len(shown) == 4:
        picture(shown, folder / "dcgan.png")


def picture(shown: dict[str, np.ndarray], path: Path) -> None:
    """Samples of the first seed of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 4.2), layout="constrained")
    for place, (name, grid) in zip(axes.flat, shown.items(), strict=True):
        place.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255)
        place.set_title(name, fontsize=10)
        place.axis("off")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
