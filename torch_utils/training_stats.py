# SPDX-License-Identifier: Apache-2.0
"""Statistics of training: report() anywhere, read through a Collector once per tick. StyleGAN's interface.

report() adds number, sum and sum of squares to a per-device accumulator and never waits for the device.
Collector.update() brings the accumulators of all processes together. Sums on the host are exact, so that a
checkpoint in the middle of an interval changes no bit of them; accumulators of other devices are float64,
float32 where that is missing (mps). Non-finite values are neither hidden nor raised here: the mean of their
interval is not finite, the next interval's is clean.
"""

import math
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dnnlib.util import EasyDict
from torch_utils import distributed

_Sum = tuple[float, ...]  # an exact sum: floats whose bits do not overlap, smallest first
_Moments = tuple[float, _Sum, _Sum]  # number, sum, sum of squares
_ZERO: _Moments = (0.0, (), ())

_host: dict[str, _Moments] = {}  # since the last synchronisation: numbers and CPU tensors
_device: dict[torch.device, dict[str, torch.Tensor]] = {}  # the same, for tensors of other devices
_names: set[str] = set()  # ever reported, by any process after a synchronisation
_collectors: "weakref.WeakSet[Collector]" = weakref.WeakSet()
_process: tuple[int, bool] | None = None  # (rank, whether to synchronise) as given to init_multiprocessing()


def init_multiprocessing(rank: int, sync_device: torch.device | None) -> None:
    """Overrides what torch_utils.distributed knows: this process's rank, and whether update() talks to the
    others (sync_device None: it does not).
    """
    global _process
    _process = (rank, sync_device is not None)


def _rank() -> int:
    return distributed.rank() if _process is None else _process[0]


@torch.no_grad()
def report(name: str, value: Any) -> Any:
    """Adds every element of `value` (tensor, array, number or nested list; empty: only makes the name known)
    to statistic `name`. Returns `value`.
    """
    _names.add(name)
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        x = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64).reshape(-1)
        if x.numel():
            # The count goes through torch.full: a tensor made of Python numbers would wait for the copy to
            # the device.
            moments = torch.stack(
                [torch.full((), x.numel(), dtype=x.dtype, device=x.device), x.sum(), x.square().sum()]
            )
            accumulated = _device.setdefault(x.device, {})
            accumulated[name] = accumulated[name] + moments if name in accumulated else moments
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


@contextmanager
def unrecorded() -> Iterator[None]:
    """Within, what is reported is forgotten, and so are names that nobody knew before."""
    host, device, names = dict(_host), {device: dict(sums) for device, sums in _device.items()}, set(_names)
    try:
        yield
    finally:
        _host.clear()
        _host.update(host)
        _device.clear()
        _device.update(device)
        _names.intersection_update(names)


def report0(name: str, value: Any) -> Any:
    """report() of process 0; the other processes only make the name known. Returns `value`."""
    report(name, value if _rank() == 0 else [])
    return value


def _synchronise() -> None:
    """Adds what all processes reported since the last call to every collector's share. One collective."""
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
    """a + b without rounding (Shewchuk, Adaptive precision floating-point arithmetic, 1997); one float where
    that is not finite.
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
    """Moments of a checkpoint; version 0.1 kept rounded sums."""
    number, *sums = saved
    total, squares = (tuple(x) if isinstance(x, list | tuple) else (x,) for x in sums)
    return number, total, squares


class Collector:
    """Statistics whose whole name matches `regex`, over the interval between the last two calls of update().

    keep_previous: a statistic that was not reported in an interval keeps its former value instead of becoming
    NaN. Every process must make and update the same collectors in the same order (making one is a collective
    too).
    """

    def __init__(self, regex: str = ".*", keep_previous: bool = True) -> None:
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._pending: dict[str, _Moments] = {}
        self._current: dict[str, _Moments] = {}
        self.update()  # what was reported before belongs to the collectors that existed then
        self._current = {}
        _collectors.add(self)

    def names(self) -> list[str]:
        """Names known so far that match, sorted."""
        return sorted(name for name in _names if self._regex.fullmatch(name))

    def update(self) -> None:
        """Ends the interval: from now on the other methods tell what was reported since the last call. All
        processes must call it.
        """
        _synchronise()
        for name, moments in self._pending.items():
            if moments[0] or not self._keep_previous:
                self._current[name] = moments
        self._pending = {}

    def state_dict(self) -> dict[str, dict[str, _Moments]]:
        """What a checkpoint needs so that an interval goes on after a restart: finished and running sums. All
        processes must call it.
        """
        _synchronise()
        return {"current": dict(self._current), "pending": dict(self._pending)}

    def load_state_dict(self, state: dict[str, dict[str, _Moments]]) -> None:
        """Go on with what state_dict() returned; every process gives the same. What was reported before the
        call is forgotten.
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
        """Number of values."""
        return int(self._get(name)[0])

    def mean(self, name: str) -> float:
        """Mean, NaN if there was no value."""
        num, total, _ = self._get(name)
        return math.fsum(total) / num if num else math.nan

    def std(self, name: str) -> float:
        """Population standard deviation, NaN if there was no value."""
        num, total, squares = self._get(name)
        if not num:
            return math.nan
        variance = math.fsum(squares) / num - (math.fsum(total) / num) ** 2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan

    def as_dict(self) -> EasyDict:
        """EasyDict: name -> EasyDict(num, mean, std)."""
        return EasyDict(
            {
                name: EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name))
                for name in self.names()
            }
        )

    def __getitem__(self, name: str) -> float:
        """The mean."""
        return self.mean(name)
