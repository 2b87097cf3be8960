# SPDX-License-Identifier: Apache-2.0
"""A recipe as a user runs it: three stages from one data set, killed in each and resumed bit for bit, parts,
stems, lineage, mistakes.
"""

import itertools
import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner

import train
from generation import measures, train_command
from metrics import detectors
from tests import waiting
from tests.support import ROOT
from tests.toy_data import make_zip
from tests.toy_runs import FLAGS, Killed, assert_equal_states, config, final_state, train_here
from torch_utils import persistence
from training import build, loop, run_folder
from training.generator import build_stem, build_superres
from training.networks import stems as lineage
from training.networks.reader import load as load_generator
from training.progressive import launch, stages
from training.run import auto_batch, restore
from training.run.periodic import Score

pytestmark = pytest.mark.e2e

TINY_FLAGS = [f for f in FLAGS if not f.startswith(("--metrics", "--kimg", "--tick"))]
RECIPE = """\
name: tiny
about: 8, 16 and 32 pixels in a few steps
classes: 3
options:
  cond: true
  gpus: 1
  head_layers: 4
  kimg: 0.016
  tick: 0.008
  metrics: none
stages:
  - resolution: 8
  - resolution: 16
  - resolution: 32
    kimg: 0.024
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_zip(tmp_path_factory.mktemp("data"), "three32", classes=3, count=12, resolution=32)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


def invoke(*arguments: str):
    result = CliRunner().invoke(train.main, [*arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        result.output,
        result.exception,
    )
    return result


@pytest.fixture(scope="module")
def command(data, recipe_file) -> list[str]:
    return [f"--recipe={recipe_file}", f"--data={data}", *TINY_FLAGS, "--workers=0"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Path:
    """All stages in one go."""
    outdir = tmp_path_factory.mktemp("whole")
    result = invoke(f"--outdir={outdir}", *command)
    assert result.exit_code == 0, result.output
    return outdir / "00000-tiny"


def test_a_recipe_leaves_its_stages_and_their_lineage(whole, data):
    assert {p.name for p in whole.iterdir()} >= {
        "recipe.json",
        "lineage.json",
        "stage-008x008",
        "stage-016x016",
        "stage-032x032",
    }
    kept = json.loads((whole / "recipe.json").read_text())
    assert (
        kept["data"] == data
        and kept["overrides"][0]["flags"]["batch"] == 8
        and kept["selected"] == [8, 16, 32]
    )
    records = json.loads((whole / "lineage.json").read_text())["stages"]
    assert [(r["resolution"], r["outcome"], r["ended_by"], r["nimg"]) for r in records] == [
        (8, "finished", "kimg", 16),
        (16, "finished", "kimg", 16),
        (32, "finished", "kimg", 24),
    ]
    assert records[0]["stem"] is None
    for below, record in itertools.pairwise(records):
        assert (
            record["stem"]["sha256"] == below["best"]["sha256"]
            and record["stem"]["nimg"] == below["best"]["nimg"]
        )
    provenance = persistence.read_network_pickle(whole / "stage-032x032" / "network-snapshot.pkl")[
        "provenance"
    ]
    assert [(s["resolution"], s["nimg"]) for s in provenance["lineage"]["stems"]] == [(8, 16), (16, 16)]
    G8, G32 = (
        load_generator(str(whole / f"stage-{r}" / "network-snapshot.pkl")) for r in ("008x008", "032x032")
    )
    assert G32.img_resolution == 32 and torch.equal(G8.mapping.w_avg, G32.mapping.w_avg)


def test_killed_in_every_stage_and_resumed_to_the_same_bits(command, whole, tmp_path, monkeypatch):
    real_step = loop.one_step
    folder = tmp_path / "00000-tiny"
    steps = 0

    def dying_step(*args):
        nonlocal steps
        steps += 1
        if steps == 2:  # one step after the start of this process: past a checkpoint in the later attempts
            raise Killed
        real_step(*args)

    monkeypatch.setattr(loop, "one_step", dying_step)
    killed_in = []
    arguments = [f"--outdir={tmp_path}", *command, "--snap=2"]
    for _ in range(9):
        steps = 0
        try:
            result = CliRunner().invoke(train.main, arguments, catch_exceptions=False)
        except Killed:
            killed_in.append(max(p.name for p in folder.glob("stage-*")))
            arguments = [f"--resume={folder}", "--checkpoint-minutes=0"]
            continue
        break
    assert result.exit_code == 0, result.output
    assert set(killed_in) == {"stage-008x008", "stage-016x016", "stage-032x032"}
    for name in set(killed_in):
        assert_equal_states(final_state(whole / name), final_state(folder / name))


def test_restart_every_goes_on_with_the_same_command(command, whole, tmp_path):
    codes = []
    while not codes or codes[-1] == train_command.RESTART_EXIT_CODE:
        arguments = [f"--outdir={tmp_path}", *command, "--stages=8,16", "--restart-every=0"]
        codes.append(invoke(*arguments).exit_code)
    assert codes[-1] == 0 and 3 <= len(codes) <= 6
    assert [p.name for p in tmp_path.iterdir()] == ["00000-tiny"]
    last = "stage-016x016"
    assert_equal_states(final_state(whole / last), final_state(tmp_path / "00000-tiny" / last))


def test_two_processes_run_all_stages(command, tmp_path):
    result = invoke(f"--outdir={tmp_path}", *command, "--gpus=2", "--kimg=0.008", "--stages=8,16")
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "00000-tiny" / "lineage.json").read_text())["stages"]
    assert [(r["resolution"], r["outcome"]) for r in records] == [(8, "finished"), (16, "finished")]


@pytest.mark.slow
def test_torchrun_runs_all_stages(command, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    result = waiting.run(
        [*launcher, str(ROOT / "train.py"), f"--outdir={tmp_path}", *command, "--gpus=2", "--kimg=0.008"]
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = json.loads((tmp_path / "00000-tiny" / "lineage.json").read_text())["stages"]
    assert [r["outcome"] for r in records] == ["finished"] * 3


def test_torchrun_and_gpus_must_agree(command, tmp_path, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for more in ([], ["--dry-run"]):
        result = invoke(f"--outdir={tmp_path}", *command, *more)
        assert (
            result.exit_code == 1
            and "--gpus=1, but torchrun started 4 processes" in result.output
            and not list(tmp_path.iterdir())
        )


def test_the_plan_compares_the_classes_of_the_guidance_with_those_of_the_data(command, tmp_path):
    weights = tmp_path / "classifier.pth"
    state = timm.create_model("resnet10t", num_classes=4).state_dict()
    guidance = ["--cls_weight=8", "--cls_model=resnet10t", f"--cls_weights={weights}"]
    result = invoke(f"--outdir={tmp_path / 'runs'}", *command, *guidance, "--dry-run")
    assert result.exit_code == 0 and f"file '{weights}' not found" in result.output, result.output
    torch.save(state, weights)
    result = invoke(f"--outdir={tmp_path / 'runs'}", *command, *guidance, "--dry-run")
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1 and line.startswith("Error: stage 8: ") and "4 classes" in line
    state["fc.bias"][0] = float("inf")
    torch.save(state, weights)
    for more in ([], ["--dry-run"]):
        result = invoke(f"--outdir={tmp_path / 'runs'}", *command, *guidance, *more)
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert result.exit_code == 1 and "fc.bias has values that are not finite" in line
    assert not (tmp_path / "runs").exists()


def test_a_stage_with_other_networks_is_refused_before_anything_else(whole):
    """By --dry-run as by the run; a stage that is done and not asked for again does not resume."""
    kept = (whole / "recipe.json").read_bytes()
    for more in (["--dry-run"], []):
        result = invoke(f"--resume={whole}", "--stages=16", "--head-layers=5", *more)
        assert result.exit_code == 1, result.output
        assert result.output.startswith(
            "Error: stage 16: --head_layers=5: the run started with 4, and a resumed run cannot change its"
        )
        result = invoke(f"--resume={whole}", "--stages=8", "--heads=sona", "--d-loss=bce", *more)
        assert result.output.startswith("Error: stage 8: --heads=sona: the run started with --heads=project")
    assert (whole / "recipe.json").read_bytes() == kept
    assert invoke(f"--resume={whole}", "--cmax=8", "--dry-run").exit_code == 0


def test_options_are_not_recorded_for_stages_that_are_done(whole, tmp_path):
    """They neither train with them nor refuse later what they would have to train with."""
    folder = Path(shutil.copytree(whole, tmp_path / "runs" / whole.name))
    (folder / "stage-032x032" / run_folder.STATUS_FILE).unlink()
    result = invoke(f"--resume={folder}", "--syn_layers=8", "--snap=3")
    note = "note: done, and not changed by --syn_layers=8 --snap=3: 8, 16; to train one of these stages with"
    assert result.exit_code == 0 and note in result.output, result.output
    overrides = json.loads((folder / "recipe.json").read_text())["overrides"]
    assert overrides[-1] == {"stages": [32], "flags": {"syn_layers": 8, "snap": 3}}
    assert run_folder.load_run(str(folder / "stage-032x032")).run.snap == 3
    for _ in range(2):
        kept = (folder / "recipe.json").read_text()
        result = invoke(f"--resume={folder}", "--syn_layers=8")
        assert result.exit_code == 0 and "8, 16, 32" not in result.output
        assert json.loads((folder / "recipe.json").read_text())["overrides"] == json.loads(kept)["overrides"]
    result = invoke(f"--resume={folder}", "--stages=8", "--kimg=0.024")
    assert result.exit_code == 0, result.output
    assert run_folder.recorded_nimg(folder / "stage-008x008") == 24


@pytest.mark.parametrize("begun", [True, False])
def test_a_stage_refuses_other_data_and_nothing_is_recorded(begun, whole, data, tmp_path):
    """The images are read, for their hash, when the stage resumes."""
    folder = Path(shutil.copytree(whole, tmp_path / "runs" / whole.name))
    if begun:
        (folder / "stage-032x032" / run_folder.STATUS_FILE).unlink()
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / "images")
    index = tmp_path / "images" / "dataset.json"
    index.write_text(index.read_text() + " ")
    kept = {p: p.read_bytes() for p in folder.rglob("*.json")}
    arguments = [f"--resume={folder}", f"--data={tmp_path / 'images'}", "--snap=3"]
    result = invoke(*arguments, *([] if begun else ["--stages=32"]))
    assert result.exit_code == 1 and "has changed since" in result.output, result.output
    assert {p: p.read_bytes() for p in folder.rglob("*.json")} == kept
    assert invoke(f"--resume={folder}").exit_code == 0


def test_each_stage_finds_its_own_rounds_and_keeps_them(command, recipe_file, tmp_path, monkeypatch):
    """`batch_gpu: auto` in the YAML file."""
    source = Path(recipe_file).read_text().replace("gpus: 1", "gpus: 1\n  batch_gpu: auto")
    (tmp_path / "auto.yaml").write_text(source)
    rest = [c for c in command if not c.startswith("--recipe")]
    base = [f"--recipe={tmp_path / 'auto.yaml'}", f"--outdir={tmp_path / 'out'}", *rest, "--stages=8,16"]
    result = invoke(*base, "--dry-run")
    assert result.output.count("micro-batch  --batch-gpu=auto: 8 of a process's 8 images") == 2, result.output
    chosen = {8: 4, 16: 2}
    monkeypatch.setattr(
        auto_batch, "choose", lambda cfg, dataset, *_: auto_batch.Choice(chosen[dataset.resolution], "test")
    )
    assert invoke(*base).exit_code == 0
    folder = tmp_path / "out" / "00000-tiny"
    used = [
        run_folder.load_run(str(folder / name)).run.batch_gpu for name in ("stage-008x008", "stage-016x016")
    ]
    assert (
        used == [4, 2]
        and json.loads((folder / "recipe.json").read_text())["recipe"]["stages"][0]["flags"]["batch_gpu"]
        == "auto"
    )
    chosen |= {8: 1, 16: 1}
    assert invoke(f"--resume={folder}", "--stages=16", "--kimg=0.024").exit_code == 0
    assert run_folder.load_run(str(folder / "stage-016x016")).run.batch_gpu == 2
    assert invoke(f"--resume={folder}", "--stages=16", "--kimg=0.032", "--batch-gpu=auto").exit_code == 0
    assert run_folder.load_run(str(folder / "stage-016x016")).run.batch_gpu == 1


def test_a_part_on_a_given_stem_and_more_of_it_later(command, whole, tmp_path):
    stem = whole / "stage-008x008"
    result = invoke(f"--outdir={tmp_path}", *command, "--stages=16", f"--path_stem={stem}")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "00000-tiny"
    assert [p.name for p in sorted(folder.glob("stage-*"))] == ["stage-016x016"]
    assert_equal_states(final_state(whole / "stage-016x016"), final_state(folder / "stage-016x016"))
    result = invoke(f"--resume={folder}", "--stages=32", *command[2:])
    assert result.exit_code == 0, result.output
    assert_equal_states(final_state(whole / "stage-032x032"), final_state(folder / "stage-032x032"))


def test_a_stage_ends_when_its_metric_stops_improving_and_hands_on_its_best(data, tmp_path, monkeypatch):
    values = iter([5.0, 3.0, 4.0, 3.5, 9.9])

    def evaluated(G):
        return [Score("fd_lite0_10", next(values))]

    cfg = config(
        data,
        data__resolution=8,
        run__kimg=0.08,
        run__tick=0.008,
        run__metrics=["fd_lite0_10"],
        run__patience=2,
    )
    (tmp_path / "run").mkdir()
    calls = []
    real_step = loop.one_step

    def dying_step(*args):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        real_step(*args)

    monkeypatch.setattr(loop, "one_step", dying_step)
    with pytest.raises(Killed):
        loop.train(cfg, str(tmp_path / "run"), torch.device("cpu"), evaluated)
    assert final_state(tmp_path / "run")["progress"]["stale"] == 1
    assert loop.train(cfg, str(tmp_path / "run"), torch.device("cpu"), evaluated) == run_folder.FINISHED
    progress = final_state(tmp_path / "run")["progress"]
    assert (progress["nimg"], progress["best_nimg"], progress["stale"]) == (32, 16, 2)  # of 80
    assert stages.best_network(tmp_path / "run").name == "best_model.pkl"


@pytest.fixture
def head(data, tmp_path) -> tuple[Path, Path]:
    """A stem's folder with a best network, and a superresolution run on it that was stopped."""
    stem, run_dir = tmp_path / "stem", tmp_path / "head"
    train_here(config(data, data__resolution=8, run__kimg=0.008), stem)
    shutil.copy(stem / "network-snapshot.pkl", stem / "best_model.pkl")
    train_here(head_config(data, stem, 0.008), run_dir)
    return stem, run_dir


def head_config(data: str, stem: Path, kimg: float, **changes):
    options = {
        "data__resolution": 16,
        "generator__superres": True,
        "generator__path_stem": str(stem),
        "generator__head_layers": 4,
        "run__kimg": kimg,
    }
    return config(data, **{**options, **changes})


def improve(stem: Path, **changes) -> None:
    """Put another network in the place of the stem's best."""
    G = build_stem(
        "stylegan3-t",
        8,
        3,
        **{
            "syn_layers": 4,
            "cbase": 128,
            "cmax": 4,
            "z_dim": 8,
            "w_dim": 16,
            "margin_size": 2,
            "embed_dim": 8,
            **changes,
        },
    )
    persistence.save_network_pickle(
        str(stem / "best_model.pkl"), {"G": G, "D": None, "G_ema": G, "provenance": {"nimg": 123456}}
    )


def resumed(data: str, stem: Path, run_dir: Path, **changes):
    cfg = head_config(data, stem, 0.016, **changes)
    state, _ = restore.make_state(cfg, build.make_dataset(cfg.data, 0), torch.device("cpu"), str(run_dir))
    return state


def test_a_better_stem_is_read_again_unless_it_is_pinned(data, head, capsys):
    stem, run_dir = head
    before = final_state(run_dir)
    first = lineage.read(run_dir).stem
    assert_equal_states(before["G"], dict(resumed(data, stem, run_dir).G.state_dict()))
    improve(stem)
    pinned = resumed(data, stem, run_dir, generator__pin_stem=True)
    assert_equal_states(before["G"], dict(pinned.G.state_dict()))
    capsys.readouterr()
    state = resumed(data, stem, run_dir)
    assert capsys.readouterr().out.count("Stem read again") == 1
    better = load_generator(str(stem / "best_model.pkl")).state_dict()
    for G in (state.G, state.G_ema):
        for name, value in G.state_dict().items():
            is_frozen = name in restore.frozen_names(G)
            assert torch.equal(
                value, better[name] if is_frozen else before["G" if G is state.G else "G_ema"][name]
            ), name
    assert not torch.equal(state.G.state_dict()["mapping.fc0.weight"], before["G"]["mapping.fc0.weight"])
    record = lineage.read(run_dir)
    assert record.stem["nimg"] == 123456 and record.stem["sha256"] != first["sha256"]
    assert record.changes == [{"nimg": 8, "from": first["sha256"], "to": record.stem["sha256"]}]


def test_a_stem_of_another_plan_is_refused_and_a_vanished_one_not_needed(data, head, tmp_path, capsys):
    stem, run_dir = head
    improve(stem, cmax=8)
    with pytest.raises(ValueError, match=r"best_model.pkl is no longer a network of the plan.*--pin-stem"):
        resumed(data, stem, run_dir)
    shutil.rmtree(stem)
    state = resumed(data, stem, run_dir)
    assert "is gone: using the stem in the checkpoint" in capsys.readouterr().out
    assert_equal_states(final_state(run_dir)["G"], dict(state.G.state_dict()))
    with pytest.raises(ValueError, match="--head_layers=5: the run started with 4"):
        resumed(data, stem, run_dir, generator__head_layers=5)
    assert train_here(head_config(data, stem, 0.016), run_dir) == run_folder.FINISHED
    assert final_state(run_dir)["progress"]["nimg"] == 16


def test_what_a_foreign_pickle_says_of_its_stages_is_cut(tmp_path):
    path = tmp_path / "foreign.pkl"
    G = build_superres(
        build_stem("stylegan3-t", 8, 0, syn_layers=4, cbase=64, cmax=4, w_dim=8, z_dim=4, margin_size=2),
        head_layers=4,
    )
    long = {
        "file": "x" * 10000,
        "sha256": 5,
        "resolution": True and 8,
        "nimg": "many",
        "metric": {"name": "fid", "value": [1]},
        "more": ["y"],
    }
    persistence.save_network_pickle(
        str(path),
        {"G": G, "D": None, "G_ema": G, "provenance": {"nimg": 3, "lineage": {"stems": [long, 7] * 40}}},
    )
    stems = lineage.read_stem(str(path)).stems
    assert len(stems) == lineage.MAX_STAGES + 1
    assert stems[0] == {"file": "x" * 4096, "sha256": None, "resolution": 8, "nimg": None, "metric": None}
    assert stems[-1]["resolution"] == 16 and stems[-1]["nimg"] == 3


def test_the_final_measurement_is_of_upsampled_images_and_says_so(data, whole, tmp_path):
    tree = json.loads((whole / "stage-032x032" / "training_options.json").read_text())["config"]
    network = whole / "stage-008x008" / "network-snapshot.pkl"
    launch.measure_process(tree, str(network), str(tmp_path), "fd_lite0_4", measures.final_evaluator)
    final = json.loads((tmp_path / "final.json").read_text())
    assert final["upsampled"] == {"from": 8, "to": 32, "filter": "bicubic, antialiased"}
    assert final["reference"]["resolution"] == 32 and np.isfinite(final["value"]) and final["num_gen"] == 4
    shutil.copy(network, tmp_path / "network-snapshot.pkl")
    assert stages.is_measured(tmp_path, "fd_lite0_4") and not stages.is_measured(tmp_path, "fd_lite0_5")
    (tmp_path / "network-snapshot.pkl").write_bytes(b"another")
    assert not stages.is_measured(tmp_path, "fd_lite0_4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=/nowhere.zip"], "/nowhere.zip"),
        (["--stages=64"], "'64' is not a stage of recipe tiny; its stages are 8, 16, 32"),
        (["--stages=16"], "stage 16 needs the network of stage 8"),
        (["--path_stem=x.pkl"], "stage 8 of tiny is a stem itself"),
        (["--up_factor=2"], "--up_factor cannot be used with a recipe"),
        (["--recipe=nowhere"], "--recipe=nowhere: no such file"),
        (["--metrics=fid50kfull"], "fid50k_full"),
        (["--batch=7", "--gpus=2"], "stage 8: --batch=7 is not a multiple"),
        (["--resume=README.md"], "to resume a recipe, give its folder"),
        (["--patience=2"], "--patience=2 counts evaluations"),
    ],
)
def test_mistakes_get_one_line_and_no_folder(arguments, message, command, tmp_path):
    given = {a.split("=")[0] for a in arguments}
    result = invoke(f"--outdir={tmp_path}", *[c for c in command if c.split("=")[0] not in given], *arguments)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and message in errors[0], result.output
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_too_small_or_missing_is_found_at_the_start(command, tmp_path):
    small = make_zip(tmp_path, "three16", classes=3, count=6, resolution=16)
    rest = [c for c in command if not c.startswith("--data")]
    result = invoke(f"--outdir={tmp_path / 'out'}", *rest, f"--data={small}")
    assert (
        result.exit_code == 1
        and f"stage 32: the images of --data={small} are 16x16" in result.output
        and not (tmp_path / "out").exists()
    )
    result = invoke(f"--outdir={tmp_path / 'out'}", *rest, f"--data={tmp_path}/three{{res}}.zip")
    assert result.exit_code == 1 and "three8.zip" in result.output
    assert invoke("--recipe=demo64", "--dry-run", "--stages=16").exit_code == 0


def test_the_plan_lists_the_missing_files_of_metrics_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv(detectors.INCEPTION_ENV, raising=False)
    output = invoke("--recipe=imagenet256", "--dry-run", "--stages=16").output
    missing = [line for line in output.splitlines() if line.startswith("Missing: ")]
    assert (
        len([line for line in missing if detectors.INCEPTION_FILE in line]) == 1
        and "Download what is available with:" in output
    )


def test_a_changed_recipe_and_a_damaged_folder_are_named(command, recipe_file, whole, tmp_path):
    other = tmp_path / "tiny.yaml"
    other.write_text(RECIPE.replace("kimg: 0.024", "kimg: 0.032"))
    result = invoke(f"--resume={whole}", f"--recipe={other}")
    assert result.exit_code == 1 and "stage 32: kimg 0.032 against 0.024" in result.output
    assert "already done" in invoke(f"--resume={whole}", f"--recipe={recipe_file}").output
    (tmp_path / "00000-x").mkdir()
    (tmp_path / "00000-x" / "recipe.json").write_text("{")
    result = invoke(f"--resume={tmp_path / '00000-x'}")
    assert result.exit_code == 1 and "recipe.json cannot be read" in result.output
