# SPDX-License-Identifier: Apache-2.0
"""avg_spectra.py as published: stats, calc, heatmap, slices."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import avg_spectra
from tests.toy_data import write_dataset
from tests.toy_networks import write_network


def run(*args, code=0):
    result = CliRunner().invoke(avg_spectra.main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectra")
    write_dataset(folder / "data.zip")
    write_network(folder / "n.pkl", None)
    return folder


def test_data_and_a_network_from_statistics_to_pictures(folder):
    printed = run("stats", "--source", folder / "data.zip").output
    mean, std = re.fullmatch(r"12 images: --mean=([\d.]+) --std=([\d.]+)\n", printed).groups()
    whiten = [f"--mean={mean}", f"--std={std}"]
    run("calc", "--source", folder / "data.zip", "--dest", folder / "real.npz", *whiten)
    run("calc", "--source", folder / "n.pkl", "--dest", folder / "fake.npz", *whiten, "--num=5", "--interp=2")
    with np.load(folder / "real.npz") as real, np.load(folder / "fake.npz") as fake:
        assert real["spectrum"].shape == (64, 64) and int(real["image_size"]) == int(fake["image_size"]) == 16
        assert fake["spectrum"].shape == (32, 32) and (fake["spectrum"] > 0).all()
    run("heatmap", folder / "real.npz", "--save", folder / "h.png", "--dpi=50")
    assert PIL.Image.open(folder / "h.png").size == (300, 250)
    run("slices", folder / "real.npz", folder / "fake.npz", "--dpi=50")
    assert PIL.Image.open(folder / "real-slices.png").size == (350, 250)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stats", "--source=nowhere.zip"], "nowhere.zip: no such file"),
        (["stats", "--source=https://host/n.pkl?download=1"], "--num is missing"),
        (["calc", "--source={}/n.pkl", "--dest={}/x.npz", "--mean=0", "--std=1"], "--num is missing"),
        (
            ["calc", "--source={}/data.zip", "--dest={}/x.npz", "--mean=0", "--std=0"],
            "--std=0: must be positive",
        ),
        (["calc", "--source={}/data.zip", "--dest={}/data.zip", "--mean=0", "--std=1"], "would be replaced"),
        (["heatmap", "{}/other.npz", "--save={}/x.png"], "no spectrum of avg_spectra.py calc"),
        (["heatmap", "{}/bad.npz", "--save={}/x.png"], "must be floats [N, N], not float64 [3]"),
        (["heatmap", "{}/good.npz", "--save={}/x.docx"], "--save="),
        (["slices", "{}/good.npz", "{}/large.npz", "--save={}/x.png"], "images of different sizes"),
    ],
)
def test_mistakes_are_one_line(folder, args, message):
    np.savez(folder / "other.npz", arr_0=np.zeros(3))
    np.savez(folder / "bad.npz", spectrum=np.zeros(3), image_size=3)
    np.savez(folder / "good.npz", spectrum=np.ones((8, 8)), image_size=8)
    np.savez(folder / "large.npz", spectrum=np.ones((8, 8)), image_size=16)
    result = run(*(arg.format(folder) for arg in args), code=1)
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert not list(folder.glob("x.*")) and not list(folder.glob(".*"))


def test_transparent_images_are_laid_on_white():
    """As those of image files are, with which the spectrum of a network is compared."""
    seen = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    (found,) = avg_spectra.batches(lambda part: seen, 1, 1)
    assert found.shape == (1, 3, 8, 8) and bool((found == 255).all())
