# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save from strangers: nothing runs, and nothing takes more memory than the file has bytes."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.memory_limit import limited
from torch_utils import tensor_files, timm_weights


def rewritten(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save with the content of its parts changed."""
    target = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"a": torch.zeros(1000), "b": [torch.ones(2)], "c": 3}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_tensors_come_back(saved: Path, tmp_path: Path) -> None:
    content = tensor_files.load(saved)
    assert (
        content["c"] == 3
        and torch.equal(content["a"], torch.zeros(1000))
        and torch.equal(content["b"][0], torch.ones(2))
    )
    x = torch.arange(6.0)
    tied = {"a": x, "b": x, "part": x[2:4], "empty": torch.empty(0, 5), "legacy": x.reshape(2, 3).t()}
    for zipped in (True, False):
        torch.save(tied, tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
        assert all(
            torch.equal(value, tied[name]) for name, value in tensor_files.load(tmp_path / "b.pth").items()
        )


def test_bombs_of_zip(saved: Path) -> None:
    bomb = rewritten(
        saved,
        lambda name, data: data + bytes(2**25) if name.endswith("data/0") else data,
        zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 2**20
    with limited(30), pytest.raises(ValueError, match=r"claim to unpack to 33,"):
        tensor_files.load(bomb)


@pytest.mark.parametrize("count", [1001, 10**6, 2**31 - 1])
def test_sizes_that_the_file_does_not_hold(saved: Path, count: int) -> None:
    """The numbers of elements of storage and tensor, and of the tensor alone."""
    number = b"J" + struct.pack("<i", count)
    for times in (1, 2):

        def change(name: str, data: bytes, times: int = times) -> bytes:
            return number.join(data.rsplit(b"M\xe8\x03", times)) if name.endswith("data.pkl") else data

        with (
            limited(3000),
            pytest.raises(Exception, match=r"claim a tensor|does not match|not resizable|allocate"),
        ):
            tensor_files.load(rewritten(saved, change))


def test_tensors_that_repeat_one_number(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"claim a tensor of shape \[1000000, 1000000\]"):
        tensor_files.load(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"^'.*a\.pth' cannot be read as a state dict: its .* bytes claim"):
        timm_weights.read_state(tmp_path / "a.pth")


class Evil:
    def __reduce__(self) -> object:
        return os.system, ('touch "$STYLESAN_TEST_TRAP"',)


def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLESAN_TEST_TRAP", str(tmp_path / "trap"))
    torch.save({"a": Evil()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(pickle.UnpicklingError):
            tensor_files.load(tmp_path / name)
    assert not (tmp_path / "trap").exists()


def test_lists_that_hold_themselves_end(tmp_path: Path) -> None:
    loop: list[object] = [torch.ones(1)]
    for _ in range(40):
        loop = [loop, loop]  # 2**40 tensors to whoever counts them one by one
    torch.save(loop, tmp_path / "a.pth")
    tensor_files.load(tmp_path / "a.pth")


def test_a_damaged_copy_of_the_hub_leaves_its_cache_and_a_users_file_stays(
    saved: Path, tmp_path: Path
) -> None:
    blob, name = tmp_path / "blob", "deit_base_distilled_patch16_224"
    blob.write_bytes(saved.read_bytes()[:-100])
    link = tmp_path / "weights.pth"
    link.symlink_to(blob)
    with pytest.raises(ValueError, match="cannot be read as a state dict"):
        timm_weights.read_resolved(name, str(link), link)
    assert blob.exists() and link.is_symlink()
    with pytest.raises(
        ValueError,
        match=rf"^weights of {name}: .* cannot be read as a state dict.*the copy {link} is removed",
    ):
        timm_weights.read_resolved(name, None, link)
    assert not blob.exists() and not link.is_symlink()
