# SPDX-License-Identifier: Apache-2.0
"""--init-from: a run that starts from another network's weights, whatever of them fits, and a report of what
did.

What depends on the classes is carried over class by class, by name; a generator gains or loses its class
input; layers are taken where the plan of the new network has them; the discriminator's heads together with
the random projection they were trained on. The rest starts anew.

Reads the project's own network files and published pickles (StyleGAN3, StyleGAN-XL, StyleSAN-XL); nothing in
them is run.
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
from training.config import TrainConfig, to_json
from training.data.class_names import class_map, has_names
from training.discriminator import ProjectedDiscriminator
from training.generator import FullyConnectedLayer, Generator, LayerSpec
from training.networks import files

KEPT, RESHAPED, REBUILT = "kept", "reshaped", "rebuilt"
# strength of a class input that an unconditional network is given, against a fresh one's: close to what it
# was, able to learn
CLASS_START = 0.1
LITTLE = 0.5  # a smaller part of the generator taken is worth a warning
NUM_IMAGENET = 1000
_VIT_STEPS = {"3": "project", "4": "resample"}  # published names of a transformer's reassemble steps


@dataclass
class Part:
    """What became of a part of a network: kept as it was, reshaped (part of it taken, or put to another use),
    or rebuilt (starts anew).
    """

    name: str
    state: str
    taken: int  # numbers taken from the pickle
    total: int  # of the new network's
    about: str = ""


@dataclass
class TransferSummary:
    """Where a run's weights come from: file, its hash, how classes were told, and the parts of both
    networks.
    """

    file: str
    sha256: str
    classes: str
    generator: list[Part] = field(default_factory=list)
    discriminator: list[Part] = field(default_factory=list)

    def share(self, network: str) -> float:
        """The part of a network's numbers that came from the file, 0 to 1."""
        parts: list[Part] = getattr(self, network)
        return sum(p.taken for p in parts) / max(sum(p.total for p in parts), 1)

    def as_dict(self) -> dict[str, Any]:
        """What init_from.json and the provenance of snapshots say."""
        networks = {
            network: {
                "share": round(self.share(network), 4),
                "parts": [dataclasses.asdict(part) for part in getattr(self, network)],
            }
            for network in ("generator", "discriminator")
        }
        return {"file": self.file, "sha256": self.sha256, "classes": self.classes, **networks}

    def table(self) -> str:
        """The report as text."""
        lines = [
            f"Starting from {self.file} (sha256 {self.sha256[:12]})"
            + (f", classes {self.classes}" if self.classes else "")
        ]
        for network in ("generator", "discriminator"):
            parts: list[Part] = getattr(self, network)
            lines.append(f"  {network}: {self.share(network):.1%} of its numbers taken")
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
        """The generator that was trained (its average where a file has no other)."""
        return self.file.generators.get("G") or self.file.generators["G_ema"]

    @property
    def G_ema(self) -> Generator:
        """Its moving average."""
        return self.file.generators.get("G_ema") or self.G

    @property
    def embed_dim(self) -> int | None:
        """Width of its class table; None if it has none that is in use."""
        mapping = self.G.mapping
        return mapping.embed.weight.shape[1] if mapping.c_dim > 0 and not mapping.linear_labels else None

    def class_names(self) -> list[str] | None:
        """As the file says them."""
        names = (self.file.provenance or {}).get("class_names")
        fits = (
            isinstance(names, list)
            and len(names) == self.G.c_dim
            and all(isinstance(name, str) for name in names)
        )
        return names if fits else None


def read(path_or_url: str) -> Source:
    """A network file: pickle or .safetensors, from a path or an address.

    Raises:
        ValueError, OSError: one line about why it cannot be used.
    """

    def read_file(path: str) -> Source:
        return Source(path_or_url, dnnlib.util.sha256_file(path), files.read(path, strict=False))

    return files.read_from(path_or_url, read_file)


def class_rows(source: Source, names: list[str] | None, c_dim: int) -> tuple[np.ndarray, str]:
    """(for each of c_dim classes its number in the source, -1 for new ones: int64 [c_dim]; how they were
    told, for the report).

    names: of the data set's classes, or None. Classes go by name where both sides have names; by number where
    they do not and are equally many.
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
            return rows, "by name, the pickle's taken for ImageNet's in the usual order"
    if c_dim == source.G.c_dim:
        return np.arange(c_dim), "by number, since one side does not name them"
    return nothing, "all new: they have no names to go by"


def start_generator(
    source: Generator, target: Generator, rows: np.ndarray, table: torch.Tensor | None
) -> list[Part]:
    """Put into a fresh `target` what fits of `source`. A superresolution stage takes the layers of its head;
    its stem is what --path_stem says.

    rows: from `class_rows`. table: the data set's class embedding [c_dim, E], for new classes; None = there
    are none.
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
    """Known classes keep their row of the class table; a new one gets the data set's, moved into the range of
    the old table.
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
    about = "" if unchanged else f"{known} of {len(ours)} classes are the pickle's, {len(ours) - known} new"
    about += "" if fits or known == len(ours) else ", at random"
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
    """fc0 of a mapping whose class input comes, goes, or is of another kind: the latents' half is kept.

    An old class input leaves its mean over the classes in the bias; a new one starts at CLASS_START of its
    usual strength.
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
        else "the class input is gone"
        if T.c_dim == 0
        else "the class input is of another kind"
    )
    return Part(
        "mapping.fc0",
        RESHAPED,
        z * ours.weight.shape[0] + ours.bias.numel(),
        _count(ours),
        f"the latents' half is kept, {change}",
    )


def _start_w_avg(theirs: torch.Tensor, ours: torch.Tensor, rows: np.ndarray) -> Part:
    if theirs.shape[-1] != ours.shape[-1]:
        return Part("mapping.w_avg", REBUILT, 0, 0, "styles of another width")
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
        "" if bool(known.all()) else "new classes begin at the mean",
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
        _same_places(theirs, ours, source.num_frozen_layers, target.num_frozen_layers)
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
            else f"from {twin.name}" + ("" if exact else ", at another bandwidth")
        )
        parts.append(_part(f"synthesis.{spec.name}", layer, KEPT if exact else RESHAPED, about))
    return parts


def _same_places(
    theirs: list[LayerSpec], ours: list[LayerSpec], their_frozen: int, our_frozen: int
) -> dict[int, int]:
    """For the layers of the new plan that train, where there is one, the source's layer that stands for them:
    position -> position.

    A layer that is alike in everything, wherever it is; else the one in the same place, counted from the
    start of the trained layers (toRGB: the last one), if its weights have the same shape and it stands for no
    other.
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
    """What a layer computes, without its name and its precision."""
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
    """A discriminator's tensors under this project's names: published ones keep the projection within their
    feature networks.
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
    """Put into a fresh discriminator the heads and projections of the source's that fit: per feature network,
    projection first.
    """
    theirs = published_names(source.file.tensors.get("D", {}))
    hashes = (source.file.provenance or {}).get("backbones")
    parts = []
    with torch.no_grad():
        for key, name in D.names.items():
            recorded = hashes.get(name) if isinstance(hashes, dict) else None
            projection = {f"projections.{key}.{n}": t for n, t in D.projections[key].state_dict().items()}
            if recorded is not None and recorded != D.feature_networks[key].sha256:
                reason = "the pickle's was trained on other weights of this network"
            elif not any(n.startswith(f"discriminators.{key}.") for n in theirs):
                reason = "the pickle has none for this network"
            elif not _fit(theirs, projection):
                reason = "its projection is of another size"
            else:
                reason = ""
                _take(theirs, projection)
            for level, head in enumerate(D.discriminators[key].mini_discs):  # type: ignore[union-attr, arg-type]
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
    if not _fit(theirs, main):
        return _part(label, head, REBUILT, "of another size")
    parameters = {prefix + n for n, _ in head.named_parameters()}
    taken, fresh = dict(main), []
    for last in ("last_layer", "cls"):
        tensors = {n: t for n, t in own.items() if n.startswith(f"{prefix}{last}.")}
        if tensors and _fit(theirs, tensors):
            taken |= tensors
        elif tensors:
            fresh.append("its last layer is new")
    _take(theirs, taken)
    numbers = sum(t.numel() for n, t in taken.items() if n in parameters)
    embed = {n: t for n, t in own.items() if n.startswith(f"{prefix}embed.")}
    known = torch.from_numpy(rows >= 0)
    carried = all(
        n in theirs and theirs[n].shape[1:] == t.shape[1:] and len(theirs[n]) > int(rows.max(initial=-1))
        for n, t in embed.items()
    )
    if embed and carried and f"{prefix}cls.weight_orig" in taken:
        for n, t in embed.items():
            t[known] = theirs[n][torch.from_numpy(rows)[known]].to(t.device, t.dtype)
        numbers += sum(t.numel() // len(t) * int(known.sum()) for t in embed.values())
        fresh += [] if bool(known.all()) else [f"{int((~known).sum())} of {len(known)} classes are new"]
    elif embed:
        fresh.append("its classes are new")
    return Part(label, RESHAPED if fresh else KEPT, numbers, _count(head), ", ".join(fresh))


def _fit(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> bool:
    return all(name in theirs and theirs[name].shape == tensor.shape for name, tensor in ours.items())


def _take(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])


def start(
    source: Source,
    G: Generator,
    D: ProjectedDiscriminator,
    names: list[str] | None,
    table: torch.Tensor | None,
) -> tuple[Generator, TransferSummary]:
    """Start a fresh G and D from a network file, in place. Returns G's moving average, started from the
    file's, and the report.

    names: of the data set's classes. table: its class embedding [c_dim, E], which new classes start from.
    """
    rows, how = class_rows(source, names, G.c_dim)
    G_ema = copy.deepcopy(G)
    start_generator(source.G_ema, G_ema, rows, table)
    report = TransferSummary(source.path, source.sha256, how)
    report.generator = start_generator(source.G, G, rows, table)
    report.discriminator = start_discriminator(source, D, rows)
    return G_ema, report


# Options that decide what fits, by section of the config; those of a superresolution stage's mapping are its
# stem's.
_DECISIVE = {
    "generator": ("cfg", "syn_layers", "head_layers", "cbase", "cmax", "z_dim", "w_dim", "margin_size"),
    "discriminator": ("backbones", "feature_size", "proj_channels", "head_channels", "cond_channels"),
}


def warning(source: Source, report: TransferSummary, cfg: TrainConfig) -> str | None:
    """A line for a start that keeps little of one of the networks, naming the options that the file's own run
    had otherwise; or None.
    """
    little = [network for network in _DECISIVE if report.share(network) < LITTLE]
    if not little:
        return None
    config = (source.file.provenance or {}).get("config")
    options = []
    for network in little:
        said = config.get(network) if isinstance(config, dict) else None
        ours = to_json(cfg)[network]
        differing = {
            key: said[key]
            for key in _DECISIVE[network]
            if isinstance(said, dict) and key in said and said[key] != ours[key]
        }
        options += [
            f"--{key.replace('_', '-')}={','.join(map(str, v)) if isinstance(v, list) else v}"
            for key, v in differing.items()
        ]
    shares = " and ".join(f"{report.share(network):.0%} of the {network}" for network in little)
    specs = source.G.synthesis.specs()
    plan = (
        f"{source.G.img_resolution}x{source.G.img_resolution}, {len(specs) - 1} layers, up to "
        f"{max(s.out_channels for s in specs)} channels"
    )
    remedy = (
        f"its own run had {' '.join(options)}"
        if options
        else "use the options of the run that made it to keep more"
    )
    return f"Warning: only {shares} could start from {source.path} ({plan}): {remedy}"
