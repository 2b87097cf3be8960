# SPDX-License-Identifier: Apache-2.0
"""Generate a looping video that interpolates between seeds.

    # through eight seeds of one class, two seconds each
    python gen_video.py --network=network.pkl --seeds=0-7 --class=3 --trunc=0.7 --output=lerp.mp4

    # a grid of 4 x 2 videos, each through its own four of the 32 seeds
    python gen_video.py --network=network.pkl --seeds=0-31 --grid=4x2 --output=grid.mp4

    # from class to class: the classes are assigned to the seeds in order
    python gen_video.py --network=network.pkl --seeds=0,0,0 --class=cat,dog,fox --output=classes.gif

Between the seeds, w follows a periodic cubic spline. The image of a seed is that of gen_images.py.

The extension of --output selects the format: .mp4, .mkv and .webm require the package av (pip install av);
.gif, .webp and .png (animated PNG) need nothing else. Browsers slow down GIFs with more than 50 frames per
second, and WebPs and PNGs with more than 90. Of a faster video such a file contains every second or third
frame, with the same total length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnnlib import outputs
from generation import commands


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--seeds", required=True, metavar="LIST", help="Seeds and ranges, for example 0,1,4-6.")
@click.option(
    "--output",
    required=True,
    metavar="FILE",
    help="Video to write: .mp4, .mkv, .webm, .gif, .webp or .png.",
)
@click.option(
    "--shuffle-seed",
    type=click.IntRange(0, commands.MAX_SEED),
    help="Shuffle the seeds with this random seed.  [default: keep the order]",
)
@click.option(
    "--grid",
    default="1x1",
    show_default=True,
    metavar="WxH|W,H",
    help="Columns and rows of videos side by side.",
)
@click.option(
    "--num-keyframes",
    type=click.IntRange(min=1),
    help="Seeds per grid cell.  [default: number of seeds / cells]",
)
@click.option(
    "--w-frames",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="Frames from one seed to the next.",
)
@click.option("--fps", type=click.IntRange(1, 120), default=60, show_default=True, help="Frames per second.")
@click.option(
    "--class",
    "--classes",
    "classes",
    metavar="LIST",
    help="Classes by index, range or name (0,3-5,cat), assigned to the seeds in order.  [default: random]",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help=commands.batch_help)
@commands.one_line_errors
def main(
    seeds: str,
    output: str,
    shuffle_seed: int | None,
    grid: str,
    num_keyframes: int | None,
    w_frames: int,
    fps: int,
    classes: str | None,
    batch: int,
    **common: Any,
) -> None:
    """Generate a looping video that interpolates between seeds."""
    options, path = commands.NetworkOptions(**common), Path(output)
    seed_list, (columns, rows) = commands.parse_seeds(seeds), commands.parse_grid(grid)
    inputs = {"--network": options.network, "--centroids-path": options.centroids_path}
    outputs.check_output("--output", output, inputs=inputs, data={"--data": options.data})
    from generation import render, video
    from torch_utils import images

    video.check_output(path)
    order = video.arrange(seed_list, columns * rows, num_keyframes, shuffle_seed)
    network, centroids = options.load()
    chosen = render.class_indices(network, classes) if classes else None
    images.check_picture(f"--grid={grid}", order.shape[0], network.G.img_resolution)
    total = order.shape[1] * w_frames
    if total > video.MAX_FRAMES:
        raise ValueError(
            f"--w-frames={w_frames}: {total:,} frames, but at most {video.MAX_FRAMES:,} are allowed"
        )
    video.check_memory(network, order, total, path)
    ws = video.keyframe_styles(network, seed_list, chosen, options.truncation, centroids)[order]
    if order.shape[1] == 1:
        click.echo(
            f"note: with one seed per cell the video does not move: give more than {columns * rows} seeds",
            err=True,
        )
    ending = path.suffix.lower()
    plan = video.timing(total, fps, ending)
    about = render.about(network, seed_list, chosen, **options.description())
    with commands.progress_bar(len(plan.frames), "Frames") as done:
        shown = video.frames(network, ws, w_frames, columns, batch, done, plan.frames)
        video.write(path, shown, fps, plan.milliseconds, about)
    click.echo(f"{video.length_text(plan, total, fps, ending)}: {output}")


if __name__ == "__main__":
    main()
