# SPDX-License-Identifier: Apache-2.0
"""Means of gradients that begin during the backward pass: their values, their order, missing gradients."""

import pytest
import torch

from torch_utils import distributed, launcher
from torch_utils.reduction import Reduction


class Net(torch.nn.Module):
    """Integer weights, so that sums are exact in any order. `unused` takes no part, `narrow` is bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)  # not contiguous
        self.sometimes = torch.nn.Parameter(torch.ones(2))
        self.unused = torch.nn.Parameter(torch.ones(4))
        self.narrow = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.b = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.a
        if x[0, 0] == 0:  # of the first samples alone
            y = y * self.sometimes
        return (y * self.narrow.float() * self.b).sum()


def _gradients(bucket_bytes: int, begin: bool = True) -> dict[str, torch.Tensor | None]:
    """Mean gradients of eight micro-batches of one sample, shared between all processes."""
    distributed.init("cpu")
    net = Net()
    reduction = Reduction(reversed(list(net.parameters())), bucket_bytes)
    mine = range(distributed.rank(), 8, distributed.world_size())
    for i in mine:
        x = torch.arange(3.0 * i, 3.0 * i + 3)[None]
        with reduction.during(last=begin and i == mine[-1]):
            net(x).div(len(mine)).backward()
    reduction.finish()
    return {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize(("processes", "bucket_bytes"), [(2, 16), (4, 2**20)])
def test_means_are_those_of_one_process(processes, bucket_bytes):
    """One bucket per parameter and dtype, and one per dtype."""
    expected = _gradients(bucket_bytes)
    assert expected["unused"] is None and expected["sometimes"] is not None
    found = launcher.launch(_gradients, processes, bucket_bytes)
    for name, x in expected.items():
        assert (x is None) == (found[name] is None), name
        assert x is None or (torch.equal(x, found[name]) and x.stride() == found[name].stride()), name


class Group:
    """In the place of torch.distributed for two processes with the same gradients: notes what happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed.dist, "get_backend", lambda: "gloo")
        monkeypatch.setattr(distributed.dist, "all_reduce", self.all_reduce)

    def all_reduce(self, x: torch.Tensor, async_op: bool) -> "Group":
        assert async_op
        self.events.append(f"begin {x.numel()}")
        x.mul_(2)
        return self

    def wait(self) -> None:
        self.events.append("wait")


@pytest.fixture
def group(monkeypatch) -> Group:
    return Group(monkeypatch)


@pytest.fixture
def layers() -> list[torch.nn.Linear]:
    return [torch.nn.Linear(n, n, bias=False) for n in (4, 4, 4)]


def test_a_mean_begins_before_the_last_gradient_and_ends_in_finish(group, layers):
    params = [layer.weight for layer in layers]
    params[0].register_hook(lambda grad: group.events.append("first layer"))
    reduction = Reduction(reversed(params), bucket_bytes=1)
    net = torch.nn.Sequential(*layers)
    with reduction.during(last=False):
        net(torch.ones(1, 4)).sum().backward()
    assert group.events == ["first layer"]
    with reduction.during(last=True):
        net(torch.ones(1, 4)).sum().backward()
    assert group.events[1:] == ["begin 17", "begin 17", "first layer", "begin 17"]
    before = [p.grad.clone() for p in params]
    reduction.finish()
    assert group.events[5:] == ["wait"] * 3
    assert all(torch.equal(p.grad, x) for p, x in zip(params, before, strict=True))
    net(torch.ones(1, 4)).sum().backward()  # no hook is left
    assert group.events[-1] == "first layer"


def test_the_order_does_not_depend_on_which_gradients_there_are(group, layers):
    """Layers of 16, 1 and 4 weights; a pass without the second, or in another order."""
    layers[1:] = [torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(2, 2, bias=False)]
    x = [torch.ones(1, 4), torch.ones(1, 1), torch.ones(1, 2)]
    for used in ([0, 1, 2], [0, 2], [2, 1, 0], []):
        group.events.clear()
        reduction = Reduction([layer.weight for layer in layers], bucket_bytes=1)
        with reduction.during(last=True):
            if used:
                sum(layers[i](x[i]).sum() for i in used).backward()
        assert group.events == ["begin 17", "begin 2", "begin 5"]
        reduction.finish()
        assert [layer.weight.grad is not None for layer in layers] == [i in used for i in range(3)]
        for layer in layers:
            layer.weight.grad = None


def test_a_second_gradient_after_the_mean_began_is_an_error(group, layers):
    reduction = Reduction([layers[0].weight], bucket_bytes=1)
    with pytest.raises(RuntimeError, match="after its mean over processes was begun"), reduction.during(True):
        for _ in range(2):
            layers[0](torch.ones(1, 4)).sum().backward()
