# SPDX-License-Identifier: Apache-2.0
"""Steps against loss_* (one generator, path length and discriminator step) and train_trace (three whole
iterations).

The published code sums a network's adversarial term over the samples of a round; the goldens' rounds hold 4,
so they are this project's numbers at adversarial_scale = 4 (the default, 8, is the published round). It
advances the power iteration in every forward pass; `as_published` does that here.

Gradients that reached the generator through a discriminator have met kinks on their way, in the goldens as
here: they are compared as `gradients.alike` does, and tested to be the derivatives of the loss, whose values
are those of the goldens.
"""

import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from san.layers import SANLogits
from tests.parity.fill import GOLDENS, close, fill_, fill_deit_projection_, normal
from tests.parity.gradients import alike
from torch_utils import features, frozen_convolutions, rng, training_stats
from training import losses, schedules, steps
from training.config import LossConfig, OptimConfig
from training.discriminator import ProjectedDiscriminator
from training.discriminator.heads import SpectralConv2d
from training.generator import Generator, build_stem, build_superres
from training.inputs import MicroBatch, RealMicroBatch
from training.state import TrainState

LITE0, DEIT = "tf_efficientnet_lite0", "deit_base_distilled_patch16_224"
SAMPLES_PER_ROUND = 4


class Recorder:
    """In the place of an optimizer: keeps the gradients, moves nothing."""

    def __init__(self, params: dict[str, torch.nn.Parameter]) -> None:
        self.params, self.grads = params, {}

    def step(self) -> None:
        self.grads = {name: p.grad.clone() for name, p in self.params.items() if p.grad is not None}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.params.values():
            p.grad = None


class GoldenClassifier(torch.nn.Module):
    """The guidance classifier of the goldens: average pooling and one linear layer."""

    input_size = 224

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.weight, self.bias = torch.from_numpy(weight), torch.from_numpy(bias)
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            torch.nn.functional.avg_pool2d(x, 14).flatten(1)[:, : self.weight.shape[1]] @ self.weight.t()
            + self.bias
        )


def generator(name: str) -> Generator:
    file = np.load(GOLDENS / f"{name}.npz")
    state = {k.removeprefix("sd/"): torch.from_numpy(file[k]) for k in file.files if k.startswith("sd/")}
    rows = state["mapping.embed.weight"].shape[0]
    G = build_stem(
        "stylegan3-t", 16, 0 if "uncond" in name else rows, syn_layers=6, cbase=256, cmax=8, z_dim=16,
        w_dim=32, num_embeddings=rows,
        embed_dim=state["mapping.embed.weight"].shape[1],
    )  # fmt: skip
    if "_sr_" in name:
        G = build_superres(G, "stylegan3-t", up_factor=2, head_layers=4)
    G.load_state_dict(state)
    return G


def discriminator(
    networks: list[features.FeatureNetwork], c_dim: int, resolution: int, **options: Any
) -> ProjectedDiscriminator:
    D = ProjectedDiscriminator(networks, c_dim, resolution, bn_group=None, augment=False, **options)
    fill_(dict(D.discriminators.state_dict()), "discriminators.", "disc")
    for key, projection in D.projections.items():
        if key == DEIT:
            fill_deit_projection_(D.feature_networks[key], projection)
        else:
            fill_(projection.state_dict(), f"feature_networks.{key}.", "disc")
    return D


def as_published(D: ProjectedDiscriminator) -> ProjectedDiscriminator:
    """Let D take the batches of a pass one by one, with a power iteration before each."""
    forward = D.forward
    norms = [module for module in D.modules() if isinstance(module, SpectralConv2d)]

    def one_by_one(img, c=None, draws=None, batches=1):  # type: ignore[no-untyped-def]
        labels = [None] * batches if c is None else c.chunk(batches)
        found = []
        for x, classes in zip(img.chunk(batches), labels, strict=True):
            for norm in norms:  # the graphs of the batches before need theirs
                norm.weight_u, norm.weight_v = norm.weight_u.clone(), norm.weight_v.clone()
            D.advance_spectral_norms()
            found.append(forward(x, classes, draws))
        return {
            name: SANLogits(*map(torch.cat, zip(*(logits[name] for logits in found), strict=True)))
            for name in found[0]
        }

    D.forward = one_by_one  # type: ignore[method-assign]
    return D


def make_state(G: Generator, D: ProjectedDiscriminator) -> TrainState:
    return TrainState.create(G.train(), D.train(), OptimConfig(), pl_interval=4)


def recording(state: TrainState) -> TrainState:
    state.g_opt, state.d_opt = Recorder(state.g_params), Recorder(state.d_params)  # type: ignore[assignment]
    return state


COLLECTOR = training_stats.Collector(keep_previous=False)


def stats() -> dict[str, float]:
    """What was reported since the last call."""
    COLLECTOR.update()
    return {name: COLLECTOR.mean(name) for name in COLLECTOR.names()}


def compare_stats(found: dict[str, float], expected: dict[str, list], rel: float = 2e-4) -> None:
    """Means over all reports of a name; of signs, one logit may be on the other side of zero."""
    for name, reports in expected.items():
        count = sum(n for _, n in reports)
        mean = sum(m * n for m, n in reports) / count
        assert found[name] == pytest.approx(mean, rel=rel, abs=2.01 / count if "signs" in name else 1e-5), (
            name
        )


def compare_norms(
    found: dict[str, torch.Tensor],
    expected: dict[str, list | None],
    each: float,
    typical: float,
    prefix: str = "",
) -> None:
    """Norms of every gradient; a None there means that there is none here. Frozen tensors and biases before
    BatchNorm are left out.
    """
    norms = {
        name: np.array([value[0]])
        for name, value in expected.items()
        if value is not None
        and not (name.startswith("synthesis.input.") and prefix + name not in found)
        and not name.endswith("main.0.bias")
    }
    assert len(norms) > 10
    alike(
        {name: found[prefix + name].norm()[None] for name in norms if prefix + name in found},
        norms,
        each,
        typical,
    )


# name, generator, classes, backbones, blur sigma, guidance
CASES = {
    "loss_lite_cond": ("gen_stem_t", 1000, ["lite0"], 2.0, 0.0),
    "loss_lite_cond_pl": ("gen_stem_t", 1000, ["lite0"], 0.0, 0.0),
    "loss_lite_cond_noblur_cls": ("gen_stem_t", 1000, ["lite0"], 0.0, 8.0),
    "loss_lite_uncond_r_halfblur": ("gen_stem_t_uncond", 0, ["lite0"], 1.0, 0.0),
    "loss_superres_headonly_cls": ("gen_sr_t_16to32_h4", 1000, ["lite0"], 0.0, 8.0),
    "loss_both_cond": ("gen_stem_t", 1000, ["deit", "lite0"], 2.0, 0.0),
}


# One case with the path length, and one with guidance on a stage's own layers, are enough for another
# rounding.
AGAIN = {"loss_lite_cond_pl", "loss_superres_headonly_cls"}
# What these have, others have, too; a discriminator of both networks is in test_discriminator.py.
REPEATS = {"loss_both_cond", "loss_lite_cond_noblur_cls"}


def marked(case: str) -> Any:
    marks = [pytest.mark.once] * (case not in AGAIN) + [pytest.mark.exhaustive] * (case in REPEATS)
    return pytest.param(case, marks=marks)


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_one_iteration(case, request, monkeypatch):
    gen_name, c_dim, backbones, sigma, cls_weight = CASES[case]
    inputs, file, meta = (
        np.load(GOLDENS / "loss_inputs.npz"),
        np.load(GOLDENS / f"{case}.npz"),
        json.loads((GOLDENS / f"{case}.json").read_text()),
    )
    G = generator(gen_name)
    networks = [request.getfixturevalue(name) for name in backbones]
    state = recording(make_state(G, as_published(discriminator(networks, c_dim, G.img_resolution))))
    classifier = GoldenClassifier(inputs["cls/fc.weight"], inputs["cls/fc.bias"]) if cls_weight else None
    cfg = LossConfig(adversarial_scale=SAMPLES_PER_ROUND, cls_weight=cls_weight)
    labels = {k: torch.from_numpy(inputs[k]).argmax(1) if c_dim else None for k in ("c_G", "c_D", "real_c")}
    z = {k: torch.from_numpy(inputs[k]) for k in ("z_G", "z_D")}
    real = torch.from_numpy(inputs[f"real{G.img_resolution}"])
    assert schedules.blur_sigma(
        meta["cfg"]["cur_nimg"], 2.0, 300.0 if meta["cfg"]["blur"] else 0.0
    ) == pytest.approx(sigma)
    stats()

    steps.g_step(state, [MicroBatch(z["z_G"], labels["c_G"], None, range(4))], cfg, sigma, classifier)
    compare_stats(stats(), meta["G"]["stats"])
    # The guidance is smooth and outweighs the discriminator's part, and with it what comes of that part's
    # kinks.
    each, typical = (5e-3, 1e-3) if cls_weight else (5e-2, 1e-2)
    compare_norms(state.g_opt.grads, meta["G"]["grads"], each, typical)
    if case == "loss_superres_headonly_cls":
        assert all(name.split(".")[1] in G.head_layer_names for name in state.g_opt.grads)
    whole = {
        key.removeprefix("G/grad/"): file[key]
        for key in file.files
        if key.removeprefix("G/grad/") in state.g_params
    }
    alike(state.g_opt.grads, whole, each, typical)

    if "Greg" in meta:
        noise = torch.from_numpy(file["Greg/noise"])
        monkeypatch.setattr(rng, "normal", lambda *args: noise)
        steps.path_length_step(
            state, [MicroBatch(z["z_G"][:2], labels["c_G"][:2], None, range(2))], cfg, seed=0
        )
        compare_stats(stats(), meta["Greg"]["stats"])
        compare_norms(state.g_opt.grads, meta["Greg"]["grads"], 5e-3, 1e-3)
        assert float(state.pl_mean) == pytest.approx(meta["Greg"]["pl_mean_after"], rel=1e-4)

    steps.d_step(
        state,
        [MicroBatch(z["z_D"], labels["c_D"], None, range(4))],
        [RealMicroBatch(real, labels["real_c"], None)],
        cfg,
        sigma,
    )
    compare_stats(stats(), meta["D"]["stats"])
    compare_norms(state.d_opt.grads, meta["D"]["grads"], 1e-2, 1e-3, prefix="discriminators.")
    parts = {
        key.removeprefix("D/grad/"): file[key]
        for key in file.files
        if key.startswith("D/grad/") and not key.endswith("main.0.bias")
    }
    alike(
        {name: state.d_opt.grads["discriminators." + name][: len(part)] for name, part in parts.items()},
        parts,
        5e-3,
        1e-3,
    )
    if "D/after/w_avg" in file.files and case != "loss_superres_headonly_cls":
        close(state.G.mapping.w_avg, file["D/after/w_avg"])


@pytest.mark.once
@pytest.mark.parametrize(("sigma", "cls_weight"), [(2.0, 0.0), (0.0, 8.0)])
def test_the_generator_step_takes_the_derivative_of_its_loss(lite0, sigma, cls_weight):
    """In float64, by differences along one direction to which every tensor of the generator adds the same
    amount.
    """
    inputs = np.load(GOLDENS / "loss_inputs.npz")
    G = generator("gen_stem_t").double()
    D = discriminator([lite0], 1000, 16, feature_size=64, compute_dtype=torch.float64).double()
    state = recording(make_state(G, D))
    classifier = GoldenClassifier(
        inputs["cls/fc.weight"].astype(np.float64), inputs["cls/fc.bias"].astype(np.float64)
    )
    fake = MicroBatch(
        torch.from_numpy(inputs["z_G"]).double(), torch.from_numpy(inputs["c_G"]).argmax(1), None, range(4)
    )

    def loss() -> float:
        steps.g_step(state, [fake], LossConfig(cls_weight=cls_weight), sigma, classifier)
        return stats()["Loss/G/loss"]

    stats()
    loss()
    draws = torch.Generator().manual_seed(0)
    grads = {name: grad for name, grad in state.g_opt.grads.items() if float(grad.norm()) > 0}
    assert len(grads) > 30
    noise = {
        name: torch.randn(grad.shape, generator=draws, dtype=torch.float64) for name, grad in grads.items()
    }
    direction = {
        name: (grad / grad.norm() + noise[name] / noise[name].norm()) / grad.norm()
        for name, grad in grads.items()
    }

    def at(step: float) -> float:
        with torch.no_grad():
            for name, d in direction.items():
                state.g_params[name] += step * d
        return loss()

    step = 1e-8
    difference = (at(step) - at(-2 * step)) / (2 * step)
    derivative = float(sum((grads[name] * direction[name]).sum() for name in grads))
    assert difference == pytest.approx(derivative, rel=1e-5)  # 1% of one of 40 tensors would be 2.5e-4


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Any = None,
    stride: int = 1,
    padding: Any = 0,
    groups: int = 1,
) -> torch.Tensor:
    """conv2d, with one filter per channel tap by tap: in float64, torch takes one convolution per channel,
    and twice as long in all.
    """
    if groups == 1:
        return torch.nn.functional.conv2d(x, weight, bias, stride, padding)
    assert groups == x.shape[1] == len(weight)
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    x = torch.nn.functional.pad(x, (columns, columns, rows, rows))
    size = weight.shape[2]
    height, width = ((side - size) // stride + 1 for side in x.shape[2:])
    y = x.new_zeros(()) if bias is None else bias.view(1, -1, 1, 1)
    for i, j in itertools.product(range(size), repeat=2):
        part = x[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        y = torch.addcmul(y, part, weight[:, 0, i, j].view(1, -1, 1, 1))
    return y


@pytest.mark.once
@pytest.mark.parametrize("iterations", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_train_trace(iterations, lite0, monkeypatch):
    """Iterations with Adam, EMA and direction normalisation, within the golden's stated tolerance of
    its own re-runs.

    Adam's steps depend on the gradients' signs, so rounding grows from step to step. In float64 it does so in
    the golden alone.
    """
    meta, file = json.loads((GOLDENS / "train_trace.json").read_text()), np.load(GOLDENS / "train_trace.npz")
    own = SimpleNamespace(**vars(torch.nn.functional) | {"conv2d": convolution})
    monkeypatch.setattr(frozen_convolutions, "F", own)
    D = discriminator([lite0], 1000, 16, compute_dtype=torch.float64).double()
    state = make_state(generator("gen_stem_t").double(), as_published(D))
    g, d = state.g_opt.param_groups[0], state.d_opt.param_groups[0]
    assert (g["lr"], d["lr"]) == pytest.approx((meta["lr_g"], meta["lr_d"]))
    assert (*g["betas"], *d["betas"]) == pytest.approx((*meta["betas_g"], *meta["betas_d"]))
    cfg = LossConfig(adversarial_scale=SAMPLES_PER_ROUND)
    batch = meta["batch"]
    state.D.normalize_()
    stats()
    for it, expected in enumerate(meta["history"][:iterations]):
        nimg = it * batch
        real = torch.from_numpy(normal(f"t{it}.real16", (batch, 3, 16, 16)) * 0.4).clamp(-1, 1).double()
        sigma = schedules.blur_sigma(nimg)

        def draw(phase: str, it: int = it) -> MicroBatch:
            z = torch.from_numpy(normal(f"t{it}.z.{phase}", (batch, 16))).double()
            return MicroBatch(
                z, torch.tensor([(3 * it + k + len(phase)) % 10 for k in range(batch)]), None, range(batch)
            )

        steps.g_step(state, [draw("Gmain")], cfg, sigma)
        steps.d_step(
            state, [draw("Dmain")], [RealMicroBatch(real, torch.tensor([2, 5, 5, 9]), None)], cfg, sigma
        )
        beta = schedules.ema_beta(nimg, batch, batch * 10 / 32)
        assert beta == pytest.approx(expected["ema_beta"], abs=1e-12)
        state.update_ema(beta)
        compare_stats(
            stats(),
            {k: v for k, v in expected["stats"].items() if "signs" not in k},
            rel=(2e-4, 5e-3, 4e-2)[it],
        )
        tolerance_g, tolerance_d = ((1e-5, 5e-4), (4e-4, 1e-3), (2e-3, 2e-3))[it]
        for name, norm in expected["G"].items():
            assert float(state.G.state_dict()[name].norm()) == pytest.approx(norm, rel=tolerance_g), (
                it,
                name,
            )
        for name, norm in expected["G_ema"].items():
            assert float(state.G_ema.state_dict()[name].norm()) == pytest.approx(norm, rel=tolerance_g), (
                it,
                name,
            )
        for name, norm in expected["D"].items():
            if not name.endswith("main.0.bias") and "discriminators." + name in state.d_params:
                assert float(state.d_params["discriminators." + name].detach().norm()) == pytest.approx(
                    norm, rel=tolerance_d
                ), (it, name)
    if iterations == len(meta["history"]):
        close(state.G.mapping.w_avg, file["w_avg"], 1e-3)


def test_the_adversarial_term_does_not_depend_on_the_round():
    """8 x mean over samples: two rounds of 4 at weight 1/2 are one round of 8."""
    from san.layers import SANLogits

    draws = torch.Generator().manual_seed(0)
    logits = SANLogits(1 + torch.randn(8, 64, generator=draws), torch.randn(8, 64, generator=draws))
    whole = losses.generator_adversarial({"x": logits})
    halves = [
        losses.generator_adversarial({"x": SANLogits(logits.fun[i : i + 4], logits.dir[i : i + 4])}) / 2
        for i in (0, 4)
    ]
    assert float(whole) == pytest.approx(float(sum(halves)), rel=1e-6)
    assert float(whole) == pytest.approx(-8 * float(logits.fun.mean()), rel=1e-6)
