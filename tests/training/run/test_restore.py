# SPDX-License-Identifier: Apache-2.0
"""From a run folder to a state: a fresh one, or that of the newest checkpoint."""

import zipfile

import pytest
import torch

from tests.toy_data import make_zip
from tests.toy_runs import BACKBONE, assert_equal_states, config
from torch_utils import checkpoint
from training import build, run_folder
from training.config import to_json
from training.run import local_copies, restore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(toy_zip, tmp_path_factory):
    """(run folder, state) with checkpoints at 8 and 16 images."""
    cfg = config(toy_zip)
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, CPU)
    folder = tmp_path_factory.mktemp("run")
    for nimg in (8, 16):
        state.progress.nimg = nimg
        state.pl_mean.fill_(nimg)
        content = {
            "train": state.state_dict(),
            "running": {"tick_seconds": 1.5},
            "lineage": vars(state.lineage),
        }
        checkpoint.save(
            run_folder.checkpoint_folder(folder),
            nimg,
            {**content, "data_hash": dataset.content_hash()},
            keep=2,
        )
    return folder, state


def make(cfg, folder):
    return restore.make_state(cfg, build.make_dataset(cfg.data, 0), CPU, str(folder))


def test_a_folder_without_checkpoints_begins_at_zero(toy_zip, tmp_path):
    state, running = make(config(toy_zip), tmp_path)
    assert (state.progress.nimg, running) == (0, None)
    same, _ = make(config(toy_zip), tmp_path)
    assert_equal_states(same.state_dict(), state.state_dict())
    other, _ = make(config(toy_zip, run__seed=1), tmp_path)
    assert not torch.equal(other.G.mapping.embed.weight, state.G.mapping.embed.weight)


def test_the_newest_checkpoint_is_taken(saved, toy_zip):
    folder, state = saved
    found, running = make(config(toy_zip, run__seed=1), folder)
    assert running == {"tick_seconds": 1.5}
    assert_equal_states(found.state_dict(), state.state_dict())


def test_other_networks_and_other_data_are_refused_in_one_line(saved, toy_zip, tmp_path):
    folder, _ = saved
    other = make_zip(tmp_path, "other", classes=3, count=12)
    for cfg, message in (
        (config(toy_zip, generator__cmax=8), r"is of networks with other options: .* \(G's .* has shape \["),
        (config(toy_zip, data__cond=False), r"\(G's \S+ has shape \[.*\] there, .* with these options\)$"),
        (config(toy_zip, discriminator__heads="sona", loss__d_loss="bce"), r"\(D's \S+ has shape none there"),
        (config(other), f"--data={other} has changed since .*checkpoint-"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make(cfg, folder)
        assert "\n" not in str(error.value)


def test_a_checkpoint_that_does_not_load_says_why_in_one_line(saved, toy_zip, tmp_path):
    folder, _ = saved
    path = run_folder.newest_checkpoint(folder)
    content = checkpoint.load(path)
    del content["train"]["pl_mean"]
    checkpoint.save(run_folder.checkpoint_folder(tmp_path), 16, content)
    with pytest.raises(ValueError, match=r"cannot be loaded \(no 'pl_mean'\): resume from an earlier"):
        make(config(toy_zip), tmp_path)


def test_what_a_process_would_resume_from(saved, toy_zip, tmp_path):
    """The newest of the run folder and of this node's copy; nothing is copied."""
    source, _ = saved
    folder, local = tmp_path / "run", str(tmp_path / "disk")
    folder.mkdir()
    cfg = config(toy_zip, run__local_checkpoint=local)
    assert restore.checkpoint_here(cfg, folder) is None
    run_folder.identity(folder)
    place = local_copies.folder(local, folder)
    place.mkdir(parents=True)
    old, new = sorted(run_folder.checkpoint_folder(source).glob("*.pt"))
    mine = checkpoint.copy(new, place)
    assert restore.checkpoint_here(cfg, folder) == mine
    shared = checkpoint.copy(old, run_folder.checkpoint_folder(folder))
    assert restore.checkpoint_here(cfg, folder) == mine
    mine.unlink()
    assert restore.checkpoint_here(cfg, folder) == shared
    assert [path.name for path in run_folder.checkpoint_folder(folder).iterdir()] == [old.name]


@pytest.fixture
def recorded(saved, toy_zip, tmp_path):
    """A copy of that run folder with its options, and what today's checkpoints have."""
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = config(toy_zip)
    dataset = build.make_dataset(cfg.data, 0)
    content = checkpoint.load(run_folder.newest_checkpoint(saved[0]))
    content |= {"data_sample": dataset.sample_hash(), "backbones": {BACKBONE: "random:0"}}
    checkpoint.save(run_folder.checkpoint_folder(folder), 16, content)
    run_folder.write_json(folder / run_folder.OPTIONS_FILE, {"config": to_json(cfg)})
    return folder


def check(cfg, folder):
    dataset = build.make_dataset(cfg.data, cfg.run.seed)
    restore.check(cfg, dataset, folder, run_folder.newest_checkpoint(folder))


@pytest.mark.parametrize(
    ("changes", "began"),
    [
        ({"generator__map_lr_multiplier": 0.1}, "--map-lr-multiplier=0.01"),
        ({"data__class_embedding": "auto", "data__embed_dim": 9}, "--class-embedding=random, --embed-dim=8"),
    ],
)
def test_what_a_checkpoint_has_of_the_start_cannot_be_changed(changes, began, recorded, toy_zip):
    """The shapes of the weights do not show it: a mapping network with another factor is another function."""
    for resume in (check, make):
        with pytest.raises(ValueError, match=f": the run started with {began}, which its checkp") as error:
            resume(config(toy_zip, **changes), recorded)
        assert "\n" not in str(error.value)
    check(config(toy_zip), recorded)


def test_other_weights_of_a_backbone_are_refused(recorded, toy_zip):
    with pytest.raises(ValueError, match=f"--backbone-weights: {BACKBONE} has other weights than .*--seed"):
        make(config(toy_zip, run__seed=1), recorded)


def test_changed_options_are_named_when_a_run_resumes(recorded, toy_zip, capsys):
    make(config(toy_zip, run__restart_every=5.0), recorded)
    assert "Changed" not in capsys.readouterr().out
    make(config(toy_zip, data__mirror=True, run__batch=16), recorded)
    line = "Changed since: --mirror=True, --batch=16 (before: --mirror=False, --batch=8)\n"
    assert capsys.readouterr().out.endswith(line)


def test_other_images_of_a_folder_are_refused_before_all_of_them_are_read(recorded, toy_zip, tmp_path):
    with zipfile.ZipFile(toy_zip) as archive:
        archive.extractall(tmp_path / "images")
    cfg = config(str(tmp_path / "images"))
    check(cfg, recorded)
    assert not build.make_dataset(cfg.data, 0).has_checksums
    first = sorted((tmp_path / "images").rglob("*.png"))[0]
    first.write_bytes(first.read_bytes() + b"more")
    with pytest.raises(ValueError, match="images has changed since"):
        check(cfg, recorded)
