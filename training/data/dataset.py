# SPDX-License-Identifier: Apache-2.0
"""Training images: a data set in StyleGAN's format, its labels, a deterministic sampler and a loader.

The format is what dataset_tool.py writes and stylegan3's tools read: square power-of-two PNGs in
00000/img00000000.png folders, and a dataset.json with {"labels": [["00000/img00000000.png", 3], ...],
"metadata": {"class_names": [...], ...}}.

Shapes: N images (flipped and turned copies included), B batch, C channels, R resolution.
"""

import functools
import hashlib
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.progress import Progress
from image_data import archives, labels, local_copy, shards
from image_data.transforms import MODES
from torch_utils import rng
from training.config import THREADS, WORKERS_KINDS
from training.data import decoding, processes
from training.data.decoding import Decoder
from training.data.views import View, views

CHUNK_IMAGES = 64  # images that a thread decodes per task, at most
SAMPLE_IMAGES = 16  # that `ImageDataset.sample_hash` reads


class Unlabelled(ValueError):
    """A data set whose labels are to be used has none. Its only argument is the problem."""

    @property
    def problem(self) -> str:
        """The message without what to do about it when training."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.problem}; train without --cond, or prepare the data with one sub-folder per class"


class ImageDetails(NamedTuple):
    """The origin of one image of the data set."""

    name: str  # path inside the archive
    raw_index: int  # among the archive's images, sorted by name
    xflip: bool
    raw_label: int  # -1 without labels


class ImageDataset:
    """Square power-of-two images with optional class labels, read on demand.

    image_data/labels.py determines the label of each image.

    Args:
        path: Zip file, folder or tar shards with images in StyleGAN's format.
        resolution: Resolution that the images must have; None = any.
        use_labels: Use the class labels. Otherwise the data set is unconditional.
        xflip: Double the data set virtually: add the horizontally flipped copy of every image.
        max_size: Keep a random subset of this many images (without copies) in archive order.
        random_seed: Seed of the subset.
        yflip: Double it again: add the vertically flipped copy of every image and of its copies.
        quarter_turns: Add the copies of all of these that are turned by 90, 180 and 270 degrees.
        channels: Channels C of the images: 1 (grey), 3 (RGB) or 4 (RGB and alpha, not premultiplied). None =
            those in the metadata of the data set, or else 3.

    Attributes:
        decoder: Reads and decodes the images.
        views: The copies. With n images and V views, index i + k n is copy `views[k]` of image i.

    Raises:
        ValueError: One line about what is wrong with the path, the images or the labels.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        max_size: int | None = None,
        random_seed: int = 0,
        yflip: bool = False,
        quarter_turns: bool = False,
        channels: int | None = None,
    ):
        self.path = os.fspath(path)
        self.local_copies: str | None = None  # the folder of `use_local_copy`
        whole = archives.open_archive(self.path, index=True)
        if whole.duplicates:
            raise ValueError(f"{self.path}: {whole.twice(whole.duplicates[0])}")
        if not whole.images:
            raise ValueError(
                f"{self.path}: no images found (left out: {whole.left_out}); prepare a data set with "
                "dataset_tool.py"
            )
        found, self._origin, self.label_mode = find_labels(whole, use_labels)
        self._archive = found.archive
        self._index = archives.read_index(self._archive)
        self.name = self._archive.name
        self.metadata: dict[str, Any] = self._index.metadata
        first = self._archive.images[0]
        with decoding.open_image(
            self.path, first, decoding.read(self.path, self._archive.reader, first)
        ) as image:
            self.resolution = _find_resolution(f"{self.path}: {first.name}", image.size, resolution)
        self.num_channels = _find_channels(self.path, self.metadata, channels)
        self.image_shape = [self.num_channels, self.resolution, self.resolution]
        self.decoder = Decoder(self.path, self._archive.reader, self.resolution, self.num_channels)
        self.views = views(xflip, yflip, quarter_turns)

        num_raw = len(self._archive.images)
        self._raw_indices = np.arange(num_raw, dtype=np.int64)
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size must be at least 1, not {max_size}")
        if max_size is not None and max_size < num_raw:
            order = np.random.RandomState(random_seed % 2**31).permutation(num_raw)
            self._raw_indices = np.sort(order[:max_size]).astype(np.int64)
            self._archive.left_out.add("beyond --max-images", count=num_raw - max_size)

        self.class_names: list[str] | None = None
        self.label_dim = 0
        self.labels: np.ndarray | None = None  # int64 [N]
        if use_labels:
            assert found.labels is not None
            self.labels = np.tile(found.labels[self._raw_indices], len(self.views))
            self.label_dim = found.num_classes
            self.class_names = found.class_names
        self.is_planned = False  # its images do not exist yet (training.data.downscaling.planned)
        self._cache: _ImageCache | None = None
        self._content_hash: str | None = None
        self._sample_hash: str | None = None

    def __len__(self) -> int:
        return len(self._raw_indices) * len(self.views)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    @property
    def parent_folder(self) -> Path:
        """The folder of the zip, folder or shards, for files that are made from the data set."""
        reader = self._archive.reader
        if isinstance(reader, shards.ShardReader) and not os.path.exists(self.path):  # a pattern
            return Path(reader.shards[0]).absolute().parent
        return Path(self.path).absolute().parent

    @property
    def num_originals(self) -> int:
        """Number of images without copies."""
        return len(self._raw_indices)

    @property
    def num_archived(self) -> int:
        """Number of images in the archive, including those outside the subset."""
        return len(self._archive.images)

    @property
    def labels_summary(self) -> str:
        """One line: number of classes, origin of the labels, files of the archive that are ignored."""
        return labels.summary(self.label_dim, self._origin, self._archive.left_out)

    @property
    def has_labels(self) -> bool:
        """Whether labels are used."""
        return self.labels is not None

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return (uint8 [C, R, R], class index or -1)."""
        label = self.get_details(index).raw_label
        return self.load(np.array([index]))[0], label

    def get_details(self, index: int) -> ImageDetails:
        """Return the name, position in the archive, flip and label of image `index`."""
        copy, row = self._place(int(index))
        raw_index = int(self._raw_indices[row])
        label = -1 if self.labels is None else int(self.labels[row])
        return ImageDetails(self._archive.images[raw_index].name, raw_index, self.views[copy].xflip, label)

    def locate(self, index: int) -> tuple[archives.Entry, View]:
        """Return the place of image `index` in the archive, and which copy it is."""
        copy, row = self._place(index)
        return self._archive.images[self._raw_indices[row]], self.views[copy]

    def load(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Load images.

        Args:
            indices: Image indices [B].
            out: Array to write to, or None.

        Returns:
            uint8 [B, C, R, R].
        """
        if out is None:
            out = np.empty([len(indices), *self.image_shape], dtype=np.uint8)
        for position, index in enumerate(np.asarray(indices).tolist()):
            copy, row = self._place(index)
            self._load_row(row, self.views[copy].target(out[position]))
        return out

    def use_cache(self, limit_mb: float) -> bool:
        """Keep decoded images in memory if all of them fit in `limit_mb` MiB.

        The cache is filled as images are read.

        Returns:
            Whether they fit.
        """
        if (
            self._cache is None
            and len(self._raw_indices) * int(np.prod(self.image_shape)) <= limit_mb * 2**20
        ):
            self._cache = _ImageCache(len(self._raw_indices), self.image_shape)
        return self._cache is not None

    def label_distribution(self) -> np.ndarray:
        """Return the number of images per class, int64 [label_dim]."""
        if self.labels is None:
            raise ValueError(f"{self.path}: the data set is used without labels")
        return np.bincount(self.labels, minlength=self.label_dim)

    @property
    def has_checksums(self) -> bool:
        """Whether `content_hash` needs no image to be read."""
        return self._content_hash is not None or all(entry.crc >= 0 for entry in self._archive.images)

    def content_hash(self) -> str:
        """Return a sha256 (hex) of dataset.json and the name, size and CRC-32 of every image.

        It identifies the archive, not how it is used (subset, copies, labels). For a zip the values come from
        its directory. A folder is read completely, once, and has the same hash as a zip of the same files.
        """
        if self._content_hash is not None:
            return self._content_hash
        digest = hashlib.sha256(self._index.raw)
        entries = self._archive.images
        progress = Progress(label=f"Reading {self.path} for its hash", unit="images", silent=5)
        for done, entry in enumerate(entries, 1):
            size, crc = entry.size, entry.crc
            if crc < 0:
                data = self._archive.reader.read(entry)
                size, crc = len(data), zlib.crc32(data)
                progress(done, len(entries))
            digest.update(f"{entry.name}\0{size}\0{crc}\n".encode(errors="surrogateescape"))
        self._content_hash = digest.hexdigest()
        return self._content_hash

    def sample_hash(self) -> str:
        """Return a sha256 (hex) of dataset.json, the names of all images and the bytes of SAMPLE_IMAGES.

        If it differs, so does `content_hash`, which reads all images of a folder.
        """
        if self._sample_hash is None:
            digest = hashlib.sha256(self._index.raw)
            names = "\0".join(entry.name for entry in self._archive.images)
            digest.update(names.encode(errors="surrogateescape"))
            for data in self._some_files(SAMPLE_IMAGES):
                digest.update(data)
            self._sample_hash = digest.hexdigest()
        return self._sample_hash

    def first_bytes(self, count: int) -> list[bytes]:
        """Return the first bytes of at most `count` image files, evenly spaced over the archive.

        They show the encoding of the images.
        """
        return [data[:16] for data in self._some_files(count)]

    def _some_files(self, count: int) -> list[bytes]:
        """Read at most `count` image files, evenly spaced over the archive."""
        entries = self._archive.images
        places = np.unique(np.linspace(0, len(entries) - 1, min(count, len(entries))).astype(int))
        return [self._archive.reader.read(entries[i]) for i in places]

    def use_local_copy(self, folder: str) -> None:
        """Read the images from a copy in `folder`, which is made if it does not exist.

        Raises:
            ValueError: The copy cannot be made.
        """
        original = self._archive.reader
        self._archive = local_copy.local_copy(self._archive, folder, "--data-cache")
        self.decoder = replace(self.decoder, reader=self._archive.reader, original=original)
        self.local_copies = folder

    def close(self) -> None:
        """Release the file handle. The next read opens it again."""
        self._archive.reader.close()

    def _place(self, index: int) -> tuple[int, int]:
        """(Copy, row of the originals) of image `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return divmod(index, len(self._raw_indices))

    def _load_row(self, row: int, out: np.ndarray) -> None:
        """Write an image, not flipped, to `out`, uint8 [C, R, R] of any strides."""
        if self._cache is not None and self._cache.filled[row]:
            out[...] = self._cache.images[row]
            return
        self.decoder.decode(self._archive.images[self._raw_indices[row]], out)
        if self._cache is not None:
            self._cache.images[row] = out  # two threads may get here; both write the same bytes
            self._cache.filled[row] = True


def _find_resolution(where: str, size: tuple[int, int], wanted: int | None) -> int:
    """The resolution of a data set, from the size of its first image."""
    width, height = size
    if width != height:
        raise ValueError(
            f"{where} is {width}x{height}; images must be square, prepare them with dataset_tool.py"
        )
    if width & (width - 1):
        raise ValueError(
            f"{where} is {width}x{height}; the size must be a power of two, prepare the images with "
            "dataset_tool.py --resolution"
        )
    if wanted is not None and wanted != width:
        raise ValueError(f"{where}: images are {width}x{width}, expected {wanted}x{wanted}")
    return width


def _find_channels(path: str, metadata: dict[str, Any], wanted: int | None) -> int:
    """The number of channels: `wanted`, or that of the metadata."""
    found = metadata.get("channels", 3) if wanted is None else wanted
    if type(found) is not int or found not in MODES:
        where = "channels" if wanted is not None else f'{path}: "channels" of {archives.INDEX_NAME}'
        raise ValueError(f"{where} is {str(found)[:40]}: 1, 3 and 4 are supported")
    return int(found)


def find_labels(archive: archives.Archive, use_labels: bool) -> tuple[labels.Labelling, str, str]:
    """Determine the images of an archive and their classes.

    Without labels no decision is needed: an ambiguity is then only mentioned in the origin.

    Returns:
        The images and their classes; the origin of the labels; the --labels value of dataset_tool.py with the
            same result.

    Raises:
        Unlabelled: There are no labels.
        ValueError: One line about what is wrong with them.
    """
    try:
        found = labels.label(archive)
    except labels.Undecided as error:
        if use_labels:
            raise
        origin = f"not used; {str(error).removeprefix(f'{archive.path}: ')}"
        return labels.Labelling(labels.unwrapped(archive), origin), origin, "none"
    if use_labels and found.labels is None:
        has_index = found.archive.index is not None
        problem = f"no labels in {archives.INDEX_NAME}" if has_index else f"no labels: {found.origin}"
        raise Unlabelled(f"{archive.path}: {problem}")
    if not use_labels and found.labels is not None:
        return found, f"not used; there are {found.num_classes:,}, from {found.origin}", "auto"
    return found, found.origin, "auto"


class _ImageCache:
    """Decoded images by row. Pages of `images` use memory only once they are written."""

    def __init__(self, count: int, image_shape: list[int]):
        self.images = np.empty([count, *image_shape], dtype=np.uint8)
        self.filled = np.zeros(count, dtype=bool)


@functools.lru_cache(maxsize=2)  # a training run uses one epoch at a time, two at a boundary
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    order = np.asarray(rng.permutation(seed, "data_order", epoch, n), dtype=np.int64)
    order.setflags(write=False)
    return order


class BalancedClasses:
    """Draws classes equally often, whatever their sizes.

    An epoch shows every class that has images the same number of times, in random order. That number is the
    mean class size, rounded up. Each class has its own sequence of orders of its images. An epoch continues
    where the previous one stopped, so at the end of an epoch the images of a class have been shown equally
    often, up to a difference of one.

    Args:
        labels: Labels of the images, int64 [n].
    """

    def __init__(self, labels: np.ndarray):
        self.classes = np.unique(labels)  # int64, classes with images, ascending
        by_class = np.argsort(labels, kind="stable")
        self._members = np.split(by_class, np.searchsorted(labels[by_class], self.classes[1:]))
        self.per_class = -(-len(labels) // len(self.classes))
        self.epoch_length = self.per_class * len(self.classes)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return the image indices of one epoch, int64 [epoch_length]."""
        # positions in the sequence of images that a class shows from the start of training
        first, end = epoch * self.per_class, (epoch + 1) * self.per_class
        shown = []
        for label, members in zip(self.classes.tolist(), self._members, strict=True):
            size = len(members)
            passes = range(first // size, -(-end // size))
            order = np.concatenate(
                [rng.permutation(seed, f"data_order/class{label}", i, size) for i in passes]
            )
            shown.append(members[order[first - passes.start * size : end - passes.start * size]])
        shuffle = rng.permutation(seed, "data_order/balanced", epoch, self.epoch_length)
        indices: np.ndarray = np.concatenate(shown)[shuffle]
        return indices


class ClassRuns:
    """Orders the images of each epoch so that runs of consecutive ones share a class.

    Runs start at the positions of training that are multiples of their length. The images of a class that
    fill no run, fewer than one run per class, are at the end of the epoch, or at its beginning up to such a
    position.

    Args:
        labels: Labels of the images, int64 [n].
        length: Images per run.
        balanced: The epochs to be ordered; None = permutations of the data set.
    """

    def __init__(self, labels: np.ndarray, length: int, balanced: BalancedClasses | None = None):
        self._labels, self.length, self._balanced = labels, length, balanced
        self.epoch_length = len(labels) if balanced is None else balanced.epoch_length

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return the image indices of one epoch, int64 [epoch_length]."""
        if self._balanced is None:
            order = _epoch_order(seed, epoch, self.epoch_length)
        else:
            order = self._balanced.epoch(seed, epoch)
        labels = self._labels[order]
        by_class = np.argsort(labels, kind="stable")
        runs, rest = [], []
        for places in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
            full = len(places) // self.length * self.length
            runs.append(places[:full].reshape(-1, self.length))
            rest.append(places[full:])
        of_runs, others = np.concatenate(runs), np.sort(np.concatenate(rest))
        of_runs = of_runs[np.argsort(of_runs[:, -1])]  # as the order completes them
        lead = -epoch * self.epoch_length % self.length
        if lead > len(others) and len(of_runs):
            of_runs, others = of_runs[:-1], np.concatenate([others, of_runs[-1]])
        indices: np.ndarray = order[np.concatenate([others[:lead], of_runs.reshape(-1), others[lead:]])]
        return indices


EpochOrder = BalancedClasses | ClassRuns


@functools.lru_cache(maxsize=2)
def _order_of(order: EpochOrder, seed: int, epoch: int) -> np.ndarray:
    return order.epoch(seed, epoch)


def sample_indices(seed: int, start: int, count: int, n: int, order: EpochOrder | None = None) -> np.ndarray:
    """Return the image indices of training positions start .. start + count - 1.

    Position p is in epoch p // n, and every epoch is its own permutation of the data set. With `order`, the
    epochs are its own. The result is a pure function of the arguments, so a run can resume at any position,
    and splitting a range over processes or calls gives the same sequence.

    Args:
        seed: Seed of the permutations.
        start: First position.
        count: Number of positions.
        n: Number of images.
        order: The epochs; None = plain permutations.

    Returns:
        int64 [count], each in [0, n).
    """
    if n < 1 or start < 0 or count < 0:
        raise ValueError(
            f"sample_indices needs n >= 1, start >= 0, count >= 0; got n={n}, start={start}, count={count}"
        )
    result = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        epoch, offset = divmod(start + done, order.epoch_length if order else n)
        indices = _order_of(order, seed, epoch) if order else _epoch_order(seed, epoch, n)
        part = indices[offset : offset + count - done]
        result[done : done + len(part)] = part
        done += len(part)
    return result


class _Threads:
    """Decodes batches in threads; with 0 of them, in the thread that starts a batch."""

    def __init__(self, dataset: ImageDataset, workers: int, pinned: bool) -> None:
        self._dataset, self._workers, self._pinned = dataset, workers, pinned
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="image-loader") if workers else None
        self._stop = threading.Event()

    def start(self, indices: np.ndarray) -> tuple[torch.Tensor, list[Future[None]]]:
        """Start decoding images."""
        batch = torch.empty(
            [len(indices), *self._dataset.image_shape], dtype=torch.uint8, pin_memory=self._pinned
        )
        images = batch.numpy()
        if self._pool is None:
            self._fill(indices, images)
            return batch, []
        size = min(CHUNK_IMAGES, max(1, -(-len(indices) // self._workers)))
        starts = range(0, len(indices), size)
        parts = [self._pool.submit(self._fill, indices[i : i + size], images[i : i + size]) for i in starts]
        return batch, parts

    def finish(self, started: tuple[torch.Tensor, list[Future[None]]]) -> torch.Tensor:
        """Wait for a batch. Returns uint8 [B, C, R, R], or raises the error of an image."""
        batch, parts = started
        for part in parts:
            part.result()
        return batch

    def close(self) -> None:
        """Stop the threads."""
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, indices: np.ndarray, images: np.ndarray) -> None:
        if not self._stop.is_set():
            self._dataset.load(indices, out=images)


class _Processes:
    """Decodes batches in processes, which are started with the first batch."""

    def __init__(self, dataset: ImageDataset, workers: int, pinned: bool, prefetch: int) -> None:
        self._dataset, self._workers, self._pinned = dataset, workers, pinned
        self._blocks = prefetch + 2  # two are with the consumer while it replaces one batch by the next
        self._most = 0  # images of a batch
        self._pool: processes.Processes | None = None

    def start(self, indices: np.ndarray) -> processes.Batch:
        """Start decoding images."""
        if self._pool is None:
            self._most = len(indices)
            self._pool = processes.Processes(self._dataset.decoder, self._workers, self._most, self._blocks)
        if len(indices) > self._most:
            raise ValueError(
                f"a batch of {len(indices)} images follows one of {self._most}: processes need the largest "
                "batch first"
            )
        return self._pool.start([self._dataset.locate(index) for index in indices.tolist()])

    def finish(self, started: processes.Batch) -> torch.Tensor:
        """Wait for a batch. Returns uint8 [B, C, R, R], or raises the error of an image."""
        assert self._pool is not None
        if not self._pinned:
            return torch.from_numpy(self._pool.finish(started))
        batch = torch.empty([started.size, *self._dataset.image_shape], dtype=torch.uint8, pin_memory=True)
        self._pool.finish(started, out=batch.numpy())
        return batch

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()


class Loader:
    """Iterates over (uint8 tensor [B, C, R, R], int64 tensor [B] or None) in the order of `index_batches`.

    Threads or processes decode images ahead of time. An image that cannot be read raises its ValueError when
    its batch is due. Use it as a context manager, or call close().

    Args:
        dataset: The images.
        index_batches: Index arrays [B], finite or infinite; advanced by the consuming thread only. With
            processes, none is larger than the first.
        workers: Decoding threads or processes; 0 = decode in the consuming thread.
        prefetch: Number of batches in flight.
        cache_mb: Keep the decoded images if the whole data set fits in this many MiB.
        pinned: Decode into pinned memory, which CUDA copies without waiting. With processes, copy into it.
        kind: One of WORKERS_KINDS. Images that `cache_mb` keeps are decoded once, by threads.

    Attributes:
        kind: What decodes.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        index_batches: Iterable[np.ndarray],
        workers: int = 2,
        prefetch: int = 2,
        cache_mb: float = 512,
        pinned: bool = False,
        kind: str = THREADS,
    ):
        if workers < 0 or prefetch < 1 or kind not in WORKERS_KINDS:
            raise ValueError(
                f"Loader needs workers >= 0, prefetch >= 1 and kind in {', '.join(WORKERS_KINDS)}; got "
                f"workers={workers}, prefetch={prefetch}, kind={kind}"
            )
        self._dataset = dataset
        self._index_batches = iter(index_batches)
        self._has_workers = workers > 0
        self._ahead = prefetch if workers else 1
        is_cached = dataset.use_cache(cache_mb)
        self.kind = THREADS if is_cached or not workers else kind
        self._pool: _Threads | _Processes = (
            _Threads(dataset, workers, pinned)
            if self.kind == THREADS
            else _Processes(dataset, workers, pinned, prefetch)
        )
        self._is_closed = False
        self._pending: deque[tuple[np.ndarray, Any]] = deque()  # indices, and what the pool has started

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *args: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._is_closed:
            raise StopIteration
        while len(self._pending) < self._ahead and self._submit():
            pass
        if not self._pending:
            self.close()
            raise StopIteration
        indices, started = self._pending.popleft()
        images = self._pool.finish(started)
        if self._has_workers:
            self._submit()  # before the consumer trains on this batch
        labels = None if self._dataset.labels is None else torch.from_numpy(self._dataset.labels[indices])
        return images, labels

    def close(self) -> None:
        """Stop the threads or processes and end the iteration. Can be called more than once."""
        self._is_closed = True
        self._pending.clear()
        self._pool.close()

    def _submit(self) -> bool:
        """Start decoding the next index batch. Returns False if there is none."""
        indices = next(self._index_batches, None)
        if indices is None:
            return False
        indices = np.asarray(indices, dtype=np.int64)
        self._pending.append((indices, self._pool.start(indices)))
        return True
