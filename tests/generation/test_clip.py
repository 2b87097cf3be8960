# SPDX-License-Identifier: Apache-2.0
"""CLIP through open_clip, with random weights of a tiny model."""

import importlib.util
import json

import pytest
import safetensors.torch
import torch

from generation import clip
from torch_utils import timm_weights

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    open_clip = pytest.importorskip("open_clip")
    path = tmp_path_factory.mktemp("configs") / "tiny-for-tests.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return "tiny-for-tests"


def test_embeddings_of_both_towers(name, tmp_path, capsys):
    found = clip.load(name, "random", "cpu")
    assert "note: --clip-weights=random: its embeddings have no meaning" in capsys.readouterr().err
    assert found.sha256 == "random:0"
    texts = found.texts(["a cat", "a dog"])
    assert texts.shape == (2, 8) and not torch.equal(texts[0], texts[1])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    x = torch.rand([2, 1, 16, 16], generator=torch.Generator().manual_seed(0)).mul(2).sub(1).requires_grad_()
    (gradient,) = torch.autograd.grad(found.images(x)[:, 0].sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    opaque = torch.cat([x.expand(-1, 3, -1, -1), torch.ones_like(x)], dim=1)  # alpha
    torch.testing.assert_close(found.images(opaque), found.images(x))
    with pytest.raises(ValueError, match="has 100 tokens, but tiny-for-tests reads 75"):
        found.texts(["cat " * 100])
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in found.network.state_dict().items()}, path)
    again = clip.load(name, str(path), "cpu", seed=1)
    torch.testing.assert_close(again.texts(["a cat", "a dog"]), texts)
    assert len(again.sha256) == 64
    safetensors.torch.save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"w\.safetensors: does not fit tiny-for-tests: "):
        clip.load(name, str(path), "cpu")
    with pytest.raises(FileNotFoundError, match="--clip-weights=none: no such file"):
        clip.load(name, "none", "cpu")
    with pytest.raises(FileNotFoundError, match="has no published weights: give --clip-weights=FILE"):
        clip.load(name, None, "cpu")
    with pytest.raises(ValueError, match="--clip-model=none: unknown"):
        clip.load("none", None, "cpu")


def test_missing_weights_and_a_missing_package_are_one_line(name, monkeypatch):
    def offline(what, repo, file):
        assert (repo, file) == ("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
        raise timm_weights.MissingWeights(f"weights of {what}: cannot fetch {file}; name its path")

    monkeypatch.setattr(timm_weights, "from_hub", offline)
    with pytest.raises(FileNotFoundError, match=r"weights of CLIP .*name its path with --clip-weights=FILE"):
        clip.load(clip.MODEL, None, "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package open_clip: pip install"):
        clip.load(clip.MODEL, "random", "cpu")
