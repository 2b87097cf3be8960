# SPDX-License-Identifier: Apache-2.0
"""Predicts the time of a training step on a GPU from its operations, without a GPU.

One micro-batch of every part of the step runs on the meta device, on the operators that CUDA tensors take.
Each operation counts its FLOPs, the bytes of its inputs and outputs, and one kernel. On a GPU it takes as
long as the slower of arithmetic and memory; the host needs a fixed time per operation, and the step takes as
long as the slower of device and host (the roofline model: Williams, Waterman and Patterson, 2009). The result
is a lower bound for these operations: no kernel reaches both limits.

The same counts and the peak of a run's GPU give its model FLOPs utilisation (MFU; Chowdhery et al., 2022).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from dnnlib.util import reason
from torch_utils import devices, distributed, features, timm_weights, training_stats, watchdog
from torch_utils.ops.backend import library
from training import steps
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.inputs import InputSource
from training.networks.stems import Lineage
from training.run import plan
from training.state import TrainState

META = torch.device("meta")
HOST_SECONDS = 6e-6  # of the host per operation: an assumption
ADAM_BYTES = 28  # per parameter: reads the gradient; reads and writes weight and both moments, in float32
EMA_BYTES = 12  # per parameter: reads the weight, reads and writes its average
NORM_BYTES = 4  # per gradient: reads it
SMALLEST = 20_000_000  # parameters of a generator for which a prediction is printed
REST, UPDATE = "losses and augmentation", "optimizers and EMA"


@dataclass(frozen=True)
class Gpu:
    """FLOP/s by type, and bytes/s of a copy, that kernels reach."""

    name: str
    half: float
    tf32: float
    single: float
    bandwidth: float

    def seconds(self, op: Op, tf32: bool) -> float:
        """Seconds of an operation on the device."""
        rate = self.half if op.half else self.tf32 if tf32 else self.single
        return max(op.flops / rate, op.bytes / self.bandwidth)


# bfloat16 and bandwidth: measured on such devices elsewhere. TF32 is half of bfloat16, and float32 is 67
# TFLOP/s, in the manufacturer's data sheets.
GPUS = (
    Gpu("H100", 790e12, 395e12, 67e12, 3.0e12),
    Gpu("H200", 790e12, 395e12, 67e12, 4.3e12),
)

# Peaks in the manufacturer's data sheets, without sparsity, by the whole name of the device: other variants
# (PCIe, NVL, Ti, laptops, slices of a GPU) have other peaks.
PEAKS = {
    r"NVIDIA H200": Gpu("H200", 989e12, 494e12, 67e12, math.inf),
    r"NVIDIA H100 80GB HBM3": Gpu("H100", 989e12, 494e12, 67e12, math.inf),
    r"(NVIDIA )?A100-\S+": Gpu("A100", 312e12, 156e12, 19.5e12, math.inf),
    r"NVIDIA L40S": Gpu("L40S", 362e12, 183e12, 91.6e12, math.inf),
    r"NVIDIA GeForce RTX 4090": Gpu("RTX 4090", 165e12, 82.6e12, 82.6e12, math.inf),
    r"NVIDIA GeForce RTX 3090": Gpu("RTX 3090", 71e12, 35.6e12, 35.6e12, math.inf),
}


def peak(device_name: str) -> Gpu | None:
    """The peak of a CUDA device by its name; None = unknown. Its memory counts as infinitely fast."""
    return next((gpu for pattern, gpu in PEAKS.items() if re.fullmatch(pattern, device_name)), None)


@dataclass(frozen=True)
class Op:
    """One operation: its part of the step and its counts; half = on 16-bit types."""

    part: str
    flops: float
    bytes: float
    half: bool


class Counter(TorchDispatchMode):
    """Lists the operations that run within.

    Args:
        modules: names of parts of the step, and the modules that are these parts. They do not contain each
            other.
    """

    def __init__(self, modules: Iterable[tuple[str, torch.nn.Module]]) -> None:
        from torch.utils.flop_counter import flop_registry  # imported here because it imports triton

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas = flop_registry
        self.ops: list[Op] = []
        self.part = REST
        self._hooked = WeakTensorKeyDictionary()
        for part, module in modules:
            module.register_forward_pre_hook(functools.partial(self._enter, part))
            module.register_forward_hook(functools.partial(self._leave, part))

    def _enter(self, part: str, module: torch.nn.Module, args: Any) -> None:
        self.part = part
        self._at_gradients(args, REST)  # of its inputs: the backward pass leaves the module

    def _leave(self, part: str, module: torch.nn.Module, args: Any, out: Any) -> None:
        self.part = REST
        self._at_gradients(out, part)

    def _at_gradients(self, tensors: Any, part: str) -> None:
        for x in _tensors(tensors):
            # Hooks run in the order of registration: the output of a part that is the input of the next one
            # keeps its first.
            if x.requires_grad and x not in self._hooked:
                self._hooked[x] = x.register_hook(functools.partial(self._set, part))

    def _set(self, part: str, gradient: torch.Tensor) -> None:
        self.part = part

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        if not outputs or any(x.device != META for x in outputs):
            return out
        count = self.formulas.get(func._overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=out) if count is not None else 0
        size = sum(x.numel() * x.element_size() for x in {id(x): x for x in (*inputs, *outputs)}.values())
        half = outputs[0].dtype in (torch.float16, torch.bfloat16)
        self.ops.append(Op(self.part, float(flops), float(size), half))
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


@dataclass(frozen=True)
class Part:
    """A part of a training step of one process: counts per image of the batch."""

    flops: float
    bytes: float
    ops: float

    @classmethod
    def of(cls, ops: Sequence[Op], images: float) -> Part:
        """The counts of operations that run once for so many images."""
        return cls(sum(o.flops for o in ops) / images, sum(o.bytes for o in ops) / images, len(ops) / images)


@dataclass(frozen=True)
class Step:
    """The operations of one micro-batch, and of the updates, which run once per step."""

    micro_batch: int
    images: int  # of the batch that a process has
    tf32: bool
    ops: tuple[Op, ...]
    update: tuple[Op, ...]

    def parts(self) -> dict[str, Part]:
        """The parts, most FLOPs first, the updates last."""
        names = dict.fromkeys(op.part for op in self.ops)
        found = {n: Part.of([o for o in self.ops if o.part == n], self.micro_batch) for n in names}
        ordered = dict(sorted(found.items(), key=lambda item: -item[1].flops))
        return ordered | {UPDATE: Part.of(self.update, self.images)}

    def device_seconds(self, gpu: Gpu, part: str | None = None) -> float:
        """Seconds of the device per image; part = of this one."""
        chosen = [o for o in self.ops if part in (None, o.part)]
        updates = [o for o in self.update if part in (None, o.part)]
        return (
            sum(gpu.seconds(o, self.tf32) for o in chosen) / self.micro_batch
            + sum(gpu.seconds(o, self.tf32) for o in updates) / self.images
        )

    def host_seconds(self) -> float:
        """Seconds of the host per image, without CUDA graphs."""
        return HOST_SECONDS * (len(self.ops) / self.micro_batch + len(self.update) / self.images)

    def sec_per_kimg(self, gpu: Gpu, graphs: bool = False) -> float:
        """Predicted seconds of a process per thousand of its images; graphs: launched without the host."""
        device = self.device_seconds(gpu)
        return 1000 * (device if graphs else max(device, self.host_seconds()))


@contextlib.contextmanager
def _as_on_cuda() -> Iterator[None]:
    before, library.meta_namespace = library.meta_namespace, library.NAMESPACE
    try:
        with training_stats.unrecorded():
            yield
    finally:
        library.meta_namespace = before


def on_cuda(cfg: TrainConfig) -> TrainConfig:
    """The options with the precisions that `auto` chooses on a GPU with bf16 units."""
    changes = {}
    if cfg.run.precision == "auto":
        changes["run.precision"] = "fp16"
    if cfg.discriminator.precision == "auto":
        changes["discriminator.precision"] = "bf16"
    return cfg.override(changes)


def lines(cfg: TrainConfig, G: Generator) -> list[str]:
    """The lines of --dry-run; none for small networks, whose steps the host bounds.

    Arguments are those of `count`.
    """
    if sum(p.numel() for p in G.parameters()) < SMALLEST:
        return []
    step = count(cfg, G)
    found = [
        f"{step.sec_per_kimg(gpu):.2g} ({step.sec_per_kimg(gpu, True):.2g}) on {gpu.name}" for gpu in GPUS
    ]
    return [
        f"at least {', '.join(found)} seconds per kimg of a process, in brackets with --compile=graphs: "
        "predicted from operations and bytes, not measured"
    ]


class Utilization:
    """MFU: the share of the time in which the GPU could have done the FLOPs of the steps at its peak.

    The FLOPs are those of `count`, of matrix products and convolutions. The peak is that of each one's type.

    Args:
        cfg: settled options.
        dataset: of the run.
        device: of this process; only CUDA devices with a known peak have an MFU.
    """

    def __init__(self, cfg: TrainConfig, dataset: ImageDataset, device: torch.device) -> None:
        self.cfg, self.dataset = cfg, dataset
        self.gpu = peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.seconds = math.nan  # per image, at the peak

    def of(self, images_per_sec: float, lineage: Lineage) -> float | None:
        """The MFU; None = unknown. The first call counts a step, which takes seconds.

        Args:
            images_per_sec: of this process.
            lineage: of the run.
        """
        if self.gpu is None:
            return None
        if math.isnan(self.seconds):
            try:
                with distributed.alone(), watchdog.one_phase():
                    G, _ = plan.plan(self.cfg, self.dataset, lineage=lineage)
                    self.seconds = count(self.cfg, G).device_seconds(self.gpu)
            except Exception as error:  # an estimate must not stop a run
                self.gpu = None
                warnings.warn(f"no Timing/mfu: a step cannot be counted ({reason(error)})", stacklevel=2)
                return None
        return self.seconds * images_per_sec


def count(cfg: TrainConfig, G: Generator) -> Step:
    """Count the operations of a step in which path lengths are not due.

    Args:
        cfg: settled options: the size of micro-batches is a number.
        G: on the meta device; it is copied.
    """
    cfg, G = on_cuda(cfg), copy.deepcopy(G)
    D = plan.plan_discriminator(cfg.discriminator, G.c_dim, G.img_resolution, G.img_channels)
    share, n = cfg.run.batch // cfg.run.gpus, cfg.batch_gpu
    G.synthesis.reduced_dtype = devices.pick_precision(cfg.run.precision, META)
    small = cfg.override({"run.batch": n, "run.gpus": 1, "run.batch_gpu": n, "loss.diagnostics": False})
    classes = np.arange(D.c_dim) if D.c_dim else None
    classifier = _classifier(small)
    modules = [("synthesis", G.synthesis), ("mapping", G.mapping)]
    modules += [("backbones", network) for network in D.feature_networks.values()]
    modules += [("projection", projection) for projection in D.projections.values()]
    modules += [("heads", heads) for heads in D.discriminators.values()]
    modules += [("guidance", classifier)] if classifier is not None else []
    with _as_on_cuda(), Counter(modules) as counter:
        state = TrainState.create(G.train(), D.train(), cfg.optim, cfg.loss.pl_interval)
        state.guard.deferred = True
        for optimizer in (state.g_opt, state.d_opt):
            optimizer.step = lambda: None  # type: ignore[assignment]
        inputs = InputSource.of(small, classes, G.z_dim, META, 1, 0, alpha=G.img_channels == 4)
        shape = (n, G.img_channels, G.img_resolution, G.img_resolution)
        pixels = torch.empty(shape, dtype=torch.uint8, device=META)
        labels = None if classes is None else torch.zeros(n, dtype=torch.int64, device=META)
        counter.ops.clear()
        reals = inputs.real_micro_batches(0, pixels, labels)
        sigma = cfg.blur_init_sigma
        state.D.advance_spectral_norms()
        steps.g_step(state, inputs.micro_batches("G", 0), small.loss, sigma, classifier, reals)
        steps.d_step(state, inputs.micro_batches("D", 0), reals, small.loss, sigma)
    g, d = (sum(p.numel() for p in params.values()) for params in (state.g_params, state.d_params))
    average = sum(p.numel() for p in G.parameters())
    update = [(ADAM_BYTES + NORM_BYTES) * g, (ADAM_BYTES + NORM_BYTES) * d, EMA_BYTES * average]
    return Step(
        n, share, cfg.run.allow_tf32, tuple(counter.ops),
        tuple(Op(UPDATE, 0.0, float(size), False) for size in update),
    )  # fmt: skip


def _classifier(cfg: TrainConfig) -> features.Classifier | None:
    if cfg.loss.cls_weight == 0:
        return None
    size = timm_weights.recorded_size(cfg.loss.cls_weights)
    with META:
        classifier = features.classifier(cfg.loss.cls_model, timm_weights.RANDOM, size=size)
    return classifier.to(dtype=devices.pick_discriminator_precision(cfg.discriminator.precision, META))
