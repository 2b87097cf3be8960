# SPDX-License-Identifier: Apache-2.0
"""Inversion in the viewer: a dropped image becomes a style code in a file, which a state then starts from."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generation import class_choice, inversion, targets, w_files
from generation.network import Network
from generation.viewer.session import Requests, Viewer
from image_data import archives
from metrics import detectors
from metrics.detector import Detector
from metrics.names import LITE0

MAX_STEPS = 2000
MAX_CLASSES = 100  # of a network whose class means are compared while a page waits
PAUSE = 0.001  # seconds between two steps, in which waiting requests get their turn


class Inverter:
    """Inverts images for the pages of one server, with the features that need no download.

    Args:
        viewer: Has the networks.
        folder: For files of style codes.
    """

    def __init__(self, viewer: Viewer, folder: str | os.PathLike[str]) -> None:
        self.viewer, self.folder = viewer, Path(folder)
        self.requests = Requests()
        self._lock = threading.Lock()
        self._detector: Detector | None = None
        self._means: class_choice.ClassMeans | None = None  # of the last network
        self._number = 0

    @property
    def detector(self) -> Detector:
        """The features, loaded at the first use."""
        with self._lock:
            if self._detector is None:
                self._detector = detectors.load(LITE0, self.viewer.device)
            return self._detector

    def invert(
        self,
        source: str,
        path: str | None,
        steps: int,
        label: int | None = None,
        client: str = "",
        done: Callable[[int, int], None] = lambda step, steps: None,
    ) -> tuple[str, str]:
        """Find the style code of an image. Other requests of the viewer are served between two steps.

        Args:
            source: The network.
            path: The image; None = there is none.
            steps: Number of steps.
            label: Class; None = that with the nearest mean image.
            client: Whose request it is.
            done: Called after each step with (steps made, steps).

        Returns:
            The path of the .npz file, and a line about the result.

        Raises:
            Superseded: The client has a newer request for an inversion.
            OSError: A file cannot be read.
            ValueError: There is no image, or a value is not possible. One line.
        """
        if path is None:
            raise ValueError("drop an image first")
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"{steps} steps: give 1 to {MAX_STEPS}")
        number = self.requests.start(client)
        network = self.viewer.open(source)
        target = read(path, network)
        chances = self._chances(network, target, label)
        distance = inversion.FeatureDistance(self.detector, target.pixels)
        start = inversion.mean_style(network, chances, class_choice.CODES)
        search = inversion.Projection(network, distance, start, steps)
        for step in range(steps):
            self.requests.check(client, number)
            with self.viewer.requests.working:
                search.advance()
            done(step + 1, steps)
            time.sleep(PAUSE)
        return self._saved(network, search.ws), self._about(network, search, target, chances)

    def _chances(self, network: Network, target: targets.Target, label: int | None) -> np.ndarray | None:
        """The class of the start as probabilities; None without classes."""
        if not network.num_classes:
            return None
        if label is not None and label >= network.num_classes:
            raise ValueError(f"class {label}: the network's classes are 0 to {network.num_classes - 1}")
        if label is None and network.num_classes > MAX_CLASSES:
            raise ValueError(f"the network has {network.num_classes} classes: choose that of the image first")
        if label is None:
            with self.viewer.requests.working:
                means = self._means
                if means is None or means.network is not network:
                    self._means = means = class_choice.ClassMeans(network, self.detector)
                label = means.nearest(target.pixels)
        chances: np.ndarray = np.eye(network.num_classes)[label]
        return chances

    def _saved(self, network: Network, ws: Tensor) -> str:
        with self._lock:
            self._number += 1
            path = self.folder / f"projected_w-{self._number}.npz"
        w_files.save_w(path, ws, network)
        return str(path)

    def _about(
        self,
        network: Network,
        search: inversion.Projection,
        target: targets.Target,
        chances: np.ndarray | None,
    ) -> str:
        with self.viewer.requests.working, torch.no_grad():
            found = inversion.psnr(network.render(search.ws)[0], target.pixels)
        label = "" if chances is None else f", class {network.label_text(int(chances.argmax()))}"
        return "; ".join([f"{search.steps} steps{label}, PSNR {found:.1f} dB", *target.notes])


def read(path: str, network: Network) -> targets.Target:
    """Read an image as a target for a network. Raises ValueError: it is not an image."""
    folder, name = os.path.split(path)
    data = archives.FolderReader(folder).read(archives.Entry(name))
    return targets.from_bytes(name, data, int(network.G.img_resolution), int(network.G.img_channels))
