# SPDX-License-Identifier: Apache-2.0
"""TrainState: everything that an exact resume needs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from training.config import OptimConfig
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator
from training.graphs import Graphs
from training.guard import Guard
from training.networks.stems import Lineage
from training.schedules import lazy_adam


@dataclass
class Progress:
    """Counters of a run.

    Real images shown, steps, finished ticks, where the current tick began, seconds of training, the best
    score so far and where it was, evaluations since then, and whether the last snapshot still waits for its
    evaluation. metric_seconds: spent on evaluations. first_metric: what the best score is of; None before
    the first evaluation. best_others: the best values of other metrics, by name. Best values are negated
    where higher is better.
    """

    nimg: int = 0
    step: int = 0
    tick: int = 0
    tick_start_nimg: int = 0
    seconds: float = 0.0
    best_metric: float | None = None
    best_nimg: int | None = None
    stale: int = 0
    unscored: bool = False
    metric_seconds: float = 0.0
    first_metric: str | None = None
    best_others: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class TrainState:
    """Networks, optimizers, running statistics and counters.

    Draws and the data position are functions of (seed, progress), so nothing else is needed to resume.
    """

    G: Generator
    D: ProjectedDiscriminator
    G_ema: Generator
    g_params: dict[str, torch.nn.Parameter]
    d_params: dict[str, torch.nn.Parameter]
    g_opt: torch.optim.Optimizer
    d_opt: torch.optim.Optimizer
    pl_mean: torch.Tensor
    guard: Guard
    progress: Progress = field(default_factory=Progress)
    started_from: dict[str, Any] | None = None  # the report of --init-from
    graphs: Graphs | None = None  # --compile=graphs
    lineage: Lineage = field(
        default_factory=Lineage
    )  # kept beside this state in a checkpoint, since it names files

    @classmethod
    def create(
        cls, G: Generator, D: ProjectedDiscriminator, optim: OptimConfig, pl_interval: int
    ) -> TrainState:
        """Wrap networks that are on their device.

        The optimizers leave out parameters that do not require gradients (a frozen stem).
        """
        g_params = {k: p for k, p in G.named_parameters() if p.requires_grad}
        d_params = D.trainable_parameters()
        betas = (optim.beta1, optim.beta2)
        g_lr, g_betas = lazy_adam(optim.glr, betas, pl_interval)
        # Deviation: the discriminator has no regularisation, yet the published optimizer is corrected as if
        # it had; the effective values are kept.
        d_lr, d_betas = lazy_adam(optim.dlr, betas, optim.d_reg_interval)
        device = next(G.parameters()).device
        return cls(
            G=G,
            D=D,
            G_ema=copy.deepcopy(G).eval().requires_grad_(False),
            g_params=g_params,
            d_params=d_params,
            g_opt=torch.optim.Adam(
                list(g_params.values()), lr=g_lr, betas=g_betas, eps=optim.eps, fused=device.type != "mps"
            ),
            d_opt=torch.optim.Adam(
                list(d_params.values()), lr=d_lr, betas=d_betas, eps=optim.eps, fused=device.type != "mps"
            ),
            pl_mean=torch.zeros([], device=device),
            guard=Guard(device),
        )

    @torch.no_grad()
    def update_ema(self, beta: float) -> None:
        """G_ema <- G + beta (G_ema - G) for parameters; copy buffers (w_avg, magnitudes; StyleGAN3)."""
        ema = [p.detach() for p in self.G_ema.parameters()]
        torch._foreach_lerp_(ema, [p.detach() for p in self.G.parameters()], 1.0 - beta)
        for b_ema, b in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            b_ema.copy_(b)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values."""
        return {
            "G": self.G.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "D": self.D.saved_state_dict(),
            "g_opt": self.g_opt.state_dict(),
            "d_opt": self.d_opt.state_dict(),
            "pl_mean": self.pl_mean,
            "progress": dict(vars(self.progress)),
            "started_from": self.started_from,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the state by name, the feature networks included: equal in all processes."""
        found = {"pl_mean": self.pl_mean}
        for name, module in (("G", self.G), ("G_ema", self.G_ema), ("D", self.D)):
            found |= {f"{name}.{key}": x for key, x in module.state_dict().items()}
        for name, params, optimizer in (
            ("g_opt", self.g_params, self.g_opt),
            ("d_opt", self.d_params, self.d_opt),
        ):
            for key, p in params.items():
                moments = optimizer.state.get(p, {}).items()
                found |= {f"{name}.{key}.{k}": x for k, x in moments if isinstance(x, torch.Tensor)}
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place; every key must match.

        Learning rates and betas stay those of this run's config, which may differ by intention.

        Raises:
            RuntimeError, ValueError: a tensor is missing, left over or of another shape.
        """
        self.G.load_state_dict(state["G"])
        self.G_ema.load_state_dict(state["G_ema"])
        self.D.load_saved_state_dict(state["D"])
        for optimizer, saved in ((self.g_opt, state["g_opt"]), (self.d_opt, state["d_opt"])):
            own = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(saved)
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(settings)
        self.pl_mean.copy_(state["pl_mean"])
        self.progress = Progress(**state["progress"])
        self.started_from = state.get("started_from")
