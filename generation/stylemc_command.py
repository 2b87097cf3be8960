# SPDX-License-Identifier: Apache-2.0
"""run_stylemc.py once its command line is parsed: the direction, the edited image and the video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from generation import clip, commands, direction_files, edits, render, stylemc, video, w_files, walk
from generation.direction_command import command_line
from torch_utils import images
from torch_utils.devices import use_device

DIRECTION, BEFORE, AFTER = "direction.safetensors", "before.png", "after.png"
FRAMES, FPS = 60, 30  # of the video: from strength 0 to the whole, and back


def run(
    seeds: Sequence[int], outdir: str, truncation: float, strength: float, options: dict[str, Any]
) -> None:
    """Find the direction of a text and apply it."""
    prompts = stylemc.prompts_of(options["text_prompt"])
    clip.check_installed()
    device = use_device(options["device"])
    network = render.load_network(options["network"], device)
    G = direction_files.check_generator(network, f"--network={options['network']}")
    layers = layers_of(options["layers"], G.synthesis.layer_names, options["network"])
    label = _label(network, options["class_idx"])
    bigger = _bigger(options["bigger_network"], network, layers)
    start = _start(bigger, seeds, label, truncation, options)
    encoder = clip.load(options["clip_model"], options["clip_weights"], device)
    targets = encoder.texts(prompts)
    with commands.progress_bar(len(seeds), "Seeds") as done:
        styles = stylemc.find(network, encoder, targets, seeds, layers, label, truncation, done)
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "method": "stylemc",
        "name": ", ".join(prompts)[:80],
        "prompts": prompts,
        "seeds": images.number_list(seeds),
        "class": label,
        "clip": encoder.name,
        "clip_sha256": encoder.sha256,
        "kept": float(torch.cat(list(styles.values()), dim=1).ne(0).float().mean()),
        "command": command_line(
            "run_stylemc.py", **options, trunc=truncation, edit_strength=strength, outdir=outdir
        ),
    }
    path = folder / DIRECTION
    direction_files.write(str(path), network, about, styles=styles)
    click.echo(f"{about['kept']:.1%} of {sum(map(torch.numel, styles.values()))} styles change: {path}")
    _show(bigger, start, path, strength, bool(options["save_video"]))


def layers_of(text: str, names: Sequence[str], path: str) -> list[str]:
    """Parse --layers: i is synthesis layer i, from 1. Layers that the network does not have are left out.

    Raises:
        ValueError: The network has none of them.
    """
    try:
        rows = dnnlib.util.parse_int_list(text)
    except ValueError as error:
        raise ValueError(f"--layers: {error}") from None
    found = [names[row - 1] for row in dict.fromkeys(rows) if 1 <= row <= len(names)]
    if not found:
        raise ValueError(f"--layers={text}: {path} has layers 1 to {len(names)}")
    if len(found) < len(set(rows)):
        click.echo(
            f"note: --layers={text}: {path} has layers 1 to {len(names)}; others are left out", err=True
        )
    return found


def _label(network: render.Network, index: int | None) -> int | None:
    return None if index is None else render.class_index(network, str(index))


def _bigger(path: str | None, network: render.Network, layers: Sequence[str]) -> render.Network:
    """The network of the edited image. Raises ValueError if it is not a stage of the other one."""
    if path is None:
        return network
    found = render.load_network(path, network.device)
    G = direction_files.check_generator(found, f"--bigger-network={path}")
    if render.mapping_sha256(G) != render.mapping_sha256(network.G):
        raise ValueError(f"--bigger-network={path} is not a stage of the network {network.path}")
    sizes, own = direction_files.layer_sizes(G), direction_files.layer_sizes(network.G)
    if not any(sizes.get(name) == own[name] for name in layers):
        raise ValueError(f"--bigger-network={path} has none of the layers in --layers")
    return found


def _start(
    network: render.Network,
    seeds: Sequence[int],
    label: int | None,
    truncation: float,
    options: dict[str, Any],
) -> Tensor:
    """The style codes [1, num_ws, W] of the image to edit."""
    if options["w_path"]:
        return w_files.load_one(options["w_path"], network, "--w-path")
    seed = seeds[0] if options["init_seed"] is None else options["init_seed"]
    with torch.no_grad():
        return walk.seed_styles(network, seed, label, truncation, None)[None]


def _show(network: render.Network, ws: Tensor, path: Path, strength: float, save_video: bool) -> None:
    """Write before.png, after.png and the video beside a direction file."""
    network.edits = edits.load([edits.parse(f"{path}:{strength!r}")], network)
    network.edits.attach()
    text = {**render.about(network, [], None), "truncation": None}
    for name, value in ((BEFORE, 0.0), (AFTER, strength)):
        network.edits.strengths = [value]
        edited = {"edits": f"{DIRECTION}:{value:g}"} if value else {}
        pixels = render.synthesize(network, ws)
        images.save_png(images.grid(pixels, 1), path.parent / name, {**text, **edited})
    click.echo(f"strength {strength:g}: {path.parent / AFTER}")
    if not save_video:
        return
    ending = video.default_ending()
    output = path.parent / f"video{ending}"
    codes = ws.float().cpu().numpy()[None].repeat(2, axis=1)  # two keyframes of one cell
    motion = np.asarray([[[0, 0, 0, 0], [0, 0, 0, strength]]], np.float32)
    plan = video.timing(2 * FRAMES, FPS, ending)
    with commands.progress_bar(len(plan.frames), "Frames") as done:
        shown = video.frames(network, codes, FRAMES, 1, 1, done, plan.frames, motion)
        video.write(output, shown, FPS, plan.milliseconds, text)
    click.echo(f"{video.length_text(plan, 2 * FRAMES, FPS, ending)}: {output}")
