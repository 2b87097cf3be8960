# SPDX-License-Identifier: Apache-2.0
"""TrainState: what is trained, averaged, saved and restored."""

import copy

import pytest
import torch

from tests.toy_runs import assert_equal_states, config
from training import build
from training.run import restore
from training.state import Progress, TrainState


def fresh(data: str, **changes: object) -> TrainState:
    cfg = config(data, **changes)
    return restore.fresh_state(cfg, build.make_dataset(cfg.data, 0), torch.device("cpu"))


@pytest.fixture(scope="module")
def moved(toy_zip) -> TrainState:
    """A state after an optimizer step of each network on random gradients."""
    state = fresh(toy_zip)
    generator = torch.Generator().manual_seed(0)
    for params, optimizer in ((state.g_params, state.g_opt), (state.d_params, state.d_opt)):
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.pl_mean.fill_(0.5)
    state.progress = Progress(nimg=24, step=3, tick=1, best_metric=1.5, best_nimg=16, unscored=True)
    return state


def test_what_is_saved_restores_everything(moved, toy_zip):
    other = fresh(toy_zip, run__seed=1)
    saved = copy.deepcopy(moved.state_dict())
    other.load_state_dict(saved)
    assert_equal_states(other.state_dict(), saved)
    assert other.progress == moved.progress and other.progress is not moved.progress


def test_learning_rates_are_those_of_the_options_and_not_of_the_file(moved, toy_zip):
    other = fresh(toy_zip, optim__glr=0.01)
    lr = other.g_opt.param_groups[0]["lr"]
    other.load_state_dict(copy.deepcopy(moved.state_dict()))
    assert other.g_opt.param_groups[0]["lr"] == lr != moved.g_opt.param_groups[0]["lr"]


def test_tensors_of_another_network_are_refused(moved, toy_zip):
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh(toy_zip, generator__cmax=8).load_state_dict(copy.deepcopy(moved.state_dict()))


def test_the_average_follows_parameters_and_copies_buffers(toy_zip):
    state = fresh(toy_zip)
    with torch.no_grad():
        for tensor in [*state.G.parameters(), *state.G.buffers()]:
            tensor.fill_(1)
        for tensor in [*state.G_ema.parameters(), *state.G_ema.buffers()]:
            tensor.fill_(0)
    state.update_ema(0.75)
    assert all((p == 0.25).all() for p in state.G_ema.parameters())
    assert all((b == 1).all() for b in state.G_ema.buffers())


def test_frozen_parameters_have_no_optimizer(toy_zip):
    state = fresh(toy_zip)
    state.G.mapping.requires_grad_(False)
    cfg = config(toy_zip)
    again = TrainState.create(state.G, state.D, cfg.optim, cfg.loss.pl_interval)
    names = {name for name, _ in state.G.named_parameters()}
    assert set(again.g_params) == {name for name in names if not name.startswith("mapping.")} != names
    assert len(again.g_opt.param_groups[0]["params"]) == len(again.g_params)
    assert not any(p.requires_grad for p in again.G_ema.parameters())
