# SPDX-License-Identifier: Apache-2.0
"""Every pixel mode to RGB, the crops, the PNG."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_data import transforms as it

RED, BACKGROUND = (200, 30, 10), (10, 120, 250)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = it.decode(data, BACKGROUND)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def raw_png(width: int, height: int, bits: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG that PIL cannot write (16-bit RGB, grey with alpha, colour keys)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def trns(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))


def test_grey_bilevel_and_rgb() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(grey))), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(
        decoded(encode(Image.fromarray(grey > 99))), np.where(np.stack([grey] * 3, -1) > 99, 255, 0)
    )
    rgb = np.random.RandomState(0).randint(0, 256, [4, 4, 3], dtype=np.uint8)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(rgb))), rgb)
    np.testing.assert_array_equal(np.asarray(it.decode(grey)), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(np.asarray(it.decode(rgb)), rgb)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited(format: str) -> None:
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.dstack([np.broadcast_to(np.array(RED, np.uint8), [16, 16, 3]), alpha])
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    weight = alpha[:, :, None] / 255
    expected = np.array(RED) * weight + np.array(BACKGROUND) * (1 - weight)
    assert np.abs(decoded(encode(Image.fromarray(rgba), format, **options)) - expected).max() <= 1


def test_alpha_default_is_white_and_hidden_colours_do_not_show() -> None:
    rgba = np.zeros([4, 4, 4], dtype=np.uint8)
    rgba[:2] = [9, 8, 7, 255]
    image = np.asarray(it.decode(encode(Image.fromarray(rgba))))
    assert (image[:2] == [9, 8, 7]).all() and (image[2:] == 255).all()


def test_grey_with_alpha() -> None:
    la = np.dstack([np.full([4, 4], 100, np.uint8), np.full([4, 4], 0, np.uint8)])
    la[0, 0, 1] = 255
    image = decoded(encode(Image.fromarray(la, "LA")))
    assert tuple(image[0, 0]) == (100, 100, 100) and tuple(image[3, 3]) == BACKGROUND


@pytest.mark.parametrize(
    "format, transparency", [("PNG", 1), ("PNG", b"\xff\x00\xff"), ("PNG", b"\xff\x80"), ("GIF", 1)]
)
def test_palette_with_transparency(format: str, transparency: Any) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, 0, 255, 0, 0, 0, 255])
    image.paste(1, (2, 0, 4, 4))
    result = decoded(encode(image, format, transparency=transparency))
    half = np.array([0, 255, 0]) * 128 / 255 + np.array(BACKGROUND) * 127 / 255
    assert tuple(result[0, 0]) == RED
    assert np.abs(result[0, 3] - (half if transparency == b"\xff\x80" else BACKGROUND)).max() <= 1


def test_palette_without_transparency() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    assert (decoded(encode(image)) == RED).all()


def test_colour_keys() -> None:
    keyed_rgb = raw_png(2, 1, 8, 2, bytes([0, *RED, 1, 2, 3]), trns(struct.pack(">HHH", 1, 2, 3)))
    assert decoded(keyed_rgb).tolist() == [[list(RED), list(BACKGROUND)]]
    keyed_grey = raw_png(2, 1, 8, 0, bytes([0, 50, 60]), trns(struct.pack(">H", 60)))
    assert decoded(keyed_grey).tolist() == [[[50] * 3, list(BACKGROUND)]]
    keyed_grey16 = raw_png(
        2, 1, 16, 0, b"\0" + struct.pack(">HH", 50 << 8 | 9, 60 << 8), trns(struct.pack(">H", 60 << 8))
    )
    assert decoded(keyed_grey16).tolist() == [[[50] * 3, list(BACKGROUND)]]


@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_keeps_the_high_byte(colour_type: int, channels: int) -> None:
    values = np.random.RandomState(0).randint(0, 65536, [4, 4, channels])
    if channels in (2, 4):
        values[:, :, -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colours = values[:, :, :-1] if channels in (2, 4) else values
    np.testing.assert_array_equal(
        decoded(raw_png(4, 4, 16, colour_type, rows)), np.broadcast_to(colours >> 8, [4, 4, 3])
    )


def test_16_bit_tiff() -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    assert decoded(encode(Image.fromarray(values), "TIFF")).tolist() == [
        [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    ]


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    red, green, blue = decoded(encode(image, "JPEG", quality=100))[8, 8]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = np.zeros([16, 32, 3], dtype=np.uint8)
    upright[:8, :16] = [255, 0, 0]
    upright[:8, 16:] = [0, 255, 0]
    upright[8:, :16] = [0, 0, 255]
    # How a camera stores the upright picture, from the EXIF standard: the place of the 0th row and column.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[it.EXIF_ORIENTATION] = orientation
    for format in ("PNG", "WEBP"):
        data = encode(
            Image.fromarray(np.ascontiguousarray(stored)),
            format,
            exif=exif,
            **({"lossless": True} if format == "WEBP" else {}),
        )
        np.testing.assert_array_equal(decoded(data), upright)


def test_damaged_exif_does_not_matter() -> None:
    data = encode(Image.new("RGB", (16, 16), RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert decoded(data).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "data, message",
    [
        (encode(Image.fromarray(np.zeros([4, 4], np.float32)), "TIFF"), "floating point"),
        (encode(Image.fromarray(np.full([4, 4], 1 << 20, np.int32)), "TIFF"), "32-bit"),
        (encode(Image.new("RGB", (64, 64)))[:-40], "cannot be decoded"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:700], "cannot be decoded"),
        (b"junk", "not a readable image"),
        (b"", "not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (raw_png(40000, 40000, 8, 2, b""), "decompression bomb"),
        (raw_png(12000, 12000, 8, 2, b""), "decompression bomb"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_images_are_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        it.decode(data)
    assert "\n" not in str(caught.value)


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.dstack([x % 256, y % 256, (x + y) % 256]).astype(np.uint8))


def made(
    image: Image.Image, size: tuple[int, int] | None, transform: str, filter: str = "lanczos"
) -> np.ndarray:
    result = it.transform(image, size, it.Preparation((size,), transform, filter))
    assert result is not None
    return np.asarray(result)


@pytest.mark.parametrize("width, height, left, top", [(20, 12, 4, 0), (12, 21, 0, 4), (16, 16, 0, 0)])
def test_center_crop(width: int, height: int, left: int, top: int) -> None:
    image = gradient(width, height)
    side = min(width, height)
    square = image.crop((left, top, left + side, top + side))
    np.testing.assert_array_equal(
        made(image, (8, 8), "center-crop"), np.asarray(square.resize((8, 8), Image.Resampling.LANCZOS))
    )
    np.testing.assert_array_equal(
        made(image, (8, 8), "center-crop", "box"), np.asarray(square.resize((8, 8), Image.Resampling.BOX))
    )


def test_center_crop_at_its_own_size_copies_pixels() -> None:
    image = gradient(12, 8)
    np.testing.assert_array_equal(made(image, (8, 8), "center-crop"), np.asarray(image)[:, 2:10])


def test_center_crop_wide_has_black_bars_and_leaves_small_images_out() -> None:
    result = made(gradient(64, 60), (32, 24), "center-crop-wide")
    assert result.shape == (32, 32, 3) and not result[:4].any() and not result[28:].any()
    expected = gradient(64, 60).crop((0, 6, 64, 54)).resize((32, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(result[4:28], np.asarray(expected))
    preparation = it.Preparation(((32, 24),), "center-crop-wide")
    assert it.transform(gradient(31, 60), (32, 24), preparation) is None
    assert it.transform(gradient(64, 47), (32, 24), preparation) is None
    assert it.transform(gradient(64, 48), (32, 24), preparation) is not None


@pytest.mark.parametrize("width, height", [(100, 70), (33, 64), (16, 16), (10, 12), (129, 257)])
def test_center_crop_dhariwal(width: int, height: int) -> None:
    """Against a step by step evaluation: halvings counted beforehand, then one bicubic resize and a crop."""
    image, resolution = gradient(width, height), 16
    w, h = width, height
    halvings = 0
    while min(w, h) >= 32:
        w, h, halvings = w // 2, h // 2, halvings + 1
    for i in range(1, halvings + 1):
        image = image.resize((width >> i, height >> i), Image.Resampling.BOX)
    short = min(w, h)
    image = image.resize(
        (round(w * resolution / short), round(h * resolution / short)), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
    np.testing.assert_array_equal(
        made(gradient(width, height), (16, 16), "center-crop-dhariwal"),
        pixels[top : top + 16, left : left + 16],
    )


def test_an_elongated_image_does_not_fill_the_memory() -> None:
    with pytest.raises(ValueError, match="too elongated"):
        made(gradient(20_000, 1), (256, 256), "center-crop-dhariwal")
    assert made(gradient(20_000, 1), (256, 256), "center-crop").shape == (256, 256, 3)


def test_transform_none() -> None:
    np.testing.assert_array_equal(made(gradient(16, 16), None, "none"), np.asarray(gradient(16, 16)))
    assert made(gradient(17, 17), (16, 16), "none").shape == (16, 16, 3)
    for size in (None, (16, 16)):
        with pytest.raises(ValueError, match="32x16, not square"):
            made(gradient(32, 16), size, "none")
    with pytest.raises(ValueError, match="not a power of two"):
        made(gradient(17, 17), None, "none")
    with pytest.raises(ValueError, match="unknown transform"):
        made(gradient(16, 16), (16, 16), "stretch")
    with pytest.raises(ValueError, match="needs a resolution"):
        made(gradient(16, 16), None, "center-crop")


def test_png_depends_on_pixels_alone() -> None:
    image = gradient(16, 16)
    noisy = image.copy()
    noisy.info.update(dpi=(300, 300), icc_profile=b"profile", comment="text", gamma=0.5)
    for level in (0, 9):
        assert it.encode_png(noisy, level) == it.encode_png(image, level)
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(it.encode_png(image, level)))), np.asarray(image)
        )
    assert len(it.encode_png(image, 9)) < len(it.encode_png(image, 0))


def test_every_size_is_made_from_the_original() -> None:
    data = encode(gradient(50, 40))
    together = it.prepare(data, it.Preparation(((16, 16), (32, 32), (8, 8)), "center-crop"))
    alone = [it.prepare(data, it.Preparation(((size, size),), "center-crop")) for size in (16, 32, 8)]
    assert together == [pngs[0] for pngs in alone if pngs]
    wide = it.Preparation(((16, 12), (64, 48)), "center-crop-wide")
    assert it.prepare(data, wide) is None, "too small for one size: left out at all"


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels(channels: int, mode: str) -> None:
    """Alpha survives only with four channels; a grey image keeps its values with one."""
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    image = it.decode(buffer.getvalue(), channels=channels)
    assert image.mode == mode
    if channels == 4:
        assert (np.asarray(image) == pixels).all()
    grey = it.decode(pixels[..., 0], channels=channels)
    expected = np.stack([pixels[..., 0]] * 3, axis=2)
    assert (np.asarray(grey.convert("RGB")) == expected).all()
    if channels == 4:
        assert (np.asarray(grey)[..., 3] == 255).all()
    (encoded,) = it.prepare(buffer.getvalue(), it.Preparation(((4, 4),), channels=channels))
    with Image.open(io.BytesIO(encoded)) as small:
        assert small.mode == mode and small.size == (4, 4)
