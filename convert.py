# SPDX-License-Identifier: Apache-2.0
"""Network files from one form into another. Runs nothing that a file contains.

    # a pickle into weights as weights: network.safetensors and network.json; and back, bit for bit
    python convert.py --source=network-snapshot.pkl --dest=network.safetensors
    python convert.py --source=network.safetensors --dest=network.pkl

    # a published network, made light: G_ema alone
    python convert.py --source=https://host/imagenet256.pkl --dest=imagenet256.safetensors --networks=G_ema

    # two ONNX files, mapping and synthesis, compared with onnxruntime (pip install onnx onnxscript
    onnxruntime) python convert.py --source=network-snapshot.pkl --dest=network.onnx

    # to and from a Hugging Face repository, with a model card (pip install huggingface_hub; hf auth login)
    python convert.py --source=best_model.pkl --dest=hf://me/emoji64 --license=cc-by-4.0
    python convert.py --source=hf://me/emoji64 --dest=emoji64.pkl

A pickle that this writes opens in every tool that knows StyleGAN3's pickles. Weights and settings are kept
exactly; source text that a pickle carried is not kept, a discriminator is kept as named tensors, and ONNX
keeps G_ema alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

import dnnlib.util
from dnnlib import outputs
from dnnlib.progress import working
from generation import commands, render
from training.networks import files, hub, onnx, stems

FORMATS = {"pkl": (".pkl", ".pickle"), "safetensors": (".safetensors",), "onnx": (".onnx",), "hub": ()}
MAX_ONNX_DIFFERENCE = 1e-3  # of images in [-1, 1]: an eighth of a grey level


def format_of(dest: str, asked: str | None) -> str:
    """The form that --format or the ending of --dest asks for. Raises ValueError."""
    if hub.is_repository(dest):
        found = "hub"
    else:
        found = next(
            (name for name, endings in FORMATS.items() if dest.lower().endswith(endings) and endings), ""
        )
    if asked and found and asked != found:
        raise ValueError(
            f"--format={asked} does not go with --dest={dest}: end it with "
            f"{' or '.join(FORMATS[asked]) or 'hf://OWNER/NAME'}"
        )
    if not asked and not found:
        raise ValueError(
            f"--dest={dest}: end it with .pkl, .safetensors or .onnx, name hf://OWNER/NAME, or say --format"
        )
    if asked == "hub" and not found:
        raise ValueError(f"--dest={dest}: a model repository is named hf://OWNER/NAME")
    return asked or found


def check_dest(dest: str, form: str, source: str) -> None:
    """Raises ValueError for a --dest that would replace the source or another network's file, or that could
    not be read again.
    """
    inputs = {"--source": source}
    if source.lower().endswith(".safetensors") and os.path.isfile(source):
        inputs["the JSON file of --source"] = str(files.config_path_of(source))
    outputs.check_output("--dest", dest, inputs=inputs)
    if Path(dest).parent != Path() and not Path(dest).parent.is_dir():
        raise ValueError(f"--dest={dest}: there is no folder {Path(dest).parent}")
    ending = Path(dest).suffix.lower()
    if ending == ".json" or (form == "safetensors" and ending != ".safetensors"):
        raise ValueError(
            f"--dest={dest}: a network of this form is not read from such a file: end it with "
            f"{FORMATS[form][0]}"
        )
    if form == "safetensors":
        config = Path(dest).with_suffix(".json")
        outputs.check_output("the JSON file of --dest", config, inputs=inputs)
        files.check_free(config, Path(dest))


def read(source: str, trust_pickle: bool) -> files.NetworkFile:
    """The network file that --source means: a path, a file:// or http(s) address or hf://OWNER/NAME. Raises
    OSError or ValueError.
    """
    if hub.is_repository(source):
        return hub.pull(source)
    trust_pickle = trust_pickle and not source.lower().endswith(".safetensors")
    return files.read_from(source, lambda path: read_file(path, source, trust_pickle))


def read_file(path: str, source: str, trust_pickle: bool) -> files.NetworkFile:
    """`read` of a local file. It is run only where that may help: a network of another kind is none of ours
    afterwards, either.
    """
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
    """G_ema as two files, compared with what they come from; files that differ are removed. Raises
    ValueError.
    """
    onnx.require_onnx()
    G = file.generators.get("G_ema") or next(iter(file.generators.values()))
    with working("Exporting to ONNX"):
        paths = onnx.export(G, dest[: -len(".onnx")] if dest.lower().endswith(".onnx") else dest)
    try:
        with working("Comparing with onnxruntime"):
            found = onnx.compare(G, paths)
    except ValueError as error:
        click.echo(f"not compared: {error}", err=True)
    else:
        if not found["images"] <= MAX_ONNX_DIFFERENCE:
            for path in paths:
                path.unlink()
            raise ValueError(
                f"--dest={dest}: onnxruntime draws images that differ by {found['images']:.2g} (of [-1, "
                "1]); nothing is kept"
            )
        click.echo(
            f"onnxruntime: ws differ by at most {found['ws']:.1e}, images by {found['images']:.1e} (of [-1, "
            "1])"
        )
    click.echo(f"wrote {', '.join(map(str, paths))}")


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--source",
    required=True,
    metavar="PATH|URL|hf://OWNER/NAME",
    help="network pickle, run folder, .safetensors with its .json, or a repository",
)
@click.option(
    "--dest", required=True, metavar="PATH|hf://OWNER/NAME", help="what to write; its ending says the form"
)
@click.option(
    "--format",
    "asked",
    type=click.Choice(list(FORMATS)),
    help="the form, where the ending of --dest does not say it",
)
@click.option(
    "--networks",
    type=click.Choice(["all", "G_ema", "G"]),
    help="which to keep  [default: all; for a repository G_ema]",
)
@click.option(
    "--license", metavar="ID", help="of the weights, for the model card: apache-2.0, cc-by-4.0, ..."
)
@click.option("--private", is_flag=True, help="make a new model repository a private one")
@click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP)
@commands.one_line_errors
def main(
    source: str,
    dest: str,
    asked: str | None,
    networks: str | None,
    license: str | None,
    private: bool,
    trust_pickle: bool,
) -> None:
    source, form = dnnlib.util.plain_path(source), format_of(dest, asked)
    if form != "hub" and (license or private):
        raise ValueError("--license and --private are for a model repository (--dest=hf://OWNER/NAME)")
    if form == "hub":
        hub.parse_repository(dest)
    else:
        check_dest(dest, form, source)
    if form == "onnx":
        onnx.require_onnx()
    is_choice = os.path.isdir(source)
    source = stems.network_in("--source", source) if is_choice else source
    file = read(source, trust_pickle)
    if is_choice:
        click.echo(f"Network: {stems.network_summary(source, file.provenance)}", err=True)
    networks = networks or ("G_ema" if form == "hub" and "G_ema" in file.generators else "all")
    if networks != "all":
        file = file.only(networks)
    if form == "pkl":
        with working(f"Writing {dest}"):
            files.write_pickle(dest, file)
        click.echo(f"wrote {dest}")
    elif form == "safetensors":
        with working(f"Writing {dest}"):
            config = files.write_safetensors(dest, file)
        click.echo(f"wrote {dest} and {config}")
    elif form == "onnx":
        write_onnx(file, dest)
    else:
        address = hub.push(file, dest, license=license, metrics=hub.read_metrics(source), private=private)
        click.echo(f"uploaded: {address}")


if __name__ == "__main__":
    main()
