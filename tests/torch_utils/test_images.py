# SPDX-License-Identifier: Apache-2.0
"""Pixels, grids, class sheets and PNG files."""

import numpy as np
import PIL.Image
import pytest
import torch

import dnnlib.util
from torch_utils import images


def test_all_256_values_survive():
    u8 = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(images.to_uint8(images.to_float(u8)), u8)
    assert images.to_float(u8).min() == -1 and images.to_float(u8).max() == 1


@pytest.mark.parametrize(
    "x, expected",
    [
        (-2.0, 0),
        (-1.0, 0),
        (-0.9999, 0),
        (0.0, 128),
        (0.0078, 128),
        (0.0079, 129),
        (0.99607, 254),
        (1.0, 255),
        (9.0, 255),
    ],
)
def test_quantisation_truncates(x, expected):
    assert images.to_uint8(torch.full((1, 3, 1, 1), x)).unique().tolist() == [expected]


def test_reduced_precision_is_quantised_in_float32():
    x = torch.tensor([0.1, 0.3, -0.7], dtype=torch.bfloat16).reshape(1, 3, 1, 1)
    assert torch.equal(images.to_uint8(x), images.to_uint8(x.float()))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_image(channels):
    batch = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, channels, 2, 3) + 10
    sheet = images.grid(batch, 2)
    assert sheet.shape == (6, 6, channels) and sheet.dtype == np.uint8
    assert [int(sheet[2 * r, 3 * c, 0]) for r in range(3) for c in range(2)] == [10, 11, 12, 13, 14, 0]
    assert (sheet[2:4, 3:6] == 13).all()


def test_grid_keeps_rows_columns_and_channels():
    x = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(images.grid(x, 1), x[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "batch, columns",
    [
        (torch.zeros(1, 3, 2, 2), 1),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), 1),
        (torch.zeros(1, 2, 2, 2, dtype=torch.uint8), 1),
        (torch.zeros(0, 3, 2, 2, dtype=torch.uint8), 1),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), 0),
    ],
)
def test_grid_refuses(batch, columns):
    with pytest.raises(ValueError):
        images.grid(batch, columns)


@pytest.mark.parametrize("channels, size", [(1, 32), (3, 32), (3, 8)])
def test_labelled_grid(channels, size):
    batch = torch.full((5, channels, size, size), 200, dtype=torch.uint8)
    sheet = images.labelled_grid(batch, ["cat", "a much longer name", "schön\n漢"], 2)
    factor = 3 if size == 8 else 1
    assert sheet.mode == "RGB" and sheet.height == 3 * size * factor
    pixels = np.asarray(sheet)
    left = sheet.width - 2 * size * factor
    assert left > 0 and (pixels[0, left:] == 200).all() and (pixels[-1, -1] == 0).all()
    for row in range(3):  # every row has ink in its label and none touches the border
        label = pixels[row * size * factor : (row + 1) * size * factor, :left]
        assert label.min() < 100 and (label[:, 0] == 255).all() and (label[:, -1] == 255).all()


def test_labelled_grid_wants_a_label_per_row():
    with pytest.raises(ValueError, match="3 rows, got 2"):
        images.labelled_grid(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), ["a", "b"], 2)


def test_column_labels():
    batch = torch.full((4, 3, 32, 32), 200, dtype=torch.uint8)
    plain, headed = (
        images.labelled_grid(batch, ["a", "b"], 2, column_labels=labels) for labels in (None, ["12", "300"])
    )
    top = headed.height - plain.height
    assert top > 10 and headed.width == plain.width
    pixels = np.asarray(headed)
    assert (
        pixels[:top, -64:-32].min() < 100
        and pixels[:top, -32:].min() < 100
        and np.array_equal(pixels[top:], np.asarray(plain))
    )
    with pytest.raises(ValueError, match="2 columns need 2 labels, got 1"):
        images.labelled_grid(batch, ["a", "b"], 2, column_labels=["12"])


def test_save_png_round_trip_and_atomicity(tmp_path):
    rgb = np.random.RandomState(0).randint(0, 256, (4, 5, 3), dtype=np.uint8)
    for array in (rgb, rgb[:, :, :1], rgb[:, :, 0], PIL.Image.fromarray(rgb)):
        images.save_png(array, tmp_path / "x.png")
        assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "x.png")), np.asarray(array).squeeze())
    with pytest.raises(ValueError):
        images.save_png(rgb.astype(np.float32), tmp_path / "y.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_png_text_round_trip(tmp_path):
    about = {"seed": 3, "class_name": "ねこ <b>", "classes": [0, 1, 2, 7, 3], "truncation": 0.7, "x": None}
    for _ in range(2):
        images.save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "x.png", about)
    with PIL.Image.open(tmp_path / "x.png") as image:
        assert image.text == {
            "Software": "StyleSAN-XL",
            "seed": "3",
            "class_name": "ねこ <b>",
            "classes": "0-2,7,3",
            "truncation": "0.7",
        }


@pytest.mark.parametrize("numbers", [[], [5], [5, 6], [6, 5], [1, 2, 3, 3, 4], [0, 2, 4], list(range(1000))])
def test_lists_of_numbers_read_back(numbers):
    text = images.number_list(numbers)
    assert (dnnlib.util.parse_int_list(text) if numbers else []) == numbers
    assert len(text) < 20


def test_networks_that_know_only_rgb_see_grey_and_transparent_images():
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(images.to_rgb(grey), torch.cat([grey] * 3, dim=1))
    rgb = torch.rand(2, 3, 4, 4)
    assert images.to_rgb(rgb) is rgb
    opaque, clear = torch.ones(2, 1, 4, 4), -torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(images.to_rgb(torch.cat([rgb, opaque], dim=1)), rgb)
    below = torch.tensor([[0.5, 0.0, -1.0], [1.0, 1.0, 1.0]])[:, :, None, None]
    shown = images.to_rgb(torch.cat([rgb, clear], dim=1), below)
    torch.testing.assert_close(shown, below.expand(2, 3, 4, 4))
    whole = torch.randint(0, 256, (1, 4, 4, 4), dtype=torch.uint8)
    alpha, colour = whole[:, 3:] / 255, whole[:, :3].float()
    assert (images.to_rgb(whole).float() - (255 + (colour - 255) * alpha)).abs().max() <= 1


def test_frames_of_videos_are_rgb():
    picture = np.random.RandomState(0).randint(0, 256, (4, 6, 4), dtype=np.uint8)
    assert (images.rgb_frame(picture[..., :1]) == np.repeat(picture[..., :1], 3, axis=2)).all()
    assert (images.rgb_frame(picture[..., :3]) == picture[..., :3]).all()
    picture[..., 3] = 0
    assert (images.rgb_frame(picture) == 255).all()
