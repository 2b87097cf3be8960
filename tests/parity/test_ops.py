# SPDX-License-Identifier: Apache-2.0
"""The image operations against numbers of the published ones (float64): values, gradients, second
derivatives.
"""

import pytest
import torch

from tests.parity.golden_ops import (
    BIAS_ACT,
    BIAS_ACT_CONFIG,
    GRID,
    LRELU,
    LRELU_CONFIG,
    RESAMPLE,
    RESAMPLE_CONFIG,
    UPFIRDN,
    UPFIRDN_CONFIG,
    check_bias_act,
    check_bias_act_on_kinks_and_clamps,
    check_filtered_lrelu,
    check_upfirdn2d_and_its_wrappers,
    close,
)
from torch_utils.ops import conv2d_resample, grid_sample_gradfix, upfirdn2d
from torch_utils.ops.backend import activations

IMPLS = ("ref", "cuda")


def test_every_golden_case_is_here() -> None:
    for cases, config in (
        (BIAS_ACT, BIAS_ACT_CONFIG),
        (UPFIRDN, UPFIRDN_CONFIG),
        (LRELU, LRELU_CONFIG),
        (RESAMPLE, RESAMPLE_CONFIG),
    ):
        assert set(cases) == {name for name in config if not name.startswith("_")}


@pytest.mark.parametrize("case", [name for name in BIAS_ACT if not name.startswith("edge")])
def test_bias_act(case: str) -> None:
    check_bias_act(case)


@pytest.mark.parametrize("case", [name for name in BIAS_ACT if name.startswith("edge")])
def test_bias_act_on_kinks_and_clamps(case: str) -> None:
    check_bias_act_on_kinks_and_clamps(case)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", [name for name, t in UPFIRDN.items() if "x" in t])
def test_upfirdn2d_and_its_wrappers(case: str, impl: str) -> None:
    check_upfirdn2d_and_its_wrappers(case, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", LRELU)
def test_filtered_lrelu(case: str, impl: str) -> None:
    check_filtered_lrelu(case, impl)


def test_activations_have_the_published_defaults() -> None:
    found = {
        name: {"alpha": a.def_alpha, "gain": a.def_gain} for name, a in activations.activation_funcs.items()
    }
    assert found == BIAS_ACT_CONFIG["_defaults"]


@pytest.mark.parametrize("case", [name for name, t in UPFIRDN.items() if "out" in t])
def test_setup_filter(case: str) -> None:
    arguments = {k: v for k, v in UPFIRDN_CONFIG[case].items() if k != "fn"}
    f = upfirdn2d.setup_filter(**arguments)
    assert f.dtype == torch.float32
    close(f, UPFIRDN[case]["out"])


@pytest.mark.parametrize("case", RESAMPLE)
def test_conv2d_resample(case: str) -> None:
    t = RESAMPLE[case]
    arguments = {k: v for k, v in RESAMPLE_CONFIG[case].items() if k not in ("k", "f")}
    x, w = t["x"].clone().requires_grad_(), t["w"].clone().requires_grad_()
    y = conv2d_resample.conv2d_resample(x, w, t.get("f"), **arguments)
    close(y, t["y"])
    dx, dw = torch.autograd.grad(y, (x, w), t["dy"])
    close(dx, t["dx"])
    close(dw, t["dw"])


@pytest.mark.parametrize("case", GRID)
def test_grid_sample(case: str) -> None:
    t = GRID[case]
    x, grid, dy = (t[name].clone().requires_grad_() for name in ("x", "grid", "dy"))
    y = grid_sample_gradfix.grid_sample(x, grid)
    close(y, t["y"])
    dx, dgrid = torch.autograd.grad(y, (x, grid), dy, create_graph=True)
    close(dx, t["dx"])
    close(dgrid, t["dgrid"])
    close(torch.autograd.grad((dx * t["v"]).sum(), dy)[0], t["d2_dy"])
