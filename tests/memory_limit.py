# SPDX-License-Identifier: Apache-2.0
"""A limit on what a test may allocate: what a hostile file asks for must not even be tried."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """Within, this process may take so much more address space than it has; beyond it allocations fail with
    MemoryError."""
    resource = pytest.importorskip("resource")
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        pytest.skip("the system does not say how much this process has")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
