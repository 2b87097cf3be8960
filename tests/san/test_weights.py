# SPDX-License-Identifier: Apache-2.0
"""Weights that a norm, a class of its own, a narrow type or a row of zeros makes, and their way through
states.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import san

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*deprecated:FutureWarning")
X = torch.linspace(-2, 2, 32).view(4, 8)


def mlp(last=None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), last or nn.Linear(8, 1))


def reinitialised(norm):
    """A norm whose u and v belong to weights that have been drawn again since."""

    def make(layer):
        layer = norm(layer)
        with torch.no_grad():
            next(p for name, p in layer.named_parameters() if "orig" in name).normal_()
        return layer

    return make


NORMS = {
    "older, fresh": spectral_norm,
    "older, weights drawn again": reinitialised(spectral_norm),
    "newer, fresh": parametrizations.spectral_norm,
    "newer, weights drawn again": reinitialised(parametrizations.spectral_norm),
}
LAYERS = {
    "linear": lambda: nn.Linear(64, 1),
    "linear, three": lambda: nn.Linear(64, 3),
    "conv": lambda: nn.Conv2d(4, 1, 4),
    "embedding": lambda: nn.Embedding(5, 64),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_spectral_norm_is_one_from_the_start(norm, layer, seed):
    """As the original becomes by the iterations of its training passes, sign included."""
    torch.manual_seed(seed)
    original = NORMS[norm](LAYERS[layer]())
    shape = {"conv": (2, 4, 4, 4)}.get(layer, (2, 64))
    x = torch.arange(2) if layer == "embedding" else torch.randn(shape)
    plain = original
    for _ in range(200 if layer in ("embedding", "linear, three") else 2):
        before = plain(x)
    torch.manual_seed(seed)
    converted = san.convert(NORMS[norm](LAYERS[layer]()), "")
    torch.testing.assert_close(converted(x).fun, before, rtol=1e-3, atol=1e-4)
    weight = converted.weight.detach() * converted.scale.view(-1, *(1,) * (converted.weight.ndim - 1))
    assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, abs=1e-4)
    assert not isinstance(converted.scale, nn.Parameter), "held, as the norm is"


def test_in_eval_mode_the_function_is_kept_and_a_norm_that_was_not_found_is_said():
    torch.manual_seed(0)
    original = mlp(spectral_norm(nn.Linear(8, 1))).eval()
    before = original(X)
    with pytest.warns(UserWarning, match=r"convert in training mode, D.train\(\)"):
        converted = san.convert(original, example=X)
    torch.testing.assert_close(converted(X).fun, before)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_trained_norm_is_kept_in_eval_mode_without_a_word():
    original = mlp(spectral_norm(nn.Linear(8, 1)))
    original(X)
    before = original.eval()(X)
    torch.testing.assert_close(san.convert(original)(X).fun, before)


def test_states_of_fresh_spectral_norm_load_with_norm_one_in_training_mode():
    for norm in (spectral_norm, reinitialised(parametrizations.spectral_norm)):
        D = san.convert(mlp(norm(nn.Linear(8, 1))))
        D.load_state_dict(mlp(norm(nn.Linear(8, 1))).state_dict())
        assert float(D[2].scale) == pytest.approx(1, abs=1e-4)


class SpectralLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / torch.linalg.matrix_norm(self.weight, 2), self.bias)


class EqualLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * self.in_features**-0.5, self.bias)


class CausalConv1d(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class StandardisedConv1d(nn.Conv1d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class ScaledEmbedding(nn.Embedding):
    def forward(self, labels):
        return super().forward(labels) * 2


class CalledLinear(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) + 1


def patched():
    layer = nn.Linear(8, 1)
    layer.forward = lambda x: x.sum(1, keepdim=True)
    return layer


def hooked(register):
    layer = nn.Linear(8, 1)
    getattr(layer, register)(lambda *args: None)
    return layer


def pruned():
    return prune.l1_unstructured(nn.Linear(8, 1), "weight", 0.5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: SpectralLinear(8, 1),
            "a SpectralLinear with its own forward method.*write it as torch.nn.Linear",
        ),
        (lambda: EqualLinear(8, 1), "a EqualLinear with its own forward method"),
        (
            lambda: CausalConv1d(8, 1, 3),
            "a CausalConv1d with its own forward method.*write it as torch.nn.Conv1d",
        ),
        (lambda: StandardisedConv1d(8, 1, 3), "a StandardisedConv1d with its own forward method"),
        (lambda: ScaledEmbedding(3, 8), "a ScaledEmbedding with its own forward method"),
        (lambda: CalledLinear(8, 1), "a CalledLinear with its own forward method"),
        (lambda: spectral_norm(EqualLinear(8, 1)), "a EqualLinear with its own forward method"),
        (lambda: parametrizations.weight_norm(EqualLinear(8, 1)), "with its own forward method"),
        (patched, "a Linear with its own forward method"),
        (pruned, "has hooks"),
        (lambda: hooked("register_forward_hook"), "has hooks"),
        (lambda: hooked("register_forward_pre_hook"), "has hooks"),
        (lambda: hooked("register_full_backward_hook"), "has hooks"),
        (lambda: nn.Embedding(3, 8, max_norm=1.0), "'head' has max_norm, which"),
        (lambda: nn.Embedding(3, 8, padding_idx=0, sparse=True), "'head' has padding_idx and sparse, which"),
        (
            lambda: nn.Bilinear(8, 8, 1),
            "a Bilinear: only Linear, Conv1d, Conv2d, Conv3d and Embedding layers",
        ),
        (lambda: nn.ConvTranspose1d(8, 1, 3), "a ConvTranspose1d: only Linear"),
        (lambda: nn.Linear(8, 1, dtype=torch.complex64), "has type torch.complex64"),
    ],
)
def test_layers_that_compute_something_else_are_refused(make, says):
    with pytest.raises(ValueError, match=says) as error:
        san.convert(nn.ModuleDict({"body": nn.Linear(8, 8), "head": make()}), "head")
    assert "\n" not in str(error.value)


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight) if self.training else weight


def test_a_weight_that_is_another_one_in_training_is_refused():
    layer = parametrize.register_parametrization(nn.Linear(8, 1), "weight", Noisy())
    with pytest.raises(ValueError, match="'2' cannot be converted: the conversion changes"):
        san.convert(mlp(layer))


class Named(nn.Linear):
    """Only its constructor is its own."""

    def __init__(self) -> None:
        super().__init__(8, 1)


def test_a_subclass_with_the_forward_of_its_base_is_converted():
    plain = mlp(Named())
    before = plain(X)
    torch.testing.assert_close(san.convert(plain)(X).fun, before)


def test_shared_parameters_are_refused():
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module[2].weight = module[0].weight
    with pytest.raises(ValueError, match="'2' shares a parameter with '0'"):
        san.convert(module)


def test_frozen_layers_stay_frozen_there_and_back():
    module = mlp()
    module[2].weight.requires_grad_(False)
    D = san.convert(module)
    assert [p.requires_grad for p in D[2].parameters()] == [False, False, True]
    assert [p.requires_grad for p in san.restore(D)[2].parameters()] == [False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(dtype):
    """A row of zeros, small and large ones: norms and directions are computed in float32."""
    torch.manual_seed(0)
    plain = mlp(nn.Linear(8, 4)).to(dtype)
    with torch.no_grad():
        plain[2].weight.mul_(torch.tensor([[1.0], [0.0], [1e-4], [300.0]], dtype=dtype))
    x = X.to(dtype)
    before = plain(x)
    D = san.convert(plain, example=x)
    logits = D(x)
    for part in logits:
        assert part.dtype == dtype
        torch.testing.assert_close(part, before, rtol=0.02, atol=0.02)
    (logits.fun.sum() + logits.dir.sum()).backward()
    san.normalize_(D)
    assert all(bool(torch.isfinite(p.grad).all()) for p in D.parameters())
    torch.testing.assert_close(D[2].weight.detach().float().norm(dim=1), torch.ones(4), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(60000.0, torch.float16), (torch.nan, torch.float32), (torch.inf, torch.float32)],
)
def test_weights_without_a_finite_norm_are_refused(value, dtype):
    layer = nn.Linear(8, 1).to(dtype)
    nn.init.constant_(layer.weight, value)
    with pytest.raises(ValueError, match=f"'2' cannot be converted: the weight, .* its rows in {dtype}"):
        san.convert(mlp(layer).to(dtype))


def test_heads_of_zeros_learn():
    """As many discriminators start: a unit direction of scale 0, the same function, and gradients that lead
    away.
    """
    torch.manual_seed(0)
    plain = mlp()
    nn.init.zeros_(plain[2].weight)
    D = san.convert(plain, example=X)
    assert float(D[2].scale.detach()) == 0 and float(D[2].weight.detach().norm()) == pytest.approx(1)
    optimizer = torch.optim.SGD(D.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        san.discriminator_objective(D(X + 1), D(X - 1)).backward()
        optimizer.step()
        san.normalize_(D)
    assert float((D(X + 1).fun - D(X - 1).fun).detach().mean()) > 0.01
    assert float(san.restore(D)[2].weight.detach().norm()) > 0


def halved(layer):
    return parametrize.register_parametrization(layer, "weight", Halved())


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


WRITTEN = {
    "plain": lambda m: m,
    "weight_norm, older": weight_norm,
    "weight_norm, older, whole": lambda m: weight_norm(m, dim=None),
    "weight_norm, older, inputs": lambda m: weight_norm(m, dim=1),
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, whole": lambda m: parametrizations.weight_norm(m, dim=None),
}
REFUSED = {
    "spectral_norm, older": spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "another": halved,
}


def trained(norm) -> nn.Module:
    """A converted discriminator whose directions have moved, and whose scales are of both signs and zero."""
    torch.manual_seed(0)
    D = san.convert(mlp(norm(nn.Linear(8, 3))))
    with torch.no_grad():
        D[2].weight.add_(torch.randn(3, 8))
        D[2].scale.mul_(torch.tensor([-2.0, 0.0, 0.5]))
    return D


@pytest.mark.parametrize("norm", WRITTEN)
def test_a_converted_state_loads_into_the_original_without_strict(norm):
    D = trained(WRITTEN[norm])
    plain = mlp(WRITTEN[norm](nn.Linear(8, 3)))
    found = plain.load_state_dict(D.state_dict(), strict=False)
    assert not found.missing_keys and set(found.unexpected_keys) <= {"2.direction", "2.scale", "2.weight"}
    torch.testing.assert_close(plain(X), D(X).fun, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", REFUSED)
def test_a_converted_state_is_never_lost_in_an_original_that_cannot_express_it(norm):
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\."):
        mlp(REFUSED[norm](nn.Linear(8, 3))).load_state_dict(trained(REFUSED[norm]).state_dict(), strict=False)


@pytest.mark.parametrize("norm", [*WRITTEN, *REFUSED])
def test_a_converted_state_loads_into_any_converted_module(norm):
    D = trained((WRITTEN | REFUSED)[norm])
    state = D.state_dict()
    for other in (D, san.convert(mlp(nn.Linear(8, 3))), san.convert(mlp(weight_norm(nn.Linear(8, 3))))):
        other.load_state_dict(state)
        torch.testing.assert_close(other(X).fun, D(X).fun, rtol=1e-6, atol=1e-6)


def test_directions_under_their_parameters_name_load_as_well():
    """As named_parameters gives them, and as sharded checkpoints that lack `direction`."""
    D = trained(lambda m: m)
    san.normalize_(D)
    by_parameter = {name: p.detach().clone() for name, p in D.named_parameters()}
    effective = {k: v for k, v in D.state_dict().items() if not k.endswith("direction")}
    for state in (by_parameter, effective):
        other = trained(lambda m: m)
        other.load_state_dict(state)
        torch.testing.assert_close(other(X).fun, D(X).fun)


def test_averages_made_through_states():
    """In place in the tensors of state_dict, and as a new state."""
    D, average = trained(lambda m: m), san.convert(mlp(nn.Linear(8, 3)))
    for name, value in average.state_dict().items():
        value.copy_(D.state_dict()[name])
    assert torch.equal(average(X).fun, D(X).fun)
    average.load_state_dict({k: 0.5 * v + 0.5 * v for k, v in D.state_dict().items()})
    assert torch.equal(average(X).fun, D(X).fun)


def test_on_the_meta_device():
    source = mlp()
    with torch.device("meta"):
        modules = [mlp(), mlp()]
    modules = [san.convert(m) for m in modules]
    assert modules[0](torch.empty(2, 8, device="meta")).fun.shape == (2, 1)
    modules[0].to_empty(device="cpu").load_state_dict(source.state_dict())
    modules[1].load_state_dict(source.state_dict(), assign=True)
    for module in modules:
        torch.testing.assert_close(module(X).fun, source(X))
        assert all(p.requires_grad for p in module.parameters())
    with torch.device("meta"):
        for norm in (spectral_norm, parametrizations.spectral_norm, weight_norm):
            assert san.convert(norm(nn.Linear(8, 2))).scale.is_meta
