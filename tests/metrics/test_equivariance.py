# SPDX-License-Identifier: Apache-2.0
"""Equivariance metrics of networks; tests/parity/test_equivariance.py has the operators."""

import math
from pathlib import Path

import pytest
import torch

from generation import render
from generation.measured import MeasuredGenerator
from metrics import equivariance, network_metrics
from metrics.image_sets import GeneratedImages

PICKLES = Path(__file__).parents[1] / "parity" / "goldens" / "pickles"


def measured(name: str, kind: str, samples: int = 8) -> float:
    generator = MeasuredGenerator(render.load_network(str(PICKLES / f"{name}.pkl")).G)
    images = GeneratedImages(generator, 0, torch.device("cpu"), None, None)
    task = network_metrics.Task(generator, images, samples, 4, lambda name: pytest.fail(name))
    before = generator.synthesis.input.transform.clone()
    found = equivariance.equivariance(task, kind)
    value = found.compute(found.rows)[""]
    assert generator.synthesis.input.transform.equal(before)
    return value


def test_an_r_network_follows_rotations_and_a_t_network_does_not():
    assert measured("stem_r_cond10", "eqr") > 50
    assert measured("stem_t_cond10", "eqr") < 40


def test_both_follow_translations():
    for name in ("stem_r_cond10", "stem_t_cond10"):
        assert measured(name, "eqt_int") > 60
        assert measured(name, "eqt_frac") > 60


def test_the_ratio_is_over_the_mask():
    # images span 2, the mean squared error is 0.25 / 10
    assert equivariance.psnr(0.25, 10) == pytest.approx(20 * math.log10(2) - 10 * math.log10(0.025))
    assert equivariance.psnr(0.0, 10) == equivariance.MAX_PSNR


def test_images_too_small_and_impossible_offsets_get_one_line():
    with pytest.raises(ValueError, match="between -1 and 1"):
        equivariance.fractional_translation(torch.zeros(1, 3, 8, 8), 1.5, 0)
    assert not equivariance.rotation(torch.zeros(1, 3, 8, 8), 0.3)[1].any()


def test_what_makes_images_only_cannot_be_measured():
    with pytest.raises(ValueError, match="metric eqr50k needs a StyleGAN network"):
        network_metrics.as_network(lambda z, labels: z, "eqr50k")
