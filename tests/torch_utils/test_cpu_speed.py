# SPDX-License-Identifier: Apache-2.0
"""The choices of a CPU are measured once, stored where only this user can write, and read afterwards."""

import pytest
import torch

from torch_utils import cpu_speed
from torch_utils.cpu_speed import Choices


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; measuring gives other choices each time."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    ratios = iter(range(2, 10))
    monkeypatch.setattr(cpu_speed, "measure", lambda: Choices(bf16=True, bf16_ratio=float(next(ratios))))
    yield tmp_path / "cache" / "cpu-speed"
    cpu_speed.choices.cache_clear()


def again() -> Choices:
    """As a new process would choose."""
    cpu_speed.choices.cache_clear()
    return cpu_speed.choices()


def test_choices_are_measured_once_per_machine(cache):
    first = again()
    assert first.bf16_ratio == 2 and again() == first
    assert cpu_speed.describe() == "bfloat16 (bfloat16 is 2 times as fast as float32 on this CPU)"
    (file,) = cache.glob("*.json")
    for content in ("", "[]", "{}", '{"bf16_ratio": 1}', file.read_text().replace("true", "1")):
        file.write_text(content)
        assert again().bf16_ratio > 2  # measured again and stored
        assert again() == again()


def test_choices_that_others_can_change_are_not_read(cache):
    again()
    (file,) = cache.glob("*.json")
    file.chmod(0o666)
    assert again().bf16_ratio == 3


def test_without_a_cache_folder_torch_chooses(cache, monkeypatch):
    def fail(path):
        raise OSError("read-only")

    monkeypatch.setattr(cpu_speed.trust, "make_private", fail)
    assert again() == Choices()
    assert cpu_speed.describe() == "float32 (bfloat16 was not measured: no writable cache folder)"


def test_a_measurement_changes_no_setting():
    threads = torch.get_num_threads()
    found = cpu_speed.measure()
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    assert found.bf16_ratio > 0 and (found.bf16 or not found.plain_attention)
