# SPDX-License-Identifier: Apache-2.0
"""`from generation import Network`: a network in a few lines of Python."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gen_images
from generation import Network, render
from tests.support import ROOT, FolderHub, read_pixels, run
from tests.toy_data import write_dataset
from tests.toy_networks import NAMES, tiny


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


def test_images_are_those_of_gen_images(network, toy_networks, tmp_path):
    args = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--seeds=3,8", "--trunc=0.7"]
    motion = dict(translate=(0.25, 0.0), rotate=30.0)
    for name, options, given in (
        ("free", [], {}),
        ("class", ["--class=red-panda"], dict(classes="red-panda")),
        ("moved", ["--class=1", "--translate=0.25,0", "--rotate=30"], dict(classes=[1, 1], **motion)),
    ):
        run(gen_images.main, *args, *options, "--outdir", tmp_path / name)
        images = network.generate([3, 8], truncation=0.7, **given)
        assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
        for seed, image in zip((3, 8), images, strict=True):
            assert (image == read_pixels(tmp_path / name / f"seed{seed:04d}.png")).all(), name
    assert (
        network.G.synthesis.input.transform == network.G.synthesis.input.transform.new_tensor(np.eye(3))
    ).all()


def test_styles_can_be_changed_before_they_are_rendered(network):
    ws = network.styles(seeds=[0, 1], classes=[0, 2])
    assert ws.shape == (2, network.G.num_ws, network.G.w_dim) and not ws.requires_grad
    between = network.render((ws[:1] + ws[1:]) / 2)
    assert between.shape == (1, 16, 16, 3)
    assert not (between == network.render(ws[:1])).all()
    assert (network.render(ws.numpy()) == network.generate([0, 1], [0, 2])).all()
    centre = ws[:1, 0].numpy()
    assert (network.styles(5, 0, truncation=0, centroids=centre)[:, 0].numpy() == centre).all()


def test_run_folders_saved_folders_and_repositories(network, toy_networks, tmp_path, monkeypatch):
    from training.networks import hub

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best_model.pkl").write_bytes((toy_networks / "cond.pkl").read_bytes())
    folder_hub = FolderHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "_hub", lambda: folder_hub)
    monkeypatch.setattr(hub, "model_card", lambda *args: "# card\n")
    folder_hub.HfApi = lambda: folder_hub
    network.save_pretrained(tmp_path / "saved")
    assert network.push_to_hub("me/cats") == "https://hub/me/cats/commit/1"
    monkeypatch.chdir(tmp_path)
    expected = network.generate(4)
    for source in (tmp_path / "run", "saved", "me/cats", "hf://me/cats", (tmp_path / "run").as_uri()):
        found = Network.from_pretrained(source, device="cpu")
        assert found.class_names == NAMES and (found.generate(4) == expected).all()
    with pytest.raises(ValueError, match="hf://me/dogs: cannot be downloaded"):
        Network.from_pretrained("me/dogs")
    assert repr(network).endswith("cond.pkl': 16x16 pixels, 3 classes)")


def test_published_files_load_with_the_same_line():
    sample = ROOT / "tests/parity/goldens/pickles/superres_t_16to32_cond10.pkl"
    assert Network.from_pretrained(sample, device="cpu").generate(0, 7).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(seeds=[]), "seeds: give integers from 0 to 4294967295"),
        (dict(seeds=-1), "seeds: give integers"),
        (dict(seeds=[1, 2, 3], classes=[0, 1]), "classes: 2 given for 3 seeds"),
        (dict(seeds=1, classes="dog"), "unknown class 'dog'; the classes are 0 cat"),
        (dict(seeds=1, classes=3), "class 3: the network's classes are 0 to 2"),
        (dict(seeds=1, truncation=float("nan")), "truncation=nan is not a finite number"),
        (dict(seeds=1, centroids=np.zeros((2, 3))), r"centroids: expected \[K, 512\], got \[2, 3\]"),
    ],
)
def test_mistakes_are_one_line(network, given, message):
    with pytest.raises(ValueError, match=message) as error:
        network.generate(**given)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_file_with_code(foreign, tmp_path):
    for name in ("none.pkl", str(tmp_path / "no" / "folder" / "x")):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            Network.from_pretrained(name)
    with pytest.raises(ValueError, match=r"foreign\.pkl"):
        Network.from_pretrained(foreign)


def test_a_data_set_without_classes_has_no_names(toy_networks, tmp_path):
    path = write_dataset(tmp_path / "unlabelled.zip")
    with pytest.raises(ValueError, match=r"^--data=.*unlabelled.zip: no labels in .*: name a data set"):
        Network.from_pretrained(toy_networks / "cond.pkl", data=str(path))


def test_the_hash_of_the_mapping_network_is_computed_once(monkeypatch):
    G = tiny(3)
    first = render.mapping_sha256(G)
    monkeypatch.setattr(render.hashlib, "sha256", None)
    assert render.mapping_sha256(G) == first
    monkeypatch.undo()
    with torch.no_grad():
        next(G.mapping.parameters()).add_(1)
    assert render.mapping_sha256(G) != first


def test_the_settings_of_another_program_are_kept(network, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json belongs to another program"):
        network.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
