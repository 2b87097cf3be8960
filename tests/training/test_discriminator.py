# SPDX-License-Identifier: Apache-2.0
"""The projected discriminator: what it may depend on, what it trains, which sizes it takes."""

import functools

import pytest
import torch

from torch_utils import features, timm_weights
from training.discriminator import ProjectedDiscriminator
from training.discriminator.heads import (
    GroupedBatchNorm2d,
    Head,
    SpectralConv2d,
    class_deviations,
    head_channels,
)
from training.discriminator.projection import RandomProjection

LITE0 = timm_weights.LITE0
SMALL = {"feature_size": 64, "proj_channels": 8, "head_channels": 8, "cond_channels": 16}


@functools.cache
def network(name: str = LITE0) -> features.FeatureNetwork:
    return features.load(name, None if name == LITE0 else "random")


def make(
    c_dim: int = 10, resolution: int = 16, networks: tuple[str, ...] = (LITE0,), **options
) -> ProjectedDiscriminator:
    return ProjectedDiscriminator(
        [network(name) for name in networks], c_dim, resolution, **(SMALL | options)
    )


def images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels(count: int, c_dim: int) -> torch.Tensor | None:
    return torch.arange(count) % c_dim if c_dim else None


@pytest.mark.parametrize("c_dim", [0, 1, 10, 2000])
def test_class_counts(c_dim):
    D = make(c_dim)
    y = D(images(4), labels(4, c_dim))[LITE0]
    assert y.fun.shape == y.dir.shape == (4, 76)  # maps of 32, 16, 8 and 4 pixels: 25 + 25 + 25 + 1 logits
    assert y.fun.dtype == torch.float32 and torch.isfinite(y.fun).all()
    torch.testing.assert_close(y.fun, y.dir)
    (y.fun.mean() + y.dir.mean()).backward()
    for name, parameter in D.trainable_parameters().items():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_the_class_matters():
    D = make(10)
    y = [D(images(2), torch.tensor(c))[LITE0].fun for c in ([3, 4], [3, 5])]
    assert torch.equal(y[0][0], y[1][0]) and not torch.equal(y[0][1], y[1][1])


def test_forward_changes_no_state():
    D = make().train()
    state = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    rng = torch.get_rng_state()
    y = D(images(4), labels(4, 10), {LITE0: torch.rand(4, 7, generator=torch.Generator().manual_seed(0))})
    (y[LITE0].fun.mean() + y[LITE0].dir.mean()).backward()
    assert all(torch.equal(tensor, state[name]) for name, tensor in D.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_advance_moves_the_spectral_norms_alone_and_towards_the_singular_value():
    D = make()
    before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    D.advance_spectral_norms()
    for name, tensor in D.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith(("weight_u", "weight_v")), name
    conv = SpectralConv2d(6, 12)
    for _ in range(200):
        conv.advance_spectral_norm()
    torch.testing.assert_close(
        conv.sigma(), torch.linalg.matrix_norm(conv.weight_orig.flatten(1), 2), rtol=1e-4, atol=0
    )


def test_spectral_norm_starts_close():
    conv = SpectralConv2d(64, 128, generator=torch.Generator().manual_seed(0))
    assert conv.sigma() > 0.95 * torch.linalg.matrix_norm(conv.weight_orig.flatten(1), 2)


def test_gradient_of_the_normalised_weight_is_orthogonal_to_scaling():
    """W / sigma(W) does not change with W's length, so its gradient has no component along W."""
    conv = SpectralConv2d(3, 5).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    conv(x).square().sum().backward()
    assert abs((conv.weight_orig.grad * conv.weight_orig).sum()) < 1e-9 * conv.weight_orig.grad.norm()


@pytest.mark.parametrize("group", [2, 4])
def test_results_do_not_depend_on_the_round_size(group):
    """One round of 8 or several of a multiple of the group: the same logits and the same accumulated
    gradient.
    """
    D = make(bn_group=group)
    x, c = images(8), labels(8, 10)
    gradients, outputs = [], []
    for size in (8, 4, group):
        parts = [D(a, b)[LITE0] for a, b in zip(x.split(size), c.split(size), strict=True)]
        fun, direction = (torch.cat([getattr(part, field) for part in parts]) for field in ("fun", "dir"))
        (fun.relu().mean() + direction.mean()).backward()
        outputs.append(fun.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in D.trainable_parameters().values()]))
        for parameter in D.trainable_parameters().values():
            parameter.grad = None
    for output, gradient in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-5)


def test_batch_norm_groups():
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    whole = torch.nn.BatchNorm2d(3)
    grouped = GroupedBatchNorm2d(3, group=2)
    torch.testing.assert_close(grouped(x), torch.cat([whole(part) for part in x.split(2)]))
    for group in (4, 0, None, 8):  # no divisor of 6, or no group at all
        torch.testing.assert_close(GroupedBatchNorm2d(3, group)(x), whole(x))
    assert not torch.allclose(grouped(x), whole(x))


@pytest.mark.parametrize("heads", ["projection", "sona"])
@pytest.mark.parametrize("count", [4, 8, 6])  # fewer than a group, a multiple of it, neither
def test_two_batches_in_a_pass_share_no_statistics(heads, count):
    D = make(heads=heads, bn_group=4)
    x, c = images(2 * count), labels(2 * count, 10)
    x[count:] *= 0.3
    with torch.no_grad():
        alone = [D(x[part], c[part])[LITE0] for part in (slice(count), slice(count, None))]
        for together, *parts in zip(D(x, c, batches=2)[LITE0], *alone, strict=True):
            torch.testing.assert_close(together, torch.cat(parts), rtol=1e-4, atol=1e-4)


def test_deviations_are_those_of_a_class_in_a_group():
    x = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.tensor([0, 1, 0, 0, 1, 2] * 2)
    c[6:] = torch.tensor([0, 0, 1, 1, 1, 1])
    found = class_deviations(x, c, 6)
    for members in ([0, 2, 3], [1, 4], [6, 7], [8, 9, 10, 11]):
        expected = x[members].std(dim=0, correction=0)
        torch.testing.assert_close(
            found[members], expected.expand(len(members), -1, -1, -1), rtol=0, atol=1e-3
        )
    assert found[5].abs().max() == 0, "alone"
    torch.testing.assert_close(
        class_deviations(x, None, 6)[:6],
        x[:6].std(dim=0, correction=0).expand(6, -1, -1, -1),
        rtol=0,
        atol=1e-3,
    )


@pytest.mark.parametrize("c", [torch.tensor([0, 1, 0, 2]), None])
def test_deviations_have_finite_gradients_where_images_are_equal(c):
    x = torch.ones(4, 3, 2, 2, requires_grad=True)
    class_deviations(x, c, 4).sum().backward()
    assert x.grad.abs().max() == 0
    y = torch.randn(4, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: class_deviations(v, c, 4), y)


@pytest.mark.parametrize("heads", ["projection", "sona"])
def test_heads_that_see_deviations_tell_alike_images_from_varied_ones(heads):
    """The logits of an image depend on the images of its class in its group, and on no others."""
    D = make(10, heads=heads, bn_group=4, mbstd=True)
    plain = make(10, heads=heads, bn_group=4)
    assert D.trainable_parameters().keys() == plain.trainable_parameters().keys()
    key = f"discriminators.{LITE0}.mini_discs.0.main.0.main.0.weight_orig"
    assert D.state_dict()[key].shape[1] == 2 * plain.state_dict()[key].shape[1]
    x, c = images(4), torch.tensor([0, 0, 1, 2])
    maps = D._features(LITE0, x)
    seen = []
    head = D.discriminators[LITE0].mini_discs[0]
    head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    D(x, c)
    width = maps[0].shape[1]
    torch.testing.assert_close(seen[0][:, :width], maps[0])
    deviations = seen[0][:, width:]
    assert deviations[:2].max() > 0 and torch.equal(deviations[0], deviations[1])
    assert deviations[2:].abs().max() == 0
    D(torch.cat([x, x]), torch.cat([c, c]), batches=2)
    torch.testing.assert_close(seen[1], torch.cat([seen[0], seen[0]]))


def test_discriminator_step_records_no_graph_through_features():
    D = make()
    maps = D._features(LITE0, images(2))
    assert not any(x.requires_grad for x in maps)
    x = images(2).requires_grad_()
    assert all(x.requires_grad for x in D._features(LITE0, x))


def test_generator_step_reaches_images_and_not_the_heads():
    D = make()
    D.requires_grad_(False)
    x = images(4).requires_grad_()
    D(x, labels(4, 10), {LITE0: torch.rand(4, 7)})[LITE0].fun.mean().backward()
    assert x.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert all(p.grad is None for p in D.trainable_parameters().values())
    D.requires_grad_(True)
    assert all(p.requires_grad for p in D.trainable_parameters().values())


def test_only_heads_are_parameters():
    D = make()
    assert dict(D.named_parameters()).keys() == D.trainable_parameters().keys()
    assert all(name.startswith("discriminators.") for name, _ in D.named_parameters())


def test_gradient_isolation_survives_the_whole_network():
    """fun trains everything but the class directions; dir trains the class directions alone."""
    D = make()
    y = D(images(4), labels(4, 10))[LITE0]
    named = D.trainable_parameters()
    fun = dict(
        zip(
            named,
            torch.autograd.grad(y.fun.square().sum(), named.values(), allow_unused=True, retain_graph=True),
            strict=True,
        )
    )
    direction = dict(
        zip(named, torch.autograd.grad(y.dir.square().sum(), named.values(), allow_unused=True), strict=True)
    )
    for name in named:
        is_direction = name.endswith("embed.weight")
        assert (fun[name] is None) == is_direction, name
        assert (direction[name] is None) != is_direction, name


def test_normalize():
    D = make(0)
    directions = [head.last_layer.weight for head in D.discriminators[LITE0].mini_discs]
    with torch.no_grad():
        for weight in directions:
            weight.mul_(3)
    D.normalize_()
    for weight in directions:
        assert weight.norm().item() == pytest.approx(1, abs=1e-6)


def test_seed_decides_everything_and_global_state_is_left_alone():
    rng = torch.get_rng_state()
    first, second, other = (make(seed=seed).saved_state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = [
        name
        for name in first
        if name.endswith(("weight_orig", "_ccm.weight", "out_conv.weight", "embed.weight"))
    ]
    assert len(drawn) == 4 * 4 + 3 and not any(torch.equal(first[name], other[name]) for name in drawn)


def test_saved_state_round_trip():
    first, second = make(seed=1), make(seed=2)
    first.advance_spectral_norms()
    state = first.saved_state_dict()
    assert not any("feature_networks" in name for name in state)
    second.load_saved_state_dict(state)
    x, c = images(2), labels(2, 10)
    assert torch.equal(first(x, c)[LITE0].fun, second(x, c)[LITE0].fun)


def test_unfit_state_changes_nothing():
    D = make(10)
    before = {name: tensor.clone() for name, tensor in D.saved_state_dict().items()}
    for other, match in (
        (make(0), "names differ"),
        (make(11), "embed.scale' has shape"),
        (make(10, head_channels=16), "does not fit"),
    ):
        with pytest.raises(ValueError, match=match) as error:
            D.load_saved_state_dict(other.saved_state_dict())
        assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in D.saved_state_dict().items())


def test_bfloat16_is_close_and_leaves_the_given_network_alone():
    exact, fast = make(), make(compute_dtype=torch.bfloat16)
    assert network().dtype == torch.float32 and fast.feature_networks[LITE0].dtype == torch.bfloat16
    x, c = images(8), labels(8, 10)
    a, b = exact(x, c)[LITE0].fun, fast(x, c)[LITE0].fun
    assert b.dtype == torch.float32
    assert (a - b).norm() < 0.05 * a.norm()
    a.square().mean().backward()
    b.square().mean().backward()
    gradients = []
    for D in (exact, fast):
        grads = [p.grad for p in D.trainable_parameters().values() if p.grad is not None]
        assert all(grad.dtype == torch.float32 for grad in grads)
        gradients.append(torch.cat([grad.flatten() for grad in grads]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.97


def test_augmentation_needs_draws_and_can_be_off():
    x, c, draws = (
        images(2),
        labels(2, 10),
        {LITE0: torch.rand(2, 7, generator=torch.Generator().manual_seed(0))},
    )
    D, off = make(), make(augment=False)
    plain = D(x, c)[LITE0].fun
    assert not torch.equal(D(x, c, draws)[LITE0].fun, plain)
    assert torch.equal(off(x, c, draws)[LITE0].fun, plain)
    with pytest.raises(ValueError, match="no augmentation draws for tf_efficientnet_lite0"):
        D(x, c, {"other": draws[LITE0]})


def test_augmentation_happens_before_resizing():
    """A brightness draw moves the network's input by as much in its own range, whatever the resolution."""
    D = make(0)
    seen = []
    D.feature_networks[LITE0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    neutral = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]])
    bright = neutral.clone()
    bright[0, 0] = 0.75
    x = torch.zeros(1, 3, 16, 16)
    D(x, None, {LITE0: neutral})
    D(x, None, {LITE0: bright})
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0].abs().max() == 0  # 0 in [-1, 1] is 0.5 in [0, 1], lite0's mean
    torch.testing.assert_close(seen[1][..., 20:, 20:], torch.full((1, 3, 44, 44), 0.25))


@pytest.mark.parametrize(
    ("resolution", "feature_size", "expected"),
    [(16, 64, 64), (16, 96, 96), (128, 64, 128), (16, 50, 50), (32, None, 224)],
)
def test_feature_size(resolution, feature_size, expected):
    D = make(0, resolution, feature_size=feature_size)
    assert D.feature_sizes == {LITE0: expected}
    y = D(images(2, resolution))[LITE0]
    assert y.fun.shape[0] == 2 and torch.isfinite(y.fun).all()


def test_small_levels_have_no_head():
    D = make(0, feature_size=32)  # maps of 16, 8, 4 and 2 pixels
    assert len(D.discriminators[LITE0].mini_discs) == 3
    assert D(images(2))[LITE0].fun.shape == (2, 25 + 25 + 1)
    with pytest.raises(ValueError, match="use at least"):
        make(0, 4, feature_size=4)


def test_fewer_levels():
    for levels in (0, 5):
        with pytest.raises(ValueError, match="use 1 to 4"):
            make(0, num_levels=levels)
    assert make(0, num_levels=2)(images(2))[LITE0].fun.shape == (2, 50)


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        (112, 64, [7, 64, 128, 256, 512]),
        (56, 64, [7, 128, 256, 512]),
        (28, 64, [7, 256, 512]),
        (14, 64, [7, 512]),
        (8, 64, [7]),
        (4, 64, [7]),
        (256, 64, [7, 64, 64, 128, 256, 512]),
        (512, 64, [7, 32, 64, 64, 128, 256, 512]),
        (32, 8, [7, 32, 64]),
    ],
)
def test_head_widths(size, width, expected):
    assert head_channels(7, size, width) == expected


def test_head_ends_at_8_pixels_or_fewer():
    for size in range(4, 130):
        channels = head_channels(4, size, 1)
        y = Head(channels, bn_group=None)(torch.randn(2, 4, size, size)).fun
        assert y.shape[1] == 1 and 1 <= y.shape[2] <= 5, size
    with pytest.raises(ValueError, match="at least 4x4"):
        head_channels(4, 3)


def test_two_networks():
    D = make(10, networks=(LITE0, "resnet18"))
    y = D(images(2), labels(2, 10), {name: torch.rand(2, 7) for name in (LITE0, "resnet18")})
    assert list(y) == [LITE0, "resnet18"] == list(D.names.values())
    with pytest.raises(ValueError, match="distinct backbones"):
        make(0, networks=(LITE0, LITE0))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet10t.c3_in1k"]
)
def test_other_networks(name):
    D = make(0, networks=(name,))
    x = images(1).requires_grad_()
    y = D(x)[name].fun
    assert D.feature_sizes == {name.replace(".", "_"): 64 if "resnet" in name else 224}
    y.mean().backward()
    assert x.grad.abs().max() > 0


def test_projection_commutes_convolution_and_upsampling():
    """The 1x1 convolution runs before the doubling: the same map as the documented order."""
    projection = RandomProjection([3, 5], width=4, generator=torch.Generator().manual_seed(0)).double()
    maps = [torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 5, 4, 4, dtype=torch.float64)]
    scratch = projection.scratch

    def documented(x, level):
        doubled = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return scratch.get_submodule(f"layer{level}_csm").out_conv(doubled)

    low = documented(scratch.layer1_ccm(maps[1]), 1)
    high = documented(scratch.layer0_ccm(maps[0]) + low, 0)
    for a, b in zip(projection(maps), (high, low), strict=True):
        torch.testing.assert_close(a, b)
    assert projection.out_channels == [4, 4]


@pytest.mark.parametrize(
    ("x", "c", "match"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            torch.zeros(2, dtype=torch.long),
            r"images of shape \[N, 3, 16, 16\], got \[2, 3, 8, 8\]",
        ),
        (torch.zeros(2, 3, 16, 16), None, "int64 labels of shape"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2), "got torch.float32"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(3, dtype=torch.long), r"got torch.int64 of shape \[3\]"),
        (torch.zeros(2, 3, 16, 16), torch.tensor([0, 10]), r"labels must be in 0..9, got 0..10"),
        (torch.zeros(2, 3, 16, 16), torch.tensor([-1, 0]), r"labels must be in 0..9, got -1..0"),
    ],
)
def test_wrong_input_is_refused(x, c, match):
    with pytest.raises(ValueError, match=match):
        make()(x, c)


@pytest.mark.parametrize("channels", [1, 4])
def test_backbones_see_grey_and_transparent_images_as_rgb(channels):
    D, like = make(img_channels=channels), make()
    rgb = images(4)
    x = torch.cat([rgb, torch.ones(4, 1, 16, 16)], dim=1) if channels == 4 else rgb[:, :1]
    seen = rgb if channels == 4 else rgb[:, :1].expand(-1, 3, -1, -1)
    c = labels(4, 10)
    torch.testing.assert_close(D(x, c)[LITE0].fun, like(seen, c)[LITE0].fun)
    with pytest.raises(ValueError, match=rf"shape \[N, {channels}, 16, 16\], got \[4, 3, 16, 16\]"):
        D(rgb, c)


def test_transparent_images_lie_on_a_colour_of_their_own():
    """So that the generator cannot paint the background in place of being transparent."""
    D, like = make(img_channels=4, augment=False), make(augment=False)
    x, c = torch.cat([images(2), torch.zeros(2, 1, 16, 16)], dim=1), labels(2, 10)
    colours = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 1.0]])
    seen = (images(2) + colours[:, :, None, None] * 2 - 1) / 2
    torch.testing.assert_close(D(x, c, {"background": colours})[LITE0].fun, like(seen, c)[LITE0].fun)
    torch.testing.assert_close(D(x, c)[LITE0].fun, like((images(2) + 1) / 2, c)[LITE0].fun)
