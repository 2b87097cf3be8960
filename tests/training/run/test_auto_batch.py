# SPDX-License-Identifier: Apache-2.0
"""--batch-gpu=auto: which number is chosen, and that the search leaves nothing behind."""

import copy
import random

import numpy as np
import pytest
import torch

from tests.toy_runs import assert_equal_states, config
from torch_utils import distributed, launcher, training_stats
from training import build, steps
from training.run import auto_batch, plan, restore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(toy_zip) -> str:
    return toy_zip


def auto(data, **changes):
    return config(
        data,
        run__batch_gpu="auto",
        **changes,
    )


def dataset_of(cfg):
    return build.make_dataset(cfg.data, cfg.run.seed)


@pytest.mark.parametrize(
    ("share", "group", "order"),
    [
        (16, 8, [16, 8, 4, 2, 1]),
        (24, 8, [24, 8, 12, 6, 4, 3, 2, 1]),
        (12, 8, [12, 6, 4, 3, 2, 1]),
        (6, 0, [6, 3, 2, 1]),
        (1, 8, [1]),
    ],
)
def test_the_largest_divisors_come_first_and_whole_groups_before_others(share, group, order):
    assert auto_batch.candidates(share, group) == order


def test_the_first_that_fits_is_taken(data):
    cfg = auto(data, run__batch=64)
    asked = []
    assert auto_batch.largest(cfg, lambda n: asked.append(n) or n <= 20) == (16, 32)
    assert asked == [64, 32, 16]
    assert auto_batch.largest(cfg, lambda n: True) == (64, None)
    runs = cfg.override({"data.cond": True, "data.class_run": 16, "discriminator.mbstd": True})
    assert auto_batch.largest(runs, lambda n: asked.append(n) or n <= 20) == (16, 32)
    asked.clear()
    with pytest.raises(ValueError, match="not even 16 images"):
        auto_batch.largest(runs, lambda n: asked.append(n))
    assert asked == [64, 32, 16], "whole runs only"
    with pytest.raises(ValueError, match="--batch-gpu=auto: not even one image"):
        auto_batch.largest(cfg, lambda n: False)


def test_the_line_says_when_another_number_would_be_another_result(data):
    cfg = auto(data, run__batch=32)
    assert (
        auto_batch.Choice(8, "because").line(cfg)
        == "--batch-gpu=auto: 8 of a process's 32 images per micro-batch (because)"
    )
    assert "batch statistics are computed over these 4" in auto_batch.Choice(4, "because").line(cfg)
    assert "batch statistics" in auto_batch.Choice(8, "because").line(
        auto(data, run__batch=32, discriminator__bn_group=0)
    )


def test_the_estimate_is_held_against_the_free_memory(data, monkeypatch):
    cfg = auto(data, run__batch=64, run__gpus=2)
    G, D = plan.plan(cfg, dataset_of(cfg))
    counts = plan.parameter_counts(D)
    need = plan.estimate_memory_gb(auto_batch.settled(cfg, 8), G, *counts) * 2**30
    monkeypatch.setattr(
        auto_batch.memory, "free_bytes", lambda device: 2 * need * 1.12
    )  # two processes share it
    choice = auto_batch.by_estimate(cfg, G, *counts, CPU)
    assert choice.batch_gpu == 8 and "16 would need" in choice.why
    monkeypatch.setattr(auto_batch.memory, "free_bytes", lambda device: 2 * need * 1.1)
    assert auto_batch.by_estimate(cfg, G, *counts, CPU).batch_gpu == 4
    monkeypatch.setattr(auto_batch.memory, "free_bytes", lambda device: 0)
    with pytest.raises(ValueError, match="not even one image"):
        auto_batch.choose(cfg, dataset_of(cfg), CPU)
    assert "not even one image fits" in auto_batch.planned(cfg, G, *counts).why


def test_a_run_that_the_system_would_kill_is_refused_before_it_begins(data, monkeypatch):
    cfg = config(data, run__batch=64, run__gpus=2)
    G, D = plan.plan(cfg, dataset_of(cfg))
    need = plan.estimate_memory_gb(cfg, G, *plan.parameter_counts(D)) * 2**30
    monkeypatch.setattr(plan.memory, "free_bytes", lambda device: 2 * need / plan.SURELY_TOO_MUCH * 1.01)
    plan.check_memory(cfg, CPU, G, D)
    monkeypatch.setattr(plan.memory, "free_bytes", lambda device: 2 * need / plan.SURELY_TOO_MUCH * 0.99)
    with pytest.raises(
        ValueError,
        match=r"^--batch=64: 32 images per micro-batch need about .* GiB are free: lower",
    ):
        plan.check_memory(cfg, CPU, G, D)
    plan.check_memory(cfg, torch.device("cuda"), G, D)  # which says so itself


def limit_memory(monkeypatch, where, most, tried):
    """The named step runs out of memory, after it has done its work, in rounds of more than `most` images."""
    step = getattr(steps, where)

    def limited(state, some_rounds, *args, **kwargs):
        step(state, some_rounds, *args, **kwargs)
        tried.append((len(some_rounds), len(some_rounds[0].z)))
        if len(some_rounds[0].z) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(steps, where, limited)


def everything_random():
    return torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


@pytest.mark.parametrize(("where", "chosen"), [("g_step", 8), ("path_length_step", 16), ("d_step", 8)])
def test_a_trial_runs_whole_steps_and_leaves_no_trace(data, monkeypatch, where, chosen):
    cfg = auto(data, run__batch=32)
    dataset = dataset_of(cfg)
    state = restore.fresh_state(cfg, dataset, CPU)  # of the run, in this very process
    before = copy.deepcopy(state.state_dict())
    collector = training_stats.Collector()
    training_stats.report("mine", 3)
    known, dice = set(training_stats._names), everything_random()
    tried: list[tuple[int, int]] = []
    limit_memory(monkeypatch, where, 8, tried)
    choice = auto_batch.by_trial(cfg, dataset, CPU)
    assert choice.batch_gpu == chosen and f"; {2 * chosen} ran out of memory" in choice.why
    assert tried[-1] == (
        2,
        chosen // (2 if where == "path_length_step" else 1),
    )  # two rounds, whose second meets the first's gradients
    after = everything_random()
    assert torch.equal(dice[0], after[0]) and np.array_equal(dice[1], after[1]) and dice[2] == after[2]
    assert_equal_states(before, state.state_dict())
    assert all(p.grad is None for p in (*state.g_params.values(), *state.d_params.values()))
    collector.update()
    assert set(training_stats._names) == known and collector["mine"] == 3


def test_an_error_of_another_kind_is_not_taken_for_a_lack_of_memory(data, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(steps, "d_step", broken)
    cfg = auto(data)
    with pytest.raises(RuntimeError, match="shapes"):
        auto_batch.by_trial(cfg, dataset_of(cfg), CPU)
    assert distributed.world_size() == 1


def _one_has_less(tree):
    """Process 1 is out of memory above 2 images, in the middle of a step whose gradients the others would
    wait for.
    """
    from training.config import from_json

    cfg = from_json(tree)
    device = distributed.init("cpu")
    step, rank = steps.apply_gradients, distributed.rank()

    def limited(*args):
        if rank == 1 and rounds_of[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(*args)

    rounds_of: list[int] = []
    train = auto_batch.Trial._train
    auto_batch.Trial._train = lambda self, n: (rounds_of.append(n), train(self, n))[1]
    steps.apply_gradients = limited
    choice = auto_batch.by_trial(cfg, dataset_of(cfg), device)
    everyone = distributed.all_gather_object((choice.batch_gpu, rounds_of))
    assert distributed.world_size() == 2
    return everyone


def test_processes_agree_on_what_the_poorest_can_hold(data):
    from training.config import to_json

    assert (
        launcher.launch(_one_has_less, 2, to_json(auto(data, run__batch=16, run__gpus=2)))
        == [(2, [8, 4, 2])] * 2
    )
