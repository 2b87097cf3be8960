# SPDX-License-Identifier: Apache-2.0
"""Shared test set-up: the repository root on sys.path, one thread per test process (TEST_THREADS, see
tools/rounding.py).
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def cpu_kernels() -> None:
    """Loads the CPU kernels before any test names another cache folder: a process looks for them once."""
    from torch_utils.ops.backend import cpu_extension

    cpu_extension.load()
