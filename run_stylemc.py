# SPDX-License-Identifier: Apache-2.0
r"""Find a direction from a text (StyleMC with CLIP), and edit an image with it.

    python run_stylemc.py --network=network128.pkl --bigger-network=network1024.pkl --seeds=0-256 \
        --class-idx=367 --layers=10-30 --text-prompt="a chimpanzee | laughter | happy monkey | smile" \
        --edit-strength=0.75 --init-seed=49 --outdir=stylemc_out

    # the direction then works with every command
    python gen_images.py --network=network1024.pkl --seeds=0-7 --class=367 \
        --edit=stylemc_out/direction.safetensors:0.75 --outdir=out

The direction is found on the images of --seeds with --network, and applied to the image of --w-path or
--init-seed, of --bigger-network if given: a later stage of the same network. --outdir gets
direction.safetensors, before.png, after.png, and with --save-video a video of the strength.

CLIP needs the package open_clip (pip install 'open_clip_torch>=2.30,<4') and its weights (605 MB), which are
downloaded to the Hugging Face cache or given by --clip-weights.
"""

from __future__ import annotations

from typing import Any

import click

from dnnlib import outputs
from generation import commands


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--network", required=True, metavar="PATH|URL", help="Network to find the direction with.")
@click.option(
    "--bigger-network", metavar="PATH|URL", help="A later stage of it, to make the edited image with."
)
@click.option("--seeds", required=True, metavar="LIST", help="Seeds of the images to find the direction on.")
@click.option(
    "--class-idx", type=click.IntRange(min=0), metavar="INT", help="Class of all images.  [default: random]"
)
@click.option(
    "--layers", required=True, metavar="LIST", help="Layers whose styles may change: i = synthesis layer i."
)
@click.option("--text-prompt", required=True, metavar="STR", help="Texts, separated by '|'.")
@click.option("--edit-strength", required=True, type=float, help="Strength of the edit in after.png.")
@click.option("--w-path", metavar="NPZ", help="Style code of the image to edit, for example projected_w.npz.")
@click.option(
    "--init-seed",
    type=click.IntRange(0, commands.MAX_SEED),
    metavar="INT",
    help="Seed of the image to edit.  [default: the first of --seeds]",
)
@click.option("--save-video", is_flag=True, help="Write video.mp4 (video.webp without the package av).")
@click.option(
    "--outdir", required=True, metavar="DIR", help="Folder for the results. Existing ones are replaced."
)
@click.option("--trunc", "truncation", type=float, default=1, show_default=True, help="Truncation psi.")
@click.option(
    "--clip-model", default="ViT-B-32-quickgelu", show_default=True, help="open_clip's name of the model."
)
@click.option(
    "--clip-weights", metavar="FILE", help="Its weights.  [default: OpenAI's, downloaded and verified]"
)
@commands.device_option
@commands.one_line_errors
def main(outdir: str, truncation: float, edit_strength: float, **options: Any) -> None:
    """Find a direction from a text, and edit an image with it."""
    named = {f"--{name.replace('_', '-')}": options[name] for name in ("network", "bigger_network", "w_path")}
    outputs.check_output(
        "--outdir", outdir, inputs={**named, "--clip-weights": options["clip_weights"]}, folder=True
    )
    commands.check_finite("--trunc", truncation)
    commands.check_finite("--edit-strength", edit_strength)
    seeds = commands.parse_seeds(options["seeds"])
    if options["w_path"]:
        commands.note_ignored("--w-path", {"--init-seed": options["init_seed"] is not None})
    from generation import stylemc_command

    stylemc_command.run(seeds, outdir, truncation, edit_strength, options)


if __name__ == "__main__":
    main()
