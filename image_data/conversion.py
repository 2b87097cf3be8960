# SPDX-License-Identifier: Apache-2.0
"""The engine of dataset_tool.py: a source's images through worker processes into data sets, in order.

Memory does not grow with the pixels: a bounded number of images is in flight. The result does not depend on
the number of workers, and an image prepared at several resolutions at once has the same bytes as prepared at
each alone. Nothing appears under the final name before it is complete.
"""

import contextlib
import difflib
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import unicodedata
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from PIL import ImageColor

from dnnlib import outputs
from dnnlib.progress import Progress as Progress  # what scripts hand to `convert`
from dnnlib.util import atomic_write
from image_data import archives, sources, transforms
from image_data import labels as label_rule
from image_data.sources import Source
from image_data.transforms import DHARIWAL_FILTER, FILTERS, TRANSFORMS, Preparation

METADATA_VERSION = (
    1  # of what `metadata` says; raise it when its meaning, or the pixels made from the same options, change
)
CHUNK_BYTES = (
    2**22
)  # pixels per task: large enough to hide the cost of a task, small enough to keep memory flat
MAX_CHUNK_IMAGES = 64
MIN_MOST_WORKERS = 32  # may be asked for on any machine
MAX_WORKERS = 61 if sys.platform == "win32" else 1024  # Windows waits for no more processes at once
CHUNKS_IN_FLIGHT = 4  # per worker, queued, running or waiting for their turn to be written

In = TypeVar("In")
Out = TypeVar("Out")
Size = tuple[int, int]


@dataclass
class ConvertReport:
    """What `convert` wrote."""

    paths: list[str]
    num_images: int
    skipped: list[str]  # unreadable images, as 'name: reason'
    dropped: int  # images that the transform leaves out
    empty_classes: list[str]
    seconds: float
    summary: str = ""  # how many classes, from what, and what was left out


class _Item(NamedTuple):
    """One prepared image. `pngs` is None when the transform leaves it out or when `error` says why it could
    not be made.
    """

    name: str
    size: int  # of the source's bytes or pixels
    crc: int
    pngs: list[bytes] | None
    error: str | None = None


# Work in several processes, results in order.

_worker_task: Any = None  # the callable of this worker process
_worker_stop: Any = None  # event: what is still queued is not wanted any more


def _start_worker(task: Any, stop: Any) -> None:
    global _worker_task, _worker_stop
    _worker_task, _worker_stop = task, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, args=[os.getppid()], daemon=True).start()


def _follow_parent(parent: int) -> None:
    """Leave when the parent was killed: nobody else would tell this process."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run_task(chunk: Any) -> Any:
    return None if _worker_stop.is_set() else _worker_task(chunk)


def ordered_map(task: Callable[[In], Out], chunks: Iterable[In], workers: int) -> Generator[Out, None, None]:
    """task(chunk) for every chunk, in order, in `workers` processes (in this one for 1). `task` must be
    picklable.

    At most CHUNKS_IN_FLIGHT chunks per worker exist at a time. Raises ValueError when a worker process dies.
    """
    if workers == 1:
        yield from map(task, chunks)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(task, stop))
    pending: deque[Future[Out]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_run_task, chunk))
            if len(pending) >= workers * CHUNKS_IN_FLIGHT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise ValueError(
            f"a worker process died (killed, or out of memory); use fewer --workers than {workers}"
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def chunked(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1 in ranges of `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


@dataclass(frozen=True)
class _PrepareTask:
    """Refs of a source -> prepared images."""

    opener: sources.Opener
    preparation: Preparation
    first: tuple[str, int] | None = (
        None  # name and width of the first image, which others must have; None = not known, or any will do
    )

    def __call__(self, refs: list[Any]) -> list[_Item]:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PIL warns about odd EXIF blocks and palettes; what matters raises
            return [self._prepare(ref) for ref in refs]

    def _prepare(self, ref: Any) -> _Item:
        try:
            name, payload = self.opener.load(ref)
        except ValueError as error:
            return _Item("", 0, 0, None, str(error))
        data = payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).tobytes()
        try:
            if self.first is not None and (width := _width(payload)) != self.first[1]:
                raise ValueError(_other_size(width, self.first))
            return _Item(name, len(data), zlib.crc32(data), transforms.prepare(payload, self.preparation))
        except ValueError as error:
            return _Item(name, len(data), zlib.crc32(data), None, f"{name}: {error}")


def _width(payload: bytes | np.ndarray) -> int:
    """Of an image as it is, from its header. Raises ValueError."""
    if isinstance(payload, bytes):
        with archives.open_image(payload) as image:
            return min(image.size)  # they must be square, which the decoder says
    return min(payload.shape[:2])


def _other_size(width: int, first: tuple[str, int]) -> str:
    return f"is {width}x{width}, but {first[0]} is {first[1]}x{first[1]}: use --resolution"


# Writing a data set.


@contextlib.contextmanager
def _open_dest(path: str) -> Iterator[Callable[[str, bytes], None]]:
    """Yields write(name, data); the zip or folder takes its name only when the block ends well.

    A killed process leaves a hidden .tmp beside the name, which can be deleted.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if archives.is_zip_path(path):
        with atomic_write(path) as file:
            archive = archives.StoredZipWriter(file)
            yield archive.write
            archive.close()
        return
    parent, name = os.path.split(os.path.abspath(path))
    temporary, old = (os.path.join(parent, f".{name}.{os.getpid()}{suffix}.tmp") for suffix in ("", ".old"))
    try:
        os.mkdir(temporary)
        yield lambda name, data: _write_file(temporary, name, data)
        if os.path.isdir(path):
            os.rename(path, old)
        os.rename(temporary, path)
    finally:
        if os.path.isdir(old) and not os.path.isdir(path):
            os.rename(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_file(folder: str, name: str, data: bytes) -> None:
    target = os.path.join(folder, *name.split("/"))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(data)


# Endings of files that data sets are not written as. A folder of such a name would pass for what it is not.
OTHER_FILES = frozenset(
    [
        ".7z",
        ".bz2",
        ".csv",
        ".gz",
        ".h5",
        ".hdf5",
        ".jpeg",
        ".jpg",
        ".json",
        ".lmdb",
        ".lz4",
        ".mdb",
        ".npy",
        ".npz",
        ".parquet",
        ".pickle",
    ]
    + [
        ".pkl",
        ".png",
        ".pt",
        ".rar",
        ".safetensors",
        ".tar",
        ".tfrecord",
        ".tfrecords",
        ".tgz",
        ".txt",
        ".webp",
        ".xz",
        ".zst",
    ]
)


def _check_dest(path: str, overwrite: bool, source: str | None) -> None:
    """Refuse a --dest that is there, that would replace or join the source, or that is no data set's."""
    ending = os.path.splitext(path.rstrip("/"))[1].lower()
    if ending in OTHER_FILES and not os.path.isdir(path):
        raise ValueError(
            f"--dest={path}: data sets are zips or folders, and {ending} files are not read: end it with "
            ".zip, or name a folder"
        )
    _check_existing(path, overwrite)
    outputs.check_output(
        "--dest", path, data={"--source": source}, folder=not archives.is_zip_path(path), replaces=True
    )


def _check_existing(path: str, overwrite: bool) -> None:
    if archives.is_zip_path(path):
        # Deviation: the published tool silently replaces an existing zip.
        if os.path.isdir(path) or (os.path.exists(path) and not overwrite):
            raise ValueError(f"--dest {path} exists; remove it, choose another name, or use --overwrite")
    elif os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"--dest {path} is a file; a data set is a .zip or a folder")
    elif os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise ValueError(
            f"--dest folder {path} is not empty; empty it, choose another name, or use --overwrite"
        )
    elif (
        os.path.isdir(path)
        and os.listdir(path)
        and not os.path.exists(os.path.join(path, archives.INDEX_NAME))
    ):
        raise ValueError(
            f"--dest folder {path} is not a data set (no {archives.INDEX_NAME}), so --overwrite will not "
            "delete it"
        )


def parse_resolutions(text: str) -> list[Size]:
    """'64', '64x64', '16,32,64', '512x384' -> [(width, height), ...]. Raises ValueError for anything else."""
    sizes = []
    for part in text.lower().split(","):
        numbers = part.strip().split("x")
        if len(numbers) > 2 or not all(
            number.isascii() and number.isdigit() and len(number) < 10 for number in numbers
        ):
            raise ValueError(
                f"--resolution={text}: {part!r} is not a size; write 64, 64x64, or several as 16,32,64"
            )
        sizes.append((int(numbers[0]), int(numbers[-1])))
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"--resolution={text}: a size appears twice")
    return sizes


def _check_sizes(sizes: Sequence[Size], transform: str) -> None:
    for width, height in sizes:
        if width < 1 or width & (width - 1):
            raise ValueError(
                f"--resolution {width}x{height}: the width must be a power of two (16, 32, 64, ...)"
            )
        if width != height and transform != "center-crop-wide":
            raise ValueError(
                f"--resolution {width}x{height} is not square; only --transform=center-crop-wide fits a "
                "wide picture into a square"
            )
        if width * width > archives.MAX_PIXELS:
            raise ValueError(
                f"--resolution {width}x{height}: at most {math.isqrt(archives.MAX_PIXELS):,} pixels wide"
            )
        if not 1 <= height <= width:
            raise ValueError(
                f"--resolution {width}x{height}: center-crop-wide needs a height between 1 and the width"
            )
    if not sizes and transform != "none":
        raise ValueError(f"--transform={transform} needs --resolution, for example --resolution=64x64")


def _dest_paths(dest: str, sizes: Sequence[Size]) -> list[str]:
    if not sizes:
        if "{res}" in dest:
            raise ValueError(f"--dest {dest} has {{res}}, but no --resolution is given")
        return [dest]
    paths = [dest.replace("{res}", str(width)) for width, _ in sizes]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"--dest {dest}: several resolutions need {{res}} in the name, for example out{{res}}.zip"
        )
    return paths


def _select(
    source: Source, max_images: int | None, subset_seed: int | None, classes: Sequence[str] | None
) -> tuple[np.ndarray, Source]:
    """(indices of the images to use, in source order; the source, its labels renumbered when classes are
    chosen, its left-out count grown).
    """
    left_out = archives.LeftOut()
    left_out.merge(source.left_out)
    source = replace(source, left_out=left_out)
    indices = np.arange(len(source), dtype=np.int64)
    if classes is not None:
        if source.labels is None:
            raise ValueError(f"{source.name}: --classes given, but the images have no labels")
        names = [
            unicodedata.normalize("NFC", name)
            for name in source.class_names or map(str, range(source.num_classes))
        ]
        classes = [unicodedata.normalize("NFC", name) for name in classes]
        unknown = [name for name in classes if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=3)
            hint = f"; the nearest are {', '.join(near)}" if near and len(names) > 20 else ""
            raise ValueError(
                f"{source.name}: --classes names {unknown[0]!r}, which is none of "
                f"{', '.join(names[:20])}{hint}"
            )
        if len(set(classes)) < len(classes):
            raise ValueError("--classes names a class twice")
        renumbered = np.full(len(names), -1, dtype=np.int64)
        renumbered[[names.index(name) for name in classes]] = np.arange(len(classes))
        labels = renumbered[source.labels]
        source = replace(
            source, labels=labels, class_names=list(classes)
        )  # -1 for the images that `indices` leaves out
        indices = indices[labels >= 0]
        if len(indices) < len(source):
            left_out.add("of other classes (--classes)", count=len(source) - len(indices))
    if subset_seed is not None and max_images is None:
        raise ValueError("--subset-seed chooses which images --max-images keeps; give --max-images too")
    if max_images is not None:
        if max_images < 1:
            raise ValueError(f"--max-images={max_images} must be at least 1")
        chosen = (
            np.arange(len(indices))
            if subset_seed is None
            else np.random.RandomState(subset_seed % 2**32).permutation(len(indices))
        )
        if max_images < len(indices):
            left_out.add("beyond --max-images", count=len(indices) - max_images)
        indices = indices[np.sort(chosen[:max_images])]
    return indices, source


def _image_name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


class _Consumer:
    """Takes prepared images in order: names them, writes them, keeps labels, counts and the source's hash."""

    def __init__(self, writers: list[Callable[[str, bytes], None]], fail: bool):
        self.writers = writers
        self.fail = fail
        self.labels: list[int] = []
        self.counts: Counter[int] = Counter()
        self.num_images = 0
        self.dropped = 0
        self.skipped: list[str] = []
        self.digest = hashlib.sha256()
        self.first: tuple[str, int] | None = None  # name and width, when sizes are the images' own

    def take(self, item: _Item, label: int | None) -> None:
        error = item.error or self._size_error(item)
        if error is not None:
            if self.fail:
                raise ValueError(f"{error} (--on-error=skip leaves such images out)")
            self.skipped.append(error)
            return
        self.digest.update(f"{item.name}\0{item.size}\0{item.crc}\n".encode(errors="surrogateescape"))
        if item.pngs is None:
            self.dropped += 1
            return
        name = _image_name(self.num_images)
        for write, png in zip(self.writers, item.pngs, strict=True):
            write(name, png)
        self.num_images += 1
        if label is not None:
            self.labels.append(label)
            self.counts[label] += 1

    def _size_error(self, item: _Item) -> str | None:
        """With no resolution asked for, all images must have the first one's."""
        if item.pngs is None:
            return None
        width = int.from_bytes(item.pngs[0][16:20], "big")  # of the PNG's header
        if len(self.writers) > 1 or (self.first is not None and self.first[1] == width):
            return None
        if self.first is None:
            self.first = (item.name, width)
            return None
        return f"{item.name}: {_other_size(width, self.first)}"


@dataclass(frozen=True)
class _Job:
    """A validated request."""

    source: Source
    indices: np.ndarray
    preparation: Preparation
    paths: list[str]
    selection: dict[str, Any]

    def metadata(self, position: int, consumer: _Consumer) -> dict[str, Any]:
        """What dataset.json says about the data set at `position` of the paths: how its pixels came about,
        for comparing metrics.
        """
        preparation, source = self.preparation, self.source
        size = preparation.sizes[position]
        resized = DHARIWAL_FILTER if preparation.transform == "center-crop-dhariwal" else preparation.filter
        counts = [consumer.counts[label] for label in range(source.num_classes)]
        result: dict[str, Any] = {
            "version": METADATA_VERSION,
            "resolution": size[0] if size else consumer.first[1] if consumer.first else None,
            "num_images": consumer.num_images,
            "class_names": source.class_names,
            "class_counts": counts if source.labels is not None else None,
            "transform": preparation.transform,
            "filter": resized if size else None,
            "background": "#{:02x}{:02x}{:02x}".format(*preparation.background),
            "source": {"name": source.name, "kind": source.kind, "sha256": consumer.digest.hexdigest()},
            "skipped": len(consumer.skipped),
            "dropped": consumer.dropped,
            "pillow": PIL.__version__,
        }
        if size and size[0] != size[1]:
            result["picture"] = list(size)
        known = {
            key: value
            for key, value in source.metadata.items()
            if key not in ("class_names", "class_counts", "num_images")
        }
        if known:
            result["source"]["metadata"] = known
        if self.selection:
            result["selection"] = self.selection
        return result


def convert(
    source: str | os.PathLike[str] | Source,
    dest: str | os.PathLike[str],
    resolutions: Sequence[int | Size] | None = None,
    *,
    transform: str = "none",
    filter: str | None = None,
    background: str = "white",
    labels: str = "auto",
    class_names: list[str] | None = None,
    classes: Sequence[str] | None = None,
    subfolder: str = "",
    follow_links: bool = False,
    max_images: int | None = None,
    subset_seed: int | None = None,
    workers: int | None = None,
    on_error: str = "fail",
    overwrite: bool = False,
    compress_level: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Prepare a data set, or one per resolution in a single pass over the source.

    Args:
        source: a path (see image_data.sources.open_source) or a Source such as array_source's.
        dest: .zip file or folder; {res} in it is replaced by the resolution, and needed when there are
        several. resolutions: sizes of the result, ints or (width, height); None keeps the images' own, which
        must then be one power of two. transform: none | center-crop | center-crop-wide |
        center-crop-dhariwal. filter: of the resize: nearest, box, bilinear, hamming, bicubic, lanczos (None =
        lanczos; center-crop-dhariwal has its own). background: CSS colour under transparent pixels. labels:
        auto | json | folders | none, the rule of image_data.labels. class_names: replaces the source's class
        names. classes: keep these classes alone, numbered in this order. subfolder: the part of the source to
        use: 'train'. follow_links: read what links inside a folder lead to. max_images: keep the first so
        many images, or a random choice when `subset_seed` is given. workers: processes; None = one per core.
        on_error: 'fail' stops at an unreadable image, 'skip' leaves it out and lists it in the report.
        overwrite: replace an existing data set. compress_level: zlib level of the PNGs. progress: called with
        (images done, images in all).

    Returns:
        ConvertReport.
    Raises:
        ValueError: one line about what is wrong with the arguments or the source. No data set is left behind.
    """
    started = time.monotonic()
    if on_error not in ("skip", "fail"):
        raise ValueError(f"--on-error={on_error}: skip or fail")
    workers = count_workers(workers)
    sizes = [(size, size) if isinstance(size, int) else size for size in resolutions or []]
    preparation = _plan(sizes, transform, filter, background, compress_level)
    paths = _dest_paths(os.fspath(dest), sizes)
    for path in paths:
        _check_dest(path, overwrite, None if isinstance(source, Source) else os.fspath(source))
    opened = (
        source
        if isinstance(source, Source)
        else sources.open_source(source, labels, class_names, subfolder, follow_links)
    )
    indices, opened = _select(opened, max_images, subset_seed, classes)
    options = {
        "max_images": max_images,
        "subset_seed": subset_seed,
        "classes": list(classes) if classes is not None else None,
    }
    job = _Job(
        opened,
        indices,
        preparation,
        paths,
        {key: value for key, value in options.items() if value is not None},
    )
    consumer = _run(job, workers, on_error == "fail", progress)
    names = opened.class_names or [str(label) for label in range(opened.num_classes)]
    empty = [names[label] for label in range(opened.num_classes) if not consumer.counts[label]]
    for reason, count in (
        ("that cannot be used (--on-error=skip)", len(consumer.skipped)),
        ("too small for the transform", consumer.dropped),
    ):
        if count:
            opened.left_out.add(reason, count=count)
    summary = label_rule.summary(opened.num_classes, opened.origin, opened.left_out)
    return ConvertReport(
        paths,
        consumer.num_images,
        consumer.skipped,
        consumer.dropped,
        empty,
        time.monotonic() - started,
        summary,
    )


def _plan(
    sizes: list[Size], transform: str, filter: str | None, background: str, compress_level: int
) -> Preparation:
    if transform not in TRANSFORMS:
        raise ValueError(f"--transform={transform}; there are {', '.join(TRANSFORMS)}")
    if filter is not None and filter not in FILTERS:
        raise ValueError(f"--filter={filter}; there are {', '.join(FILTERS)}")
    if filter is not None and transform == "center-crop-dhariwal":
        raise ValueError(
            f"--filter={filter} has no effect: center-crop-dhariwal is defined with its own filters "
            f"({DHARIWAL_FILTER})"
        )
    if not 0 <= compress_level <= 9:
        raise ValueError(f"--compress-level={compress_level}; 0 (stored) to 9")
    _check_sizes(sizes, transform)
    try:
        red, green, blue = ImageColor.getcolor(background, "RGB")[:3]  # type: ignore[index]
    except ValueError:
        raise ValueError(
            f"--background={background} is not a colour; write white, black, #rrggbb, ..."
        ) from None
    return Preparation(
        tuple(sizes) or (None,), transform, filter or "lanczos", (red, green, blue), compress_level
    )


def _first_image(job: _Job) -> tuple[str, int] | None:
    """Name and width of the first image, so that none of another size is unpacked; None if it cannot be read,
    or nothing is to be done.
    """
    try:
        name, payload = job.source.opener.load(job.source.refs[int(job.indices[0])])
        return name, _width(payload)
    except (ValueError, IndexError):
        return None


def _run(job: _Job, workers: int, fail: bool, progress: Callable[[int, int], None] | None) -> _Consumer:
    """The pass over the source: refs out to the workers, PNGs back in order, into every data set."""
    first = _first_image(job) if job.preparation.sizes == (None,) else None
    own = 3 * first[1] ** 2 if first else CHUNK_BYTES // 4
    pixels = sum(size[0] * size[0] * 3 if size else own for size in job.preparation.sizes)
    chunk = max(1, min(MAX_CHUNK_IMAGES, CHUNK_BYTES // pixels))
    tasks = (
        [job.source.refs[int(job.indices[i])] for i in positions]
        for positions in chunked(len(job.indices), chunk)
    )
    done = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_open_dest(path)) for path in job.paths]
        consumer = _Consumer(writers, fail)
        results: Generator[list[_Item], None, None] = ordered_map(
            _PrepareTask(job.source.opener, job.preparation, first), tasks, workers
        )
        stack.callback(results.close)
        for items in results:
            for item in items:
                label = None if job.source.labels is None else int(job.source.labels[job.indices[done]])
                consumer.take(item, label)
                done += 1
            if progress is not None:
                progress(done, len(job.indices))
        if consumer.num_images == 0:
            left_out = f"; the first problem: {consumer.skipped[0]}" if consumer.skipped else ""
            raise ValueError(f"{job.source.name}: none of {len(job.indices)} images could be used{left_out}")
        labels = [[_image_name(i), label] for i, label in enumerate(consumer.labels)] or None
        for position, write in enumerate(writers):
            index = {"labels": labels, "metadata": job.metadata(position, consumer)}
            write(archives.INDEX_NAME, json.dumps(index).encode())
    return consumer


def count_workers(workers: int | None) -> int:
    """The number asked for, or the cores this process may use. Raises ValueError below 1, and for more than
    could be of use.
    """
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    most = min(max(MIN_MOST_WORKERS, 4 * cores), MAX_WORKERS)
    if workers is not None and not 1 <= workers <= most:
        raise ValueError(
            f"--workers={workers} must be at least 1 and, with the {cores} cores of this machine, at most "
            f"{most}"
        )
    return min(workers or cores, most)
