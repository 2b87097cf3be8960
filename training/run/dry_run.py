# SPDX-License-Identifier: Apache-2.0
"""The plan that --dry-run prints: options with origin, data, layers, parameters, memory and disk space."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from dnnlib.util import format_time
from torch_utils import features
from torch_utils.devices import use_device
from training import build, run_folder
from training.config import AUTO, COMPUTED_EMBEDDINGS, EMBEDDING_NETWORK, TrainConfig, describe
from training.data import class_embedding
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.networks import finetune, frozen, stems
from training.run import auto_batch, plan, roofline
from training.run_folder import has_checkpoint
from training.watch import estimate


def lines(config: TrainConfig, given: set[str], dataset: ImageDataset, run_dir: Path | None) -> list[str]:
    """The plan as lines of text.

    Args:
        config: Configuration of the run.
        given: Names of the options that the command line sets.
        dataset: Data set of the run.
        run_dir: Folder of a run that resumes; None = a new run.
    """
    G, D = plan.plan(config, dataset, lineage=stems.resumed_lineage(run_dir))
    heads, backbones = plan.parameter_counts(D)
    text = ["\nOptions (name, value, origin)"]
    text += [f"  {name:34s} {value:44s} {origin}" for name, value, origin, _ in describe(config, given)]
    if config.run.batch_gpu == AUTO:
        choice = auto_batch.planned(config, G, heads, backbones)
        text.append(choice.line(config))
        config = auto_batch.settled(config, choice.batch_gpu)
    derived = (
        ("images per micro-batch", f"{config.batch_gpu:d}", "batch / gpus unless --batch-gpu is given"),
        ("blur at the start, pixels", f"{config.blur_init_sigma:g}", "unless --blur-init-sigma is given"),
        ("EMA ramp-up", f"{config.ema_rampup:g}", "unless --ema-rampup is given"),
        ("EMA half-life, kimg", f"{config.ema_kimg:g}", "batch * 10 / 32 unless --ema-kimg is given"),
    )
    text += [f"  {f'derived: {name}':34s} {value:44s} {origin}" for name, value, origin in derived]
    memory = plan.estimate_memory_gb(config, G, heads, backbones)
    total = sum(p.numel() for p in G.parameters())
    trained = sum(p.numel() for p in G.parameters() if p.requires_grad)
    text += [
        "\n" + data_line("Data", config, dataset),
        "\nGenerator\n" + layer_table(G),
        f"\nParameters: generator {total:,} ({trained:,} trained), heads {heads:,}, backbones "
        f"{backbones:,} (frozen)",
        f"Memory: about {memory:.1f} GiB per process at {config.batch_gpu} images per micro-batch (estimate)",
    ]
    text += [f"Time: {line}" for line in roofline.lines(config, G)]
    text.append(f"Disk: {plan.disk_text(plan.estimate_disk(config, G, D, dataset))}")
    left = estimate.seconds_left(
        run_folder.read_jsonl(run_dir / run_folder.STATS_FILE) if run_dir else [], config.run
    )
    if math.isfinite(left):
        text.append(
            f"Time: about {format_time(left)} left at the run's own speed, with evaluations and snapshots"
        )
    if (
        config.run.init_from
        and not (run_dir and has_checkpoint(run_dir))
        and not frozen.check_weights(config, download=False)
    ):
        text.append("\n" + start_report(config, dataset))
    return text


def once(config: TrainConfig, dataset: ImageDataset, run_dir: Path | None) -> list[str]:
    """Lines on what a run computes once before its first step, with the time it takes on this machine."""
    computed = config.data.class_embedding in COMPUTED_EMBEDDINGS
    embedded = dataset.label_dim > 0 and computed and not config.generator.superres
    if not embedded or (run_dir and has_checkpoint(run_dir)):
        return []
    device = use_device(config.run.device)
    line = class_embedding.announce(build.plain_dataset(dataset), features.load(EMBEDDING_NETWORK).to(device))
    return [] if line is None else [line]


def data_line(what: str, config: TrainConfig, dataset: ImageDataset) -> str:
    """One line about a data set."""
    copies = len(dataset.views)
    flips = "" if copies == 1 else f" ({dataset.num_originals} and their flipped or turned copies)"
    size = f"{dataset.resolution}x{dataset.resolution}"
    return (
        f"{what}: {dataset.path}: {len(dataset)} images{flips}, {size}, {dataset.label_dim or 'no'} classes"
    )


def layer_table(G: Generator) -> str:
    """The layers as a table: names, channels, sizes, rates, filters, parameters."""
    rows: list[tuple[str, ...]] = [
        ("layer", "in", "out", "size", "rate", "cutoff", "up", "down", "reduced", "trained", "parameters")
    ]
    modules: dict[str, torch.nn.Module] = {"mapping": G.mapping, "synthesis.input": G.synthesis.input}
    specs = {s.name: s for s in G.synthesis.specs()}
    modules |= {name: getattr(G.synthesis, name) for name in specs}
    for name, module in modules.items():
        params = list(module.parameters())
        trained = "yes" if any(p.requires_grad for p in params) else "no"
        count = f"{sum(p.numel() for p in params):,}"
        if name in specs:
            s = specs[name]
            band = f"{s.in_cutoff:.4g}-{s.out_cutoff:.4g}"
            size, rate = f"{s.in_size}-{s.out_size}", f"{s.in_sampling_rate:g}-{s.out_sampling_rate:g}"
            filters = (
                f"{s.up_factor}x{s.up_taps}",
                f"{s.down_factor}x{s.down_taps}{'r' if s.down_radial else ''}",
            )
            reduced = "yes" if s.use_fp16 else "no"
            channels = str(s.in_channels), str(s.out_channels)
            rows.append((name, *channels, size, rate, band, *filters, reduced, trained, count))
        else:
            rows.append((name, *[""] * 8, trained, count))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in rows
    )


def start_report(cfg: TrainConfig, dataset: ImageDataset) -> str:
    """The table of what --init-from would keep, reshape and rebuild; a warning if little is kept.

    Raises:
        ValueError, OSError: The file cannot be used, or a backbone's weights are missing.
    """
    source = finetune.read(str(cfg.run.init_from))
    begins = f"Starts from {stems.network_summary(source.path, source.file.provenance)}"
    embed_dim = source.embed_dim or cfg.data.embed_dim
    G = build.make_generator(cfg.generator, dataset, embed_dim, cfg.run.seed)
    D = build.fresh_discriminator(cfg, dataset)
    _, report = finetune.start(source, G, D, dataset.class_names, torch.zeros(dataset.label_dim, embed_dim))
    return "\n".join([begins, report.table(), *finetune.warnings(source, report, cfg)])
