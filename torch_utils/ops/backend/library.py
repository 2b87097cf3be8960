# SPDX-License-Identifier: Apache-2.0
"""Registers the operators behind bias_act, upfirdn2d and filtered_lrelu with torch.library.

It defines their schemas, shapes, derivatives and CPU implementations. The CUDA implementations are in the
extension (`extension.py`), which registers itself for the same schemas. The derivatives are formulas of the
same operators, so they exist to any order for which there is a closed form: both resamplings are linear, and
filtered_lrelu saves for its gradient only where its slope changes, as two bits per sample (its input if there
are no kernels). torch.compile sees one node per call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torch_utils.ops.backend import activations, cpu, cpu_kernels, resampling

NAMESPACE = "stylesan_xl"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Namespace of the operators that all CPU tensors use; set by tests of the CUDA kernels on the host.
cpu_namespace: str | None = None
# The same for tensors on the meta device; set while the operations of a GPU are counted.
meta_namespace: str | None = None

_BIAS_ACT_TAIL = "int dim, int act, float alpha, float gain, float clamp) -> Tensor"
_LRELU_TAIL = "int[] geometry, bool flip, float gain, float slope, float clamp"
SCHEMAS = {
    "bias_act": f"(Tensor x, Tensor? b, {_BIAS_ACT_TAIL}",
    "bias_act_grad": f"(Tensor dy, Tensor? x, Tensor? b, Tensor? y, {_BIAS_ACT_TAIL}",
    "bias_act_grad2": f"(Tensor ddx, Tensor dy, Tensor? x, Tensor? b, Tensor? y, {_BIAS_ACT_TAIL}",
    "channel_sums": "(Tensor x, int dim) -> Tensor",  # in float32; CPU tensors only
    "upfirdn2d": "(Tensor x, Tensor? f, int[] geometry, bool reverse, float gain) -> Tensor",
    "filtered_lrelu": f"(Tensor x, Tensor? fu, Tensor? fd, Tensor? b, {_LRELU_TAIL}, bool save) -> (Tensor, "
    "Tensor)",
    "filtered_lrelu_gated": "(Tensor t, Tensor? fu, Tensor? fd, Tensor codes, Tensor? x, Tensor? b, "
    f"{_LRELU_TAIL}, bool transposed) -> Tensor",
}

# The order gives the activations' numbers in the kernels. Their derivatives are functions of the output, or
# of the input where the output does not determine them.
ACTIVATIONS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
_CURVED = {ACTIVATIONS.index(name) for name in ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")}
_LINEAR, _LRELU, _SWISH = (ACTIVATIONS.index(name) for name in ("linear", "lrelu", "swish"))


class Geometry(NamedTuple):
    """Factors of a filtered_lrelu, padding at the low ends, and sizes of input, middle grid and output."""

    up_x: int
    up_y: int
    down_x: int
    down_y: int
    pad_x: int
    pad_y: int
    in_w: int
    in_h: int
    mid_w: int
    mid_h: int
    out_w: int
    out_h: int


def _sum_to_bias(dx: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    if dx.device.type == "cpu" and cpu_kernels.ready(dx.dtype):
        sums: torch.Tensor = getattr(torch.ops, NAMESPACE).channel_sums(dx, dim)
        return sums.to(dtype)
    return cpu.sum_over_others(dx, dim, dtype)


def _saves_output(act: int, alpha: float, gain: float) -> bool:
    return act != _SWISH and gain != 0 and not (act == _LRELU and alpha < 0)


def _bias_act_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, b, dim, act, alpha, gain, clamp = inputs
        ctx.rest = (dim, act, alpha, gain, clamp)
        ctx.bias_dtype = None if b is None else b.dtype
        if act == _LINEAR and clamp < 0:
            ctx.save_for_backward(None, None, None)
        elif _saves_output(act, alpha, gain):
            ctx.save_for_backward(None, None, output)
        else:
            ctx.save_for_backward(x, b, None)

    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        dx = ops().bias_act_grad(dy, *ctx.saved_tensors, *ctx.rest)
        db = (
            None
            if ctx.bias_dtype is None or not ctx.needs_input_grad[1]
            else _sum_to_bias(dx, ctx.rest[0], ctx.bias_dtype)
        )
        return dx, db, None, None, None, None, None

    return setup, backward


def _bias_act_grad_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, x, b, y = inputs[:4]
        ctx.rest = inputs[4:]
        ctx.save_for_backward(dy, x, b, y)

    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        dy, x, b, y = ctx.saved_tensors
        grad_dy = ops().bias_act_grad(ddx, x, b, y, *ctx.rest) if ctx.needs_input_grad[0] else None
        grad_x = grad_b = grad_y = None
        if ctx.rest[1] in _CURVED and (x is not None or y is not None):
            second = ops().bias_act_grad2(ddx, dy, x, b, y, *ctx.rest)
            if y is not None:
                grad_y = second
            else:
                grad_x = second
                grad_b = None if b is None else _sum_to_bias(second, ctx.rest[0], b.dtype)
        return grad_dy, grad_x, grad_b, grad_y, None, None, None, None, None

    return setup, backward


def _bias_act_grad2_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the third and higher derivatives: torch differentiates the formula of the second."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.rest = inputs[5:]
        ctx.save_for_backward(*inputs[:5])

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        higher, wanted = torch.is_grad_enabled(), [i for i in range(5) if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            # New views, which do not depend on each other.
            operands: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
            second = cpu.bias_act_grad2_formula(*operands, *ctx.rest)
            inputs = [operands[i] for i in wanted]
            found = torch.autograd.grad(
                second, inputs, grad, create_graph=higher, allow_unused=True, materialize_grads=True
            )
        gradients: list[torch.Tensor | None] = [None] * 5
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i] = gradient
        return *gradients, *[None] * len(ctx.rest)

    return setup, backward


def _channel_sums_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, ctx.dim = inputs
        ctx.shape, ctx.dtype = x.shape, x.dtype

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return activations.along(grad.to(ctx.dtype), ctx.dim, len(ctx.shape)).expand(ctx.shape), None

    return setup, backward


def _upfirdn2d_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, f, geometry, reverse, gain = inputs
        ctx.save_for_backward(f)
        ctx.size, ctx.geometry, ctx.reverse, ctx.gain = (x.shape[3], x.shape[2]), geometry, reverse, gain

    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        (f,) = ctx.saved_tensors
        up_x, up_y, down_x, down_y, pad_x, pad_y, _, _ = ctx.geometry
        taps_x, taps_y = (1, 1) if f is None else (f.shape[-1], f.shape[0])
        transposed = [down_x, down_y, up_x, up_y, taps_x - 1 - pad_x, taps_y - 1 - pad_y, *ctx.size]
        return ops().upfirdn2d(dy, f, transposed, not ctx.reverse, ctx.gain), None, None, None, None

    return setup, backward


def _filtered_lrelu_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, fu, fd, b, *rest, save = inputs
        if not save:
            raise RuntimeError("filtered_lrelu must be called with save=True if a gradient is needed")
        packed = output[1].ndim > 1
        ctx.save_for_backward(fu, fd, output[1], None if packed else x, None if packed else b)
        ctx.rest, ctx.bias_dtype = rest, None if b is None else b.dtype

    def backward(ctx: Any, dy: torch.Tensor, _: Any) -> tuple[Any, ...]:
        fu, fd, codes, x, b = ctx.saved_tensors
        dx = ops().filtered_lrelu_gated(dy, fu, fd, codes, x, b, *ctx.rest, True)
        db = (
            None
            if ctx.bias_dtype is None or not ctx.needs_input_grad[3]
            else _sum_to_bias(dx, 1, ctx.bias_dtype)
        )
        return dx, None, None, db, None, None, None, None, None, None

    return setup, backward


def _gated_autograd(ops: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, fu, fd, codes, x, b, *rest, transposed = inputs
        ctx.save_for_backward(fu, fd, codes, x, b)
        ctx.rest, ctx.transposed = rest, transposed

    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        dt = ops().filtered_lrelu_gated(dy, *ctx.saved_tensors, *ctx.rest, not ctx.transposed)
        return dt, *([None] * 11)

    return setup, backward


def _fakes(codes_shape: Callable[[torch.Tensor, Geometry], tuple[int, ...]]) -> dict[str, Callable[..., Any]]:
    def lrelu(x, fu, fd, b, geometry, flip, gain, slope, clamp, save):  # type: ignore[no-untyped-def]
        g = Geometry(*geometry)
        shape = codes_shape(x, g) if save else (0,)
        return resampling.new_images(x, (g.out_h, g.out_w)), x.new_empty(shape, dtype=torch.uint8)

    def gated(t, fu, fd, codes, x, b, geometry, flip, gain, slope, clamp, transposed):  # type: ignore[no-untyped-def]
        g = Geometry(*geometry)
        return resampling.new_images(
            t if codes.ndim > 1 else x, (g.in_h, g.in_w) if transposed else (g.out_h, g.out_w)
        )

    def first_like(first: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.empty_like(first)

    return {
        "bias_act": first_like,
        "bias_act_grad": first_like,
        "bias_act_grad2": first_like,
        "channel_sums": lambda x, dim: x.new_empty(x.shape[dim], dtype=torch.float32),
        "upfirdn2d": lambda x, f, geometry, reverse, gain: resampling.new_images(
            x, (geometry[7], geometry[6])
        ),
        "filtered_lrelu": lrelu,
        "filtered_lrelu_gated": gated,
    }


def transforms() -> str:
    """Return the active transforms of torch.func.

    Returns:
        '' for none, 'vmap' for vmap alone, and 'grad' for others, which need torch's own operations.
    """
    if torch.compiler.is_compiling():
        return ""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return (
        ""
        if not stack
        else "vmap"
        if all(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)
        else "grad"
    )


def _front(x: torch.Tensor, in_dim: int | None, count: int) -> torch.Tensor:
    """Move the mapped axis of x to the front, or expand x by one if it has none."""
    return x.expand(count, *x.shape) if in_dim is None else x.movedim(in_dim, 0)


def _batching_rules(ops: Any) -> dict[str, Callable[..., Any]]:
    """Return the rules of torch.func.vmap for the operators.

    Each makes one call with the mapped axis merged into the channels, so that a bias can be mapped as well.
    """

    def bias_act(info, in_dims, x, b, dim, *rest):  # type: ignore[no-untyped-def]
        x = _front(x, in_dims[0], info.batch_size)
        if b is None or in_dims[1] is None:
            return ops().bias_act(x, b, dim + 1, *rest), 0
        y = ops().bias_act(
            x.movedim(0, dim).flatten(dim, dim + 1),
            _front(b, in_dims[1], info.batch_size).flatten(),
            dim,
            *rest,
        )
        return y.unflatten(dim, (info.batch_size, -1)), dim

    def upfirdn2d(info, in_dims, x, f, *rest):  # type: ignore[no-untyped-def]
        if in_dims[1] is not None:  # different filters
            filters = _front(f, in_dims[1], info.batch_size)
            images = _front(x, in_dims[0], info.batch_size)
            return torch.stack(
                [ops().upfirdn2d(*pair, *rest) for pair in zip(images, filters, strict=True)]
            ), 0
        y = ops().upfirdn2d(_front(x, in_dims[0], info.batch_size).flatten(0, 1), f, *rest)
        return y.unflatten(0, (info.batch_size, -1)), 0

    def filtered_lrelu(info, in_dims, x, fu, fd, b, *rest_and_save):  # type: ignore[no-untyped-def]
        *rest, save = rest_and_save
        # Code inside vmap cannot see that a gradient is needed outside.
        save = save or (torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad)))
        if in_dims[1] is not None or in_dims[2] is not None:
            raise NotImplementedError(
                "filtered_lrelu under vmap needs the same filters for all elements; impl='ref' does not"
            )
        x = _front(x, in_dims[0], info.batch_size).movedim(0, 1)
        bias = None if b is None else _front(b, in_dims[3], info.batch_size).flatten()
        y, codes = ops().filtered_lrelu(x.flatten(1, 2), fu, fd, bias, *rest, save)
        return (y.unflatten(1, (info.batch_size, -1)), codes), (1, None)

    return {"bias_act": bias_act, "upfirdn2d": upfirdn2d, "filtered_lrelu": filtered_lrelu}


_libraries: list[torch.library.Library] = []  # keeps the registrations alive


def packed_codes(x: torch.Tensor, g: Geometry) -> tuple[int, ...]:
    """Return the shape of the codes that the CUDA kernels save for an input x.

    A byte contains 4 samples of the middle grid.
    """
    return *x.shape[:2], g.mid_h, (g.mid_w + 3) // 4


def _codes_shape(x: torch.Tensor, g: Geometry) -> tuple[int, ...]:
    if x.device.type == "cuda":
        return packed_codes(x, g)
    return cpu_kernels.codes_shape(x, (g.mid_h, g.mid_w)) if cpu_kernels.ready(x.dtype) else (0,)


def define(
    namespace: str,
    codes_shape: Callable[[torch.Tensor, Geometry], tuple[int, ...]],
    cpu: dict[str, Callable[..., Any]],
) -> None:
    """Define the operators in a namespace of torch.ops.

    Args:
        namespace: name of the namespace.
        codes_shape: returns the shape of the codes that filtered_lrelu saves for an input; (0,) = it saves
            the input itself.
        cpu: implementations for CPU tensors by operator name. The kernels of an extension register
            themselves.
    """

    def ops() -> Any:
        return getattr(torch.ops, namespace)

    library: Any = torch.library.Library(namespace, "DEF")
    _libraries.append(library)
    fakes, rules = _fakes(codes_shape), _batching_rules(ops)
    autograd = {
        "bias_act": _bias_act_autograd(ops),
        "bias_act_grad": _bias_act_grad_autograd(ops),
        "bias_act_grad2": _bias_act_grad2_autograd(ops),
        "channel_sums": _channel_sums_autograd(ops),
        "upfirdn2d": _upfirdn2d_autograd(ops),
        "filtered_lrelu": _filtered_lrelu_autograd(ops),
        "filtered_lrelu_gated": _gated_autograd(ops),
    }
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{namespace}::{name}", fakes[name], lib=library)
        setup, backward = autograd[name]
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup, lib=library)
        if name in rules:
            torch.library.register_vmap(f"{namespace}::{name}", rules[name], lib=library)
        if name in cpu:
            library.impl(name, cpu[name], "CPU")


def namespace_for(x: torch.Tensor, *filters: torch.Tensor | None, opaque: bool = True) -> str | None:
    """Return the namespace of the operators to use for x; None = use torch's own operations.

    Args:
        x: the input.
        *filters: filters. If one needs a gradient, torch's own operations are required.
        opaque: use the CPU operators if there are kernels for them, and under torch.compile and vmap, which
            cannot trace the CPU code. False = torch's own operations are better on a CPU.
    """
    if (
        x.dtype not in DTYPES
        or any(f is not None and f.requires_grad for f in filters)
        or transforms() == "grad"
    ):
        return None
    if x.device.type == "cuda":
        return NAMESPACE if _cuda_ready() else None
    if x.device.type == "cpu":
        wanted = opaque and (
            torch.compiler.is_compiling() or transforms() == "vmap" or cpu_kernels.ready(x.dtype)
        )
        return cpu_namespace or (NAMESPACE if wanted else None)
    return meta_namespace if x.device.type == "meta" else None


def _cuda_ready() -> bool:
    from torch_utils.ops.backend import extension

    return extension.load()


# This is all that torch.compiler.assume_constant_result does, which also imports torch's compiler: seconds.
_cuda_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_device(b: torch.Tensor | None, x: torch.Tensor) -> None:
    """Raise ValueError if the bias is not on x's device, because a kernel would read invalid memory."""
    if b is not None and b.device != x.device:
        raise ValueError(f"the bias is on {b.device}, x on {x.device}")


def bias_act(
    namespace: str,
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    """Call the operator bias_act with checked arguments."""
    check_device(b, x)
    ops = getattr(torch.ops, namespace)
    y: torch.Tensor = ops.bias_act(
        x,
        b,
        dim % max(x.ndim, 1),
        ACTIVATIONS.index(act),
        float(alpha),
        float(gain),
        -1.0 if clamp is None else float(clamp),
    )
    return y


def upfirdn2d(
    namespace: str,
    x: torch.Tensor,
    f: torch.Tensor | None,
    rows: resampling.AxisPlan,
    columns: resampling.AxisPlan,
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """Call the operator upfirdn2d with checked arguments."""
    geometry = [
        columns.up,
        rows.up,
        columns.down,
        rows.down,
        columns.pad_low,
        rows.pad_low,
        columns.out_size,
        rows.out_size,
    ]
    f = None if f is None else f.to(x.device)
    y: torch.Tensor = getattr(torch.ops, namespace).upfirdn2d(x, f, geometry, not flip_filter, float(gain))
    return y


def filtered_lrelu(
    namespace: str,
    x: torch.Tensor,
    filters: tuple[torch.Tensor | None, torch.Tensor | None],
    b: torch.Tensor | None,
    up: tuple[resampling.AxisPlan, resampling.AxisPlan],
    down: tuple[resampling.AxisPlan, resampling.AxisPlan],
    flip_filter: bool,
    gain: float,
    slope: float,
    clamp: float | None,
) -> torch.Tensor:
    """Call the operator filtered_lrelu with checked arguments; `up` and `down` are (rows, columns)."""
    check_device(b, x)
    # The middle grid ends at the last sample that contributes to an output.
    mid_h, mid_w = ((plan.out_size - 1) * plan.down + plan.taps for plan in down)
    (rows, columns), (out_h, out_w) = up, (plan.out_size for plan in down)
    sizes = x.shape[3], x.shape[2], mid_w, mid_h, out_w, out_h
    geometry = Geometry(
        columns.up, rows.up, down[1].down, down[0].down, columns.pad_low, rows.pad_low, *sizes
    )
    fu, fd = (None if f is None else f.to(x.device) for f in filters)
    save = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    bound = -1.0 if clamp is None else float(clamp)
    y: torch.Tensor = getattr(torch.ops, namespace).filtered_lrelu(
        x, fu, fd, b, list(geometry), flip_filter, float(gain), float(slope), bound, save
    )[0]
    return y


define(NAMESPACE, _codes_shape, cpu.IMPLEMENTATIONS)
