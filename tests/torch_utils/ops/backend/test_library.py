# SPDX-License-Identifier: Apache-2.0
"""The operators as torch.library sees them: schemas, shapes, derivatives, torch.compile; on the CPU code and
on the kernels' host build.
"""

from collections.abc import Callable

import pytest
import torch

from tests.torch_utils.ops.host_kernels import NAMESPACE, host  # noqa: F401
from tests.torch_utils.ops.references import normal
from torch_utils.ops.backend import library
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

pytestmark = pytest.mark.once

GEOMETRY = [2, 2, 2, 2, 9, 9, 8, 7, 22, 20, 6, 5]  # 8 x 7 pixels, 12 taps both ways


@pytest.fixture(params=["cpu", "host"])
def ops(request):
    """The namespace under test."""
    if request.param == "host":
        return request.getfixturevalue("host")
    return getattr(torch.ops, library.NAMESPACE)


def samples() -> dict[str, list[tuple]]:
    """Arguments of each operator but filtered_lrelu_gated, whose arguments depend on what filtered_lrelu
    saves.
    """
    x, b, y = (
        normal(2, 3, 4).requires_grad_(),
        normal(3, seed=1).requires_grad_(),
        normal(2, 3, 4, seed=2).requires_grad_(),
    )
    dy, ddx = normal(2, 3, 4, seed=3).requires_grad_(), normal(2, 3, 4, seed=4)
    image, channels, f = (
        normal(1, 2, 7, 8).requires_grad_(),
        normal(2, seed=1).requires_grad_(),
        normal(12, seed=5) / 3,
    )
    lrelu = (image, f, f, channels, GEOMETRY, False, 1.4, 0.2, 0.9)
    return {
        "bias_act": [(x, b, 1, act, 0.2, 1.5, 0.8) for act in (0, 2, 3, 8)]
        + [(x, None, 1, 0, 0.0, 1.0, -1.0)],
        "bias_act_grad": [
            (dy, None, None, y, 1, 3, 0.0, 1.0, -1.0),
            (dy, x, b, None, 1, 8, 0.0, 1.0, 0.9),
            (dy, None, None, None, 1, 0, 0.0, 2.0, -1.0),
        ],
        "bias_act_grad2": [(ddx, dy.detach(), None, None, y.detach(), 1, 3, 0.0, 1.0, -1.0)],
        "channel_sums": [(image, 1), (y, -1)],
        "upfirdn2d": [
            (image, f, [2, 1, 1, 2, 5, 4, 14, 3], True, 2.0),
            (image, None, [1, 1, 1, 1, 0, 0, 8, 7], True, 1.0),
        ],
        "filtered_lrelu": [(*lrelu, True)],
    }


@pytest.mark.parametrize("name", list(samples()))
def test_opcheck(ops, name: str) -> None:
    for arguments in samples()[name]:
        torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck_gated(ops, transposed: bool) -> None:
    image, f = normal(1, 2, 7, 8), normal(12, seed=5) / 3
    _, codes = ops.filtered_lrelu(image, f, f, None, GEOMETRY, False, 1.4, 0.2, 0.9, True)
    t = normal(*((1, 2, 5, 6) if transposed else (1, 2, 7, 8)), seed=6).requires_grad_()
    torch.library.opcheck(
        ops.filtered_lrelu_gated.default,
        (t, f, f, codes, image, None, GEOMETRY, False, 1.4, 0.2, 0.9, transposed),
    )


@pytest.mark.parametrize("kernels", [False, True])
def test_compile_without_graph_breaks(kernels: bool, request) -> None:
    if kernels:
        request.getfixturevalue("host")
    f = normal(12, seed=5).float()

    def network(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = filtered_lrelu(x, f, f, b, up=2, down=2, padding=[9, 8, 9, 8], clamp=256)
        return bias_act(upfirdn2d(x, f, down=2, padding=5), b, act="swish").square().mean()

    leaves = [normal(2, 3, 12, 12).float().requires_grad_(), normal(3, seed=1).float().requires_grad_()]
    wanted = network(*leaves)
    torch._dynamo.reset()
    found = torch.compile(network, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves))


TAPS = normal(6, seed=5) / 2


def _layer(x: torch.Tensor, b: torch.Tensor, impl: str = "cuda", f: torch.Tensor = TAPS) -> torch.Tensor:
    x = filtered_lrelu(x, f, f, b, up=2, down=2, padding=6, clamp=1.5, impl=impl)
    return bias_act(upfirdn2d(x, f, down=2, padding=2, impl=impl), b, act="swish", impl=impl)


@pytest.mark.parametrize("kernels", [False, True])
def test_vmap(kernels: bool, request) -> None:
    if kernels:
        request.getfixturevalue("host")
    x, b = normal(4, 2, 3, 7, 8), normal(4, 3, seed=1)
    for in_dims, images, biases in (
        ((0, 0), x, b),
        ((0, None), x, b[0]),
        ((None, 1), x[0], b.t()),
        ((3, None), x.movedim(0, 3), b[0]),
    ):
        found = torch.func.vmap(_layer, in_dims)(images, biases)
        each = [
            _layer(x[i if in_dims[0] is not None else 0], b[i if in_dims[1] is not None else 0], "ref")
            for i in range(4)
        ]
        torch.testing.assert_close(found, torch.stack(each), rtol=0, atol=1e-10)
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(torch.func.vmap(_layer)(leaf, b).square().sum(), leaf)
    (wanted,) = torch.autograd.grad(
        torch.stack([_layer(leaf[i], b[i], "ref") for i in range(4)]).square().sum(), leaf
    )
    torch.testing.assert_close(dx, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernels", [False, True])
def test_gradients_per_sample(kernels: bool, request) -> None:
    if kernels:
        request.getfixturevalue("host")
    x, b = normal(3, 2, 7, 8), normal(2, seed=1)
    found = torch.func.vmap(torch.func.grad(lambda b, x: _layer(x[None], b).square().sum()), (None, 0))(b, x)
    for i in range(3):
        leaf = b.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(_layer(x[i : i + 1], leaf).square().sum(), leaf)
        torch.testing.assert_close(found[i], wanted, rtol=0, atol=1e-9)


def test_autocast_keeps_the_input_dtype(host) -> None:  # noqa: F811
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
        y = bias_act(x, torch.zeros(4, requires_grad=True), act="lrelu")
    assert x.dtype == y.dtype == torch.bfloat16


@pytest.mark.parametrize("act", range(3, 9))
def test_third_derivative_of_bias_act(ops, act: int) -> None:
    """Against the reference implementation, which torch differentiates by itself."""

    def third(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        x, b = normal(2, 3).requires_grad_(), normal(3, seed=1).requires_grad_()
        (first,) = torch.autograd.grad(function(x, b).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), b, create_graph=True)
        return torch.cat(
            [
                t.flatten()
                for t in torch.autograd.grad(
                    second.square().sum(), (x, b), allow_unused=True, materialize_grads=True
                )
            ]
        )

    name = list(activation_funcs)[act]
    wanted = third(lambda x, b: bias_act(x, b, 1, name, 0.3, 1.5, impl="ref"))
    torch.testing.assert_close(third(lambda x, b: ops.bias_act(x, b, 1, act, 0.3, 1.5, -1.0)), wanted)


def test_filters_that_learn_use_torchs_own_operations(host) -> None:  # noqa: F811
    f = normal(4).requires_grad_()
    assert library.namespace_for(normal(1, 1, 4, 4), f) is None
    assert library.namespace_for(normal(1, 1, 4, 4), f.detach()) == NAMESPACE
    (df,) = torch.autograd.grad(upfirdn2d(normal(1, 1, 6, 6), f).sum(), f)
    assert df.shape == f.shape
