# SPDX-License-Identifier: Apache-2.0
"""--compile=graphs on a device: gradients are those of other steps, replays neither wait nor allocate, and a
phase that cannot be captured runs without a graph. Skips itself without a device.
"""

import contextlib

import pytest
import torch

from tests.toy_data import make_zip
from tests.toy_runs import config
from training import build, compiled, graphs, steps
from training.inputs import InputSource
from training.run import restore
from training.state import TrainState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("full_float32"),
]
DEVICE = torch.device("cuda", 0)
PATH_LENGTHS = {"loss__pl_start_kimg": 0, "loss__pl_interval": 1}
SONA = {"discriminator__heads": "sona", "discriminator__bn_group": 4, "loss__d_loss": "bce"}


class Run:
    """A run of two micro-batches per step whose weights do not move, so that rounding does not add up."""

    def __init__(self, data: str, mode: str, **changes) -> None:
        self.cfg = config(
            data,
            run__batch_gpu=4,
            run__precision="fp32",
            loss__diagnostics=False,
            loss__blur_init_sigma=1.9,
            loss__blur_fade_kimg=1e9,
            **changes,
        )
        dataset = build.make_dataset(self.cfg.data, 0)
        self.state: TrainState = restore.fresh_state(self.cfg, dataset, DEVICE)
        compiled.compile_step(self.state, mode)
        for optimizer in (self.state.g_opt, self.state.d_opt):
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        self.inputs = InputSource.of(self.cfg, dataset.labels, self.state.G.z_dim, DEVICE, 1, 0)
        self.pixels = torch.stack([torch.from_numpy(dataset[i][0].copy()) for i in range(8)])
        self.labels = torch.tensor([dataset[i][1] for i in range(8)])

    def train(self, count: int) -> None:
        for _ in range(count):
            steps.train_step(self.state, self.inputs, self.cfg, self.pixels, self.labels)
        self.state.guard.check()

    def gradients(self) -> torch.Tensor:
        """Of the last step: Adam's first moments, since beta1 is 0."""
        moments = [s["exp_avg"] for o in (self.state.g_opt, self.state.d_opt) for s in o.state.values()]
        return torch.cat([x.flatten() for x in moments]).double()


@pytest.mark.parametrize("changes", [{}, PATH_LENGTHS, SONA])
def test_gradients_from_graphs_are_those_of_others(tmp_path, changes):
    data = make_zip(tmp_path, "three16", classes=3, count=24)
    runs = [Run(data, mode, **changes) for mode in (compiled.OFF, compiled.GRAPHS)]
    for run in runs:
        run.train(5)
    assert runs[1].state.graphs is not None and runs[1].state.graphs.refused == {}
    wanted, found = (run.gradients() for run in runs)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    torch.testing.assert_close(runs[1].state.G.mapping.w_avg, runs[0].state.G.mapping.w_avg)


def test_replays_neither_wait_nor_allocate(tmp_path, monkeypatch):
    run = Run(make_zip(tmp_path, "three16", classes=3, count=24), compiled.GRAPHS)
    run.train(4)
    state, loss, sigma = run.state, run.cfg.loss, run.cfg.blur_init_sigma
    monkeypatch.setattr(graphs.Graphs, "_watch", None)  # all phases have graphs by now
    reals = run.inputs.real_micro_batches(0, run.pixels, run.labels)
    allocated = []
    for _ in range(2):
        rounds = [run.inputs.micro_batches(name, 0) for name in "GD"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps.g_step(state, rounds[0], loss, sigma)
            steps.d_step(state, rounds[1], reals, loss, sigma)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        state.guard.check()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[0] == allocated[1]


def test_a_phase_that_cannot_be_captured_runs_without_a_graph(capsys):
    found = graphs.Graphs(graphs.CudaRecorder(DEVICE))
    p = torch.nn.Parameter(torch.ones(3, device=DEVICE))

    def phase(x: torch.Tensor, during) -> None:
        loss = (p * x).sum()
        torch.cuda.synchronize()
        with during():
            loss.backward()

    for step in range(4):
        x = torch.full((3,), float(step), device=DEVICE)
        found.run("toy", phase, {"p": p}, (x,), contextlib.nullcontext, step)
        assert torch.equal(p.grad, x)
        p.grad = None
    assert capsys.readouterr().out.startswith(
        "Warning: --compile=graphs: the phase 'toy' runs without a graph:"
    )
    assert list(found.refused) == ["toy"]
