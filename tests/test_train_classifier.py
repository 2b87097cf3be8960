# SPDX-License-Identifier: Apache-2.0
"""train_classifier.py: a classifier that train.py's guidance takes for a data set's own classes."""

import contextlib
import errno
import json

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import train_classifier
from dnnlib import util
from tests.toy_data import write_dataset
from torch_utils import features, timm_weights
from training import build, losses
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.networks import classifier


def invoke(*arguments: str):
    return CliRunner().invoke(train_classifier.main, list(arguments))


@pytest.fixture(scope="module")
def trained(toy_zip, tmp_path_factory):
    dest = tmp_path_factory.mktemp("classifier") / "toy.safetensors"
    result = invoke(f"--data={toy_zip}", f"--dest={dest}", "--workers=0")
    assert result.exit_code == 0, result.output
    return dest, result.output


def test_the_guidance_takes_it(trained, toy_zip):
    """Its classes are those of the data set, by name, and it recognises the images it was fitted to."""
    dest, output = trained
    assert f"--cls_weights={dest}" in output and "held-out images recognised" in output
    assert "The images have 16 pixels. StyleGAN-XL uses guidance from 64 on" in output
    dataset = ImageDataset(toy_zip, use_labels=True)
    assert json.loads((dest.parent / f"{dest.name}.classes.json").read_text()) == dataset.class_names
    cfg = TrainConfig().override(
        {"loss.cls_weight": 8.0, "loss.cls_model": timm_weights.LITE0, "loss.cls_weights": str(dest)}
    )
    network = build.make_classifier(cfg.loss, dataset)
    assert network is not None and network.class_map.tolist() == [0, 1, 2]
    images = torch.stack([torch.from_numpy(dataset[i][0].copy()) for i in range(0, len(dataset), 4)])
    x = network.normalize(images.float() / 255)
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        predicted = network(x).argmax(dim=1)
    assert predicted.tolist() == [dataset[i][1] for i in range(0, len(dataset), 4)]


def test_the_guidance_sees_images_at_the_recorded_size(trained, toy_zip, tmp_path):
    """With --size, at that size, whatever the network's own; and by faster layers of the same function."""
    assert features.classifier(timm_weights.LITE0, str(trained[0])).input_size == 224
    dest = tmp_path / "small.safetensors"
    result = invoke(f"--data={toy_zip}", f"--dest={dest}", "--size=40", "--workers=0")
    assert result.exit_code == 0, result.output
    plain = features.classifier(timm_weights.LITE0, str(dest))
    assert plain.input_size == 40
    cfg = TrainConfig().override(
        {"loss.cls_weight": 8.0, "loss.cls_model": timm_weights.LITE0, "loss.cls_weights": str(dest)}
        | {"discriminator.precision": "fp32"}
    )
    fast = build.classifier_on(torch.device("cpu"), cfg, ImageDataset(toy_zip, use_labels=True))
    assert fast is not None
    images = torch.rand(4, 3, 16, 16).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    found, expected = (losses.guidance(network, images, labels) for network in (fast, plain))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(loss, images)[0] for loss in (found, expected)]
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[1].norm()


def test_sizes_that_a_network_cannot_see(trained, tmp_path):
    with pytest.raises(ValueError, match="accepts images of 224x224 pixels only, not of 64x64"):
        features.classifier("deit_tiny_patch16_224", timm_weights.RANDOM, size=64)
    state = safetensors.torch.load_file(trained[0])
    for number, entry in enumerate(("0", "-5", "64.0", "99999999", "")):
        path = tmp_path / f"{number}.safetensors"
        safetensors.torch.save_file(state, path, {timm_weights.SIZE_ENTRY: entry})
        with pytest.raises(ValueError, match="which is no size in pixels: train it again"):
            features.classifier(timm_weights.LITE0, str(path))


def test_the_layer_is_a_logistic_regression():
    """On classes that overlap: no better solution is near, and the penalty is chosen by held-out images."""
    draw = np.random.RandomState(0)
    x = torch.from_numpy(draw.randn(200, 5) * [1, 10, 0.1, 1, 1]).float()
    labels = (x[:, 0] + 0.3 * torch.from_numpy(draw.randn(200)).float() > 0).long()
    weight, bias = classifier.fit(x, labels, 2, 1e-3)
    z = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    w = (weight * x.std(dim=0, correction=0)).double().requires_grad_(True)
    b = (bias + weight @ x.mean(dim=0)).double().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(z.double() @ w.T + b, labels) + 1e-3 / 2 * w.square().sum()
    for gradient in torch.autograd.grad(loss, [w, b]):
        assert gradient.abs().max() < 1e-4
    head = classifier.fit_head(x[:150], labels[:150], x[150:], labels[150:], 2)
    assert head.penalty in classifier.PENALTIES and head.accuracy > 0.8 and len(head.per_class) == 2


def test_images_are_held_out_of_every_class():
    labels = np.array([0] * 12 + [1] * 3 + [2] * 40)
    fit, held_out = classifier.chosen(labels, 3, 20, seed=0)
    assert not set(fit) & set(held_out)
    assert np.bincount(labels[held_out]).tolist() == [2, 1, 4]
    assert np.bincount(labels[fit]).tolist() == [10, 2, 16]
    with pytest.raises(ValueError, match="class 3 has 0 images"):
        classifier.chosen(labels, 4, 20, seed=0)


def test_a_full_disk_leaves_other_weights_and_their_names(trained, tmp_path, monkeypatch):
    dest = tmp_path / "c.safetensors"
    network = features.classifier(timm_weights.LITE0, str(trained[0]))
    weight, bias = network.body.get_classifier().weight, network.body.get_classifier().bias
    head = classifier.Head(weight.detach(), bias.detach(), 0.1, 1.0, [1.0] * 3)
    classifier.write(dest, network, head, list("abc"), {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    @contextlib.contextmanager
    def full(path, mode="wb"):
        with util.atomic_write(path, mode) as file:
            yield file
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(classifier, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        classifier.write(dest, network, head, list("xyz"), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_images_with_alpha_are_on_white(tmp_path):
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "images" / "clear.png")
    network = features.classifier(timm_weights.LITE0, timm_weights.RANDOM)
    dataset = ImageDataset(tmp_path / "images", channels=4)
    found = classifier.compute_features(network, dataset, np.arange(1), 1, 0)
    white = losses.classifier_input(network, torch.ones(1, 3, 16, 16))
    with torch.no_grad():
        expected = network.body.forward_head(network.body.forward_features(white), pre_logits=True)
    torch.testing.assert_close(found, expected)


def test_bad_input_is_one_line(toy_zip, tmp_path, monkeypatch):
    for arguments, message in (
        ([f"--data={toy_zip}", f"--dest={tmp_path / 'c.pth'}"], "end the name with .safetensors"),
        ([f"--data={tmp_path / 'no.zip'}", f"--dest={tmp_path / 'c.safetensors'}"], "no.zip"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(classifier, "compute_features", None)  # the mistake is found before the work
    result = invoke(f"--data={toy_zip}", f"--dest={tmp_path / 'file' / 'c.safetensors'}")
    assert result.exit_code == 1 and result.output.count("\n") == 1
    network = features.classifier(timm_weights.LITE0, timm_weights.RANDOM)
    monkeypatch.setattr(network.body, "get_classifier", lambda: (1, 2))
    with pytest.raises(ValueError, match="does not end with one linear layer"):
        classifier.layer_name(network)


def test_other_weights_are_not_replaced(toy_zip, tmp_path):
    dest = tmp_path / "network.safetensors"
    dest.write_bytes(b"a network")
    result = invoke(f"--data={toy_zip}", f"--dest={dest}")
    assert result.exit_code == 1 and "is no classifier of this command" in result.output
    assert dest.read_bytes() == b"a network"


def test_a_set_without_labels_is_to_be_prepared(tmp_path):
    data = write_dataset(tmp_path / "unlabelled.zip")
    result = invoke(f"--data={data}", f"--dest={tmp_path / 'c.safetensors'}")
    assert "no labels in dataset.json: prepare the data with one sub-folder" in result.output
    assert "--cond" not in result.output
