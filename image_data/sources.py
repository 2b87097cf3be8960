# SPDX-License-Identifier: Apache-2.0
"""Sources of training images: folders, zips, tar shards, Parquet, arrays, and the files of known data sets.

A source lists its images and labels once, in the calling process. Each `refs[i]` is a small picklable value.
The source's `opener`, which is small and picklable too, turns it into the image's name and its bytes or
pixels in any process.
"""

import gzip
import io
import itertools
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, NoReturn, Protocol

import numpy as np

from image_data import archives, cifar, hdf5, npz, parquet, parts, shards
from image_data import labels as label_rule
from image_data.classes import Classes, check_distinct, listed
from image_data.entries import AGAIN
from image_data.streams import StreamOpener

IDX_IMAGES_MAGIC = 0x00000803
IDX_LABELS_MAGIC = 0x00000801
MAX_IDX_BYTES = 16 * 2**30  # unpacked
# unpacked : packed size, above a minimum of bytes; that of handwritten digits is 5
MAX_RATIO, RATIO_FLOOR_BYTES = 100, 16 * 2**20
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
LMDB_ENTRY_BYTES = 16  # minimum bytes of the file per key
# (kind, file with the class names, batches of training images, key of the labels, key of the class names)
CIFAR = (
    ("cifar-10", "batches.meta", [f"data_batch_{i}" for i in range(1, 6)], "labels", "label_names"),
    ("cifar-100", "meta", ["train"], "fine_labels", "fine_label_names"),
)


class Opener(Protocol):
    """Turns a ref of a source into an image."""

    def load(self, ref: Any) -> tuple[str, bytes | np.ndarray]:
        """Returns (name, encoded bytes or uint8 pixels). Raises ValueError that starts with the name."""
        ...


class ArchiveOpener(NamedTuple):
    """Reads refs that are archive entries."""

    reader: archives.Reader

    def checked_crc(self, ref: archives.Entry) -> int | None:
        """The CRC-32 with which `load` compares the whole file; None if the archive has none."""
        return ref.crc if ref.crc >= 0 else None

    def load(self, ref: archives.Entry) -> tuple[str, bytes]:
        """See `Opener.load`."""
        return ref.name, self.reader.read(ref)


class ArrayOpener(NamedTuple):
    """Returns refs that contain their pixels."""

    def load(self, ref: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
        """See `Opener.load`."""
        return ref


class LmdbOpener:
    """Reads refs that are LMDB keys. Each process opens its own environment: LMDB does not support fork."""

    def __init__(self, path: str):
        self.path = path
        self._environment: Any = None
        self._pid = -1

    def load(self, ref: bytes) -> tuple[str, bytes]:
        """See `Opener.load`."""
        if self._pid != os.getpid():
            if self._environment is not None:  # of the parent process: lmdb opens no path twice in a process
                self._environment.close()
            self._environment, self._pid = _open_lmdb(self.path), os.getpid()
        name = ref.decode("utf-8", "backslashreplace")
        with self._environment.begin(buffers=True) as transaction:
            data = transaction.get(ref)
            if data is None or len(data) > archives.MAX_ENTRY_BYTES:
                raise ValueError(f"{name}: missing or too large")
            return name, bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_environment": None, "_pid": -1}


@dataclass
class Source:
    """Images with optional class indices.

    `labels` is int64 [N] or None. Class c of `class_names` has label c. `metadata` is the information that
    the source stores about its preparation.
    """

    name: str  # the base name of the file or folder
    kind: str
    opener: Opener
    refs: Sequence[Any]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    origin: str = ""  # where the labels come from; without labels, why there are none
    left_out: archives.LeftOut = field(default_factory=archives.LeftOut)
    remark: str = ""  # with labels='none': the ambiguity that the rule would have refused
    names: Sequence[str] | None = None  # of the images, if the refs do not have them

    def __len__(self) -> int:
        return len(self.refs)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.class_names) if self.class_names else int(self.labels.max(initial=-1)) + 1


class _ArrayRefs(Sequence[tuple[str, np.ndarray]]):
    """Refs that contain the pixels of one image each."""

    def __init__(self, images: np.ndarray):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return f"image {index}", self._images[index]


def array_source(
    name: str,
    images: np.ndarray,
    labels: Any = None,
    class_names: list[str] | None = None,
    kind: str = "array",
    origin: str = "",
) -> Source:
    """Create a source from images in memory.

    Args:
        name: name of the source.
        images: uint8 [N, H, W], [N, H, W, 3] or [N, H, W, 4] (RGBA).
        labels: optional class indices [N].
        class_names: optional names of the classes.
        kind: see `Source`.
        origin: where the labels come from, for messages.

    Raises:
        ValueError: other shapes or labels.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (3, 4))):
        raise ValueError(
            f"{name}: images must be uint8 [N, H, W] or [N, H, W, 3], not {images.dtype} {list(images.shape)}"
        )
    if labels is not None:
        labels = np.asarray(labels, dtype=np.int64)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{name}: {labels.size} labels for {len(images)} images")
        if labels.min(initial=0) < 0:
            raise ValueError(f"{name}: label {labels.min()} is negative")
        if class_names is not None and labels.max(initial=-1) >= len(class_names):
            raise ValueError(
                f"{name}: the largest label is {labels.max()}, but there are only {len(class_names)} class "
                "names"
            )
    origin = origin or ("none given" if labels is None else "the given labels")
    return Source(name, kind, ArrayOpener(), _ArrayRefs(images), labels, class_names, origin=origin)


class Columns(NamedTuple):
    """The names of the columns or arrays with images and labels; None = found by the format."""

    images: str | None = None
    labels: str | None = None


def open_source(
    path: str | os.PathLike[str],
    labels: str = "auto",
    class_names: list[str] | None = None,
    subfolder: str = "",
    follow_links: bool = False,
    columns: Columns = Columns(),  # noqa: B008 immutable
) -> Source:
    """Detect the format of a source and list its images.

    Args:
        path: folder, zip, tar shards, Parquet or HDF5 files, .npz, IDX image file, CIFAR tarball, LMDB folder
            or ILSVRC tree.
        labels: where the classes come from, one of `label_rule.MODES`.
        class_names: replaces the source's class names.
        subfolder: use only this folder of a folder or zip.
        follow_links: follow links inside a folder.
        columns: the columns or arrays to use.

    Raises:
        ValueError: one line about the problem.
    """
    path = os.fspath(path)
    if labels not in label_rule.MODES:
        raise ValueError(f"--labels={labels}: choose one of {', '.join(label_rule.MODES)}")
    source = _recognise(_Request(path, labels, subfolder, follow_links, columns))
    _check_columns(source, columns)
    if len(source) == 0:
        _refuse_empty(source, path)
    if labels == "none":
        source.labels, source.class_names = None, None
    if class_names is not None:
        if source.labels is None:
            raise ValueError(
                f"{path}: {len(class_names)} class names are given, but the images have no labels"
            )
        largest = int(source.labels.max())
        if largest >= len(class_names):
            raise ValueError(
                f"{path}: {len(class_names)} class names are given, but the largest label is {largest}"
            )
        check_distinct(class_names, "--class-names")
        source.class_names = class_names
    check_distinct(source.class_names or [], f"{path}: the classes of {source.origin}")
    return source


def _refuse_empty(source: Source, path: str) -> NoReturn:
    if not isinstance(source.opener, ArchiveOpener):
        raise ValueError(f"{path}: contains no images")
    packed = any(name in PACKED for name in source.left_out.examples.get(archives.ENDING, ()))
    unpack = "unpack the archives in it; " if packed else ""
    raise ValueError(
        f"{path}: no images found; {unpack}.png, .jpg, .webp, .tif, .gif, .bmp and others are supported, "
        f".heic and raw photographs are not; left out: {source.left_out}"
    )


class _Request(NamedTuple):
    """The arguments of `open_source` that a format may use."""

    path: str
    mode: str
    subfolder: str
    follow_links: bool
    columns: Columns


def _check_columns(source: Source, columns: Columns) -> None:
    """Refuse columns of formats that have none."""
    if columns.images is not None and source.kind not in ("parquet", "hdf5", "npz"):
        raise ValueError(
            f"{source.name}: --image-column={columns.images}: the source has no columns of images"
        )
    if columns.labels is not None and source.kind not in ("parquet", "hdf5", "npz", "folder", "zip", "tar"):
        raise ValueError(
            f"{source.name}: --label-column={columns.labels}: the source has no columns of labels"
        )


def _recognise(request: _Request) -> Source:
    """Detect the format by looking at the path and the first bytes."""
    path = request.path
    if os.path.isfile(os.path.join(path, "data.mdb")):
        return _lmdb_source(path)
    if os.path.isdir(path):
        return _archive_source(request, "folder")
    if parts.is_pattern(path, shards.ENDING):
        return _archive_source(request, "tar")
    if parts.is_pattern(path, parquet.ENDING):
        return _parquet_source(request)
    if not os.path.exists(path):
        raise ValueError(parts.missing(path))
    if not os.path.isfile(path):
        raise ValueError(f"{path}: neither a file nor a folder")  # reading a pipe would block
    return _recognise_file(request)


def _recognise_file(request: _Request) -> Source:
    path, ending = request.path, os.path.splitext(request.path)[1].lower()
    if ending == ".npz":
        return _npz_source(request)
    if ending == parquet.ENDING:
        return _parquet_source(request)
    if ending in hdf5.ENDINGS:
        return _hdf5_source(request)
    if zipfile.is_zipfile(path):
        return _archive_source(request, "zip")
    if ending == ".zip":
        raise ValueError(f"{path}: not a readable zip file: {AGAIN}")
    if shards.find(path)[0]:
        return _archive_source(request, "tar")
    if request.subfolder:
        raise ValueError(f"--subfolder={request.subfolder}: {path} is neither a folder nor a zip")
    return _packed_file_source(path, request.mode)


def _packed_file_source(path: str, mode: str) -> Source:
    """The source of a file that is not a zip: IDX or CIFAR."""
    magic = _idx_magic(path)
    if magic == IDX_IMAGES_MAGIC:
        return _idx_source(path, mode)
    if magic == IDX_LABELS_MAGIC:
        raise ValueError(
            f"{path}: an IDX file of labels; give the images file, the labels beside it are found"
        )
    with open(path, "rb") as file:
        if cifar.is_tar(file):
            return _cifar_source(path, *cifar.open_tar(path, file))
    raise ValueError(
        f"{path}: not a folder or zip of images, tar shards, Parquet, .npz, HDF5, an IDX image file, a "
        "CIFAR-10/100 python tarball or an LMDB folder"
    )


def _npz_source(request: _Request) -> Source:
    found = npz.find(request.path, *request.columns)
    npz.check(found.rows)
    count = len(found.rows)
    origin = found.label_array or f"the file has no {npz.LABELS} with classes"
    source = Source(_base_name(request.path), "npz", npz.Opener(found.rows), range(count), origin=origin)
    return _with_classes(source, found.classes)


def _hdf5_source(request: _Request) -> Source:
    found = hdf5.open_images(request.path, *request.columns)
    origin = found.label_array or "the file has no labels"
    source = Source(_base_name(request.path), "hdf5", StreamOpener(), found.refs, origin=origin)
    return _with_classes(source, found.classes)


def _parquet_source(request: _Request) -> Source:
    images, labels = request.columns
    found = parquet.open_images(request.path, images, labels, use_labels=request.mode != "none")
    origin = f"the column {found.label_column}" if found.label_column else "there is no column of labels"
    source = Source(_base_name(request.path), "parquet", StreamOpener(), found.refs, origin=origin)
    source.names = found.names
    for name in found.others:
        source.left_out.add("files of other splits", os.path.basename(name))
    return _with_classes(source, found.classes)


def _with_classes(source: Source, found: Classes | None) -> Source:
    if found is None:
        return source
    source.labels, source.class_names = found.labels, found.class_names
    if found.class_names is None and found.num_classes > found.labels.max(initial=-1) + 1:
        # One-hot labels also count classes without images.
        source.class_names = [str(label) for label in range(found.num_classes)]
    return source


def _base_name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


# Folders and zips of images.


def _archive_source(request: _Request, kind: str) -> Source:
    path = request.path
    archive = archives.open_archive(path, request.follow_links, label_column=request.columns.labels)
    if archive.duplicates:
        raise ValueError(f"{path}: {archive.twice(archive.duplicates[0])}")
    if not archive.images:
        packed = _packed_source(archive, request)
        return packed or Source(
            archive.name, kind, ArchiveOpener(archive.reader), [], left_out=archive.left_out
        )
    found = label_rule.label(archive, request.mode, request.subfolder, request.columns.labels)
    part = found.archive
    if isinstance(archive.reader, shards.ShardReader):
        kind = "tar"
    source = Source(_base_name(path), found.kind or kind, ArchiveOpener(part.reader), part.images)
    classes = None if found.labels is None else Classes(found.labels, found.num_classes, found.class_names)
    source = _with_classes(source, classes)
    source.metadata = found.metadata
    source.origin, source.left_out, source.remark = found.origin, part.left_out, found.remark
    return source


def _packed_source(archive: archives.Archive, request: _Request) -> Source | None:
    """The source in a folder or zip without images: CIFAR's batches or tarball, IDX, an LMDB, Parquet.

    None if nothing is recognised.
    """
    members = {entry.name: entry for entry in archive.others}
    path = archive.path
    databases = sorted(os.path.dirname(name) for name in members if name.endswith("/data.mdb"))
    if databases and not isinstance(archive.reader, archives.FolderReader):
        raise ValueError(
            f"{path}: contains the LMDB {databases[0]}, which cannot be read from a {archive.container}: "
            "unpack it "
            "and give the folder"
        )
    if len(databases) > 1:
        raise ValueError(
            f"{path}: contains {len(databases)} LMDBs ({listed(databases)}): select one, "
            f"--source={os.path.join(path, databases[0])}"
        )
    if databases:
        return _lmdb_source(os.path.join(path, databases[0]))
    if isinstance(archive.reader, archives.FolderReader) and parquet.find(path)[0]:
        return _parquet_source(request)
    return _known_set(archive, request.mode)


def _known_set(archive: archives.Archive, mode: str) -> Source | None:
    """CIFAR or an IDX pair in a folder or zip; None if nothing is recognised."""
    members = {entry.name: entry for entry in archive.others}
    path, read = archive.path, archive.reader.read
    tarball = next(
        (name for name in members if re.fullmatch(r"cifar-100?-python\.tar\.gz", name.rpartition("/")[2])),
        None,
    )
    if tarball is not None:
        where = f"{path}: {tarball}"
        return _cifar_source(where, *cifar.open_tar(where, io.BytesIO(read(members[tarball]))))
    if _find_cifar(members) is not None:
        return _cifar_source(path, members, read)
    images = [name for name in members if re.search(r"images[-.]idx3-ubyte(\.gz)?$", name)]
    training = [name for name in images if "train" in name.rpartition("/")[2]] or images
    if not training:
        return None
    if len(training) > 1:
        raise ValueError(
            f"{path}: contains {len(training)} IDX files of images ({listed(sorted(training))}): "
            "give one of them"
        )

    def opened(name: str) -> IO[bytes] | None:
        return io.BytesIO(read(members[name])) if name in members else None

    source = _idx_pair(f"{path}: ", training[0], opened, mode)
    for name in set(images) - set(training):
        source.left_out.add("of the test split", name)
    return source


# IDX pairs (MNIST, Fashion-MNIST and similar sets).


def _maybe_gzip(file: IO[bytes]) -> IO[bytes]:
    """The stream from its start, unpacked if it is packed with gzip."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[return-value]


def _open_idx(path: str) -> IO[bytes] | None:
    """Open a file; None if it does not exist."""
    return open(path, "rb") if os.path.isfile(path) else None


def _idx_magic(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return int.from_bytes(_maybe_gzip(file).read(4), "big")
    except (OSError, EOFError):
        return 0


def _read_idx(where: str, file: IO[bytes], dimensions: int) -> np.ndarray:
    """Read the uint8 array of an IDX stream.

    Args:
        where: the file, for error messages.
        file: the stream, plain or packed with gzip.
        dimensions: expected number of dimensions.

    Raises:
        ValueError: not such a file, damaged, or larger than the size of the stream allows.
    """
    most = MAX_RATIO * file.seek(0, os.SEEK_END) + RATIO_FLOOR_BYTES
    file.seek(0)
    try:
        with _maybe_gzip(file) as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"{where}: not an IDX file of bytes with {dimensions} dimension(s)")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            count = int(np.prod(shape, dtype=object))
            if count > MAX_IDX_BYTES:
                raise ValueError(
                    f"{where}: the header declares {list(shape)} bytes, over the limit of {MAX_IDX_BYTES}"
                )
            if count > most:
                raise ValueError(
                    f"{where}: the header declares {list(shape)} = {count} bytes, but the file has less than "
                    f"{most // MAX_RATIO}"
                )
            data = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: damaged IDX file ({error}): {AGAIN}") from None
    if len(data) != count:
        raise ValueError(
            f"{where}: the header declares {list(shape)} = {count} bytes, but the file contains "
            f"{'more' if len(data) > count else len(data)}: {AGAIN}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _idx_source(path: str, mode: str) -> Source:
    return _idx_pair("", path, _open_idx, mode)


def _idx_pair(where: str, path: str, opened: Callable[[str], IO[bytes] | None], mode: str) -> Source:
    """Read IDX images and the labels beside them.

    Args:
        where: prefix of names in error messages.
        path: the file of images.
        opened: opens a file by name, and returns None if it does not exist.
        mode: see `label_rule.label`.
    """
    folder, name = os.path.split(path)
    file = opened(path)
    assert file is not None
    images = _read_idx(f"{where}{path}", file, 3)
    if mode == "none":
        return array_source(name, images, kind="idx", origin="as requested")
    label_name = name.replace("images", "labels").replace("idx3", "idx1")
    # Some zips have a folder around each file.
    folders = dict.fromkeys([folder, folder.replace("images", "labels").replace("idx3", "idx1")])
    places = [os.path.join(inside, label_name) for inside in folders]
    places += [place[:-3] if place.endswith(".gz") else f"{place}.gz" for place in places]
    found, file = next(
        ((place, file) for place in places if place != path and (file := opened(place)) is not None),
        ("", None),
    )
    if file is None:
        raise ValueError(
            f"{where}{path}: the labels file {label_name} is not beside it; add it, or use --labels=none"
        )
    values = _read_idx(f"{where}{found}", file, 1)
    if len(values) != len(images):
        raise ValueError(f"{where}{found}: {len(values)} labels for {len(images)} images")
    class_names = [str(value) for value in range(int(values.max(initial=0)) + 1)]
    return array_source(name, images, values, class_names, kind="idx", origin=os.path.basename(found))


# CIFAR-10/100, python version.


def _find_cifar(members: Iterable[str]) -> tuple[str, tuple[str, str, list[str], str, str]] | None:
    """Find the files of CIFAR.

    Returns:
        (their folder, '' or ending in '/', the item of `CIFAR`), or None.
    """
    known = set(members)
    for variant in CIFAR:
        _, meta, batches, _, _ = variant
        for name in sorted((name for name in known if name == meta or name.endswith(f"/{meta}")), key=len):
            folder = name[: -len(meta)]
            if any(f"{folder}{batch}" in known for batch in batches):
                return folder, variant
    return None


def _cifar_source(path: str, members: Mapping[str, Any], read: Callable[[Any], bytes]) -> Source:
    """The training images of CIFAR-10 or CIFAR-100 (fine labels) in the published order of batches.

    Args:
        path: the tarball, folder or zip, for error messages.
        members: its files by name.
        read: reads the bytes of a member.
    """
    found = _find_cifar(members)
    if found is None:
        raise ValueError(
            f"{path}: not the python version of CIFAR-10 or CIFAR-100; if it is a tarball of images, unpack "
            "it and give "
            "the folder"
        )
    folder, (kind, meta, batches, label_key, names_key) = found
    missing = next((batch for batch in batches if f"{folder}{batch}" not in members), None)
    if missing is not None:
        raise ValueError(f"{path}: {folder}{missing} is missing")
    names, *parts = (
        cifar.batch(f"{path}: {folder}{name}", read(members[f"{folder}{name}"])) for name in (meta, *batches)
    )
    pixels, values = (
        np.concatenate(arrays)
        for arrays in zip(*(cifar.images(path, part, label_key) for part in parts), strict=True)
    )
    class_names = cifar.class_names(path, names.get(names_key))
    source = array_source(
        os.path.basename(path), pixels, values, class_names, kind=kind, origin=f"{label_key} of {folder}"
    )
    for name in ("test_batch", "test"):
        if f"{folder}{name}" in members:
            source.left_out.add("of the test split", f"{folder}{name}")
    return source


# LSUN.


def _lmdb_module(path: str) -> Any:
    try:
        import lmdb
    except ImportError:
        raise ValueError(f"{path}: reading LMDB needs the package lmdb: pip install lmdb") from None
    return lmdb


def _open_lmdb(path: str) -> Any:
    lmdb = _lmdb_module(path)
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise ValueError(f"{path}: not a readable LMDB ({error})") from None


def _lmdb_source(path: str) -> Source:
    """An LSUN category: one LMDB with encoded images as values, without labels."""
    environment = _open_lmdb(path)
    try:
        with environment.begin(buffers=False) as transaction:
            most = os.path.getsize(os.path.join(path, "data.mdb")) // LMDB_ENTRY_BYTES
            keys = list(itertools.islice(transaction.cursor().iternext(keys=True, values=False), most + 1))
    except _lmdb_module(path).Error as error:
        raise ValueError(f"{path}: damaged LMDB ({error})") from None
    finally:
        environment.close()
    if len(keys) > most:
        raise ValueError(f"{path}: damaged LMDB (its pages form a loop)")
    return Source(
        os.path.basename(os.path.abspath(path)), "lmdb", LmdbOpener(path), keys, origin="an LMDB has none"
    )
