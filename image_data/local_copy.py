# SPDX-License-Identifier: Apache-2.0
"""Copies of data sets on a disk of the node, made once per node and compared with the original by hash.

The copy of photos256.zip is FOLDER/photos256-KEY/photos256.zip. KEY identifies the content: for zips and tar
shards a hash of the names, positions, sizes and CRC-32 of all images, for folders of their names, sizes and
times. A folder becomes a zip, which is one file instead of millions.
"""

import glob
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import IO

from dnnlib import outputs, trust
from dnnlib.files import NO_SPACE
from dnnlib.locks import file_lock
from dnnlib.progress import Progress
from dnnlib.util import format_bytes, sha256_file
from image_data import archives
from image_data.archives import Archive, Entry, FolderReader, ZipReader
from image_data.shards import ShardReader

_BLOCK_BYTES = 2**22
_ENTRY_BYTES = 512  # upper bound of what a zip adds per image, without its name
_SPARE_BYTES = 2**20


def local_copy(archive: Archive, folder: str, flag: str) -> Archive:
    """The archive with a reader of its copy, which is made if it does not exist.

    If several processes of a node call this at once, one of them makes the copy, and the others wait.

    Args:
        archive: the images; of a folder only these are copied.
        folder: where the copies are; created if it does not exist.
        flag: the flag that names the folder, for messages.

    Raises:
        ValueError: the disk is full, the copy differs from the original, or the folder cannot be written. No
            incomplete copy remains.
    """
    try:
        target = Path(os.path.abspath(folder)) / f"{archive.name}-{_key(archive)}"
        trust.make_private(target.parent)
        with (
            outputs.interruptible(),
            file_lock(target.with_name(f".{target.name}.lock"), f"copies {archive.path} to {folder}"),
        ):
            found = _opened(archive, target)
            if found is None:
                _check_space(archive, target, flag)
                _make(archive, target)
                found = _opened(archive, target)
    except OSError as error:
        space = f" with at least {format_bytes(needed_bytes(archive))} of free space"
        raise ValueError(
            f"{flag}={folder}: cannot copy {archive.path} ({error.strerror or error}): choose another folder"
            f"{space if error.errno in NO_SPACE else ''}, or remove the flag"
        ) from None
    if found is None:
        raise ValueError(f"{flag}={folder}: the copy in {target} differs from {archive.path}: delete it")
    return found


def _key(archive: Archive) -> str:
    digest = hashlib.sha256()
    for entry in archive.images:
        size, mark = entry.size, entry.crc
        if isinstance(archive.reader, FolderReader):
            stat = os.stat(os.path.join(archive.reader.path, entry.name))
            size, mark = stat.st_size, stat.st_mtime_ns
        digest.update(f"{entry.name}\0{entry.offset}\0{size}\0{mark}\n".encode(errors="surrogateescape"))
    for path in _files(archive):
        digest.update(f"{os.path.basename(path)}\0{os.path.getsize(path)}\n".encode())
    return digest.hexdigest()[:16]


def _files(archive: Archive) -> list[str]:
    """The files that are copied as they are; none for a folder."""
    if isinstance(archive.reader, ShardReader):
        return archive.reader.shards
    return [archive.reader.path] if isinstance(archive.reader, ZipReader) else []


def needed_bytes(archive: Archive) -> int:
    """The bytes that the copy takes, an upper bound for a folder."""
    if isinstance(archive.reader, FolderReader):
        paths = (os.path.join(archive.reader.path, entry.name) for entry in archive.images)
        sizes = sum(os.path.getsize(path) for path in paths)
        return sizes + sum(_ENTRY_BYTES + 2 * len(entry.name) for entry in archive.images)
    return sum(os.path.getsize(path) for path in _files(archive))


def _check_space(archive: Archive, target: Path, flag: str) -> None:
    needed, free = needed_bytes(archive) + _SPARE_BYTES, shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(
            f"{flag}={target.parent}: the copy of {archive.path} needs {format_bytes(needed)}, and "
            f"{format_bytes(free)} are free: choose another folder, or remove the flag"
        )


def _opened(archive: Archive, target: Path) -> Archive | None:
    """The archive with the copy's reader; None if there is no copy, or one of other files."""
    reader: archives.Reader
    if not target.is_dir():
        return None
    paths = [str(target / os.path.basename(path)) for path in _files(archive)]
    sizes = [os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths]
    if sizes != [os.path.getsize(path) for path in _files(archive)]:
        return None
    if isinstance(archive.reader, ShardReader):
        old = archive.reader
        reader = ShardReader(old.path, paths, old.limit, old.checks_content)
    elif isinstance(archive.reader, ZipReader):
        reader = ZipReader(paths[0])
    else:
        return _opened_zip(archive, target)
    return replace(archive, reader=reader)


def _opened_zip(archive: Archive, target: Path) -> Archive | None:
    """The copy of a folder."""
    path = target / f"{archive.name}.zip"
    if not path.is_file():
        return None
    try:
        found = archives.open_archive(path)
    except ValueError:
        return None
    if [entry.name for entry in found.images] != [entry.name for entry in archive.images]:
        return None
    return replace(archive, reader=found.reader, images=found.images)


def _make(archive: Archive, target: Path) -> None:
    """Make the copy. It gets its name when it is complete and compared with the original."""
    for remains in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):  # of killed processes
        shutil.rmtree(remains, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)  # a damaged copy
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    label = f"Copying {archive.path} to {target.parent}"
    try:
        os.mkdir(temporary)
        if isinstance(archive.reader, FolderReader):
            _pack(archive, archive.reader, temporary / f"{archive.name}.zip", Progress(label=label, silent=5))
        else:
            total, done = needed_bytes(archive), 0
            progress = Progress(label=label, unit="bytes", silent=5)
            for path in _files(archive):
                done = _copy(path, temporary / os.path.basename(path), progress, done, total)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(path: str, copy: Path, progress: Progress, done: int, total: int) -> int:
    """Copy a file, and read the copy back. Returns the bytes done. OSError if the copy differs."""
    digest = hashlib.sha256()
    with open(path, "rb") as source, open(copy, "wb") as target:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            target.write(block)
            done += len(block)
            progress(done, total)
        _flush(target)
    if sha256_file(copy) != digest.hexdigest():
        raise OSError(f"{copy} differs from what was written: the disk may be damaged")
    return done


def _pack(archive: Archive, reader: FolderReader, copy: Path, progress: Progress) -> None:
    """Write the images of a folder into a zip, and read it back."""
    with open(copy, "wb") as target:
        writer = archives.StoredZipWriter(target)
        for done, entry in enumerate(archive.images, 1):
            try:
                writer.write(entry.name, reader.read(Entry(entry.name)))
            except ValueError as error:
                raise ValueError(f"{archive.path}: {error}") from None
            progress(done, len(archive.images))
        writer.close()
        _flush(target)
    found = archives.open_archive(copy)
    for entry in found.images:
        try:
            found.reader.read(entry)
        except ValueError as error:
            raise OSError(f"the copy differs from what was written ({error})") from None


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
