# SPDX-License-Identifier: Apache-2.0
"""Walks of gen_video.py: over style codes, seeds, classes, truncation, motion and edits."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import gen_video
from generation import Network, direction_files, w_files
from tests.support import read_pixels, run


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


def walked(network: Network, out: Path, *args: object) -> np.ndarray:
    """The keyframes of a walk, one frame each: uint8 [K, H, W, 3]."""
    flags = ["--network", network.path, "--device=cpu", "--w-frames=1", "--frames", out]
    run(gen_video.main, *flags, *args)
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"frame{index:06d}.png" for index in range(len(names))]
    return np.stack([read_pixels(out / name) for name in names])


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether pictures agree up to the rounding of the spline."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_one_seed_walks_through_a_range_of_classes(network, tmp_path):
    found = walked(network, tmp_path / "a", "--seeds=5", "--class=0-2")
    assert close(found, network.generate([5, 5, 5], [0, 1, 2]))


def test_truncation_motion_and_rotation_follow_their_lists(network, tmp_path):
    lists = ["--truncs=0,0.5,1", "--translate=0,0", "--translate=0.25,0", "--rotate=10"]
    found = walked(network, tmp_path / "a", "--seeds=5", "--class=1", *lists)
    assert len(found) == 3
    for image, psi, x in zip(found, (0, 0.5, 1), (0, 0.25, 0), strict=True):
        assert close(image[None], network.generate(5, 1, psi, translate=(x, 0), rotate=10))
    grid = walked(network, tmp_path / "b", "--seeds=5,6", "--class=1", "--grid=2x1", "--rotate=0,90")
    for image, seed, angle in zip(np.split(grid[0], 2, axis=1), (5, 6), (0, 90), strict=True):
        assert close(image[None], network.generate(seed, 1, rotate=angle))


def test_strengths_of_edits_are_walked(network, tmp_path):
    G, random = network.G, torch.Generator().manual_seed(0)
    w, style = str(tmp_path / "w.safetensors"), str(tmp_path / "s.safetensors")
    direction_files.write(w, network, {}, torch.randn([2, G.w_dim], generator=random), [1])
    sizes = direction_files.layer_sizes(G)
    random_styles = {name: torch.randn([1, size], generator=random) for name, size in sizes.items()}
    direction_files.write(style, network, {}, styles=random_styles)
    edits = [f"--edit={w}#1:-2,2", f"--edit={style}:1"]
    found = walked(network, tmp_path / "a", "--seeds=5", *edits, "--save-w", tmp_path / "k.npz")
    for image, strength in zip(found, (-2, 2), strict=True):
        with network.edited(f"{w}#1:{strength}", f"{style}:1"):
            assert close(image[None], network.generate(5))
    direction = direction_files.read(w).w[1]
    codes = w_files.load_w(tmp_path / "k.npz", network)
    expected = network.styles([5, 5])
    expected[:, 1] += torch.tensor([[-2.0], [2.0]]) * direction
    torch.testing.assert_close(codes, expected)


def test_style_codes_of_files_come_before_seeds(network, tmp_path):
    codes = network.styles([7, 8], 2, 0.5)
    w_files.save_w(tmp_path / "a.npz", codes[:1], network)
    w_files.save_w(tmp_path / "b.npz", codes[1:], network)
    files = [f"--projected-w={tmp_path / name}.npz" for name in ("a", "b")]
    found = walked(network, tmp_path / "f", *files, "--seeds=9", "--class=1")
    assert close(found, network.render(torch.cat([codes, network.styles(9, 1)])))
    assert close(walked(network, tmp_path / "g", *files, "--class=1", "--truncs=0"), network.render(codes))
    with PIL.Image.open(tmp_path / "g" / "frame000000.png") as image:
        assert image.info["w_files"] == "a.npz, b.npz" and not {"truncation", "truncations"} & set(image.info)


def test_mistakes_are_one_line(network, toy_networks, tmp_path):
    other = Network.from_pretrained(toy_networks / "uncond.pkl", device="cpu")
    w_files.save_w(tmp_path / "other.npz", other.styles(0), other)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "frame000009.png").touch()
    frames = ["--frames", tmp_path / "out"]
    for args, message in (
        (["--seeds=0"], "give either --output=FILE, or --frames=DIR"),
        (["--seeds=0", *frames, "--output=x.gif"], "give either --output=FILE, or --frames=DIR"),
        (frames, "give --seeds=LIST, or --projected-w=FILE"),
        (["--seeds=0", *frames, "--trunc=0.5", "--truncs=1"], "--truncs takes the place of --trunc"),
        (["--seeds=0", *frames, "--truncs=0,x"], "--truncs: 'x' is not a number"),
        (["--seeds=0", *frames, "--rotate=inf"], "--rotate: inf is not a finite number"),
        (["--seeds=0", *frames, "--translate=1"], "1"),
        (["--seeds=0", "--frames", tmp_path / "f"], "contains frame000009.png of another video"),
        (["--seeds=0", *frames, "--save-w=x.txt"], "--save-w=x.txt: end the name with .npz"),
        (["--projected-w", tmp_path / "other.npz", *frames], "belong to another network"),
        (["--projected-w", tmp_path / "none.npz", *frames], "no such file"),
    ):
        flags = ["--network", network.path, "--device=cpu", "--w-frames=1"]
        output = run(gen_video.main, *flags, *args, code=1).output
        assert message in output and len(output.strip().splitlines()) == 1 + ("does not move" in output), (
            output
        )
    assert not (tmp_path / "out").exists()
