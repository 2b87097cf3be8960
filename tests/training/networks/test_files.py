# SPDX-License-Identifier: Apache-2.0
"""Network files: pickle -> safetensors -> pickle without losing a bit, damaged files in one line, and pickles
that are run on request only.
"""

import errno
import json
import os
import pickle

import pytest
import safetensors.torch
import torch

from tests.parity.fill import GOLDENS
from tests.toy_networks import network, same
from torch_utils.persistence import persistent_class, save_network_pickle
from training.bundle import bundle
from training.networks import files

PUBLISHED = sorted((GOLDENS / "pickles").glob("*.pkl"))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A snapshot with all that training writes."""
    path = tmp_path_factory.mktemp("snapshot") / "network-snapshot.pkl"
    provenance = {
        "project": "StyleSAN-XL",
        "nimg": 7,
        "rate": 0.1,
        "class_names": ["a", "b", "c"],
        "nothing": None,
    }
    contents = dict(
        G=network(0), D=bundle({"heads.0.weight": torch.randn(3)}), G_ema=network(1), augment_pipe=None
    )
    save_network_pickle(
        path, dict(contents, training_set_kwargs={"path": "x.zip", "xflip": False}, provenance=provenance)
    )
    return path


def test_ours_there_and_back(snapshot, tmp_path):
    first = files.read(snapshot)
    assert list(first.generators) == ["G", "G_ema"] and list(first.tensors["D"]) == ["heads.0.weight"]
    assert files.write_safetensors(tmp_path / "n.safetensors", first) == tmp_path / "n.json"
    second = files.read(tmp_path / "n.safetensors")
    same(first, second)
    files.write_pickle(tmp_path / "n.pkl", second)
    same(first, files.read(tmp_path / "n.pkl"))
    (tmp_path / "again").mkdir()
    files.write_safetensors(tmp_path / "again" / "n.safetensors", files.read(tmp_path / "n.pkl"))
    for name in ("n.safetensors", "n.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    z, c = torch.randn(2, 4), torch.tensor([0, 2])
    assert torch.equal(first.generators["G_ema"](z, c), second.generators["G_ema"](z, c))
    assert (
        not any(p.requires_grad for p in second.generators["G_ema"].parameters())
        and not second.generators["G_ema"].training
    )


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_there_and_back(path, tmp_path):
    first = files.read(path)
    files.write_safetensors(tmp_path / "n.safetensors", first)
    second = files.read(tmp_path / "n.safetensors")
    same(first, second)
    files.write_pickle(tmp_path / "n.pkl", second)
    third = files.read(tmp_path / "n.pkl")
    third.tensors.pop("D")  # an empty one: the tools insist on a module
    same(first, third)


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_both_files_as_they_were(exists, snapshot, tmp_path, monkeypatch):
    """A JSON file alone would be taken for that of another network, and refuse the next attempt."""
    if exists:
        files.write_safetensors(tmp_path / "n.safetensors", files.NetworkFile({"G_ema": network(2)}))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_safetensors(tmp_path / "n.safetensors", files.read(snapshot))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_network_stands_for_both(tmp_path):
    G = network()
    files.write_safetensors(tmp_path / "n.safetensors", files.NetworkFile({"G": G, "G_ema": G}))
    assert json.loads((tmp_path / "n.json").read_text())["networks"]["G_ema"] == {"same_as": "G"}
    file = files.read(tmp_path / "n.safetensors")
    assert file.generators["G"] is file.generators["G_ema"]
    only = file.only("G_ema")
    files.write_pickle(tmp_path / "n.pkl", only)
    assert list(files.read(tmp_path / "n.pkl").generators) == ["G", "G_ema"], "tools insist on both"
    with pytest.raises(ValueError, match="network G not found; available: G_ema"):
        only.only("G")


def test_one_key_is_rebuilt_alone(snapshot):
    assert list(files.read(snapshot, key="G_ema").generators) == ["G_ema"]
    with pytest.raises(ValueError, match="contains no network G; it has G_ema"):
        files.read(_ema_only(snapshot), key="G")


def _ema_only(snapshot):
    path = snapshot.with_name("ema.pkl")
    save_network_pickle(path, {"G_ema": network()})
    return path


def _edit(change):
    def edit(folder):
        config = json.loads((folder / "n.json").read_text())
        change(config)
        (folder / "n.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "n.json").unlink(), r"n\.json not found"),
        (lambda f: (f / "n.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "n.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda f: (f / "n.json").write_text("{}"), "not the description of a network"),
        (lambda f: (f / "n.safetensors").write_bytes(b"nonsense"), "not a safetensors file"),
        (
            lambda f: (f / "n.safetensors").write_bytes((f / "n.safetensors").read_bytes()[:-1]),
            "not a safetensors file",
        ),
        (_edit(lambda c: c.update(version=99)), "version 99"),
        (
            _edit(lambda c: c["networks"]["G_ema"]["kwargs"].update(z_dim=5)),
            r"G_ema: mapping\.\S+ is float32",
        ),
        (_edit(lambda c: c["networks"]["G_ema"]["kwargs"].update(zdim=5)), "cannot be built"),
        (
            _edit(lambda c: c["networks"]["G_ema"]["kwargs"]["layers"][1].update(in_channels=10**9)),
            "at most 65536",
        ),
        (_edit(lambda c: c["networks"]["G_ema"]["kwargs"]["layers"].pop()), "cannot be built"),
        (_edit(lambda c: c["networks"]["G_ema"].update(kwargs=7)), "cannot be built"),
        (_edit(lambda c: c["networks"]["G_ema"]["kwargs"].update(mapping_kwargs=7)), "cannot be built"),
        (
            _edit(lambda c: c["networks"].update({f"X{i}": {"class": "tensors"} for i in range(9)})),
            "at most 8 are supported",
        ),
        (_edit(lambda c: c["networks"].update(G_ema=None)), "cannot be built"),
        (_edit(lambda c: c["networks"].pop("G_ema")), "unexpected tensors"),
        (
            _edit(
                lambda c: c["networks"].update(
                    X={"class": "Generator", "kwargs": c["networks"]["G_ema"]["kwargs"]}
                )
            ),
            "X: tensors missing",
        ),
        (_edit(lambda c: c["networks"].update(X={"same_as": "Y"})), "same as 'Y', which does not exist"),
        (_edit(lambda c: c["networks"].update(X={"same_as": ["G_ema"]})), "which does not exist"),
        (_edit(lambda c: c.update(extra={"G_ema": 1})), "extra without networks"),
        (
            _edit(lambda c: c.update(training_set_kwargs=[1])),
            "training_set_kwargs, provenance and extra must be objects",
        ),
        (
            _edit(lambda c: c["networks"]["G_ema"]["kwargs"]["mapping_kwargs"].update(num_layers=10**9)),
            "more than 256 layers",
        ),
        (_edit(lambda c: c["networks"]["G_ema"]["kwargs"].update(layers="x" * 300)), "cannot be built"),
        (_edit(lambda c: c["networks"]["G_ema"]["kwargs"].update(z_dim=2**80)), "cannot be built"),
    ],
)
def test_damaged_files_are_one_line(damage, message, tmp_path):
    files.write_safetensors(tmp_path / "n.safetensors", files.NetworkFile({"G_ema": network()}))
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        files.read(tmp_path / "n.safetensors")
    assert "\n" not in str(caught.value)


def test_a_foreign_network_runs_when_trusted(foreign):
    with pytest.raises(ValueError, match="a generator has the parts mapping and synthesis"):
        files.read(foreign)
    assert "WEIGHTS_TEST_RAN" not in os.environ
    G = files.trusted_generator(foreign)
    assert os.environ.pop("WEIGHTS_TEST_RAN") == "yes"
    ws = G.mapping(torch.ones(2, 4), torch.tensor([0, 2]), truncation_psi=0.5)
    assert torch.equal(G.to("cpu").synthesis(ws), torch.full([2, 3, 8, 8], 4.0))
    with pytest.raises(ValueError, match=r"contains no network G$"):
        files.trusted_generator(foreign, "G")
    with pytest.raises(ValueError, match="a generator has the parts"):
        files.read_trusted(foreign)


def test_what_trust_brings_back_is_read_like_anything_else(snapshot, tmp_path):
    """A file that the safe reader refuses, for a hostile name beside a good network, gives that network once
    it is run.
    """

    class Harmless:
        def __reduce__(self):
            return os.getcwd, ()

    path = tmp_path / "odd.pkl"
    path.write_bytes(
        pickle.dumps({"note": Harmless(), "G_ema": files.read(snapshot).generators["G_ema"]}, protocol=4)
    )
    with pytest.raises(ValueError, match="refused global"):
        files.read(path)
    twin = files.read_trusted(path).generators["G_ema"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            twin.state_dict().values(),
            files.read(snapshot).generators["G_ema"].state_dict().values(),
            strict=True,
        )
    )
    (tmp_path / "nonsense.pkl").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="running this pickle failed"):
        files.read_trusted(tmp_path / "nonsense.pkl")


def test_persistent_subclasses_of_ours_are_not_mistaken(tmp_path):
    """The name alone does not make a generator."""

    @persistent_class
    class Generator(torch.nn.Module):
        pass

    save_network_pickle(tmp_path / "g.pkl", {"G_ema": Generator()})
    with pytest.raises(
        ValueError, match="a generator has the parts mapping and synthesis, but this one has none"
    ):
        files.read(tmp_path / "g.pkl")
