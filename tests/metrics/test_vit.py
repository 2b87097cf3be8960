# SPDX-License-Identifier: Apache-2.0
"""DINOv2 and CLIP as detectors, on small random networks: input preparation and position embeddings."""

import numpy as np
import PIL.Image
import pytest
import timm
import torch

from metrics import detectors, vit
from metrics.names import CLIP, DINOV2
from torch_utils import timm_weights


@pytest.fixture
def small(monkeypatch):
    """DINOv2's and CLIP's architectures, small enough for a test."""
    monkeypatch.setattr(vit, "MODELS", {DINOV2: "vit_small_patch14_dinov2", CLIP: "vit_tiny_patch16_224"})
    monkeypatch.setattr(vit, "CLIP_INPUT", 224)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 300)])
def test_images_are_resized_as_pil_does(height, width):
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(PIL.Image.fromarray(pixels).resize((224, 224), PIL.Image.Resampling.BICUBIC), float)
    found = vit.resize_pil(torch.from_numpy(pixels).permute(2, 0, 1)[None], 224)[0].permute(1, 2, 0).numpy()
    assert abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01


def _cubic(t: float) -> float:
    """Keys' kernel with a = -0.75."""
    t, a = abs(t), -0.75
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def test_position_embeddings_are_resampled_as_the_original_does_it():
    embedding = torch.from_numpy(np.random.RandomState(0).randn(1, 1 + 37 * 37, 3).astype(np.float32))
    weights = np.zeros((16, 37))
    for i in range(16):
        position = (i + 0.5) * 37 / 16.1 - 0.5  # 16.1 patches per side: the offset that DINOv2 adds
        first = int(np.floor(position))
        for j in range(first - 1, first + 3):
            weights[i, min(max(j, 0), 36)] += _cubic(position - j)
    grid = embedding[0, 1:].reshape(37, 37, 3).double().numpy()
    expected = np.einsum("ia,jb,abd->ijd", weights, weights, grid).reshape(256, 3)
    found = vit.resample_positions(embedding, 16)[0]
    assert found[:1].equal(embedding[0, :1])
    np.testing.assert_allclose(found[1:].numpy(), expected, atol=2e-5)
    assert vit.resample_positions(embedding, 37) is embedding


def test_dinov2_reads_a_file_and_returns_the_normalised_class_token(small, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(vit.MODELS[DINOV2], pretrained=False)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    detector = detectors.load(DINOV2, weights={DINOV2: str(path)})
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    features = detector(images)["features"]
    assert features.shape == (2, 384) and detector.dims == {"features": 384}
    torch.testing.assert_close(features.mean(dim=1), torch.zeros(2), atol=1e-4, rtol=0)  # the last norm
    assert "weights" not in detector.description
    pictures = images.float().requires_grad_(True)
    perceptual = detector.perceptual(pictures)
    assert perceptual.shape == (2, 4 * 384 * 16 * 16)  # four blocks of 16x16 patches, each of unit length
    torch.testing.assert_close(perceptual.square().sum(dim=1), torch.full([2], 4.0))
    (gradient,) = torch.autograd.grad((perceptual[0] - perceptual[1]).square().sum(), [pictures])
    assert gradient.abs().sum() > 0
    torch.save({**network.state_dict(), "cls_token": torch.zeros(1, 1, 3)}, path)
    with pytest.raises(ValueError, match="does not fit vit_small_patch14_dinov2") as error:
        detectors.load(DINOV2, weights={DINOV2: str(path)})
    assert "\n" not in str(error.value)


def test_clip_returns_the_embedding_and_random_weights_are_marked(small):
    detector = detectors.load(CLIP, weights={CLIP: "random"})
    assert detector(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))["features"].shape == (1, 1000)
    assert detector.description["weights"] == "random"


def test_the_real_models_are_what_the_papers_name():
    dino, clip = (timm_weights._pretrained_cfg(model) for model in (vit.DINOV2_MODEL, vit.CLIP_MODEL))
    assert (dino["input_size"], dino["num_classes"]) == ((3, 518, 518), 0)
    assert (clip["input_size"], clip["num_classes"]) == ((3, 336, 336), 768)


def test_missing_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="vit_large_patch14_dinov2") as error:
        detectors.check(DINOV2, weights={DINOV2: str(tmp_path / "none.pth")})
    assert "\n" not in str(error.value)
