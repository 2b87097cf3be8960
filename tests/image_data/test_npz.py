# SPDX-License-Identifier: Apache-2.0
"""Images in ADM's .npz layout as a source of images."""

import numpy as np
import pytest

from image_data import sources, transforms


def pixels(n=4, size=6, channels=3, dtype=np.uint8):
    return np.random.RandomState(0).randint(0, 256, (n, size, size, channels)).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_labels(tmp_path, channels):
    images = pixels(channels=channels)
    np.savez(tmp_path / "a.npz", images, np.array([0, 1, 1, 2]))
    source = sources.open_source(tmp_path / "a.npz")
    assert len(source) == 4 and source.labels.tolist() == [0, 1, 1, 2] and source.kind == "npz"
    name, payload = source.opener.load(source.refs[2])
    assert name == "image 2"
    assert (np.asarray(transforms.decode(payload)) == np.broadcast_to(images[2], (6, 6, 3))).all()
    np.savez(tmp_path / "b.npz", images, np.array([0.5] * 4))
    assert sources.open_source(tmp_path / "b.npz").labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"arr_0": pixels(dtype=np.float32)},
            r"must be arr_0, uint8 \[N, H, W, 3\], not float32 \[4, 6, 6, 3\]",
        ),
        ({"arr_0": pixels().transpose(0, 3, 1, 2).copy()}, r"not uint8 \[4, 3, 6, 6\]: move the channels"),
        ({"arr_0": pixels()[0]}, r"not uint8 \[6, 6, 3\]"),
        ({"arr_0": pixels(n=0)}, "contains no images"),
        ({"pictures": pixels()}, r"the file contains pictures uint8 \[4, 6, 6, 3\]"),
        ({}, "the file contains nothing"),
    ],
)
def test_other_layouts_are_refused_in_one_line(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match=message) as error:
        sources.open_source(tmp_path / "a.npz")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "a.npz"))


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x05\x06 not")
    with pytest.raises(ValueError, match=r"not a numpy \.npz file"):
        sources.open_source(tmp_path / "a.npz")
