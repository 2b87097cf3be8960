# SPDX-License-Identifier: Apache-2.0
"""dataset_tool.py: sources, outputs, mistakes, interruption."""

import gzip
import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import dataset_tool
from image_data import archives, conversion
from image_data import sources as image_sources
from tests import waiting
from tests.toy_data import pixels, png, write_folder, write_zip
from training.data.dataset import ImageDataset

ROOT = Path(__file__).resolve().parent.parent
Twin = tuple[list[np.ndarray], list[int] | None, list[str] | None]  # images, labels, class names
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(params=["folder", "zip", "deflated"])
def write_source(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[Mapping[str, bytes | None]], Path]:
    if request.param == "folder":
        return lambda files: write_folder(tmp_path / "source", files)
    return lambda files: write_zip(
        tmp_path / "source.zip",
        files,
        zipfile.ZIP_DEFLATED if request.param == "deflated" else zipfile.ZIP_STORED,
    )


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        dataset_tool.main, [str(argument) for argument in arguments], catch_exceptions=False
    )


def read(path: Path) -> tuple[list[np.ndarray], list[int] | None, dict[str, Any]]:
    """(images, labels, metadata) of a data set zip, read without the project's own reader."""
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        index = json.loads(archive.read("dataset.json"))
        names = [name for name in archive.namelist() if name != "dataset.json"]
        assert names == [f"{i // 1000:05d}/img{i:08d}.png" for i in range(len(names))]
        if index["labels"] is not None:
            assert [name for name, _ in index["labels"]] == names
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    return (
        images,
        None if index["labels"] is None else [label for _, label in index["labels"]],
        index["metadata"],
    )


def assert_images(path: Path, expected: list[int]) -> None:
    images = read(path)[0]
    assert len(images) == len(expected)
    for image, index in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, pixels(index))


# Sources.


def test_sub_folders_are_classes(write_source: Any, tmp_path: Path) -> None:
    source = write_source(
        {
            "dogs/1.png": png(2),
            "cats/b/2.png": png(1),
            "cats/1.png": png(0),
            "dogs/notes.txt": b"x",
            ".hidden/x.png": b"x",
            "__MACOSX/dogs/._1.png": b"x",
            "Thumbs.db": b"x",
        }
    )
    result = run("--source", source, "--dest", tmp_path / "out.zip")
    assert result.exit_code == 0, result.output
    assert_images(tmp_path / "out.zip", [0, 1, 2])
    _, labels, metadata = read(tmp_path / "out.zip")
    assert labels == [0, 0, 1]
    assert (
        metadata["class_names"] == ["cats", "dogs"]
        and metadata["class_counts"] == [2, 1]
        and metadata["num_images"] == 3
    )
    assert (
        metadata["source"]["name"] == source.name
        and len(metadata["source"]["sha256"]) == 64
        and metadata["resolution"] == 16
    )
    dataset = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert dataset.class_names == ["cats", "dogs"] and dataset.label_distribution().tolist() == [2, 1]


def test_a_wrapping_folder_is_not_a_class_and_numbers_sort_as_numbers(
    write_source: Any, tmp_path: Path
) -> None:
    run(
        "--source",
        write_source({f"set/train/{i}/x.png": png(i) for i in (10, 9, 2)}),
        "--dest",
        tmp_path / "out.zip",
    )
    _, labels, metadata = read(tmp_path / "out.zip")
    assert metadata["class_names"] == ["2", "9", "10"] and labels == [
        2,
        0,
        1,
    ]  # images in the order of their names: 10, 2, 9


def test_one_class_folder_is_one_class(write_source: Any, tmp_path: Path) -> None:
    run(
        "--source", write_source({"cats/1.png": png(0), "cats/2.png": png(1)}), "--dest", tmp_path / "out.zip"
    )
    assert read(tmp_path / "out.zip")[1] == [0, 0]


def test_flat_folder_is_unlabelled(write_source: Any, tmp_path: Path) -> None:
    run("--source", write_source({"b.png": png(1), "a.PNG": png(0)}), "--dest", tmp_path / "out.zip")
    assert_images(tmp_path / "out.zip", [0, 1])
    _, labels, metadata = read(tmp_path / "out.zip")
    assert labels is None and metadata["class_names"] is None and metadata["class_counts"] is None


def test_same_images_same_bytes_whatever_the_container(tmp_path: Path) -> None:
    files: Mapping[str, bytes | None] = {f"{c}/{i}.png": png(i) for i, c in enumerate("abcab")}
    sources = [
        write_folder(tmp_path / "x", files),
        write_zip(tmp_path / "y" / "x.zip", files),
        write_zip(tmp_path / "z" / "x.zip", files, zipfile.ZIP_DEFLATED),
    ]
    for i, source in enumerate(sources):
        dataset_tool.convert(source, tmp_path / f"{i}.zip", workers=1)
    hashes = {read(tmp_path / f"{i}.zip")[2]["source"]["sha256"] for i in range(3)}
    assert len(hashes) == 1
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_dataset_json_is_honoured(write_source: Any, tmp_path: Path) -> None:
    labels = [["x/1.png", [0, 1, 0]], ["y/1.png", [1, 0, 0]]]
    index = {"labels": labels, "metadata": {"class_names": list("pqr"), "filter": "box"}}
    source = write_source({"x/1.png": png(0), "y/1.png": png(1), "dataset.json": json.dumps(index).encode()})
    run("--source", source, "--dest", tmp_path / "out.zip")
    _, found, metadata = read(tmp_path / "out.zip")
    assert (
        found == [1, 0]
        and metadata["class_names"] == ["p", "q", "r"]
        and metadata["class_counts"] == [1, 1, 0]
    )
    assert metadata["source"]["metadata"] == {"filter": "box"}, "how the source was made is kept"
    run("--source", source, "--dest", tmp_path / "folders.zip", "--labels=folders")
    assert read(tmp_path / "folders.zip")[1] == [0, 1]
    run("--source", source, "--dest", tmp_path / "none.zip", "--labels=none")
    assert read(tmp_path / "none.zip")[1] is None


@pytest.mark.parametrize("index", [b'{"labels": null}', None])
def test_unlabelled_stylegan_sets_stay_unlabelled(
    write_source: Any, tmp_path: Path, index: bytes | None
) -> None:
    files = {f"0000{i // 2}/img{i:08d}.png": png(i) for i in range(4)} | (
        {"dataset.json": index} if index else {}
    )
    run("--source", write_source(files), "--dest", tmp_path / "out.zip")
    assert read(tmp_path / "out.zip")[1] is None
    assert_images(tmp_path / "out.zip", [0, 1, 2, 3])


def test_preparing_a_prepared_set_changes_no_pixel(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {f"{c}/{i}.png": png(i) for i, c in enumerate("abc")})
    dataset_tool.convert(source, tmp_path / "1.zip", workers=1)
    dataset_tool.convert(tmp_path / "1.zip", tmp_path / "2.zip", workers=1)
    first, second = read(tmp_path / "1.zip"), read(tmp_path / "2.zip")
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1] and first[2]["class_names"] == second[2]["class_names"]


def write_idx(
    folder: Path, count: int = 12, labels: list[int] | None = None, suffix: str = ".gz", size: int = 28
) -> Path:
    images = np.random.RandomState(0).randint(0, 256, [count, size, size], dtype=np.uint8)
    values = [i % 10 for i in range(count)] if labels is None else labels
    pack = gzip.compress if suffix else bytes
    folder.mkdir(exist_ok=True)
    (folder / f"train-labels-idx1-ubyte{suffix}").write_bytes(
        pack(struct.pack(">II", 0x801, len(values)) + bytes(values))
    )
    path = folder / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(struct.pack(">IIII", 0x803, count, size, size) + images.tobytes()))
    return path


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_pair(tmp_path: Path, suffix: str) -> None:
    path = write_idx(tmp_path / "mnist", suffix=suffix)
    result = run("--source", path, "--dest", tmp_path / "out.zip", "--resolution=32x32", "--filter=nearest")
    assert result.exit_code == 0, result.output
    images, labels, metadata = read(tmp_path / "out.zip")
    assert labels == [*range(10), 0, 1] and metadata["class_names"] == [str(i) for i in range(10)]
    original = np.random.RandomState(0).randint(0, 256, [12, 28, 28], dtype=np.uint8)
    expected = Image.fromarray(original[3]).convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(images[3], np.asarray(expected))
    names = ",".join("abcdefghij")
    run("--source", path, "--dest", tmp_path / "named.zip", "--resolution=32", "--class-names", names)
    assert read(tmp_path / "named.zip")[2]["class_names"] == list("abcdefghij")


def test_idx_mistakes(tmp_path: Path) -> None:
    path = write_idx(tmp_path / "a", labels=[1, 2, 3])
    with pytest.raises(ValueError, match="3 labels for 12 images"):
        image_sources.open_source(path)
    assert image_sources.open_source(path, labels="none").labels is None
    label_path = tmp_path / "a" / "train-labels-idx1-ubyte.gz"
    with pytest.raises(ValueError, match="IDX file of labels"):
        image_sources.open_source(label_path)
    label_path.unlink()
    with pytest.raises(ValueError, match=r"the labels file train-labels-idx1-ubyte\.gz is not beside it"):
        image_sources.open_source(path)
    plain = write_idx(tmp_path / "b", suffix="")
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the file contains 9407"):
        image_sources.open_source(plain)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged IDX"):
        image_sources.open_source(path)
    plain.write_bytes(struct.pack(">IIII", 0x803, 2**31, 2**31, 28))
    with pytest.raises(ValueError, match="over the limit"):
        image_sources.open_source(plain)


def write_cifar(path: Path, kind: int = 10, batches: dict[str, bytes] | None = None) -> Path:
    folder, label_key, names = (
        ("cifar-10-batches-py", b"labels", [f"data_batch_{i}" for i in range(1, 6)])
        if kind == 10
        else ("cifar-100-python", b"fine_labels", ["train"])
    )
    files = {}
    for b, name in enumerate(names):
        data = np.random.RandomState(b).randint(0, 256, [4, 3072], dtype=np.uint8)
        batch = pickle.dumps(
            {b"data": data, label_key: [(4 * b + i) % kind for i in range(4)], b"coarse_labels": [0] * 4},
            protocol=2,
        )
        files[name] = batch.replace(
            b"numpy._core.multiarray", b"numpy.core.multiarray"
        )  # the name numpy had when CIFAR was pickled
    class_names = [f"class {i}".encode() for i in range(kind)]
    files["batches.meta" if kind == 10 else "meta"] = pickle.dumps(
        {b"label_names" if kind == 10 else b"fine_label_names": class_names}, protocol=2
    )
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (files | (batches or {})).items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind, count", [(10, 20), (100, 4)])
def test_cifar_tarballs(tmp_path: Path, kind: int, count: int) -> None:
    result = run("--source", write_cifar(tmp_path / "c.tar.gz", kind), "--dest", tmp_path / "out.zip")
    assert result.exit_code == 0, result.output
    images, labels, metadata = read(tmp_path / "out.zip")
    assert labels == [i % kind for i in range(count)] and metadata["class_names"] == [
        f"class {i}" for i in range(kind)
    ]
    first = (
        np.random.RandomState(0)
        .randint(0, 256, [4, 3072], dtype=np.uint8)[1]
        .reshape(3, 32, 32)
        .transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(images[1], first)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ('touch "$STYLESAN_TEST_TRAP"',)


def test_cifar_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLESAN_TEST_TRAP", str(tmp_path / "trap"))
    with pytest.raises(ValueError, match="refused to load"):
        image_sources.open_source(
            write_cifar(tmp_path / "evil.tar.gz", batches={"data_batch_3": pickle.dumps(Evil())})
        )
    assert not (tmp_path / "trap").exists()
    for content, message in (
        (b"junk", "is not a CIFAR batch"),
        (pickle.dumps({b"data": np.zeros([2, 5], np.uint8), b"labels": [0, 1]}), "32x32"),
        (
            pickle.dumps({b"data": np.zeros([2, 3072], np.uint8), b"labels": [0, 10]}),
            "the largest label is 10",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            image_sources.open_source(write_cifar(tmp_path / "bad.tar.gz", batches={"data_batch_5": content}))
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.add(__file__, "x.py")
    with pytest.raises(ValueError, match="not the python version of CIFAR"):
        image_sources.open_source(tmp_path / "other.tar.gz")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(__file__, "x.py")
    with pytest.raises(ValueError, match=r"other\.tar: no images found; .*1 with an unsupported extension"):
        image_sources.open_source(tmp_path / "other.tar")


MAPPING = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"


@pytest.mark.parametrize("start", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/train"])
def test_ilsvrc_tree(tmp_path: Path, start: str) -> None:
    tree = "ILSVRC/Data/CLS-LOC"
    root = write_folder(
        tmp_path / "imagenet",
        {
            f"{tree}/train/n03126707/a.JPEG": png(2),
            f"{tree}/train/n01440764/b.JPEG": png(0),
            f"{tree}/train/n02012849/c.JPEG": png(1),
            f"{tree}/val/x.JPEG": png(9),
            "LOC_synset_mapping.txt": MAPPING.encode(),
        },
    )
    result = run(
        "--source",
        root / start,
        "--dest",
        tmp_path / "out.zip",
        "--resolution=16x16",
        "--transform=center-crop",
    )
    assert result.exit_code == 0, result.output
    assert_images(tmp_path / "out.zip", [0, 1, 2])
    _, labels, metadata = read(tmp_path / "out.zip")
    assert labels == [0, 1, 2] and metadata["class_names"] == [
        "tench, Tinca tinca",
        "crane (n02012849)",
        "crane (n03126707)",
    ]
    assert (
        metadata["source"]["metadata"]["class_ids"] == ["n01440764", "n02012849", "n03126707"]
        and metadata["source"]["kind"] == "ilsvrc"
    )
    (root / "LOC_synset_mapping.txt").unlink()
    assert image_sources.open_source(root / start).class_names == ["n01440764", "n02012849", "n03126707"]


def write_lmdb(path: Path, count: int) -> None:
    lmdb = pytest.importorskip("lmdb")
    environment = lmdb.open(str(path), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i in range(count):
            transaction.put(f"{i:040x}".encode(), png(i))
    environment.close()


def test_lsun_lmdb(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "bedroom_train_lmdb", 40)
    for workers in (1, 2):
        result = run(
            "--source",
            tmp_path / "bedroom_train_lmdb",
            "--dest",
            tmp_path / f"{workers}.zip",
            "--workers",
            str(workers),
        )
        assert result.exit_code == 0, result.output
    assert_images(tmp_path / "1.zip", list(range(40)))
    assert read(tmp_path / "1.zip")[1] is None
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def lmdb_twin(folder: Path) -> tuple[Path, Twin]:
    """LSUN's databases have no labels."""
    write_lmdb(folder / "x_lmdb", 5)
    return folder / "x_lmdb", ([pixels(i) for i in range(5)], None, None)


def idx_twin(folder: Path) -> tuple[Path, Twin]:
    path = write_idx(folder / "mnist", size=16)
    images = np.random.RandomState(0).randint(0, 256, [12, 16, 16], dtype=np.uint8)
    return path, (list(images), [i % 10 for i in range(12)], [str(i) for i in range(10)])


def cifar_twin(folder: Path, kind: int) -> tuple[Path, Twin]:
    path, batches = write_cifar(folder / "c.tar.gz", kind), 5 if kind == 10 else 1
    rows = [np.random.RandomState(b).randint(0, 256, [4, 3072], dtype=np.uint8) for b in range(batches)]
    images = np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return path, (list(images), [i % kind for i in range(len(images))], [f"class {i}" for i in range(kind)])


def ilsvrc_twin(folder: Path) -> tuple[Path, Twin]:
    tree = {f"ILSVRC/Data/CLS-LOC/train/n0000000{i // 2}/{i}.JPEG": png(i) for i in range(6)}
    images = [pixels(i) for i in range(6)]
    names = [f"n0000000{i}" for i in range(3)]
    return write_folder(folder / "imagenet", tree), (images, [i // 2 for i in range(6)], names)


KNOWN_SETS: dict[str, Callable[[Path], tuple[Path, Twin]]] = {
    "lmdb": lmdb_twin,
    "idx": idx_twin,
    "cifar-10": lambda folder: cifar_twin(folder, 10),
    "cifar-100": lambda folder: cifar_twin(folder, 100),
    "ilsvrc": ilsvrc_twin,
}


@pytest.mark.parametrize("kind", KNOWN_SETS)
def test_a_known_set_gives_the_same_bytes_as_a_folder(kind: str, tmp_path: Path) -> None:
    """As tests/image_data/test_sources.py tests it for the other formats."""
    source, (images, labels, class_names) = KNOWN_SETS[kind](tmp_path)
    files = {f"{i:03d}.png": png(image) for i, image in enumerate(images)}
    pairs = None if labels is None else list(zip(files, labels, strict=True))
    index = {"labels": pairs, "metadata": {"class_names": class_names} if class_names else {}}
    twin = write_folder(tmp_path / "twin", {**files, "dataset.json": json.dumps(index).encode()})
    found = []
    for path, dest in ((source, tmp_path / "set.zip"), (twin, tmp_path / "folder.zip")):
        dataset_tool.convert(path, dest, workers=1)
        with zipfile.ZipFile(dest) as archive:
            found.append({name: archive.read(name) for name in archive.namelist() if name.endswith(".png")})
            written = json.loads(archive.read("dataset.json"))
            found.append((written["labels"], written["metadata"].get("class_names")))
    assert found[:2] == found[2:] and len(found[0]) == len(images)


def test_lmdb_without_the_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"pip install lmdb$"):
        image_sources.open_source(write_folder(tmp_path / "x", {"data.mdb": b""}))


def test_arrays_in_memory(tmp_path: Path) -> None:
    images = np.stack([pixels(i) for i in range(5)])
    dataset_tool.convert(
        dataset_tool.array_source("digits", images, [0, 1, 2, 0, 1], ["a", "b", "c"]),
        tmp_path / "out{res}.zip",
        [16, 8],
        workers=1,
    )
    assert_images(tmp_path / "out16.zip", [0, 1, 2, 3, 4])
    assert read(tmp_path / "out8.zip")[1] == [0, 1, 2, 0, 1]
    for bad, labels, message in (
        (images.astype(float), None, "must be uint8"),
        (images[..., :2], None, "must be uint8"),
        (images, [0], "1 labels for 5"),
        (images, [0, 1, -1, 0, 0], "negative"),
        (images, [0, 1, 3, 0, 0], "the largest label is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset_tool.array_source("digits", bad, labels, ["a", "b", "c"])


def test_2000_classes_and_more_than_a_thousand_images(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, [2000, 4, 4], dtype=np.uint8)
    dataset_tool.convert(
        dataset_tool.array_source("many", images, np.arange(2000)), tmp_path / "out.zip", workers=2
    )
    dataset = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert dataset.label_dim == 2000 and len(dataset) == 2000
    np.testing.assert_array_equal(dataset[1999][0][0], images[1999])
    assert dataset_tool.check(tmp_path / "out.zip", workers=1).problems == []


def test_cifar_idx_and_lmdb_inside_folders_and_zips(write_source: Any, tmp_path: Path) -> None:
    write_cifar(tmp_path / "c.tar.gz")
    write_idx(tmp_path / "mnist")
    with tarfile.open(tmp_path / "c.tar.gz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    cifar = {
        f"cifar-10-batches-py/{path.name}": path.read_bytes()
        for path in (tmp_path / "unpacked" / "cifar-10-batches-py").iterdir()
    }
    idx = {f"mnist/{path.name}": path.read_bytes() for path in (tmp_path / "mnist").iterdir()}
    kaggle = {
        f"{name}/{name}": gzip.decompress(data) for name, data in ((n[6:-3], d) for n, d in idx.items())
    }
    expected = dataset_tool.convert(tmp_path / "c.tar.gz", tmp_path / "expected.zip", workers=1)
    assert expected.summary == "10 classes, from labels of cifar-10-batches-py/; left out: nothing"
    for files in (
        {"cifar-10-python.tar.gz": (tmp_path / "c.tar.gz").read_bytes()},
        {**cifar, "cifar-10-batches-py/test_batch": b"x"},
        {f"data/{name}": data for name, data in cifar.items()},
    ):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        result = run("--source", write_source(files), "--dest", tmp_path / "out.zip", "--overwrite")
        assert result.exit_code == 0, result.output
        assert read(tmp_path / "out.zip")[1] == read(tmp_path / "expected.zip")[1]
        np.testing.assert_array_equal(read(tmp_path / "out.zip")[0], read(tmp_path / "expected.zip")[0])
        assert ("1 of the test split (cifar-10-batches-py/test_batch)" in result.output) == (
            "cifar-10-batches-py/test_batch" in files
        )
    for files in ({**idx, "mnist/t10k-images-idx3-ubyte.gz": b"x"}, kaggle):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        result = run(
            "--source", write_source(files), "--dest", tmp_path / "out.zip", "--overwrite", "--resolution=32"
        )
        assert "labels: 10 classes, from train-labels-idx1-ubyte" in result.output, result.output
        assert read(tmp_path / "out.zip")[1] == [*range(10), 0, 1]
    for files in ({"bedroom_train_lmdb/data.mdb": b"x", "church_train_lmdb/data.mdb": b"x"},):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        source = write_source(files)
        message = (
            "cannot be read from a zip: unpack it"
            if source.suffix
            else "contains 2 LMDBs (bedroom_train_lmdb, church_train_lmdb): select one"
        )
        assert message in run("--source", source, "--dest", tmp_path / "out.zip", "--overwrite").output


# What is told about classes and about what is left out.


def test_one_line_tells_classes_and_what_is_left_out(write_source: Any, tmp_path: Path) -> None:
    source = write_source(
        {
            "cat/1.png": png(0),
            "cat/2.png": png(1),
            "dog/1.png": png(2),
            "dog/readme.txt": b"x",
            "__MACOSX/a.png": b"x",
        }
    )
    left_out = "1 with an unsupported extension (.txt), 1 hidden or system files (__MACOSX)"
    result = run("--source", source, "--dest", tmp_path / "out.zip")
    assert f"labels: 2 classes, from the folders cat, dog; left out: {left_out}\n" in result.output
    assert (
        "labels    2 classes, from dataset.json; left out: nothing\n"
        in run("--check", tmp_path / "out.zip").output
    )
    checked = run("--check", source)
    assert (
        checked.exit_code == 0
        and f"labels    2 classes, from the folders cat, dog; left out: {left_out}\n" in checked.output
    )
    assert "classes   2\n" in checked.output
    result = run("--source", source, "--dest", tmp_path / "cats.zip", "--classes=cat", "--max-images=1")
    assert (
        f"labels: 1 class, from the folders cat, dog; left out: {left_out}, 1 of other classes (--classes), "
        "1 beyond --max-images\n" in result.output
    )
    result = run("--source", source, "--dest", tmp_path / "none.zip", "--labels=none")
    assert f"labels: no classes (as requested); left out: {left_out}\n" in result.output


def test_skipped_and_small_images_are_left_out_too(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "source.zip", {"a.png": png(0, 32), "b.png": b"junk", "c.png": png(1, 16)})
    arguments = ["--resolution=32x16", "--transform=center-crop-wide", "--on-error=skip"]
    result = run("--source", source, "--dest", tmp_path / "out.zip", *arguments)
    expected = (
        "no classes (no dataset.json and no class folders); left out: 1 unreadable or of another size "
        "(--on-error=skip), 1 too small for the transform"
    )
    assert f"labels: {expected}\n" in result.output


def test_one_hot_labels_count_classes_without_images(tmp_path: Path) -> None:
    index = {"labels": [["a.png", [0, 1, 0, 0]]]}
    source = write_zip(tmp_path / "source.zip", {"a.png": png(0), "dataset.json": json.dumps(index).encode()})
    assert (
        "labels: 4 classes, from dataset.json; left out: nothing\n"
        in run("--source", source, "--dest", tmp_path / "out.zip").output
    )
    assert (
        ImageDataset(tmp_path / "out.zip", use_labels=True).label_dim == 4
        and "labels    4 classes" in run("--check", tmp_path / "out.zip").output
    )


def test_splits_and_subfolders(write_source: Any, tmp_path: Path) -> None:
    source = write_source(
        {f"{split}/{c}/{i}.png": png(i) for split in ("train", "val") for i, c in enumerate(("cat", "dog"))}
    )
    result = run("--source", source, "--dest", tmp_path / "out.zip")
    assert (
        result.exit_code == 1
        and "train and val are splits, not classes" in result.output
        and not (tmp_path / "out.zip").exists()
    )
    checked = run("--check", source)
    assert (
        checked.exit_code == 1
        and "problem: " in checked.output
        and "train and val are splits" in checked.output
    )
    result = run("--source", source, "--dest", tmp_path / "out.zip", "--subfolder=train")
    assert "labels: 2 classes, from the folders cat, dog; left out: 2 outside train/ (val)\n" in result.output
    assert read(tmp_path / "out.zip")[1] == [0, 1] and read(tmp_path / "out.zip")[2]["class_names"] == [
        "cat",
        "dog",
    ]
    assert (
        "labels: 2 classes, from the folders train, val"
        in run("--source", source, "--dest", tmp_path / "b.zip", "--labels=folders").output
    )


def test_links_are_followed_when_asked(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"cat/1.png": png(0)})
    elsewhere = write_folder(tmp_path / "elsewhere", {"1.png": png(1)})
    (source / "dog").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(source)
    assert "--follow-links" in run("--source", source, "--dest", tmp_path / "out.zip").output
    for workers in (1, 2):
        result = run(
            "--source",
            source,
            "--dest",
            tmp_path / f"{workers}.zip",
            "--follow-links",
            "--workers",
            str(workers),
        )
        assert (
            "2 classes, from the folders cat, dog; left out: 1 links to a folder that contains "
            "them (dog/back)" in result.output
        )
    assert_images(tmp_path / "1.zip", [0, 1])


# Which images.


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "source", {f"{c}/{i}.png": png(4 * k + i) for k, c in enumerate("abc") for i in range(4)}
    )


def test_max_images_takes_the_first_or_a_seeded_subset(classes: Path, tmp_path: Path) -> None:
    result = run("--source", classes, "--dest", tmp_path / "first.zip", "--max-images=5")
    assert "warning: 1 classes have no images: c" in result.output
    assert_images(tmp_path / "first.zip", [0, 1, 2, 3, 4])
    for dest in ("x", "y"):
        run("--source", classes, "--dest", tmp_path / f"{dest}.zip", "--max-images=5", "--subset-seed=1")
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()
    images, labels, metadata = read(tmp_path / "x.zip")
    chosen = [next(i for i in range(12) if np.array_equal(image, pixels(i))) for image in images]
    assert chosen == sorted(chosen) != [0, 1, 2, 3, 4] and labels == [i // 4 for i in chosen]
    assert metadata["selection"] == {"max_images": 5, "subset_seed": 1}


def test_chosen_classes_are_renumbered_in_the_order_given(classes: Path, tmp_path: Path) -> None:
    run("--source", classes, "--dest", tmp_path / "out.zip", "--classes=c,a")
    assert_images(tmp_path / "out.zip", [0, 1, 2, 3, 8, 9, 10, 11])
    _, labels, metadata = read(tmp_path / "out.zip")
    assert labels == [1] * 4 + [0] * 4 and metadata["class_names"] == ["c", "a"]
    (tmp_path / "list").write_text("c\na\n")
    run("--source", classes, "--dest", tmp_path / "file.zip", f"--classes=@{tmp_path}/list")
    assert (tmp_path / "out.zip").read_bytes() == (tmp_path / "file.zip").read_bytes()


# Outputs.


def test_several_resolutions_equal_each_alone(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": png(10 * k + i, 50) for k, c in enumerate("ab") for i in range(6)}
    source = write_zip(tmp_path / "source.zip", files)
    for transform in ("none", "center-crop", "center-crop-dhariwal"):
        out = tmp_path / transform
        result = run(
            "--source",
            source,
            "--dest",
            out / "all{res}.zip",
            "--resolution=16,32x32,64",
            f"--transform={transform}",
        )
        assert result.exit_code == 0, result.output
        for resolution in (16, 32, 64):
            run(
                "--source",
                source,
                "--dest",
                out / f"one{resolution}.zip",
                f"--resolution={resolution}x{resolution}",
                f"--transform={transform}",
            )
            assert (out / f"all{resolution}.zip").read_bytes() == (out / f"one{resolution}.zip").read_bytes()
            assert ImageDataset(out / f"all{resolution}.zip", use_labels=True).resolution == resolution


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": png(i, 20) for c in "ab" for i in range(100)} | {
        f"a/{i}.png": b"junk" for i in (0, 50, 99)
    }
    source = write_zip(tmp_path / "source.zip", files)
    results = []
    for workers in (1, 2, 3):
        report = dataset_tool.convert(
            source, tmp_path / f"{workers}-{{res}}.zip", [16, 8], workers=workers, on_error="skip"
        )
        assert (
            report.num_images == 197
            and len(report.skipped) == 3
            and report.skipped[0].startswith("a/0.png: ")
        )
        results.append([(tmp_path / f"{workers}-{res}.zip").read_bytes() for res in (16, 8)])
    assert results[0] == results[1] == results[2]


def test_folder_output_holds_the_same_files_as_the_zip(classes: Path, tmp_path: Path) -> None:
    dataset_tool.convert(classes, tmp_path / "out.zip", workers=1)
    dataset_tool.convert(classes, tmp_path / "out", workers=1)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        for name in archive.namelist():
            assert (tmp_path / "out" / name).read_bytes() == archive.read(name)
    assert dataset_tool.check(tmp_path / "out", workers=1).problems == []
    with pytest.raises(ValueError, match="not empty"):
        dataset_tool.convert(classes, tmp_path / "out", workers=1)
    dataset_tool.convert(classes, tmp_path / "out", workers=1, max_images=1, overwrite=True)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match="will not delete it"):
        dataset_tool.convert(classes, classes, workers=1, overwrite=True)
    assert len(list(classes.rglob("*.png"))) == 12


def test_existing_zip_is_replaced_only_when_asked(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zip").write_bytes(b"precious")
    result = run("--source", classes, "--dest", tmp_path / "out.zip")
    assert (
        result.exit_code == 1
        and "--overwrite" in result.output
        and (tmp_path / "out.zip").read_bytes() == b"precious"
    )
    assert run("--source", classes, "--dest", tmp_path / "out.zip", "--overwrite").exit_code == 0
    assert len(read(tmp_path / "out.zip")[0]) == 12
    before = (tmp_path / "out.zip").read_bytes()
    (classes / "c" / "3.png").write_bytes(b"junk")
    assert run("--source", classes, "--dest", tmp_path / "out.zip", "--overwrite").exit_code == 1
    assert (tmp_path / "out.zip").read_bytes() == before


def test_metadata_says_how_the_pixels_came_about(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"a.png": png(0, 40)})
    for arguments, expected in (
        (["--resolution=16"], ("none", "lanczos")),
        (["--resolution=16", "--filter=box"], ("none", "box")),
        (["--resolution=16", "--transform=center-crop-dhariwal"], ("center-crop-dhariwal", "box+bicubic")),
    ):
        run(
            "--source",
            source,
            "--dest",
            tmp_path / "out.zip",
            "--overwrite",
            "--background=#102030",
            *arguments,
        )
        metadata = read(tmp_path / "out.zip")[2]
        assert (metadata["transform"], metadata["filter"]) == expected
        assert metadata["background"] == "#102030" and metadata["version"] == conversion.METADATA_VERSION
    run(
        "--source",
        source,
        "--dest",
        tmp_path / "wide.zip",
        "--resolution=32x16",
        "--transform=center-crop-wide",
    )
    images, _, metadata = read(tmp_path / "wide.zip")
    assert images[0].shape == (32, 32, 3) and metadata["resolution"] == 32 and metadata["picture"] == [32, 16]
    assert str(tmp_path) not in json.dumps(metadata)


def test_images_too_small_for_wide_crops_are_left_out_and_counted(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {"a.png": png(0, 16), "b.png": png(1, 32)})
    result = run(
        "--source",
        source,
        "--dest",
        tmp_path / "out.zip",
        "--resolution=32x16",
        "--transform=center-crop-wide",
    )
    assert "warning: 1 images were left out because they are too small" in result.output
    assert len(read(tmp_path / "out.zip")[0]) == 1 and read(tmp_path / "out.zip")[2]["dropped"] == 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("64", [(64, 64)]),
        ("64x64", [(64, 64)]),
        ("16,32, 64", [(16, 16), (32, 32), (64, 64)]),
        ("512X384", [(512, 384)]),
    ],
)
def test_resolutions(text: str, expected: list[tuple[int, int]]) -> None:
    assert dataset_tool.parse_resolutions(text) == expected


# Mistakes: one line, exit code 1, nothing left behind.

GOOD = {"a/1.png": png(0), "b/1.png": png(1)}
LABELS = [["a/1.png", 0], ["b/1.png", 1]]
MISTAKES: dict[str, tuple[Mapping[str, bytes | None], list[str], str]] = {
    "unreadable": ({**GOOD, "b/2.png": b"junk"}, [], "b/2.png: not a readable image"),
    "truncated": ({**GOOD, "b/2.png": png(2)[:-80]}, [], "b/2.png: cannot be decoded"),
    "all unreadable": (
        {"1.png": b"junk", "2.png": b""},
        ["--on-error=skip"],
        "none of 2 images can be used; the first problem: 1.png",
    ),
    "no images": ({"readme.txt": b"x"}, [], "no images found; .png, .jpg"),
    "a tarball as destination": (GOOD, ["--dest=x.tar"], "--dest=x.tar: data sets are zips or folders"),
    "empty class": ({**GOOD, "c": None}, [], "class folder 'c' contains no images"),
    "empty class beside one": ({"a/1.png": png(0), "c": None}, [], "class folder 'c' contains no images"),
    "empty class, wrapped": (
        {**{f"set/{name}": data for name, data in GOOD.items()}, "set/c": None},
        [],
        "class folder 'c' contains no images",
    ),
    "loose image": ({**GOOD, "x.png": png(2)}, [], "x.png is beside class folders"),
    "label missing": (
        {**GOOD, "dataset.json": json.dumps({"labels": LABELS[:1]}).encode()},
        [],
        "1 of 2 images have no label in dataset.json, the first is b/1.png",
    ),
    "file missing": (
        {**GOOD, "dataset.json": json.dumps({"labels": [*LABELS, ["c/1.png", 0]]}).encode()},
        [],
        "has labels for 1 images that are missing",
    ),
    "label -1": (
        {**GOOD, "dataset.json": json.dumps({"labels": [LABELS[0], ["b/1.png", -1]]}).encode()},
        [],
        "is -1",
    ),
    "bad json": ({**GOOD, "dataset.json": b"{"}, [], "not valid JSON"),
    "label leaves folder": (
        {**GOOD, "dataset.json": json.dumps({"labels": [["../1.png", 0]]}).encode()},
        [],
        "leads out of the folder",
    ),
    "not square": ({"x.png": png(np.zeros([16, 32, 3], np.uint8))}, [], "x.png: is 32x16, not square"),
    "not square, resized": (
        {"x.png": png(np.zeros([16, 32, 3], np.uint8))},
        ["--resolution=16"],
        "x.png: is 32x16, not square",
    ),
    "no power of two": ({"x.png": png(0, 24)}, [], "x.png: is 24x24, not a power of two"),
    "mixed sizes": ({"x.png": png(0), "y.png": png(1, 8)}, [], "y.png: is 8x8, but x.png is 16x16"),
    "bad size": (GOOD, ["--resolution=24x24"], "must be a power of two"),
    "size 0": (GOOD, ["--resolution=0"], "must be a power of two"),
    "no size": (GOOD, ["--resolution=big"], "'big' is not a size"),
    "size twice": (GOOD, ["--resolution=16,16x16"], "a size occurs twice"),
    "oblong": (GOOD, ["--resolution=32x16", "--transform=center-crop"], "is not square"),
    "upright": (GOOD, ["--resolution=16x32", "--transform=center-crop-wide"], "needs a height between"),
    "crop without size": (GOOD, ["--transform=center-crop"], "needs --resolution"),
    "dhariwal with filter": (
        GOOD,
        ["--transform=center-crop-dhariwal", "--resolution=16", "--filter=box"],
        "has no effect",
    ),
    "several without {res}": (GOOD, ["--resolution=8,16"], "require {res}"),
    "background": (GOOD, ["--background=blurple"], "is not a colour"),
    "max images": (GOOD, ["--max-images=0"], "must be at least 1"),
    "lonely seed": (GOOD, ["--subset-seed=1"], "pass --max-images too"),
    "unknown class": (GOOD, ["--classes=a,z"], "unknown class 'z'; the classes are a, b"),
    "class twice": (GOOD, ["--classes=a,a"], "contains a class twice"),
    "class of unlabelled": ({"x.png": png(0)}, ["--classes=a"], "the images have no labels"),
    "a name twice": (GOOD, ["--class-names=a,a"], "--class-names contain the name 'a' twice"),
    "no name": (GOOD, ["--class-names=a,,b"], "--class-names have no name for class 1"),
    "a data set's name twice": (
        {
            **GOOD,
            "dataset.json": json.dumps({"labels": LABELS, "metadata": {"class_names": ["a", "a"]}}).encode(),
        },
        [],
        "name 'a' twice",
    ),
    "no subfolder": (GOOD, ["--subfolder=c"], "contains no folder c; its folders are: a, b"),
    "no dataset.json": (GOOD, ["--labels=json"], "there is no dataset.json with labels"),
    "numbered folders": (
        {f"{i:05d}/{j}.png": png(i) for i in range(3) for j in range(2)},
        [],
        "could be numbered parts of one set or classes",
    ),
    "a name of another ending": (GOOD, ["--dest=x.npz"], "data sets are zips or folders"),
    "too few names": (GOOD, ["--class-names=a"], "1 class names are given, but the largest label is 1"),
    "names of unlabelled": ({"x.png": png(0)}, ["--class-names=a"], "the images have no labels"),
    "names file": (GOOD, ["--class-names=@/nonexistent"], "/nonexistent"),
    "workers": (GOOD, ["--workers=0"], "must be between 1 and"),
}


def assert_mistake(result: Result, message: str, tmp_path: Path) -> None:
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if not line.endswith("/s")]
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0] and lines[-1] == errors[0], result.output
    assert not list(tmp_path.glob("**/*out*")) and not list(tmp_path.glob("**/*.tmp")), (
        "something was left behind"
    )


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    files, arguments, message = MISTAKES[case]
    source = write_zip(tmp_path / "source.zip", files)
    assert_mistake(
        run("--source", source, "--dest", tmp_path / "out.zip", "--workers=1", *arguments), message, tmp_path
    )
    folder = write_folder(tmp_path / "source", files)
    assert_mistake(
        run("--source", folder, "--dest", tmp_path / "out", "--workers=2", *arguments), message, tmp_path
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--source and --dest are required"),
        (["--source", "{tmp}/gone", "--dest", "{tmp}/out.zip"], "no such file or folder"),
        (["--source", "{tmp}/fake.zip", "--dest", "{tmp}/out.zip"], "not a readable zip"),
        (["--source", "{tmp}/fake.bin", "--dest", "{tmp}/out.zip"], "not a folder or zip of images"),
        (["--source", "{tmp}/good.zip", "--dest", "{tmp}/out{{res}}.zip"], "--resolution is not given"),
        (["--check", "{tmp}/gone.zip"], "no such file or folder"),
        (["--check", "{tmp}/good.zip", "--source", "x"], "remove --source and --dest"),
    ],
)
def test_mistakes_in_the_command_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    for name in ("fake.zip", "fake.bin"):
        (tmp_path / name).write_bytes(b"not an archive")
    write_zip(tmp_path / "good.zip", dict(GOOD))
    assert_mistake(run(*[argument.format(tmp=tmp_path) for argument in arguments]), message, tmp_path)


def test_skipping_names_what_is_skipped(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "source.zip", {**GOOD, "b/2.png": b"junk", "b/3.png": png(3, 8)})
    result = run("--source", source, "--dest", tmp_path / "out.zip", "--on-error=skip")
    assert (
        result.exit_code == 0
        and "skipped b/2.png: not a readable" in result.output
        and "skipped b/3.png: is 8x8" in result.output
    )
    assert "warning: 2 unreadable images were skipped" in result.output
    assert_images(tmp_path / "out.zip", [0, 1])
    assert read(tmp_path / "out.zip")[2]["skipped"] == 2


@pytest.mark.parametrize(
    "name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"]
)
def test_zip_entries_that_leave_the_folder(name: str, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "source.zip", {name: png(0), "b.png": png(1)})
    assert_mistake(
        run("--source", source, "--dest", tmp_path / "out.zip"), "leads out of the folder", tmp_path
    )


def test_links_that_leave_the_folder(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", {"x.png": png(0)})
    source = write_folder(tmp_path / "source", {"a.png": png(0)})
    (source / "inside.png").symlink_to(source / "a.png")
    assert len(image_sources.open_source(source)) == 2
    for target, message in (
        (elsewhere / "x.png", "link that leads out of the folder"),
        (elsewhere, "link that leads out of the folder"),
        (tmp_path / "nowhere", "is a broken link"),
    ):
        (source / "link").symlink_to(target)
        assert_mistake(run("--source", source, "--dest", tmp_path / "out.zip"), message, tmp_path)
        (source / "link").unlink()
    (tmp_path / "alias").symlink_to(source)
    assert len(image_sources.open_source(tmp_path / "alias")) == 2


def test_zip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = bytes(archives.RATIO_FLOOR_BYTES + 1)
    source = write_zip(tmp_path / "ratio.zip", {"a.png": zeros}, zipfile.ZIP_DEFLATED)
    assert_mistake(run("--source", source, "--dest", tmp_path / "out.zip"), "times its stored size", tmp_path)
    # A directory that lies about the size: no more than it says is unpacked.
    content = source.read_bytes()
    source.write_bytes(content.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 1000)))
    assert_mistake(
        run("--source", source, "--dest", tmp_path / "out.zip"), "does not match the directory", tmp_path
    )
    monkeypatch.setattr(archives, "MAX_ENTRY_BYTES", 50)
    for large in (
        write_zip(tmp_path / "size.zip", {"a.png": png(0)}),
        write_folder(tmp_path / "size", {"a.png": png(0)}),
    ):
        assert_mistake(
            run("--source", large, "--dest", tmp_path / "out.zip", "--workers=1"), "a.png: ", tmp_path
        )


def test_encrypted_and_exotic_zip_entries(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "lzma.zip", {"a.png": png(0)}, zipfile.ZIP_LZMA)
    assert_mistake(
        run("--source", source, "--dest", tmp_path / "out.zip"), "only stored and deflated", tmp_path
    )
    content = bytearray(write_zip(tmp_path / "locked.zip", {"a.png": png(0)}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    assert_mistake(
        run("--source", tmp_path / "locked.zip", "--dest", tmp_path / "out.zip"), "encrypted", tmp_path
    )


# Processes: bounded work in flight, death, interruption.


def double(value: int) -> int:
    return 2 * value


def die_at_seven(value: int) -> int:
    if value == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_ordered_map_keeps_order_and_a_bounded_number_in_flight() -> None:
    taken = 0

    def chunks() -> Iterator[int]:
        nonlocal taken
        for value in range(1, 201):
            taken = value
            yield value

    for done, result in enumerate(conversion.ordered_map(double, chunks(), 2), 1):
        assert result == 2 * done and taken <= done + 2 * conversion.CHUNKS_IN_FLIGHT


def test_a_dead_worker_is_reported() -> None:
    with pytest.raises(ValueError, match="a worker process died"):
        list(conversion.ordered_map(die_at_seven, range(20), 2))


@pytest.fixture
def long_source(tmp_path: Path) -> Path:
    """Much more work than is done before the interruption: 2,000 images of 1 megapixel."""
    large = png(np.kron(pixels(0), np.ones([64, 64, 1], np.uint8)))
    return write_zip(tmp_path / "source.zip", {f"{i}.png": large for i in range(2000)})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "sent, dest",
    [
        (signal.SIGINT, "out.zip"),
        (signal.SIGTERM, "out"),
        (signal.SIGKILL, "out.zip"),
        (signal.SIGKILL, "out"),
    ],
)
def test_interruption_leaves_nothing_under_the_final_name(
    long_source: Path, tmp_path: Path, sent: signal.Signals, dest: str
) -> None:
    command = [
        sys.executable,
        str(ROOT / "dataset_tool.py"),
        "--source",
        str(long_source),
        "--dest",
        str(tmp_path / dest),
    ]
    process = subprocess.Popen(
        [*command, "--resolution=256", "--workers=2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
        # background jobs of a shell inherit that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    waiting.until(lambda: len(children_of(process)) >= 2 and written(tmp_path), process)
    children = children_of(process)
    assert process.poll() is None, "ended before it could be interrupted"
    process.send_signal(sent)
    ((output, _),) = waiting.finish(process)
    assert process.returncode == (1 if sent != signal.SIGKILL else -signal.SIGKILL)
    assert "Traceback" not in output and not (tmp_path / dest).exists()
    if sent != signal.SIGKILL:
        assert not list(tmp_path.glob(".*.tmp"))
    waiting.until(
        lambda: not any(map(running, children)), *map(int, children)
    )  # workers do not outlive the command


def children_of(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def written(folder: Path) -> bool:
    """Whether image data has reached a temporary output."""
    return any(
        path.is_file() and path.stat().st_size > 10_000
        for path in [*folder.glob(".*.tmp"), *folder.glob(".*.tmp/*/*")]
    )


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --check.


def test_check_prints_counts_and_classes(classes: Path, tmp_path: Path) -> None:
    dataset_tool.convert(classes, tmp_path / "out.zip", workers=1)
    result = run("--check", tmp_path / "out.zip", "--workers=1")
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    for row in (
        ["images", "12"],
        ["size", "16x16"],
        ["channels", "3", "(RGB)"],
        ["classes", "3"],
        ["0", "a", "4"],
        ["2", "c", "4"],
        ["no", "problems", "found"],
    ):
        assert row in rows, result.output
    dataset_tool.convert(classes, tmp_path / "plain.zip", workers=1, labels="none")
    assert "none (unlabelled)" in run("--check", tmp_path / "plain.zip").output


def labelled(files: dict[str, bytes], labels: Any, **metadata: Any) -> dict[str, bytes | None]:
    return {**files, "dataset.json": json.dumps({"labels": labels, "metadata": metadata}).encode()}


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no images"),
        (labelled(GOOD, LABELS[:1]), "1 images have no label, the first is b/1.png"),
        (labelled(GOOD, [*LABELS, ["gone.png", 0]]), "1 labels have no image, the first is gone.png"),
        (labelled(GOOD, LABELS, class_names=["x", "y", "z"]), "class 2 'z' has no images"),
        (labelled(GOOD, [["a/1.png", 0], ["b/1.png", 2]]), "class 1 has no images"),
        (labelled(GOOD, [["a/1.png", 0], ["b/1.png", -1]]), "is -1"),
        (labelled({**GOOD, "c.png": b"junk"}, [*LABELS, ["c.png", 0]]), "unreadable: c.png"),
        ({"a.png": png(0), "b.png": png(0, 8)}, "different sizes: 16x16: 1, 8x8: 1"),
        ({"a.png": png(0, 24)}, "24x24, not a power-of-two square"),
        ({"a.png": png(np.zeros([8, 16, 3], np.uint8))}, "16x8, not a power-of-two square"),
        ({"a.png": png(np.zeros([8, 8, 4], np.uint8))}, "mode RGBA instead of RGB or L"),
        (labelled(GOOD, LABELS, channels=4), "mode RGB instead of RGBA"),
        ({"a.png": png(0), "dataset.json": b"[]"}, "must be an object"),
    ],
)
def test_check_finds_problems(files: Mapping[str, bytes | None], message: str, tmp_path: Path) -> None:
    result = run("--check", write_zip(tmp_path / "x.zip", files), "--workers=1")
    assert result.exit_code == 1
    assert any(line.startswith("problem: ") and message in line for line in result.output.splitlines()), (
        result.output
    )


def test_check_finds_duplicates_and_abridges(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for _ in range(2):
            for i in range(20):
                archive.writestr(f"{i:02d}.png", png(i))
    result = run("--check", tmp_path / "x.zip", "--workers=1")
    assert (
        result.exit_code == 1
        and "00.png exists twice" in result.output
        and "... and 10 more like this" in result.output
    )
    assert_mistake(
        run("--source", tmp_path / "x.zip", "--dest", tmp_path / "out.zip"), "exists twice", tmp_path
    )


# What a user sees.


def test_the_tool_does_not_load_torch() -> None:
    code = 'import sys, dataset_tool; sys.exit("torch" in sys.modules)'
    waiting.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_progress_shows_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        now[0] = 100.0
        progress = dataset_tool.Progress(stream)
        for second in range(1, 5):
            now[0] = 100.0 + 10 * second
            progress(250 * second, 1000)
    assert "\r\x1b[K250/1,000 images  25/s  30s left" in terminal.getvalue() and terminal.getvalue().endswith(
        "took 40s\n"
    )
    assert log.getvalue().splitlines() == [
        "750/1,000 images  25/s  10s left",
        "1,000/1,000 images  25/s  took 40s",
    ]


def test_help_lists_the_published_flags() -> None:
    output = run("--help").output
    assert all(
        flag in output for flag in ("--source", "--dest", "--max-images", "--transform", "--resolution")
    )


def test_a_subset_columns_and_channels_of_the_command_line(tmp_path: Path) -> None:
    stack = np.stack([pixels(i) for i in range(6)])
    np.savez(tmp_path / "x.npz", pictures=stack, kinds=np.array([0, 1, 1, 1, 1, 0]))
    (tmp_path / "list.txt").write_text("4\n0\n2\n1\n")
    flags = ["--image-column=pictures", "--label-column=kinds", f"--subset={tmp_path / 'list.txt'}"]
    result = run("--source", tmp_path / "x.npz", "--dest", tmp_path / "o.zip", *flags, "--channels=1")
    assert result.exit_code == 0, result.output
    assert "labels: 2 classes, from kinds; left out: 2 outside of --subset" in result.output
    assert "balance: 1 (0) to 3 (1) images per class, median 2, ratio 3.0" in result.output
    images, labels, metadata = read(tmp_path / "o.zip")
    assert labels == [0, 1, 1, 1] and metadata["channels"] == 1
    assert metadata["selection"]["subset"]["entries"] == 4
    for image, index in zip(images, (0, 1, 2, 4), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.fromarray(pixels(index)).convert("L")))
    assert "1 (L)" in run("--check", tmp_path / "o.zip", "--workers=1").output
    result = run("--source", tmp_path / "x.npz", "--dest", tmp_path / "p.zip", "--subset=missing.txt")
    assert result.exit_code == 1 and "--subset=missing.txt: No such file" in result.output


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A class of such a name is refused; elsewhere it is printed with escapes."""
    no_text = os.fsdecode(b"caf\xe9")
    write_folder(tmp_path / "classes", {f"{no_text}/1.png": png(0), "b/1.png": png(1)})
    result = run("--source", tmp_path / "classes", "--dest", tmp_path / "x.zip")
    assert result.exit_code == 1 and r"'caf\udce9', which is not UTF-8 text: rename it" in result.output
    write_folder(tmp_path / "images", {f"{no_text}.png": png(0), f"Dataset.json.{no_text}": b""})
    result = run("--source", tmp_path / "images", "--dest", tmp_path / "y.zip")
    assert result.exit_code == 0 and r".caf\udce9" in result.output
    assert len(ImageDataset(tmp_path / "images").content_hash()) == 64


def test_archives_in_an_archive_are_to_be_unpacked(tmp_path: Path) -> None:
    write_folder(tmp_path / "sets", {"cats.zip": b"x"})
    result = run("--source", tmp_path / "sets", "--dest", tmp_path / "x.zip")
    assert "no images found; unpack the archives in it; .png" in result.output
