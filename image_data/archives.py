# SPDX-License-Identifier: Apache-2.0
"""Image archives: a zip, a folder or tar shards of images, with an optional dataset.json. Without torch.

The training data set, dataset_tool.py and its checker all read archives through this module. `Archive` is the
listing, which is made once. A reader is a small picklable object that reads the bytes of one entry, from any
thread or process. Zip entries are read with positional reads (pread), so threads need no lock and forked
processes do not share a file offset.
"""

import contextlib
import functools
import io
import json
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from dnnlib import util
from image_data import parts, shards
from image_data.classes import MAX_NAMELESS_CLASSES, one_hot_length, parse_label
from image_data.entries import AGAIN, plain_name, pread_all
from image_data.entries import Entry as Entry

INDEX_NAME = "dataset.json"
CONVERTIBLE = (".parquet", ".h5", ".hdf5", ".he5", ".npz")  # sources of dataset_tool.py, not data sets
TABLE_NAMES = ("metadata.csv", "metadata.jsonl")  # of Hugging Face image folders
SYNSET_NAMES = "LOC_synset_mapping.txt"  # ImageNet's file with the class names of its n######## folders
# Formats that Pillow registers but that are not accepted: EPS runs an external program, IPTC opens any
# embedded format, FITS unpacks without a size limit, WMF works on Windows only, and the others are recognised
# but not decoded.
NOT_READ = frozenset(["BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"])
MAX_ENTRY_BYTES = 256 * 2**20  # one image file, unpacked
# Limits of dataset.json, which takes ten times its size in memory: a base size, plus a size per image (enough
# for a one-hot label of 1,500 classes), up to an absolute maximum. Lists and objects take most memory: one
# pair per image and a few in the metadata.
INDEX_BYTES, INDEX_BYTES_PER_IMAGE, MAX_INDEX_BYTES = 4 * 2**20, 8 * 2**10, 2**30
INDEX_CONTAINERS, INDEX_CONTAINERS_PER_IMAGE = 100_000, 4
MAX_ENTRY_RATIO = (
    200  # unpacked : packed size, for entries above RATIO_FLOOR_BYTES; photographs stay below 10
)
RATIO_FLOOR_BYTES = 16 * 2**20
MAX_OFFSET = 2**62  # in a zip file; system calls accept no larger offsets
ZIP_DATE = 1 << 5 | 1  # 1 January 1980, the earliest date a zip can hold
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
MAX_PIXELS = 2**27  # per source image; below Pillow's own hard limit
SYSTEM_FOLDERS = frozenset(
    ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)
_MAYBE_HIDDEN = re.compile("|".join([r"^\.", r"/\.", *map(re.escape, sorted(SYSTEM_FOLDERS))]))

# Reasons why files of an archive are skipped: the words after the count.
ENDING, MISNAMED, HIDDEN, FOLDER_LINK, CIRCLE, SPECIAL, SECOND_IMAGE = (
    "with an unsupported extension",
    "not read because of the letter case of its name (rename it to lower case)",
    "hidden or system files",
    "links to folders (use --follow-links to read them)",
    "links to a folder that contains them",
    "neither files nor folders",
    "further images of a sample",
)
LISTED = (ENDING, MISNAMED, HIDDEN, FOLDER_LINK, CIRCLE, SPECIAL, SECOND_IMAGE)
SHOWN = 4  # examples per reason


class ZipReader:
    """Reads entries of one zip file. Can be shared between threads, forked and pickled."""

    checks_content = True  # with the CRC-32 in the zip's directory

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
        """Close the file. The next read opens it again."""
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)  # type: ignore[arg-type]
            self._fd = None

    def _descriptor(self) -> int:
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd

    def read(self, entry: Entry, limit: int | None = None) -> bytes:
        """Read the bytes of an entry and check its CRC.

        Args:
            entry: the entry.
            limit: maximum size in bytes; None = that of an image.

        Raises:
            ValueError: damaged, or a zip bomb. One line without the archive's path.
        """
        check_entry_size(entry, MAX_ENTRY_BYTES if limit is None else limit)
        fd = self._descriptor()
        header = os.pread(fd, 30, entry.offset) if entry.offset < MAX_OFFSET else b""
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise ValueError(f"{entry.name}: damaged zip entry (no local header)")
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        data = pread_all(fd, entry.stored_size, entry.offset + 30 + name_size + extra_size)
        if entry.method == zipfile.ZIP_DEFLATED:
            try:
                # At most one byte more than the declared size, which may be wrong.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.size + 1)
            except zlib.error as error:
                raise ValueError(f"{entry.name}: damaged zip entry ({error})") from None
        if len(data) != entry.size or zlib.crc32(data) != entry.crc:
            raise ValueError(f"{entry.name}: damaged zip entry (size or CRC does not match the directory)")
        return data


class FolderReader:
    """Reads files in a folder. Can be shared between threads and processes."""

    checks_content = False

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)

    def close(self) -> None:
        """Do nothing: no file stays open."""
        pass

    def read(self, entry: Entry, limit: int | None = None) -> bytes:
        """Read the bytes of a file.

        Args:
            entry: the file.
            limit: maximum size in bytes; None = that of an image.

        Raises:
            ValueError: unreadable, or larger than the limit.
        """
        limit = MAX_ENTRY_BYTES if limit is None else limit
        try:
            with open(os.path.join(self.path, *entry.name.split("/")), "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise ValueError(f"{entry.name}: {error.strerror or error}") from None
        if len(data) > limit:
            raise ValueError(f"{entry.name}: larger than {limit / 2**20:.0f} MiB")
        return data


Reader = ZipReader | FolderReader | shards.ShardReader


class StoredZipWriter:
    """Writes a zip file of stored (uncompressed) entries to a binary stream, from its current position.

    The same content gives the same bytes: every entry has the earliest date that the format allows.

    The standard library's writer keeps half a kilobyte per entry in memory, which matters for millions of
    images at several resolutions. This one keeps the 73 bytes of the directory entry. It writes Zip64 if
    counts or offsets require it.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._offset = file.tell()
        self._directory = bytearray()
        self._count = 0

    def write(self, name: str, data: bytes) -> None:
        """Append one file. The caller ensures that names are unique and relative."""
        if len(data) >= 2**32:
            raise ValueError(f"{name}: {len(data)} bytes do not fit into a zip entry")
        encoded = name.encode("utf-8")
        shared = struct.pack(
            "<HHHHIIIH",
            0 if name.isascii() else 0x800,  # the name is UTF-8
            zipfile.ZIP_STORED,
            0,
            ZIP_DATE,
            zlib.crc32(data),
            len(data),
            len(data),
            len(encoded),
        )
        self._file.write(b"PK\3\4" + struct.pack("<H", 20) + shared + struct.pack("<H", 0) + encoded)
        self._file.write(data)
        far = self._offset >= 0xFFFFFFFF
        extra = struct.pack("<HHQ", 1, 8, self._offset) if far else b""
        attributes = (stat.S_IFREG | 0o644) << 16
        place = struct.pack("<HHHHII", len(extra), 0, 0, 0, attributes, 0xFFFFFFFF if far else self._offset)
        self._directory += (
            b"PK\1\2" + struct.pack("<HH", 3 << 8 | 45, 45 if far else 20) + shared + place + encoded + extra
        )
        self._offset += 30 + len(encoded) + len(data)
        self._count += 1

    def close(self) -> None:
        """Write the central directory, which completes the zip file."""
        size, offset, count = len(self._directory), self._offset, self._count
        self._file.write(self._directory)
        if count >= 0xFFFF or offset >= 0xFFFFFFFF or size >= 0xFFFFFFFF:
            self._file.write(
                b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 3 << 8 | 45, 45, 0, 0, count, count, size, offset)
            )
            self._file.write(b"PK\6\7" + struct.pack("<IQI", 0, offset + size, 1))
        count, size, offset = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(offset, 0xFFFFFFFF)
        self._file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, size, offset, 0))


class LeftOut:
    """Counts skipped files by reason, with the first examples of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, Counter[str]] = {}

    def add(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count files. `example` (an extension, a name or a folder) is printed in brackets."""
        self.counts[reason] += count
        examples = self.examples.setdefault(reason, Counter())
        if example and (example in examples or len(examples) < 100):
            examples[example] += count

    def merge(self, other: "LeftOut") -> None:
        """Add the counts of another object."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            self.examples.setdefault(reason, Counter()).update(other.examples[reason])

    def __str__(self) -> str:
        """'3 with an unsupported extension (.txt 2, .heic 1), 1 hidden or system files' or 'nothing'."""
        parts, places = [], {reason: place for place, reason in enumerate(LISTED)}
        for reason in sorted(self.counts, key=lambda reason: places.get(reason, len(LISTED))):
            count, examples = self.counts[reason], self.examples[reason]
            ranked = sorted(examples.items(), key=lambda pair: (-pair[1], pair[0]))
            shown = [name if len(examples) == 1 else f"{name} {n:,}" for name, n in ranked[:SHOWN]]
            listed = ", ".join([*shown, *(["..."] if len(examples) > SHOWN else [])])
            parts.append(f"{count:,} {reason}" + (f" ({listed})" if listed else ""))
        return ", ".join(parts) or "nothing"


@dataclass
class Archive:
    """The listing of a zip file, a folder or tar shards.

    `images` are sorted by name. `directories` are all that exist, including empty ones.
    """

    path: str
    reader: Reader
    images: list[Entry] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    duplicates: list[str] = field(default_factory=list)
    index: Entry | None = None  # dataset.json
    inner_indices: list[Entry] = field(default_factory=list)  # dataset.json files in subfolders
    misnamed: list[Entry] = field(default_factory=list)  # Dataset.json, Metadata.csv and the like
    others: list[Entry] = field(default_factory=list)  # further files that are not images or hidden
    left_out: LeftOut = field(default_factory=LeftOut)
    synset_names: Entry | None = None
    tables: list[Entry] = field(default_factory=list)  # metadata.csv and metadata.jsonl
    sample_labels: dict[str, Any] = field(default_factory=dict)  # of shards, by sample key
    prefix: str = ""  # for a part of an archive, its folder with '/' at the end; names are relative to it

    @property
    def where(self) -> str:
        """The path and the folder inside the archive, for messages."""
        return f"{self.path}: {self.prefix.rstrip('/')}" if self.prefix else self.path

    @property
    def name(self) -> str:
        """The base name without .zip or .tar, and without the braces of a pattern of shards."""
        base = os.path.basename(os.path.abspath(self.path))
        if isinstance(self.reader, shards.ShardReader):
            base = re.sub("[{}]", "", base)
        return base[:-4] if base.lower().endswith((".zip", shards.ENDING)) else base

    @property
    def container(self) -> str:
        """What the files are in, for messages."""
        return {ZipReader: "zip", FolderReader: "folder", shards.ShardReader: "shard"}[type(self.reader)]

    def twice(self, name: str) -> str:
        """The message about one of the `duplicates`."""
        return f"{name} exists twice in the {self.container}"


class Index(NamedTuple):
    """A parsed dataset.json. `labels` is None if the file has none."""

    labels: dict[str, int] | None
    num_classes: int  # 0 without labels
    class_names: list[str] | None
    metadata: dict[str, Any]
    raw: bytes


def check_entry_size(entry: Entry, limit: int) -> None:
    """Raise ValueError for a zip entry with an implausible size.

    That is: larger than `limit`, an extreme compression ratio, or stored in more bytes than its content has.
    """
    if entry.size > limit:
        raise ValueError(
            f"{entry.name}: unpacks to {entry.size / 2**20:.0f} MiB, over the limit of {limit / 2**20:.0f} "
            "MiB (zip bomb?)"
        )
    ratio = entry.size / max(entry.stored_size, 1)
    if entry.size > RATIO_FLOOR_BYTES and ratio > MAX_ENTRY_RATIO and entry.name != INDEX_NAME:
        raise ValueError(
            f"{entry.name}: unpacks to {ratio:.0f} times its stored size, over the limit of "
            f"{MAX_ENTRY_RATIO} (zip bomb?)"
        )
    if entry.stored_size > (
        entry.size if entry.method == zipfile.ZIP_STORED else entry.size + entry.size // 4 + 1024
    ):
        raise ValueError(f"{entry.name}: damaged zip entry (size or CRC does not match the directory)")


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the supported formats: those that it can open, except NOT_READ."""
    Image.init()
    return tuple(sorted(set(Image.registered_extensions().values()) & set(Image.OPEN) - NOT_READ))


@functools.cache
def image_extensions() -> frozenset[str]:
    """The file extensions of the supported formats."""
    formats = image_formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def is_image_name(name: str) -> bool:
    """Whether a file has the extension of a supported image format."""
    return os.path.splitext(name)[1].lower() in image_extensions()


def hidden_part(name: str) -> str:
    """The part of a path that marks hidden or system files (.DS_Store, __MACOSX), or ''."""
    if _MAYBE_HIDDEN.search(name) is None:
        return ""  # fast path for nearly all names
    return next((part for part in name.split("/") if part.startswith(".") or part in SYSTEM_FOLDERS), "")


def open_archive(
    path: str | os.PathLike[str],
    follow_links: bool = False,
    index: bool = False,
    label_column: str | None = None,
) -> Archive:
    """List a zip file, a folder or tar shards.

    Args:
        path: the zip file or folder; a .tar file, a brace pattern of such files, or a folder with some and
            without images.
        follow_links: follow links to folders, wherever they lead. Without it, a link out of the folder is an
            error.
        index: use the index of tar shards, and make it if it does not exist. Without it, their contents are
            not checked.
        label_column: the key of the labels in .json files of tar shards, if there is no index.

    Raises:
        ValueError: not found, not a zip file, an entry or link that leads out of the folder, an encrypted or
            unsupported zip entry, or damaged shards.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        archive = _list_folder(path, follow_links)
        has_shards = not archive.images and any(e.name.endswith(shards.ENDING) for e in archive.others)
        return (_list_shards(path, index, label_column) if has_shards else None) or archive
    if path.endswith(shards.ENDING):
        found = _list_shards(path, index, label_column)
        if found is not None:
            return found
    if not os.path.exists(path):
        raise ValueError(parts.missing(path))
    if not os.path.isfile(path):
        raise ValueError(f"{path}: neither a file nor a folder")  # reading a pipe would block
    ending = os.path.splitext(path)[1].lower()
    if ending in CONVERTIBLE:
        raise ValueError(
            f"{path}: {ending} files cannot be used directly: prepare a data set, "
            f"dataset_tool.py --source={path} --dest=NAME.zip"
        )
    return _list_zip(path)


def _list_zip(path: str) -> Archive:
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except (
        zipfile.BadZipFile,
        OSError,
        NotImplementedError,
        ValueError,
        OverflowError,
        EOFError,
        struct.error,
    ) as error:
        raise ValueError(f"{path}: not a readable zip file ({error}): {AGAIN}") from None
    archive = Archive(path, ZipReader(path))
    seen: set[str] = set()
    for info in infos:
        name = plain_name(_entry_name(info), path)
        if hidden := hidden_part(name):
            if not name.endswith("/"):
                archive.left_out.add(HIDDEN, hidden)
            continue
        if name.endswith("/"):
            archive.directories.update({name.rstrip("/")} - {""})  # "./" is the archive itself
            continue
        folder = name.rpartition("/")[0]
        while folder and folder not in archive.directories:
            archive.directories.add(folder)
            folder = folder.rpartition("/")[0]
        entry = Entry(
            name, info.file_size, info.CRC, info.header_offset, info.compress_size, info.compress_type
        )
        is_image = is_image_name(name)
        if is_image or name == INDEX_NAME:
            _check_entry(info, name, path)
            if name in seen:
                archive.duplicates.append(name)
                continue
            seen.add(name)
        if is_image:
            archive.images.append(entry)
        else:
            _sort_in(archive, entry)
    archive.images.sort()
    return archive


def _list_shards(path: str, index: bool, label_column: str | None) -> Archive | None:
    """The files of tar shards; None if there are none."""
    paths, others = shards.find(path)
    if not paths:
        return None
    found = shards.indexed(path, paths) if index else shards.listing(path, paths, label_column=label_column)
    reader = shards.ShardReader(path, paths, MAX_ENTRY_BYTES, checks_content=index)
    archive = Archive(path, reader, sample_labels=found.labels)
    for other in others:
        archive.left_out.add("shards of other splits", os.path.basename(other))
    seen: dict[str, int] = {}
    keys = {shards.sample_key(entry.name)[0] for entry in found.entries if _is_plain_image(entry.name)}
    for entry in found.entries:
        _sort_in_sample(archive, entry, keys)
        if entry.name not in seen:
            seen[entry.name] = entry.shard
        elif seen[entry.name] == entry.shard:
            archive.duplicates.append(entry.name)
        else:
            names = " and ".join(os.path.basename(paths[shard]) for shard in (seen[entry.name], entry.shard))
            raise ValueError(
                f"{path}: {entry.name} exists twice, in {names}: give one of the shards, or write them with "
                "keys that are unique"
            )
    archive.images.sort()
    return archive


def _is_plain_image(name: str) -> bool:
    return is_image_name(name) and "." not in shards.sample_key(name)[1]


def _sort_in_sample(archive: Archive, entry: Entry, keys: set[str]) -> None:
    """Add a file of a shard to the archive. `keys` are the samples with an image."""
    if hidden := hidden_part(entry.name):
        archive.left_out.add(HIDDEN, hidden)
        return
    folder = entry.name.rpartition("/")[0]
    while folder and folder not in archive.directories:
        archive.directories.add(folder)
        folder = folder.rpartition("/")[0]
    key, ending = shards.sample_key(entry.name)
    if ending in (shards.LABEL, shards.RECORD) and key in archive.sample_labels:
        return
    if is_image_name(entry.name) and "." in ending and key in keys:
        archive.left_out.add(SECOND_IMAGE, ending)
        return
    _sort_in(archive, entry)


def _check_entry(info: zipfile.ZipInfo, name: str, path: str) -> None:
    """Raise ValueError for an entry that cannot be read."""
    if info.flag_bits & 1:
        raise ValueError(f"{path}: {name} is encrypted; store the images without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{path}: {name} uses zip compression method {info.compress_type}; only stored and deflated are "
            "supported"
        )


def _entry_name(info: zipfile.ZipInfo) -> str:
    """The name that the writer of the zip file intended.

    UTF-8 if the entry's flag declares it; else Info-ZIP's Unicode name field, if it belongs to this name;
    else UTF-8 if the bytes are valid (macOS does not set the flag); else code page 437, the default of the
    zip format.
    """
    if info.flag_bits & 0x800 or (info.orig_filename.isascii() and b"\x75\x70" not in info.extra):
        return info.filename
    raw = info.orig_filename.encode("cp437")  # undo zipfile's decoding
    name = _unicode_name(info.extra, raw)
    if name is None:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = info.orig_filename
    return name.partition("\0")[0]


def _unicode_name(extra: bytes, raw: bytes) -> str | None:
    """The name in extra field 0x7075 (version 1, CRC-32 of the plain name, UTF-8), if it is valid."""
    while len(extra) >= 4:
        tag, size = struct.unpack("<HH", extra[:4])
        value, extra = extra[4 : 4 + size], extra[4 + size :]
        if tag == 0x7075 and len(value) > 5 and value[:5] == struct.pack("<BI", 1, zlib.crc32(raw)):
            with contextlib.suppress(UnicodeDecodeError):
                return value[5:].decode("utf-8")
    return None


def _sort_in(archive: Archive, entry: Entry) -> None:
    """Add a file to the right list of the archive: images, dataset.json, or files that are not used."""
    if is_image_name(entry.name):
        archive.images.append(entry)
    elif entry.name == INDEX_NAME:
        archive.index = entry
    elif entry.name.endswith(f"/{INDEX_NAME}"):
        archive.inner_indices.append(entry)
    elif entry.name.rpartition("/")[2] == SYNSET_NAMES:
        archive.synset_names = min(entry, archive.synset_names or entry, key=lambda found: len(found.name))
    elif entry.name.rpartition("/")[2] in TABLE_NAMES:
        archive.tables.append(entry)
    elif entry.name.rpartition("/")[2].lower() in (INDEX_NAME, *TABLE_NAMES):
        archive.misnamed.append(entry)
        archive.left_out.add(MISNAMED, entry.name)
    else:
        archive.others.append(entry)
        archive.left_out.add(ENDING, os.path.splitext(entry.name)[1].lower() or "none")


def _scan(root: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            yield f"{prefix}/{entry.name}" if prefix else entry.name, entry


def _list_folder(path: str, follow_links: bool) -> Archive:
    archive = Archive(path, FolderReader(path))
    real_root = os.path.realpath(path)
    # Folders to list, each with the real paths of its parents.
    pending: list[tuple[str, tuple[str, ...]]] = [("", (real_root,))]
    while pending:
        folder, around = pending.pop()
        for name, entry in _scan(path, folder):
            if hidden := hidden_part(name):
                archive.left_out.add(HIDDEN, hidden)
                continue
            is_link = entry.is_symlink()
            if is_link:
                _check_link(path, name, entry.path, None if follow_links else real_root)
            if entry.is_dir(follow_symlinks=follow_links):
                real = os.path.realpath(entry.path) if follow_links else ""
                if is_link and real in around:
                    archive.left_out.add(CIRCLE, name)
                else:
                    archive.directories.add(name)
                    pending.append((name, (*around, real) if follow_links else around))
            elif is_link and entry.is_dir():
                archive.left_out.add(FOLDER_LINK, name)
            elif entry.is_file():
                _sort_in(archive, Entry(name))
            else:
                archive.left_out.add(SPECIAL, name)
    archive.images.sort()
    return archive


def _check_link(path: str, name: str, link: str, real_root: str | None) -> None:
    """Raise ValueError for a broken link, or for one that leads out of `real_root` if given."""
    target = os.path.realpath(link)
    if os.path.exists(target) and (real_root is None or os.path.commonpath([real_root, target]) == real_root):
        return
    if os.path.exists(target):
        raise ValueError(
            f"{path}: {name} is a link that leads out of the folder ({target}); copy the files, use that "
            "folder "
            "instead, or pass --follow-links to dataset_tool.py"
        )
    raise ValueError(f"{path}: {name} is a broken link: {target} does not exist; remove the link")


def below(archive: Archive, prefix: str) -> Archive:
    """The part of an archive in the folder `prefix` (ending in '/') as its own archive; a copy for ''.

    Files outside of the folder count as skipped.
    """

    def inner(entries: Iterable[Entry]) -> list[Entry]:
        if not prefix:
            return list(entries)
        return [
            entry._replace(name=entry.name[len(prefix) :])
            for entry in entries
            if entry.name.startswith(prefix)
        ]

    indices = inner(archive.inner_indices)
    part = Archive(
        archive.path,
        FolderReader(os.path.join(archive.reader.path, prefix))
        if isinstance(archive.reader, FolderReader)
        else archive.reader,
        inner(archive.images),
        {name[len(prefix) :] for name in archive.directories if name.startswith(prefix)},
        [name[len(prefix) :] for name in archive.duplicates if name.startswith(prefix)],
        next((entry for entry in indices if entry.name == INDEX_NAME), None if prefix else archive.index),
        [entry for entry in indices if entry.name != INDEX_NAME],
        inner(archive.misnamed),
        inner(archive.others),
        synset_names=archive.synset_names,
        tables=inner(archive.tables),
        sample_labels={
            key[len(prefix) :]: value
            for key, value in archive.sample_labels.items()
            if key.startswith(prefix)
        },
        prefix=archive.prefix + prefix,
    )
    part.left_out.merge(archive.left_out)
    if prefix and archive.index is not None:
        part.left_out.add(f"{INDEX_NAME} outside {part.prefix}")
    for entry in archive.images if len(part.images) < len(archive.images) else ():
        if not entry.name.startswith(prefix):
            part.left_out.add(f"outside {part.prefix}", entry.name.partition("/")[0])
    return part


def _read_index_json(archive: Archive, where: str) -> tuple[bytes, Any]:
    """Read dataset.json, whose size must be plausible for the number of images.

    Returns:
        (the bytes, the parsed content).

    Raises:
        ValueError: too large, or not JSON.
    """
    assert archive.index is not None
    limit = min(INDEX_BYTES + INDEX_BYTES_PER_IMAGE * len(archive.images), MAX_INDEX_BYTES)
    try:
        raw = archive.reader.read(archive.index, limit)
    except ValueError as error:
        raise ValueError(f"{archive.path}: {error}") from None
    if raw.count(b"[") + raw.count(b"{") > INDEX_CONTAINERS + INDEX_CONTAINERS_PER_IMAGE * len(
        archive.images
    ):
        raise ValueError(f"{where} has too many lists and objects for {len(archive.images):,} images")
    try:
        return raw, json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None


def read_index(archive: Archive) -> Index:
    """Parse dataset.json: {"labels": [["00000/img00000000.png", 3], ...] | null, "metadata": {...}}.

    The caller checks whether the labelled files exist.

    Returns:
        The index; empty if the archive has no dataset.json or it is {}.

    Raises:
        ValueError: one line with what is malformed.
    """
    if archive.index is None:
        return Index(None, 0, None, {}, b"")
    where = f"{archive.path}: {archive.prefix}{INDEX_NAME}"
    raw, content = _read_index_json(archive, where)
    if not isinstance(content, dict):
        raise ValueError(f'{where} must be an object with "labels", not a {type(content).__name__}')
    if content and "labels" not in content:
        raise ValueError(_no_labels_key(where, list(content)))
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f'{where}: "metadata" must be an object')
    class_names = metadata.get("class_names", content.get("class_names"))
    if class_names is not None and not (
        isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)
    ):
        raise ValueError(f'{where}: "class_names" must be a list of strings')
    labels, num_classes = _parse_labels(content.get("labels"), where)
    if labels is not None and class_names is not None:
        if num_classes > len(class_names):
            raise ValueError(
                f'{where}: label {num_classes - 1} has no name: "class_names" has {len(class_names)} entries'
            )
        num_classes = len(class_names)
    elif num_classes > max(MAX_NAMELESS_CLASSES, len(archive.images)):
        raise ValueError(
            f"{where}: label {num_classes - 1} is too large: {len(archive.images):,} images without "
            '"class_names" in '
            f'"metadata" can have at most {MAX_NAMELESS_CLASSES:,} classes'
        )
    return Index(labels, num_classes, class_names, metadata, raw)


def _no_labels_key(where: str, keys: list[str]) -> str:
    """The error message for an object without "labels"."""
    near = next((key for key in keys if key.strip().lower().rstrip("s") == "label"), None)
    others = ", ".join(repr(key[:40]) for key in keys[:3]) + (", ..." if keys[3:] else "")
    found = others if near is None else repr(near)
    return (
        f'{where} has no "labels" (found {found}): write {{"labels": [["a/0.png", 0], ...]}}, or '
        '{"labels": null} for images without classes; dataset_tool.py --labels=folders and --labels=none '
        "ignore this file"
    )


def _parse_labels(pairs: Any, where: str) -> tuple[dict[str, int] | None, int]:
    """Parse the labels to (name -> class index, number of classes); (None, 0) for null or an empty list."""
    if pairs is None or (isinstance(pairs, list | dict) and not pairs):
        return None, 0
    if not isinstance(pairs, list | dict):
        raise ValueError(
            f'{where}: "labels" must be a list of [file name, class index] or null, not {str(pairs)[:40]!r}'
        )
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    labels: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(
                f'{where}: "labels" must be a list of [file name, class index], found {str(pair)[:80]}'
            )
        name = plain_name(pair[0], where)
        if name in labels:
            raise ValueError(f"{where} has two labels for {name}")
        labels[name] = parse_label(pair[1], f"{where}: label of {name}")
    return labels, max(one_hot_length((pair[1] for pair in pairs), where), max(labels.values()) + 1)


def open_image(data: bytes) -> Image.Image:
    """Open an image, which is decoded later.

    Raises:
        ValueError: not an image (with the decoder's reason), or more than MAX_PIXELS.
    """
    data = without_large_text(data)
    try:
        image = Image.open(io.BytesIO(data), formats=image_formats())
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS} pixels (decompression bomb?)") from None
    except UnidentifiedImageError:
        raise ValueError(f"not a readable image ({_refusal(data)})") from None
    except Exception as error:  # Pillow's plugins raise any exception on damaged headers
        raise ValueError(f"not a readable image ({util.reason(error)})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels (decompression bomb?)"
        )
    return image


def _refusal(data: bytes) -> str:
    """Why no decoder accepts the bytes: the error of the decoder for this format, or the first bytes."""
    if not data:
        return "the file is empty"
    for name in image_formats():
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is not None and accept(data[:16])
        except Exception:  # of a file shorter than a header
            continue
        if isinstance(accepted, str):
            return accepted
        try:
            if accepted:
                factory(io.BytesIO(data), "")
        except Exception as error:  # as in open_image
            return f"{name}: {util.reason(error)}"
    return f"unknown image format, starting with {data[:12]!r}"


def without_large_text(data: bytes) -> bytes:
    """Remove text and colour-profile chunks from a PNG that are so large that Pillow would refuse the image.

    The removed data are not used. Small chunks stay, because they may contain the orientation. Nothing is
    unpacked beyond Pillow's own limit. Other bytes are returned unchanged.
    """
    if not data.startswith(PNG_SIGNATURE):
        return data
    parts, kept, start, left = [], 0, len(PNG_SIGNATURE), PngImagePlugin.MAX_TEXT_MEMORY // 2
    while start + 12 <= len(data):
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        end = start + 12 + size
        if kind in PNG_TEXTS:
            length = _text_length(kind, memoryview(data)[start + 8 : end - 4]) if left > 0 else 0
            left -= length
            if length > PngImagePlugin.MAX_TEXT_CHUNK or left <= 0:
                parts.append(data[kept:start])
                kept = end
        start = end
    return b"".join([*parts, data[kept:]]) if parts else data


def _text_length(kind: bytes, content: memoryview) -> int:
    """The unpacked size of a PNG text or profile chunk in bytes; above Pillow's limit, any larger value."""
    head = bytes(content[: 2**16])  # contains the keyword; in iTXt also language and translated keyword
    keyword_end = head.find(b"\0")
    if (
        kind == b"tEXt"
        or keyword_end < 0
        or (kind == b"iTXt" and head[keyword_end + 1 : keyword_end + 2] != b"\1")
    ):
        return len(content)
    packed = keyword_end + 2
    if kind == b"iTXt":
        packed = head.find(b"\0", head.find(b"\0", keyword_end + 3) + 1) + 1
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(content[packed:], PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return len(content)
    return len(text) + (1 if unpacker.unconsumed_tail else 0) * PngImagePlugin.MAX_TEXT_CHUNK


def is_zip_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path has the extension .zip."""
    return Path(path).suffix.lower() == ".zip"
