# SPDX-License-Identifier: Apache-2.0
"""What tests of several folders share: commands run in this process, and stand-ins for detectors and the Hub.

Toy data sets are in toy_data.py, networks in toy_networks.py, training runs in toy_runs.py; waiting for
processes in waiting.py, a web server in file_server.py, a limit on memory in memory_limit.py.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import torch
from click.testing import CliRunner, Result

from metrics.detectors import Detector
from metrics.names import LITE0
from tests.sources import ROOT

__all__ = ["ROOT", "FolderHub", "TinyDetector", "enter_torchrun", "read_pixels", "run"]


def run(command, *args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    if code:
        assert "Traceback" not in result.output
    return result


def enter_torchrun(monkeypatch) -> None:
    """Set the variables of the first of four processes that torchrun started on two machines."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)


def read_pixels(path: Path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path))


class TinyDetector(Detector):
    """Four block means of the image, and a softmax of them."""

    dims = {"features": 4, "probabilities": 4}

    def __init__(self, name: str = LITE0, sha256: str = "tiny") -> None:
        self.name, self.sha256, self.dtype = name, sha256, torch.float32
        self.device = torch.device("cpu")
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += len(images)
        features = (
            torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1) / 10
        )
        return {"features": features, "probabilities": features.softmax(1)}

    def perceptual(self, images: torch.Tensor) -> torch.Tensor:
        """Means of 2x2 pixels: the squared distance of two images is about their mean squared difference."""
        assert images.shape[1] == 3 and not images.max() <= 2, "images in [0, 255]"
        small = torch.nn.functional.avg_pool2d(images / 255, 2).flatten(1)
        return small / small.shape[1] ** 0.5


class Images:
    """A data set in memory: classes 0, 1, 2 in the ratio 1 : 2 : 5."""

    name, resolution, xflip, has_labels = "toy", 8, False, True

    def __init__(self, n: int = 64, seed: int = 0, **metadata: str) -> None:
        self.images = np.random.RandomState(seed).randint(0, 256, (n, 3, 8, 8), dtype=np.uint8)
        self.metadata = metadata
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.reads += 1
        return self.images[index], 0

    def content_hash(self) -> str:
        return f"hash{self.images.sum()}"

    def label_distribution(self) -> np.ndarray:
        return np.array([1, 2, 5])


class Generated:
    """z and label to an image that shows both; elementwise, so that batches round alike."""

    z_dim, c_dim = 4, 3

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.labels: list[int] = []

    def __call__(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        self.labels += labels.tolist()
        quadrants = torch.nn.functional.interpolate(z[:, :4].view(-1, 1, 2, 2), size=(self.size, self.size))
        return torch.tanh(quadrants + labels.view(-1, 1, 1, 1) * 0.1).expand(-1, 3, -1, -1).clone()


class FolderHub:
    """The calls that we make of huggingface_hub, on a folder."""

    def __init__(self, root):
        self.root, self.calls = Path(root), []

    def create_repo(self, repo_id, *, repo_type=None, private=None, exist_ok=False):
        self.calls.append(("create_repo", repo_id, private))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, commit_message=None, repo_type=None, revision=None):
        self.calls.append(("upload_folder", repo_id, revision, commit_message))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def hf_hub_download(self, repo_id, filename, *, revision=None):
        path = self.root / repo_id / filename
        if not path.is_file():
            raise RuntimeError(f"404 Client Error\n{repo_id} has no {filename}")
        return str(path)
