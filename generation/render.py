# SPDX-License-Identifier: Apache-2.0
"""Load a trained network, and turn latents and classes into images and class sheets."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse
from weakref import WeakKeyDictionary

import click
import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from dnnlib import bounded
from dnnlib.records import read_json
from torch_utils import images
from torch_utils.devices import PRECISIONS
from training.data import class_names
from training.data.dataset import ImageDataset, Unlabelled
from training.generator import Generator
from training.networks import files, hub, stems

T = TypeVar("T")
# Of each mapping network: address and version of its weights, and their hash.
_mapping_hashes: WeakKeyDictionary[torch.nn.Module, tuple[list[tuple[str, int, int]], str]] = (
    WeakKeyDictionary()
)
FEW_CLASSES = 5  # an error message lists up to this many
SHOWN_CLASSES = 20  # and so many if no name is similar


@dataclasses.dataclass
class Network:
    """A generator and the information in its file."""

    path: str
    G: Any  # a Generator, or with --trust-pickle maybe a files.ForeignGenerator, which has the same interface
    training_set_kwargs: dict[str, Any]
    provenance: dict[str, Any]
    class_names: list[str] | None
    sha256: str | None = None  # of the file
    edits: Any = None  # the attached generation.edits.Edits

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        device: torch.device = next(self.G.parameters()).device
        return device

    def label_text(self, index: int) -> str:
        """'3 sad', or '3' without class names."""
        return class_names.label_text(index, self.class_names)


def load_network(
    path_or_url: str,
    device: torch.device | str = "cpu",
    data: str | None = None,
    key: str = "G_ema",
    trust_pickle: bool = False,
    precision: str = "auto",
) -> Network:
    """Load a network without running code from its file.

    Class names come from the data set `data` if given, else from the file, else from the training data set
    that the file names, if it still exists.

    Args:
        path_or_url: network pickle, run folder (its best network), .safetensors file with its .json, or
            hf://OWNER/NAME.
        device: where to put the network.
        data: data set with class names.
        key: which network of the file to load.
        trust_pickle: if a pickle cannot be read otherwise, run its code and use the network with that code.
        precision: number format of the layers marked for reduced precision, auto or a key of
            `torch_utils.devices.PRECISIONS`.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read or downloaded.
        ValueError: the file is not a network file. One line.
    """
    is_choice = False
    if hub.is_repository(path_or_url):
        sha256, contents = hub.read_from(path_or_url, _hashed(files.read_safetensors))
    else:
        path_or_url = dnnlib.util.plain_path(path_or_url)
        if Path(path_or_url).is_dir():
            path_or_url, is_choice = stems.network_in("--network", path_or_url), True
        if not dnnlib.util.is_url(path_or_url) and not Path(path_or_url).is_file():
            raise FileNotFoundError(f"--network: no such file: {path_or_url}")
        try:
            sha256, contents = files.read_from(path_or_url, _hashed(lambda path: files.read(path, key=key)))
        except ValueError:
            if not trust_pickle:
                raise
            warn_trusted(path_or_url)
            if precision != "auto":
                raise ValueError(
                    f"--precision={precision}: {path_or_url} runs its own code, which chooses the precision"
                ) from None
            trusted = _hashed(lambda path: files.trusted_generator(path, key))
            sha256, foreign = files.read_from(path_or_url, trusted)
            names = _class_names(foreign.c_dim, data, {}, {})
            return Network(path_or_url, foreign.to(device), {}, {}, names, sha256)
    if is_choice:
        click.echo(f"Network: {stems.network_summary(path_or_url, contents.provenance)}", err=True)
    G = contents.only(key).generators[key].to(device)
    set_precision(G, precision)
    kwargs, provenance = contents.training_set_kwargs or {}, contents.provenance or {}
    names = _class_names(G.c_dim, data, kwargs, provenance)
    return Network(path_or_url, G, kwargs, provenance, names, sha256)


def _hashed(read: Callable[[str], T]) -> Callable[[str], tuple[str, T]]:
    """Extend a reader of paths to return (SHA-256 of the file, result)."""
    return lambda path: (dnnlib.util.sha256_file(path), read(path))


def set_precision(G: Generator, precision: str) -> None:
    """Set what the layers marked for reduced precision compute in, for the device that they are on."""
    if precision != "auto":
        G.synthesis.reduced_dtype = PRECISIONS[precision]
    elif next(G.parameters()).device.type != "cuda" and G.synthesis.reduced_dtype == torch.float16:
        G.synthesis.reduced_dtype = None  # as in the published code, float16 is only used on GPUs


def warn_trusted(path: str) -> None:
    """Print a warning when --trust-pickle takes effect."""
    click.echo(
        f"warning: --trust-pickle runs the code in {path}, which can do anything that you can do on this "
        "machine",
        err=True,
    )


def _class_names(
    num_classes: int, data: str | None, kwargs: dict[str, Any], provenance: dict[str, Any]
) -> list[str] | None:
    if not num_classes:
        return None
    if data is not None:
        try:
            names = ImageDataset(data, use_labels=True).class_names
        except Unlabelled as error:
            raise ValueError(f"--data={error.problem}: name a data set with the network's classes") from None
        if names is not None and len(names) != num_classes:
            raise ValueError(
                f"--data={data}: the data set has {len(names)} classes, but the network has {num_classes}"
            )
        return names
    names = provenance.get("class_names")
    trained_on = kwargs.get("path")
    if names is None and isinstance(trained_on, str) and os.path.exists(trained_on):
        try:
            names = ImageDataset(trained_on, use_labels=True).class_names
        except (ValueError, OSError):
            names = None  # the data set is not required
    fits = (
        isinstance(names, list) and len(names) == num_classes and all(isinstance(name, str) for name in names)
    )
    return names if fits else None


def class_index(network: Network, text: str) -> int:
    """The index of a class.

    Args:
        network: the network.
        text: an index, or a class name.

    Raises:
        ValueError: no such class; the message names the closest class names.
    """
    num_classes = network.G.c_dim
    if not num_classes:
        raise ValueError(f"class {text!r}: {network.path} is unconditional and has no classes")
    text = text.strip()
    if text.isdecimal():
        if int(text) >= num_classes:
            raise ValueError(f"class {text}: the network's classes are 0 to {num_classes - 1}")
        return int(text)
    if re.fullmatch(r"\d+\s*([-,]\s*\d+\s*)+", text):
        raise ValueError(f"class {text!r}: only one class is possible here; use --classes for several")
    if network.class_names is None:
        raise ValueError(
            f"class {text!r}: {network.path} has no class names; give an index from 0 to "
            f"{num_classes - 1}, or --data with a data set that has names"
        )
    by_name = {_folded(name): index for index, name in reversed(list(enumerate(network.class_names)))}
    if _folded(text) not in by_name:
        raise ValueError(f"unknown class {text!r}; {_near_classes(text, network, by_name)}")
    return by_name[_folded(text)]


def _folded(name: str) -> str:
    """Normalise a name: ignore case and Unicode encodings of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _near_classes(text: str, network: Network, by_name: dict[str, int]) -> str:
    """'the classes are 0 cat, 1 dog' if they are few, else the most similar names, else the first ones.

    Names that contain `text` come first, then names with a similar spelling.
    """
    names = network.class_names or []
    wanted = _folded(text)
    holding = sorted((name for name in by_name if wanted and wanted in name), key=lambda name: by_name[name])
    near = (holding or difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.6))[:3]
    if not near or len(names) <= FEW_CLASSES:
        if names == [str(index) for index in range(len(names))]:
            return f"the classes are 0 to {len(names) - 1}"
        shown = ", ".join(network.label_text(index) for index in range(min(len(names), SHOWN_CLASSES)))
        return f"the classes are {shown}" + (
            f", ... (0 to {len(names) - 1})" if names[SHOWN_CLASSES:] else ""
        )
    listed = ", ".join(f"{names[by_name[name]]!r} ({by_name[name]})" for name in near)
    return f"the closest of {len(names)} names {'is' if len(near) == 1 else 'are'} {listed}"


def class_indices(network: Network, text: str) -> list[int]:
    """Parse a list of classes: '0,3-5,cat' -> [0, 3, 4, 5, index of cat]; 'all' = every class.

    Names may contain hyphens. Raises ValueError like `class_index`.
    """
    if text.strip() == "all" and network.G.c_dim:
        return list(range(network.G.c_dim))
    indices: list[int] = []
    for entry in text.split(","):
        if entry.strip().replace("-", "").isdecimal():
            indices += [class_index(network, str(value)) for value in dnnlib.util.parse_int_list(entry)]
        else:
            indices.append(class_index(network, entry))
    return indices


def load_centroids(path: str, w_dim: int) -> Tensor:
    """Load cluster centres in W, float32 [K, w_dim], from a .npy file or URL.

    Raises:
        ValueError: the file does not contain such an array.
        OSError: the file cannot be read or downloaded.
    """
    try:
        centroids = dnnlib.util.read_from(path, bounded.read_npy)
    except ValueError as error:
        raise ValueError(f"--centroids-path={error}") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--centroids-path={path}: {error.strerror or error}") from None
    if (
        centroids.dtype.kind not in "iuf"
        or centroids.ndim != 2
        or centroids.shape[1] != w_dim
        or not len(centroids)
    ):
        raise ValueError(
            f"--centroids-path={path}: expected numbers [K, {w_dim}], got {centroids.dtype} "
            f"{list(centroids.shape)}"
        )
    if not np.isfinite(centroids).all():
        raise ValueError(f"--centroids-path={path}: contains NaN or Inf")
    return torch.from_numpy(centroids.astype(np.float32))


def mapping_sha256(G: Any) -> str:
    """A hash of the weights of the mapping network, which all stages of a network share.

    The average of w is not part of it: other code updates it in later stages, too. The hash is computed again
    only if the weights have changed: the viewer asks for it with every picture.
    """
    parameters = sorted(G.mapping.named_parameters())
    state = [(name, value.data_ptr(), value._version) for name, value in parameters]
    known, found = _mapping_hashes.get(G.mapping, (None, ""))
    if known != state:
        digest = hashlib.sha256()
        for name, value in parameters:
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        found = digest.hexdigest()
        _mapping_hashes[G.mapping] = state, found
    return found


def check_centroids(path: str, G: Any) -> None:
    """Warn about centres that are of another mapping network, as far as a NAME.json beside them says so."""
    found = read_json(Path(path).with_suffix(".json")).get("mapping_sha256")
    readable = hasattr(G.mapping, "named_parameters")  # not of a network that runs its own code
    if isinstance(found, str) and readable and found != mapping_sha256(G):
        click.echo(
            f"warning: --centroids-path={path} was computed with the mapping network of another network",
            err=True,
        )


def styles(
    G: Generator, z: Tensor, labels: Tensor | None, truncation: float = 1, centroids: Tensor | None = None
) -> Tensor:
    """Map latents to style codes with truncation.

    Args:
        G: the generator.
        z: latents [N, Z].
        labels: int64 [N], or None.
        truncation: psi; 1 = none.
        centroids: truncate towards the nearest of these [K, W] (Mokady et al. 2022); None = the mean of the
            class.

    Returns:
        ws [N, num_ws, W].
    """
    if centroids is None:
        truncated: Tensor = G.mapping(z, labels, truncation_psi=truncation)
        return truncated
    ws: Tensor = G.mapping(z, labels)
    centroids = centroids.to(ws.device)
    nearest = centroids[(ws[:, :1] - centroids).square().sum(dim=2).argmin(dim=1)][:, None, :]  # [N, 1, W]
    return nearest.lerp(ws, truncation)


def set_transform(G: Generator, translate: tuple[float, float] = (0, 0), rotate: float = 0) -> None:
    """Rotate and then shift the content of all later images.

    The matrix of the input layer maps positions of the output to positions of the content, so it is set to
    the inverse of this motion.

    Args:
        G: the generator.
        translate: shift right and down, as fractions of the image width.
        rotate: degrees anticlockwise.

    Raises:
        ValueError: the network has no input layer that supports this.
    """
    if not hasattr(G.synthesis, "input"):
        if (*translate, rotate) != (0, 0, 0):
            raise ValueError(
                "--translate and --rotate are not supported by this network: it has no StyleGAN3 input layer"
            )
        return
    angle = np.deg2rad(rotate)
    motion = np.array(
        [
            [np.cos(angle), np.sin(angle), translate[0]],
            [-np.sin(angle), np.cos(angle), translate[1]],
            [0, 0, 1],
        ]
    )
    G.synthesis.input.transform.copy_(torch.from_numpy(np.linalg.inv(motion).astype(np.float32)))


@torch.no_grad()
def synthesize(network: Network, ws: Tensor, noise_mode: str = "const") -> Tensor:
    """Compute uint8 images [N, C, R, R] on the CPU from ws [N, num_ws, W].

    Raises:
        ValueError: the network returns NaN or Inf.
    """
    x = network.G.synthesis(ws, noise_mode=noise_mode)
    if not torch.isfinite(x).all():
        raise ValueError(f"{network.path}: the network returned NaN or Inf")
    return images.to_uint8(x).cpu()


@torch.no_grad()
def render(
    network: Network,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    truncation: float = 1,
    centroids: Tensor | None = None,
    noise_mode: str = "const",
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Compute uint8 images [N, C, R, R] on the CPU from latents.

    Matrix products round differently for different numbers of rows. So on CPUs, where it costs little, images
    are computed one at a time.

    Args:
        network: the network.
        z: latents [N, Z].
        labels: int64 [N], or None.
        truncation: see `styles`.
        centroids: see `styles`.
        noise_mode: passed to the network.
        batch: images computed at a time on a GPU.
        done: called with n after every n images.
    """
    size = 1 if network.device.type == "cpu" else batch
    parts = []
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        c = None if labels is None else labels[rows].to(network.device)
        parts.append(
            synthesize(
                network, styles(network.G, z[rows].to(network.device), c, truncation, centroids), noise_mode
            )
        )
        done(len(parts[-1]))
    return torch.cat(parts)


def latents(seed: int, count: int, z_dim: int) -> Tensor:
    """The latents of a seed as in the published code: float32 [count, z_dim] of RandomState(seed).randn."""
    return torch.from_numpy(np.random.RandomState(seed).randn(count, z_dim).astype(np.float32))


def seed_labels(network: Network, seed: int, count: int, index: int | None) -> Tensor | None:
    """The classes of a seed, int64 [count]: `index`, or RandomState(seed).randint(0, c_dim, count).

    None for an unconditional network.
    """
    if not network.G.c_dim:
        return None
    if index is not None:
        return torch.full([count], index, dtype=torch.int64)
    return torch.from_numpy(np.random.RandomState(seed).randint(0, network.G.c_dim, count).astype(np.int64))


def class_sheet(
    network: Network,
    classes: Sequence[int],
    seeds: Sequence[int],
    columns: int | None = None,
    scale: int = 1,
    **render_kwargs: Any,
) -> Any:
    """Generate len(seeds) images of each class as a PIL image, with the classes of each row as its label.

    Image (class, seed) is the image of `--class=CLASS --seeds=SEED`.

    Args:
        network: the network.
        classes: the classes.
        seeds: the seeds.
        columns: images per row; None = one class per row.
        scale: magnify the images by this factor. Small ones are magnified anyway, for the labels.
        render_kwargs: see `render`.
    """
    z = torch.cat([latents(seed, 1, network.G.z_dim) for seed in seeds]).repeat(len(classes), 1)
    labels = torch.tensor(classes, dtype=torch.int64).repeat_interleave(len(seeds))
    pixels = render(network, z, labels, **render_kwargs)
    columns = columns or len(seeds)
    rows = [torch.unique_consecutive(row).tolist() for row in torch.split(labels, columns)]
    labels_of_rows = [_row_label(network, inside) for inside in rows]
    smallest = 24 if scale == 1 else network.G.img_resolution * scale
    return images.labelled_grid(pixels, labels_of_rows, columns, smallest)


def _row_label(network: Network, classes: Sequence[int]) -> str:
    """The classes in one row of a sheet: '3 sad', '3 sad to 5 red', '3 sad, 1 grey'."""
    texts = [network.label_text(index) for index in classes]
    span = len(texts) > 2 and list(classes) == list(range(classes[0], classes[-1] + 1))
    return f"{texts[0]} to {texts[-1]}" if span else ", ".join(texts)


def about(
    network: Network,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    *,
    truncation: float = 1,
    centroids_path: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The metadata of a picture's file (`images.save_png`).

    Args:
        network: the network.
        seeds: the seeds.
        classes: classes of the images in reading order, or of a sheet's rows; None without classes.
        truncation: psi.
        centroids_path: file of the centroids.
        more: further entries.
    """
    name = network.class_names[classes[0]] if network.class_names and classes and len(classes) == 1 else None
    return {
        "network": network.path if hub.is_repository(network.path) else _file_name(network.path),
        "network_sha256": network.sha256,
        **_counted("seed", "seeds", seeds),
        **_counted("class", "classes", classes),
        "class_name": name,
        "truncation": truncation,
        "centroids": _file_name(centroids_path) if centroids_path else None,
        **more,
    }


def _file_name(path_or_url: str) -> str:
    """The last part of a path or URL. The rest may contain private information, such as a token."""
    return os.path.basename(urlparse(path_or_url).path if dnnlib.util.is_url(path_or_url) else path_or_url)


def _counted(one: str, several: str, numbers: Sequence[int] | None) -> dict[str, Any]:
    if not numbers:
        return {}
    return {one: numbers[0]} if len(numbers) == 1 else {several: list(numbers)}
