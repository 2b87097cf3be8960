# SPDX-License-Identifier: Apache-2.0
"""What identifies the images of a generator, so that a killed evaluation resumes with its own state alone."""

import copy

import torch

from generation import measures
from tests import toy_networks


def test_the_identity_follows_weights_buffers_and_precision():
    network = toy_networks.network()
    first = measures.identity_of(network)
    assert measures.identity_of(copy.deepcopy(network)) == first
    for change in (
        lambda G: next(G.parameters()).data.view(-1)[0].add_(1e-3),
        lambda G: next(G.buffers()).view(-1)[0].add_(1),
        lambda G: setattr(G.synthesis, "reduced_dtype", torch.bfloat16),
    ):
        other = copy.deepcopy(network)
        change(other)
        assert measures.identity_of(other) != first
