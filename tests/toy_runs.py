# SPDX-License-Identifier: Apache-2.0
"""Training runs of a few steps on the smallest networks that have every part."""

from pathlib import Path

import torch

from tests.quick_processes import Script
from tests.support import ROOT
from torch_utils import checkpoint
from training import loop
from training.config import FLAGS as FLAGS_OF_OPTIONS
from training.config import TrainConfig

# timm's own network for tests, in the place of Lite0 with its tenfold number of layers.
BACKBONE = "test_efficientnet"
LITE0_BACKBONE = {
    "discriminator__backbones": ["tf_efficientnet_lite0"],
    "discriminator__backbone_weights": {},
}
# The smallest network that still has every part.
TINY = {
    "generator.syn_layers": 4,
    "generator.cbase": 128,
    "generator.cmax": 4,
    "generator.z_dim": 8,
    "generator.w_dim": 16,
    "generator.margin_size": 2,
    "discriminator.backbones": [BACKBONE],
    "discriminator.backbone_weights": {BACKBONE: "random"},
    "discriminator.feature_size": 32,
    "discriminator.proj_channels": 4,
    "discriminator.head_channels": 4,
    "discriminator.cond_channels": 8,
    "discriminator.precision": "fp32",
    "data.class_embedding": "random",
    "data.embed_dim": 8,
    "run.batch": 8,
    "run.tick": 0.016,
    "run.snap": 1,
    "run.kimg": 0.032,
    "run.metrics": [],
    "run.device": "cpu",
    "run.grid": "2x2",
}


def _text(value: object) -> object:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return ",".join(value) or "none" if isinstance(value, list) else value


FLAGS = [
    f"--{flag.replace('_', '-')}={_text(value)}"
    for flag, option in FLAGS_OF_OPTIONS.items()
    if (value := TINY.get(option.name)) is not None
]


def command_line(outdir: object, data: object, *more: str) -> list[str]:
    """Arguments of train.py for a class-conditional toy run in one process."""
    return [
        f"--outdir={outdir}",
        f"--data={data}",
        "--cfg=stylegan3-t",
        "--gpus=1",
        "--cond=True",
        *FLAGS,
        *more,
    ]


def config(data: str, **changes) -> TrainConfig:
    cfg = TrainConfig().override(
        {
            **TINY,
            "data.path": data,
            "data.cond": True,
            **{k.replace("__", "."): v for k, v in changes.items()},
        }
    )
    cfg.validate()
    return cfg


def train_here(cfg: TrainConfig, run_dir: Path) -> str:
    run_dir.mkdir(exist_ok=True)
    return loop.train(cfg, str(run_dir), torch.device("cpu"))


def final_state(run_dir: Path) -> dict:
    path = checkpoint.latest(run_dir / "checkpoints")
    assert path is not None
    return checkpoint.load(path)["train"]


def assert_equal_states(a, b, where: str = "") -> None:
    """Bit for bit, but for the clock."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_equal_states(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_states(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


class Killed(BaseException):
    """In the place of SIGKILL: nothing gets to clean up after it in the loop's own code."""


def start_training(arguments: list[str]) -> Script:
    return Script(ROOT / "train.py", arguments)
