# SPDX-License-Identifier: Apache-2.0
"""The 2015-12-05 network: parameter names against torchvision's, conventions against small cases worked out
by hand.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from metrics import inception


@pytest.fixture(scope="module")
def network() -> inception.InceptionV3:
    torch.manual_seed(0)
    return inception.InceptionV3()


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    torch.manual_seed(1)
    return torchvision.models.inception_v3(
        weights=None, aux_logits=False, num_classes=1008, transform_input=False, init_weights=False
    ).eval()


def test_names_and_shapes_are_torchvisions(network, reference):
    ours, theirs = network.state_dict(), reference.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    assert ours["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert ours["fc.weight"].shape == (1008, 2048)


def test_everything_but_the_poolings_is_torchvisions(reference):
    network = inception.InceptionV3()
    network.load_state_dict(reference.state_dict())
    for name in network.block_names:
        block = network.get_submodule(name)
        assert isinstance(block, inception.Mixed)
        if block.pool in (inception.average_pool, inception.max_pool_same):
            block.pool = lambda x: F.avg_pool2d(x, 3, stride=1, padding=1)
    x = torch.randn(1, 3, 139, 139)
    with torch.no_grad():
        features = network.features(x)
        assert features.abs().max() > 0
        torch.testing.assert_close(
            F.linear(features, network.fc.weight, network.fc.bias), reference(x), rtol=1e-4, atol=1e-6
        )


def test_folding_batch_norm_moves_features_by_rounding_alone(reference):
    network = inception.InceptionV3()
    network.load_state_dict(reference.state_dict())
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in ((module.running_mean, -0.1), (module.running_var, 0.5), (module.weight, 0.5)):
                values.copy_(torch.rand(values.shape, generator=random) + low)
    x = torch.randn(2, 3, 139, 139, generator=random)
    with torch.no_grad():
        before = network.features(x)
        after = network.fold().features(x)
        assert network.fold().features(x).equal(after), "folding again changes nothing"
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert before.std() > 0 and (after - before).norm() / before.norm() < 2e-6


def test_poolings_of_the_2015_graph(network):
    pools = {name: network.get_submodule(name).pool for name in network.block_names}
    averages = {
        "Mixed_5b",
        "Mixed_5c",
        "Mixed_5d",
        "Mixed_6b",
        "Mixed_6c",
        "Mixed_6d",
        "Mixed_6e",
        "Mixed_7b",
    }
    assert {name for name, pool in pools.items() if pool is inception.average_pool} == averages
    assert {name for name, pool in pools.items() if pool is inception.max_pool_half} == {
        "Mixed_6a",
        "Mixed_7a",
    }
    assert pools["Mixed_7c"] is inception.max_pool_same
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    # corner (1+2+4+5)/4, edge (1+2+3+4+5+6)/6, centre 45/9: the padding is no part of the mean
    assert inception.average_pool(x).flatten().tolist() == [3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7]
    assert inception.max_pool_same(-x).flatten().tolist() == [-1, -1, -2, -1, -1, -2, -4, -4, -5]
    assert inception.max_pool_half(torch.arange(25.0).view(1, 1, 5, 5)).flatten().tolist() == [12, 14, 22, 24]


def test_resize_reads_position_i_times_in_over_out():
    x = torch.tensor([[0.0, 3.0], [6.0, 9.0]]).view(1, 1, 2, 2)
    # 2 -> 3: positions 0, 2/3, 4/3 (beyond the last pixel: repeated), so 0, 2, 3 along a row and 0, 4, 6 down
    # a column
    expected = torch.tensor([[0.0, 2, 3], [4, 6, 7], [6, 8, 9]]).view(1, 1, 3, 3)
    torch.testing.assert_close(inception.resize_tf1(x, 3, 3), expected, rtol=1e-6, atol=1e-6)


def test_resize_down_does_not_average():
    x = torch.arange(8.0).view(1, 1, 1, 8)
    assert inception.resize_tf1(x, 1, 4).flatten().tolist() == [0, 2, 4, 6]
    assert inception.resize_tf1(x, 1, 8).equal(x)


def test_prepare_maps_0_128_255():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    x = inception.prepare(images)
    assert x.shape == (1, 3, 299, 299)
    assert x[0, :, 100, 100].tolist() == [-1, 0, 127 / 128]


def test_probabilities_leave_the_bias_out(network):
    network.fc.bias.data.normal_(std=10)
    with torch.no_grad():
        p = network.probabilities(torch.zeros(2, 2048))
    torch.testing.assert_close(p, torch.full((2, 1008), 1 / 1008))


def test_it_stays_frozen(network):
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_spatial_features_are_seven_channels_of_the_first_branch_of_mixed_6d(network):
    seen = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    outputs = network.outputs(torch.randn(1, 3, 299, 299))
    hook.remove()
    rows = outputs["spatial"].view(1, 17, 17, 7)  # NHWC, as in ADM's reference statistics
    assert rows.permute(0, 3, 1, 2).equal(seen[0][:, :7]) and rows.numel() == inception.SPATIAL_DIM == 2023


def test_random_weights_keep_the_scale_of_activations_and_repeat():
    network, x, features = inception.InceptionV3(), torch.randn(1, 3, 139, 139), []
    for seed in (0, 0, 1):
        inception.randomize_(network, seed)
        features.append(network.features(x))
    assert 0.01 < features[0].std() < 100
    assert features[0].equal(features[1]) and not features[0].equal(features[2])
