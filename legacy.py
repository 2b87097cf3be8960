# SPDX-License-Identifier: Apache-2.0
"""Load network pickles in scripts that were written for StyleGAN.

    import dnnlib, legacy

    with dnnlib.util.open_url("network.pkl") as f:
        G = legacy.load_network_pkl(f)["G_ema"].to("cuda")

The pickle is read without running its code. New scripts use `from generation import Network`. To convert a
file, use convert.py.
"""

from typing import Any, BinaryIO

import click


def load_network_pkl(f: BinaryIO, force_fp16: bool = False) -> dict[str, Any]:
    """Load a network pickle from an open file.

    Args:
        f: The file, open for reading bytes.
        force_fp16: Let the layers that are marked for reduced precision use float16.

    Returns:
        G and G_ema (the same if the file has only one), D as named tensors or None, training_set_kwargs, and
        augment_pipe, which is always None.

    Raises:
        ValueError: One line, also for pickles of TensorFlow, which are not supported.
    """
    import torch

    from training.bundle import bundle
    from training.networks import files

    name = str(getattr(f, "name", "the network pickle"))
    if f.seekable():
        start = f.tell()
        if b"dnnlib.tflib" in f.read(4096):
            raise ValueError(f"{name}: pickles of TensorFlow are not supported")
        f.seek(start)
    found = files.read_stream(f, name)
    G_ema = found.generators.get("G_ema", found.generators.get("G"))
    G = found.generators.get("G", G_ema)
    for generator in (G, G_ema):
        if force_fp16 and generator is not None:
            generator.synthesis.reduced_dtype = torch.float16
    return {
        "G": G,
        "D": bundle(found.tensors["D"]) if "D" in found.tensors else None,
        "G_ema": G_ema,
        "training_set_kwargs": found.training_set_kwargs,
        "augment_pipe": None,
        **found.extra,
    }


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
)
@click.pass_context
def main(context: click.Context) -> None:
    """Name the script that converts network files."""
    raise click.ClickException("to convert network files use: python convert.py --source=FILE --dest=FILE")


if __name__ == "__main__":
    main()
