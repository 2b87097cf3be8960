# SPDX-License-Identifier: Apache-2.0
"""Class embeddings: the means they should be, their cache, and their choice of images."""

import io
import json
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torch_utils import features
from training.data import class_embedding
from training.data.class_embedding import compute_class_embedding, images_per_class, random_class_embedding
from training.data.dataset import ImageDataset


class _Colours(torch.nn.Module):
    """Stands in for a feature network: the mean colour and the top left pixel of what it is given."""

    def __init__(self):
        super().__init__()
        self.name, self.sha256, self.input_size = "colours", "abc", 12
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.5))
        self.images = 0

    def normalize(self, x):
        return (x - self.mean) / self.std

    def pooled(self, x):
        assert x.shape[1:] == (3, 12, 12)
        self.images += len(x)
        return torch.cat([x.mean(dim=(2, 3)), x[:, :, 0, 0]], dim=1)


def _dataset(path: Path, labels: list[int], names: list[str] | None = None, salt: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        index = []
        for i, label in enumerate(labels):
            pixels = np.random.RandomState(1000 * salt + i).randint(0, 256, (8, 8, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            index.append([f"00000/img{i:08d}.png", label])
            archive.writestr(index[-1][0], buffer.getvalue())
        archive.writestr(
            "dataset.json", json.dumps({"labels": index, "metadata": {"class_names": names} if names else {}})
        )
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    return _dataset(tmp_path / "data" / "tiny8.zip", [i % 3 for i in range(20)])


def _expected(dataset: ImageDataset, network, c_dim: int) -> torch.Tensor:
    """One image at a time, the plain way."""
    rows: list[list[torch.Tensor]] = [[] for _ in range(c_dim)]
    for i in range(len(dataset)):
        pixels, label = dataset[i]
        x = network.normalize(torch.from_numpy(pixels.copy())[None].float() / 255)
        size = network.input_size
        rows[label].append(
            network.pooled(
                torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
            )[0].double()
        )
    return torch.stack([torch.stack(row).mean(0) for row in rows]).float()


def test_means_whatever_the_batch_size(path):
    dataset = ImageDataset(path, use_labels=True)
    expected = _expected(dataset, _Colours(), 3)
    for i, batch_size in enumerate((1, 7, 64)):
        table = compute_class_embedding(
            dataset, _Colours(), batch_size=batch_size, seed=i
        )  # another seed: not from the cache
        assert table.shape == (3, 6) and table.dtype == torch.float32
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)


def test_real_network(path):
    """320 numbers per class from EfficientNet-Lite0's last block, equal to one image at a time."""
    dataset = ImageDataset(path, use_labels=True, max_size=6)
    network = features.load("tf_efficientnet_lite0", weights="random")
    network.input_size = 64  # the whole computation at a twelfth of the cost
    expected = _expected(dataset, network, 3)
    table = compute_class_embedding(dataset, network, batch_size=4)
    assert table.shape == (3, 320)
    torch.testing.assert_close(table, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_cache(path, capsys):
    network = _Colours()
    dataset = ImageDataset(path, use_labels=True)
    first = compute_class_embedding(dataset, network)
    assert network.images == 20
    assert capsys.readouterr().err == "Class embeddings from 20 images, once\n"
    cached = list(path.parent.glob("*.npy"))
    assert len(cached) == 1 and cached[0].name.startswith("tiny8-class-embedding-colours-")
    assert (
        torch.equal(compute_class_embedding(dataset, network, batch_size=3), first) and network.images == 20
    )
    # All that the numbers depend on makes another table.
    compute_class_embedding(dataset, network, max_per_class=2)
    assert network.images == 26
    network.sha256 = "def"
    compute_class_embedding(dataset, network)
    assert network.images == 46
    compute_class_embedding(ImageDataset(path, use_labels=True, max_size=10), network)
    assert network.images == 56
    other = _dataset(path.parent / "other.zip", [i % 3 for i in range(20)], salt=1)
    other.replace(path)  # other images under the old name
    assert not torch.equal(compute_class_embedding(ImageDataset(path, use_labels=True), network), first)
    assert network.images == 76


@pytest.mark.parametrize("content", [b"", b"garbage", "shape", "nan"])
def test_a_damaged_cache_is_replaced(path, content):
    network = _Colours()
    dataset = ImageDataset(path, use_labels=True)
    first = compute_class_embedding(dataset, network)
    (cached,) = path.parent.glob("*.npy")
    if isinstance(content, bytes):
        cached.write_bytes(content)
    else:
        np.save(
            cached,
            np.zeros((2, 6), np.float32) if content == "shape" else np.full((3, 6), np.nan, np.float32),
        )
    with pytest.warns(UserWarning, match="recomput"):
        assert torch.equal(compute_class_embedding(dataset, network), first)
    assert network.images == 40
    compute_class_embedding(dataset, network)
    assert network.images == 40


def test_a_read_only_folder_falls_back_to_the_cache_folder(path, tmp_path, monkeypatch):
    real = class_embedding.atomic_write

    def refuse(target, *args):
        if Path(target).parent == path.parent:  # the tests may run as root, whom permissions do not stop
            raise PermissionError(13, "Permission denied")
        return real(target, *args)

    monkeypatch.setattr(class_embedding, "atomic_write", refuse)
    network = _Colours()
    dataset = ImageDataset(path, use_labels=True)
    first = compute_class_embedding(dataset, network)
    assert (
        not list(path.parent.glob("*.npy"))
        and len(list((tmp_path / "cache" / "class-embeddings").glob("*.npy"))) == 1
    )
    assert torch.equal(compute_class_embedding(dataset, network), first) and network.images == 20
    monkeypatch.setenv("DNNLIB_CACHE_DIR", os.devnull)
    with pytest.warns(UserWarning, match="cannot cache.*DNNLIB_CACHE_DIR"):
        assert torch.equal(compute_class_embedding(dataset, network), first)


def test_classes_without_images(tmp_path):
    path = _dataset(tmp_path / "gaps.zip", [0, 0, 2, 4], names=["ant", "bee", "cat", "dog", "eel", "fox"])
    dataset = ImageDataset(path, use_labels=True)
    assert dataset.label_dim == 6
    with pytest.warns(
        UserWarning, match=r"3 of 6 classes have no images \(1 \(bee\), 3 \(dog\), 5 \(fox\)\)"
    ):
        table = compute_class_embedding(dataset, _Colours())
    torch.testing.assert_close(table[1], table[[0, 2, 4]].mean(0))
    assert (
        torch.equal(table[1], table[3])
        and torch.equal(table[1], table[5])
        and not torch.equal(table[0], table[2])
    )


def test_one_class_and_many(tmp_path):
    assert compute_class_embedding(
        ImageDataset(_dataset(tmp_path / "one.zip", [0] * 5), use_labels=True), _Colours()
    ).shape == (1, 6)
    many = ImageDataset(_dataset(tmp_path / "many.zip", [0, 1999]), use_labels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compute_class_embedding(many, _Colours()).shape == (2000, 6)


def test_choice_of_images():
    labels = np.random.RandomState(0).choice(5, size=1000, p=[0.5, 0.3, 0.15, 0.05, 0])
    counts = np.bincount(labels, minlength=5)
    chosen = class_embedding._choose(labels, 100, seed=0)
    assert (np.diff(chosen) > 0).all() and np.array_equal(
        np.bincount(labels[chosen], minlength=5), np.minimum(counts, 100)
    )
    assert np.array_equal(chosen, class_embedding._choose(labels, 100, seed=0))
    assert not np.array_equal(chosen, class_embedding._choose(labels, 100, seed=1))
    of_first = chosen[labels[chosen] == 0]
    assert of_first.max() > 700  # random, not the first hundred of the class
    assert len(class_embedding._choose(labels, 0, seed=0)) == 1000


def test_images_per_class():
    assert [images_per_class(n) for n in (1, 2, 10, 250, 400, 500, 1000)] == [
        200,
        200,
        200,
        200,
        125,
        100,
        100,
    ]


def test_few_images_of_large_classes_are_read(tmp_path):
    path = _dataset(tmp_path / "large.zip", [i % 2 for i in range(900)])
    network = _Colours()
    compute_class_embedding(ImageDataset(path, use_labels=True), network)
    assert network.images == 400


def test_what_is_to_compute_is_announced_until_it_is_there(path):
    network, dataset = _Colours(), ImageDataset(path, use_labels=True)
    line = class_embedding.announce(dataset, network)
    assert line is not None and line.startswith("class embeddings from 20 images through colours: about ")
    compute_class_embedding(dataset, network)
    assert class_embedding.announce(dataset, network) is None


def test_a_pause_ends_the_work(path):
    def pause():
        raise KeyboardInterrupt

    network = _Colours()
    with pytest.raises(KeyboardInterrupt):
        compute_class_embedding(ImageDataset(path, use_labels=True), network, pause=pause)
    assert network.images == 0 and not list(path.parent.glob("*.npy"))


def test_refusals(path):
    with pytest.raises(ValueError, match="need labels"):
        compute_class_embedding(ImageDataset(path), _Colours())
    network = _Colours()
    network.std.zero_()
    with pytest.raises(ValueError, match="non-finite"):
        compute_class_embedding(ImageDataset(path, use_labels=True), network)
    assert not list(path.parent.glob("*.npy"))


def test_random_embedding():
    table = random_class_embedding(2000, 320, seed=3)
    assert table.shape == (2000, 320) and table.dtype == torch.float32 and abs(float(table.std()) - 1) < 0.01
    assert torch.equal(random_class_embedding(10, 320, seed=3), table[:10]) and not torch.equal(
        random_class_embedding(10, 320, seed=4), table[:10]
    )


def test_whitened_classes_are_equally_far_apart():
    """Also two that are similar; the table stays as near as it can, and what agrees stays one."""
    draw = torch.Generator().manual_seed(0)
    table = torch.full((6, 64), 10.0) + torch.randn(6, 64, generator=draw)
    table[1] = table[0] + 0.05 * torch.randn(64, generator=draw)
    spread, whitened = (
        function(table)
        for function in (class_embedding.spread_class_embedding, class_embedding.whitened_class_embedding)
    )
    assert torch.pdist(spread).min() < 0.1 * torch.pdist(spread).mean()
    assert torch.pdist(whitened).min() > 0.999 * torch.pdist(whitened).max()
    assert float(whitened.square().mean()) == pytest.approx(1, rel=1e-5)
    assert (torch.nn.functional.cosine_similarity(spread, whitened) > 0.5).all()
    table[1] = table[0]
    same = class_embedding.whitened_class_embedding(table)
    torch.testing.assert_close(same[0], same[1])
    many = class_embedding.whitened_class_embedding(torch.randn(200, 16, generator=draw))
    assert many.isfinite().all() and float(many.square().mean()) == pytest.approx(1, rel=1e-5)
    assert torch.equal(class_embedding.whitened_class_embedding(table[:1]), table[:1])
    assert class_embedding.whitened_class_embedding(torch.ones(3, 4)).eq(0).all()


def test_spread_embeddings_point_apart():
    table = torch.full((5, 64), 10.0) + torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    spread = class_embedding.spread_class_embedding(table)
    assert float(spread.square().mean()) == pytest.approx(1, rel=1e-5)
    cosines = torch.nn.functional.normalize(spread, dim=1) @ torch.nn.functional.normalize(spread, dim=1).t()
    assert float((cosines - torch.eye(5)).abs().max()) < 0.7
    assert torch.equal(class_embedding.spread_class_embedding(table[:1]), table[:1])
