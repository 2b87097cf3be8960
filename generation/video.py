# SPDX-License-Identifier: Apache-2.0
"""Write looping videos of generated images: timing, interpolation, frames and encoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
import torch

import dnnlib.util
from dnnlib import outputs
from generation import render, walk
from torch_utils import images, memory

H264 = ("libx264", "libopenh264", "mpeg4")
CODECS = {  # extension -> container, encoders
    ".mp4": ("mp4", H264),
    ".mkv": ("matroska", H264),
    ".webm": ("webm", ("libvpx-vp9", "libvpx")),
}
PICTURES = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
MAX_FRAMES = 10_000_000  # two days at 60 frames per second
# Memory per value of a keyframe: the value, four spline coefficients, and the solver's temporary arrays.
SPLINE_BYTES = 64
# Time unit of a format and shortest delay that browsers respect (shorter ones become 100 ms), in
# milliseconds.
DELAYS = {".gif": (10, 20), ".webp": (1, 11), ".png": (1, 11)}


def arrange(count: int, cells: int, num_keyframes: int | None, shuffle_seed: int | None) -> np.ndarray:
    """Distribute the keyframes among the cells of the grid. Too short a list repeats.

    Args:
        count: number of keyframes.
        cells: number of cells.
        num_keyframes: keyframes per cell; None = count / cells.
        shuffle_seed: seed for shuffling; None = in order.

    Returns:
        Indices of keyframes, int [cells, keyframes].

    Raises:
        ValueError: they do not fill the grid and `num_keyframes` is None, or too many keyframes.
    """
    if num_keyframes is None:
        if count % cells:
            raise ValueError(
                f"--seeds: {count} keyframes cannot be divided evenly among {cells} grid cells: change "
                "--seeds or give --num-keyframes"
            )
        num_keyframes = count // cells
    if cells * num_keyframes > dnnlib.util.MAX_LIST:
        raise ValueError(
            f"--num-keyframes={num_keyframes}: {cells} cells would have more than {dnnlib.util.MAX_LIST:,} "
            "keyframes together"
        )
    order = np.resize(np.arange(count), cells * num_keyframes)
    if shuffle_seed is not None:
        np.random.RandomState(shuffle_seed).shuffle(order)
    return order.reshape(cells, num_keyframes)


def check_memory(network: render.Network, order: np.ndarray, num_frames: int, output: Path | None) -> None:
    """Raise ValueError for a video that needs more memory than is free.

    Args:
        network: the network.
        order: result of `arrange`.
        num_frames: frames of the whole video. WebP and PNG writers keep all of them in memory.
        output: the file to write; None = one file per frame.
    """
    cells, keyframes = order.shape
    held = order.size * network.G.num_ws * network.G.w_dim * SPLINE_BYTES
    if output is not None and PICTURES.get(output.suffix.lower(), "GIF") != "GIF":
        held += 3 * num_frames * cells * network.G.img_resolution**2
    free = memory.host_free_bytes()
    flag = "--frames" if output is None else f"--output={output}"
    if held > free:
        raise ValueError(
            f"{flag}: {num_frames:,} frames of {cells:,} cells with {keyframes:,} keyframes take "
            f"{held / 2**30:.1f} GiB of memory, but only {free / 2**30:.1f} GiB are free: reduce them, or "
            "write .mp4 or .gif"
        )


def splines(ws: np.ndarray) -> Callable[[float], np.ndarray]:
    """Interpolate keyframes with periodic cubic splines (C2).

    Args:
        ws: [cells, keyframes, ...], such as [cells, keyframes, num_ws, W].

    Returns:
        A function of time with values [cells, ...] and the number of keyframes as its period.
    """
    import scipy.interpolate

    keyframes = ws.shape[1]
    if keyframes == 1:
        return lambda time: ws[:, 0]
    closed = np.concatenate([ws, ws[:, :1]], axis=1)
    spline = scipy.interpolate.CubicSpline(np.arange(keyframes + 1), closed, axis=1, bc_type="periodic")
    return lambda time: np.asarray(spline(time), dtype=np.float32)


def frames(
    network: render.Network,
    ws: np.ndarray,
    frames_per_keyframe: int,
    columns: int,
    batch: int,
    done: Callable[[int], None],
    shown: Sequence[int] | None = None,
    motion: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames of the loop, uint8 [H, W, 3].

    Args:
        network: the network.
        ws: keyframes [cells, keyframes, num_ws, W].
        frames_per_keyframe: frames from one keyframe to the next.
        columns: columns of the grid of cells.
        batch: images computed at a time on a GPU.
        done: called with 1 after each frame.
        shown: indices of the frames to yield; None = all.
        motion: of the keyframes, if they differ: [cells, keyframes, 3 + edits] (`walk.Keyframes`).
    """
    at = splines(ws)
    moved = None if motion is None else splines(motion)
    size = 1 if network.device.type == "cpu" or moved is not None else batch
    for frame in range(ws.shape[1] * frames_per_keyframe) if shown is None else shown:
        now = torch.from_numpy(at(frame / frames_per_keyframe)).to(network.device)
        parts = []
        for index, part in enumerate(torch.split(now, size)):
            if moved is not None:
                walk.move(network, moved(frame / frames_per_keyframe)[index])
            parts.append(render.synthesize(network, part))
        yield images.grid(images.to_rgb(torch.cat(parts)), columns)
        done(1)


def default_ending() -> str:
    """The extension of videos that the user does not name: .webp if .mp4 cannot be written."""
    try:
        import av
    except ImportError:
        return ".webp"
    return ".mp4" if any(name in av.codecs_available for name in H264) else ".webp"


def check_output(output: Path) -> None:
    """Raise ValueError for a format that cannot be written."""
    ending = output.suffix.lower()
    if ending not in CODECS and ending not in PICTURES:
        raise ValueError(f"--output={output}: supported extensions are {', '.join([*CODECS, *PICTURES])}")
    if ending in CODECS:
        try:
            import av  # noqa: F401
        except ImportError:
            raise ValueError(
                f"--output={output}: {ending} requires the package av (pip install av); or write .webp or "
                ".gif"
            ) from None


@dataclass(frozen=True)
class Timing:
    """Which frames of a video a file contains, and how long it shows each.

    Attributes:
        frames: indices of the frames.
        milliseconds: duration of each. Their sum is the length of the video.
        every: one of this many frames is shown.
    """

    frames: list[int]
    milliseconds: list[int]
    every: int = 1


def timing(total: int, fps: int, ending: str) -> Timing:
    """Choose the frames and delays of a file so that the video has the right length.

    Picture formats count in hundredths (GIF) or thousandths (WebP, PNG) of a second, so delays alternate (3,
    3, 4) to keep the average rate. Browsers slow down files that are faster than DELAYS allow. For such a
    video the file contains every second or third frame, each shown two or three times as long.

    Args:
        total: frames of the video.
        fps: frames per second.
        ending: extension of the file.
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
    """Write the frames to one file, atomically.

    Args:
        output: the file.
        pictures: the frames.
        fps: frames per second, for video formats.
        delays: milliseconds of each frame, for picture formats.
        about: metadata of a PNG.

    Raises:
        ValueError: no encoder is available.
        OSError: the file cannot be written.
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
    if kind != "GIF":  # Pillow's other writers iterate twice over the frames
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
            f"the installed av package has none of the encoders {', '.join(codecs)}: write .webp or .gif"
        )
    with av.open(file, "w", format=container_format) as container:
        stream: Any = container.add_stream(known[0], rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(pictures):
            even = np.pad(
                picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge"
            )  # chroma has half the resolution
            if index == 0:
                stream.height, stream.width = even.shape[:2]
                stream.bit_rate = 12_000_000
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"))
            )
            outputs.raise_if_stopped()  # av swallows interrupts while it writes
        container.mux(stream.encode())


def check_frames(folder: Path, total: int) -> None:
    """Raise ValueError for a folder with frames of a longer video, which this one would not replace."""
    names = {frame_name(index) for index in range(total)} if folder.is_dir() else set()
    others = sorted(path.name for path in folder.glob("frame*.png") if path.name not in names)
    if others:
        raise ValueError(f"--frames={folder}: contains {others[0]} of another video: choose another folder")


def frame_name(index: int) -> str:
    """The file name of a frame."""
    return f"frame{index:06d}.png"


def write_frames(folder: Path, pictures: Iterator[np.ndarray], about: Mapping[str, Any]) -> None:
    """Write frames [H, W, 3] as numbered PNG files. Existing ones of the same number are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        images.save_png(picture, folder / frame_name(index), about)


def length_text(plan: Timing, total: int, fps: int, ending: str) -> str:
    """'240 frames, 8.0 seconds', and which frames of the video these are."""
    seconds = sum(plan.milliseconds) / 1000 if ending in PICTURES else total / fps
    count = f"{seconds:.3f}".rstrip("0")
    length = f"{len(plan.frames)} frames, {count}{'0' if count.endswith('.') else ''} seconds"
    if plan.every == 1:
        return length
    skipped = f"one of every {plan.every} of the video's {total} frames"
    return f"{length} ({skipped}: browsers slow down {PICTURES[ending]} files with {fps} frames per second)"
