# SPDX-License-Identifier: Apache-2.0
"""One data set for every stage: a smaller copy of it, as dataset_tool.py would have prepared it, made once
and kept.

The copy of photos256.zip at 64x64 is photos256-downscaled-KEY/photos256-64x64.zip beside it, or in the cache
folder ($DNNLIB_CACHE_DIR) where that folder cannot be written to. It is, byte for byte, what `dataset_tool.py
--source=photos256.zip --resolution=64x64` writes, so a metric measured against it compares with one measured
against a set prepared that way. KEY is a hash of the source's content and of the way of resizing.
"""

import copy
import hashlib
import shutil
import sys
import warnings
from pathlib import Path

from dnnlib import trust
from dnnlib.util import file_lock, make_cache_dir_path, temporary_cache_path
from image_data.conversion import METADATA_VERSION, Progress, convert
from training.data.dataset import ImageDataset

FILTER = "lanczos"  # dataset_tool.py's default
ENTRY_BYTES = (
    1024  # of a PNG's and the zip's structure per image, and its line of dataset.json: an upper bound
)


class TooSmall(ValueError):
    """The images would have to be enlarged. resolution: what they have."""

    def __init__(self, message: str, resolution: int) -> None:
        super().__init__(message)
        self.resolution = resolution


def check_resolution(dataset: ImageDataset, resolution: int) -> None:
    """Raises TooSmall unless the data set can be brought down to `resolution`, a power of two."""
    if resolution > dataset.resolution:
        raise TooSmall(
            f"--resolution={resolution}: the images of --data={dataset.path} are "
            f"{dataset.resolution}x{dataset.resolution}, and are not enlarged: "
            f"use --resolution={dataset.resolution} or less, or a data set prepared at "
            f"{resolution}x{resolution}",
            dataset.resolution,
        )


def planned(dataset: ImageDataset, resolution: int) -> ImageDataset:
    """The data set as it will be at `resolution`, for plans: labels and counts are right, its images cannot
    be read.
    """
    check_resolution(dataset, resolution)
    smaller = copy.copy(dataset)
    smaller.is_planned = True
    smaller.resolution = resolution
    smaller.image_shape = [dataset.num_channels, resolution, resolution]
    smaller.name = _name(dataset, resolution)
    return smaller


def downscaled(dataset: ImageDataset, resolution: int, workers: int | None = None) -> str:
    """The path of the data set's copy at `resolution`; made if it is not there yet, by one of the processes
    that ask for it at once.

    Args:
        dataset: all of it is copied, whatever subset or flips it is used with.
        workers: processes; None = one per core.

    Raises:
        ValueError: the images are smaller than `resolution`, one of them cannot be read, or there is no place
        for the copy.
    """
    check_resolution(dataset, resolution)
    places = cached_paths(dataset, resolution)
    for path in places:
        if _is_complete(path, resolution):
            return str(path)
    problems: list[str] = []
    for path in places:
        try:
            if path is not places[0]:
                trust.make_private(path.parent)  # beside the data set it is open to those who share that
            path.parent.mkdir(exist_ok=True)
            with file_lock(path.with_suffix(".lock"), f"prepares {path.name}") as held:
                if not _is_complete(path, resolution):
                    if held:
                        _remove_leftovers(path)
                    _check_space(dataset, path, resolution)
                    _make(dataset, path, resolution, workers)
            if len(problems) > 1:  # neither of the places that last
                warnings.warn(
                    f"the smaller copy of {dataset.path} is in {path.parent} until the system clears it "
                    f"({'; '.join(problems)}): "
                    "set DNNLIB_CACHE_DIR to a folder with room",
                    stacklevel=2,
                )
            return str(path)
        except OSError as error:
            problems.append(f"{path.parent}: {error.strerror or error}")
    raise ValueError(
        f"--resolution={resolution}: no place for the smaller copy of --data={dataset.path} "
        f"({'; '.join(problems)}): free some space, "
        "set DNNLIB_CACHE_DIR to a folder with room, or prepare the data with dataset_tool.py"
    )


def cached_paths(dataset: ImageDataset, resolution: int) -> list[Path]:
    """Where the copy may lie: beside the data set, else in the cache folder, else among this user's temporary
    files.
    """
    identity = (dataset.content_hash(), FILTER, METADATA_VERSION)
    key = hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()[:12]
    folder = f"{dataset.name}-downscaled-{key}"
    file = f"{_name(dataset, resolution)}.zip"
    temporary = temporary_cache_path("data-sets")
    caches = [make_cache_dir_path("data-sets"), *([] if trust.untrusted_reason(temporary) else [temporary])]
    return [
        Path(dataset.path).absolute().parent / folder / file,
        *(Path(cache) / folder / file for cache in caches),
    ]


def _name(dataset: ImageDataset, resolution: int) -> str:
    return f"{dataset.name}-{resolution}x{resolution}"


def _is_complete(path: Path, resolution: int) -> bool:
    """Whether the copy is there and can be opened. Its name appears when it is complete, so that it only
    fails if damaged later.
    """
    if not path.is_file():
        return False
    try:
        ImageDataset(path, resolution).close()
    except ValueError:
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    """What killed processes left; to be called by the owner of the lock."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def copy_bytes(dataset: ImageDataset, resolution: int) -> int:
    """Size of the copy at most: its PNGs are not compressed."""
    return dataset.num_archived * (resolution * (3 * resolution + 1) + ENTRY_BYTES)


def _check_space(dataset: ImageDataset, path: Path, resolution: int) -> None:
    """Raises OSError when the copy may not fit."""
    needed = copy_bytes(dataset, resolution)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free")


def _make(dataset: ImageDataset, path: Path, resolution: int, workers: int | None) -> None:
    if path.exists():
        print(f"The copy {path} is damaged; making it again", file=sys.stderr)
    print(f"Preparing {dataset.path} at {resolution}x{resolution}, once: {path}", file=sys.stderr, flush=True)
    try:
        convert(
            dataset.path,
            path,
            [resolution],
            labels=dataset.label_mode,
            filter=FILTER,
            workers=workers,
            overwrite=True,
            progress=Progress(sys.stderr),
        )
    except ValueError as error:
        raise ValueError(
            f"--resolution={resolution}: {error}; dataset_tool.py --check {dataset.path} says more"
        ) from None
