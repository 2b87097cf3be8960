# SPDX-License-Identifier: Apache-2.0
"""Convert network files between formats. No code from the files is run.

    # a pickle to network.safetensors (weights) and network.json, and back, without changing a bit
    python convert.py --source=network-snapshot.pkl --dest=network.safetensors
    python convert.py --source=network.safetensors --dest=network.pkl

    # a smaller copy of a published network, with G_ema only
    python convert.py --source=https://host/imagenet256.pkl --dest=imagenet256.safetensors --networks=G_ema

    # two ONNX files, mapping and synthesis, compared with onnxruntime (pip install onnx onnxscript
    # onnxruntime)
    python convert.py --source=network-snapshot.pkl --dest=network.onnx

    # to and from a Hugging Face repository, with a model card (pip install huggingface_hub; hf auth login)
    python convert.py --source=best_model.pkl --dest=hf://me/emoji64 --license=cc-by-4.0
    python convert.py --source=hf://me/emoji64 --dest=emoji64.pkl

    # a Hugging Face Space with the viewer of the network (docs/viewer.md)
    python convert.py --source=best_model.pkl --space=emoji64-space --license=cc-by-4.0

The pickles that this writes open in every tool that reads StyleGAN3's pickles. Weights and settings are
preserved exactly. Source code in a pickle is not preserved, a discriminator is stored as named tensors, and
ONNX files contain only G_ema.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import dnnlib.util
from dnnlib import outputs
from dnnlib.progress import show_elapsed
from generation import commands

if TYPE_CHECKING:
    from training.networks import files

FORMATS = {"pkl": (".pkl", ".pickle"), "safetensors": (".safetensors",), "onnx": (".onnx",), "hub": ()}
MAX_ONNX_DIFFERENCE = 1e-3  # for images in [-1, 1]: an eighth of a grey level


def format_of(dest: str, asked: str | None) -> str:
    """The format that --format or the extension of --dest selects. Raises ValueError."""
    from training.networks import hub

    if hub.is_repository(dest):
        found = "hub"
    else:
        found = next(
            (name for name, endings in FORMATS.items() if dest.lower().endswith(endings) and endings), ""
        )
    if asked and found and asked != found:
        raise ValueError(
            f"--format={asked} does not match --dest={dest}: end it with "
            f"{' or '.join(FORMATS[asked]) or 'hf://OWNER/NAME'}"
        )
    if not asked and not found:
        raise ValueError(
            f"--dest={dest}: use the extension .pkl, .safetensors or .onnx, or hf://OWNER/NAME, or pass "
            "--format"
        )
    if asked == "hub" and not found:
        raise ValueError(f"--dest={dest}: the name of a model repository is hf://OWNER/NAME")
    return asked or found


def check_dest(dest: str, form: str, source: str) -> None:
    """Check a local --dest before any work.

    Raises:
        ValueError: it would replace the source or the file of another network, or could not be read again.
    """
    from training.networks import files

    inputs = {"--source": source}
    if source.lower().endswith(".safetensors") and os.path.isfile(source):
        inputs["the JSON file of --source"] = str(files.config_path_of(source))
    outputs.check_output("--dest", dest, inputs=inputs)
    if Path(dest).parent != Path() and not Path(dest).parent.is_dir():
        raise ValueError(f"--dest={dest}: the folder {Path(dest).parent} does not exist")
    ending = Path(dest).suffix.lower()
    if ending == ".json" or (form == "safetensors" and ending != ".safetensors"):
        raise ValueError(
            f"--dest={dest}: the extension does not fit the format: end it with {FORMATS[form][0]}"
        )
    if form == "safetensors":
        config = Path(dest).with_suffix(".json")
        outputs.check_output("the JSON file of --dest", config, inputs=inputs)
        files.check_free(config, Path(dest))


def read(source: str, trust_pickle: bool) -> files.NetworkFile:
    """Read the network file of --source: a path, a file:// or http(s) URL, or hf://OWNER/NAME.

    Raises:
        ValueError: not a network file.
        OSError: the file cannot be read or downloaded.
    """
    from training.networks import files, hub

    if hub.is_repository(source):
        return hub.pull(source)
    trust_pickle = trust_pickle and not source.lower().endswith(".safetensors")
    return files.read_from(source, lambda path: read_file(path, source, trust_pickle))


def chosen(source: str, trust_pickle: bool) -> tuple[str, files.NetworkFile]:
    """The path and content of --source. Names the network that was chosen in a run folder."""
    from training.networks import stems

    if not os.path.isdir(source):
        return source, read(source, trust_pickle)
    path = stems.network_in("--source", source)
    file = read(path, trust_pickle)
    click.echo(f"Network: {stems.network_summary(path, file.provenance)}", err=True)
    return path, file


def write_space(
    source: str,
    dest: str | None,
    space: str | None,
    unused: Sequence[object],
    license: str | None,
    trust_pickle: bool,
) -> None:
    """Write a Space. Raises ValueError for options that do not fit."""
    from generation import space as spaces
    from training.networks import hub

    if not space or dest:
        raise ValueError("give either --dest=FILE, or --space=DIR")
    if any(unused):
        raise ValueError("--space has G_ema only: remove --format, --networks and --private")
    outputs.check_output("--space", space, inputs={"--source": source}, folder=True)
    path, file = chosen(source, trust_pickle)
    name = path if hub.is_repository(path) else Path(path).stem
    key = "G_ema" if "G_ema" in file.generators else "G"
    spaces.write(Path(space), file.only(key), f"Viewer of {name}", license)
    click.echo(f"wrote a Space: {space}")


def read_file(path: str, source: str, trust_pickle: bool) -> files.NetworkFile:
    """Read a local network file.

    With `trust_pickle`, the code of a pickle is run if it cannot be read otherwise. It is not run if it
    contains a network of another kind or is damaged, because that would not help.
    """
    from generation import render
    from training.networks import files

    for strict in (True, False) if trust_pickle else (True,):
        try:
            return files.read(path, strict=strict)
        except (files.UnsupportedGenerator, dnnlib.util.Damaged):
            raise
        except ValueError:
            if not trust_pickle:
                raise
    render.warn_trusted(source)
    return files.read_trusted(path)


def write_onnx(file: files.NetworkFile, dest: str) -> None:
    """Write G_ema as two ONNX files, and compare them with the network. Files that differ are removed.

    Raises:
        ValueError: the files differ, or G_ema cannot be exported.
    """
    from training.networks import onnx

    onnx.require_onnx()
    G = file.generators.get("G_ema") or next(iter(file.generators.values()))
    with show_elapsed("Exporting to ONNX"):
        paths = onnx.export(G, dest[: -len(".onnx")] if dest.lower().endswith(".onnx") else dest)
    try:
        with show_elapsed("Comparing with onnxruntime"):
            found = onnx.compare(G, paths)
    except ValueError as error:
        click.echo(f"not compared: {error}", err=True)
    else:
        if not found["images"] <= MAX_ONNX_DIFFERENCE:
            for path in paths:
                path.unlink()
            raise ValueError(
                f"--dest={dest}: the images of onnxruntime differ by {found['images']:.2g} (in [-1, 1]); the "
                "files are removed"
            )
        click.echo(
            f"onnxruntime: ws differ by at most {found['ws']:.1e}, images by {found['images']:.1e} (in [-1, "
            "1])"
        )
    click.echo(f"wrote {', '.join(map(str, paths))}")


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--source",
    required=True,
    metavar="PATH|URL|hf://OWNER/NAME",
    help="Network pickle, .safetensors file with its .json, run folder (its best network), or repository.",
)
@click.option(
    "--dest",
    metavar="PATH|hf://OWNER/NAME",
    help="File or repository to write. The extension selects the format.",
)
@click.option(
    "--space", metavar="DIR", help="Write a Hugging Face Space with the viewer, in place of --dest."
)
@click.option(
    "--format",
    "asked",
    type=click.Choice(list(FORMATS)),
    help="Format to write.  [default: by the extension of --dest]",
)
@click.option(
    "--networks",
    type=click.Choice(["all", "G_ema", "G"]),
    help="Networks to keep.  [default: all; for a repository G_ema]",
)
@click.option(
    "--license", metavar="ID", help="License of the weights, for the model card: apache-2.0, cc-by-4.0, ..."
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@commands.one_line_errors
def main(
    source: str,
    dest: str | None,
    space: str | None,
    asked: str | None,
    networks: str | None,
    license: str | None,
    private: bool,
    trust_pickle: bool,
) -> None:
    """Convert network files between formats."""
    from training.networks import files, hub, onnx

    source = dnnlib.util.plain_path(source)
    if space or not dest:
        write_space(source, dest, space, [asked, networks, private], license, trust_pickle)
        return
    form = format_of(dest, asked)
    if form != "hub" and (license or private):
        raise ValueError("--license and --private are only for a model repository (--dest=hf://OWNER/NAME)")
    if form == "hub":
        hub.parse_repository(dest)
    else:
        check_dest(dest, form, source)
    if form == "onnx":
        onnx.require_onnx()
    source, file = chosen(source, trust_pickle)
    networks = networks or ("G_ema" if form == "hub" and "G_ema" in file.generators else "all")
    if networks != "all":
        file = file.only(networks)
    if form == "pkl":
        with show_elapsed(f"Writing {dest}"):
            files.write_pickle(dest, file)
        click.echo(f"wrote {dest}")
    elif form == "safetensors":
        with show_elapsed(f"Writing {dest}"):
            config = files.write_safetensors(dest, file)
        click.echo(f"wrote {dest} and {config}")
    elif form == "onnx":
        write_onnx(file, dest)
    else:
        address = hub.push(file, dest, license=license, metrics=hub.read_metrics(source), private=private)
        click.echo(f"uploaded: {address}")


if __name__ == "__main__":
    main()
