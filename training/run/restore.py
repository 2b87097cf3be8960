# SPDX-License-Identifier: Apache-2.0
"""The state with which a run starts: a fresh one, or that of the newest checkpoint.

A superresolution stage reads its stem again if that has a better network by now.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import dnnlib
from torch_utils import agreement, checkpoint, distributed
from training import build, run_folder
from training.config import OPTIONS, GeneratorConfig, TrainConfig
from training.data.dataset import ImageDataset
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator
from training.networks import finetune, stems
from training.networks.stems import Lineage, Stem, read_stem, restore_file, stem_file
from training.options import Option
from training.run import local_copies, plan, stop
from training.run_folder import kimg_text
from training.state import TrainState

# The options that determine which tensors the networks have.
NETWORK_OPTIONS = (
    *(f"data.{key}" for key in ("path", "resolution", "channels", "cond")),
    *(f"generator.{key}" for key in ("cfg", "syn_layers", "cbase", "cmax", "z_dim", "w_dim", "margin_size")),
    *(f"generator.{key}" for key in ("superres", "path_stem", "up_factor", "head_layers")),
    *(f"discriminator.{key}" for key in ("backbones", "heads", "mbstd", "feature_size")),
    *(f"discriminator.{key}" for key in ("proj_channels", "head_channels", "cond_channels")),
)


# Options that act at the start of a run alone, and one whose value is part of what the weights mean: a
# checkpoint has their results, whatever the options say. They do not concern superresolution stages.
FIXED_OPTIONS = ("data.class_embedding", "data.embed_dim", "generator.map_lr_multiplier")


def make_state(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, run_dir: str
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state with which a run starts or resumes, and what the checkpoint says of the current tick.

    Raises:
        ValueError: data set or options are not those that the checkpoint was made with, or the stem cannot be
        used.
    """
    local_copies.restore_newest(cfg.run.local_checkpoint, Path(run_dir))
    path = newest_checkpoint(run_dir)
    if path is not None:
        return saved_state(cfg, dataset, device, run_dir, str(path))
    state = fresh_state(cfg, dataset, device)
    if cfg.generator.superres:
        distributed.broadcast_(
            frozen_tensors(state.G) + frozen_tensors(state.G_ema)
        )  # the file may have been replaced between two reads
        state.lineage = distributed.broadcast_object(state.lineage)
        if distributed.is_main():
            state.lineage.write(run_dir)
    return state, None


def newest_checkpoint(run_dir: str) -> Path | None:
    """The checkpoint that all processes resume from, chosen by the first one.

    Raises:
        ValueError, OSError: as `run_folder.newest_checkpoint`.
    """
    path: Path | None = None
    error: Exception | None = None
    if distributed.is_main():
        try:
            path = run_folder.newest_checkpoint(run_dir)
        except (ValueError, OSError) as err:
            error = err
    path, error = distributed.broadcast_object((path, error))
    if error is not None:
        raise error
    return path


def checkpoint_here(cfg: TrainConfig, run_dir: Path) -> Path | None:
    """The checkpoint that a run would resume from, as this process sees it. Nothing is copied or changed.

    Raises:
        ValueError, OSError: as `run_folder.newest_checkpoint`.
    """
    mine = local_copies.newest(cfg.run.local_checkpoint, run_dir)
    if mine is not None:
        shared = checkpoint.latest(run_folder.checkpoint_folder(run_dir))
        return shared if shared and checkpoint.nimg_of(shared) >= checkpoint.nimg_of(mine) else mine
    return run_folder.newest_checkpoint(run_dir)


def check(cfg: TrainConfig, dataset: ImageDataset, run_dir: Path, path: Path) -> None:
    """Check that a run can resume from a checkpoint, before its folder is changed. Loads no weights.

    The hash of a data set that has no checksums is left to the run itself, since it reads all images; a
    sample of them is compared here.

    Args:
        cfg: Configuration of the run.
        dataset: Its data set; one that is planned is not compared with that of the checkpoint.
        run_dir: The run folder.
        path: See `checkpoint_here`.

    Raises:
        ValueError: As `make_state`.
    """
    saved = checkpoint.load_mapped(path)
    check_fixed(cfg, run_dir)
    if not dataset.is_planned:
        check_sample(dataset, saved, path)
        if dataset.has_checksums:
            check_data(dataset, saved, path)
    planned = cfg.override({"data.embed_dim": saved_embed_dim(cfg, saved)})
    G, D = plan.plan(planned, dataset, lineage=Lineage(**saved.get("lineage", {})))
    check_networks(cfg, G, D, saved, path, run_dir)


def check_data(dataset: ImageDataset, saved: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError unless the data set is that of a checkpoint."""
    if saved["data_hash"] != dataset.content_hash():
        raise _other_data(dataset, path)


def check_sample(dataset: ImageDataset, saved: Mapping[str, Any], path: str | Path) -> None:
    """As `check_data`, from a few images alone: other data may pass, and all do at older checkpoints."""
    if saved.get("data_sample") not in (None, dataset.sample_hash()):
        raise _other_data(dataset, path)


def _other_data(dataset: ImageDataset, path: str | Path) -> ValueError:
    return ValueError(
        f"--data={dataset.path} has changed since {path} was written: restore it, or start a new run with "
        "--init-from"
    )


def check_fixed(cfg: TrainConfig, run_dir: str | Path) -> None:
    """Raise ValueError if one of FIXED_OPTIONS is not that of the run folder."""
    recorded = recorded_options(run_dir)
    if cfg.generator.superres or recorded is None:
        return
    changed = [option for name in FIXED_OPTIONS if (option := OPTIONS[name]).of(cfg) != option.of(recorded)]
    if changed:
        given, began = (shown(changed, config) for config in (cfg, recorded))
        raise ValueError(
            f"{given}: the run started with {began}, which its checkpoints contain: remove the option, or "
            f"start a new run with --init-from={run_dir}"
        )


def check_backbones(D: ProjectedDiscriminator, saved: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError if a backbone has other weights than at a checkpoint, where it says which it had."""
    own = D.backbone_hashes()
    other = [name for name, found in saved.get("backbones", own).items() if own.get(name) != found]
    if other:
        raise ValueError(
            f"--backbone-weights: {', '.join(other)} has other weights than {path} was trained with: use "
            "those (random ones depend on --seed), or start a new run with --init-from"
        )


def recorded_options(run_dir: str | Path) -> TrainConfig | None:
    """The options with which a run started last; None if they cannot be read."""
    try:
        return run_folder.load_run(str(run_dir))
    except ValueError:
        return None


def shown(options: Iterable[Option], cfg: TrainConfig) -> str:
    """Options with their values as a command line gives them, separated by commas."""
    return ", ".join(f"{option.shown_flag}={option.text(option.of(cfg))}" for option in options)


def changes_since(cfg: TrainConfig, run_dir: str | Path) -> str:
    """A line about the options that are not those with which the run started last; '' if there are none."""
    recorded = recorded_options(run_dir)
    if recorded is None:
        return ""
    # of a recipe's stages, --restart-every is what is left of it
    others = [option for name, option in OPTIONS.items() if name != "run.restart_every"]
    changed = [option for option in others if option.of(cfg) != option.of(recorded)]
    return f"Changed since: {shown(changed, cfg)} (before: {shown(changed, recorded)})" if changed else ""


def saved_embed_dim(cfg: TrainConfig, saved: Mapping[str, Any]) -> int:
    """The width of the class embedding in a checkpoint; that of the options if it has none."""
    embedding = saved["train"]["G"].get("mapping.embed.weight")
    return cfg.data.embed_dim if embedding is None else int(embedding.shape[1])


def check_networks(
    cfg: TrainConfig,
    G: Generator,
    D: ProjectedDiscriminator,
    saved: Mapping[str, Any],
    path: str | Path,
    run_dir: str | Path,
) -> None:
    """Compare the shapes of networks, which may be on the meta device, with those of a checkpoint.

    Raises:
        ValueError: They differ. The message names the options that are not those of the run folder, or else
            the first tensor.
    """
    difference = ""
    for name, own in (("G", G.state_dict()), ("D", D.saved_state_dict())):
        theirs = saved["train"][name]
        for key in [*own, *(key for key in theirs if key not in own)]:
            ours, wanted = (list(x[key].shape) if key in x else None for x in (own, theirs))
            if ours != wanted:
                difference = difference or (
                    f"{name}'s {key} has shape {wanted or 'none'} there, {ours or 'none'} with these options"
                )
    if not difference:
        return
    recorded = recorded_options(run_dir) or cfg
    changed = [option for name in NETWORK_OPTIONS if (option := OPTIONS[name]).of(cfg) != option.of(recorded)]
    if not changed:
        raise ValueError(
            f"{path} is of networks with other options: resume with those of its run ({difference})"
        )
    given, began = (shown(changed, config) for config in (cfg, recorded))
    raise ValueError(
        f"{given}: the run started with {began}, and a resumed run cannot change its architecture; to use "
        f"its weights in another one, start a new run with --init-from={run_dir}"
    )


def fresh_state(cfg: TrainConfig, dataset: ImageDataset, device: torch.device) -> TrainState:
    """The state with which a run begins, from random weights or those of --init-from.

    Raises:
        ValueError, OSError: a file that an option names is not there or does not fit.
    """
    source = finetune.read(cfg.run.init_from) if cfg.run.init_from else None
    if source is not None and distributed.is_main():
        print(f"Starting from {stems.network_summary(source.path, source.file.provenance)}")
    embed_dim, table = class_table(cfg, dataset, device, source)
    G, D, lineage = build.make_networks(cfg, dataset, embed_dim, device=device)
    if lineage.stem is not None and distributed.is_main():
        print(f"Stem: {lineage.stem['file']} ({stems.describe(lineage.stem)})")
    if source is None:
        if table is not None:
            G.mapping.set_class_embedding(table)
        return build.assemble(cfg, G, D, lineage, device)
    G_ema, report = finetune.start(source, G, D, dataset.class_names, table)
    state = build.assemble(cfg, G, D, lineage, device)
    state.G_ema.load_state_dict(G_ema.state_dict())
    state.started_from = report.as_dict()
    if distributed.is_main():
        print("\n".join([report.table(), *finetune.warnings(source, report, cfg)]))
    return state


def class_table(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, source: finetune.Source | None
) -> tuple[int, torch.Tensor | None]:
    """Width of the class embedding, and its initial values [classes, width].

    The values are None where a stem has them, or the source knows all classes. The first process computes
    them for all.
    """
    embed_dim = (source and source.embed_dim) or cfg.data.embed_dim
    if dataset.label_dim == 0 or cfg.generator.superres:
        return cfg.data.embed_dim, None
    if (
        source is not None
        and not (finetune.class_rows(source, dataset.class_names, dataset.label_dim)[0] < 0).any()
    ):
        return embed_dim, None
    options = dataclasses.replace(cfg.data, embed_dim=embed_dim)
    pause = functools.partial(stop.pause, alone=True)
    table = distributed.on_main(
        lambda: build.make_class_embedding(options, dataset, cfg.run.seed, device, pause)
    )
    assert table is not None
    return embed_dim if source is not None and source.embed_dim else table.shape[1], table


def saved_state(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, run_dir: str, path: str
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state of a checkpoint, with the newest best network of its stem, and what it says of the tick.

    Raises:
        ValueError: as `make_state`.
    """
    saved = load_everywhere(path)
    check_fixed(cfg, run_dir)
    check_data(dataset, saved, path)
    lineage = Lineage(**saved.get("lineage", {}))
    G, D, lineage = build.make_networks(cfg, dataset, saved_embed_dim(cfg, saved), lineage, device)
    check_networks(cfg, G, D, saved, path, run_dir)
    check_backbones(D, saved, path)
    state = build.assemble(cfg, G, D, lineage, device)
    try:
        state.load_state_dict(saved["train"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be loaded ({dnnlib.util.reason(error)}): resume from an earlier checkpoint, or "
            "start a new run with --init-from"
        ) from None
    if distributed.is_main():
        print(f"Resuming from {path} at {kimg_text(state.progress.nimg / 1000)} kimg")
        if changes := changes_since(cfg, run_dir):
            print(changes)
    if cfg.generator.superres:
        if distributed.is_main():
            restore_file(state.lineage, run_dir)
        take_better_stem(state, cfg.generator, run_dir)
    return state, saved.get("running")


def load_everywhere(path: str) -> dict[str, Any]:
    """The checkpoint that process 0 chose, with proof that all processes loaded the same bytes.

    Raises:
        ValueError, OSError: a process cannot load it, or loaded another file; in all processes.
    """
    saved: dict[str, Any] = {}
    digest, error = "", None
    try:
        saved, digest = checkpoint.load_with_digest(path)
    except (ValueError, OSError) as err:
        error = err
    everyone = distributed.all_gather_object((platform.node(), digest, error))
    for rank, (host, _, failure) in enumerate(everyone):
        if failure is not None:
            many = len(everyone) > 1
            raise ValueError(f"process {rank} on {host}: {failure}") if many else failure
    digests = [digest for _, digest, _ in everyone]
    if len(set(digests)) > 1:
        raise agreement.Disagreement(
            f"{path} differs {agreement.differing(digests)}: not all machines see the same --outdir"
        )
    return saved


def frozen_names(G: Generator) -> list[str]:
    """Names in the state dict of what a superresolution stage has from its stem."""
    trained = tuple(f"synthesis.{name}." for name in G.head_layer_names)
    return [name for name in G.state_dict() if not name.startswith(trained)]


def frozen_tensors(G: Generator) -> list[torch.Tensor]:
    """The tensors of `frozen_names`."""
    tensors = G.state_dict()
    return [tensors[name] for name in frozen_names(G)]


def take_better_stem(state: TrainState, cfg: GeneratorConfig, run_dir: str) -> None:
    """Copy the stem's newest best network into G and G_ema, if it has changed.

    StyleGAN-XL reads its stem again at every start. The first process reads, and the others receive. A change
    is printed and recorded in lineage.json.

    Raises:
        ValueError: the file is no longer a network of the same plan.
    """
    stem: Stem | None = None
    note, error = "", None
    if distributed.is_main():
        try:
            stem, note = find_better_stem(state, cfg)
        except (ValueError, OSError) as err:
            error = ValueError(f"{err}: name another stem, or keep the present one with --pin-stem")
    records, note, error = distributed.broadcast_object((stem.stems if stem else None, note, error))
    if error is not None:
        raise error
    if note and distributed.is_main():
        print(note)
    if records is None:
        return
    if stem is not None:
        source = stem.generator.state_dict()
        for G in (state.G, state.G_ema):
            copy_tensors(frozen_tensors(G), [source[name] for name in frozen_names(G)])
    distributed.broadcast_(frozen_tensors(state.G) + frozen_tensors(state.G_ema))
    before = state.lineage.stem or {}
    state.lineage.changes.append(
        {"nimg": state.progress.nimg, "from": before.get("sha256"), "to": records[-1]["sha256"]}
    )
    state.lineage.stems = records
    if distributed.is_main():
        state.lineage.write(run_dir)


def find_better_stem(state: TrainState, cfg: GeneratorConfig) -> tuple[Stem | None, str]:
    """(the stem to take over or None, a line for the user or '').

    Raises:
        ValueError, OSError: the new file cannot be used.
    """
    known, path = state.lineage.stem, dnnlib.util.plain_path(str(cfg.path_stem))
    if known is None or dnnlib.util.is_url(path):
        return None, ""
    try:
        file = stem_file(path)
    except ValueError:
        return (
            None,
            f"--path_stem={path} is gone: using the stem in the checkpoint (sha256 "
            f"{str(known['sha256'])[:12]})",
        )
    is_measured = not os.path.isdir(path) or os.path.basename(file) == run_folder.BEST_NETWORK
    if cfg.pin_stem or not is_measured or dnnlib.util.sha256_file(file) == known["sha256"]:
        return None, ""
    stem = read_stem(path)
    check_same_plan(stem.generator, state.G, file)
    return stem, f"Stem read again: {stems.describe(known)} -> {stems.describe(stem.stems[-1])} from {file}"


def check_same_plan(stem: Generator, G: Generator, file: str) -> None:
    """Raises ValueError unless `stem` can take the place of G's frozen part."""
    layers, wanted = stem.synthesis.specs()[: G.num_frozen_layers], G.synthesis.specs()[: G.num_frozen_layers]
    ours, theirs = G.state_dict(), stem.state_dict()
    fits = layers == wanted and all(
        name in theirs and theirs[name].shape == ours[name].shape for name in frozen_names(G)
    )
    if not fits or stem.c_dim != G.c_dim:
        raise ValueError(f"{file} is no longer a network of the plan that this run began with")


@torch.no_grad()
def copy_tensors(targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
    """Copy each source into its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
