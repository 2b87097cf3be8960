# SPDX-License-Identifier: Apache-2.0
"""Full-size layer tables and parameter counts of the published schedules, on the meta device."""

import json

import numpy as np
import pytest
import torch

from tests.parity.fill import GOLDENS
from training.generator import build_stem, build_superres

pytestmark = pytest.mark.once

PUBLISHED_TABLE = 1000  # rows of the class table that published networks carry


@pytest.mark.parametrize("name", ["imagenet_t_syn10", "imagenet_t_syn11", "cifar10_r_syn6", "ffhq_syn6"])
def test_every_stage_of_a_schedule(name):
    info = json.loads((GOLDENS / f"structure_{name}.json").read_text())
    heads = iter(info["heads"])
    generator = None
    with torch.device("meta"):
        for stage in info["stages"]:
            beta = stage["layers"][-1]["magnitude_ema_beta"]
            if generator is None:
                generator = build_stem(
                    info["stem_cfg"],
                    stage["res"],
                    info["c_dim"],
                    syn_layers=info["syn_layers"],
                    num_embeddings=PUBLISHED_TABLE,
                    magnitude_ema_beta=beta,
                )
            else:
                resolution, config, head_layers = next(heads)
                generator = build_superres(
                    generator,
                    config,
                    resolution // generator.img_resolution,
                    head_layers,
                    magnitude_ema_beta=beta,
                )
                assert generator.head_layer_names == stage["head_layer_names"]
                trained = sum(p.numel() for p in generator.parameters() if p.requires_grad)
                assert trained == stage["params"]["head_only"]
            _compare(generator, stage)


def _compare(generator, stage):
    assert (generator.num_ws, generator.img_resolution) == (stage["num_ws"], stage["img_resolution"])
    assert (generator.channel_base, generator.channel_max) == (stage["channel_base"], stage["channel_max"])
    assert sum(p.numel() for p in generator.parameters()) == stage["params"]["total"]
    assert sum(p.numel() for p in generator.mapping.parameters()) == stage["params"]["mapping_total"]
    assert sum(b.numel() for b in generator.buffers()) == stage["n_buffers"]
    names = [layer["name"] for layer in stage["layers"]]
    assert ["input", *generator.synthesis.layer_names][-len(names) :] == names
    for published in stage["layers"]:
        module = getattr(generator.synthesis, published["name"])
        assert sum(p.numel() for p in module.parameters()) == published["params"]
        for key in ("up_filter", "down_filter"):
            if hasattr(module, key):
                shape = None if getattr(module, key) is None else list(getattr(module, key).shape)
                assert shape == published[f"{key}_shape"]
        compared = [key for key in published if hasattr(module, key)]
        assert len(compared) >= 4
        for key in compared:
            np.testing.assert_allclose(
                getattr(module, key), published[key], rtol=1e-9, err_msg=f"{published['name']}.{key}"
            )


def test_image_net_sizes():
    """Parameters in millions and num_ws at 16, 32, 64, 128 and 256 pixels."""
    with torch.device("meta"):
        generator = build_stem("stylegan3-t", 16, 1000, syn_layers=10)
        found = [(generator.parameters(), generator.num_ws)]
        for _ in range(4):
            generator = build_superres(generator, "stylegan3-t", 2, 7)
            found.append((generator.parameters(), generator.num_ws))
    assert [round(sum(p.numel() for p in parameters) / 1e6, 1) for parameters, _ in found] == [
        101.9,
        151.7,
        201.5,
        225.9,
        233.4,
    ]
    assert [num_ws for _, num_ws in found] == [12, 17, 22, 27, 32]
