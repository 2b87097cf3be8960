# SPDX-License-Identifier: Apache-2.0
"""python -m generation.centroids."""

import json

import numpy as np
import pytest
import torch

import gen_images
from generation import Network, centroids
from tests.support import run


def test_kmeans_ends_where_every_centre_is_the_mean_of_its_codes():
    random = np.random.RandomState(0)
    true = random.randn(7, 5) * 3
    points = (true[np.arange(700) % 7] + random.randn(700, 5)).astype(np.float32)
    codes = torch.from_numpy(points)
    centres, error = centroids.kmeans(codes, 7, 50, seed=1)
    distance = np.linalg.norm(points[:, None] - centres[None], axis=2)
    nearest = distance.argmin(axis=1)
    assert set(nearest) == set(range(7))
    for index, centre in enumerate(centres):
        np.testing.assert_allclose(centre, points[nearest == index].mean(axis=0), rtol=0, atol=1e-3)
    np.testing.assert_allclose(error, np.square(distance.min(axis=1)).mean(), rtol=1e-2)
    assert error < centroids.kmeans(codes, 7, 1, seed=1)[1]
    again, _ = centroids.kmeans(codes, 7, 50, seed=1)
    assert (again == centres).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(centroids, "CHUNK_VALUES", 100)
        chunked, _ = centroids.kmeans(codes, 7, 50, seed=1)
    np.testing.assert_allclose(chunked, centres, rtol=1e-5, atol=1e-3)


def test_the_command_writes_centres_that_every_command_reads(toy_networks, tmp_path):
    path, dest = toy_networks / "cond.pkl", tmp_path / "c.npy"
    args = ["--network", path, "--dest", dest, "--num=4", "--samples=50", "--device=cpu"]
    assert "4 centres of 50 style codes" in run(centroids.main, *args).output
    network = Network.from_pretrained(path, device="cpu")
    about = json.loads((tmp_path / "c.json").read_text())
    assert (about["network"], about["network_sha256"]) == ("cond.pkl", network.sha256)
    assert (about["samples"], about["seed"]) == (50, 0) and about["mean_squared_distance"] > 0
    codes = centroids.sample(network, 50, 0)
    random = np.random.RandomState(0)
    z = torch.from_numpy(random.randn(50, network.G.z_dim).astype(np.float32))
    labels = torch.from_numpy(random.randint(0, 3, 50))
    torch.testing.assert_close(codes, network.G.mapping(z, labels)[:, 0])
    centres = np.load(dest)
    assert centres.dtype == np.float32 and centres.shape == (4, network.G.w_dim)
    ws = network.styles(0, 0, truncation=0, centroids=str(dest))[0, 0].numpy()
    assert (ws == centres).all(axis=1).any()
    generate = ["--device=cpu", "--seeds=0", "--centroids-path", dest, "--outdir", tmp_path / "out"]
    assert "another network" not in run(gen_images.main, "--network", path, *generate).output
    (tmp_path / "c.json").write_text(json.dumps({**about, "mapping_sha256": "0"}))
    assert (
        "with the mapping network of another network"
        in run(gen_images.main, "--network", path, *generate).output
    )
    for more, message in (
        ([], "exists: remove it"),
        (["--dest", tmp_path / "d.txt"], "end the name with .npy"),
        (["--dest", tmp_path / "d.npy", "--num=51"], "--num=51: at most the number of samples, 50"),
    ):
        assert message in run(centroids.main, *args, *more, code=1).output
