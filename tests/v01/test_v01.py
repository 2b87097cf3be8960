# SPDX-License-Identifier: Apache-2.0
"""Files written by version 0.1 load and resume: run and recipe folders, checkpoints, network files, records.

written.tar.xz holds what these commands of version 0.1 left (without the report, the curves and TensorBoard's
files):

    # 8 images of 2 classes, 16x16
    python dataset_tool.py --source=images --dest=v01/data.zip
    # run to its end
    python train.py --outdir=v01/runs --data=v01/data.zip TINY --kimg=0.008 --metrics=fd_lite0_4
    python calc_metrics.py --network=v01/runs/00000-.../network-snapshot.pkl --data=v01/data.zip \\
        --metrics=fd_lite0_4
    # started three times, ended in stage 16
    python train.py --outdir=v01/recipes --data=v01/data.zip TINY --recipe=tiny.yaml --restart_every=0

TINY: --cfg=stylegan3-t --gpus=1 --cond=True --syn_layers=4 --cbase=64 --cmax=2 --z-dim=4 --w-dim=4
    --margin-size=2 --feature-size=32 --backbones=tf_efficientnet_lite0 --proj-channels=1 --head-channels=1
    --cond-channels=2 --class-embedding=random --embed-dim=2 --batch=4 --tick=0.004 --snap=1 --device=cpu
    --grid=2x2 --keep-checkpoints=1 --keep-snapshots=1 --workers=0
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import calc_metrics
import gen_images
import train
from torch_utils import checkpoint, persistence
from training import run_folder
from training.networks import stems
from training.networks.reader import load as load_generator
from training.watch import report

pytestmark = pytest.mark.e2e

METRIC = "fd_lite0_4"


@pytest.fixture
def old(tmp_path) -> Path:
    """The folder of all files, as they were."""
    with tarfile.open(Path(__file__).with_name("written.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def run_dir(old: Path) -> Path:
    return next((old / "runs").iterdir())


def invoke(command, *arguments: str):
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_a_run_goes_on(old):
    run = run_dir(old)
    before = checkpoint.load(run_folder.newest_checkpoint(run))["train"]
    assert (
        run_folder.load_run(str(run)).run.kimg == 0.008
        and run_folder.recorded_outcome(run) == run_folder.FINISHED
    )
    result = invoke(train.main, f"--resume={run}", f"--data={old / 'data.zip'}", "--kimg=0.012")
    assert "Resuming from" in result.output and "WARNING" not in result.output
    after = checkpoint.load(run_folder.newest_checkpoint(run))["train"]
    assert (before["progress"]["nimg"], after["progress"]["nimg"], after["progress"]["tick"]) == (8, 12, 3)
    assert before["G"].keys() == after["G"].keys() and before["D"].keys() == after["D"].keys()
    assert [line["kimg"] for line in run_folder.read_jsonl(run / run_folder.STATS_FILE)] == [
        0.004,
        0.008,
        0.012,
    ]
    records = run_folder.read_jsonl(run_folder.metric_file(run, METRIC))
    assert [r.get("kimg") for r in records] == [0.004, 0.008, None, 0.012], (
        "and the line of calc_metrics.py stays"
    )
    assert not [p for p in run.iterdir() if p.name.endswith((".damaged", ".tmp"))]


def test_the_numbers_that_a_checkpoint_holds_are_those_of_its_snapshot(old):
    run = run_dir(old)
    saved = checkpoint.load(run_folder.newest_checkpoint(run))["train"]
    G = load_generator(str(run / run_folder.NEWEST_NETWORK))
    assert all(torch.equal(value, saved["G_ema"][name]) for name, value in G.state_dict().items())
    held = persistence.read_network_pickle(run / run_folder.BEST_NETWORK)
    assert list(held) == ["G", "D", "G_ema", "augment_pipe", "training_set_kwargs", "provenance"]
    assert held["provenance"]["class_names"] == ["class0", "class1"] and run_folder.best_nimg(run) == 8


def test_a_recipe_goes_on_in_the_stage_where_it_stopped(old):
    folder = next((old / "recipes").iterdir())
    stage = folder / run_folder.stage_name(16)
    lineage = stems.resumed_lineage(stage)
    assert lineage.stem["nimg"] == 8 and run_folder.newest_checkpoint_nimg(stage) == 4
    invoke(train.main, f"--resume={folder}", f"--data={old / 'data.zip'}")
    records = json.loads((folder / run_folder.LINEAGE_FILE).read_text())["stages"]
    assert [(r["resolution"], r["outcome"], r["nimg"]) for r in records] == [
        (8, "finished", 8),
        (16, "finished", 8),
    ]
    assert records[1]["stem"]["sha256"] == records[0]["best"]["sha256"] and records[1]["stem_changes"] == []
    assert [line["kimg"] for line in run_folder.read_jsonl(stage / run_folder.STATS_FILE)] == [0.004, 0.008]
    page = report.write(folder).read_text()
    assert "stage-016x016" in page and "finished" in page


def test_the_report_of_a_run(old):
    page = report.write(run_dir(old)).read_text()
    assert METRIC in page and "finished" in page and "0.008" in page


def test_pictures_of_a_snapshot(old):
    run = run_dir(old)
    for network in (run, run / run_folder.NEWEST_NETWORK):
        out = old / f"out-{network.name}"
        invoke(
            gen_images.main,
            f"--network={network}",
            "--seeds=0,1",
            "--class=1",
            f"--outdir={out}",
            "--device=cpu",
        )
        assert [np.asarray(Image.open(p)).shape for p in sorted(out.glob("*.png"))] == [(16, 16, 3)] * 2


def test_a_new_number_stands_below_the_old_ones(old):
    run = run_dir(old)
    path = run_folder.metric_file(run, METRIC)
    before = run_folder.read_jsonl(path)
    invoke(
        calc_metrics.main,
        f"--network={run / run_folder.NEWEST_NETWORK}",
        f"--data={old / 'data.zip'}",
        f"--metrics={METRIC}",
        "--device=cpu",
    )
    *kept, new = run_folder.read_jsonl(path)
    assert kept == before and len(before) == 3
    assert new["results"][METRIC] == pytest.approx(before[-1]["results"][METRIC], rel=1e-3)
    assert run_folder.metric_at(run, 8) == {"name": METRIC, "value": before[1]["results"][METRIC]}
    assert run_folder.better_direction(before[0]) == run_folder.better_direction(new) == "min"
