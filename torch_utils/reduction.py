# SPDX-License-Identifier: Apache-2.0
"""The mean of gradients over processes, computed while the backward pass still produces others.

Not DistributedDataParallel: it lays out its buckets anew after the first step, so that with three or more
processes a resumed run rounds differently from one that was not stopped, and it wraps a module, while one
step here has several backward passes through parts of two.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from torch_utils import distributed

BUCKET_BYTES = 25 * 2**20


class _Bucket:
    """Some parameters whose gradients travel together, and for each a flag: 1 = it has a gradient."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        self.params = params
        self.missing = set(params)
        self.pending: distributed.Pending | None = None
        # Half precision travels as float32: the sum must not be rounded at every hop.
        half = params[0].dtype in (torch.float16, torch.bfloat16)
        self.flat = torch.zeros(
            sum(p.numel() for p in params) + len(params),
            dtype=torch.float32 if half else params[0].dtype,
            device=distributed.comm_device(),
        )
        *parts, self.flags = self.flat.split([*(p.numel() for p in params), len(params)])
        self.parts = dict(zip(params, parts, strict=True))

    def add(self, p: torch.nn.Parameter) -> None:
        """Take the gradient of p, which is complete."""
        if p.grad is None or self.pending is not None:
            raise RuntimeError("a gradient arrived after its mean over processes was begun")
        with torch.no_grad():
            self.parts[p].view(p.shape).copy_(p.grad)
        self.missing.discard(p)

    def start(self) -> None:
        present = [float(p not in self.missing) for p in self.params]
        self.flags.copy_(torch.tensor(present), non_blocking=True)
        self.pending = distributed.start_sum_(self.flat)

    @torch.no_grad()
    def finish(self) -> None:
        assert self.pending is not None
        self.pending.wait()
        self.flat /= distributed.world_size()
        elsewhere = self.flags.tolist() if self.missing else [1.0] * len(self.params)
        for (p, part), share in zip(self.parts.items(), elsewhere, strict=True):
            if share > 0:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                p.grad.copy_(part.view(p.shape))


class Reduction:
    """Averages the gradients of one optimizer step over processes.

    The parameters are divided into buckets, of which each is one collective. It begins as soon as the
    gradients of the bucket and of all before are complete. Which parameters share a bucket, and the order of
    the collectives, depend on nothing but the parameters: they are the same in all processes and steps, and
    after a restart. A parameter without a gradient counts as zeros, and has none afterwards if no process
    had one.

    Args:
        params: all that the optimizer has, in the order in which the backward pass completes them.
        bucket_bytes: of the gradients in one collective, at least; the last may have less.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self.params = list(params)
        self.bucket_bytes = bucket_bytes
        self.buckets: list[_Bucket] = []
        self.started = 0

    @contextmanager
    def during(self, last: bool) -> Iterator[None]:
        """Within, a backward pass runs; if it is the last one before `finish`, means are begun in it.

        All processes must enter it with the same arguments.
        """
        if not last or distributed.world_size() == 1:
            yield
            return
        self._lay_out()
        hooks = [p.register_post_accumulate_grad_hook(self._complete) for p in self.params]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._start_all()

    def finish(self) -> None:
        """Wait for the means and put them into .grad; begin them first if no backward pass has."""
        if distributed.world_size() == 1:
            return
        if not self.buckets:
            self._lay_out()
            self._start_all()
        for bucket in self.buckets:
            bucket.finish()
        self.buckets = []

    def _lay_out(self) -> None:
        self.buckets, self.started = [], 0
        group: list[torch.nn.Parameter] = []
        for p in self.params:
            if group and (p.dtype != group[0].dtype or sum(q.nbytes for q in group) >= self.bucket_bytes):
                self.buckets.append(_Bucket(group))
                group = []
            group.append(p)
        if group:
            self.buckets.append(_Bucket(group))
        self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.params}

    def _complete(self, p: torch.Tensor) -> None:
        assert isinstance(p, torch.nn.Parameter)
        self.bucket_of[p].add(p)
        while self.started < len(self.buckets) and not self.buckets[self.started].missing:
            self._start_next()

    def _start_next(self) -> None:
        self.buckets[self.started].start()
        self.started += 1

    def _start_all(self) -> None:
        """The buckets that wait for a gradient that this pass does not have."""
        while self.started < len(self.buckets):
            bucket = self.buckets[self.started]
            for p in bucket.params:
                if p in bucket.missing and p.grad is not None:  # from an earlier pass
                    bucket.add(p)
            self._start_next()
