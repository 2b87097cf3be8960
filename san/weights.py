# SPDX-License-Identifier: Apache-2.0
"""The effective weight of torch's layers under any normalisation, and its entries in a state dict.

Shapes: K directions, one per output or class, along the leading axis of every weight.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from san.layers import EPS, unit_directions, widened

_PARAM = "parametrizations.weight."
_SPECTRAL_STATES = (
    ("weight_orig", "weight_u", "weight_v"),
    (f"{_PARAM}original", f"{_PARAM}0._u", f"{_PARAM}0._v"),
)
_NORM_STATES = (("weight_g", "weight_v"), (f"{_PARAM}original0", f"{_PARAM}original1"))
UNIT = 1e-2  # largest distance from 1 of the norm of a rounded direction
FURTHEST_NORM = 0.1  # larger errors of the norm under spectral_norm give a warning


@torch.no_grad()
def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a weight into unit directions, of the weight's shape, and their norms [K].

    A row of zeros gets a random direction and the norm 0.

    Raises:
        ValueError: a value or a norm is not finite in the weight's type.
    """
    norm = widened(weight.flatten(1)).norm(dim=1)
    direction, scale = unit_directions(weight), norm.to(weight.dtype)
    if weight.is_meta:
        return direction, scale
    if not bool(torch.isfinite(scale).all()):
        raise ValueError(f"the weight, or the norm of one of its rows in {weight.dtype}, is not finite")
    zero = norm < EPS
    if bool(zero.any()):
        some = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        direction = torch.where(zero.view(-1, *(1,) * (weight.ndim - 1)), unit_directions(some), direction)
        scale = torch.where(zero, torch.zeros_like(scale), scale)
    return direction, scale


def norm_hook(module: nn.Module) -> Any:
    """Return the forward pre-hook of the older spectral_norm or weight_norm; None if there is none."""
    for hook in module._forward_pre_hooks.values():
        torchs = type(hook).__module__.startswith("torch.nn.utils.") and hasattr(hook, "compute_weight")
        if torchs and getattr(hook, "name", None) == "weight":
            return hook
    return None


def is_spectral(module: nn.Module) -> bool:
    """Return whether a layer is under spectral_norm, of the older or the newer interface."""
    return next(_spectral_steps(module), None) is not None


def _spectral_steps(module: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (u, v, matrix) of every spectral_norm on a layer's weight."""
    hook = norm_hook(module)
    if hasattr(hook, "n_power_iterations"):
        matrix = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
        yield getattr(module, f"{hook.name}_u"), getattr(module, f"{hook.name}_v"), matrix
    elif parametrize.is_parametrized(module, "weight"):
        steps: Any = module.parametrizations["weight"]  # type: ignore[index]
        names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]
        inputs = [getattr(steps, name) for name in names]
        for step in steps:
            if type(step).__name__ == "_SpectralNorm":
                yield step._u, step._v, step._reshape_weight_to_matrix(inputs[0])
            inputs = [step(*inputs)]


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Set spectral_norm's u and v to the limit of the power iteration if the layer is in training mode.

    In training mode every pass iterates. In eval mode nothing changes, but there is a warning if they are far
    from the limit, as in a layer that has not been trained.
    """
    for u, v, matrix in _spectral_steps(module):
        if matrix.is_meta:
            continue
        left, norms, right = torch.linalg.svd(widened(matrix), full_matrices=False)
        if module.training:
            u.copy_(left[:, 0])
            v.copy_(right[0])
        elif abs(float(norms[0] / torch.dot(widened(u), widened(matrix) @ widened(v))) - 1) > FURTHEST_NORM:
            warnings.warn(
                "spectral_norm's power iteration has not converged for the converted layer, and its weight "
                "does not change in eval mode: convert in training mode, D.train(), for a norm of 1",
                stacklevel=4,
            )


@torch.no_grad()
def effective_weight(module: nn.Module) -> Tensor:
    """Return the weight that a layer uses in eval mode, without changing its state."""
    training = module.training
    state = {k: v.clone() for k, v in module.state_dict().items()}
    module.eval()
    try:
        hook = norm_hook(module)
        if hook is None:
            plain: Any = module.weight
            weight: Tensor = plain.detach().clone()
            return weight
        spectral = hasattr(hook, "n_power_iterations")
        weight = hook.compute_weight(module, **({"do_power_iteration": False} if spectral else {}))
        return weight.detach().clone()
    finally:
        module.train(training)
        for name, value in module.state_dict().items():
            value.copy_(state[name])


def weight_from_state(own: Mapping[str, Tensor], settled: bool = False) -> Tensor | None:
    """Return the effective weight of a layer's state: plain, or under spectral_norm or weight_norm.

    Both interfaces of the two are supported.

    Args:
        own: the layer's entries of the state dict.
        settled: use the limit of spectral_norm's power iteration as the norm.

    Returns:
        The weight; None for entries of another kind.
    """
    if "weight" in own:
        return own["weight"]
    for base, u, v in _SPECTRAL_STATES:
        if base in own and u in own and v in own:
            matrix = own[base].flatten(1)
            norm: Tensor = (
                torch.linalg.matrix_norm(matrix, 2) if settled else torch.dot(own[u], matrix @ own[v])
            )
            return own[base] / norm
    for gain, direction in _NORM_STATES:
        if gain in own and direction in own:
            g, w = own[gain], own[direction]
            length: Tensor = torch.linalg.vector_norm(w, dim=_summed_axes(g.shape), keepdim=True)
            return w * (g / length)
    return None


def direction_from_state(own: Mapping[str, Tensor], stored: Tensor) -> Tensor | None:
    """Return the directions in a converted layer's state, to replace `stored`; None if there are none.

    If torch.distributed.checkpoint has sharded only the entry of the effective weight, they are computed from
    it.
    """
    direction, weight = own.get("direction"), own.get("weight")
    if direction is not None and is_sharded(stored) <= is_sharded(direction):
        return direction
    if weight is None or weight.shape != stored.shape or weight.is_meta:
        return weight
    norm = widened(weight.flatten(1)).norm(dim=1).view(-1, *(1,) * (weight.ndim - 1))
    if bool(((norm - 1).abs() < UNIT).all()):
        return weight  # a state with the directions under this name
    sign = torch.where(own["scale"].flatten() < 0, -1.0, 1.0).view_as(norm)
    return torch.where(norm > 0, sign * unit_directions(weight), stored).to(weight.dtype)


def _summed_axes(gain: Sequence[int]) -> list[int] | None:
    """Return the axes that weight_norm sums over: those of size 1 in its gain; None = all."""
    return [i for i, size in enumerate(gain) if size == 1] if gain else None


def state_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the entries of a layer's state that determine its weight."""
    return tuple(name for name in module.state_dict() if name.startswith(("weight", _PARAM)))


def is_sharded(x: Tensor | None) -> bool:
    """Return whether a parameter is a DTensor, as under fully_shard."""
    return x is not None and type(x.data).__name__ == "DTensor"


def state_from_weight(
    names: tuple[str, ...],
    direction: Tensor,
    scale: Tensor,
    gain: tuple[int, ...] | None,
) -> dict[str, Tensor]:
    """Return state entries with the effective weight scale * direction, which the original layer can load.

    Args:
        names: names of the original's entries.
        direction: directions of unit norm.
        scale: [K, 1...].
        gain: shape of weight_norm's gain.

    Returns:
        The entry `weight` and the entries of `names`. If the latter cannot express every weight
        (spectral_norm, other parametrizations), the first of them is empty, so that load_state_dict refuses
        its size, also with strict=False.
    """
    weight = scale * direction
    if names in _NORM_STATES and gain is not None:
        norm = torch.linalg.vector_norm(weight, dim=_summed_axes(gain), keepdim=True)
        entries = (norm.view(gain), torch.where(norm > 0, weight, direction))
        return {"weight": weight, **dict(zip(names, entries, strict=True))}
    return {name: weight.new_empty(0) for name in names[:1]} | {"weight": weight}
