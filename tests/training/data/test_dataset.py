# SPDX-License-Identifier: Apache-2.0
"""Data set, sampler and loader."""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dataset_tool
from image_data import archives
from image_data import png as png_format
from tests import waiting
from tests.image_data import formats
from training.data import dataset as data
from training.data import downscaling


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(index: int, size: int = 8) -> np.ndarray:
    return np.random.RandomState(index).randint(0, 256, [size, size, 3], dtype=np.uint8)


def name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


def write(
    path: Path,
    count: int = 10,
    labels: Any = "mod3",
    metadata: dict[str, Any] | None = None,
    files: dict[str, bytes] | None = None,
    method: int = zipfile.ZIP_STORED,
) -> Path:
    """A data set zip whose image i holds pixels(i)."""
    entries = {name(i): png(pixels(i)) for i in range(count)} if files is None else files
    if labels == "mod3":
        labels = [[key, i % 3] for i, key in enumerate(entries)]
    index = {"labels": labels, "metadata": metadata or {}}
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, content in entries.items():
            archive.writestr(key, content)
        archive.writestr("dataset.json", json.dumps(index))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.zip", metadata={"class_names": ["ant", "bee", "cat"]})


def test_images_labels_and_names(small: Path) -> None:
    dataset = data.ImageDataset(small, use_labels=True)
    assert (
        len(dataset) == 10
        and dataset.name == "small"
        and dataset.image_shape == [3, 8, 8]
        and dataset.resolution == 8
    )
    assert (
        dataset.num_channels == 3
        and dataset.has_labels
        and dataset.label_dim == 3
        and dataset.class_names == ["ant", "bee", "cat"]
    )
    assert (
        dataset.labels is not None
        and dataset.labels.dtype == np.int64
        and dataset.labels.tolist() == [i % 3 for i in range(10)]
    )
    assert dataset.label_distribution().tolist() == [4, 3, 3]
    for i in range(10):
        image, label = dataset[i]
        assert image.dtype == np.uint8 and label == i % 3
        np.testing.assert_array_equal(image, pixels(i).transpose(2, 0, 1))
    assert dataset.get_details(4) == (name(4), 4, False, 1)
    for outside in (10, -1):
        with pytest.raises(IndexError):
            dataset[outside]


def test_without_labels(small: Path) -> None:
    dataset = data.ImageDataset(small)
    assert (
        dataset.labels is None
        and not dataset.has_labels
        and dataset.label_dim == 0
        and dataset.class_names is None
    )
    assert dataset[3][1] == -1
    with pytest.raises(ValueError, match="without labels"):
        dataset.label_distribution()


def test_xflip_doubles_the_set(small: Path) -> None:
    plain, flipped = (
        data.ImageDataset(small, use_labels=True),
        data.ImageDataset(small, use_labels=True, xflip=True),
    )
    assert len(flipped) == 20 and flipped.label_distribution().tolist() == [8, 6, 6]
    for i in range(10):
        np.testing.assert_array_equal(flipped[i][0], plain[i][0])
        np.testing.assert_array_equal(flipped[i + 10][0], plain[i][0][:, :, ::-1])
        assert flipped[i][1] == flipped[i + 10][1] == plain[i][1]
    assert flipped.get_details(13) == (name(3), 3, True, 0)


def test_max_size_is_a_seeded_subset_before_flips(small: Path) -> None:
    first = data.ImageDataset(small, use_labels=True, max_size=4, random_seed=1, xflip=True)
    again = data.ImageDataset(small, use_labels=True, max_size=4, random_seed=1, xflip=True)
    other = data.ImageDataset(small, max_size=4, random_seed=2)
    assert len(first) == 8 and len(other) == 4

    def chosen(dataset: data.ImageDataset) -> list[int]:
        return [dataset.get_details(i).raw_index for i in range(4)]

    assert chosen(first) == chosen(again) == sorted(set(chosen(first))) != chosen(other)
    for i in range(4):
        raw = first.get_details(i).raw_index
        np.testing.assert_array_equal(first[i][0], pixels(raw).transpose(2, 0, 1))
        np.testing.assert_array_equal(first[i + 4][0], pixels(raw).transpose(2, 0, 1)[:, :, ::-1])
        assert first[i][1] == raw % 3 == first[i + 4][1]
    assert len(data.ImageDataset(small, max_size=99)) == 10
    with pytest.raises(ValueError, match="max_size"):
        data.ImageDataset(small, max_size=0)


def test_folder_and_deflated_zip_equal_the_stored_zip(tmp_path: Path, small: Path) -> None:
    with zipfile.ZipFile(small) as archive:
        archive.extractall(tmp_path / "folder")
        files = {key: archive.read(key) for key in archive.namelist() if key != "dataset.json"}
    deflated = write(
        tmp_path / "deflated.zip",
        files=files,
        metadata={"class_names": ["ant", "bee", "cat"]},
        method=zipfile.ZIP_DEFLATED,
    )
    sets = [data.ImageDataset(path, use_labels=True) for path in (small, tmp_path / "folder", deflated)]
    for dataset in sets[1:]:
        np.testing.assert_array_equal(dataset.load(np.arange(10)), sets[0].load(np.arange(10)))
        assert (
            dataset.labels is not None
            and sets[0].labels is not None
            and dataset.labels.tolist() == sets[0].labels.tolist()
        )
        assert dataset.content_hash() == sets[0].content_hash()


def test_content_hash_sees_pixels_names_and_labels(tmp_path: Path, small: Path) -> None:
    original = data.ImageDataset(small).content_hash()
    assert data.ImageDataset(small, use_labels=True, xflip=True, max_size=3).content_hash() == original
    names = {"class_names": ["ant", "bee", "cat"]}
    files = {name(i): png(pixels(i)) for i in range(10)}
    labels = [[key, i % 3] for i, key in enumerate(files)]
    assert (
        data.ImageDataset(write(tmp_path / "same.zip", files=files, metadata=names)).content_hash()
        == original
    )
    changed = {**files, name(7): png(pixels(70))}
    renamed = {("x.png" if key == name(9) else key): value for key, value in files.items()}
    relabelled = [[key, 1] for key, _ in labels]
    hashes = {
        original,
        data.ImageDataset(write(tmp_path / "a.zip", files=changed, metadata=names)).content_hash(),
        data.ImageDataset(
            write(tmp_path / "b.zip", files=renamed, metadata=names, labels=labels)
        ).content_hash(),
        data.ImageDataset(
            write(tmp_path / "c.zip", files=files, metadata=names, labels=relabelled)
        ).content_hash(),
    }
    assert len(hashes) == 4


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_hashes_of_images_whose_names_are_not_text(tmp_path: Path) -> None:
    for i in range(2):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff%d.png" % i)).write_bytes(png(pixels(i)))
    dataset = data.ImageDataset(tmp_path)
    assert len(dataset.sample_hash()) == len(dataset.content_hash()) == 64


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([[name(0), 2.0], [name(1), 0]], [2, 0]),
        ([[name(0), [0, 0, 1, 0]], [name(1), [1.0, 0, 0, 0]]], [2, 0]),
        ({name(0): 1, name(1): 0}, [1, 0]),
        ([[name(1).replace("/", "\\"), 1], [name(0), 0]], [0, 1]),
    ],
)
def test_label_forms(tmp_path: Path, labels: Any, expected: list[int]) -> None:
    dataset = data.ImageDataset(write(tmp_path / "x.zip", 2, labels), use_labels=True)
    assert dataset.labels is not None and dataset.labels.tolist() == expected
    assert dataset.label_dim == (
        4 if isinstance(labels, list) and isinstance(labels[0][1], list) else max(expected) + 1
    )


@pytest.mark.parametrize("count, num_classes", [(5, 1), (2000, 2000)])
def test_one_class_and_many(tmp_path: Path, count: int, num_classes: int) -> None:
    image = png(pixels(0, 2))
    files = {name(i): image for i in range(count)}
    labels = [[key, i % num_classes] for i, key in enumerate(files)]
    dataset = data.ImageDataset(write(tmp_path / "x.zip", files=files, labels=labels), use_labels=True)
    assert (
        dataset.label_dim == num_classes
        and dataset.label_distribution().tolist() == [count // num_classes] * num_classes
    )


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "no labels in dataset.json"),
        ([], "no labels in dataset.json"),
        ([[name(0), 0]], "1 of 2 images have no label"),
        ([[name(0), 0], [name(1), 0], ["gone.png", 0]], "the first is gone.png (not found)"),
        ([[name(0), 0], [name(1), -1]], 'is -1, which means "unknown"'),
        ([[name(0), 0], [name(1), None]], "a class index"),
        ([[name(0), 0], [name(1), 0.5]], "a class index"),
        ([[name(0), 0], [name(1), "cat"]], "a class index"),
        ([[name(0), 0], [name(1), True]], "a class index"),
        ([[name(0), 0], [name(1), [0, 0]]], "not one-hot"),
        ([[name(0), 0], [name(1), [0.5, 0.5]]], "not one-hot"),
        ([[name(0), 0], [name(1), []]], "not one-hot"),
        ([[name(0), 0], [name(0), 1]], "two labels"),
        ([[name(0), 0], ["../x.png", 1]], "leads out of the folder"),
        ([name(0)], "must be a list of"),
        ([[name(0), 0], [name(1), 5]], "label 5 has no name"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    path = write(tmp_path / "x.zip", 2, labels, {"class_names": ["ant", "bee"]})
    with pytest.raises(ValueError) as caught:
        data.ImageDataset(path, use_labels=True)
    assert message in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)


def rgba_png() -> bytes:
    return png(np.zeros([8, 8, 4], dtype=np.uint8))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no images found"),
        ({"a.png": png(np.zeros([8, 16, 3], np.uint8))}, "must be square"),
        ({"a.png": png(np.zeros([12, 12, 3], np.uint8))}, "power of two"),
        ({"a.png": b"not a picture"}, "a.png: not a readable image"),
    ],
)
def test_bad_images_are_refused_at_once(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.ImageDataset(write(tmp_path / "x.zip", files=files, labels=None))


@pytest.mark.parametrize(
    "content, message",
    [
        (png(np.zeros([4, 4, 3], np.uint8)), "is 4x4, but the first image is 8x8"),
        (rgba_png(), "mode RGBA"),
        (png(pixels(1))[:-60], "cannot be decoded"),
        (b"", "not a readable image"),
    ],
)
def test_bad_images_are_named_when_read(tmp_path: Path, content: bytes, message: str) -> None:
    dataset = data.ImageDataset(
        write(tmp_path / "x.zip", files={"a.png": png(pixels(0)), "b.png": content}, labels=None)
    )
    dataset[0]
    with pytest.raises(ValueError, match=message) as caught:
        dataset[1]
    assert "b.png" in str(caught.value)


def test_other_refusals(tmp_path: Path, small: Path) -> None:
    with pytest.raises(ValueError, match="expected 16x16"):
        data.ImageDataset(small, resolution=16)
    with pytest.raises(ValueError, match="no such file"):
        data.ImageDataset(tmp_path / "gone.zip")
    (tmp_path / "broken.zip").write_bytes(small.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a readable zip"):
        data.ImageDataset(tmp_path / "broken.zip")
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive,
    ):
        archive.writestr("a.png", png(pixels(0)))
        archive.writestr("a.png", png(pixels(1)))
    with pytest.raises(ValueError, match="exists twice"):
        data.ImageDataset(tmp_path / "twice.zip")


def test_damaged_bytes_inside_a_zip_are_noticed(small: Path) -> None:
    content = bytearray(small.read_bytes())
    start = content.index(png(pixels(5)))
    content[start + 60] ^= 1
    small.write_bytes(content)
    dataset = data.ImageDataset(small)
    dataset[4]
    with pytest.raises(ValueError, match="CRC"):
        dataset[5]


@pytest.mark.parametrize("is_zip", [True, False])
def test_sets_of_any_png_encoder_have_the_same_pixels(tmp_path: Path, is_zip: bool) -> None:
    images, seen = np.stack([pixels(i, 16) for i in range(5)]), []
    for level in (0, 6):
        path = tmp_path / (f"level{level}.zip" if is_zip else f"level{level}")
        dataset_tool.convert(dataset_tool.array_source("a", images), path, workers=1, compress_level=level)
        dataset = data.ImageDataset(path, xflip=True)
        batch = np.full([4, 3, 16, 16], 7, dtype=np.uint8)
        assert dataset.load(np.array([3, 8, 0, 5]), out=batch) is batch
        seen.append(batch)
    expected = images.transpose(0, 3, 1, 2)
    expected = np.stack([expected[3], expected[3][:, :, ::-1], expected[0], expected[0][:, :, ::-1]])
    assert np.array_equal(seen[0], expected) and np.array_equal(seen[1], expected)


def test_damaged_files_of_a_folder_are_noticed(tmp_path: Path) -> None:
    images = np.stack([pixels(i, 16) for i in range(2)])
    dataset_tool.convert(dataset_tool.array_source("a", images), tmp_path / "set", workers=1)
    dataset = data.ImageDataset(tmp_path / "set")
    file = tmp_path / "set" / name(1)
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    assert not png_format.decode_into(bytes(content), np.empty([3, 16, 16], np.uint8))
    file.write_bytes(content[:400])
    dataset[0]
    with pytest.raises(ValueError, match=f"{name(1)} cannot be decoded"):
        dataset[1]


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    grey = pixels(0)[:, :, 0]
    dataset = data.ImageDataset(write(tmp_path / "x.zip", files={"a.png": png(grey)}, labels=None))
    np.testing.assert_array_equal(dataset[0][0], np.stack([grey] * 3))


def test_threads_share_one_data_set(small: Path) -> None:
    dataset = data.ImageDataset(small)
    failures: list[int] = []

    def read(seed: int) -> None:
        for i in np.random.RandomState(seed).randint(0, 10, 200).tolist():
            if not np.array_equal(dataset[i][0], pixels(i).transpose(2, 0, 1)):
                failures.append(i)

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def read_many(dataset: data.ImageDataset, seed: int, queue: Any) -> None:
    wrong = [
        i
        for i in np.random.RandomState(seed).randint(0, 10, 300).tolist()
        if not np.array_equal(dataset[i][0], pixels(i).transpose(2, 0, 1))
    ]
    queue.put(wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_share_one_data_set(small: Path) -> None:
    dataset = data.ImageDataset(small)
    dataset[0]  # the file is open before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=read_many, args=(dataset, seed, queue)) for seed in range(2)]
    for process in processes:
        process.start()
    results = [waiting.until(lambda: not queue.empty(), *processes) and queue.get() for _ in processes]
    waiting.join(*processes)
    assert results == [[], []]


def test_pickled_data_set_reads_again(small: Path) -> None:
    dataset = data.ImageDataset(small, use_labels=True, xflip=True)
    dataset.use_cache(1)
    before = dataset.load(np.arange(20))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).load(np.arange(20)), before)
    dataset.close()
    np.testing.assert_array_equal(dataset.load(np.arange(20)), before)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 30),
    start=st.integers(0, 200),
    counts=st.lists(st.integers(0, 40), max_size=5),
    seed=st.integers(0, 2**31 - 1),
)
def test_sampler_is_a_pure_function_of_position(n: int, start: int, counts: list[int], seed: int) -> None:
    whole = data.sample_indices(seed, start, sum(counts), n)
    starts = [start + sum(counts[:i]) for i in range(len(counts))]
    parts = [
        data.sample_indices(seed, begin, count, n)
        for begin, count in reversed(list(zip(starts, counts, strict=True)))
    ]
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(np.concatenate([*reversed(parts), np.empty(0, np.int64)]), whole)


def test_sampler_epochs_are_different_permutations() -> None:
    epochs = data.sample_indices(3, 0, 5 * 50, 50).reshape(5, 50)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(50), [5, 1]))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5
    assert not np.array_equal(data.sample_indices(4, 0, 50, 50), epochs[0])
    epochs[:] = 0  # what callers do to their copy does not reach the next call
    assert data.sample_indices(3, 0, 50, 50).max() == 49
    for bad in ((0, -1, 1, 5), (0, 0, -1, 5), (0, 0, 1, 0)):
        with pytest.raises(ValueError, match="sample_indices"):
            data.sample_indices(*bad)


LABELS = np.array([0] * 37 + [3] * 2 + [4] * 10)  # 1 and 2 have no images


def test_balanced_epochs_show_every_class_equally_often() -> None:
    balanced = data.BalancedClasses(np.random.RandomState(0).permutation(LABELS))
    labels = np.random.RandomState(0).permutation(LABELS)
    assert (balanced.classes.tolist(), balanced.per_class, balanced.epoch_length) == ([0, 3, 4], 17, 51)
    shown = data.sample_indices(5, 0, 37 * 51, 49, balanced)
    for epoch in shown.reshape(37, 51):
        assert np.bincount(labels[epoch]).tolist() == [17, 0, 0, 17, 17]
    for epochs in (1, 2, 7, 37):  # no image of a class is two showings ahead of another
        counts = np.bincount(shown[: epochs * 51], minlength=49)
        assert all(np.ptp(counts[labels == label]) <= 1 for label in (0, 3, 4))
    neighbours = labels[shown][:-1] == labels[shown][1:]
    assert 0.25 < neighbours.mean() < 0.4  # in random order, not one class after the other
    assert not np.array_equal(data.sample_indices(6, 0, 51, 49, balanced), shown[:51])


@pytest.mark.parametrize("length", [2, 3, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_runs_of_a_class_are_epochs_in_another_order(length: int, balanced: bool) -> None:
    labels = np.random.RandomState(0).permutation(LABELS)
    inner = data.BalancedClasses(labels) if balanced else None
    order = data.ClassRuns(labels, length, inner)
    assert order.epoch_length == (51 if balanced else 49)
    shown = data.sample_indices(5, 0, 12 * order.epoch_length, 49, order)
    plain = data.sample_indices(5, 0, 12 * order.epoch_length, 49, inner)
    epochs, expected = (x.reshape(12, order.epoch_length) for x in (shown, plain))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.sort(expected, axis=1))
    whole = labels[shown][: len(shown) // length * length].reshape(-1, length)
    alike = (whole == whole[:, :1]).all(axis=1).reshape(-1)
    # at most length - 1 images of each of three classes fill no run, and one run may be split at a boundary
    mixed = 12 * (3 * (length - 1) + length) / length
    assert (~alike).sum() <= mixed < len(whole) / 2
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 12
    of_runs = labels[shown[: len(shown) // length * length : length]]
    assert (of_runs[1:] == of_runs[:-1]).mean() < 0.85, "not one class after the other"


def test_runs_longer_than_every_class_leave_the_order_as_it_is() -> None:
    order = data.ClassRuns(LABELS, 64)
    np.testing.assert_array_equal(data.sample_indices(5, 0, 98, 49, order), data.sample_indices(5, 0, 98, 49))


@settings(deadline=None, max_examples=40)
@given(
    start=st.integers(0, 400), counts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 2**31 - 1)
)
def test_balanced_sampler_is_a_pure_function_of_position(start: int, counts: list[int], seed: int) -> None:
    whole = data.sample_indices(seed, start, sum(counts), 49, data.BalancedClasses(LABELS))
    again = data.BalancedClasses(LABELS)
    starts = [start + sum(counts[:i]) for i in range(len(counts))]
    parts = [
        data.sample_indices(seed, begin, count, 49, again)
        for begin, count in zip(starts, counts, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate([*parts, np.empty(0, np.int64)]), whole)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache_mb", [0, 16])
def test_loader_gives_the_batches_in_order(
    small: Path, workers: int, cache_mb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CHUNK_IMAGES", 3)
    dataset = data.ImageDataset(small, use_labels=True, xflip=True)
    batches = [data.sample_indices(0, start, 7, len(dataset)) for start in range(0, 70, 7)]
    with data.Loader(dataset, iter(batches), workers=workers, prefetch=3, cache_mb=cache_mb) as loader:
        seen = list(loader)
    assert len(seen) == len(batches)
    for (images, labels), indices in zip(seen, batches, strict=True):
        assert images.dtype == torch.uint8 and labels is not None and labels.dtype == torch.int64
        np.testing.assert_array_equal(images.numpy(), np.stack([dataset[i][0] for i in indices]))
        np.testing.assert_array_equal(labels.numpy(), [dataset[i][1] for i in indices])


def test_loader_decodes_a_cached_set_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data.ImageDataset(small, xflip=True)
    decoded: list[str] = []
    original = archives.ZipReader.read

    def counted(self: archives.ZipReader, entry: archives.Entry, limit: int | None = None) -> bytes:
        decoded.append(entry.name)
        return original(self, entry, limit)

    monkeypatch.setattr(archives.ZipReader, "read", counted)
    batches = [np.arange(20)] * 4
    with data.Loader(dataset, batches, workers=0, cache_mb=1) as loader:
        assert all(labels is None for _, labels in loader)
    assert sorted(decoded) == [name(i) for i in range(10)]
    assert not data.ImageDataset(small).use_cache(1e-4) and dataset.use_cache(0)


def test_loader_prefetches_a_bounded_number_of_batches_of_an_endless_stream(small: Path) -> None:
    taken = 0

    def stream() -> Any:
        nonlocal taken
        for start in itertools.count(0, 4):
            taken += 1
            yield data.sample_indices(0, start, 4, 10)

    before = threading.active_count()
    with data.Loader(data.ImageDataset(small), stream(), workers=2, prefetch=3) as loader:
        for step in range(1, 6):
            next(loader)
            assert taken <= step + 3
        assert threading.active_count() > before
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


def test_loader_reports_an_unreadable_image_and_stops(tmp_path: Path) -> None:
    files = {f"{i}.png": png(pixels(i)) for i in range(4)} | {"4.png": b"junk"}
    dataset = data.ImageDataset(write(tmp_path / "x.zip", files=files, labels=None))
    before = threading.active_count()
    with data.Loader(dataset, [np.arange(4), np.arange(5)], workers=2) as batches:
        next(batches)
        with pytest.raises(ValueError, match=r"4\.png"):
            next(batches)
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="workers"):
        data.Loader(dataset, [], workers=-1)


# Labels by the rule of image_data/labels.py.


def test_folders_are_classes_where_there_is_no_dataset_json(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    for i, kind in enumerate(("ant", "bee", "ant")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{i}.png").write_bytes(png(pixels(i)))
    (folder / "ant" / "notes.txt").write_text("x")
    dataset = data.ImageDataset(folder, use_labels=True)
    assert (
        dataset.class_names == ["ant", "bee"]
        and dataset.labels is not None
        and dataset.labels.tolist() == [0, 0, 1]
    )
    assert dataset.label_dim == 2
    assert (
        dataset.labels_summary
        == "2 classes, from the folders ant, bee; left out: 1 with an unsupported extension (.txt)"
    )
    few = data.ImageDataset(folder, use_labels=True, max_size=1)
    assert few.labels_summary.endswith(
        "left out: 1 with an unsupported extension (.txt), 2 beyond --max-images"
    )
    plain = data.ImageDataset(folder)
    assert plain.labels is None and plain.labels_summary.startswith(
        "no classes (not used; there are 2, from the folders ant, bee); left out: 1 "
    )
    assert plain.content_hash() == dataset.content_hash()


def test_a_wrapped_data_set_is_the_data_set(tmp_path: Path, small: Path) -> None:
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(tmp_path / "wrapped.zip", "w") as wrapped:
        for key in source.namelist():
            wrapped.writestr(f"my/set/{key}", source.read(key))
    for use_labels in (True, False):
        ours, theirs = (
            data.ImageDataset(tmp_path / "wrapped.zip", use_labels=use_labels),
            data.ImageDataset(small, use_labels=use_labels),
        )
        assert (
            ours.content_hash() == theirs.content_hash()
            and ours.metadata == theirs.metadata
            and ours.class_names == theirs.class_names
        )
        np.testing.assert_array_equal(ours.load(np.arange(10)), theirs.load(np.arange(10)))
    assert (
        data.ImageDataset(tmp_path / "wrapped.zip", use_labels=True).labels_summary
        == "3 classes, from my/set/dataset.json; left out: nothing"
    )


def test_what_may_be_meant_in_two_ways_is_refused_or_told(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("ant", "bee"):
            (tmp_path / "root" / split / kind).mkdir(parents=True)
            (tmp_path / "root" / split / kind / "0.png").write_bytes(png(pixels(0)))
    with pytest.raises(ValueError, match="train and val are splits, not classes"):
        data.ImageDataset(tmp_path / "root", use_labels=True)
    dataset = data.ImageDataset(tmp_path / "root")
    assert (
        len(dataset) == 4
        and "not used; train and val are splits" in dataset.labels_summary
        and dataset.label_mode == "none"
    )
    assert data.ImageDataset(tmp_path / "root" / "train", use_labels=True).class_names == ["ant", "bee"]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(pixels(0)))
    with pytest.raises(
        ValueError, match=r"no labels: no dataset\.json and no class folders; train without --cond"
    ):
        data.ImageDataset(tmp_path, use_labels=True)


def test_channels_are_those_of_the_metadata_or_chosen(small: Path, tmp_path: Path) -> None:
    rgb = data.ImageDataset(small)
    grey = data.ImageDataset(small, channels=1)
    assert grey.image_shape == [1, 8, 8]
    luminance = np.asarray(Image.fromarray(pixels(2)).convert("L"))
    np.testing.assert_array_equal(grey[2][0][0], luminance)
    alpha = data.ImageDataset(small, channels=4)
    assert (alpha[2][0][3] == 255).all() and (alpha[2][0][:3] == rgb[2][0]).all()
    stored = write(tmp_path / "grey.zip", 3, metadata={"channels": 1}, files={name(0): png(luminance)})
    assert data.ImageDataset(stored)[0][0].shape == (1, 8, 8)
    assert data.ImageDataset(stored, channels=3)[0][0].shape == (3, 8, 8)
    for channels in (2, "3", None, [1]):
        bad = write(tmp_path / "bad.zip", 1, metadata={"channels": channels})
        with pytest.raises(ValueError, match=r'"channels" of dataset\.json is .*: 1, 3 and 4 are supported'):
            data.ImageDataset(bad)


def test_shards_are_the_same_data_set_as_a_zip(small: Path, tmp_path: Path) -> None:
    """The same images at the same indices, the same labels, hash and order, also downscaled."""
    with zipfile.ZipFile(small) as archive:
        labels = dict(json.loads(archive.read("dataset.json"))["labels"])
        contents = {key: archive.read(key) for key in labels}
    keys = sorted(labels)
    for shard, part in enumerate((keys[:4], keys[4:])):
        files = {key: contents[key] for key in part}
        files |= {key.replace(".png", ".cls"): str(labels[key]).encode() for key in part}
        formats.write_tar(tmp_path / "shards" / f"train-{shard:03d}.tar", files)
    zipped = data.ImageDataset(small, use_labels=True)
    for path in (tmp_path / "shards", tmp_path / "shards" / "train-{000..001}.tar"):
        dataset = data.ImageDataset(path, use_labels=True)
        indices = data.sample_indices(0, 0, 25, len(dataset))
        np.testing.assert_array_equal(dataset.load(indices), zipped.load(indices))
        assert dataset.labels is not None and zipped.labels is not None
        assert dataset.labels.tolist() == zipped.labels.tolist()
    with data.Loader(dataset, [np.array([3, 9])], workers=1) as loader:
        assert (next(iter(loader))[0].numpy() == zipped.load(np.array([3, 9]))).all()
    smaller = downscaling.downscaled(dataset, 4, workers=1)
    expected = downscaling.downscaled(zipped, 4, workers=1)
    indices = np.arange(len(dataset))
    loaded = [data.ImageDataset(p, use_labels=True).load(indices) for p in (smaller, expected)]
    np.testing.assert_array_equal(*loaded)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.load(indices), zipped.load(indices))


def test_a_table_that_gives_no_labels_does_not_hinder_training_without_them(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.png").write_bytes(png(pixels(i)))
    (folder / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,3\n")
    assert "are mixed" in data.ImageDataset(folder).labels_summary
    with pytest.raises(ValueError, match="are mixed"):
        data.ImageDataset(folder, use_labels=True)


def test_files_made_from_shards_lie_beside_them(tmp_path: Path) -> None:
    formats.write_shards(tmp_path / "a")
    for path, folder in (
        (tmp_path / "a", tmp_path),
        (tmp_path / "a" / "train-{000..001}.tar", tmp_path / "a"),
    ):
        assert data.ImageDataset(path).parent_folder == folder


def test_sources_that_are_no_data_sets_name_the_tool(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"x\.parquet: \.parquet files cannot be used directly"):
        data.ImageDataset(tmp_path / "x.parquet")
