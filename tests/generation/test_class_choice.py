# SPDX-License-Identifier: Apache-2.0
"""The class of a target: the nearest class mean, or a classifier that sees normalised images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from generation import Network, class_choice, inversion
from tests.support import TinyDetector
from torch_utils import features


@pytest.fixture(scope="module")
def network(toy_networks: Path) -> Network:
    return Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")


class Body(torch.nn.Module):
    """Three logits: means of the colours. `seen` is the last input."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 32, 32)}

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = torch.nn.Parameter(torch.ones([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x.mean(dim=(2, 3)) * self.scale


def test_the_mean_image_of_a_class_is_of_that_class(network):
    means = class_choice.ClassMeans(network, TinyDetector())
    done = []
    means.compute(done.append)
    assert means.is_ready and done == [1, 1, 1]
    for index, chances in enumerate(np.eye(3)):
        w = inversion.mean_style(network, chances, 500)
        assert means.nearest(network.render(w.repeat(1, network.G.num_ws, 1))[0]) == index


def test_the_classifier_sees_normalised_images(network):
    classifier = features.Classifier(Body(), "body", "sha")
    target = np.zeros((16, 16, 3), np.uint8)
    target[:, :, 1] = 255
    found = class_choice.probabilities(classifier, target)
    seen = classifier.body.seen
    assert seen.shape == (1, 3, 32, 32)
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([-2.0, 2.0, -2.0]))
    assert found.shape == (3,) and found.sum() == pytest.approx(1) and found.argmax() == 1
    classifier.class_map = torch.tensor([1, 0])  # the network has two classes, in another order
    assert class_choice.probabilities(classifier, target).argmax() == 0


def test_a_classifier_of_other_classes_is_one_line(network, monkeypatch):
    monkeypatch.setattr(features, "classifier", lambda *args: features.Classifier(Body(5), "body", "sha"))
    with pytest.raises(ValueError, match=r"--classifier=body: it has 5 classes, but .*cond\.pkl has 3"):
        class_choice.load_classifier(network, "body")
    named = features.Classifier(Body(), "body", "sha")
    named.class_names = ["cat", "dog", "red-panda"]
    monkeypatch.setattr(features, "classifier", lambda *args: named)
    with pytest.raises(ValueError, match=r"it lacks 1 of the 3 classes of .*: 'grinning face': remove"):
        class_choice.load_classifier(network, "body")
    named.class_names = ["red-panda", "Grinning Face", "cat"]
    assert class_choice.load_classifier(network, "body").class_map.tolist() == [2, 1, 0]
