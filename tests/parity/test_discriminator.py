# SPDX-License-Identifier: Apache-2.0
"""Projection, heads and the whole projected discriminator against projector_*, single_discs and
projected_disc.
"""

import json

import numpy as np
import pytest
import torch

from san import SANLogits
from tests.parity.fill import GOLDENS, close, fill_, fill_deit_projection_, normal
from tests.parity.gradients import exact, mostly_exact
from torch_utils import features
from training.discriminator import ProjectedDiscriminator
from training.discriminator.heads import Head, SpectralConv2d
from training.discriminator.projection import RandomProjection

LITE0, DEIT = "tf_efficientnet_lite0", "deit_base_distilled_patch16_224"


def load(name: str) -> tuple[dict, dict]:
    meta = GOLDENS / f"{name}.json"
    return dict(np.load(GOLDENS / f"{name}.npz")), json.loads(meta.read_text()) if meta.exists() else {}


def advance(module: torch.nn.Module) -> None:
    """The published heads do one power iteration before every forward in train mode."""
    for conv in module.modules():
        if isinstance(conv, SpectralConv2d):
            conv.advance_spectral_norm()


def strided(x: torch.Tensor, expected: np.ndarray) -> torch.Tensor:
    """Every k-th channel and pixel, k such that the golden's shape results."""
    steps = [-(-size // kept) if kept > 1 else 1 for size, kept in zip(x.shape, expected.shape, strict=True)]
    y = x[tuple(slice(None, None, step) for step in steps)]
    return y


@pytest.mark.parametrize(("case", "rel"), [("x64", 2e-5), ("x224", 2e-5)])
@torch.no_grad()
def test_projected_lite0(lite0, case, rel):
    file, _ = load("projector_lite0")
    projection = RandomProjection(lite0.channels)
    state = {
        name.removeprefix("scratch/"): torch.from_numpy(v)
        for name, v in file.items()
        if name.startswith("scratch/")
    }
    projection.scratch.load_state_dict(state)
    x = (
        torch.from_numpy(file["x64"])
        if case == "x64"
        else torch.from_numpy(normal("proj.x224", (1, 3, 224, 224)))
    )
    maps = lite0(x)
    for level, (feature, out) in enumerate(zip(maps, projection(maps), strict=True)):
        for what, tensor in (("feat", feature), ("out", out)):
            expected = file[f"clean/{case}/{what}{level}"]
            close(strided(tensor, expected), expected, rel)


@pytest.mark.exhaustive  # test_whole_both has the same projection
@pytest.mark.once
@torch.no_grad()
def test_projected_deit(deit):
    file, meta = load("projector_deit")
    projection = RandomProjection(deit.channels, "vit")
    fill_deit_projection_(deit, projection)
    tokens = deit(torch.from_numpy(normal("deit.x", (1, 3, 224, 224))))
    maps = projection.reassemble(tokens)
    for level, (feature, out) in enumerate(zip(maps, projection(tokens), strict=True)):
        for what, tensor in (("feat", feature), ("out", out)):
            expected = file[f"{what}{level}"]
            assert list(tensor.shape) == meta[f"shape/{what}{level}"]
            close(strided(tensor, expected), expected)


HEADS = ["single", "single_odd", "single_nodown", "cond"]


def golden_head(case: str) -> tuple[Head, dict[str, np.ndarray]]:
    """The head of a golden with its weights, and the golden's arrays."""
    file, meta = load("single_discs")
    arrays = {
        name.removeprefix(f"{case}/"): value for name, value in file.items() if name.startswith(f"{case}/")
    }
    state = {
        name.removeprefix("sd/"): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith("sd/")
    }
    downs = sum(name.endswith("weight_orig") and name.startswith("main") for name in state)
    head = Head([6] + [8] * downs, c_dim=10 if case == "cond" else 0, cond_channels=12, bn_group=None)
    for name in state:
        if name.endswith("num_batches_tracked"):
            state[name] = state[name].squeeze().long()
    head.load_state_dict(state)
    assert {k: list(v.shape) for k, v in head.state_dict().items()} == meta[case]["state"]
    return head, arrays


def head_gradients(
    head: Head, x: torch.Tensor, c: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Of the sums of fun and dir times weights, with respect to the head's input and parameters."""
    head.zero_grad(set_to_none=True)
    x = x.detach().clone().requires_grad_(True)
    sum((part * weight).sum() for part, weight in zip(head(x, c), weights, strict=True)).backward()
    assert x.grad is not None
    return {"x": x.grad, **{name: p.grad for name, p in head.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("case", HEADS)
def test_head(case):
    head, arrays = golden_head(case)
    x, c = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["c"]).argmax(1)
    advance(head)
    y = head(x, c)
    close(y.fun, arrays["y_fun"])
    close(y.dir, arrays["y_dir"])
    for name, tensor in head.state_dict().items():
        if name.endswith(("weight_u", "weight_v")):
            close(tensor, arrays[f"sd_after1/{name}"])
    advance(head)
    close(head(x, c).fun, arrays["y_train_noflag"])


@pytest.mark.once
@pytest.mark.parametrize("case", HEADS)
def test_gradients_of_a_head(case):
    head, arrays = golden_head(case)
    head.double()
    x, c = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["c"]).argmax(1)
    advance(head)
    found = head_gradients(
        head, x, c, (torch.from_numpy(arrays["R"]).double(), torch.from_numpy(arrays["Rd"]).double())
    )
    names = {"x", *(name for name, _ in head.named_parameters())}
    exact(found, {name: arrays[f"grad/{name}"] for name in names}, 2e-6)


@pytest.mark.parametrize("case", HEADS)
def test_float32_gradients_of_a_head_are_those_of_float64(case):
    head, arrays = golden_head(case)
    wide = golden_head(case)[0].double()
    draws = torch.Generator().manual_seed(0)
    c = torch.from_numpy(arrays["c"]).argmax(1)

    def draw(i: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        x, r, rd = (torch.randn(arrays[name].shape, generator=draws) for name in ("x", "R", "Rd"))
        return head_gradients(head, x, c, (r, rd)), head_gradients(
            wide, x.double(), c, (r.double(), rd.double())
        )

    mostly_exact(draw)


def build(
    networks: list[features.FeatureNetwork], c_dim: int, resolution: int, **options
) -> ProjectedDiscriminator:
    """A discriminator filled by the goldens' rule."""
    D = ProjectedDiscriminator(networks, c_dim, resolution, bn_group=None, **options)
    fill_({k: v for k, v in D.discriminators.state_dict().items()}, "discriminators.", "disc")
    for key, projection in D.projections.items():
        if D.feature_networks[key].kind == "vit":
            fill_deit_projection_(D.feature_networks[key], projection)
        else:
            fill_(projection.state_dict(), f"feature_networks.{key}.", "disc")
    return D


def check(D: ProjectedDiscriminator, file: dict, case: str, x: torch.Tensor, c: torch.Tensor | None) -> None:
    with torch.no_grad():
        D.advance_spectral_norms()
        logits: dict[str, SANLogits] = D(x, c)
        for name, y in logits.items():
            close(y.fun, file[f"{case}/{name}/fun"])
            close(y.dir, file[f"{case}/{name}/dir"])
        D.advance_spectral_norms()
        for name, y in D(x, c).items():
            close(y.fun, file[f"{case}/{name}/gen_mode_second"])


@pytest.mark.parametrize(
    ("case", "c_dim", "state"), [("lite_cond", 1000, None), ("lite_uncond", 0, "state_discriminators_uncond")]
)
def test_whole_lite0(lite0, case, c_dim, state):
    file, meta = load("projected_disc")
    D = build([lite0], c_dim, 16)
    biases = sum(
        t.numel() for n, t in D.discriminators.named_buffers() if n.endswith("main.0.bias")
    )  # parameters in the published heads
    assert sum(p.numel() for p in D.trainable_parameters().values()) + biases == meta[case]["n_params_heads"]
    if state:
        assert {
            f"discriminators.{k}": list(v.shape) for k, v in D.discriminators.state_dict().items()
        } == meta[state]
    check(
        D, file, case, torch.from_numpy(file["x"]), torch.from_numpy(file["c"]).argmax(1) if c_dim else None
    )


@pytest.mark.once
def test_whole_both(lite0, deit):
    file, meta = load("projected_disc")
    D = build([deit, lite0], 1000, 16)
    assert {f"discriminators.{k}": list(v.shape) for k, v in D.discriminators.state_dict().items()} == meta[
        "state_discriminators"
    ]
    check(D, file, "both_cond", torch.from_numpy(file["x"]), torch.from_numpy(file["c"]).argmax(1))


@pytest.mark.once
def test_no_resizing_above_224(lite0):
    file, _ = load("projected_disc")
    D = build([lite0], 1000, 256)
    D.advance_spectral_norms()
    x = torch.from_numpy(normal("pd.x256", (2, 3, 256, 256))).mul(0.4).clamp(-1, 1)
    with torch.no_grad():
        y = D(x, torch.from_numpy(file["c"]).argmax(1)[:2])[LITE0]
    close(y.fun, file["lite_cond_256/fun"])
    close(y.dir, file["lite_cond_256/dir"])
