# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that need a GPU."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def full_float32() -> Iterator[None]:
    """No TF32, whose rounding would hide an error."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
