# SPDX-License-Identifier: Apache-2.0
"""Networks of one channel (grey) and four (RGB and alpha): data set, training, pictures, metrics."""

import json
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import calc_metrics
import convert as convert_script
import gen_images
import gen_video
from generation.network import Network
from image_data.conversion import convert
from image_data.sources import array_source
from tests.support import run
from tests.toy_runs import config, train_here
from training.data.dataset import ImageDataset

MODES = {1: "L", 4: "RGBA"}


@pytest.fixture(scope="module", params=[1, 4])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """(channels, folder with data.zip and run/) of a run of two ticks."""
    channels, folder = request.param, tmp_path_factory.mktemp("channels")
    pixels = np.random.RandomState(0).randint(0, 256, (16, 16, 16, 4), dtype=np.uint8)
    images = pixels[..., 0] if channels == 1 else pixels
    source = array_source("toy", images, [0, 1] * 8, ["a", "b"])
    convert(source, folder / "data.zip", channels=channels, workers=1)
    cfg = config(str(folder / "data.zip"), loss__pl_start_kimg=0, data__mirror=True, run__kimg=0.016)
    (folder / "run").mkdir()
    train_here(cfg, folder / "run")
    return channels, folder


def test_the_data_set_has_its_channels(trained: tuple[int, Path]) -> None:
    channels, folder = trained
    with zipfile.ZipFile(folder / "data.zip") as archive:
        assert json.loads(archive.read("dataset.json"))["metadata"]["channels"] == channels
        with archive.open("00000/img00000000.png") as file, PIL.Image.open(file) as image:
            assert image.mode == MODES[channels]
    dataset = ImageDataset(folder / "data.zip")
    assert dataset.image_shape == [channels, 16, 16] and dataset[3][0].shape == (channels, 16, 16)


def test_everything_opens_the_network(trained: tuple[int, Path], tmp_path: Path) -> None:
    channels, folder = trained
    (network,) = sorted((folder / "run").glob("network-snapshot-*.pkl"))[-1:]
    assert Network.from_pretrained(network).generate(0, "a").shape[1:] == (16, 16, max(channels, 3))
    run(gen_images.main, f"--network={network}", "--seeds=0-1", "--class=a", f"--outdir={tmp_path / 'o'}")
    with PIL.Image.open(tmp_path / "o" / "seed0000.png") as image:
        assert image.mode == MODES[channels]
    run(gen_images.main, f"--network={network}", "--seeds=0-3", f"--to={tmp_path / 'x.npz'}")
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (4, 16, 16, 3)
    run(
        gen_video.main,
        f"--network={network}",
        "--seeds=0,1",
        "--w-frames=2",
        f"--output={tmp_path / 'v.gif'}",
    )
    run(convert_script.main, f"--source={network}", f"--dest={tmp_path / 'g.safetensors'}")
    assert Network.from_pretrained(tmp_path / "g.safetensors").generate(0, "a").shape[1:] == (
        16,
        16,
        max(channels, 3),
    )
    run(
        calc_metrics.main,
        f"--network={network}",
        "--metrics=fd_lite0",
        f"--data={folder / 'data.zip'}",
        "--num-gen=8",
        "--device=cpu",
    )
