# SPDX-License-Identifier: Apache-2.0
"""Discriminator losses, generator objectives and SAN against GAN in the training steps."""

import pytest
import torch

import san
from torch_utils import training_stats
from training import losses, steps
from training.config import LossConfig, OptimConfig, TrainConfig
from training.generator import build_stem
from training.inputs import MicroBatch, RealMicroBatch
from training.state import TrainState


class TinyDiscriminator(torch.nn.Module):
    """Two heads on pixels, one per kind, under the names that training expects of a discriminator."""

    sona = mbstd = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        head = torch.nn.Module()
        head.cls = torch.nn.Conv2d(3, 6, 4, stride=4)
        head.embed = san.SANEmbedding(classes, 6, generator=generator)
        other = torch.nn.Module()
        other.last_layer = san.SANConv2d(3, 1, 4, stride=4, bias=False, generator=generator)
        for p in head.cls.parameters():
            torch.nn.init.normal_(p, std=0.1, generator=generator)
        self.discriminators = torch.nn.ModuleDict({"a": head, "b": other})
        self.passes = 0

    def forward(self, img, c, draws, batches=1):
        self.passes += 1
        head, other = self.discriminators["a"], self.discriminators["b"]
        h, row = head.cls(img), head.embed(c)
        conditional = san.SANLogits(
            torch.einsum("nchw,nc->nhw", h, row.fun), torch.einsum("nchw,nc->nhw", h.detach(), row.dir)
        )
        return {
            "a": san.SANLogits(*(x.flatten(1) for x in conditional)),
            "b": san.SANLogits(*(x.flatten(1) for x in other.last_layer(img))),
        }

    def normalize_(self):
        san.normalize_(self)

    def trainable_parameters(self):
        return dict(self.named_parameters())


def make_state() -> TrainState:
    torch.manual_seed(0)
    G = build_stem(
        "stylegan3-t",
        16,
        2,
        syn_layers=4,
        cbase=128,
        cmax=4,
        z_dim=8,
        w_dim=16,
        num_embeddings=2,
        embed_dim=8,
        margin_size=2,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in G.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5 + (1 if p.ndim == 1 else 0))
    return TrainState.create(G, TinyDiscriminator(2), OptimConfig(), pl_interval=4)


def batch(seed: int, n: int = 4) -> tuple[MicroBatch, RealMicroBatch]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    real = torch.rand(n, 3, 16, 16, generator=generator) * 2 - 1
    return MicroBatch(torch.randn(n, 8, generator=generator), labels, None, range(n)), RealMicroBatch(
        real, labels, None
    )


def run_steps(cfg: LossConfig, state: TrainState) -> None:
    for seed in range(2):
        fake, real = batch(seed)
        steps.g_step(state, [fake], cfg, 0.0, None, [real])
        steps.d_step(state, [fake], [real], cfg, 0.0)
        state.progress.nimg += 4


@pytest.mark.parametrize("is_san", [True, False])
@pytest.mark.parametrize("d_loss", sorted(san.DISCRIMINATOR_LOSSES))
def test_steps_take_every_loss(d_loss, is_san):
    state = make_state()
    before = {k: v.clone() for k, v in state.D.state_dict().items()}
    run_steps(LossConfig(d_loss=d_loss, g_loss="ns", san=is_san), state)
    after = state.D.state_dict()
    assert all(torch.isfinite(v).all() for v in after.values())
    still = {k for k in before if torch.equal(before[k], after[k])}
    assert still <= {"discriminators.a.cls.bias"}, (
        "everything in the discriminator is trained"
    )  # that one cancels in losses of differences
    norms = torch.cat(
        [
            m.weight.detach().flatten(1).norm(dim=1)
            for m in state.D.modules()
            if hasattr(m, "normalize_") and hasattr(m, "scale")
        ]
    )
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6) == is_san, (
        "directions return to the unit sphere in a SAN alone"
    )


def test_plain_gan_has_the_gradients_of_ordinary_layers():
    """san=False: autograd through scale * normalised weight, as if no SAN layer were there."""
    D = TinyDiscriminator(2)
    _, real = batch(3)
    logits = D(real.images, real.labels, None)
    total = losses.discriminator(logits, True, "bce", scale=1.0, san=False)
    assert float(total.dir) == 0
    layer = D.discriminators["b"].last_layer
    ours = torch.autograd.grad(total.fun, [layer.weight, layer.scale])
    direction = layer.weight / layer.weight.norm()
    logit = layer.scale.view(1, -1, 1, 1) * torch.nn.functional.conv2d(real.images, direction, stride=4)
    theirs = torch.autograd.grad(torch.nn.functional.softplus(-logit).mean(), [layer.weight, layer.scale])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_relativistic_generator_reads_real_images_only_where_they_matter():
    for g_loss, passes in (("logit", 1), ("ns", 2)):
        state = make_state()
        fake, real = batch(0)
        steps.g_step(state, [fake], LossConfig(d_loss="relativistic", g_loss=g_loss), 0.0, None, [real])
        assert state.D.passes == passes
    logits = {"x": san.SANLogits(torch.randn(4, 3), torch.randn(4, 3))}
    reals = {"x": san.SANLogits(torch.randn(4, 3), torch.randn(4, 3))}
    found = losses.generator_adversarial(logits, "ns", 1.0, reals)
    torch.testing.assert_close(
        found, torch.nn.functional.softplus(-(logits["x"].fun - reals["x"].fun)).mean()
    )


def test_diagnostics_once_per_tick():
    collector = training_stats.Collector(keep_previous=False)
    state = make_state()
    run_steps(LossConfig(), state)  # the second step is within the tick
    collector.update()
    names = [n for n in collector.names() if n.startswith("Diagnostics/direction") and collector.num(n)]
    assert names == ["Diagnostics/direction", "Diagnostics/direction/a", "Diagnostics/direction/b"]
    assert collector.num("Diagnostics/direction/a") == 1
    assert -1 <= collector.mean("Diagnostics/direction") <= 1
    assert not any(module._forward_hooks for module in state.D.modules()), "no hook stays"
    run_steps(LossConfig(diagnostics=False), make_state())
    collector.update()
    assert collector.num("Diagnostics/direction") == 0


def test_diagnostics_change_nothing():
    with_, without = make_state(), make_state()
    run_steps(LossConfig(), with_)
    run_steps(LossConfig(diagnostics=False), without)
    for (name, a), b in zip(with_.D.state_dict().items(), without.D.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss.d_loss": "hing"}, "--d-loss=hing.*choose one of bce, hinge"),
        ({"loss.g_loss": "d**2"}, r"--g-loss=d\*\*2.*decreases at d = -15"),
        ({"loss.g_loss": "saturating"}, "--g-loss=saturating.*unknown"),
    ],
)
def test_bad_losses_are_refused_before_anything_starts(changes, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig().override(changes).validate()
