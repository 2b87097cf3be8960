# SPDX-License-Identifier: Apache-2.0
"""The parts 'networks' and 'steps' of benchmarks/gpu.py, in a process of their own.

    python benchmarks/gpu_training.py --part=steps --results=benchmarks/results/gpu.json --stages=16

The results are added to a file that benchmarks/gpu.py has begun.

An error of a kernel makes a CUDA device unusable for its process. A process that meets one ends with the
status `UNUSABLE`; the next one begins with the next case. Networks have random weights, also the frozen ones;
the speed does not depend on them.
"""

import dataclasses
import functools
import gc
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_results import Results, one_line
from torch_utils import timm_weights
from torch_utils.ops.backend import extension
from training import build, compiled, generator, steps
from training.config import TrainConfig
from training.inputs import InputSource
from training.networks.stems import Lineage
from training.run import plan, roofline
from training.state import TrainState

UNUSABLE = 9  # exit status
CLASSES = 1000
BATCHES = {16: 256, 32: 256, 64: 128, 128: 64, 256: 32}
SMALL_BATCH = 8
# Largest ||found - wanted|| / ||wanted|| of a step's gradients, where wanted is float32 on the CPU. The
# values of reduced types are about five times those on a CPU; larger differences are errors and not rounding.
_FAR = {"float32": 1e-2, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 0.4}


@dataclasses.dataclass(frozen=True)
class Levers:
    """The optimisations that a measurement of the training step uses."""

    name: str
    precision: str = "auto"  # float16 on a GPU
    d_precision: str = "auto"  # bfloat16 on a GPU
    channels_last: bool = False
    compiled: str = "off"  # as --compile
    tensor_cores: bool = False  # of filtered_lrelu
    tf32: bool = True
    fused: bool = True
    batch_factor: int = 1
    micro_batch: int | None = None  # images; None = the whole batch


LEVERS = (
    Levers("as train.py does it"),
    Levers("discriminator in fp32, without TF32, as published", d_precision="fp32", tf32=False),
    Levers("discriminator in fp32", d_precision="fp32"),
    Levers("compiled", compiled="regions"),
    Levers("CUDA graphs", compiled="graphs"),
    Levers("micro-batches of 8 images", micro_batch=8),
    Levers("micro-batches of 8 images, CUDA graphs", micro_batch=8, compiled="graphs"),
    Levers("filtered_lrelu on tensor cores", tensor_cores=True),
    Levers("float32 generator", precision="fp32"),
    Levers("bfloat16 generator", precision="bf16"),
    Levers("channels_last", channels_last=True),
    Levers("twice the batch", batch_factor=2),
    Levers("four times the batch", batch_factor=4),
    Levers("Adam in separate kernels", fused=False),
)


def published_generator(resolution: int, small: bool) -> generator.Generator:
    """Return the ImageNet network (-t) of a stage with new weights: a stem at 16 pixels, then heads."""
    sizes = {"syn_layers": 5, "cbase": 256, "cmax": 16} if small else {"syn_layers": 10}
    G = generator.build_stem("stylegan3-t", 16, CLASSES, **sizes)
    while G.img_resolution < resolution:
        G = generator.build_superres(G, "stylegan3-t", 2, 4 if small else 7)
    return G


def make_config(
    small: bool, batch: int, levers: Levers, backbones: tuple[str, ...] | None = None
) -> TrainConfig:
    """Return the published options; `small`: those of a network that a CPU trains in seconds."""
    cfg = TrainConfig().override(
        {"run.batch": batch, "run.precision": levers.precision, "discriminator.precision": levers.d_precision}
    )
    cfg = cfg.override({"loss.pl_weight": 0, "loss.diagnostics": False})
    if small:
        tiny = {
            "feature_size": 32,
            "proj_channels": 8,
            "head_channels": 8,
            "cond_channels": 8,
            "backbones": [timm_weights.LITE0],
        }
        cfg = cfg.override({f"discriminator.{k}": v for k, v in tiny.items()})
    return cfg if backbones is None else cfg.override({"discriminator.backbones": list(backbones)})


@dataclasses.dataclass
class Training:
    """A training state on random images of all classes."""

    cfg: TrainConfig
    state: TrainState
    inputs: InputSource
    pixels: torch.Tensor
    labels: torch.Tensor

    def step(self) -> None:
        """Run one training step, as train.py does."""
        steps.train_step(self.state, self.inputs, self.cfg, self.pixels, self.labels)

    def g_step(self) -> None:
        """Run only the generator's part."""
        steps.g_step(self.state, self.inputs.micro_batches("G", 0), self.cfg.loss, self.cfg.blur_init_sigma)

    def d_step(self) -> None:
        """Run only the discriminator's part."""
        reals = self.inputs.real_micro_batches(0, self.pixels, self.labels)
        steps.d_step(
            self.state, self.inputs.micro_batches("D", 0), reals, self.cfg.loss, self.cfg.blur_init_sigma
        )


def make_training(cfg: TrainConfig, resolution: int, device: str, small: bool) -> Training:
    """Create the networks from a fixed seed; the frozen ones have random weights."""
    torch.manual_seed(0)
    weights = dict.fromkeys(cfg.discriminator.backbones, timm_weights.RANDOM)
    D = build.make_discriminator(
        dataclasses.replace(cfg.discriminator, backbone_weights=weights), CLASSES, resolution, 0
    )
    state = build.assemble(cfg, published_generator(resolution, small), D, Lineage(), torch.device(device))
    inputs = InputSource.of(cfg, np.arange(CLASSES), state.G.z_dim, torch.device(device), processes=1, rank=0)
    pixels = torch.randint(0, 256, (cfg.run.batch, 3, resolution, resolution), dtype=torch.uint8)
    return Training(cfg, state, inputs, pixels, torch.arange(cfg.run.batch) % CLASSES)


EXACT = Levers("float32", precision="fp32", d_precision="fp32", tf32=False)
PRECISIONS = (
    EXACT,
    dataclasses.replace(EXACT, name="tf32", tf32=True),
    dataclasses.replace(EXACT, name="float16", precision="fp16"),
    dataclasses.replace(EXACT, name="bfloat16", precision="bf16", d_precision="bf16"),
)


def gradients(device: str, levers: Levers, which: str) -> torch.Tensor:
    """Return the gradients of a step of tiny networks, G or D, from Adam's first moment (beta1 = 0).

    Every step uses the initial weights: Adam's first update depends on the signs of the gradients, which
    differ where a gradient is near zero.
    """
    use_tf32(levers.tf32)
    training = make_training(make_config(True, SMALL_BATCH, levers), 32, device, True)
    (training.g_step if which == "G" else training.d_step)()
    state = training.state
    params, optimizer = (state.g_params, state.g_opt) if which == "G" else (state.d_params, state.d_opt)
    parts = [
        optimizer.state[p]["exp_avg"] if p in optimizer.state else torch.zeros_like(p)
        for p in params.values()
    ]
    return torch.cat([part.detach().double().cpu().flatten() for part in parts])


@functools.cache
def _wanted(which: str) -> torch.Tensor:
    return gradients("cpu", EXACT, which)


def compare_gradients(device: str, levers: Levers, which: str) -> dict[str, Any]:
    """Compare gradients on the device with float32 on the CPU."""
    wanted, limit = _wanted(which), _FAR[levers.name]
    found = gradients(device, levers, which)
    error = float((found - wanted).norm() / wanted.norm())
    return {
        "relative_error": error,
        "limit": limit,
        "cosine": float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)),
        "status": "ok" if error <= limit else f"larger than {limit:g}",
    }


def use_tf32(on: bool) -> None:
    """Enable or disable TF32. torch enables it for convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def apply_levers(state: TrainState, levers: Levers) -> None:
    """Enable the optimisations for which the training configuration has no option."""
    use_tf32(levers.tf32)
    torch.backends.cudnn.benchmark = True
    if state.pl_mean.is_cuda and extension.load():
        torch.ops.stylesan_xl.use_tensor_cores(levers.tensor_cores)
    if levers.channels_last:
        for module in (state.G.synthesis, state.D):
            module.to(memory_format=torch.channels_last)
    if not levers.fused:
        for optimizer in (state.g_opt, state.d_opt):
            for group in optimizer.param_groups:
                group.update(fused=False, foreach=False)
        state.guard.deferred = False  # which needs fused optimizers
    if levers.compiled != "off":
        torch._dynamo.reset()
        compiled.compile_step(state, levers.compiled)


def time_steps(
    device: str, small: bool, resolution: int, levers: Levers, flops: int | None
) -> dict[str, Any]:
    """Return images per second of whole steps: generator, discriminator and moving average.

    It is the median of eight steps after three warm-up steps, in which graphs are captured.

    Args:
        device: 'cuda' or 'cpu'.
        small: Tiny networks and few steps.
        resolution: The stage.
        levers: The optimisations.
        flops: Operations per image, if they are known.
    """
    on_gpu = device == "cuda"
    cfg = step_config(small, resolution, levers)
    training = make_training(cfg, resolution, device, small)
    apply_levers(training.state, levers)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {"batch": cfg.run.batch}
    if flops is None:
        with FlopCounterMode(display=False) as counter:
            training.step()
        flops = counter.get_total_flops() // cfg.run.batch
    result["flops_per_image"] = flops
    times = []
    for _ in range(2 if small else 3 + 8):
        start = time.perf_counter()
        training.step()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    training.state.guard.check()
    timed = times[3:] or times[-1:]
    seconds = float(np.median(timed))
    result |= {
        "images_per_second": cfg.run.batch / seconds,
        "seconds": seconds,
        "timed_steps": len(timed),
    }
    if on_gpu:
        result["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        peak = roofline.peak(torch.cuda.get_device_name())
        if peak is not None:
            result["share_of_peak"] = flops * cfg.run.batch / seconds / peak.half
    return result


def step_config(small: bool, resolution: int, levers: Levers) -> TrainConfig:
    """Return the options of a case of the part 'steps'."""
    batch = (SMALL_BATCH if small else BATCHES[resolution]) * levers.batch_factor
    return make_config(small, batch, levers).override({"run.batch_gpu": levers.micro_batch or batch})


@functools.cache
def _counted(
    small: bool, resolution: int, precision: str, d_precision: str, factor: int, micro_batch: int | None
) -> tuple[roofline.Step, float]:
    """Return the operations of a step, and the estimate of its memory in GiB."""
    levers = Levers(
        "", precision=precision, d_precision=d_precision, batch_factor=factor, micro_batch=micro_batch
    )
    cfg = step_config(small, resolution, levers)
    with roofline.META:
        G = published_generator(resolution, small)
    D = plan.plan_discriminator(cfg.discriminator, CLASSES, resolution, 3)
    return roofline.count(cfg, G), plan.estimate_memory_gb(cfg, G, *plan.parameter_counts(D))


def predict(small: bool, resolution: int, levers: Levers) -> dict[str, Any]:
    """Predict images per second, at most, on each GPU of the roofline model, and estimate the memory.

    Nothing is predicted for torch.compile: its kernels read and write fewer bytes than the model counts.
    """
    counted = levers.precision, levers.d_precision, levers.batch_factor, levers.micro_batch
    step, gb = _counted(small, resolution, *counted)
    step = dataclasses.replace(step, tf32=levers.tf32)
    seconds = {g.name: step.sec_per_kimg(g, levers.compiled == compiled.GRAPHS) for g in roofline.GPUS}
    speeds = {name: 1000 / s for name, s in seconds.items()} if levers.compiled != compiled.REGIONS else None
    return {"predicted_images_per_second": speeds, "predicted_gb": gb}


def chosen_levers(text: str) -> tuple[Levers, ...]:
    """Return the optimisations whose name contains the text."""
    return tuple(levers for levers in LEVERS if text in levers.name)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement of a part: the fields that name it in its result."""

    part: str
    levers: Levers
    stage: int = 0
    step: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the fields that name the case in the results."""
        if self.part == "steps":
            return {"stage": self.stage, "levers": self.levers.name}
        return {"step": self.step, "precision": self.levers.name}


def cases(part: str, stages: tuple[int, ...], levers: str) -> list[Case]:
    """Return the cases of a part in their order: what the compiler takes minutes for comes last."""
    if part == "networks":
        return [Case(part, p, step=step) for p, step in itertools.product(PRECISIONS, "GD")]
    found = [Case(part, chosen, stage) for stage in stages for chosen in chosen_levers(levers)]
    return sorted(found, key=lambda case: case.levers.compiled == compiled.REGIONS)


def measured(chosen: list[Case], device: str, small: bool) -> Iterator[dict[str, Any]]:
    """Yield the result of each case; an error is a result."""
    flops: dict[int, int] = {}
    for case in chosen:
        try:
            if case.part == "networks":
                result = compare_gradients(device, case.levers, case.step)
            else:
                result = time_steps(device, small, case.stage, case.levers, flops.get(case.stage))
                flops[case.stage] = result["flops_per_image"]
        except Exception as error:  # out of memory, or any error of the compiler or a kernel
            result = {"status": one_line(error)}
        yield result
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def usable(device: str) -> bool:
    """Whether the device still answers."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--part", type=click.Choice(["networks", "steps"]), required=True)
@click.option("--results", type=click.Path(path_type=Path), required=True, help="File of benchmarks/gpu.py.")
@click.option("--device", default="cuda")
@click.option("--small", is_flag=True)
@click.option("--stages", default="16,64,256", help="Resolutions of the part 'steps'.")
@click.option("--levers", default="", help="Those whose name contains this.")
@click.option("--skip", default=0, help="Cases that have a result.")
def main(part: str, results: Path, device: str, small: bool, stages: str, levers: str, skip: int) -> None:
    """Run the cases of a part; the help text is the module's docstring."""
    if not results.is_file():
        raise click.ClickException(f"--results: {results} is not a file; benchmarks/gpu.py begins it")
    chosen = cases(part, tuple(int(stage) for stage in stages.split(",")), levers)[skip:]
    for case, result in zip(chosen, measured(chosen, device, small), strict=True):
        Results(results).add(part, **case.facts(), **result)
        if not usable(device):
            sys.exit(UNUSABLE)


if __name__ == "__main__":
    main()
