# SPDX-License-Identifier: Apache-2.0
"""Pictures for the viewer: loaded networks, snapshots of a run, and requests of which the newest wins."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from generation import edits as editing
from generation.network import Network
from generation.viewer import layers
from generation.viewer.state import State, source_name
from torch_utils.devices import pick_precision, use_device
from training import run_folder
from training.networks import hub

MAX_LOADED = 3  # networks in memory
MAX_SLIDERS = 10  # of one direction file
MIN_SIDE = 512  # small pictures are magnified to at least this


class Superseded(Exception):
    """A newer request of the same page took the place of this one."""


@dataclass(frozen=True)
class Choice:
    """A network that the viewer can show."""

    name: str
    source: str


def choices_of(source: str) -> list[Choice]:
    """The networks behind a value of --network: itself, or the snapshots of a run or recipe folder.

    The snapshots are in the order of training, after the best network.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The folder has no network.
    """
    if hub.is_repository(source) or dnnlib.util.is_url(source):
        return [Choice(source_name(source), source)]
    path = dnnlib.util.plain_path(os.path.expanduser(source))
    if not os.path.isdir(path) or os.path.isfile(Path(path, hub.WEIGHTS)):
        if not os.path.exists(path):
            raise FileNotFoundError(f"--network={source}: no such file or folder")
        return [Choice(source_name(path), path)]
    found: list[Choice] = []
    for folder in [*run_folder.stage_folders(Path(path)), Path(path)]:
        best = run_folder.best_network(folder)
        files = ([] if best is None else [best]) + run_folder.snapshot_files(folder)
        found += [Choice(source_name(str(file)), str(file)) for file in files]
    if not found:
        raise ValueError(
            f"--network={source}: the folder has no network; give a run folder or a network file"
        )
    return found


@dataclass(frozen=True)
class Slider:
    """A direction with a slider: its name as FILE#INDEX, a label, and the strength to start with."""

    name: str
    label: str
    strength: float


def sliders_of(text: str, network: Network) -> list[Slider]:
    """The directions behind a value of --edit: one, or the first MAX_SLIDERS of a file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It has no such direction, or its directions are of another network. One line.
    """
    file, index, strength = editing.parse_slider(text)
    found = editing.load([editing.Spec(text, file, index or 0, (strength,))], network).edits[0].directions
    indices = range(min(len(found), MAX_SLIDERS)) if index is None else [index]
    return [Slider(f"{file}#{number}", found.label(number), strength) for number in indices]


def training_order(choices: Sequence[Choice]) -> list[Choice]:
    """The numbered snapshots among choices: what is played to see training through time."""
    return [
        choice
        for choice in choices
        if Path(choice.source) in run_folder.snapshot_files(Path(choice.source).parent)
    ]


class Requests:
    """Lets the newest request of a client win: older ones end between two layers of the network."""

    def __init__(self) -> None:
        self._lock, self._newest = threading.Lock(), OrderedDict[str, int]()
        self.working = threading.Lock()  # one network computes at a time

    def start(self, client: str) -> int:
        """Register a request. Returns its number."""
        with self._lock:
            number = self._newest.pop(client, 0) + 1
            self._newest[client] = number
            while len(self._newest) > 1000:
                self._newest.popitem(last=False)
            return number

    def check(self, client: str, number: int) -> None:
        """Raise Superseded if the client has a newer request."""
        if self._newest.get(client, number) != number:
            raise Superseded

    @contextlib.contextmanager
    def turn(self, client: str, network: Network, number: int) -> Iterator[None]:
        """Wait for the turn of a request. Within, a layer starts only for the newest request."""
        with self.working:
            self.check(client, number)

            def hook(module: Any, inputs: Any) -> None:
                self.check(client, number)

            handles = [
                getattr(network.G.synthesis, name).register_forward_pre_hook(hook)
                for name in network.G.synthesis.layer_names
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()


class Viewer:
    """Makes the pictures of a page from states. One object serves all pages of a server.

    Args:
        sources: Values of --network.
        device: See `use_device`.
        centroids_path: A .npy file of cluster centres.
        data: Data set that provides class names.
        edits: Direction files with a slider for each direction: FILE, FILE#INDEX or FILE#INDEX:STRENGTH.

    Raises:
        OSError: A file cannot be read.
        ValueError: The first network, the centroids or a direction cannot be used. One line.
    """

    def __init__(
        self,
        sources: Sequence[str],
        device: str = "auto",
        centroids_path: str | None = None,
        data: str | None = None,
        edits: Sequence[str] = (),
    ) -> None:
        self.device, self.centroids_path, self.data = use_device(device), centroids_path, data
        self.choices = [choice for source in sources for choice in choices_of(source)]
        self.requests = Requests()
        self._loaded: OrderedDict[tuple[str, Any], Network] = OrderedDict()
        self._loading = threading.Lock()
        first = self.open(self.choices[0].source)
        self.centroids = first.load_centroids(centroids_path)
        self.sliders = [slider for text in edits for slider in sliders_of(text, first)]
        fast = pick_precision("auto", self.device)
        self.fast_precision = fast if self.device.type == "cpu" else None  # a GPU needs no preview

    def open(self, source: str) -> Network:
        """Return a network, loaded again if its file has changed. No code from the file is run.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not one of the viewer's networks, or not a network.
        """
        if source not in {choice.source for choice in self.choices}:
            raise ValueError(f"{source}: the viewer was not started with this network")
        with self._loading:
            key = source, _version(source)
            if key not in self._loaded:
                self._loaded[key] = Network.from_pretrained(source, device=self.device, data=self.data)
                while len(self._loaded) > MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def centres_for(self, network: Network) -> Tensor | None:
        """The centroids, if they fit the network."""
        fits = self.centroids is not None and self.centroids.shape[1] == network.G.w_dim
        return self.centroids if fits else None

    @torch.no_grad()
    def picture(
        self, source: str, state: State, client: str = "", number: int | None = None, preview: bool = False
    ) -> np.ndarray:
        """Return the picture of a state, uint8 [H, W, 3].

        Args:
            source: The network.
            state: The settings.
            client: Whose request it is.
            number: Of the request (`Requests.start`); None = a new one.
            preview: Compute in the fast precision of this CPU.

        Raises:
            Superseded: The client has a newer request.
            OSError: The file cannot be read.
            ValueError: One line.
        """
        number = self.requests.start(client) if number is None else number
        network = self.open(source)
        with self.requests.turn(client, network, number), self._precision(network, preview):
            ws = state.styles(network, self.centres_for(network))
            moved = (state.translate_x, state.translate_y)
            with state.load_edits(network).attached(in_w=False):
                image: np.ndarray = network.render(ws, translate=moved, rotate=state.rotate)[0]
            return image

    @torch.no_grad()
    def layer(self, source: str, state: State, name: str, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return pictures of a layer's activations and of their spectrum, uint8 [H, W] each."""
        network = self.open(source)
        moved = network.transformed((state.translate_x, state.translate_y), state.rotate)
        with self.requests.working, moved, state.load_edits(network).attached(in_w=False):
            found = layers.capture(network, state.styles(network, self.centres_for(network)), name)
        return layers.activation_picture(found, first), layers.spectrum_picture(found)

    @contextlib.contextmanager
    def _precision(self, network: Network, preview: bool) -> Iterator[None]:
        synthesis = network.G.synthesis
        before = synthesis.reduced_dtype
        if preview and self.fast_precision is not None:
            synthesis.reduced_dtype = self.fast_precision
        try:
            yield
        finally:
            synthesis.reduced_dtype = before


def _version(source: str) -> Any:
    """What changes when a local file is replaced."""
    try:
        found = os.stat(source)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def check_port(host: str, port: int) -> int:
    """Return a port that is free: this one, or any for 0. Raises ValueError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"--host={host} --port={port}: {reason}: choose another --port") from None
        return int(probe.getsockname()[1])


def magnified(picture: np.ndarray) -> np.ndarray:
    """Magnify a small picture [H, W, ...] by repeating pixels, to at least MIN_SIDE."""
    factor = max(1, MIN_SIDE // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
