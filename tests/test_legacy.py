# SPDX-License-Identifier: Apache-2.0
"""legacy.py and visualizer.py: what scripts and users of StyleGAN look for."""

import io

import pytest
import torch

import dnnlib
import legacy
import visualizer
from tests.support import ROOT, run


def test_scripts_of_stylegan_load_networks(toy_networks, foreign):
    with dnnlib.util.open_url(str(toy_networks / "cond.pkl")) as f:
        found = legacy.load_network_pkl(f)
    G = found["G_ema"].eval().requires_grad_(False).to("cpu")
    label = torch.zeros([1, G.c_dim])
    label[:, 1] = 1
    img = G(torch.randn(1, G.z_dim), label, truncation_psi=0.5, noise_mode="const")
    assert img.shape == (1, 3, 16, 16) and found["G"] is G and found["augment_pipe"] is None
    with open(ROOT / "tests/parity/goldens/pickles/superres_t_16to32_cond10.pkl", "rb") as f:
        published = legacy.load_network_pkl(f, force_fp16=True)
    assert published["G_ema"].synthesis.reduced_dtype == torch.float16
    with open(foreign, "rb") as f, pytest.raises(ValueError, match=r"foreign\.pkl"):
        legacy.load_network_pkl(f)
    with pytest.raises(ValueError, match="pickles of TensorFlow are not supported"):
        legacy.load_network_pkl(io.BytesIO(b"\x80\x03cdnnlib.tflib.network\nNetwork\n."))


@pytest.mark.parametrize(
    ("script", "message"), [(legacy, "python convert.py"), (visualizer, "python viewer.py --network=FILE")]
)
def test_the_published_scripts_name_what_took_their_place(script, message):
    for args in ([], ["--source=a.pkl", "--help"], ["a.pkl", "b"]):
        output = run(script.main, *args, code=1).output
        assert message in output and len(output.strip().splitlines()) == 1
