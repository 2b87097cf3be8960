# SPDX-License-Identifier: Apache-2.0
"""Converts the last linear layers of any discriminator to SAN layers, and back.

    D = san.convert(D, example=images)       # or san.convert(D, "head.fc"), or several names
    logits = D(images)                       # SANLogits(fun, dir)
    D = san.restore(D)                       # ordinary layers again, with the same function

The discriminator's function does not change: outputs agree with the original's up to float rounding (the
weight is divided by a norm and multiplied by it). With an example input this is checked at once; a conversion
that changes the output is undone and raises an error. Without one, the first forward pass raises an error if
the operations after the layers are not linear. Conversion affects the parts of a discriminator as follows:

    weight      Its rows become unit directions and trained scales.
    bias        It stays on the output: f = scale <omega, h> + bias. Like the scale, it is trained by the
                GAN's own loss. In the Wasserstein form it cancels between real and generated samples and does
                not affect the direction. (SAN layers that are created directly have a bias on the input
                instead, where it is part of h.)
    spectral_norm, weight_norm, parametrizations
                They are removed, and their effective weight at the time of conversion is split. In training
                mode, spectral_norm's u and v are the limit of its power iteration. Under spectral_norm the
                scale is fixed, so that the layer keeps its Lipschitz constant.
    operations after the layer (view, mean, sum over positions, an inner product with features)
                They are applied to both parts of the logits; in `dir` everything except the directions is
                detached. Functions that are not known to be linear raise an error.
    the layer's weight, if the module reads it instead of calling the layer
                It is the effective weight and has two parts as well.

State dicts of the original module, also with spectral_norm and weight_norm, load into the converted module
with load_state_dict. The state dict of a converted module contains the directions and scales, and the
effective weight under its old name, so that the original module loads it with strict=False.

Convert before wrapping the module in DistributedDataParallel, fully_shard or torch.compile, and before
creating the optimizer, because the parameters are new.

Shapes: N batch, I inputs, O outputs, C classes, D embedding width.
"""

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from san import probe
from san.find import KINDS, TRANSPOSED, find_last, substitute
from san.layers import SANEmbedding, SANLogits, _SANLayer, _SANWeighted, tied, unit_directions
from san.logits import DualLogits, Record, inside, run_pass
from san.weights import (
    direction_from_state,
    effective_weight,
    is_sharded,
    is_spectral,
    norm_hook,
    settle,
    split,
    state_from_weight,
    state_names,
    weight_from_state,
)

# Classes whose objects depend on the parameters of the wrapped module
WRAPPERS = (
    *("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule"),
    *("OptimizedModule", "ScriptModule"),
)
# Attributes of a layer that a module may read; a converted layer gets them from its original
_GEOMETRY = (
    *("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "padding_mode", "transposed", "output_padding"),
)


class _Converted(_SANLayer):
    """Base class of converted layers: creation, access from outside, saving and loading."""

    _alone = False  # the layer is itself the converted module, and returns SANLogits
    _name = ""  # name in the module
    _seen: float | None = None  # machine epsilon of the first pass that used the layer
    _names: tuple[str, ...] = ("weight",)  # names of the weight's entries in the original's state
    _gain: tuple[int, ...] | None = None  # shape of weight_norm's gain

    def _take(self, original: nn.Module, scale_shape: tuple[int, ...], fixed_scale: bool) -> None:
        """Take direction, scale and mode of an original layer. Raises ValueError for infinite weights."""
        direction, scale = split(effective_weight(original))
        trained = any(p.requires_grad for name, p in original.named_parameters() if name != "bias")
        self.weight = nn.Parameter(direction, requires_grad=trained)
        if fixed_scale:  # a buffer, which optimizers and requires_grad_ do not change
            self.register_buffer("scale", scale.view(scale_shape))
        else:
            self.scale = nn.Parameter(scale.view(scale_shape), requires_grad=trained)
        self._names = state_names(original)
        if len(self._names) == 2:
            self._gain = tuple(original.state_dict()[self._names[0]].shape)
        self._record = Record(whole=True)
        self.train(original.training)
        self.register_load_state_dict_pre_hook(_adapt_state)  # type: ignore[no-untyped-call]

    @property
    def direction(self) -> Tensor | None:
        """The directions [K, ...], of unit norm after normalize_ (the parameter `weight`)."""
        return self._stored_weight()

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and inside():  # read by the module that holds the layer
            return self._effective()
        if name in _GEOMETRY and "_bare" in self.__dict__:
            return getattr(self._bare[0], name)
        return super().__getattr__(name)

    def _effective(self) -> DualLogits:
        """Return scale * direction, in both parts."""
        weight: Any = self._stored_weight()
        direction = unit_directions(weight)
        scale = self.scale.view(-1, *(1,) * (weight.ndim - 1))
        return self._dual(SANLogits(tied(scale * direction.detach(), weight), scale.detach() * direction))

    def _dual(self, logits: SANLogits) -> DualLogits:
        dual = DualLogits(logits.fun, logits.dir, self._name)
        if dual.probes:
            self._seen = dual.eps
        return dual

    def _out(self, logits: SANLogits) -> Any:
        """Return the result of a forward pass."""
        return run_pass(self._dual, (logits,), {}, self._record) if self._alone else self._dual(logits)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = destination.get(f"{prefix}weight")
        if weight is None:
            return
        with torch.no_grad():
            scale = self.scale.view(-1, *(1,) * (weight.ndim - 1))
            # torch.distributed.checkpoint needs an attribute for every name
            names = () if is_sharded(weight) else self._names
            old = state_from_weight(names, unit_directions(weight), scale, self._gain)
            if not is_sharded(weight) and weight.untyped_storage().nbytes() != weight.nbytes:
                weight = weight.clone()  # FullyShardedDataParallel frees the storage of this view
        destination.update({f"{prefix}direction": weight, **{prefix + name: x for name, x in old.items()}})


class ConvertedLayer(_Converted, _SANWeighted):
    """SAN layer that replaces a torch Linear or Conv1d/2d/3d.

    It computes f = scale * <weight / |weight|, x> + bias in both parts. The parameters are weight, with the
    original's shape and unit rows; scale [O]; and bias [O] or None. The stride, padding (of any mode),
    dilation and groups of a convolution are the original's.
    """

    def __init__(self, original: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, fixed_scale: bool) -> None:
        nn.Module.__init__(self)
        self._bare = (_without_parameters(original),)  # computes the map; in a tuple, so not a submodule
        self._take(original, (-1,), fixed_scale)
        self.bias = _own_copy(original.bias)

    def features(self, x: Tensor) -> Tensor:
        """Return h, which is multiplied with the directions: the input itself."""
        return x

    def _map(self, h: Tensor, weight: Tensor) -> Tensor:
        bare: Any = self._bare[0]
        return F.linear(h, weight) if isinstance(bare, nn.Linear) else bare._conv_forward(h, weight, None)

    def forward(self, x: Tensor) -> Any:
        """Map features to logits."""
        weight: Any = self._stored_weight()
        logits = self._logits(x, weight)
        if self.bias is not None:
            bias = self.bias.view((-1,) + (1,) * (weight.ndim - 2))
            logits = SANLogits(logits.fun + bias, logits.dir + bias.detach())
        return self._out(logits)

    def extra_repr(self) -> str:
        """Return the shape of the weight, and whether there is a bias."""
        weight: Any = self._stored_weight()
        return f"{tuple(weight.shape)}, bias={self.bias is not None}"


class ConvertedEmbedding(_Converted, SANEmbedding):
    """SANEmbedding that replaces a torch Embedding whose rows are multiplied with features.

    It maps labels int64 [...] to vectors [..., D] in both parts.
    """

    def __init__(self, original: nn.Embedding, fixed_scale: bool) -> None:
        nn.Module.__init__(self)
        self._take(original, (-1, 1), fixed_scale)
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim

    def forward(self, labels: Tensor) -> Any:
        """Return the vectors of the labels' classes."""
        weight: Any = self._stored_weight()
        return self._out(self._rows(labels, weight))


Converted = (ConvertedLayer, ConvertedEmbedding)


def _own_copy(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


def _without_parameters(original: nn.Module) -> nn.Module:
    """Return a torch layer with the same geometry and without storage."""
    keep = {"Linear": ("in_features", "out_features")}.get(
        _kind(original).__name__,
        (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ),
    )
    return _kind(original)(**{k: getattr(original, k) for k in keep}, bias=False, device="meta")


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the torch class of a layer, also if parametrizations have replaced it by a subclass."""
    return next(kind for kind in KINDS if isinstance(module, kind))


def _adapt_state(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Rewrite entries of the original layer before load_state_dict as direction, scale and bias.

    Of a converted layer's own entries, those that it loads remain.
    """
    assert isinstance(module, Converted)
    stored: Any = module._stored_weight()
    own = {k.removeprefix(prefix): state[k] for k in state if k.startswith(prefix)}
    scale = own.get("scale")
    if scale is not None:
        direction = direction_from_state(own, stored)
    else:
        weight = weight_from_state(own, settled=module.training)
        direction, scale = (None, None) if weight is None or weight.shape != stored.shape else split(weight)
    if direction is None or scale is None:
        return  # load_state_dict raises the error about missing entries or wrong shapes
    for name in own:
        if name == "direction" or name.startswith(("weight", "parametrizations.weight.")):
            del state[prefix + name]
    state[f"{prefix}weight"] = direction
    state[f"{prefix}scale"] = scale.view_as(module.scale) if scale.numel() == module.scale.numel() else scale


def convert(module: nn.Module, layers: str | Iterable[str] | None = None, example: Any = None) -> nn.Module:
    """Convert the last linear layers of a discriminator to SAN layers, in place.

    Afterwards `module` returns SANLogits instead of tensors of logits.

    Args:
        module: the discriminator, any module. Its parameters keep their device and type.
        layers: names (as in named_modules) of the layers that compute the logits: Linear, Conv1d/2d/3d, or
            Embedding if its rows are multiplied with features. None = `find_last`, which raises an error if
            they are ambiguous.
        example: an input to check the conversion with: a tensor, a tuple of arguments or a dict of keyword
            arguments. The output must not change, and must be linear in the layers' outputs. The check needs
            three passes without gradients in the module's current mode; buffers and random generators do not
            change. None = check only the layers themselves; the first forward pass checks that the operations
            after them are linear.

    Returns:
        The module; a new layer if the module is itself a linear layer.

    Raises:
        ValueError: one line, for unknown names, unsupported layers, layers with a forward method of their
            own, hooks or shared weights, wrapped or already converted modules, and an output that changes.
            The module is unchanged in this case.

    Examples:
        >>> import san, torch
        >>> D = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> D = san.convert(D, example=torch.zeros(4, 2))
        >>> D(torch.zeros(4, 2)).fun.shape
        torch.Size([4, 1])
        >>> san.convert(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid()))
        Traceback (most recent call last):
        ...
        ValueError: the discriminator ends in Sigmoid, but a SAN needs logits: remove it first
    """
    wrapper = type(module).__name__
    _check_unwrapped(module, "")
    if any(isinstance(m, Converted) for m in module.modules()):
        raise ValueError(f"{wrapper} is already converted: call san.restore first")
    order: list[str] = []
    if example is not None:
        with probe.called(module) as order:
            probe.run(module, example)
    if layers is None:
        layers = find_last(module, order)
    names = [layers] if isinstance(layers, str) else list(layers)
    modules = dict(module.named_modules(remove_duplicate=False))
    for name in names:
        _check_layer(name, modules)
    made = {}
    for name in names:
        original = modules[name]
        if id(original) not in made:
            made[id(original)] = _converted(name, original)
    before = probe.run(module, example) if example is not None else None
    whole = _replace(module, made)
    _carry(whole)
    if example is None:
        return whole
    try:
        _try_out(whole, before, example, {name: made[id(modules[name])] for name in names})
    except ValueError as error:
        _uncarry(whole)
        _replace(whole, {id(made[id(modules[name])]): modules[name] for name in names})
        last = next((name for name in reversed(order) if isinstance(modules.get(name), KINDS)), None)
        hint = "" if last is None or last in names else f"; the layer called last is '{last}'"
        if not probe.repeats(module, example, before):
            hint += "; the original's output also differs between passes: convert it in eval mode"
        raise ValueError(f"{error}{hint}") from None
    return whole


def _try_out(module: nn.Module, before: Any, example: Any, layers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if conversion changes the output, or a layer does not contribute to it."""
    after = probe.run(module, example, "fails on the example after conversion")
    seen: dict[str, Any] = {name: layer._seen for name, layer in layers.items()}
    if None in seen.values():
        name = next(name for name, eps in seen.items() if eps is None)
        raise ValueError(
            f"the layer '{name}' does not contribute to the output: name the layers that compute the logits"
        )
    probe.compare(before, after, max(seen.values()))


def _wrapper(module: nn.Module) -> str | None:
    """Return the class name of a wrapper; None for other modules."""
    return next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS), None)


def _check_unwrapped(module: nn.Module, name: str) -> None:
    """Raise ValueError if a module is a wrapper or compiled, because that would not know the new layers."""
    wrapper = _wrapper(module)
    if wrapper is not None and name:
        raise ValueError(f"'{name}' is a {wrapper}: convert before wrapping a part of the module")
    if wrapper is not None:
        raise ValueError(f"san.convert needs the module itself: convert before wrapping it in {wrapper}")
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise ValueError(f"'{name or type(module).__name__}' is compiled: convert before compile()")


def _check_layer(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise ValueError, in one line, for a layer that a SAN layer may not be able to replace."""
    if name not in modules:
        there = ", ".join(n for n, m in modules.items() if isinstance(m, KINDS))
        raise ValueError(f"layer '{name}' not found: choose from {there}")
    layer, kind = modules[name], type(modules[name]).__name__
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f"'{name}' is a {kind} without a size: run a pass first, or give an example")
    if not isinstance(layer, KINDS):
        able = ", ".join(k.__name__ for k in KINDS[:-1])
        remedy = f": {substitute(layer)}" if isinstance(layer, TRANSPOSED) else ""
        raise ValueError(f"'{name}' is a {kind}: only {able} and Embedding layers can be converted{remedy}")
    base: Any = _kind(layer)
    methods = ("forward", "_conv_forward", "__call__")
    own = any(getattr(type(layer), name, None) is not getattr(base, name, None) for name in methods)
    if own or "forward" in vars(layer):
        raise ValueError(
            f"'{name}' is a {kind} with its own forward method, which a SAN layer would ignore: write it as "
            f"torch.nn.{base.__name__}, its norm or factor as a torch.nn.utils.parametrize parametrization"
        )
    hooks = [h for h in layer._forward_pre_hooks.values() if h is not norm_hook(layer)]
    if hooks or layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        raise ValueError(f"'{name}' has hooks, which the conversion would drop: remove them first")
    special = ("max_norm", "padding_idx", "sparse", "scale_grad_by_freq") if base is nn.Embedding else ()
    options = {option: getattr(layer, option) for option in special}
    given = " and ".join(
        option for option, value in options.items() if value is not None and value is not False
    )
    if given:
        raise ValueError(f"'{name}' has {given}, which unit directions do not support: create it without")
    _check_parameters(name, layer, modules)
    parts = name.split(".") if name else []
    for depth in range(len(parts) + 1):
        path = ".".join(parts[:depth])
        _check_unwrapped(modules[path], path)
        if "forward" in vars(modules[path]):
            raise ValueError(f"'{path}' has a forward set on the object: convert before setting it")


def _check_parameters(name: str, layer: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise ValueError for sharded parameters, and for parameters shared with other modules."""
    inner = {id(part) for part in layer.modules()}
    own = {id(p) for p in layer.parameters()}
    for p in layer.parameters():
        if not p.is_floating_point():
            raise ValueError(f"the layer '{name}' has type {p.dtype}: convert it in floating point")
        if is_sharded(p):
            raise ValueError(f"the layer '{name}' is already sharded: convert before fully_shard")
    for other, part in modules.items():
        if id(part) not in inner and any(id(p) in own for p in part._parameters.values() if p is not None):
            raise ValueError(f"the layer '{name}' shares a parameter with '{other}': give it its own")


def _converted(name: str, original: nn.Module) -> nn.Module:
    """Return the SAN layer for an original, checked on a random input.

    Raises:
        ValueError: the SAN layer has another output.
    """
    build: Any = ConvertedEmbedding if isinstance(original, nn.Embedding) else ConvertedLayer
    settle(original)
    try:
        layer = build(original, is_spectral(original))
        layer._name = name
        probe.compare_layers(original, layer)
    except ValueError as error:
        raise ValueError(f"'{name or type(original).__name__}' cannot be converted: {error}") from None
    converted: nn.Module = layer
    return converted


def _replace(module: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """Replace the layers with these ids by the new ones in all places where they are registered."""
    if id(module) in made:
        return made[id(module)]
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in made:
                parent._modules[name] = made[id(child)]
    return module


_CARRIERS: dict[type, Any] = {}  # a class of modules -> its subclass below


def _carrier(base: Any) -> Any:
    """Return a subclass of a module's class whose forward pass turns DualLogits into SANLogits.

    It has the name of the class, and is copied and pickled like it.
    """
    if base in _CARRIERS:
        return _CARRIERS[base]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # An object without a record was created from a converted module, such as a slice of an nn.Sequential.
        record = self.__dict__.setdefault("_san_record", Record(whole=False))
        return run_pass(functools.partial(base.forward, self), args, kwargs, record)

    def reduce(self: Any, protocol: Any) -> Any:
        make, args, *state = tuple(base.__reduce_ex__(self, protocol))
        return (_remade, (make, tuple(base if x is type(self) else x for x in args)), *state)

    named = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {"forward": forward, "__reduce_ex__": reduce, "_san_base": base}
    return _CARRIERS.setdefault(base, type(base)(base.__name__, (base,), named | methods))


def _remade(make: Any, args: Any) -> nn.Module:
    """Return an unpickled or copied carrier, before its state is set."""
    module: nn.Module = make(*args)
    module.__class__ = _carrier(type(module))
    return module


def _carry(module: nn.Module) -> None:
    """Make a module, and its parts with converted layers, return SANLogits from their forward passes."""
    if isinstance(module, Converted):
        module._alone = True
        return
    for part in list(module.modules()):
        if isinstance(part, Converted) or type(part).forward is nn.Module.forward:
            continue
        if any(isinstance(m, Converted) for m in part.modules()):
            part._san_record = Record(whole=part is module)  # type: ignore[assignment]
            part.__class__ = _carrier(type(part))


def _uncarry(module: nn.Module) -> None:
    for part in module.modules():
        base = vars(type(part)).get("_san_base")
        if base is not None:
            part.__class__ = base
            del part._san_record


def restore(module: nn.Module) -> nn.Module:
    """Replace converted layers by ordinary ones with the same function, in place, for inference or export.

    The module returns tensors of logits again. Normalisations that were removed by the conversion
    (spectral_norm, weight_norm) are not restored.

    Returns:
        The module; a new layer if the module is itself a converted layer.

    Raises:
        ValueError: the module has no converted layer, or is inside a wrapper.

    Examples:
        >>> import san, torch
        >>> san.restore(san.convert(torch.nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    made: dict[int, nn.Module] = {}
    for layer in module.modules():
        wrapper = _wrapper(layer)
        if wrapper is not None and wrapper != "OptimizedModule":
            raise ValueError(f"a {wrapper} depends on the parameters: restore the module without it")
        if isinstance(layer, Converted):
            made[id(layer)] = _ordinary(layer)
    if not made:
        raise ValueError(f"{type(module).__name__} has no converted layer")
    _uncarry(module)
    return _replace(module, made)


@torch.no_grad()
def _ordinary(layer: ConvertedLayer | ConvertedEmbedding) -> nn.Module:
    stored: Any = layer._stored_weight()
    weight = (unit_directions(stored).flatten(1) * layer.scale.view(-1, 1)).view_as(stored)
    plain: Any
    if isinstance(layer, ConvertedEmbedding):
        plain = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)
        plain.weight.requires_grad_(stored.requires_grad)
    else:
        plain = copy.deepcopy(layer._bare[0])
        plain.weight = nn.Parameter(weight, requires_grad=stored.requires_grad)
        plain.bias = _own_copy(layer.bias)
    plain.train(layer.training)
    ordinary: nn.Module = plain
    return ordinary
