# SPDX-License-Identifier: Apache-2.0
"""Builds generators from the stubs that `torch_utils.persistence` reads from network pickles.

The pickles are those of this project or published ones. Nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import dnnlib
from torch_utils.persistence import describe, read_network_pickle
from torch_utils.pickle_stubs import listed
from training.generator import MAX_LAYERS, Generator, layer_spec

OWN_CODE = (
    "--trust-pickle can generate images from it by running the code in the file: use it only if you "
    "trust the author"
)


def from_stub(stub: Any) -> Generator:
    """Build a Generator from the stub of one, as `torch_utils.persistence.read_network_pickle` returns it.

    It can be a stem or a superresolution stage of this project or a published one, or a StyleGAN3 generator
    (t and r). It is rebuilt from the attributes of its layers, never from embedded source. Tensors and places
    must match one to one, with the right shapes.

    Returns:
        The generator on the CPU, float32, in eval mode, without gradients (`set_trainable` switches them on).

    Raises:
        ValueError: One line that names what does not fit.
    """
    class_name = getattr(stub, "class_name", None)
    if class_name not in ("Generator", "SuperresGenerator") or not stub.persistent:
        raise ValueError(f"this is not a generator but {describe(stub)}")
    for path, module in stub.named_modules():
        if not module.persistent and module.origin != "torch.nn.modules.sparse.Embedding":
            raise ValueError(
                f"refused global {module.origin}: {path or class_name} is not part of a generator"
            )
    children = stub.modules()
    if set(children) != {"synthesis", "mapping"}:
        raise ValueError(
            f"a generator has the parts mapping and synthesis, but this one has {listed(children)}; "
            f"{OWN_CODE}"
        )
    arguments = _recorded_arguments(stub, children["synthesis"], children["mapping"])
    try:
        with torch.device("meta"):  # shapes only: the values come from the stub
            generator = Generator(**arguments)
    # torch raises TypeError for an integer beyond int64
    except (RuntimeError, OverflowError, ZeroDivisionError, TypeError) as err:
        raise ValueError(f"its sizes are impossible: {str(err).splitlines()[0]}") from None
    _check_stub(generator, stub)
    _fill(generator, stub.named_tensors())
    return generator.eval().requires_grad_(False)


def load(path_or_url: str, key: str = "G_ema") -> Generator:
    """Load the generator `key` (G or G_ema) of a network pickle from a file or an http(s) URL.

    Nothing in the file is executed.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: One line for a file that cannot be used.
    """
    return dnnlib.util.read_from(
        str(path_or_url), lambda path: load_from(read_network_pickle(path), path, key)
    )


def load_from(data: Mapping[str, Any], name: str, key: str = "G_ema") -> Generator:
    """Load the generator `key` from the result of `torch_utils.persistence.read_network_pickle`.

    Args:
        data: The result.
        name: Name of the file, for errors.
        key: G or G_ema.

    Raises:
        ValueError: One line for a network that cannot be used.
    """
    if data.get(key) is None:
        raise ValueError(
            f"{name}: contains no network {key}; it has {listed(k for k in data if data[k] is not None)}"
        )
    try:
        return from_stub(data[key])
    except ValueError as err:
        raise ValueError(f"{name}: {key}: {err}") from None


def _attribute(stub: Any, name: str, kind: type) -> Any:
    """Return a plain number or text from a stub's attributes. Numpy scalars count as numbers."""
    value = stub.attributes.get(name)
    value = value.item() if isinstance(value, np.generic) else value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(
            f"{stub.class_name}: attribute {name} is {type(value).__name__}, not {kind.__name__}"
        )
    return value


def _recorded_arguments(stub: Any, synthesis: Any, mapping: Any) -> dict[str, Any]:
    """Return the arguments of Generator for the stub of a generator."""
    names = synthesis.attributes.get("layer_names")
    layers = synthesis.modules()
    if "block_resolutions" in synthesis.attributes:
        raise ValueError(
            "StyleGAN2 generators are not supported, only those of StyleGAN3, StyleGAN-XL and StyleSAN-XL; "
            f"{OWN_CODE}"
        )
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"{len(layers)} layers: at most {MAX_LAYERS} are supported")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or sorted([*names, "input"]) != sorted(layers)
    ):
        raise ValueError(f"layer_names of synthesis do not match its layers: {listed(layers)}")
    head = stub.attributes.get("head_layer_names")
    if head is None:
        num_frozen = stub.attributes.get("num_frozen_layers", 0)
    else:
        num_frozen = len(names) - len(head) if isinstance(head, list) else -1
        if num_frozen < 0 or names[num_frozen:] != head:
            raise ValueError("head_layer_names do not match the last layers of this network")
    if not isinstance(num_frozen, int) or not 0 <= num_frozen < len(names):
        raise ValueError(f"num_frozen_layers does not fit a network of {len(names)} layers")
    return dict(
        z_dim=_attribute(stub, "z_dim", int),
        c_dim=_attribute(stub, "c_dim", int),
        w_dim=_attribute(stub, "w_dim", int),
        img_resolution=_attribute(synthesis, "img_resolution", int),
        img_channels=_attribute(synthesis, "img_channels", int),
        layers=[layer_spec(name, layers[name].attributes) for name in names],
        num_frozen_layers=num_frozen,
        mapping_kwargs=_recorded_mapping(mapping),
        output_scale=_attribute(synthesis, "output_scale", float),
        channel_base=_recorded_capacity("channel_base", stub, synthesis),
        channel_max=_recorded_capacity("channel_max", stub, synthesis),
    )


def _recorded_mapping(mapping: Any) -> dict[str, Any]:
    parts = mapping.modules()
    num_layers = _attribute(mapping, "num_layers", int)
    if not 1 <= num_layers <= len(parts) or not all(f"fc{i}" in parts for i in range(num_layers)):
        raise ValueError(f"num_layers of the mapping network is {num_layers}, but it has {listed(parts)}")
    kwargs = dict(
        num_layers=num_layers,
        w_avg_beta=_attribute(mapping, "w_avg_beta", float),
        lr_multiplier=_attribute(parts["fc0"], "bias_gain", float),
    )
    if "embed" in parts and parts["embed"].persistent:
        return dict(kwargs, linear_labels=True)
    shape = (
        parts["embed"].tensors()["weight"].shape
        if "embed" in parts and "weight" in parts["embed"].tensors()
        else (0, 0)
    )
    if len(shape) != 2:
        raise ValueError(f"the class table has shape {list(shape)}")
    return dict(kwargs, num_embeddings=shape[0], embed_dim=shape[1])


def _recorded_capacity(name: str, *stubs: Any) -> int | None:
    """Return channel_base or channel_max, from wherever the network stores it; None if nowhere."""
    for stub in stubs:
        for table in (stub.attributes, stub.attributes.get("_init_kwargs")):
            value = table.get(name) if isinstance(table, dict) else None
            value = value.item() if isinstance(value, np.generic) else value
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**53:
                return int(value)
    return None


# Attributes that a rebuilt module derives or fixes. Where a stub has them, they must be equal.
_DERIVED = (
    *("w_dim", "num_ws", "c_dim", "z_dim", "img_resolution", "img_channels", "num_layers"),
    *(
        "in_features",
        "out_features",
        "activation",
        "weight_gain",
        "bias_gain",
        "channels",
        "size",
        "sampling_rate",
        "bandwidth",
    ),
    *(
        "in_channels",
        "out_channels",
        "in_size",
        "out_size",
        "conv_kernel",
        "tmp_sampling_rate",
        "up_factor",
        "down_factor",
    ),
    *("up_taps", "down_taps", "down_radial", "padding"),
)


def _check_stub(generator: Generator, stub: Any) -> None:
    """Reject a stub whose modules or attributes differ from those that its layers determine."""
    recorded = dict(stub.named_modules())
    built = dict(generator.named_modules())
    if set(recorded) != set(built):
        raise ValueError(f"parts missing or unexpected: {listed(set(recorded) ^ set(built))}")
    for path, module in built.items():
        theirs = recorded[path].attributes
        for name in _DERIVED:
            if name == "num_layers" and path in ("", "synthesis"):
                continue  # includes toRGB in some networks only
            ours = getattr(module, name, None)
            if name in theirs and ours is not None and not _same(theirs[name], ours):
                raise ValueError(
                    f"{path or 'generator'}: {name} is not {ours}, which the rest of the network requires"
                )


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, str) or isinstance(a, str):
        return bool(a == b)
    if isinstance(a, (list, tuple)) and (len(a) > 4 or any(isinstance(item, (list, tuple)) for item in a)):
        return False  # expected values are not nested, and nested lists may be endless
    try:
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return x.shape == y.shape and bool(np.allclose(x, y, rtol=1e-6, atol=0))


def _fill(generator: Generator, tensors: Mapping[str, Any]) -> None:
    """Copy the tensors of a stub into a generator without values. They must match one to one."""
    expected = generator.state_dict()
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    if missing or unknown:
        raise ValueError(f"tensors missing: {listed(missing)}; unexpected: {listed(unknown)}")
    values = {}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(expected[name].shape):
            raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(expected[name].shape)}")
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} has type {str(tensor.dtype)[len('torch.') :]}, not a float type")
        values[name] = tensor.tensor().to(torch.float32)
    generator.load_state_dict(values, assign=True)
