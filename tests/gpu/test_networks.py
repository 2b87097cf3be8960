# SPDX-License-Identifier: Apache-2.0
"""Networks on a device: nothing waits for it, CUDA graphs can hold the generator, images agree with the
CPU's. Skips itself without a device.
"""

import pytest
import torch

from torch_utils import features, timm_weights
from training import generator
from training.discriminator import ProjectedDiscriminator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("full_float32"),
]
CLASSES = 10
SMALL = {"feature_size": 32, "proj_channels": 8, "head_channels": 8, "cond_channels": 8}


@pytest.fixture(params=["stylegan3-t", "stylegan3-r"])
def network(request) -> generator.Generator:
    torch.manual_seed(0)
    stem = generator.build_stem(request.param, 16, CLASSES, syn_layers=5, cbase=1024, cmax=64)
    return generator.build_superres(stem, request.param, 2, 4).eval()


def inputs(network: generator.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, network.z_dim, generator=torch.Generator().manual_seed(1)), torch.arange(4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(None, 2e-4), (torch.float16, 3e-2), (torch.bfloat16, 2e-1)]
)
def test_images_agree_with_the_cpu(network, dtype, tolerance: float) -> None:
    z, c = inputs(network)
    network.synthesis.reduced_dtype = None
    with torch.no_grad():
        wanted = network(z, c)
        network.cuda().synthesis.reduced_dtype = dtype
        found = network(z.cuda(), c.cuda()).cpu()
    assert float((found - wanted).norm() / wanted.norm()) < tolerance


def test_a_pass_forwards_and_backwards_does_not_wait_for_the_device(network) -> None:
    z, c = (t.cuda() for t in inputs(network))
    network.cuda().synthesis.reduced_dtype = torch.float16
    D = ProjectedDiscriminator(
        [features.load(timm_weights.LITE0, timm_weights.RANDOM)], CLASSES, network.img_resolution, **SMALL
    ).cuda()

    def call() -> None:
        logits = D(network(z, c), c)
        sum(x.fun.mean() for x in logits.values()).backward()

    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_holds_the_generator(network) -> None:
    z, c = (t.cuda() for t in inputs(network))
    network.cuda().synthesis.reduced_dtype = torch.float16
    with torch.no_grad():
        ws = network.mapping(z, c)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            network.synthesis(ws)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = network.synthesis(ws)
        ws.copy_(network.mapping(-z, c))
        graph.replay()
        wanted = network.synthesis(ws)
    assert (
        float((found - wanted).norm() / wanted.norm()) < 1e-2
    )  # another algorithm may be chosen for the same convolution
