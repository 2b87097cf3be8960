# SPDX-License-Identifier: Apache-2.0
"""Counts of a step's operations, and what they predict."""

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu_training
from benchmarks import roofline as table
from torch_utils.ops.backend import library
from training.generator import build_stem
from training.run import roofline


def network(resolution: int) -> torch.nn.Module:
    with torch.device("meta"):
        return gpu_training.published_generator(resolution, small=True)


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


def test_an_unknown_variant_of_a_gpu_has_no_peak():
    known = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "A100-SXM4-40GB", "NVIDIA A100-PCIE-80GB")
    assert [roofline.peak(name).half for name in known] == [989e12, 989e12, 312e12, 312e12]
    for name in (
        "NVIDIA H100 PCIe",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    ):
        assert roofline.peak(name) is None


@pytest.fixture
def made(monkeypatch):
    """MFU of a GPU with a peak of 1e12 in 16 bits and 1e11 in float32, and how often a step was counted."""
    counted = []

    def count(cfg, G):
        counted.append((cfg, G))
        ops = roofline.Op("heads", 2e9, 1e15, True), roofline.Op("heads", 1e8, 1.0, False)
        return roofline.Step(4, 8, False, ops, (roofline.Op(roofline.UPDATE, 0.0, 1e9, False),))

    monkeypatch.setattr(roofline, "count", count)
    monkeypatch.setattr(roofline.plan, "plan", lambda cfg, dataset, lineage: ("G", "D"))
    made = roofline.Utilization("cfg", "dataset", torch.device("cpu"))
    assert made.of(100.0, None) is None and not counted  # a CPU has no known peak
    made.gpu = roofline.Gpu("known", half=1e12, tf32=5e11, single=1e11, bandwidth=float("inf"))
    return made, counted


def test_mfu_is_the_seconds_at_the_peak_in_a_second(made):
    mfu, counted = made
    # (2e9 / 1e12 + 1e8 / 1e11) seconds for 4 images: 0.75 ms each. Bytes do not count.
    assert mfu.of(400.0, None) == pytest.approx(0.3) and mfu.of(800.0, None) == pytest.approx(0.6)
    assert counted == [("cfg", "G")]


def test_a_step_that_cannot_be_counted_has_no_mfu(made, monkeypatch):
    mfu, _ = made
    monkeypatch.setattr(roofline, "count", lambda cfg, G: [].pop())
    with pytest.warns(UserWarning, match=r"no Timing/mfu: .*pop from empty list"):
        assert mfu.of(400.0, None) is None
    assert mfu.of(400.0, None) is None  # and is not tried again


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
