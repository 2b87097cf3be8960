# SPDX-License-Identifier: Apache-2.0
"""Keeps gradients that are not finite from the weights, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from torch_utils import devices


class NonFiniteError(RuntimeError):
    """A gradient is NaN or infinite. The weights and the last checkpoint are intact."""


class Cause(NamedTuple):
    """What is not finite, and whose it is."""

    network: str
    what: str


class _Update(NamedTuple):
    """One optimizer step: its place for errors, the gradients' names and norms, and what finds the cause."""

    where: str
    names: list[str]
    norms: torch.Tensor
    cause: Callable[[], Cause | None]

    def error(self) -> NonFiniteError | None:
        """The error if a norm is not finite. All processes must call it."""
        name = next(
            (n for n, norm in zip(self.names, self.norms.tolist(), strict=True) if not math.isfinite(norm)),
            None,
        )
        if name is None:
            return None
        found = self.cause()
        if found is None:
            return NonFiniteError(f"{self.where}: the gradient of '{name}' is not finite")
        step = self.where.partition(": ")[2]
        return NonFiniteError(f"{found.network}: {step}: {found.what} is not finite")


class Guard:
    """Lets optimizers step on finite gradients only.

    On a CPU, a gradient that is not finite raises before its update. On CUDA, the host would wait for the
    device to know. There the device keeps a flag, which masks this update and all later ones, so that no
    weight changes after the fault. The host reads the flag one training step later, and before anything is
    written.

    Args:
        device: of the gradients.
        deferred: read the flag a step later; None = on CUDA only. It needs a fused optimizer.
    """

    def __init__(self, device: torch.device, deferred: bool | None = None) -> None:
        self.deferred = device.type == "cuda" if deferred is None else deferred
        self.bad = torch.zeros([], device=device)  # 1 from the first fault on
        self._updates: list[_Update] = []  # of the current training step
        self._previous: tuple[Callable[[], torch.Tensor], list[_Update]] | None = None

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: Mapping[str, torch.Tensor],
        where: str,
        cause: Callable[[], Cause | None],
    ) -> None:
        """Step the optimizer of these gradients.

        Raises:
            NonFiniteError: a gradient is not finite, and the guard is not deferred. Nothing has been updated.
        """
        if not gradients:
            return
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        update = _Update(where, list(gradients), norms, cause)
        if not self.deferred:
            if not bool(torch.isfinite(norms).all()):
                error = update.error()
                assert error is not None
                raise error
            optimizer.step()
            return
        self._updates.append(update)
        self.bad = torch.maximum(self.bad, 1 - torch.isfinite(norms).all().to(self.bad.dtype))
        # torch's fused optimizers skip the update of weights, moments and step counts if it is 1.
        optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]

    def end_step(self) -> None:
        """End a training step: raise for the one before.

        Raises:
            NonFiniteError: naming the step and the tensor. All processes raise it after the same step.
        """
        previous, self._previous = self._previous, None
        if self._updates:
            self._previous = devices.read_later(self.bad), self._updates
        self._updates = []
        if previous is not None:
            _raise_if_bad(*previous)

    def check(self) -> None:
        """Wait for all updates so far, and raise if one was masked: call it before the state is written.

        Raises:
            NonFiniteError: as `end_step`.
        """
        self.end_step()
        self.end_step()


def _raise_if_bad(flag: Callable[[], torch.Tensor], updates: list[_Update]) -> None:
    if bool(flag()):
        raise next(filter(None, (update.error() for update in updates)))
