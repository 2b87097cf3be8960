# SPDX-License-Identifier: Apache-2.0
"""run_inversion.py on a small network: its files, resuming, and one line for every mistake."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

import gen_images
import run_inversion
from generation import Network, class_choice, inversion, inversion_job, render
from generation.w_files import load_w, save_w
from metrics import detectors
from tests.support import TinyDetector, read_pixels, run
from torch_utils import checkpoint, timm_weights

FILES = ["inversion.json", "proj.mp4", "proj.png", "projected_w.npz", "target.png", "tuned.pkl", "tuned.png"]


@pytest.fixture(scope="module")
def source(toy_networks: Path) -> str:
    return str(toy_networks / "cond.pkl")


@pytest.fixture(scope="module")
def network(source: str) -> Network:
    return Network.from_pretrained(source, device="cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that computes nothing, in the place of every one."""
    monkeypatch.setattr(detectors, "load", lambda *args, **kwargs: TinyDetector())


@pytest.fixture
def target(network: Network, tmp_path: Path) -> str:
    path = tmp_path / "in" / "face.png"
    path.parent.mkdir()
    PIL.Image.fromarray(network.generate(5, 1)[0]).save(path)
    return str(path)


def invert(source: str, target: object, out: object, *args: object, code: int = 0):
    flags = ["--network", source, "--target", target, "--outdir", out, "--device=cpu", "--inv-steps=3"]
    return run(run_inversion.main, *flags, "--save-video=False", *args, code=code)


def test_the_published_command_line_runs_with_the_features_that_need_no_download(
    source, network, target, tmp_path, monkeypatch
):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("STYLESAN_VGG16", raising=False)
    out = tmp_path / "inversion_out"
    words = [f"--outdir={out}", "--target", target, "--inv-steps", "3", "--run-pti", "--pti-steps", "2"]
    shown = run(run_inversion.main, *words, f"--network={source}", "--seed", "42", "--save-video", "True")
    assert "Features: lite0, because there is no file of VGG16" in shown.output
    assert "face: class 1 grinning face (nearest class mean)" in shown.output
    assert sorted(path.name.replace(".webp", ".mp4") for path in out.iterdir()) == FILES
    about = json.loads((out / "inversion.json").read_text())
    assert about["class"] == 1 and about["settings"]["feature"]["name"] == "lite0"
    assert about["tuned"]["psnr"] > about["projected"]["psnr"] > 10
    assert (read_pixels(out / "target.png") == read_pixels(Path(target))).all()
    ws = load_w(out / "projected_w.npz", network)
    assert (network.render(ws)[0] == read_pixels(out / "proj.png")).all()
    tuned = Network.from_pretrained(out / "tuned.pkl", device="cpu")
    assert tuned.class_names == network.class_names
    assert tuned.provenance["tuned"] == {
        "network_sha256": render.load_network(source).sha256,
        "target": "face",
        "steps": 2,
    }
    assert (tuned.render(load_w(out / "projected_w.npz", tuned))[0] == read_pixels(out / "tuned.png")).all()
    run(gen_images.main, f"--network={out / 'tuned.pkl'}", "--seeds=0", "--outdir", tmp_path / "any")


def test_an_interrupted_command_resumes_with_the_same_result(quick, source, target, tmp_path, monkeypatch):
    flags = ["--run-pti", "--pti-steps=3", "--class=1"]
    invert(source, target, tmp_path / "whole", *flags)
    for stop in (2, 4):  # within each phase
        advances = 0

        def interrupted(self, real=inversion_job._Frames.add, stop=stop, step=0, picture=None):
            nonlocal advances
            advances += 1
            if advances == stop:
                raise KeyboardInterrupt
            real(self, step, picture)

        with monkeypatch.context() as patch:
            patch.setattr(
                inversion_job._Frames,
                "add",
                lambda self, step, picture, f=interrupted: f(self, step=step, picture=picture),
            )
            shown = invert(source, target, tmp_path / "part", *flags, code=1)
        assert "Interrupted: the same command resumes from" in shown.output
        assert not (tmp_path / "part" / "inversion.json").exists()
    other = invert(source, target, tmp_path / "part", *flags, "--space=w+", code=1)
    assert "an interrupted inversion with another space" in other.output
    shown = invert(source, target, tmp_path / "part", *flags)
    assert "Resuming at step" in shown.output
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == names
    for name in ("proj.png", "tuned.png", "projected_w.npz"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    states = [
        Network.from_pretrained(tmp_path / name / "tuned.pkl", device="cpu").G.state_dict()
        for name in ("part", "whole")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_killed_command_resumes_from_the_last_checkpoint(quick, source, target, tmp_path, monkeypatch):
    invert(source, target, tmp_path / "whole", "--class=1")

    def killed(self, step: int, picture: torch.Tensor) -> None:
        if step == 2:
            raise RuntimeError  # nothing is saved after it

    with monkeypatch.context() as patch:
        patch.setattr(inversion_job, "SAVE_SECONDS", 0)
        patch.setattr(inversion_job._Frames, "add", killed)
        assert invert(source, target, tmp_path / "part", "--class=1", code=1).exception.args == ()
    (path,) = (tmp_path / "part").iterdir()
    assert checkpoint.nimg_of(path) in (1, 2)
    invert(source, target, tmp_path / "part", "--class=1")
    assert not checkpoint.exists(tmp_path / "part")
    codes = [(tmp_path / name / "projected_w.npz").read_bytes() for name in ("part", "whole")]
    assert codes[0] == codes[1]


def test_several_targets_have_folders_and_complete_ones_are_kept(quick, source, target, tmp_path):
    picture = PIL.Image.new("RGBA", (20, 16))
    picture.save(Path(target).with_name("other.png"))
    folder, out = Path(target).parent, tmp_path / "out"
    shown = invert(source, folder, out)
    assert "note: other: 20x16 is cropped to its centre of 16x16" in shown.output.partition("Class")[0]
    assert "note: other: transparent pixels become white" in shown.output
    for name in ("face", "other"):
        assert {path.name for path in (out / name).iterdir()} == {
            *("target.png", "proj.png", "projected_w.npz", "inversion.json")
        }
    (out / "other" / "proj.png").unlink()
    (out / "other" / "tuned.pkl").write_text("of another command")
    before = (out / "face" / "inversion.json").stat().st_mtime_ns
    shown = invert(source, folder, out, "--save-video=True")
    assert f"{out / 'face'}: complete" in shown.output and (out / "other" / "proj.png").is_file()
    assert "without a video: remove inversion.json to start again" in shown.output
    assert f"note: {out / 'other'}: kept from an earlier inversion: tuned.pkl" in shown.output
    assert (out / "face" / "inversion.json").stat().st_mtime_ns == before


def test_another_start_and_one_style_per_layer(quick, source, network, target, tmp_path):
    start = tmp_path / "start.npz"
    save_w(start, network.styles(5, 1), network)
    shown = invert(source, target, tmp_path / "a", "--w-init", start, "--inv-steps=1")
    assert "projected: every pixel equal" in shown.output
    assert json.loads((tmp_path / "a" / "inversion.json").read_text())["projected"]["psnr"] is None
    assert (read_pixels(tmp_path / "a" / "proj.png") == read_pixels(Path(target))).all()  # a rate of 0
    invert(source, target, tmp_path / "b", "--space=w+", "--class=grinning face")
    ws = load_w(tmp_path / "b" / "projected_w.npz", network)
    assert not (ws == ws[:, :1]).all()


def test_a_network_without_classes(quick, toy_networks, target, tmp_path):
    uncond = str(toy_networks / "uncond.pkl")
    assert "has no classes: remove it" in invert(uncond, target, tmp_path, "--classifier=x", code=1).output
    shown = invert(uncond, target, tmp_path / "out")
    assert "class" not in shown.output.replace("classes", "") and (tmp_path / "out" / "proj.png").is_file()


def test_the_published_classifier_finds_the_class_if_its_weights_are_there(
    quick, source, target, tmp_path, monkeypatch
):
    monkeypatch.setattr(class_choice, "IMAGENET_CLASSES", 3)

    def missing(name: str) -> None:
        raise FileNotFoundError(f"weights of {name}:\nnot here")

    monkeypatch.setattr(timm_weights, "check", missing)
    shown = invert(source, target, tmp_path / "a")
    assert "note: no classifier of ImageNet (weights of deit_base_distilled_patch16_224: not" in shown.output
    assert "class 1 grinning face (nearest class mean)" in shown.output
    monkeypatch.setattr(timm_weights, "check", lambda name: None)
    monkeypatch.setattr(
        class_choice, "load_classifier", lambda network, name: SimpleNamespace(name=name, sha256="0")
    )
    chances = np.array([0.25, 0.0, 0.75])
    monkeypatch.setattr(class_choice, "probabilities", lambda classifier, pixels: chances)
    shown = invert(source, target, tmp_path / "b", "--inv-steps=1")
    assert "class 2 red-panda (deit_base_distilled_patch16_224, 0.75)" in shown.output
    network = Network.from_pretrained(source, device="cpu")
    expected = inversion.mean_style(network, chances)[0, 0]
    assert torch.equal(load_w(tmp_path / "b" / "projected_w.npz", network)[0, 0], expected)  # a rate of 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target=gone.png"], "--target=gone.png: no such file or folder"),
        (["--class=dragon"], "unknown class 'dragon'"),
        (["--w-init=gone.npz"], "--w-init=gone.npz: no such file"),
        (["--classifier=x"], "Error: --classifier=x: .*timm .* has no such model"),
        (["--classifier-weights=x"], "--classifier-weights needs --classifier"),
        (["--class=1", "--classifier=x"], "--class names the class that --classifier would find"),
        (["--detector=vgg16-stylegan=gone.pt"], "VGG16 weights: there is no file gone.pt"),
        (["--feature=vgg16"], "--feature=vgg16: VGG16 weights: there is no file .* --feature=lite0 needs no"),
        (["--device=nothing"], "'nothing' is not one of"),
    ],
)
def test_mistakes_are_one_line_before_any_step(source, target, tmp_path, monkeypatch, flags, message):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("STYLESAN_VGG16", raising=False)
    monkeypatch.setattr(inversion_job._Inversion, "run", lambda self: pytest.fail("a step was made"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        detectors, "load", lambda name, *args, **kwargs: TinyDetector() if name == "lite0" else pytest.fail()
    )
    arguments = ["--network", source, "--target", target, "--outdir", tmp_path / "out", *flags]
    code = 2 if flags == ["--device=nothing"] else 1
    shown = run(run_inversion.main, *arguments, code=code)
    lines = [line for line in shown.output.splitlines() if not line.startswith(("Features:", "note:"))]
    assert re.search(message, shown.output), shown.output
    assert code == 2 or len(lines) == 1, shown.output


def test_outputs_do_not_replace_inputs(quick, source, target, tmp_path):
    folder = Path(target).parent
    Path(target).rename(folder / "target.png")
    shown = invert(source, folder / "target.png", folder, code=1)
    assert "which would be replaced: choose another output path" in shown.output
    checkpoint.save(tmp_path / "run", 5, {"weights": torch.ones(1)})
    shown = invert(source, folder / "target.png", tmp_path / "run", code=1)
    assert "is a checkpoint of another program: choose another --outdir" in shown.output
    assert checkpoint.exists(tmp_path / "run")
    (tmp_path / "run" / "tuned.pkl").write_bytes(Path(source).read_bytes())
    shown = invert(tmp_path / "run" / "tuned.pkl", folder / "target.png", tmp_path / "run", code=1)
    assert f"tuned.pkl is --network={tmp_path / 'run' / 'tuned.pkl'}, which would be replaced" in shown.output
    shown = invert(source, folder, folder / "out", code=1)
    assert "lies inside --target=" in shown.output
    assert np.asarray(PIL.Image.open(folder / "target.png")).shape == (16, 16, 3)


def test_a_start_of_another_network_and_a_network_with_its_own_code(
    quick, source, toy_networks, foreign, target, tmp_path
):
    other = Network.from_pretrained(toy_networks / "uncond.pkl", device="cpu")
    save_w(tmp_path / "w.npz", other.styles(0), other)
    shown = invert(source, target, tmp_path / "a", "--w-init", tmp_path / "w.npz", code=1)
    assert "the style codes belong to another network" in shown.output
    shown = invert(str(foreign), target, tmp_path / "b", "--trust-pickle", "--run-pti", code=1)
    assert "remove --run-pti" in shown.output
    invert(str(foreign), target, tmp_path / "c", "--trust-pickle", "--class=1")
    assert (tmp_path / "c" / "projected_w.npz").is_file()
