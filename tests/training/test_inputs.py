# SPDX-License-Identifier: Apache-2.0
"""Inputs of a step: the same samples whatever the number of processes, the same rounds in every process."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.dataset import BalancedClasses
from training.inputs import InputSource, micro_batch_samples


def source(
    batch: int, processes: int, rank: int, batch_gpu: int, balanced: BalancedClasses | None = None
) -> InputSource:
    return InputSource(
        seed=1,
        z_dim=4,
        labels=np.arange(6),
        backbones=("net",),
        device=torch.device("cpu"),
        batch=batch,
        processes=processes,
        rank=rank,
        batch_gpu=batch_gpu,
        balanced=balanced,
    )


@given(
    processes=st.integers(1, 4),
    per_round=st.integers(1, 6),
    rounds=st.integers(1, 4),
    shrink=st.sampled_from([1, 2, 3]),
)
def test_processes_share_a_step_evenly(processes, per_round, rounds, shrink):
    batch = processes * per_round * rounds
    seen = [
        [r.samples for r in source(batch, processes, rank, per_round).micro_batches("G", 0, shrink)]
        for rank in range(processes)
    ]
    assert (
        len({len(s) for s in seen}) == 1
    )  # another number of rounds would leave one process waiting for the others
    assert (
        len({len(samples) for s in seen for samples in s}) == 1
    )  # rounds of other sizes would weigh their samples differently
    used = sorted(i for s in seen for samples in s for i in samples)
    assert used == list(range(max(batch // (shrink * processes), 1) * processes))
    assert max(len(samples) for s in seen for samples in s) <= max(per_round // shrink, 1)


@pytest.mark.parametrize(("processes", "batch_gpu"), [(1, 4), (2, 2), (2, 4), (4, 2)])
def test_draws_do_not_depend_on_the_split(processes, batch_gpu):
    whole = source(8, 1, 0, 8).micro_batches("D", 80)[0]
    for rank in range(processes):
        for part in source(8, processes, rank, batch_gpu).micro_batches("D", 80):
            assert torch.equal(part.z, whole.z[list(part.samples)])
            assert torch.equal(part.labels, whole.labels[list(part.samples)])
            assert torch.equal(part.draws["net"], whole.draws["net"][list(part.samples)])


def test_real_images_of_all_processes_are_the_batch():
    whole = next(source(8, 1, 0, 8).real_indices(16, 100))
    parts = [next(source(8, 2, rank, 2).real_indices(16, 100)) for rank in range(2)]
    for rank in range(2):
        assert parts[rank].tolist() == whole[np.concatenate(micro_batch_samples(8, 2, rank, 2))].tolist()
    assert sorted(np.concatenate(parts)) == sorted(whole)


def test_real_rounds_pair_images_labels_and_draws():
    """Split over processes and rounds, every real image keeps its label and its draw."""
    pixels = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(-1, 3, 4, 4)
    labels = torch.arange(8) % 6
    (whole,) = source(8, 1, 0, 8).real_micro_batches(16, pixels, labels)
    torch.testing.assert_close(whole.images, pixels / 127.5 - 1)
    for rank in range(2):
        split = micro_batch_samples(8, 2, rank, 2)
        mine = np.concatenate(split)
        for samples, part in zip(
            split, source(8, 2, rank, 2).real_micro_batches(16, pixels[mine], labels[mine]), strict=True
        ):
            assert torch.equal(part.images, whole.images[samples])
            assert torch.equal(part.labels, labels[samples])
            assert torch.equal(part.draws["net"], whole.draws["net"][samples])


def test_processes_share_runs_of_a_class():
    labels = np.arange(96) % 6
    whole = dataclasses.replace(source(16, 1, 0, 16), labels=labels, class_run=4)
    indices = next(whole.real_indices(0, 96))
    assert (labels[indices].reshape(4, 4) == labels[indices][::4, None]).all()
    for rank in range(2):
        part = dataclasses.replace(source(16, 2, rank, 4), labels=labels, class_run=4)
        samples = np.concatenate(micro_batch_samples(16, 2, rank, 4))
        assert next(part.real_indices(0, 96)).tolist() == indices[samples].tolist()


def test_balanced_classes_in_real_and_generated_samples():
    labels = np.array([0] * 90 + [2] * 9 + [5])
    balanced = BalancedClasses(labels)
    drawn = torch.cat(
        [source(60, 1, 0, 60, balanced).micro_batches("G", nimg)[0].labels for nimg in range(0, 6000, 60)]
    )
    share = torch.bincount(drawn, minlength=6) / len(drawn)
    assert (
        share[[1, 3, 4]].sum() == 0 and (share[[0, 2, 5]] - 1 / 3).abs().max() < 0.02
    )  # 6,000 draws: a standard deviation of 0.006
    whole = np.concatenate(
        [i for i, _ in zip(source(60, 1, 0, 60, balanced).real_indices(0, 100), range(17), strict=False)]
    )
    assert np.bincount(labels[whole]).tolist() == [340, 0, 340, 0, 0, 340]
    for rank in range(2):
        part = next(source(8, 2, rank, 2, balanced).real_indices(16, 100))
        assert (
            part.tolist()
            == next(source(8, 1, 0, 8, balanced).real_indices(16, 100))[
                np.concatenate(micro_batch_samples(8, 2, rank, 2))
            ].tolist()
        )
