# SPDX-License-Identifier: Apache-2.0
"""Random draws: the published Philox answers, distributions, and independence of batch, order and shape."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torch_utils import rng

# Known answers of Random123's philox4x32_10: counter, key (low word first), result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_known_answers(counter, key, expected):
    words = rng.philox_(*(np.array([c], dtype=np.uint64) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(w[0]) for w in words) == expected


def test_pinned_bits():
    """A change of any of these breaks the resumption of every run that exists."""
    assert rng.key_of(0, "z") == 0x5FAD5BBCB35844B3
    assert rng.normal(0, "z", 3, [0, 7], (2,)).view(torch.int32).tolist() == [
        [1067024495, 1039790306],
        [-1092042106, -1083537774],
    ]
    assert rng.uniform(1, "u", 0, [5]).view(torch.int32).tolist() == [1047444060]
    assert rng.integers(2, "c", 2**40, range(6), 1000).tolist() == [626, 104, 471, 83, 515, 995]
    assert rng.permutation(0, "epoch", 1, 10).tolist() == [8, 3, 2, 0, 1, 6, 9, 7, 5, 4]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 2**40),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    st.integers(0, 30),
)
def test_a_sample_depends_on_nothing_but_itself(seed, step, samples, size):
    together = rng.normal(seed, "p", step, samples, (size,))
    assert together.shape == (len(samples), size) and together.dtype == torch.float32
    for row, sample in zip(together, samples, strict=True):
        assert torch.equal(row, rng.normal(seed, "p", step, [sample], (size,))[0])
        assert torch.equal(
            row, rng.normal(seed, "p", step, [sample], (size + 5,))[0, :size]
        )  # nor on how much is drawn


def test_chunks_do_not_show(monkeypatch):
    whole = rng.normal(0, "p", 1, range(50), (3, 5))
    monkeypatch.setattr(rng, "_CHUNK", 7)
    assert torch.equal(whole, rng.normal(0, "p", 1, range(50), (3, 5)))


def test_every_argument_matters():
    base = rng.normal(0, "a", 0, [0], (8,))
    others = [
        rng.normal(1, "a", 0, [0], (8,)),
        rng.normal(0, "b", 0, [0], (8,)),
        rng.normal(0, "a", 1, [0], (8,)),
        rng.normal(0, "a", 2**32, [0], (8,)),
        rng.normal(0, "a", 0, [1], (8,)),
    ]
    flat = torch.cat([base, *others]).flatten()
    assert flat.unique().numel() == flat.numel()


def test_normal_distribution():
    x = rng.normal(5, "distribution", 0, range(100), (50, 40)).double()
    n = x.numel()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(x.mean()) < 4 / math.sqrt(n) and abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    pairs = x.reshape(
        -1, 2
    )  # the two numbers of one Box-Muller pair, and of neighbouring positions and samples
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 4 / math.sqrt(n / 2)
    assert abs((pairs[:, 0] ** 2 * pairs[:, 1] ** 2).mean() - 1) < 4 * math.sqrt(8 / (n / 2))
    assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(n)
    angles = torch.atan2(pairs[:, 0], pairs[:, 1]).numpy() / (2 * math.pi) + 0.5
    assert stats.kstest(angles, "uniform").pvalue > 1e-3


def test_box_muller_equals_the_formula():
    words = np.random.RandomState(0).randint(0, 2**32, size=(2, 10000), dtype=np.uint64)
    words[:, :3] = [[0, 2**32 - 1, 1], [0, 2**32 - 1, 2**31]]
    a, b = rng._box_muller(*words)
    u = (words[0].astype(np.float64) + 0.5) / 2**32
    assert np.isfinite(a).all() and np.abs(a).max() < 6.8
    np.testing.assert_allclose(a**2 + b**2, -2 * np.log(u), rtol=1e-9, atol=1e-15)


def test_uniform_distribution():
    u = rng.uniform(5, "distribution", 0, range(100), (2000,))
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


def test_integers():
    c = rng.integers(0, "labels", 0, range(20000), 10)
    assert c.dtype == torch.int64 and c.shape == (20000,)
    assert stats.chisquare(c.bincount(minlength=10).numpy()).pvalue > 1e-3
    assert torch.equal(c[100:200], rng.integers(0, "labels", 0, range(100, 200), 10))
    assert rng.integers(0, "labels", 0, range(50), 1).unique().tolist() == [0]
    assert rng.integers(0, "labels", 0, range(50), 2**32).max() > 2**31


def test_permutation():
    a, b = rng.permutation(0, "epoch", 0, 1001), rng.permutation(0, "epoch", 1, 1001)
    assert a.dtype == np.int64 and sorted(a) == list(range(1001)) and (a != b).any()
    assert rng.permutation(0, "epoch", 0, 0).tolist() == [] and rng.permutation(
        0, "epoch", 0, 1
    ).tolist() == [0]
    first = np.bincount([rng.permutation(s, "epoch", 0, 4)[0] for s in range(2000)], minlength=4)
    assert stats.chisquare(first).pvalue > 1e-3


def test_ranks_within_groups():
    groups = np.random.RandomState(0).randint(0, 4, 1000)
    ranks = rng.ranks_within(groups, 0, "choice")
    for group in range(4):
        found = ranks[groups == group]
        assert sorted(found) == list(range(len(found))) and (np.diff(found) < 0).any()
    assert ranks.dtype == np.int64 and rng.ranks_within(groups[:0], 0, "choice").tolist() == []
    assert np.array_equal(ranks, rng.ranks_within(groups, 0, "choice"))
    assert not np.array_equal(ranks, rng.ranks_within(groups, 1, "choice"))


def test_empty_and_scalar_shapes():
    assert rng.normal(0, "p", 0, [], (3,)).shape == (0, 3)
    assert rng.normal(0, "p", 0, [1, 2]).shape == (2,)
    assert rng.normal(0, "p", 0, [1, 2], (0, 3)).shape == (2, 0, 3)


def test_torch_generator():
    draw = [
        torch.randn(4, generator=rng.torch_generator(*args))
        for args in [(0, "G"), (0, "G"), (1, "G"), (0, "D")]
    ]
    assert (
        torch.equal(draw[0], draw[1])
        and not torch.equal(draw[0], draw[2])
        and not torch.equal(draw[0], draw[3])
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: rng.normal(0, "p", 0, [-1]),
        lambda: rng.normal(0, "p", 0, [2**32]),
        lambda: rng.normal(0, "p", -1, [0]),
        lambda: rng.normal(0, "p", 0, [0.5]),
        lambda: rng.integers(0, "p", 0, [0], 0),
        lambda: rng.integers(0, "p", 0, [0], 2**32 + 1),
        lambda: rng.permutation(0, "p", 0, -1),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(ValueError):
        call()
