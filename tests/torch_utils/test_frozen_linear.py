# SPDX-License-Identifier: Apache-2.0
"""Linear layers of frozen networks compute the same through oneDNN, and attention by plain operations."""

import pytest
import timm
import torch

from torch_utils import cpu_speed, frozen_linear


def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5)
    return made.eval().requires_grad_(False)


@pytest.mark.skipif(not cpu_speed.has_onednn(), reason="this torch has no oneDNN")
def test_features_and_their_gradient_are_the_same_through_onednn(monkeypatch):
    body = network()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    wanted = body(x)
    (dx,) = torch.autograd.grad(wanted.square().sum(), x)
    names = list(body.state_dict())
    frozen_linear.replace_linear_(body)
    assert list(body.state_dict()) == names
    assert isinstance(body.blocks[0].attn.qkv, frozen_linear.FrozenLinear)
    called = []
    monkeypatch.setattr(
        cpu_speed, "choices", lambda: called.append(1) or cpu_speed.Choices(onednn_linear=True)
    )
    found = body(x)
    assert called
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], dx, rtol=1e-3, atol=1e-3)


def test_attention_is_plain_for_bfloat16_on_cpus_that_gain_from_it(monkeypatch):
    body = network()
    x = torch.randn(2, 3, 32, 32)
    monkeypatch.setattr(cpu_speed, "choices", lambda: cpu_speed.Choices(plain_attention=True))
    layers = frozen_linear.attention_layers(body)
    frozen_linear.choose_attention_(layers, x.bfloat16())
    assert body.blocks[0].attn.fused_attn is False
    plain = body(x)
    frozen_linear.choose_attention_(layers, x)
    assert body.blocks[0].attn.fused_attn is True
    torch.testing.assert_close(plain, body(x), rtol=1e-4, atol=1e-4)
