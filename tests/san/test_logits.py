# SPDX-License-Identifier: Apache-2.0
"""What follows a converted layer, and what leaves the module: linear functions alone, SANLogits wherever they
are.
"""

import collections
import dataclasses
import types
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import san
from san import logits

X = torch.linspace(-2, 2, 32).view(4, 8)


class Ending(nn.Module):
    """A layer of three outputs and what follows it."""

    def __init__(self, after) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.after, self.scores = nn.Linear(8, 3), after, nn.Linear(8, 3)

    def forward(self, x):
        return self.after(self.head(x))


def written(y):
    plain = torch.zeros(4, 3)
    plain[:] = y
    return plain


def added(y):
    plain = torch.zeros(4, 3)
    plain += y
    return plain


NOT_LINEAR = {
    **{f.__name__: f for f in (F.elu, F.gelu, F.silu, F.relu, F.hardtanh, F.mish, F.softsign, F.selu)},
    **{f.__name__: f for f in (torch.tanh, torch.sigmoid, torch.sin, torch.exp, torch.square, torch.abs)},
    **{f.__name__: f for f in (F.normalize, F.softplus, F.celu, torch.erf, torch.relu_, torch.sign)},
    "x*x": lambda y: y * y,
    "x**2": lambda y: y**2,
    "x @ x": lambda y: y @ y.t(),
    "einsum": lambda y: torch.einsum("ni,mi->nm", y, y),
    "1/x": lambda y: 1 / y,
    "x / mean": lambda y: y / y.mean(),
    "modulo": lambda y: y % 1,
    "floor division": lambda y: y // 2,
    "rounding division": lambda y: torch.div(y, 2, rounding_mode="floor"),
    "to integers": lambda y: y.to(torch.int64),
    "logsumexp": lambda y: torch.logsumexp(y, 1),
    "std": lambda y: y.std(0),
    "norm": lambda y: y.norm(dim=1),
    "max": lambda y: y.max(1).values,
    "median": lambda y: y.median(0)[0],
    "topk": lambda y: y.topk(1, 0)[0],
    "sort": lambda y: y.sort(1)[0],
    "clamp": lambda y: y.clamp(-100, 100),
    "minimum": lambda y: torch.minimum(y, torch.ones(3)),
    "softmax": lambda y: y.softmax(1),
    "dropout": lambda y: F.dropout(y, 0.5),
    "dropout in eval": lambda y: F.dropout(y, 0.5, training=False),
    "BatchNorm": nn.BatchNorm1d(3),
    "LayerNorm": nn.LayerNorm(3),
    "PReLU": nn.PReLU(),
    "GRU": nn.GRU(3, 3),
    "comparison": lambda y: y * (y > 0),
    "equality": lambda y: y * (y == 0),
    "branch on values": lambda y: y if y.mean() else -y,
    "cumprod": lambda y: y.cumprod(1),
    "max pooling": lambda y: F.max_pool1d(y, 2),
    "into a plain tensor": written,
    "added into a plain tensor": added,
}


@pytest.mark.parametrize("case", NOT_LINEAR)
def test_functions_that_are_not_linear_are_refused_in_one_line(case):
    with pytest.raises(ValueError, match=r"converted layer 'head'") as error:
        san.convert(Ending(NOT_LINEAR[case]), "head").eval()(X)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


H = torch.linspace(-1, 1, 12).view(4, 3)
PLAIN = nn.Linear(3, 2)
KEPT = {
    "view": lambda y: y.view(-1, 1).squeeze(1),
    "reshape, transpose": lambda y: y.reshape(2, 2, 3).transpose(0, 1).flatten(1),
    "T": lambda y: y.T,
    "mean, sum": lambda y: y.mean(1) + y.sum(dim=1),
    "another linear layer": PLAIN,
    "inner product": lambda y: (y * H).sum(1),
    "inner product, reversed": lambda y: torch.einsum("ni,ni->n", H, y),
    "matmul": lambda y: H @ y.T - 1,
    "arithmetic": lambda y: -(1 - y * 2 + y) / 3,
    "concatenation": lambda y: torch.cat([y, y.new_zeros(4, 1), torch.zeros_like(y)], dim=1),
    "parts": lambda y: torch.stack([part for part in y.chunk(3, 1)] + list(y.split(1, dim=1))),
    "items": lambda y: torch.stack([row for row in y]),
    "indices": lambda y: y[:, [2, 0]],
    "where, masked_fill": lambda y: torch.where(H > 0, y, 0.0) + y.masked_fill(H > 0, 3.0),
    "gather": lambda y: y.gather(1, torch.tensor([[0], [1], [2], [0]])),
    "types": lambda y: y.double().to(torch.float32).contiguous().clone(),
    "pooling": lambda y: F.avg_pool1d(F.pad(y[None], (1, 1)), 2),
    "interpolation": lambda y: F.interpolate(y[None], scale_factor=2.0, mode="linear"),
    "a value that is only shown": lambda y: (
        f"{y.mean():.2f} {y.shape} {y.mean().item()}",
        y.isnan().any(),
        y,
    )[2],
}


@pytest.mark.parametrize("case", KEPT)
def test_linear_functions_go_to_both_parts(case):
    plain = Ending(KEPT[case])
    before = plain(X)
    converted = san.convert(plain, "head", example=X)
    after = converted(X)
    assert isinstance(after, san.SANLogits)
    for part in after:
        torch.testing.assert_close(part, before, rtol=1e-5, atol=1e-5)
    for part, untouched in ((after.fun, converted.head.weight), (after.dir, converted.head.scale)):
        assert torch.autograd.grad(part.sum(), untouched, allow_unused=True) == (None,)


def test_in_place_on_logits():
    def after(y):
        y += 1
        y[:, 0] = 5.0
        y /= 2
        y[:, 1] *= 3
        return y.mul_(2).add_(1)

    before = Ending(after)(X)
    for part in san.convert(Ending(after), "head")(X):
        torch.testing.assert_close(part, before)


@pytest.mark.parametrize("function", ["tanh", "relu", "abs", "square", "dropout", "normalize"])
def test_the_first_pass_measures_linearity(function, monkeypatch):
    """Also of a function that the list takes for linear."""
    monkeypatch.setitem(logits.LINEAR, function, "any")
    call = getattr(F, function, None) or getattr(torch, function)
    converted = san.convert(Ending(call), "head")
    with torch.no_grad():
        converted.head.bias.fill_(3.0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"are not linear in its output|random function"):
            converted(X)


def test_the_first_pass_alone_is_probed():
    converted = san.convert(Ending(lambda y: seen.append(len(y.probes)) or y), "head")
    seen: list[int] = []
    for _ in range(3):
        converted(X)
    converted(X * torch.nan)
    assert seen == [2, 0, 0, 0]


class Pair(NamedTuple):
    score: object
    rest: int = 3


@dataclasses.dataclass(frozen=True)
class Frozen:
    score: object
    rest: int = 3


@dataclasses.dataclass(slots=True)
class Slotted:
    score: object


class Own:
    def __init__(self, score) -> None:
        self.score = score


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda y: y, lambda out: out),
        (lambda y: [y], lambda out: out[0]),
        (lambda y: (None, (y,)), lambda out: out[1][0]),
        (Pair, lambda out: out.score),
        (Frozen, lambda out: out.score),
        (Slotted, lambda out: out.score),
        (Own, lambda out: out.score),
        (lambda y: types.SimpleNamespace(score=[y]), lambda out: out.score[0]),
        (lambda y: {"score": y}, lambda out: out["score"]),
        (lambda y: collections.OrderedDict(score={"a": y}), lambda out: out["score"]["a"]),
        (lambda y: collections.defaultdict(list, score=y), lambda out: out["score"]),
    ],
)
def test_logits_leave_containers_as_sanlogits(wrap, unwrap):
    before = Ending(wrap)(X)
    after = san.convert(Ending(wrap), "head", example=X)(X)
    assert type(after) is type(before) or isinstance(before, torch.Tensor)
    assert type(unwrap(after)) is san.SANLogits
    torch.testing.assert_close(unwrap(after).fun, unwrap(before))


@pytest.mark.parametrize("wrap", [lambda y: collections.deque([y]), lambda y: y.tolist(), lambda y: None])
def test_logits_that_do_not_leave_are_refused(wrap):
    with pytest.raises(ValueError, match=r"the output, a (deque|list|NoneType), contains no logits"):
        san.convert(Ending(wrap), "head")(X)


def test_a_layer_that_makes_no_logits_is_refused():
    with pytest.raises(ValueError, match="the output, a Tensor, contains no logits of the converted layers"):
        san.convert(Ending(nn.Identity()), "scores")(X)


class Period(nn.Module):
    """One of HiFi-GAN's discriminators: the last entry of its feature maps is what its logits are a view
    of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(1, 4, 5, 2, 2), nn.Conv1d(4, 4, 5, 2, 2)])
        self.conv_post = nn.Conv1d(4, 1, 3, 1, 1)

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        x = self.conv_post(x)
        maps.append(x)
        return torch.flatten(x, 1, -1), maps


class Periods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList([Period(), Period()])

    def forward(self, x):
        pairs = [d(x) for d in self.discriminators]
        return [p[0] for p in pairs], [p[1] for p in pairs]


def test_feature_maps_stay_tensors_and_logits_do_not():
    D = san.convert(Periods())
    real, fake = torch.randn(2, 1, 64), torch.randn(2, 1, 64, requires_grad=True)
    (r, r_maps), (f, f_maps) = D(real), D(fake)
    assert all(isinstance(x, san.SANLogits) for x in [*r, *f])
    assert all(isinstance(x, torch.Tensor) for maps in [*r_maps, *f_maps] for x in maps)
    pairs = [(a, b) for x, y in zip(r_maps, f_maps, strict=True) for a, b in zip(x, y, strict=True)]
    matching = sum((a - b).abs().mean() for a, b in pairs)
    (grad,) = torch.autograd.grad(matching, fake, retain_graph=True)
    assert float(grad.abs().sum()) > 0
    loss = san.discriminator_objective(r, f, "ls01") + san.generator_terms(f, "ls01")
    loss.backward()
    assert all(p.grad is not None for p in D.parameters())
    with pytest.raises(ValueError, match="without feature maps"):
        san.discriminator_objective(D(real), D(fake))
    with pytest.raises(ValueError, match="without feature maps"):
        san.generator_terms(D(fake))


class Melgan(nn.Module):
    """Feature maps and logits in one list, the logits last: `scale[-1]` in its training code."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.post = nn.Conv1d(1, 4, 3), nn.Conv1d(4, 1, 3)

    def forward(self, x):
        h = F.leaky_relu(self.body(x))
        return [h, self.post(h)]


def test_logits_that_end_a_list_of_feature_maps_are_logits():
    maps, last = san.convert(Melgan())(torch.randn(2, 1, 9))
    assert isinstance(maps, torch.Tensor) and isinstance(last, san.SANLogits)


def test_parts_methods_and_forward_called_directly():
    D = san.convert(Periods())
    x = torch.randn(2, 1, 64)
    one = D.discriminators[0]
    for output in (one(x)[0], one.forward(x)[0], D(x)[0][0], D.forward(x)[0][0]):
        assert type(output) is san.SANLogits
        assert torch.equal(output.fun, D(x)[0][0].fun)
    losses = [san.discriminator_objective(o(x)[0], o(x)[0], "hinge") for o in (one, one.forward)]
    assert torch.equal(*losses)


def test_a_layer_called_directly_makes_logits_for_the_objectives():
    D = san.convert(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)))
    inner, outer = D[2](D[1](D[0](X))), D(X)
    assert torch.equal(inner.fun, outer.fun) and torch.equal(inner.dir, outer.dir)
    assert torch.equal(san.discriminator_objective(inner, inner), san.discriminator_objective(outer, outer))
    assert torch.equal(san.generator_terms(inner), san.generator_terms(outer))


class ReadsWeights(nn.Module):
    """A projection discriminator that reads its layers' weights, or calls the layers."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.linear, self.embed = nn.Linear(8, 5), nn.Linear(5, 1), nn.Embedding(3, 5)
        self.reads = reads

    def forward(self, x, y):
        h = torch.relu(self.body(x)).to(self.linear.weight.dtype).view(-1, self.linear.in_features)
        if not self.reads:
            return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)
        rows = F.embedding(y, self.embed.weight)
        return F.linear(h, self.linear.weight, self.linear.bias) + (rows * h).sum(1, keepdim=True)


def test_weights_read_by_the_module_are_effective_and_of_two_parts():
    y = torch.tensor([0, 2, 1, 2])
    before = ReadsWeights(True)(X, y)
    models = [san.convert(ReadsWeights(reads), ["linear", "embed"]) for reads in (True, False)]
    ours, theirs = (model(X, y) for model in models)
    torch.testing.assert_close(ours.fun, before)
    for part in ("fun", "dir"):
        grads = [
            torch.autograd.grad(getattr(out, part).square().sum(), list(m.parameters()), allow_unused=True)
            for out, m in zip((ours, theirs), models, strict=True)
        ]
        for a, b in zip(*grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    assert isinstance(models[0].linear.weight, nn.Parameter), "outside of a pass it is the direction"


class NormalisesWeight(ReadsWeights):
    def forward(self, x, y):
        return F.linear(torch.relu(self.body(x)), F.normalize(self.linear.weight, dim=1))


def test_a_read_weight_is_not_normalised_in_silence():
    with pytest.raises(ValueError, match="'normalize' is applied after the converted layer 'linear'"):
        san.convert(NormalisesWeight(True), "linear")(X, None)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 5), nn.Linear(5, 1)
        self.tail = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))

    def score(self, h):
        return self.head(h).view(-1)

    def forward(self, x):
        h = torch.relu(self.body(x))
        score, tail = (checkpoint(f, h, use_reentrant=False) for f in (self.score, self.tail))
        return score + tail.view(-1)


def test_activation_checkpoints():
    D = san.convert(Checkpointed(), ["head", "tail.2"])
    out = D(X)
    (out.fun.sum() + out.dir.sum()).backward()
    assert all(p.grad is not None for p in D.parameters())


def test_second_derivatives_reach_the_input():
    x = X.clone().requires_grad_()
    D = san.convert(nn.Sequential(nn.Linear(8, 4), nn.Softplus(), nn.Linear(4, 1)))
    (grad,) = torch.autograd.grad(D(x).fun.sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert float(D[0].weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_and_in_eval_mode(mode):
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    with mode():
        before, after = plain(X), san.convert(plain)(X)
    assert type(after) is san.SANLogits
    torch.testing.assert_close(after.fun, before)
