# SPDX-License-Identifier: Apache-2.0
"""Edits: directions from files, applied with a strength to the styles of a network (--edit).

An edit in W adds strength * direction to some rows of ws. An edit in style space adds it to the output of the
affine layers, that is to the styles of the synthesis layers. `attach` makes a network do both in every later
image, so the commands need no other change. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from generation.direction_files import Directions
    from generation.render import Network

HELP = (
    "Move the images along a direction of directions.py or run_stylemc.py, with a strength such as 2 or "
    "-1.5. #INDEX selects one of several directions of the file.  [default: #0]  May be repeated."
)
METAVAR = "FILE[#INDEX]:STRENGTH"
MAX_NUMBER = 1e38  # float32, which networks compute in, ends at 3e38


@dataclass(frozen=True)
class Spec:
    """A value of --edit.

    Attributes:
        text: The value.
        path: The direction file.
        index: Which of its directions.
        strengths: One, or several of a walk.
    """

    text: str
    path: str
    index: int
    strengths: tuple[float, ...]


def parse(text: str, several: bool = False) -> Spec:
    """Parse a value of --edit: 'sefa.safetensors#2:-1.5'.

    Args:
        text: The value.
        several: Allow a list of strengths: 'sefa.safetensors:-3,3'.

    Raises:
        ValueError: One line.
    """
    path, colon, end = text.rpartition(":")
    if not colon or not path:
        raise ValueError(f"--edit={text}: write {METAVAR}, for example sefa.safetensors#2:-1.5")
    strengths = numbers(f"--edit={text}: the strength", end)
    if len(strengths) > 1 and not several:
        raise ValueError(f"--edit={text}: give one strength, not {len(strengths)}")
    match = re.fullmatch(r"(.+)#(\d{1,9})", path, re.DOTALL)
    index = int(match[2]) if match else 0
    return Spec(text, os.path.expanduser(match[1] if match else path), index, strengths)


def parse_slider(text: str) -> tuple[str, int | None, float]:
    """Parse a value of the viewer's --edit: 'FILE', 'FILE#2' or 'FILE#2:1.5'.

    Returns:
        The file, the index (None = all directions), and the strength to start with.

    Raises:
        ValueError: One line.
    """
    _, colon, end = text.rpartition(":")
    start = text if colon and not os.path.exists(text) and not end.startswith(("/", "\\")) else f"{text}:0"
    spec = parse(start)
    given = re.search(r"#\d{1,9}$", start.rpartition(":")[0])
    return spec.path, spec.index if given else None, spec.strengths[0]


def numbers(what: str, text: str) -> tuple[float, ...]:
    """Parse finite numbers separated by commas.

    Args:
        what: What they are, for messages.
        text: The numbers.

    Raises:
        ValueError: One line.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            raise ValueError(f"{what} {part.strip()[:40]!r} is not a number") from None
        if not abs(found[-1]) <= MAX_NUMBER:  # also NaN
            raise ValueError(f"{what} {part.strip()} is not a finite number")
    return tuple(found)


@dataclass(frozen=True)
class Edit:
    """One direction of a file, on the device of the network."""

    spec: Spec
    directions: Directions

    @property
    def in_w(self) -> bool:
        """Whether the direction is in W, not in style space."""
        return self.directions.w is not None

    def moved(self, ws: Tensor, strength: float) -> Tensor:
        """Return ws [N, num_ws, W] moved along a direction in W."""
        assert self.directions.w is not None
        step = strength * self.directions.w[self.spec.index].to(ws)
        if self.directions.layers is None:
            return ws + step
        ws = ws.clone()
        ws[:, list(self.directions.layers)] += step
        return ws


class Edits:
    """The edits of one network and their strengths, which may change from image to image.

    Attributes:
        edits: The edits.
        strengths: One per edit.
    """

    def __init__(self, network: Network, edits: Sequence[Edit]) -> None:
        self.network, self.edits = network, list(edits)
        self.strengths = [edit.spec.strengths[0] for edit in edits]

    def on_w(self, ws: Tensor) -> Tensor:
        """Return ws [N, num_ws, W] with the edits in W."""
        for edit, strength in zip(self.edits, self.strengths, strict=True):
            if edit.in_w and strength:
                ws = edit.moved(ws, strength)
        return ws

    @contextlib.contextmanager
    def attached(self, in_w: bool = True) -> Iterator[None]:
        """Within, every image of the network is edited.

        Args:
            in_w: Also apply the edits in W, for callers that do not call `on_w`.
        """
        handles = self.attach(in_w)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def attach(self, in_w: bool = True) -> list[Any]:
        """Edit every later image of the network. Returns the handles of the hooks."""
        from generation import direction_files

        synthesis = self.network.G.synthesis
        handles: list[Any] = []
        if in_w and any(edit.in_w for edit in self.edits):

            def move(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
                return (self.on_w(inputs[0]), *inputs[1:])

            handles.append(synthesis.register_forward_pre_hook(move))
        in_styles = [(number, edit) for number, edit in enumerate(self.edits) if not edit.in_w]
        sizes = direction_files.layer_sizes(self.network.G) if in_styles else {}
        for number, edit in in_styles:
            for name, values in edit.directions.styles.items():
                if sizes.get(name) == values.shape[1]:
                    affine = getattr(synthesis, name).affine
                    handles.append(affine.register_forward_hook(self._style_hook(number, name)))
        return handles

    def _style_hook(self, number: int, name: str) -> Any:
        edit = self.edits[number]
        step = edit.directions.styles[name][edit.spec.index].to(self.network.device)

        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return output + (self.strengths[number] * step).to(output.dtype)

        return hook


def load(specs: Sequence[Spec], network: Network) -> Edits:
    """Read the directions of edits and check that they fit a network.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is no direction file or of another network, or has no such direction. One line.
    """
    from generation import direction_files

    found = []
    for spec in specs:
        flag = f"--edit={spec.text}"
        try:
            directions = direction_files.read(spec.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{flag}: no such file: {spec.path}") from None
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
        direction_files.check_fits(directions, network, flag)
        if spec.index >= len(directions):
            last = len(directions) - 1
            have = "only direction 0" if last == 0 else f"directions 0 to {last}"
            raise ValueError(f"{flag}: no direction {spec.index}: {spec.path} has {have}")
        found.append(Edit(spec, directions))
    return Edits(network, found)
