# SPDX-License-Identifier: Apache-2.0
"""The image operations against numbers of the published ones (float64).

test_ops.py checks each implementation, torch_utils/ops/backend/test_kernels.py the CUDA kernels on the host.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_utils.ops import bias_act, filtered_lrelu, upfirdn2d

GOLDENS = Path(__file__).parent / "goldens"


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


def bias_act_arguments(case: str) -> dict[str, Any]:
    return {k: v for k, v in BIAS_ACT_CONFIG[case].items() if k in ("act", "dim", "gain", "clamp", "alpha")}


def check_bias_act(case: str) -> None:
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


def check_bias_act_on_kinks_and_clamps(case: str) -> None:
    t = BIAS_ACT[case]
    x = t["x"].clone().requires_grad_()
    y = bias_act.bias_act(x, **bias_act_arguments(case))
    close(y, t["y"])
    close(torch.autograd.grad(y.sum(), x)[0], t["dx"])


def check_upfirdn2d_and_its_wrappers(case: str, impl: str) -> None:
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


def check_filtered_lrelu(case: str, impl: str) -> None:
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
