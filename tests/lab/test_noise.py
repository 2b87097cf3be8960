# SPDX-License-Identifier: Apache-2.0
"""The noise of class directions: the estimate, and that equal classes lower it."""

import pytest
import torch
from click.testing import CliRunner

from lab import noise
from tests.toy_data import write_dataset
from torch_utils import features
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator


def test_the_signal_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([3.0, 4.0])
    draws = mean + 2 * torch.randn(4000, 2, generator=generator)
    signal, variance = noise.signal_and_variance(draws)
    assert signal == pytest.approx(25, rel=0.02) and variance == pytest.approx(8, rel=0.1)
    few = [noise.signal_and_variance(part)[0] for part in draws.sub(mean).split(2)]
    assert abs(sum(few) / len(few)) < 0.3, "no signal: zero on average, also from two batches"


def test_equal_classes_lower_the_variance(tmp_path):
    data = write_dataset(tmp_path / "data.zip", 24, 16, ["a", "b", "c"])
    source = noise.Source(ImageDataset(str(data), use_labels=True), 0)
    small = {"feature_size": 32, "proj_channels": 4, "head_channels": 4, "cond_channels": 8}
    D = ProjectedDiscriminator([features.load()], 3, 16, **small)
    found = {
        matched: noise.signal_and_variance(
            torch.stack([noise.gradient(D, source, 8, matched) for _ in range(8)])
        )
        for matched in (False, True)
    }
    assert found[True][1] < 0.8 * found[False][1]
    result = CliRunner().invoke(noise.main, [f"--data={tmp_path / 'none.zip'}"])
    assert result.exit_code == 1 and "none.zip" in result.output and "Traceback" not in result.output
