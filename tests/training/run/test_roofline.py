# SPDX-License-Identifier: Apache-2.0
"""Counts of a step's operations, and what they predict."""

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu
from benchmarks import roofline as table
from torch_utils.ops.backend import library
from training.generator import build_stem
from training.run import roofline


def network(resolution: int) -> torch.nn.Module:
    with torch.device("meta"):
        return gpu.published_generator(resolution, small=True)


@pytest.fixture(scope="module")
def step() -> roofline.Step:
    G = network(32)
    found = roofline.count(table.config(32, 8, small=True), G)
    assert library.meta_namespace is None and not G.synthesis._forward_hooks
    return found


def test_parts_have_the_operations_of_their_modules(step):
    """D's step runs the generator without gradients, G's step with those of the weights that train."""
    parts = step.parts()
    assert set(parts) == {
        "synthesis", "backbones", "projection", "heads", "mapping", roofline.REST, roofline.UPDATE
    }  # fmt: skip
    G = network(32)
    with roofline._as_on_cuda(), torch.no_grad(), roofline.Counter([("synthesis", G.synthesis)]) as counter:
        G.synthesis(torch.empty(8, G.num_ws, G.w_dim, device="meta"))
    forward = roofline.Part.of([op for op in counter.ops if op.part == "synthesis"], 8).flops
    # Two forward passes; backward passes of the trained layers alone, since the stem is frozen.
    assert 2 * forward < parts["synthesis"].flops < 4 * forward
    assert parts["heads"].flops > 0 and parts["backbones"].flops > parts["projection"].flops
    assert parts[roofline.REST].flops < 0.01 * sum(part.flops for part in parts.values())
    trained = sum(p.numel() for p in G.parameters() if p.requires_grad)
    assert parts[roofline.UPDATE].bytes * step.images > roofline.ADAM_BYTES * trained


def test_seconds_are_those_of_the_slower_limit():
    fast = roofline.Gpu("fast", half=1e12, tf32=5e11, single=1e11, bandwidth=1e10)
    compute, copy = roofline.Op("heads", 1e12, 1.0, True), roofline.Op("heads", 0.0, 1e10, False)
    single = roofline.Op("heads", 1e11, 1.0, False)
    assert [fast.seconds(op, tf32=False) for op in (compute, copy, single)] == [1.0, 1.0, 1.0]
    assert fast.seconds(single, tf32=True) == 0.2
    step = roofline.Step(4, 8, False, (compute, copy), (copy,))
    assert step.device_seconds(fast) == 2 / 4 + 1 / 8 and step.device_seconds(fast, "mapping") == 0
    assert step.sec_per_kimg(fast) == 625
    slow_host = roofline.Step(1, 1, False, (roofline.Op("heads", 0.0, 0.0, False),) * 1000, ())
    assert slow_host.sec_per_kimg(fast) == pytest.approx(1e6 * roofline.HOST_SECONDS)
    assert slow_host.sec_per_kimg(fast, graphs=True) == 0


def test_only_large_networks_are_predicted(monkeypatch):
    cfg = table.config(16, 8, small=True)
    with torch.device("meta"):  # RGB and alpha
        G = build_stem("stylegan3-t", 16, 0, syn_layers=5, cbase=256, cmax=16, img_channels=4)
    assert roofline.lines(cfg, G) == []
    monkeypatch.setattr(roofline, "SMALLEST", 0)
    (line,) = roofline.lines(cfg, G)
    assert line.startswith("at least ") and line.endswith("predicted from operations and bytes, not measured")
    assert all(f" on {g.name}" in line for g in roofline.GPUS)


def test_the_tables_are_printed(monkeypatch):
    monkeypatch.setattr(table, "MICRO_BATCHES", (8,))
    result = CliRunner().invoke(table.main, ["--small", "--stages=16"])
    assert result.exit_code == 0, result.output
    mistake = CliRunner().invoke(table.main, ["--stages=16,20"])
    assert mistake.exit_code == 2 and "16,20: use some of 16, 32, 64, 128, 256" in mistake.output
    assert "| 16 | synthesis | " in result.output and "| 16 | 8 | defaults, CUDA graphs | " in result.output
