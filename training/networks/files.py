# SPDX-License-Identifier: Apache-2.0
"""Network files: pickles as every StyleGAN tool knows them, or weights as weights, that is safetensors beside
a JSON file. Lossless both ways.

NAME.safetensors holds the tensors, named NETWORK.STATE_DICT_NAME (G_ema.mapping.fc0.weight); NAME.json holds
what builds the networks (their layers as plain numbers), training_set_kwargs and provenance. In a model
repository the two are called model.safetensors and config.json.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import dnnlib
from dnnlib import bounded
from torch_utils import persistence
from torch_utils.pickle_reader import MAX_NETWORKS
from torch_utils.pickle_stubs import listed
from training.bundle import TensorBundle, bundle, dotted
from training.generator import MAX_LAYERS, Generator, generator_kwargs
from training.networks.reader import from_stub

FORMAT = "stylesan-xl network"
VERSION = 1
MAX_CONFIG_BYTES = 16 * 2**20
MAX_PLAIN = 2**21  # characters of the plain values of a pickle; a value counts as 16 of them
MAX_PLAIN_ELEMENTS = 1024  # of a tensor or array among them
GENERATORS = ("G", "G_ema")
_T = TypeVar("_T")


class UnsupportedGenerator(ValueError):
    """A generator whose parts are understood, and which is none of those that are read: running its file does
    not change that.
    """


@dataclasses.dataclass
class NetworkFile:
    """What a network file holds.

    generators: G and G_ema, or one of them; they may be the same object.
    tensors: the tensors of other networks (D), by network and name.
    training_set_kwargs, provenance, extra: plain values; extra is whatever else a pickle says (progress of a
    published snapshot).
    """

    generators: dict[str, Generator]
    tensors: dict[str, dict[str, torch.Tensor]] = dataclasses.field(default_factory=dict)
    training_set_kwargs: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def only(self, key: str) -> NetworkFile:
        """The same file with one generator and nothing else. Raises ValueError if it is not there."""
        if key not in self.generators:
            raise ValueError(f"there is no network {key}; there is {', '.join(self.generators) or 'none'}")
        return dataclasses.replace(self, generators={key: self.generators[key]}, tensors={}, extra={})


def read(path: str | os.PathLike[str], key: str | None = None, strict: bool = True) -> NetworkFile:
    """A network file from a local path: NAME.safetensors with its JSON file, or else a network pickle, of
    which nothing is run.

    key: the one generator that is needed (G or G_ema); the rest of a pickle is parsed but not rebuilt. None =
    everything. strict: refuse a pickle with objects of unknown kinds, as the D of another project may be;
    False passes over them. Raises FileNotFoundError, and ValueError in one line for a file that cannot be
    used (UnsupportedGenerator for its generator alone).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    if os.fspath(path).lower().endswith(".safetensors"):
        return read_safetensors(path)
    return _from_pickle(persistence.read_network_pickle(path, strict=strict), path, key)


def fetch(path_or_url: str, num_attempts: int = 3) -> str:
    """The local path of a network file: of an http(s) address the kept copy, to which a .safetensors file's
    JSON file comes along.

    Raises as `dnnlib.util.fetch`.
    """
    return dnnlib.util.fetch(path_or_url, num_attempts, _beside(path_or_url))


def read_from(path_or_url: str, read: Callable[[str], _T], num_attempts: int = 3) -> _T:
    """What `read` makes of the network file at a path or an address. A copy that it finds `Damaged` does not
    stay in the cache.

    Raises as `dnnlib.util.read_from`.
    """
    return dnnlib.util.read_from(path_or_url, read, num_attempts, _beside(path_or_url))


def _beside(path_or_url: str) -> tuple[str, ...]:
    """Names of the JSON file of a .safetensors address, the likelier one first."""
    name = (
        urllib.parse.urlsplit(path_or_url).path.rpartition("/")[2] if dnnlib.util.is_url(path_or_url) else ""
    )
    return (
        (f"{name.removesuffix('.safetensors')}.json", "config.json") if name.endswith(".safetensors") else ()
    )


def read_trusted(path: str | os.PathLike[str]) -> NetworkFile:
    """A network file from a pickle that is run (`trusted_pickle`): what comes out is written anew, and that
    is read. Without D.

    Raises ValueError in one line.
    """
    kept = {
        key: value
        for key, value in trusted_pickle(path).items()
        if key in (*GENERATORS, "training_set_kwargs", "provenance")
    }
    try:
        content = pickle.dumps(kept, protocol=4)
    except Exception as error:  # of objects of somebody else's classes
        raise ValueError(
            f"{path}: its networks cannot be written anew: {' '.join(str(error).split())[:300]}"
        ) from None
    return _from_pickle(persistence.read_network_pickle(io.BytesIO(content), strict=False), path, None)


def _from_pickle(data: Mapping[str, Any], path: str | os.PathLike[str], wanted: str | None) -> NetworkFile:
    result = NetworkFile({})
    plain = _Plain()
    if wanted is not None:
        if data.get(wanted) is None:
            raise ValueError(
                f"{path}: holds no network {wanted}; it has {listed(k for k in data if data[k] is not None)}"
            )
        data = {key: data.get(key) for key in (wanted, "training_set_kwargs", "provenance")}
    for key, value in data.items():
        if key in GENERATORS and value is not None:
            twin = next((other for other in result.generators if data[other] is value), None)
            result.generators[key] = result.generators[twin] if twin else _generator(value, key, path)
        elif isinstance(value, persistence.ObjectStub):
            named = value.named_tensors()
            ours = value.persistent and value.class_name == TensorBundle.__name__
            result.tensors[key] = {
                dotted(name) if ours else name: tensor.tensor() for name, tensor in named.items()
            }
        elif key in ("training_set_kwargs", "provenance"):
            setattr(result, key, plain(value) if isinstance(value, dict) else None)
        elif value is not None:
            result.extra[key] = plain(value)
    if not result.generators:
        raise ValueError(
            f"{path}: holds neither G nor G_ema; it has {listed(k for k in data if data[k] is not None)}"
        )
    return result


def _generator(stub: Any, key: str, path: str | os.PathLike[str]) -> Generator:
    try:
        return from_stub(stub)
    except ValueError as error:
        understood = (
            isinstance(stub, persistence.ObjectStub) and stub.persistent and "Generator" in stub.class_name
        )
        raise (UnsupportedGenerator if understood else ValueError)(f"{path}: {key}: {error}") from None


class _Plain:
    """Values of a pickle as JSON has them: numbers out of small tensors and arrays, lists for tuples and
    sets, text for all else.

    Of bounded size, because a file may say the same list, which holds the same list, again and again.
    """

    def __init__(self) -> None:
        self.left = MAX_PLAIN

    def __call__(self, value: Any, depth: int = 0) -> Any:
        """Raises ValueError for values nested too deep, and for too many of them."""
        self.left -= 16 + (len(value) if isinstance(value, (str, bytes)) else 0)
        if depth > 32 or self.left < 0:
            raise ValueError(
                "values nested more than 32 deep"
                if depth > 32
                else f"values of more than {MAX_PLAIN:,} characters"
            )
        if isinstance(value, persistence.TensorStub):
            value = (
                value.tensor()
                if 0 < value.numel <= MAX_PLAIN_ELEMENTS
                else f"tensor of shape {list(value.shape)}"
            )
        elif isinstance(value, np.ndarray) and not 0 < value.size <= MAX_PLAIN_ELEMENTS:
            value = f"array of shape {list(value.shape)}"
        if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
            value = value.tolist()
        if isinstance(value, Mapping):
            return {self._text(key): self(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [
                self(item, depth + 1)
                for item in (sorted(value, key=self._text) if isinstance(value, (set, frozenset)) else value)
            ]
        if (
            value is None
            or isinstance(value, (str, bool, int))
            or (isinstance(value, float) and np.isfinite(value))
        ):
            return value
        return self._text(value)

    def _text(self, value: Any) -> str:
        text = (
            value
            if isinstance(value, str)
            else f"{len(value)} bytes"
            if isinstance(value, bytes)
            else str(value)[:200]
        )
        self.left -= len(text)
        return text


def write_pickle(path: str | os.PathLike[str], file: NetworkFile) -> None:
    """Write a network pickle that StyleGAN tools load. G and G_ema are both there, as those tools insist; one
    stands for the other if need be.
    """
    G_ema = file.generators.get("G_ema", file.generators.get("G"))
    persistence.save_network_pickle(
        path,
        {
            "G": file.generators.get("G", G_ema),
            "D": bundle(file.tensors.get("D", {})),
            "G_ema": G_ema,
            "augment_pipe": None,
            "training_set_kwargs": file.training_set_kwargs,
            "provenance": file.provenance,
            **file.extra,
        },
    )


def config_of(file: NetworkFile) -> dict[str, Any]:
    """The JSON side of a network file."""
    networks: dict[str, Any] = {}
    for key, generator in file.generators.items():
        same = next((other for other in networks if file.generators[other] is generator), None)
        networks[key] = (
            {"same_as": same} if same else {"class": "Generator", "kwargs": generator_kwargs(generator)}
        )
    networks.update({key: {"class": "tensors"} for key in file.tensors})
    return {
        "format": FORMAT,
        "version": VERSION,
        "networks": networks,
        "training_set_kwargs": file.training_set_kwargs,
        "provenance": file.provenance,
        "extra": file.extra,
    }


def write_safetensors(
    path: str | os.PathLike[str], file: NetworkFile, config_path: str | os.PathLike[str] | None = None
) -> Path:
    """Write the tensors to `path` and the rest beside it, by default to NAME.json. Returns the JSON file's
    path. Both files are atomic.
    """
    from safetensors.torch import save

    config = json.dumps(config_of(file), indent=1, allow_nan=False)
    tensors = {}
    for key, generator in file.generators.items():
        if "kwargs" in config_of(file)["networks"][key]:
            tensors.update(
                {
                    f"{key}.{name}": value.detach().cpu().contiguous()
                    for name, value in generator.state_dict().items()
                }
            )
    for key, values in file.tensors.items():
        tensors.update({f"{key}.{name}": value.detach().cpu().contiguous() for name, value in values.items()})
    config_path = Path(config_path) if config_path else Path(path).with_suffix(".json")
    with dnnlib.util.atomic_write(config_path, "w") as stream:
        stream.write(config + "\n")
    with dnnlib.util.atomic_write(path) as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    return config_path


def check_free(config_path: Path, path: Path) -> None:
    """Raises ValueError where the JSON file of a network to be written to `path` would replace another's.

    That is another program's (a run's options), or another network's: one whose tensors are not those at
    `path`.
    """
    if config_path.exists():
        try:
            _read_config(config_path)
        except (ValueError, OSError):
            raise ValueError(
                f"{config_path} is in the way: it is another program's, and a network's tensors and its "
                "JSON file share a name"
            ) from None
        if not path.exists():
            raise ValueError(
                f"{config_path} is in the way: it describes another network, and {path.name} would take its "
                "place; write to another name"
            )


def config_path_of(path: str | os.PathLike[str]) -> Path:
    """The JSON file of a safetensors file: NAME.json, or config.json beside it. Raises FileNotFoundError."""
    for candidate in (Path(path).with_suffix(".json"), Path(path).with_name("config.json")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{path}: its {Path(path).with_suffix('.json').name} is missing; the two files belong together"
    )


def read_safetensors(path: str | os.PathLike[str]) -> NetworkFile:
    """A network file from safetensors and JSON. Raises FileNotFoundError, and ValueError in one line."""
    config_path = config_path_of(path)
    config = _read_config(config_path)
    tensors = _read_tensors(path)
    about = {name: config.get(name) for name in ("training_set_kwargs", "provenance", "extra")}
    if not all(value is None or isinstance(value, dict) for value in about.values()) or {
        *GENERATORS,
        *config["networks"],
    } & {*(about["extra"] or {})}:
        raise ValueError(
            f"{config_path}: training_set_kwargs, provenance and extra are tables, and extra has no networks"
        )
    result = NetworkFile({}, {}, about["training_set_kwargs"], about["provenance"], about["extra"] or {})
    for key, network in config["networks"].items():
        own = {
            name.removeprefix(f"{key}."): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(f"{key}.")
        }
        network = network if isinstance(network, dict) else {}
        if network.get("class") == "tensors":
            result.tensors[key] = own
        elif "same_as" in network:
            twin = network["same_as"]
            if not isinstance(twin, str) or twin not in result.generators or own:
                raise ValueError(
                    f"{config_path}: {key} is said to be the same as {str(twin)[:40]!r}, which is not there"
                )
            result.generators[key] = result.generators[twin]
        else:
            result.generators[key] = _build(key, network.get("kwargs"), own, path)
    if tensors or not result.generators:
        raise ValueError(
            f"{path}: {f'tensors left over: {listed(tensors)}' if tensors else 'it holds no generator'}"
        )
    return result


def _read_config(path: Path) -> dict[str, Any]:
    config = bounded.read_json(path, MAX_CONFIG_BYTES)
    if (
        not isinstance(config, dict)
        or config.get("format") != FORMAT
        or not isinstance(config.get("networks"), dict)
    ):
        raise ValueError(f"{path}: this does not describe a network: its format is not {FORMAT!r}")
    if len(config["networks"]) > MAX_NETWORKS:
        raise ValueError(f"{path}: {len(config['networks'])} networks, and at most {MAX_NETWORKS} are read")
    if config.get("version") != VERSION:
        raise ValueError(
            f"{path}: version {str(config.get('version'))[:20]} of the format; this program reads version "
            f"{VERSION}"
        )
    return config


def _read_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(os.fspath(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise dnnlib.util.Damaged(
            f"{path}: this is no safetensors file: {str(error).splitlines()[0]}"
        ) from None


def _build(
    key: str, kwargs: Any, tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]
) -> Generator:
    """A generator from its arguments and tensors, one to one."""
    given = kwargs if isinstance(kwargs, dict) else {}
    layers, mapping = given.get("layers"), given.get("mapping_kwargs")
    counts = (0, 0)
    if isinstance(layers, list) and isinstance(mapping, dict):
        counts = len(layers), mapping.get("num_layers", 2)
    if not all(type(count) is int and 0 < count <= MAX_LAYERS for count in counts):
        raise ValueError(
            f"{path}: {key} cannot be built: it has no layers, no mapping_kwargs, or more than {MAX_LAYERS} "
            "layers"
        )
    try:
        with torch.device("meta"), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of impossible numbers, which are refused below
            generator = Generator(**kwargs)
    except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(f"{path}: {key} cannot be built: {str(error).splitlines()[0]}") from None
    expected = generator.state_dict()
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    if missing or unknown:
        raise ValueError(f"{path}: {key}: tensors missing: {listed(missing)}; left over: {listed(unknown)}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape or not value.is_floating_point():
            have, want = (
                f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (value, expected[name])
            )
            raise ValueError(f"{path}: {key}: {name} is {have}, not {want}")
    generator.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()}, assign=True)
    return generator.eval().requires_grad_(False)


class _Absent:
    """Stands for an object of a class that cannot be imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Absent:
        return self

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _TrustingUnpickler(pickle.Unpickler):
    """Python's own, except that a class that cannot be imported does no harm: a discriminator's are rarely
    there, and rarely needed.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name.rpartition(".")[2], (_Absent,), {"__module__": module})


def trusted_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The objects of a network pickle, made by running it: its source text, and whatever else it names, with
    your rights.

    Only for --trust-pickle. Raises ValueError in one line if that fails.
    """
    try:
        with persistence.trust_pickles(), open(path, "rb") as file:
            data = _TrustingUnpickler(file).load()
    except Exception as error:  # it is somebody else's program
        raise ValueError(f"{path}: running this pickle failed: {dnnlib.util.reason(error)}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: running this pickle gave {type(data).__name__}, not a table of networks")
    return data


class ForeignMapping:
    """Calls another project's mapping network with int64 labels."""

    def __init__(self, module: Any, c_dim: int) -> None:
        self.module, self.c_dim = module, c_dim

    def __call__(
        self, z: torch.Tensor, labels: torch.Tensor | None = None, truncation_psi: float = 1, **kwargs: Any
    ) -> torch.Tensor:
        if labels is not None and labels.ndim == 1:
            labels = torch.nn.functional.one_hot(labels, self.c_dim).to(torch.float32)
        return self.module(z, labels, truncation_psi=truncation_psi, **kwargs)


class ForeignGenerator:
    """A network that only its own code can run, with what our scripts use of a Generator. Made by
    `trusted_generator`.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.z_dim, self.c_dim, self.w_dim = int(module.z_dim), int(module.c_dim), int(module.w_dim)
        self.img_resolution, self.img_channels, self.num_ws = (
            int(module.img_resolution),
            int(module.img_channels),
            int(module.num_ws),
        )
        self.mapping, self.synthesis = ForeignMapping(module.mapping, self.c_dim), module.synthesis

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Of the network, so that its device can be found."""
        return self.module.parameters()

    def to(self, device: torch.device | str) -> ForeignGenerator:
        """Move the network. Returns self."""
        self.module.to(device)
        return self


def trusted_generator(path: str | os.PathLike[str], key: str = "G_ema") -> ForeignGenerator:
    """The network `key` of a pickle, made by running the pickle. Raises ValueError in one line."""
    module = trusted_pickle(path).get(key)
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"{path}: holds no network {key}")
    try:
        return ForeignGenerator(module.eval().requires_grad_(False))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {key} is no generator: {' '.join(str(error).split())[:200]}") from None
