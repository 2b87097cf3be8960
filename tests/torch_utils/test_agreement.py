# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of tensors, and what is said of processes that differ."""

import pytest
import torch

from torch_utils import agreement, distributed

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 1024, 2500])
def test_a_fingerprint_changes_with_every_single_element_and_with_their_order(dtype, size):
    x = (torch.arange(size) % 7 > 3).to(dtype)
    before = agreement.fingerprint(x)
    assert torch.equal(agreement.fingerprint(x.clone()), before)
    for i in {0, size // 2, size - 1}:
        y = x.clone()
        y[i] = 1 - y[i].to(torch.int64)
        assert not torch.equal(agreement.fingerprint(y), before), i
    if size > 4:
        swapped = x.clone()
        swapped[[3, 4]] = x[[4, 3]]
        assert not torch.equal(agreement.fingerprint(swapped), before)


def test_a_fingerprint_is_of_bits():
    zero, nan = torch.zeros(3), torch.tensor([float("nan")])
    assert not torch.equal(agreement.fingerprint(zero), agreement.fingerprint(-zero))
    assert torch.equal(agreement.fingerprint(nan), agreement.fingerprint(nan.clone()))
    assert torch.equal(agreement.fingerprint(zero[:0]), torch.zeros(2, dtype=torch.int64))
    strided = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(agreement.fingerprint(strided), agreement.fingerprint(strided.contiguous()))


def test_the_processes_that_differ_are_named():
    assert agreement.differing([1, 1, 2, 1]) == "in process 2 of 4"
    assert agreement.differing([3, 1, 2, 1, 1, 1]) == "in processes 0, 2 of 6"
    assert agreement.differing([1, 2]) == "between processes 0 and 1"


def pretend(monkeypatch, others):
    """Another process, which holds `others`."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(
        distributed, "all_gather_cat", lambda x: torch.cat([x, agreement.fingerprints(others)[None]])
    )
    monkeypatch.setattr(distributed, "all_gather_object", lambda x: [x, ("elsewhere", others)])


def test_a_changed_weight_names_its_tensor_and_the_processes(monkeypatch):
    mine = {"a": torch.ones(3), "b": torch.ones(4), "c": torch.ones(5)}
    theirs = {name: x.clone() for name, x in mine.items()}
    pretend(monkeypatch, theirs)
    agreement.check_tensors(mine, "at 8 images")
    theirs["b"][2] += 1e-7
    with pytest.raises(agreement.Disagreement, match="at 8 images, 'b' differs between processes 0 and 1"):
        agreement.check_tensors(mine, "at 8 images")
    theirs["c"][0] = 2
    with pytest.raises(agreement.Disagreement, match=r"'b' \(and 1 other tensor\) differs"):
        agreement.check_tensors(mine, "at 8 images")


def test_different_values_name_process_machine_and_value(monkeypatch):
    pretend(monkeypatch, {"options": 1, "code": "b"})
    agreement.check_values({"options": 1})
    with pytest.raises(agreement.Disagreement, match=r"code differs between .* 0 and 1 \(.*process 1 on"):
        agreement.check_values({"options": 1, "code": "a"})


def test_the_code_version_changes_with_any_source(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.py").write_text("x = 1\n")
    before = agreement.code_version(tmp_path, ["part"])
    (tmp_path / "part" / "notes.txt").write_text("x")
    assert agreement.code_version(tmp_path, ["part"]) == before
    (tmp_path / "part" / "a.py").write_text("x = 2\n")
    assert agreement.code_version(tmp_path, ["part"]) != before
