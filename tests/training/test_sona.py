# SPDX-License-Identifier: Apache-2.0
"""--heads=sona: the heads, the steps, runs that resume, and files."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import san
import train
from san.sona import TERMS
from tests.toy_runs import BACKBONE, assert_equal_states, command_line, config, final_state, train_here
from torch_utils import training_stats
from training import build, steps
from training.config import TrainConfig
from training.inputs import InputSource
from training.networks import files
from training.progressive import recipe
from training.run import auto_batch, restore

SONA = {"discriminator__heads": "sona", "loss__d_loss": "bce", "run__variety": 0}
KEY = f"discriminators.{BACKBONE}"


def fresh(cfg: TrainConfig):
    """(state, inputs, pixels, labels) of a run at its start."""
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, torch.device("cpu"))
    inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, torch.device("cpu"), 1, 0)
    images = [dataset[i % len(dataset)] for i in range(cfg.run.batch)]
    pixels = torch.stack([torch.from_numpy(image.copy()) for image, _ in images])
    return state, inputs, pixels, torch.tensor([label for _, label in images])


@pytest.fixture(scope="module")
def parts(toy_zip):
    """A configuration with two micro-batches, and its run at the start."""
    cfg = config(toy_zip, run__batch=8, run__batch_gpu=4, discriminator__bn_group=4, **SONA)
    return cfg, *fresh(cfg)


def test_the_heads_of_a_backbone_share_their_weights_and_average_their_alignment(parts):
    _, state, inputs, pixels, labels = parts
    images = inputs.real_micro_batches(0, pixels, labels)[0].images
    (logits,) = state.D(images, labels[:4]).values()
    heads = state.D.discriminators[BACKBONE]
    assert logits.fun.shape == logits.dir.shape and logits.fun.shape[0] == 4
    torch.testing.assert_close(logits.fun, logits.dir)
    torch.testing.assert_close(logits.crossed.diagonal(), logits.align)
    maps = state.D._features(BACKBONE, images)
    alone = [head(x, labels[:4]) for head, x in zip(heads.mini_discs, maps, strict=True)]
    sizes = torch.tensor([float(x.fun[0].numel()) for x in alone])
    mean = sum(n * x.align for n, x in zip(sizes, alone, strict=True)) / sizes.sum()
    torch.testing.assert_close(logits.align, mean)
    names = set(state.D.trainable_parameters())
    assert {f"{KEY}.weights.log_squares", f"{KEY}.mini_discs.0.sona.embed.weight"} <= names
    assert names == set(state.D.saved_state_dict()) & names
    (weights,) = state.D.sona_weights().values()
    torch.testing.assert_close(weights, torch.full((3,), 3**-0.5))


def test_steps_train_everything_and_compare_images_of_the_same_class(parts, monkeypatch):
    cfg, state, inputs, pixels, labels = parts
    asked = []
    forward = state.G.mapping.forward
    monkeypatch.setattr(
        state.G.mapping, "forward", lambda z, c, **more: asked.append(c.tolist()) or forward(z, c, **more)
    )
    collector = training_stats.Collector(keep_previous=False)
    before = {name: p.detach().clone() for name, p in (state.d_params | state.g_params).items()}
    steps.train_step(state, inputs, cfg, pixels, labels)
    classes = [labels[:4].tolist(), labels[4:].tolist()]
    assert asked == classes * 2, "in both steps, images are generated for the classes of the real ones"
    still = [n for n, p in (state.d_params | state.g_params).items() if torch.equal(before[n], p)]
    assert not [n for n in still if n in state.d_params], still
    for layer in state.D.modules():
        if isinstance(layer, (san.sona.Directions, san.SANLinear)):
            torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(len(layer.weight)))
    collector.update()
    squares = [collector[f"SONA/weight/{term}"] ** 2 for term in TERMS]
    assert sum(squares) == pytest.approx(1, abs=1e-5)
    for name in ("Loss/D/conditional", "Loss/D/matching", "Loss/G/conditional", "Diagnostics/direction"):
        assert np.isfinite(collector[name]), name
    assert np.isfinite(collector[f"Diagnostics/direction/{BACKBONE}.mini_discs.0"])
    asked.clear()
    steps.train_step(state, inputs, cfg, pixels, labels, most=1)  # as the trials of --batch-gpu=auto
    assert asked == classes[:1] * 2


def test_micro_batches_of_whole_groups_give_the_same_gradients(parts, toy_zip):
    cfg, _, _, pixels, labels = parts
    found = []
    for size in (4, 8):
        one = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, batch_gpu=size))
        state, inputs, _, _ = fresh(one)
        state.D.normalize_ = lambda: None
        state.d_opt.step = lambda state=state: found.append(
            {name: p.grad.clone() for name, p in state.d_params.items()}
        )
        reals = inputs.real_micro_batches(0, pixels, labels)
        steps.d_step(state, inputs.micro_batches("D", 0), reals, one.loss, 0.0)
    total = sum(float(g.square().sum()) for g in found[0].values())
    error = sum(float((found[0][name] - found[1][name]).square().sum()) for name in found[0])
    assert total > 0 and error < 1e-8 * total


def test_runs_resume_exactly_and_files_keep_the_heads(toy_zip, tmp_path):
    cfg = config(toy_zip, run__kimg=0.016, run__tick=0.008, **SONA)
    half = config(toy_zip, run__kimg=0.008, run__tick=0.008, **SONA)
    train_here(cfg, tmp_path / "whole")
    train_here(half, tmp_path / "parts")
    train_here(cfg, tmp_path / "parts")
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))

    (pickle,) = (tmp_path / "whole").glob("network-snapshot-*16.pkl")
    first = files.read(pickle)
    trained = final_state(tmp_path / "whole")["D"]
    assert first.tensors["D"].keys() == trained.keys()
    files.write_safetensors(tmp_path / "n.safetensors", first)
    again = files.read(tmp_path / "n.safetensors").tensors["D"]
    assert all(torch.equal(again[name], tensor) for name, tensor in trained.items())

    with pytest.raises(ValueError, match="networks with other options: resume with those of"):
        train_here(config(toy_zip, run__kimg=0.024), tmp_path / "whole")
    state, *_ = fresh(config(toy_zip, run__init_from=str(pickle), **SONA))
    taken = state.D.saved_state_dict()
    for name, tensor in trained.items():  # directions are normalised once more
        torch.testing.assert_close(taken[name], tensor)
    assert not torch.equal(taken[f"{KEY}.weights.log_squares"], torch.zeros(3))
    other, *_ = fresh(config(toy_zip, run__init_from=str(pickle)))  # projection heads
    ours = other.D.saved_state_dict()
    shared = [n for n in ours if n in trained]
    assert shared and all(torch.equal(ours[n], trained[n]) for n in shared)
    assert "new last layer" not in str(other.started_from) and "new classes" in str(other.started_from)


def test_the_command_line_and_recipes(toy_zip, tmp_path):
    arguments = command_line(tmp_path, toy_zip, "--heads=sona", "--d-loss=bce", "--dry-run")
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"^ *discriminator\.heads +sona +given", result.output, re.M)
    result = CliRunner().invoke(train.main, [*arguments, "--cond=False"])
    assert result.exit_code == 1 and result.output.strip().splitlines()[-1].startswith("Error: --heads=sona")
    (tmp_path / "two.yaml").write_text(
        "name: two\nclasses: 3\noptions: {cond: true, heads: sona, d_loss: bce}\n"
        "stages: [{resolution: 16}, {resolution: 32, heads: projection}]\n"
    )
    stages = recipe.load(str(tmp_path / "two.yaml")).stages
    assert [stage.flags["heads"] for stage in stages] == ["sona", "projection"]


def test_automatic_micro_batches_have_images_to_compare(toy_zip):
    tried = []
    cfg = config(toy_zip, run__batch_gpu="auto", **SONA)
    with pytest.raises(ValueError, match="--batch-gpu=auto"):
        auto_batch.largest(cfg, lambda n: tried.append(n) or n == 1)
    assert tried == [8, 4, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__cond": False}, "--heads=sona needs --cond True"),
        ({"loss__san": False}, "--san=False: --heads=sona has no plain GAN"),
        ({"loss__d_loss": "relativistic"}, "--d-loss=relativistic compares pairs: use another"),
        ({"run__batch_gpu": 1}, "in a micro-batch of 1: both must be at least 2"),
        ({"discriminator__bn_group": 1}, "groups of --bn-group=1 in a micro-batch of 8"),
        ({"discriminator__heads": "sonar"}, "--heads=sonar is not supported: use projection or sona"),
    ],
)
def test_options_that_do_not_fit_are_one_line(toy_zip, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        config(toy_zip, **(SONA | changes))
    assert "\n" not in str(error.value)
