# SPDX-License-Identifier: Apache-2.0
"""From a TrainConfig to the objects of a run: data set, networks and their state, classifier."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dnnlib import bounded
from torch_utils import distributed, features, rng
from torch_utils.devices import pick_precision
from training.config import (
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
)
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator, build_stem, build_superres, generator_kwargs
from training.networks.stems import Lineage, read_stem
from training.state import TrainState


def make_dataset(cfg: DataConfig, seed: int, prepare: bool = True) -> ImageDataset:
    """Open the data set, at --resolution its smaller copy.

    Args:
        prepare: make the copy if it is not there. False: return what it will be like, without images.

    Raises:
        ValueError, FileNotFoundError: one line about what is wrong with it.
    """

    def open_dataset(path: str) -> ImageDataset:
        return ImageDataset(
            path, use_labels=cfg.cond, xflip=cfg.mirror, max_size=cfg.max_images, random_seed=seed
        )

    dataset = open_dataset(cfg.path)
    if cfg.resolution is None or cfg.resolution == dataset.resolution:
        return dataset
    return (
        open_dataset(downscaling.downscaled(dataset, cfg.resolution))
        if prepare
        else downscaling.planned(dataset, cfg.resolution)
    )


def plain_dataset(dataset: ImageDataset) -> ImageDataset:
    """The same images with labels where there are any, all of them, unflipped: what class embeddings and
    metrics refer to.
    """
    return ImageDataset(dataset.path, use_labels=dataset.has_labels)


def fresh_generator(
    cfg: GeneratorConfig, resolution: int, c_dim: int, embed_dim: int, stem: Generator | None = None
) -> Generator:
    """A stem of this resolution and these classes, or the superresolution stage on `stem`; weights from
    torch's global random state.

    Raises:
        ValueError: it cannot be planned.
    """
    if cfg.superres:
        stem = stem or read_stem(str(cfg.path_stem)).generator
        return build_superres(stem, cfg.cfg, cfg.up_factor, cfg.head_layers, cbase=cfg.cbase, cmax=cfg.cmax)
    return build_stem(
        cfg.cfg, resolution, c_dim, syn_layers=cfg.syn_layers, cbase=cfg.cbase or STEM_CBASE,
        cmax=cfg.cmax or STEM_CMAX, embed_dim=embed_dim,
        z_dim=cfg.z_dim, w_dim=cfg.w_dim, margin_size=cfg.margin_size,
    )  # fmt: skip


def make_generator(
    cfg: GeneratorConfig, dataset: ImageDataset, embed_dim: int, seed: int, stem: Generator | None = None
) -> Generator:
    """A fresh stem, or a superresolution stage on a frozen stem; float32 on the CPU, weights drawn from
    `seed` alone.

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
            f"--data={dataset.path} has {dataset.resolution}x{dataset.resolution} images, but "
            f"--up_factor={cfg.up_factor} on this stem gives "
            f"{G.img_resolution}x{G.img_resolution}: give --resolution={G.img_resolution} with a data set "
            "of at least that size"
        )
    if G.c_dim != c_dim:
        raise ValueError(
            f"--path_stem={cfg.path_stem} knows {G.c_dim} classes, --data={dataset.path} has {c_dim}: use "
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
    """The initial class embedding [classes, width], or None without classes.

    pause: called now and then while it is computed; what it raises ends that.

    Raises:
        ValueError: a given file does not fit. FileNotFoundError: weights are missing.
    """
    if dataset.label_dim == 0:
        return None
    if cfg.class_embedding == "random":
        return random_class_embedding(dataset.label_dim, cfg.embed_dim, seed)
    if cfg.class_embedding == "auto":
        network = features.load(EMBEDDING_NETWORK).to(device)
        return spread_class_embedding(
            compute_class_embedding(plain_dataset(dataset), network, device=device, pause=pause)
        )
    if not os.path.isfile(cfg.class_embedding):
        raise ValueError(
            f"--class-embedding={cfg.class_embedding}: no such file; use auto, random, or a .npy file of "
            "shape [classes, width]"
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
            f"--class-embedding={cfg.class_embedding} holds {table.dtype}, or values that are not finite; "
            "finite numbers are needed"
        )
    return torch.from_numpy(table.astype(np.float32))


def head_options(cfg: GeneratorConfig) -> dict[str, Any]:
    """The options that a superresolution stage's plan follows from, beside its stem."""
    return {name: getattr(cfg, name) for name in ("cfg", "up_factor", "head_layers", "cbase", "cmax")}


def restored_generator(cfg: GeneratorConfig, lineage: Lineage) -> Generator:
    """The generator of a superresolution stage that goes on, on its recorded stem, whose file is not needed.
    Its numbers come from a checkpoint.

    Raises:
        ValueError: an option differs from those that the run began with.
    """
    for name, value in head_options(cfg).items():
        if lineage.options.get(name) != value:
            raise ValueError(
                f"--{name}={value}: the run began with {lineage.options.get(name)}, and a resumed run keeps "
                "its networks"
            )
    return Generator(**(lineage.plan or {}))


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


def make_discriminator(
    cfg: DiscriminatorConfig, c_dim: int, resolution: int, seed: int
) -> ProjectedDiscriminator:
    """Frozen backbones, the random projection and the heads, on the CPU, drawn from `seed` alone.

    Raises:
        FileNotFoundError: a backbone's weights are missing (names the file and where to put it). ValueError:
        options that do not fit.
    """
    backbones = [features.load(name, cfg.backbone_weights.get(name), seed=seed) for name in cfg.backbones]
    return ProjectedDiscriminator(backbones, c_dim, resolution, seed=seed, **discriminator_options(cfg))


def make_networks(
    cfg: TrainConfig, dataset: ImageDataset, embed_dim: int, lineage: Lineage | None = None
) -> tuple[Generator, ProjectedDiscriminator, Lineage]:
    """Fresh networks of the run's plan, float32 on the CPU, and what the run remembers of its stem.

    lineage: of a run that goes on; with a recorded plan, no stem is read.

    Raises:
        ValueError, OSError: as `make_generator`, `restored_generator` and `make_discriminator`.
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
    D = make_discriminator(cfg.discriminator, dataset.label_dim, dataset.resolution, cfg.run.seed)
    return G, D, lineage or Lineage()


def assemble(
    cfg: TrainConfig, G: Generator, D: ProjectedDiscriminator, lineage: Lineage, device: torch.device
) -> TrainState:
    """The state of a run with these networks, on its device."""
    G.synthesis.reduced_dtype = pick_precision(cfg.run.precision, device)
    D.normalize_()  # SAN: once before the first discriminator step
    state = TrainState.create(G.train().to(device), D.train().to(device), cfg.optim, cfg.loss.pl_interval)
    state.lineage = lineage
    return state


def make_classifier(
    cfg: LossConfig, dataset: ImageDataset, quiet: bool = False
) -> features.Classifier | None:
    """The guidance classifier, which knows its class for each of the data set's, or None at weight 0.

    Unless `quiet`, a line says so when the two lists of classes are compared by their length alone.

    Raises:
        ValueError: its classes are not the data set's. FileNotFoundError: its weights are missing.
    """
    if cfg.cls_weight == 0:
        return None
    classifier = features.classifier(cfg.cls_model, cfg.cls_weights)
    names, where = _classifier_names(cfg, classifier)
    if not class_names.has_names(names) or not class_names.has_names(dataset.class_names):
        _same_class_count(cfg, classifier, dataset)
        nameless, other = (
            (f"--data={dataset.path}", cfg.cls_model)
            if class_names.has_names(names)
            else (cfg.cls_model, "the data set")
        )
        if distributed.is_main() and not quiet:
            print(
                f"Warning: {nameless} does not name its classes: --cls_weight takes them to be in the order "
                f"of {other}'s"
            )
        return classifier
    descriptions = features.imagenet_descriptions() if names == classifier.class_names else None
    places, missing = class_names.class_map(dataset.class_names, names, descriptions)
    remedy = (
        "use --cls_weight=0, or a classifier of these classes with --cls_model, --cls_weights and "
        "--cls-classes"
    )
    if missing:
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: {len(missing)} of the {dataset.label_dim} classes of "
            f"--data={dataset.path} are none of "
            f"{cfg.cls_model}'s {len(names)} ({where}): {class_names.quoted(missing)}; {remedy}"
        )
    if len(set(places.tolist())) < len(places):
        twice = [
            name
            for name, place in zip(dataset.class_names, places.tolist(), strict=True)
            if places.tolist().count(place) > 1
        ]
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: classes of --data={dataset.path} are one class to "
            f"{cfg.cls_model}: {class_names.quoted(twice)}"
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
        raise ValueError(
            f"{file} names {len(names)} classes, {cfg.cls_model} tells {classifier.num_classes} apart"
        )
    return names, file


def _same_class_count(cfg: LossConfig, classifier: features.Classifier, dataset: ImageDataset) -> None:
    if classifier.num_classes != dataset.label_dim:
        raise ValueError(
            f"--cls_weight={cfg.cls_weight:g}: {cfg.cls_model} tells {classifier.num_classes} classes "
            f"apart, --data={dataset.path} has "
            f"{dataset.label_dim}: use --cls_weight=0, or name a classifier of these classes with "
            "--cls_model and --cls_weights"
        )


def training_set_kwargs(cfg: TrainConfig, dataset: ImageDataset) -> dict[str, Any]:
    """What a snapshot says of its data set, in the form that StyleGAN tools read: the name and the arguments
    of their class for such archives.
    """
    return {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": dataset.path,
        "use_labels": cfg.data.cond,
        "max_size": len(dataset) // (2 if cfg.data.mirror else 1),
        "xflip": cfg.data.mirror,
        "resolution": dataset.resolution,
        "random_seed": cfg.run.seed,
    }
