# SPDX-License-Identifier: Apache-2.0
"""The kernel sources as operators for CPU tensors: built with the host shim, registered in a namespace of
their own.
"""

import functools
from pathlib import Path

import pytest
import torch

from dnnlib.util import make_cache_dir_path
from torch_utils.ops.backend import cpu, extension, library

NAMESPACE = "stylesan_xl_host"


@functools.cache
def _load() -> None:
    path = extension.build(Path(make_cache_dir_path("ops")), host=True)
    library.define(NAMESPACE, library.packed_codes, {"channel_sums": cpu.IMPLEMENTATIONS["channel_sums"]})
    torch.ops.load_library(path)


@pytest.fixture
def host(monkeypatch):
    """torch.ops' namespace of the kernels on the host; the public functions use it while the test runs."""
    if extension.compiler() is None or extension.ninja() is None:
        pytest.skip("needs a C++ compiler and ninja")
    _load()
    monkeypatch.setattr(library, "cpu_namespace", NAMESPACE)
    ops = getattr(torch.ops, NAMESPACE)
    yield ops
    ops.set_limits()
    ops.use_tensor_cores(False)
