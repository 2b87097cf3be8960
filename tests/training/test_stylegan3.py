# SPDX-License-Identifier: Apache-2.0
"""StyleGAN3 generators (t and r) are rebuilt from their records: the same layers, with another mapping and
fewer attributes.
"""

import io
import pickle

import numpy as np
import pytest
import torch

from torch_utils.persistence import read_network_pickle
from training import generator as g
from training.networks import reader

# What a StyleGAN3 synthesis layer keeps besides its tensors. The rest of our attributes is taken away below.
LAYER_ATTRIBUTES = """
    w_dim is_torgb is_critically_sampled use_fp16 in_channels out_channels in_size out_size in_sampling_rate
    out_sampling_rate tmp_sampling_rate
    in_cutoff out_cutoff in_half_width out_half_width conv_kernel conv_clamp magnitude_ema_beta up_factor
    down_factor up_taps down_taps down_radial
    padding
""".split()  # noqa: SIM905
OUR_OWN = (
    "num_frozen_layers",
    "channel_base",
    "channel_max",
    "linear_labels",
    "_reduced_dtype",
    "num_embeddings",
    "_init_kwargs",
    "_init_args",
)


def network(config, c_dim=0):
    torch.manual_seed(0)
    settings = g.STEM_CONFIGS[config]
    kernel = dict(conv_kernel=settings["conv_kernel"], use_radial_filters=settings["use_radial_filters"])
    layers = g.plan_stem(
        32, num_layers=14, channel_base=settings["width"] * 128, channel_max=settings["width"] * 8, **kernel
    )
    mapping = (
        dict(num_layers=2, num_embeddings=0, linear_labels=True)
        if c_dim
        else dict(num_layers=2, num_embeddings=0)
    )
    return g.Generator(
        z_dim=16, c_dim=c_dim, w_dim=12, img_resolution=32, layers=layers, mapping_kwargs=mapping
    ).eval()


def stub_of(G):
    """The stub that a StyleGAN3 pickle of this network would give."""
    stub = read_network_pickle(io.BytesIO(pickle.dumps({"G_ema": G}, protocol=4)))["G_ema"]
    for path, module in stub.named_modules():
        for name in OUR_OWN:
            module.state.pop(name, None)
        if path.startswith("synthesis.L") and "." not in path.removeprefix("synthesis."):
            kept = {
                name: value
                for name, value in module.state.items()
                if name.startswith("_") or name in (*LAYER_ATTRIBUTES, "training")
            }
            kept.update(
                {name: np.broadcast_to(np.asarray(kept[name]), [2]) for name in ("in_size", "out_size")}
            )
            kept.update(
                {
                    name: np.float64(kept[name])
                    for name in ("in_cutoff", "out_cutoff", "in_half_width", "out_half_width")
                }
            )
            module.state = kept
    stub.state["_init_kwargs"] = {
        "channel_base": 65536,
        "channel_max": 1024,
        "magnitude_ema_beta": 0.999,
        "c_dim": G.c_dim,
    }
    return stub


@pytest.mark.parametrize("config", ["stylegan3-t", "stylegan3-r"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_images_survive(config, c_dim):
    G = network(config, c_dim)
    with torch.no_grad():
        G.mapping.w_avg.normal_()
    twin = reader.from_stub(stub_of(G))
    z, c = torch.randn(3, 16), torch.tensor([2, 0, 1]) if c_dim else None
    assert torch.equal(twin(z, c, truncation_psi=0.7), G(z, c, truncation_psi=0.7))
    derived = [
        [(s.kernel, s.up_taps, s.down_taps, s.down_radial, s.padding) for s in net.synthesis.specs()]
        for net in (twin, G)
    ]
    assert derived[0] == derived[1]
    assert (twin.channel_base, twin.channel_max) == (65536, 1024)
    assert hasattr(twin.mapping, "embed") == bool(c_dim) and not hasattr(twin.mapping, "embed_proj")


def test_the_mapping_is_stylegan3s():
    """Normalised z beside the normalised output of one linear layer on one-hot labels; one w_avg for all
    classes (StyleGAN2, appendix B).
    """
    G = network("stylegan3-t", c_dim=3)
    m, z, c = G.mapping, torch.randn(4, 16), torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        m.embed.bias.normal_()
        m.w_avg.normal_()

    def unit(x):
        return x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()

    def lrelu(x):
        return torch.nn.functional.leaky_relu(x, 0.2) * 2**0.5

    y = m.embed.weight.t()[c] / 3**0.5 + m.embed.bias
    x = torch.cat([unit(z), unit(y)], dim=1)
    for layer in (m.fc0, m.fc1):
        x = lrelu(x @ layer.weight.t() * (0.01 / layer.in_features**0.5) + layer.bias * 0.01)
    torch.testing.assert_close(m(z, c)[:, 0], x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        m(z, c, truncation_psi=0.5)[:, -1], m.w_avg + 0.5 * (x - m.w_avg), rtol=1e-5, atol=1e-6
    )
    before = m.w_avg.clone()
    m(z, c, update_emas=True)
    torch.testing.assert_close(m.w_avg, x.mean(dim=0).lerp(before, 0.998))


def test_a_superresolution_stage_can_be_built_on_one():
    stage = g.build_superres(network("stylegan3-t", c_dim=3), "stylegan3-t", 2, 4)
    assert stage.img_resolution == 64 and stage.mapping.linear_labels
    assert stage(torch.randn(1, 16), torch.tensor([1])).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="the network has no class embedding"):
        stage.mapping.set_class_embedding(torch.zeros(3, 4))


def test_layers_whose_numbers_contradict_are_refused():
    stub = stub_of(network("stylegan3-t"))
    layer = next(module for path, module in stub.named_modules() if path.startswith("synthesis.L3"))
    for change, message in [
        (dict(up_taps=7), "up_taps is not"),
        (dict(tmp_sampling_rate=0.0), "is not 0|tmp_sampling_rate is not"),
        (dict(up_factor=-1), "must be positive"),
        (dict(down_taps=None), "down_taps is NoneType"),
    ]:
        saved = dict(layer.state)
        layer.state.update(change)
        with pytest.raises(ValueError, match=message):
            reader.from_stub(stub)
        layer.state = saved
    reader.from_stub(stub)


def test_stylegan2_is_refused_by_name():
    stub = stub_of(network("stylegan3-t"))
    stub.modules()["synthesis"].state["block_resolutions"] = [4, 8, 16, 32]
    with pytest.raises(
        ValueError,
        match="StyleGAN2 generators are not supported, only those of StyleGAN3, StyleGAN-XL and StyleSAN-XL",
    ) as caught:
        reader.from_stub(stub)
    assert "--trust-pickle" in str(caught.value)
