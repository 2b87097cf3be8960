# SPDX-License-Identifier: Apache-2.0
"""ONNX files of both halves of a generator, against onnxruntime."""

import pytest
import torch

from tests.toy_networks import tiny
from training import generator as g
from training.networks import onnx

SMALL = dict(syn_layers=4, cbase=64, cmax=4, z_dim=4, w_dim=8)


def network(name):
    torch.manual_seed(0)
    if name == "stem_t":
        G = g.build_stem("stylegan3-t", 16, 3, embed_dim=6, **SMALL)
    else:
        G = g.build_superres(g.build_stem("stylegan3-r", 16, 0, **SMALL), "stylegan3-t", 2, 3)
    with torch.no_grad():
        G.mapping.w_avg.normal_()
        G.synthesis.input.transform[0, 2] = 0.1
    return G.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["stem_t", "superres_t_on_r"])
def test_onnxruntime_draws_the_same_images(name, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    G = network(name)
    paths = onnx.export(G, tmp_path / "n")
    assert [path.name for path in paths] == ["n.mapping.onnx", "n.synthesis.onnx"] and len(
        list(tmp_path.iterdir())
    ) == 2
    for batch in (1, 3):
        found = onnx.compare(G, paths, batch=batch)
        assert found["ws"] < 1e-5 and found["images"] < 1e-5


def test_the_reference_operations_are_used_inside_only():
    G = network("superres_t_on_r")
    ws = G.mapping(torch.randn(2, 4))
    outside = G.synthesis(ws)
    before = g.filtered_lrelu
    calls = []
    assert g._is_one_image(ws[:1])
    with onnx.reference_ops():
        assert not g._is_one_image(
            ws[:1]
        )  # a graph that asks for the number of images is for that number alone
        assert g.filtered_lrelu is not before and g.filtered_lrelu.filtered_lrelu.keywords == {"impl": "ref"}
        calls.append(G.synthesis(ws))
    assert g.filtered_lrelu is before and g._is_one_image(ws[:1])
    torch.testing.assert_close(calls[0], outside, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError), onnx.reference_ops():
        raise RuntimeError
    assert g.filtered_lrelu is before


def test_the_mapping_for_export_is_the_mapping():
    G = network("stem_t")
    z, c = torch.randn(3, 4), torch.tensor([0, 2, 1])
    exported = onnx.MappingForExport(G.mapping)(z, c, torch.tensor(0.7))
    torch.testing.assert_close(exported, G.mapping(z, c, truncation_psi=0.7))


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install onnx onnxscript onnxruntime"):
        onnx.require_onnx()


def test_no_file_is_left_alone(tmp_path, monkeypatch):
    def export_one(module, *args):
        if isinstance(module, onnx.SynthesisForExport):
            raise ValueError("too large")
        return b"mapping"

    monkeypatch.setattr(onnx, "require_onnx", lambda: None)
    monkeypatch.setattr(onnx, "_export_one", export_one)
    with pytest.raises(ValueError, match="too large"):
        onnx.export(tiny(3), tmp_path / "network")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(onnx, "_export_one", lambda module, *args: b"content")
    assert [path.name for path in onnx.export(tiny(3), tmp_path / "n")] == [
        "n.mapping.onnx",
        "n.synthesis.onnx",
    ]
    assert all(path.read_bytes() == b"content" for path in tmp_path.iterdir())
