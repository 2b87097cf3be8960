# SPDX-License-Identifier: Apache-2.0
"""Published network pickles open without running their source, and draw the published images."""

import re

import numpy as np
import pytest
import torch

from tests.parity.fill import GOLDENS
from torch_utils.persistence import main, read_network_pickle
from training.generator import build_superres
from training.networks.reader import load

PICKLES = sorted((GOLDENS / "pickles").glob("*.pkl"))
assert len(PICKLES) == 7


@pytest.fixture(params=PICKLES, ids=lambda path: path.stem)
def path(request, tmp_path, monkeypatch):
    """A pickle whose source appends to a file when it runs; the file must not exist afterwards."""
    trap = tmp_path / "trap.txt"
    monkeypatch.setenv("STYLESAN_TRAP", str(trap))
    monkeypatch.chdir(tmp_path)
    yield request.param
    assert not trap.exists()
    assert not list(tmp_path.iterdir())


def test_images(path):
    G = load(str(path))
    with np.load(path.with_suffix(".expected.npz")) as expected:
        assert expected.files
        for key in expected.files:
            seed, label, psi = re.fullmatch(r"seed(\d+)_class(\w+)_psi([\d.]+)", key).groups()
            z = torch.from_numpy(np.random.RandomState(int(seed)).randn(1, G.z_dim))
            c = None if label == "None" else torch.tensor([int(label)])
            image = G(z, c, truncation_psi=float(psi))[0].numpy()
            np.testing.assert_allclose(image, expected[key], atol=1e-5)


@pytest.mark.once
def test_content_and_every_tensor(path):
    data = read_network_pickle(path)
    assert list(data)[:5] == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs"]
    assert data["D"] is None and data["augment_pipe"] is None
    assert data["training_set_kwargs"]["class_name"] == "training.dataset.ImageFolderDataset"
    assert "STYLESAN_TRAP" in data["G_ema"].module_src
    recorded = data["G_ema"].named_tensors()
    state = load(str(path)).state_dict()
    assert set(recorded) == set(state)
    for name, record in recorded.items():
        assert torch.equal(record.tensor(), state[name])
    if "checkpoint" in path.name:
        assert data["progress"]["cur_nimg"].tensor().shape == (1,)


@pytest.mark.once
def test_a_published_network_is_a_stem_to_build_on(path):
    stem = load(str(path))
    stage = build_superres(stem, "stylegan3-t", 2, 4)
    assert stage.img_resolution == 2 * stem.img_resolution
    assert torch.equal(stage.mapping.w_avg, stem.mapping.w_avg)
    assert stage.channel_base == 512


@pytest.mark.once
def test_the_command_line_describes_it(path, capsys):
    assert main([str(path)]) == 0
    text = capsys.readouterr().out
    assert (
        "contains source code" in text
        and "(not executed)" in text
        and "synthesis.L0_36_16" in text
        and "globals:" in text
    )
