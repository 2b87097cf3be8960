# SPDX-License-Identifier: Apache-2.0
"""The plan of a run: networks on the meta device, memory and disk space, and checks before the run starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from dnnlib.util import format_bytes, is_url
from torch_utils import distributed, memory, timm_weights
from torch_utils.devices import pick_device
from training import build
from training.config import AUTO, COMPUTED_EMBEDDINGS, DiscriminatorConfig, TrainConfig
from training.data import downscaling
from training.data.dataset import BalancedClasses, ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator
from training.networks import finetune, frozen
from training.networks.stems import Lineage, read_stem
from training.watch.estimate import ticks_and_snapshots
from training.watch.grids import grid_shape

SURELY_TOO_MUCH = 3.0  # times the free memory


def plan(
    cfg: TrainConfig, dataset: ImageDataset, stem: Generator | None = None, lineage: Lineage | None = None
) -> tuple[Generator, ProjectedDiscriminator]:
    """Generator and discriminator of a run on the meta device, for --dry-run and for checks.

    Args:
        cfg: Configuration of the run.
        dataset: Data set of the run.
        stem: Stem of a superresolution stage; None = load the file that --path_stem names.
        lineage: Lineage of a run that resumes; its stem is then not loaded.

    Raises:
        ValueError, OSError: As `make_generator` and `make_discriminator`.
    """
    restored = lineage is not None and lineage.plan is not None
    if cfg.generator.superres and not restored:
        stem = (stem or read_stem(str(cfg.generator.path_stem)).generator).to("meta")
    with torch.device("meta"):
        if lineage is not None and restored:
            G = build.restored_generator(cfg.generator, lineage)
        else:
            G = build.make_generator(cfg.generator, dataset, cfg.data.embed_dim, cfg.run.seed, stem)
    D = plan_discriminator(cfg.discriminator, dataset.label_dim, dataset.resolution, dataset.num_channels)
    return G, D


def plan_discriminator(
    cfg: DiscriminatorConfig, c_dim: int, resolution: int, img_channels: int = 3
) -> ProjectedDiscriminator:
    """The discriminator on the meta device."""
    random = dataclasses.replace(cfg, backbone_weights=dict.fromkeys(cfg.backbones, timm_weights.RANDOM))
    with torch.device("meta"):
        return build.make_discriminator(random, c_dim, resolution, seed=0, img_channels=img_channels)


def parameter_counts(D: ProjectedDiscriminator) -> tuple[int, int]:
    """Parameters of the trained heads, and elements of the frozen backbones' state."""
    return sum(p.numel() for p in D.parameters() if p.requires_grad), sum(
        t.numel() for t in D.feature_networks.state_dict().values()
    )


def check(
    cfg: TrainConfig,
    dataset: ImageDataset,
    stem: Generator | None = None,
    lineage: Lineage | None = None,
    resuming: bool = False,
) -> None:
    """Check device, weights, networks and named files before a run folder exists.

    Args:
        cfg: Configuration of the run.
        dataset: Data set of the run.
        stem: As for `plan`.
        lineage: As for `plan`.
        resuming: The run has a checkpoint, so that what it started from is no longer needed: the network of
            --init-from, the file of --class-embedding.

    Raises:
        ValueError, OSError: The run could not start; one line says why.
    """
    device = pick_device(cfg.run.device)
    check_options(cfg, dataset, resuming)
    frozen.check_weights(cfg)
    check_memory(cfg, device, *plan(cfg, dataset, stem, lineage))
    build.make_classifier(cfg.loss, dataset, quiet=True)


def check_options(
    cfg: TrainConfig, dataset: ImageDataset, resuming: bool = False, download: bool = True
) -> None:
    """The part of `check` that needs neither the device nor frozen weights, for --dry-run as well.

    Args:
        cfg: As for `check`.
        dataset: As for `check`.
        resuming: As for `check`.
        download: Also read a network of --init-from that is a URL.

    Raises:
        ValueError, OSError: The run could not start; one line says why.
    """
    grid_shape(cfg.run, dataset.resolution, dataset.label_dim)
    check_class_run(cfg, dataset)
    own_embedding = not resuming and not cfg.generator.superres
    if own_embedding and cfg.data.class_embedding not in (*COMPUTED_EMBEDDINGS, "random"):
        build.make_class_embedding(cfg.data, dataset, cfg.run.seed, torch.device("cpu"))
    if cfg.run.init_from and not resuming and (download or not is_url(cfg.run.init_from)):
        finetune.read(cfg.run.init_from)


def check_class_run(cfg: TrainConfig, dataset: ImageDataset) -> None:
    """Check that an epoch has a run of --class-run images of a class.

    Raises:
        ValueError: Every class shows fewer images.
    """
    if cfg.data.class_run == 1 or dataset.labels is None:
        return
    most = int(dataset.label_distribution().max())
    if cfg.data.balanced:
        most = BalancedClasses(dataset.labels).per_class
    if most < cfg.data.class_run:
        raise ValueError(
            f"--class-run={cfg.data.class_run} has no effect: in an epoch of --data={dataset.path} a class "
            f"shows at most {most} images; lower --class-run, or remove it"
        )


def check_guidance(cfg: TrainConfig, dataset: ImageDataset) -> None:
    """Check that the guidance classifier knows the classes, if its weights are here: for --dry-run.

    Raises:
        ValueError: As `build.make_classifier`.
    """
    if cfg.loss.cls_weight == 0:
        return
    try:
        timm_weights.check(cfg.loss.cls_model, cfg.loss.cls_weights, download=False)
    except FileNotFoundError:  # --dry-run prints what is missing
        return
    build.make_classifier(cfg.loss, dataset, quiet=True)


def check_memory(cfg: TrainConfig, device: torch.device, G: Generator, D: ProjectedDiscriminator) -> None:
    """Refuse a run on a CPU whose estimated memory is far above what is free: the system would kill it.

    A GPU raises an error by itself. The estimate is rough, hence the factor `SURELY_TOO_MUCH`.

    Raises:
        ValueError: The estimate is more than SURELY_TOO_MUCH times the free memory.
    """
    if device.type != "cpu" or cfg.run.batch_gpu == AUTO:
        return
    need = estimate_memory_gb(cfg, G, *parameter_counts(D)) * distributed.processes_here(cfg.run.gpus)
    free = memory.free_bytes(device) / 2**30
    if need > SURELY_TOO_MUCH * free:
        raise ValueError(
            f"--batch={cfg.run.batch}: {cfg.batch_gpu:,} images per micro-batch need about {need:,.0f} GiB "
            f"of memory, and {free:.1f} GiB are free: lower --batch-gpu or use --batch-gpu=auto, else lower "
            "--cbase and --cmax"
        )


def estimate_memory_gb(cfg: TrainConfig, G: Generator, d_params: int, backbone_params: int) -> float:
    """Rough peak memory of a process in GiB.

    Counts weights, gradients, Adam's moments and EMA, and the activations of a generator step. A frozen stem
    has no gradients and keeps no activations; only its largest layer counts. With --checkpoint-activations,
    all but the inputs of the other layers count for one layer only.
    """
    trained = sum(p.numel() for p in G.parameters() if p.requires_grad)
    state = 4 * (2 * sum(p.numel() for p in G.parameters()) + 3 * trained + 4 * d_params + backbone_params)
    width = 4 if cfg.run.precision == "fp32" else 2
    sizes, inputs = [], []
    for layer in G.synthesis.specs():
        conv = layer.in_channels * layer.in_size**2 + layer.out_channels * (layer.in_size + 2) ** 2
        rise = layer.out_channels * (layer.in_size * layer.up_factor) ** 2
        sizes.append(width * (conv + 2 * rise))
        inputs.append(width * layer.in_channels * layer.in_size**2)
    if cfg.run.checkpoint_activations:
        activations = sum(inputs[G.num_frozen_layers :]) + max(sizes)
    else:
        activations = max(sum(sizes[G.num_frozen_layers :]), max(sizes))
    per_feature = sum(
        32 * (cfg.discriminator.feature_size // 2) ** 2 * 12 * 4 for _ in cfg.discriminator.backbones
    )
    return (state + cfg.batch_gpu * (activations + per_feature)) / 2**30


@dataclass(frozen=True)
class Disk:
    """Upper bound of a run's disk space in bytes; copy: downscaled copy of the data set, if it is missing."""

    run: int
    copy: int


def estimate_disk(
    cfg: TrainConfig, G: Generator, D: ProjectedDiscriminator, dataset: ImageDataset | None
) -> Disk:
    """Disk space of snapshots, checkpoints and the downscaled copy of the data set.

    A snapshot has G, G_ema and D's own tensors; a checkpoint adds Adam's two moments of all trained
    parameters. Pictures and logs are small and are not counted. G and D may be on the meta device.
    """
    generator = sum(t.numel() for t in G.state_dict().values())
    saved = 2 * generator + sum(t.numel() for t in D.saved_state_dict().values())
    trained = sum(p.numel() for net in (G, D) for p in net.parameters() if p.requires_grad)
    _, snapshots = ticks_and_snapshots(cfg.run)
    snapshots = min(snapshots, cfg.run.keep_snapshots or snapshots)
    best = len(cfg.run.metrics)  # one for each metric; the newest is the same file as a numbered one
    checkpoints = cfg.run.keep_checkpoints + 1  # the new one is written before an old one goes
    run = 4 * ((snapshots + best) * saved + checkpoints * (saved + 2 * trained))
    copied = dataset is not None and dataset.is_planned
    return Disk(
        run, downscaling.copy_bytes(dataset, dataset.resolution) if copied and dataset is not None else 0
    )


def disk_text(disk: Disk) -> str:
    """The line of --dry-run."""
    copy = (
        f", and at most {format_bytes(disk.copy)} for downscaled copies of the data that do not exist yet"
        if disk.copy
        else ""
    )
    return f"at most {format_bytes(disk.run)} for snapshots and checkpoints{copy} (estimate)"
