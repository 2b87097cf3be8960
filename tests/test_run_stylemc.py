# SPDX-License-Identifier: Apache-2.0
"""run_stylemc.py on small networks, with a stand-in for CLIP."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
import torch.nn.functional as F

import directions
import gen_images
import run_stylemc
from generation import Network, clip, stylemc_command, w_files
from tests.support import read_pixels, run
from torch_utils.persistence import save_network_pickle
from training.generator import build_stem, build_superres

PUBLISHED = [
    *(
        "--outdir=stylemc_out",
        "--text-prompt",
        "a chimpanzee | laughter | happy monkey | smile",
        "--seeds=0-256",
    ),
    *("--class-idx=367", "--layers=10-30", "--edit-strength=0.75", "--init-seed=49", "--network=SMALL"),
    *("--bigger-network", "LARGE"),
]


class FakeClip:
    """Texts are their lengths, images are their means."""

    name, sha256 = "fake", "0" * 64

    def images(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x.mean(dim=(2, 3)), dim=1)

    def texts(self, texts: list[str]) -> torch.Tensor:
        return F.normalize(torch.tensor([[float(len(text)), 1.0, -2.0] for text in texts]), dim=1)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    """small.pkl, large.pkl (a later stage of it) and other.pkl."""
    folder, settings = tmp_path_factory.mktemp("stages"), dict(cbase=256, cmax=8)
    for name, seed in (("small", 0), ("other", 1)):
        torch.manual_seed(seed)
        stem = build_stem("stylegan3-t", 16, 400, syn_layers=14, embed_dim=4, **settings).eval()
        save_network_pickle(folder / f"{name}.pkl", {"G_ema": stem})
        if name == "small":
            save_network_pickle(folder / "large.pkl", {"G_ema": build_superres(stem, head_layers=4).eval()})
    return folder


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(clip, "check_installed", lambda: None)
    monkeypatch.setattr(clip, "load", lambda *args: FakeClip())
    monkeypatch.setattr(stylemc_command, "FRAMES", 3)


def test_the_published_command_line_parses():
    given = run_stylemc.main.make_context("run_stylemc.py", [*PUBLISHED]).params
    assert (given["class_idx"], given["init_seed"], given["edit_strength"]) == (367, 49, 0.75)
    assert (given["save_video"], given["w_path"], given["layers"]) == (False, None, "10-30")


def test_a_direction_is_found_and_applied_to_a_later_stage(stages, tmp_path, fake):
    names = {"SMALL": stages / "small.pkl", "LARGE": stages / "large.pkl", "stylemc_out": tmp_path / "out"}
    given = PUBLISHED
    for name, path in names.items():
        given = [word.replace(name, str(path)) for word in given]
    output = run(run_stylemc.main, *given, "--seeds=0-8", "--save-video", "--device=cpu").output
    assert "note: --layers=10-30" in output and "has layers 1 to 15; others are left out" in output
    direction = tmp_path / "out" / "direction.safetensors"
    network = Network.from_pretrained(stages / "large.pkl", device="cpu")
    assert (read_pixels(tmp_path / "out" / "before.png") == network.generate(49, 367)[0]).all()
    generate = ["--network", stages / "large.pkl", "--seeds=49", "--class=367", "--device=cpu"]
    run(gen_images.main, *generate, f"--edit={direction}:0.75", "--outdir", tmp_path / "g")
    after = read_pixels(tmp_path / "out" / "after.png")
    assert (after == read_pixels(tmp_path / "g" / "seed0049.png")).all()
    assert (after != network.generate(49, 367)[0]).any()
    (video,) = (tmp_path / "out").glob("video.*")
    assert video.stat().st_size > 300
    with PIL.Image.open(tmp_path / "out" / "after.png") as image:
        assert image.info["edits"] == "direction.safetensors:0.75"
    prompts = ["a chimpanzee", "laughter", "happy monkey", "smile"]
    about = json.loads(run(directions.main, "info", direction).output)
    assert (about["space"], about["prompts"], about["seeds"]) == ("style", prompts, "0-8")
    assert about["clip"] == "fake" and about["network"] == "small.pkl"
    assert "python run_stylemc.py" in about["command"] and "--network=small.pkl" in about["command"]
    assert str(tmp_path) not in json.dumps(about)


def test_mistakes_are_one_line(stages, tmp_path, fake, monkeypatch):
    other = Network.from_pretrained(stages / "other.pkl", device="cpu")
    w_files.save_w(tmp_path / "other.npz", other.styles(0), other)
    small = Network.from_pretrained(stages / "small.pkl", device="cpu")
    w_files.save_w(tmp_path / "two.npz", small.styles([0, 1]), small)
    good = {
        **{"--network": stages / "small.pkl", "--seeds": "0", "--layers": "1-3", "--text-prompt": "x"},
        **{"--edit-strength": "1", "--outdir": tmp_path / "out", "--device": "cpu"},
    }
    for changed, message in (
        ({"--layers": "16-30"}, "has layers 1 to 15"),
        ({"--layers": "x"}, "--layers: cannot parse"),
        ({"--text-prompt": "a|"}, "a prompt is empty"),
        ({"--edit-strength": "inf"}, "--edit-strength=inf is not a finite number"),
        ({"--class-idx": "500"}, "class 500: the network's classes are 0 to 399"),
        ({"--bigger-network": stages / "other.pkl"}, "other.pkl is not a stage of the network"),
        ({"--w-path": tmp_path / "other.npz"}, "belong to another network"),
        ({"--w-path": tmp_path / "two.npz"}, "contains 2 style codes: give a file with one"),
        ({"--network": stages / "none.pkl"}, "no such file"),
        ({"--outdir": stages / "small.pkl"}, "small.pkl"),
    ):
        words = [word for pair in {**good, **changed}.items() for word in pair]
        output = run(run_stylemc.main, *words, code=1).output
        assert message in output and output.count("\n") == 1, (changed, output)
    monkeypatch.undo()
    monkeypatch.setattr(clip.importlib.util, "find_spec", lambda name: None)
    output = run(run_stylemc.main, *[word for pair in good.items() for word in pair], code=1).output
    assert "run_stylemc.py needs the package open_clip: pip install" in output
    assert not (tmp_path / "out").exists()
