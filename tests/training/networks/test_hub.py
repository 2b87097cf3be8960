# SPDX-License-Identifier: Apache-2.0
"""Model repositories, against a hub that is a folder; and the model card."""

import inspect
import json
import math

import pytest
import torch
import yaml

from tests.support import FolderHub
from tests.toy_networks import network, same
from training.networks import files, stems
from training.networks import hub as sharing

PROVENANCE = {
    "project": "StyleSAN-XL",
    "nimg": 123_000,
    "config": {
        "generator": {"cfg": "stylegan3-t", "superres": True, "path_stem": "runs/stem/best_model.pkl"},
        "loss": {"cls_weight": 0.0},
    },
    "class_names": ["cat", "dog", "a|b*c"],
    "data": {
        "name": "emoji",
        "hash": "abcd",
        "images": 50,
        "metadata": {"transform": "center-crop", "filter": "lanczos"},
    },
    "backbones": {"deit": "1234"},
    "torch": "2.15",
    "written": "2026-01-02T03:04:05+00:00",
}
METRICS = [{"metric": "fid50k_full", "results": {"fid50k_full": 2.14}}]


def network_file():
    return files.NetworkFile({"G_ema": network()}, {}, {"path": "emoji.zip"}, PROVENANCE)


def test_push_and_pull(tmp_path):
    hub, file = FolderHub(tmp_path), network_file()
    assert (
        sharing.push(file, "hf://me/emoji", license="cc-by-4.0", metrics=METRICS, private=True, api=hub)
        == "https://hub/me/emoji/commit/1"
    )
    assert hub.calls == [
        ("create_repo", "me/emoji", True),
        ("upload_folder", "me/emoji", None, "Upload G_ema"),
    ]
    assert sorted(path.name for path in (tmp_path / "me/emoji").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    same(file, sharing.pull("hf://me/emoji", hub))
    with pytest.raises(
        ValueError,
        match=r"hf://me/other: cannot be downloaded: 404 Client Error me/other has no config\.json",
    ) as caught:
        sharing.pull("hf://me/other", hub)
    assert "\n" not in str(caught.value)
    weights = tmp_path / "me/emoji/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=rf"^hf://me/emoji: not a safetensors file.* \(the copy {weights} is removed"
    ):
        sharing.pull("hf://me/emoji", hub)
    assert not weights.exists()
    hub.upload_folder = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("401\nnot yours"))
    with pytest.raises(ValueError, match="cannot be uploaded: 401 not yours"):
        sharing.push(file, "hf://me/emoji", api=hub)


def test_the_package_has_the_calls_that_the_folder_has():
    hub = pytest.importorskip("huggingface_hub")
    for ours, theirs in (
        (FolderHub.create_repo, hub.HfApi.create_repo),
        (FolderHub.upload_folder, hub.HfApi.upload_folder),
        (FolderHub.hf_hub_download, hub.hf_hub_download),
    ):
        assert set(inspect.signature(ours).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)


@pytest.mark.parametrize(
    "text", ["hf://", "hf://me", "hf://me/../x", "hf://me/a/b", "hf://me/a b", "hf://me/a@"]
)
def test_names_of_repositories(text):
    with pytest.raises(ValueError, match="named hf://OWNER/NAME"):
        sharing.parse_repository(text)
    assert sharing.parse_repository("hf://me/a-b.c@v1/x") == ("me/a-b.c", "v1/x")


def test_the_card_says_what_the_file_knows():
    text = sharing.model_card(network_file(), "me/emoji", "cc-by-4.0", METRICS)
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "cc-by-4.0" and "stylesan-xl" in head["tags"]
    result = head["model-index"][0]["results"][0]
    assert (
        result["metrics"] == [{"type": "fid50k_full", "value": 2.14}] and result["dataset"]["name"] == "emoji"
    )
    for line in (
        "32x32 pixels, 3 classes",
        "--network=hf://me/emoji",
        "- name: emoji",
        "- prepared: transform: center-crop",
        r"Classes: cat, dog, a\|b\*c.",
        "- images shown: 123000",
        "- generator.cfg: stylegan3-t",
        "- stem: runs/stem/best\\_model.pkl",
        "- feature network deit: 1234",
        "| fid50k\\_full | 2.1400 |",
        "Weights: cc-by-4.0.",
    ):
        assert line in body, line


def test_the_card_of_a_file_that_knows_nothing():
    text = sharing.model_card(files.NetworkFile({"G": network()}), "me/x\ny: z")
    head = yaml.safe_load(text.split("---\n", 2)[1])
    assert head["license"] == "unknown" and "model-index" not in head
    assert (
        "None are recorded." in text and "Ask before use" in text and "The configuration is unknown." in text
    )
    hostile = files.NetworkFile(
        {"G": network()}, {}, {"path": 7}, {"config": [1], "data": "x", "class_names": "y", "backbones": 3}
    )
    records = [{"results": {"fid": math.nan, "a: b\n- c": 1, "d": True, "e": "2"}}, {"results": 3}, {}]
    text = sharing.model_card(hostile, "me/x", metrics=records)
    (result,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"][0]["results"]
    assert [m["type"].split() for m in result["metrics"]] == [["a:", "b", "-", "c"]]


STEMS = [
    {
        "file": "/home/joe/runs/a/best_model.pkl",
        "sha256": "aa11",
        "resolution": 16,
        "nimg": 20_480,
        "metric": {"name": "fid50k", "value": 3.25},
    },
    {"file": "https://host/b.pkl", "sha256": "bb22", "resolution": 32, "nimg": None, "metric": None},
]


def test_the_card_names_the_stems_that_training_recorded():
    """`provenance["lineage"]["stems"]` is where a run writes them."""
    file = network_file()
    file.provenance = {**PROVENANCE, "lineage": {"stems": STEMS, "changes": []}}
    text = sharing.model_card(file, "me/emoji")
    for line in (
        "- stem 1: best\\_model.pkl, 16x16 pixels, 20,480 images shown, fid50k 3.25, sha256 aa11",
        "- stem 2: https://host/b.pkl, 32x32 pixels, sha256 bb22",
    ):
        assert line in text, line
    assert "- stem: " not in text and "joe" not in text
    file.provenance["lineage"] = {"stems": [7, {"file": 3, "sha256": ["x"], "metric": "y"}]}
    assert "- stem 1" not in sharing.model_card(file, "me/emoji")


def test_what_a_run_records_is_what_the_card_reads():
    recorded = stems.Lineage(stems=STEMS).provenance()
    assert stems.stem_entries({"lineage": recorded}) == STEMS


@pytest.mark.parametrize("path", ["/home/joe/pets.zip", "C:\\Users\\joe\\pets.zip", "\\\\h\\joe\\pets.zip"])
def test_cards_show_no_absolute_paths(path):
    file = network_file()
    file.provenance = {**PROVENANCE, "config": {"data": {"path": path}, "generator": {"path_stem": path}}}
    text = sharing.model_card(file, "me/emoji")
    assert "- data.path: pets.zip" in text and "- stem: pets.zip" in text and "joe" not in text


def test_metrics_come_from_the_lines_about_this_file(tmp_path):
    lines = [
        {"metric": "fid", "results": {"fid": 9.0}, "snapshot_pkl": "network-snapshot-000001.pkl"},
        {"metric": "fid", "results": {"fid": 3.0}, "snapshot_pkl": "network-snapshot-000002.pkl"},
        {"metric": "fid", "results": {"fid": 5.0}, "snapshot_pkl": "network-snapshot-000003.pkl"},
    ]
    (tmp_path / "metric-fid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "cut {\n")

    def found(name):
        return [line["results"]["fid"] for line in sharing.read_metrics(str(tmp_path / name))]

    assert found("network-snapshot-000001.pkl") == [9.0]
    assert found("best_model.pkl") == [3.0]
    assert found("other.pkl") == []
    assert sharing.read_metrics("hf://me/x") == []


def test_cards_are_short_of_nothing_for_unconditional_networks():
    from training.generator import build_stem

    torch.manual_seed(0)
    G = build_stem("stylegan3-t", 16, 0, syn_layers=4, cbase=64, cmax=4, z_dim=4, w_dim=8)
    assert "16x16 pixels, 5 layers" in sharing.model_card(files.NetworkFile({"G_ema": G}), "me/x")
