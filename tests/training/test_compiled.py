# SPDX-License-Identifier: Apache-2.0
"""torch.compile: every network is one graph, steps stay the same, and a refused network runs without it.
Activation checkpointing: the same steps to the bit.
"""

import copy

import pytest
import torch

from tests.toy_runs import config
from torch_utils import features, timm_weights
from training import build, compiled, steps
from training.inputs import InputSource
from training.run import restore


@pytest.fixture(scope="module")
def fresh(toy_zip):
    """(config, state, inputs, pixels, labels) of a run at its start."""
    cfg = config(toy_zip, loss__pl_start_kimg=0, loss__pl_interval=1, discriminator__mbstd=True)
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, torch.device("cpu"))
    inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, torch.device("cpu"), 1, 0)
    pixels = torch.stack([torch.from_numpy(dataset[i][0].copy()) for i in range(8)])
    return cfg, state, inputs, pixels, torch.tensor([dataset[i][1] for i in range(8)])


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Graphs are traced, and run by torch's own operations: no compiler is needed."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


def test_steps_of_compiled_networks_are_those_of_others(fresh, capsys):
    """Path lengths, and the diagnostics of heads in the first step of a tick, run without the compiler."""
    states = []
    for mode in (compiled.OFF, compiled.REGIONS):
        cfg, state, inputs, pixels, labels = copy.deepcopy(fresh)
        compiled.compile_step(state, mode)
        steps.train_step(state, inputs, cfg, pixels, labels)
        states.append(state)
    assert capsys.readouterr().out == ""
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # G with and without gradients, D
    torch.testing.assert_close(states[1].tensors(), states[0].tensors(), rtol=1e-4, atol=1e-5)
    assert states[1].state_dict().keys() == states[0].state_dict().keys()
    assert copy.deepcopy(states[1].G.synthesis)._compiled_call_impl is None


def test_graphs_need_cuda(fresh, capsys):
    _, state, *_ = copy.deepcopy(fresh)
    compiled.compile_step(state, compiled.GRAPHS)
    assert capsys.readouterr().out == "Warning: --compile=graphs needs CUDA: using --compile=off\n"
    assert state.graphs is None and state.D._compiled_call_impl is None


def test_transformers_are_one_graph():
    network = features.load("deit_tiny_patch16_224", timm_weights.RANDOM)
    x = torch.zeros(1, 3, 224, 224)
    traced = torch.compile(network, backend="eager", fullgraph=True)(x)
    for a, b in zip(traced, network(x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_network_that_cannot_be_compiled_runs_without(fresh, monkeypatch, capsys):
    _, state, _, _, labels = copy.deepcopy(fresh)
    forward = state.D.forward

    def breaking(img, c=None, draws=None):
        if img.sum() > 1e9:  # a branch that depends on a value
            raise AssertionError
        return forward(img, c, draws)

    monkeypatch.setattr(state.D, "forward", breaking)
    compiled.compile_step(state, compiled.REGIONS)
    images = torch.zeros(8, 3, 16, 16)
    wanted = forward(images, labels)
    for _ in range(2):
        found = state.D(images, labels)
        torch.testing.assert_close(found, wanted)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("Warning: --compile: the discriminator runs without torch.compile, which failed: ")
    assert state.G.synthesis._compiled_call_impl is not None


def test_checkpointed_activations_change_no_bit_and_keep_less(fresh):
    """In a step with path lengths, whose second derivatives go through the layers, too."""
    kept, states = [], []
    for checkpointed in (False, True):
        cfg, state, inputs, pixels, labels = copy.deepcopy(fresh)
        if checkpointed:
            compiled.checkpoint_activations(state.G)
        (r,) = inputs.micro_batches("G", 0)
        sizes = []

        def pack(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            state.G(r.z, r.labels).sum().backward()
        state.g_opt.zero_grad(set_to_none=True)
        kept.append(sum(sizes))
        steps.train_step(state, inputs, cfg, pixels, labels)
        states.append(state)
    torch.testing.assert_close(states[1].tensors(), states[0].tensors(), rtol=0, atol=0)
    assert kept[1] < kept[0] / 2
    copied = copy.deepcopy(states[1].G.synthesis)
    assert all(layer._compiled_call_impl is None for layer in copied.modules())


def test_errors_of_the_network_are_not_errors_of_the_compiler(fresh):
    _, state, *_ = copy.deepcopy(fresh)
    compiled.compile_step(state, compiled.REGIONS)
    with pytest.raises(ValueError, match="images of shape"):
        state.D(torch.zeros(8, 3, 4, 4))


def test_compiled_networks_keep_their_activations():
    with pytest.raises(
        ValueError, match="--checkpoint-activations=True: not supported with --compile=regions"
    ):
        config("x.zip", run__compile="regions", run__checkpoint_activations=True).validate()
    config("x.zip", run__compile="graphs", run__checkpoint_activations=True).validate()
