# SPDX-License-Identifier: Apache-2.0
"""--init-from: what is kept, reshaped and rebuilt, and that the new networks do what the old ones did where
they can.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from tests import toy_runs
from tests.parity.fill import GOLDENS
from tests.toy_data import write_dataset
from torch_utils import persistence
from torch_utils.features import imagenet_descriptions
from training import build, loop, run_folder
from training.bundle import bundle
from training.config import TrainConfig, to_json
from training.data.dataset import ImageDataset
from training.generator import build_stem, build_superres
from training.networks import files, finetune
from training.run import dry_run, plan, restore

PICKLES = GOLDENS / "pickles"
OLD, NEW = ["ant", "bee", "cow", "dog", "elk"], ["cow", "Fox", "ant"]


def config(data: Path, **changes) -> TrainConfig:
    return toy_runs.config(
        str(data), **toy_runs.LITE0_BACKBONE | {"run__kimg": 0.016, "run__precision": "fp32"} | changes
    )


def state_of(cfg: TrainConfig):
    return restore.fresh_state(cfg, build.make_dataset(cfg.data, 0), torch.device("cpu"))


def dataset(folder: Path, names: list[str] | None, size: int = 16) -> Path:
    return write_dataset(folder / f"{len(names or [])}x{size}.zip", n=10, size=size, class_names=names)


def trained(folder: Path, cfg: TrainConfig) -> str:
    """A pickle of a state whose weights have moved, with a G_ema of its own."""
    state = state_of(cfg)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in (state.G, state.G_ema, state.D.discriminators):
            for p in module.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)
            for name, b in module.named_buffers():
                if name.endswith(("w_avg", "magnitude_ema")):
                    b.add_(torch.rand(b.shape, generator=generator), alpha=0.2)
        state.D.normalize_()
    names = build.make_dataset(cfg.data, 0).class_names
    path = folder / "old.pkl"
    provenance = {"class_names": names, "config": to_json(cfg)}
    provenance["backbones"] = {name: network.sha256 for name, network in state.D.feature_networks.items()}
    content = {
        "G": state.G,
        "D": bundle(state.D.saved_state_dict()),
        "G_ema": state.G_ema,
        "training_set_kwargs": {},
        "provenance": provenance,
    }
    persistence.save_network_pickle(path, content)
    return str(path)


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("old")
    return trained(folder, config(dataset(folder, OLD)))


def states(report, network: str = "generator") -> dict[str, str]:
    return {part["name"]: part["state"] for part in report[network]["parts"]}


def same_images(a, b, labels_a, labels_b, z_dim: int = 8, atol: float = 1e-6) -> bool:
    z = torch.randn(len(labels_a), z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return all(
            torch.allclose(a(z, labels_a, truncation_psi=psi), b(z, labels_b, truncation_psi=psi), atol=atol)
            for psi in (1, 0.5)
        )


def test_the_same_run_takes_everything(old, tmp_path):
    state = state_of(config(dataset(tmp_path, OLD), run__init_from=old))
    file = files.read(old)
    for ours, theirs in ((state.G, file.generators["G"]), (state.G_ema, file.generators["G_ema"])):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    assert all(
        torch.allclose(v, file.tensors["D"][k], rtol=1e-6) for k, v in state.D.saved_state_dict().items()
    )
    assert state.started_from["generator"]["share"] == state.started_from["discriminator"]["share"] == 1
    assert (
        set(states(state.started_from).values())
        == set(states(state.started_from, "discriminator").values())
        == {"kept"}
    )


def test_another_learning_rate_of_the_mapping_network_draws_the_same_images(old, tmp_path):
    changes = {"generator__map_lr_multiplier": 0.1, "run__init_from": old}
    state = state_of(config(dataset(tmp_path, OLD), **changes))
    assert state.G.mapping.fc0.bias_gain == state.G.mapping.fc1.bias_gain == 0.1
    assert set(states(state.started_from).values()) == {"kept"}
    theirs = files.read(old).generators["G"]
    assert theirs.mapping.fc0.bias_gain == 0.01
    assert same_images(state.G, theirs, torch.tensor([0, 2]), torch.tensor([0, 2]), atol=1e-5)
    persistence.save_network_pickle(tmp_path / "new.pkl", {"G_ema": state.G, "training_set_kwargs": {}})
    again = files.read(str(tmp_path / "new.pkl")).generators["G_ema"]
    assert again.mapping.fc1.bias_gain == 0.1
    assert same_images(again, state.G, torch.tensor([0, 2]), torch.tensor([0, 2]))


def test_classes_are_carried_over_by_name(old, tmp_path):
    state = state_of(config(dataset(tmp_path, NEW), run__init_from=old))
    file = files.read(old)
    assert same_images(state.G, file.generators["G"], torch.tensor([0, 2]), torch.tensor([2, 0]))
    assert same_images(state.G_ema, file.generators["G_ema"], torch.tensor([0, 2]), torch.tensor([2, 0]))
    assert not same_images(state.G, file.generators["G"], torch.tensor([1, 1]), torch.tensor([0, 1]))
    w_avg = file.generators["G"].mapping.w_avg
    torch.testing.assert_close(state.G.mapping.w_avg, torch.stack([w_avg[2], w_avg.mean(dim=0), w_avg[0]]))
    table = file.generators["G"].mapping.embed.weight
    new = state.G.mapping.embed.weight[1]
    assert (new - table.mean(dim=0)).square().mean().sqrt() < 3 * (
        table - table.mean(dim=0)
    ).square().mean().sqrt()
    for name, tensor in state.D.saved_state_dict().items():
        if ".embed." in name:
            torch.testing.assert_close(tensor[[0, 2]], file.tensors["D"][name][[2, 0]])
        elif "projections" in name or name.endswith("weight_orig"):
            assert torch.equal(tensor, file.tensors["D"][name])
    found = states(state.started_from)
    assert found.pop("mapping.embed") == found.pop("mapping.w_avg") == "reshaped" and set(found.values()) == {
        "kept"
    }
    assert state.started_from["classes"] == "by name" and len(state.started_from["sha256"]) == 64


def test_more_classes_than_before(old, tmp_path):
    names = [*NEW, "gnu", "hen", "ibis", "jay"]
    state = state_of(config(dataset(tmp_path, names), run__init_from=old))
    assert same_images(state.G, files.read(old).generators["G"], torch.tensor([0, 2]), torch.tensor([2, 0]))
    embed = next(part for part in state.started_from["generator"]["parts"] if part["name"] == "mapping.embed")
    assert embed["about"] == "2 of 7 classes copied, 5 new"


def test_an_unconditional_network_learns_classes(tmp_path):
    old = trained(tmp_path, config(dataset(tmp_path, None), data__cond=False))
    state = state_of(config(dataset(tmp_path, NEW), run__init_from=old))
    source = files.read(old).generators["G"]
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before, after = source(z), torch.stack([state.G(z, torch.full((64,), c)) for c in range(3)])
        apart = float((before - before.roll(1, 0)).abs().mean())
        assert float((after - before).abs().mean()) < 0.3 * apart
        assert float((after[0] - after[1]).abs().mean()) > 0.01 * apart  # the classes differ from the start
    assert torch.equal(state.G.mapping.w_avg, source.mapping.w_avg.expand(3, -1))
    found = states(state.started_from)
    assert (found["mapping.fc0"], found["mapping.fc1"], found["mapping.embed"]) == (
        "reshaped",
        "kept",
        "rebuilt",
    )
    assert set(states(state.started_from, "discriminator").values()) == {"reshaped"}


def test_a_conditional_network_forgets_its_classes(old, tmp_path):
    state = state_of(config(dataset(tmp_path, None), data__cond=False, run__init_from=old))
    source = files.read(old).generators["G"]
    assert torch.allclose(state.G.mapping.w_avg, source.mapping.w_avg.mean(dim=0))
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        w = state.G.mapping.styles(z, None)
        by_class = torch.stack([source.mapping.styles(z, torch.full((64,), c)) for c in range(5)])
        from_mean = (w - by_class.mean(dim=0)).square().mean()
        assert (
            from_mean < (by_class - by_class.mean(dim=0)).square().mean()
        )  # nearer to the mean over classes than the classes are
    assert states(state.started_from)["mapping.fc0"] == "reshaped"
    assert "the class input is removed" in json.dumps(state.started_from)


def test_another_resolution_keeps_what_has_the_same_place(old, tmp_path, capsys):
    state = state_of(config(dataset(tmp_path, OLD, 32), run__init_from=old))
    found = states(state.started_from)
    assert found["synthesis.input"] == found["mapping.fc0"] == "kept"
    source = files.read(old).generators["G"]
    for part in state.started_from["generator"]["parts"]:
        if part["state"] == "reshaped":
            theirs = getattr(source.synthesis, part["about"].split()[1].rstrip(","))
            assert torch.equal(
                state.G.synthesis.get_submodule(part["name"].removeprefix("synthesis.")).weight, theirs.weight
            )
            assert "with another bandwidth" in part["about"]
    assert "reshaped" in found.values()
    assert set(states(state.started_from, "discriminator").values()) == {
        "kept"
    }  # it sees images at its backbone's size
    out = capsys.readouterr().out
    assert "Starting from" in out and "mapping.fc0" in out


def test_little_that_fits_is_said_in_one_line(old, tmp_path, capsys):
    state = state_of(
        config(
            dataset(tmp_path, OLD),
            run__init_from=old,
            run__kimg=1000,
            generator__cmax=8,
            generator__w_dim=24,
        )
    )
    assert state.started_from["generator"]["share"] < 0.5
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]
    assert (
        len(warnings) == 1
        and "16x16, 4 layers" in warnings[0]
        and warnings[0].endswith("use the options of its run: --cmax=4 --w-dim=16")
    )
    assert torch.isfinite(state.G(torch.zeros(1, 8), torch.tensor([0]))).all()


def test_an_average_that_lags_behind_is_said_in_one_line(old, tmp_path, capsys):
    cfg = config(dataset(tmp_path, OLD), run__init_from=old, run__batch=16, run__kimg=8)
    state_of(cfg)
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning"))
    assert "half-life of 5 kimg, in a run of 8 kimg" in warning and "--ema-rampup=0.05" in warning
    for changes in ({"run.kimg": 100}, {"optim.ema_rampup": 0.05}, {"optim.ema_kimg": 0.4}):
        state_of(cfg.override(changes))
        assert "Warning" not in capsys.readouterr().out


def test_options_that_the_run_of_the_file_did_not_have_are_not_advised_as_none(old, tmp_path):
    source = finetune.read(str(old))
    source.file.provenance["config"]["generator"]["cbase"] = None
    report = finetune.TransferSummary(str(old), "", "by name")
    cfg = config(dataset(tmp_path, OLD), run__init_from=old, generator__cbase=64, generator__w_dim=24)
    assert finetune.warnings(source, report, cfg)[0].endswith("of its run: --w-dim=16 without --cbase")


def test_other_backbone_weights_rebuild_the_discriminator(old, tmp_path, capsys):
    cfg = config(
        dataset(tmp_path, OLD),
        run__init_from=old,
        discriminator__backbone_weights={"tf_efficientnet_lite0": "random"},
    )
    report = state_of(cfg).started_from
    assert "only 0% of the discriminator was copied" in capsys.readouterr().out
    assert report["discriminator"]["share"] == 0 and report["generator"]["share"] == 1
    assert "other weights of this backbone" in json.dumps(report)


def test_a_superresolution_stage_takes_the_head(old, tmp_path):
    stem = files.read(old).generators["G_ema"]
    data = dataset(tmp_path, OLD, 32)
    options = {"generator__superres": True, "generator__path_stem": old, "generator__head_layers": 4}
    (tmp_path / "first").mkdir()
    first = trained(tmp_path / "first", config(data, **options))
    state = state_of(config(data, **options, run__init_from=first))
    source = files.read(first).generators["G"]
    for name in state.G.head_layer_names:
        assert torch.equal(getattr(state.G.synthesis, name).weight, getattr(source.synthesis, name).weight)
    assert torch.equal(
        state.G.mapping.embed.weight, stem.mapping.embed.weight
    )  # --path_stem's, not the moved one of the pickle
    assert not torch.equal(source.mapping.embed.weight, stem.mapping.embed.weight)
    assert set(states(state.started_from)) == {f"synthesis.{name}" for name in state.G.head_layer_names}
    assert state.started_from["generator"]["share"] == 1


def published(state) -> dict[str, torch.Tensor]:
    """Our tensors under the names of published discriminators."""
    renamed = {}
    for name, tensor in state.D.saved_state_dict().items():
        for ours, theirs in ((".reassemble.", ".pretrained."), (".project.", ".3."), (".resample.", ".4.")):
            name = name.replace(ours, theirs)
        renamed[name.replace("projections.", "feature_networks.")] = (
            tensor + 0.01 if tensor.is_floating_point() else tensor
        )
    renamed["feature_networks.tf_efficientnet_lite0.pretrained.layer0.0.weight"] = torch.zeros(3)
    return renamed


def test_published_discriminators_are_read(old, tmp_path):
    cfg = config(dataset(tmp_path, OLD), run__init_from=old)
    state = state_of(cfg)
    source = finetune.read(old)
    source.file.tensors["D"] = published(state)
    before = copy.deepcopy(state.D.saved_state_dict())
    parts = finetune.start_discriminator(source, state.D, np.arange(5))
    assert {part.state for part in parts} == {"kept"}
    for name, tensor in state.D.saved_state_dict().items():
        assert torch.equal(tensor, before[name] + 0.01 if tensor.is_floating_point() else before[name]), name


def test_published_names_of_a_transformer():
    names = {
        "feature_networks.deit.pretrained.layer1.3.weight": 1,
        "feature_networks.deit.pretrained.layer4.4.bias": 2,
    }
    names |= {
        "feature_networks.deit.pretrained.model.norm.weight": 3,
        "feature_networks.deit.scratch.layer0_csm.out_conv.bias": 4,
    }
    assert finetune.published_names(names) == {
        "projections.deit.reassemble.layer1.project.weight": 1,
        "projections.deit.reassemble.layer4.resample.bias": 2,
        "feature_networks.deit.pretrained.model.norm.weight": 3,
        "projections.deit.scratch.layer0_csm.out_conv.bias": 4,
    }


@pytest.mark.parametrize(
    "pickle", ["stem_t_cond10", "superres_t_16to32_cond10", "stem_t_cond10_checkpoint_dill"]
)
def test_published_generators_start_a_run(pickle):
    source = finetune.read(str(PICKLES / f"{pickle}.pkl"))
    old = source.G_ema
    if old.num_frozen_layers:
        stem = finetune.read(str(PICKLES / "stem_t_cond10.pkl")).G_ema
        target = build_superres(stem, "stylegan3-t", 2, len(old.head_layer_names) - 1)
    else:
        kwargs = {
            "cbase": old.channel_base // 2,
            "cmax": old.channel_max // 2,
            "z_dim": old.z_dim,
            "w_dim": old.w_dim,
        }
        target = build_stem(
            "stylegan3-t",
            16,
            10,
            syn_layers=len(old.synthesis.layer_names) - 1,
            embed_dim=source.embed_dim,
            **kwargs,
        )
    rows, how = finetune.class_rows(source, [f"number {i}" for i in range(10)], 10)
    parts = finetune.start_generator(old, target, rows, None)
    assert how.startswith("by number") and {part.state for part in parts} <= {"kept", "reshaped"}
    if old.num_frozen_layers:
        assert all(
            torch.equal(t, target.state_dict()[n])
            for n, t in old.state_dict().items()
            if n.split(".")[1] in old.head_layer_names
        )
    else:
        assert same_images(target, old, torch.tensor([3, 7]), torch.tensor([3, 7]), old.z_dim)


def test_nameless_imagenet_classes_go_by_their_usual_order():
    G = build_stem("stylegan3-t", 16, 1000, syn_layers=4, cbase=64, cmax=4, embed_dim=4)
    source = finetune.Source("imagenet.pkl", "", files.NetworkFile({"G_ema": G}))
    rows, how = finetune.class_rows(source, ["n01443537", "tench", "smurf"], 3)
    assert rows.tolist() == [1, 0, -1] and "ImageNet" in how
    assert finetune.class_rows(source, ["smurf", "gnome"], 2)[0].tolist() == [-1, -1]
    assert finetune.class_rows(source, None, 1000)[0].tolist() == list(range(1000))
    assert (
        finetune.class_rows(source, list(imagenet_descriptions())[::-1], 1000)[0].tolist()
        == list(range(1000))[::-1]
    )


def test_a_started_run_trains_and_resumes_without_the_pickle(old, tmp_path):
    copied = tmp_path / "copy.pkl"
    copied.write_bytes(Path(old).read_bytes())
    data = dataset(tmp_path, NEW)
    cfg = config(data, run__init_from=str(copied), data__embed_dim=5, run__kimg=0.032)
    assert (cfg.blur_init_sigma, cfg.ema_rampup) == (0, 0) and (
        config(data).blur_init_sigma,
        config(data).ema_rampup,
    ) == (2, 0.05)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert loop.train(cfg, str(tmp_path / "whole"), torch.device("cpu")) == run_folder.FINISHED
    loop.train(cfg.override({"run.kimg": 0.016}), str(tmp_path / "parts"), torch.device("cpu"))
    copied.unlink()
    plan.check(cfg, ImageDataset(data, use_labels=True), resuming=True)
    loop.train(cfg, str(tmp_path / "parts"), torch.device("cpu"))
    report = json.loads((tmp_path / "parts" / "init_from.json").read_text())
    assert report["file"] == str(copied) and states(report)["mapping.embed"] == "reshaped"
    a, b = (files.read(tmp_path / name / "network-snapshot.pkl") for name in ("whole", "parts"))
    assert b.provenance["init_from"] == report
    for key in ("G", "G_ema"):
        for name, tensor in a.generators[key].state_dict().items():
            assert torch.isfinite(tensor).all() and torch.equal(tensor, b.generators[key].state_dict()[name])


def test_dry_run_says_what_would_be_kept(old, tmp_path):
    data = dataset(tmp_path, NEW, 32)
    cfg = config(data, run__init_from=old, run__kimg=1000, data__resolution=16)
    planned = build.make_dataset(cfg.data, 0, prepare=False)
    text = dry_run.start_report(cfg, planned)
    assert "2 of 3 classes copied, 1 new\n" in text and "Warning" not in text and "discriminator: 9" in text
    assert [p.name for p in tmp_path.iterdir()] == [data.name]


def test_a_run_folder_stands_for_its_best_network_which_is_named(old, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(old, folder / "network-snapshot.pkl")
    data = dataset(tmp_path, NEW)
    flags = [
        f"--outdir={tmp_path / 'out'}",
        "--cfg=stylegan3-t",
        f"--data={data}",
        "--cond=1",
        "--gpus=1",
        "--batch=4",
        "--metrics=none",
    ]
    flags += [
        "--class-embedding=random",
        "--backbones=tf_efficientnet_lite0",
        f"--init-from={folder}",
        "--dry-run",
    ]
    result = CliRunner().invoke(train.main, flags)
    assert result.exit_code == 0 and f"Starts from {folder}/network-snapshot.pkl (" in result.output, (
        result.output
    )
    (folder / "best_model.pkl").write_bytes(b"junk")
    result = CliRunner().invoke(train.main, flags)
    assert result.exit_code == 1 and f"{folder}/best_model.pkl" in result.output.splitlines()[-1]
    (folder / "best_model.pkl").unlink()
    (folder / "network-snapshot.pkl").unlink()
    result = CliRunner().invoke(train.main, flags)
    assert (
        result.exit_code == 1
        and f"--init-from={folder}: the folder contains neither best_model.pkl" in result.output
    )


def test_check_refuses_a_file_that_is_no_network(tmp_path):
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"junk")
    data = dataset(tmp_path, OLD)
    with pytest.raises(ValueError, match=r"bad\.pkl"):
        plan.check(config(data, run__init_from=str(bad)), ImageDataset(data, use_labels=True))


@pytest.mark.parametrize("channels", [1, 4])
def test_another_number_of_channels_makes_the_output_layer_anew(channels):
    options = {"syn_layers": 4, "cbase": 64, "cmax": 4, "z_dim": 4, "w_dim": 8, "embed_dim": 4}
    old = build_stem("stylegan3-t", 16, 0, **options)
    target = build_stem("stylegan3-t", 16, 0, **options, img_channels=channels)
    parts = finetune.start_generator(old, target, None, None)
    states = {part.state for part in parts}
    assert "kept" in states and states - {"kept", "reshaped"}
    (torgb,) = [spec.name for spec in target.synthesis.specs() if spec.is_torgb]
    for name, tensor in target.synthesis.state_dict().items():
        kept = old.synthesis.state_dict().get(name)
        assert name.startswith(torgb) or (kept is not None and torch.equal(tensor, kept)), name
