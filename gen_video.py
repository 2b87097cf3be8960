# SPDX-License-Identifier: Apache-2.0
"""A looping video that flows from seed to seed, from a network pickle.

    # through eight seeds of one class, two seconds each
    python gen_video.py --network=network-snapshot.pkl --seeds=0-7 --class=3 --trunc=0.7 --output=lerp.mp4

    # a grid of 4 x 2 videos, each through its own four of the 32 seeds
    python gen_video.py --network=network-snapshot.pkl --seeds=0-31 --grid=4x2 --output=grid.mp4

    # from class to class: the list of classes goes along the list of seeds
    python gen_video.py --network=network-snapshot.pkl --seeds=0,0,0 --class=cat,dog,fox --output=classes.gif

Between seeds, w follows a periodic cubic spline. A seed's image is the one that gen_images.py makes. The
ending of --output chooses the format: .mp4, .mkv and .webm need the package av (pip install av); .gif, .webp
and .png (animated PNG) need nothing. Browsers slow down a GIF of more than 50 frames per second, and a WebP
or PNG of more than 90: of a faster video such a file shows every second or third frame, in the same time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
import PIL.Image
import scipy.interpolate
import torch
from torch import Tensor

import dnnlib.util
from dnnlib import outputs
from generation import commands, render
from torch_utils import images, memory
from torch_utils.devices import pick_device

H264 = ("libx264", "libopenh264", "mpeg4")
CODECS = {
    ".mp4": ("mp4", H264),
    ".mkv": ("matroska", H264),
    ".webm": ("webm", ("libvpx-vp9", "libvpx")),
}  # ending -> container, encoders
PICTURES = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
MAX_FRAMES = 10_000_000  # two days at 60 a second
# for a number of a keyframe: itself, and four coefficients of its spline with what is needed to find them
SPLINE_BYTES = 64
# Milliseconds in which a format counts, and the shortest delay that browsers keep (a shorter one lasts 100).
DELAYS = {".gif": (10, 20), ".webp": (1, 11), ".png": (1, 11)}


def arrange(
    seeds: Sequence[int], cells: int, num_keyframes: int | None, shuffle_seed: int | None
) -> np.ndarray:
    """Positions in `seeds`, int [cells, keyframes]: which seed every cell of the grid shows at every
    keyframe; the list repeats if it is too short.

    Raises ValueError when the seeds do not fill the grid and --num-keyframes does not say how often they
    repeat.
    """
    if num_keyframes is None:
        if len(seeds) % cells:
            raise ValueError(
                f"--seeds: {len(seeds)} seeds do not divide among {cells} cells of the grid: change --seeds "
                "or give --num-keyframes"
            )
        num_keyframes = len(seeds) // cells
    if cells * num_keyframes > dnnlib.util.MAX_LIST:
        raise ValueError(
            f"--num-keyframes={num_keyframes}: {cells} cells with so many keyframes are more than "
            f"{dnnlib.util.MAX_LIST:,}"
        )
    order = np.resize(np.arange(len(seeds)), cells * num_keyframes)
    if shuffle_seed is not None:
        np.random.RandomState(shuffle_seed).shuffle(order)
    return order.reshape(cells, num_keyframes)


def check_memory(network: render.Network, order: np.ndarray, num_frames: int, output: Path) -> None:
    """Raises ValueError for a video of which more must be held in memory than is free.

    order: of `arrange`. num_frames: of the whole video, which writers of WebP and PNG hold until they have
    them all.
    """
    cells, keyframes = order.shape
    held = order.size * network.G.num_ws * network.G.w_dim * SPLINE_BYTES
    if PICTURES.get(output.suffix.lower(), "GIF") != "GIF":
        held += 3 * num_frames * cells * network.G.img_resolution**2
    free = memory.host_free_bytes()
    if held > free:
        raise ValueError(
            f"--output={output}: {num_frames:,} frames of {cells:,} cells with {keyframes:,} keyframes take "
            f"{held / 2**30:.1f} GiB of memory, "
            f"and {free / 2**30:.1f} GiB are free: ask for fewer, or write .mp4 or .gif"
        )


@torch.no_grad()
def keyframe_styles(
    network: render.Network,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    truncation: float,
    centroids: Tensor | None,
) -> np.ndarray:
    """float32 [seeds, num_ws, W]; seed i belongs to class i of `classes`, which repeats, or to the class that
    gen_images.py gives it.
    """
    ws = []
    for i, seed in enumerate(seeds):
        labels = render.seed_labels(network, seed, 1, None if classes is None else classes[i % len(classes)])
        z = render.latents(seed, 1, network.G.z_dim).to(network.device)
        ws.append(
            render.styles(
                network.G, z, None if labels is None else labels.to(network.device), truncation, centroids
            )
        )
    return torch.cat(ws).float().cpu().numpy()


def splines(ws: np.ndarray) -> Callable[[float], np.ndarray]:
    """ws [cells, keyframes, num_ws, W] -> a function of time, periodic in the number of keyframes, with
    values [cells, num_ws, W]; cubic (C2).
    """
    keyframes = ws.shape[1]
    if keyframes == 1:
        return lambda time: ws[:, 0]
    closed = np.concatenate([ws, ws[:, :1]], axis=1)
    spline = scipy.interpolate.CubicSpline(np.arange(keyframes + 1), closed, axis=1, bc_type="periodic")
    return lambda time: spline(time).astype(np.float32)


def frames(
    network: render.Network,
    ws: np.ndarray,
    frames_per_keyframe: int,
    columns: int,
    batch: int,
    done: Callable[[int], None],
    shown: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Frame after frame of the loop, uint8 [H, W, 3]; `done(1)` after each. shown: which ones, None: all."""
    at = splines(ws)
    size = 1 if network.device.type == "cpu" else batch
    for frame in range(ws.shape[1] * frames_per_keyframe) if shown is None else shown:
        now = torch.from_numpy(at(frame / frames_per_keyframe)).to(network.device)
        cells = torch.cat([render.synthesize(network, part) for part in now.split(size)])
        picture = images.grid(cells, columns)
        yield np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
        done(1)


def check_output(output: Path) -> None:
    """Raises ValueError for a format that cannot be written here."""
    ending = output.suffix.lower()
    if ending not in CODECS and ending not in PICTURES:
        raise ValueError(
            f"--output={output}: endings that can be written are {', '.join([*CODECS, *PICTURES])}"
        )
    if ending in CODECS:
        try:
            import av  # noqa: F401
        except ImportError:
            raise ValueError(
                f"--output={output}: {ending} needs the package av (pip install av); or write .webp or .gif"
            ) from None


@dataclass(frozen=True)
class Timing:
    """Which frames of a video a file shows, and for how long each.

    frames: their numbers. milliseconds: of each; together the length of the video. every: one of so many
    is shown.
    """

    frames: list[int]
    milliseconds: list[int]
    every: int = 1


def timing(total: int, fps: int, ending: str) -> Timing:
    """The frames that a file of a kind can show in the right time, of `total` at `fps` a second.

    Formats of pictures count in whole hundredths (GIF) or thousandths (WebP, PNG) of a second, so delays
    take turns (3, 3, 4) to stay in step. Browsers slow down what is faster than DELAYS allow: of such a
    video, every second or third frame is shown, for twice or three times as long.
    """
    unit, shortest = DELAYS.get(ending, (1, 0))
    every = max(1, math.ceil(fps * shortest / 1000))
    shown = list(range(0, total, every))[: max(1, total // every)]
    starts = [_rounded(1000 * frame / fps, unit) for frame in [*shown, total]]
    delays = [max(after - before, shortest) for before, after in itertools.pairwise(starts)]
    return Timing(shown, delays, every)


def _rounded(milliseconds: float, unit: int) -> int:
    return math.floor(milliseconds / unit + 0.5) * unit


def write(
    output: Path,
    pictures: Iterator[np.ndarray],
    fps: int,
    delays: Sequence[int],
    about: Mapping[str, Any],
) -> None:
    """Write the frames as one file, complete or not at all.

    Raises OSError, and ValueError where no encoder is there.
    delays: milliseconds of each frame, for formats of pictures. about: what a PNG says of itself.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    ending = output.suffix.lower()
    with dnnlib.util.atomic_write(str(output), "wb") as f:
        if ending in PICTURES:
            _write_pictures(f, pictures, delays, PICTURES[ending], about)
        else:
            _write_video(f, pictures, fps, *CODECS[ending])


def _write_pictures(
    file: IO[Any],
    pictures: Iterator[np.ndarray],
    delays: Sequence[int],
    kind: str,
    about: Mapping[str, Any],
) -> None:
    first = PIL.Image.fromarray(next(pictures))
    own: dict[str, dict[str, Any]] = {"WEBP": {"quality": 90}, "PNG": {"pnginfo": images.png_text(about)}}
    rest: Any = (PIL.Image.fromarray(picture) for picture in pictures)
    if kind != "GIF":  # Pillow's other writers go over the frames twice
        rest = list(rest)
    durations = list(delays) if len(delays) > 1 else delays[0]
    first.save(file, kind, save_all=True, append_images=rest, duration=durations, loop=0, **own.get(kind, {}))


def _write_video(
    file: IO[Any], pictures: Iterator[np.ndarray], fps: int, container_format: str, codecs: Sequence[str]
) -> None:
    import av

    known = [name for name in codecs if name in av.codecs_available]
    if not known:
        raise ValueError(
            f"the installed package av has none of the encoders {', '.join(codecs)}: write .webp or .gif"
        )
    with av.open(file, "w", format=container_format) as container:
        stream: Any = container.add_stream(known[0], rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(pictures):
            even = np.pad(
                picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge"
            )  # chroma is halved
            if index == 0:
                stream.height, stream.width = even.shape[:2]
                stream.bit_rate = 12_000_000
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"))
            )
            outputs.raise_if_stopped()  # av swallows an interrupt that comes while it writes
        container.mux(stream.encode())


def length_text(plan: Timing, total: int, fps: int, ending: str) -> str:
    """'240 frames, 8.0 seconds', and which frames those are."""
    seconds = sum(plan.milliseconds) / 1000 if ending in PICTURES else total / fps
    count = f"{seconds:.3f}".rstrip("0")
    length = f"{len(plan.frames)} frames, {count}{'0' if count.endswith('.') else ''} seconds"
    if plan.every == 1:
        return length
    skipped = f"one of every {plan.every} of the video's {total}"
    return f"{length} ({skipped}: browsers slow down {PICTURES[ending]} files of {fps} frames a second)"


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--seeds", required=True, metavar="LIST", help="for example 0,1,4-6")
@click.option("--output", required=True, metavar="FILE", help="where the video goes")
@click.option(
    "--shuffle-seed", type=click.IntRange(0, render.MAX_SEED), help="shuffle the seeds with this seed"
)
@click.option(
    "--grid",
    default="1x1",
    show_default=True,
    metavar="WxH|W,H",
    help="columns x rows of videos beside each other",
)
@click.option(
    "--num-keyframes",
    type=click.IntRange(min=1),
    help="seeds that each cell flows through [default: seeds / cells]",
)
@click.option(
    "--w-frames",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="frames from one seed to the next",
)
@click.option("--fps", type=click.IntRange(1, 120), default=60, show_default=True, help="frames per second")
@click.option(
    "--class",
    "--classes",
    "classes",
    metavar="LIST",
    help="classes by index, range or name (0,3-5,cat); several go along the seeds",
)
@click.option("--data", metavar="ZIP|DIR", help="data set to take class names from, if the pickle has none")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="images computed at a time on a GPU",
)
@commands.one_line_errors
def main(
    network: str,
    trust_pickle: bool,
    truncation: float,
    centroids_path: str | None,
    device: str,
    precision: str,
    seeds: str,
    output: str,
    shuffle_seed: int | None,
    grid: str,
    num_keyframes: int | None,
    w_frames: int,
    fps: int,
    classes: str | None,
    data: str | None,
    batch: int,
) -> None:
    numbers, (columns, rows) = commands.parse_seeds(seeds), commands.parse_grid(grid)
    commands.check_finite("--trunc", truncation)
    outputs.check_output(
        "--output",
        output,
        inputs={"--network": network, "--centroids-path": centroids_path},
        data={"--data": data},
    )
    check_output(Path(output))
    order = arrange(numbers, columns * rows, num_keyframes, shuffle_seed)
    net = render.load_network(
        network, pick_device(device), data, trust_pickle=trust_pickle, precision=precision
    )
    centroids = render.load_centroids(centroids_path, net.G.w_dim) if centroids_path else None
    chosen = render.class_indices(net, classes) if classes else None
    images.check_picture(f"--grid={grid}", order.shape[0], net.G.img_resolution)
    total = order.shape[1] * w_frames
    if total > MAX_FRAMES:
        raise ValueError(f"--w-frames={w_frames}: {total:,} frames, and at most {MAX_FRAMES:,} are made")
    check_memory(net, order, total, Path(output))
    ws = keyframe_styles(net, numbers, chosen, truncation, centroids)[order]
    if order.shape[1] == 1:
        click.echo(
            f"note: one seed per cell makes a picture that stands still: give more than {columns * rows} "
            "seeds",
            err=True,
        )
    plan = timing(total, fps, Path(output).suffix.lower())
    about = render.about(net, numbers, chosen, truncation=truncation, centroids_path=centroids_path)
    with commands.progress_bar(len(plan.frames), "Frames") as done:
        shown = frames(net, ws, w_frames, columns, batch, done, plan.frames)
        write(Path(output), shown, fps, plan.milliseconds, about)
    click.echo(f"{length_text(plan, total, fps, Path(output).suffix.lower())}: {output}")


if __name__ == "__main__":
    main()
