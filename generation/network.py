# SPDX-License-Identifier: Apache-2.0
"""Load and use a trained network in a few lines of Python.

    from generation import Network

    network = Network.from_pretrained("imagenet256.pkl")
    images = network.generate(seeds=[0, 1, 2], classes="otter", truncation=0.7)  # uint8 [3, 256, 256, 3]

The image of a seed is that of `gen_images.py --seeds=SEED`, to the last bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from generation import commands, edits, render
from torch_utils.devices import pick_device
from torch_utils.images import to_rgb
from training.networks import files, hub

Class = int | str
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_ENDINGS = (".pkl", ".pickle", ".safetensors")


@dataclasses.dataclass(repr=False)
class Network(render.Network):
    """A generator with its class names; every function of `generation` accepts it.

    The names and arguments of `from_pretrained`, `save_pretrained` and `push_to_hub` are those of
    huggingface_hub's `ModelHubMixin`. The class does not inherit from it: the package is optional here, and
    the mixin's config.json has another content.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        data: str | None = None,
        key: str = "G_ema",
    ) -> Network:
        """Load a network. No code from its file is run.

        Args:
            pretrained_model_name_or_path: A .pkl file of this project or of a StyleGAN3, StyleGAN-XL or
                StyleSAN-XL repository, a .safetensors file with its .json, an http(s) address of either, a
                run folder (its best network), a folder that `save_pretrained` wrote, or a Hugging Face
                repository (OWNER/NAME or hf://OWNER/NAME).
            revision: Branch, tag or commit of the repository.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: See `render.load_network`.
            data: Data set that provides class names, if the file has none.
            key: G_ema or G.

        Raises:
            FileNotFoundError: There is no such file, folder or repository.
            OSError: It cannot be read or downloaded.
            ValueError: It is not a network. One line.
        """
        source = _source(os.fspath(pretrained_model_name_or_path), revision)
        named = isinstance(device, str) and ":" not in device
        place = pick_device(str(device)) if named else torch.device(device)
        found = render.load_network(source, place, data, key, precision=precision)
        return cls(**vars(found))

    @property
    def resolution(self) -> int:
        """Height and width of the images in pixels."""
        return int(self.G.img_resolution)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional network."""
        return int(self.G.c_dim)

    def __repr__(self) -> str:
        classes = f"{self.num_classes} classes" if self.num_classes else "unconditional"
        return f"Network({self.path!r}: {self.resolution}x{self.resolution} pixels, {classes})"

    @torch.no_grad()
    def styles(
        self,
        seeds: int | Sequence[int],
        classes: Class | Sequence[Class] | None = None,
        truncation: float = 1.0,
        centroids: str | np.ndarray | Tensor | None = None,
    ) -> Tensor:
        """Return the style codes of seeds, float32 [N, num_ws, W], on the device of the network.

        Args:
            seeds: One seed or several.
            classes: One class for all or one per seed, by index or name; None = the class that
                gen_images.py draws for each seed.
            truncation: psi; 1 = none.
            centroids: Truncate towards the nearest of these centres: an array [K, W], or a .npy file.

        Raises:
            ValueError: A value is not possible for this network.
        """
        numbers, indices = self._numbers(seeds), self._indices(classes)
        if len(indices) not in (1, len(numbers)):
            raise ValueError(
                f"classes: {len(indices)} given for {len(numbers)} seeds: give one, or one for each seed"
            )
        if not math.isfinite(truncation):
            raise ValueError(f"truncation={truncation} is not a finite number")
        centres = self.load_centroids(centroids)
        codes = []
        indices = indices * len(numbers) if len(indices) == 1 else indices
        for number, index in zip(numbers, indices, strict=True):
            labels = render.seed_labels(self, number, 1, index)
            z = render.latents(number, 1, self.G.z_dim).to(self.device)
            labels = None if labels is None else labels.to(self.device)
            codes.append(render.styles(self.G, z, labels, truncation, centres))
        return torch.cat(codes)

    def render(
        self,
        ws: Tensor | np.ndarray,
        *,
        translate: tuple[float, float] = (0, 0),
        rotate: float = 0,
        batch: int = 16,
    ) -> np.ndarray:
        """Compute the images uint8 [N, H, W, 3] of style codes [N, num_ws, W].

        Args:
            ws: Style codes, as `styles` returns them.
            translate: Shift right and down, in image widths.
            rotate: Degrees anticlockwise.
            batch: Images computed at a time on a GPU.
        """
        codes = torch.as_tensor(ws, dtype=torch.float32).to(self.device)
        size = 1 if self.device.type == "cpu" else batch
        with self.transformed(translate, rotate):
            parts = [render.synthesize(self, part) for part in torch.split(codes, size)]
        return pixels(torch.cat(parts))

    def generate(
        self,
        seeds: int | Sequence[int],
        classes: Class | Sequence[Class] | None = None,
        truncation: float = 1.0,
        *,
        centroids: str | np.ndarray | Tensor | None = None,
        **render_options: Any,
    ) -> np.ndarray:
        """Compute the images uint8 [N, H, W, 3] of seeds: `render(styles(...))`."""
        return self.render(self.styles(seeds, classes, truncation, centroids), **render_options)

    @contextlib.contextmanager
    def transformed(self, translate: tuple[float, float], rotate: float) -> Iterator[None]:
        """Within, images are rotated and then shifted (`render.set_transform`)."""
        if (*translate, rotate) == (0, 0, 0):
            yield
            return
        if not hasattr(self.G.synthesis, "input"):
            raise ValueError(f"{self.path}: a network without an input layer cannot translate or rotate")
        transform = self.G.synthesis.input.transform
        before = transform.clone()
        render.set_transform(self.G, translate, rotate)
        try:
            yield
        finally:
            transform.copy_(before)

    @contextlib.contextmanager
    def edited(self, *texts: str) -> Iterator[None]:
        """Within, images are edited: `with network.edited("sefa.safetensors#2:-1.5"):`.

        Args:
            texts: Values of --edit.

        Raises:
            FileNotFoundError: A direction file does not exist.
            ValueError: It is not one, or of another network. One line.
        """
        with edits.load([edits.parse(text) for text in texts], self).attached():
            yield

    def load_centroids(self, centroids: str | np.ndarray | Tensor | None) -> Tensor | None:
        """Return cluster centres float32 [K, W] from an array or a .npy file. Raises ValueError."""
        if centroids is None:
            return None
        if isinstance(centroids, str | os.PathLike):
            return render.load_centroids(os.fspath(centroids), self.G.w_dim).to(self.device)
        centres = torch.as_tensor(centroids, dtype=torch.float32, device=self.device)
        if centres.ndim != 2 or centres.shape[1] != self.G.w_dim or not len(centres):
            raise ValueError(f"centroids: expected [K, {self.G.w_dim}], got {list(centres.shape)}")
        return centres

    def file(self) -> files.NetworkFile:
        """Return the content of a network file with this generator and its class names."""
        provenance = dict(self.provenance)
        if self.class_names is not None:
            provenance["class_names"] = self.class_names
        return files.NetworkFile({"G_ema": self.G}, {}, self.training_set_kwargs or None, provenance or None)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write model.safetensors and config.json into a folder, for `from_pretrained`.

        Raises:
            ValueError: The config.json in the folder is of another program.
        """
        folder = Path(save_directory)
        files.check_free(folder / hub.CONFIG, folder / hub.WEIGHTS)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_safetensors(folder / hub.WEIGHTS, self.file(), folder / hub.CONFIG)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, private: bool = False) -> str:
        """Upload the network and its card to a Hugging Face repository OWNER/NAME. Returns the address."""
        repository = repo_id if hub.is_repository(repo_id) else hub.SCHEME + repo_id
        return hub.push(self.file(), repository, license=license, private=private)

    @staticmethod
    def _numbers(seeds: int | Sequence[int]) -> list[int]:
        numbers = [int(seed) for seed in np.atleast_1d(np.asarray(seeds, dtype=object))]
        if not numbers or not all(0 <= number <= commands.MAX_SEED for number in numbers):
            raise ValueError(f"seeds: give integers from 0 to {commands.MAX_SEED}")
        return numbers

    def _indices(self, classes: Class | Sequence[Class] | None) -> list[int | None]:
        if classes is None:
            return [None]
        given = np.atleast_1d(np.asarray(classes, dtype=object))
        return [render.class_index(self, str(item)) for item in given]


def pixels(images: Tensor) -> np.ndarray:
    """Turn uint8 images [N, C, H, W] into uint8 [N, H, W, 3], or [N, H, W, 4] if they have alpha."""
    colour = images if images.shape[1] == 4 else to_rgb(images)
    array: np.ndarray = colour.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def _source(text: str, revision: str | None) -> str:
    """Return what `render.load_network` accepts for a name. Raises FileNotFoundError."""
    text = dnnlib.util.plain_path(os.path.expanduser(text))
    if os.path.isfile(Path(text, hub.WEIGHTS)):
        return str(Path(text, hub.WEIGHTS))
    local = os.path.exists(text) or dnnlib.util.is_url(text) or text.lower().endswith(_ENDINGS)
    if not local and _REPOSITORY.fullmatch(text):
        text = hub.SCHEME + text
    if hub.is_repository(text):
        return f"{text}@{revision}" if revision else text
    if not dnnlib.util.is_url(text) and not os.path.exists(text):
        raise FileNotFoundError(f"{text}: no such file or folder, and not OWNER/NAME of a repository")
    return text
