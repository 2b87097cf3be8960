# SPDX-License-Identifier: Apache-2.0
"""Networks that run folders stand for."""

import json

import pytest

from training.networks import stems
from training.run_folder import write_json


@pytest.fixture
def folder(tmp_path):
    """A run at 12.5 kimg whose first metric was measured at 4.5 kimg."""
    write_json(tmp_path / "training_options.json", {"config": {"run": {"metrics": ["fid50k_full"]}}})
    write_json(tmp_path / "status.json", {"outcome": "interrupted", "nimg": 12500})
    line = {"metric": "fid50k_full", "results": {"fid50k_full": 3.25}, "kimg": 4.5}
    (tmp_path / "metric-fid50k_full.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "best_model.pkl").touch()
    return tmp_path


def test_a_chosen_network_says_its_age_and_metric(folder):
    file = stems.network_path("--network", str(folder))
    assert file == f"{folder}/best_model.pkl"
    assert (
        stems.network_summary(file, {"nimg": 4500})
        == f"{file} (4.5 kimg, fid50k_full 3.25; the run has shown 12.5 kimg)"
    )
    assert stems.network_summary(file, {"nimg": 12500}) == f"{file} (12.5 kimg)"
    assert stems.network_summary("other.pkl", None) == "other.pkl (images shown: unknown)"


def test_flags_are_named_where_there_is_no_network(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"^--init-from=.*: the folder contains neither best_model.pkl nor network-snapshot.pkl",
    ):
        stems.network_path("--init-from", str(tmp_path))
    with pytest.raises(ValueError, match=r"^--path_stem=.*x.pkl: no such file"):
        stems.stem_file(str(tmp_path / "x.pkl"))


def test_the_folder_of_a_recipe_names_its_newest_stage(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^--network=.* one of its stages, which have no network yet"):
        stems.network_path("--network", str(tmp_path))
    for size in (16, 32, 64):
        (tmp_path / f"stage-{size:03d}x{size:03d}").mkdir()
    for size in (16, 32):
        (tmp_path / f"stage-{size:03d}x{size:03d}" / "network-snapshot.pkl").touch()
    with pytest.raises(ValueError, match=r"^--network=.* is a recipe's folder: .*, such as .*stage-032x032$"):
        stems.network_path("--network", str(tmp_path))
