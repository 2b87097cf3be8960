# SPDX-License-Identifier: Apache-2.0
"""style_mixing.py on a small network."""

import click
import numpy as np
import PIL.Image
import pytest

import style_mixing
from generation import Network
from tests.support import read_pixels, run

PUBLISHED = ["--outdir=out", "--rows=85,100,75,458,1500", "--cols=55,821,1789,293", "--network=n.pkl"]


def test_the_published_command_line_parses():
    given = style_mixing.main.make_context("style_mixing.py", [*PUBLISHED]).params
    assert (given["row_seeds"], given["col_seeds"]) == ("85,100,75,458,1500", "55,821,1789,293")
    assert (given["truncation"], given["noise_mode"]) == (1, "const")
    assert list(style_mixing.DEFAULT_STYLES) == [0, 1, 2, 3, 4, 5, 6]


def test_the_published_command_line_runs(toy_networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(style_mixing.main, *PUBLISHED[:-1], "--network", toy_networks / "uncond.pkl", "--device=cpu")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"grid.png", "85-55.png", "1500-293.png", "821-821.png"} < names and len(names) == 1 + 9 + 20


@pytest.mark.parametrize("styles", [None, "0,3"])
def test_layers_come_from_the_columns(toy_networks, tmp_path, styles):
    flags = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--trunc=0.8", "--class=cat"]
    more = [] if styles is None else [f"--styles={styles}"]
    run(style_mixing.main, *flags, *more, "--rows=1,2", "--cols=2,3", "--outdir", tmp_path)
    network = Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")
    layers = list(range(7)) if styles is None else [0, 3]
    codes = {seed: network.styles(seed, "cat", 0.8) for seed in (1, 2, 3)}
    shown = {}
    for row, col in ((1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3)):
        ws = codes[row].clone()
        ws[:, layers] = codes[col][:, layers]
        shown[row, col] = network.render(ws)[0]
        assert (read_pixels(tmp_path / f"{row}-{col}.png") == shown[row, col]).all()
    assert len(list(tmp_path.iterdir())) == 7
    grid = read_pixels(tmp_path / "grid.png").reshape(3, 16, 3, 16, 3).swapaxes(1, 2)
    assert (grid[0, 0] == 0).all() and (grid[0, 1:] == [shown[2, 2], shown[3, 3]]).all()
    assert (grid[1] == [shown[1, 1], shown[1, 2], shown[1, 3]]).all()
    assert (grid[2] == [shown[2, 2], shown[2, 2], shown[2, 3]]).all()
    assert np.abs(shown[1, 3].astype(int) - shown[1, 1]).max() > 0
    with PIL.Image.open(tmp_path / "1-3.png") as image:
        text = image.info
    assert (text["seeds"], text["class_name"], text["style_layers"]) == (
        "1,3",
        "cat",
        "0-6" if not styles else "0,3",
    )


def test_mistakes_are_one_line(toy_networks, tmp_path):
    flags = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--outdir", tmp_path / "out"]
    for args, message in (
        (["--rows=x", "--cols=1"], "--rows: cannot parse 'x'"),
        (["--rows=1", "--cols=5000000000"], "--cols: 5000000000 is too large"),
        (["--rows=1", "--cols=1", "--styles=0-99"], "cond.pkl has layers 0 to 7"),
        (["--rows=1", "--cols=1", "--styles=a"], "--styles: cannot parse"),
        (["--rows=0-9999", "--cols=0-9999"], "--rows and --cols: 100,020,001 images of 16x16 pixels"),
        (["--rows=1", "--cols=1", "--class=9"], "class 9: the network's classes are 0 to 2"),
    ):
        output = run(style_mixing.main, *flags, *args, code=1).output
        assert message in output and output.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(click.MissingParameter):
        style_mixing.main.make_context("style_mixing.py", ["--network=n.pkl"])
