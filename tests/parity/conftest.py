# SPDX-License-Identifier: Apache-2.0
"""Feature networks, made once per test process: the transformer takes five seconds and 350 MB."""

import pytest

from tests.parity.fill import fill_
from torch_utils import features, timm_weights


@pytest.fixture(scope="session")
def lite0() -> features.FeatureNetwork:
    return features.load(timm_weights.LITE0)


@pytest.fixture(scope="session")
def deit() -> features.FeatureNetwork:
    """With the weights of the goldens' rule."""
    network = features.load("deit_base_distilled_patch16_224", "random")
    fill_(network.body.state_dict(), f"feature_networks.{network.name}.pretrained.model.", "vit")
    return network
