# SPDX-License-Identifier: Apache-2.0
"""One training step: which tensors each part moves, and that a bad gradient moves nothing."""

import dataclasses
import functools

import pytest
import torch

from tests.toy_runs import config
from torch_utils import distributed, launcher
from training import build, guard, steps
from training.config import from_json, to_json
from training.inputs import InputSource
from training.run import restore
from training.run.stop import StopRequest


@pytest.fixture(scope="module")
def parts(toy_zip):
    """(config, state, inputs, pixels, labels) of a run at its start."""
    cfg = config(toy_zip, run__batch_gpu=4)
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, torch.device("cpu"))
    inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, torch.device("cpu"), 1, 0)
    pixels = torch.stack([torch.from_numpy(dataset[i][0].copy()) for i in range(8)])
    return cfg, state, inputs, pixels, torch.tensor([dataset[i][1] for i in range(8)])


def values(params: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in params.items()}


def moved(params: dict[str, torch.nn.Parameter], before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in params.items() if not torch.equal(p, before[name])}


def test_each_step_moves_its_own_network_alone(parts):
    cfg, state, inputs, pixels, labels = parts
    reals = inputs.real_micro_batches(0, pixels, labels)
    assert len(reals) == 2  # two accumulation steps of four images
    g, d = values(state.g_params), values(state.d_params)
    frozen = {k: v.clone() for k, v in state.D.state_dict().items() if k.startswith("feature_networks.")}
    state.D.advance_spectral_norms()
    steps.g_step(state, inputs.micro_batches("G", 0), cfg.loss, 2.0)
    assert len(moved(state.g_params, g)) > len(g) / 2 and not moved(state.d_params, d)
    g = values(state.g_params)
    steps.d_step(state, inputs.micro_batches("D", 0), reals, cfg.loss, 2.0)
    assert len(moved(state.d_params, d)) > len(d) / 2 and not moved(state.g_params, g)
    assert all(torch.equal(state.D.state_dict()[k], v) for k, v in frozen.items())
    assert all(p.grad is None for p in [*state.g_params.values(), *state.d_params.values()])


@pytest.mark.parametrize("matched", [False, True])
def test_matched_classes_are_those_of_the_real_images(parts, matched, monkeypatch):
    cfg, state, inputs, pixels, labels = parts
    asked = []
    forward = state.G.mapping.forward
    monkeypatch.setattr(
        state.G.mapping, "forward", lambda z, c, **more: asked.append(c.tolist()) or forward(z, c, **more)
    )
    loss = dataclasses.replace(cfg.loss, match_classes=matched)
    steps.d_step(state, inputs.micro_batches("D", 0), inputs.real_micro_batches(0, pixels, labels), loss, 0.0)
    drawn = [r.labels.tolist() for r in inputs.micro_batches("D", 0)]
    assert asked == ([labels[:4].tolist(), labels[4:].tolist()] if matched else drawn)
    assert drawn != [labels[:4].tolist(), labels[4:].tolist()]


def test_path_length_step_moves_the_generator_and_its_mean(parts):
    cfg, state, inputs, _, _ = parts
    g, d, mean = values(state.g_params), values(state.d_params), state.pl_mean.clone()
    steps.path_length_step(state, inputs.micro_batches("path_length", 0, 2), cfg.loss, 0)
    assert moved(state.g_params, g) and not moved(state.d_params, d)
    assert state.pl_mean > mean


def test_train_step_updates_the_average_and_counts(parts):
    cfg, state, inputs, pixels, labels = parts
    ema, nimg, step = values(dict(state.G_ema.named_parameters())), state.progress.nimg, state.progress.step
    steps.train_step(state, inputs, cfg, pixels, labels)
    assert moved(dict(state.G_ema.named_parameters()), ema)
    assert (state.progress.nimg, state.progress.step) == (nimg + 8, step + 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_moves_nothing(bad):
    p = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.Adam(p.values())
    p["a"].grad, p["b"].grad = torch.ones(3), torch.tensor([1.0, bad])
    with pytest.raises(guard.NonFiniteError, match=r"^generator: step 1: the gradient of 'b' is not finite$"):
        steps.apply_gradients(p, optimizer, "generator: step 1")
    assert all((q == 1).all() for q in p.values()) and not optimizer.state
    p["b"].grad = torch.ones(2)
    steps.apply_gradients(p, optimizer, "generator: step 1")
    assert all((q < 1).all() and q.grad is None for q in p.values())


class Done:
    """A collective that has ended."""

    def wait(self) -> None:
        pass


def test_collectives_and_bytes_of_a_step(parts, monkeypatch):
    """docs/scaling.md gives them: a reduction per network, and small gathers for w_avg and path lengths."""
    cfg, state, inputs, pixels, labels = parts
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x, *op, async_op: x.mul_(2) is x and Done())
    monkeypatch.setattr(
        distributed.dist, "all_gather", lambda parts, x, async_op: [p.copy_(x) for p in parts] and Done()
    )
    distributed.take_traffic()
    steps.train_step(state, inputs, cfg, pixels, labels)  # without path lengths
    traffic = distributed.take_traffic()
    g, d = (sum(p.nbytes + 4 for p in params.values()) for params in (state.g_params, state.d_params))
    assert traffic["all-reduce"] == (2, g + d)  # gradients, and whether there is one
    assert traffic["all-gather"] == (1, 8 * (4 * state.G.w_dim + 8))  # w and label of 8 images
    steps.path_length_step(state, inputs.micro_batches("path_length", 0, 2), cfg.loss, 0)
    assert distributed.take_traffic() == {"all-gather": (2, 4 * 4), "all-reduce": (1, g)}
    stop = StopRequest(restart_every=1e9)
    try:
        monkeypatch.setattr(distributed.dist, "all_reduce", lambda x, *op, async_op: Done())
        assert stop.ask(lambda: True)() == stop.SAVE and distributed.take_traffic() == {"all-reduce": (1, 8)}
    finally:
        stop.close()


def _gradients(tree, batch_gpu: int) -> list[torch.Tensor]:
    """Gradients of path lengths, G and D in one step, after their mean over processes."""
    cfg, device = from_json(tree), distributed.init("cpu")
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, device)
    world, rank = distributed.world_size(), distributed.rank()
    inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, device, world, rank)
    mine = next(iter(inputs.real_indices(0, len(dataset))))
    images = [dataset[i] for i in mine]
    pixels = torch.stack([torch.from_numpy(x.copy()) for x, _ in images])
    found: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        for optimizer in (state.g_opt, state.d_opt):
            step = functools.partial(_note, optimizer, found)
            patch.setattr(optimizer, "step", step)
        steps.train_step(state, inputs, cfg, pixels, torch.tensor([label for _, label in images]))
    return found


def _note(optimizer: torch.optim.Optimizer, found: list[torch.Tensor]) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found.append(torch.cat([p.grad.flatten().clone() for p in params if p.grad is not None]))


@pytest.fixture(scope="module")
def gradients(toy_zip):
    """Gradients of a step of 8 images in micro-batches of 2, by the number of processes."""
    cfg = config(toy_zip, run__batch_gpu=2, loss__pl_start_kimg=0, loss__pl_decay=0.0)
    return {n: launcher.launch(_gradients, n, to_json(cfg), 2) for n in (1, 2, 4)}


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_are_those_of_one_process_with_accumulation(gradients, processes):
    """Of G, of path lengths and of D: the same micro-batches, added in another order.

    The running mean of path lengths is 0 here: it moves with every micro-batch of all processes.
    """
    assert len(gradients[processes]) == 3
    for one, many in zip(gradients[1], gradients[processes], strict=True):
        assert len(one) == len(many) and float((one - many).norm() / one.norm()) < 1e-5
