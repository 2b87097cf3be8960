# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: frozen dataclasses with defaults, flags, checks and JSON form.

Every default of training is in this file and nowhere else. An option is one field with its flag, help text
and the source of its default. Command lines, recipes, --help, --dry-run and training_options.json all use
`OPTIONS`.

Units: kimg = thousands of real images shown to the discriminator; batch = images per optimizer step over all
processes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.options import PROJECT, opt, options_of

XL = "StyleGAN-XL"
SG3 = "StyleGAN3"
PG = "Projected GANs"
SAN = "SAN"
OURS = PROJECT

AUTO = "auto"
SAVED_IN_RUN = "saved in the run"  # an option's origin, see `describe`
DIFFAUG = ("color", "translation", "cutout")  # the published default, in the order of application
BACKBONES = ("deit_base_distilled_patch16_224", "tf_efficientnet_lite0")
TRACKERS = ("tensorboard", "wandb", "trackio", "prometheus")
COMPILE_MODES = ("off", "regions", "graphs")
THREADS, PROCESSES = WORKERS_KINDS = ("threads", "processes")
COMPUTED_EMBEDDINGS = ("auto", "whitened")  # values of --class-embedding that need EMBEDDING_NETWORK
EMBEDDING_NETWORK = "tf_efficientnet_lite0"
# The names of san's tables, for --help: san imports torch.
DISCRIMINATOR_LOSSES = ("hinge", "bce", "ns", "ls", "ls01", "wasserstein", "relativistic", "ls_softplus")
GENERATOR_OBJECTIVES = ("logit", "ns", "vanilla", "mle", "arcsinh", "ls_softplus")
FALLING_OBJECTIVES = ("ls01",)
HEADS = ("projection", "sona")
MAX_RESOLUTION = 8192  # largest power of two within image_data.archives.MAX_PIXELS
MAX_LAYERS = 256  # per network; published networks have up to 42
STEM_CBASE, STEM_CMAX = 32768, 512  # --cbase and --cmax of a stem, if not given
EMA_RAMPUP = 0.05  # largest half-life of the moving average as a share of the images shown (StyleGAN3)


@dataclass(frozen=True)
class DataConfig:
    """The training data."""

    path: str = opt(
        "",
        "Data set made by dataset_tool.py: a zip file, a folder, or tar shards ('train-{000..009}.tar', in "
        "quotes).",
        OURS,
        flag="data",
        required=True,
    )
    resolution: int | None = opt(
        None,
        "Train at this image size in pixels, a power of two. A larger data set is downscaled once, and the "
        "copy is kept. If not set: the size of the data set.",
        OURS,
        low=4,
        high=MAX_RESOLUTION,
    )
    channels: int | None = opt(
        None,
        "Channels of the images: 1 = grey, 3 = RGB, 4 = RGB and alpha. If not set: those that the data set "
        "was prepared with (dataset_tool.py --channels).",
        OURS,
        low=1,
        high=4,
    )
    cond: bool = opt(False, "Train a class-conditional model. Needs a data set with labels.", SG3)
    mirror: bool = opt(False, "Add a horizontally flipped copy of every image.", SG3)
    mirrory: bool = opt(
        False,
        "Add a vertically flipped copy of every image, and with --mirror of its flipped copy.",
        OURS,
    )
    quarter_turns: bool = opt(
        False,
        "Add copies of every image, and of its flipped copies, turned by 90, 180 and 270 degrees.",
        OURS,
    )
    balanced: bool = opt(
        False,
        "Draw all classes equally often, for real and generated images. Otherwise in proportion to their "
        "size.",
        OURS,
    )
    class_run: int = opt(
        1,
        "Order the data so that this many consecutive images share a class: more pairs of a class for "
        "--mbstd and --energy-weight. 1 = any order.",
        OURS,
        low=1,
        high=4096,
    )
    max_images: int | None = opt(
        None, "Use a random subset of this many images. If not set: all images.", OURS, low=1
    )
    workers: int = opt(
        3,
        "Threads or processes that decode images, per training process. 0 = decode in the training thread.",
        SG3,
        low=0,
        high=256,
    )
    workers_kind: str = opt(
        THREADS,
        "What --workers counts: threads, or processes, which do not wait for each other and need memory of "
        "their own. The images are the same. Data sets that fit in --cache-mb are decoded by threads.",
        OURS,
    )
    cache_mb: int = opt(
        1024,
        "Keep decoded images in memory if the whole data set fits in this many MiB per process. 0 = never.",
        OURS,
        low=0,
        high=2**24,
    )
    data_cache: str | None = opt(
        None,
        "Copy the data set to this folder, on a local disk of the node, once per node, and read it from "
        "there. The copy is compared with the original and stays for later runs.",
        OURS,
    )
    class_embedding: str = opt(
        "auto",
        "Initial class embedding: auto (computed from the data set with EfficientNet-Lite0), whitened (the "
        "same, with all classes equally far apart), random, or a .npy file of shape [classes, width].",
        OURS,
    )
    embed_dim: int = opt(
        320, "Width of the class embedding with --class-embedding=random.", XL, low=1, high=2**14
    )


@dataclass(frozen=True)
class GeneratorConfig:
    """The architecture of the generator.

    As in the published code, cbase and cmax are doubled for stylegan3-t and quadrupled for stylegan3-r.
    """

    cfg: str = opt(
        "stylegan3-t",
        "Base configuration: stylegan3-t (translation equivariant) or stylegan3-r (translation and "
        "rotation).",
        SG3,
        required=True,
    )
    syn_layers: int = opt(14, "Stem: number of synthesis layers without toRGB.", XL, low=4, high=MAX_LAYERS)
    cbase: int | None = opt(
        None,
        "Capacity: feature maps per layer are inversely proportional to its cutoff frequency, with this "
        "factor "
        f"(x2 for stylegan3-t, x4 for stylegan3-r). If not set: {STEM_CBASE} for a stem, the stem's value "
        "for "
        "superresolution.",
        SG3,
        low=1,
        high=2**20,
    )
    cmax: int | None = opt(
        None,
        "Largest number of feature maps of a layer (x2 for stylegan3-t, x4 for stylegan3-r). "
        f"If not set: {STEM_CMAX} for a stem, the stem's value for superresolution.",
        SG3,
        low=1,
        high=2**14,
    )
    z_dim: int = opt(64, "Stem: dimensions of the latent vector z.", XL, low=1, high=2**14)
    w_dim: int = opt(512, "Stem: dimensions of the style vector w.", SG3, low=1, high=2**14)
    map_lr_multiplier: float = opt(
        0.01,
        "Stem: learning rate of the mapping network's layers, as a multiple of --glr. Larger values let z "
        "and the class change the images earlier.",
        SG3,
        low=0,
    )
    margin_size: int = opt(10, "Stem: extra pixels on each side of every feature map.", SG3, low=0, high=256)
    superres: bool = opt(
        False, "Train a superresolution head on a frozen stem. Needs --path_stem.", XL, switch=True
    )
    path_stem: str | None = opt(
        None, "The stem for --superres: a network file, a URL, or a run folder (its best network).", XL
    )
    pin_stem: bool = opt(
        False,
        "Keep the stem that the run started with. Otherwise, when the run is resumed, a better network in "
        "the "
        "folder given by --path_stem replaces it.",
        OURS,
        switch=True,
    )
    up_factor: int = opt(2, "Superresolution: output resolution divided by the stem's: 2, 4, 8 or 16.", XL)
    head_layers: int = opt(
        7, "Superresolution: number of layers of the head without toRGB.", XL, low=4, high=MAX_LAYERS
    )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The projected discriminator. The channel options scale its size."""

    backbones: tuple[str, ...] = opt(
        BACKBONES, "Frozen feature networks: timm model names, separated by commas.", XL
    )
    backbone_weights: dict[str, str] = opt(
        {},
        "Weights files of backbones; 'random' in place of a file = random weights. Backbones that are not "
        "listed use timm's pretrained weights.",
        OURS,
    )
    feature_size: int = opt(
        224, "Smaller images are resized to this many pixels before a CNN backbone.", XL, low=1, high=4096
    )
    proj_channels: int = opt(
        64,
        "Channels of the random projection at its finest level. Coarser levels have 2, 4 and 8 times as "
        "many.",
        PG,
        low=1,
        high=4096,
    )
    head_channels: int = opt(
        64,
        "Channels of the finest convolution of the heads. Coarser convolutions scale with it.",
        PG,
        low=1,
        high=4096,
    )
    cond_channels: int = opt(64, "Channels of the class projection in the heads.", XL, low=1, high=4096)
    heads: str = opt(
        "projection",
        "Class-conditional heads: projection, or sona = naturalness plus alignment with the class, balanced "
        "by learnt weights (published with --d-loss=bce).",
        "SONA",
    )
    bn_group: int = opt(
        8, "Samples that share batch statistics in the heads. 0 = the whole micro-batch.", XL, low=0
    )
    mbstd: bool = opt(
        False,
        "Show the heads how much the images of a class differ: the standard deviation of every feature over "
        "those of the group of --bn-group, against images of a class that look alike.",
        OURS,
    )
    augment: bool = opt(True, "Apply DiffAugment before each backbone.", PG)
    diffaug: tuple[str, ...] = opt(
        DIFFAUG, "The operations of DiffAugment, separated by commas: color, translation, cutout.", PG
    )
    precision: str = opt(
        "auto",
        "Precision of the discriminator: fp32, or bf16 for backbones, projection and head convolutions. "
        "The guidance classifier has the same. auto = bf16 on GPUs that compute in it, and on CPUs where it "
        "is measured to be faster, otherwise fp32.",
        OURS,
        flag="d_precision",
    )


@dataclass(frozen=True)
class LossConfig:
    """The objectives and their weights."""

    d_loss: str = opt(
        "hinge", f"Discriminator loss: {', '.join(DISCRIMINATOR_LOSSES)}. ns is the same as bce.", PG
    )
    g_loss: str = opt(
        "logit",
        "Generator objective, an increasing function h(d) of the logit: "
        f"{', '.join(GENERATOR_OBJECTIVES)}, vanilla(C), or an expression in d. Also accepted, although "
        f"not increasing everywhere: {', '.join(FALLING_OBJECTIVES)}.",
        XL,
    )
    san: bool = opt(
        True,
        "Train the directions of the discriminator with a loss of their own: Wasserstein, or that of "
        "--d-loss=ls_softplus (SAN). False = a plain GAN with the same heads.",
        SAN,
    )
    match_classes: bool = opt(
        False,
        "In discriminator steps, generate images for the classes of the real ones. With few images per "
        "class in a batch, the directions of the classes then get a less noisy gradient.",
        OURS,
    )
    diagnostics: bool = opt(
        True, "Log direction optimality, separability and injectivity of every head once per tick.", OURS
    )
    adversarial_scale: float = opt(
        8.0,
        "Factor on the adversarial terms: the number of samples in one published micro-batch.",
        XL,
        low=0,
        flag=None,
    )
    energy_weight: float = opt(
        0.0,
        "Weight of the energy distance between the shapes of generated and real images of a class, in the "
        "generator's loss, against images of a class that look alike in short runs with few classes. 0 = "
        "none.",
        OURS,
        low=0,
    )
    cls_weight: float = opt(0.0, "Weight of the classifier guidance. 0 = none.", XL, low=0)
    cls_model: str = opt(
        "deit_small_distilled_patch16_224",
        "Classifier for the guidance: a timm model name. Its classes must include those of the data set.",
        XL,
    )
    cls_weights: str | None = opt(
        None, "Weights file of the classifier. If not set: timm's pretrained weights.", OURS
    )
    cls_classes: str | None = opt(
        None,
        "JSON file with the class names of the classifier. If not set: CLS_WEIGHTS.classes.json if it "
        "exists, "
        "otherwise the ImageNet names.",
        OURS,
    )
    blur_init_sigma: float | None = opt(
        None,
        "Blur of the discriminator's input at the start, in pixels. 0 = none. "
        "If not set: 2, or 0 with --init-from.",
        XL,
        low=0,
        high=256,
    )
    blur_fade_kimg: float = opt(
        300.0, "The blur decreases linearly to zero over this many kimg. 0 = no blur.", XL, low=0
    )
    pl_weight: float = opt(2.0, "Weight of the path length regularisation. 0 = none.", XL, low=0)
    pl_start_kimg: float = opt(1000.0, "Start of the path length regularisation, in kimg.", XL, low=0)
    pl_interval: int = opt(4, "Steps between path length steps.", SG3, low=1, flag=None)
    pl_batch_shrink: int = opt(
        2, "Path length steps use the batch size divided by this.", SG3, low=1, flag=None
    )
    pl_decay: float = opt(0.01, "Decay of the running mean of path lengths.", SG3, low=0, flag=None)


@dataclass(frozen=True)
class OptimConfig:
    """Adam and the moving average of the generator."""

    glr: float = opt(0.0025, "Learning rate of the generator.", SG3, low=0)
    dlr: float = opt(0.002, "Learning rate of the discriminator.", SG3, low=0)
    beta1: float = opt(0.0, "Beta 1 of Adam.", SG3, low=0, flag=None)
    beta2: float = opt(0.99, "Beta 2 of Adam.", SG3, low=0)
    eps: float = opt(1e-8, "Epsilon of Adam.", SG3, low=0, flag=None)
    d_reg_interval: int = opt(
        16,
        "Interval n of the lazy-regularisation correction n/(n+1) in the discriminator's optimizer. 0 = "
        "none.",
        XL,
        low=0,
        flag=None,
    )
    ema_kimg: float = opt(
        0.0,
        "Half-life of the moving average of the generator's weights, in kimg. 0 = batch * 10 / 32.",
        SG3,
        low=0,
    )
    ema_rampup: float | None = opt(
        None,
        "Limit the half-life to this fraction of the images shown. 0 = no limit. "
        f"If not set: {EMA_RAMPUP:g}, or 0 with --init-from.",
        SG3,
        low=0,
    )


@dataclass(frozen=True)
class RunConfig:
    """Length of the run, hardware, and output files."""

    seed: int = opt(0, "Random seed of the whole run.", SG3, low=0)
    gpus: int = opt(1, "Number of processes, one per device.", SG3, low=1, high=2**14, required=True)
    batch: int = opt(
        64, "Images per training step, over all processes.", OURS, low=1, high=2**20, required=True
    )
    batch_gpu: int | Literal["auto"] = opt(
        0,
        "Images per micro-batch and process; gradients are accumulated up to --batch. 0 = batch / gpus; auto "
        "= "
        "the most that fit in memory, determined when the run starts.",
        SG3,
        low=0,
        high=2**20,
    )
    kimg: float = opt(25000.0, "Length of the run in kimg (thousands of images shown).", SG3, low=0, high=1e9)
    tick: float = opt(4.0, "Length of a tick in kimg. Each tick prints a status line.", SG3, high=1e9)
    snap: int = opt(50, "Ticks between snapshots.", SG3, low=1)
    metrics: tuple[str, ...] = opt(
        ("fid50k_full",),
        "Metrics to compute at every snapshot, separated by commas, or none. The first selects the best "
        "network.",
        SG3,
    )
    tracker: tuple[str, ...] = opt(
        ("tensorboard",),
        f"Also send measurements to {', '.join(TRACKERS[:-1])} or {TRACKERS[-1]} (a text file); separated by "
        "commas or repeated, or none. The run folder has all of them in any case.",
        OURS,
    )
    metric_share: float = opt(
        1.0,
        "Skip an evaluation while metrics have taken more than this fraction of the run's time. The last "
        "snapshot is always evaluated. 1 = never skip.",
        OURS,
        low=0,
        high=1,
    )
    patience: int = opt(
        0,
        "Stop when the first metric has not improved for this many evaluations. 0 = never.",
        OURS,
        low=0,
    )
    checkpoint_minutes: float = opt(
        15.0,
        "Minutes between checkpoints. One is also written at each snapshot and when the run stops.",
        OURS,
        low=0,
    )
    keep_checkpoints: int = opt(2, "Number of checkpoints to keep.", OURS, low=1)
    local_checkpoint: str | None = opt(
        None,
        "Also write each checkpoint to this folder, on a local disk of the node; only the newest is kept. A "
        "run that resumes uses it if it is newer than those of the run folder. The folder must exist.",
        OURS,
    )
    keep_snapshots: int = opt(0, "Number of numbered snapshots to keep. 0 = all.", OURS, low=0)
    restart_every: float = opt(
        999999999.0, "Write a checkpoint and exit with code 3 after this many seconds.", XL, low=0
    )
    max_restarts: int = opt(
        3,
        "With --gpus of 2 or more: number of times failed processes are restarted from the last checkpoint. "
        "torchrun has its own flag.",
        OURS,
        low=0,
    )
    elastic: bool = opt(
        False,
        "Under torchrun --nnodes=N:M: train with as many processes as it starts, whatever --gpus says. The "
        "batch stays.",
        OURS,
        switch=True,
    )
    hang_timeout: float = opt(
        600.0,
        "Seconds without progress after which a process counts as hung; the run then restarts or ends. "
        "0 = never.",
        OURS,
        low=0,
    )
    collective_timeout: float = opt(
        120.0, "Minutes that a process waits for the others in one collective before it fails.", OURS, low=0.1
    )
    device: str = opt("auto", "Device: auto, cuda, cpu or mps.", OURS)
    precision: str = opt(
        "auto",
        "Precision of the generator's large layers: fp32, fp16 or bf16. auto = fp16 on cuda, bf16 on CPUs "
        "where it is measured to be faster, otherwise fp32.",
        SG3,
    )
    nobench: bool = opt(False, "Disable cuDNN benchmarking.", SG3)
    allow_tf32: bool = opt(
        True, "Let what stays in float32 use TF32 on GPUs. Metrics are always computed without it.", OURS
    )
    compile: str = opt(
        "off",
        "off, regions (generator and discriminator with torch.compile) or graphs (the passes of a "
        "micro-batch as one CUDA graph, without torch.compile). What cannot be compiled or captured runs as "
        "it is.",
        OURS,
    )
    checkpoint_activations: bool = opt(
        False,
        "Keep only the inputs of the generator's layers, and compute the rest again in the backward pass. "
        "Needs less memory and more time; the results are the same.",
        OURS,
    )
    init_from: str | None = opt(
        None,
        "Start from the weights of another network, as far as they fit: a network file, a URL or a run "
        "folder. "
        "Classes, resolution and size may differ.",
        SG3,
    )
    desc: str | None = opt(None, "Text to add to the name of the run folder.", SG3)
    variety: int = opt(
        64,
        "Images to generate per tick to measure the variety within classes; fewer in short ticks. 0 = none.",
        OURS,
        low=0,
        high=2**14,
    )
    grid: str = opt(
        "auto", "Columns x rows of the image grids, such as 10x4. auto = one row per class if they fit.", OURS
    )


@dataclass(frozen=True)
class TrainConfig:
    """The complete configuration of a run.

    `train.py` builds it and writes it to training_options.json; `--resume RUN_DIR` reads it from there.
    """

    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def batch_gpu(self) -> int:
        """Images per micro-batch and process.

        With `auto`, and before the value has been determined, the largest possible value.
        """
        number = self.run.batch_gpu
        return number if isinstance(number, int) and number else self.run.batch // self.run.gpus

    @property
    def ema_kimg(self) -> float:
        """Half-life of the generator's moving average in kimg. Default: batch * 10 / 32 (StyleGAN3)."""
        return self.optim.ema_kimg or self.run.batch * 10 / 32

    @property
    def blur_init_sigma(self) -> float:
        """Blur at the start, in pixels.

        Default: 2 (StyleGAN-XL), or 0 for a run that starts from a network (StyleGAN3).
        """
        default = 0.0 if self.run.init_from else 2.0
        return default if self.loss.blur_init_sigma is None else self.loss.blur_init_sigma

    @property
    def ema_rampup(self) -> float:
        """Limit of the half-life as a fraction of the images shown.

        Default: 0.05, or 0 (no limit) for a run that starts from a network, because its average is already
        useful (StyleGAN3).
        """
        default = 0.0 if self.run.init_from else EMA_RAMPUP
        return default if self.optim.ema_rampup is None else self.optim.ema_rampup

    def override(self, changes: dict[str, Any]) -> TrainConfig:
        """Return a copy with `{"section.key": value}` replaced.

        Raises:
            ValueError: Unknown section or key (the message names the closest known one), or a value of the
                wrong type.
        """
        tree = to_json(self)
        for name, value in changes.items():
            if name not in OPTIONS:
                raise ValueError(f"unknown option '{name}'{_nearest(name, list(OPTIONS))}")
            option = OPTIONS[name]
            tree[option.section][option.key] = value
        return from_json(tree)

    def validate(self) -> None:
        """Check the options: each in its range, and all against each other.

        Raises:
            ValueError: One line that names the flag, its value and the remedy.
        """
        for option in OPTIONS.values():
            option.check_range(option.of(self))
        _check_data(self.data)
        _check_generator(self.generator)
        _check_discriminator(self.discriminator)
        _check_loss(self.loss, self.data.cond)
        _require(
            self.loss.energy_weight == 0 or self.batch_gpu > 1,
            f"--energy-weight={self.loss.energy_weight:g} compares the images of a micro-batch: --batch-gpu "
            "must be at least 2, and is best a multiple of 8",
        )
        runs = self.data.class_run
        _require(
            self.batch_gpu % runs == 0,
            f"--class-run={runs}: a micro-batch must consist of whole runs, and --batch-gpu={self.batch_gpu} "
            "is not a multiple",
        )
        _check_heads(self)
        if self.discriminator.mbstd:
            _check_groups("--mbstd", self.discriminator.bn_group, self.batch_gpu)
        _check_batch(self.run, self.batch_gpu)
        _check_run(self.run)
        _require(
            max(self.optim.beta1, self.optim.beta2) < 1, f"--beta2={self.optim.beta2:g}: must be below 1"
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
# flag with underscores -> option
FLAGS = {option.flag: option for option in OPTIONS.values() if option.flag}
RETIRED = {"generator": ("map_depth",)}  # ignored keys of older files, which had one legal value


def changes_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Convert {flag: value} to the {"section.key": value} of `TrainConfig.override`.

    Flags that were not given (None) are left out.
    """
    return {FLAGS[flag].name: value for flag, value in flags.items() if flag in FLAGS and value is not None}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_data(data: DataConfig) -> None:
    pixels = data.resolution
    _require(
        pixels is None or pixels & (pixels - 1) == 0,
        f"--resolution={pixels}: must be a power of two (16, 32, 64, ...)",
    )
    _require(data.channels != 2, "--channels=2: use 1 (grey), 3 (RGB) or 4 (RGB and alpha)")
    _require(not data.balanced or data.cond, "--balanced needs --cond True: it balances classes")
    _require(
        data.class_run == 1 or data.cond, "--class-run needs --cond True: without classes all runs are one"
    )
    _require(
        data.workers_kind in WORKERS_KINDS,
        f"--workers-kind={data.workers_kind}: use {' or '.join(WORKERS_KINDS)}",
    )


def _check_generator(gen: GeneratorConfig) -> None:
    _require(
        gen.cfg in ("stylegan3-t", "stylegan3-r"),
        f"--cfg={gen.cfg} is not supported: use stylegan3-t or stylegan3-r",
    )
    _require(
        not gen.superres or bool(gen.path_stem),
        "--superres needs --path_stem: the network file or run folder of the stem",
    )
    _require(
        gen.superres or not gen.path_stem,
        f"--path_stem={gen.path_stem} has no effect without --superres: add --superres or remove --path_stem",
    )
    _require(gen.up_factor in (2, 4, 8, 16), f"--up_factor={gen.up_factor}: use 2, 4, 8 or 16")
    _require(gen.map_lr_multiplier > 0, f"--map-lr-multiplier={gen.map_lr_multiplier:g}: must be positive")


def _check_discriminator(disc: DiscriminatorConfig) -> None:
    _require(
        disc.precision in ("auto", "fp32", "bf16"), f"--d-precision={disc.precision}: use auto, fp32 or bf16"
    )
    unknown = [name for name in disc.diffaug if name not in DIFFAUG]
    _require(
        not unknown and len(set(disc.diffaug)) == len(disc.diffaug),
        f"--diffaug={','.join(disc.diffaug)}: use some of {','.join(DIFFAUG)}, each once",
    )
    _require(len(disc.diffaug) > 0, "--diffaug is empty: use --augment=False for no augmentation")
    _require(len(disc.backbones) > 0, "--backbones is empty: give at least one timm model name")
    names = ",".join(disc.backbones)
    _require(
        len(set(disc.backbones)) == len(disc.backbones), f"--backbones={names}: remove the repeated network"
    )
    for name in disc.backbone_weights:
        _require(
            name in disc.backbones,
            f"--backbone-weights: '{name}' is not among --backbones={names}: remove it",
        )


def _check_loss(loss: LossConfig, cond: bool) -> None:
    from san.objectives import discriminator_loss, generator_objective

    for flag, value, find in (
        ("--d-loss", loss.d_loss, discriminator_loss),
        ("--g-loss", loss.g_loss, generator_objective),
    ):
        try:
            find(value)
        except ValueError as err:
            raise ValueError(f"{flag}={value}: {err}") from None
    _require(
        not loss.match_classes or cond, "--match-classes needs --cond True: without classes it has no effect"
    )
    _require(loss.cls_weight == 0 or cond, "--cls_weight needs --cond True: the guidance needs class labels")


def _check_heads(config: TrainConfig) -> None:
    from san.objectives import is_paired

    heads, loss, size = config.discriminator.heads, config.loss, config.batch_gpu
    _require(heads in HEADS, f"--heads={heads} is not supported: use {' or '.join(HEADS)}")
    if heads != "sona":
        return
    _require(config.data.cond, "--heads=sona needs --cond True: it compares images by class")
    _require(loss.san, "--san=False: --heads=sona has no plain GAN; use --heads=projection")
    _require(
        not is_paired(loss.d_loss),
        f"--d-loss={loss.d_loss} compares pairs: use another one with --heads=sona, such as bce",
    )
    _check_groups("--heads=sona", config.discriminator.bn_group, size)


def _check_groups(flag: str, group: int, batch_gpu: int) -> None:
    _require(
        batch_gpu > 1 and group != 1,
        f"{flag} compares images within groups of --bn-group={group} in a micro-batch of {batch_gpu}: both "
        "must be at least 2",
    )


def _check_batch(run: RunConfig, batch_gpu: int) -> None:
    _require(
        run.batch % run.gpus == 0,
        f"--batch={run.batch} is not a multiple of --gpus={run.gpus}: change one of them",
    )
    _require(
        run.batch % (run.gpus * batch_gpu) == 0,
        f"--batch={run.batch} is not a multiple of --gpus={run.gpus} times "
        f"--batch-gpu={batch_gpu}: change --batch-gpu (auto finds a value)",
    )


def _check_run(run: RunConfig) -> None:
    _require(
        run.patience == 0 or bool(run.metrics),
        f"--patience={run.patience} counts evaluations, and --metrics=none disables them: name a metric",
    )
    _require(run.tick > 0, f"--tick={run.tick:g}: must be positive")
    _require(run.seed < 2**32, f"--seed={run.seed}: must be below 2**32")
    _require(
        not set(run.desc or "") & set("/\\\0"),
        f"--desc={run.desc}: remove the slashes; the text becomes part of a folder name",
    )
    _require(
        run.device in ("auto", "cuda", "cpu", "mps"), f"--device={run.device}: use auto, cuda, cpu or mps"
    )
    unknown = [name for name in run.tracker if name not in TRACKERS]
    _require(not unknown, f"--tracker={','.join(unknown)}: use {', '.join(TRACKERS)} or none")
    _require(run.compile in COMPILE_MODES, f"--compile={run.compile}: use {', '.join(COMPILE_MODES)}")
    _require(
        run.compile != "regions" or not run.checkpoint_activations,
        f"--checkpoint-activations=True: not supported with --compile={run.compile}; use one of them",
    )
    _require(
        run.precision in ("auto", "fp32", "fp16", "bf16"),
        f"--precision={run.precision}: use auto, fp32, fp16 or bf16",
    )


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f": did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def to_json(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return the configuration as plain dicts, lists and scalars."""
    return {
        s: {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}
        for s, d in dataclasses.asdict(config).items()
    }


def from_json(tree: dict[str, dict[str, Any]]) -> TrainConfig:
    """Inverse of `to_json`. Missing keys take their defaults, so that older run folders can be read.

    Raises:
        ValueError: An unknown section or key (the message names the closest known one), or a value of the
            wrong type.
    """
    sections = {}
    if not isinstance(tree, dict) or not all(isinstance(values, dict) for values in tree.values()):
        raise ValueError("the configuration must be an object of sections")
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
    """Return rows (name, value, origin of the value, help text) for every option.

    The origin is "given", "default (SOURCE)", or "saved in the run" for other values of a resumed run.

    Args:
        config: The configuration to describe.
        given: Names ("section.key") of the options that the user set.
    """
    rows = []
    for name, option in OPTIONS.items():
        value = option.of(config)
        origin = (
            "given"
            if name in given
            else f"default ({option.source})"
            if value == option.default
            else SAVED_IN_RUN
        )
        rows.append((name, str(value), origin, option.about))
    return rows
