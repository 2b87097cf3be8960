# SPDX-License-Identifier: Apache-2.0
"""Generators of the sizes in gen_*: what the parity tests of generator, pickles and losses build on."""

import json
from typing import Any

import numpy as np
import torch

from tests.parity.fill import GOLDENS
from training.generator import STEM_CONFIGS, Generator, build_stem, build_superres

STEMS = ("gen_stem_t", "gen_stem_r", "gen_stem_t_uncond")
HEADS = {  # configuration, stem
    "gen_sr_t_16to32_h4": ("stylegan3-t", "gen_stem_t"),
    "gen_sr_tr_16to32_h4": ("stylegan3-r", "gen_stem_t"),
    "gen_sr_r_16to32_h7": ("stylegan3-r", "gen_stem_r"),
    "gen_sr_t_16to64_h5": ("stylegan3-t", "gen_stem_t"),
    "gen_sr2_t_32to64_h4": ("stylegan3-t", "gen_sr_t_16to32_h4"),
}


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and configuration of a golden. A head's weights include its stem's, which its file leaves
    out.
    """
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)
    if name in HEADS:
        stem, _ = golden(HEADS[name][1])
        arrays = {**{key: value for key, value in stem.items() if key.startswith("sd/")}, **arrays}
    return arrays, json.loads((GOLDENS / f"{name}.json").read_text())


def build(name: str) -> Generator:
    """The generator of a golden with its weights."""
    arrays, info = golden(name)
    if name in HEADS:
        config, stem = HEADS[name]
        generator = build_superres(
            build(stem), config, info["kwargs"]["up_factor"], info["kwargs"]["head_layers"]
        )
    else:
        kwargs = info["kwargs"]
        config = "stylegan3-r" if kwargs["use_radial_filters"] else "stylegan3-t"
        width = STEM_CONFIGS[config]["width"]
        generator = build_stem(
            config,
            kwargs["img_resolution"],
            kwargs["c_dim"],
            syn_layers=kwargs["num_layers"],
            cbase=kwargs["channel_base"] // width,
            cmax=kwargs["channel_max"] // width,
            num_embeddings=len(arrays["sd/mapping.embed.weight"]),
            z_dim=kwargs["z_dim"],
            w_dim=kwargs["w_dim"],
            magnitude_ema_beta=kwargs["magnitude_ema_beta"],
        )
    own = generator.state_dict()
    weights = {key: torch.from_numpy(arrays["sd/" + key]).reshape(value.shape) for key, value in own.items()}
    generator.load_state_dict(weights)
    return generator
