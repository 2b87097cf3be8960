# SPDX-License-Identifier: Apache-2.0
r"""Generate a looping video that interpolates between seeds, classes, style codes, or strengths of an edit.

    # through eight seeds of one class, two seconds each
    python gen_video.py --network=network.pkl --seeds=0-7 --class=3 --trunc=0.7 --output=lerp.mp4

    # a grid of 4 x 2 videos, each through its own four of the 32 seeds
    python gen_video.py --network=network.pkl --seeds=0-31 --grid=4x2 --output=grid.mp4

    # one seed through 32 classes
    python gen_video.py --network=network.pkl --seeds=0 --class=0-31 --output=classes.gif

    # one seed from truncation 0 to 1 and back
    python gen_video.py --network=network.pkl --seeds=0 --truncs=0,0.5,1,0.5 --output=trunc.gif

    # along a direction and back, as numbered PNG files
    python gen_video.py --network=network.pkl --seeds=0 --edit=sefa.safetensors#1:-3,3 --frames=frames

    # from a style code in a file to a seed, moved to the right in between
    python gen_video.py --network=network.pkl --projected-w=projected_w.npz --seeds=0 --translate=0,0 \
        --translate=0.25,0 --output=walk.mp4

Every list (seeds, classes, truncations, shifts, rotations, strengths) is assigned to the keyframes in order,
and shorter ones repeat. Between keyframes all of them follow a periodic cubic spline. The image of a seed is
that of gen_images.py.

The extension of --output selects the format: .mp4, .mkv and .webm require the package av (pip install av);
.gif, .webp and .png (animated PNG) need nothing else. Browsers slow down GIFs with more than 50 frames per
second, and WebPs and PNGs with more than 90. Of a faster video such a file contains every second or third
frame, with the same total length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dnnlib import outputs
from generation import commands, edits

if TYPE_CHECKING:
    from generation.walk import Walk


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--seeds", metavar="LIST", help="Seeds and ranges, for example 0,1,4-6.")
@commands.projected_w_option(multiple=True)
@click.option(
    "--output",
    metavar="FILE",
    help="Video to write: .mp4, .mkv, .webm, .gif, .webp or .png.",
)
@click.option("--frames", metavar="DIR", help="In place of --output: folder for frame000000.png, ...")
@commands.save_w_option
@click.option(
    "--shuffle-seed",
    type=click.IntRange(0, commands.MAX_SEED),
    help="Shuffle the keyframes with this random seed.  [default: keep the order]",
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
    help="Keyframes per grid cell.  [default: number of keyframes / cells]",
)
@click.option(
    "--w-frames",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="Frames from one keyframe to the next.",
)
@click.option("--fps", type=click.IntRange(1, 120), default=60, show_default=True, help="Frames per second.")
@click.option(
    "--class",
    "--classes",
    "classes",
    metavar="LIST",
    help="Classes by index, range or name (0,3-5,cat), assigned to the keyframes in order.  "
    "[default: random]",
)
@click.option(
    "--truncs", metavar="LIST", help="Truncation psi of each keyframe, in place of --trunc: 0,0.5,1."
)
@click.option(
    "--translate",
    multiple=True,
    metavar="X,Y",
    help="Shift right and down, in image widths. Repeat it for one per keyframe.",
)
@click.option("--rotate", metavar="LIST", help="Degrees anticlockwise: one number, or one per keyframe.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help=commands.batch_help)
@commands.one_line_errors
def main(
    seeds: str | None,
    projected_w: tuple[str, ...],
    output: str | None,
    frames: str | None,
    save_w: str | None,
    shuffle_seed: int | None,
    grid: str,
    num_keyframes: int | None,
    w_frames: int,
    fps: int,
    classes: str | None,
    truncs: str | None,
    translate: tuple[str, ...],
    rotate: str | None,
    batch: int,
    **common: Any,
) -> None:
    """Generate a looping video."""
    options = commands.NetworkOptions(**common)
    columns, rows = commands.parse_grid(grid)
    _check_outputs(options, projected_w, output, frames, save_w)
    path = Path(output) if output else None
    settings = options.truncation, options.centroids_path
    walk = _walk(seeds, projected_w, classes, truncs, translate, rotate, *settings)
    from generation import render, video
    from generation import walk as walks
    from torch_utils import images

    if path is not None:
        video.check_output(path)
    network, centroids = options.load(several=True)
    lists = walks.lists_of(walk, network)
    order = video.arrange(len(lists), columns * rows, num_keyframes, shuffle_seed)
    images.check_picture(f"--grid={grid}", order.shape[0], network.G.img_resolution)
    total = order.shape[1] * w_frames
    if total > video.MAX_FRAMES:
        raise ValueError(
            f"--w-frames={w_frames}: {total:,} frames, but at most {video.MAX_FRAMES:,} are allowed"
        )
    video.check_memory(network, order, total, path)
    if path is None:
        video.check_frames(Path(str(frames)), total)
    keyframes = walks.keyframes(lists, network, centroids)
    if order.shape[1] == 1:
        click.echo("note: with one keyframe per cell the video does not move: give more keyframes", err=True)
    walks.move(network, keyframes.motion[0])
    motion = keyframes.motion[order] if keyframes.is_moving else None
    about = render.about(network, keyframes.seeds, keyframes.classes, **options.description())
    about["w_files"] = ", ".join(Path(name).name for name in projected_w) or None
    about |= {"truncations": truncs} if seeds is not None else {"truncation": None, "centroids": None}
    if save_w:
        walks.save(keyframes, network, save_w)

    def make(done: Callable[[int], None], shown: Sequence[int]) -> Iterator[Any]:
        return video.frames(network, keyframes.ws[order], w_frames, columns, batch, done, shown, motion)

    _write(make, total, fps, path or Path(str(frames)), path is None, about)


def _check_outputs(
    options: commands.NetworkOptions,
    projected_w: Sequence[str],
    output: str | None,
    frames: str | None,
    save_w: str | None,
) -> None:
    """Raise ValueError for missing outputs, and for those that are inputs."""
    if bool(output) == bool(frames):
        raise ValueError("give either --output=FILE, or --frames=DIR for numbered PNG files")
    named = {"--network": options.network, "--centroids-path": options.centroids_path}
    inputs = {**named, **{f"--projected-w={path}": path for path in projected_w}}
    flag, path = ("--output", output) if output else ("--frames", frames)
    outputs.check_output(flag, str(path), inputs=inputs, data={"--data": options.data}, folder=not output)
    commands.check_save_w(save_w, inputs)


def _walk(
    seeds: str | None,
    projected_w: Sequence[str],
    classes: str | None,
    truncs: str | None,
    translate: Sequence[str],
    rotate: str | None,
    truncation: float,
    centroids_path: str | None,
) -> Walk:
    """Parse the lists of the keyframes. Raises ValueError."""
    from generation import walk

    if seeds is None and not projected_w:
        raise ValueError("give --seeds=LIST, or --projected-w=FILE")
    if truncs and truncation != 1:
        raise ValueError("--truncs takes the place of --trunc: give one of them")
    if seeds is None:
        others = {"--class": classes, "--truncs": truncs, "--trunc": truncation != 1}
        commands.note_ignored("--projected-w", {**others, "--centroids-path": centroids_path})
        classes = truncs = None
    return walk.Walk(
        seeds=[] if seeds is None else commands.parse_seeds(seeds),
        files=projected_w,
        classes=classes,
        truncations=edits.numbers("--truncs:", truncs) if truncs else [truncation],
        shifts=[commands.parse_translate(text) for text in translate or ("0,0",)],
        rotations=edits.numbers("--rotate:", rotate) if rotate else [0.0],
    )


def _write(
    make: Callable[[Callable[[int], None], Sequence[int]], Iterator[Any]],
    total: int,
    fps: int,
    path: Path,
    as_frames: bool,
    about: dict[str, Any],
) -> None:
    """Write the video, or its frames into a folder."""
    from generation import video

    if as_frames:
        with commands.progress_bar(total, "Frames") as done:
            video.write_frames(path, make(done, range(total)), about)
        click.echo(f"{total} PNG files in {path}")
        return
    ending = path.suffix.lower()
    plan = video.timing(total, fps, ending)
    with commands.progress_bar(len(plan.frames), "Frames") as done:
        video.write(path, make(done, plan.frames), fps, plan.milliseconds, about)
    click.echo(f"{video.length_text(plan, total, fps, ending)}: {path}")


if __name__ == "__main__":
    main()
