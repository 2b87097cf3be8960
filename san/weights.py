# SPDX-License-Identifier: Apache-2.0
"""The effective weight of torch's layers, whatever normalises it, and how it is written in a state.

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
UNIT = 1e-2  # from 1, the norm of a direction that was rounded
FURTHEST_NORM = 0.1  # by which the norm under spectral_norm may miss 1 before a warning says so


@torch.no_grad()
def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions, of the weight's shape, and their norms [K]. A row of zeros gets some direction and the
    norm 0.

    Raises ValueError for values, or norms, that are not finite in the weight's type.
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
    """The older spectral_norm or weight_norm of a layer's weight, a forward pre-hook; None if there is
    none.
    """
    for hook in module._forward_pre_hooks.values():
        torchs = type(hook).__module__.startswith("torch.nn.utils.") and hasattr(hook, "compute_weight")
        if torchs and getattr(hook, "name", None) == "weight":
            return hook
    return None


def is_spectral(module: nn.Module) -> bool:
    """Whether a layer is under spectral_norm, of either interface."""
    return next(_spectral_steps(module), None) is not None


def _spectral_steps(module: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(u, v, matrix) of every spectral_norm on a layer's weight."""
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
    """Bring spectral_norm's u and v to where power iterations end, in a layer in training mode: there every
    pass iterates.

    In eval mode nothing changes; a warning says so if they are far from it, as in a layer that has not been
    trained.
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
                "spectral_norm has not found the norm of the converted layer's weight, which stays as it "
                "is in eval mode: convert in training mode, D.train(), to give it the norm 1",
                stacklevel=4,
            )


@torch.no_grad()
def effective_weight(module: nn.Module) -> Tensor:
    """The weight that a layer multiplies with in eval mode; no state changes."""
    training = module.training
    state = {k: v.clone() for k, v in module.state_dict().items()}
    module.eval()
    try:
        hook = norm_hook(module)
        if hook is None:
            return module.weight.detach().clone()  # type: ignore[union-attr, operator]
        spectral = hasattr(hook, "n_power_iterations")
        weight = hook.compute_weight(module, **({"do_power_iteration": False} if spectral else {}))
        return weight.detach().clone()
    finally:
        module.train(training)
        for name, value in module.state_dict().items():
            value.copy_(state[name])


def weight_from_state(own: Mapping[str, Tensor], settled: bool = False) -> Tensor | None:
    """The effective weight of a layer's state: plain, under spectral_norm or weight_norm (both interfaces of
    each).

    settled: with the norm that spectral_norm's power iterations end at. None if it is none of these.
    """
    if "weight" in own:
        return own["weight"]
    for base, u, v in _SPECTRAL_STATES:
        if base in own and u in own and v in own:
            matrix = own[base].flatten(1)
            norm = torch.linalg.matrix_norm(matrix, 2) if settled else torch.dot(own[u], matrix @ own[v])
            return own[base] / norm
    for gain, direction in _NORM_STATES:
        if gain in own and direction in own:
            g, w = own[gain], own[direction]
            return w * (g / torch.linalg.vector_norm(w, dim=_summed_axes(g.shape), keepdim=True))
    return None


def direction_from_state(own: Mapping[str, Tensor], stored: Tensor) -> Tensor | None:
    """The directions in a converted layer's state, in the place of `stored`; None if they are not there.

    Where torch.distributed.checkpoint has sharded no entry but the effective weight's, they are made of that.
    """
    direction, weight = own.get("direction"), own.get("weight")
    if direction is not None and is_sharded(stored) <= is_sharded(direction):
        return direction
    if weight is None or weight.shape != stored.shape or weight.is_meta:
        return weight
    norm = widened(weight.flatten(1)).norm(dim=1).view(-1, *(1,) * (weight.ndim - 1))
    if bool(((norm - 1).abs() < UNIT).all()):
        return weight  # a state that holds the directions under this name
    sign = torch.where(own["scale"].flatten() < 0, -1.0, 1.0).view_as(norm)
    return torch.where(norm > 0, sign * unit_directions(weight), stored).to(weight.dtype)


def _summed_axes(gain: Sequence[int]) -> list[int] | None:
    """Axes that weight_norm sums over, from the shape of its gain, which keeps them as 1; None: all."""
    return [i for i, size in enumerate(gain) if size == 1] if gain else None


def state_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the entries that make a layer's weight in its state."""
    return tuple(name for name in module.state_dict() if name.startswith(("weight", _PARAM)))


def is_sharded(x: Tensor | None) -> bool:
    """Whether fully_shard, or the like, has made a DTensor of a parameter."""
    return x is not None and type(x.data).__name__ == "DTensor"


def state_from_weight(
    names: tuple[str, ...],
    direction: Tensor,
    scale: Tensor,
    gain: tuple[int, ...] | None,
) -> dict[str, Tensor]:
    """The entry `weight`, and those of these names, whose effective weight is scale * direction.

    So the original layer loads them. direction: of unit norm. scale: [K, 1...]. gain: the shape of
    weight_norm's. Where no entries of these names can express any weight (spectral_norm, other
    parametrizations) the first is
    empty: load_state_dict refuses its size, also with strict=False.
    """
    weight = scale * direction
    if names in _NORM_STATES and gain is not None:
        norm = torch.linalg.vector_norm(weight, dim=_summed_axes(gain), keepdim=True)
        entries = (norm.view(gain), torch.where(norm > 0, weight, direction))
        return {"weight": weight, **dict(zip(names, entries, strict=True))}
    return {name: weight.new_empty(0) for name in names[:1]} | {"weight": weight}
