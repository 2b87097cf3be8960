# SPDX-License-Identifier: Apache-2.0
"""Converted discriminators on several processes: the usual loops, with D not frozen in the generator's
step.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import spectral_norm

import san

PROCESSES = 2
SAMPLES = 6  # of each process


class Projection(nn.Module):
    """Two heads, one of them spectrally normalised: scales among parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.linear, self.embed = (
            nn.Linear(8, 6),
            spectral_norm(nn.Linear(6, 1)),
            nn.Embedding(3, 6),
        )

    def forward(self, x, y):
        h = torch.nn.functional.leaky_relu(self.body(x), 0.2)
        return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)


def converted() -> nn.Module:
    return san.convert(Projection(), ["linear", "embed"])


def train(D, part: slice, normalize=san.normalize_, steps: int = 3) -> list[torch.Tensor]:
    """A GAN's loop on a part of each batch; D is not frozen in the generator's step, as in HiFi-GAN's
    code.
    """
    torch.manual_seed(1)
    G = nn.Linear(4, 8)
    d_opt, g_opt = torch.optim.SGD(D.parameters(), 0.1), torch.optim.SGD(G.parameters(), 0.0)
    for step in range(steps):
        torch.manual_seed(10 + step)
        real, z = torch.randn(PROCESSES * SAMPLES, 8)[part], torch.randn(PROCESSES * SAMPLES, 4)[part]
        y = (torch.arange(PROCESSES * SAMPLES) % 3)[part]
        fake = G(z)
        d_opt.zero_grad()
        san.discriminator_objective(D(real, y), D(fake.detach(), y), "bce").backward()
        d_opt.step()
        normalize(D)
        g_opt.zero_grad()
        san.generator_terms(D(fake, y).fun, "ns").mean().backward()
        g_opt.step()
    return [p.detach().clone() for p in D.parameters()]


def close(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def check_ddp(part: slice, expected: list[torch.Tensor]) -> None:
    for options in ({}, {"static_graph": True}):
        close(train(DistributedDataParallel(converted(), **options), part), expected)


def check_fsdp2(part: slice, expected: list[torch.Tensor]) -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    D, other = fully_shard(converted()), fully_shard(converted())
    train(D, part)
    close([p.full_tensor() for p in D.parameters()], expected)
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(other, get_model_state_dict(D, options=whole), options=whole)
    x, y = torch.ones(3, 8), torch.arange(3)
    torch.testing.assert_close(other(x, y).fun, D(x, y).fun)
    with pytest.raises(ValueError, match="convert before wrapping it in FSDPModule"):
        san.convert(D)
    with pytest.raises(ValueError, match="a FSDPModule depends on the parameters"):
        san.restore(D)


def check_fsdp1(part: slice, expected: list[torch.Tensor]) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    def whole(D):
        with FSDP.summon_full_params(D):
            san.normalize_(D)

    for original in (True, False):
        D = FSDP(converted(), use_orig_params=original, device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match=r"flat shards.*summon_full_params.*fully_shard"):
            san.normalize_(D)
        train(D, part, whole)
        state = converted()
        state.load_state_dict(D.state_dict())
        close(state.parameters(), expected)
    with pytest.raises(ValueError, match="before wrapping it in FullyShardedDataParallel"):
        san.convert(D)


def work(rank: int, store: str, expected: list[torch.Tensor]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    part = slice(rank * SAMPLES, (rank + 1) * SAMPLES)
    for check in (check_ddp, check_fsdp2, check_fsdp1):
        check(part, expected)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_processes_train_as_one(tmp_path):
    expected = train(converted(), slice(None))
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"), expected), nprocs=PROCESSES)
