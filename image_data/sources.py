# SPDX-License-Identifier: Apache-2.0
"""Where training images come from: folders, zips, the ILSVRC tree, IDX pairs, CIFAR tarballs, LSUN LMDBs, arrays in memory.

A source lists its images and labels once, in the calling process. `refs[i]` is a small picklable value that the source's `opener`
(small and picklable too) turns into the image's name and its bytes or pixels, in any process.
"""

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from image_data import archives

IDX_IMAGES_MAGIC = 0x00000803
IDX_LABELS_MAGIC = 0x00000801
MAX_IDX_BYTES = 16 * 2**30  # unpacked
MAX_CIFAR_BATCH_BYTES = 2**30
SYNSET = re.compile(r"n\d{8}")
SYNSET_NAMES = "LOC_synset_mapping.txt"
STYLEGAN_IMAGE = re.compile(r"\d{5}/img\d{8}\.[a-z]+")
LABEL_MODES = ("auto", "folders", "none")


class Opener(Protocol):
    """Turns a source's refs into (name, encoded bytes or uint8 pixels). Raises ValueError that starts with the name."""

    def load(self, ref: Any) -> tuple[str, bytes | np.ndarray]: ...


class ArchiveOpener(NamedTuple):
    """Refs are archive entries."""

    reader: archives.Reader

    def load(self, ref: archives.Entry) -> tuple[str, bytes]:
        return ref.name, self.reader.read(ref)


class ArrayOpener(NamedTuple):
    """Refs carry their pixels."""

    def load(self, ref: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
        return ref


class LmdbOpener:
    """Refs are keys. The environment is opened where it is used: LMDB's must not cross a fork."""

    def __init__(self, path: str):
        self.path = path
        self._environment: Any = None
        self._pid = -1

    def load(self, ref: bytes) -> tuple[str, bytes]:
        if self._pid != os.getpid():
            self._environment, self._pid = _open_lmdb(self.path), os.getpid()
        name = ref.decode("utf-8", "backslashreplace")
        with self._environment.begin(buffers=False) as transaction:
            data = transaction.get(ref)
        if data is None or len(data) > archives.MAX_ENTRY_BYTES:
            raise ValueError(f"{name}: missing or too large")
        return name, data

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_environment": None, "_pid": -1}


@dataclass
class Source:
    """Images with optional class indices.

    `labels` is int64 [N] or None; class c of `class_names` is label c. `metadata` is what the source knows about its own making.
    """

    name: str  # base name of the file or folder
    kind: str
    opener: Opener
    refs: Sequence[Any]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.refs)

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        if self.labels is None:
            return 0
        return len(self.class_names) if self.class_names else int(self.labels.max(initial=-1)) + 1


class _ArrayRefs(Sequence[tuple[str, np.ndarray]]):
    """Refs that carry one image's pixels each."""

    def __init__(self, images: np.ndarray):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return f"image {index}", self._images[index]


def array_source(name: str, images: np.ndarray, labels: Any = None, class_names: list[str] | None = None, kind: str = "array") -> Source:
    """A source of images in memory: uint8 [N, H, W] or [N, H, W, 3], with optional class indices [N]. Raises ValueError on other shapes."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(f"{name}: images must be uint8 [N, H, W] or [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    if labels is not None:
        labels = np.asarray(labels, dtype=np.int64)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{name}: {labels.size} labels for {len(images)} images")
        if labels.min(initial=0) < 0:
            raise ValueError(f"{name}: label {labels.min()} is negative")
        if class_names is not None and labels.max(initial=-1) >= len(class_names):
            raise ValueError(f"{name}: labels go up to {labels.max()}, but {len(class_names)} classes are named")
    return Source(name, kind, ArrayOpener(), _ArrayRefs(images), labels, class_names)


def open_source(path: str | os.PathLike[str], labels: str = "auto", class_names: list[str] | None = None) -> Source:
    """Recognise and list a source.

    Args:
        path: folder, zip, IDX image file, CIFAR tarball, LMDB folder, ILSVRC tree.
        labels: 'auto' = dataset.json if there is one, else sub-folders as classes; 'folders' = sub-folders whatever dataset.json says;
            'none' = unlabelled.
        class_names: replaces the source's own.

    Raises:
        ValueError: one line about what is wrong with the source.
    """
    path = os.fspath(path)
    if labels not in LABEL_MODES:
        raise ValueError(f"labels={labels!r}; there are {', '.join(LABEL_MODES)}")
    source = _recognise(path, labels)
    if len(source) == 0:
        raise ValueError(f"{path}: no images found; .png, .jpg, .webp, .tif, .gif, .bmp and the like are read, .heic and raw photographs are not")
    if labels == "none":
        source.labels, source.class_names = None, None
    if class_names is not None:
        if source.labels is None:
            raise ValueError(f"{path}: {len(class_names)} class names given, but the images have no labels")
        largest = int(source.labels.max())
        if largest >= len(class_names):
            raise ValueError(f"{path}: {len(class_names)} class names given, but labels go up to {largest}")
        source.class_names = class_names
    return source


def _recognise(path: str, labels: str) -> Source:
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, "data.mdb")):
            return _lmdb_source(path)
        tree = _find_synset_folder(path)
        return _ilsvrc_source(path, tree) if tree is not None else _archive_source(path, labels, "folder")
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file or folder")
    if zipfile.is_zipfile(path):
        return _archive_source(path, labels, "zip")
    if path.lower().endswith(".zip"):
        raise ValueError(f"{path}: not a readable zip file")
    magic = _idx_magic(path)
    if magic == IDX_IMAGES_MAGIC:
        return _idx_source(path, labels)
    if magic == IDX_LABELS_MAGIC:
        raise ValueError(f"{path}: an IDX file of labels; give the images file, the labels beside it are found")
    if tarfile.is_tarfile(path):
        return _cifar_source(path)
    raise ValueError(f"{path}: not a folder or zip of images, an IDX image file, a CIFAR-10/100 python tarball or an LMDB folder")


# Folders and zips of images.


def _archive_source(path: str, labels: str, kind: str) -> Source:
    archive = archives.open_archive(path)
    if archive.duplicates:
        raise ValueError(f"{path}: {archive.duplicates[0]} exists twice in the zip")
    source = Source(os.path.basename(os.path.abspath(path)), kind, ArchiveOpener(archive.reader), archive.images)
    if labels == "none" or not archive.images:
        return source
    if archive.index is not None and labels == "auto":
        index = archives.read_index(archive)
        source.labels, source.class_names, source.metadata = _index_labels(archive, index), index.class_names, index.metadata
    else:
        source.labels, source.class_names = _folder_labels(archive, labels)
    return source


def _index_labels(archive: archives.Archive, index: archives.Index) -> np.ndarray | None:
    """Labels of dataset.json in the order of the images, int64 [N]."""
    if index.labels is None:
        return None
    names = [entry.name for entry in archive.images]
    unlabelled = [name for name in names if name not in index.labels]
    if unlabelled:
        raise ValueError(f"{archive.path}: dataset.json has no label for {len(unlabelled)} of {len(names)} images, the first is {unlabelled[0]}")
    if len(index.labels) > len(names):
        present = set(names)
        absent = [name for name in index.labels if name not in present]
        raise ValueError(f"{archive.path}: dataset.json labels {len(absent)} files that are not there, the first is {absent[0]}")
    return np.array([index.labels[name] for name in names], dtype=np.int64)


def _folder_labels(archive: archives.Archive, labels: str) -> tuple[np.ndarray | None, list[str] | None]:
    """Sub-folders as classes: (int64 [N], names), or (None, None) for a flat folder or an unlabelled StyleGAN set."""
    names = [entry.name for entry in archive.images]
    if labels == "auto" and all(STYLEGAN_IMAGE.fullmatch(name) for name in names):
        return None, None
    prefix = _wrapper(archive)
    below = [name[len(prefix) :].split("/") for name in names]
    top = [parts[0] for parts in below if len(parts) > 1]
    if not top:
        return None, None
    if len(top) < len(names):
        loose = next(name for name, parts in zip(names, below, strict=True) if len(parts) == 1)
        raise ValueError(f"{archive.path}: {loose} lies beside class folders; move it into one, or use --labels=none")
    class_names = _sorted_classes(set(top))
    empty = sorted(_folders_in(archive, prefix) - set(class_names))
    if empty:
        raise ValueError(f"{archive.path}: class folder {empty[0]!r} holds no images; remove it, fill it, or use --labels=none")
    indices = {name: index for index, name in enumerate(class_names)}
    return np.array([indices[name] for name in top], dtype=np.int64), class_names


def _folders_in(archive: archives.Archive, prefix: str) -> set[str]:
    """Names of the folders directly below `prefix` ('' or ending in '/'), empty ones included."""
    return {name[len(prefix) :] for name in archive.directories if name.startswith(prefix) and "/" not in name[len(prefix) :]}


def _wrapper(archive: archives.Archive) -> str:
    """The folders around all class folders, '' or ending in '/': data/cats/1.png, data/dogs/2.png -> 'data/'; cats/1.png alone -> ''."""
    prefix = ""
    while len(folders := _folders_in(archive, prefix)) == 1:
        inner = f"{prefix}{min(folders)}/"
        if not all(entry.name.startswith(inner) and "/" in entry.name[len(inner) :] for entry in archive.images):
            break
        prefix = inner
    return prefix


def _sorted_classes(names: set[str]) -> list[str]:
    """By name; by number where every class is called by one (so that '10' does not come before '2')."""
    numbered = all(re.fullmatch("[0-9]+", name) for name in names) and len({int(name) for name in names}) == len(names)
    return sorted(names, key=int) if numbered else sorted(names)


def _find_synset_folder(path: str) -> str | None:
    """The folder of n######## folders in an ILSVRC tree, given its root or any folder on the way down."""
    candidates = ["", "train", "CLS-LOC/train", "Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/train"]
    for candidate in (os.path.join(path, *name.split("/")) if name else path for name in candidates):
        if os.path.isdir(candidate):
            folders = [entry.name for entry in os.scandir(candidate) if entry.is_dir() and not entry.name.startswith(".")]
            if folders and all(SYNSET.fullmatch(name) for name in folders):
                return candidate
    return None


def _ilsvrc_source(path: str, tree: str) -> Source:
    """Classes in synset order, named by LOC_synset_mapping.txt when it is found in the tree or above it."""
    source = _archive_source(tree, "folders", "ilsvrc")
    source.name = os.path.basename(os.path.abspath(path))
    synsets = source.class_names or []
    names = _synset_names(Path(tree).resolve())
    chosen = [names.get(synset, synset) for synset in synsets]
    counts = Counter(chosen)  # two synsets are called 'crane': keep names apart
    source.class_names = [name if counts[name] == 1 else f"{name} ({synset})" for name, synset in zip(chosen, synsets, strict=True)]
    source.metadata = {"class_ids": synsets}
    return source


def _synset_names(tree: Path) -> dict[str, str]:
    for folder in [tree, *list(tree.parents)[:4]]:
        file = folder / SYNSET_NAMES
        if file.is_file():
            pairs = (line.strip().partition(" ") for line in file.read_text(encoding="utf-8").splitlines())
            return {synset: name.strip() for synset, _, name in pairs if SYNSET.fullmatch(synset) and name}
    return {}


# IDX pairs (MNIST, Fashion-MNIST and their kin).


def _open_maybe_gzip(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


def _idx_magic(path: str) -> int:
    try:
        with _open_maybe_gzip(path) as file:
            return int.from_bytes(file.read(4), "big")
    except (OSError, EOFError):
        return 0


def _read_idx(path: str, dimensions: int) -> np.ndarray:
    """uint8 array of an IDX file, shape as its header says."""
    try:
        with _open_maybe_gzip(path) as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"{path}: not an IDX file of bytes with {dimensions} dimension(s)")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            count = int(np.prod(shape, dtype=object))
            if count > MAX_IDX_BYTES:
                raise ValueError(f"{path}: header claims {list(shape)} bytes, over the limit of {MAX_IDX_BYTES}")
            data = file.read(count + 1)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged IDX file ({error})") from None
    if len(data) != count:
        raise ValueError(f"{path}: header says {list(shape)} = {count} bytes, the file holds {'more' if len(data) > count else len(data)}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _idx_source(path: str, labels: str) -> Source:
    name = os.path.basename(path)
    images = _read_idx(path, 3)
    if labels == "none":
        return array_source(name, images, kind="idx")
    label_name = name.replace("images", "labels").replace("idx3", "idx1")
    label_path = os.path.join(os.path.dirname(path), label_name)
    alternative = label_path[:-3] if label_path.endswith(".gz") else f"{label_path}.gz"
    found = next((file for file in (label_path, alternative) if file != path and os.path.exists(file)), None)
    if found is None:
        raise ValueError(f"{path}: no labels file {label_name} beside it; put it there, or use --labels=none")
    values = _read_idx(found, 1)
    if len(values) != len(images):
        raise ValueError(f"{found}: {len(values)} labels for {len(images)} images")
    return array_source(name, images, values, [str(value) for value in range(int(values.max(initial=0)) + 1)], kind="idx")


# CIFAR-10/100, python version.


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of numpy arrays, lists and strings; a pickle that names anything else is refused, so nothing it carries can run."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_member(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, path: str) -> dict[str, Any]:
    member = members.get(name)
    if member is None or not member.isfile():
        raise ValueError(f"{path}: {name} is missing from the tarball")
    if member.size > MAX_CIFAR_BATCH_BYTES:
        raise ValueError(f"{path}: {name} claims {member.size} bytes, over the limit of {MAX_CIFAR_BATCH_BYTES}")
    file = tar.extractfile(member)
    assert file is not None  # isfile() above
    try:
        content = _ArrayUnpickler(io.BytesIO(file.read()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path}: {name} is not a CIFAR batch ({error})") from None


def _cifar_source(path: str) -> Source:
    """The training images of CIFAR-10 or CIFAR-100 (fine labels) in the published batch order, read without unpacking to disk."""
    try:
        with tarfile.open(path) as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
            if "cifar-10-batches-py/batches.meta" in members:
                kind, label_key, folder, batches = "cifar-10", "labels", "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)]
                names = _cifar_member(tar, members, f"{folder}/batches.meta", path).get("label_names")
            elif "cifar-100-python/meta" in members:
                kind, label_key, folder, batches = "cifar-100", "fine_labels", "cifar-100-python", ["train"]
                names = _cifar_member(tar, members, f"{folder}/meta", path).get("fine_label_names")
            else:
                raise ValueError(f"{path}: a tarball, but not the python version of CIFAR-10 or CIFAR-100; unpack it and give the folder")
            parts = [_cifar_member(tar, members, f"{folder}/{batch}", path) for batch in batches]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged tarball ({error})") from None
    try:
        pixels = np.concatenate([part["data"] for part in parts])
        labels = np.concatenate([part[label_key] for part in parts])
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        class_names = [name.decode() if isinstance(name, bytes) else str(name) for name in names or []]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: batches do not hold 32x32 images and {label_key} ({error})") from None
    return array_source(os.path.basename(path), np.ascontiguousarray(images), labels, class_names, kind=kind)


# LSUN.


def _open_lmdb(path: str) -> Any:
    try:
        import lmdb
    except ImportError:
        raise ValueError(f"{path}: reading LMDB needs the package lmdb: pip install 'stylesan-xl[lmdb]'") from None
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise ValueError(f"{path}: not a readable LMDB ({error})") from None


def _lmdb_source(path: str) -> Source:
    """LSUN: one category per LMDB, encoded images as values; unlabelled."""
    environment = _open_lmdb(path)
    try:
        with environment.begin(buffers=False) as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
    finally:
        environment.close()
    return Source(os.path.basename(os.path.abspath(path)), "lmdb", LmdbOpener(path), keys)
