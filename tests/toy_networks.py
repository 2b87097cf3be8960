# SPDX-License-Identifier: Apache-2.0
"""Small networks and network files."""

import pickle
from pathlib import Path

import torch

from torch_utils.persistence import save_network_pickle
from training.generator import Generator, build_stem, build_superres, generator_kwargs

SMALL = dict(syn_layers=4, cbase=64, cmax=4, z_dim=4, w_dim=8, embed_dim=3)


def network(seed=0):
    torch.manual_seed(seed)
    return build_superres(build_stem("stylegan3-r", 16, 3, num_embeddings=5, **SMALL), "stylegan3-t", 2, 4)


def write_network(path: Path, trained_on: Path | None, c_dim: int = 3, **provenance: object) -> Path:
    torch.manual_seed(0)
    G = build_stem("stylegan3-t", 16, c_dim, syn_layers=6, cbase=256, cmax=8)
    kwargs = {"path": None if trained_on is None else str(trained_on)}
    save_network_pickle(path, {"G_ema": G, "training_set_kwargs": kwargs, "provenance": provenance})
    return path


def same(a, b):
    """Two network files hold the same, to the bit."""
    assert a.generators.keys() == b.generators.keys() and a.tensors.keys() == b.tensors.keys()
    for key, G in a.generators.items():
        assert generator_kwargs(G) == generator_kwargs(b.generators[key])
        states = G.state_dict(), b.generators[key].state_dict()
        assert list(states[0]) == list(states[1])
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for key, tensors in a.tensors.items():
        assert list(tensors) == list(b.tensors[key]) and all(
            torch.equal(value, b.tensors[key][name]) for name, value in tensors.items()
        )
    assert (a.training_set_kwargs, a.provenance, a.extra) == (b.training_set_kwargs, b.provenance, b.extra)


SOURCE = """
import os
import torch
from torch_utils import persistence
os.environ["WEIGHTS_TEST_RAN"] = "yes"

class Part(torch.nn.Module):
    pass

@persistence.persistent_class
class Generator(torch.nn.Module):
    z_dim, c_dim, w_dim, img_resolution, img_channels, num_ws = 4, 3, 4, 8, 3, 1
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones([]))
    def mapping(self, z, c, truncation_psi=1):
        assert c.shape == (len(z), 3) and c.is_floating_point()
        return (z * c.sum(dim=1, keepdim=True) * truncation_psi)[:, None, :]
    def synthesis(self, ws, noise_mode="const"):
        return ws.sum(dim=2)[:, :, None, None].repeat(1, 3, 8, 8) * self.scale
"""


def write_foreign(path: Path) -> Path:
    """A pickle whose generator only its own source can run, and whose D is of a class that is not here."""
    state = torch.nn.Module().__dict__ | {"_parameters": {"scale": torch.nn.Parameter(torch.tensor(2.0))}}
    meta = dict(
        type="class", version=6, module_src=SOURCE + f"# {path}\n", class_name="Generator", state=state
    )

    class Foreign:
        def __reduce__(self):
            from torch_utils.persistence import _reconstruct_persistent_obj

            return _reconstruct_persistent_obj, (meta,)

    content = pickle.dumps({"G": None, "D": torch.nn.Linear(1, 1), "G_ema": Foreign()}, protocol=4)
    content = content.replace(b"\x8c\x17torch.nn.modules.linear", b"\x8c\x17pg_modules.not.existing")
    path.write_bytes(content)
    return path


NAMES = ["cat", "grinning face", "red-panda"]


def tiny(c_dim: int) -> Generator:
    torch.manual_seed(0)
    G = build_stem("stylegan3-t", 16, c_dim, syn_layers=6, cbase=256, cmax=8).eval()
    with torch.no_grad():
        G.mapping.w_avg.normal_()
        G.synthesis.output_scale = 1.0
    return G


def write_networks(path: Path) -> Path:
    """Network files of three classes with and without names, and of none."""
    for name, c_dim, provenance in (
        ("cond", 3, {"class_names": NAMES}),
        ("nameless", 3, {}),
        ("uncond", 0, {}),
    ):
        save_network_pickle(
            path / f"{name}.pkl",
            {"G_ema": tiny(c_dim), "training_set_kwargs": {"path": "/nowhere.zip"}, "provenance": provenance},
        )
    return path
