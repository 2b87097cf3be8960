# SPDX-License-Identifier: Apache-2.0
"""Shared test set-up: the repository root on sys.path, one thread per test process (TEST_THREADS, see
tools/rounding.py).
"""

import copy
import functools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported, and for the processes that tests start: their sums round alike, and threads that
# wait for each other on a busy machine use many times the CPU time of the work.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.quick_processes import empty_curves, get_context, real_get_context

settings.register_profile("short", max_examples=40)  # see tests/example_counts.py
settings.load_profile("short")
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def cpu_kernels() -> None:
    """Loads the CPU kernels before any test names another cache folder: a process looks for them once."""
    from torch_utils.ops.backend import cpu_extension

    cpu_extension.load()


@pytest.fixture(scope="session", autouse=True)
def quick_processes() -> Iterator[None]:
    """Processes that need not import everything again (tests/quick_processes.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", get_context)
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start and import as users' do."""
    monkeypatch.setattr(multiprocessing, "get_context", real_get_context)


@pytest.fixture(scope="module", autouse=True)
def quick_plots(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Empty curves, in the files and pages where they belong: drawn in full they take seconds per tick.

    Gives the functions that it replaces. The tests of what is drawn have the real ones.
    """
    plots = sys.modules.get("training.watch.plots")
    if plots is None or request.module.__name__.startswith(("tests.training.watch.", "tests.lab.")):
        yield {}
        return

    quick = empty_curves()
    with pytest.MonkeyPatch.context() as patch:
        replaced = {name: getattr(plots, name) for name in quick}
        for name, function in quick.items():
            patch.setattr(plots, name, function)
        yield replaced


# Whose subject is training, and not how its frozen networks are loaded.
SHARE_NETWORKS = (
    *(
        "tests.e2e.test_train",
        "tests.e2e.test_stages",
        "tests.e2e.test_faults",
        "tests.e2e.test_conveniences",
    ),
    *("tests.training.run.", "tests.training.networks.test_finetune", "tests.training.test_state"),
    *("tests.training.test_steps", "tests.training.test_nonfinite"),
)


@pytest.fixture(scope="module", autouse=True)
def quick_networks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Copies of one EfficientNet-Lite0 in the place of loading it for every run."""
    if not request.module.__name__.startswith(SHARE_NETWORKS):
        yield
        return
    from torch_utils import features, timm_weights

    real, original = features.load, functools.cache(features.load)
    planned = functools.cache(lambda: real(timm_weights.LITE0, timm_weights.RANDOM))  # on the meta device

    def load(name: str = timm_weights.LITE0, weights: str | None = None, **options: Any) -> Any:
        if name == timm_weights.LITE0 and not set(options) - {"seed"}:
            if weights is None:
                return copy.deepcopy(original())
            if weights == timm_weights.RANDOM and torch.get_default_device().type == "meta":
                return copy.deepcopy(planned())
        return real(name, weights, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "load", load)
        yield


@pytest.fixture
def real_plots(quick_plots: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves as users see them."""
    for name, function in quick_plots.items():
        monkeypatch.setattr(f"training.watch.plots.{name}", function)


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
