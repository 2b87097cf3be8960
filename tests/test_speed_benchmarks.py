# SPDX-License-Identifier: Apache-2.0
"""benchmarks/published.py computes what the project computes; the benchmarks measure both in turns."""

import json

import click
import pytest
import torch
from click.testing import CliRunner

from benchmarks import generate, interleaved, loader, published, sources, train_step
from torch_utils import features
from training import build, steps
from training.networks.stems import Lineage


@pytest.fixture(scope="module")
def both():
    """(data, state, the published networks with the same parameters) of the smallest row."""
    row = train_step.SMOKE["smoke"]
    cfg, G = train_step.make_config(row, "fp32"), train_step.make_generator(row)
    D = build.make_discriminator(cfg.discriminator, train_step.CLASSES, row.resolution, 0)
    oracle = published.Published(G, D, cfg, power_iterations=False)
    state = build.assemble(cfg, G, D, Lineage(), torch.device("cpu"))
    return train_step.Data.of(cfg, G.z_dim), state, oracle


def gradients(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> torch.Tensor:
    """Adam's first moment, which is the gradient for beta1 = 0."""
    return torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in params if p in optimizer.state])


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_images_and_logits_are_those_of_the_published_algorithm(both):
    data, state, oracle = both
    (r,) = data.inputs.micro_batches("D", 0)
    with torch.no_grad():
        images = published.generate(oracle.G, r.z, r.labels)
        assert relative(state.G(r.z, r.labels), images) < 1e-5
        blurred = published.blur(images, 2.0)
        assert relative(steps.losses.blur(images, steps.losses.blur_kernel(2.0)), blurred) < 1e-5
        for found, wanted in zip(
            state.D(blurred, r.labels, r.draws).values(),
            oracle.logits(blurred, r.labels, r.draws),
            strict=True,
        ):
            assert relative(found.fun, wanted[0]) < 1e-4 and relative(found.dir, wanted[1]) < 1e-4


def test_gradients_of_a_step_are_those_of_the_published_algorithm(both):
    data, state, oracle = both
    cfg = oracle.cfg
    reals = data.inputs.real_micro_batches(0, data.pixels, data.labels)
    steps.d_step(state, data.inputs.micro_batches("D", 0), reals, cfg.loss, 2.0)
    oracle.d_step(data.inputs, data.pixels, data.labels, 0, 2.0)
    found = gradients(state.d_opt, list(state.d_params.values()))
    assert relative(found, gradients(oracle.d_opt, oracle.d_params)) < 1e-2
    with torch.no_grad():  # the first update follows signs, which rounding decides near zero
        for p, q in zip(state.d_params.values(), oracle.d_params, strict=True):
            p.copy_(q)
    steps.g_step(state, data.inputs.micro_batches("G", 0), cfg.loss, 2.0)
    oracle.g_step(data.inputs, 0, 2.0)
    names = [name for name, _ in oracle.G.named_parameters()]
    found = gradients(state.g_opt, [state.g_params[name] for name in names])
    assert relative(found, gradients(oracle.g_opt, oracle.g_params)) < 1e-2


@pytest.mark.parametrize("recompute", [False, True])
def test_passes_of_a_generator_with_and_without_its_activations(recompute, monkeypatch):
    monkeypatch.setattr(train_step.memory, "keep_freed_memory", lambda: None)
    work = train_step.passes(train_step.HEAD_SMOKE, recompute)
    assert interleaved.gflop_of(work) > 0


def test_tables_have_a_line_per_row_and_implementation(tmp_path):
    row = generate.SMOKE["smoke"]
    work = generate.here(row)
    measured = {
        name: interleaved.Measured(seconds, seconds, 1.0, interleaved.gflop_of(work), {"products": 1.0})
        for name, seconds in (("published", 2.0), ("here", 0.5))
    }
    rates = {"convolution float32": 100.0}
    lines = interleaved.table({row.title: measured}, rates).splitlines()
    assert len(lines) == 4 and "| 4.00 |" in lines[3] and measured["here"].gflop > 0
    interleaved.save(str(tmp_path / "r.json"), {row.title: measured}, rates, 1)
    assert '"gflop_per_second"' in (tmp_path / "r.json").read_text()
    with pytest.raises(click.ClickException, match=r"^--rows=5: unknown row '5'; use 16, 16x4, 64x4, 256$"):
        interleaved.chosen("5", generate.ROWS)


def test_the_published_backbones_have_timms_own_layers():
    def layers(network: torch.nn.Module) -> set[str]:
        return {type(module).__module__ for module in network.modules()}

    ours = features.load(weights="random")
    with published.plain_layers():
        plain = features.load(weights="random")
    assert "torch_utils.frozen_convolutions" in layers(ours) - layers(plain)
    assert not {"torch_utils.frozen_convolutions", "torch_utils.frozen_linear"} & layers(plain)


def test_the_loader_is_measured_beside_bare_loops(tmp_path):
    result = CliRunner().invoke(loader.main, ["--smoke", "--files=70", f"--out={tmp_path / 'r.json'}"])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "r.json").read_text())
    rates, other = written["images_per_cpu_second"], written["other"]
    assert len(rates) == 8 and all(v > 0 for v in rates.values())
    assert len(other) == 16 and all(v > 0 for title, v in other.items() if "CPU ms" not in title)
    assert all(title in result.output for title in (*rates, *other))


def test_every_format_of_data_sets_is_measured(tmp_path):
    result = CliRunner().invoke(sources.main, ["--smoke", f"--out={tmp_path / 'r.json'}"])
    assert result.exit_code == 0, result.output
    rates = json.loads((tmp_path / "r.json").read_text())["images_per_cpu_second"]
    assert len(rates) >= 7 and all(rate > 0 for rate in rates.values())
