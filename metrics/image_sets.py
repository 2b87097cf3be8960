# SPDX-License-Identifier: Apache-2.0
"""Image sets that metrics read: generated images, a data set's images, image files of any size and kind.

A source is called with sample indices and returns uint8 images [N, 3, R, R].
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dnnlib.progress import Progress
from image_data import archives, labels, sources, transforms
from torch_utils import images, rng

# Not the seed of the latents: numbers of different seeds share one subset of the real images.
REAL_SUBSET_SEED = 0
_PREPARATION_KEYS = ("crop", "filter", "background", "resolution")  # must agree to compare two sets
_SNIFFED_FILES = 64  # files of a set whose first bytes are read to find its encodings
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
LOSSY = ("JPEG", "WebP")


class ImageSource(Protocol):
    """uint8 images by sample index."""

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Images [N, 3, R, R] of N samples."""
        ...


class GeneratedImages:
    """Images of a generator, quantised to 8 bits. Latent and label of sample i depend on (seed, i) alone.

    Args:
        generator: (z, labels) -> images in [-1, 1], with z_dim and c_dim.
        seed: Of latents and labels.
        device: Of the generator.
        label_counts: Images of each class of the data set, from which labels are drawn; None = evenly.
        resolution: Images of another one are refused; None = any.

    Raises:
        ValueError: The generator and the counts have different numbers of classes.
    """

    def __init__(
        self,
        generator: Any,
        seed: int,
        device: torch.device,
        label_counts: np.ndarray | None,
        resolution: int | None,
    ) -> None:
        self.generator = generator
        self.seed = seed
        self.device = device
        self.resolution = resolution
        self.num_classes = int(getattr(generator, "c_dim", 0))
        self._cumulative: np.ndarray | None = None
        if self.num_classes and label_counts is not None:
            if len(label_counts) != self.num_classes:
                raise ValueError(
                    f"the generator has {self.num_classes} classes, the data set {len(label_counts)}: use "
                    "--labels=uniform"
                )
            self._cumulative = np.cumsum(label_counts, dtype=np.float64)

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """int64 [N] on the CPU, or None for an unconditional generator."""
        if not self.num_classes:
            return None
        if self._cumulative is None:
            return rng.integers(self.seed, "metrics/label", 0, indices, self.num_classes)
        position = (
            rng.uniform(self.seed, "metrics/label", 0, indices).numpy().astype(np.float64)
            * self._cumulative[-1]
        )
        return torch.from_numpy(np.searchsorted(self._cumulative, position, side="right").astype(np.int64))

    def latents(self, indices: Sequence[int], purpose: str = "metrics/z") -> Tensor:
        """float32 [N, z_dim] on the device."""
        return rng.normal(self.seed, purpose, 0, indices, (self.generator.z_dim,)).to(self.device)

    def identity(self) -> dict[str, Any]:
        """JSON values: what latents and labels depend on."""
        drawn = None if self._cumulative is None else hashlib.sha256(self._cumulative.tobytes()).hexdigest()
        return {
            "seed": self.seed,
            "classes": self.num_classes,
            "labels": drawn,
            "resolution": self.resolution,
        }

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Images [N, 3, R, R]. Raises ValueError for NaN, Inf and images of another resolution."""
        z = self.latents(indices)
        labels = self.labels(indices)
        with torch.no_grad():
            x = self.generator(z, None if labels is None else labels.to(self.device))
        if not torch.isfinite(x).all():
            bad = int(torch.isfinite(x).flatten(1).all(dim=1).logical_not().nonzero()[0])
            raise ValueError(
                f"the generator returned NaN or Inf for sample {indices[bad]} (seed {self.seed})"
            )
        if self.resolution is not None and x.shape[-1] != self.resolution:
            sizes = (
                f"the generator makes images of {x.shape[-1]} pixels, the data set holds {self.resolution}"
            )
            raise ValueError(f"{sizes}; use --force to compare them")
        return images.to_uint8(x)


class RealImages:
    """Images of a data set without copies: all of them, or a seeded random subset in the order of the set.

    Args:
        dataset: [i] -> (uint8 [3, R, R], label), with len() and name.
        count: Size of the subset; None = all.

    Raises:
        ValueError: The data set has fewer than 2 images.
    """

    def __init__(self, dataset: Any, count: int | None = None) -> None:
        self.dataset = dataset
        flips = 2 if getattr(dataset, "xflip", False) else 1
        total = getattr(dataset, "num_originals", len(dataset) // flips)
        self.num_images = total
        if total < 2:
            raise ValueError(f"{dataset.name}: metrics need at least 2 images, the data set has {total}")
        if count is None or count >= total:
            self.indices = np.arange(total)
        else:
            self.indices = np.sort(rng.permutation(REAL_SUBSET_SEED, "metrics/real", 0, total)[:count])

    def __len__(self) -> int:
        return len(self.indices)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Images [N, 3, R, R]."""
        return torch.from_numpy(np.stack([self.dataset[int(self.indices[i])][0] for i in indices]))

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """int64 [N], or None for a set without labels."""
        details = getattr(self.dataset, "get_details", None)
        if details is None or not getattr(self.dataset, "has_labels", False):
            return None
        return torch.tensor([details(int(self.indices[i])).raw_label for i in indices])

    def view(self) -> str:
        """Hash of which archive entries the indices mean: data sets can be opened as a subset."""
        details = getattr(self.dataset, "get_details", None)
        entries = (
            self.indices if details is None else np.array([details(int(i)).raw_index for i in self.indices])
        )
        return hashlib.sha256(np.ascontiguousarray(entries, np.int64).tobytes()).hexdigest()[:16]

    def subset_seed(self) -> int | None:
        """Seed of the random subset; None where every image is taken."""
        return REAL_SUBSET_SEED if len(self) < self.num_images else None


class ImageFiles:
    """Images of any size and kind as an image set, from any source of dataset_tool.py.

    Each image is turned upright and made 8-bit RGB: grey values in all three channels, transparency laid on
    white. An image that is not resolution x resolution becomes its largest centred square, resized with
    Lanczos, as by `dataset_tool.py --transform=center-crop`. `adapted` counts the images that were changed.

    Args:
        path: Of the images.
        resolution: Of the images that are returned; None = the shorter side of the first image.

    Raises:
        ValueError: One line; while reading, it names the image.
    """

    TRANSFORM = "upright 8-bit RGB, transparency on white; other sizes: largest centred square, lanczos"

    def __init__(self, path: str | os.PathLike[str], resolution: int | None = None) -> None:
        self.path = os.fspath(path)
        is_npz = self.path.lower().endswith(".npz")
        self._source = sources.open_source(path, labels="auto" if is_npz else "none")
        self.name = self._source.name
        self.has_labels = self._source.labels is not None
        remark = self._source.origin if is_npz else self._source.remark
        self.labels_summary = labels.summary(
            self._source.num_classes, remark or "none are used", self._source.left_out
        )
        self.statistics: Any = None  # of metrics.statistics_file, where an .npz file has them, too
        self.metadata: dict[str, Any] = {}
        self.adapted: Counter[str] = Counter()
        self.resolution = resolution or min(self._decode(0).size)
        self._hash: str | None = None

    def __len__(self) -> int:
        return len(self._source)

    def label_distribution(self) -> np.ndarray:
        """Images of each class, int64 [classes]; of a source with labels."""
        assert self._source.labels is not None
        return np.bincount(self._source.labels, minlength=self._source.num_classes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """(uint8 [3, R, R], label or -1)."""
        image = self._decode(int(index))
        label = -1 if self._source.labels is None else int(self._source.labels[index])
        size = (self.resolution, self.resolution)
        if image.size != size:
            self.adapted["cropped"] += image.width != image.height
            self.adapted["enlarged" if min(image.size) < self.resolution else "reduced"] += (
                min(image.size) != self.resolution
            )
            preparation = transforms.Preparation((size,), "center-crop")
            square = transforms.transform(image, size, preparation)
            assert square is not None
            image = square
        return np.asarray(image).transpose(2, 0, 1), label

    def _decode(self, index: int) -> PIL.Image.Image:
        name = f"image {index}"
        try:
            name, payload = self._source.opener.load(self._source.refs[index])
            return transforms.decode(payload)
        except ValueError as error:
            reason = str(error) if str(error).startswith(name) else f"{name}: {error}"
            raise ValueError(f"{self.path}: {reason}") from None

    def content_hash(self) -> str:
        """sha256 (hex) over every image's name, size and CRC-32.

        A zip or .npz has them in its directory; other sources are read once.
        """
        if self._hash is None:
            digest = hashlib.sha256()
            fingerprint = getattr(self._source.opener, "fingerprint", None)
            if fingerprint is not None:
                self._hash = hashlib.sha256(fingerprint().encode()).hexdigest()
                return self._hash
            progress = Progress(label=f"Reading {self.path} for its hash", silent=5)
            for done, ref in enumerate(self._source.refs, 1):
                if isinstance(ref, archives.Entry) and ref.crc >= 0:
                    name, size, crc = ref.name, ref.size, ref.crc
                else:
                    name, payload = self._source.opener.load(ref)
                    data = payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).tobytes()
                    size, crc = len(data), zlib.crc32(data)
                    progress(done, len(self))
                digest.update(f"{name}\0{size}\0{crc}\n".encode(errors="surrogateescape"))
            self._hash = digest.hexdigest()
        return self._hash

    def first_bytes(self, count: int) -> list[bytes]:
        """The first bytes of at most `count` files, evenly spaced over the set; none for raw pixels."""
        places = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        payloads = (self._source.opener.load(self._source.refs[i])[1] for i in places)
        return [payload[:16] for payload in payloads if isinstance(payload, bytes)]


def encodings(dataset: Any) -> list[str]:
    """The encodings of a set's files (["JPEG", "PNG"]), by the first bytes of some; empty if unknown."""
    first_bytes = getattr(dataset, "first_bytes", None)
    found = [] if first_bytes is None else first_bytes(_SNIFFED_FILES)
    known = {kind for data in found for magic, kind in _MAGIC.items() if data.startswith(magic)}
    return sorted(known)


def lossy_difference(a: Any, b: Any) -> str | None:
    """A warning if one of two image sets has a lossy encoding and the other has not; None otherwise."""
    lossy = [{kind for kind in encodings(dataset) if kind in LOSSY} for dataset in (a, b)]
    known = [bool(encodings(dataset)) for dataset in (a, b)]
    if not all(known) or bool(lossy[0]) == bool(lossy[1]):
        return None
    compressed, other = (a, b) if lossy[0] else (b, a)
    return (
        f"{compressed.name} holds {', '.join(sorted(lossy[0] | lossy[1]))} files, {other.name} does not: "
        "the loss of the compression moves the numbers; save both without loss (PNG)"
    )


def preparation(dataset: Any) -> dict[str, Any]:
    """How a data set's images were prepared, as far as it is known, and their resolution."""
    found = preparation_from(getattr(dataset, "metadata", None) or {}, dataset.resolution)
    if (channels := getattr(dataset, "num_channels", 3)) != 3:
        found["channels"] = channels
    if kinds := encodings(dataset):
        found["encodings"] = kinds
    transform = getattr(dataset, "TRANSFORM", None)
    return {**found, "transform": transform} if transform else found


def preparation_from(metadata: Mapping[str, Any], resolution: int | None) -> dict[str, Any]:
    """Crop, filter, background (below transparent images) and source, from a data set's metadata."""
    known = {key: metadata.get(key) for key in ("filter", "background", "source")}
    return {"crop": metadata.get("crop", metadata.get("transform")), **known, "resolution": resolution}


def preparation_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """['filter lanczos against box', ...] for what both sides have and have differently."""
    pairs = ((key, a.get(key), b.get(key)) for key in _PREPARATION_KEYS)
    return [f"{key} {x} against {y}" for key, x, y in pairs if x is not None and y is not None and x != y]


def require_same_preparation(
    what: str, a: Mapping[str, Any], b: Mapping[str, Any], force: bool = False
) -> None:
    """Raises ValueError if two image sets were prepared differently.

    A difference in preparation moves FID by more than methods differ.
    """
    differences = preparation_differences(a, b)
    if differences and not force:
        reasons = "; ".join(differences)
        raise ValueError(
            f"{what} were prepared differently ({reasons}), which moves the number: prepare both alike, or "
            "use --force"
        )
