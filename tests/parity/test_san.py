# SPDX-License-Identifier: Apache-2.0
"""SAN layers against san_layers: values and every gradient."""

import json

import numpy as np
import pytest
import torch

import san
from tests.parity.fill import GOLDENS, close

FILE = np.load(GOLDENS / "san_layers.npz")
META = json.loads((GOLDENS / "san_layers.json").read_text())
LAYERS = {
    "linear": lambda: san.SANLinear(5, 3),
    "linear_nobias": lambda: san.SANLinear(5, 3, bias=False),
    "conv1d": lambda: san.SANConv1d(4, 3, 3, stride=2, padding=1),
    "conv2d": lambda: san.SANConv2d(4, 3, 3, padding=1),
    "conv2d_nobias_k4": lambda: san.SANConv2d(4, 1, 4, bias=False),
    "embed": lambda: san.SANEmbedding(7, 6),
}


def golden(case: str, key: str) -> torch.Tensor:
    return torch.from_numpy(FILE[f"{case}/{key}"])


@pytest.fixture(params=LAYERS)
def case(request):
    """(name, layer with the golden's state, its input)."""
    layer = LAYERS[request.param]()
    shapes = {name: list(p.shape) for name, p in layer.named_parameters()}
    assert shapes == META[request.param]["param_shapes"]
    layer.load_state_dict({name: golden(request.param, f"sd/{name}") for name in shapes})
    x = (
        golden(request.param, "idx").long()
        if request.param == "embed"
        else golden(request.param, "x").requires_grad_()
    )
    return request.param, layer, x


def test_values(case):
    name, layer, x = case
    y = layer(x)
    close(y.fun, FILE[f"{name}/y_fun"], 1e-6)
    close(y.dir, FILE[f"{name}/y_dir"], 1e-6)
    close(y.fun, FILE[f"{name}/y_eval"], 1e-6)


@pytest.mark.parametrize("part", ["fun", "dir", "both"])
def test_gradients(case, part):
    name, layer, x = case
    y = layer(x)
    fun, direction = (y.fun * golden(name, "R")).sum(), (y.dir * golden(name, "Rd")).sum()
    {"fun": fun, "dir": direction, "both": fun + direction}[part].backward()
    inputs = dict(layer.named_parameters()) | ({} if name == "embed" else {"x": x})
    without = META[name][f"grad_{part}_none"]
    assert sorted(k for k, p in inputs.items() if p.grad is None) == sorted(without)
    for key, tensor in inputs.items():
        if key not in without:
            close(tensor.grad, FILE[f"{name}/grad_{part}/{key}"], 1e-5)


def test_normalize(case):
    name, layer, _ = case
    layer.normalize_()
    close(layer.weight, FILE[f"{name}/weight_after_normalize"], 1e-6)
