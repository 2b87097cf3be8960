# SPDX-License-Identifier: Apache-2.0
"""The generator against gen_*: names, styles, activations, images, gradients, path lengths and moving
averages.
"""

import copy
import json

import numpy as np
import pytest
import torch

from tests.parity.fill import GOLDENS, close
from tests.parity.generators import HEADS, STEMS, build, golden
from tests.parity.gradients import exact, mostly_exact
from torch_utils.ops import conv2d_gradfix
from training.generator import Generator, design_lowpass_filter

TOLERANCE = 2e-5  # of the largest magnitude
# Float64 gradients beside the goldens' float32 ones: the rounding of those alone, the same on every
# processor. In one golden a value was rounded to the other side of a kink.
GRADIENT_TOLERANCE = 1e-5
GOLDEN_MET_A_KINK = {"gen_sr_t_16to64_h5": 1e-4}


# Stems and heads of either configuration; the other goldens have other sizes of the same layers.
REPRESENTATIVE = ("gen_stem_t", "gen_stem_r", "gen_sr_tr_16to32_h4")
representative = pytest.mark.parametrize(
    "case",
    [
        name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in (*STEMS, *HEADS)
    ],
    indirect=True,
)


@pytest.fixture(scope="module", params=[*STEMS, *HEADS])
def case(request):
    arrays, info = golden(request.param)
    return request.param, arrays, info


@pytest.fixture
def network(case):
    generator = build(case[0]).requires_grad_(True)
    arrays = case[1]
    return generator, arrays, torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["c"])


@pytest.mark.once
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


@pytest.mark.once
def test_layers_have_the_published_numbers(case):
    name, _, info = case
    generator = build(name)
    for spec, published in zip(generator.synthesis.specs(), info["layers"][1:], strict=True):
        layer = getattr(generator.synthesis, published["name"])
        for key, value in published.items():
            if hasattr(layer, key):
                np.testing.assert_allclose(
                    getattr(layer, key), value, rtol=1e-9, err_msg=f"{spec.name}.{key}"
                )


def test_styles_and_truncation(network):
    G, arrays, z, c = network
    close(G.mapping(z, c), arrays["ws_psi1"], TOLERANCE)
    close(G.mapping(z, c, truncation_psi=0.7), arrays["ws_psi07"], TOLERANCE)
    close(G.mapping(z, c, truncation_psi=0.7, truncation_cutoff=3), arrays["ws_psi07_cut3"], TOLERANCE)


def test_images_activations_and_user_transform(network):
    G, arrays, z, c = network
    activations = {}
    for layer in ["input", *G.synthesis.layer_names]:
        getattr(G.synthesis, layer).register_forward_hook(
            lambda _m, _i, out, layer=layer: activations.update({layer: out})
        )
    close(G(z, c), arrays["img"], TOLERANCE)
    for layer, value in activations.items():
        stored = arrays[f"act0/{layer}"]  # every fourth channel, or all
        close(value[0][:: -(-value.shape[1] // len(stored))], stored, TOLERANCE)
    if "img_psi07" in arrays:
        close(G(z, c, truncation_psi=0.7), arrays["img_psi07"], TOLERANCE)
    G.synthesis.input.transform.copy_(torch.from_numpy(arrays["transform_inv"]))
    close(G(z, c), arrays["img_transformed"], TOLERANCE)


def gradients(
    G: Generator, z: torch.Tensor, c: torch.Tensor | None, weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Of the sum of images times weights, with respect to latents, styles and every parameter (those of no
    use: zeros).
    """
    G.zero_grad(set_to_none=True)
    z = z.detach().clone().requires_grad_(True)
    ws = G.mapping(z, c)
    ws.retain_grad()
    (G.synthesis(ws) * weights).sum().backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in G.named_parameters()}
    assert z.grad is not None and ws.grad is not None
    return {"z": z.grad, "ws": ws.grad, **found}


def path_length_gradients(
    G: Generator, z: torch.Tensor, c: torch.Tensor | None, weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Path lengths, and the gradients of the sum of their squares with respect to the parameters of the
    synthesis.
    """
    G.zero_grad(set_to_none=True)
    ws = G.mapping(z, c).detach().requires_grad_(True)
    with conv2d_gradfix.no_weight_gradients():
        (gradient,) = torch.autograd.grad((G.synthesis(ws) * weights).sum(), ws, create_graph=True)
    lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    lengths.square().sum().backward()
    return {
        "lengths": lengths.detach(),
        **{name: p.grad for name, p in G.named_parameters() if p.grad is not None},
    }


@pytest.mark.once  # float64
def test_gradients(network, case):
    G, arrays, z, c = network
    if "grad/ws" not in arrays:
        pytest.skip("this golden has no gradients")
    expected = {key.removeprefix("grad/"): arrays[key] for key in arrays if key.startswith("grad/")}
    assert set(expected) == {"z", "ws", *(name for name, _ in G.named_parameters())}
    found = gradients(G.double(), z.double(), c, torch.from_numpy(arrays["R"]).double())
    exact(found, expected, GOLDEN_MET_A_KINK.get(case[0], GRADIENT_TOLERANCE))


@pytest.mark.once  # float64
def test_path_lengths_and_their_gradients(network, case):
    G, arrays, z, c = network
    if "pl_lengths" not in arrays:
        pytest.skip("this golden has no gradients")
    expected = {key.removeprefix("plgrad/"): arrays[key] for key in arrays if key.startswith("plgrad/")}
    assert expected
    found = path_length_gradients(G.double(), z.double(), c, torch.from_numpy(arrays["R"]).double())
    exact(
        found,
        {"lengths": arrays["pl_lengths"], **expected},
        GOLDEN_MET_A_KINK.get(case[0], GRADIENT_TOLERANCE),
    )


@representative
@pytest.mark.parametrize("of", [gradients, path_length_gradients])
def test_float32_gradients_are_those_of_float64(network, of):
    """What trains is float32, through other kernels than float64."""
    G = network[0]
    G64 = copy.deepcopy(G).double()
    draws = torch.Generator().manual_seed(0)

    def draw(i: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        z, weights = (
            torch.randn(1, G.z_dim, generator=draws),
            torch.randn(1, 3, *[G.img_resolution] * 2, generator=draws),
        )
        c = torch.tensor([i % G.c_dim]) if G.c_dim else None
        return of(G, z, c, weights), of(G64, z.double(), c, weights.double())

    mostly_exact(draw)


def test_moving_averages(network):
    G, arrays, z, c = network
    G(z, c, update_emas=True)
    close(G.mapping.w_avg, arrays["after_update/mapping.w_avg"], 1e-6)
    magnitudes = torch.stack([getattr(G.synthesis, layer).magnitude_ema for layer in G.synthesis.layer_names])
    close(magnitudes, arrays["after_update/magnitude_ema"], 1e-6)


DESIGNS = {
    key: info
    for key, info in json.loads((GOLDENS / "ops_filter_design.json").read_text()).items()
    if not key.startswith("_")
}


@pytest.mark.parametrize("key", DESIGNS)
def test_filter_design(key):
    info = DESIGNS[key]
    taps = design_lowpass_filter(info["numtaps"], info["cutoff"], info["width"], info["fs"], info["radial"])
    with np.load(GOLDENS / "ops_filter_design.npz") as file:
        if f"{key}/f" in file:
            np.testing.assert_allclose(taps, file[f"{key}/f"], atol=1e-7)
        else:  # one tap: no filter; an odd number of radial taps: the published one is NaN
            assert taps is None if info["numtaps"] == 1 else np.isfinite(taps).all()
