# SPDX-License-Identifier: Apache-2.0
"""Target images: any image file becomes a square of the network's resolution, and mistakes are one line."""

import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from generation import targets


def picture(width: int = 16, height: int = 16, mode: str = "RGB") -> PIL.Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def read(path: Path, resolution: int = 16, channels: int = 3) -> targets.Target:
    (place,) = targets.find([str(path)])
    return targets.read(*place, resolution, channels)


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path):
    picture().save(tmp_path / "a.png")
    target = read(tmp_path / "a.png")
    assert (target.pixels == np.asarray(picture())).all()
    assert target.name == "a" and target.notes == () and len(target.sha256) == 64


def test_the_centre_is_cropped_and_resized(tmp_path):
    picture(40, 32).save(tmp_path / "a.png")
    target = read(tmp_path / "a.png")
    expected = picture(40, 32).crop((4, 0, 36, 32)).resize((16, 16), PIL.Image.Resampling.LANCZOS)
    assert (target.pixels == np.asarray(expected)).all()
    assert target.notes == ("40x32 is cropped to its centre of 32x32",)
    picture(8, 8).save(tmp_path / "b.png")
    assert read(tmp_path / "b.png").notes == ("8x8 pixels are enlarged to 16x16",)


def test_grey_transparent_and_animated_images_say_what_is_done(tmp_path):
    picture(mode="L").save(tmp_path / "grey.png")
    grey = read(tmp_path / "grey.png")
    assert (grey.pixels == np.asarray(picture(mode="L"))[:, :, None]).all()
    assert grey.notes == ("grey values are copied to all channels",)
    single = read(tmp_path / "grey.png", channels=1)
    assert single.pixels.shape == (16, 16, 1) and single.notes == ()
    opaque = read(tmp_path / "grey.png", channels=4).pixels
    assert opaque.shape == (16, 16, 4) and (opaque[..., 3] == 255).all()
    clear = picture(mode="RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    found = read(tmp_path / "clear.png")
    assert (found.pixels == 255).all() and found.notes == ("transparent pixels become white",)
    frames = [picture(), PIL.Image.new("RGB", (16, 16))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    moving = read(tmp_path / "a.webp")
    assert (moving.pixels == np.asarray(picture())).all()
    assert moving.notes == ("only the first of 2 frames is used",)


def test_folders_and_zips_give_all_their_images_under_different_names(tmp_path):
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "cats/b.png"):
        picture().save(folder / name)
    (folder / "notes.txt").write_text("")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(folder / "a.png", "a.png")
    picture().save(folder / "...png", "PNG")  # hidden, and without its extension the folder above
    found = targets.find([str(folder), str(tmp_path / "c.zip"), str(folder / "...png")])
    assert [name for name, _, _ in found] == ["a", "a-2", "cats-b", "a-3", "image"]
    assert all(targets.read(*place, 16).pixels.shape == (16, 16, 3) for place in found)


def test_mistakes_are_one_line(tmp_path):
    def fails(path: Path, match: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=match) as caught:
            read(path)
        assert str(caught.value).startswith(f"--target={path}") and "\n" not in str(caught.value)

    fails(tmp_path / "gone.png", "gone.png: no such file", FileNotFoundError)
    (tmp_path / "a.png").write_text("hello")
    fails(tmp_path / "a.png", "a.png: not a readable image")
    picture().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    fails(tmp_path / "cut.png", "cut.png: ")
    PIL.Image.fromarray(np.zeros((16, 16), np.float32)).save(tmp_path / "f.tiff")
    fails(tmp_path / "f.tiff", "f.tiff: .*floating point pixels have no defined range")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "empty: contains no images")
    (tmp_path / "b.zip").write_text("")
    fails(tmp_path / "b.zip", "b.zip: not a readable zip file")
