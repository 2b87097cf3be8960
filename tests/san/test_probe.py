# SPDX-License-Identifier: Apache-2.0
"""san.convert(..., example=): the same output before and after, or a refusal that leaves the module as it
was.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import san

X = torch.linspace(-2, 2, 32).view(4, 8)


class Body(nn.Module):
    """Dropout, batch statistics and bfloat16 in front of the logits, and a counter in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x, shift=0.0):
        self.passes += 1
        with torch.autocast("cpu", torch.bfloat16):
            h = F.dropout(self.norm(self.body(x)), 0.5, self.training)
            return self.head(h).float() + shift


@pytest.mark.parametrize("example", [X, (X,), (X, 1.0), [X, 2.0], {"x": X, "shift": 3.0}])
@pytest.mark.parametrize("training", [True, False])
def test_a_trial_leaves_no_trace(example, training):
    module = Body().train(training)
    state, rng = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    converted = san.convert(module, "head", example=example)
    assert torch.equal(rng, torch.get_rng_state())
    after = converted.state_dict()
    for name in state:
        if not name.startswith("head."):
            assert torch.equal(state[name], after[name]), name
    assert converted.training == training and all(p.grad is None for p in converted.parameters())
    assert isinstance(converted(X), san.SANLogits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("around", [False, True])
def test_rounding_is_no_difference(dtype, around):
    torch.manual_seed(1)
    for _ in range(10):
        module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1)).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            san.convert(module, example=torch.randn(16, 8).to(dtype))


class UsesMore(nn.Module):
    """Computes with its layer in a way that calling it does not show."""

    def __init__(self, how) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.how = nn.Linear(8, 3), nn.Linear(3, 1), how

    def forward(self, x):
        return self.how(self, torch.relu(self.body(x)))


def changing(self, h):
    """The step that training would make of the parameters is part of the output."""
    return self.head(h) + next(self.head.parameters()).sum()


def by_value(self, h):
    logits = self.head(h)
    return logits * (1.0 if isinstance(logits, torch.Tensor) else 2.0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (changing, "the conversion changes the output by up to"),
        (by_value, "the conversion changes the output by up to"),
        (lambda self, h: torch.tanh(self.head(h)), "'tanh' is applied after the converted layer 'head'"),
        (
            lambda self, h: self.body.weight.sum() + h,
            "the output, a Tensor, contains no logits of the converted layers",
        ),
        (
            lambda self, h: [self.head(h)] * (1 + isinstance(self.head, nn.Linear)),
            "2 tensors before, 1 after",
        ),
        (
            lambda self, h: self.head(h)[: 2 + isinstance(self.head, nn.Linear)],
            r"shape \(3, 1\) before, \(2, 1\) after",
        ),
    ],
)
def test_a_changed_output_is_refused_and_undone(how, says):
    module = UsesMore(how)
    kind, head, before = type(module), module.head, module(X)
    with pytest.raises(ValueError, match=says) as error:
        san.convert(module, "head", example=X)
    assert "\n" not in str(error.value)
    assert type(module) is kind and module.head is head
    for a, b in zip(*(x if isinstance(x, list) else [x] for x in (module(X), before)), strict=True):
        assert torch.equal(a, b)
    kept = san.convert(UsesMore(lambda self, h: self.head(h)), "head", example=X)
    assert isinstance(kept(X), san.SANLogits)


def test_an_output_that_differs_from_pass_to_pass_is_named():
    module, passes = UsesMore(lambda self, h: self.head(h) + len(passes)), []
    module.register_forward_pre_hook(lambda *args: passes.append(1))
    with pytest.raises(ValueError, match=r"also differs between passes: convert it in eval mode"):
        san.convert(module, "head", example=X)


def test_a_module_that_needs_more_of_its_layer_is_named():
    def reset(self, h):
        self.head.reset_parameters()
        return self.head(h)

    with pytest.raises(ValueError, match=r"UsesMore fails on the example after conversion: AttributeError"):
        san.convert(UsesMore(reset), "head", example=X)


def test_a_layer_without_part_in_the_output_is_refused():
    module = UsesMore(lambda self, h: self.head(h))
    module.spare = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="'spare' does not contribute to the output"):
        san.convert(module, ["head", "spare"], example=X)


def test_an_example_that_does_not_fit():
    with pytest.raises(ValueError, match=r"Body does not accept the example: RuntimeError: .*mat1") as error:
        san.convert(Body(), "head", example=torch.randn(4, 5))
    assert "\n" not in str(error.value)


def test_lazy_layers_need_an_example():
    make = lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))  # noqa: E731
    with pytest.raises(ValueError, match=r"'2' is a LazyLinear without a size: .* give an example"):
        san.convert(make())
    assert san.convert(make(), example=X)(X).fun.shape == (4, 1)
    module = make()
    module(X)
    assert san.convert(module)(X).fun.shape == (4, 1)


class Equalised(nn.Module):
    """A linear layer of a kind of its own, as StyleGAN2's."""

    def __init__(self, inputs, outputs) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return F.linear(x, self.weight * self.weight.shape[1] ** -0.5)


class OwnLast(nn.Module):
    """Only its first layer is torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 4), Equalised(4, 4), Equalised(4, 1)

    def forward(self, x):
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


class Reversed(nn.Module):
    """The last layer is registered first."""

    def __init__(self, outputs) -> None:
        super().__init__()
        self.out, self.first = nn.Linear(4, outputs), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(torch.relu(self.first(x)))


class ThinFirst(nn.Module):
    """A first convolution of one output, and a last layer of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv1d(1, 1, 3), nn.Linear(6, 10)

    def forward(self, x):
        return self.out(torch.relu(self.first(x.unsqueeze(1))).squeeze(1))


@pytest.mark.parametrize(
    ("make", "example", "says"),
    [
        (OwnLast, None, "'last', a Equalised, comes last and cannot be converted.*candidates: first"),
        (OwnLast, X, "'last', a Equalised, comes last and cannot be converted.*candidates: first"),
        (lambda: nn.Sequential(nn.Linear(8, 4), Equalised(4, 1)), None, "'1', a Equalised, comes last"),
        (
            lambda: Reversed(2),
            None,
            r"give an example input to trace the calls, san.convert\(D, example=images\)",
        ),
        (lambda: Reversed(2), X, r"Name them, as in san.convert\(D, 'out'\)"),
        (
            ThinFirst,
            X,
            "'relu' is applied after the converted layer 'first'.*; the layer called last is 'out'",
        ),
    ],
)
def test_what_is_suggested_comes_last(make, example, says):
    with pytest.raises(ValueError, match=says) as error:
        san.convert(make(), example=example)
    assert "\n" not in str(error.value) and "(D, 'first')" not in str(error.value)


def test_the_only_layer_of_one_output_is_found_wherever_it_is_registered():
    for example in (None, X):
        D = san.convert(Reversed(1), example=example)
        assert isinstance(D.out, san.layers._SANLayer) and type(D.first) is nn.Linear
