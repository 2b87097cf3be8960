# SPDX-License-Identifier: Apache-2.0
"""The published 256-pixel stage of ImageNet at full size on a CPU: two steps of the real loop within 24 GiB.

Weights are random, images synthetic. Takes many minutes; prints memory and times.

    python -m pytest -m slow tests/e2e/test_full_size.py -s
    python -m tests.e2e.test_full_size FOLDER    # without pytest, files in FOLDER
"""

import io
import json
import resource
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import waiting
from torch_utils import devices, persistence, timm_weights
from training import loop, run_folder
from training.config import BACKBONES, TrainConfig
from training.generator import build_stem, build_superres

CLASSES, LIMIT_GIB = 1000, 24
ROOT = Path(__file__).resolve().parents[2]


def write_images(path: Path) -> None:
    """1,000 classes of one 256x256 image each; eight different images, so that it takes no time."""
    noise = np.random.RandomState(0)
    files = []
    for _ in range(8):
        coarse = Image.fromarray(noise.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, format="PNG", compress_level=1)
        files.append(buffer.getvalue())
    names = [f"00000/img{i:08d}.png" for i in range(CLASSES)]
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, files[i % len(files)])
        archive.writestr("dataset.json", json.dumps({"labels": [[name, i] for i, name in enumerate(names)]}))


def write_stem(path: Path) -> None:
    """A network of 128x128 pixels as the published stages make it: a stem of 16x16 and 10 layers, then 32,
    64, 128 with heads of 7.
    """
    torch.manual_seed(0)
    G = build_stem("stylegan3-t", 16, CLASSES, syn_layers=10)
    for _ in range(3):
        G = build_superres(G, "stylegan3-t", 2, 7)
    persistence.save_network_pickle(
        str(path), {"G": None, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
    )


class Steps:
    """In the place of what writes a run folder: the time of every step, nothing on the disk."""

    state = None
    seconds: list[float] = []

    def __init__(self, *args) -> None:
        self.before = time.monotonic()

    def begin(self, state, running=None) -> None:
        Steps.state = state
        Steps.start = {name: p.detach().clone() for name, p in state.g_params.items()}
        self.before = time.monotonic()

    def bar(self, state) -> None:
        Steps.seconds.append(time.monotonic() - self.before)
        self.before = time.monotonic()

    def checkpoint_is_due(self) -> bool:
        return False

    def tick(self, *args) -> None: ...

    def end(self, *args) -> None: ...


def two_steps(folder: Path, batch: int = 2) -> dict:
    """Train two steps and tell what they took."""
    write_images(folder / "imagenet256.zip")
    write_stem(folder / "stem128.pkl")
    config = TrainConfig().override(
        {
            **{"data.path": str(folder / "imagenet256.zip"), "data.cond": True, "data.mirror": True},
            **{
                "generator.superres": True,
                "generator.path_stem": str(folder / "stem128.pkl"),
                "generator.head_layers": 7,
            },
            **{"discriminator.backbone_weights": dict.fromkeys(BACKBONES, timm_weights.RANDOM)},
            **{"loss.cls_weight": 8.0, "loss.cls_weights": timm_weights.RANDOM},
            **{
                "run.batch": batch,
                "run.kimg": 2 * batch / 1000,
                "run.tick": 1.0,
                "run.metrics": [],
                "run.device": "cpu",
            },
        }
    )
    config.validate()
    loop.Periodic = Steps
    outcome = loop.train(config, str(folder), devices.pick_device("cpu"))
    state = Steps.state
    tensors = [
        *state.G.state_dict().values(),
        *state.G_ema.state_dict().values(),
        *state.D.saved_state_dict().values(),
    ]
    return {
        "outcome": outcome,
        "images": state.progress.nimg,
        "resolution": state.G.img_resolution,
        "parameters": sum(p.numel() for p in state.G.parameters()),
        "trained": sum(p.numel() for p in state.g_params.values()),
        "heads": sum(p.numel() for p in state.d_params.values()),
        "finite": all(bool(torch.isfinite(t).all()) for t in tensors),
        "moved": all(not torch.equal(p, Steps.start[name]) for name, p in state.g_params.items()),
        "precision": str(state.G.synthesis.reduced_dtype),
        "seconds": Steps.seconds,
        "cpu_seconds": time.process_time(),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # Linux counts in KiB
    }


@pytest.mark.slow
def test_two_steps_of_the_256_stage(tmp_path):
    # In a process of its own, whose memory is this stage's alone.
    done = waiting.run([sys.executable, "-m", "tests.e2e.test_full_size", str(tmp_path)], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["outcome"] == run_folder.FINISHED and found["images"] == 4 and found["resolution"] == 256
    assert (
        round(found["parameters"] / 1e6, 1) == 233.4
    )  # the published network's (tests/parity/test_structure.py)
    assert found["finite"] and found["moved"]
    assert found["gib"] < LIMIT_GIB


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(json.dumps(two_steps(target)))
