# SPDX-License-Identifier: Apache-2.0
"""The generator's promises: plans, labels, batch independence, precision, derivatives, copies, refusals."""

import copy
import io
import pickle

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_utils.ops import conv2d_gradfix
from torch_utils.persistence import read_network_pickle, save_network_pickle
from training import generator as g
from training.networks import reader


def small(c_dim=3, config="stylegan3-t", **kwargs):
    torch.manual_seed(0)
    options = dict(syn_layers=5, cbase=512, cmax=8, z_dim=8, w_dim=16, embed_dim=12) | kwargs
    return g.build_stem(config, 16, c_dim, **options)


def draw(generator, batch=4, seed=1):
    rng = np.random.RandomState(seed)
    z = torch.from_numpy(rng.randn(batch, generator.z_dim)).float()
    return z, torch.from_numpy(rng.randint(generator.c_dim, size=batch)) if generator.c_dim else None


def stages():
    """Every published schedule, and factors of 4, 8 and 16."""
    yield "stylegan3-t", 10, [("stylegan3-t", 2, 7)] * 4 + [("stylegan3-t", 2, 5)] * 2  # ImageNet to 1024
    yield "stylegan3-t", 11, [("stylegan3-t", 2, 7)] * 4
    yield "stylegan3-r", 6, [("stylegan3-r", 2, 7)] + [("stylegan3-t", 2, 4)] * 5  # FFHQ to 1024
    yield "stylegan3-r", 6, [("stylegan3-r", 2, 7)]  # CIFAR-10
    yield "stylegan3-t", 7, [("stylegan3-r", 4, 5), ("stylegan3-t", 8, 6)]
    yield "stylegan3-r", 7, [("stylegan3-t", 16, 8), ("stylegan3-r", 2, 4)]


@pytest.mark.parametrize(("config", "layers", "heads"), list(stages()))
def test_plans_are_chains_within_their_bands(config, layers, heads):
    with torch.device("meta"):
        net = g.build_stem(config, 16, 0, syn_layers=layers, cbase=4096, cmax=16)
        for head_config, factor, head_layers in heads:
            before = net
            net = g.build_superres(net, head_config, factor, head_layers)
            kept = [spec for spec in before.synthesis.specs() if not spec.is_critically_sampled]
            specs = net.synthesis.specs()
            assert specs[: len(kept)] == kept
            assert net.num_frozen_layers == len(kept) == len(specs) - head_layers - 1
            assert specs[len(kept)].name.startswith(f"L{len(kept) + 1}_")
            for spec in specs:
                samples = (
                    (spec.in_size + spec.kernel - 1) * spec.up_factor
                    + sum(spec.padding[:2])
                    - (spec.up_taps - 1)
                    - (spec.down_taps - 1)
                )
                assert -(-samples // spec.down_factor) == spec.out_size
                assert spec.out_cutoff + spec.out_half_width >= spec.out_sampling_rate / 2 - 1e-9
            assert specs[-1].out_size == net.img_resolution == before.img_resolution * factor


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512, 1024])
def test_stems_of_any_resolution_end_at_it(resolution):
    specs = g.plan_stem(resolution, 14)
    assert specs[-1].out_size == specs[-2].out_size == resolution
    assert [spec.is_critically_sampled for spec in specs] == [False] * 12 + [True] * 3
    rates = [spec.out_sampling_rate for spec in specs]
    assert rates == sorted(rates) and rates[-1] == resolution


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g.plan_stem(24), "24 is not a power of two"),
        (lambda: g.plan_stem(4), "4 is not a power of two"),
        (lambda: g.plan_stem(16, 2), "at least 3 layers, got 2"),
        (
            lambda: g.build_stem("stylegan3-t", 1024, cbase=128),
            "leaves no channels for 1024 pixels: raise cbase",
        ),
        (lambda: g.build_stem("stylegan2"), "'stylegan2': choose stylegan3-t or stylegan3-r"),
        (lambda: g.plan_superres(g.plan_stem(16), 48), "48 is not a power of two"),
        (lambda: g.plan_superres(g.plan_stem(16), 16), "16 to 16 is x1"),
        (lambda: g.plan_superres(g.plan_stem(16), 32, 2), "at least 3 layers, got 2"),
        (
            lambda: g.Generator(layers=g.plan_stem(16, 4), img_resolution=32),
            "gives 3 channels of 16 pixels, not 3 of 32",
        ),
        (lambda: g.Generator(layers=g.plan_stem(16, 4)[:3] + g.plan_stem(16, 4)[4:]), "does not fit onto L2"),
        (
            lambda: g.Generator(layers=[{"name": "L0", "nonsense": 1}]),
            "layer 'L0' is not a layer specification",
        ),
        (lambda: g.Generator(layers=[]), "at least one layer"),
        (lambda: g.MappingNetwork(8, 5, 8, 2, num_embeddings=4), "4 rows is too small for 5 classes"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_filters_have_unit_sum_and_an_odd_radial_one_is_finite():
    assert g.design_lowpass_filter(1, 1, 1, 8) is None
    for taps, radial in [(12, False), (12, True), (13, True), (7, False)]:
        taps = g.design_lowpass_filter(taps, 3, 2, 32, radial=radial)
        assert np.isfinite(taps).all() and abs(taps.sum() - 1) < 1e-12
        np.testing.assert_allclose(taps, np.flip(taps), atol=1e-15)
    odd, even = (g.design_lowpass_filter(n, 3, 2, 32, radial=True) for n in (13, 12))
    assert even.max() < odd.max() == odd[6, 6]


def test_separable_filters_are_scipys_to_the_last_bit():
    for taps, cutoff, width, fs in [(12, 2, 12.1, 64), (6, 4.7, 3, 32), (24, 20, 40, 512), (7, 3, 0.4, 9)]:
        expected = scipy.signal.firwin(taps, cutoff, width=width, fs=fs)
        assert np.array_equal(g.design_lowpass_filter(taps, cutoff, width, fs), expected)
    for cutoff in (0, 4, 5):
        with pytest.raises(ValueError, match="cutoff of a filter must be between 0 and 4"):
            g.design_lowpass_filter(12, cutoff, 2, 8)


@pytest.mark.parametrize("config", ["stylegan3-t", "stylegan3-r"])
def test_what_upsampling_does_not_read_is_not_computed(config, monkeypatch):
    torch.manual_seed(0)
    G = g.build_superres(g.build_stem(config, 16, 2, syn_layers=5, cbase=256, cmax=4, w_dim=8), config, 4)
    layers = [getattr(G.synthesis, name) for name in G.synthesis.layer_names]
    unread = [g._unread_samples(layer.padding, layer.up_factor) for layer in layers]
    assert sum(count > 0 for count in unread) > 2  # where the margin ends, and where it halves
    z, c = draw(G, 2)

    def values():
        G.zero_grad()
        images = G(z, c)
        images.square().sum().backward()
        return [images.detach(), *(p.grad for p in G.parameters() if p.grad is not None)]

    found = values()
    monkeypatch.setattr(g, "_unread_samples", lambda padding, up_factor: 0)
    torch.testing.assert_close(found, values(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("config", ["stylegan3-t", "stylegan3-r"])
@pytest.mark.parametrize("truncation", [1, 0.5])
def test_an_image_does_not_depend_on_its_batch(config, truncation):
    G = small(config=config)
    G.mapping.w_avg.normal_()
    z, c = draw(G, 5)
    together = G(z, c, truncation_psi=truncation)
    alone = torch.cat([G(z[i : i + 1], c[i : i + 1], truncation_psi=truncation) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [6, 12])  # the weight is larger than one image, and smaller
def test_dense_modulation_is_the_grouped_convolution(size):
    torch.manual_seed(0)
    x, weight, styles = torch.randn(3, 4, size, size), torch.randn(5, 4, 3, 3), torch.randn(3, 4) + 1
    w = weight[None] * styles[:, None, :, None, None]  # [N, O, I, k, k]
    w = w * (w.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8).rsqrt() * 1.5
    expected = torch.nn.functional.conv2d(
        x.reshape(1, 12, size, size), w.reshape(15, 4, 3, 3), padding=2, groups=3
    ).reshape(3, 5, size + 2, size + 2)
    torch.testing.assert_close(
        g.modulated_conv2d(x, weight, styles, padding=2, input_gain=torch.tensor(1.5)),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    with torch.no_grad():  # a single image has a form of its own
        for gain in (torch.tensor(1.5), torch.full([4], 1.5), torch.full([1, 4], 1.5)):
            alone = torch.cat(
                [
                    g.modulated_conv2d(x[i : i + 1], weight, styles[i : i + 1], padding=2, input_gain=gain)
                    for i in range(3)
                ]
            )
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
        raw = g.modulated_conv2d(x[:1], weight, styles[:1], demodulate=False, padding=2)
        torch.testing.assert_close(
            raw,
            torch.nn.functional.conv2d(x[:1] * styles[:1, :, None, None], weight, padding=2),
            rtol=1e-4,
            atol=1e-5,
        )
        half = g.modulated_conv2d(
            x[:1], weight * 1e4, styles[:1], padding=2, input_gain=torch.tensor(1.5), dtype=torch.float16
        )
        torch.testing.assert_close(half, expected[:1], rtol=0.02, atol=0.02)
    # Half precision keeps the weight in range; the result is the same.
    half = g.modulated_conv2d(
        x, weight * 1e4, styles, padding=2, input_gain=torch.tensor(1.5), dtype=torch.float16
    )
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0.02)


def test_labels_in_every_form():
    G = small(c_dim=3).eval()
    z, c = draw(G)
    ws = G.mapping(z, c)
    assert torch.equal(ws, G.mapping(z, torch.eye(3)[c]))
    assert torch.equal(ws, G.mapping(z, c.int()))
    assert not torch.allclose(ws, G.mapping(z, (c + 1) % 3))
    assert torch.equal(G.mapping(z, torch.zeros(4, 3)), G.mapping(z, torch.zeros(4, dtype=torch.int64))), (
        "tools that know of no classes"
    )
    bad = {
        "outside 0..2": torch.tensor([0, 1, 2, 3]),
        r"outside 0\.\.2: -1": torch.tensor([0, 1, 2, -1]),
        "must be one-hot": torch.full([4, 3], 1 / 3),
        "a row has several classes": torch.tensor([[1, 1, 0]] * 4),
        r"shape \[4, 2\]": torch.zeros(4, 2),
        r"labels must be int64 \[4\]": torch.tensor([0, 1]),
        "got float32": torch.zeros(4),
        "pass a label": None,
    }
    for message, labels in bad.items():
        with pytest.raises(ValueError, match=message):
            G(z, labels)
    unconditional = small(c_dim=0)
    assert torch.equal(unconditional(z), unconditional(z, torch.zeros(4, 0)))
    with pytest.raises(ValueError, match="unconditional"):
        unconditional(z, c)
    with pytest.raises(ValueError, match=r"needs \[N, 8\]"):
        G(torch.zeros(4, 9), c)
    with pytest.raises(ValueError, match="this network needs"):
        G.synthesis(torch.zeros(4, 2, 16))


@pytest.mark.parametrize("c_dim", [0, 1, 2000])
def test_any_number_of_classes(c_dim):
    G = small(c_dim=c_dim)
    z, c = draw(G)
    images = G(z, c, truncation_psi=0.5, update_emas=True)
    assert images.shape == (4, 3, 16, 16) and bool(images.isfinite().all())
    assert G.mapping.w_avg.shape == ((c_dim, 16) if c_dim else (16,))
    assert hasattr(G.mapping, "embed") == (c_dim > 0)
    assert G.mapping.w_avg.abs().sum() > 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=0, max_size=12))
def test_w_avg_is_the_sequential_average(labels):
    G = small(c_dim=5)
    G.mapping.w_avg.normal_(generator=torch.Generator().manual_seed(1))
    w = torch.randn(len(labels), 16, generator=torch.Generator().manual_seed(2))
    expected = G.mapping.w_avg.clone().double()
    for label, row in zip(labels, w.double(), strict=True):
        expected[label] = expected[label] * 0.998 + row * 0.002
    G.mapping.update_w_avg(w, torch.tensor(labels, dtype=torch.int64))
    torch.testing.assert_close(G.mapping.w_avg.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_mapping_changes_nothing_unless_asked():
    G = small()
    before = {name: value.clone() for name, value in G.state_dict().items()}
    G(*draw(G), truncation_psi=0.7)
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    G.mapping(*draw(G), update_emas=True)
    changed = [name for name, value in G.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["mapping.w_avg"]


def test_the_mapping_multiplier_scales_the_steps_and_not_the_start():
    moved, start = {}, {}
    for multiplier in (0.01, 0.1):
        G = small(map_lr_multiplier=multiplier)
        layer = G.mapping.fc1
        before = (layer.weight * layer.weight_gain).detach()
        G.mapping(*draw(G)).square().sum().backward()
        torch.optim.Adam([layer.weight], 0.001).step()
        start[multiplier] = before
        after = (layer.weight * layer.weight_gain).detach()
        moved[multiplier] = float((after - before).abs().mean())
    torch.testing.assert_close(start[0.01], start[0.1])
    assert moved[0.1] == pytest.approx(10 * moved[0.01], rel=1e-3)


def test_truncation_goes_to_the_class_average():
    G = small()
    G.mapping.w_avg.normal_()
    z, c = draw(G)
    assert torch.allclose(
        G.mapping(z, c, truncation_psi=0), G.mapping.w_avg[c][:, None].expand(-1, G.num_ws, -1)
    )
    cut = G.mapping(z, c, truncation_psi=0, truncation_cutoff=2)
    assert torch.equal(cut[:, 2:], G.mapping(z, c)[:, 2:]) and not torch.equal(
        cut[:, :2], G.mapping(z, c)[:, :2]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_is_close_and_differentiable(dtype):
    G = small(cmax=32)
    z, c = draw(G)
    exact = G(z, c)
    G.synthesis.reduced_dtype = dtype
    assert G.synthesis.reduced_dtype is dtype
    reduced = G(z, c)
    assert reduced.dtype == torch.float32
    error = (reduced - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < (0.03 if dtype is torch.bfloat16 else 0.004)
    with torch.no_grad():
        alone = torch.cat([G(z[i : i + 1], c[i : i + 1]) for i in range(len(z))])
    error = (alone - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < (0.03 if dtype is torch.bfloat16 else 0.004)
    assert torch.equal(G(z, c, force_fp32=True), exact)
    if dtype is torch.bfloat16:  # CPUs differentiate float16 convolutions very slowly
        reduced.square().sum().backward()
        assert all(
            p.grad is not None and bool(p.grad.isfinite().all()) and p.grad.dtype == torch.float32
            for p in G.synthesis.parameters()
        )
    G.synthesis.reduced_dtype = None
    assert torch.equal(G(z, c), exact)
    with pytest.raises(ValueError, match="reduced_dtype must be None"):
        G.synthesis.reduced_dtype = torch.float64


def test_modulated_convolution_is_twice_differentiable():
    torch.manual_seed(0)
    args = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 3, 3), torch.randn(2, 3)]
    args = [value.double().requires_grad_(True) for value in args]
    assert torch.autograd.gradgradcheck(lambda x, w, s: g.modulated_conv2d(x, w, s, padding=2), args)


def test_path_length_gradients_reach_every_weight():
    G = small()
    ws = G.mapping(*draw(G)).detach().requires_grad_(True)
    with conv2d_gradfix.no_weight_gradients():
        (gradient,) = torch.autograd.grad(G.synthesis(ws).square().sum(), ws, create_graph=True)
    gradient.square().sum().backward()
    for name in G.synthesis.layer_names:
        layer = getattr(G.synthesis, name)
        assert all(
            p.grad is not None and bool((p.grad != 0).any()) for p in (layer.weight, layer.affine.weight)
        )


def test_a_superresolution_stage_freezes_its_stem():
    stem = small()
    stem.mapping.w_avg.normal_()
    stem.synthesis.L1_36_16.magnitude_ema.fill_(0.5)
    weights = {name: value.clone() for name, value in stem.state_dict().items()}
    G = g.build_superres(stem, "stylegan3-r", 2, 4)
    assert G.num_frozen_layers == 3 and [name[:2] for name in G.head_layer_names] == [
        "L4",
        "L5",
        "L6",
        "L7",
        "L8",
    ]
    trained = {name for name, p in G.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in G.named_parameters() if name.split(".")[1] in G.head_layer_names}
    G.set_trainable(False)
    assert not any(p.requires_grad for p in G.parameters())
    assert {name for name, p in G.set_trainable(True).named_parameters() if p.requires_grad} == trained
    torch.optim.SGD([p for p in G.parameters() if p.requires_grad], lr=0.1)
    G(*draw(G)).sum().backward()
    kept = [name for name in weights if name in G.state_dict()]
    assert len(kept) > 20 and all(torch.equal(G.state_dict()[name], weights[name]) for name in kept)
    with torch.no_grad():
        G.mapping.fc0.weight.zero_()
    assert torch.equal(stem.mapping.fc0.weight, weights["mapping.fc0.weight"]), (
        "the stem's tensors are copies"
    )
    stem.channel_base = None
    with pytest.raises(ValueError, match="capacity of the stem is unknown"):
        g.build_superres(stem)


def test_class_embedding_is_taken_and_trains():
    G = small()
    table = torch.randn(3, 12)
    G.mapping.set_class_embedding(table)
    assert torch.equal(G.mapping.embed.weight, table) and G.mapping.embed.weight.requires_grad
    for bad, message in [
        (torch.zeros(4, 12), "the network needs"),
        (torch.full([3, 12], torch.nan), "non-finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            G.mapping.set_class_embedding(bad)
    with pytest.raises(ValueError, match="has no class embedding"):
        small(c_dim=0).mapping.set_class_embedding(table)


def test_moving_the_canvas_moves_the_image():
    G = small(c_dim=0, syn_layers=7)
    z, _ = draw(G)
    still = G(z)
    G.synthesis.input.transform[0, 2] = 1 / 16  # one pixel of the output
    moved = G(z)
    shift = (
        (moved[..., :-1] - still[..., 1:]).square().mean(),
        (moved[..., 1:] - still[..., :-1]).square().mean(),
    )
    assert min(shift) < 0.05 * (moved - still).square().mean()


@pytest.mark.parametrize("stage", ["stem_t", "stem_r", "uncond", "superres"])
def test_copies_and_pickles_are_the_same_network(stage, tmp_path):
    G = small(
        c_dim=0 if stage == "uncond" else 3, config="stylegan3-r" if stage == "stem_r" else "stylegan3-t"
    )
    if stage == "superres":
        G = g.build_superres(G, "stylegan3-r", 2, 4)
    G.mapping.w_avg.normal_()
    z, c = draw(G)
    image = G(z, c, truncation_psi=0.8)
    trainable = [name for name, p in G.named_parameters() if p.requires_grad]
    save_network_pickle(
        tmp_path / "g.pkl",
        dict(G=None, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=dict(path="x.zip")),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["g.pkl"]
    with open(tmp_path / "g.pkl", "rb") as file:
        published_way = pickle.load(file)["G_ema"]
    ours = reader.load(str(tmp_path / "g.pkl"))
    for twin in (copy.deepcopy(G), pickle.loads(pickle.dumps(G)), published_way, ours):
        assert type(twin) is g.Generator and twin is not G
        assert torch.equal(twin(z, c, truncation_psi=0.8), image)
        assert twin.state_dict().keys() == G.state_dict().keys()
        assert twin.synthesis.specs() == G.synthesis.specs() and twin.num_frozen_layers == G.num_frozen_layers
        assert (twin.channel_base, twin.channel_max) == (G.channel_base, G.channel_max)
    assert not any(p.requires_grad for p in ours.parameters()) and not ours.training
    assert [name for name, p in ours.set_trainable(True).named_parameters() if p.requires_grad] == trainable
    assert any(p.requires_grad for p in G.parameters()) and G.training, "saving leaves the network as it is"
    rebuilt = g.Generator(*G.init_args, **G.init_kwargs)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in G.state_dict().items()
    }


def test_loading_names_what_is_wrong(tmp_path):
    G = small()
    save_network_pickle(tmp_path / "g.pkl", dict(G=None, G_ema=G))
    with pytest.raises(ValueError, match="contains no network G; it has G_ema"):
        reader.load(str(tmp_path / "g.pkl"), key="G")
    with pytest.raises(FileNotFoundError):
        reader.load(str(tmp_path / "absent.pkl"))
    with pytest.raises(ValueError, match="not a generator but a dict"):
        reader.from_stub({})
    with pytest.raises(ValueError, match="not a generator but an object of persistent MappingNetwork"):
        reader.from_stub(stub_of(G).modules()["mapping"])


def _values(state):
    """Every place in a stub where a value sits."""
    for key, value in list(state.items()):
        yield state, key
        if isinstance(value, dict):
            yield from _values(value)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_stub_is_refused_in_one_line_or_harmless(data):
    stub = stub_of(small())
    places = [place for _, module in stub.named_modules() for place in _values(module.state)]
    table, key = data.draw(st.sampled_from(places))
    table[key] = data.draw(
        st.sampled_from(
            [
                None,
                -1,
                0,
                10**12,
                2.5,
                float("nan"),
                "text",
                [],
                {},
                (1, 2),
                stub,
                b"x",
                True,
                np.zeros(3),
                np.float64(1e300),
            ]
        )
    )
    try:
        reader.from_stub(stub)
    except ValueError as err:
        assert "\n" not in str(err)


def stub_of(network):
    return read_network_pickle(io.BytesIO(pickle.dumps({"G": network})))["G"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r, s: s("synthesis.L0_36_16")["_parameters"].pop("weight"),
            "tensors missing: synthesis.L0_36_16.weight",
        ),
        (
            lambda r, s: s("synthesis.L0_36_16")["_buffers"].update(more=r.named_tensors()["mapping.w_avg"]),
            "unexpected: synthesis.L0_36_16.more",
        ),
        (
            lambda r, s: s("mapping")["_modules"].update(more=r.modules()["mapping"].modules()["fc0"]),
            "parts missing or unexpected: mapping.more",
        ),
        (lambda r, s: s("mapping")["_parameters"].update(w=1.5), "'w' is not a tensor but float 1.5"),
        (lambda r, s: s("")["_modules"].pop("mapping"), "parts mapping and synthesis"),
        (lambda r, s: s("synthesis")["layer_names"].pop(), "layer_names of synthesis"),
        (lambda r, s: s("synthesis.L1_36_16").pop("in_cutoff"), "L1_36_16 has no attribute in_cutoff"),
        (lambda r, s: s("synthesis.L1_36_16").update(in_size=[36, 20]), "L1_36_16 is not square"),
        (lambda r, s: s("synthesis.L1_36_16").update(up_factor=4), "L1_36_16: up_factor is not 2"),
        (lambda r, s: s("synthesis.L1_36_16").update(padding=[0, 0, 0, 0]), "padding is not"),
        (lambda r, s: s("synthesis.L1_36_16").update(in_channels=9), "does not fit onto L0_36_16"),
        (lambda r, s: s("synthesis.L1_36_16").update(in_channels=10**9), "at most 65536"),
        (lambda r, s: s("synthesis.L1_36_16").update(in_cutoff=float("nan")), "must be positive"),
        (lambda r, s: s("synthesis.L1_36_16").update(in_sampling_rate=0.0), "must be positive"),
        (lambda r, s: s("synthesis.L1_36_16").update(in_sampling_rate=1e-3), "not small multiples"),
        (
            lambda r, s: s("synthesis.L1_36_16").update(in_cutoff=r),
            "attribute in_cutoff is ObjectStub, not float",
        ),
        (lambda r, s: s("synthesis.L1_36_16").update(in_size=[]), "is not square"),
        (
            lambda r, s: s("mapping").update(num_layers=10**9),
            "num_layers of the mapping network is 1000000000",
        ),
        (lambda r, s: s("").update(z_dim=-1), "sizes are impossible|w_dim|shape"),
        (lambda r, s: s("mapping.fc0").update(activation="relu"), "activation is not lrelu"),
        (lambda r, s: s("mapping.fc1").update(weight_gain=1.0), "weight_gain is not"),
        (lambda r, s: s("").update(w_dim="16"), "attribute w_dim is str, not int"),
        (lambda r, s: s("").update(c_dim=4), "4 classes"),
        (lambda r, s: s("").update(head_layer_names=["L0_36_16"]), "head_layer_names do not match the last"),
        (lambda r, s: s("").update(num_frozen_layers=99), "num_frozen_layers does not fit"),
        (
            lambda r, s: s("synthesis.L1_36_16")["_parameters"].update(
                weight=r.named_tensors()["mapping.w_avg"]
            ),
            "has shape",
        ),
    ],
)
def test_a_stub_that_does_not_fit_is_refused(change, message):
    stub = stub_of(small())
    change(stub, lambda path: dict(stub.named_modules())[path].state)
    with pytest.raises(ValueError, match=message) as caught:
        reader.from_stub(stub)
    assert "\n" not in str(caught.value)
