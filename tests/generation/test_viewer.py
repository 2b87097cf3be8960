# SPDX-License-Identifier: Apache-2.0
"""The viewer without a browser: states, pictures, layers, keyframes, and the newest request wins."""

import os
import shlex
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import gen_images
from generation import Network, direction_files
from generation.viewer import layers, path
from generation.viewer.session import Superseded, Viewer, choices_of, magnified, training_order
from generation.viewer.state import GROUPS, State, find_classes, group_rows
from tests.support import read_pixels, run


@pytest.fixture(scope="module")
def source(toy_networks: Path) -> str:
    return str(toy_networks / "cond.pkl")


@pytest.fixture(scope="module")
def viewer(source: str, toy_networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    centres = tmp_path_factory.mktemp("centres") / "c.npy"
    w_dim = Network.from_pretrained(source, device="cpu").G.w_dim
    np.save(centres, np.random.RandomState(0).randn(4, w_dim).astype(np.float32))
    return Viewer([source, str(toy_networks / "uncond.pkl")], "cpu", str(centres))


@pytest.mark.parametrize(
    "state",
    [
        State(seed=5),
        State(seed=5, label=2, truncation=0.5, rotate=30, translate_x=0.25, translate_y=-0.5),
        State(seed=1, label=0, truncation=0.25, centroids=True),
    ],
)
def test_the_command_makes_the_picture(viewer, source, tmp_path, state):
    words = shlex.split(state.command(viewer.open(source), viewer.centroids_path))
    assert words[:2] == ["python", "gen_images.py"]
    run(gen_images.main, *words[2:], "--device=cpu", "--outdir", tmp_path)
    assert (read_pixels(tmp_path / f"seed{state.seed:04d}.png") == viewer.picture(source, state)).all()


@pytest.mark.parametrize(
    "state",
    [
        State(seed=5, label=0, label_b=2, mix=0.3),
        State(seed=5, style_seed=6, groups=("coarse", "fine"), rotate=20),
        State(
            seed=5,
            label=1,
            label_b=2,
            mix=0.5,
            style_seed=7,
            groups=("middle",),
            centroids=True,
            truncation=0.5,
        ),
    ],
)
def test_python_lines_make_a_mixed_picture(viewer, source, state):
    code = state.command(viewer.open(source), viewer.centroids_path)
    assert state.is_mixed and code.startswith("from generation import Network\n")
    names: dict = {}
    exec(code.replace(f"({source!r})", f"({source!r}, device='cpu')"), names)
    assert (names["images"][0] == viewer.picture(source, state)).all()


def test_mixing_takes_what_it_should(viewer, source):
    network, base = viewer.open(source), State(seed=3, label=1)
    ws = base.styles(network, None)
    assert (
        replace(base, label_b=0, mix=1.0).styles(network, None)
        == replace(base, label=0).styles(network, None)
    ).all()
    rows = group_rows(network.G.num_ws)
    assert sum(row.stop - row.start for row in rows.values()) == network.G.num_ws
    other = replace(base, seed=4).styles(network, None)
    for group in GROUPS:
        mixed = replace(base, style_seed=4, groups=(group,)).styles(network, None)
        for name, row in rows.items():
            assert torch.equal(mixed[:, row], (other if name == group else ws)[:, row])
    assert replace(base, label=9).for_network(network).label is None
    text = replace(base, label=9, label_b=8, mix=0.5).misfits(network)
    assert text.startswith("no class 9 and 8 in ") and base.misfits(network) == ""
    assert find_classes(network, "FACE") == [("1 grinning face", 1)]
    assert [index for _, index in find_classes(network, "r")] == [2, 1]  # those that start with it come first


def test_layers_and_spectrum(viewer, source):
    network, state = viewer.open(source), State(seed=2, rotate=90)
    names = layers.layer_names(network)
    last = layers.capture(network, state.styles(network, None), names[-1])
    image = network.render(state.styles(network, None))[0]
    expected = (last * network.G.synthesis.output_scale * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert (expected.permute(1, 2, 0).numpy() == image).all()
    for name in (names[0], names[1]):
        activations, spectrum = viewer.layer(source, state, name)
        assert activations.dtype == spectrum.dtype == np.uint8 and spectrum.max() == 255
    size = 32
    wave = torch.cos(2 * torch.pi * 8 * torch.arange(size) / size).repeat(size, 1)[None]
    decibels = layers.spectrum(wave)
    row, column = np.unravel_index(decibels.argmax(), decibels.shape)
    assert row == size // 2 and abs(column - size // 2) == 8 and decibels.max() == 0
    with pytest.raises(ValueError, match="has no layer 'L99'"):
        viewer.layer(source, state, "L99")
    with pytest.raises(ValueError, match="the first one shown cannot be 999"):
        viewer.layer(source, state, names[1], 999)


@pytest.mark.parametrize("form", [".gif", ".zip", ".npz", ".mp4"])
def test_keyframes_are_exported(viewer, source, tmp_path, form):
    states = [State(seed=0, label=0), State(seed=1, label=1, rotate=90)]
    output, done = tmp_path / f"path{form}", []
    if form == ".mp4":
        pytest.importorskip("av")
    path.export(viewer, source, states, output, per_keyframe=2, done=done.append)
    pictures = [viewer.picture(source, state) for state in states]
    if form == ".npz":
        with np.load(output) as arrays:
            ws = arrays["w"]
        assert (viewer.open(source).render(ws[:1])[0] == pictures[0]).all()
        return
    assert sum(done) == 4
    if form == ".zip":
        with zipfile.ZipFile(output) as archive:
            frames = [np.asarray(PIL.Image.open(archive.open(name))) for name in archive.namelist()]
        assert len(frames) == 4
        assert (frames[0] == pictures[0]).all() and (frames[2] == pictures[1]).all()
    elif form == ".gif":
        assert PIL.Image.open(output).n_frames == 4
    else:
        assert output.stat().st_size > 500


def test_no_keyframes_is_one_line(viewer, source, tmp_path):
    with pytest.raises(ValueError, match="0 keyframes: add 1 to 100 of them first"):
        path.export(viewer, source, [], tmp_path / "path.gif")
    assert not list(tmp_path.iterdir())


def test_the_newest_request_wins(viewer, source):
    """An older request ends at its next layer; those of other pages do not."""
    network = viewer.open(source)
    third = getattr(network.G.synthesis, network.G.synthesis.layer_names[2])
    inside, newer, results = threading.Event(), threading.Event(), {}

    def wait(module, inputs):
        if not inside.is_set():
            inside.set()
            assert newer.wait(60)

    def request(name, client, state):
        try:
            results[name] = viewer.picture(source, state, client)
        except Superseded:
            results[name] = None

    handle = third.register_forward_pre_hook(wait)
    try:
        threads = [threading.Thread(target=request, args=("old", "page", State(seed=1)))]
        threads[0].start()
        assert inside.wait(60)
        threads.append(threading.Thread(target=request, args=("elsewhere", "another page", State(seed=2))))
        threads[1].start()
        number = viewer.requests.start("page")
        newer.set()
        results["new"] = viewer.picture(source, State(seed=3), "page", number)
        for thread in threads:
            thread.join(60)
    finally:
        handle.remove()
    assert results["old"] is None
    assert (results["new"] == viewer.picture(source, State(seed=3))).all()
    assert (results["elsewhere"] == viewer.picture(source, State(seed=2))).all()
    assert not any(
        getattr(network.G.synthesis, n)._forward_pre_hooks for n in network.G.synthesis.layer_names
    )


def test_a_preview_is_close_to_the_picture_and_changes_nothing(viewer, source, monkeypatch):
    monkeypatch.setattr(viewer, "fast_precision", torch.bfloat16)
    exact = viewer.picture(source, State(seed=1))
    preview = viewer.picture(source, State(seed=1), preview=True)
    assert 0 < np.abs(preview.astype(int) - exact).mean() < 3
    assert (viewer.picture(source, State(seed=1)) == exact).all()


def test_snapshots_of_a_run_in_order(toy_networks, tmp_path):
    for name in ("network-snapshot-000010.pkl", "network-snapshot-000002.pkl", "best_model.pkl"):
        (tmp_path / name).write_bytes((toy_networks / "cond.pkl").read_bytes())
    choices = choices_of(str(tmp_path))
    names = [Path(choice.source).name for choice in choices]
    assert names == ["best_model.pkl", "network-snapshot-000002.pkl", "network-snapshot-000010.pkl"]
    assert training_order(choices) == choices[1:]
    (tmp_path / "empty").mkdir()
    for wrong, error in (("empty", ValueError), ("none.pkl", FileNotFoundError)):
        with pytest.raises(error, match=f"--network={tmp_path}/{wrong}: "):
            choices_of(str(tmp_path / wrong))


def test_a_network_that_turns_bad_while_it_is_open(toy_networks, tmp_path, foreign):
    good = tmp_path / "n.pkl"
    good.write_bytes((toy_networks / "cond.pkl").read_bytes())
    viewer = Viewer([str(good), str(foreign)], "cpu")
    before = viewer.picture(str(good), State(seed=1))
    os.truncate(good, 1000)
    with pytest.raises(ValueError, match=r"n\.pkl"):
        viewer.picture(str(good), State(seed=1))
    with pytest.raises(ValueError, match=r"foreign\.pkl"):  # its code is not run
        viewer.picture(str(foreign), State(seed=1))
    assert "WEIGHTS_TEST_RAN" not in os.environ
    with pytest.raises(ValueError, match="was not started with this network"):
        viewer.open("/etc/passwd")
    good.write_bytes((toy_networks / "cond.pkl").read_bytes())
    assert (viewer.picture(str(good), State(seed=1)) == before).all()


def test_small_pictures_are_magnified():
    assert magnified(np.zeros((16, 16, 3), np.uint8)).shape == (512, 512, 3)
    assert magnified(np.zeros((600, 600), np.uint8)).shape == (600, 600)


@pytest.fixture(scope="module")
def edited(source: str, toy_networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    """A viewer with sliders: two directions in W, and one in style space that starts at 1.5."""
    folder = tmp_path_factory.mktemp("directions")
    network, random = Network.from_pretrained(source, device="cpu"), torch.Generator().manual_seed(0)
    w = torch.randn([2, network.G.w_dim], generator=random)
    direction_files.write(str(folder / "w.safetensors"), network, {"method": "sefa"}, w, [1, 2])
    sizes = direction_files.layer_sizes(network.G)
    styles = {name: torch.randn([1, size], generator=random) for name, size in sizes.items()}
    direction_files.write(str(folder / "s.safetensors"), network, {"name": "smile"}, styles=styles)
    files = [f"{folder}/w.safetensors", f"{folder}/s.safetensors:1.5"]
    return Viewer([source, str(toy_networks / "uncond.pkl")], "cpu", edits=files)


def test_edits_are_in_the_picture_its_command_and_its_layers(edited, source, tmp_path):
    assert [(slider.label, slider.strength) for slider in edited.sliders] == [
        ("sefa 0", 0),
        ("sefa 1", 0),
        ("smile", 1.5),
    ]
    names = [slider.name for slider in edited.sliders]
    state = State(seed=5, label=1, edits=((names[0], 0.0), (names[1], -2.0), (names[2], 1.5)))
    picture, network = edited.picture(source, state), edited.open(source)
    assert (picture != edited.picture(source, replace(state, edits=()))).any()
    command = state.command(network, None)
    assert f"--edit={names[1]}:-2" in command and names[0] not in command
    run(gen_images.main, *shlex.split(command)[2:], "--device=cpu", "--outdir", tmp_path)
    assert (read_pixels(tmp_path / "seed0005.png") == picture).all()
    mixed = replace(state, style_seed=6, groups=("fine",))
    code: dict = {}
    exec(mixed.command(network, None).replace(f"({source!r})", f"({source!r}, device='cpu')"), code)
    assert (code["images"][0] == edited.picture(source, mixed)).all()
    last = layers.layer_names(network)[-1]
    plain = edited.layer(source, replace(state, edits=((names[1], -2.0),)), last)[0]
    assert (edited.layer(source, state, last)[0] != plain).any()
    states = [state, replace(state, edits=((names[2], -1.0),))]
    path.export(edited, source, states, tmp_path / "path.zip", per_keyframe=2)
    with zipfile.ZipFile(tmp_path / "path.zip") as archive:
        frames = [np.asarray(PIL.Image.open(archive.open(name))) for name in archive.namelist()]
    assert (frames[0] == picture).all() and (frames[2] == edited.picture(source, states[1])).all()


def test_edits_of_another_network_are_left_out_and_named(edited, source, toy_networks):
    other = str(toy_networks / "uncond.pkl")
    state = State(seed=5, edits=((edited.sliders[0].name, 2.0),))
    network = edited.open(other)
    assert state.for_network(network).edits == () and state.for_network(edited.open(source)) == state
    assert state.misfits(network).startswith("1 edit does not fit ")
    with pytest.raises(ValueError, match="the directions belong to another network"):
        Viewer([other], "cpu", edits=[edited.sliders[0].name])
    with pytest.raises(ValueError, match="no direction 7"):
        Viewer([source], "cpu", edits=[edited.sliders[0].name.replace("#0", "#7:1")])
    with pytest.raises(FileNotFoundError, match="no such file"):
        Viewer([source], "cpu", edits=["none.safetensors"])
