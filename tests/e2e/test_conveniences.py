# SPDX-License-Identifier: Apache-2.0
"""train.py: what is convenient does not end a run, what would end it is said first, what takes long is announced."""

import json

import pytest
from click.testing import CliRunner

import train
from metrics import detectors
from tests.e2e.test_train import FLAGS
from tests.metrics.test_evaluate import TinyDetector
from tests.toy_data import write_dataset

pytestmark = pytest.mark.e2e
NAMES = ["a", "b", "c"]
COMMON = ["--cfg=stylegan3-t", "--gpus=1", "--cond=True", *FLAGS]


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Detectors that cost nothing, and a cache of the test's own."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(detectors, "load", lambda name, device="cpu", **options: TinyDetector(name))
    monkeypatch.setattr(detectors, "check", lambda name, **options: None)


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(train.main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("place", ["/proc/none/cache", "file"])
def test_a_cache_that_cannot_be_written_is_a_warning_at_the_start_and_at_a_resume(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / place))
    data = write_dataset(tmp_path / "data.zip", n=24, class_names=NAMES)
    runs = tmp_path / "runs"
    with pytest.warns(UserWarning, match=r"metrics cache .* cannot be written .* DNNLIB_CACHE_DIR"):
        run(f"--outdir={runs}", f"--data={data}", *COMMON, "--metrics=fd_lite0_8", "--kimg=0.016")
    (folder,) = runs.iterdir()
    with pytest.warns(UserWarning, match="metrics cache"):
        run(f"--resume={folder}", "--kimg=0.032")
    lines = [json.loads(line) for line in (folder / "metric-fd_lite0_8.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.016, 0.032]


@pytest.mark.parametrize("dry", [["-n"], []])
def test_data_too_small_for_a_metric_is_said_before_there_is_a_folder(tmp_path, dry):
    data = write_dataset(tmp_path / "few.zip", n=3, size=64, class_names=NAMES)
    runs = tmp_path / "runs"
    for args in (COMMON, ["--recipe=demo64"]):
        message = run(f"--outdir={runs}", f"--data={data}", *args, "--metrics=pr_inception_10", *dry, code=1)
        assert "Error: metric pr_inception_10 needs at least 4 real images" in message and "few.zip has 3" in message
    assert not runs.exists()


def test_what_is_computed_once_is_announced_with_its_time(tmp_path):
    data = write_dataset(tmp_path / "data.zip", n=24, size=64, class_names=NAMES)
    single = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *COMMON, "--metrics=fd_lite0_8", "-n"]
    announced = [line for line in run(*single).splitlines() if line.startswith("To compute: ")]
    assert len(announced) == 1 and announced[0].startswith("To compute: 24 real images through lite0 for fd_lite0_8: about ")
    embedded = run(*single, "--class-embedding=auto")
    assert "To compute: class embeddings from 24 images through tf_efficientnet_lite0: about " in embedded
    of_stages = [line for line in run("--recipe=demo64", f"--data={data}", "-n").splitlines() if line.startswith("To compute: ")]
    assert [line.split(": ")[1] for line in of_stages] == ["stage 16", "stage 16", "stage 32", "stage 64"]
