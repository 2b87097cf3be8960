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
    with pytest.raises(ValueError, match=r"not a numpy \.npz file .*: copy or download it again$"):
        sources.open_source(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, -1, 0]), 'arr_1: -1 means "unknown"'),
        (np.array([0, 2**63 + 5, 0, 0], np.uint64), "label of image 1 is 9223372036854775813"),
    ],
)
def test_bad_class_indices_are_no_other_array(tmp_path, labels, message):
    """`arr_1` may be anything, but integers for every image are labels."""
    np.savez(tmp_path / "a.npz", pixels(), labels)
    with pytest.raises(ValueError, match=message):
        sources.open_source(tmp_path / "a.npz")


def test_damaged_labels_are_not_left_out(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, pixels(), np.arange(4))
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(4).tobytes())
    content[place : place + 8] = b"\1" * 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"arr_1.*CRC.*: copy or download it again$"):
        sources.open_source(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_pixels_are_an_error_in_one_line(tmp_path, save):
    save(tmp_path / "a.npz", pixels(n=40))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: arr_0 (is damaged|cannot be unpacked) \(") as error:
        source = sources.open_source(tmp_path / "a.npz")
        for ref in source.refs:
            source.opener.load(ref)
    assert "\n" not in str(error.value)
