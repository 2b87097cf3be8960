# SPDX-License-Identifier: Apache-2.0
"""Files of style codes: what is written comes back, and mistakes are one line."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from generation import Network, w_files
from generation.w_files import load_w, save_w
from tests.toy_networks import network as two_stages


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


@pytest.fixture(scope="module")
def other(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "uncond.pkl", device="cpu")


def test_codes_come_back(network, tmp_path):
    path = tmp_path / "projected_w.npz"
    ws = network.styles([0, 1], [0, 2])
    save_w(path, ws, network, target="cat.png")
    assert torch.equal(load_w(path, network), ws)
    with np.load(path) as arrays:
        assert arrays["w"].dtype == np.float32 and str(arrays["target"]) == "cat.png"
        assert len(str(arrays["network"])) == 64
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_published_files_and_single_codes_are_read(network, tmp_path):
    path = tmp_path / "w.npz"
    ws = network.styles([3]).numpy()
    np.savez(path, w=ws.astype(np.float64))
    assert (load_w(path, network).numpy() == ws).all()
    np.savez(path, w=ws[:, 0])  # one code for all layers
    assert (load_w(path, network).numpy() == ws).all()


def test_codes_fit_other_stages_of_the_network(tmp_path):
    later = Network("later.pkl", two_stages(), {}, {}, None)
    stem = copy.deepcopy(later)
    stem.G.num_ws = later.G.num_ws - 2
    path = tmp_path / "w.npz"
    code = torch.randn(1, 1, later.G.w_dim)
    save_w(path, code.repeat(1, stem.G.num_ws, 1), stem)
    assert torch.equal(load_w(path, later), code.repeat(1, later.G.num_ws, 1))
    save_w(path, torch.randn(1, stem.G.num_ws, later.G.w_dim), stem)
    with pytest.raises(ValueError, match=r"--projected-w=.*w is float32 \[1, 6, 8\], but later.pkl needs"):
        load_w(path, later)


def test_few_bytes_in_a_file_do_not_become_many(network, tmp_path, monkeypatch):
    path, count = tmp_path / "w.npz", 100
    np.savez_compressed(path, w=np.zeros((count, network.G.w_dim), np.float16))
    assert len(load_w(path, network)) == count
    monkeypatch.setattr(w_files, "MAX_BYTES", 4 * count * network.G.w_dim * (network.G.num_ws - 1))
    with pytest.raises(ValueError, match=r"w\.npz: 100 style codes take more than .* give files with fewer"):
        load_w(path, network)


def test_mistakes_are_one_line(network, other, tmp_path):
    path = tmp_path / "w.npz"
    shape = (1, network.G.num_ws, network.G.w_dim)

    def fails(match, **arrays):
        if arrays:
            np.savez(path, **arrays)
        with pytest.raises(ValueError, match=match) as caught:
            load_w(path, network, "--w-init")
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"--w-init={path}: ")

    fails("contains no array w", v=np.zeros(shape))
    fails("w contains NaN", w=np.full(shape, np.nan))
    for wrong in (np.zeros(3), np.zeros((0, *shape[1:])), np.zeros((1, 2, 3)), np.full(shape, "a")):
        fails("w is .* needs numbers", w=wrong)
    save_w(path, np.zeros(shape), other)
    fails("belong to another network")
    path.write_bytes(b"PNG")
    fails("not a numpy .npz file")
    np.savez(path, w=np.array([{}], dtype=object))
    fails("only numbers and strings can be read")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_w(tmp_path / "gone.npz", network)
