# SPDX-License-Identifier: Apache-2.0
"""--compile=graphs on a CPU, where a tape stands for a CUDA graph: steps from graphs are those of others to
the bit, and what a graph cannot contain is found before it is captured.

A tape keeps all operations of a call with the very tensors that they read and wrote. Replaying it runs the
same operations on the same memory, as a CUDA graph does: tensors that the call got from elsewhere, and Python
values, are those of the capture.
"""

import contextlib
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.toy_runs import BACKBONE, config
from torch_utils import distributed, features, timm_weights, training_stats
from training import build, generator, graphs, steps
from training.discriminator import ProjectedDiscriminator
from training.inputs import InputSource
from training.run import restore
from training.state import TrainState

CPU = torch.device("cpu")
STEPS = 7


class Tape(TorchDispatchMode):
    """The operations within, and `replay`, which runs them again on the same tensors.

    Attributes:
        operations: Of each: the function, its arguments, and the new tensors among its results, by place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[tuple[int, torch.Tensor]]]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = {x.untyped_storage()._cdata for x in pytree.tree_leaves((args, kwargs)) if is_tensor(x)}
        made = [
            (i, x)
            for i, x in enumerate(pytree.tree_leaves(result))
            if is_tensor(x) and x.untyped_storage()._cdata not in read  # neither a view nor in place
        ]
        self.operations.append((func, args, kwargs, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self.operations:
            result = pytree.tree_leaves(func(*args, **kwargs))
            for i, x in made:
                x.copy_(result[i])


def is_tensor(x: object) -> bool:
    return isinstance(x, torch.Tensor)


class Recorder:
    """Makes tapes."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def apart(self):
        return contextlib.nullcontext()

    def capture(self, call):
        tape = Tape()
        with tape:
            results = call()
        self.tapes.append(tape)
        return tape.replay, results


@pytest.fixture(autouse=True)
def unread_labels(monkeypatch):
    """As on CUDA, where networks do not check the values of labels."""
    monkeypatch.setattr(generator.MappingNetwork, "labels", lambda self, c, batch: c)
    monkeypatch.setattr(ProjectedDiscriminator, "_check", lambda self, img, c: c)


class Run:
    """A run at its start."""

    def __init__(self, cfg, graphs_of: graphs.Graphs | None) -> None:
        self.cfg, self.dataset = cfg, build.make_dataset(cfg.data, 0)
        self.state = restore.fresh_state(cfg, self.dataset, CPU)
        self.state.graphs = graphs_of
        self.classifier, self.reals = None, build.make_reals(cfg, self.dataset, CPU)
        if cfg.loss.cls_weight > 0:
            self.classifier = features.classifier(BACKBONE, timm_weights.RANDOM)
            self.classifier.class_map = torch.arange(self.dataset.label_dim)

    def train(self, count: int = STEPS) -> TrainState:
        inputs = InputSource.of(self.cfg, self.dataset.labels, self.state.G.z_dim, CPU, 1, 0)
        for indices, _ in zip(inputs.real_indices(0, len(self.dataset)), range(count), strict=False):
            images = [self.dataset[i] for i in indices]
            pixels = torch.stack([torch.from_numpy(x.copy()) for x, _ in images])
            labels = torch.tensor([label for _, label in images])
            steps.train_step(
                self.state, inputs, self.cfg, pixels, labels, self.classifier, reals_of_classes=self.reals
            )
        return self.state


def assert_same(state: TrainState, wanted: TrainState) -> None:
    """Weights, moments of the optimizers and averages, to the bit."""
    torch.testing.assert_close(state.tensors(), wanted.tensors(), rtol=0, atol=0)


CASES = {
    "one micro-batch": {},
    "two micro-batches, a blur whose radius falls, plain GAN": {
        "run__batch_gpu": 4,
        "loss__blur_init_sigma": 0.5,
        "loss__blur_fade_kimg": 0.08,
        "loss__san": False,
    },
    "path lengths, activations computed again": {
        "run__batch_gpu": 4,
        "run__checkpoint_activations": True,
        "loss__pl_start_kimg": 0,
        "loss__pl_interval": 1,
    },
    "SONA, energy distance, deviations within classes": {
        "run__batch_gpu": 4,
        "loss__energy_weight": 4,
        "discriminator__mbstd": True,
        "discriminator__heads": "sona",
        "discriminator__bn_group": 4,
        "loss__d_loss": "bce",
    },
    "pairs, unconditional": {"loss__d_loss": "relativistic", "loss__g_loss": "ns", "data__cond": False},
    "an expression, guidance": {"loss__g_loss": "d + 0.1*exp(d)", "loss__cls_weight": 2},
}


# What they have beyond the others runs within the captured functions.
REPEATS = {"pairs, unconditional", "an expression, guidance"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.exhaustive] * (case in REPEATS)) for case in CASES]
)
def test_steps_from_graphs_are_those_of_others(case, toy_zip):
    cfg = config(toy_zip, **CASES[case])
    recorder, states, statistics = Recorder(), [], []
    for graphs_of in (None, graphs.Graphs(recorder)):
        collector = training_stats.Collector()
        states.append(Run(cfg, graphs_of).train())
        collector.update()
        statistics.append({name: value for name, value in collector.as_dict().items() if value.num})
    assert states[1].graphs.refused == {}
    # the heads' diagnostics of the first step need hooks, then two steps are watched and one is captured
    assert len(recorder.tapes) >= 2 and sum(tape.replays for tape in recorder.tapes) >= 6
    assert_same(states[1], states[0])
    assert statistics[1] == statistics[0]


def test_means_over_processes_are_those_of_other_steps(toy_zip, monkeypatch):
    """The collectives are the same, in the same order, though none begins within a backward pass."""
    cfg = config(toy_zip, run__batch_gpu=4, loss__pl_start_kimg=0, loss__pl_interval=2)
    recorder = Recorder()
    runs = [Run(cfg, None), Run(cfg, graphs.Graphs(recorder))]
    calls: list[tuple[str, int]] = []

    def all_reduce(x, *op, async_op):
        calls.append(("sum", x.numel()))
        x.mul_(2)
        return Done()

    def all_gather(parts, x, async_op):
        calls.append(("gather", x.numel()))
        for part in parts:
            part.copy_(x)
        return Done()

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(distributed.dist, "all_gather", all_gather)
    wanted = runs[0].train()
    expected, calls[:] = list(calls), []
    state = runs[1].train()
    assert calls == expected and len(recorder.tapes) == 2  # G and D: path lengths are gathered on their way
    assert_same(state, wanted)


class Done:
    """A collective that has ended."""

    def wait(self) -> None:
        pass


def test_a_value_that_changes_with_the_steps_is_found(toy_zip, monkeypatch, capsys):
    adversarial = steps._adversarial
    monkeypatch.setattr(
        steps, "_adversarial", lambda state, *rest: adversarial(state, *rest) / (1 + state.progress.step)
    )
    cfg = config(toy_zip)
    recorder = Recorder()
    wanted, state = (Run(cfg, graphs_of).train(4) for graphs_of in (None, graphs.Graphs(recorder)))
    assert capsys.readouterr().out == (
        "Warning: --compile=graphs: the phase 'G' runs without a graph: its operations change: "
        "aten.div.Tensor[(), 2], then aten.div.Tensor[(), 3]\n"
    )
    assert list(state.graphs.refused) == ["G"] and len(recorder.tapes) == 1
    assert_same(state, wanted)


def test_phases_run_without_graphs_after_a_failed_capture(toy_zip, capsys):
    class Failing(Recorder):
        def capture(self, call):
            try:
                raise RuntimeError("an operation that\nis not permitted")
            finally:
                raise RuntimeError("the capture was invalidated")

    cfg = config(toy_zip, run__batch_gpu=4)
    wanted, state = (Run(cfg, graphs_of).train(4) for graphs_of in (None, graphs.Graphs(Failing())))
    assert capsys.readouterr().out == (
        "Warning: --compile=graphs: the phase 'G' runs without a graph: an operation that is not permitted\n"
    )
    assert_same(state, wanted)


class Toy:
    """A phase of two weights, and what it has run."""

    def __init__(self, body):
        self.params = {name: torch.nn.Parameter(torch.ones(3)) for name in "ab"}
        self.body, self.recorder, self.step = body, Recorder(), 0
        self.graphs = graphs.Graphs(self.recorder)

    def __call__(self, x: torch.Tensor, value: float = 1.0) -> torch.Tensor:
        def phase(x, value, during):
            loss = self.body(self, x) * value
            loss.backward()
            return loss.detach()

        result = self.graphs.run("toy", phase, self.params, (x, value), contextlib.nullcontext, self.step)
        self.step += 1
        return result


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda toy, x: (toy.params["a"] * x).sum() * x.sum().item(), "_local_scalar_dense.default reads"),
        (lambda toy, x: (toy.params["a"] * x)[x > 0].sum(), "index.Tensor selects by values"),
        (lambda toy, x: (toy.params["a"] * x * torch.rand(3)).sum(), "rand.default draws random numbers"),
        (lambda toy, x: (toy.params["a"] * x).sum() * toy.step, "its operations change: aten.mul.Tensor"),
        (lambda toy, x: (toy.params["a"] * x * torch.tensor(toy.step)).sum(), "change: aten.lift_fresh"),
        (
            lambda toy, x: (toy.params["ab"[toy.step]] * x).sum(),
            "a gradient of a, then a gradient of b",
        ),
    ],
)
def test_what_a_graph_cannot_contain_is_found(body, why, capsys):
    toy = Toy(body)
    for _ in range(2):
        toy(torch.ones(3))
    assert why in toy.graphs.refused["toy"]
    assert capsys.readouterr().out.count("\n") == 1


def test_attention_and_selections_by_integers_are_allowed():
    q = torch.ones(1, 1, 4, 8)
    with graphs.Watch() as watch:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        torch.arange(4)[torch.tensor([1, 2])]
    assert watch.program and watch.problem == ""


def test_copies_between_devices_are_found():
    with graphs.Watch() as watch:
        torch.ones(3).to("meta")
    assert watch.problem == "aten._to_copy.default copies between devices"


def test_values_and_shapes_have_graphs_of_their_own_which_share_gradients():
    toy = Toy(lambda toy, x: (toy.params["a"] * x).sum())
    for step in range(5):
        toy.params["a"].grad = torch.full((3,), 5.0)  # of an earlier pass, without a graph
        for x, value in ((1.0, 1.0), (2.0, 1.0), (1.0, 3.0)):
            toy.step = step
            assert toy(torch.full((3,), x), value) == 3 * x * value
        toy.step = step
        assert toy(torch.ones(1)) == 3
        assert torch.equal(toy.params["a"].grad, torch.full((3,), 5.0 + 1.0 + 2.0 + 3.0 + 1.0))
        assert toy.params["b"].grad is None
    assert [tape.replays for tape in toy.recorder.tapes] == [5, 2, 2]
