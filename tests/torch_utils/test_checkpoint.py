# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: bit for bit, whole or absent, whatever happens in between."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dnnlib import files
from tests import waiting
from tests.memory_limit import limited
from torch_utils import checkpoint

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def _bits(x):
    return x.contiguous().reshape(-1).view(torch.uint8)


def test_round_trip_is_bit_exact(tmp_path):
    state = {
        "tensors": {
            str(d): (torch.arange(-3, 3).to(d) if d != torch.bool else torch.tensor([True, False]))
            for d in DTYPES
        },
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-42]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "json": {"a": [1, 2.5, "x", None, True], "nested": [{"b": []}], "big": 2**80, "inf": float("inf")},
        "betas": (0.0, 0.99),
        7: "integer key",
    }
    path = checkpoint.save(tmp_path, 12, state)
    back = checkpoint.load(path)
    assert checkpoint.latest(tmp_path) == path
    for name, x in state["tensors"].items():
        assert back["tensors"][name].dtype == x.dtype and torch.equal(_bits(back["tensors"][name]), _bits(x))
    for name in ("special", "scalar", "empty", "channels_last"):
        assert back[name].shape == state[name].shape and back[name].stride() == state[name].stride()
        assert torch.equal(_bits(back[name]), _bits(state[name]))
    assert back["json"] == state["json"] and back["betas"] == (0.0, 0.99) and back[7] == "integer key"


def test_adam_goes_on_as_if_nothing_happened(tmp_path):
    def make():
        w = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        return w, torch.optim.Adam([w], lr=0.1, betas=(0.0, 0.99))

    def steps(w, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            (w**3).sum().backward()
            optimizer.step()

    w, optimizer = make()
    steps(w, optimizer, 3)
    path = checkpoint.save(tmp_path, 3, {"w": w, "optimizer": optimizer.state_dict()})
    steps(w, optimizer, 3)
    w2, optimizer2 = make()
    state = checkpoint.load(path)
    w2.data.copy_(state["w"])
    optimizer2.load_state_dict(state["optimizer"])
    steps(w2, optimizer2, 3)
    assert torch.equal(w, w2)


def test_a_view_does_not_drag_its_base_along(tmp_path):
    path = checkpoint.save(tmp_path, 0, {"x": torch.zeros(1_000_000)[:10]})
    assert path.stat().st_size < 10_000


@pytest.mark.parametrize(
    "value, where",
    [
        ({"a": {"b": np.float64(1)}}, "state.a.b is a numpy.float64"),
        ({"a": [1, object()]}, r"state.a\[1\]"),
        ({"a": {1.5: 0}}, "key 1.5"),
        ({"a": torch.zeros(2).to_sparse()}, "state.a"),
        ({"a": Path("x")}, "Path"),
    ],
)
def test_refuses_what_it_could_not_load(tmp_path, value, where):
    with pytest.raises(ValueError, match=where):
        checkpoint.save(tmp_path, 0, value)
    assert list(tmp_path.iterdir()) == []


def _names(folder):
    return sorted(int(p.name.split("-")[1]) for p in folder.iterdir())


def test_keep_and_order(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "absent") is None
    for nimg in (0, 64, 1000, 12345):
        checkpoint.save(tmp_path, nimg, {"nimg": nimg})
    assert _names(tmp_path) == [1000, 12345]
    checkpoint.save(tmp_path, 12345, {"nimg": "again"})  # the same count replaces
    assert _names(tmp_path) == [1000, 12345] and checkpoint.load(checkpoint.latest(tmp_path)) == {
        "nimg": "again"
    }
    checkpoint.save(tmp_path, 500, {"nimg": 500})  # the run went back: what lies ahead is no longer its line
    assert _names(tmp_path) == [500] and checkpoint.load(checkpoint.latest(tmp_path)) == {"nimg": 500}
    for nimg in (600, 700):
        checkpoint.save(tmp_path, nimg, {"nimg": nimg}, keep=1)
    assert _names(tmp_path) == [700]


@pytest.mark.parametrize("harm", ["truncate", "empty", "flip", "zeros"])
def test_latest_passes_over_a_damaged_file(tmp_path, harm):
    good = checkpoint.save(tmp_path, 1, {"x": torch.arange(1000)})
    bad = checkpoint.save(tmp_path, 2, {"x": torch.arange(1000)})
    data = bytearray(bad.read_bytes())
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    bad.write_bytes(
        {"truncate": data[:middle], "empty": b"", "flip": flipped, "zeros": bytes(len(data))}[harm]
    )
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.latest(tmp_path) == good
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(bad)
    checkpoint.save(
        tmp_path, 2, {"x": torch.arange(999)}
    )  # training again reaches that count: the damaged one is gone
    assert _names(tmp_path) == [1, 2] and len(checkpoint.load(checkpoint.latest(tmp_path))["x"]) == 999
    bad = checkpoint.latest(tmp_path)
    bad.write_bytes(b"")
    good.unlink()
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.latest(tmp_path) is None


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.load(tmp_path / "no.pt")
    for content in (b"hello", b""):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(ValueError, match="not a checkpoint"):
            checkpoint.load(tmp_path / "x.pt")
    torch.save({"state": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="version"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_mapped_checkpoint_has_the_same_contents_and_refuses_the_same_files(tmp_path):
    state = {"x": torch.arange(6.0).reshape(2, 3), "more": [{"y": torch.zeros(0, 4)}, 3, "text"]}
    path = checkpoint.save(tmp_path, 8, state)
    mapped = checkpoint.load_mapped(path)
    assert torch.equal(mapped["x"], state["x"]) and mapped["more"][0]["y"].shape == (0, 4)
    assert mapped["more"][1:] == [3, "text"]
    (tmp_path / "text").write_text("no checkpoint")
    torch.save([1], tmp_path / "list")
    with pytest.raises(ValueError, match="text is not a checkpoint \\("):
        checkpoint.load_mapped(tmp_path / "text")
    with pytest.raises(ValueError, match="list is not a checkpoint of version"):
        checkpoint.load_mapped(tmp_path / "list")


def test_nothing_in_the_file_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/sprung",)

    torch.save({"version": 1, "nimg": 0, "state": {"x": Trap()}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "x.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    good = checkpoint.save(tmp_path, 1, {"x": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="earlier checkpoints are intact"):
        checkpoint.save(tmp_path, 2, {"x": 2}, keep=1)
    assert list(tmp_path.iterdir()) == [good]


@pytest.mark.parametrize("room", [0, 3000])
def test_a_disk_that_fills_up_within_a_write_is_named(room, tmp_path, monkeypatch):
    """torch.save itself reports a position in the file that it did not expect."""

    class Disk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(checkpoint, "open", lambda path, mode: Disk(path, "w"), raising=False)
    with pytest.raises(OSError, match=r"of 2 images to .*No space left on device\); earlier"):
        checkpoint.save(tmp_path, 2, {"x": torch.zeros(5000)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_sigkill_in_the_middle_of_writing(tmp_path):
    code = (
        "import sys, torch\nsys.path.insert(0, sys.argv[1])\nfrom torch_utils import checkpoint\nx = "
        "torch.ones(4_000_000)\n"
        'for n in range(1, 1000):\n    checkpoint.save(sys.argv[2], n, {"n": n, "x": x * n})\n'
    )
    root = str(Path(checkpoint.__file__).parents[1])
    child = subprocess.Popen([sys.executable, "-c", code, root, str(tmp_path)])
    try:

        def halfway() -> bool:
            written = list(tmp_path.glob("checkpoint-*"))
            return len(written) == 2 and bool(list(tmp_path.glob(".checkpoint-*.tmp")))

        waiting.until(halfway, child, poll=0)
    finally:
        child.kill()
        child.wait()
    newest = checkpoint.load(checkpoint.latest(tmp_path))
    assert newest["n"] >= 2 and torch.equal(newest["x"], torch.ones(4_000_000) * newest["n"])
    checkpoint.save(tmp_path, newest["n"] + 1, {"n": 0})
    assert not list(tmp_path.glob(".*"))  # the half-written file is gone


def _reading_fails(monkeypatch, times: int, error: int = errno.EIO) -> list[float]:
    """Opening a checkpoint fails so many times, as on a network disk that is away. Returns where the pauses
    are noted.
    """
    pauses: list[float] = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    failures = iter(range(times))

    def faulty(path, *args, **kwargs):
        if str(path).endswith(".pt") and next(failures, None) is not None:
            raise OSError(error, os.strerror(error))
        return open(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "open", faulty, raising=False)
    return pauses


def test_a_disk_that_is_away_for_a_moment_is_waited_for(tmp_path, monkeypatch, capsys):
    checkpoint.save(tmp_path, 1, {"x": 1})
    path = checkpoint.save(tmp_path, 2, {"x": 2})
    pauses = _reading_fails(monkeypatch, 6)
    assert checkpoint.latest(tmp_path) == path
    assert pauses == sorted(pauses) and len(pauses) == 6 and str(path) in capsys.readouterr().err
    _reading_fails(monkeypatch, 6, errno.ESTALE)
    assert checkpoint.load(path) == {"x": 2}


def test_what_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    for nimg in (1, 2):
        checkpoint.save(tmp_path, nimg, {"x": nimg})
    before = sorted(tmp_path.iterdir())
    _reading_fails(monkeypatch, 1000)
    with pytest.raises(
        OSError,
        match=r"checkpoint-000000000002-.*\.pt cannot be read \(Input/output error.*does not mean that it "
        r"is damaged",
    ):
        checkpoint.latest(tmp_path)
    with pytest.raises(OSError, match=r"Input/output error.*checkpoint-000000000002"):
        checkpoint.load(before[-1])
    with pytest.raises(
        OSError, match="Input/output error"
    ):  # the next one is not proven readable: the earlier ones stay
        checkpoint.save(tmp_path, 3, {"x": 3}, keep=1)
    assert set(before) < set(tmp_path.iterdir())


def test_what_does_not_read_back_replaces_nothing(tmp_path, monkeypatch):
    good = checkpoint.save(tmp_path, 1, {"x": 1})
    monkeypatch.setattr(checkpoint, "_is_whole", lambda path: False)
    with pytest.raises(OSError, match="does not read back as it was written; earlier checkpoints are intact"):
        checkpoint.save(tmp_path, 2, {"x": 2}, keep=1)
    assert list(tmp_path.iterdir()) == [good]


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"x": 1})
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        checkpoint.os, "listdir", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    with pytest.raises(OSError, match=f"Input/output error.*{tmp_path}"):
        checkpoint.latest(tmp_path)
    with pytest.raises(OSError, match=f"Input/output error.*{tmp_path}"):
        checkpoint.exists(tmp_path)


def test_a_damaged_one_is_set_aside_until_the_next_is_proven(tmp_path):
    good = checkpoint.save(tmp_path, 1, {"x": 1})
    bad = checkpoint.save(tmp_path, 3, {"x": 3})
    bad.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.latest(tmp_path, set_aside=True) == good
    assert {p.name for p in tmp_path.iterdir()} == {good.name, f"{bad.name}.damaged"} and checkpoint.exists(
        tmp_path
    )
    good.unlink()
    assert checkpoint.exists(tmp_path) and checkpoint.latest(tmp_path) is None  # it had one
    path = checkpoint.save(tmp_path, 5, {"x": 5})
    assert list(tmp_path.iterdir()) == [path]


def test_temporaries_of_live_processes_stay(tmp_path):
    dead, live = (
        f".checkpoint-000000000001.{files.owner_name(pid)}-x.tmp" for pid in (2**22 + 1, os.getpid())
    )
    for name in (dead, live):
        (tmp_path / name).touch()
    checkpoint.save(tmp_path, 2, {"x": 1})
    assert not (tmp_path / dead).exists() and (tmp_path / live).exists()


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    """Its checksum is right: whoever writes a file chooses its name, too."""
    path = checkpoint.save(tmp_path, 8, {"a": torch.zeros(2**22)})
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.unlink()
    digest = hashlib.sha256(bomb.read_bytes()).hexdigest()[:16]
    bomb = bomb.rename(tmp_path / f"checkpoint-{8:012d}-{digest}.pt")
    assert checkpoint.latest(tmp_path) == bomb
    with limited(10), pytest.raises(ValueError, match=r"is not a checkpoint \(.*zip bomb") as error:
        checkpoint.load(bomb)
    assert "\n" not in str(error.value)


def test_a_writer_saves_the_state_of_the_call_while_it_changes(tmp_path, monkeypatch):
    """One at a time: the second waits for the first."""
    real, begun, go, written = checkpoint.save, threading.Event(), threading.Event(), []

    def slow(*args):
        begun.set()
        go.wait()
        return real(*args)

    monkeypatch.setattr(checkpoint, "save", slow)
    writer = checkpoint.Writer(tmp_path, 2, written.append)
    x, counters = torch.zeros(3), {"nimg": 8}
    writer.save(8, {"x": x, "counters": counters, "again": x})
    begun.wait()
    assert not list(tmp_path.iterdir()) and not written
    x += 1
    counters["nimg"] = 16
    threading.Timer(0.1, go.set).start()
    writer.save(16, {"x": x, "counters": counters, "again": x})  # returns, so the first is written
    assert written[0] == 8
    writer.wait()
    first, second = (checkpoint.load(path) for path in sorted(tmp_path.iterdir()))
    assert (first["x"].tolist(), first["counters"]) == ([0, 0, 0], {"nimg": 8})
    assert (second["x"].tolist(), second["counters"]) == ([1, 1, 1], {"nimg": 16}) and written == [8, 16]


def test_a_copy_keeps_the_layout_in_memory_and_has_a_storage_of_its_own():
    """Adam's fused step reads moments in the order in memory of the weights."""
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    part = torch.randn(100)[10:20]
    copied = checkpoint.host_copy({"x": x, "part": part})
    assert copied["x"].stride() == x.stride() and torch.equal(copied["x"], x)
    assert copied["part"].untyped_storage().nbytes() == 40 and torch.equal(copied["part"], part)


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_error_of_a_writer_is_raised_once_in_training(tmp_path, monkeypatch):
    writer = checkpoint.Writer(tmp_path, 2, lambda nimg: None)
    with pytest.raises(ValueError, match="can be saved"):
        writer.save(8, {"x": object()})  # at once: nothing was begun
    monkeypatch.setattr(os, "fsync", full_disk)
    writer.save(8, {"x": 1})
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.wait()
    writer.check()
    assert not list(tmp_path.iterdir())


def test_a_copy_is_checked_and_replaces_a_damaged_file(tmp_path):
    path = checkpoint.save(tmp_path / "local", 8, {"x": 1})
    shared = tmp_path / "shared"
    copied = checkpoint.copy(path, shared)
    assert copied == shared / path.name and copied.read_bytes() == path.read_bytes()
    copied.write_bytes(b"cut")
    assert checkpoint.copy(path, shared).read_bytes() == path.read_bytes()
    assert checkpoint.nimg_of(copied) == 8 and os.listdir(shared) == [path.name]
    path.write_bytes(b"cut")
    with pytest.raises(OSError, match="does not read back"):
        checkpoint.copy(path, tmp_path / "other")
    assert not os.listdir(tmp_path / "other")
    with pytest.raises(ValueError, match="is not named as a checkpoint"):
        checkpoint.nimg_of(tmp_path / "mine.pt")
