# SPDX-License-Identifier: Apache-2.0
"""Downscaled copies of a data set for the stages of a recipe, made once and kept.

The copy of photos256.zip at 64x64 is photos256-downscaled-KEY/photos256-64x64.zip in the same folder, or in
the cache folder ($DNNLIB_CACHE_DIR) if that folder is not writable. It is byte for byte what `dataset_tool.py
--source=photos256.zip --resolution=64x64` writes, so metrics computed with either are comparable. KEY is a
hash of the source's content and the resizing method.
"""

import copy
import hashlib
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from dnnlib import trust
from dnnlib.util import file_lock, make_cache_dir_path, temporary_cache_path
from image_data.conversion import METADATA_VERSION, Progress, convert
from training.data.dataset import ImageDataset

FILTER = "lanczos"  # dataset_tool.py's default
# upper bound, per image, of the PNG and zip structures and the line of dataset.json
ENTRY_BYTES = 1024


class TooSmall(ValueError):
    """The images would have to be enlarged.

    Attributes:
        resolution: The resolution of the images.
    """

    def __init__(self, message: str, resolution: int) -> None:
        super().__init__(message)
        self.resolution = resolution


def check_resolution(dataset: ImageDataset, resolution: int) -> None:
    """Check that a data set can be downscaled to `resolution`, a power of two.

    Raises:
        TooSmall: The images are smaller.
    """
    if resolution > dataset.resolution:
        raise TooSmall(
            f"--resolution={resolution}: the images of --data={dataset.path} are "
            f"{dataset.resolution}x{dataset.resolution} and are not enlarged: "
            f"use --resolution={dataset.resolution} or less, or prepare a data set at "
            f"{resolution}x{resolution}",
            dataset.resolution,
        )


def planned(dataset: ImageDataset, resolution: int) -> ImageDataset:
    """Return the data set as it will be at `resolution`, for plans.

    Labels and counts are right, but its images cannot be read.
    """
    check_resolution(dataset, resolution)
    smaller = copy.copy(dataset)
    smaller.is_planned = True
    smaller.resolution = resolution
    smaller.decoder = replace(dataset.decoder, resolution=resolution)
    smaller.image_shape = [dataset.num_channels, resolution, resolution]
    smaller.name = _name(dataset, resolution)
    return smaller


def downscaled(dataset: ImageDataset, resolution: int, workers: int | None = None) -> str:
    """Return the path of the copy of a data set at `resolution`, and make it if it does not exist.

    If several processes call this at once, one of them makes the copy.

    Args:
        dataset: The data set. All of it is copied, whatever subset or flips it uses.
        resolution: Size of the images in pixels, a power of two.
        workers: Number of processes; None = one per core.

    Raises:
        ValueError: The images are smaller than `resolution`, one of them cannot be read, or no folder can
            take the copy.
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
                trust.make_private(path.parent)  # the folder of the data set may be shared
            path.parent.mkdir(exist_ok=True)
            with file_lock(path.with_suffix(".lock"), f"prepares {path.name}") as held:
                if not _is_complete(path, resolution):
                    if held:
                        _remove_leftovers(path)
                    _check_space(dataset, path, resolution)
                    _make(dataset, path, resolution, workers)
            if len(problems) > 1:  # neither of the permanent folders
                warnings.warn(
                    f"the downscaled copy of {dataset.path} is in the temporary folder {path.parent} "
                    f"({'; '.join(problems)}): set DNNLIB_CACHE_DIR to a folder with enough space",
                    stacklevel=2,
                )
            return str(path)
        except OSError as error:
            problems.append(f"{path.parent}: {error.strerror or error}")
    raise ValueError(
        f"--resolution={resolution}: cannot write the downscaled copy of --data={dataset.path} "
        f"({'; '.join(problems)}): free some space, "
        "set DNNLIB_CACHE_DIR to a folder with enough space, or prepare the data with dataset_tool.py"
    )


def cached_paths(dataset: ImageDataset, resolution: int) -> list[Path]:
    """Return the possible paths of the copy.

    They are in the folder of the data set, in the cache folder, and in this user's temporary folder.
    """
    identity = [dataset.content_hash(), FILTER, METADATA_VERSION]
    identity += [dataset.num_channels] if dataset.num_channels != 3 else []
    key = hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()[:12]
    folder = f"{dataset.name}-downscaled-{key}"
    file = f"{_name(dataset, resolution)}.zip"
    temporary = temporary_cache_path("data-sets")
    caches = [make_cache_dir_path("data-sets"), *([] if trust.untrusted_reason(temporary) else [temporary])]
    return [
        dataset.parent_folder / folder / file,
        *(Path(cache) / folder / file for cache in caches),
    ]


def _name(dataset: ImageDataset, resolution: int) -> str:
    return f"{dataset.name}-{resolution}x{resolution}"


def _is_complete(path: Path, resolution: int) -> bool:
    """Return whether the copy exists and can be opened.

    The file gets its name once it is complete, so opening fails only if it was damaged later.
    """
    if not path.is_file():
        return False
    try:
        ImageDataset(path, resolution).close()
    except ValueError:
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed processes. Only the owner of the lock may call this."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def copy_bytes(dataset: ImageDataset, resolution: int) -> int:
    """Return an upper bound of the copy's size in bytes. Its PNGs are not compressed."""
    return dataset.num_archived * (resolution * (dataset.num_channels * resolution + 1) + ENTRY_BYTES)


def _check_space(dataset: ImageDataset, path: Path, resolution: int) -> None:
    """Check the free disk space.

    Raises:
        OSError: The copy may not fit.
    """
    needed = copy_bytes(dataset, resolution)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free")


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
            channels=dataset.num_channels,
            workers=workers,
            overwrite=True,
            progress=Progress(sys.stderr),
        )
    except ValueError as error:
        raise ValueError(
            f"--resolution={resolution}: {error}; for details run dataset_tool.py --check {dataset.path}"
        ) from None
