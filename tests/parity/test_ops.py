# SPDX-License-Identifier: Apache-2.0
"""The image operations against numbers of the published ones (float64): values, gradients, second
derivatives.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch_utils.ops import bias_act, conv2d_resample, filtered_lrelu, grid_sample_gradfix, upfirdn2d
from torch_utils.ops.backend import activations

GOLDENS = Path(__file__).parent / "goldens"
IMPLS = ("ref", "cuda")


def load(name: str) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    cases: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(GOLDENS / f"{name}.npz") as file:
        for key in file:
            case, tensor = key.split("/")
            cases.setdefault(case, {})[tensor] = torch.from_numpy(file[key]).double()
    return cases, json.loads((GOLDENS / f"{name}.json").read_text())


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * max(scale, 1e-6))


BIAS_ACT, BIAS_ACT_CONFIG = load("ops_bias_act")
UPFIRDN, UPFIRDN_CONFIG = load("ops_upfirdn2d")
LRELU, LRELU_CONFIG = load("ops_filtered_lrelu")
RESAMPLE, RESAMPLE_CONFIG = load("ops_conv2d_resample")
GRID, GRID_CONFIG = load("ops_grid_sample")


def test_every_golden_case_is_here() -> None:
    for cases, config in (
        (BIAS_ACT, BIAS_ACT_CONFIG),
        (UPFIRDN, UPFIRDN_CONFIG),
        (LRELU, LRELU_CONFIG),
        (RESAMPLE, RESAMPLE_CONFIG),
    ):
        assert set(cases) == {name for name in config if not name.startswith("_")}


def bias_act_arguments(case: str) -> dict[str, Any]:
    return {k: v for k, v in BIAS_ACT_CONFIG[case].items() if k in ("act", "dim", "gain", "clamp", "alpha")}


@pytest.mark.parametrize("case", [name for name in BIAS_ACT if not name.startswith("edge")])
def test_bias_act(case: str) -> None:
    t = BIAS_ACT[case]
    x, dy = t["x"].clone().requires_grad_(), t["dy"].clone().requires_grad_()
    b = t["b"].clone().requires_grad_() if "b" in t else None
    inputs = [x] if b is None else [x, b]
    y = bias_act.bias_act(x, b, **bias_act_arguments(case))
    close(y, t["y"])
    grads = torch.autograd.grad(y, inputs, dy, create_graph=True)
    close(grads[0], t["dx"])
    total = (grads[0] * t["v"]).sum()
    if b is not None:
        close(grads[1], t["db"])
        total = total + (grads[1] * t["vb"]).sum()
    seconds = torch.autograd.grad(total, [dy, *inputs], allow_unused=True, materialize_grads=True)
    for name, second in zip(("d2_dy", "d2_x", "d2_b"), seconds, strict=False):
        close(second, t[name])


@pytest.mark.parametrize("case", [name for name in BIAS_ACT if name.startswith("edge")])
def test_bias_act_on_kinks_and_clamps(case: str) -> None:
    t = BIAS_ACT[case]
    x = t["x"].clone().requires_grad_()
    y = bias_act.bias_act(x, **bias_act_arguments(case))
    close(y, t["y"])
    close(torch.autograd.grad(y.sum(), x)[0], t["dx"])


def test_activations_have_the_published_defaults() -> None:
    found = {
        name: {"alpha": a.def_alpha, "gain": a.def_gain} for name, a in activations.activation_funcs.items()
    }
    assert found == BIAS_ACT_CONFIG["_defaults"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", [name for name, t in UPFIRDN.items() if "x" in t])
def test_upfirdn2d_and_its_wrappers(case: str, impl: str) -> None:
    t, config = UPFIRDN[case], UPFIRDN_CONFIG[case]
    x, f = t["x"].clone().requires_grad_(), t.get("f")
    arguments = {k: v for k, v in config.items() if k in ("up", "down", "padding", "gain", "flip_filter")}
    function = {"loss blur": "filter2d"}.get(config.get("fn"), config.get("fn", "upfirdn2d"))
    if config.get("fn") == "loss blur":
        offsets = torch.arange(-config["radius"], config["radius"] + 1, dtype=torch.float64)
        f = torch.exp2(-((offsets / config["sigma"]) ** 2))
        f = f / f.sum()
        close(t["f"] / t["f"].sum(), f)
    y = getattr(upfirdn2d, function)(x, f, impl=impl, **arguments)
    close(y, t["y"])
    if "dy" in t:
        close(torch.autograd.grad(y, x, t["dy"])[0], t["dx"])


@pytest.mark.parametrize("case", [name for name, t in UPFIRDN.items() if "out" in t])
def test_setup_filter(case: str) -> None:
    arguments = {k: v for k, v in UPFIRDN_CONFIG[case].items() if k != "fn"}
    f = upfirdn2d.setup_filter(**arguments)
    assert f.dtype == torch.float32
    close(f, UPFIRDN[case]["out"])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", LRELU)
def test_filtered_lrelu(case: str, impl: str) -> None:
    t = LRELU[case]
    arguments = {k: v for k, v in LRELU_CONFIG[case].items() if k not in ("fu", "fd", "no_bias")}
    x, dy = t["x"].clone().requires_grad_(), t["dy"].clone().requires_grad_()
    b = t["b"].clone().requires_grad_() if "b" in t else None
    y = filtered_lrelu.filtered_lrelu(x, t.get("fu"), t.get("fd"), b, impl=impl, **arguments)
    close(y, t["y"])
    grads = torch.autograd.grad(y, [x] if b is None else [x, b], dy, create_graph=True)
    close(grads[0], t["dx"])
    if b is not None:
        close(grads[1], t["db"])
    close(torch.autograd.grad((grads[0] * t["v"]).sum(), dy)[0], t["d2_dy"])


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
