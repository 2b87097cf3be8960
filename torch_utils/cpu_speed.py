# SPDX-License-Identifier: Apache-2.0
"""Chooses the fastest implementations of a CPU's convolutions, products and attention by measuring them once.

Processors differ by more than their instruction sets tell: bfloat16 is twice as fast as float32 with
avx512_bf16 or AMX and ten times slower where it is emulated, and float32 products of MKL run at half speed on
AMD processors with AVX-512. The measurement takes less than a second of one thread. Its result is a file in
the cache folder, so that all processes of a run, and the runs that resume it, compute with the same
operations. A faster alternative is chosen only if it is at least MARGIN times as fast, so that a busy machine
does not change the choice. Without a usable cache folder nothing is measured, and torch's defaults are used.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from dnnlib import trust
from dnnlib.util import atomic_write, code_cache_path, file_lock
from torch_utils.ops.backend import weight_gradient, winograd

MARGIN = 1.25
_LOCK_SECONDS = 60.0
_TRIALS = 3

Work = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a CPU computes with.

    Attributes:
        bf16: bfloat16 for the layers that may run in reduced precision.
        onednn_linear: oneDNN for float32 linear layers with constant weights, not MKL.
        product_gradients: weight gradients of float32 convolutions as matrix products.
        product_gradients_bf16: the same in bfloat16.
        winograd: Winograd's algorithm for wide 3x3 convolutions in float32.
        plain_attention: attention in bfloat16 by matrix products and softmax.
        bf16_ratio: speed of bfloat16 relative to float32; 0 = not measured.
    """

    bf16: bool = False
    onednn_linear: bool = False
    product_gradients: bool = False
    product_gradients_bf16: bool = False
    winograd: bool = False
    plain_attention: bool = False
    bf16_ratio: float = 0.0


def _machine() -> str:
    """Return 16 hex digits that identify the processor, torch and these measurements."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        first = []
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    facts = [line for line in first if line.partition(":")[0].strip() in wanted]
    version = (torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.machine())
    return hashlib.sha256(repr((facts, version, Path(__file__).read_bytes())).encode()).hexdigest()[:16]


def _seconds(*works: Work) -> list[float]:
    """Return the smallest time of this thread for each work, measured in turns after one run of each.

    A work that takes ten times as long as the first in its first run is not repeated.
    """

    def once(work: Work) -> float:
        start = time.thread_time()
        work()
        return time.thread_time() - start

    for work in works[:1]:
        work()
    best = [once(work) for work in works]
    for _ in range(_TRIALS):
        for i, work in enumerate(works):
            if i == 0 or best[i] < 10 * best[0]:
                best[i] = min(best[i], once(work))
    return best


def _faster(new: float, old: float) -> bool:
    return new * MARGIN < old


def _convolution(dtype: torch.dtype) -> tuple[Work, Work]:
    """Return a convolution's weight gradient by torch and by products; heads have such shapes."""
    x, weight, grad = torch.ones(4, 256, 16, 16), torch.ones(256, 256, 4, 4), torch.ones(4, 256, 8, 8)
    x, weight, grad = (t.to(dtype, memory_format=torch.channels_last) for t in (x, weight, grad))
    return (
        lambda: weight_gradient.by_torch(x, weight, grad, (2, 2), (1, 1)),
        lambda: weight_gradient.by_products(x, weight, grad, (2, 2), (1, 1)),
    )


def _both(dtype: torch.dtype) -> Work:
    """Return a convolution and a product in a type."""
    x = torch.ones(2, 96, 20, 20).to(dtype, memory_format=torch.channels_last)
    weight = torch.ones(96, 96, 3, 3).to(dtype, memory_format=torch.channels_last)
    a, b = torch.ones(256, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
    return lambda: (F.conv2d(x, weight), F.linear(a, b))


@torch.no_grad()
def measure() -> Choices:
    """Measure the alternatives on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        full, half = _seconds(_both(torch.float32), _both(torch.bfloat16))
        bf16 = _faster(half, full)
        plain_attention = product_bf16 = False
        if bf16:
            direct, products = _seconds(*_convolution(torch.bfloat16))
            product_bf16 = _faster(products, direct)
            q = torch.ones(2, 12, 197, 64, dtype=torch.bfloat16)
            fused, plain = _seconds(
                lambda: F.scaled_dot_product_attention(q, q, q),
                lambda: (q * 0.125 @ q.transpose(-2, -1)).softmax(dim=-1) @ q,
            )
            plain_attention = _faster(plain, fused)
        direct, products = _seconds(*_convolution(torch.float32))
        return Choices(
            bf16=bf16,
            onednn_linear=_onednn_is_faster(),
            product_gradients=_faster(products, direct),
            product_gradients_bf16=product_bf16,
            winograd=_winograd_is_faster(),
            plain_attention=plain_attention,
            bf16_ratio=round(full / half, 2),
        )
    finally:
        torch.set_num_threads(threads)


def has_onednn() -> bool:
    """Return whether this torch has oneDNN's linear layer."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute F.linear through oneDNN."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _onednn_is_faster() -> bool:
    """Return whether oneDNN's linear layer, forward and input gradient, is faster than the default."""
    if not has_onednn():
        return False
    x, weight, bias = torch.ones(256, 512), torch.ones(1024, 512), torch.ones(1024)
    grad = torch.ones(256, 1024)
    default, onednn = _seconds(
        lambda: (F.linear(x, weight, bias), grad @ weight),
        lambda: (onednn_linear(x, weight, bias), onednn_linear(grad, weight.t(), None)),
    )
    return _faster(onednn, default)


def _winograd_is_faster() -> bool:
    """Return whether a wide convolution is faster by Winograd's algorithm, where freed memory is reused."""
    x, weight = torch.ones(2, 256, 34, 34), torch.ones(256, 256, 3, 3)
    # Unlike training and generation, this process may return freed memory to the system, which takes a
    # quarter of the time. glibc returns at most twice the size of a mapped block that was freed before.
    torch.empty(7 << 20)
    direct, by_winograd = _seconds(lambda: F.conv2d(x, weight), lambda: winograd.convolve(x, weight, (0, 0)))
    return _faster(by_winograd, direct)


def _read(path: Path) -> Choices | None:
    """Return the choices in a file that only this user can change, or None."""
    if not path.is_file() or trust.untrusted_reason(path):
        return None
    try:
        found = json.loads(path.read_text())
        ratio = float(found.pop("bf16_ratio"))
        names = {field.name for field in dataclasses.fields(Choices)} - {"bf16_ratio"}
        if found.keys() != names or not all(isinstance(v, bool) for v in found.values()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Choices(**found, bf16_ratio=ratio) if math.isfinite(ratio) else None


@functools.cache
def choices() -> Choices:
    """Return this machine's choices, from the cache folder or measured; measured ones are stored there."""
    folder = Path(code_cache_path("cpu-speed"))
    path = folder / f"{_machine()}.json"
    found = _read(path)
    if found is not None:
        return found
    try:
        trust.make_private(folder)
        if trust.untrusted_reason(folder) or not os.access(folder, os.W_OK):
            return Choices()
        with file_lock(folder / f"{path.name}.lock", "measures the CPU", _LOCK_SECONDS):
            found = _read(path)
            if found is None:
                found = measure()
                with atomic_write(path, "w") as f:
                    f.write(json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    except OSError:
        return found or Choices()
    return found


def describe() -> str:
    """Return the measured ratio and its consequence in one line."""
    found = choices()
    if found.bf16_ratio == 0:
        return "float32 (bfloat16 was not measured: no writable cache folder)"
    chosen = "bfloat16" if found.bf16 else "float32"
    return f"{chosen} (bfloat16 is {found.bf16_ratio:g} times as fast as float32 on this CPU)"
