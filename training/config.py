# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: frozen dataclasses, their defaults, flags, checks and JSON form.

Every default of the project's training lives in this file and nowhere else. An option is one field, with its
flag, its meaning and the source of its default. Command lines, recipes, --help, --dry-run and
training_options.json all go through `OPTIONS`.

Units: kimg = thousands of real images shown to the discriminator; batch = images per optimizer step, over all
processes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from san.objectives import (
    DISCRIMINATOR_LOSSES,
    FALLING_OBJECTIVES,
    GENERATOR_OBJECTIVES,
    discriminator_loss,
    generator_objective,
)
from training.options import opt, options_of

XL = "StyleGAN-XL"
SG3 = "StyleGAN3"
PG = "Projected GANs"
SAN = "SAN"
OURS = "this project"

AUTO = "auto"
BACKBONES = ("deit_base_distilled_patch16_224", "tf_efficientnet_lite0")
EMBEDDING_NETWORK = "tf_efficientnet_lite0"  # of --class-embedding=auto
MAX_RESOLUTION = (
    8192  # the largest power of two of which a data set reads a picture (image_data.archives.MAX_PIXELS)
)
MAX_LAYERS = 256  # of a network; the published ones have up to 42
STEM_CBASE, STEM_CMAX = 32768, 512  # of a stem whose --cbase and --cmax are not given


@dataclass(frozen=True)
class DataConfig:
    """What is learnt."""

    path: str = opt("", "data set: zip or folder made by dataset_tool.py", OURS, flag="data", required=True)
    resolution: int | None = opt(
        None,
        "bring a larger data set to this many pixels, once, in a copy that is kept; None = as it is",
        OURS,
        low=4,
        high=MAX_RESOLUTION,
    )
    cond: bool = opt(False, "class-conditional", SG3)
    mirror: bool = opt(False, "add horizontally flipped copies", SG3)
    balanced: bool = opt(
        False,
        "draw classes evenly, for real and generated images, instead of as often as the data has them",
        OURS,
    )
    max_images: int | None = opt(None, "use a seeded random subset of this size; None = all", OURS, low=1)
    workers: int = opt(3, "threads that decode images, per process", SG3, low=0, high=256)
    cache_mb: int = opt(
        1024,
        "keep decoded images in memory up to this size, MiB per process; 0 = never",
        OURS,
        low=0,
        high=2**24,
    )
    class_embedding: str = opt(
        "auto",
        "auto = computed from the data with EfficientNet-Lite0; random; or a .npy file [classes, width]",
        OURS,
    )
    embed_dim: int = opt(320, "width of the class embedding when it is random", XL, low=1, high=2**14)


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator's plan. cbase and cmax as published: stylegan3-t doubles them, stylegan3-r quadruples
    them.
    """

    cfg: str = opt(
        "stylegan3-t",
        "stylegan3-t (translation equivariant) or stylegan3-r (and rotation)",
        SG3,
        required=True,
    )
    syn_layers: int = opt(14, "stem: layers without toRGB", XL, low=4, high=MAX_LAYERS)
    cbase: int | None = opt(
        None, f"capacity, times 2 for stylegan3-t, times 4 for stylegan3-r; None = {STEM_CBASE} for a stem, "
              "the stem's for superresolution", SG3,
        low=1, high=2**20,
    )  # fmt: skip
    cmax: int | None = opt(
        None, "half the largest number of feature maps of a layer of stylegan3-t, a quarter of it for "
              "stylegan3-r; "
        f"None = {STEM_CMAX} (1024 or 2048 feature maps) for a stem, the stem's for superresolution", SG3,
        low=1, high=2**14,
    )  # fmt: skip
    z_dim: int = opt(64, "stem: latent dimensions", XL, low=1, high=2**14)
    w_dim: int = opt(512, "stem: style dimensions", SG3, low=1, high=2**14)
    margin_size: int = opt(10, "stem: extra pixels around every feature map", SG3, low=0, high=256)
    superres: bool = opt(False, "train a superresolution head on a frozen stem", XL, switch=True)
    path_stem: str | None = opt(None, "network pickle or run folder of the stem", XL)
    pin_stem: bool = opt(
        False,
        "keep the stem that the run began with; otherwise a better one is taken over when the run is resumed",
        OURS,
        switch=True,
    )
    up_factor: int = opt(2, "superresolution: output over stem resolution", XL)
    head_layers: int = opt(7, "superresolution: layers of the head", XL, low=4, high=MAX_LAYERS)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The projected discriminator. Smaller numbers make the same network smaller."""

    backbones: tuple[str, ...] = opt(BACKBONES, "frozen timm networks", XL)
    backbone_weights: dict[str, str] = opt(
        {}, "backbone -> weights file, or 'random'; otherwise its default source", OURS
    )
    feature_size: int = opt(
        224, "size to which smaller images are brought before a CNN backbone", XL, low=1, high=4096
    )
    proj_channels: int = opt(
        64,
        "width of the random projection's finest level; the coarser ones are 2, 4 and 8 times as wide",
        PG,
        low=1,
        high=4096,
    )
    head_channels: int = opt(
        64, "width of the heads' finest convolution; coarser ones follow", PG, low=1, high=4096
    )
    cond_channels: int = opt(64, "width of the class projection", XL, low=1, high=4096)
    bn_group: int = opt(
        8, "samples over which the heads' batch statistics are taken; 0 = the whole round", XL, low=0
    )
    augment: bool = opt(True, "DiffAugment before each backbone", PG)
    precision: str = opt(
        "fp32", "fp32, or bf16 for backbones, projection and head convolutions", XL, flag="d_precision"
    )


@dataclass(frozen=True)
class LossConfig:
    """Objectives."""

    d_loss: str = opt("hinge", f"discriminator loss: {', '.join(DISCRIMINATOR_LOSSES)} (ns = bce)", PG)
    g_loss: str = opt(
        "logit",
        f"generator objective, an increasing h(d): {', '.join(GENERATOR_OBJECTIVES)}, vanilla(C), or an "
        "expression in d; "
        f"not increasing everywhere, and not checked: {', '.join(FALLING_OBJECTIVES)}",
        XL,
    )
    san: bool = opt(
        True, "directions trained by the Wasserstein form (SAN); False = a plain GAN with the same heads", SAN
    )
    diagnostics: bool = opt(
        True, "report direction optimality, separability and injectivity of every head once per tick", OURS
    )
    adversarial_scale: float = opt(
        8.0,
        "factor on the adversarial terms: the samples of one published accumulation round",
        XL,
        low=0,
        flag=None,
    )
    cls_weight: float = opt(0.0, "weight of the classifier guidance", XL, low=0)
    cls_model: str = opt(
        "deit_small_distilled_patch16_224",
        "timm classifier of the guidance; its classes must include the data set's",
        XL,
    )
    cls_weights: str | None = opt(None, "weights file of that classifier; None = its default source", OURS)
    cls_classes: str | None = opt(
        None,
        "JSON of that classifier's class names; None = CLS_WEIGHTS.classes.json if it is there, else "
        "ImageNet's",
        OURS,
    )
    blur_init_sigma: float | None = opt(
        None,
        "blur before the discriminator, in pixels; 0 = none; None = 2, with --init-from 0",
        XL,
        low=0,
        high=256,
    )
    blur_fade_kimg: float = opt(300.0, "the blur fades linearly to nothing over this many kimg", XL, low=0)
    pl_weight: float = opt(2.0, "weight of the path length regularisation; 0 = none", XL, low=0)
    pl_start_kimg: float = opt(1000.0, "path length regularisation begins here", XL, low=0)
    pl_interval: int = opt(4, "steps between path length steps", SG3, low=1, flag=None)
    pl_batch_shrink: int = opt(2, "path length uses batch / this", SG3, low=1, flag=None)
    pl_decay: float = opt(0.01, "decay of the running mean path length", SG3, low=0, flag=None)


@dataclass(frozen=True)
class OptimConfig:
    """Adam, EMA."""

    glr: float = opt(0.0025, "generator learning rate", SG3, low=0)
    dlr: float = opt(0.002, "discriminator learning rate", SG3, low=0)
    beta1: float = opt(0.0, "Adam beta 1", SG3, low=0, flag=None)
    beta2: float = opt(0.99, "Adam beta 2", SG3, low=0)
    eps: float = opt(1e-8, "Adam epsilon", SG3, low=0, flag=None)
    d_reg_interval: int = opt(
        16,
        "the lazy-regularisation correction 16/17 that the published D optimizer applies; 0 = none",
        XL,
        low=0,
        flag=None,
    )
    ema_kimg: float = opt(
        0.0, "half-life of the generator's moving average, kimg; 0 = batch * 10 / 32", SG3, low=0
    )
    ema_rampup: float | None = opt(
        None,
        "cap the half-life at this fraction of the images shown; 0 = no cap; None = 0.05, with --init-from 0",
        SG3,
        low=0,
    )


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what is written."""

    seed: int = opt(0, "random seed of everything", SG3, low=0)
    gpus: int = opt(1, "processes (one per device)", SG3, low=1, high=2**14, required=True)
    batch: int = opt(64, "images per step, over all processes", OURS, low=1, high=2**20, required=True)
    batch_gpu: int | Literal["auto"] = opt(
        0,
        "images per accumulation round and process; 0 = batch / gpus; auto = the most that fit, found when "
        "the run begins",
        SG3,
        low=0,
        high=2**20,
    )
    kimg: float = opt(25000.0, "length of the run", SG3, low=0, high=1e9)
    tick: float = opt(4.0, "kimg between status lines", SG3, high=1e9)
    snap: int = opt(50, "ticks between snapshots", SG3, low=1)
    metrics: tuple[str, ...] = opt(("fid50k_full",), "evaluated at every snapshot", SG3)
    metric_share: float = opt(
        1.0,
        "skip an evaluation while metrics have taken more than this share of the run's time; the last "
        "snapshot is always evaluated; 1 = never skip",
        OURS,
        low=0,
        high=1,
    )
    patience: int = opt(
        0,
        "end the run when the first metric has not improved for this many evaluations; 0 = never",
        OURS,
        low=0,
    )
    checkpoint_minutes: float = opt(
        15.0,
        "minutes between resumable checkpoints (one more at each snapshot and at every stop)",
        OURS,
        low=0,
    )
    keep_checkpoints: int = opt(2, "checkpoints kept", OURS, low=1)
    keep_snapshots: int = opt(0, "numbered snapshots kept; 0 = all", OURS, low=0)
    restart_every: float = opt(
        999999999.0, "seconds after which the run saves itself and leaves with exit code 3", XL, low=0
    )
    max_restarts: int = opt(
        3,
        "with --gpus of 2 or more: how often processes that failed start again, from the last checkpoint; "
        "torchrun has its own flag",
        OURS,
        low=0,
    )
    device: str = opt("auto", "auto, cuda, cpu or mps", OURS)
    precision: str = opt(
        "auto",
        "generator: fp32, fp16, bf16; auto = fp16 on cuda, bf16 on CPUs with bf16 matrix units, else fp32",
        SG3,
    )
    nobench: bool = opt(False, "disable cuDNN benchmarking", SG3)
    init_from: str | None = opt(
        None,
        "start from a network's weights, as far as they fit (other classes, resolution or size): a network "
        "file, URL or run folder",
        SG3,
    )
    desc: str | None = opt(None, "text in the run folder's name", SG3)
    variety: int = opt(
        64,
        "images drawn per tick to measure the variety of classes; fewer in short ticks; 0 = not measured",
        OURS,
        low=0,
        high=2**14,
    )
    grid: str = opt("auto", "columns x rows of the fake grids, such as 10x4", OURS)


@dataclass(frozen=True)
class TrainConfig:
    """The whole tree. Built by `train.py`, stored as training_options.json, read again by `--resume
    RUN_DIR`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def batch_gpu(self) -> int:
        """Images per accumulation round and process; with `auto`, before they are known, the most that are
        possible.
        """
        number = self.run.batch_gpu
        return number if isinstance(number, int) and number else self.run.batch // self.run.gpus

    @property
    def ema_kimg(self) -> float:
        """Half-life of the generator's moving average, kimg. Default: batch * 10 / 32 (StyleGAN3)."""
        return self.optim.ema_kimg or self.run.batch * 10 / 32

    @property
    def blur_init_sigma(self) -> float:
        """Blur at the start, pixels. Default: 2 (StyleGAN-XL), and none for a run that starts from a network
        (StyleGAN3).
        """
        default = 0.0 if self.run.init_from else 2.0
        return default if self.loss.blur_init_sigma is None else self.loss.blur_init_sigma

    @property
    def ema_rampup(self) -> float:
        """Cap of the half-life. Default: 0.05, and none for a run that starts from a network, whose average
        is worth keeping (StyleGAN3).
        """
        default = 0.0 if self.run.init_from else 0.05
        return default if self.optim.ema_rampup is None else self.optim.ema_rampup

    def override(self, changes: dict[str, Any]) -> TrainConfig:
        """Return a copy with `{"section.key": value}` replaced.

        Raises:
            ValueError: unknown section or key (names the nearest known one) or a value of the wrong type.
        """
        tree = to_json(self)
        for name, value in changes.items():
            if name not in OPTIONS:
                raise ValueError(f"unknown option '{name}'{_nearest(name, list(OPTIONS))}")
            option = OPTIONS[name]
            tree[option.section][option.key] = value
        return from_json(tree)

    def validate(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: one line that names the flag, its value and the remedy.
        """
        run, gen, disc = self.run, self.generator, self.discriminator
        for option in OPTIONS.values():
            option.check_range(option.of(self))
        pixels = self.data.resolution
        _require(
            pixels is None or pixels & (pixels - 1) == 0,
            f"--resolution={pixels}: must be a power of two (16, 32, 64, ...)",
        )
        _require(
            gen.cfg in ("stylegan3-t", "stylegan3-r"),
            f"--cfg={gen.cfg} does not exist here: use stylegan3-t or stylegan3-r",
        )
        _require(
            run.batch % run.gpus == 0,
            f"--batch={run.batch} is not a multiple of --gpus={run.gpus}: change one of them",
        )
        _require(
            run.batch % (run.gpus * self.batch_gpu) == 0,
            f"--batch={run.batch} is not a multiple of --gpus={run.gpus} times "
            f"--batch-gpu={self.batch_gpu}: change --batch-gpu (auto finds one)",
        )
        _require(
            run.patience == 0 or bool(run.metrics),
            f"--patience={run.patience} counts evaluations, and --metrics=none makes none: name a metric",
        )
        _require(run.tick > 0, f"--tick={run.tick:g}: must be positive")
        _require(run.seed < 2**32, f"--seed={run.seed}: must be below 2**32")
        _require(
            max(self.optim.beta1, self.optim.beta2) < 1, f"--beta2={self.optim.beta2:g}: must be below 1"
        )
        _require(
            not set(run.desc or "") & set("/\\\0"),
            f"--desc={run.desc}: no slashes, since it becomes part of a folder's name",
        )
        _require(
            run.device in ("auto", "cuda", "cpu", "mps"), f"--device={run.device}: use auto, cuda, cpu or mps"
        )
        _require(
            run.precision in ("auto", "fp32", "fp16", "bf16"),
            f"--precision={run.precision}: use auto, fp32, fp16 or bf16",
        )
        _require(disc.precision in ("fp32", "bf16"), f"--d-precision={disc.precision}: use fp32 or bf16")
        _require(len(disc.backbones) > 0, "--backbones is empty: name at least one timm network")
        _require(
            len(set(disc.backbones)) == len(disc.backbones),
            f"--backbones={','.join(disc.backbones)}: a network is named twice",
        )
        _require(
            not gen.superres or bool(gen.path_stem),
            "--superres needs --path_stem: the network pickle or run folder of the stem",
        )
        _require(
            gen.superres or not gen.path_stem,
            f"--path_stem={gen.path_stem} has no effect without --superres: add --superres or drop it",
        )
        _require(gen.up_factor in (2, 4, 8, 16), f"--up_factor={gen.up_factor}: use 2, 4, 8 or 16")
        _loss_names(self.loss)
        _require(
            self.loss.cls_weight == 0 or self.data.cond,
            "--cls_weight needs --cond True: guidance asks for a class",
        )
        _require(
            not self.data.balanced or self.data.cond, "--balanced needs --cond True: it is about classes"
        )
        for name in disc.backbone_weights:
            _require(
                name in disc.backbones,
                f"weights are given for '{name}', which is not among --backbones {','.join(disc.backbones)}",
            )


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "generator": GeneratorConfig,
    "discriminator": DiscriminatorConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}
OPTIONS = options_of(SECTIONS)  # "section.key" -> option
FLAGS = {
    option.flag: option for option in OPTIONS.values() if option.flag
}  # flag, with underscores -> option
RETIRED = {"generator": ("map_depth",)}  # keys of older files that had one legal value


def changes_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """{flag: value} as the {"section.key": value} of `TrainConfig.override`; flags that are not given (None)
    are left out.
    """
    return {FLAGS[flag].name: value for flag, value in flags.items() if flag in FLAGS and value is not None}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _loss_names(loss: LossConfig) -> None:
    """Raises ValueError for a discriminator or generator loss that does not exist or does not increase."""
    for flag, value, find in (
        ("--d-loss", loss.d_loss, discriminator_loss),
        ("--g-loss", loss.g_loss, generator_objective),
    ):
        try:
            find(value)
        except ValueError as err:
            raise ValueError(f"{flag}={value}: {err}") from None


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f": did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def to_json(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The config as plain dicts, lists and scalars."""
    return {
        s: {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}
        for s, d in dataclasses.asdict(config).items()
    }


def from_json(tree: dict[str, dict[str, Any]]) -> TrainConfig:
    """Inverse of `to_json`. Missing keys take their defaults, so that older run folders stay readable.

    Raises:
        ValueError: an unknown section or key, named with the nearest known one, or a value of the wrong type.
    """
    sections = {}
    if not isinstance(tree, dict) or not all(isinstance(values, dict) for values in tree.values()):
        raise ValueError("the configuration is not a table of sections")
    for section, values in tree.items():
        if section not in SECTIONS:
            raise ValueError(f"unknown section '{section}'{_nearest(section, list(SECTIONS))}")
        kept = {key: value for key, value in values.items() if key not in RETIRED.get(section, ())}
        known = [option.key for option in OPTIONS.values() if option.section == section]
        for key in kept:
            if key not in known:
                raise ValueError(f"unknown option '{section}.{key}'{_nearest(key, known)}")
        sections[section] = SECTIONS[section](
            **{key: OPTIONS[f"{section}.{key}"].coerce(value) for key, value in kept.items()}
        )
    return TrainConfig(**sections)


def describe(config: TrainConfig, given: set[str]) -> list[tuple[str, str, str, str]]:
    """Rows (name, value, where the value comes from, meaning) for every option.

    Where from: "given", "default of ..." or, for what is neither (a resumed run's options), "the run's own".

    Args:
        given: the names ("section.key") that the user set.
    """
    rows = []
    for name, option in OPTIONS.items():
        value = option.of(config)
        origin = (
            "given"
            if name in given
            else f"default of {option.source}"
            if value == option.default
            else "the run's own"
        )
        rows.append((name, str(value), origin, option.about))
    return rows
