# SPDX-License-Identifier: Apache-2.0
"""VGG16 beside torchvision's and an LPIPS distance worked out by hand; weights from every kind of file."""

import pytest
import torch
import torchvision

from metrics import detectors, vgg16
from metrics.names import VGG16, VGG16_TORCHVISION


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A sixteenth of the width: the same layers in little memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg16, "WIDTHS", tuple(tuple(width // 16 for width in b) for b in vgg16.WIDTHS))
        patch.setattr(vgg16, "HIDDEN", 256)
        patch.setattr(vgg16.VGG16Detector, "dims", {"features": 256})
        yield


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class Published(torch.nn.Module):
    """Stands for the published archive: other names, LPIPS weights, a program of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        source = vgg16.VGG16Network()
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = (source.convs[i] for i in range(5))
        self.conv6, self.conv7, self.conv8, self.conv9 = (source.convs[i] for i in range(5, 9))
        self.conv10, self.conv11, self.conv12, self.conv13 = (source.convs[i] for i in range(9, 13))
        self.fc1, self.fc2 = source.fc1, source.fc2
        for index, block in enumerate(vgg16.WIDTHS):
            self.register_buffer(f"lpips{index}", torch.rand(1, block[-1], 1, 1))

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.fc1.bias[None, :256].expand(x.shape[0], -1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pt"
    module = Published().eval()
    torch.jit.save(torch.jit.script(module), str(path))
    return str(path), module


def images(n: int = 2, size: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def test_it_is_torchvisions_network():
    torch.manual_seed(0)
    plan = [width for block in vgg16.WIDTHS for width in (*block, "M")]
    theirs = torchvision.models.VGG(
        torchvision.models.vgg.make_layers(plan), num_classes=3, init_weights=False
    )
    theirs.classifier[0] = torch.nn.Linear(vgg16.WIDTHS[-1][-1] * 49, 256)
    theirs.classifier[3] = torch.nn.Linear(256, 256)
    ours = vgg16.VGG16Network()
    assert not vgg16.load_vgg_state(ours, theirs.eval().state_dict())
    x = torch.rand(2, 3, 224, 224) * 255
    normalised = (x / 255 - torch.tensor(vgg16.MEAN).view(3, 1, 1)) / torch.tensor(vgg16.STD).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs.classifier[:5](torch.flatten(theirs.avgpool(theirs.features(normalised)), 1))
        torch.testing.assert_close(ours.hidden(x), expected, rtol=1e-4, atol=1e-5)


def test_perceptual_features_make_the_lpips_distance():
    torch.manual_seed(1)
    network = vgg16.VGG16Network()
    for index in range(5):
        network.get_buffer(f"lpips{index}").copy_(torch.rand(vgg16.WIDTHS[index][-1]))
    a, b = torch.rand(2, 1, 3, 32, 32) * 255
    with torch.no_grad():
        expected = 0.0
        for index, (x, y) in enumerate(zip(network.blocks(a), network.blocks(b), strict=True)):
            x, y = (v / v.norm(dim=1, keepdim=True).clamp(min=1e-10) for v in (x, y))
            weight = network.get_buffer(f"lpips{index}").view(1, -1, 1, 1)
            expected += float(((x - y).square() * weight).sum(dim=1).mean())
        found = (network.perceptual(a) - network.perceptual(b)).square().sum()
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_an_archive_is_read_without_running_it(archive, monkeypatch):
    path, module = archive
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("it ran the archive"))
    detector = detectors.load(VGG16, weights={VGG16: path})
    assert detector.has_lpips and len(detector.sha256) == 64
    for index in range(13):
        assert detector.network.convs[index].weight.equal(getattr(module, f"conv{index + 1}").weight)
    assert detector.network.lpips4.equal(module.lpips4.flatten())
    assert detector(images())["features"].shape == (2, 256)


def test_with_trust_the_archive_itself_runs(archive):
    path, module = archive
    detector = detectors.load(VGG16, weights={VGG16: path}, trust=True)
    assert detector(images())["features"].equal(module.fc1.bias[:256].detach().expand(2, -1))


def test_other_files_are_refused_in_one_line(tmp_path, archive, monkeypatch):
    torch.save({"conv.weight": torch.zeros(3, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"not VGG16's weights: 1 convolutions"):
        detectors.load(VGG16_TORCHVISION, weights={VGG16_TORCHVISION: str(tmp_path / "other.pth")})
    data = open(archive[0], "rb").read()  # noqa: SIM115
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        detectors.load(VGG16, weights={VGG16: str(tmp_path / "cut.pt")})
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv(vgg16.ENV, raising=False)
    with pytest.raises(FileNotFoundError, match=r"put metrics/vgg16\.pt") as error:
        detectors.check(VGG16)
    assert "\n" not in str(error.value)


def test_flags_name_detectors():
    assert detectors.parse_weights(["vgg16-stylegan=a=b.pt"]) == {VGG16: "a=b.pt"}
    for wrong in ("vgg=a", "vgg16-stylegan", "vgg16-stylegan=", "inception-random=x"):
        with pytest.raises(ValueError, match=f"--detector={wrong}"):
            detectors.parse_weights([wrong])
