# SPDX-License-Identifier: Apache-2.0
"""Whole training steps with every tensor on one device that is not the CPU: nothing is left behind, or made,
on another, and no value is read, for which the host would wait.

The device is torch's "meta" under FakeTensorMode: shapes, types and devices are those of real tensors, an
operation on tensors of two devices raises, as on a GPU, and there are no values. Its tensors go through the
operators that CUDA tensors take.
"""

import ast
import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import ROOT
from torch_utils import cpu_speed, devices, features, timm_weights, training_stats
from torch_utils.ops.backend import library
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from training import build, generator, steps
from training.config import DiscriminatorConfig, TrainConfig
from training.inputs import InputSource
from training.state import TrainState

DEVICE = torch.device("meta")
CLASSES = 10
TINY = {
    "feature_size": 32,
    "proj_channels": 8,
    "head_channels": 8,
    "cond_channels": 8,
    "backbones": [timm_weights.LITE0],
}


def fake(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE)


def moved(module: torch.nn.Module) -> Any:
    """The module with its parameters and buffers on DEVICE. Any other tensor that it holds stays real, and
    raises where it is used.
    """
    seen: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, t in tensors.items():
                if t is None:
                    continue
                if id(t) not in seen:
                    seen[id(t)] = (
                        torch.nn.Parameter(fake(t), t.requires_grad)
                        if tensors is part._parameters
                        else fake(t)
                    )
                tensors[name] = seen[id(t)]
    return module


def moved_round(r: Any) -> Any:
    """A round of inputs on DEVICE."""
    fields = {
        name: fake(value)
        if isinstance(value, torch.Tensor)
        else {key: fake(t) for key, t in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in r._asdict().items()
    }
    return r._replace(**fields)


class Waits(TorchDispatchMode):
    """Refuses copies to the host. Operations whose result depends on values raise under FakeTensorMode."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            assert all(x.device.type == "cpu" for x in tensors), f"{func} waits for the device"
        return result


def masked_step(optimizer: torch.optim.Optimizer) -> None:
    """A step without CUDA's single kernel over all weights, which takes the guard's flag."""
    flag = optimizer.found_inf  # type: ignore[attr-defined]
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    assert flag.device == DEVICE and params and all(p.grad.device == DEVICE for p in params)
    del optimizer.found_inf  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=True, capturable=False)
    type(optimizer).step(optimizer)
    optimizer.found_inf = flag  # type: ignore[attr-defined]


@pytest.fixture
def cuda_paths(monkeypatch) -> None:
    """Tensors of DEVICE go through the operators as CUDA tensors do."""
    monkeypatch.setattr(library, "namespace_for", lambda x, *filters, opaque=True: library.NAMESPACE)


def stem(family: str) -> generator.Generator:
    return generator.build_stem(family, 16, CLASSES, syn_layers=5, cbase=256, cmax=16)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    ("family", "superres", "precision", "d_precision"),
    [("stylegan3-t", True, "fp16", "bf16"), ("stylegan3-r", False, "bf16", "fp32")],
)
def test_a_training_step_stays_on_its_device_and_never_waits_for_it(
    cuda_paths, monkeypatch, family: str, superres: bool, precision: str, d_precision: str
) -> None:
    cfg = TrainConfig().override(
        {
            "run.batch": 4,
            "discriminator.precision": d_precision,
            **{f"discriminator.{k}": v for k, v in TINY.items()},
        }
    )
    cfg = cfg.override(
        {
            "discriminator.backbone_weights": {timm_weights.LITE0: timm_weights.RANDOM},
            "loss.diagnostics": False,
            "loss.cls_weight": 1,
            "loss.energy_weight": 1,
        }
    )
    G = generator.build_superres(stem(family), family, 2, 4) if superres else stem(family)
    G.synthesis.reduced_dtype = devices.pick_precision(precision, torch.device("cuda"))
    D = build.make_discriminator(cfg.discriminator, CLASSES, G.img_resolution, 0)
    classifier = features.classifier("resnet10t", timm_weights.RANDOM)
    classifier.class_map = torch.arange(CLASSES)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    cpu_inputs = InputSource(
        seed=0, z_dim=G.z_dim, labels=np.arange(CLASSES), backbones=cfg.discriminator.backbones,
        device=torch.device("cpu"), batch=4,
        processes=1, rank=0, batch_gpu=4,
    )  # fmt: skip
    pixels = torch.zeros(4, 3, G.img_resolution, G.img_resolution, dtype=torch.uint8)
    drawn = [
        cpu_inputs.micro_batches("G", 0),
        cpu_inputs.micro_batches("path_length", 0, 2),
        cpu_inputs.real_micro_batches(0, pixels, torch.arange(4)),
    ]
    with FakeTensorMode(), Waits(), training_stats.unrecorded():
        state = TrainState.create(moved(G).train(), moved(D).train(), cfg.optim, 0)
        state.G_ema = moved(G_ema)  # the copy of a fake tensor has a mode of its own
        state.guard.deferred = True  # as on CUDA
        for optimizer in (state.g_opt, state.d_opt):
            monkeypatch.setattr(optimizer, "step", functools.partial(masked_step, optimizer))
        rounds, pl_rounds, reals = ([moved_round(r) for r in part] for part in drawn)
        state.D.advance_spectral_norms()
        steps.g_step(state, rounds, cfg.loss, 2.0, moved(classifier), reals)
        if not superres:
            steps.path_length_step(state, pl_rounds, cfg.loss, 0)
        steps.d_step(state, rounds, reals, cfg.loss, 2.0)
        state.update_ema(0.99)
        state.guard.end_step()


def test_a_tensor_left_on_the_cpu_is_noticed(cuda_paths) -> None:
    G = stem("stylegan3-t")
    z = torch.zeros(2, G.z_dim)
    with FakeTensorMode():
        moved(G)
        G.mapping(fake(z), torch.zeros(2, dtype=torch.int64, device=DEVICE))
        layer = next(
            m for m in G.mapping.modules() if isinstance(getattr(m, "weight", None), torch.nn.Parameter)
        )
        layer._parameters["weight"] = torch.nn.Parameter(
            torch.empty(layer.weight.shape, dtype=layer.weight.dtype)
        )
        with pytest.raises(RuntimeError, match="device"):
            G.mapping(fake(z), torch.zeros(2, dtype=torch.int64, device=DEVICE))


def test_a_bias_of_another_device_is_refused(cuda_paths) -> None:
    x, f = torch.zeros(1, 4, 40, 40, device=DEVICE), torch.ones(12, device=DEVICE)
    with pytest.raises(ValueError, match="the bias is on cpu, x on meta"):
        bias_act(x, torch.zeros(4))
    with pytest.raises(ValueError, match="the bias is on cpu, x on meta"):
        filtered_lrelu(x, f, f, torch.zeros(4), up=2, down=2, padding=9)


@pytest.mark.parametrize("faster", [True, False])
def test_automatic_precision_follows_a_measurement_on_cpus_and_the_units_of_gpus(monkeypatch, faster):
    monkeypatch.setattr(cpu_speed, "choices", lambda: cpu_speed.Choices(bf16=faster, bf16_ratio=2.0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: faster)
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    assert devices.pick_precision("auto", cpu) == (torch.bfloat16 if faster else None)
    assert [devices.pick_precision("auto", device) for device in (cuda, mps)] == [torch.float16, None]
    expected = torch.bfloat16 if faster else torch.float32
    assert all(devices.pick_discriminator_precision("auto", device) == expected for device in (cpu, cuda))
    assert all(
        devices.pick_discriminator_precision("auto", device) == torch.float32 for device in (mps, None)
    )
    assert devices.pick_discriminator_precision("bf16", None) == torch.bfloat16
    assert build.discriminator_options(DiscriminatorConfig(), cpu)["compute_dtype"] == expected
    assert build.describe_precision(TrainConfig(), cuda) is None
    assert "2 times as fast" in str(build.describe_precision(TrainConfig(), cpu))


def test_commands_keep_freed_memory_on_a_cpu(monkeypatch):
    kept = []
    monkeypatch.setattr(devices.memory, "keep_freed_memory", lambda: kept.append(True))
    assert devices.use_device("cpu") == torch.device("cpu") and kept == [True]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.use_device("mps") == torch.device("mps") and kept == [True]


def test_only_checks_and_the_library_choose_a_device_without_using_it():
    """What runs networks on its own calls `use_device`; a command with `pick_device` would be slower."""
    library, plans = {"generation/network.py"}, {"training/run/auto_batch.py", "training/run/plan.py"}
    mistakes_first, own_precision = {"generation/measure_command.py"}, {"demo.py"}
    folders = ("generation", "metrics", "training")
    files = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "pick_device"
    }
    assert found == library | plans | mistakes_first | own_precision
