# SPDX-License-Identifier: Apache-2.0
"""Show and steer a trained network in the browser.

    # a network file, an address or a repository
    python viewer.py --network=network.pkl

    # a run folder: its snapshots can be switched and played; a second network for comparison
    python viewer.py --network=training-runs/00000-emoji --network=other.pkl

    # sliders for the directions in a file (directions.py)
    python viewer.py --network=network.pkl --edit=sefa.safetensors --edit=smile.safetensors:1.5

    # on a server without a screen: open http://127.0.0.1:7860 on your machine after
    # ssh -L 7860:127.0.0.1:7860 SERVER
    python viewer.py --network=network.pkl --port=7860

Needs the package gradio (pip install -e '.[viewer]'). Network files are read without running their code.
"""

from __future__ import annotations

import importlib.util

import click

from generation import commands


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option(
    "--network",
    "networks",
    required=True,
    multiple=True,
    metavar="PATH|URL",
    help="Network pickle, .safetensors file, run folder (all snapshots) or hf://OWNER/NAME. May be repeated.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. 0.0.0.0: everyone."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port; 0 = any free one."
)
@commands.device_option
@click.option("--centroids-path", metavar="PATH|URL", help="A .npy file of cluster centres, for truncation.")
@click.option(
    "--data", metavar="ZIP|DIR", help="Data set that provides class names, if the network file has none."
)
@click.option(
    "--edit",
    "edits",
    multiple=True,
    metavar="FILE[#INDEX][:STRENGTH]",
    help="Direction file of directions.py or run_stylemc.py: a slider for each direction, or for one. May be "
    "repeated.",
)
@commands.one_line_errors
def main(
    networks: tuple[str, ...],
    host: str,
    port: int,
    device: str,
    centroids_path: str | None,
    data: str | None,
    edits: tuple[str, ...],
) -> None:
    """Show and steer a trained network in the browser."""
    if importlib.util.find_spec("gradio") is None:  # the extra viewer
        raise ValueError("viewer.py needs the package gradio: pip install 'gradio>=6.31,<7'")
    from generation.viewer import session

    session.check_port(host, port)
    from generation.viewer import page

    page.serve(session.Viewer(networks, device, centroids_path, data, edits), host, port)


if __name__ == "__main__":
    main()
