# SPDX-License-Identifier: Apache-2.0
"""viewer.py: its mistakes, and its page in headless Chromium (skipped where one of the three is absent)."""

import base64
import importlib.util
import io
import os
import re
import shutil
import socket
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import viewer
from tests.support import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [
    *(name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None),
    *([] if CHROMIUM else ["chromium"]),
]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
SECONDS = 300  # of a wait in the browser, on a busy machine


def test_mistakes_are_one_line(toy_networks, monkeypatch):
    network = f"--network={toy_networks / 'cond.pkl'}"
    monkeypatch.setattr(viewer.importlib.util, "find_spec", lambda name: None)
    assert "viewer.py needs the package gradio: pip install" in run(viewer.main, network, code=1).output
    monkeypatch.setattr(viewer.importlib.util, "find_spec", lambda name: True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = run(viewer.main, network, f"--port={port}", code=1).output
    assert f"--port={port}: Address already in use: choose another --port" in output
    assert len(output.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def folder(toy_networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two snapshots, the second of another network."""
    run_folder = tmp_path_factory.mktemp("run")
    for name, source in (("000001", "nameless"), ("000002", "cond")):
        shutil.copy(toy_networks / f"{source}.pkl", run_folder / f"network-snapshot-{name}.pkl")
    shutil.copy(toy_networks / "cond.pkl", run_folder / "best_model.pkl")
    return run_folder


@pytest.fixture(scope="module")
def shown(folder):
    """The viewer, a browser and the address of the page."""
    import torch
    from playwright.sync_api import sync_playwright

    from generation import Network, direction_files
    from generation.viewer import page
    from generation.viewer.session import Viewer

    network, file = Network.from_pretrained(folder / "best_model.pkl", device="cpu"), folder / "d.safetensors"
    direction_files.write(str(file), network, {"name": "smile"}, torch.ones([1, network.G.w_dim]))
    found = Viewer([str(folder)], "cpu", edits=[str(file)])
    blocks, address = page.serve(found, port=0, block=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found, browser, address
        browser.close()
    blocks.close()


def open_page(browser, address, width=1280):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(1000 * SECONDS)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    wait_for_status(page, "seed 0")
    return page


def wait_for_status(page, text: str) -> None:
    script = "text => document.querySelector('#status')?.innerText.includes(text)"
    page.wait_for_function(script, arg=text)


def pixels(page) -> np.ndarray:
    """The picture on the page, at the size of the network."""
    source = page.get_attribute("#picture img", "src")
    if source.startswith("data:"):
        data = base64.b64decode(source.partition(",")[2])
    else:
        with urllib.request.urlopen(source) as stream:
            data = stream.read()
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))[::32, ::32]


@needs_browser
def test_the_page_shows_and_steers(shown, folder):
    from generation.viewer.state import State

    found, browser, address = shown
    source = str(folder / "best_model.pkl")
    page = open_page(browser, address)
    assert (pixels(page) == found.picture(source, State())).all()
    page.click("#next")
    wait_for_status(page, "seed 1,")
    assert (pixels(page) == found.picture(source, State(seed=1))).all()
    field = page.locator("#class input")
    field.click()
    field.fill("panda")
    page.get_by_role("option", name="2 red-panda").click()
    wait_for_status(page, "class 2 red-panda")
    command = page.input_value("#command textarea")
    assert command == f"python gen_images.py --network={source} --seeds=1 --class=2 --outdir=out"
    assert (pixels(page) == found.picture(source, State(seed=1, label=2))).all()
    page.fill("#truncation input[type=number]", "0.5")
    page.press("#truncation input[type=number]", "Enter")
    wait_for_status(page, "psi 0.5")
    page.get_by_role("tab", name="Styles").click()
    page.fill("#edit-0 input[type=number]", "2")
    page.press("#edit-0 input[type=number]", "Enter")
    wait_for_status(page, "psi 0.5, 1 edit")
    edits = ((f"{folder / 'd.safetensors'}#0", 2.0),)
    expected = found.picture(source, State(seed=1, label=2, truncation=0.5, edits=edits))
    assert (pixels(page) == expected).all()
    page.get_by_role("tab", name="Keyframes").click()
    page.click("#add")
    page.wait_for_function("document.querySelector('#keyframes').innerText.includes('psi 0.5')")
    page.click("#export")
    wait_for_status(page, "1 keyframes: path.gif")
    with page.expect_download() as download:
        page.locator("#file a").first.click()
    with PIL.Image.open(download.value.path()) as animation:
        assert animation.n_frames >= 1 and animation.size == (16, 16)
    page.get_by_role("tab", name="Layers").click()
    page.click("#show-layer")
    page.wait_for_selector("#activations img")
    assert page.errors == []
    page.close()


@needs_browser
def test_a_dropped_image_is_inverted(shown, folder, tmp_path):
    from generation.viewer.state import State

    found, browser, address = shown
    source = str(folder / "best_model.pkl")
    PIL.Image.fromarray(found.picture(source, State(seed=4, label=1))).save(tmp_path / "face.png")
    page = open_page(browser, address)
    page.locator("#inversion button").first.click()
    page.click("#invert")
    page.wait_for_function("document.querySelector('#inverted').innerText.includes('drop an image first')")
    page.set_input_files("#target input[type=file]", tmp_path / "face.png")
    page.wait_for_selector("#target img")
    page.fill("#invert-steps input[type=number]", "10")
    page.press("#invert-steps input[type=number]", "Enter")
    page.click("#invert")
    page.wait_for_function("document.querySelector('#inverted').innerText.includes('10 steps, class')")
    wait_for_status(page, "inverted image")
    command = page.input_value("#command textarea")
    path = re.search(r"--projected-w=(\S+)", command)[1]
    assert (pixels(page) == found.picture(source, State(projected=path))).all()
    page.click("#seeds")
    wait_for_status(page, "seed 0")
    assert page.errors == []
    page.close()


@needs_browser
def test_training_is_played_and_networks_are_compared(shown, folder):
    _, browser, address = shown
    page = open_page(browser, address)
    page.locator("#compare input").click()
    page.get_by_role("option", name=re.compile("network-snapshot-000001")).click()
    wait_for_status(page, "beside it")
    assert page.is_visible("#second img")
    page.get_by_role("tab", name="Training").click()
    page.click("#play")
    wait_for_status(page, "network-snapshot-000002.pkl")
    page.close()


@needs_browser
def test_a_failing_request_and_a_browser_that_goes_away_leave_the_server_up(shown, folder):
    _, browser, address = shown
    page = open_page(browser, address, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    content = (folder / "best_model.pkl").read_bytes()
    os.truncate(folder / "best_model.pkl", 100)
    page.click("#next")
    wait_for_status(page, "Not shown:")
    (folder / "best_model.pkl").write_bytes(content)
    page.click("#next")
    wait_for_status(page, "seed 2")
    page.click("#next")
    page.close()  # while the server computes
    open_page(browser, address).close()
