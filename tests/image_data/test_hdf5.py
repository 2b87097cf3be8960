# SPDX-License-Identifier: Apache-2.0
"""Images in HDF5 files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_data.sources import Columns, open_source

h5py = pytest.importorskip("h5py")
IMAGES = np.random.RandomState(0).randint(0, 256, (7, 8, 8, 3), dtype=np.uint8)


def write(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name.replace("__", "/")] = values
    return path


@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., :1], IMAGES[..., 0]])
def test_images_in_any_order(images: np.ndarray, tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.h5", x=images, y=np.zeros([7, 1, 1, 1], np.uint8)))
    assert source.num_classes == 1 and source.origin == "y"
    for index in (6, 0, 3):
        name, found = source.refs[index]
        expected = images[index][..., 0] if images.shape[-1] == 1 else images[index]
        assert name == f"image {index}" and (found == expected).all()


def test_arrays_in_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", train__pictures=IMAGES, train__kinds=np.arange(7))
    source = open_source(path, columns=Columns("train/pictures", "train/kinds"))
    assert source.labels is not None and source.labels.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, r"uint8 \[N, H, W, 3\], not float32 \[7, 8, 8, 3\]"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, "move the channels to the end"),
        ({"pictures": IMAGES}, r"contains pictures uint8 .*--image-column chooses one"),
        ({"images": IMAGES, "labels": np.zeros(6, int)}, r"labels has shape \[6\], but there are 7 images"),
        ({"images": IMAGES, "labels": np.ones([7, 3], int)}, "not one-hot: only one class per image"),
        ({"images": IMAGES, "labels": np.full(7, 0.5)}, "label of image 0 is 0.5"),
        ({"images": IMAGES, "labels": np.full(7, 2**63, np.uint64)}, "image 0 is 9223372036854775808"),
    ],
)
def test_mistakes(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        open_source(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_small_file_that_needs_much_memory(tmp_path: Path) -> None:
    for name, shape in (("images", (7, 2**16, 2**15, 3)), ("labels", (7, 2**30))):
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(name, shape, "u1", chunks=(1, *(min(n, 64) for n in shape[1:])))
            if name == "labels":
                file["images"] = IMAGES
        with pytest.raises(ValueError, match=rf"{name} needs [6-7].0 GiB of memory at once, over the limit"):
            open_source(path)


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"x\.h5: not a readable HDF5 file") as error:
        open_source(tmp_path / "x.h5")
    assert "\n" not in str(error.value) and str(error.value).endswith(": copy or download it again")


def test_arrays_in_other_files_are_not_read(tmp_path: Path) -> None:
    """A file from elsewhere could make any file of the machine part of the images."""
    (tmp_path / "secret").write_bytes(IMAGES.tobytes())
    write(tmp_path / "other.h5", images=IMAGES)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "images", IMAGES.shape, np.uint8, external=[(str(tmp_path / "secret"), 0, IMAGES.size)]
        )
        file["x"] = h5py.ExternalLink("other.h5", "images")
        layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", IMAGES.shape)
        file.create_virtual_dataset("data", layout)
    with pytest.raises(ValueError, match="the file contains nothing"):
        open_source(tmp_path / "x.h5")
