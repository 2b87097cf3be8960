# SPDX-License-Identifier: Apache-2.0
"""From a TrainConfig to the objects of a run: data set, networks, classifier. Used by the loop and by `train.py --dry-run`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torch_utils import distributed, features, rng, timm_weights
from torch_utils.devices import pick_device, pick_precision
from training.config import DataConfig, DiscriminatorConfig, GeneratorConfig, LossConfig, RunConfig, TrainConfig
from training.data import class_names, downscaling
from training.data.class_embedding import compute_class_embedding, random_class_embedding, spread_class_embedding
from training.data.dataset import BalancedClasses, ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator, build_stem, build_superres, generator_kwargs
from training.networks import finetune
from training.networks.stems import Lineage, read_stem
from training.state import TrainState

EMBEDDING_NETWORK = "tf_efficientnet_lite0"


def make_dataset(cfg: DataConfig, seed: int, prepare: bool = True) -> ImageDataset:
    """Open the data set, at --resolution its smaller copy.

    Args:
        prepare: make the copy if it is not there. False: return what it will be like, without images.

    Raises:
        ValueError, FileNotFoundError: one line about what is wrong with it.
    """

    def open_dataset(path: str) -> ImageDataset:
        return ImageDataset(path, use_labels=cfg.cond, xflip=cfg.mirror, max_size=cfg.max_images, random_seed=seed)

    dataset = open_dataset(cfg.path)
    if cfg.resolution is None or cfg.resolution == dataset.resolution:
        return dataset
    return open_dataset(downscaling.downscaled(dataset, cfg.resolution)) if prepare else downscaling.planned(dataset, cfg.resolution)


def balanced_classes(cfg: DataConfig, dataset: ImageDataset) -> BalancedClasses | None:
    """How --balanced draws classes and images; None = as often as the data has them."""
    return BalancedClasses(dataset.labels) if cfg.balanced and dataset.labels is not None else None


def plain_dataset(dataset: ImageDataset) -> ImageDataset:
    """The same images with labels where there are any, all of them, unflipped: what class embeddings and metrics refer to."""
    return ImageDataset(dataset.path, use_labels=dataset.has_labels)


def fresh_generator(cfg: GeneratorConfig, resolution: int, c_dim: int, embed_dim: int, stem: Generator | None = None) -> Generator:
    """A stem of this resolution and these classes, or the superresolution stage on `stem`; weights from torch's global random state.

    Raises:
        ValueError: it cannot be planned.
    """
    if cfg.superres:
        stem = stem or read_stem(str(cfg.path_stem)).generator
        return build_superres(stem, cfg.cfg, cfg.up_factor, cfg.head_layers, cbase=cfg.cbase, cmax=cfg.cmax)
    return build_stem(
        cfg.cfg, resolution, c_dim, syn_layers=cfg.syn_layers, cbase=cfg.cbase or 32768, cmax=cfg.cmax or 512, embed_dim=embed_dim,
        z_dim=cfg.z_dim, w_dim=cfg.w_dim, margin_size=cfg.margin_size,
    )  # fmt: skip


def make_generator(cfg: GeneratorConfig, dataset: ImageDataset, embed_dim: int, seed: int, stem: Generator | None = None) -> Generator:
    """A fresh stem, or a superresolution stage on a frozen stem; float32 on the CPU, weights drawn from `seed` alone.

    stem: of a superresolution stage; None = read what --path_stem names.

    Raises:
        ValueError: the stem does not fit the data set.
    """
    c_dim = dataset.label_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_generator(seed, "init/G").initial_seed())
        G = fresh_generator(cfg, dataset.resolution, c_dim, embed_dim, stem)
    if G.img_resolution != dataset.resolution:
        raise ValueError(
            f"--data={dataset.path} has {dataset.resolution}x{dataset.resolution} images, but --up_factor={cfg.up_factor} on this stem gives "
            f"{G.img_resolution}x{G.img_resolution}: give --resolution={G.img_resolution} with a data set of at least that size"
        )
    if G.c_dim != c_dim:
        raise ValueError(
            f"--path_stem={cfg.path_stem} knows {G.c_dim} classes, --data={dataset.path} has {c_dim}: use the data set the stem was trained on"
        )
    return G


def make_class_embedding(cfg: DataConfig, dataset: ImageDataset, seed: int, device: torch.device) -> torch.Tensor | None:
    """The initial class embedding [classes, width], or None without classes.

    Raises:
        ValueError: a given file does not fit. FileNotFoundError: weights are missing.
    """
    if dataset.label_dim == 0:
        return None
    if cfg.class_embedding == "random":
        return random_class_embedding(dataset.label_dim, cfg.embed_dim, seed)
    if cfg.class_embedding == "auto":
        network = features.load(EMBEDDING_NETWORK).to(device)
        return spread_class_embedding(compute_class_embedding(plain_dataset(dataset), network, device=device))
    if not os.path.isfile(cfg.class_embedding):
        raise ValueError(f"--class-embedding={cfg.class_embedding}: no such file; use auto, random, or a .npy file of shape [classes, width]")
    table = np.load(cfg.class_embedding, allow_pickle=False)
    if table.ndim != 2 or len(table) != dataset.label_dim:
        raise ValueError(f"--class-embedding={cfg.class_embedding} has shape {list(table.shape)}; the data set needs [{dataset.label_dim}, width]")
    return torch.from_numpy(table.astype(np.float32))


def head_options(cfg: GeneratorConfig) -> dict[str, Any]:
    """The options that a superresolution stage's plan follows from, beside its stem."""
    return {name: getattr(cfg, name) for name in ("cfg", "up_factor", "head_layers", "cbase", "cmax")}


def restored_plan(cfg: GeneratorConfig, lineage: Lineage) -> Generator:
    """The generator of a superresolution stage that goes on, on its recorded stem, whose file is not needed. Its numbers come from a checkpoint.

    Raises:
        ValueError: an option differs from those that the run began with.
    """
    for name, value in head_options(cfg).items():
        if lineage.options.get(name) != value:
            raise ValueError(f"--{name}={value}: the run began with {lineage.options.get(name)}, and a resumed run keeps its networks")
    return Generator(**(lineage.plan or {}))


def plan(
    cfg: TrainConfig, dataset: ImageDataset, stem: Generator | None = None, lineage: Lineage | None = None
) -> tuple[Generator, ProjectedDiscriminator]:
    """Generator and discriminator of a run without their numbers, for --dry-run and for checks.

    stem: the plan of a superresolution stage's stem; None = read what --path_stem names. lineage: of a run that goes on, whose stem is then not read.

    Raises:
        ValueError, OSError: as `make_generator` and `make_discriminator`.
    """
    restored = lineage is not None and lineage.plan is not None
    if cfg.generator.superres and not restored:
        stem = (stem or read_stem(str(cfg.generator.path_stem)).generator).to("meta")
    with torch.device("meta"):
        if lineage is not None and restored:
            G = restored_plan(cfg.generator, lineage)
        else:
            G = make_generator(cfg.generator, dataset, cfg.data.embed_dim, cfg.run.seed, stem)
    return G, plan_discriminator(cfg.discriminator, dataset.label_dim, dataset.resolution)


def plan_discriminator(cfg: DiscriminatorConfig, c_dim: int, resolution: int) -> ProjectedDiscriminator:
    """The discriminator without its numbers."""
    random = dataclasses.replace(cfg, backbone_weights=dict.fromkeys(cfg.backbones, timm_weights.RANDOM))
    with torch.device("meta"):
        return make_discriminator(random, c_dim, resolution, seed=0)


def parameter_counts(D: ProjectedDiscriminator) -> tuple[int, int]:
    """Numbers in the heads that train and in the frozen backbones."""
    return sum(p.numel() for p in D.parameters() if p.requires_grad), sum(t.numel() for t in D.feature_networks.state_dict().values())


def check(cfg: TrainConfig, dataset: ImageDataset, stem: Generator | None = None, lineage: Lineage | None = None, goes_on: bool = False) -> None:
    """Find before a run folder exists what would stop the run at its start: device, weights, plan, files that options name.

    stem, lineage: as for `plan`. goes_on: there is a checkpoint, so that the network of --init-from is not needed any more.

    Raises:
        ValueError, OSError: one line.
    """
    pick_device(cfg.run.device)
    grid_shape(cfg.run, dataset.resolution, dataset.label_dim)
    check_weights(cfg)
    plan(cfg, dataset, stem, lineage)
    make_classifier(cfg.loss, dataset, quiet=True)
    if cfg.run.init_from and not goes_on:
        finetune.read(cfg.run.init_from)
    if cfg.data.class_embedding not in ("auto", "random"):
        make_class_embedding(cfg.data, dataset, cfg.run.seed, torch.device("cpu"))


def estimate_memory_gb(cfg: TrainConfig, G: Generator, d_params: int, backbone_params: int) -> float:
    """Rough peak memory of a process, GiB: weights, gradients, Adam and EMA, plus the activations that a generator step keeps.

    A frozen stem keeps neither gradients nor activations; of its layers the largest is alive at a time.
    """
    trained = sum(p.numel() for p in G.parameters() if p.requires_grad)
    state = 4 * (2 * sum(p.numel() for p in G.parameters()) + 3 * trained + 4 * d_params + backbone_params)
    width = 4 if cfg.run.precision == "fp32" else 2
    sizes = []
    for layer in G.synthesis.specs():
        conv = layer.in_channels * layer.in_size**2 + layer.out_channels * (layer.in_size + 2) ** 2
        rise = layer.out_channels * (layer.in_size * layer.up_factor) ** 2
        sizes.append(width * (conv + 2 * rise))
    activations = max(sum(sizes[G.num_frozen_layers :]), max(sizes))
    per_feature = sum(32 * (cfg.discriminator.feature_size // 2) ** 2 * 12 * 4 for _ in cfg.discriminator.backbones)
    return (state + cfg.batch_gpu * (activations + per_feature)) / 2**30


def layer_table(G: Generator) -> str:
    """The layer plan as text: names, channels, sizes, rates, filters, parameters."""
    rows: list[tuple[str, ...]] = [("layer", "in", "out", "size", "rate", "cutoff", "up", "down", "reduced", "trained", "parameters")]
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
            filters = (f"{s.up_factor}x{s.up_taps}", f"{s.down_factor}x{s.down_taps}{'r' if s.down_radial else ''}")
            reduced = "yes" if s.use_fp16 else "no"
            rows.append((name, str(s.in_channels), str(s.out_channels), size, rate, band, *filters, reduced, trained, count))
        else:
            rows.append((name, *[""] * 8, trained, count))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def discriminator_options(cfg: DiscriminatorConfig) -> dict[str, Any]:
    """Arguments of ProjectedDiscriminator beside its backbones, classes and resolution."""
    return {
        "feature_size": cfg.feature_size,
        "proj_channels": cfg.proj_channels,
        "head_channels": cfg.head_channels,
        "cond_channels": cfg.cond_channels,
        "bn_group": cfg.bn_group,
        "augment": cfg.augment,
        "compute_dtype": torch.bfloat16 if cfg.precision == "bf16" else torch.float32,
    }


def make_discriminator(cfg: DiscriminatorConfig, c_dim: int, resolution: int, seed: int) -> ProjectedDiscriminator:
    """Frozen backbones, the random projection and the heads, on the CPU, drawn from `seed` alone.

    Raises:
        FileNotFoundError: a backbone's weights are missing (names the file and where to put it). ValueError: options that do not fit.
    """
    backbones = [features.load(name, cfg.backbone_weights.get(name), seed=seed) for name in cfg.backbones]
    return ProjectedDiscriminator(backbones, c_dim, resolution, seed=seed, **discriminator_options(cfg))


def make_state(cfg: TrainConfig, dataset: ImageDataset, device: torch.device, saved: Mapping[str, Any] | None = None) -> TrainState:
    """Networks on their device. The class embedding is computed by the first process and shared.

    saved: the checkpoint that will be loaded into the state: what it brings is then neither computed nor read from other networks' files.
    """
    conditional_stem = dataset.label_dim > 0 and not cfg.generator.superres
    source = finetune.read(cfg.run.init_from) if cfg.run.init_from and saved is None else None
    embed_dim, table = cfg.data.embed_dim, None
    if conditional_stem and saved is not None:
        recorded = saved["train"]["G"].get("mapping.embed.weight")
        embed_dim = embed_dim if recorded is None else recorded.shape[1]
    elif conditional_stem:
        embed_dim = (source and source.embed_dim) or embed_dim
        if source is None or (finetune.class_rows(source, dataset.class_names, dataset.label_dim)[0] < 0).any():
            options = dataclasses.replace(cfg.data, embed_dim=embed_dim)
            table = distributed.broadcast_object(make_class_embedding(options, dataset, cfg.run.seed, device) if distributed.is_main() else None)
            embed_dim = embed_dim if source is not None and source.embed_dim else table.shape[1]
    lineage = Lineage(**(saved or {}).get("lineage", {}))
    if lineage.plan is not None:
        G = restored_plan(cfg.generator, lineage)
    elif cfg.generator.superres:
        stem = read_stem(str(cfg.generator.path_stem))
        G = make_generator(cfg.generator, dataset, embed_dim, cfg.run.seed, stem.generator)
        lineage = Lineage(stem.stems if saved is None else [], plan=generator_kwargs(G), options=head_options(cfg.generator))
    else:
        G = make_generator(cfg.generator, dataset, embed_dim, cfg.run.seed)
    if table is not None and source is None:
        G.mapping.set_class_embedding(table)
    D = make_discriminator(cfg.discriminator, dataset.label_dim, dataset.resolution, cfg.run.seed)
    G_ema, report = finetune.start(source, G, D, dataset.class_names, table) if source is not None else (None, None)
    G.synthesis.reduced_dtype = pick_precision(cfg.run.precision, device)
    D.normalize_()  # SAN: once before the first discriminator step
    state = TrainState.create(G.train().to(device), D.train().to(device), cfg.optim, cfg.loss.pl_interval)
    state.lineage = lineage
    if source is not None and G_ema is not None and report is not None:
        state.G_ema.load_state_dict(G_ema.state_dict())
        state.started_from = report.as_dict()
        if distributed.is_main():
            print("\n".join(filter(None, (report.table(), finetune.warning(source, report, cfg)))))
    return state


def start_report(cfg: TrainConfig, dataset: ImageDataset) -> str:
    """What --init-from would keep, reshape and rebuild, for --dry-run: the table and, if little is kept, the warning.

    Raises:
        ValueError, OSError: the file cannot be used, or a backbone's weights are missing.
    """
    source = finetune.read(str(cfg.run.init_from))
    embed_dim = source.embed_dim or cfg.data.embed_dim
    G = make_generator(cfg.generator, dataset, embed_dim, cfg.run.seed)
    D = make_discriminator(cfg.discriminator, dataset.label_dim, dataset.resolution, cfg.run.seed)
    _, report = finetune.start(source, G, D, dataset.class_names, torch.zeros(dataset.label_dim, embed_dim))
    return "\n".join(filter(None, (report.table(), finetune.warning(source, report, cfg))))


def make_classifier(cfg: LossConfig, dataset: ImageDataset, quiet: bool = False) -> features.Classifier | None:
    """The guidance classifier, which knows its class for each of the data set's, or None at weight 0.

    Unless `quiet`, a line says so when the two lists of classes are compared by their length alone.

    Raises:
        ValueError: its classes are not the data set's. FileNotFoundError: its weights are missing.
    """
    if cfg.cls_weight == 0:
        return None
    classifier = features.classifier(cfg.cls_model, cfg.cls_weights)
    names, where = _classifier_names(cfg, classifier)
    if not class_names.named(names) or not class_names.named(dataset.class_names):
        _same_class_count(cfg, classifier, dataset)
        nameless, other = (f"--data={dataset.path}", cfg.cls_model) if class_names.named(names) else (cfg.cls_model, "the data set")
        if distributed.is_main() and not quiet:
            print(f"Warning: {nameless} does not name its classes: --cls_weight takes them to be in the order of {other}'s")
        return classifier
    descriptions = features.imagenet_descriptions() if names == classifier.class_names else None
    places, missing = class_names.class_map(dataset.class_names, names, descriptions)
    remedy = "use --cls_weight=0, or a classifier of these classes with --cls_model, --cls_weights and --cls-classes"
    if missing:
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: {len(missing)} of the {dataset.label_dim} classes of --data={dataset.path} are none of "
            f"{cfg.cls_model}'s {len(names)} ({where}): {class_names.quoted(missing)}; {remedy}"
        )
    if len(set(places.tolist())) < len(places):
        twice = [name for name, place in zip(dataset.class_names, places.tolist(), strict=True) if places.tolist().count(place) > 1]
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: classes of --data={dataset.path} are one class to {cfg.cls_model}: {class_names.quoted(twice)}"
        )
    classifier.class_map = torch.from_numpy(places)
    return classifier


def _classifier_names(cfg: LossConfig, classifier: features.Classifier) -> tuple[list[str] | None, str]:
    """(the classifier's class names or None, where they come from)."""
    file = cfg.cls_classes
    if file is None and cfg.cls_weights is not None and os.path.isfile(f"{cfg.cls_weights}.classes.json"):
        file = f"{cfg.cls_weights}.classes.json"
    if file is None:
        return classifier.class_names, "ImageNet's"
    names = class_names.read_class_names(file)
    if len(names) != classifier.num_classes:
        raise ValueError(f"{file} names {len(names)} classes, {cfg.cls_model} tells {classifier.num_classes} apart")
    return names, file


def _same_class_count(cfg: LossConfig, classifier: features.Classifier, dataset: ImageDataset) -> None:
    if classifier.num_classes != dataset.label_dim:
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: {cfg.cls_model} tells {classifier.num_classes} classes apart, --data={dataset.path} has "
            f"{dataset.label_dim}: use --cls_weight=0, or name a classifier of these classes with --cls_model and --cls_weights"
        )


@dataclasses.dataclass(frozen=True)
class Needed:
    """A frozen network of a run. weights: as for `features.load`. flag: how to name a file of one's own, or to do without."""

    name: str
    weights: str | None
    purpose: str
    flag: str


def needed_weights(cfg: TrainConfig) -> list[Needed]:
    """Every frozen network that training itself needs; metrics' are not among them."""
    disc, loss = cfg.discriminator, cfg.loss
    needed = [Needed(name, disc.backbone_weights.get(name), "backbone", f"--backbone-weights={name}=FILE") for name in disc.backbones]
    if cfg.data.cond and cfg.data.class_embedding == "auto" and not cfg.generator.superres:
        needed.append(Needed(EMBEDDING_NETWORK, None, "class embedding", "--class-embedding=random does without"))
    if loss.cls_weight > 0:
        needed.append(Needed(loss.cls_model, loss.cls_weights, "guidance", "--cls-weights=FILE"))
    return needed


def check_weights(cfg: TrainConfig, download: bool = True) -> list[str]:
    """Look for the weights of every frozen network that a run needs, before it starts.

    Args:
        download: fetch what lives on timm's hub and is not in its cache, and fail for what cannot be had. False: do not touch the network.

    Returns one line per missing file (download=True: none is missing then).

    Raises:
        ValueError: a network that timm does not know. FileNotFoundError (download=True): one line naming the file and where to put it;
            features.MissingWeights if the network had it.
    """
    missing = []
    for need in needed_weights(cfg):
        try:
            timm_weights.check(need.name, need.weights, download)
        except FileNotFoundError as error:
            if download:
                raise type(error)(f"{error} ({need.flag})") from None
            missing.append(f"{error} ({need.flag})")
    return list(dict.fromkeys(missing))


def training_set_kwargs(cfg: TrainConfig, dataset: ImageDataset) -> dict[str, Any]:
    """What a snapshot says of its data set, in the form that StyleGAN tools read: the name and the arguments of their class for such archives."""
    return {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": dataset.path,
        "use_labels": cfg.data.cond,
        "max_size": len(dataset) // (2 if cfg.data.mirror else 1),
        "xflip": cfg.data.mirror,
        "resolution": dataset.resolution,
        "random_seed": cfg.run.seed,
    }


def grid_shape(run: RunConfig, resolution: int, c_dim: int) -> tuple[int, int]:
    """Columns and rows of the fake grids. `auto`: a row per class up to 32 classes, else what fits about 1920 x 1080 pixels.

    Raises:
        ValueError: --grid is not COLUMNSxROWS.
    """
    if run.grid != "auto":
        try:
            columns, rows = (int(v) for v in run.grid.lower().split("x"))
        except ValueError:
            raise ValueError(f"--grid={run.grid}: give COLUMNSxROWS, such as 10x4") from None
        if columns < 1 or rows < 1:
            raise ValueError(f"--grid={run.grid}: columns and rows must be positive")
        return columns, rows
    columns = min(max(1920 // resolution, 4), 16)
    rows = c_dim if 1 < c_dim <= 32 else min(max(1080 // resolution, 4), 9)
    return columns, rows
