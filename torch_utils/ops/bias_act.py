# SPDX-License-Identifier: Apache-2.0
"""Bias, activation function, gain and clamp of a layer in one call."""

import torch

from torch_utils.ops.backend import activations, library
from torch_utils.ops.backend.activations import Activation, activation_funcs, check_impl, clamp_abs

# Number of elements from which the CPU kernel is faster than torch's operations (benchmarks/ops_cpu.py).
_MIN_PIECEWISE, _MIN_CURVED = 1 << 14, 1 << 17


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> torch.Tensor:
    """Compute clamp(gain * act(x + b)), which is differentiable twice.

    Args:
        x: tensor of any shape.
        b: bias [x.shape[dim]], or None.
        dim: axis of x that the bias belongs to.
        act: name in `activation_funcs`.
        alpha: slope of 'lrelu' below zero; None = the activation's default. Other activations ignore it.
        gain: factor after the activation; None = the activation's default.
        clamp: bound of the output's absolute value; None = unbounded. The gradient at the bound is zero.
        impl: 'ref', or 'cuda' = the fastest implementation for x's device.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        ValueError: `act` or `impl` is unknown, `clamp` is negative, or the bias does not fit.
    """
    check_impl(impl)
    if act not in activation_funcs:
        raise ValueError(
            f"act={act!r} is not a known activation function: choose one of {', '.join(activation_funcs)}"
        )
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp={clamp} must not be negative; None = no clamp")
    if b is not None:
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"dim={dim} is not an axis of x with shape {tuple(x.shape)}")
        if b.shape != (x.shape[dim],):
            raise ValueError(
                f"the bias must have shape ({x.shape[dim]},) for x of shape {tuple(x.shape)} and dim={dim}, "
                f"not {tuple(b.shape)}"
            )
    spec = activation_funcs[act]
    alpha = spec.def_alpha if alpha is None else float(alpha)
    gain = spec.def_gain if gain is None else float(gain)
    namespace = (
        library.namespace_for(x, opaque=_kernel_is_faster(x, act, gain, clamp)) if impl == "cuda" else None
    )
    if namespace is not None:
        return library.bias_act(namespace, x, b, dim, act, alpha, gain, clamp)
    return _bias_act_ref(x, b, dim, spec, alpha, gain, clamp)


def _kernel_is_faster(x: torch.Tensor, act: str, gain: float, clamp: float | None) -> bool:
    """Return whether one pass of the CPU kernel is faster than several torch operations.

    A call of the kernel has an overhead of 15 us.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # torch.compile fuses torch's operations
        return False
    if act == "linear" and gain == 1 and clamp is None:  # only an addition, whose gradient is free
        return False
    enough = x.numel() >= (_MIN_PIECEWISE if act in ("linear", "relu", "lrelu") else _MIN_CURVED)
    return enough and not library.transforms()  # the transforms need torch's own operations


def _bias_act_ref(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    spec: Activation,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    if b is not None:
        x = x + activations.along(b.to(x.dtype), dim, x.ndim)
    x = spec.func(x, alpha)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = clamp_abs(x, float(clamp))
    return x
