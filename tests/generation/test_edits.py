# SPDX-License-Identifier: Apache-2.0
"""Edits: parsed, checked against the network, and applied in W and in style space."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

import gen_class_samplesheet
import gen_images
from generation import Network, direction_files, edits
from tests.support import read_pixels, run
from tests.toy_networks import tiny, write_foreign
from torch_utils.persistence import save_network_pickle


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


@pytest.fixture(scope="module")
def files(network, tmp_path_factory) -> Path:
    """w.safetensors: two directions in W of some layers; all.safetensors: of all; style.safetensors."""
    folder = tmp_path_factory.mktemp("directions")
    random = torch.Generator().manual_seed(0)
    w = torch.randn([2, network.G.w_dim], generator=random)
    sizes = direction_files.layer_sizes(network.G)
    styles = {name: torch.randn([1, sizes[name]], generator=random) for name in list(sizes)[1:3]}
    about = {"method": "test", "shares": [0.5, 0.25]}
    direction_files.write(str(folder / "w.safetensors"), network, about, w, [1, 3])
    direction_files.write(str(folder / "all.safetensors"), network, {"method": "test"}, w[:1])
    direction_files.write(str(folder / "style.safetensors"), network, {"method": "test"}, styles=styles)
    return folder


def test_values_are_parsed():
    spec = edits.parse("a:b#1.safetensors#12:-1.5")
    assert (spec.path, spec.index, spec.strengths) == ("a:b#1.safetensors", 12, (-1.5,))
    assert edits.parse("x.safetensors:0,3", several=True).strengths == (0.0, 3.0)
    for text, message in (
        ("x.safetensors", r"write FILE\[#INDEX\]:STRENGTH"),
        (":2", "write FILE"),
        ("x:", "the strength '' is not a number"),
        ("x:much", "the strength 'much' is not a number"),
        ("x:nan", "the strength nan is not a finite number"),
        ("x:1e39", "the strength 1e39 is not a finite number"),
        ("x:1,2", "give one strength, not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            edits.parse(text)


def test_an_edit_in_w_moves_its_layers_only(network, files):
    ws = network.styles([0, 1])
    found = edits.load([edits.parse(f"{files / 'w.safetensors'}#1:2")], network)
    direction = safetensors.torch.load_file(files / "w.safetensors")["w"][1]
    expected = ws.clone()
    expected[:, [1, 3]] += 2 * direction
    assert torch.equal(found.on_w(ws), expected)
    before = network.render(ws)
    with network.edited(f"{files / 'w.safetensors'}#1:2"):
        edited = network.render(ws)
    assert (edited == network.render(expected)).all() and (edited != before).any()
    assert (network.render(ws) == before).all()


def test_an_edit_in_style_space_moves_the_output_of_affine_layers(network, files):
    ws, synthesis = network.styles(0), network.G.synthesis
    before = network.render(ws)
    with network.edited(f"{files / 'style.safetensors'}:1.5"):
        edited = network.render(ws)
    state = {name: value.clone() for name, value in network.G.state_dict().items()}
    for name, value in safetensors.torch.load_file(files / "style.safetensors").items():
        getattr(synthesis, name.removeprefix("style.")).affine.bias.data += 1.5 * value[0]
    by_bias = network.render(ws)
    network.G.load_state_dict(state)
    assert np.abs(edited.astype(int) - by_bias).max() <= 1 and (edited != before).any()
    assert (network.render(ws) == before).all()


def test_names_that_are_no_layers_are_left_alone(network, files, tmp_path):
    path, good = tmp_path / "x.safetensors", files / "style.safetensors"
    with safetensors.safe_open(good, "pt") as file:
        metadata = file.metadata()
    others = {f"style.{name}": torch.ones([1, 4]) for name in ("w_dim", "forward", "input", "training")}
    safetensors.torch.save_file({**safetensors.torch.load_file(good), **others}, path, metadata)
    with network.edited(f"{good}:1"):
        expected = network.generate(0)
    with network.edited(f"{path}:1"):
        assert (network.generate(0) == expected).all()


def test_the_commands_take_edits(network, files, toy_networks, tmp_path):
    flags = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--seeds=0-2"]
    edit = [f"--edit={files / 'all.safetensors'}:1", f"--edit={files / 'style.safetensors'}:-1"]
    run(gen_images.main, *flags, *edit, "--outdir", tmp_path / "a")
    with network.edited(*(text.removeprefix("--edit=") for text in edit)):
        expected = network.generate([0, 1, 2])
    for seed, image in enumerate(expected):
        assert (read_pixels(tmp_path / "a" / f"seed{seed:04d}.png") == image).all()
    with PIL.Image.open(tmp_path / "a" / "seed0000.png") as image:
        assert image.info["edits"] == "all.safetensors:1, style.safetensors:-1"
    sheet = ["--classes=1", "--seed=0", "--samples-per-class=2", "--outdir", tmp_path / "sheet"]
    run(gen_class_samplesheet.main, *flags[:3], *sheet, *edit)
    with network.edited(*(text.removeprefix("--edit=") for text in edit)):
        pair = np.concatenate(list(network.generate([0, 1], 1)), axis=1)
    shown = read_pixels(tmp_path / "sheet" / "sheet.png")
    factor = shown.shape[0] // 16  # magnified for the labels
    assert (shown[::factor, -32 * factor :: factor] == pair).all()
    run(gen_images.main, *flags, *edit, "--to", tmp_path / "b.npz")
    assert (np.load(tmp_path / "b.npz")["arr_0"] == expected).all()
    parts = tmp_path / "c.npz.partial"
    parts.mkdir()
    (parts / "job.json").write_text("{}")  # of a command without edits
    output = run(gen_images.main, *flags, *edit, "--to", tmp_path / "c.npz", code=1).output
    assert "another" in output and "edit" in output


def test_mistakes_are_one_line_before_anything_is_written(network, files, tmp_path):
    other = tmp_path / "other.pkl"
    torch.manual_seed(1)
    G = tiny(3)
    with torch.no_grad():
        G.mapping.fc0.bias += 1
    save_network_pickle(other, {"G_ema": G})
    another = Network.from_pretrained(other, device="cpu")
    foreign = write_foreign(tmp_path / "foreign.pkl")
    good = files / "w.safetensors"
    content = safetensors.torch.load_file(good)
    with safetensors.safe_open(good, "pt") as file:
        metadata = file.metadata()

    def changed(name: str, tensors: dict, **more: object) -> Path:
        path = tmp_path / f"{name}.safetensors"
        about = json.dumps({**json.loads(metadata["about"]), **more})
        safetensors.torch.save_file(tensors, path, {**metadata, "about": about})
        return path

    (tmp_path / "text.safetensors").write_text("nothing")
    safetensors.torch.save_file(content, tmp_path / "plain.safetensors")
    bad = {"w": torch.full([1, content["w"].shape[1]], float("nan"))}
    cases = [
        (good, "other.pkl", ":1", "the directions belong to another network (cond.pkl)"),
        (good, None, "#2:1", "no direction 2"),
        (good, None, ":fast", "the strength 'fast' is not a number"),
        (tmp_path / "absent.safetensors", None, ":1", "no such file"),
        (tmp_path / "text.safetensors", None, ":1", "not a safetensors file"),
        (tmp_path / "plain.safetensors", None, ":1", "not a direction file"),
        (changed("nan", bad), None, ":1", "contains NaN or Inf"),
        (changed("layers", content, layers=["1"]), None, ":1", "damaged: its list of layers"),
        (changed("many", content, layers=[99]), None, ":1", "layers up to 99"),
        (changed("narrow", {"w": torch.ones(1, 3)}), None, ":1", "the directions have 3 dimensions"),
        (changed("flat", {"w": torch.ones(3)}), None, ":1", "damaged: its tensors have the shapes [[3]]"),
        (changed("none", {"x": torch.ones(3)}), None, ":1", "damaged: it has no directions"),
        (changed("names", {"style.L9": torch.ones(1, 3)}), None, ":1", "none of the layers"),
        (changed("version", content, version=9), None, ":1", "this version of the format"),
    ]
    for path, name, end, message in cases:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            edits.load([edits.parse(f"{path}{end}")], another if name else network)
        text = str(caught.value)
        assert message in text and "\n" not in text and text.startswith(f"--edit={path}{end}"), text
    flags = [
        "--network",
        foreign,
        "--trust-pickle",
        "--seeds=0",
        "--device=cpu",
        "--outdir",
        tmp_path / "out",
    ]
    assert (
        "runs its own code, so its layers cannot"
        in run(gen_images.main, *flags, f"--edit={good}:1", code=1).output
    )
    assert not (tmp_path / "out").exists()


def test_the_average_of_w_does_not_make_another_network(network, files):
    before = network.G.mapping.w_avg.clone()
    try:
        network.G.mapping.w_avg += 1
        assert edits.load([edits.parse(f"{files / 'w.safetensors'}:1")], network).edits
    finally:
        network.G.mapping.w_avg.copy_(before)


def test_a_direction_file_is_read_once_until_it_changes(network, files, tmp_path, monkeypatch):
    path, other, contents = tmp_path / "w.safetensors", files / "all.safetensors", []
    path.write_bytes((files / "w.safetensors").read_bytes())
    real = direction_files._content
    monkeypatch.setattr(direction_files, "_content", lambda path: contents.append(path) or real(path))
    spec = edits.parse(f"{path}:2")
    for _ in range(3):
        found = edits.load([spec], network).edits[0].directions
    assert len(found) == 2 and contents == [str(path)]
    path.write_bytes(other.read_bytes())
    assert len(edits.load([spec], network).edits[0].directions) == 1 and len(contents) == 2
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        edits.load([spec], network)


def test_directions_that_are_not_finite_are_not_written(network, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="contains NaN or Inf, so it was not written"):
        direction_files.write(str(path), network, {}, torch.full([1, network.G.w_dim], float("inf")))
    assert not path.exists()
