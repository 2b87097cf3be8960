# SPDX-License-Identifier: Apache-2.0
"""One data set for every stage: the copy against dataset_tool.py, its place, several processes, mistakes."""

import collections
import contextlib
import io
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import train
from generation import metric_sources
from metrics import image_sets
from tests import waiting
from tests.toy_data import write_dataset
from training import build
from training.config import DataConfig, TrainConfig
from training.data import downscaling
from training.data.dataset import ImageDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return write_dataset(
        tmp_path / "data" / "big.zip", n=12, size=32, class_names=["ant", "bee", "cow"], background="#ffffff"
    )


def prepared(source: Path, resolution: int, dest: Path) -> Path:
    """The same through the data set tool's command line."""
    arguments = [f"--source={source}", f"--dest={dest}", f"--resolution={resolution}x{resolution}"]
    result = CliRunner().invoke(dataset_tool.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dest


@pytest.mark.parametrize("folder", [False, True])
def test_a_copy_is_what_dataset_tool_writes(source, folder, tmp_path):
    if folder:
        shutil.unpack_archive(source, tmp_path / "data" / "big")
        source = tmp_path / "data" / "big"
    small = prepared(source, 8, tmp_path / "small.zip")
    cfg = DataConfig(path=str(source), resolution=8, cond=True)
    ours, theirs = build.make_dataset(cfg, 0), ImageDataset(small, use_labels=True)
    assert Path(ours.path).read_bytes() == small.read_bytes()
    assert ours.name == "big-8x8" and Path(ours.path).parent.parent == source.parent
    assert ours.image_shape == [3, 8, 8] and ours.class_names == ["ant", "bee", "cow"]
    for i in range(12):
        np.testing.assert_array_equal(ours[i][0], theirs[i][0])
        assert ours[i][1] == theirs[i][1] == i % 3
    assert not image_sets.preparation_differences(
        image_sets.preparation(ours), image_sets.preparation(theirs)
    )
    other = image_sets.preparation(ImageDataset(source))["source"]
    assert image_sets.preparation(ours)["source"] == image_sets.preparation(theirs)["source"] != other


def test_options_of_the_run_apply_to_the_copy(source):
    plain = build.make_dataset(DataConfig(path=str(source), max_images=5, cond=True, mirror=True), 3)
    small = build.make_dataset(
        DataConfig(path=str(source), max_images=5, cond=True, mirror=True, resolution=16), 3
    )
    assert [small.get_details(i) for i in range(10)] == [plain.get_details(i) for i in range(10)]
    assert len(ImageDataset(small.path)) == 12
    assert build.make_dataset(DataConfig(path=str(source), resolution=32), 0).path == str(source)


def test_a_copy_is_made_once_and_again_when_the_source_or_the_copy_changes(source, capsys):
    cfg = DataConfig(path=str(source), resolution=8)
    path = Path(build.make_dataset(cfg, 0).path)
    assert capsys.readouterr().err.count("Preparing") == 1
    before = path.stat().st_mtime_ns
    assert build.make_dataset(cfg, 0).path == str(path) and path.stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""
    content = path.read_bytes()
    path.write_bytes(content[:100])
    (path.parent / f".{path.name}.abc.tmp").write_bytes(b"left by a killed process")
    build.make_dataset(cfg, 0)
    assert path.read_bytes() == content and "making it again" in capsys.readouterr().err
    assert {p.name for p in path.parent.iterdir()} == {"big-8x8.zip", "big-8x8.lock"}
    write_dataset(source, n=12, size=32, seed=1)
    assert build.make_dataset(cfg, 0).path != str(path)


def test_the_cache_folder_stands_in(source, tmp_path, monkeypatch):
    cfg = DataConfig(path=str(source), resolution=8)
    original = Path.mkdir

    def read_only(self, *args, **kwargs):
        if tmp_path / "data" in self.parents:
            raise PermissionError(13, "Permission denied")
        original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    path = Path(build.make_dataset(cfg, 0).path)
    assert tmp_path / "cache" in path.parents and path.is_file()


def test_temporary_files_stand_in_where_no_place_lasts(source, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    original = Path.mkdir

    def read_only(self, *args, **kwargs):
        if tmp_path / "data" in self.parents:
            raise PermissionError(13, "Permission denied")
        original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", "/proc/none/cache")
    cfg = DataConfig(path=str(source), resolution=8)
    with pytest.warns(UserWarning, match=r"temporary folder .*set DNNLIB_CACHE_DIR"):
        path = Path(build.make_dataset(cfg, 0).path)
    assert tmp_path / "tmp" in path.parents
    assert build.make_dataset(cfg, 0).path == str(path)  # the processes of the run find it


def test_too_little_space_is_said_in_one_line(source, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 2**30, 10_000))
    with pytest.raises(
        ValueError,
        match=r"cannot write the downscaled copy.*GiB needed, 0\.0 GiB free.*DNNLIB_CACHE_DIR",
    ) as caught:
        build.make_dataset(DataConfig(path=str(source), resolution=8), 0)
    assert "\n" not in str(caught.value)
    assert not list(source.parent.rglob("*8x8.zip"))


def test_sizes_that_do_not_fit(source):
    with pytest.raises(ValueError, match=r"--resolution=64: .*32x32.*not enlarged"):
        build.make_dataset(DataConfig(path=str(source), resolution=64), 0)
    with pytest.raises(ValueError, match="--resolution=24: must be a power of two"):
        TrainConfig().override({"data.resolution": 24}).validate()
    with pytest.raises(ValueError, match="--resolution=2: must be at least 4"):
        TrainConfig().override({"data.resolution": 2}).validate()


def test_an_unreadable_image_leaves_nothing(source, tmp_path):
    shutil.unpack_archive(source, tmp_path / "data" / "big")
    (tmp_path / "data" / "big" / "00000" / "img00000007.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"--resolution=8: .*img00000007.png.*--check"):
        build.make_dataset(DataConfig(path=str(tmp_path / "data" / "big"), resolution=8), 0)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".zip", ".tmp") and p != source]


def prepare(source: Path, start: Any, result: Path) -> None:
    start.wait()
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        copy = downscaling.downscaled(ImageDataset(str(source)), 8, 1)
    result.write_text(json.dumps([str(copy), errors.getvalue()]))


def test_processes_that_start_together_share_one_copy(source, tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    results = [tmp_path / f"result{i}" for i in range(3)]
    running = [context.Process(target=prepare, args=(source, start, path)) for path in results]
    for process in running:
        process.start()
    waiting.join(*running)
    assert [process.exitcode for process in running] == [0] * 3
    copies, errors = zip(*(json.loads(path.read_text()) for path in results), strict=True)
    assert len(set(copies)) == 1 and sum("Preparing" in text for text in errors) == 1, errors
    assert Path(copies[0]).read_bytes() == prepared(source, 8, tmp_path / "small.zip").read_bytes()


def test_dry_run_makes_no_copy(source, tmp_path):
    arguments = [
        f"--outdir={tmp_path / 'runs'}",
        "--cfg=stylegan3-t",
        f"--data={source}",
        "--gpus=1",
        "--batch=4",
        "--cond=True",
    ]
    small = [
        "--resolution=16",
        "--syn-layers=4",
        "--cbase=128",
        "--cmax=4",
        "--backbones=tf_efficientnet_lite0",
        "--metrics=none",
    ]
    result = CliRunner().invoke(train.main, [*arguments, *small, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "12 images, 16x16, 3 classes" in result.output and "stylegan3-t-big-16x16-gpus1" in result.output
    assert [p.name for p in source.parent.iterdir()] == ["big.zip"]
    planned = build.make_dataset(DataConfig(path=str(source), resolution=16), 0, prepare=False)
    with pytest.raises(ValueError, match="32x32"):
        planned[0]


def test_metrics_take_the_copy_as_reference(source, tmp_path):
    small = prepared(source, 8, tmp_path / "small.zip")
    options = {
        "metrics": "fd_lite0_10",
        "num_gen": None,
        "labels": "dataset",
        "data": str(source),
        "resolution": 8,
        "batch": 4,
        "seed": 0,
    }
    options |= {"inception": None, "force": False, "verbose": False, "covariance": "population"}
    options |= {"report": None, "bootstrap": 0, "extrapolate": False, "detector": (), "trust_pickle": False}
    evaluators = [
        metric_sources.make_evaluator(options | {"data": str(d)}, None, torch.device("cpu"))
        for d in (source, small)
    ]
    references = [e.references.describe(image_sets.RealImages(e.dataset)) for e in evaluators]
    assert {**references[0], "dataset": ""} == {**references[1], "dataset": ""} and references[0][
        "resolution"
    ] == 8
    assert downscaling.cached_paths(ImageDataset(source), 8)[0].is_file()
