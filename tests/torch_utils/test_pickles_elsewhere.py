# SPDX-License-Identifier: Apache-2.0
"""Our network pickles in other projects' hands: a process with a minimal dnnlib and torch_utils
(tests/minimal_dnnlib), and nothing of ours.
"""

import ast
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import waiting
from torch_utils.persistence import save_network_pickle
from training import bundle, generator
from training.generator import build_stem, build_superres
from training.networks import reader
from training.run import snapshots

MINIMAL = Path(__file__).resolve().parent.parent / "minimal_dnnlib"
SMALL = dict(syn_layers=4, cbase=64, cmax=4, z_dim=8, w_dim=8)

# What the embedded source may use: the names and arguments that every StyleGAN repository has.
PUBLISHED = {
    "bias_act": {"bias_act": "x b dim act alpha gain clamp impl"},
    "conv2d_gradfix": {"conv2d": "input weight bias stride padding dilation groups"},
    "filtered_lrelu": {"filtered_lrelu": "x fu fd b up down padding gain slope clamp flip_filter impl"},
    "persistence": {"persistent_class": ""},
}


def network(name):
    torch.manual_seed(0)
    if name == "stem_t":
        G = build_stem("stylegan3-t", 16, 3, num_embeddings=10, embed_dim=6, **SMALL)
    else:
        G = build_superres(build_stem("stylegan3-r", 16, 0, **SMALL), "stylegan3-t", 2, 4)
    with torch.no_grad():
        G.mapping.w_avg.normal_()
        for layer in G.synthesis.layer_names:
            getattr(G.synthesis, layer).bias.normal_(std=0.1)
    return G


@pytest.mark.parametrize("name", ["stem_t", "superres_t_on_r"])
def test_a_process_with_a_minimal_dnnlib_uses_our_snapshot(name, tmp_path, monkeypatch):
    G = network(name)
    # The snapshot as training writes it, without a discriminator's backbones.
    D = SimpleNamespace(
        saved_state_dict=lambda: {
            "heads.0.weight": torch.arange(6.0).reshape(2, 3),
            "projection.x": torch.ones(2),
        }
    )
    monkeypatch.setattr(
        snapshots,
        "training_set_kwargs",
        lambda cfg, dataset: {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip"},
    )
    monkeypatch.setattr(
        snapshots, "provenance", lambda cfg, dataset, state: {"project": "StyleSAN-XL", "nimg": 1000}
    )
    contents = snapshots.network_pickle(None, None, SimpleNamespace(G=G, D=D, G_ema=G))
    assert list(contents) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs", "provenance"], (
        "the published order"
    )
    save_network_pickle(tmp_path / "network-snapshot.pkl", contents)

    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "STYLESAN_TRUST_PICKLE")
    }
    command = [
        sys.executable,
        str(MINIMAL / "look.py"),
        "network-snapshot.pkl",
        "5",
        "result.npz",
        "resaved.pkl",
    ]
    result = waiting.run(command, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    found = np.load(tmp_path / "result.npz")

    G.eval().requires_grad_(False)
    z = torch.from_numpy(np.random.RandomState(5).randn(2, G.z_dim))
    c = torch.tensor([1, 0]) if G.c_dim else None
    np.testing.assert_allclose(found["image"], G(z, c, truncation_psi=0.7).numpy(), atol=2e-6)
    G.synthesis.input.transform[0, 2] = 0.25
    np.testing.assert_allclose(found["moved"], G(z, c, truncation_psi=0.7).numpy(), atol=2e-6)
    assert abs(found["moved"] - found["image"]).max() > 1e-3
    resaved = reader.load(str(tmp_path / "resaved.pkl"))  # by their persistence, from their hands into ours
    np.testing.assert_allclose(resaved(z, c, truncation_psi=0.7).numpy(), found["resaved"], atol=2e-6)
    assert abs(found["resaved"] - found["image"]).max() > 1e-3
    kept = {
        bundle.dotted(key.removeprefix("D.")): value for key, value in found.items() if key.startswith("D.")
    }
    np.testing.assert_array_equal(kept["heads.0.weight"], [[0, 1, 2], [3, 4, 5]])
    assert set(kept) == {"heads.0.weight", "projection.x"}


@pytest.mark.parametrize("module", [generator, bundle])
def test_embedded_source_uses_published_names_only(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module.split(".")[0]}
            if node.module.startswith("torch_utils"):
                assert {alias.name for alias in node.names} <= set(PUBLISHED)
    assert imported <= {
        "__future__",
        "collections",
        "dataclasses",
        "math",
        "typing",
        "numpy",
        "scipy",
        "torch",
        "torch_utils",
    }

    def published(node):
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in PUBLISHED
        )

    for node in ast.walk(tree):
        if published(node):
            assert node.attr in PUBLISHED[node.value.id], f"line {node.lineno}"
        if isinstance(node, ast.Call) and published(node.func):
            arguments = PUBLISHED[node.func.value.id][node.func.attr].split()
            assert {keyword.arg for keyword in node.keywords} <= set(arguments), f"line {node.lineno}"


@pytest.mark.parametrize("module", [generator, bundle])
def test_embedded_source_is_python_3_8(module):
    """The published environments are Python 3.8; annotations are not evaluated, so only code that runs
    counts.
    """
    source = Path(module.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert name not in ("removeprefix", "removesuffix", "pairwise", "batched"), f"line {node.lineno}"
            if name in ("zip", "dataclass"):
                assert not {keyword.arg for keyword in node.keywords} & {"strict", "slots", "kw_only"}, (
                    f"line {node.lineno}"
                )
        assert not isinstance(node, getattr(ast, "Match", ())), f"line {node.lineno}"
