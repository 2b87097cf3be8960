# SPDX-License-Identifier: Apache-2.0
"""SONA: the formulas, what each term trains, and that alignment can be learnt."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import san
from san import diagnostics, sona

N, I, C = 6, 5, 3
LABELS = torch.tensor([0, 1, 2, 1, 0, 0])


def make(shape: tuple[int, ...] = (), seed: int = 0) -> tuple[san.SONAHead, torch.Tensor]:
    """A head with a bias and a scale other than 1, and its input."""
    generator = torch.Generator().manual_seed(seed)
    head = san.SONAHead(I, C, generator=generator)
    nn.init.normal_(head.omega.bias, generator=generator)
    nn.init.constant_(head.omega.scale, 1.5)
    return head, torch.randn(N, I, *shape, generator=generator).requires_grad_()


def formula(head: san.SONAHead, h: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(f_N, f_A) as the paper writes them, sample by sample; bias and scale belong to h."""
    omega = head.omega.weight[0] / head.omega.weight[0].norm()
    natural, aligned = [], []
    for x, y in zip(h, labels, strict=True):
        features = head.omega.scale * (x + head.omega.bias)
        direction = head.embed.weight[y] / head.embed.weight[y].norm()
        natural.append(omega @ features)
        aligned.append(direction @ (features - (omega @ features) * omega))
    return torch.stack(natural), torch.stack(aligned)


def test_the_head_computes_naturalness_and_alignment():
    head, x = make()
    out = head(x, LABELS)
    natural, aligned = formula(head, x, LABELS)
    torch.testing.assert_close(out.fun, natural)
    torch.testing.assert_close(out.dir, natural)
    torch.testing.assert_close(out.align, aligned)
    for k, label in enumerate(LABELS):
        torch.testing.assert_close(out.crossed[:, k], formula(head, x, label.expand(N))[1])
    moved = head(x + 3 * head.omega.weight, LABELS)  # along omega: a change of naturalness alone
    torch.testing.assert_close(moved.align, out.align)
    torch.testing.assert_close(moved.fun, out.fun + 4.5)


def test_groups_and_maps():
    head, x = make((2, 4))
    whole, pairs = head(x, LABELS), head(x, LABELS, group=2)
    assert whole.fun.shape == whole.dir.shape == (N, 2, 4) and whole.crossed.shape == (N, N)
    torch.testing.assert_close(whole.align, head(x.mean((2, 3)), LABELS).align)
    for j in range(N):
        first = j // 2 * 2
        torch.testing.assert_close(pairs.crossed[j], whole.crossed[j, first : first + 2])
    assert head(x, LABELS, group=4).crossed.shape == (N, N), "4 does not divide the batch"


def test_each_output_trains_its_own_parameters():
    head, x = make()
    out = head(x, LABELS)
    names = ("omega", "embed", "bias", "scale", "x")
    tensors = (head.omega.weight, head.embed.weight, head.omega.bias, head.omega.scale, x)
    trained = {
        "fun": {"bias", "scale", "x"},
        "dir": {"omega"},
        "align": {"embed", "bias", "scale", "x"},
        "crossed": {"embed", "bias", "scale", "x"},
    }
    for part, expected in trained.items():
        grads = torch.autograd.grad(
            getattr(out, part).square().sum(), tensors, allow_unused=True, retain_graph=True
        )
        assert {n for n, g in zip(names, grads, strict=True) if g is not None and g.any()} == expected, part


def test_directions_return_to_the_unit_sphere():
    head, _ = make()
    with torch.no_grad():
        head.omega.weight.mul_(3)
        head.embed.weight.mul_(0.2)
    san.normalize_(head)
    for weight in (head.omega.weight, head.embed.weight):
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))


def logits(seed: int, group: int = N) -> san.SONALogits:
    """Free logits with the diagonal of `crossed` where it belongs."""
    generator = torch.Generator().manual_seed(seed)
    fun, other = torch.randn(2, N, 4, generator=generator).unbind()
    crossed = torch.randn(N, group, generator=generator)
    align = crossed[torch.arange(N), torch.arange(N) % group]
    return san.SONALogits(*(x.clone().requires_grad_() for x in (fun, other, align, crossed)))


@pytest.mark.parametrize("group", [N, 3])
def test_the_terms_are_those_of_the_paper(group):
    real, fake = logits(0, group), logits(1, group)
    s = torch.tensor([0.6, 0.48, 0.64])
    found = san.sona_discriminator_terms(real, fake, s)
    log = lambda t, s: torch.log(torch.sigmoid(s * t)) / s  # noqa: E731
    torch.testing.assert_close(found.fun, -(log(real.fun, s[0]).mean() + log(-fake.fun, s[0]).mean()))
    torch.testing.assert_close(found.dir, fake.dir.mean() - real.dir.mean())
    f_real, f_fake = (x.fun.mean(1) + x.align for x in (real, fake))
    torch.testing.assert_close(found.conditional, -log(f_real - f_fake, s[1]).mean())
    gaps = [
        f_real[k] - (real.fun[j].mean() + real.crossed[j, k % group])
        for k in range(N)
        for j in range(k // group * group, k // group * group + group)
        if j != k
    ]
    torch.testing.assert_close(found.matching, -log(torch.stack(gaps), s[2]).mean())
    torch.testing.assert_close(found.total(), sum(found))


def test_the_comparisons_do_not_train_the_naturalness():
    real, fake = logits(0), logits(1)
    found = san.sona_discriminator_terms(real, fake, san.SONAWeights()())
    for term in (found.conditional, found.matching):
        grads = torch.autograd.grad(
            term, (real.fun, real.dir, fake.fun, fake.dir), allow_unused=True, retain_graph=True
        )
        assert grads == (None,) * 4


def test_the_generators_terms_exchange_the_roles():
    real, fake = logits(0), logits(1)
    found = san.sona_generator_terms(fake, real, "ns")
    torch.testing.assert_close(found.san, -F.logsigmoid(fake.fun).mean())
    gap = fake.fun.mean(1) + fake.align - real.fun.mean(1) - real.align
    torch.testing.assert_close(found.conditional, -F.logsigmoid(gap).mean())
    grads = torch.autograd.grad(found.conditional, (fake.align, fake.fun, real.align), allow_unused=True)
    torch.testing.assert_close(grads[0], -(1 - torch.sigmoid(gap)).detach() / N)
    assert grads[1:] == (None, None)


def test_the_weights_stay_on_the_sphere_and_compete():
    weights = san.SONAWeights()
    torch.testing.assert_close(weights(), torch.full((3,), 3**-0.5))
    optimizer = torch.optim.Adam(weights.parameters(), 0.1)
    real, fake = logits(0), logits(1)
    real = real._replace(crossed=real.crossed - 20)  # a matching comparison that is won
    for _ in range(20):
        optimizer.zero_grad()
        san.sona_discriminator_terms(real, fake, weights()).total().backward()
        optimizer.step()
        assert (weights() > 0).all()
        torch.testing.assert_close(weights().square().sum(), torch.tensor(1.0))
    assert weights()[2] < weights()[1], "a term that is won gives its share to the others"
    t, s = torch.linspace(-4, 4, 9)[:, None], torch.linspace(0.05, 1, 20)
    assert ((F.softplus(-s * t) / s).diff() < 0).all(), "every term decreases with its s"


def test_any_loss_of_the_naturalness_but_pairs():
    real, fake, s = logits(0), logits(1), torch.full((3,), 3**-0.5)
    hinge = san.sona_discriminator_terms(real, fake, s, "hinge").fun
    expected = (F.relu(1 - s[0] * real.fun).mean() + F.relu(1 + s[0] * fake.fun).mean()) / s[0]
    torch.testing.assert_close(hinge, expected)
    with pytest.raises(ValueError, match="'relativistic' compares pairs: use another"):
        san.sona_discriminator_terms(real, fake, s, "relativistic")
    with pytest.raises(ValueError, match="at least 2 real samples per group"):
        san.sona_discriminator_terms(logits(0, 1), logits(1, 1), s)
    with pytest.raises(ValueError, match=r"SONALogits: use sona_discriminator_terms"):
        san.discriminator_objective(real, fake)


def test_conditions_can_be_vectors():
    generator = torch.Generator().manual_seed(0)
    head, x = san.SONAHead(I, bias=False, generator=generator), torch.randn(N, I, generator=generator)
    vectors = torch.randn(N, I, generator=generator)
    torch.testing.assert_close(head(x, vectors).align, head(x, 7 * vectors).align)
    assert {name for name, _ in head.named_parameters()} == {"omega.weight", "omega.scale"}
    with pytest.raises(ValueError, match=r"give vectors \[N, I\]"):
        head(x, LABELS)
    with pytest.raises(ValueError, match="give labels of type int64"):
        san.SONAHead(I, C)(x, vectors)


def test_several_heads_are_one():
    (one, x), (two, _) = make((2, 2)), make(seed=1)
    parts = [one(x, LABELS), two(x.mean((2, 3)), LABELS)]
    joined = sona.concatenated(parts)
    assert joined.fun.shape == joined.dir.shape == (N, 5)
    torch.testing.assert_close(joined.align, 0.8 * parts[0].align + 0.2 * parts[1].align)
    torch.testing.assert_close(joined.crossed, 0.8 * parts[0].crossed + 0.2 * parts[1].crossed)


def test_training_finds_the_direction_and_the_classes():
    """Features whose class and whose origin lie along different axes: omega finds the origin, and samples
    are aligned with their own class.
    """
    generator = torch.Generator().manual_seed(0)
    head, weights = san.SONAHead(I, C, bias=False, generator=generator), san.SONAWeights()
    optimizer = torch.optim.Adam([*head.parameters(), *weights.parameters()], 0.05)
    labels = torch.arange(C).repeat(20)
    with diagnostics.Recorder(head) as recorder:
        for _ in range(60):
            real = 0.3 * torch.randn(len(labels), I, generator=generator)
            fake = real.flip(0).clone()
            real += 2 * F.one_hot(labels, I) + torch.eye(I)[I - 1]
            with recorder.side("real"):
                out = head(real, labels)
            with recorder.side("fake"):
                other = head(fake, labels)
            optimizer.zero_grad()
            san.sona_discriminator_terms(out, other, weights()).total().backward()
            optimizer.step()
            san.normalize_(head)
    assert (out.crossed[:C, :C].argmax(1) == torch.arange(C)).all()
    assert recorder.report()["omega"].direction > 0.9


class Critic(nn.Module):
    """A conditional discriminator of points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2))
        self.head = san.SONAHead(16, C)

    def forward(self, x, y):
        return self.head(self.body(x), y)


def test_a_generator_learns_its_classes():
    """Each class finds its own Gaussian; all start at one point. The loop is that of the module's page."""
    torch.manual_seed(0)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    G, D, weights = nn.Embedding(C, 2), Critic(), san.SONAWeights()
    nn.init.zeros_(G.weight)
    d_opt = torch.optim.Adam([*D.parameters(), *weights.parameters()], 0.01, betas=(0.0, 0.9))
    g_opt = torch.optim.Adam(G.parameters(), 0.05, betas=(0.0, 0.9))
    y = torch.arange(C).repeat(8)
    for _ in range(120):
        real, fake = (x + 0.3 * torch.randn(len(y), 2) for x in (centres[y], G(y)))
        d_opt.zero_grad()
        san.sona_discriminator_terms(D(real, y), D(fake.detach(), y), weights()).total().backward()
        d_opt.step()
        san.normalize_(D)
        g_opt.zero_grad()
        san.sona_generator_terms(D(fake, y), D(real, y), "ns").total().backward()
        g_opt.step()
    assert (G.weight.detach() - centres).norm(dim=1).max() < 1.0  # 2 at the start


def test_distributed_data_parallel(tmp_path):
    """As the README has it: the weights are wrapped as well, and D is frozen in the generator's step."""
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, N, 2, generator=generator).unbind()
    torch.manual_seed(0)
    D, weights = Critic(), san.SONAWeights()
    alone = copy.deepcopy((D, weights))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = [nn.parallel.DistributedDataParallel(m) for m in (D, weights)]
        for critic, s in (wrapped, alone):
            for _ in range(2):  # the second step fails if a parameter of the first one got no gradient
                terms = san.sona_discriminator_terms(critic(real, LABELS), critic(fake, LABELS), s())
                terms.total().backward()
                critic.requires_grad_(False)
                x = fake.clone().requires_grad_()
                san.sona_generator_terms(critic(x, LABELS), critic(real, LABELS)).total().backward()
                assert x.grad.any()
                critic.requires_grad_(True)
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip((D, weights), alone, strict=True):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
