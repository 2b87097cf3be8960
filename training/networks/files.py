# SPDX-License-Identifier: Apache-2.0
"""Network files: pickles that every StyleGAN tool can read, or safetensors with a JSON file.

The conversion is lossless in both directions. NAME.safetensors contains the tensors, named
NETWORK.STATE_DICT_NAME (G_ema.mapping.fc0.weight). NAME.json contains what builds the networks (their layers
as plain numbers), training_set_kwargs and provenance. In a model repository the two files are called
model.safetensors and config.json.
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
from typing import Any, BinaryIO, TypeVar

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
MAX_PLAIN = 2**21  # characters of the plain values of a pickle; every value counts as 16 more
MAX_PLAIN_ELEMENTS = 1024  # per tensor or array among the plain values
GENERATORS = ("G", "G_ema")
_T = TypeVar("_T")


class UnsupportedGenerator(ValueError):
    """A generator of a known structure that is not one of the supported kinds.

    Running the code in its file does not change that.
    """


@dataclasses.dataclass
class NetworkFile:
    """The content of a network file.

    Attributes:
        generators: G and G_ema, or one of them; they may be the same object.
        tensors: The tensors of other networks (D), by network and name.
        training_set_kwargs: Plain values that describe the data set.
        provenance: Plain values that describe the origin of the network.
        extra: Other plain values of a pickle (progress of a published snapshot).
    """

    generators: dict[str, Generator]
    tensors: dict[str, dict[str, torch.Tensor]] = dataclasses.field(default_factory=dict)
    training_set_kwargs: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def only(self, key: str) -> NetworkFile:
        """Return the same file with one generator and no other networks.

        Raises:
            ValueError: The generator does not exist.
        """
        if key not in self.generators:
            raise ValueError(f"network {key} not found; available: {', '.join(self.generators) or 'none'}")
        return dataclasses.replace(self, generators={key: self.generators[key]}, tensors={}, extra={})


def read(path: str | os.PathLike[str], key: str | None = None, strict: bool = True) -> NetworkFile:
    """Load a network file from a local path.

    It is NAME.safetensors with its JSON file, or else a network pickle, in which nothing is executed.

    Args:
        path: The file.
        key: The only generator that is needed (G or G_ema); the rest of a pickle is parsed but not rebuilt.
            None = everything.
        strict: Reject a pickle with unknown objects, such as the D of another project. False = ignore them.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: One line for a file that cannot be used (UnsupportedGenerator if only its generator
            cannot).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: file not found")
    if os.fspath(path).lower().endswith(".safetensors"):
        return read_safetensors(path)
    return _from_pickle(persistence.read_network_pickle(path, strict=strict), path, key)


def read_stream(stream: BinaryIO, name: str) -> NetworkFile:
    """Load a network pickle from an open file, without networks of other projects (`strict` of `read`).

    Args:
        stream: The file.
        name: For messages.

    Raises:
        ValueError: One line.
    """
    return _from_pickle(persistence.read_network_pickle(stream, strict=False), name, None)


def fetch(path_or_url: str, num_attempts: int = 3) -> str:
    """Return the local path of a network file.

    A file at an http(s) URL is downloaded to the cache, a .safetensors file with its JSON file. Raises as
    `dnnlib.util.fetch`.
    """
    return dnnlib.util.fetch(path_or_url, num_attempts, _beside(path_or_url))


def read_from(path_or_url: str, read: Callable[[str], _T], num_attempts: int = 3) -> _T:
    """Return the result of `read` for the network file at a path or URL.

    A copy that `read` finds `Damaged` is removed from the cache. Raises as `dnnlib.util.read_from`.
    """
    return dnnlib.util.read_from(path_or_url, read, num_attempts, _beside(path_or_url))


def _beside(path_or_url: str) -> tuple[str, ...]:
    """Return the possible names of the JSON file of a .safetensors URL, the more likely one first."""
    name = (
        urllib.parse.urlsplit(path_or_url).path.rpartition("/")[2] if dnnlib.util.is_url(path_or_url) else ""
    )
    return (
        (f"{name.removesuffix('.safetensors')}.json", "config.json") if name.endswith(".safetensors") else ()
    )


def read_trusted(path: str | os.PathLike[str]) -> NetworkFile:
    """Load a network file by running a pickle (`trusted_pickle`), without D.

    The resulting objects are pickled again, and that pickle is read.

    Raises:
        ValueError: One line about what failed.
    """
    kept = {
        key: value
        for key, value in trusted_pickle(path).items()
        if key in (*GENERATORS, "training_set_kwargs", "provenance")
    }
    try:
        content = pickle.dumps(kept, protocol=4)
    except Exception as error:  # objects of foreign classes may raise anything
        raise ValueError(
            f"{path}: its networks cannot be rewritten: {' '.join(str(error).split())[:300]}"
        ) from None
    return _from_pickle(persistence.read_network_pickle(io.BytesIO(content), strict=False), path, None)


def _from_pickle(data: Mapping[str, Any], path: str | os.PathLike[str], wanted: str | None) -> NetworkFile:
    result = NetworkFile({})
    plain = _Plain()
    if wanted is not None:
        if data.get(wanted) is None:
            raise ValueError(
                f"{path}: contains no network {wanted}; it has "
                f"{listed(k for k in data if data[k] is not None)}"
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
            f"{path}: contains neither G nor G_ema; it has {listed(k for k in data if data[k] is not None)}"
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
    """Converts values of a pickle to JSON values.

    Small tensors and arrays become numbers, tuples and sets become lists, and everything else becomes text.
    The size is limited, because a file may contain the same nested list again and again.
    """

    def __init__(self) -> None:
        self.left = MAX_PLAIN

    def __call__(self, value: Any, depth: int = 0) -> Any:
        """Convert one value.

        Raises:
            ValueError: There are too many values, or they are nested too deeply.
        """
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
    """Write a network pickle that StyleGAN tools can load.

    It has both G and G_ema, which those tools require; if one is missing, the other takes its place.
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
    """Return the JSON part of a network file."""
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
    """Write the tensors to `path` and the rest to a JSON file, by default NAME.json.

    Both files are written atomically, and after an error neither is replaced.

    Returns:
        The path of the JSON file.
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
        stream.flush()
        with dnnlib.util.atomic_write(path) as weights:
            weights.write(save(tensors, metadata={"format": "pt"}))
    return config_path


def check_free(config_path: Path, path: Path) -> None:
    """Check that the JSON file of a network to be written to `path` does not replace another file.

    That is a file of another program (such as the options of a run), or that of another network, whose
    tensors are not those at `path`.

    Raises:
        ValueError: It would replace such a file.
    """
    if config_path.exists():
        try:
            _read_config(config_path)
        except (ValueError, OSError):
            raise ValueError(
                f"{config_path} belongs to another program, and the JSON file of the network would replace "
                "it: "
                "write to another name"
            ) from None
        if not path.exists():
            raise ValueError(
                f"{config_path} describes another network, and the JSON file of {path.name} would replace "
                "it: "
                "write to another name"
            )


def config_path_of(path: str | os.PathLike[str]) -> Path:
    """Return the JSON file of a safetensors file: NAME.json, or config.json in the same folder.

    Raises:
        FileNotFoundError: There is none.
    """
    for candidate in (Path(path).with_suffix(".json"), Path(path).with_name("config.json")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{path}: {Path(path).with_suffix('.json').name} not found; the two files belong together"
    )


def read_safetensors(path: str | os.PathLike[str]) -> NetworkFile:
    """Load a network file from safetensors and JSON.

    Raises:
        FileNotFoundError: One of the files does not exist.
        ValueError: One line for files that cannot be used.
    """
    config_path = config_path_of(path)
    config = _read_config(config_path)
    tensors = _read_tensors(path)
    about = {name: config.get(name) for name in ("training_set_kwargs", "provenance", "extra")}
    if not all(value is None or isinstance(value, dict) for value in about.values()) or {
        *GENERATORS,
        *config["networks"],
    } & {*(about["extra"] or {})}:
        raise ValueError(
            f"{config_path}: training_set_kwargs, provenance and extra must be objects, extra without "
            "networks"
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
                    f"{config_path}: {key} is declared the same as {str(twin)[:40]!r}, which does not exist"
                )
            result.generators[key] = result.generators[twin]
        else:
            result.generators[key] = _build(key, network.get("kwargs"), own, path)
    if tensors or not result.generators:
        raise ValueError(
            f"{path}: {f'unexpected tensors: {listed(tensors)}' if tensors else 'it contains no generator'}"
        )
    return result


def _read_config(path: Path) -> dict[str, Any]:
    config = bounded.read_json(path, MAX_CONFIG_BYTES)
    if (
        not isinstance(config, dict)
        or config.get("format") != FORMAT
        or not isinstance(config.get("networks"), dict)
    ):
        raise ValueError(f"{path}: not the description of a network: its format is not {FORMAT!r}")
    if len(config["networks"]) > MAX_NETWORKS:
        raise ValueError(
            f"{path}: {len(config['networks'])} networks, but at most {MAX_NETWORKS} are supported"
        )
    if config.get("version") != VERSION:
        raise ValueError(
            f"{path}: version {str(config.get('version'))[:20]} of the format is not supported, only version "
            f"{VERSION}"
        )
    return config


def _read_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(os.fspath(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise dnnlib.util.Damaged(f"{path}: not a safetensors file: {str(error).splitlines()[0]}") from None


def _build(
    key: str, kwargs: Any, tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]
) -> Generator:
    """Build a generator from its arguments and tensors, which must match one to one."""
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
            warnings.simplefilter("ignore")  # about impossible sizes, which are rejected below
            generator = Generator(**kwargs)
    except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(f"{path}: {key} cannot be built: {str(error).splitlines()[0]}") from None
    expected = generator.state_dict()
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    if missing or unknown:
        raise ValueError(f"{path}: {key}: tensors missing: {listed(missing)}; unexpected: {listed(unknown)}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape or not value.is_floating_point():
            have, want = (
                f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (value, expected[name])
            )
            raise ValueError(f"{path}: {key}: {name} is {have}, not {want}")
    generator.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()}, assign=True)
    return generator.eval().requires_grad_(False)


class _Absent:
    """Placeholder for an object of a class that cannot be imported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Absent:
        return self

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _TrustingUnpickler(pickle.Unpickler):
    """Python's unpickler, except that classes that cannot be imported become placeholders.

    The classes of a discriminator are often missing and rarely needed.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, or a placeholder if it cannot be imported."""
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name.rpartition(".")[2], (_Absent,), {"__module__": module})


def trusted_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the objects of a network pickle by running the pickle.

    This executes its source code, and anything else it names, with the rights of the user. Only for
    --trust-pickle.

    Raises:
        ValueError: One line about what failed.
    """
    try:
        with persistence.trust_pickles(), open(path, "rb") as file:
            data = _TrustingUnpickler(file).load()
    except Exception as error:  # foreign code may raise anything
        raise ValueError(f"{path}: running this pickle failed: {dnnlib.util.reason(error)}") from None
    if not isinstance(data, dict):
        raise ValueError(
            f"{path}: running this pickle returned {type(data).__name__}, not a dict of networks"
        )
    return data


class ForeignMapping:
    """Calls the mapping network of another project with int64 labels."""

    def __init__(self, module: Any, c_dim: int) -> None:
        self.module, self.c_dim = module, c_dim

    def __call__(
        self, z: torch.Tensor, labels: torch.Tensor | None = None, truncation_psi: float = 1, **kwargs: Any
    ) -> torch.Tensor:
        """Return ws for latents [N, Z] and labels, int64 [N] or one-hot."""
        if labels is not None and labels.ndim == 1:
            labels = torch.nn.functional.one_hot(labels, self.c_dim).to(torch.float32)
        ws: torch.Tensor = self.module(z, labels, truncation_psi=truncation_psi, **kwargs)
        return ws


class ForeignGenerator:
    """A network that only its own code can run, with the interface of Generator that the scripts use.

    `trusted_generator` makes it.
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
        """Return the parameters of the network, from which its device can be found."""
        return iter(self.module.parameters())

    def to(self, device: torch.device | str) -> ForeignGenerator:
        """Move the network to a device. Returns self."""
        self.module.to(device)
        return self


def trusted_generator(path: str | os.PathLike[str], key: str = "G_ema") -> ForeignGenerator:
    """Return the network `key` of a pickle by running the pickle.

    Raises:
        ValueError: One line about what failed.
    """
    module = trusted_pickle(path).get(key)
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"{path}: contains no network {key}")
    try:
        return ForeignGenerator(module.eval().requires_grad_(False))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {key} is not a generator: {' '.join(str(error).split())[:200]}") from None
