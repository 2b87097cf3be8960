# SPDX-License-Identifier: Apache-2.0
"""Tar shards, as webdataset reads them: listing, labels, reads at any position, and an index of them.

The files of a shard with the same name up to the first dot are one sample: 000123.jpg, 000123.cls or
000123.json. Class indices or names are in the .cls file, or in the .json file under one of LABEL_COLUMNS.

Listing reads the headers. The index also has a CRC-32 of every image, so that each read is checked. It is
made once, beside the shards or in the cache folder.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from dnnlib import bounded, trust, util
from dnnlib.locks import file_lock
from dnnlib.progress import Progress
from image_data import parts
from image_data.classes import LABEL_COLUMNS
from image_data.entries import AGAIN, Entry, check_name, plain_name, pread_all

ENDING = ".tar"
LABEL, RECORD = "cls", "json"  # extensions of the files with labels
DATA_SET = "dataset.json"  # labels of all images: no record of a sample
INDEX_VERSION = 1
MAX_OPEN = 256  # shards that a reader keeps open; a process may often have only 1,024 files
_BLOCK_BYTES = 512  # of the tar format
_READ_BYTES = 2**20
_SAMPLE_BYTES = 2**16  # of a shard, read to recognise it
_MAX_HEADER_BYTES = 2**20
_MAX_LABEL_BYTES, _MAX_RECORD_BYTES = 4096, 2**20
_MAX_INDEX_BYTES = 2**34
_UNPACK = "; if each has the images of one class, unpack each into a folder of its name"
_T = TypeVar("_T")


class Listing(NamedTuple):
    """The files of some shards. `labels` are the values of the .cls or .json files by sample key."""

    shards: list[str]  # paths
    entries: list[Entry]
    labels: dict[str, Any]


class ShardReader:
    """Reads entries of shards. Can be shared between threads, forked and pickled.

    Args:
        path: the folder, shard or pattern, for messages.
        shards: paths of the shards; `Entry.shard` is an index of it.
        limit: maximum size of an entry in bytes.
        checks_content: the entries have a CRC-32.
    """

    def __init__(self, path: str, shards: Sequence[str], limit: int, checks_content: bool):
        self.path, self.shards, self.limit, self.checks_content = path, list(shards), limit, checks_content
        self._fds: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"args": (self.path, self.shards, self.limit, self.checks_content)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["args"])  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards. The next read opens them again."""
        for fd in self.__dict__.pop("_fds", {}).values():
            os.close(fd)
        self._fds = {}

    def _pread(self, entry: Entry) -> bytes:
        fd = self._fds.get(entry.shard)
        if fd is None:
            with self._lock:
                if entry.shard not in self._fds and len(self._fds) < MAX_OPEN:
                    self._fds[entry.shard] = os.open(self.shards[entry.shard], os.O_RDONLY)
                fd = self._fds.get(entry.shard)
        if fd is not None:
            return pread_all(fd, entry.size, entry.offset)
        with open(self.shards[entry.shard], "rb", buffering=0) as file:
            return pread_all(file.fileno(), entry.size, entry.offset)

    def read(self, entry: Entry, limit: int | None = None) -> bytes:
        """Read the bytes of an entry, and compare them with its CRC-32 if the index has one.

        Args:
            entry: the entry.
            limit: maximum size in bytes; None = that of an image.

        Raises:
            ValueError: too large, cut off, or different from the index. One line without the path.
        """
        limit = self.limit if limit is None else limit
        if entry.size > limit:
            raise ValueError(f"{entry.name}: larger than {limit / 2**20:.0f} MiB")
        shard = self.shards[entry.shard]
        try:
            data = self._pread(entry)
        except OSError as error:
            raise ValueError(f"{entry.name}: {shard}: {error.strerror or error}") from None
        if len(data) != entry.size or (entry.crc >= 0 and zlib.crc32(data) != entry.crc):
            raise ValueError(
                f"{entry.name}: {shard} has changed since it was listed, or is damaged (its size or CRC does "
                "not match)"
            )
        return data


def find(path: str) -> tuple[list[str], list[str]]:
    """The shards of a path, and those of other splits that are left out.

    Args:
        path: a .tar file, a brace pattern of such files, or a folder with some.

    Returns:
        (paths of the shards; paths of the shards of other splits); two empty lists if there are none.

    Raises:
        ValueError: a shard of the pattern is missing, two have the same name, or the folder has several sets.
    """
    if parts.is_pattern(path, ENDING):
        found = parts.files(path)
        names = Counter(map(os.path.basename, found))
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:  # the index and copies know shards by their names
            raise ValueError(
                f"{path}: several shards are named {twice}: rename them, or give those of one folder"
            )
        return sorted(found), []
    if os.path.isfile(path):
        return ([path], []) if path.endswith(ENDING) and not _is_packed(path) else ([], [])
    found = parts.in_folder(path, ENDING) if os.path.isdir(path) else []
    return parts.training_set(path, found, _UNPACK) if found else ([], [])


def _is_packed(path: str) -> bool:
    """Whether a file is compressed with gzip or bzip2, such as CIFAR's tarballs."""
    with open(path, "rb") as file:
        return file.read(2) in (b"\x1f\x8b", b"BZ")


def sample_key(name: str) -> tuple[str, str]:
    """The sample of a file and the rest of its name: 'a/1.seg.png' -> ('a/1', 'seg.png')."""
    folder, slash, base = name.rpartition("/")
    stem, _, rest = base.partition(".")
    return f"{folder}{slash}{stem}", rest.lower()


def listing(
    where: str, shards: Sequence[str], checked: bool = False, label_column: str | None = None
) -> Listing:
    """List the files of shards from their headers.

    Args:
        where: the folder, shard or pattern, for messages.
        shards: paths of the shards.
        checked: also read the contents, for their CRC-32.
        label_column: the key of the labels in .json files; None = .cls files, or one of LABEL_COLUMNS.

    Raises:
        ValueError: a shard is damaged or ends early.
    """
    found = Listing(list(shards), [], {})
    labels = _Labels((label_column,) if label_column else LABEL_COLUMNS, label_column is None)
    progress = Progress(label=f"Listing {where}", unit="shards", silent=5)
    for number, shard in enumerate(shards):
        try:
            with open(shard, "rb") as file:
                _list_shard(file, shard, number, found, labels, checked)
        except OSError as error:
            raise ValueError(f"{shard}: {error.strerror or error}") from None
        progress(number + 1, len(shards))
    found.labels.update(labels.of_records | labels.of_files)
    return found


class _Headers:
    """The stream that tarfile reads headers from. It reads as much at once as a header claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.tell, self.seek = file, file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _list_shard(
    file: IO[bytes], shard: str, number: int, found: Listing, labels: "_Labels", checked: bool
) -> None:
    before, end = len(found.entries), 0
    try:
        with _headers(lambda: tarfile.open(fileobj=_Headers(file), mode="r:")) as tar:  # type: ignore[call-overload]
            while (info := _headers(tar.next)) is not None:
                tar.members.clear()  # which would keep every header in memory
                if info.isreg() and not info.issparse():
                    name = plain_name(info.name, shard)
                    crc = _checksum(file, info) if checked else -1
                    entry = Entry(name, info.size, crc, info.offset_data, info.size, shard=number)
                    found.entries.append(entry)
                    labels.take(file, shard, entry)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: {_ends_early(len(found.entries) - before)} ({error})") from None
    file.seek(end)
    if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
        raise ValueError(f"{shard}: {_ends_early(len(found.entries) - before)} (no end-of-archive block)")


def _headers(read: Callable[[], _T]) -> _T:
    """Read headers. A damaged one raises TarError, whatever tarfile raises."""
    try:
        return read()
    except (ValueError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(str(error)) from None


def _ends_early(count: int) -> str:
    return f"the shard is damaged or ends early, after {count:,} files: {AGAIN}"


def _checksum(file: IO[bytes], info: tarfile.TarInfo) -> int:
    crc, left = 0, info.size
    file.seek(info.offset_data)
    while left > 0:
        data = file.read(min(left, _READ_BYTES))
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        crc, left = zlib.crc32(data, crc), left - len(data)
    return crc


class _Labels:
    """Collects the labels in .cls and .json files. The former override the latter.

    Args:
        columns: keys of labels in .json files, in order of preference.
        use_files: use .cls files.
    """

    def __init__(self, columns: Sequence[str], use_files: bool) -> None:
        self.columns, self.use_files = columns, use_files
        self.of_files: dict[str, Any] = {}
        self.of_records: dict[str, Any] = {}

    def take(self, file: IO[bytes], shard: str, entry: Entry) -> None:
        """Keep the label in a file, if it has one."""
        key, ending = sample_key(entry.name)
        if ending == LABEL and self.use_files:
            self.of_files[key] = _read(file, shard, entry, _MAX_LABEL_BYTES).strip()
        elif ending == RECORD and entry.name.rpartition("/")[2] != DATA_SET:
            record = _parse(_read(file, shard, entry, _MAX_RECORD_BYTES), f"{shard}: {entry.name}")
            known = record if isinstance(record, dict) else {}
            column = next((name for name in self.columns if name in known), None)
            if column is not None:
                self.of_records[key] = known[column]


def _read(file: IO[bytes], shard: str, entry: Entry, limit: int) -> str:
    if entry.size > limit:
        raise ValueError(f"{shard}: {entry.name} is larger than {limit:,} bytes")
    file.seek(entry.offset)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise tarfile.ReadError("unexpected end of data")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{shard}: {entry.name} is not UTF-8 text") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None


# The index.


def fingerprint(shard: str) -> str:
    """Identify a shard by its size and a hash of its start, middle and end."""
    with open(shard, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        samples = [
            pread_all(file.fileno(), _SAMPLE_BYTES, max(place, 0))
            for place in (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES)
        ]
    return f"{size} {hashlib.sha256(b''.join(samples)).hexdigest()}"


def indexed(where: str, shards: Sequence[str]) -> Listing:
    """The listing from the index of these shards, which is made if it does not exist.

    If several processes call this at once, one of them makes the index.

    Args:
        where: the folder, shard or pattern, for messages.
        shards: paths of the shards.

    Raises:
        ValueError: a shard is damaged, the index is that of other shards, or no folder can take it.
    """
    try:
        identity = {Path(shard).name: fingerprint(shard) for shard in shards}
    except OSError as error:
        raise ValueError(f"{error.filename or where}: {error.strerror or error}") from None
    problems = []
    places = index_paths(shards, identity)
    for path in places:
        if path.is_file():
            return _load(path, shards, identity)
    for path in places:
        try:
            trust.make_private(path.parent)
            with file_lock(path.with_suffix(".lock"), f"makes {path.name}", remove=True):
                if path.is_file():
                    return _load(path, shards, identity)
                found = listing(where, shards, checked=True)
                _save(path, found, identity)
                return found
        except OSError as error:
            problems.append(f"{path.parent}: {error.strerror or error}")
    raise ValueError(
        f"{where}: cannot write the index of the shards ({'; '.join(problems)}): set DNNLIB_CACHE_DIR to a "
        "writable folder"
    )


def index_paths(shards: Sequence[str], identity: dict[str, str]) -> list[Path]:
    """The possible paths of the index: beside the shards, and in the cache folder."""
    first, last = Path(shards[0]), Path(shards[-1])
    name = first.stem if len(shards) == 1 else f"{first.stem}--{last.stem}"
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    cache = Path(util.make_cache_dir_path("shards"))
    return [first.absolute().parent / f"{name}.index.npz", cache / f"{name}-{key}.index.npz"]


def _save(path: Path, found: Listing, identity: dict[str, str]) -> None:
    columns = {
        name: np.array([getattr(entry, name) for entry in found.entries], np.int64)
        for name in ("size", "crc", "offset", "shard")
    }
    texts = {"names": [entry.name for entry in found.entries], "labels": found.labels, "shards": identity}
    text = json.dumps({"version": INDEX_VERSION, **texts}).encode("utf-8", "surrogatepass")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, text=np.frombuffer(text, np.uint8), **columns)
    with util.atomic_write(path) as file:
        file.write(buffer.getbuffer())


def _load(path: Path, shards: Sequence[str], identity: dict[str, str]) -> Listing:
    """Read an index. ValueError if it is damaged or that of other shards."""
    remedy = f"delete {path} to index the shards again"
    try:
        arrays = bounded.read_npz(path, _MAX_INDEX_BYTES)
        text = json.loads(arrays["text"].tobytes().decode("utf-8", "surrogatepass"))
        if text["version"] != INDEX_VERSION:
            raise ValueError(f"its version is {str(text['version'])[:20]}, not {INDEX_VERSION}")
        names, labels, known = (text[key] for key in ("names", "labels", "shards"))
        known = dict(known)
        keys = ("size", "crc", "offset", "shard")
        columns = [arrays[key].astype(np.int64, casting="safe").tolist() for key in keys]
        entries = [
            Entry(check_name(name, str(path)), size, crc, offset, size, shard=shard)
            for name, size, crc, offset, shard in zip(names, *columns, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        what = util.reason(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a readable index of shards ({what}): {remedy}") from None
    if known != identity:
        other = [name for name in identity if known.get(name) != identity[name]]
        what = f"{other[0]} has changed" if other else f"it has {len(known)} shards, not {len(shards)}"
        raise ValueError(f"{path} is the index of other shards ({what}): {remedy}")
    sizes = [os.path.getsize(shard) for shard in shards]
    if not isinstance(labels, dict) or not all(_is_possible(entry, sizes) for entry in entries):
        raise ValueError(f"{path}: not a readable index of shards (impossible values): {remedy}")
    return Listing(list(shards), entries, labels)


def _is_possible(entry: Entry, sizes: Sequence[int]) -> bool:
    """Whether an entry lies within its shard, of `sizes` bytes each."""
    if not (0 <= entry.shard < len(sizes) and entry.size >= 0):
        return False
    return _BLOCK_BYTES <= entry.offset <= sizes[entry.shard] - entry.size
