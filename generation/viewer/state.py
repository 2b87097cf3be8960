# SPDX-License-Identifier: Apache-2.0
"""The settings of the viewer, the style codes that they stand for, and the command that makes the picture."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from generation import edits as editing
from generation import w_files
from generation.network import Network
from training.networks import hub

GROUPS = ("coarse", "middle", "fine")  # thirds of the layers, as in StyleGAN's style mixing


@dataclass(frozen=True)
class State:
    """What the controls of the viewer say.

    Attributes:
        seed: Seed of the latents.
        label: Class; None = the class that gen_images.py draws for the seed.
        label_b: Class to mix in.
        mix: Share of `label_b` in the style code.
        truncation: psi; 1 = none.
        centroids: Truncate towards the nearest centroid in place of the class's mean.
        translate_x: Shift right, in image widths.
        translate_y: Shift down, in image widths.
        rotate: Degrees anticlockwise.
        style_seed: Seed of the styles that `groups` take; None = no style mixing.
        groups: Some of GROUPS.
        edits: Directions, as FILE#INDEX, and their strengths.
        projected: File with a style code that takes the place of seed, class, truncation and centroids.
    """

    seed: int = 0
    label: int | None = None
    label_b: int | None = None
    mix: float = 0.0
    truncation: float = 1.0
    centroids: bool = False
    translate_x: float = 0.0
    translate_y: float = 0.0
    rotate: float = 0.0
    style_seed: int | None = None
    groups: tuple[str, ...] = ()
    edits: tuple[tuple[str, float], ...] = ()
    projected: str | None = None

    @property
    def is_mixed(self) -> bool:
        """Whether gen_images.py has no flags for this picture."""
        return self._mixes_classes or self._mixes_styles

    @property
    def _mixes_classes(self) -> bool:
        return self.label_b is not None and self.mix != 0

    @property
    def _mixes_styles(self) -> bool:
        return self.style_seed is not None and bool(self.groups)

    def styles(self, network: Network, centroids: Tensor | None) -> Tensor:
        """Return the style codes [1, num_ws, W]. Raises ValueError.

        Pictures, layers and keyframes all start from this result, so a change of styles belongs at its end.
        """
        centres = centroids if self.centroids else None

        def of(seed: int, file: str | None = None) -> Tensor:
            if file is None:
                ws = network.styles(seed, self.label, self.truncation, centres)
            else:
                ws = w_files.load_w(file, network)[:1]
            if self._mixes_classes:
                ws = ws.lerp(network.styles(seed, self.label_b, self.truncation, centres), self.mix)
            return ws

        ws = of(self.seed, self.projected)
        if self._mixes_styles:
            other, rows = of(int(self.style_seed or 0)), group_rows(network.G.num_ws)
            for group in self.groups:
                ws[:, rows[group]] = other[:, rows[group]]
        return self.load_edits(network).on_w(ws)

    @property
    def edit_texts(self) -> list[str]:
        """The edits that do something, as values of --edit."""
        return [f"{name}:{strength:g}" for name, strength in self.edits if strength]

    def load_edits(self, network: Network) -> editing.Edits:
        """Read the edits. `styles` applies those in W; the others act while attached. Raises ValueError."""
        return editing.load([editing.parse(text) for text in self.edit_texts], network)

    def for_network(self, network: Network) -> State:
        """The same settings, without classes, edits and an inverted image that do not fit the network."""

        def fits(label: int | None) -> bool:
            return label is not None and label < network.num_classes

        return replace(
            self,
            label=self.label if fits(self.label) else None,
            label_b=self.label_b if fits(self.label_b) else None,
            edits=tuple(edit for edit in self.edits if edit[1] and self._fits(edit, network)),
            projected=self.projected if self._has_code_for(network) else None,
        )

    def _has_code_for(self, network: Network) -> bool:
        if self.projected is None:
            return False
        try:
            return bool(len(w_files.load_w(self.projected, network)))
        except (ValueError, OSError):
            return False

    @staticmethod
    def _fits(edit: tuple[str, float], network: Network) -> bool:
        try:
            return bool(editing.load([editing.parse(f"{edit[0]}:{edit[1]:g}")], network).edits)
        except (ValueError, OSError):
            return False

    def misfits(self, network: Network) -> str:
        """What `for_network` drops, for a message: 'no class 7 in NAME', '2 edits do not fit NAME', or ''."""
        own = self.for_network(network)
        labels = [self.label] if own.label != self.label else []
        labels += [self.label_b] if self._mixes_classes and own.label_b != self.label_b else []
        name = source_name(network.path)
        parts = [f"no class {' and '.join(map(str, labels))} in {name}"] if labels else []
        count = len(self.edit_texts) - len(own.edit_texts)
        if count:
            parts.append(f"{count} {'edit does' if count == 1 else 'edits do'} not fit {name}")
        if own.projected != self.projected:
            parts.append(f"the inverted image does not fit {name}")
        return "; ".join(parts)

    def command(self, network: Network, centroids_path: str | None) -> str:
        """Return the command that makes this picture, or Python lines if gen_images.py has no such flags."""
        centres = centroids_path if self.centroids else None
        return self._python(network, centres) if self.is_mixed else self._shell(network, centres)

    def _shell(self, network: Network, centroids_path: str | None) -> str:
        words = ["python", "gen_images.py", f"--network={network.path}", *self._source_flags(centroids_path)]
        if self.translate_x or self.translate_y:
            words.append(f"--translate={self.translate_x:g},{self.translate_y:g}")
        if self.rotate:
            words.append(f"--rotate={self.rotate:g}")
        words += [f"--edit={text}" for text in self.edit_texts]
        return shlex.join([*words, "--outdir=out"])

    def _source_flags(self, centroids_path: str | None) -> list[str]:
        """The flags for the style code."""
        if self.projected is not None:
            return [f"--projected-w={self.projected}"]
        words = [f"--seeds={self.seed}"]
        if self.label is not None:
            words.append(f"--class={self.label}")
        if self.truncation != 1:
            words.append(f"--trunc={self.truncation:g}")
        return [*words, f"--centroids-path={centroids_path}"] if centroids_path else words

    def _python(self, network: Network, centroids_path: str | None) -> str:
        centres = f", centroids={centroids_path!r}" if centroids_path else ""

        def call(seed: int | None, label: int | None) -> str:
            return f"net.styles({seed}, {label}, {self.truncation:g}{centres})"

        imports = ["from generation import Network"]
        imports += [] if self.projected is None else ["from generation.w_files import load_w"]
        lines = [*imports, f"net = Network.from_pretrained({network.path!r})"]

        def add(name: str, seed: int | None, file: str | None = None) -> None:
            code = call(seed, self.label) if file is None else f"load_w({file!r}, net)[:1]"
            lines.append(f"{name} = {code}")
            if self._mixes_classes:
                lines.append(f"{name} = {name}.lerp({call(seed, self.label_b)}, {self.mix:g})")

        add("ws", self.seed, self.projected)
        if self._mixes_styles:
            add("other", self.style_seed)
            for group in self.groups:
                rows = group_rows(network.G.num_ws)[group]
                lines.append(f"ws[:, {rows.start}:{rows.stop}] = other[:, {rows.start}:{rows.stop}]")
        moved = f", translate=({self.translate_x:g}, {self.translate_y:g}), rotate={self.rotate:g}"
        still = not (self.translate_x or self.translate_y or self.rotate)
        last = f"images = net.render(ws{'' if still else moved})  # uint8 [1, H, W, 3]"
        if not self.edit_texts:
            return "\n".join([*lines, last])
        return "\n".join(
            [*lines, f"with net.edited({', '.join(map(repr, self.edit_texts))}):", f"    {last}"]
        )


def group_rows(num_ws: int) -> dict[str, slice]:
    """The rows of ws that coarse, middle and fine styles have: thirds."""
    bounds = [round(i * num_ws / len(GROUPS)) for i in range(len(GROUPS) + 1)]
    return {name: slice(bounds[i], bounds[i + 1]) for i, name in enumerate(GROUPS)}


def find_classes(network: Network, text: str, most: int = 20) -> list[tuple[str, int]]:
    """Return the classes whose label contains a text: (label, index), those that start with it first."""
    wanted = text.strip().casefold()
    labels = [(network.label_text(index), index) for index in range(network.num_classes)]
    found = [(label, index) for label, index in labels if wanted in label.casefold()]
    name_starts = [
        item for item in found if item[0].casefold().partition(" ")[2].startswith(wanted) or item[0] == wanted
    ]
    return list(dict.fromkeys([*name_starts, *found]))[:most]


def source_name(path: str) -> str:
    """A short name of a network file for lists."""
    return path if hub.is_repository(path) else "/".join(str(path).rstrip("/").split("/")[-2:])


def stacked(codes: Sequence[Tensor]) -> Any:
    """Style codes of several states, float32 numpy [N, num_ws, W]."""
    return torch.cat(list(codes)).float().cpu().numpy()
