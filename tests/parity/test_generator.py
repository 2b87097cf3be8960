# SPDX-License-Identifier: Apache-2.0
"""The generator against gen_*: names, styles, activations, images, gradients, path lengths and moving averages."""

import json

import numpy as np
import pytest
import torch

from tests.parity.fill import GOLDENS, close
from tests.parity.generators import HEADS, STEMS, build, golden
from torch_utils.ops import conv2d_gradfix
from training.generator import design_lowpass_filter

TOLERANCE = 2e-5  # of the largest magnitude
GRADIENT_TOLERANCE = 1e-4  # a value that rounds to the other side of a leaky ReLU's kink changes its gradient
KINKS = {"gen_sr_t_16to64_h5": 2e-3}  # latents that are 1e-7 larger change its gradients by 1e-3: a value lies that close to a kink


@pytest.fixture(scope="module", params=[*STEMS, *HEADS])
def case(request):
    arrays, info = golden(request.param)
    return request.param, arrays, info


@pytest.fixture
def network(case):
    generator = build(case[0]).requires_grad_(True)
    arrays = case[1]
    return generator, arrays, torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["c"])


def test_parameters_and_buffers_have_the_published_names_shapes_and_filters(case):
    name, arrays, info = case
    generator = build(name)
    own = generator.state_dict()
    published = {key[3:] for key in arrays if key.startswith("sd/")}
    if name in HEADS:  # the arrays include the layers of the stem that a head replaces
        layers = {layer["name"] for layer in info["layers"]}
        published = {key for key in published if key.startswith("mapping.") or key.split(".")[1] in layers}
    assert set(own) == published == set(info["param_names"]) | set(info["buffer_names"])
    assert {key for key, _ in generator.named_parameters()} == set(info["param_names"])
    assert sum(value.numel() for value in generator.parameters()) == info["n_params"]
    assert generator.num_ws == info["num_ws"]
    fresh = generator.synthesis.specs()
    for spec in fresh:
        for kind, taps in zip(("up_filter", "down_filter"), spec.design_filters(), strict=True):
            stored = arrays.get(f"sd/synthesis.{spec.name}.{kind}")
            assert (stored is None) == (taps is None)
            if taps is not None:
                np.testing.assert_allclose(taps, stored, atol=1e-7)


def test_layers_have_the_published_numbers(case):
    name, _, info = case
    generator = build(name)
    for spec, published in zip(generator.synthesis.specs(), info["layers"][1:], strict=True):
        layer = getattr(generator.synthesis, published["name"])
        for key, value in published.items():
            if hasattr(layer, key):
                np.testing.assert_allclose(getattr(layer, key), value, rtol=1e-9, err_msg=f"{spec.name}.{key}")


def test_styles_and_truncation(network):
    G, arrays, z, c = network
    close(G.mapping(z, c), arrays["ws_psi1"], TOLERANCE)
    close(G.mapping(z, c, truncation_psi=0.7), arrays["ws_psi07"], TOLERANCE)
    close(G.mapping(z, c, truncation_psi=0.7, truncation_cutoff=3), arrays["ws_psi07_cut3"], TOLERANCE)


def test_images_activations_and_user_transform(network):
    G, arrays, z, c = network
    activations = {}
    for layer in ["input", *G.synthesis.layer_names]:
        getattr(G.synthesis, layer).register_forward_hook(lambda _m, _i, out, layer=layer: activations.update({layer: out}))
    close(G(z, c), arrays["img"], TOLERANCE)
    for layer, value in activations.items():
        stored = arrays[f"act0/{layer}"]  # every fourth channel, or all
        close(value[0][:: -(-value.shape[1] // len(stored))], stored, TOLERANCE)
    if "img_psi07" in arrays:
        close(G(z, c, truncation_psi=0.7), arrays["img_psi07"], TOLERANCE)
    G.synthesis.input.transform.copy_(torch.from_numpy(arrays["transform_inv"]))
    close(G(z, c), arrays["img_transformed"], TOLERANCE)


def test_gradients(network, case):
    G, arrays, z, c = network
    if "grad/ws" not in arrays:
        pytest.skip("this golden has no gradients")
    tolerance = KINKS.get(case[0], GRADIENT_TOLERANCE)
    z.requires_grad_(True)
    ws = G.mapping(z, c)
    ws.retain_grad()
    (G.synthesis(ws) * torch.from_numpy(arrays["R"])).sum().backward()
    close(ws.grad, arrays["grad/ws"], tolerance)
    close(z.grad, arrays["grad/z"], tolerance)
    for name, parameter in G.named_parameters():
        close(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, arrays[f"grad/{name}"], tolerance)


def test_path_lengths_and_their_gradients(network, case):
    G, arrays, z, c = network
    if "pl_lengths" not in arrays:
        pytest.skip("this golden has no gradients")
    tolerance = KINKS.get(case[0], GRADIENT_TOLERANCE)
    ws = G.mapping(z, c).detach().requires_grad_(True)
    with conv2d_gradfix.no_weight_gradients():
        (gradient,) = torch.autograd.grad((G.synthesis(ws) * torch.from_numpy(arrays["R"])).sum(), ws, create_graph=True)
    lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    close(lengths, arrays["pl_lengths"], tolerance)
    lengths.square().sum().backward()
    parameters = dict(G.named_parameters())
    checked = [key for key in arrays if key.startswith("plgrad/")]
    assert checked
    for key in checked:
        close(parameters[key.removeprefix("plgrad/")].grad, arrays[key], tolerance)


def test_moving_averages(network):
    G, arrays, z, c = network
    G(z, c, update_emas=True)
    close(G.mapping.w_avg, arrays["after_update/mapping.w_avg"], 1e-6)
    magnitudes = torch.stack([getattr(G.synthesis, layer).magnitude_ema for layer in G.synthesis.layer_names])
    close(magnitudes, arrays["after_update/magnitude_ema"], 1e-6)


DESIGNS = {key: info for key, info in json.loads((GOLDENS / "ops_filter_design.json").read_text()).items() if not key.startswith("_")}


@pytest.mark.parametrize("key", DESIGNS)
def test_filter_design(key):
    info = DESIGNS[key]
    taps = design_lowpass_filter(info["numtaps"], info["cutoff"], info["width"], info["fs"], info["radial"])
    with np.load(GOLDENS / "ops_filter_design.npz") as file:
        if f"{key}/f" in file:
            np.testing.assert_allclose(taps, file[f"{key}/f"], atol=1e-7)
        else:  # one tap: no filter; an odd number of radial taps: the published one is NaN
            assert taps is None if info["numtaps"] == 1 else np.isfinite(taps).all()
