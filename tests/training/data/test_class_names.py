# SPDX-License-Identifier: Apache-2.0
"""Classes by name; the guidance classifier against the data set's classes."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from tests.toy_data import write_dataset
from torch_utils import features
from training import build, losses
from training.config import LossConfig
from training.data import class_names
from training.data.dataset import ImageDataset

MODEL = "resnet10t"
IDS = list(features.imagenet_descriptions())


def test_imagenet_classes_by_any_of_their_names():
    names = ["n01443537", "Tench, Tinca_tinca", "great grey owl", "crane (n03126707)", "maillot, tank suit"]
    found, missing = class_names.class_map(names, IDS, features.imagenet_descriptions())
    assert found.tolist() == [1, 0, 24, 517, IDS.index("n03710721")] and missing == []
    found, missing = class_names.class_map(
        ["crane", "n99999999", "tench"], IDS, features.imagenet_descriptions()
    )
    assert found.tolist() == [-1, -1, 0] and missing == ["crane", "n99999999"]
    assert class_names.class_map(["tench"], IDS)[1] == ["tench"]


def test_numbers_are_no_names():
    assert (
        not class_names.has_names(None)
        and not class_names.has_names(["0", "01", "2"])
        and class_names.has_names(["0", "one"])
    )


def test_class_names_from_json(tmp_path):
    path = tmp_path / "names.json"
    for content in (["b", "a"], {"0": "b", "1": "a"}):
        path.write_text(json.dumps(content))
        assert class_names.read_class_names(path) == ["b", "a"]
    for content in ("[", "{}", "[1]", '{"1": "a"}', "[]", "3"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"names\.json"):
            class_names.read_class_names(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(timm.create_model(MODEL, num_classes=4).state_dict(), path)
    return str(path)


def labelled(path, names) -> ImageDataset:
    return ImageDataset(write_dataset(path, n=len(names), class_names=names), use_labels=True)


def test_imagenet_subset_in_any_order_is_mapped(tmp_path):
    dataset = labelled(tmp_path / "two.zip", ["n01443537", "n01440764", "n15075141"])
    classifier = build.make_classifier(
        LossConfig(cls_weight=1.0, cls_model=MODEL, cls_weights="random"), dataset
    )
    assert classifier.class_map.tolist() == [1, 0, 999]
    assert classifier.to(torch.bfloat16).class_map.dtype == torch.int64


def test_a_users_classifier_brings_its_names(tmp_path, weights, capsys):
    dataset = labelled(tmp_path / "three.zip", ["dog", "ant", "bee"])
    cfg = LossConfig(
        cls_weight=1.0, cls_model=MODEL, cls_weights=weights, cls_classes=str(tmp_path / "names.json")
    )
    (tmp_path / "names.json").write_text('["Ant", "bee", "cow", "DOG"]')
    classifier = build.make_classifier(cfg, dataset)
    assert classifier.class_map.tolist() == [3, 0, 1] and capsys.readouterr().out == ""
    images, labels = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([0, 2])
    resized = F.interpolate(
        classifier.normalize((images + 1) / 2),
        (classifier.input_size,) * 2,
        mode="bilinear",
        align_corners=False,
    )
    expected = F.cross_entropy(classifier(resized), torch.tensor([3, 1]))
    torch.testing.assert_close(losses.guidance(classifier, images, labels), expected)
    (tmp_path / "names.json").write_text('["ant", "bee"]')
    with pytest.raises(ValueError, match=r"names\.json has 2 class names, but resnet10t has 4 classes"):
        build.make_classifier(cfg, dataset)


def test_names_lie_beside_the_weights(tmp_path, weights):
    beside = tmp_path / "other.pth"
    shutil.copy(weights, beside)
    (tmp_path / "other.pth.classes.json").write_text('["w", "x", "y", "z"]')
    cfg = LossConfig(cls_weight=1.0, cls_model=MODEL, cls_weights=str(beside))
    np.testing.assert_array_equal(
        build.make_classifier(cfg, labelled(tmp_path / "d.zip", ["z", "w"])).class_map, [3, 0]
    )
    with pytest.raises(
        ValueError,
        match=r"2 of the 3 classes .* not among the 4 classes of resnet10t \(.*classes\.json\): 'a', 'b'; "
        r"use --cls_weight=0",
    ):
        build.make_classifier(cfg, labelled(tmp_path / "e.zip", ["a", "z", "b"]))
    with pytest.raises(ValueError, match="are the same class of resnet10t: 'z', 'Z'"):
        build.make_classifier(cfg, labelled(tmp_path / "f.zip", ["z", "Z"]))


def test_nameless_classes_go_by_number_with_a_warning(tmp_path, weights, capsys):
    cfg = LossConfig(cls_weight=1.0, cls_model=MODEL, cls_weights=weights)
    assert (
        build.make_classifier(cfg, labelled(tmp_path / "named.zip", ["a", "b", "c", "d"])).class_map is None
    )
    assert "resnet10t has no class names" in capsys.readouterr().out
    cfg = LossConfig(cls_weight=1.0, cls_model=MODEL, cls_weights="random")
    numbered = labelled(tmp_path / "numbered.zip", [str(i) for i in range(1000)])
    assert (
        build.make_classifier(cfg, numbered, quiet=True).class_map is None and capsys.readouterr().out == ""
    )
    build.make_classifier(cfg, numbered)
    assert capsys.readouterr().out.count("Warning: --data=") == 1
    with pytest.raises(ValueError, match=r"resnet10t has 1000 classes, but .* has 3"):
        build.make_classifier(cfg, labelled(tmp_path / "three.zip", ["0", "1", "2"]))
    with pytest.raises(ValueError, match="1000 of the 1000 classes"):
        build.make_classifier(cfg, labelled(tmp_path / "words.zip", [f"word{i}" for i in range(1000)]))
    assert build.make_classifier(LossConfig(), numbered) is None
