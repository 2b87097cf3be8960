# SPDX-License-Identifier: Apache-2.0
"""The example of waveforms: the heads' shapes, and a short run that approaches the data."""

import pytest
import torch

import san
from examples import waveforms


def test_heads_read_every_sample_of_a_waveform():
    D = waveforms.Discriminator()
    x = waveforms.notes(3, torch.Generator().manual_seed(0)).requires_grad_()
    logits = D(x)
    assert len(logits) == len(waveforms.PERIODS) + len(waveforms.SCALES)
    assert all(isinstance(head, san.SANLogits) and head.fun.shape[:2] == (3, 1) for head in logits)
    for head in logits:
        (grad,) = torch.autograd.grad(head.fun.sum(), x, retain_graph=True)
        assert (grad != 0).any(0).all()
    assert all(head.last.bias is not None for head in D.heads), "the bias of BigVSAN's heads is on the input"


@pytest.mark.once
def test_a_short_run_approaches_the_data():
    result = waveforms.train(steps=12, batch=8)
    assert result.floor < result.after < result.before and result.variety > 0
