# SPDX-License-Identifier: Apache-2.0
"""Turn the last linear map of any discriminator into a SAN layer, and back.

    D = san.convert(D)                       # or san.convert(D, "head.fc"), or several names
    logits = D(images)                       # SANLogits(fun, dir)
    D = san.restore(D)                       # ordinary layers again, of the same function

The function is kept: outputs agree with the original's to float rounding (a norm is divided out and multiplied back). What happens to

    weight      its rows become unit directions and trained scales
    bias        stays where it was, on the output: f = scale <omega, h> + bias. It is trained by the GAN's own loss, as the scale is; in the
                Wasserstein form it cancels between real and generated samples and never reaches the direction. (A SAN layer made from
                scratch has its bias on the input instead, where it belongs to h.)
    spectral_norm, weight_norm, parametrizations      go; their effective weight of the moment of conversion (in eval mode) is what is split.
                Under spectral_norm the scale is held fixed, so that the layer keeps the Lipschitz constant that it was given.
    what follows the layer (view, mean, sum over positions, an inner product with features)     is applied to both parts of the logits, in
                `dir` with everything but the directions detached. It must be linear: a final sigmoid is refused.

Weights of the original load into the converted module with load_state_dict as they are, spectral_norm's and weight_norm's included.
Convert before wrapping in DistributedDataParallel or torch.compile, and before making the optimizer: parameters are new ones.

Shapes: N batch, I inputs, O outputs, C classes, D embedding width.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from san.layers import EPS, SANEmbedding, SANLogits, _SANWeighted

LINEAR_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NONLINEAR_LAST = (nn.Sigmoid, nn.Tanh, nn.Softmax, nn.LogSigmoid, nn.Hardsigmoid, nn.Softplus)
# Linear and without weights: may follow the last layer.
PASSIVE: tuple[type[nn.Module], ...] = (nn.Flatten, nn.Identity, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
PASSIVE += (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
NONLINEAR_NAMES = {
    *(
        "sigmoid",
        "sigmoid_",
        "tanh",
        "tanh_",
        "softmax",
        "log_softmax",
        "logsigmoid",
        "log_sigmoid",
        "softplus",
        "exp",
        "log",
        "sqrt",
        "square",
        "abs",
    ),
    *(
        "relu",
        "relu_",
        "leaky_relu",
        "leaky_relu_",
        "hardsigmoid",
        "clamp",
        "clip",
        "pow",
        "max",
        "min",
        "amax",
        "amin",
        "norm",
        "binary_cross_entropy",
    ),
}


class DualLogits:
    """SANLogits on their way through what a discriminator does after its last layer. Every function is applied to both parts, in the `dir` part
    with all other tensors detached: dir = <direction, stopgrad(h)> also where the inner product is taken later. Not to be kept: the converted
    module returns SANLogits.
    """

    def __init__(self, fun: Tensor, dir: Tensor) -> None:
        self.fun, self.dir = fun, dir

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.fun, name)
        if not callable(value):
            return _dual(value, getattr(self.dir, name))
        return lambda *args, **kwargs: _apply(getattr(torch.Tensor, name), (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.fun)


def _binary(name: str) -> Any:
    return lambda self, other: _apply(getattr(torch.Tensor, name), (self, other), {})


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "matmul", "rmatmul", "getitem"):
    setattr(DualLogits, f"__{_name}__", _binary(f"__{_name}__"))
setattr(DualLogits, "__neg__", lambda self: _apply(torch.neg, (self,), {}))  # noqa: B010 (as the loop above does)


def _dual(fun: Any, direction: Any) -> Any:
    """Results of a function on both parts as one value: tensors are paired, sequences element by element; shapes and the like are those of fun."""
    if isinstance(fun, Tensor):
        return DualLogits(fun, direction)
    if isinstance(fun, (tuple, list)) and any(isinstance(x, Tensor) for x in fun):
        return type(fun)(_dual(a, b) for a, b in zip(fun, direction, strict=True))
    return fun


def _apply(func: Any, args: Any, kwargs: Any) -> Any:
    name = getattr(func, "__name__", str(func))
    if name in NONLINEAR_NAMES:
        raise ValueError(f"'{name}' is applied after the converted layer, but a SAN needs logits: remove it, or convert another layer")
    fun = func(*_pick(args, "fun"), **_pick(kwargs, "fun"))
    direction = func(*_pick(args, "dir"), **_pick(kwargs, "dir"))
    return _dual(fun, direction)


def _pick(value: Any, part: str) -> Any:
    """One part of every DualLogits within `value`; in the dir part other tensors are detached."""
    if isinstance(value, DualLogits):
        return getattr(value, part)
    if isinstance(value, Tensor):
        return value.detach() if part == "dir" else value
    if isinstance(value, Mapping):
        return {k: _pick(v, part) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_pick(v, part) for v in value)
    return value


def _finish(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a converted module: DualLogits within its output leave as SANLogits."""
    if isinstance(output, DualLogits):
        return SANLogits(output.fun, output.dir)
    if type(output) in (tuple, list):
        return type(output)(_finish(module, args, x) for x in output)
    if type(output) is dict:
        return {k: _finish(module, args, x) for k, x in output.items()}
    return output


class ConvertedLayer(_SANWeighted):
    """SAN layer in the place of a torch Linear or Conv1d/2d/3d: f = scale * <weight / |weight|, x> + bias, returned in both parts.

    Parameters: weight as the original's, unit rows; scale [O]; bias [O] or None. The convolution's stride, padding (of any mode), dilation and
    groups are the original's.
    """

    def __init__(self, original: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Tensor, fixed_scale: bool) -> None:
        nn.Module.__init__(self)
        self._set_direction(weight, (weight.shape[0],))
        if fixed_scale:
            _fix_scale(self)
        self.bias = None if original.bias is None else nn.Parameter(original.bias.detach().clone())
        self._bare = (_without_parameters(original),)  # in a tuple: what computes the map, not a submodule
        self.train(original.training)
        self.register_load_state_dict_pre_hook(_adapt_state)

    def features(self, x: Tensor) -> Tensor:
        """h, which the directions are multiplied with: the input itself."""
        return x

    def _map(self, h: Tensor, weight: Tensor) -> Tensor:
        bare: Any = self._bare[0]
        return F.linear(h, weight) if isinstance(bare, nn.Linear) else bare._conv_forward(h, weight, None)

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if self.bias is not None:
            bias = self.bias.view((-1,) + (1,) * (self.weight.ndim - 2))
            logits = SANLogits(logits.fun + bias, logits.dir + bias.detach())
        return DualLogits(logits.fun, logits.dir)


class ConvertedEmbedding(SANEmbedding):
    """SANEmbedding in the place of a torch Embedding whose rows multiply features: labels int64 [...] -> vectors [..., D] of both parts."""

    def __init__(self, original: nn.Embedding, weight: Tensor, fixed_scale: bool) -> None:
        nn.Module.__init__(self)
        self._set_direction(weight, (weight.shape[0], 1))
        if fixed_scale:
            _fix_scale(self)
        self.train(original.training)
        self.register_load_state_dict_pre_hook(_adapt_state)

    def forward(self, labels: Tensor) -> Any:
        logits = super().forward(labels)
        return DualLogits(logits.fun, logits.dir)


Converted = (ConvertedLayer, ConvertedEmbedding)


def _fix_scale(layer: nn.Module) -> None:
    """Make the scale a buffer: out of reach of optimizers and of requires_grad_."""
    value = layer.scale.detach()  # type: ignore[union-attr, operator]
    del layer.scale
    layer.register_buffer("scale", value)


def _without_parameters(original: nn.Module) -> nn.Module:
    """A torch layer of the same geometry and no storage."""
    keep = {"Linear": ("in_features", "out_features")}.get(
        _kind(original).__name__, ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    )
    return _kind(original)(**{k: getattr(original, k) for k in keep}, bias=False, device="meta")


def _kind(module: nn.Module) -> type[nn.Module]:
    """The torch class of a layer, also where parametrizations have put a class of their own in its place."""
    return next(kind for kind in (*LINEAR_KINDS, nn.Embedding) if isinstance(module, kind))


@torch.no_grad()
def _effective_weight(module: nn.Module) -> Tensor:
    """The weight that the layer multiplies with in eval mode, whatever normalises it; no state changes."""
    training = module.training
    state = {k: v.clone() for k, v in module.state_dict().items()}
    module.eval()
    try:
        for hook in module._forward_pre_hooks.values():  # the older spectral_norm and weight_norm set `weight` before each forward pass
            if hasattr(hook, "compute_weight") and hasattr(hook, "name"):
                weight = hook.compute_weight(module, do_power_iteration=False) if hasattr(hook, "n_power_iterations") else hook.compute_weight(module)
                return weight.detach().clone()
        return module.weight.detach().clone()  # type: ignore[union-attr, operator]
    finally:
        module.train(training)
        for name, value in module.state_dict().items():
            value.copy_(state[name])


def _is_spectral(module: nn.Module) -> bool:
    if any(hasattr(hook, "n_power_iterations") for hook in module._forward_pre_hooks.values()):
        return True
    steps = module.parametrizations["weight"] if parametrize.is_parametrized(module, "weight") else []  # type: ignore[index, union-attr]
    return any(type(step).__name__ == "_SpectralNorm" for step in steps)  # type: ignore[union-attr]


def _adapt_state(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Before load_state_dict: rewrite the original layer's entries as direction, scale and bias. A converted layer's own pass through."""
    assert isinstance(module, Converted)
    if f"{prefix}scale" in state:
        return
    own = {k.removeprefix(prefix): state[k] for k in state if k.startswith(prefix)}
    weight = weight_from_state(own)
    if weight is None or weight.shape != module.weight.shape:
        return  # load_state_dict itself says what is missing or of the wrong shape
    for name in own:
        if name.startswith(("weight", "parametrizations.weight.")):
            del state[prefix + name]
    norm = weight.flatten(1).norm(dim=1).clamp_min(EPS)
    state[f"{prefix}weight"] = F.normalize(weight.flatten(1), dim=1, eps=EPS).view_as(weight)
    state[f"{prefix}scale"] = norm.view_as(module.scale)


def weight_from_state(own: Mapping[str, Tensor]) -> Tensor | None:
    """The effective weight of a layer's state: plain, under spectral_norm or weight_norm (both interfaces of each). None if it is none of these."""
    if "weight" in own:
        return own["weight"]
    for base, u, v in (("weight_orig", "weight_u", "weight_v"), *((f"{_PARAM}original", f"{_PARAM}0._u", f"{_PARAM}0._v"),)):
        if base in own and u in own and v in own:
            matrix = own[base].flatten(1)
            return own[base] / torch.dot(own[u], matrix @ own[v])
    for gain, direction in (("weight_g", "weight_v"), (f"{_PARAM}original0", f"{_PARAM}original1")):
        if gain in own and direction in own:
            g, w = own[gain], own[direction]
            axes = [i for i, size in enumerate(g.shape) if size == 1] if g.ndim else None  # weight_norm keeps the axes that it sums over
            return w * (g / torch.linalg.vector_norm(w, dim=axes, keepdim=True))
    return None


_PARAM = "parametrizations.weight."


def candidates(module: nn.Module) -> dict[str, nn.Module]:
    """All layers that `convert` can turn into SAN layers, by name, in order of registration."""
    return {name: m for name, m in module.named_modules() if isinstance(m, (*LINEAR_KINDS, nn.Embedding))}


def find_last(module: nn.Module) -> list[str]:
    """Names of the last linear maps, where there is no doubt.

    No doubt: `module` is that layer; it is an nn.Sequential (or ends in one, or holds one child) that ends in it; or exactly one layer, or the same
    layer of each of several numbered branches, has a single output. An nn.Embedding beside it may be a projection head or an input: doubt.

    Raises:
        ValueError: one line with the names to choose from.
    """
    found = _end_of(module, "")
    options = candidates(module)
    if not options:
        raise ValueError(f"{type(module).__name__} has no Linear, Conv or Embedding layer to convert")
    if found is None:
        single = [name for name, m in options.items() if not isinstance(m, nn.Embedding) and _outputs(m) == 1]
        if len({_branch_pattern(name) for name in single}) != 1:
            names = single or list(options)[-5:]
            raise ValueError(
                f"which layers of {type(module).__name__} make its logits? Name them, as in san.convert(D, {names[-1]!r}); "
                f"candidates: {', '.join(names)}"
            )
        found = single
    embeddings = [name for name, m in options.items() if isinstance(m, nn.Embedding)]
    if embeddings:
        raise ValueError(
            f"{type(module).__name__} has the embedding '{embeddings[0]}': name the layers, san.convert(D, {[*found, *embeddings]!r}) if its rows "
            f"are multiplied with features (a projection head), san.convert(D, {found!r}) if it is an input"
        )
    return found


def _branch_pattern(name: str) -> str:
    """The name without the numbers of its branches: heads.0.conv and heads.1.conv are one layer of two branches, main.3 and main.5 are not."""
    *branches, last = name.split(".")
    return ".".join(["*" if part.isdigit() else part for part in branches] + [last])


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _end_of(module: nn.Module, name: str) -> list[str] | None:
    """The layer that a chain of modules ends in; None where the order is not known."""
    if isinstance(module, LINEAR_KINDS):
        return [name]
    children = list(module.named_children())
    if not isinstance(module, nn.Sequential):
        return _end_of(children[0][1], f"{name}.{children[0][0]}".lstrip(".")) if len(children) == 1 and not _has_own(module) else None
    while children and isinstance(children[-1][1], PASSIVE):
        children.pop()
    if not children:
        return None
    if isinstance(children[-1][1], NONLINEAR_LAST):
        raise ValueError(f"the discriminator ends in {type(children[-1][1]).__name__}, but a SAN needs logits: remove it first")
    return _end_of(children[-1][1], f"{name}.{children[-1][0]}".lstrip("."))


def _has_own(module: nn.Module) -> bool:
    """True if the module computes with parameters of its own: then its only child need not come last."""
    return next(module.parameters(recurse=False), None) is not None or isinstance(module, (nn.ModuleList, nn.ModuleDict))


def convert(module: nn.Module, layers: str | Iterable[str] | None = None) -> nn.Module:
    """Turn last linear maps into SAN layers, in place; afterwards `module` returns SANLogits where it returned tensors of logits.

    Args:
        module: the discriminator: any module. Its parameters stay on their device and keep their types.
        layers: names (as in named_modules) of the layers that make the logits: Linear, Conv1d/2d/3d, or Embedding if its rows are
            multiplied with features. None: found by `find_last`, which asks where it is not sure.

    Returns:
        The module itself; a new layer if it is itself such a layer.

    Raises:
        ValueError: in one line, for names that are not there, layers of other kinds, wrapped or already converted modules.
    """
    wrapper = type(module).__name__
    if wrapper in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "OptimizedModule"):
        raise ValueError(f"san.convert takes the module itself: convert before wrapping it in {wrapper}")
    if any(isinstance(m, Converted) for m in module.modules()):
        raise ValueError(f"{wrapper} is converted already: san.restore it first")
    names = find_last(module) if layers is None else [layers] if isinstance(layers, str) else list(layers)
    modules = dict(module.named_modules(remove_duplicate=False))
    for name in names:
        _check_layer(name, modules)
    made = {}
    for name in names:
        original = modules[name]
        if id(original) not in made:
            build: Any = ConvertedEmbedding if isinstance(original, nn.Embedding) else ConvertedLayer
            made[id(original)] = build(original, _effective_weight(original), _is_spectral(original))
    module = _replace(module, made)
    module.register_forward_hook(_finish)
    return module


def _check_layer(name: str, modules: Mapping[str, nn.Module]) -> None:
    if name not in modules:
        raise ValueError(f"no layer '{name}'; there are: {', '.join(n for n, m in modules.items() if isinstance(m, (*LINEAR_KINDS, nn.Embedding)))}")
    layer = modules[name]
    if not isinstance(layer, (*LINEAR_KINDS, nn.Embedding)) or isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f"'{name}' is a {type(layer).__name__}: Linear, Conv1d, Conv2d, Conv3d and Embedding layers can be converted")
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.padding_idx is not None):
        raise ValueError(f"the embedding '{name}' has max_norm or padding_idx, which a unit direction has no use for: make it without")


def _replace(module: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """Put the new layers in the place of those with these ids, wherever they are registered."""
    if id(module) in made:
        return made[id(module)]
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in made:
                parent._modules[name] = made[id(child)]
    return module


def restore(module: nn.Module) -> nn.Module:
    """Ordinary layers of the same function in the place of converted ones, in place: for inference, or export. Logits are tensors again.

    Normalisations that were there before conversion (spectral_norm, weight_norm) do not come back.
    Returns the module, or a new layer if it is itself one. Raises ValueError if nothing in it is converted.
    """
    made: dict[int, nn.Module] = {}
    for layer in module.modules():
        if isinstance(layer, Converted):
            made[id(layer)] = _ordinary(layer)
    if not made:
        raise ValueError(f"{type(module).__name__} has no converted layer")
    for part in module.modules():
        for key in [key for key, hook in part._forward_hooks.items() if hook is _finish]:
            del part._forward_hooks[key]
    return _replace(module, made)


@torch.no_grad()
def _ordinary(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, Converted)
    direction = F.normalize(layer.weight.flatten(1), dim=1, eps=EPS)
    weight = (direction * layer.scale.view(-1, 1)).view_as(layer.weight)
    plain: Any
    if isinstance(layer, ConvertedEmbedding):
        plain = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
    else:
        plain = copy.deepcopy(layer._bare[0])
        plain.weight = nn.Parameter(weight)
        plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    return plain.train(layer.training)
