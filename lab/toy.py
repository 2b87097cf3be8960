# SPDX-License-Identifier: Apache-2.0
"""Small 2-D GANs with many seeds at once. All tensors have a leading axis of seeds, which are independent.

Shapes: S seeds, N samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

import san

MODES, RADIUS, STD = 8, 2.0, 0.1  # the mixture: Gaussians on a circle
Z, WIDTH = 8, 64


@dataclass(frozen=True)
class Arm:
    """One kind of GAN.

    Attributes:
        name: name of the kind.
        d_loss: discriminator loss in san.objectives.
        g_loss: generator objective in san.objectives.
        is_san: the discriminator is a SAN.
    """

    name: str
    d_loss: str
    g_loss: str
    is_san: bool


@dataclass(frozen=True)
class Plan:
    """Settings of the training: Adam with betas (0, 0.9), one generator step per discriminator step."""

    seeds: int = 16
    steps: int = 3000
    batch: int = 128
    lr: float = 1e-3
    record_every: int = 100
    probe: int = 1024  # fresh samples per recorded direction


def centres() -> Tensor:
    """Return the centres of the mixture, [MODES, 2]."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def mixture(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw samples [*shape, 2] of the mixture."""
    which = torch.randint(MODES, shape, generator=generator)
    return centres()[which] + STD * torch.randn(*shape, 2, generator=generator)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Return a network with two hidden layers and leaky ReLU; the last layer has no bias."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, outputs, bias=False),
    )


class Ensemble:
    """The same network with different weights for each seed."""

    def __init__(self, modules: list[nn.Module]) -> None:
        params, buffers = stack_module_state(modules)
        self.params = {k: v.detach().requires_grad_() for k, v in params.items()}
        self.buffers = buffers
        skeleton = copy.deepcopy(modules[0]).to("meta")

        def one(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(skeleton, (params, buffers), (x,))

        self._all = vmap(one)

    def __call__(self, x: Tensor) -> Any:
        """Map x [S, N, I] to the network's output, with a leading axis of seeds."""
        return self._all(self.params, self.buffers, x)


class Toy:
    """S generators and S discriminators, GAN or SAN; equal seeds give equal initial weights."""

    def __init__(self, arm: Arm, plan: Plan) -> None:
        self.arm, self.plan = arm, plan
        gs: list[nn.Module] = []
        ds: list[nn.Module] = []
        for seed in range(plan.seeds):
            torch.manual_seed(1000 + seed)
            gs.append(mlp(Z, 2))
            d = mlp(2, 1)
            ds.append(san.convert(d) if arm.is_san else d)
        self.G, self.D = Ensemble(gs), Ensemble(ds)
        self.g_opt = torch.optim.Adam(self.G.params.values(), plan.lr, betas=(0.0, 0.9))
        self.d_opt = torch.optim.Adam(self.D.params.values(), plan.lr, betas=(0.0, 0.9))
        self.rng = torch.Generator().manual_seed(7)

    def noise(self, n: int) -> Tensor:
        """Draw latents [S, n, Z]."""
        return torch.randn(self.plan.seeds, n, Z, generator=self.rng)

    def step(self) -> None:
        """Run one discriminator step and one generator step.

        Losses are summed over seeds, so each seed's gradient is that of its own mean loss.
        """
        plan, arm = self.plan, self.arm
        real = mixture((plan.seeds, plan.batch), self.rng)
        with torch.no_grad():
            fake = self.G(self.noise(plan.batch))
        d_loss = plan.seeds * san.discriminator_objective(self.D(real), self.D(fake), arm.d_loss)
        torch.autograd.backward(d_loss)
        self.d_opt.step()
        self.d_opt.zero_grad()
        if arm.is_san:
            with torch.no_grad():
                self.D.params["4.weight"].copy_(F.normalize(self.D.params["4.weight"], dim=-1))
        logits = self.D(self.G(self.noise(plan.batch)))
        fun = logits.fun if arm.is_san else logits
        torch.autograd.backward(plan.seeds * san.generator_terms(fun, arm.g_loss).mean())
        self.g_opt.step()
        self.g_opt.zero_grad()
        self.d_opt.zero_grad()

    @torch.no_grad()
    def conditions(self) -> tuple[list[float], list[float]]:
        """Return the cosine between the direction and the optimal one, and the separability, per seed.

        They are measured on new samples.
        """
        real = mixture((self.plan.seeds, self.plan.probe), self.rng)
        fake = self.G(self.noise(self.plan.probe))
        h = [self._features(x) for x in (real, fake)]
        delta = h[0].mean(1) - h[1].mean(1)
        direction = self.D.params["4.weight"].detach()[:, 0]
        cosines = F.cosine_similarity(direction, delta, dim=1)
        logits = [torch.einsum("snh,sh->sn", x, direction) for x in h]
        separable = [float(san.diagnostics.separability(r, f)) for r, f in zip(*logits, strict=True)]
        return cosines.tolist(), separable

    def _features(self, x: Tensor) -> Tensor:
        """Return the discriminator's features h, [S, N, WIDTH]."""
        for layer in ("0", "2"):
            x = F.leaky_relu(
                torch.baddbmm(
                    self.D.params[f"{layer}.bias"][:, None],
                    x,
                    self.D.params[f"{layer}.weight"].transpose(1, 2),
                ),
                0.2,
            )
        return x


def train(arm: Arm, plan: Plan, progress: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Train all seeds of one kind of GAN.

    Args:
        arm: kind of GAN.
        plan: length and size.
        progress: called with the step at each measurement.

    Returns:
        Per-seed `scores` after the last step, 512 `samples` of the first seed, and the `history` of measured
        conditions: lists over steps of lists over seeds.
    """
    toy = Toy(arm, plan)
    history: dict[str, list[Any]] = {"step": [], "cosine": [], "separability": []}
    for step in range(plan.steps + 1):
        if step % plan.record_every == 0:
            cosines, separable = toy.conditions()
            history["step"].append(step)
            history["cosine"].append(cosines)
            history["separability"].append(separable)
            progress(step)
        if step < plan.steps:
            toy.step()
    with torch.no_grad():
        samples = toy.G(toy.noise(4096))
    reference = mixture((4096,), torch.Generator().manual_seed(11))
    return {"scores": scores(samples, reference), "samples": samples[0, :512].tolist(), "history": history}


def scores(samples: Tensor, reference: Tensor) -> dict[str, list[float]]:
    """Compute scores per seed.

    `modes` is the number of modes with at least 1% of the samples within 4 standard deviations, `quality` the
    share of samples within that distance of any mode, and `sliced_wasserstein` the sliced distance.

    Args:
        samples: [S, N, 2].
        reference: samples [N, 2] of the mixture.
    """
    distance = torch.cdist(samples, centres().expand(len(samples), -1, -1))
    near = distance < 4 * STD
    return {
        "modes": (near.float().mean(1) >= 0.01).sum(1).double().tolist(),
        "quality": near.any(2).double().mean(1).tolist(),
        "sliced_wasserstein": [float(sliced_wasserstein(s, reference)) for s in samples],
    }


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 64) -> Tensor:
    """Return the sliced 2-Wasserstein distance between x [N, 2] and y [N, 2], a scalar.

    The directions are equally spaced.
    """
    angle = torch.arange(projections) * (math.pi / projections)
    directions = torch.stack([angle.cos(), angle.sin()])
    return (((x @ directions).sort(0).values - (y @ directions).sort(0).values) ** 2).mean().sqrt()
