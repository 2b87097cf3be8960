# SPDX-License-Identifier: Apache-2.0
import contextlib

import numpy as np
import pytest
import torch

from metrics import network_metrics, path_length
from metrics.image_sets import GeneratedImages


class Linear:
    """A network whose images are linear in w, so that their slope is known."""

    z_dim, c_dim = 2, 0

    def styles(self, z, labels):
        return z[:, None] * 2

    def synthesize(self, styles):
        return styles.view(-1, 1, 1, 2).expand(-1, 3, 512, -1).repeat_interleave(256, dim=3) / 100

    def transformed(self, matrix):
        return contextlib.nullcontext()


class Pixels:
    """Features are the pixels, in float64 so that small differences survive."""

    has_lpips = True

    def perceptual(self, images):
        assert images.shape[1:] == (3, 256, 256)  # averaged down
        return images[:, 0, 0, ::128].double()


def measure(batch: int, detector=None) -> float:
    network = Linear()
    images = GeneratedImages(network, 0, torch.device("cpu"), None, None)
    task = network_metrics.Task(network, images, 20, batch, lambda name: detector or Pixels())
    found = path_length.path_length(task, "vgg", True)
    return found.compute(found.rows)[""]


def test_it_is_the_squared_slope_of_the_images():
    network, ends = Linear(), []
    images = GeneratedImages(network, 0, torch.device("cpu"), None, None)
    for purpose in ("metrics/z", "metrics/z of the other end"):
        ends.append(network.styles(images.latents(range(20), purpose), None)[:, 0].double())
    slopes = (((ends[1] - ends[0]) / 100 * 127.5) ** 2).sum(dim=1).numpy()
    assert measure(20) == pytest.approx(path_length.trimmed_mean(slopes), rel=0.05)  # of float32 images
    assert measure(7) == pytest.approx(measure(20), rel=1e-9)


def test_outliers_do_not_count():
    assert path_length.trimmed_mean(np.array([1.0] * 200 + [1e9, 0.0])) == 1


def test_weights_without_lpips_are_refused():
    bare = Pixels()
    bare.has_lpips = False
    with pytest.raises(ValueError, match="no LPIPS weights"):
        measure(4, bare)
