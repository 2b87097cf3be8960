# SPDX-License-Identifier: Apache-2.0
"""The operators of equivariance metrics against the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics import equivariance

GOLDENS = Path(__file__).parent / "goldens"
ARRAYS = dict(np.load(GOLDENS / "equivariance.npz"))
CASES = {
    name: case
    for case in json.loads((GOLDENS / "equivariance.json").read_text())["cases"]
    for name in case["case"].split(", ")
}
OPERATORS = {
    "int": equivariance.integer_translation,
    "frac": equivariance.fractional_translation,
    "rot": equivariance.rotation,
    "pseudo": equivariance.pseudo_rotation,
}


@pytest.mark.parametrize("name", CASES)
def test_operators_and_their_masks_are_the_published_ones(name):
    size, what = name.split("/")
    case, kind = CASES[name], what.rstrip("0123")
    arguments = [case["angle"]] if "angle" in case else [case["tx"], case["ty"]]
    image, mask = OPERATORS[kind](torch.from_numpy(ARRAYS[f"{size}/x"]), *arguments)
    expected = ARRAYS[f"{name}/{'y' if kind == 'pseudo' else 'z'}"]
    np.testing.assert_allclose(image.numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(mask.numpy(), ARRAYS[f"{name}/mask"])


def test_the_bandlimit_filter_is_the_published_one():
    expected = ARRAYS["h16/filter_angle0.4_a3_amax6_up4"]
    np.testing.assert_allclose(equivariance.bandlimit_filter(0.4, 4).numpy() / 16, expected, atol=5e-8)
