# SPDX-License-Identifier: Apache-2.0
"""Groups of processes: what they tell each other, how they fail and how they are stopped. Two gloo processes,
three launches in all.
"""

import os
import pickle
import signal
import sys
import threading
from types import SimpleNamespace

import click
import pytest
import torch

from torch_utils import distributed, training_stats

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def _collectives(folder):
    assert distributed.init("cpu") == torch.device("cpu")
    rank = distributed.rank()
    assert (distributed.world_size(), distributed.local_rank(), distributed.is_main()) == (2, rank, rank == 0)
    # The mean, over several dtypes and shapes at once; non-contiguous and 0-dimensional too.
    tensors = [
        torch.full((3,), 2.0 * rank),
        torch.full((2, 2), rank, dtype=torch.bfloat16),
        torch.tensor(4.0 * rank, dtype=torch.float64),
        torch.arange(6.0).reshape(2, 3).T + rank,
    ]
    distributed.all_reduce_mean_(tensors)
    assert tensors[0].tolist() == [1] * 3 and tensors[1].unique().tolist() == [0.5] and tensors[2].item() == 2
    assert torch.equal(tensors[3], torch.arange(6.0).reshape(2, 3).T + 0.5)
    # Broadcast and gather are bit for bit in every dtype, odd byte offsets included.
    mine = [torch.arange(3, 6).to(d) * (1 - rank) for d in DTYPES if d != torch.bool]
    mine += [torch.tensor(rank == 0), torch.tensor([float("nan"), -0.0]) * (1 - rank), torch.zeros(0)]
    distributed.broadcast_(mine)
    assert (
        all(x.tolist() == [3, 4, 5] for x in mine[:6])
        and mine[6].item() is True
        and mine[7][0].isnan()
        and str(mine[7][1].item()) == "-0.0"
    )
    for d in DTYPES:
        both = distributed.all_gather_cat(torch.tensor([[rank, 1]]).to(d))
        assert both.dtype == d and torch.equal(both, torch.tensor([[0, 1], [1, 1]]).to(d))
    assert distributed.broadcast_object({"rank": rank}, src=1) == {"rank": 1}
    assert distributed.all_gather_object(("x", rank)) == [("x", 0), ("x", 1)]
    # Statistics of all processes, names that only one of them knows included.
    collector = training_stats.Collector()
    training_stats.report("both", [rank, 2.0 + rank])
    training_stats.report0("main", 7 + rank)
    if rank == 1:
        training_stats.report("second", 5)
    collector.update()
    assert (
        collector.names() == ["both", "main", "second"]
        and collector["both"] == 1.5
        and collector.num("both") == 4
    )
    assert collector["main"] == 7 and collector.num("main") == 1 and collector["second"] == 5
    distributed.barrier()
    (folder / f"done{rank}").touch()
    distributed.shutdown()
    assert distributed.world_size() == 1
    sys.exit(3)


def test_collectives_and_exit_code(tmp_path):
    with pytest.raises(SystemExit) as e:
        distributed.launch(_collectives, 2, tmp_path)
    assert e.value.code == 3 and len(list(tmp_path.iterdir())) == 2


def _one_fails(folder):
    distributed.init("cpu")
    if distributed.rank() == 1:
        raise click.ClickException("--batch 7: cannot be shared by 2 processes")
    try:
        distributed.barrier()
        (folder / "unreachable").touch()
    finally:
        threading.Event().wait()  # until it is stopped


def test_one_failure_stops_all_and_keeps_its_type(tmp_path, capfd):
    with pytest.raises(click.ClickException, match="--batch 7") as e:
        distributed.launch(_one_fails, 2, tmp_path)
    assert not list(tmp_path.iterdir())
    assert "in _one_fails" in str(e.value.__cause__)  # where it happened
    assert "Traceback" not in capfd.readouterr().err  # told once: by the exception


def _saves_when_asked(folder):
    distributed.init("cpu")
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    (folder / f"up{distributed.rank()}").touch()
    while not asked:
        threading.Event().wait(0.02)
    threading.Event().wait(0.2)  # for a second signal, which must not come
    distributed.barrier()
    (folder / f"saved{distributed.rank()}-{len(asked)}").touch()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_lets_every_process_save_once(tmp_path):
    over = threading.Event()

    def press():
        while not over.wait(0.02):
            if len(list(tmp_path.glob("up*"))) == 2:
                return os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        distributed.launch(_saves_when_asked, 2, tmp_path)  # they leave well, so it returns
    finally:
        over.set()
        thread.join()
    assert sorted(p.name for p in tmp_path.glob("saved*")) == ["saved0-1", "saved1-1"]
    assert signal.getsignal(signal.SIGINT) is before


def _children(*codes):
    return [SimpleNamespace(exitcode=code) for code in codes]


def test_which_failure_is_told():
    lost, cause = (5.0, RuntimeError("connection closed by peer"), ""), (4.0, ValueError("the cause"), "text")
    with pytest.raises(ValueError, match="the cause"):  # the first
        distributed._raise_failure(_children(1, 1), [lost, cause], {0, 1}, [])
    with pytest.raises(
        RuntimeError, match=r"process 1 of 2 was ended by SIGKILL \(out of memory\?\)"
    ):  # a death without a word comes before words
        distributed._raise_failure(_children(1, -9), [lost, None], {0, 1}, [])
    with pytest.raises(ValueError, match="the cause"):  # unless the parent did it
        distributed._raise_failure(_children(-9, 1), [None, cause], {1}, [])
    with pytest.raises(KeyboardInterrupt):
        distributed._raise_failure(_children(130, 130), [None, None], {0, 1}, [(signal.SIGINT, 0.0)])
    with pytest.raises(SystemExit) as e:
        distributed._raise_failure(_children(-15, -15), [None, None], {0, 1}, [(signal.SIGTERM, 0.0)])
    assert e.value.code == 143
    distributed._raise_failure(_children(0, 0), [None, None], {0, 1}, [])


def test_an_exception_that_cannot_travel_is_described():
    class Local(Exception):
        pass

    assert str(pickle.loads(distributed._pickled(Local("reason")))) == "Local: reason"
    assert isinstance(pickle.loads(distributed._pickled(click.ClickException("x"))), click.ClickException)


def test_one_process_needs_no_group(monkeypatch):
    for name in distributed._TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert distributed.init("cpu") == torch.device("cpu")
    assert (
        distributed.rank(),
        distributed.local_rank(),
        distributed.world_size(),
        distributed.is_main(),
    ) == (0, 0, 1, True)
    x = torch.tensor([1.0, 2.0])
    distributed.all_reduce_mean_([x])
    distributed.broadcast_([x])
    distributed.barrier()
    assert x.tolist() == [1, 2] and distributed.all_gather_cat(x) is x
    assert distributed.broadcast_object("a") == "a" and distributed.all_gather_object("a") == ["a"]
    with pytest.raises(ValueError, match="int64"):
        distributed.all_reduce_mean_([torch.tensor([1])])
    distributed.shutdown()
    calls = []
    distributed.launch(calls.append, 1, "here")
    assert calls == ["here"]
    with pytest.raises(ValueError, match="at least 1"):
        distributed.launch(calls.append, 0, "x")


def test_torchrun_is_recognised(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    calls = []
    for n in (1, 2, 4):
        distributed.launch(calls.append, n, n)
    assert calls == [1, 2, 4]
    with pytest.raises(ValueError, match="3 processes asked for, but torchrun started 4"):
        distributed.launch(calls.append, 3, 3)
