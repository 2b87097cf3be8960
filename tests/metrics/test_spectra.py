# SPDX-License-Identifier: Apache-2.0
"""Average power spectra beside a direct evaluation of the Fourier sum."""

import numpy as np
import pytest
import torch

from metrics import spectra


def noise(n=64, size=16, channels=3):
    return torch.from_numpy(
        np.random.RandomState(0).randint(0, 256, (n, channels, size, size), dtype=np.uint8)
    )


def test_pixel_statistics_do_not_depend_on_the_batches():
    images = noise()
    found = spectra.pixel_statistics(images.split(7))
    assert found == spectra.pixel_statistics([images])
    values = images.numpy().astype(float)
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()))
    assert found.num_images == 64
    with pytest.raises(ValueError, match="no images"):
        spectra.pixel_statistics([])


def test_the_spectrum_of_white_noise_is_one():
    images = noise(400)
    found = spectra.pixel_statistics([images])
    spectrum, size = spectra.average_spectrum(images.split(50), found.mean, found.std)
    assert spectrum.shape == (64, 64) and size == 16
    assert spectrum.mean() == pytest.approx(1, abs=0.02)
    assert spectrum.min() > 0.8 and spectrum.max() < 1.2


def test_a_spectrum_is_the_windowed_fourier_sum():
    images = noise(3, 6)
    spectrum, _ = spectra.average_spectrum(images.split(2), 100.0, 50.0, beta=5.0, interp=2)
    kaiser = np.kaiser(6, 5.0)
    weights = np.outer(kaiser, kaiser) / (kaiser**2).sum()
    x = (images.numpy().astype(np.float64) - 100) / 50 * weights
    for k, l in ((0, 0), (3, 1), (11, 7)):
        waves = np.exp(-2j * np.pi * (k * np.arange(6)[:, None] + l * np.arange(6)) / 12)
        expected = (np.abs((x * waves).sum(axis=(2, 3))) ** 2).mean()
        assert spectrum[k, l] == pytest.approx(expected, rel=1e-9)


def test_pictures_have_zero_frequency_in_their_centre():
    spectrum = np.ones((8, 8))
    spectrum[0, 0] = 100
    levels = spectra.decibels(spectrum)
    assert levels.shape == (9, 9) and levels[4, 4] == pytest.approx(20) and levels[0, 0] == pytest.approx(0)
    straight, diagonal = spectra.slices(levels)
    assert straight.tolist() == diagonal.tolist() == pytest.approx([20, 0, 0, 0, 0])
    assert spectra.decibels(spectrum, smooth=2.0).max() < 5


def test_mixed_sizes_are_refused():
    with pytest.raises(ValueError, match="in one set"):
        spectra.average_spectrum([noise(2, 8), noise(2, 6)], 0, 1)
