# SPDX-License-Identifier: Apache-2.0
"""san.convert: any discriminator's last layer, the same function, SAN's gradients, and back."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import san
from san.convert import ConvertedLayer


class Deep(nn.Module):
    """A discriminator with its last layer inside, and a reshape and a mean behind it."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.2))
        self.head = nn.Module()
        self.head.out = last

    def forward(self, x):
        return self.head.out(self.body(x)).flatten(2).mean(2).view(-1, 1).squeeze(1)


class Projection(nn.Module):
    """Logit = linear(h) + <embed(y), h> (Miyato & Koyama, ICLR 2018)."""

    def __init__(self, norm=lambda m: m) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh())
        self.linear, self.embed = norm(nn.Linear(7, 1)), norm(nn.Embedding(4, 7))

    def forward(self, x, y):
        h = self.body(x)
        return self.linear(h) + torch.sum(self.embed(y) * h, dim=1, keepdim=True)


class MultiScale(nn.Module):
    """Several branches, features and logits returned in nested lists."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch() for _ in range(3))

    def forward(self, x):
        outputs = [branch(x[..., ::step]) for step, branch in enumerate(self.branches, start=1)]
        return [o[0] for o in outputs], [o[1] for o in outputs]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pre, self.post = nn.Conv1d(2, 5, 3, padding=1), nn.Conv1d(5, 1, 3, padding=1)

    def forward(self, x):
        h = torch.tanh(self.pre(x))
        return h, torch.flatten(self.post(h), 1, -1)


class Patches(nn.Module):
    """The patch discriminator of image translators and VQGANs: strided convolutions with BatchNorm, a map of
    logits from a last Conv2d.
    """

    def __init__(self, norm=lambda m: m) -> None:
        super().__init__()
        layers = [norm(nn.Conv2d(3, 4, 4, stride=2, padding=1)), nn.LeakyReLU(0.2, True)]
        for inputs, outputs, stride in ((4, 8, 2), (8, 16, 1)):
            layers += [
                norm(nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False)),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2, True),
            ]
        self.main = nn.Sequential(*layers, norm(nn.Conv2d(16, 1, 4, stride=1, padding=1)))

    def forward(self, input):
        return self.main(input)


class Halved(nn.Module):
    """A parametrization that is neither of torch's norms."""

    def forward(self, weight):
        return weight / 2


def halved():
    layer = nn.Linear(5, 3)
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


class Named(nn.Module):
    """Two heads on the same features, told apart by name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.style, self.content = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 2, bias=False)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return {"style": self.style(h), "content": self.content(h)}


class SummedHeads(nn.Module):
    """Multi-scale heads in a container, whose logits are summed."""

    def __init__(self, heads: nn.ModuleList | nn.ModuleDict) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(5, 6), heads

    def forward(self, x):
        h = torch.relu(self.body(x))
        heads = self.heads.values() if isinstance(self.heads, nn.ModuleDict) else self.heads
        return sum(head(h * scale) for scale, head in enumerate(heads, start=1))


def shallow_and_deep(outputs: int = 1) -> nn.ModuleList:
    """Two heads of different depth."""
    deep = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, outputs))
    return nn.ModuleList([nn.Sequential(nn.Linear(6, outputs)), deep])


def sequential_mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2), nn.Flatten()))


CASES = {  # name -> (module, input shape, layers to name)
    "linear alone": (lambda: nn.Linear(5, 3), (4, 5), None),
    "sequential": (sequential_mlp, (4, 5), None),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 1, 3, padding=1, padding_mode="circular")
        ),
        (3, 2, 9),
        None,
    ),
    "conv2d deep": (
        lambda: Deep(nn.Conv2d(6, 1, 3, stride=2, padding=1, padding_mode="reflect")),
        (4, 3, 8, 8),
        None,
    ),
    "conv2d grouped, no bias": (
        lambda: nn.Sequential(nn.Conv2d(6, 4, 3, groups=2, dilation=2, bias=False)),
        (2, 6, 9, 9),
        None,
    ),
    "conv3d same": (lambda: nn.Sequential(nn.Conv3d(2, 1, 3, padding="same")), (2, 2, 4, 4, 4), None),
    "spectral_norm, older": (lambda: Deep(spectral_norm(nn.Conv2d(6, 1, 4))), (4, 3, 8, 8), None),
    "spectral_norm": (lambda: Deep(parametrizations.spectral_norm(nn.Conv2d(6, 1, 4))), (4, 3, 8, 8), None),
    "spectral_norm, linear": (
        lambda: nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(5, 3))),
        (4, 5),
        None,
    ),
    "weight_norm, older": (lambda: Deep(weight_norm(nn.Conv2d(6, 1, 4))), (4, 3, 8, 8), None),
    "weight_norm": (lambda: Deep(parametrizations.weight_norm(nn.Conv2d(6, 1, 4))), (4, 3, 8, 8), None),
    "weight_norm of three": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 3))),
        (4, 5),
        None,
    ),
    "multi-scale": (MultiScale, (2, 2, 12), None),
    "heads in a list": (
        lambda: SummedHeads(nn.ModuleList(nn.Linear(6, 1) for _ in range(3))),
        (4, 5),
        None,
    ),
    "heads in a dict": (
        lambda: SummedHeads(nn.ModuleDict({"coarse": nn.Linear(6, 1), "fine": nn.Linear(6, 1)})),
        (4, 5),
        None,
    ),
    "heads of different depth": (lambda: SummedHeads(shallow_and_deep()), (4, 5), None),
    "patches": (Patches, (2, 3, 32, 32), None),
    "patches, spectral_norm": (lambda: Patches(parametrizations.spectral_norm), (2, 3, 32, 32), None),
    "another parametrization": (lambda: nn.Sequential(halved()), (4, 5), None),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 3))), (4, 5), None),
    "two heads by name": (Named, (4, 5), ["style", "content"]),
    "projection": (Projection, (4, 3, 2, 2), ["linear", "embed"]),
    "projection, spectral_norm": (lambda: Projection(spectral_norm), (4, 3, 2, 2), ["linear", "embed"]),
}
WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*:FutureWarning",
    "ignore:.*spectral_norm.*:FutureWarning",
    "ignore:spectral_norm's power iteration has not converged:UserWarning",
)
pytestmark = WARNINGS


def build(case: str, dtype=torch.float64) -> tuple[nn.Module, tuple, object]:
    torch.manual_seed(0)
    make, shape, layers = CASES[case]
    module = make().to(dtype).eval()
    inputs = (torch.randn(shape, dtype=dtype),)
    return module, (*inputs, torch.tensor([0, 3, 1, 3])) if isinstance(module, Projection) else inputs, layers


def tensors(output, part=None) -> list[torch.Tensor]:
    """All logits within an output; of SANLogits the given part."""
    if isinstance(output, san.SANLogits):
        return [getattr(output, part)]
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for x in (output.values() if isinstance(output, dict) else output) for t in tensors(x, part)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_the_function_is_kept_there_and_back(case, dtype):
    module, inputs, layers = build(case, dtype)
    before = tensors(module(*inputs))
    eps = torch.finfo(dtype).eps
    converted = san.convert(module, layers)
    output = converted(*inputs)
    for part in ("fun", "dir"):
        for a, b in zip(tensors(output, part), before, strict=True):
            torch.testing.assert_close(a, b, rtol=16 * eps, atol=16 * eps)
    restored = san.restore(converted)
    for a, b in zip(tensors(restored(*inputs)), before, strict=True):
        torch.testing.assert_close(a, b, rtol=16 * eps, atol=16 * eps)
    assert not any(isinstance(m, ConvertedLayer) for m in restored.modules())


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_a_san(case):
    """fun: everything but the directions, as the original's own gradients. dir: the directions alone."""
    module, inputs, layers = build(case)
    plain = build(case)[0]
    converted = san.convert(module, layers)
    directions = {
        f"{n}.weight".lstrip(".") for n, m in converted.named_modules() if isinstance(m, san.layers._SANLayer)
    }
    named = dict(converted.named_parameters())
    output = converted(*inputs)
    fun = torch.autograd.grad(
        sum(t.square().sum() for t in tensors(output, "fun")),
        list(named.values()),
        allow_unused=True,
        retain_graph=True,
    )
    assert {n for n, g in zip(named, fun, strict=True) if g is None} == directions
    original = dict(plain.named_parameters())
    shared = [n for n in named if n in original and n not in directions and not n.endswith("scale")]
    total = sum(t.square().sum() for t in tensors(plain(*inputs)))
    expected = torch.autograd.grad(total, [original[n] for n in shared]) if shared else ()
    for name, value in zip(shared, expected, strict=True):
        torch.testing.assert_close(fun[list(named).index(name)], value)
    total = sum(x.dir.square().sum() for x in find_logits(output))
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    assert {n for n, g in zip(named, gradients, strict=True) if g is not None} == directions


def find_logits(output) -> list[san.SANLogits]:
    if isinstance(output, san.SANLogits):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [] if isinstance(output, torch.Tensor) else [x for part in parts for x in find_logits(part)]


UNKNOWN_STATES = (
    "another parametrization",
    "orthogonal",
)  # a state does not say how the weight is made of it


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNKNOWN_STATES])
def test_weights_of_the_original_load(case):
    module, inputs, layers = build(case)
    for p in module.parameters():
        p.data.add_(torch.randn_like(p) * 0.3)
    if any("weight_u" in k or "_u" in k for k in module.state_dict()):
        module.train()
        module(*inputs)  # one power iteration for the new weights
        module.eval()
    other = san.convert(build(case)[0], layers)
    state = module.state_dict()
    names = list(state)
    other.load_state_dict(state)
    assert list(state) == names, "the given state is left alone"
    for a, b in zip(tensors(other(*inputs), "fun"), tensors(module(*inputs)), strict=True):
        torch.testing.assert_close(a, b)
    again = san.convert(build(case)[0], layers)
    again.load_state_dict(other.state_dict())
    for a, b in zip(tensors(again(*inputs), "fun"), tensors(other(*inputs), "fun"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", UNKNOWN_STATES)
def test_weights_under_other_parametrizations_are_refused(case):
    module, _, layers = build(case)
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        san.convert(build(case)[0], layers).load_state_dict(module.state_dict())


def test_spectral_norm_fixes_the_scale_and_weight_norm_does_not():
    for case, fixed in {
        "spectral_norm": True,
        "spectral_norm, older": True,
        "weight_norm": False,
        "conv2d deep": False,
    }.items():
        converted = san.convert(build(case)[0])
        assert ("head.out.scale" not in dict(converted.named_parameters())) == fixed
        assert "head.out.scale" in converted.state_dict()


def test_output_bias_is_no_business_of_the_direction():
    converted = san.convert(nn.Linear(5, 1))
    logits = converted(torch.randn(4, 5))
    assert torch.autograd.grad(logits.dir.sum(), converted.bias, allow_unused=True, retain_graph=True) == (
        None,
    )
    assert float(torch.autograd.grad(logits.fun.sum(), converted.bias)[0]) == 4


def test_training_a_converted_discriminator_separates():
    torch.manual_seed(0)
    D = san.convert(nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)))
    optimizer = torch.optim.Adam(D.parameters(), 1e-2)
    for _ in range(100):
        real, fake = torch.randn(64, 2) + 2, torch.randn(64, 2)
        san.discriminator_objective(D(real), D(fake), "hinge").backward()
        optimizer.step()
        optimizer.zero_grad()
        san.normalize_(D)
    assert D(torch.randn(500, 2) + 2).fun.mean() > 0.5 > -0.5 > D(torch.randn(500, 2)).fun.mean()
    assert float(D[2].weight.detach().norm()) == pytest.approx(1, abs=1e-6)


def test_autocast():
    D = san.convert(sequential_mlp())
    x = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(x)
        san.discriminator_objective(logits, logits).backward()
    torch.testing.assert_close(logits.fun.float(), D(x).fun, rtol=0.05, atol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in D.parameters())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("sequential", marks=pytest.mark.exhaustive),
        *("conv2d deep", "patches, spectral_norm", "projection"),
    ],
)
def test_compile(case):
    """Through dynamo and autograd capture; the code generator of the machine is not what is tested."""
    module, inputs, layers = build(case)
    converted = san.convert(module, layers)
    compiled = torch.compile(converted, backend="aot_eager")
    expected, found = converted(*inputs), compiled(*inputs)
    for part in ("fun", "dir"):
        for a, b in zip(tensors(found, part), tensors(expected, part), strict=True):
            torch.testing.assert_close(a, b)
    (sum(t.sum() for t in tensors(found, "fun")) + sum(t.sum() for t in tensors(found, "dir"))).backward()
    assert all(p.grad is not None for p in converted.parameters())


def test_ddp(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        module, inputs, layers = build("projection")
        converted = san.convert(module, layers)
        alone = copy.deepcopy(converted)
        wrapped = nn.parallel.DistributedDataParallel(converted, find_unused_parameters=True)
        for discriminator in (wrapped, alone):
            real, fake = discriminator(*inputs), discriminator(inputs[0] + 1, inputs[1])
            san.discriminator_objective(real, fake, "bce").backward()
        for a, b in zip(wrapped.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        with pytest.raises(ValueError, match="before wrapping it in DistributedDataParallel"):
            san.convert(nn.parallel.DistributedDataParallel(nn.Linear(2, 1)))
    finally:
        dist.destroy_process_group()


def test_copies_and_shared_layers():
    layer = nn.Linear(3, 1)
    module = nn.Sequential(nn.Linear(3, 3), layer)
    module.also = nn.ModuleList([layer])
    converted = san.convert(module, "1")
    assert converted[1] is converted.also[0]
    twin = copy.deepcopy(san.convert(sequential_mlp()))
    assert isinstance(twin(torch.randn(2, 5)), san.SANLogits)
    assert isinstance(san.restore(twin)(torch.randn(2, 5)), torch.Tensor)


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Restored(nn.Module):
    """A class that says itself how it is pickled."""

    def __init__(self, width) -> None:
        super().__init__()
        self.width, self.body, self.head = width, nn.Linear(5, width), nn.Linear(width, 1)

    def __reduce__(self):
        return Restored, (self.width,), self.__getstate__()

    def forward(self, x, *, gain=1.0):
        return self.head(torch.relu(self.body(x))) * gain


@pytest.mark.parametrize("make", [sequential_mlp, lambda: Restored(3), lambda: nn.Linear(5, 1)])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
@pytest.mark.parametrize("after_a_pass", [False, True])
def test_copies_and_pickles_of_a_converted_module(make, copied, after_a_pass):
    plain = make()
    kind, x = type(plain), torch.randn(2, 5)
    D = san.convert(plain)
    if after_a_pass:
        D(x)
    twin = copied(D)
    assert type(twin) is type(D) and (isinstance(twin, kind) or kind is nn.Linear)
    assert type(twin(x)) is san.SANLogits and torch.equal(twin(x).fun, D(x).fun)
    restored = san.restore(copy.deepcopy(twin))
    assert type(restored) is kind
    torch.testing.assert_close(restored(x), D(x).fun)


def test_moving_averages_of_a_converted_module():
    torch.manual_seed(0)
    D, x = san.convert(sequential_mlp()), torch.randn(2, 5)
    average = torch.optim.swa_utils.AveragedModel(
        D, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(D)
    assert torch.equal(average(x).fun, D(x).fun)
    with torch.no_grad():
        D[2][0].scale.mul_(3)
    average.update_parameters(D)
    torch.testing.assert_close(average.module[2][0].scale.detach(), D[2][0].scale.detach() * 2 / 3)


def test_classes_keep_their_names_and_signatures():
    D = san.convert(Restored(3))
    assert isinstance(D, Restored) and repr(D).startswith("Restored(") and type(D).__name__ == "Restored"
    assert torch.equal(D(torch.ones(1, 5), gain=2.0).fun, 2 * D(torch.ones(1, 5)).fun)


def test_wrappers_of_a_converted_module():
    D, x = san.convert(sequential_mlp()), torch.randn(2, 5)
    for wrapped in (nn.DataParallel(D), torch.compile(D, backend="eager"), nn.Sequential(D)):
        assert type(wrapped(x)) is san.SANLogits
        assert torch.equal(wrapped(x).fun, D(x).fun)


def test_refused_functions_are_refused_when_compiled():
    D = torch.compile(san.convert(WithSigmoid()), backend="eager")
    with pytest.raises(ValueError, match="'sigmoid' is applied after the converted layer 'fc'"):
        D(torch.randn(2, 3))


def test_geometry_is_still_there():
    D = san.convert(nn.Conv2d(4, 2, 3, stride=2, padding=1, groups=2))
    assert (D.in_channels, D.out_channels, D.kernel_size, D.stride, D.groups) == (4, 2, (3, 3), (2, 2), 2)
    assert san.convert(nn.Linear(5, 2)).in_features == 5
    assert san.convert(nn.Embedding(5, 2), "").num_embeddings == 5


def compiled_in_place():
    module = sequential_mlp()
    module.compile(backend="eager")
    return module


def patched():
    module = sequential_mlp()
    module.forward = lambda x: x
    return module


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)


class WithSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        return torch.sigmoid(self.fc(self.body(x)))


def converted_names(D: nn.Module) -> list[str]:
    return [name for name, m in D.named_modules() if isinstance(m, ConvertedLayer)]


def test_all_heads_of_a_container_are_converted_or_named():
    """One of several summed heads would be a SAN in part only, and nothing would say so."""
    x = torch.randn(4, 5)
    for example in (None, x):
        D = san.convert(SummedHeads(nn.ModuleList(nn.Linear(6, 1) for _ in range(3))), example=example)
        assert converted_names(D) == ["heads.0", "heads.1", "heads.2"]
        D = san.convert(SummedHeads(shallow_and_deep()), example=example)
        assert converted_names(D) == ["heads.0.0", "heads.1.2"]
    assert converted_names(san.convert(nn.ModuleList([nn.Linear(3, 1), nn.Linear(2, 1)]))) == ["0", "1"]
    with pytest.raises(
        ValueError, match=r"Name them all, as in san.convert\(D, \['heads.0.0', 'heads.1.2'\]"
    ):
        san.convert(SummedHeads(shallow_and_deep(outputs=3)), example=x)
    chain = nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    assert converted_names(san.convert(chain)) == ["2"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: san.convert(TwoHeads()),
            r"Name them all, as in san.convert\(D, \['a', 'b'\]\); candidates: a, b",
        ),
        (lambda: san.convert(Projection()), "projection head"),
        (lambda: san.convert(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())), "ends in Sigmoid"),
        (lambda: san.convert(WithSigmoid())(torch.randn(2, 3)), "'sigmoid' is applied after"),
        (lambda: san.convert(nn.ReLU()), "has no Linear"),
        (lambda: san.convert(TwoHeads(), "c"), "layer 'c' not found: choose from a, b"),
        (lambda: san.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), "1"), "'1' is a ReLU"),
        (lambda: san.convert(san.convert(nn.Sequential(nn.Linear(3, 1)))), "already converted"),
        (lambda: san.restore(nn.Linear(3, 1)), "no converted layer"),
        (
            lambda: san.convert(nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1), nn.Softmax(1))),
            "ends in Softmax",
        ),
        *[
            (
                lambda last=last: san.convert(nn.Sequential(nn.Linear(3, 2), last)),
                f"ends in {type(last).__name__}, but",
            )
            for last in (
                nn.ELU(),
                nn.GELU(),
                nn.Tanh(),
                nn.Hardtanh(),
                nn.Dropout(),
                nn.BatchNorm1d(2),
                nn.LayerNorm(2),
            )
        ],
        *[
            (
                lambda last=last: san.convert(nn.Sequential(nn.Linear(3, 2), last)),
                f"ends in {type(last).__name__}, but",
            )
            for last in (
                nn.MaxPool1d(2),
                nn.PReLU(),
                nn.LogSoftmax(1),
                nn.Threshold(0, 0),
            )
        ],
        *[
            (
                lambda last=last: san.convert(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), last)),
                f"ends in {type(last).__name__}, which cannot be converted: {remedy}$",
            )
            for last, remedy in (
                (nn.ConvTranspose1d(2, 1, 1), "replace it by Upsample and Conv1d"),
                (
                    nn.ConvTranspose2d(2, 1, 1),
                    "replace it by Upsample and Conv2d, or by Conv2d and PixelShuffle",
                ),
                (nn.Bilinear(2, 2, 1), "replace it by torch's Linear or Conv"),
                (nn.GRU(2, 1), "replace it by torch's Linear or Conv"),
            )
        ],
        (lambda: san.convert(nn.ConvTranspose3d(2, 1, 1)), "to convert: replace it by Upsample and Conv3d"),
        (
            lambda: san.convert(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ConvTranspose2d(2, 1, 1)), "1"),
            "can be converted: replace it by Upsample and Conv2d, or",
        ),
        (lambda: san.convert(nn.DataParallel(nn.Linear(2, 1))), "before wrapping it in DataParallel"),
        (
            lambda: san.convert(torch.compile(sequential_mlp(), backend="eager")),
            "before wrapping it in OptimizedModule",
        ),
        (lambda: san.convert(compiled_in_place()), r"is compiled: convert before compile\(\)"),
        (lambda: san.convert(patched()), "has a forward set on the object"),
        (
            lambda: san.convert(nn.Sequential(nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 1)))),
            "'1' is a DataParallel: convert before wrapping a part of the module",
        ),
        (
            lambda: san.convert(nn.Sequential(nn.ReLU(), torch.compile(nn.Linear(2, 1), backend="eager"))),
            "'1' is a OptimizedModule: convert before wrapping a part of the module",
        ),
        (lambda: san.restore(nn.DataParallel(san.convert(nn.Linear(2, 1)))), "restore the module without it"),
    ],
)
def test_mistakes_take_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "ending",
    [
        lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, padding=1)],
        lambda: [nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2)],
    ],
)
def test_what_takes_the_place_of_a_transposed_convolution_can_be_converted(ending):
    x = torch.randn(2, 3, 5, 5)
    D = san.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *ending()), example=x)
    assert D(x).fun.shape == nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1)(x).shape


def test_slices_of_a_converted_sequential_work():
    D = san.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    x = torch.randn(5, 3)
    features, rest = D[:-1](x), D[1:]
    assert isinstance(features, torch.Tensor) and not isinstance(features, san.SANLogits)
    logits = rest(D[0](x))
    assert isinstance(logits, san.SANLogits)
    torch.testing.assert_close(logits.fun, D(x).fun)
