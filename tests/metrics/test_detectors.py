# SPDX-License-Identifier: Apache-2.0
import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metrics import detector, detectors, inception
from metrics.names import INCEPTION, LITE0
from torch_utils import timm_weights


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_OFFLINE", "1")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(detectors.INCEPTION_ENV, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def lite0() -> detectors.Detector:
    return detectors.load(LITE0)


def images(n: int = 3, size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_missing_inception_is_one_line_with_file_hash_and_place(offline):
    with pytest.raises(FileNotFoundError) as error:
        detectors.check(INCEPTION)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        detectors.INCEPTION_FILE,
        detectors.INCEPTION_SHA256,
        "95,628,359",
        str(offline / "cache" / "detectors"),
        "--inception",
    ):
        assert part in text
    with pytest.raises(FileNotFoundError, match="there is no file"):
        detectors.check(INCEPTION, inception_path=str(offline / "nowhere.pth"))


def test_looking_for_inception_need_not_download(offline, monkeypatch):
    monkeypatch.setattr(
        detectors.dnnlib.util, "open_url", lambda *args, **kwargs: pytest.fail("it asked the network")
    )
    with pytest.raises(FileNotFoundError, match="it will be downloaded from https"):
        detectors.check(INCEPTION, download=False)


def test_inception_hash_is_checked_wherever_the_file_is(offline, monkeypatch):
    wrong = offline / "weights.pth"
    wrong.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not 6726825d"):
        detectors.find_inception(str(wrong))
    monkeypatch.setenv(detectors.INCEPTION_ENV, str(wrong))
    with pytest.raises(ValueError, match="not 6726825d"):
        detectors.find_inception()
    monkeypatch.delenv(detectors.INCEPTION_ENV)
    cached = offline / "cache" / "detectors" / detectors.INCEPTION_FILE
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not 6726825d"):
        detectors.find_inception()
    monkeypatch.setattr(detectors, "INCEPTION_SHA256", hashlib.sha256(b"something else").hexdigest())
    assert detectors.find_inception() == str(cached)
    assert detectors.find_inception(str(wrong)) == str(wrong)


def test_what_open_url_has_fetched_is_seen_without_asking_the_network(offline, monkeypatch):
    here = Path(detectors.dnnlib.util.download_path(detectors.INCEPTION_URLS[1]))
    here.parent.mkdir(parents=True)
    here.write_bytes(b"something else")
    with pytest.raises(timm_weights.MissingWeights, match="it will be downloaded"):
        detectors.check(INCEPTION, download=False)  # damaged: fetched again
    monkeypatch.setattr(detectors, "INCEPTION_SHA256", hashlib.sha256(b"something else").hexdigest())
    detectors.check(INCEPTION, download=False)
    assert detectors.fetch(INCEPTION) == str(here)


def test_inception_from_a_file(offline, monkeypatch):
    torch.manual_seed(3)
    source = inception.InceptionV3()
    path = offline / "weights.pth"
    torch.save(source.state_dict(), path)
    monkeypatch.setattr(detectors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    detector = detectors.load(INCEPTION, inception_path=str(path))
    outputs = detector(images(1))
    with torch.no_grad():
        features, probabilities = source(inception.prepare(images(1)))
    torch.testing.assert_close(outputs["features"], features, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(outputs["probabilities"], probabilities)
    assert outputs["features"].shape == (1, 2048) and outputs["probabilities"].shape == (1, 1008)


def test_inception_state_without_batch_counters_loads_and_others_are_named():
    network = inception.InceptionV3()
    state = {
        key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    detectors.load_inception_state(network, state)
    with pytest.raises(ValueError, match=r"fc\.bias is missing"):
        detectors.load_inception_state(
            network, {key: value for key, value in state.items() if key != "fc.bias"}
        )
    with pytest.raises(ValueError, match=r"AuxLogits\.fc\.bias is unknown"):
        detectors.load_inception_state(network, {**state, "AuxLogits.fc.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"fc\.bias has shape \[1000\]"):
        detectors.load_inception_state(network, {**state, "fc.bias": torch.zeros(1000)})


def test_lite0_is_prepared_as_for_the_discriminator(lite0):
    pixels = images()
    x = (pixels.float() / 255 - 0.5) / 0.5
    x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = lite0.network(x)[-1].mean((2, 3))
    found = lite0(pixels)["features"]
    assert found.shape == (3, 320)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert lite0.sha256.startswith("57934424")


def test_lite0_in_bfloat16_is_close_and_says_so(lite0):
    half = detectors.load(LITE0, lite0_dtype=torch.bfloat16)
    a, b = lite0(images())["features"], half(images())["features"]
    assert b.dtype == torch.float32
    assert 0 < (a - b).norm() / a.norm() < 0.1
    assert half.description["dtype"] == "bfloat16" and lite0.description["dtype"] == "float32"


def test_grey_images_count_as_rgb_and_batches_do_not_matter(lite0):
    grey = images(channels=1)
    together = lite0(grey.repeat(1, 3, 1, 1))["features"]
    torch.testing.assert_close(lite0(grey)["features"], together)
    one_by_one = torch.cat([lite0(grey[i : i + 1])["features"] for i in range(3)])
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-4)


def test_only_uint8_images(lite0):
    with pytest.raises(ValueError, match="uint8 images"):
        lite0(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="uint8 images"):
        lite0(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="unknown detector 'vgg'"):
        detectors.load("vgg")


def test_tf32_is_off_while_a_detector_runs_and_restored_after():
    class Looking(detectors.Detector):
        def _run(self, images):
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
            return {"features": images.float().flatten(1)}

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        assert Looking(torch.nn.Identity(), "cpu", torch.float32)(images())["features"].shape == (3, 768)
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_images_pass_a_cpu_in_small_groups():
    sizes = []

    class Counting(detectors.Detector):
        def _run(self, images):
            sizes.append(len(images))
            return {"features": images.float().flatten(1)}

    counting = Counting(torch.nn.Identity(), "cpu", torch.float32)
    group = max(detector.CPU_GROUP, torch.get_num_threads())
    pixels = torch.randint(0, 256, (2 * group + 1, 3, 2, 2), dtype=torch.uint8)
    assert counting(pixels)["features"].equal(pixels.float().flatten(1))
    assert sizes == [group, group, 1]


def test_loading_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    detectors.load(INCEPTION, inception_path="random")
    assert torch.random.get_rng_state().equal(before)


def test_perceptual_features_have_a_finite_gradient_where_nothing_is_active():
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, :, 0, 0] = torch.tensor([3.0, 0.0, 4.0])
    maps.requires_grad_(True)
    found = detector.lpips_features([maps], [torch.tensor([1.0, 1.0, 4.0])])
    torch.testing.assert_close(found.reshape(3, 4)[:, 0], torch.tensor([0.6, 0.0, 1.6]) / 2)
    found.square().sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_lite0_has_a_differentiable_perceptual_distance(lite0):
    pictures = (images(2).float()).requires_grad_(True)
    found = lite0.perceptual(pictures)
    sides = [detectors.LITE0_PERCEPTUAL // stride for stride in (4, 8, 16, 32)]
    widths = lite0.network.channels
    assert found.shape == (2, sum(c * s * s for c, s in zip(widths, sides, strict=True)))
    distance = (found[0] - found[1]).square().sum()
    (gradient,) = torch.autograd.grad(distance, [pictures])
    assert 0.1 < distance.item() < 4 and torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    with torch.no_grad():
        nearer = lite0.perceptual(pictures[:1].lerp(pictures[1:], 0.9))[0]
    assert (nearer - found[1]).square().sum() < distance / 2


def test_detectors_without_a_perceptual_distance_say_so():
    plain = detector.Detector(torch.nn.Identity(), "cpu", torch.float32)
    plain.name = INCEPTION
    with pytest.raises(NotImplementedError, match="inception-2015-12-05 has no perceptual distance"):
        plain.perceptual(torch.zeros(1, 3, 16, 16))
