# SPDX-License-Identifier: Apache-2.0
"""Estimates SAN's three conditions from one batch of real and one of generated samples.

A discriminator f(x) = <omega, h(x)> measures a distance between data and generator if (i) omega is the best
direction for h (direction optimality), (ii) h is separable along omega, and (iii) h is injective (Takida et
al., ICLR 2024, section 4). For each head this module computes:

    direction       sum_k s_k <omega_k, delta_k> / sum_k s_k |delta_k| with delta_k = E[h | real] -
                    E[h | generated]: the share of the largest possible Wasserstein form that the directions
                    reach; for a single direction, the cosine between omega and delta. 1 = optimal. s_k are
                    the scales; k runs over outputs, or over classes with h counted in its class.
    separability    (E[f | real] - E[f | generated]) / W1(f | real, f | generated). It is 1 if and only if the
                    logits of real samples are at least those of generated ones at every quantile, which is
                    the condition of separability along omega.
    injectivity     smallest distance between the features of two samples, divided by their root mean square
                    distance. 0 = two samples have the same features. This is a proxy: 0 refutes injectivity,
                    but no value proves it.
    effective_dim   (sum of eigenvalues)^2 / (sum of their squares) of the features' covariance: the number of
                    directions in which the features vary.

All values are estimates. With n samples in D dimensions, delta has noise of the order sqrt(D / n), which
lowers `direction`. If real and generated samples hardly differ, noise dominates both quotients.

Shapes: N samples, I features, O outputs, C classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from san.layers import EPS, SANEmbedding, _SANLayer, _SANWeighted


class HeadReport(NamedTuple):
    """The estimates of one head (see the module docstring)."""

    direction: float
    separability: float
    injectivity: float
    effective_dim: float


def direction_optimality(direction: Tensor, delta: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the scalar sum_k s_k <omega_k, delta_k> / sum_k s_k |delta_k|, in [-1, 1].

    Args:
        direction: [K, ...], one direction per row.
        delta: [K, ...], one difference of mean features (real - generated) per row.
        scale: [K]; None = 1.

    Examples:
        >>> import torch
        >>> direction_optimality(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor(0.6000)
    """
    delta = delta.flatten(1)
    weight = torch.ones_like(delta[:, 0]) if scale is None else scale.flatten().abs()
    reached = (F.normalize(direction.flatten(1), dim=1, eps=EPS) * delta).sum(1)
    largest: Tensor = (weight * delta.norm(dim=1)).sum()
    return (weight * reached).sum() / largest.clamp_min(EPS)


def separability(real: Tensor, fake: Tensor) -> Tensor:
    """Return the scalar (E real - E fake) / W1(real, fake) of two samples of logits, in [-1, 1].

    The logits can have any shapes. Samples of different sizes are compared at quantiles.
    """
    real, fake = real.detach().flatten().float().sort().values, fake.detach().flatten().float().sort().values
    if len(real) != len(fake):
        grid = (torch.arange(max(len(real), len(fake)), device=real.device) + 0.5) / max(len(real), len(fake))
        real, fake = (x[(grid * len(x)).long().clamp_max(len(x) - 1)] for x in (real, fake))
    return (real - fake).mean() / (real - fake).abs().mean().clamp_min(EPS)


def injectivity(features: Tensor) -> Tensor:
    """Return the smallest distance between rows of features [N, ...] over the root mean square distance.

    It is a scalar, NaN for fewer than two samples.
    """
    x = features.detach().flatten(1).float()
    if len(x) < 2:
        return x.new_tensor(torch.nan)
    distances = torch.pdist(x)
    return distances.min() / distances.square().mean().sqrt().clamp_min(EPS)


def effective_dimension(features: Tensor) -> Tensor:
    """Return the participation ratio (tr S)^2 / tr S^2 of the covariance S of features [N, I].

    It is a scalar between 1 and min(N - 1, I), and 0 for constant features.
    """
    x = features.detach().flatten(1).float()
    x = x - x.mean(0)
    gram = x @ x.t() if x.shape[0] <= x.shape[1] else x.t() @ x
    return gram.diagonal().sum().square() / gram.square().sum().clamp_min(EPS)


def mean_features(layer: nn.Module, h: Tensor) -> Tensor:
    """Return E[h] in the shape of the layer's weight, over samples and all positions of a convolution.

    Args:
        layer: a SAN layer that maps features (not a SANEmbedding).
        h: result of the layer's `features`.

    Raises:
        ValueError: the layer does not map features.
    """
    if not isinstance(layer, _SANWeighted):
        raise ValueError(
            f"a {type(layer).__name__} does not map features: give a linear or convolutional SAN layer"
        )
    with torch.enable_grad():
        probe = layer.weight.detach().float().requires_grad_()
        out = layer._map(h.detach().float(), probe)
        channel = out.ndim - 1 if probe.ndim == 2 else 1
        (mean,) = torch.autograd.grad(out.movedim(channel, 0).flatten(1).mean(1).sum(), probe)
    return mean


class _Side:
    """Features and labels of real or of generated samples that one head received."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.labels: list[Tensor] = []


class Recorder:
    """Reads the heads of a discriminator during the forward passes of training.

        with san.diagnostics.Recorder(D) as recorder:
            with recorder.side("real"):
                real = D(x)
            with recorder.side("fake"):
                fake = D(G(z))
        recorder.report()  # name of the SAN layer -> HeadReport

    Args:
        module: a module with SAN layers. DistributedDataParallel is supported, a compiled module is not.
        projections: for each SANEmbedding, the name of the module whose output [N, I, ...] is multiplied with
            its rows. Other embeddings are ignored.
        limit: samples kept per side and head.

    Raises:
        ValueError: a name in `projections` does not exist, or the module has no SAN layer.

    Examples:
        >>> import san, torch
        >>> D = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), san.SANLinear(8, 1))
        >>> with san.diagnostics.Recorder(D) as recorder:
        ...     for side in ("real", "fake"):
        ...         with recorder.side(side):
        ...             _ = D(torch.randn(16, 2))
        >>> [(name, type(report).__name__) for name, report in recorder.report().items()]
        [('2', 'HeadReport')]
    """

    def __init__(
        self, module: nn.Module, projections: Mapping[str, str] | None = None, limit: int = 64
    ) -> None:
        self.limit = limit
        self._current: tuple[str, ...] = ()
        modules = dict(module.named_modules())
        pairs = dict(projections or {})
        for name in [*pairs, *pairs.values()]:
            if name not in modules:
                raise ValueError(f"projections: {type(module).__name__} has no module '{name}'")
        self.heads: dict[str, _SANLayer] = {
            name: m
            for name, m in modules.items()
            if isinstance(m, _SANWeighted) or (isinstance(m, SANEmbedding) and name in pairs)
        }
        if not self.heads:
            raise ValueError(f"{type(module).__name__} has no SAN layer to read")
        self._sides = {name: {"real": _Side(), "fake": _Side()} for name in self.heads}
        self._handles: list[Any] = []
        for name, layer in self.heads.items():
            if isinstance(layer, _SANWeighted):
                self._handles.append(layer.register_forward_hook(self._keep_features(name)))
            else:
                self._handles.append(layer.register_forward_hook(self._keep_labels(name)))
                self._handles.append(modules[pairs[name]].register_forward_hook(self._keep_output(name)))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def side(self, *kinds: str) -> Iterator[None]:
        """Declare that the forward passes in this context are of "real" or "fake" samples.

        Args:
            kinds: one of them, or both in the order in which a pass has them, half of its samples each.

        Raises:
            ValueError: another kind.
        """
        for kind in kinds:
            if kind not in ("real", "fake"):
                raise ValueError(f"side '{kind}': use 'real' or 'fake'")
        self._current = kinds
        try:
            yield
        finally:
            self._current = ()

    def _append(self, name: str, what: str, values: Tensor) -> None:
        for kind, part in zip(self._current, values.detach().chunk(max(1, len(self._current))), strict=False):
            kept = getattr(self._sides[name][kind], what)
            room = self.limit - sum(len(x) for x in kept)
            if room > 0:
                kept.append(part[:room].clone())

    def _keep_features(self, name: str) -> Any:
        return lambda layer, args, output: self._append(name, "features", layer.features(args[0]))

    def _keep_output(self, name: str) -> Any:
        return lambda layer, args, output: self._append(name, "features", output)

    def _keep_labels(self, name: str) -> Any:
        return lambda layer, args, output: self._append(name, "labels", args[0])

    def report(self) -> dict[str, HeadReport]:
        """Return the estimates of every head that received both sides, by the name of its layer.

        It costs a few operations on at most 2 x limit samples per head.
        """
        found = {}
        for name, layer in self.heads.items():
            real, fake = self._sides[name]["real"], self._sides[name]["fake"]
            if real.features and fake.features:
                found[name] = _measure(layer, real, fake)
        return found


@torch.no_grad()
def _measure(layer: _SANLayer, real: _Side, fake: _Side) -> HeadReport:
    h = [torch.cat(side.features).float() for side in (real, fake)]
    if isinstance(layer, _SANWeighted):
        delta = mean_features(layer, h[0]) - mean_features(layer, h[1])
        weight = F.normalize(layer.weight.flatten(1), dim=1, eps=EPS) * layer.scale.view(-1, 1)
        logits = [layer._map(x, weight.view_as(layer.weight).float()) for x in h]
    else:
        labels = [torch.cat(side.labels) for side in (real, fake)]
        rows = F.normalize(layer.weight.flatten(1), dim=1, eps=EPS) * layer.scale
        logits = [torch.einsum("ni...,ni->n...", x, rows[c].float()) for x, c in zip(h, labels, strict=True)]
        of_class = [_class_sums(x, c, len(layer.weight)) for x, c in zip(h, labels, strict=True)]
        delta = of_class[0] - of_class[1]
    values = torch.stack(
        [
            direction_optimality(layer.weight.float(), delta, layer.scale.float()),
            separability(logits[0], logits[1]),
            injectivity(h[0]),
            effective_dimension(h[0]),
        ]
    )
    return HeadReport(*values.tolist())


def _class_sums(h: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return E[h 1(class)] of h [N, I, ...] as [C, I], averaged over positions and samples."""
    pooled = h.flatten(2).mean(2) if h.ndim > 2 else h
    return pooled.new_zeros(classes, pooled.shape[1]).index_add_(0, labels, pooled) / len(pooled)
