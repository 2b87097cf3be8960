# SPDX-License-Identifier: Apache-2.0
"""Random draws that are pure functions of (seed, purpose, step, sample, position).

They do not depend on the number of ranks, the batch size or earlier draws.

This file computes Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) over
arrays of counters. The key is 64 bits of sha256(seed, purpose); the counter is (block, sample, step low, step
high); a block is four 32-bit words. Words are converted to floats only with additions, multiplications,
divisions and square roots, which IEEE 754 rounds exactly. A draw therefore has the same bits on every machine
and with every version of numpy. numpy's own `Generator` promises neither: its distributions may change
between versions, and log and cos differ in the last bit between processors.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # the key's increment per round
_ROUNDS = 10
_Convert = Callable[[Sequence[np.ndarray], np.ndarray], None]  # (words of the blocks, output)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_CHUNK = 8192  # blocks per chunk: the ten work arrays fit into the processor's cache

# log(m) = 2 atanh(s), s = (m - 1)/(m + 1), |s| <= 0.172: the first omitted term is below 1e-12. For sin and
# cos on +-pi/4 it is below 1e-11.
_ATANH = tuple(2.0 / (2 * k + 1) for k in range(7))
_SIN = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(7))
_COS = tuple((-1) ** k / math.factorial(2 * k) for k in range(7))


def key_of(seed: int, purpose: str) -> int:
    """Return the 64-bit key of a stream: the first 8 bytes of sha256("seed:purpose").

    It is equal in all processes and on all machines.
    """
    return int.from_bytes(hashlib.sha256(f"{int(seed)}:{purpose}".encode()).digest()[:8], "little")


def philox_(
    c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, c3: np.ndarray, key: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute Philox4x32-10 of 32-bit counters.

    Args:
        c0: first word of the counters, as a uint64 array. All four arrays are overwritten.
        c1: second word.
        c2: third word.
        c3: fourth word.
        key: 64-bit key.

    Returns:
        Four uint64 arrays of 32-bit words.
    """
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.right_shift(p1, _32, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.bitwise_and(p1, _LOW, out=c1)
        np.right_shift(p0, _32, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(p0, _LOW, out=c3)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _polynomial(x: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    y = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y *= x
        y += c
    return y


def _log(u: np.ndarray) -> np.ndarray:
    m, e = np.frexp(u)
    small = m < math.sqrt(0.5)
    m = np.where(small, m + m, m)
    s = (m - 1.0) / (m + 1.0)
    log_u: np.ndarray = (e - small) * math.log(2.0) + s * _polynomial(s * s, _ATANH)
    return log_u


def _box_muller(radius_word: np.ndarray, angle_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn two arrays of 32-bit words into two independent N(0, 1) float64 arrays (Box and Muller, 1958).

    All values satisfy |x| < 6.8.
    """
    u = (radius_word.astype(np.float64) + 0.5) * 2.0**-32  # in (0, 1)
    r = np.sqrt(-2.0 * _log(u))
    # The low 30 bits give an angle within +-pi/4 of an axis; the two high bits select the axis.
    x = ((angle_word & np.uint64(0x3FFFFFFF)).astype(np.float64) + (0.5 - 2.0**29)) * (math.pi / 2 * 2.0**-30)
    x2 = x * x
    along = r * _polynomial(x2, _COS)
    across = r * x * _polynomial(x2, _SIN)
    np.negative(along, out=along, where=(angle_word & np.uint64(1 << 31)) != 0)
    swap = (angle_word & np.uint64(1 << 30)) != 0
    return np.where(swap, across, along), np.where(swap, along, across)


def _to_normal(words: Sequence[np.ndarray], out: np.ndarray) -> None:
    out[:, 0], out[:, 1] = _box_muller(words[0], words[1])
    out[:, 2], out[:, 3] = _box_muller(words[2], words[3])


def _to_uniform(words: Sequence[np.ndarray], out: np.ndarray) -> None:
    for i, word in enumerate(words):
        # 24 bits: exact, and always less than 1.
        np.multiply(word >> np.uint64(8), 2.0**-24, out=out[:, i], casting="same_kind")


def _to_words64(words: Sequence[np.ndarray], out: np.ndarray) -> None:
    for i in range(2):
        np.bitwise_or(words[2 * i] << _32, words[2 * i + 1], out=out[:, i])


def _check_samples(samples: Sequence[int]) -> np.ndarray:
    index = np.asarray(samples)
    if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)):
        raise ValueError(
            f"samples must be a sequence of integers, got shape {index.shape} and type {index.dtype}"
        )
    if index.size and not (int(index.min()) >= 0 and int(index.max()) < 2**32):
        raise ValueError(
            f"sample indices must lie in [0, 2**32), got {int(index.min())} to {int(index.max())}"
        )
    return index.astype(np.uint64)


def _draw(
    key: int,
    step: int,
    samples: np.ndarray,
    values: int,
    convert: _Convert,
    per_block: int,
    dtype: type[np.generic],
) -> np.ndarray:
    """Return draws [len(samples), values]; value v of a sample is from block v // per_block."""
    if not 0 <= step < 2**64:
        raise ValueError(f"step must lie in [0, 2**64), got {step}")
    blocks = -(-values // per_block)
    if blocks > 2**32:
        raise ValueError(f"{values} values per sample exceed the generator's 2**32 blocks")
    total = len(samples) * blocks
    out = np.empty((total, per_block), dtype=dtype)
    for start in range(0, total, _CHUNK):
        stop = min(start + _CHUNK, total)
        sample, block = np.divmod(np.arange(start, stop, dtype=np.uint64), np.uint64(blocks))
        low, high = np.full_like(block, step & 0xFFFFFFFF), np.full_like(block, step >> 32)
        convert(philox_(block, samples[sample.astype(np.int64)], low, high, key), out[start:stop])
    return out.reshape(len(samples), blocks * per_block)[:, :values]


def _floats(
    convert: _Convert, seed: int, purpose: str, step: int, samples: Sequence[int], shape: Sequence[int]
) -> torch.Tensor:
    index = _check_samples(samples)
    values = _draw(key_of(seed, purpose), step, index, math.prod(shape), convert, 4, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(len(index), *shape)


def normal(
    seed: int, purpose: str, step: int, samples: Sequence[int], shape: Sequence[int] = ()
) -> torch.Tensor:
    """Draw from N(0, 1).

    Args:
        seed: seed of the run.
        purpose: name of the stream; other purposes give independent draws.
        step: index of the step in [0, 2**64).
        samples: global indices of the samples within the step, each in [0, 2**32).
        shape: shape per sample.

    Returns:
        float32 [len(samples), *shape] on the CPU.

    Raises:
        ValueError: `step` or `samples` is outside its range.
    """
    return _floats(_to_normal, seed, purpose, step, samples, shape)


def uniform(
    seed: int, purpose: str, step: int, samples: Sequence[int], shape: Sequence[int] = ()
) -> torch.Tensor:
    """Draw uniformly from the multiples of 2**-24 in [0, 1).

    Arguments, result and errors are those of `normal`.
    """
    return _floats(_to_uniform, seed, purpose, step, samples, shape)


def integers(seed: int, purpose: str, step: int, samples: Sequence[int], high: int) -> torch.Tensor:
    """Draw integers uniformly from [0, high), with a bias below high / 2**64.

    Args:
        seed: seed of the run.
        purpose: name of the stream.
        step: index of the step.
        samples: indices of the samples, as for `normal`.
        high: exclusive upper bound in [1, 2**32].

    Returns:
        int64 [len(samples)] on the CPU.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 < high <= 2**32:
        raise ValueError(f"high must lie in [1, 2**32], got {high}")
    words = _draw(key_of(seed, purpose), step, _check_samples(samples), 1, _to_words64, 2, np.uint64)[:, 0]
    # floor(word * high / 2**64) without 128-bit products (Lemire, 2019, without rejection).
    product = (words >> _32) * np.uint64(high) + (((words & _LOW) * np.uint64(high)) >> _32)
    return torch.from_numpy((product >> _32).astype(np.int64))


def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """Draw a random permutation of range(n) as int64 [n]: the order of n random 64-bit keys.

    It depends only on (seed, purpose, epoch, n).
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    keys = _draw(key_of(seed, purpose), epoch, np.zeros(1, dtype=np.uint64), n, _to_words64, 2, np.uint64)[0]
    return np.argsort(keys, kind="stable").astype(np.int64)


def ranks_within(groups: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Draw a random order of the items of every group.

    Args:
        groups: Group of each item, int64 [n].
        seed: Seed of the order.
        purpose: As for `permutation`.

    Returns:
        The place of each item among those of its group, int64 [n]: those below k are a random choice of k
        items per group.
    """
    order = permutation(seed, purpose, 0, len(groups))
    by_group = order[np.argsort(groups[order], kind="stable")]
    ranks = np.empty(len(groups), np.int64)
    ranks[by_group] = np.arange(len(groups)) - np.searchsorted(groups[by_group], groups[by_group])
    return ranks


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU torch.Generator for initial weights.

    Its draws are torch's and can change with the torch version.
    """
    return torch.Generator().manual_seed(key_of(seed, purpose) >> 1)  # manual_seed accepts 63 bits
