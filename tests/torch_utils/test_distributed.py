# SPDX-License-Identifier: Apache-2.0
"""Communication in a group of two gloo processes, and in a group of one."""

import concurrent.futures
import ctypes
import datetime
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import waiting
from tests.quick_processes import get_context
from torch_utils import checkpoint, distributed, launcher, training_stats

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


# Two network namespaces of one user namespace, joined by a virtual cable with the ends `here` and `there`.
# The shell prints the process ids of the two, then takes the cable down or up for every line that it reads.
NODES = """
set -e
unshare --net sleep infinity & peer=$!
trap "kill $peer" EXIT
until [ "$(readlink /proc/$peer/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
ip link add here type veth peer name there netns $peer
ip address add 10.0.0.1/24 dev here
ip link set lo up
ip link set here up
nsenter --target $peer --net sh -c \
    "ip link set lo up; ip address add 10.0.0.2/24 dev there; ip link set there up"
echo $$ $peer
while read -r state; do ip link set here "$state"; echo "$state"; done
"""
STEPS, CUT = 6, 3  # of the run; the step before which the cable is taken down
MINUTES = 0.1  # --collective-timeout


@pytest.fixture
def nodes() -> Iterator[subprocess.Popen]:
    """The shell of NODES."""
    tools = ("unshare", "nsenter", "ip")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)} (util-linux, iproute2)")
    command = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", NODES]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as shell:
        try:
            first = shell.stdout.readline()
            if not first:
                pytest.skip(f"network namespaces are not permitted here: {shell.stderr.read().strip()}")
            shell.processes = [int(pid) for pid in first.split()]
            yield shell
        finally:
            shell.stdin.close()


def switch(nodes: subprocess.Popen, state: str) -> None:
    """Take the cable "down" or "up"."""
    nodes.stdin.write(f"{state}\n")
    nodes.stdin.flush()
    assert nodes.stdout.readline() == f"{state}\n"


def gradient(layer: torch.nn.Linear, step: int, rank: int) -> torch.Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + rank))
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(layer(x).square().mean(), layer.parameters())]
    )


def step_(layer: torch.nn.Linear, total: torch.Tensor) -> None:
    flat = torch.nn.utils.parameters_to_vector(layer.parameters())
    torch.nn.utils.vector_to_parameters((flat - 0.1 * total).detach(), layer.parameters())


def fresh_layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def _train_on_a_node(folder: Path, rank: int, namespace: int) -> None:
    """Train to STEPS from the newest checkpoint; the first start waits for the cut before step CUT."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("user", "net"):
        with open(f"/proc/{namespace}/ns/{kind}") as f:
            assert libc.setns(f.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
    interface = "there" if rank else "here"
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": interface}
    os.environ |= {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}  # free: the namespace is new
    try:
        distributed.init("cpu", MINUTES)
        layer, newest = fresh_layer(), checkpoint.latest(folder / "checkpoints")
        saved = checkpoint.load(newest) if newest else {"step": 0, "layer": layer.state_dict()}
        layer.load_state_dict(saved["layer"])
        for step in range(saved["step"], STEPS):
            if step == CUT and saved["step"] == 0:
                (folder / f"ready{rank}").touch()
                waiting.until((folder / "cut").exists)
            total = gradient(layer, step, rank)
            distributed.start_sum_(total).wait()
            step_(layer, total)
            if distributed.is_main():
                state = {"step": step + 1, "layer": layer.state_dict()}
                checkpoint.save(folder / "checkpoints", step + 1, state)
            distributed.barrier()
    except distributed.PeerLost as error:
        (folder / f"error{rank}").write_text(str(error))
        os._exit(1)
    distributed.shutdown()


def test_two_nodes_that_lose_their_link_end_within_the_timeout_and_resume(nodes, tmp_path):
    """The cable between two network namespaces is taken down in a step, which nobody tells the processes."""

    def start() -> list:
        pairs = enumerate(nodes.processes)
        context = get_context("spawn")
        ranks = [context.Process(target=_train_on_a_node, args=(tmp_path, *pair)) for pair in pairs]
        for process in ranks:
            process.start()
        return ranks

    ranks = start()
    waiting.until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)), *ranks)
    switch(nodes, "down")
    (tmp_path / "cut").touch()
    waiting.join(*ranks)
    assert [process.exitcode for process in ranks] == [1, 1]
    for rank in (0, 1):
        line = (tmp_path / f"error{rank}").read_text()
        assert line.startswith(f"process {rank} lost another process in all-reduce: "), line
        assert "\n" not in line and "Timed out waiting 6000ms" in line, line
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert checkpoint.latest(tmp_path / "checkpoints") == files[-1] and len(files) == 2
    assert checkpoint.load(files[-1])["step"] == CUT
    switch(nodes, "up")
    ranks = start()
    waiting.join(*ranks)
    assert [process.exitcode for process in ranks] == [0, 0]
    layer = fresh_layer()
    for step in range(STEPS):  # a run without a fault
        step_(layer, gradient(layer, step, 0) + gradient(layer, step, 1))
    end = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"))
    assert end["step"] == STEPS and torch.equal(end["layer"]["weight"], layer.weight)
    assert torch.equal(end["layer"]["bias"], layer.bias)
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.endswith(".tmp")]
