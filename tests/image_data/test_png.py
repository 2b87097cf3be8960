# SPDX-License-Identifier: Apache-2.0
"""image_data/png.py: PNGs of a fixed layout, read by Pillow and without it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from image_data import png


def random_pixels(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(height * width).randint(0, 256, [height, width, 3]).astype(np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    data = png.encode(pixels)
    assert data is not None
    return data


def decoded(data: bytes, shape: tuple[int, ...], is_checked: bool = False) -> np.ndarray | None:
    """The pixels in the middle of a larger array, whose border must not change."""
    height, width = shape[:2]
    around = np.full([3, height + 2, width + 2], 77, dtype=np.uint8)
    accepted = png.decode_into(data, around[:, 1:-1, 1:-1], is_checked)
    inner = around[:, 1:-1, 1:-1].transpose(1, 2, 0).copy()
    around[:, 1:-1, 1:-1] = 77
    assert (around == 77).all()
    return inner if accepted else None


# Rows in one block, just in one, in several; one row per block; sizes that are not square.
@pytest.mark.parametrize(
    "height, width", [(1, 1), (16, 16), (85, 256), (86, 256), (300, 200), (3, 21844), (1, 7)]
)
def test_pillow_and_the_decoder_read_the_pixels(height, width):
    pixels = random_pixels(height, width)
    data = encoded(pixels)
    assert len(data) == png.file_size(width, height)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB" and not image.info
        assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(decoded(data, pixels.shape), pixels)
    assert np.array_equal(png.decode(data), pixels)
    mirrored = np.empty([3, height, width], dtype=np.uint8)
    assert png.decode_into(data, mirrored[:, :, ::-1])
    assert np.array_equal(mirrored.transpose(1, 2, 0)[:, ::-1], pixels)


def test_every_byte_of_the_file_is_that_of_the_specification():
    """Read with the standard library alone: chunks, checksums, filters, and a zlib stream without remains."""
    pixels = random_pixels(90, 256)
    data, chunks = encoded(pixels)[8:], {}
    while data:
        (size,), kind = struct.unpack(">I", data[:4]), data[4:8]
        assert struct.unpack(">I", data[8 + size : 12 + size]) == (zlib.crc32(data[4 : 8 + size]),)
        chunks[kind], data = data[8 : 8 + size], data[12 + size :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    unpacker = zlib.decompressobj()
    rows = np.frombuffer(unpacker.decompress(chunks[b"IDAT"]), np.uint8).reshape(90, 1 + 3 * 256)
    assert unpacker.eof and not unpacker.unused_data
    assert not rows[:, 0].any() and np.array_equal(rows[:, 1:].reshape(90, 256, 3), pixels)


def test_files_are_no_larger_than_pillows():
    for size in (1, 16, 64, 256):
        pillows = io.BytesIO()
        Image.fromarray(random_pixels(size, size)).save(pillows, "PNG", compress_level=0)
        assert len(encoded(random_pixels(size, size))) <= len(pillows.getvalue())


def test_a_size_that_does_not_fit_is_left_to_others():
    assert png.encode(np.zeros([2, 21845, 3], np.uint8)) is None
    for width, height in ((0, 1), (1, 0), (21845, 1), (2**32, 2**32), (20000, 40000)):
        assert png.file_size(width, height) is None


@pytest.mark.parametrize("is_checked", [False, True])
def test_damaged_files_are_refused_and_never_written_outside_the_image(is_checked):
    pixels = random_pixels(5, 6000)  # rows of 18,001 bytes: two blocks
    data = encoded(pixels)
    places = {*range(60), *range(len(data) - 40, len(data)), *range(0, len(data), 997)}
    heads = {at for at in range(len(data)) if data[at : at + 1] and at in range(54050, 54060)}
    for place in places | heads:
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        found = decoded(bytes(damaged), pixels.shape, is_checked)
        if not is_checked:
            assert found is None, place
        elif found is not None:  # of these bytes only pixels and checksums are not in the layout
            assert (found != pixels).sum() <= 1
    for cut in (0, 7, 8, 24, 43, 60, len(data) - 1):
        assert decoded(data[:cut], pixels.shape, is_checked) is None and png.decode(data[:cut]) is None
    assert decoded(data + b"\0", pixels.shape, is_checked) is None


def test_a_checksum_that_the_caller_has_checked_is_not_computed_again():
    pixels = random_pixels(5, 6000)
    data = bytearray(encoded(pixels))
    data[-16] ^= 0xFF  # the CRC-32 of the pixels
    assert png.decode(bytes(data)) is None
    assert np.array_equal(png.decode(bytes(data), is_checked=True), pixels)


def test_headers_that_lie_are_refused():
    data = encoded(random_pixels(8, 8))
    for width, height in ((4, 16), (2**31, 2**31), (0, 0), (8, 9), (2**32 - 1, 1)):
        lying = data[:16] + struct.pack(">II", width, height) + data[24:]
        assert decoded(lying, (8, 8), is_checked=True) is None
        assert png.decode(lying) is None
        if 0 < width * height < 100:
            assert decoded(lying, (height, width), is_checked=True) is None


def test_other_pngs_are_refused():
    pixels = random_pixels(16, 16)
    for image, options in (
        (Image.fromarray(pixels), {"compress_level": 0}),
        (Image.fromarray(pixels), {}),
        (Image.fromarray(pixels[:, :, 0]), {"compress_level": 0}),
    ):
        stream = io.BytesIO()
        image.save(stream, "PNG", **options)
        if stream.getvalue() != encoded(pixels):
            assert decoded(stream.getvalue(), pixels.shape) is None
    # Filter 1, which has the same layout.
    filtered = bytearray(encoded(pixels))
    filtered[48] = 1
    assert decoded(bytes(filtered), pixels.shape, is_checked=True) is None


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_grey_and_transparent_images(channels, mode):
    """The decoder refuses an array of another number of channels."""
    pixels = np.random.RandomState(0).randint(0, 256, [300, 256, channels]).astype(np.uint8)
    pixels = pixels[:, :, 0] if channels == 1 else pixels
    data = encoded(pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode and np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(png.decode(data), pixels)
    assert not png.decode_into(data, np.empty([3, 300, 256], np.uint8))
    out = np.empty([channels, 300, 256], np.uint8)
    assert png.decode_into(data, out) and np.array_equal(out.transpose(1, 2, 0).reshape(pixels.shape), pixels)
