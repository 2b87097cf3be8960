# SPDX-License-Identifier: Apache-2.0
"""DiffAugment against diffaug: each operation at its recorded draws, gradients, measured moments."""

import json

import numpy as np
import pytest
import torch

from tests.parity.fill import GOLDENS, close
from training.discriminator import augment

FILE = np.load(GOLDENS / "diffaug.npz")
META = json.loads((GOLDENS / "diffaug.json").read_text())


def uniforms(case: str, op: str, size: int) -> list[torch.Tensor]:
    """Our draws that mean the golden's: its own for colours, the middle of the integer's interval for shifts
    and centres.
    """
    draws = [torch.from_numpy(FILE[f"{case}/draw{i}"]) for i in range(META[case]["draws"])]
    if op == "translation":
        reach = META["moments"][f"translation{size}"]["shift"]
        return [(d + reach + 0.5) / (2 * reach + 1) for d in draws]
    if op == "cutout":
        return [(d + 0.5) / META["moments"][f"cutout{size}"]["offset_high_exclusive"] for d in draws]
    return draws


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("op", ["brightness", "saturation", "contrast", "translation", "cutout"])
def test_operation(op, size):
    case = f"{op}{size}"
    x = torch.from_numpy(FILE[f"x{size}"]).requires_grad_()
    y = getattr(augment, op)(x, *uniforms(case, op, size))
    close(y, FILE[f"{case}/y"], 1e-6)
    (y * torch.from_numpy(FILE[f"{case}/R"])).sum().backward()
    close(x.grad, FILE[f"{case}/dx"], 1e-6)


def test_all_in_order():
    """The published whole is the operations in the order of policy_order; ours is too (its draws are recorded
    per operation only).
    """
    assert META["policy_order"].startswith("brightness, saturation, contrast, translation, cutout;")
    x, u = torch.from_numpy(FILE["x16"]), torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    step = augment.contrast(augment.saturation(augment.brightness(x, u[:, 0]), u[:, 1]), u[:, 2])
    step = augment.cutout(augment.translation(step, u[:, 3], u[:, 4]), u[:, 5], u[:, 6])
    assert torch.equal(augment.diff_augment(x, u), step)


@pytest.mark.once
@pytest.mark.parametrize("size", [16, 32, 64])
def test_distributions(size):
    """Moments over many draws: those of the published code within their sampling error."""
    u = torch.rand(4000, 7, generator=torch.Generator().manual_seed(size))
    ones = torch.ones(4000, 1, size, size)
    hole = augment.cutout(ones, u[:, 5], u[:, 6])[:, 0] == 0
    expected = META["moments"][f"cutout{size}"]
    area = hole.sum((1, 2))
    assert (area.max(), area.min()) == (expected["max_hole"], expected["min_hole"])
    assert abs(area.float().mean() / expected["mean_hole_px"] - 1) < 0.02
    assert abs(hole[:, 0].any(1).float().mean() - expected["first_row_hit"]) < 0.03
    assert abs(hole[:, -1].any(1).float().mean() - expected["last_row_hit"]) < 0.03
    point = torch.zeros(4000, 1, size, size)
    point[:, :, size // 2, size // 2] = 1
    row, col = (d - size // 2 for d in augment.translation(point, u[:, 3], u[:, 4]).nonzero()[:, 2:].t())
    expected = META["moments"][f"translation{size}"]
    assert row.unique().tolist() == expected["row_vals"] == col.unique().tolist()
    assert abs(row.float().var() / expected["row_var"] - 1) < 0.08
    assert abs(col.float().var() / expected["col_var"] - 1) < 0.08


@pytest.mark.once
def test_colour_distributions():
    u = torch.rand(20000, 1, generator=torch.Generator().manual_seed(1)).squeeze(1)
    x = torch.tensor([0.5, -0.5, 0.3]).view(1, 3, 1, 1).expand(20000, 3, 1, 1)
    mean = x.mean()
    observed = {
        "brightness_add": (augment.brightness(x, u) - x)[:, 0, 0, 0],
        "saturation_factor": ((augment.saturation(x, u) - mean) / (x - mean))[:, 0, 0, 0],
        "contrast_factor": ((augment.contrast(x, u) - mean) / (x - mean))[:, 0, 0, 0],
    }
    for name, values in observed.items():
        moments = [values.mean(), values.var(), values.min(), values.max()]
        np.testing.assert_allclose(moments, META["moments"][name], atol=0.01)
