# SPDX-License-Identifier: Apache-2.0
"""Inversion in the viewer, without a page."""

import shlex
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import gen_images
from generation import inversion
from generation.viewer.inverting import Inverter
from generation.viewer.session import Superseded, Viewer
from generation.viewer.state import State, group_rows
from generation.w_files import load_w
from metrics import detectors
from tests.support import TinyDetector, read_pixels, run


@pytest.fixture
def viewer(toy_networks: Path) -> Viewer:
    return Viewer([str(toy_networks / "cond.pkl"), str(toy_networks / "uncond.pkl")], "cpu")


@pytest.fixture
def inverter(viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inverter:
    monkeypatch.setattr(detectors, "load", lambda name, device: TinyDetector(name))
    return Inverter(viewer, tmp_path)


@pytest.fixture
def picture(viewer: Viewer, tmp_path: Path) -> str:
    path = tmp_path / "dropped.png"
    network = viewer.open(viewer.choices[0].source)
    mean = inversion.mean_style(network, np.eye(3)[2], 1000)
    pixels = network.render(mean.repeat(1, network.G.num_ws, 1))[0]
    PIL.Image.fromarray(pixels).resize((40, 32), PIL.Image.Resampling.NEAREST).save(path)
    return str(path)


def test_a_dropped_image_becomes_a_style_code_and_steps_are_reported(inverter, picture):
    source, done = inverter.viewer.choices[0].source, []
    path, text = inverter.invert(source, picture, 3, done=lambda *step: done.append(step))
    assert load_w(path, inverter.viewer.open(source)).shape == (1, 8, 512)
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert text.startswith("3 steps, class 2 red-panda, PSNR ")
    assert text.endswith(" dB; 40x32 is cropped to its centre of 32x32")
    other, text = inverter.invert(source, picture, 1, label=0)
    assert other != path and "class 0 cat" in text
    _, text = inverter.invert(inverter.viewer.choices[1].source, picture, 1)
    assert "class" not in text


def test_an_inverted_image_is_steered_as_that_of_a_seed(inverter, picture, tmp_path):
    viewer, source = inverter.viewer, inverter.viewer.choices[0].source
    network = viewer.open(source)
    path, _ = inverter.invert(source, picture, 2, label=2)
    state = State(projected=path, rotate=30)
    words = shlex.split(state.command(network, None))
    assert words[2:] == [f"--network={source}", f"--projected-w={path}", "--rotate=30", "--outdir=out"]
    run(gen_images.main, *words[2:-1], "--device=cpu", "--outdir", tmp_path / "out")
    assert (read_pixels(tmp_path / "out" / "proj00.png") == viewer.picture(source, state)).all()
    mixed = State(projected=path, style_seed=6, groups=("coarse",), label_b=1, mix=0.25)
    code = mixed.command(network, None)
    names: dict = {}
    exec(code.replace(f"({source!r})", f"({source!r}, device='cpu')"), names)
    assert (names["images"][0] == viewer.picture(source, mixed)).all()
    ws = mixed.styles(network, None)
    other = State(seed=6, label_b=1, mix=0.25).styles(network, None)
    rows = group_rows(network.G.num_ws)
    assert torch.equal(ws[:, rows["coarse"]], other[:, rows["coarse"]])
    base = load_w(path, network).lerp(network.styles(0, 1), 0.25)
    torch.testing.assert_close(ws[:, rows["fine"]], base[:, rows["fine"]], atol=0, rtol=0)
    another = viewer.open(viewer.choices[1].source)
    assert state.for_network(another) == State(rotate=30)
    assert state.misfits(another).startswith("the inverted image does not fit ")
    assert state.for_network(network) == state


def test_other_requests_are_served_between_steps(inverter, picture):
    viewer, source, served = inverter.viewer, inverter.viewer.choices[0].source, threading.Event()

    def show() -> None:
        viewer.picture(source, State(seed=1), client="other page")
        served.set()

    def done(step: int, steps: int) -> None:
        if step == 1:
            threading.Thread(target=show).start()
        if served.is_set():
            raise InterruptedError

    with pytest.raises(InterruptedError):
        inverter.invert(source, picture, 2000, label=0, done=done)


def test_the_newest_inversion_of_a_page_wins(inverter, picture):
    source = inverter.viewer.choices[0].source

    def done(step: int, steps: int) -> None:
        if steps == 4 and step == 2:
            inverter.invert(source, picture, 1, label=0, client="page")
            inverter.invert(source, picture, 1, label=0, client="another page")

    with pytest.raises(Superseded):
        inverter.invert(source, picture, 4, label=0, client="page", done=done)


def test_mistakes_are_one_line(inverter, picture, tmp_path, monkeypatch):
    source = inverter.viewer.choices[0].source

    def fails(match: str, path: str | None = picture, steps: int = 1, label: int | None = None) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            inverter.invert(source, path, steps, label)
        assert "\n" not in str(caught.value)

    fails("drop an image first", path=None)
    fails("0 steps: give 1 to 2000", steps=0)
    fails("class 3: the network's classes are 0 to 2", label=3)  # chosen for another network
    broken = tmp_path / "broken.png"
    broken.write_bytes(np.zeros(9, np.uint8).tobytes())
    fails("not a readable image", path=str(broken))
    monkeypatch.setattr("generation.viewer.inverting.MAX_CLASSES", 2)
    fails("the network has 3 classes: choose that of the image first")
