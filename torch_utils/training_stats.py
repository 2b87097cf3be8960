# SPDX-License-Identifier: Apache-2.0
"""Training statistics with StyleGAN's interface: call report() anywhere, read a Collector once per tick.

report() adds count, sum and sum of squares to a per-device accumulator and never waits for the device.
Collector.update() combines the accumulators of all processes. Sums on the host are exact, so a checkpoint in
the middle of an interval does not change them. Accumulators on other devices are float64, or float32 if the
device has no float64 (mps). Non-finite values raise no error: the mean of their interval is not finite, and
the next interval is not affected.
"""

import functools
import math
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dnnlib.util import EasyDict
from torch_utils import distributed

_Sum = tuple[float, ...]  # an exact sum: floats whose bits do not overlap, smallest first
_Moments = tuple[float, _Sum, _Sum]  # count, sum, sum of squares
_ZERO: _Moments = (0.0, (), ())

_host: dict[str, _Moments] = {}  # CPU values since the last synchronisation
_device: dict[torch.device, dict[str, torch.Tensor]] = {}  # the same for tensors on other devices
_names: set[str] = set()  # all names ever reported, after a synchronisation those of all processes
_samples: dict[str, torch.Tensor] = {}  # the newest values of `sample`
_collectors: "weakref.WeakSet[Collector]" = weakref.WeakSet()
_recorded: list[Callable[[], object]] | None = None  # what `recorded` returns, within it
_process: tuple[int, bool] | None = None  # (rank, whether to synchronise), set by init_multiprocessing()


def init_multiprocessing(rank: int, sync_device: torch.device | None) -> None:
    """Override the rank from torch_utils.distributed and whether update() synchronises processes.

    Args:
        rank: rank of this process.
        sync_device: None = update() does not communicate with other processes.
    """
    global _process
    _process = (rank, sync_device is not None)


def _rank() -> int:
    return distributed.rank() if _process is None else _process[0]


@torch.no_grad()
def report(name: str, value: Any) -> Any:
    """Add every element of `value` to the statistic `name`.

    Args:
        name: name of the statistic.
        value: tensor, array, number or nested list. An empty value only registers the name.

    Returns:
        `value`.
    """
    _names.add(name)
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        x = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64).reshape(-1)
        if x.numel():
            # torch.full, because creating a tensor from Python numbers would wait for the copy to the device.
            moments = torch.stack(
                [torch.full((), x.numel(), dtype=x.dtype, device=x.device), x.sum(), x.square().sum()]
            )
            _now_or_later(_add_on_device, name, moments)
        return value
    if _recorded is not None and isinstance(value, torch.Tensor):
        _now_or_later(report, name, value.detach())
        return value
    array = (
        value.detach().to(torch.float64).numpy()
        if isinstance(value, torch.Tensor)
        else np.asarray(value, dtype=np.float64)
    )
    if array.size:
        with np.errstate(invalid="ignore", over="ignore"):
            exact = float(array.size), (float(array.sum()),), (float(np.square(array).sum()),)
            _host[name] = _add(_host.get(name, _ZERO), exact)
    return value


def _add_on_device(name: str, moments: torch.Tensor) -> None:
    accumulated = _device.setdefault(moments.device, {})
    accumulated[name] = moments.clone() if name not in accumulated else accumulated[name] + moments


def _now_or_later(add: Callable[..., object], name: str, x: torch.Tensor) -> None:
    if _recorded is None:
        add(name, x)
    else:
        _recorded.append(functools.partial(add, name, x))


@contextmanager
def recorded() -> Iterator[list[Callable[[], object]]]:
    """Add no tensor that is reported in this context; return the functions that add them.

    For tensors whose values come later, and change: a CUDA graph computes them again in each replay. Numbers
    and arrays are added at once.
    """
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def sample(name: str, value: torch.Tensor) -> None:
    """Keep a tensor, in place of the one before, for a histogram of `samples`."""
    _now_or_later(_samples.__setitem__, name, value.detach())


def samples() -> dict[str, torch.Tensor]:
    """Return the newest tensor of every name in this process, flat, on its device."""
    return {name: x.flatten() for name, x in _samples.items()}


@contextmanager
def unrecorded() -> Iterator[None]:
    """Discard values and new names that are reported in this context."""
    host, device, names = dict(_host), {device: dict(sums) for device, sums in _device.items()}, set(_names)
    kept = dict(_samples)
    try:
        yield
    finally:
        _host.clear()
        _host.update(host)
        _device.clear()
        _device.update(device)
        _names.intersection_update(names)
        _samples.clear()
        _samples.update(kept)


def report0(name: str, value: Any) -> Any:
    """Call report() in process 0; the other processes only register the name. Returns `value`."""
    report(name, value if _rank() == 0 else [])
    return value


def _synchronise() -> None:
    """Add the values that all processes reported since the last call to every collector. One collective."""
    local = dict(_host)
    for accumulated in _device.values():
        moments = torch.stack(list(accumulated.values())).cpu().tolist()  # one copy per device
        for name, (number, total, squares) in zip(accumulated, moments, strict=True):
            local[name] = _add(local.get(name, _ZERO), (number, (total,), (squares,)))
    for name in _names:
        local.setdefault(name, _ZERO)
    _host.clear()
    _device.clear()
    everyone = distributed.all_gather_object(local) if _process is None or _process[1] else [local]
    together: dict[str, _Moments] = {}
    for part in everyone:
        for name, added in part.items():
            together[name] = _add(together.get(name, _ZERO), added)
    _names.update(together)
    for collector in _collectors:
        for name, added in together.items():
            collector._pending[name] = _add(collector._pending.get(name, _ZERO), added)


def _add(a: _Moments, b: _Moments) -> _Moments:
    return a[0] + b[0], _exact_sum(a[1], b[1]), _exact_sum(a[2], b[2])


def _exact_sum(a: _Sum, b: _Sum) -> _Sum:
    """Return a + b without rounding, or a single float if the sum is not finite.

    The algorithm is from Shewchuk, "Adaptive precision floating-point arithmetic" (1997).
    """
    parts = list(a)
    for x in b:
        kept = []
        for part in parts:
            large, small = (x, part) if abs(x) >= abs(part) else (part, x)
            x = large + small
            lost = small - (x - large)
            if lost:
                kept.append(lost)
        parts = [*kept, x]
    total = sum(parts)
    return tuple(parts) if math.isfinite(total) else (sum(a) + sum(b),)


def _read_moments(saved: Any) -> _Moments:
    """Convert the moments in a checkpoint; version 0.1 stored rounded sums."""
    number, *sums = saved
    total, squares = (tuple(x) if isinstance(x, list | tuple) else (x,) for x in sums)
    return number, total, squares


class Collector:
    """Statistics of the interval between the last two calls of update().

    Every process must create and update the same collectors in the same order. Creating one is a collective
    operation, too.

    Args:
        regex: the collector has the statistics whose full name matches.
        keep_previous: a statistic that was not reported in an interval keeps its previous value instead of
            becoming NaN.
    """

    def __init__(self, regex: str = ".*", keep_previous: bool = True) -> None:
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._pending: dict[str, _Moments] = {}
        self._current: dict[str, _Moments] = {}
        self.update()  # earlier values belong to the collectors that already exist
        self._current = {}
        _collectors.add(self)

    def names(self) -> list[str]:
        """Return the matching names that are known so far, sorted."""
        return sorted(name for name in _names if self._regex.fullmatch(name))

    def update(self) -> None:
        """End the interval. The other methods then return the statistics since the previous call.

        All processes must call it.
        """
        _synchronise()
        for name, moments in self._pending.items():
            if moments[0] or not self._keep_previous:
                self._current[name] = moments
        self._pending = {}

    def state_dict(self) -> dict[str, dict[str, _Moments]]:
        """Return the sums of the finished and the running interval, for a checkpoint.

        All processes must call it.
        """
        _synchronise()
        return {"current": dict(self._current), "pending": dict(self._pending)}

    def load_state_dict(self, state: dict[str, dict[str, _Moments]]) -> None:
        """Restore the result of state_dict(). Values reported before the call are discarded.

        All processes must call it with the same state.
        """
        _synchronise()
        self._current, self._pending = (
            {name: _read_moments(m) for name, m in state[key].items()} for key in ("current", "pending")
        )
        _names.update(self._current, self._pending)

    def _get(self, name: str) -> _Moments:
        if not self._regex.fullmatch(name):
            raise ValueError(
                f"statistic {name!r} does not match the pattern {self._regex.pattern!r} of this collector"
            )
        return self._current.get(name, _ZERO)

    def num(self, name: str) -> int:
        """Return the number of values."""
        return int(self._get(name)[0])

    def mean(self, name: str) -> float:
        """Return the mean; NaN if there was no value."""
        num, total, _ = self._get(name)
        return math.fsum(total) / num if num else math.nan

    def std(self, name: str) -> float:
        """Return the population standard deviation; NaN if there was no value."""
        num, total, squares = self._get(name)
        if not num:
            return math.nan
        variance = math.fsum(squares) / num - (math.fsum(total) / num) ** 2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan

    def as_dict(self) -> EasyDict:
        """Return an EasyDict: name -> EasyDict(num, mean, std)."""
        return EasyDict(
            {
                name: EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name))
                for name in self.names()
            }
        )

    def __getitem__(self, name: str) -> float:
        """Return the mean of a statistic."""
        return self.mean(name)
