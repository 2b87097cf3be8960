# SPDX-License-Identifier: Apache-2.0
"""--init-from: start a run from the weights of another network, as far as they fit, and summarise the result.

Weights that depend on the classes are copied class by class, by name. A generator gains or loses its class
input. Layers are copied where the new architecture has them, and the heads of the discriminator together with
the random projection they were trained with. Everything else is freshly initialised.

Reads network files of this project and published pickles (StyleGAN3, StyleGAN-XL, StyleSAN-XL). Nothing in
them is executed.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import dnnlib
from torch_utils.features import imagenet_descriptions
from training.config import EMA_RAMPUP, TrainConfig, to_json
from training.data.class_names import class_map, has_names
from training.discriminator import ProjectedDiscriminator
from training.generator import FullyConnectedLayer, Generator, LayerSpec
from training.networks import files

KEPT, RESHAPED, REBUILT = "kept", "reshaped", "rebuilt"
# Strength of the class input that is added to an unconditional network, relative to a fresh one: small, so
# that the network changes little, but large enough to learn.
CLASS_START = 0.1
LITTLE = 0.5  # warn if a smaller fraction of a network is copied
NUM_IMAGENET = 1000
_VIT_STEPS = {"3": "project", "4": "resample"}  # published names of a transformer's reassemble steps


@dataclass
class Part:
    """What happened to a part of a network.

    It was kept, reshaped (copied in part, or used differently), or rebuilt (freshly initialised).
    """

    name: str
    state: str
    taken: int  # parameters copied from the file
    total: int  # parameters of the new network
    about: str = ""


@dataclass
class TransferSummary:
    """The origin of a run's weights: file, hash, how classes were matched, and the parts of both networks."""

    file: str
    sha256: str
    classes: str
    generator: list[Part] = field(default_factory=list)
    discriminator: list[Part] = field(default_factory=list)

    def share(self, network: str) -> float:
        """Return the fraction of a network's parameters that came from the file, 0 to 1."""
        parts: list[Part] = getattr(self, network)
        return sum(p.taken for p in parts) / max(sum(p.total for p in parts), 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of init_from.json, which is also in the provenance of snapshots."""
        networks = {
            network: {
                "share": round(self.share(network), 4),
                "parts": [dataclasses.asdict(part) for part in getattr(self, network)],
            }
            for network in ("generator", "discriminator")
        }
        return {"file": self.file, "sha256": self.sha256, "classes": self.classes, **networks}

    def table(self) -> str:
        """Return the summary as text."""
        lines = [
            f"Starting from {self.file} (sha256 {self.sha256[:12]})"
            + (f", classes {self.classes}" if self.classes else "")
        ]
        for network in ("generator", "discriminator"):
            parts: list[Part] = getattr(self, network)
            lines.append(f"  {network}: {self.share(network):.1%} of its parameters copied")
            width = max((len(p.name) for p in parts), default=0)
            lines += [f"    {p.name:{width}s}  {p.state:8s}  {p.about}".rstrip() for p in parts]
        return "\n".join(lines)


@dataclass
class Source:
    """A network file to start from."""

    path: str
    sha256: str
    file: files.NetworkFile

    @property
    def G(self) -> Generator:
        """The trained generator, or its moving average if the file has no other."""
        return self.file.generators.get("G") or self.file.generators["G_ema"]

    @property
    def G_ema(self) -> Generator:
        """The moving average of the generator."""
        return self.file.generators.get("G_ema") or self.G

    @property
    def embed_dim(self) -> int | None:
        """Width of the class table; None if none is used."""
        mapping = self.G.mapping
        return mapping.embed.weight.shape[1] if mapping.c_dim > 0 and not mapping.linear_labels else None

    def class_names(self) -> list[str] | None:
        """Return the class names in the file, or None."""
        names = (self.file.provenance or {}).get("class_names")
        fits = (
            isinstance(names, list)
            and len(names) == self.G.c_dim
            and all(isinstance(name, str) for name in names)
        )
        return names if fits else None


def read(path_or_url: str) -> Source:
    """Load a network file (pickle or .safetensors) from a path or URL.

    Raises:
        ValueError, OSError: One line about why it cannot be used.
    """

    def read_file(path: str) -> Source:
        return Source(path_or_url, dnnlib.util.sha256_file(path), files.read(path, strict=False))

    return files.read_from(path_or_url, read_file)


def class_rows(source: Source, names: list[str] | None, c_dim: int) -> tuple[np.ndarray, str]:
    """Match the classes of a data set with those of a network.

    Classes are matched by name if both sides have names; otherwise by number, if there are equally many.

    Args:
        source: The network file.
        names: Class names of the data set, or None.
        c_dim: Number of classes of the data set.

    Returns:
        For each class its number in the source, -1 = new, int64 [c_dim]; and how they were matched, for the
            summary.
    """
    nothing = np.full(c_dim, -1, dtype=np.int64)
    theirs = source.class_names()
    if c_dim == 0 or source.G.c_dim == 0:
        return nothing, ""
    if has_names(names) and has_names(theirs):
        return class_map(names, theirs)[0], "by name"
    if has_names(names) and source.G.c_dim == NUM_IMAGENET:
        rows, missing = class_map(names, list(imagenet_descriptions()), imagenet_descriptions())
        if len(missing) < c_dim:
            return rows, "by name, assuming that the network has the ImageNet classes in their usual order"
    if c_dim == source.G.c_dim:
        return np.arange(c_dim), "by number, because one side has no class names"
    return nothing, "all new, because there are no names to match"


def start_generator(
    source: Generator, target: Generator, rows: np.ndarray, table: torch.Tensor | None
) -> list[Part]:
    """Copy the weights of `source` that fit to a fresh `target`.

    A superresolution stage gets the layers of its head; its stem is that of --path_stem.

    Args:
        source: The generator to copy from.
        target: The generator to copy to.
        rows: As `class_rows` returns them.
        table: Class embedding of the data set [c_dim, E], for new classes; None = there are none.
    """
    with torch.no_grad():
        parts = [] if target.num_frozen_layers else _start_mapping(source, target, rows, table)
        return parts + _start_synthesis(source, target)


def _start_mapping(
    source: Generator, target: Generator, rows: np.ndarray, table: torch.Tensor | None
) -> list[Part]:
    S, T = source.mapping, target.mapping
    parts = []
    same_classes = (
        S.c_dim > 0
        and T.c_dim > 0
        and not S.linear_labels
        and S.embed.weight.shape[1] == T.embed.weight.shape[1]
        and S.z_dim == T.z_dim
    )
    if T.c_dim > 0:
        parts.append(
            _start_embedding(S.embed.weight[: S.c_dim] if same_classes else None, T.embed.weight, rows, table)
        )
        if same_classes:
            _copy_layer(S.embed_proj, T.embed_proj)
        parts.append(_part("mapping.embed_proj", T.embed_proj, KEPT if same_classes else REBUILT))
    for i in range(T.num_layers):
        theirs, ours = getattr(S, f"fc{i}", None), getattr(T, f"fc{i}")
        if (
            theirs is not None
            and theirs.weight.shape == ours.weight.shape
            and (i > 0 or same_classes or S.c_dim == T.c_dim == 0)
        ):
            _copy_layer(theirs, ours)
            parts.append(_part(f"mapping.fc{i}", ours, KEPT))
        elif i == 0 and theirs is not None and (S.z_dim, S.w_dim) == (T.z_dim, T.w_dim):
            parts.append(_exchange_class_input(S, T))
        else:
            parts.append(_part(f"mapping.fc{i}", ours, REBUILT))
    parts.append(_start_w_avg(S.w_avg, T.w_avg, rows))
    return parts


def _start_embedding(
    theirs: torch.Tensor | None, ours: torch.Tensor, rows: np.ndarray, table: torch.Tensor | None
) -> Part:
    """Copy the class table.

    Known classes keep their row. New classes get that of the data set, scaled to the range of the old table.
    """
    fits = table is not None and table.shape == ours.shape
    if table is not None and fits:
        ours.copy_(table)
    if theirs is None:
        return Part("mapping.embed", REBUILT, 0, ours.numel(), f"{len(ours)} new classes")
    new = torch.from_numpy(rows < 0)
    if bool(new.any()):
        spread = ours - ours.mean(dim=0)
        centred = theirs - theirs.mean(dim=0)
        ours.copy_(
            theirs.mean(dim=0)
            + spread
            * (_rms(centred if len(theirs) > 1 else theirs) / _rms(spread if len(ours) > 1 else ours))
        )
    ours[~new] = theirs[torch.from_numpy(rows)[~new]].to(ours.device)
    known = int((~new).sum())
    unchanged = known == len(ours) == len(theirs) and bool(
        (torch.from_numpy(rows) == torch.arange(known)).all()
    )
    about = "" if unchanged else f"{known} of {len(ours)} classes copied, {len(ours) - known} new"
    about += "" if fits or known == len(ours) else " (random)"
    return Part(
        "mapping.embed",
        KEPT if unchanged else RESHAPED if known else REBUILT,
        known * ours.shape[1],
        ours.numel(),
        about,
    )


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt().clamp(min=1e-12)


def _exchange_class_input(S: Any, T: Any) -> Part:
    """Copy fc0 of a mapping network whose class input is added, removed, or of another kind.

    The weights of the latents are kept. The mean over the classes of a removed class input is added to the
    bias. A new class input starts with CLASS_START of its usual strength.
    """
    theirs, ours, z = S.fc0, T.fc0, S.z_dim
    bias = theirs.bias * (theirs.bias_gain / ours.bias_gain)
    if S.c_dim > 0:
        classes = torch.arange(S.c_dim)
        bias = bias + (S.class_features(classes) @ theirs.weight[:, z:].t()).mean(dim=0) * (
            theirs.weight_gain / ours.bias_gain
        )
    ours.weight[:, :z] = theirs.weight[:, :z] * (theirs.weight_gain / ours.weight_gain)
    ours.weight[:, z:] *= CLASS_START
    ours.bias.copy_(bias)
    change = (
        "the class input is new"
        if S.c_dim == 0
        else "the class input is removed"
        if T.c_dim == 0
        else "the class input is of another kind"
    )
    return Part(
        "mapping.fc0",
        RESHAPED,
        z * ours.weight.shape[0] + ours.bias.numel(),
        _count(ours),
        f"the latent input is kept, {change}",
    )


def _start_w_avg(theirs: torch.Tensor, ours: torch.Tensor, rows: np.ndarray) -> Part:
    if theirs.shape[-1] != ours.shape[-1]:
        return Part("mapping.w_avg", REBUILT, 0, 0, "w has another width")
    mean = theirs.mean(dim=0) if theirs.ndim == 2 else theirs
    ours.copy_(mean.expand_as(ours))
    if ours.ndim < 2 or theirs.ndim < 2:
        return Part(
            "mapping.w_avg",
            KEPT if ours.ndim == theirs.ndim else RESHAPED,
            0,
            0,
            "" if ours.ndim == theirs.ndim else "from the mean",
        )
    known = torch.from_numpy(rows >= 0)
    ours[known] = theirs[torch.from_numpy(rows)[known]].to(ours.device)
    return Part(
        "mapping.w_avg",
        KEPT if bool(known.all()) else RESHAPED,
        0,
        0,
        "" if bool(known.all()) else "new classes start from the mean",
    )


def _start_synthesis(source: Generator, target: Generator) -> list[Part]:
    S, T = source.synthesis, target.synthesis
    parts = []
    if not target.num_frozen_layers:
        same = (
            all(
                getattr(S.input, name).shape == getattr(T.input, name).shape
                for name in ("weight", "freqs", "phases")
            )
            and S.w_dim == T.w_dim
        )
        if same:
            T.input.load_state_dict(S.input.state_dict())
        parts.append(_part("synthesis.input", T.input, KEPT if same else REBUILT))
    theirs, ours = S.specs(), T.specs()
    twins = (
        _match_layers(theirs, ours, source.num_frozen_layers, target.num_frozen_layers)
        if S.w_dim == T.w_dim
        else {}
    )
    for position in range(target.num_frozen_layers, len(ours)):
        spec, layer = ours[position], getattr(T, ours[position].name)
        if position not in twins:
            parts.append(_part(f"synthesis.{spec.name}", layer, REBUILT))
            continue
        twin = theirs[twins[position]]
        for key in ("weight", "bias", "magnitude_ema", "affine.weight", "affine.bias"):
            layer.state_dict()[key].copy_(getattr(S, twin.name).state_dict()[key])
        exact = _plan(twin) == _plan(spec)
        about = (
            ""
            if exact and twin.name == spec.name
            else f"from {twin.name}" + ("" if exact else ", with another bandwidth")
        )
        parts.append(_part(f"synthesis.{spec.name}", layer, KEPT if exact else RESHAPED, about))
    return parts


def _match_layers(
    theirs: list[LayerSpec], ours: list[LayerSpec], their_frozen: int, our_frozen: int
) -> dict[int, int]:
    """Match the trained layers of the new architecture with layers of the source: position -> position.

    A layer matches an identical one at any position. Otherwise it matches the layer at the same position,
    counted from the start of the trained layers (toRGB: the last one), if its weights have the same shape and
    it has no other match.
    """
    twins: dict[int, int] = {}
    for position in range(our_frozen, len(ours)):
        alike = [
            i
            for i, other in enumerate(theirs)
            if i not in twins.values() and _plan(other) == _plan(ours[position])
        ]
        if alike:
            twins[position] = alike[0]
    for position in range(our_frozen, len(ours)):
        spec = ours[position]
        place = len(theirs) - 1 if spec.is_torgb else position - our_frozen + their_frozen
        if position in twins or place in twins.values() or place >= len(theirs):
            continue
        if all(
            getattr(theirs[place], name) == getattr(spec, name)
            for name in ("is_torgb", "in_channels", "out_channels", "conv_kernel")
        ):
            twins[position] = place
    return twins


def _plan(spec: LayerSpec) -> dict[str, Any]:
    """Return what determines the computation of a layer: its specification without name and precision."""
    return {
        key: value
        for key, value in spec.to_dict().items()
        if key not in ("name", "use_fp16", "magnitude_ema_beta")
    }


def _copy_layer(theirs: FullyConnectedLayer, ours: FullyConnectedLayer) -> None:
    ours.weight.copy_(theirs.weight * (theirs.weight_gain / ours.weight_gain))
    if ours.bias is not None and theirs.bias is not None:
        ours.bias.copy_(theirs.bias * (theirs.bias_gain / ours.bias_gain))


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _part(name: str, module: torch.nn.Module, state: str, about: str = "") -> Part:
    return Part(name, state, 0 if state == REBUILT else _count(module), _count(module), about)


def published_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a published discriminator to this project's names.

    Published discriminators store the projection inside their feature networks.
    """
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(
            r"feature_networks\.([^.]+)\.(scratch\..+|pretrained\.(layer\d)\.(\d)\.(weight|bias))", name
        )
        if match is None:
            renamed[name] = tensor
        elif match[3] is None:
            renamed[f"projections.{match[1]}.{match[2]}"] = tensor
        elif match[4] in _VIT_STEPS:
            renamed[f"projections.{match[1]}.reassemble.{match[3]}.{_VIT_STEPS[match[4]]}.{match[5]}"] = (
                tensor
            )
    return renamed


def start_discriminator(source: Source, D: ProjectedDiscriminator, rows: np.ndarray) -> list[Part]:
    """Copy the heads and projections of `source` that fit to a fresh discriminator.

    Per backbone, the projection comes first, because its heads depend on it.
    """
    theirs = published_names(source.file.tensors.get("D", {}))
    hashes = (source.file.provenance or {}).get("backbones")
    parts = []
    with torch.no_grad():
        for key, name in D.names.items():
            recorded = hashes.get(name) if isinstance(hashes, dict) else None
            projection = {f"projections.{key}.{n}": t for n, t in D.projections[key].state_dict().items()}
            if recorded is not None and recorded != D.feature_networks[key].sha256:
                reason = "trained with other weights of this backbone"
            elif not any(n.startswith(f"discriminators.{key}.") for n in theirs):
                reason = "the file has none for this backbone"
            elif not _shapes_match(theirs, projection):
                reason = "the projection has another size"
            else:
                reason = ""
                _copy_tensors(theirs, projection)
            weights = D.discriminators[key].state_dict(prefix=f"discriminators.{key}.")
            sona = {n: t for n, t in weights.items() if n.startswith(f"discriminators.{key}.weights.")}
            if not reason and _shapes_match(theirs, sona):
                _copy_tensors(theirs, sona)
            for level, head in enumerate(D.discriminators[key].mini_discs):  # type: ignore[arg-type]
                label, prefix = f"{name}, head {level}", f"discriminators.{key}.mini_discs.{level}."
                parts.append(
                    _part(label, head, REBUILT, reason)
                    if reason
                    else _start_head(label, prefix, head, theirs, rows)
                )
    return parts


def _start_head(
    label: str, prefix: str, head: torch.nn.Module, theirs: Mapping[str, torch.Tensor], rows: np.ndarray
) -> Part:
    own = {prefix + n: t for n, t in head.state_dict().items() if not n.endswith("num_batches_tracked")}
    main = {n: t for n, t in own.items() if n.startswith(f"{prefix}main.")}
    if not _shapes_match(theirs, main):
        return _part(label, head, REBUILT, "another size")
    parameters = {prefix + n for n, _ in head.named_parameters()}
    taken, fresh = dict(main), []
    for last in ("last_layer", "cls", "sona.omega"):
        tensors = {n: t for n, t in own.items() if n.startswith(f"{prefix}{last}.")}
        if tensors and _shapes_match(theirs, tensors):
            taken |= tensors
        elif tensors:
            fresh.append("new last layer")
    _copy_tensors(theirs, taken)
    copied = sum(t.numel() for n, t in taken.items() if n in parameters)
    embed = {n: t for n, t in own.items() if n.startswith((f"{prefix}embed.", f"{prefix}sona.embed."))}
    known = torch.from_numpy(rows >= 0)
    carried = all(
        n in theirs and theirs[n].shape[1:] == t.shape[1:] and len(theirs[n]) > int(rows.max(initial=-1))
        for n, t in embed.items()
    )
    if embed and carried and f"{prefix}cls.weight_orig" in taken:
        for n, t in embed.items():
            t[known] = theirs[n][torch.from_numpy(rows)[known]].to(t.device, t.dtype)
        copied += sum(t.numel() // len(t) * int(known.sum()) for t in embed.values())
        fresh += [] if bool(known.all()) else [f"{int((~known).sum())} of {len(known)} classes new"]
    elif embed:
        fresh.append("new classes")
    return Part(label, RESHAPED if fresh else KEPT, copied, _count(head), ", ".join(fresh))


def _shapes_match(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> bool:
    return all(name in theirs and theirs[name].shape == tensor.shape for name, tensor in ours.items())


def _copy_tensors(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])


def start(
    source: Source,
    G: Generator,
    D: ProjectedDiscriminator,
    names: list[str] | None,
    table: torch.Tensor | None,
) -> tuple[Generator, TransferSummary]:
    """Initialise a fresh G and D from a network file, in place.

    Args:
        source: The network file.
        G: The generator.
        D: The discriminator.
        names: Class names of the data set.
        table: Class embedding of the data set [c_dim, E], for new classes.

    Returns:
        The moving average of G, initialised from that of the file; and the summary.
    """
    rows, how = class_rows(source, names, G.c_dim)
    G_ema = copy.deepcopy(G)
    start_generator(source.G_ema, G_ema, rows, table)
    report = TransferSummary(source.path, source.sha256, how)
    report.generator = start_generator(source.G, G, rows, table)
    report.discriminator = start_discriminator(source, D, rows)
    return G_ema, report


# Options that determine which weights fit, by section of the configuration. A superresolution stage takes
# those of its mapping network from its stem.
_DECISIVE = {
    "generator": ("cfg", "syn_layers", "head_layers", "cbase", "cmax", "z_dim", "w_dim", "margin_size"),
    "discriminator": (
        "backbones",
        "feature_size",
        "proj_channels",
        "head_channels",
        "cond_channels",
        "heads",
    ),
}


def warnings(source: Source, report: TransferSummary, cfg: TrainConfig) -> list[str]:
    """Return a line for each thing in a run from a network that may not be wanted."""
    return [line for line in (_little_warning(source, report, cfg), _average_warning(cfg)) if line]


def _average_warning(cfg: TrainConfig) -> str | None:
    """Return a warning if the average of the weights would lag behind in a run this short, else None."""
    if cfg.ema_rampup > 0 or cfg.ema_kimg <= EMA_RAMPUP * cfg.run.kimg:
        return None
    return (
        f"Warning: images are those of a moving average with a half-life of {cfg.ema_kimg:g} kimg, in a run "
        f"of {cfg.run.kimg:g} kimg: they lag behind. --ema-rampup={EMA_RAMPUP:g} limits it to "
        f"{EMA_RAMPUP:.0%} of the images shown, as in a run from random weights"
    )


def _little_warning(source: Source, report: TransferSummary, cfg: TrainConfig) -> str | None:
    """Return a warning if little of one of the networks was copied, else None.

    It names the options that differ from those of the run of the file.
    """
    little = [network for network in _DECISIVE if report.share(network) < LITTLE]
    if not little:
        return None
    config = (source.file.provenance or {}).get("config")
    options: list[str] = []
    unset: list[str] = []  # given here, but not to that run
    for network in little:
        theirs = config.get(network) if isinstance(config, dict) else None
        ours = to_json(cfg)[network]
        differing = {
            key: theirs[key]
            for key in _DECISIVE[network]
            if isinstance(theirs, dict) and key in theirs and theirs[key] != ours[key]
        }
        options += [
            f"--{key.replace('_', '-')}={','.join(map(str, v)) if isinstance(v, list) else v}"
            for key, v in differing.items()
            if v is not None
        ]
        unset += [f"--{key.replace('_', '-')}" for key, v in differing.items() if v is None]
    shares = " and ".join(f"{report.share(network):.0%} of the {network}" for network in little)
    specs = source.G.synthesis.specs()
    plan = (
        f"{source.G.img_resolution}x{source.G.img_resolution}, {len(specs) - 1} layers, up to "
        f"{max(s.out_channels for s in specs)} channels"
    )
    if unset:
        options.append(f"without {' '.join(unset)}")
    remedy = (
        f"to copy more, use the options of its run: {' '.join(options)}"
        if options
        else "to copy more, use the options of the run that trained it"
    )
    return f"Warning: only {shares} was copied from {source.path} ({plan}): {remedy}"
