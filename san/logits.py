# SPDX-License-Identifier: Apache-2.0
"""Tracks the logits of converted layers through the operations after a discriminator's last layer.

A converted layer returns `DualLogits`. Functions in the allow-list LINEAR are applied to both parts; all
others are refused. The first pass has two more parts, f - e and f + 2e: the operations after the layer are
linear only if all three results lie on a line (`judge`). The converted module returns `SANLogits`.
"""

import copy
import dataclasses
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from san.layers import SANLogits, widened

# Linear or affine in all tensors jointly: any of them may be logits
_ANY = """view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes
swapdims t movedim moveaxis adjoint atleast_1d atleast_2d atleast_3d expand expand_as broadcast_to
broadcast_tensors repeat tile repeat_interleave cat concat concatenate stack hstack vstack dstack column_stack
row_stack chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind narrow select index_select
take take_along_dim gather masked_select masked_fill where getitem setitem flip fliplr flipud roll rot90
diagonal diag tril triu trace unfold fold pad constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle
interpolate upsample avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d sum mean cumsum diff neg negative positive pos add radd sub subtract rsub index_add
scatter scatter_add contiguous clone detach to type type_as float double half bfloat16 cpu cuda"""
# Linear in each tensor separately: one of them may be logits
_ONE = """mul multiply rmul matmul rmatmul mm bmm mv dot vdot inner outer einsum tensordot kron linear
bilinear embedding conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm addmv addbmm
baddbmm addcmul"""
# Linear in the first tensor: only that may be logits
_FIRST = "div divide true_divide truediv grid_sample"
_RULES = {"any": _ANY, "one": _ONE, "first": _FIRST}
LINEAR = {name: rule for rule, names in _RULES.items() for name in names.split()}
# New tensors with the shape, type or device of the logits
_LIKE = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
}
# Properties, and values outside torch
_VALUES = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point"),
    *("get_device", "item", "tolist", "numpy", "isnan", "isinf", "isfinite"),
}
# Options that make a function nonlinear or in-place
_BENDING = ("out", "rounding_mode", "reduce", "max_norm")
_TENSOR_ATTRIBUTES = ("T", "mT", "H", "mH", "data")  # linear as well

# depth: number of enclosing converted modules. probing: this pass has probes
_pass = threading.local()


def inside() -> bool:
    """Return whether the forward pass of a converted module is running in this thread."""
    return getattr(_pass, "depth", 0) > 0


def run_pass(forward: Callable[..., Any], args: Any, kwargs: Any, record: "Record") -> Any:
    """Run a converted module's forward pass. The outermost one turns DualLogits into SANLogits.

    Raises:
        ValueError: the first pass shows that the logits are not linear in the converted layer's output. One
            line.
    """
    depth, probing = getattr(_pass, "depth", 0), getattr(_pass, "probing", False)
    _pass.depth = depth + 1
    if depth == 0:
        _pass.probing = not record.judged and _can_probe()
    try:
        output = forward(*args, **kwargs)
        if depth > 0:
            return output
        if _pass.probing:
            record.judged = judge(output, record.whole)
        return finish(output)
    finally:
        _pass.depth, _pass.probing = depth, probing


class Record:
    """State of a converted module's first pass, shared by the copies that DataParallel creates.

    Attributes:
        whole: the module is the one given to `convert`. Parts of it need not return logits.
        judged: the first pass has been checked.
    """

    def __init__(self, whole: bool) -> None:
        self.whole, self.judged = whole, False


def _can_probe() -> bool:
    """Return whether values can be read: not under torch.compile, tracing or CUDA graph capture."""
    if torch.compiler.is_compiling() or is_tracing():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


class DualLogits:
    """SANLogits within a converted module.

    Every function is applied to both parts. In the `dir` part all other tensors are detached, so that
    dir = <direction, stopgrad(h)> also holds if the inner product is computed later.

    Attributes:
        fun: first part.
        dir: second part.
        source: name of the layer that computed the logits.
        used: another value was computed from them.
        probes: f - e and f + 2e in a first pass, otherwise empty.
        eps: machine epsilon of the least precise type in their computation.
    """

    def __init__(
        self,
        fun: Tensor,
        dir: Tensor,
        source: str,
        probes: tuple[Tensor, ...] | None = None,
        eps: float = 0.0,
    ) -> None:
        self.fun, self.dir, self.source, self.used = fun, dir, source, False
        if probes is None:
            probes = _probes(fun) if getattr(_pass, "probing", False) else ()
        self.probes = probes
        self.eps = max(eps, coarseness(fun)) if self.probes else 0.0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "fun" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self.fun, name)
        if callable(value):
            return lambda *args, **kwargs: _apply(getattr(torch.Tensor, name), (self, *args), kwargs)
        if not isinstance(value, Tensor):
            return value
        if name not in _TENSOR_ATTRIBUTES:
            raise ValueError(_refusal(name, self))
        self.used = True
        return _dual([getattr(part, name) for part in self._parts()], self)

    def of(self) -> str:
        """Return the layer's name for a message, '' if it has none."""
        return f" '{self.source}'" if self.source else ""

    def _parts(self) -> tuple[Tensor, ...]:
        return (self.fun, self.dir, *self.probes)

    def __len__(self) -> int:
        return len(self.fun)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))

    def __bool__(self) -> bool:
        raise ValueError(_refusal("bool", self))

    def __repr__(self) -> str:
        return f"DualLogits({self.fun!r})"

    def __format__(self, spec: str) -> str:
        return format(self.fun, spec)

    __hash__ = object.__hash__


def _operator(name: str) -> Any:
    return lambda self, *others: _apply(getattr(torch.Tensor, name), (self, *others), {})


_OPERATORS = """add radd sub rsub mul rmul truediv matmul rmatmul getitem setitem neg pos
pow rpow abs rtruediv floordiv mod eq ne lt le gt ge and or xor invert"""
for _name in _OPERATORS.split():  # nonlinear ones raise an error with their name
    setattr(DualLogits, f"__{_name}__", _operator(f"__{_name}__"))


@torch.no_grad()
def _probes(fun: Tensor) -> tuple[Tensor, Tensor]:
    """Return f - e and f + 2e; e has both signs and is larger than f, to detect kinks."""
    wave = torch.arange(1, fun.numel() + 1, device=fun.device, dtype=torch.float32).cos().view(fun.shape)
    step = (3 * fun.abs().amax() + 1) * wave.to(fun.dtype) if fun.numel() else fun
    return fun - step, fun + 2 * step


def _refusal(name: str, logits: DualLogits) -> str:
    return (
        f"'{name}' is applied after the converted layer{logits.of()} and is not known to be linear, but a "
        "SAN needs logits: remove it, apply it to .fun outside the discriminator, or convert another layer"
    )


def _apply(func: Any, args: Any, kwargs: Any) -> Any:
    """Apply a function to each part of DualLogits. Raises ValueError unless it is in LINEAR."""
    called = getattr(func, "__name__", str(func))
    shown = called.removeprefix("__").removesuffix("__")
    name = called.strip("_")
    if name in _LIKE or name in _VALUES:
        return func(*_pick(args, 0), **_pick(kwargs, 0))
    found = list(_duals((args, kwargs)))
    first = bool(args) and isinstance(args[0], DualLogits)
    changes_first = called == "__setitem__" or (called.endswith("_") and not called.endswith("__"))
    rule = LINEAR.get(name)
    if rule is not None and changes_first and not first:
        raise ValueError(
            f"'{shown}' writes the logits of the converted layer{found[0].of()} into a plain tensor, which "
            "cannot represent both of their parts: write it out of place, as in x = x + logits"
        )
    if rule is None or any(kwargs.get(k) is not None for k in _BENDING):
        raise ValueError(_refusal(shown, found[0]))
    if (rule == "one" and len(found) > 1) or (rule == "first" and not (first and len(found) == 1)):
        raise ValueError(_refusal(f"{name} of logits by logits", found[0]))
    for dual in found:
        dual.used = True
    probes = min(len(dual.probes) for dual in found)  # logits of an earlier pass have none
    parts = [func(*_pick(args, part), **_pick(kwargs, part)) for part in (0, 1)]
    if isinstance(parts[0], Tensor) and not parts[0].is_floating_point():
        raise ValueError(_refusal(f"{name} to {parts[0].dtype}", found[0]))
    with torch.no_grad():
        parts += [func(*_pick(args, part), **_pick(kwargs, part)) for part in range(2, 2 + probes)]
    return _dual(parts, max(found, key=lambda dual: dual.eps))


def _duals(value: Any) -> Iterator[DualLogits]:
    if isinstance(value, DualLogits):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for x in value.values() if isinstance(value, Mapping) else value:
            yield from _duals(x)


def _dual(parts: Sequence[Any], origin: DualLogits) -> Any:
    """Combine the results of a function on all parts: tensors to DualLogits, sequences elementwise."""
    fun = parts[0]
    if isinstance(fun, Tensor):
        return DualLogits(fun, parts[1], origin.source, tuple(parts[2:]), origin.eps)
    if isinstance(fun, (tuple, list)) and any(isinstance(x, Tensor) for x in fun):
        return rebuilt(fun, [_dual(column, origin) for column in zip(*parts, strict=True)])
    return fun


def _pick(value: Any, part: int) -> Any:
    """Select one part of all DualLogits within `value`; other tensors are detached except for part 0, fun."""
    if isinstance(value, DualLogits):
        return value._parts()[part]
    if isinstance(value, Tensor):
        return value if part == 0 else value.detach()
    if isinstance(value, Mapping):
        return {k: _pick(v, part) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_pick(v, part) for v in value]
        return value if _same(items, value) else tuple(items) if isinstance(value, tuple) else items
    return value


def rebuilt(value: Sequence[Any], items: list[Any]) -> Any:
    """Return a list, tuple or namedtuple of the same type with other items."""
    if isinstance(value, tuple):
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    made = copy.copy(value)
    made[:] = items  # type: ignore[index]
    return made


def finish(value: Any, among_maps: bool = False) -> Any:
    """Replace DualLogits in a module's output by SANLogits, within lists, tuples, mappings and objects.

    In a list that also contains plain tensors (feature maps), logits from which the module has computed other
    logits count as a feature map: they are returned as a plain tensor with the gradients of fun.
    """
    if isinstance(value, DualLogits):
        return value.fun if among_maps and value.used else SANLogits(value.fun, value.dir)
    if isinstance(value, SANLogits):
        return value
    if isinstance(value, (list, tuple)):
        maps = any(isinstance(x, Tensor) for x in value)
        items = [finish(x, maps) for x in value]
        return value if _same(items, value) else rebuilt(value, items)
    fields = value if isinstance(value, Mapping) else _fields(value)
    if not fields:
        return value
    changed = {k: new for k, new in ((k, finish(x)) for k, x in fields.items()) if new is not fields[k]}
    made = copy.copy(value) if changed else value
    for k, new in changed.items():
        if isinstance(value, Mapping):
            made[k] = new
        else:
            object.__setattr__(made, k, new)  # works for frozen dataclasses as well
    return made


def _same(items: Sequence[Any], value: Sequence[Any]) -> bool:
    return all(a is b for a, b in zip(items, value, strict=True))


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of an object that may contain logits.

    These are dataclasses, namespaces, and other objects with DualLogits as direct attributes.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    if isinstance(value, (Tensor, nn.Module, type, types.FunctionType)) or not hasattr(value, "__dict__"):
        return {}
    fields = dict(vars(value))
    known = isinstance(value, types.SimpleNamespace)
    return fields if known or any(isinstance(x, DualLogits) for x in fields.values()) else {}


def leaves(value: Any) -> Iterator[Any]:
    """Yield the tensors, SANLogits and DualLogits within an output, in order."""
    if isinstance(value, (Tensor, SANLogits, DualLogits)):
        yield value
    elif isinstance(value, (list, tuple)):
        for x in value:
            yield from leaves(x)
    else:
        for x in (value if isinstance(value, Mapping) else _fields(value)).values():
            yield from leaves(x)


def coarseness(x: Tensor) -> float:
    """Return the machine epsilon of arithmetic on x. Accelerators may round float32 to TF32."""
    device, types = x.device.type, [x.dtype] if x.is_floating_point() else []
    if device == "meta":
        return 0.0
    if torch.is_autocast_enabled(device):
        types.append(torch.get_autocast_dtype(device))
    eps = max((torch.finfo(dtype).eps for dtype in types), default=0.0)
    return eps if device == "cpu" or x.dtype == torch.float64 else max(eps, 2**-10)


def judge(output: Any, whole: bool) -> bool:
    """Check in a first pass that the logits are a linear function of the converted layers' outputs.

    Values that are not finite or cannot be read (vmap, the meta device) are not checked.

    Args:
        output: output of the module.
        whole: the output must contain logits.

    Returns:
        Whether there are logits.

    Raises:
        ValueError: the logits are not linear, or a whole module returns none. One line.
    """
    found = [x for x in leaves(output) if isinstance(x, DualLogits)]
    if not found and whole and not any(isinstance(x, SANLogits) for x in leaves(output)):
        raise ValueError(
            f"the output, a {type(output).__name__}, contains no logits of the converted layers: "
            "name the layers that compute them, or return them in a tensor, list, tuple, dict or dataclass"
        )
    for dual in found:
        if len(dual.probes) == 2 and dual.fun.numel():
            fun, direction, back, ahead = (widened(x.detach()) for x in dual._parts())
            bend, size = (
                (ahead + 2 * back - 3 * fun).abs().amax(),
                torch.stack([fun, back, ahead]).abs().amax(),
            )
            limit = dual.eps**0.5 * size
            if _is_true(torch.isfinite(size) & (bend > limit)):
                raise ValueError(
                    f"the operations after the converted layer{dual.of()} are not linear in its output, but "
                    "a SAN needs logits: remove them, or convert another layer"
                )
            if _is_true(torch.isfinite(size) & ((fun - direction).abs().amax() > limit)):
                raise ValueError(f"a random function follows the converted layer{dual.of()}: remove it")
    return bool(found)


def _is_true(value: Tensor) -> bool:
    try:
        return bool(value)
    except RuntimeError:  # the value cannot be read
        return False
