# SPDX-License-Identifier: Apache-2.0
"""The engine of dataset_tool.py: worker processes turn the images of a source into data sets, in order.

The number of images in memory is bounded. The result does not depend on the number of workers, and an image
has the same bytes whether it is prepared at one resolution or at several. An output gets its final name only
when it is complete.
"""

import contextlib
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
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from PIL import ImageColor

from dnnlib import outputs
from dnnlib.progress import Progress as Progress  # scripts pass it to `convert`
from dnnlib.util import atomic_write, available_cores
from image_data import archives, sources, transforms
from image_data import labels as label_rule
from image_data.classes import balance
from image_data.selection import Subset, select
from image_data.sources import Source
from image_data.transforms import DHARIWAL_FILTER, FILTERS, TRANSFORMS, Preparation

METADATA_VERSION = (
    1  # raise it if the meaning of `metadata`, or the pixels made with the same options, change
)
CHUNK_BYTES = 2**22  # pixels per task: enough to hide the overhead of a task, few enough to keep memory flat
MAX_CHUNK_IMAGES = 64
MIN_MOST_WORKERS = 32  # this many workers are allowed on any machine
MAX_WORKERS = 61 if sys.platform == "win32" else 1024  # Windows cannot wait for more processes at once
CHUNKS_IN_FLIGHT = 4  # per worker: queued, running, or waiting to be written

In = TypeVar("In")
Out = TypeVar("Out")
Size = tuple[int, int]


@dataclass
class ConvertReport:
    """The result of `convert`."""

    paths: list[str]
    num_images: int
    skipped: list[str]  # unreadable images, as 'name: reason'
    dropped: int  # images that the transform omits
    empty_classes: list[str]
    seconds: float
    summary: str = ""  # the number of classes, where they come from, and what was left out
    balance: str = ""  # the sizes of the classes, in one line


class _Item(NamedTuple):
    """One prepared image. `pngs` is None if the transform omits it, or if it failed with `error`."""

    name: str
    size: int  # bytes of the source's file or pixels
    crc: int
    pngs: list[bytes] | None
    error: str | None = None


# Work in several processes, with results in order.

_worker_task: Any = None  # the function of this worker process
_worker_stop: Any = None  # event: skip tasks that are still queued


def _start_worker(task: Any, stop: Any) -> None:
    global _worker_task, _worker_stop
    _worker_task, _worker_stop = task, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, args=[os.getppid()], daemon=True).start()


def _follow_parent(parent: int) -> None:
    """Exit if the parent is killed, because nothing else ends this process then."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run_task(chunk: Any) -> Any:
    return None if _worker_stop.is_set() else _worker_task(chunk)


def ordered_map(task: Callable[[In], Out], chunks: Iterable[In], workers: int) -> Generator[Out, None, None]:
    """Yield task(chunk) for every chunk, in order, computed in `workers` processes.

    At most CHUNKS_IN_FLIGHT chunks per worker are in memory. With one worker, the calling process does the
    work.

    Args:
        task: a picklable function.
        chunks: its arguments.
        workers: number of processes.

    Raises:
        ValueError: a worker process died.
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
    """Split 0 .. count - 1 into ranges of `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


@dataclass(frozen=True)
class _PrepareTask:
    """Turns refs of a source into prepared images."""

    opener: sources.Opener
    preparation: Preparation
    # Name and width of the first image, which all others must have; None = unknown, or any size is allowed.
    first: tuple[str, int] | None = None

    def __call__(self, refs: list[Any]) -> list[_Item]:
        with warnings.catch_warnings():
            # Pillow warns about odd EXIF blocks and palettes; real problems are exceptions.
            warnings.simplefilter("ignore")
            return [self._prepare(ref) for ref in refs]

    def _prepare(self, ref: Any) -> _Item:
        try:
            name, payload = self.opener.load(ref)
        except ValueError as error:
            return _Item("", 0, 0, None, str(error))
        data = payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).tobytes()
        checked = self.opener.checked_crc(ref) if isinstance(self.opener, sources.ArchiveOpener) else None
        crc = zlib.crc32(data) if checked is None else checked
        try:
            if self.first is not None and (width := _width(payload)) != self.first[1]:
                raise ValueError(_other_size(width, self.first))
            pngs = transforms.prepare(payload, self.preparation, is_checked=checked is not None)
            return _Item(name, len(data), crc, pngs)
        except ValueError as error:
            return _Item(name, len(data), crc, None, f"{name}: {error}")


def _width(payload: bytes | np.ndarray) -> int:
    """The width of an unprepared image, from its header. Raises ValueError if it is not readable."""
    if isinstance(payload, bytes):
        with archives.open_image(payload) as image:
            return min(image.size)  # the decoder refuses images that are not square
    return int(min(payload.shape[:2]))


def _other_size(width: int, first: tuple[str, int]) -> str:
    return f"is {width}x{width}, but {first[0]} is {first[1]}x{first[1]}: use --resolution"


# Writing a data set.


@contextlib.contextmanager
def _open_dest(path: str) -> Iterator[Callable[[str, bytes], None]]:
    """Yield write(name, data). The zip or folder gets its final name only if the block succeeds.

    A killed process leaves a hidden .tmp beside it, which can be deleted.
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


# Extensions of files that are not data sets. A folder with such a name would be misleading.
OTHER_FILES = frozenset(
    """.7z .bz2 .csv .gz .h5 .hdf5 .jpeg .jpg .json .lmdb .lz4 .mdb .npy .npz .parquet .pickle .pkl .png
    .pt .rar .safetensors .tar .tfrecord .tfrecords .tgz .txt .webp .xz .zst""".split()  # noqa: SIM905
)


def _check_dest(path: str, overwrite: bool, source: str | None) -> None:
    """Refuse a --dest that exists, that would replace or join the source, or that is not a zip or folder."""
    ending = os.path.splitext(path.rstrip("/"))[1].lower()
    if ending in OTHER_FILES and not os.path.isdir(path):
        raise ValueError(
            f"--dest={path}: data sets are zips or folders, and {ending} files are not supported: use a name "
            "that ends with .zip, or the name of a folder"
        )
    _check_existing(path, overwrite)
    outputs.check_output(
        "--dest", path, data={"--source": source}, folder=not archives.is_zip_path(path), replaces=True
    )


def _check_existing(path: str, overwrite: bool) -> None:
    if archives.is_zip_path(path):
        # Deviation: the published tool silently replaces an existing zip.
        if os.path.isdir(path) or (os.path.exists(path) and not overwrite):
            raise ValueError(
                f"--dest {path} already exists; remove it, choose another name, or use --overwrite"
            )
    elif os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"--dest {path} is a file; a data set is a .zip or a folder")
    elif os.path.isdir(path) and os.listdir(path) and not overwrite:
        raise ValueError(f"--dest folder {path} is not empty; choose another name, or use --overwrite")
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
    """Parse resolutions: '64', '64x64', '16,32,64', '512x384' -> [(width, height), ...].

    Raises:
        ValueError: anything else.
    """
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
        raise ValueError(f"--resolution={text}: a size occurs twice")
    return sizes


def _check_sizes(sizes: Sequence[Size], transform: str) -> None:
    for width, height in sizes:
        if width < 1 or width & (width - 1):
            raise ValueError(
                f"--resolution {width}x{height}: the width must be a power of two (16, 32, 64, ...)"
            )
        if width != height and transform != "center-crop-wide":
            raise ValueError(
                f"--resolution {width}x{height} is not square; only --transform=center-crop-wide pads a "
                "wide image to a square"
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
            raise ValueError(f"--dest {dest} contains {{res}}, but --resolution is not given")
        return [dest]
    paths = [dest.replace("{res}", str(width)) for width, _ in sizes]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"--dest {dest}: several resolutions require {{res}} in the name, for example out{{res}}.zip"
        )
    return paths


def _checked_paths(
    dest: str, sizes: Sequence[Size], overwrite: bool, source: str | os.PathLike[str] | Source
) -> list[str]:
    """The paths of the data sets. Raises ValueError as `_check_dest`."""
    paths = _dest_paths(dest, sizes)
    for path in paths:
        _check_dest(path, overwrite, None if isinstance(source, Source) else os.fspath(source))
    return paths


def _image_name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


class _Consumer:
    """Names and writes prepared images in order, and collects their labels, counts and hash."""

    def __init__(self, writers: list[Callable[[str, bytes], None]], fail: bool):
        self.writers = writers
        self.fail = fail
        self.labels: list[int] = []
        self.counts: Counter[int] = Counter()
        self.num_images = 0
        self.dropped = 0
        self.skipped: list[str] = []
        self.digest = hashlib.sha256()
        self.first: tuple[str, int] | None = None  # name and width, if images keep their own size

    def take(self, item: _Item, label: int | None) -> None:
        """Write an image, or count why it is not written. ValueError if failures stop the run."""
        error = item.error or self._size_error(item)
        if error is not None:
            if self.fail:
                raise ValueError(f"{error} (use --on-error=skip to skip such images)")
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
        """Without a resolution, all images must have the size of the first one."""
        if item.pngs is None:
            return None
        width = int.from_bytes(item.pngs[0][16:20], "big")  # from the PNG header
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
        """The "metadata" of dataset.json for the data set at `position` of the paths.

        It documents how the pixels were made, so that metrics can be compared.
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
        if preparation.channels != 3:
            result["channels"] = preparation.channels
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
    channels: int = 3,
    labels: str = "auto",
    class_names: list[str] | None = None,
    classes: Sequence[str] | None = None,
    subfolder: str = "",
    follow_links: bool = False,
    max_images: int | None = None,
    subset_seed: int | None = None,
    subset: Subset | None = None,
    columns: sources.Columns = sources.Columns(),  # noqa: B008 immutable
    workers: int | None = None,
    on_error: str = "fail",
    overwrite: bool = False,
    compress_level: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Prepare a data set, or one per resolution in a single pass over the source.

    Args:
        source: a path (see image_data.sources.open_source), or a Source such as array_source's.
        dest: .zip file or folder. {res} is replaced by the resolution, and is required if there are several.
        resolutions: sizes of the result, ints or (width, height). None keeps the sizes of the images, which
            must all be the same power of two.
        transform: none | center-crop | center-crop-wide | center-crop-dhariwal.
        filter: resize filter: nearest, box, bilinear, hamming, bicubic, lanczos. None = lanczos, or that of
            center-crop-dhariwal.
        background: CSS colour under transparent pixels.
        channels: 1 = grey, 3 = RGB, 4 = RGB and alpha (not premultiplied).
        labels: auto | json | folders | none (see image_data.labels).
        class_names: replaces the source's class names.
        classes: use only these classes, numbered in this order.
        subfolder: use only this part of the source, such as 'train'.
        follow_links: follow links inside a folder.
        max_images: use this many images: the first ones, or a random choice with `subset_seed`.
        subset_seed: seed of the random choice.
        subset: use only these images, in the order of the source.
        columns: the columns or arrays with images and labels.
        workers: number of processes; None = one per core.
        on_error: 'fail' stops at an unreadable image, 'skip' skips it and lists it in the result.
        overwrite: replace an existing data set.
        compress_level: zlib level of the PNGs.
        progress: called with (images done, total images).

    Raises:
        ValueError: one line about the arguments or the source. No incomplete data set remains.
    """
    started = time.monotonic()
    if on_error not in ("skip", "fail"):
        raise ValueError(f"--on-error={on_error}: must be skip or fail")
    workers = count_workers(workers)
    sizes = [(size, size) if isinstance(size, int) else size for size in resolutions or []]
    preparation = _plan(sizes, transform, filter, background, channels, compress_level)
    paths = _checked_paths(os.fspath(dest), sizes, overwrite, source)
    if not isinstance(source, Source):
        source = sources.open_source(source, labels, class_names, subfolder, follow_links, columns)
    indices, source = select(source, max_images, subset_seed, classes, subset)
    selection = _selection(max_images, subset_seed, subset, classes)
    job = _Job(source, indices, preparation, paths, selection)
    return _report(job, _run(job, workers, on_error == "fail", progress), time.monotonic() - started)


def _selection(
    max_images: int | None, subset_seed: int | None, subset: Subset | None, classes: Sequence[str] | None
) -> dict[str, Any]:
    """What the metadata says about the selection of images."""
    options = {
        "max_images": max_images,
        "subset_seed": subset_seed,
        "subset": None if subset is None else subset.describe(),
        "classes": None if classes is None else list(classes),
    }
    return {key: value for key, value in options.items() if value is not None}


def _report(job: _Job, consumer: _Consumer, seconds: float) -> ConvertReport:
    source = job.source
    names = source.class_names or [str(label) for label in range(source.num_classes)]
    empty = [names[label] for label in range(source.num_classes) if not consumer.counts[label]]
    for reason, count in (
        ("unreadable or of another size (--on-error=skip)", len(consumer.skipped)),
        ("too small for the transform", consumer.dropped),
    ):
        if count:
            source.left_out.add(reason, count=count)
    summary = label_rule.summary(source.num_classes, source.origin, source.left_out)
    sizes = [consumer.counts[label] for label in range(source.num_classes)]
    return ConvertReport(
        job.paths,
        consumer.num_images,
        consumer.skipped,
        consumer.dropped,
        empty,
        seconds,
        summary,
        balance(sizes, names),
    )


def _plan(
    sizes: list[Size],
    transform: str,
    filter: str | None,
    background: str,
    channels: int,
    compress_level: int,
) -> Preparation:
    """The checked options of the images. Raises ValueError."""
    if channels not in transforms.MODES:
        raise ValueError(f"--channels={channels}: use 1 (grey), 3 (RGB) or 4 (RGB and alpha)")
    if transform not in TRANSFORMS:
        raise ValueError(f"--transform={transform}: choose one of {', '.join(TRANSFORMS)}")
    if filter is not None and filter not in FILTERS:
        raise ValueError(f"--filter={filter}: choose one of {', '.join(FILTERS)}")
    if filter is not None and transform == "center-crop-dhariwal":
        raise ValueError(
            f"--filter={filter} has no effect: center-crop-dhariwal uses its own filters ({DHARIWAL_FILTER})"
        )
    if not 0 <= compress_level <= 9:
        raise ValueError(f"--compress-level={compress_level}: must be between 0 (stored) and 9")
    _check_sizes(sizes, transform)
    try:
        red, green, blue = ImageColor.getcolor(background, "RGB")[:3]  # type: ignore[index]
    except ValueError:
        raise ValueError(
            f"--background={background} is not a colour; write white, black, #rrggbb, ..."
        ) from None
    return Preparation(
        tuple(sizes) or (None,),
        transform,
        filter or "lanczos",
        (red, green, blue),
        channels=channels,
        compress_level=compress_level,
    )


def _first_image(job: _Job) -> tuple[str, int] | None:
    """Name and width of the first image; None if it cannot be read or there is none.

    With them, images of another size are refused before they are decoded.
    """
    try:
        name, payload = job.source.opener.load(job.source.refs[int(job.indices[0])])
        return name, _width(payload)
    except (ValueError, IndexError):
        return None


def _run(job: _Job, workers: int, fail: bool, progress: Callable[[int, int], None] | None) -> _Consumer:
    """Pass once over the source: send refs to the workers, write their PNGs in order to every data set."""
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
            problem = f"; the first problem: {consumer.skipped[0]}" if consumer.skipped else ""
            raise ValueError(f"{job.source.name}: none of {len(job.indices)} images can be used{problem}")
        labels = [[_image_name(i), label] for i, label in enumerate(consumer.labels)] or None
        for position, write in enumerate(writers):
            index = {"labels": labels, "metadata": job.metadata(position, consumer)}
            write(archives.INDEX_NAME, json.dumps(index).encode())
    return consumer


def count_workers(workers: int | None) -> int:
    """The given number of workers, or the number of cores that this process may use.

    Raises:
        ValueError: less than 1, or far more than there are cores.
    """
    cores = available_cores()
    most = min(max(MIN_MOST_WORKERS, 4 * cores), MAX_WORKERS)
    if workers is not None and not 1 <= workers <= most:
        raise ValueError(f"--workers={workers} must be between 1 and {most} on a machine with {cores} cores")
    return min(workers or cores, most)
