# SPDX-License-Identifier: Apache-2.0
"""benchmarks/quality.py: its variants start alike, finished curves are kept, and sums of bf16 are float32."""

import gzip
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import quality, train_step


@pytest.fixture
def images(tmp_path, monkeypatch) -> str:
    """64 noise images; tiny networks and few images per point."""
    monkeypatch.setattr(quality, "ROW", train_step.SMOKE["smoke"])
    monkeypatch.setattr(quality, "EVALUATED", 4)
    pixels = np.random.RandomState(0).randint(0, 256, (64, 784), dtype=np.uint8)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (64, 28, 28))
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(header + pixels.tobytes()))
    return str(path)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(quality.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_variants_start_alike_and_finished_curves_are_kept(images, tmp_path, monkeypatch):
    out = tmp_path / "curves.json"
    options = (images, "--steps=2", "--every=1", f"--out={out}")
    run(*options, "--seeds=1")
    curves = json.loads(out.read_text())["curves"]
    assert set(curves) == {f"{variant} 0" for variant in quality.VARIANTS}
    published, here, bf16 = (curves[f"{variant} 0"] for variant in quality.VARIANTS)
    assert len(here) == 3 and here[0] == pytest.approx(published[0], rel=1e-3)
    assert bf16[0] == pytest.approx(here[0], rel=0.05) and bf16[1:] != here[1:]
    trained = []
    monkeypatch.setattr(quality, "curve", lambda name, images, seed, *rest: trained.append(seed) or [1.0] * 3)
    output = run(*options, "--seeds=2")
    assert trained == [1, 1, 1] and "| here | " in output
    result = CliRunner().invoke(quality.main, [*options[:1], "--steps=3", f"--out={out}"])
    assert result.exit_code == 1 and result.output.count("\n") == 1 and "give another file" in result.output


def test_mistakes_are_one_line(images, tmp_path):
    other = tmp_path / "other.gz"
    other.write_bytes(gzip.compress(b"no images"))
    plain = tmp_path / "plain.gz"
    plain.write_bytes(b"not compressed")
    for arguments, text in (
        ([images, "--variants=here,fp8"], "unknown variant 'fp8'"),
        ([str(other)], "is not a gzipped IDX file"),
        ([str(plain)], "is not a gzipped IDX file"),
        ([str(tmp_path / "none.gz")], "is not a gzipped IDX file"),
    ):
        result = CliRunner().invoke(quality.main, arguments)
        assert result.exit_code == 1 and text in result.output, result.output
        assert result.output.count("\n") == 1


def test_products_and_convolutions_of_bf16_have_float32_sums():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 6, 6, generator=draws).bfloat16().requires_grad_()
    w = torch.randn(4, 8, 3, 3, generator=draws).bfloat16().requires_grad_()
    with quality.Float32Sums():
        y = torch.nn.functional.conv2d(x, w, padding=1)
        z = x.flatten(1) @ x.flatten(1).t()
        (y.sum() + z.sum()).backward()
    wide = torch.nn.functional.conv2d(x.detach().float(), w.detach().float(), padding=1)
    assert torch.equal(y, wide.bfloat16())
    assert torch.equal(z, (x.detach().float().flatten(1) @ x.detach().float().flatten(1).t()).bfloat16())
    assert x.grad is not None and x.grad.dtype == torch.bfloat16 and w.grad is not None
