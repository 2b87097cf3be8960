# SPDX-License-Identifier: Apache-2.0
"""Image archives: a zip file or a folder of images, with an optional dataset.json, read without torch.

The data set, the data set tool and its checker all look at archives through this file. Reading is split in two: `Archive` is the
listing (made once), a reader is a small picklable object that fetches one entry's bytes from any thread or process. Zip entries
are fetched with positional reads, so that threads need no lock and forked processes do not fight over one file offset.
"""

import io
import json
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image

INDEX_NAME = "dataset.json"
IMAGE_EXTENSIONS = frozenset(
    [".avif", ".bmp", ".gif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"]
)
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")  # raster only: EPS would start a program
MAX_ENTRY_BYTES = 256 * 2**20  # one image file, unpacked
MAX_INDEX_BYTES = 4 * 2**30  # dataset.json of millions of images
MAX_CLASSES = 2**24  # a larger label is a mistake, and would be allocated for
MAX_ENTRY_RATIO = 200  # unpacked : packed, from RATIO_FLOOR_BYTES on; photographs stay below 10
RATIO_FLOOR_BYTES = 16 * 2**20
ZIP_DATE = 1 << 5 | 1  # 1 January 1980, the earliest date a zip can hold
MAX_PIXELS = 2**27  # of one source image; below PIL's own hard limit


class Entry(NamedTuple):
    """One file of an archive. Folders know only the name; `crc`, `size` and the rest come from a zip's central directory."""

    name: str
    size: int = -1  # bytes, unpacked
    crc: int = -1
    offset: int = 0  # of the local header
    stored_size: int = 0
    method: int = zipfile.ZIP_STORED


class ZipReader:
    """Fetches entries of one zip file; safe to share between threads, across fork, and to pickle."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._fd: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)  # type: ignore[arg-type]
            self._fd = None

    def _descriptor(self) -> int:
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd

    def read(self, entry: Entry) -> bytes:
        """The entry's bytes, its CRC checked. Raises ValueError (one line, without the archive's path) on damage or a zip bomb."""
        check_entry_size(entry)
        fd = self._descriptor()
        header = os.pread(fd, 30, entry.offset)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise ValueError(f"{entry.name}: damaged zip entry (no local header)")
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        data = _pread_all(fd, entry.stored_size, entry.offset + 30 + name_size + extra_size)
        if entry.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.size + 1)  # the header's word is not taken for the size
            except zlib.error as error:
                raise ValueError(f"{entry.name}: damaged zip entry ({error})") from None
        if len(data) != entry.size or zlib.crc32(data) != entry.crc:
            raise ValueError(f"{entry.name}: damaged zip entry (size or CRC differs from the directory)")
        return data


class FolderReader:
    """Fetches files below one folder; safe to share between threads and processes."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)

    def close(self) -> None:
        pass

    def read(self, entry: Entry) -> bytes:
        """The file's bytes. Raises ValueError when it cannot be read or is larger than an image may be."""
        limit = MAX_INDEX_BYTES if entry.name == INDEX_NAME else MAX_ENTRY_BYTES
        try:
            with open(os.path.join(self.path, *entry.name.split("/")), "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise ValueError(f"{entry.name}: {error.strerror or error}") from None
        if len(data) > limit:
            raise ValueError(f"{entry.name}: larger than {limit // 2**20} MiB")
        return data


Reader = ZipReader | FolderReader


class StoredZipWriter:
    """Writes a zip of stored (uncompressed) files to a binary stream, from its current position on, byte-identically for the same content.

    The standard library's writer keeps an object of half a kilobyte per entry, which a data set of millions of images, at several
    resolutions, feels; this one keeps the 73 bytes of the directory record. Zip64 where counts or offsets ask for it. The date is
    that of the epoch of zip files: a real one would make every run's bytes differ.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._offset = file.tell()
        self._directory = bytearray()
        self._count = 0

    def write(self, name: str, data: bytes) -> None:
        """Append one file. The caller sees to it that names are ASCII, unique and relative."""
        if len(data) >= 2**32:
            raise ValueError(f"{name}: {len(data)} bytes do not fit into a zip entry")
        encoded = name.encode("ascii")
        shared = struct.pack("<HHHHIIIH", 0, zipfile.ZIP_STORED, 0, ZIP_DATE, zlib.crc32(data), len(data), len(data), len(encoded))
        self._file.write(b"PK\3\4" + struct.pack("<H", 20) + shared + struct.pack("<H", 0) + encoded)
        self._file.write(data)
        far = self._offset >= 0xFFFFFFFF
        extra = struct.pack("<HHQ", 1, 8, self._offset) if far else b""
        attributes = (stat.S_IFREG | 0o644) << 16
        place = struct.pack("<HHHHII", len(extra), 0, 0, 0, attributes, 0xFFFFFFFF if far else self._offset)
        self._directory += b"PK\1\2" + struct.pack("<HH", 3 << 8 | 45, 45 if far else 20) + shared + place + encoded + extra
        self._offset += 30 + len(encoded) + len(data)
        self._count += 1

    def close(self) -> None:
        """Write the directory. Without it the file is no zip."""
        size, offset, count = len(self._directory), self._offset, self._count
        self._file.write(self._directory)
        if count >= 0xFFFF or offset >= 0xFFFFFFFF or size >= 0xFFFFFFFF:
            self._file.write(b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 3 << 8 | 45, 45, 0, 0, count, count, size, offset))
            self._file.write(b"PK\6\7" + struct.pack("<IQI", 0, offset + size, 1))
        count, size, offset = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(offset, 0xFFFFFFFF)
        self._file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, size, offset, 0))


@dataclass
class Archive:
    """What a zip or folder holds. `images` are sorted by name; `directories` are those that exist, empty or not."""

    path: str
    reader: Reader
    images: list[Entry] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    duplicates: list[str] = field(default_factory=list)
    index: Entry | None = None  # dataset.json

    @property
    def name(self) -> str:
        """Base name without .zip."""
        base = os.path.basename(os.path.abspath(self.path))
        return base[:-4] if base.lower().endswith(".zip") else base


class Index(NamedTuple):
    """A parsed dataset.json. `labels` is None when the file has none."""

    labels: dict[str, int] | None
    num_classes: int  # 0 without labels
    class_names: list[str] | None
    metadata: dict[str, Any]
    raw: bytes


def _pread_all(fd: int, count: int, offset: int) -> bytes:
    """Positional read of `count` bytes: one system call moves at most 2 GiB and may stop early."""
    parts = []
    while count > 0:
        part = os.pread(fd, min(count, 2**30), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_entry_size(entry: Entry) -> None:
    """Refuse zip entries no image could have: too large, or unpacking to absurdly more than is stored."""
    limit = MAX_INDEX_BYTES if entry.name == INDEX_NAME else MAX_ENTRY_BYTES
    if entry.size > limit:
        raise ValueError(f"{entry.name}: unpacks to {entry.size / 2**20:.0f} MiB, over the limit of {limit // 2**20} MiB (zip bomb?)")
    ratio = entry.size / max(entry.stored_size, 1)
    if entry.size > RATIO_FLOOR_BYTES and ratio > MAX_ENTRY_RATIO and entry.name != INDEX_NAME:
        raise ValueError(f"{entry.name}: unpacks to {ratio:.0f} times its stored size, over the limit of {MAX_ENTRY_RATIO} (zip bomb?)")


def check_name(name: str, where: str) -> str:
    """Forward slashes; ValueError for a path that is absolute or climbs out of the archive `where`."""
    clean = name.replace("\\", "/")
    if clean.startswith("/") or (".." in clean and ".." in clean.split("/")) or clean[1:2] == ":" or "\0" in clean:
        raise ValueError(f'{where}: entry {name!r} leaves the folder: absolute paths and ".." are refused')
    return clean


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _is_hidden(name: str) -> bool:
    """Left by file browsers: dot files, macOS resource forks."""
    path = f"/{name}/"
    return "/." in path or "/__MACOSX/" in path


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """List a zip file or a folder.

    Raises:
        ValueError: not there, not a zip, an entry or link that leaves the folder, an encrypted or unsupported zip entry.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return _list_folder(path)
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file or folder")
    return _list_zip(path)


def _list_zip(path: str) -> Archive:
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a readable zip file ({error})") from None
    archive = Archive(path, ZipReader(path))
    seen: set[str] = set()
    for info in infos:
        name = check_name(info.filename, path)
        if _is_hidden(name):
            continue
        if info.is_dir():
            archive.directories.add(name.rstrip("/"))
            continue
        folder = name.rpartition("/")[0]
        while folder and folder not in archive.directories:
            archive.directories.add(folder)
            folder = folder.rpartition("/")[0]
        entry = Entry(name, info.file_size, info.CRC, info.header_offset, info.compress_size, info.compress_type)
        if not (is_image_name(name) or name == INDEX_NAME):
            continue
        if info.flag_bits & 1:
            raise ValueError(f"{path}: {name} is encrypted; store the images without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{path}: {name} uses zip compression method {info.compress_type}; only stored and deflated are supported")
        if name in seen:
            archive.duplicates.append(name)
            continue
        seen.add(name)
        if name == INDEX_NAME:
            archive.index = entry
        else:
            archive.images.append(entry)
    archive.images.sort()
    return archive


def _scan(root: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            yield f"{prefix}/{entry.name}" if prefix else entry.name, entry


def _list_folder(path: str) -> Archive:
    archive = Archive(path, FolderReader(path))
    real_root = os.path.realpath(path)
    pending = [""]
    while pending:
        for name, entry in _scan(path, pending.pop()):
            if _is_hidden(name):
                continue
            if entry.is_symlink() and not _stays_inside(real_root, entry.path):
                raise ValueError(
                    f"{path}: {name} is a link that leaves the folder or leads nowhere ({os.path.realpath(entry.path)}); "
                    "copy the files, or name that folder instead"
                )
            if entry.is_dir(follow_symlinks=False):
                archive.directories.add(name)
                pending.append(name)
            elif name == INDEX_NAME:
                archive.index = Entry(name)
            elif is_image_name(name) and stat.S_ISREG(entry.stat().st_mode):
                archive.images.append(Entry(name))
    archive.images.sort()
    return archive


def _stays_inside(real_root: str, path: str) -> bool:
    target = os.path.realpath(path)
    return os.path.exists(target) and os.path.commonpath([real_root, target]) == real_root


def read_index(archive: Archive) -> Index:
    """Parse dataset.json: {"labels": [["00000/img00000000.png", 3], ...] | null, "metadata": {...}}; an empty Index without one.

    Whether the labelled files exist is the caller's to check. Raises ValueError with one line about what is malformed.
    """
    if archive.index is None:
        return Index(None, 0, None, {}, b"")
    where = f"{archive.path}: {INDEX_NAME}"
    try:
        raw = archive.reader.read(archive.index)
    except ValueError as error:
        raise ValueError(f"{archive.path}: {error}") from None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f'{where} must be an object with "labels", not a {type(content).__name__}')
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f'{where}: "metadata" must be an object')
    class_names = metadata.get("class_names")
    if class_names is not None and not (isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)):
        raise ValueError(f'{where}: "class_names" must be a list of strings')
    labels, num_classes = _parse_labels(content.get("labels"), where)
    if labels is not None and class_names is not None:
        if num_classes > len(class_names):
            raise ValueError(f'{where}: label {num_classes - 1} has no name, "class_names" has {len(class_names)}')
        num_classes = len(class_names)
    return Index(labels, num_classes, class_names, metadata, raw)


def _parse_labels(pairs: Any, where: str) -> tuple[dict[str, int] | None, int]:
    """(name -> class index, number of classes); (None, 0) for null or an empty list."""
    if not pairs:
        return None, 0
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    labels: dict[str, int] = {}
    num_classes = 0
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f'{where}: "labels" must be a list of [file name, class index], found {str(pair)[:80]}')
        name = check_name(pair[0], where)
        if name in labels:
            raise ValueError(f"{where} labels {name} twice")
        labels[name] = parse_label(pair[1], f"{where}: label of {name}")
        num_classes = max(num_classes, len(pair[1]) if isinstance(pair[1], list) else labels[name] + 1)
    return labels, num_classes


def parse_label(value: Any, where: str) -> int:
    """A class index from an int, an integral float or a one-hot list. Raises ValueError for -1, 2.5, all-zero and soft labels."""
    if isinstance(value, list):
        if not all(isinstance(item, int | float) for item in value) or sorted(value)[:-1] != [0] * (len(value) - 1) or max(value, default=0) != 1:
            raise ValueError(f"{where} is {str(value)[:60]}, a list that is not one-hot; class indices are needed")
        return value.index(1)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= MAX_CLASSES or not float(value).is_integer():
        raise ValueError(f"{where} is {value!r}; a class index (0, 1, ...) is needed")
    if value < 0:
        raise ValueError(f'{where} is {value}, which means "unknown"; every image needs a class index')
    return int(value)


def open_image(data: bytes) -> Image.Image:
    """A lazily decoded raster image. Raises ValueError when the bytes are none, or claim more than MAX_PIXELS."""
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS} pixels (decompression bomb?)") from None
    except Exception as error:  # PIL's format plugins raise anything on damaged headers
        raise ValueError(f"not a readable image ({type(error).__name__})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels (decompression bomb?)")
    return image


def is_zip_path(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".zip"
