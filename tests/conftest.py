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


@pytest.fixture(scope="session")
def toy_zip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 images of 16x16 pixels in three classes."""
    from tests.toy_data import make_zip

    return make_zip(tmp_path_factory.mktemp("data"), "three16", classes=3, count=24)


@pytest.fixture(scope="session")
def toy_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of network files: cond.pkl, nameless.pkl, uncond.pkl."""
    from tests.toy_networks import write_networks

    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network file that only its own source can run; nothing trusts it yet."""
    from tests.toy_networks import write_foreign

    monkeypatch.delenv("WEIGHTS_TEST_RAN", raising=False)
    monkeypatch.delenv("STYLESAN_TRUST_PICKLE", raising=False)
    return write_foreign(tmp_path / "foreign.pkl")
