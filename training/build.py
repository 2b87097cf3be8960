# SPDX-License-Identifier: Apache-2.0
"""Builds the objects of a run from a TrainConfig: data set, networks with their state, classifier."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dnnlib import bounded
from torch_utils import cpu_speed, distributed, features, rng
from torch_utils.devices import pick_discriminator_precision, pick_precision
from training import compiled, energy
from training.config import (
    COMPUTED_EMBEDDINGS,
    EMBEDDING_NETWORK,
    STEM_CBASE,
    STEM_CMAX,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    TrainConfig,
)
from training.data import class_names, downscaling
from training.data.class_embedding import (
    compute_class_embedding,
    random_class_embedding,
    spread_class_embedding,
    whitened_class_embedding,
)
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator, build_stem, build_superres, generator_kwargs
from training.networks.stems import Lineage, read_stem
from training.state import TrainState


def make_dataset(cfg: DataConfig, seed: int, prepare: bool = True) -> ImageDataset:
    """Open the data set, or its downscaled copy if --resolution is smaller, or a copy on the node's disk.

    Args:
        cfg: Data options.
        seed: Seed of a random subset.
        prepare: Make the copies if they do not exist. False = return a description that may have no images.

    Raises:
        ValueError, FileNotFoundError: One line about what is wrong with the data set.
    """

    def open_dataset(path: str) -> ImageDataset:
        return ImageDataset(
            path,
            use_labels=cfg.cond,
            xflip=cfg.mirror,
            max_size=cfg.max_images,
            random_seed=seed,
            channels=cfg.channels,
            yflip=cfg.mirrory,
            quarter_turns=cfg.quarter_turns,
        )

    dataset = open_dataset(cfg.path)
    if cfg.resolution is not None and cfg.resolution != dataset.resolution:
        if not prepare:
            return downscaling.planned(dataset, cfg.resolution)
        dataset = open_dataset(downscaling.downscaled(dataset, cfg.resolution))
    if cfg.data_cache and prepare:
        dataset.use_local_copy(cfg.data_cache)
    return dataset


def plain_dataset(dataset: ImageDataset) -> ImageDataset:
    """Return the whole data set without copies, with labels if it has any.

    Class embeddings and metrics refer to it.
    """
    plain = ImageDataset(dataset.path, use_labels=dataset.has_labels, channels=dataset.num_channels)
    if dataset.local_copies is not None:
        plain.use_local_copy(dataset.local_copies)
    return plain


def fresh_generator(
    cfg: GeneratorConfig,
    resolution: int,
    c_dim: int,
    embed_dim: int,
    stem: Generator | None = None,
    img_channels: int = 3,
) -> Generator:
    """Build a generator with weights from torch's global random state.

    Args:
        cfg: Generator options.
        resolution: Image size of a stem, in pixels.
        c_dim: Number of classes of a stem.
        embed_dim: Width of the class embedding of a stem.
        stem: The stem of a superresolution stage; None = load it from --path_stem.
        img_channels: Channels of the images of a stem.

    Raises:
        ValueError: The options do not give a valid architecture.
    """
    if cfg.superres:
        stem = stem or read_stem(str(cfg.path_stem)).generator
        return build_superres(stem, cfg.cfg, cfg.up_factor, cfg.head_layers, cbase=cfg.cbase, cmax=cfg.cmax)
    return build_stem(
        cfg.cfg, resolution, c_dim, syn_layers=cfg.syn_layers, cbase=cfg.cbase or STEM_CBASE,
        cmax=cfg.cmax or STEM_CMAX, embed_dim=embed_dim,
        z_dim=cfg.z_dim, w_dim=cfg.w_dim, map_lr_multiplier=cfg.map_lr_multiplier,
        margin_size=cfg.margin_size, img_channels=img_channels,
    )  # fmt: skip


def make_generator(
    cfg: GeneratorConfig, dataset: ImageDataset, embed_dim: int, seed: int, stem: Generator | None = None
) -> Generator:
    """Build a fresh stem, or a superresolution stage on a frozen stem.

    Args:
        cfg: Generator options.
        dataset: The training set.
        embed_dim: Width of the class embedding.
        seed: The only source of the weights.
        stem: The stem of a superresolution stage; None = load it from --path_stem.

    Returns:
        The generator, float32 on the CPU.

    Raises:
        ValueError: The stem does not fit the data set.
    """
    c_dim = dataset.label_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_generator(seed, "init/G").initial_seed())
        G = fresh_generator(cfg, dataset.resolution, c_dim, embed_dim, stem, dataset.num_channels)
    if G.img_resolution != dataset.resolution:
        raise ValueError(
            f"--data={dataset.path} has {dataset.resolution}x{dataset.resolution} images, but "
            f"--up_factor={cfg.up_factor} on this stem gives "
            f"{G.img_resolution}x{G.img_resolution}: give --resolution={G.img_resolution} with a data set "
            "of at least that size"
        )
    if G.img_channels != dataset.num_channels:
        raise ValueError(
            f"--path_stem={cfg.path_stem} makes images of {G.img_channels} channels, but "
            f"--data={dataset.path} is used with {dataset.num_channels}: give --channels={G.img_channels}"
        )
    if G.c_dim != c_dim:
        raise ValueError(
            f"--path_stem={cfg.path_stem} has {G.c_dim} classes, but --data={dataset.path} has {c_dim}: use "
            "the data set the stem was trained on"
        )
    return G


def make_class_embedding(
    cfg: DataConfig,
    dataset: ImageDataset,
    seed: int,
    device: torch.device,
    pause: Callable[[], None] | None = None,
) -> torch.Tensor | None:
    """Return the initial class embedding [classes, width], or None without classes.

    Args:
        cfg: Data options.
        dataset: The training set.
        seed: Seed of a random embedding.
        device: Where to compute the embedding.
        pause: Called regularly during the computation; an exception it raises stops it.

    Raises:
        ValueError: The file given by --class-embedding does not fit.
        FileNotFoundError: Pretrained weights are missing.
    """
    if dataset.label_dim == 0:
        return None
    if cfg.class_embedding == "random":
        return random_class_embedding(dataset.label_dim, cfg.embed_dim, seed)
    if cfg.class_embedding in COMPUTED_EMBEDDINGS:
        network = features.load(EMBEDDING_NETWORK).to(device)
        means = compute_class_embedding(plain_dataset(dataset), network, device=device, pause=pause)
        whitened = cfg.class_embedding == "whitened"
        return whitened_class_embedding(means) if whitened else spread_class_embedding(means)
    if not os.path.isfile(cfg.class_embedding):
        raise ValueError(
            f"--class-embedding={cfg.class_embedding}: file not found; use auto, whitened, random, or a .npy "
            "file of shape [classes, width]"
        )
    try:
        table = bounded.read_npy(cfg.class_embedding)
    except ValueError as error:
        raise ValueError(f"--class-embedding={error}") from None
    if table.ndim != 2 or len(table) != dataset.label_dim:
        raise ValueError(
            f"--class-embedding={cfg.class_embedding} has shape {list(table.shape)}; the data set needs "
            f"[{dataset.label_dim}, width]"
        )
    if table.dtype.kind not in "iuf" or not np.isfinite(table).all():
        raise ValueError(
            f"--class-embedding={cfg.class_embedding} has type {table.dtype} or non-finite values; give "
            "finite "
            "numbers"
        )
    return torch.from_numpy(table.astype(np.float32))


def head_options(cfg: GeneratorConfig) -> dict[str, Any]:
    """Return the options that, with the stem, determine the architecture of a superresolution stage."""
    return {name: getattr(cfg, name) for name in ("cfg", "up_factor", "head_layers", "cbase", "cmax")}


def restored_generator(cfg: GeneratorConfig, lineage: Lineage) -> Generator:
    """Build the generator of a resumed superresolution stage from its saved architecture.

    The file of the stem is not needed. The weights come from a checkpoint.

    Raises:
        ValueError: An option differs from the value that the run started with.
    """
    for name, value in head_options(cfg).items():
        if lineage.options.get(name) != value:
            raise ValueError(
                f"--{name}={value}: the run started with {lineage.options.get(name)}, and a resumed run "
                "cannot "
                "change its architecture"
            )
    return Generator(**(lineage.plan or {}))


def discriminator_options(cfg: DiscriminatorConfig, device: torch.device | None = None) -> dict[str, Any]:
    """Return the arguments of ProjectedDiscriminator besides backbones, classes and resolution.

    Args:
        cfg: Options of the discriminator.
        device: Device that it will run on; None = unknown, and automatic precision is float32.
    """
    return {
        "feature_size": cfg.feature_size,
        "proj_channels": cfg.proj_channels,
        "head_channels": cfg.head_channels,
        "cond_channels": cfg.cond_channels,
        "heads": cfg.heads,
        "bn_group": cfg.bn_group,
        "mbstd": cfg.mbstd,
        "augment": cfg.augment,
        "diffaug": cfg.diffaug,
        "compute_dtype": pick_discriminator_precision(cfg.precision, device),
    }


def make_discriminator(
    cfg: DiscriminatorConfig,
    c_dim: int,
    resolution: int,
    seed: int,
    device: torch.device | None = None,
    img_channels: int = 3,
) -> ProjectedDiscriminator:
    """Build the discriminator (frozen backbones, random projection, heads) on the CPU, from `seed` alone.

    `device` is that of `discriminator_options`.

    Raises:
        FileNotFoundError: The weights of a backbone are missing (names the file and where to put it).
        ValueError: Options do not fit.
    """
    backbones = [features.load(name, cfg.backbone_weights.get(name), seed=seed) for name in cfg.backbones]
    return ProjectedDiscriminator(
        backbones,
        c_dim,
        resolution,
        seed=seed,
        img_channels=img_channels,
        **discriminator_options(cfg, device),
    )


def fresh_discriminator(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device | None = None
) -> ProjectedDiscriminator:
    """Build a run's discriminator as it is before the first step. As `make_discriminator`."""
    return make_discriminator(
        cfg.discriminator, dataset.label_dim, dataset.resolution, cfg.run.seed, device, dataset.num_channels
    )


def make_networks(
    cfg: TrainConfig,
    dataset: ImageDataset,
    embed_dim: int,
    lineage: Lineage | None = None,
    device: torch.device | None = None,
) -> tuple[Generator, ProjectedDiscriminator, Lineage]:
    """Build fresh networks for a run.

    Args:
        cfg: Configuration of the run.
        dataset: The training set.
        embed_dim: Width of the class embedding.
        lineage: The lineage of a resumed run. If it contains the architecture, the stem is not loaded.
        device: Device that they will run on; None = unknown, and automatic precision is float32.

    Returns:
        Generator and discriminator, float32 on the CPU, and the lineage of the run.

    Raises:
        ValueError, OSError: As `make_generator`, `restored_generator` and `make_discriminator`.
    """
    if lineage is not None and lineage.plan is not None:
        G = restored_generator(cfg.generator, lineage)
    elif cfg.generator.superres:
        stem = read_stem(str(cfg.generator.path_stem))
        G = make_generator(cfg.generator, dataset, embed_dim, cfg.run.seed, stem.generator)
        lineage = Lineage(
            stem.stems if lineage is None else [],
            plan=generator_kwargs(G),
            options=head_options(cfg.generator),
        )
    else:
        G = make_generator(cfg.generator, dataset, embed_dim, cfg.run.seed)
    return G, fresh_discriminator(cfg, dataset, device), lineage or Lineage()


def assemble(
    cfg: TrainConfig, G: Generator, D: ProjectedDiscriminator, lineage: Lineage, device: torch.device
) -> TrainState:
    """Return the training state of a run with these networks, on its device."""
    G.synthesis.reduced_dtype = pick_precision(cfg.run.precision, device)
    D.normalize_()  # SAN: once before the first discriminator step
    state = TrainState.create(G.train().to(device), D.train().to(device), cfg.optim, cfg.loss.pl_interval)
    state.lineage = lineage
    if cfg.run.checkpoint_activations:
        compiled.checkpoint_activations(state.G)
    return state


def describe_precision(cfg: TrainConfig, device: torch.device) -> str | None:
    """Return a line on what automatic precision chooses on a CPU, or None where nothing is measured."""
    if device.type != "cpu" or "auto" not in (cfg.run.precision, cfg.discriminator.precision):
        return None
    return f"Precision: {cpu_speed.describe()}"


def classifier_on(
    device: torch.device, cfg: TrainConfig, dataset: ImageDataset, quiet: bool = False
) -> features.Classifier | None:
    """Return `make_classifier`'s result on its device, in the precision of the discriminator."""
    classifier = make_classifier(cfg.loss, dataset, quiet)
    if classifier is None:
        return None
    dtype = pick_discriminator_precision(cfg.discriminator.precision, device)
    return classifier.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


def make_classifier(
    cfg: LossConfig, dataset: ImageDataset, quiet: bool = False
) -> features.Classifier | None:
    """Return the guidance classifier with its map from the classes of the data set, or None at weight 0.

    Unless `quiet`, a warning is printed if only the number of classes could be compared.

    Raises:
        ValueError: The classifier lacks classes of the data set.
        FileNotFoundError: Its weights are missing.
    """
    if cfg.cls_weight == 0:
        return None
    classifier = features.classifier(cfg.cls_model, cfg.cls_weights, fast=True)
    names, where = _classifier_names(cfg, classifier)
    if not class_names.has_names(names) or not class_names.has_names(dataset.class_names):
        _check_class_count(cfg, classifier, dataset)
        nameless, other = (
            (f"--data={dataset.path}", cfg.cls_model)
            if class_names.has_names(names)
            else (cfg.cls_model, "the data set")
        )
        if distributed.is_main() and not quiet:
            print(
                f"Warning: {nameless} has no class names: --cls_weight assumes the same order as in {other}"
            )
        return classifier
    descriptions = features.imagenet_descriptions() if names == classifier.class_names else None
    places, missing = class_names.class_map(dataset.class_names, names, descriptions)
    remedy = "use --cls_weight=0, or train a classifier of these classes with train_classifier.py"
    if missing:
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: {len(missing)} of the {dataset.label_dim} classes of "
            f"--data={dataset.path} are not among the {len(names)} classes of "
            f"{cfg.cls_model} ({where}): {class_names.quoted(missing)}; {remedy}"
        )
    if len(set(places.tolist())) < len(places):
        repeated = [
            name
            for name, place in zip(dataset.class_names, places.tolist(), strict=True)
            if places.tolist().count(place) > 1
        ]
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: these classes of --data={dataset.path} are the same class of "
            f"{cfg.cls_model}: {class_names.quoted(repeated)}"
        )
    classifier.class_map = torch.from_numpy(places)
    return classifier


def _classifier_names(cfg: LossConfig, classifier: features.Classifier) -> tuple[list[str] | None, str]:
    """Return (the classifier's class names or None, their origin)."""
    file = cfg.cls_classes
    if file is None and cfg.cls_weights is not None and os.path.isfile(f"{cfg.cls_weights}.classes.json"):
        file = f"{cfg.cls_weights}.classes.json"
    if file is None:
        return classifier.class_names, "ImageNet's"
    names = class_names.read_class_names(file)
    if len(names) != classifier.num_classes:
        raise ValueError(
            f"{file} has {len(names)} class names, but {cfg.cls_model} has {classifier.num_classes} classes"
        )
    return names, file


def _check_class_count(cfg: LossConfig, classifier: features.Classifier, dataset: ImageDataset) -> None:
    if classifier.num_classes != dataset.label_dim:
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: {cfg.cls_model} has {classifier.num_classes} classes, but "
            f"--data={dataset.path} has {dataset.label_dim}: use --cls_weight=0, or train a classifier of "
            "these classes with train_classifier.py"
        )


def make_reals(
    cfg: TrainConfig,
    dataset: ImageDataset,
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> energy.Reals | None:
    """Return the real images of the energy distance, or None at weight 0. pause: as for `energy.choose`."""
    if cfg.loss.energy_weight == 0:
        return None
    return energy.choose(dataset, cfg.run.seed, device, pause)


def training_set_kwargs(cfg: TrainConfig, dataset: ImageDataset) -> dict[str, Any]:
    """Describe the data set of a snapshot in the form that StyleGAN tools read.

    It contains the name and the arguments of their class for such archives.
    """
    return {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": dataset.path,
        "use_labels": cfg.data.cond,
        "max_size": dataset.num_originals,
        "xflip": cfg.data.mirror,
        "resolution": dataset.resolution,
        "random_seed": cfg.run.seed,
    }
