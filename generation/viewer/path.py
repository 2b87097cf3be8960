# SPDX-License-Identifier: Apache-2.0
"""A path of keyframes: a loop through several states, written as video, animation, PNG frames or styles."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from dnnlib import util
from generation import edits, video
from generation.network import Network
from generation.viewer.session import Viewer
from generation.viewer.state import State, stacked
from generation.w_files import save_w
from image_data.archives import StoredZipWriter
from torch_utils import images

FORMATS = {"mp4": ".mp4", "GIF": ".gif", "PNG frames": ".zip", "npz": ".npz"}
FPS = {".gif": 25}
MAX_KEYFRAMES = 100


def frames(
    viewer: Viewer, source: str, states: Sequence[State], per_keyframe: int, done: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Yield the frames of the loop, uint8 [H, W, 3].

    Styles, shifts and rotations follow one periodic cubic spline, as in gen_video.py.
    """
    network = viewer.open(source)
    codes = keyframe_codes(viewer, source, states)
    motion = np.zeros((len(states), 1, codes.shape[2]), np.float32)
    motion[:, 0, :3] = [(state.translate_x, state.translate_y, state.rotate) for state in states]
    at = video.splines(np.concatenate([codes, motion], axis=1)[None])
    found, strengths = style_edits(network, states)
    for frame in range(len(states) * per_keyframe):
        now = at(frame / per_keyframe)
        x, y, angle = (float(value) for value in now[0, -1, :3])
        found.strengths = strengths(frame / per_keyframe)[0].tolist()
        with viewer.requests.working, found.attached(in_w=False):
            image = network.render(torch.from_numpy(now[:, :-1]), translate=(x, y), rotate=angle)[0]
        yield images.rgb_frame(image)
        done(1)


def style_edits(
    network: Network, states: Sequence[State]
) -> tuple[edits.Edits, Callable[[float], np.ndarray]]:
    """The edits of all keyframes, and their strengths [1, E] as a function of time."""
    names = list(dict.fromkeys(name for state in states for name, strength in state.edits if strength))
    found = edits.load([edits.parse(f"{name}:0") for name in names], network)
    values = [[dict(state.edits).get(name, 0.0) for name in names] for state in states]
    return found, video.splines(np.asarray(values, np.float32).reshape(1, len(states), len(names)))


def keyframe_codes(viewer: Viewer, source: str, states: Sequence[State]) -> np.ndarray:
    """The style codes of keyframes, float32 [K, num_ws, W]. ValueError: none or too many."""
    if not 1 <= len(states) <= MAX_KEYFRAMES:
        raise ValueError(f"{len(states)} keyframes: add 1 to {MAX_KEYFRAMES} of them first")
    network = viewer.open(source)
    codes: np.ndarray = stacked([state.styles(network, viewer.centres_for(network)) for state in states])
    return codes


def export(
    viewer: Viewer,
    source: str,
    states: Sequence[State],
    output: Path,
    per_keyframe: int = 60,
    fps: int = 30,
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a path to a file, atomically. The ending selects the format (FORMATS).

    An .npz contains `w`, float32 [K, num_ws, W], and the settings of the keyframes as JSON.

    Raises:
        ValueError: There are no keyframes, or no encoder is available.
        OSError: The file cannot be written.
    """
    ending = output.suffix.lower()
    if ending == ".npz":
        settings = json.dumps([asdict(state) for state in states])
        codes = keyframe_codes(viewer, source, states)
        save_w(output, codes, viewer.open(source), settings=settings)
        return
    if ending == ".zip":
        with util.atomic_write(output) as file:
            writer = StoredZipWriter(file)
            for index, frame in enumerate(frames(viewer, source, states, per_keyframe, done)):
                stream = io.BytesIO()
                PIL.Image.fromarray(frame).save(stream, format="PNG")
                writer.write(f"frame{index:06d}.png", stream.getvalue())
            writer.close()
        return
    video.check_output(output)
    rate = FPS.get(ending, fps)
    total = len(states) * per_keyframe
    delays = video.timing(total, rate, ending).milliseconds
    video.write(output, frames(viewer, source, states, per_keyframe, done), rate, delays, {})
