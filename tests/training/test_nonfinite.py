# SPDX-License-Identifier: Apache-2.0
"""Whose fault a gradient that is not finite is: the network and the tensor that a step names."""

import copy

import pytest
import torch

from san.layers import SANLogits
from tests.toy_runs import config
from training import build, guard, nonfinite, steps
from training.inputs import InputSource
from training.run import restore


@pytest.fixture(scope="module")
def data(toy_zip) -> str:
    return toy_zip


@pytest.fixture(scope="module")
def fresh(data):
    """(config, data set, state) of a run at its fourth step."""
    cfg = config(data)
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, torch.device("cpu"))
    state.progress.step, state.progress.nimg = 3, 24
    return cfg, dataset, state


@pytest.fixture
def run(fresh):
    """A state and what trains it for a step."""
    cfg, dataset, state = copy.deepcopy(fresh)
    inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, torch.device("cpu"), 1, 0)
    pixels = torch.stack([torch.from_numpy(dataset[i][0].copy()) for i in range(8)])
    return state, lambda: steps.train_step(
        state, inputs, cfg, pixels, torch.tensor([dataset[i][1] for i in range(8)])
    )


def first(params) -> tuple[str, torch.nn.Parameter]:
    return next((name, p) for name, p in params.items() if p.ndim > 1)


def refused(train) -> str:
    with pytest.raises(guard.NonFiniteError) as caught:
        train()
    return str(caught.value)


def test_a_step_without_faults_passes(run):
    state, train = run
    train()
    assert state.progress.step == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("network", [nonfinite.DISCRIMINATOR, nonfinite.GENERATOR])
def test_a_weight_is_its_networks(network, value, run):
    """The generator's step comes first, and meets both."""
    state, train = run
    name, parameter = first(state.d_params if network == nonfinite.DISCRIMINATOR else state.g_params)
    with torch.no_grad():
        parameter[(0,) * parameter.ndim] = value
    assert refused(train) == f"{network}: step 3, at 24 images: '{name}' is not finite"


def test_logits_that_overflow_are_the_discriminators(run, monkeypatch):
    state, train = run
    real = state.D.forward

    def overflowing(img, c=None, draws=None, batches=1):
        return {
            name: SANLogits(x.fun * 1e38 * 1e38, x.dir) for name, x in real(img, c, draws, batches).items()
        }

    monkeypatch.setattr(state.D, "forward", overflowing)
    message = refused(train)
    assert (
        message.startswith("discriminator: step 3, at 24 images: a logit of test_efficientnet")
        and "not finite" in message
    )


def test_a_gradient_through_the_discriminator_is_its_own(run, monkeypatch):
    state, train = run
    real = state.D.forward

    def steep(img, c=None, draws=None, batches=1):
        logits = real(img, c, draws, batches)
        edge = torch.sqrt((img * 0).sum())  # 0, with an infinite slope
        return {name: SANLogits(x.fun + edge, x.dir) for name, x in logits.items()}

    monkeypatch.setattr(state.D, "forward", steep)
    assert refused(train).startswith(
        "discriminator: step 3, at 24 images: the gradient of test_efficientnet's logits"
    )


def test_a_gradient_within_the_generator_is_its_own(run, monkeypatch):
    state, train = run
    real = state.G.synthesis.forward

    def steep(ws, *args, **kwargs):
        return real(ws, *args, **kwargs) + torch.sqrt((ws * 0).sum())

    monkeypatch.setattr(state.G.synthesis, "forward", steep)
    message = refused(train)
    assert message.startswith(
        "generator: step 3, at 24 images: the gradient of 'mapping"
    ) and message.endswith("is not finite")


def test_images_that_are_not_finite_are_the_generators(run, monkeypatch):
    state, train = run
    real = state.G.synthesis.forward
    monkeypatch.setattr(
        state.G.synthesis, "forward", lambda ws, *args, **kwargs: real(ws, *args, **kwargs) * float("nan")
    )
    assert refused(train) == "generator: step 3, at 24 images: an image is not finite"


def test_a_fault_of_the_discriminators_own_step_is_named_there(run, monkeypatch):
    """Its loss on real images, which the generator's step does not see."""
    state, train = run
    real = state.D.forward

    def of_reals(img, c=None, draws=None, batches=1):
        logits = real(img, c, draws, batches)
        return (
            logits
            if img.requires_grad or not torch.is_grad_enabled()
            else {k: SANLogits(x.fun, x.dir * float("inf")) for k, x in logits.items()}
        )

    monkeypatch.setattr(state.D, "forward", of_reals)
    message = refused(train)
    assert message.startswith("discriminator: step 3, at 24 images: ") and message.endswith("is not finite")


@pytest.fixture
def deferred(run):
    """As on CUDA: faults are read one step later."""
    state, train = run
    state.guard.deferred = True
    return state, train


def updated(state) -> dict[str, torch.Tensor]:
    """What optimizers write: weights, moments and step counts."""
    weights = {f"G.{name}" for name in state.g_params} | {f"D.{name}" for name in state.d_params}
    chosen = {
        name: x
        for name, x in state.tensors().items()
        if name in weights or name.startswith(("g_opt.", "d_opt."))
    }
    assert len(chosen) > 3 * len(weights)
    return chosen


def spoil_once(state, monkeypatch, network: str) -> None:
    """Make the logits of one pass of a network's next step not finite."""
    real = state.D.forward

    def once(img, c=None, draws=None, batches=1):
        logits = real(img, c, draws, batches)
        if img.requires_grad == (network == nonfinite.GENERATOR):
            monkeypatch.setattr(state.D, "forward", real)
            return {k: SANLogits(x.fun * float("nan"), x.dir) for k, x in logits.items()}
        return logits

    monkeypatch.setattr(state.D, "forward", once)


@pytest.mark.parametrize("network", [nonfinite.DISCRIMINATOR, nonfinite.GENERATOR])
def test_a_deferred_guard_keeps_all_weights_from_the_fault_on(deferred, network, monkeypatch):
    state, train = deferred
    train()
    spoil_once(state, monkeypatch, network)
    before: dict[str, torch.Tensor] = {}
    real = steps.apply_gradients

    def noting(params, optimizer, where, *rest):
        if not before and where.startswith(network):
            before.update({name: x.clone() for name, x in updated(state).items()})
        real(params, optimizer, where, *rest)

    monkeypatch.setattr(steps, "apply_gradients", noting)
    train()  # the fault, which is not yet known
    assert state.progress.step == 5
    message = refused(train)
    assert message.startswith(f"{network}: step 4, at 32 images: the gradient of '")
    # Directions are normalised again, which rounds.
    torch.testing.assert_close(updated(state), before, rtol=1e-6, atol=0)


def test_a_deferred_guard_is_asked_before_anything_is_written(deferred, monkeypatch):
    state, train = deferred
    spoil_once(state, monkeypatch, nonfinite.GENERATOR)
    train()
    assert refused(state.guard.check).startswith("generator: step 3, at 24 images: ")
    state.guard.check()  # nothing is left to read


def test_a_deferred_guard_changes_no_result(fresh):
    results = []
    for deferred in (False, True):
        cfg, dataset, state = copy.deepcopy(fresh)
        state.guard.deferred = deferred
        inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, torch.device("cpu"), 1, 0)
        pixels = torch.stack([torch.from_numpy(dataset[i][0].copy()) for i in range(8)])
        labels = torch.tensor([dataset[i][1] for i in range(8)])
        for _ in range(2):
            steps.train_step(state, inputs, cfg, pixels, labels)
        state.guard.check()
        results.append(state.tensors())
    assert all(torch.equal(x, results[1][name]) for name, x in results[0].items())
