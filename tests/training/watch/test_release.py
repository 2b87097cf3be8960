# SPDX-License-Identifier: Apache-2.0
"""The bundle of a run: everything but weights, and nothing from elsewhere."""

import hashlib
import json
import zipfile

import PIL.Image
import pytest

from training import run_folder
from training.watch import release, report


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "00000-run"
    folder.mkdir()
    (folder / run_folder.STATS_FILE).write_text('{"kimg": 1.0}\n')
    (folder / run_folder.LOG_FILE).write_text("tick 1\n")
    (folder / "metric-fd.jsonl").write_text('{"metric": "fd", "results": {"fd": 2.0}, "kimg": 1.0}\n')
    (folder / "best_model.pkl").write_bytes(b"weights")
    (folder / "network-snapshot-000001.pkl").write_bytes(b"weights")
    (folder / run_folder.CHECKPOINT_FOLDER).mkdir()
    for name in ("fakes000000.png", "fakes000001.png", "reals.png"):
        PIL.Image.new("RGB", (4, 4)).save(folder / name)
    (tmp_path / "secret.jsonl").write_text("secret")
    (folder / "metric-other.jsonl").symlink_to(tmp_path / "secret.jsonl")
    return folder


def test_a_bundle_has_all_but_weights_and_links(run):
    (run / "report.html").write_text("page")
    path = release.write(run)
    assert path == run.parent / "00000-run-report.zip"
    with zipfile.ZipFile(path) as archive:
        names = {name.removeprefix("00000-run/") for name in archive.namelist()}
        manifest = json.loads(archive.read("00000-run/manifest.json"))
    assert names == {
        "report.html", "stats.jsonl", "log.txt", "metric-fd.jsonl", "reals.png", "fakes000001.png",
        "manifest.json",
    }  # fmt: skip
    assert manifest == {
        "networks": {
            "best_model.pkl": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()},
        }
    }
    assert {p.name for p in run.parent.iterdir()} == {"00000-run", "00000-run-report.zip", "secret.jsonl"}


def test_a_recipe_has_its_stages(run):
    recipe = run.parent / "00001-recipe"
    recipe.mkdir()
    run.rename(recipe / "stage-16")
    with zipfile.ZipFile(release.write(recipe)) as archive:
        names = archive.namelist()
        assert "best_model.pkl" in archive.read("00001-recipe/manifest.json").decode()
    assert "00001-recipe/stage-16/stats.jsonl" in names


def test_the_command_writes_it_and_says_what_to_check(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", str(run), "--bundle"])
    assert report.main() == 0
    assert "00000-run-report.zip: its log.txt and options name folders" in capsys.readouterr().out

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(release, "write", full)
    assert report.main() == 1
    assert "No space left on device" in capsys.readouterr().err
