# SPDX-License-Identifier: Apache-2.0
"""Convert one source image to one square training image: decode, crop, resize, encode as PNG.

All functions depend only on their arguments. So an image has the same bytes if it is prepared alone, with
others, or at several resolutions.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dnnlib import util
from image_data import archives, png

FILTERS = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}
TRANSFORMS = ("none", "center-crop", "center-crop-wide", "center-crop-dhariwal")
DHARIWAL_FILTER = "box+bicubic"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's mode
EXIF_ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preparation:
    """How every image is prepared. `sizes` are (width, height) pairs; (None,) keeps the image's own size."""

    sizes: tuple[tuple[int, int] | None, ...] = (None,)
    transform: str = "none"
    filter: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    channels: int = 3  # 1 = grey, 3 = RGB, 4 = RGB and alpha
    compress_level: int = (
        0  # zlib level of the PNGs; 0 = stored, like StyleGAN's data sets: large, but fast to read
    )


def decode(
    payload: bytes | np.ndarray,
    background: tuple[int, int, int] = (255, 255, 255),
    channels: int = 3,
    is_checked: bool = False,
) -> Image.Image:
    """Decode an image to upright 8-bit RGB, grey or RGBA.

    Args:
        payload: an encoded image, or uint8 pixels [H, W], [H, W, 3] or [H, W, 4].
        background: RGB colour under transparent pixels.
        channels: 1 = grey (luminance of the RGB image), 3 = RGB, 4 = RGBA, not premultiplied.
        is_checked: as for `png.decode_into`.

    Raises:
        ValueError: the image cannot be decoded.
    """
    pixels = payload if isinstance(payload, np.ndarray) else png.decode(payload, is_checked)
    if pixels is not None:
        return _in_channels(Image.fromarray(pixels), background, channels)
    assert isinstance(payload, bytes)
    image = archives.open_image(payload)
    try:
        image.load()
        orientation = _orientation(image)
        rgb = _in_channels(image, background, channels)
    except Exception as error:  # Pillow's decoders can raise any exception on damaged data
        raise ValueError(f"cannot be decoded ({util.reason(error)})") from None
    return rgb if orientation not in TRANSPOSES else rgb.transpose(TRANSPOSES[orientation])


def _in_channels(image: Image.Image, background: tuple[int, int, int], channels: int) -> Image.Image:
    """Convert any Pillow mode to L, RGB or RGBA."""
    if channels != 4:
        rgb = to_rgb(image, background)
        return rgb.convert("L") if channels == 1 else rgb
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    if has_alpha and not image.mode.startswith("I"):
        return image.convert("RGBA")
    return to_rgb(image, background).convert("RGBA")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # the image is readable even if its EXIF block is damaged
        return 1


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert any Pillow mode to RGB.

    Transparent pixels are composited on `background`. 16-bit values keep their high byte (as Pillow does for
    16-bit RGB).

    Raises:
        ValueError: float or 32-bit integer pixels, whose range is not defined.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey, alpha = _high_byte(image)
        return _composite(grey.convert("RGB"), alpha, background)
    if image.mode == "F":
        raise ValueError("floating point pixels have no defined range; convert to 8 or 16 bits first")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return _composite(rgba.convert("RGB"), rgba.getchannel("A"), background)
    if image.mode == "RGB":
        image.load()  # the result needs no open file
        return image
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split a 16-bit grey image into (8-bit grey image, alpha or None)."""
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise ValueError("32-bit integer pixels have no defined range; convert to 8 or 16 bits first")
    transparent = image.info.get("transparency")
    alpha = (
        None
        if transparent is None
        else Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    )
    return Image.fromarray((values >> 8).astype(np.uint8)), alpha


def _composite(rgb: Image.Image, alpha: Image.Image | None, background: tuple[int, int, int]) -> Image.Image:
    if alpha is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, background)
    canvas.paste(rgb, mask=alpha)
    return canvas


def transform(
    image: Image.Image, size: tuple[int, int] | None, preparation: Preparation
) -> Image.Image | None:
    """Crop and resize an image to a square.

    Returns:
        The image, or None if center-crop-wide omits it because it is too small.

    Raises:
        ValueError: the result would not be a square with a power-of-two side, or the image would be
            distorted.
    """
    kind = preparation.transform
    if kind == "none":
        result: Image.Image | None = _keep(image, size, FILTERS[preparation.filter])
    elif size is None:
        raise ValueError(f"transform {kind} needs a resolution")
    elif kind == "center-crop":
        result = _center_crop(image, size, FILTERS[preparation.filter])
    elif kind == "center-crop-wide":
        result = _center_crop_wide(image, size, FILTERS[preparation.filter])
    elif kind == "center-crop-dhariwal":
        result = _center_crop_dhariwal(image, size[0])
    else:
        raise ValueError(f"unknown transform {kind!r}: choose one of {', '.join(TRANSFORMS)}")
    return result


def _keep(image: Image.Image, size: tuple[int, int] | None, resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    if width != height:
        # Deviation: the published tool stretches such an image to the requested resolution.
        raise ValueError(f"is {width}x{height}, not square: use --transform=center-crop (with --resolution)")
    if size is None:
        if width & (width - 1):
            raise ValueError(f"is {width}x{height}, not a power of two: use --resolution")
        return image
    return _resize(image, size, resample)


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resample)


def _center_crop(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize the largest centred square."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _resize(image.crop((left, top, left + side, top + side)), size, resample)


def _center_crop_wide(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image | None:
    """Crop the height to the aspect ratio of `size`, resize, and add black bars that make the image square.

    As in the published tool, an image narrower than `size`, or too low for its aspect ratio, is omitted
    (None).
    """
    target_width, target_height = size
    width, height = image.size
    crop_height = round(width * target_height / target_width)
    if width < target_width or height < crop_height:
        return None
    top = (height - crop_height) // 2
    picture = _resize(image.crop((0, top, width, top + crop_height)), size, resample)
    canvas = Image.new(image.mode, (target_width, target_width))
    canvas.paste(picture, (0, (target_width - target_height) // 2))
    return canvas


def _center_crop_dhariwal(image: Image.Image, resolution: int) -> Image.Image:
    """ADM's preprocessing (Dhariwal and Nichol, 2021).

    Halve with a box filter while possible, finish with bicubic, crop the centre.
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if (
        size[0] * size[1] > archives.MAX_PIXELS
    ):  # enlarging a strip that is one pixel high would fill the memory
        raise ValueError(
            f"is too elongated for center-crop-dhariwal, which would make it {size[0]}x{size[1]}: use "
            "--transform=center-crop"
        )
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def encode_png(image: Image.Image, compress_level: int = 0) -> bytes:
    """Encode as PNG without metadata. The bytes depend only on the pixels and the level.

    Level 0 gives the files that `png.decode_into` reads.
    """
    fast = png.encode(np.asarray(image)) if compress_level == 0 else None
    if fast is not None:
        return fast
    bare = Image.new(image.mode, image.size)
    bare.paste(image)
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG", compress_level=compress_level, optimize=False)
    return buffer.getvalue()


def prepare(
    payload: bytes | np.ndarray, preparation: Preparation, is_checked: bool = False
) -> list[bytes] | None:
    """Encode an image as PNG at every size of the preparation, each resized from the decoded original.

    Args:
        payload: as for `decode`.
        preparation: how.
        is_checked: as for `png.decode_into`.

    Returns:
        The PNGs, or None if the transform omits the image.

    Raises:
        ValueError: the image cannot be decoded, or does not have the required shape.
    """
    image = decode(payload, preparation.background, preparation.channels, is_checked)
    results = [transform(image, size, preparation) for size in preparation.sizes]
    # An image that is omitted at one size is omitted at all, so that the data sets of one call contain the
    # same images.
    return (
        None
        if any(result is None for result in results)
        else [encode_png(result, preparation.compress_level) for result in results if result]
    )
