# SPDX-License-Identifier: Apache-2.0
"""Image files of any size and kind as an image set, and how sets are told apart by their encodings."""

import zipfile

import numpy as np
import PIL.Image
import pytest

from image_data import transforms
from metrics.image_sets import ImageFiles, encodings, lossy_difference, preparation
from training.data.dataset import ImageDataset


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    noise = np.random.RandomState(seed).randint(0, 256, (height, width, 4), dtype=np.uint8)
    return PIL.Image.fromarray(noise).convert(mode)


def write(folder, images: dict[str, PIL.Image.Image]):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / name)
    return folder


def test_every_mode_and_size_becomes_the_documented_square(tmp_path):
    images = {
        "a.png": picture(20, 20), "b.png": picture(30, 21, "L"), "c.png": picture(17, 40, "RGBA"),
        "d.png": picture(20, 20, "LA"),
        "e.png": picture(13, 13, "P"), "f.png": picture(20, 20, "1"), "g.bmp": picture(21, 20),
    }  # fmt: skip
    files = ImageFiles(write(tmp_path / "set", images))
    assert (len(files), files.resolution, files.name) == (7, 20, "set")
    for i, name in enumerate(sorted(images)):
        with PIL.Image.open(tmp_path / "set" / name) as opened:
            rgb = transforms.to_rgb(opened, (255, 255, 255))
        preparation = transforms.Preparation(((20, 20),), "center-crop")
        expected = transforms.transform(rgb, (20, 20), preparation)
        pixels, label = files[i]
        assert pixels.shape == (3, 20, 20) and pixels.dtype == np.uint8 and label == -1
        assert (pixels == np.asarray(expected).transpose(2, 0, 1)).all()
    assert files.adapted == {"cropped": 3, "reduced": 1, "enlarged": 2}


def test_grey_fills_all_channels_and_transparency_is_white(tmp_path):
    clear = PIL.Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    files = ImageFiles(write(tmp_path / "set", {"a.png": PIL.Image.new("L", (8, 8), 77), "b.png": clear}))
    assert (files[0][0] == 77).all() and (files[1][0] == 255).all()


def test_the_hash_is_that_of_the_files_in_a_folder_or_a_zip(tmp_path):
    folder = write(tmp_path / "set", {"a.png": picture(8, 8), "b.png": picture(8, 8, seed=1)})
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    hashes = {ImageFiles(tmp_path / name).content_hash() for name in ("set", "set.zip")}
    assert hashes == {ImageDataset(tmp_path / "set.zip").content_hash()}
    picture(8, 8, seed=2).save(folder / "b.png")
    assert ImageFiles(folder).content_hash() not in hashes


def test_unreadable_images_are_named(tmp_path):
    folder = write(tmp_path / "set", {"a.png": picture(8, 8)})
    (folder / "b.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(ValueError, match=r"set: b\.png: ") as error:
        ImageFiles(folder)[1]
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no images found"):
        ImageFiles(write(tmp_path / "empty", {}))


def test_lossy_files_against_lossless_ones_are_told(tmp_path):
    kinds = {
        "png": ["a.png", "b.png"],
        "jpeg": ["a.jpg", "b.jpeg"],
        "webp": ["a.webp"],
        "mixed": ["a.png", "b.jpg"],
    }
    sets = {
        kind: ImageFiles(write(tmp_path / kind, {name: picture(8, 8) for name in names}))
        for kind, names in kinds.items()
    }
    assert encodings(sets["mixed"]) == ["JPEG", "PNG"] and preparation(sets["jpeg"])["encodings"] == ["JPEG"]
    data = ImageDataset(tmp_path / "png")
    for lossy in ("jpeg", "webp", "mixed"):
        for pair in ((sets[lossy], data), (data, sets[lossy])):
            assert f"{lossy} holds" in lossy_difference(*pair)
    assert (
        lossy_difference(sets["png"], data) is None and lossy_difference(sets["jpeg"], sets["mixed"]) is None
    )
    assert lossy_difference(sets["jpeg"], object()) is None  # how a set in memory is encoded is not known


def test_pixels_in_memory_have_no_encoding(tmp_path):
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 5, 5))
    (tmp_path / "some-idx3-ubyte").write_bytes(header + bytes(range(50)))
    files = ImageFiles(tmp_path / "some-idx3-ubyte", 8)
    assert len(files) == 2 and files[0][0].shape == (3, 8, 8) and encodings(files) == []
    assert len(files.content_hash()) == 64
