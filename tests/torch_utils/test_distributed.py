# SPDX-License-Identifier: Apache-2.0
"""Communication in a group of two gloo processes, and in a group of one."""

import concurrent.futures
import datetime
import sys

import pytest
import torch

from torch_utils import distributed, launcher, training_stats

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def _collectives(folder):
    assert distributed.init("cpu") == torch.device("cpu")
    rank = distributed.rank()
    assert (distributed.world_size(), distributed.local_rank(), distributed.is_main()) == (2, rank, rank == 0)
    total = torch.full((3,), 2.0 * rank)
    pending, highest = distributed.start_sum_(total), distributed.start_highest(3 - rank)  # two at once
    assert highest() == 3
    pending.wait()
    assert total.tolist() == [2] * 3
    both = distributed.start_all_gather([torch.tensor([rank == 1]), torch.tensor([[0.5 * rank]])])()
    assert [x.tolist() for x in both] == [[False, True], [[0.0], [0.5]]]
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


def test_collectives_and_exit_code(tmp_path, real_processes):
    with pytest.raises(SystemExit) as e:
        launcher.launch(_collectives, 2, tmp_path)
    assert e.value.code == 3 and len(list(tmp_path.iterdir())) == 2


def test_processes_do_not_meet_those_of_an_earlier_start():
    """The agent's store keeps what the processes of an earlier start wrote."""
    store, limit = torch.distributed.HashStore(), datetime.timedelta(minutes=60)
    store.set("start", "earlier")
    store.set("earlier/1", "dead")
    store.set("earlier/all", "earlier dead")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        late = pool.submit(distributed._meet, store, 1, 2, limit)
        first = pool.submit(distributed._meet, store, 0, 2, limit)
        assert late.result() == first.result() != "earlier"


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
    distributed.broadcast_([x])
    distributed.barrier()
    assert x.tolist() == [1, 2] and distributed.all_gather_cat(x) is x
    assert distributed.broadcast_object("a") == "a" and distributed.all_gather_object("a") == ["a"]
    assert distributed.start_all_gather([x])() == [x] and distributed.start_highest(5)() == 5
    distributed.shutdown()
