# SPDX-License-Identifier: Apache-2.0
"""Trains a waveform generator against multi-period and multi-scale SAN heads, in a minute on one core.

    python -m examples.waveforms              # BigVSAN's losses
    python -m examples.waveforms --plain      # the same heads as a plain GAN
    python -m examples.waveforms --loss=hinge --objective=logit

The data are synthetic: notes of random pitch and phase, with harmonics that decay at different rates. The
heads are small versions of those of Kong, Kim & Bae, "HiFi-GAN", NeurIPS 2020: a period head reads a waveform
as an image with one column per phase of its period, a scale head reads it averaged down. Each ends in a SAN
convolution with its bias on the input. Losses and optimizer are those of Shibuya, Takida & Mitsufuji,
"BigVSAN", ICASSP 2024, without the vocoder's conditions (mel spectrogram, feature matching), and with a
higher learning rate for a short run.

Shapes: N waveforms, T samples.
"""

import argparse
import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import san

LENGTH = 128  # T
LATENT = 16
PERIODS = (2, 3, 5)
SCALES = (1, 2)
BETAS, DECAY = (0.8, 0.99), 0.999  # AdamW and the decay of its rate, BigVSAN
STEPS_PER_EPOCH = 20  # the data have no end; the rate decays after this many steps
FLOOR = 1e-2  # of power spectra, relative to their mean: 20 dB


def notes(count: int, generator: torch.Generator) -> Tensor:
    """Draw notes [N, T]: a pitch of 3 to 8 cycles, four harmonics of random phase and decay."""
    time = torch.arange(LENGTH) / LENGTH
    pitch = 3 * (8 / 3) ** torch.rand(count, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 4, 1, generator=generator)
    decay = 0.5 + 2 * torch.rand(count, 4, 1, generator=generator)
    order = torch.arange(1, 5).view(1, 4, 1)
    waves = torch.sin(2 * math.pi * order * pitch * time + phase) * torch.exp(-decay * time * order)
    return 0.4 * (waves / order).sum(1)


class Generator(nn.Sequential):
    """Latents [N, LATENT] -> waveforms [N, T]: a small perceptron is enough for T = 128."""

    def __init__(self, width: int = 256) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((LATENT, width, width, LENGTH)):
            linear = nn.Linear(a, b)
            nn.init.orthogonal_(linear.weight, gain=1.4)
            layers += [linear, nn.LeakyReLU(0.1)]
        super().__init__(*layers[:-1], nn.Tanh())


class PeriodHead(nn.Module):
    """Waveforms [N, T] -> SANLogits [N, 1, T', period]."""

    def __init__(self, period: int, width: int = 16) -> None:
        super().__init__()
        self.period = period
        widths = (1, width, 4 * width)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in pairwise(widths)
        )
        self.last = san.SANConv2d(4 * width, 1, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> san.SANLogits:
        """Compute logits."""
        x = F.pad(x, (0, -x.shape[1] % self.period)).unflatten(1, (-1, self.period))[:, None]
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
        logits: san.SANLogits = self.last(x)
        return logits


class ScaleHead(nn.Module):
    """Waveforms [N, T] -> SANLogits [N, 1, T']."""

    def __init__(self, scale: int, width: int = 16) -> None:
        super().__init__()
        self.scale = scale
        widths = (1, width, 4 * width)
        self.convs = nn.ModuleList(weight_norm(nn.Conv1d(a, b, 9, 4, 4)) for a, b in pairwise(widths))
        self.last = san.SANConv1d(4 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> san.SANLogits:
        """Compute logits."""
        x = F.avg_pool1d(x[:, None], self.scale)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
        logits: san.SANLogits = self.last(x)
        return logits


class Discriminator(nn.Module):
    """Waveforms [N, T] -> the logits of all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([*map(PeriodHead, PERIODS), *map(ScaleHead, SCALES)])

    def forward(self, x: Tensor) -> list[san.SANLogits]:
        """Compute logits, in the order of the heads."""
        return [head(x) for head in self.heads]


def spectrum(waves: Tensor) -> Tensor:
    """Return the mean power spectrum in dB, [T/2 + 1], of Hann-windowed waveforms."""
    power = torch.fft.rfft(waves * torch.hann_window(LENGTH)).abs().square().mean(0)
    return 10 * torch.log10(power / power.mean() + FLOOR)


class Result(NamedTuple):
    """What a run gives.

    Attributes:
        before: distance between the mean spectra of data and samples at the start, dB.
        after: the same at the end.
        floor: that between two samples of the data.
        variety: standard deviation over samples at the end, as a fraction of that of the data.
    """

    before: float
    after: float
    floor: float
    variety: float


def train(
    steps: int = 500,
    loss: str = "ls_softplus",
    objective: str = "ls_softplus",
    plain: bool = False,
    seed: int = 0,
    batch: int = 32,
    lr: float = 2e-3,
) -> Result:
    """Train and measure.

    Args:
        steps: of discriminator and generator.
        loss: a name in san.DISCRIMINATOR_LOSSES.
        objective: of the generator, as for san.generator_terms.
        plain: train the heads as a GAN.
        seed: of weights, data and latents.
        batch: waveforms per step.
        lr: of both optimizers at the start.
    """
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    G, D = Generator(), Discriminator()
    san.normalize_(D)
    optimizers = [torch.optim.AdamW(net.parameters(), lr, betas=BETAS) for net in (G, D)]
    decays = [torch.optim.lr_scheduler.ExponentialLR(opt, DECAY) for opt in optimizers]
    g_opt, d_opt = optimizers
    data, others = notes(512, draws), notes(512, draws)
    fixed = torch.randn(512, LATENT, generator=draws)

    def distance(waves: Tensor) -> float:
        return float((spectrum(waves) - spectrum(data)).abs().mean())

    def logits(waves: Tensor) -> list[san.SANLogits] | list[Tensor]:
        heads: list[san.SANLogits] = D(waves)
        return [san.gan_logits(head) for head in heads] if plain else heads

    with torch.no_grad():
        before = distance(G(fixed))
    for step in range(steps):
        real, fake = notes(batch, draws), G(torch.randn(batch, LATENT, generator=draws))
        d_opt.zero_grad()
        san.discriminator_objective(logits(real), logits(fake.detach()), loss).backward()
        d_opt.step()
        san.normalize_(D)
        g_opt.zero_grad()
        san.generator_terms(D(fake), objective).backward()
        g_opt.step()
        if (step + 1) % STEPS_PER_EPOCH == 0:
            for decay in decays:
                decay.step()
    with torch.no_grad():
        samples = G(fixed)
        variety = float(samples.std(0).mean() / data.std(0).mean())
    return Result(before, distance(samples), distance(others), variety)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500, help="steps of D and of G (default %(default)s)")
    parser.add_argument("--loss", default="ls_softplus", help="discriminator loss (default %(default)s)")
    parser.add_argument("--objective", default="ls_softplus", help="of the generator (default %(default)s)")
    parser.add_argument("--plain", action="store_true", help="the same heads as a plain GAN")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args()
    try:
        result = train(args.steps, args.loss, args.objective, args.plain, args.seed)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"spectra of samples and data: {result.before:.1f} dB apart at the start, {result.after:.1f} dB "
        f"after {args.steps} steps (two samples of the data: {result.floor:.1f} dB); "
        f"variety {result.variety:.2f} of the data's"
    )


if __name__ == "__main__":
    main()
