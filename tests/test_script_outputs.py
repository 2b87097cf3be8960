# SPDX-License-Identifier: Apache-2.0
"""Every script refuses, before any work and in one line, an output that cannot be meant."""

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

# script -> (the flag of its output, the other arguments). None of the networks exists: they would be read
# later.
SCRIPTS = {
    "dataset_tool": ("--dest", ["--source=photos"]),
    "gen_images": ("--outdir", ["--network=gone.pkl", "--seeds=0"]),
    "gen_video": ("--output", ["--network=gone.pkl", "--seeds=0"]),
    "gen_class_samplesheet": ("--outdir", ["--network=gone.pkl", "--classes=0"]),
    "convert": ("--dest", ["--source=gone.pkl", "--format=pkl"]),
    "calc_metrics": ("--outdir", ["--network=gone.pkl"]),
    "train": ("--outdir", ["--cfg=stylegan3-t", "--data=photos", "--gpus=1", "--batch=4"]),
    "demo": ("--outdir", []),
}
DATA = {
    "dataset_tool": [],
    "gen_images": ["--data=photos"],
    "gen_video": ["--data=photos"],
    "gen_class_samplesheet": ["--data=photos"],
    "calc_metrics": ["--data=photos"],
    "train": [],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "1.png")
    return tmp_path


def refused(script: str, *arguments: str) -> str:
    before = sorted(Path().rglob("*"))
    result = CliRunner().invoke(importlib.import_module(script).main, arguments, catch_exceptions=False)
    assert result.exit_code == 1 and result.output.startswith("Error: ") and result.output.count("\n") == 1, (
        result.output
    )
    assert sorted(Path().rglob("*")) == before
    return result.output


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_name_and_addresses(script: str, place: Path) -> None:
    flag, others = SCRIPTS[script]
    assert flag in refused(script, *others, f"{flag}=")
    for address in ("https://host/x/out.mp4", "s3://bucket/out.zip"):
        assert "is a URL" in refused(script, *others, f"{flag}={address}")
    (place / "file").write_bytes(b"x")
    assert "file is a file" in refused(script, *others, f"{flag}=file/out.gif")


@pytest.mark.parametrize("script", DATA)
@pytest.mark.parametrize("where", ["photos/new/out.gif", "link/out.gif"])
def test_inside_the_data(script: str, where: str, place: Path) -> None:
    (place / "link").symlink_to("photos")
    flag, others = SCRIPTS[script]
    if script == "dataset_tool":
        where = where.replace(".gif", ".zip")
    assert f"{flag}={where} lies inside --" in refused(script, *others, *DATA[script], f"{flag}={where}")


def test_measured_images_take_no_records(place: Path) -> None:
    assert "lies inside --images=photos" in refused(
        "calc_metrics", "--images=photos", "--data=photos", "--outdir=photos/records"
    )


def test_one_data_set_of_several(place: Path) -> None:
    (place / "photos64").mkdir()
    message = refused("train", "--recipe=small", "--gpus=1", "--data=photos{res}", "--outdir=photos64/runs")
    assert "--outdir=photos64/runs lies inside --data=photos64" in message


def test_a_folder_that_weights_are_fetched_to(place: Path) -> None:
    assert "--prefetch=https://host/x is a URL" in refused("train", "--prefetch=https://host/x")
    assert "becomes part of a folder name" in refused(
        "train", "--outdir=runs", "--data=photos", "--desc=../x"
    )


def test_a_network_of_which_nothing_could_be_read_again(place: Path) -> None:
    (place / "a.pkl").write_bytes(b"x")
    (place / "b.json").write_text('{"format": "stylesan-xl network", "version": 1, "networks": {}}')
    for dest, more, message in (
        ("n.bin", ["--format=safetensors"], "end it with .safetensors"),
        ("n", ["--format=safetensors"], "end it with .safetensors"),
        ("b.json", ["--format=pkl"], "end it with .pkl"),
        ("b.safetensors", [], "b.json describes another network"),
        ("./a.pkl", [], "is --source=a.pkl"),
    ):
        assert message in refused("convert", "--source=a.pkl", f"--dest={dest}", *more)
    (place / "c.safetensors").write_bytes(b"x")
    (place / "c.json").symlink_to("b.json")
    assert "is the JSON file of --source" in refused(
        "convert", "--source=c.safetensors", "--dest=b.safetensors"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_home_is_expanded(script: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell does it in --dest=~/x; the published commands are written so."""
    monkeypatch.setenv("HOME", str(place))
    (place / "file").write_bytes(b"x")
    flag, others = SCRIPTS[script]
    assert f"{place}/file is a file" in refused(script, *others, f"{flag}=~/file/out.gif")


def test_a_data_set_from_home_to_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    (place / "photos").rename(place / "home")
    import dataset_tool

    result = CliRunner().invoke(dataset_tool.main, ["--source=~/", "--dest=~/../out.zip"])
    assert result.exit_code == 0 and (place / "out.zip").is_file() and not (place / "~").exists()
