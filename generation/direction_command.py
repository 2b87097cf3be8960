# SPDX-License-Identifier: Apache-2.0
"""directions.py once its command line is parsed: directions found, written and drawn."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib import outputs
from generation import commands, direction_files, direction_labels, direction_methods, edits, render
from torch_utils import images, memory
from torch_utils.devices import use_device

PATHS = (
    "network",
    "dest",
    "labels",
    "positive",
    "negative",
    "bigger_network",
    "w_path",
    "outdir",
    "clip_weights",
)


def command_line(script: str, **options: Any) -> str:
    """The command that made a file, for its metadata. Paths are shortened to file names."""
    words = ["python", *script.split()]
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = "--" + {"classes": "class"}.get(name, name).replace("_", "-")
        text = os.path.basename(str(value).rstrip("/")) if name in PATHS else str(value)
        words.append(flag if value is True else f"{flag}={text}")
    return shlex.join(words)


def check_dest(dest: str, network: str, **inputs: str | None) -> None:
    """Refuse a name for a direction file that is a mistake. Raises ValueError."""
    outputs.check_output("--dest", dest, inputs={"--network": network, **inputs})
    if Path(dest).suffix.lower() != direction_files.ENDING:
        raise ValueError(f"--dest={dest}: end the name with {direction_files.ENDING}")
    if os.path.exists(dest):
        try:
            direction_files.read(dest)
        except ValueError:
            raise ValueError(
                f"--dest={dest} is no direction file, such as a network, and would be replaced: choose "
                "another name"
            ) from None


def _check_samples(samples: int, classes: int, w_dim: int) -> None:
    """Raise ValueError for too few random style codes, or more than fit into memory."""
    if samples < 2 * classes:
        raise ValueError(f"--samples={samples}: give at least {2 * classes}, that is two for each class")
    held, free = 4 * 8 * samples * w_dim, memory.host_free_bytes()  # codes, centred codes, and copies
    if held > free:
        raise ValueError(
            f"--samples={samples}: they take {held / 2**30:.1f} GiB of memory, but only "
            f"{free / 2**30:.1f} GiB are free: give fewer"
        )


def closed_form(method: str, *, network: str, dest: str, layers: str | None, **options: Any) -> None:
    """`directions.py sefa` and `directions.py pca`."""
    check_dest(dest, network)
    loaded = render.load_network(network, use_device(options["device"]))
    G = direction_files.check_generator(loaded, f"--network={network}")
    rows = None if layers is None else commands.parse_layers("--layers", layers, G.num_ws, network)
    num = int(options["num"])
    if num > G.w_dim:
        raise ValueError(f"--num={num}: w has {G.w_dim} dimensions")
    classes = render.class_indices(loaded, options["classes"]) if options["classes"] else None
    samples = int(options["samples"])
    _check_samples(samples, len(classes) if classes else max(G.c_dim, 1), G.w_dim)
    with commands.progress_bar(samples, "Style codes") as done:
        codes, labels = direction_methods.sample(loaded, samples, options["seed"], classes, done)
    centred = direction_methods.within_classes(codes, labels)
    if method == "sefa":
        found = direction_methods.sefa(loaded, rows, num, centred)
        if not any(found.shares):
            raise ValueError(f"--layers={layers}: the affine weights of these layers are 0: choose others")
    else:
        found = direction_methods.principal(num, centred)
    options = {"layers": layers, **{key: value for key, value in options.items() if key != "device"}}
    about = {
        "method": method,
        "shares": found.shares,
        "command": command_line(f"directions.py {method}", network=network, dest=dest, **options),
    }
    direction_files.write(dest, loaded, about, torch.from_numpy(found.directions), rows)
    share = ", ".join(f"{value:.1%}" for value in found.shares[:5])
    click.echo(f"{num} directions ({share}{', ...' if num > 5 else ''}): {dest}")


def attribute(*, network: str, dest: str, layers: str | None, **options: Any) -> None:
    """`directions.py attribute`."""
    check_dest(dest, network, **{"--labels": options["labels"]})
    commands.check_finite("--trunc", options["trunc"])
    _check_source(options)
    loaded = render.load_network(network, use_device(options["device"]))
    G = direction_files.check_generator(loaded, f"--network={network}")
    rows = None if layers is None else commands.parse_layers("--layers", layers, G.num_ws, network)
    samples = _samples(loaded, options)
    codes = direction_methods.codes_of(loaded, samples)
    labels = torch.tensor([item.label for item in samples]).numpy()
    found = direction_methods.attribute(codes, labels, options["seed"])
    given = {key: value for key, value in options.items() if key != "device"}
    if not given["positive_class"]:
        del given["per_class"]
    about = {
        "method": "attribute",
        "name": options["name"],
        "samples": len(samples),
        "accuracy": found.accuracy,
        "majority": found.majority,
        "command": command_line(
            "directions.py attribute", network=network, dest=dest, layers=layers, **given
        ),
    }
    direction_files.write(dest, loaded, about, torch.from_numpy(found.direction), rows)
    if found.accuracy <= found.majority:
        click.echo(
            f"note: on held-out images the direction is right in {found.accuracy:.1%}, a constant answer in "
            f"{found.majority:.1%}: give more images, or clearer labels",
            err=True,
        )
    click.echo(
        f"1 direction from {len(samples)} images, right in {found.accuracy:.1%} of held-out ones: {dest}"
    )


def _check_source(options: dict[str, Any]) -> None:
    pairs = [("positive", "negative"), ("positive_class", "negative_class")]
    for first, second in pairs:
        if bool(options[first]) != bool(options[second]):
            names = [f"--{name.replace('_', '-')}" for name in (first, second)]
            raise ValueError(f"{names[0]} and {names[1]} belong together: give both")
    if sum(bool(options[name]) for name in ("labels", "positive", "positive_class")) != 1:
        raise ValueError(
            "give the labelled images by one of --labels, --positive and --negative, or --positive-class and "
            "--negative-class"
        )


def _samples(network: render.Network, options: dict[str, Any]) -> list[direction_methods.Sample]:
    if options["labels"]:
        return direction_labels.read_list(options["labels"], network, options["trunc"])
    if options["positive"]:
        folders = [("--positive", options["positive"], True), ("--negative", options["negative"], False)]
        return [
            item
            for flag, folder, label in folders
            for item in direction_labels.read_folder(flag, folder, label, network)
        ]
    first, second = (
        render.class_index(network, options[f"{name}_class"]) for name in ("positive", "negative")
    )
    if first == second:
        raise ValueError("--positive-class and --negative-class are the same class: give two")
    return direction_labels.of_classes(first, second, options["per_class"], options["seed"], options["trunc"])


def named(texts: Sequence[str]) -> list[str]:
    """Turn FILE and FILE#INDEX of --edit into values with an index and strength 0; FILE is all directions."""
    found = []
    for text in texts:
        path, index, _ = edits.parse_slider(text)
        indices = range(len(direction_files.read(path))) if index is None else [index]
        found += [f"{path}#{number}:0" for number in indices]
    return found


def sheet(
    options: commands.NetworkOptions,
    seeds: Sequence[int],
    class_name: str | None,
    strengths: str,
    output: Path,
    scale: int,
) -> None:
    """`directions.py sheet`: a row for each direction and seed, a column per strength."""
    columns = edits.numbers(f"--strengths={strengths}: the strength", strengths)
    network, centroids = options.load()
    assert network.edits is not None
    index = None if class_name is None else render.class_index(network, class_name)
    cells = len(network.edits.edits) * len(seeds) * len(columns)
    images.check_picture("--edit, --seeds and --strengths", cells, network.G.img_resolution * scale)
    pixels, rows = [], []
    with commands.progress_bar(cells, "Images") as done:
        for number, edit in enumerate(network.edits.edits):
            for seed in seeds:
                rows.append(f"{edit.directions.label(edit.spec.index)}, seed {seed}")
                labels = render.seed_labels(network, seed, 1, index)
                z = render.latents(seed, 1, network.G.z_dim)
                for strength in columns:
                    network.edits.strengths = [0.0] * len(network.edits.edits)
                    network.edits.strengths[number] = strength
                    settings: dict[str, Any] = {"truncation": options.truncation, "centroids": centroids}
                    pixels.append(render.render(network, z, labels, done=done, **settings))
    output.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{value:+g}" if value else "0" for value in columns]
    smallest = max(24, network.G.img_resolution * scale)
    picture = images.labelled_grid(torch.cat(pixels), rows, len(columns), smallest, names)
    images.save_png(picture, output, render.about(network, seeds, None, **options.description()))
    click.echo(f"{len(rows)} rows of {len(columns)} strengths: {output}")
