# SPDX-License-Identifier: Apache-2.0
"""Bias, activation function, gain and clamp of a layer in one call."""

import torch

from torch_utils.ops.backend import activations, library
from torch_utils.ops.backend.activations import Activation, activation_funcs, check_impl, clamp_abs

# Elements from which on the CPU kernel is the faster way (benchmarks/ops_cpu.py).
_PIECEWISE_PAYS, _CURVED_PAYS = 1 << 14, 1 << 17


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
    """clamp(gain * act(x + b)), differentiable twice.

    Args:
        x: any shape.
        b: bias [x.shape[dim]], or None.
        dim: axis of x that the bias runs along.
        act: name in `activation_funcs`.
        alpha: slope of 'lrelu' below zero; None = the activation's own. The other activations have none.
        gain: factor after the activation; None = the activation's own.
        clamp: bound of the output's absolute value; None = unbounded. The gradient at the bound itself is
        zero. impl: 'ref', or 'cuda' = the fastest implementation there is for x's device.

    Returns:
        a tensor of x's shape and dtype.

    Raises:
        ValueError: unknown `act` or `impl`, a negative `clamp`, or a bias that does not fit.
    """
    check_impl(impl)
    if act not in activation_funcs:
        raise ValueError(
            f"act={act!r} is not an activation function; known are {', '.join(activation_funcs)}"
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
    namespace = library.namespace_for(x, opaque=_kernel_pays(x, act, gain, clamp)) if impl == "cuda" else None
    if namespace is not None:
        return library.bias_act(namespace, x, b, dim, act, alpha, gain, clamp)
    return _bias_act_ref(x, b, dim, spec, alpha, gain, clamp)


def _kernel_pays(x: torch.Tensor, act: str, gain: float, clamp: float | None) -> bool:
    """True if a CPU is sooner done with one pass of the kernel, which takes 15 us to call, than with several
    of torch's own operations.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # torch.compile fuses torch's own operations
        return False
    if act == "linear" and gain == 1 and clamp is None:  # an addition, whose gradient costs nothing
        return False
    enough = x.numel() >= (_PIECEWISE_PAYS if act in ("linear", "relu", "lrelu") else _CURVED_PAYS)
    return enough and not library.transforms()  # which can look into torch's own operations


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
