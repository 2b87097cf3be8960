# SPDX-License-Identifier: Apache-2.0
"""run_inversion.py once its command line is parsed: targets in, files out, resumed after an interruption.

The folder of a target has `target.png`, `proj.png`, `projected_w.npz`, with tuning `tuned.png` and
`tuned.pkl`, a video, and `inversion.json` with settings and numbers, which marks it as complete. Until then
it also has a checkpoint (torch_utils/checkpoint.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from dnnlib import outputs, records
from generation import class_choice, inversion, render, targets, tuning, video, w_files
from generation.commands import progress_bar
from generation.render import Network
from metrics import detectors
from metrics.detector import Detector
from metrics.names import LITE0, PERCEPTUAL, VGG16
from torch_utils import checkpoint, images, timm_weights
from training.networks import files

FINISHED = "inversion.json"
VIDEOS = ("proj.mp4", "proj.webp")
OUTPUTS = ("target.png", "proj.png", "projected_w.npz", "tuned.png", "tuned.pkl", *VIDEOS)
SAVE_SECONDS = 60  # between two checkpoints, and at least 20 times as long as writing one takes
MAX_FRAMES, MAX_FRAME_BYTES, FPS, SMALLEST_SIDE = 120, 2**28, 20, 256  # of the video, per phase
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Job:
    """The options of run_inversion.py.

    Attributes:
        targets: Images, folders or zips.
        outdir: Folder of the results; of several targets each has its own folder in it.
        seed: Of the codes of the tuning's locality term.
        save_video: Write a video of the steps.
        inv_steps: Steps of the projection.
        w_init: File of style codes to start from.
        run_pti: Tune the generator afterwards.
        pti_steps: Steps of the tuning.
        class_name: Class, by index or name.
        space: w or w+.
        feature: A key of `metrics.names.PERCEPTUAL`, or auto.
        weights: Weights files of detectors by name (`detectors.parse_weights`).
        classifier: timm's name of a classifier that finds the class.
        classifier_weights: Its weights file.
    """

    targets: tuple[str, ...]
    outdir: str
    seed: int = 42
    save_video: bool = True
    inv_steps: int = 1000
    w_init: str | None = None
    run_pti: bool = False
    pti_steps: int = 350
    class_name: str | None = None
    space: str = "w"
    feature: str = AUTO
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    classifier: str | None = None
    classifier_weights: str | None = None


def pick_detector(feature: str, weights: dict[str, str]) -> str:
    """Return the detector of --feature, with its weights in place.

    auto is the published VGG16 if its file is there, else lite0, whose weights come with a package.

    Raises:
        FileNotFoundError: The weights are missing. One line.
        ValueError: They do not fit.
    """
    if feature == AUTO:
        try:
            detectors.check(VGG16, weights=weights)
            return VGG16
        except FileNotFoundError:
            if VGG16 in weights:
                raise
            click.echo("Features: lite0, because there is no file of VGG16 (docs/inversion.md)", err=True)
            return LITE0
    name = PERCEPTUAL[feature]
    try:
        detectors.check(name, weights=weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--feature={feature}: {error}; --feature=lite0 needs no download") from None
    return name


class Inverter:
    """Inverts targets one after the other, with one network and one detector.

    Args:
        job: The options.
        network: The network.
        detector: Has the features.
    """

    def __init__(self, job: Job, network: Network, detector: Detector) -> None:
        self.job, self.network, self.detector = job, network, detector
        self.index = None if job.class_name is None else render.class_index(network, job.class_name)
        self.start = None if job.w_init is None else w_files.load_one(job.w_init, network, "--w-init")
        if job.run_pti:
            tuning.check(network)
        self.classifier = self._classifier()
        conditional = network.G.c_dim > 0
        self.means = class_choice.ClassMeans(network, detector) if conditional else None

    def _classifier(self) -> Any:
        """The classifier of the network's classes, if one is needed and known."""
        job, classes = self.job, self.network.G.c_dim
        if job.classifier is not None and not classes:
            raise ValueError(f"--classifier={job.classifier}: {self.network.path} has no classes: remove it")
        if self.index is not None or self.start is not None or not classes:
            return None
        if job.classifier is not None:
            try:
                return class_choice.load_classifier(self.network, job.classifier, job.classifier_weights)
            except (FileNotFoundError, ValueError) as error:
                flag, text = f"--classifier={job.classifier}: ", str(error)
                raise ValueError(text if text.startswith(flag) else flag + text) from None
        if classes != class_choice.IMAGENET_CLASSES:
            return None
        try:
            timm_weights.check(class_choice.PUBLISHED_CLASSIFIER)
            return class_choice.load_classifier(self.network, class_choice.PUBLISHED_CLASSIFIER)
        except (FileNotFoundError, ValueError) as error:
            note = f"note: no classifier of ImageNet ({error}): the nearest class mean is used"
            click.echo(" ".join(note.split()), err=True)
            return None

    def run(self, target: targets.Target, folder: Path) -> dict[str, Any]:
        """Invert a target from its start or checkpoint. Returns the content of `inversion.json`.

        Raises:
            ValueError: The folder has the state of an inversion with other settings.
        """
        return _Inversion(self, target, folder).run()

    def settings(self, target: targets.Target) -> dict[str, Any]:
        """The settings that the result depends on."""
        job, classifier = self.job, self.classifier
        tuned = {"pti_steps": job.pti_steps, "seed": job.seed} if job.run_pti else {}
        return {
            "network_sha256": self.network.sha256,
            "target_sha256": target.sha256,
            "inv_steps": job.inv_steps,
            "space": job.space,
            "feature": self.detector.description,
            "class": self.index,
            "w_init": None if job.w_init is None else dnnlib.util.sha256_file(job.w_init),
            "classifier": None if classifier is None else f"{classifier.name} {classifier.sha256}",
            "run_pti": job.run_pti,
            **tuned,
        }

    def first_codes(self, target: targets.Target) -> tuple[Tensor, dict[str, Any]]:
        """Return the style code to start from, [1, 1 or num_ws, W], and entries about its class."""
        if self.start is not None:
            return self.start, {}
        about: dict[str, Any] = {}
        chances = None
        if self.network.G.c_dim:
            if self.classifier is not None:
                chances = class_choice.probabilities(self.classifier, target.pixels)
                index, origin = int(chances.argmax()), f"{self.classifier.name}, {chances.max():.2f}"
            else:
                index, origin = self._class_of(target)
                chances = np.eye(self.network.G.c_dim)[index]
            about = {"class": index, "class_by": origin}
            click.echo(f"{target.name}: class {self.network.label_text(index)} ({origin})", err=True)
        return inversion.mean_style(self.network, chances), about

    def _class_of(self, target: targets.Target) -> tuple[int, str]:
        if self.index is not None:
            return self.index, "--class"
        assert self.means is not None
        if not self.means.is_ready:
            with progress_bar(self.network.G.c_dim, "Class means") as done:
                self.means.compute(done)
        return self.means.nearest(target.pixels), "nearest class mean"


class _Frames:
    """Images of evenly spaced steps of a phase, uint8 [C, R, R]."""

    def __init__(self, steps: int, resolution: int, shown: bool) -> None:
        most = min(MAX_FRAMES, MAX_FRAME_BYTES // (3 * resolution**2)) if shown else 0
        self.steps = set(np.linspace(0, steps - 1, min(most, steps)).round().astype(int).tolist())
        self.pictures: list[Tensor] = []

    def add(self, step: int, picture: Tensor) -> None:
        if step in self.steps:
            self.pictures.append(images.to_uint8(picture[0]).cpu())


class _Inversion:
    """One target."""

    def __init__(self, inverter: Inverter, target: targets.Target, folder: Path) -> None:
        self.inverter, self.target, self.folder = inverter, target, folder
        self.job, self.network = inverter.job, inverter.network
        self.settings = inverter.settings(target)
        resolution = self.network.G.img_resolution
        self.frames = [
            _Frames(steps, resolution, self.job.save_video)
            for steps in (self.job.inv_steps, self.job.pti_steps)
        ]
        self.about: dict[str, Any] = {}
        self.seconds = {"projection": 0.0, "tuning": 0.0}
        self.saved = time.monotonic()
        self.save_cost = 0.0
        self.parts: dict[str, Any] = {}  # the start, and the states of phases in the checkpoint
        self.phases: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        finished = records.read_json(self.folder / FINISHED)
        if finished.get("settings") == self.settings and all(
            (self.folder / name).is_file() for name in finished.get("files", [])
        ):
            note = f"{self.folder}: complete, made by the same command before"
            if self.job.save_video and not set(VIDEOS) & set(finished["files"]):
                note += f", without a video: remove {FINISHED} to start again"
            click.echo(note, err=True)
            return finished
        self.folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        try:
            return self._phases()
        except KeyboardInterrupt:
            if self.parts and all(phase.is_whole for phase in self.phases.values()):
                self._save()
            click.echo(f"Interrupted: the same command resumes from {self.folder}", err=True)
            raise

    def _phases(self) -> dict[str, Any]:
        distance = inversion.FeatureDistance(self.inverter.detector, self.target.pixels)
        if "start" not in self.parts:
            start, self.about = self.inverter.first_codes(self.target)
            self.parts["start"] = start
        start = self.parts["start"].to(self.network.device)
        found = inversion.Projection(self.network, distance, start, self.job.inv_steps, self.job.space)
        self._advance(found, "projection", self.frames[0])
        ws = found.ws
        results = {"projected": self._measure(self.network, ws, distance)}
        tuned = None
        if self.job.run_pti:
            tuned = tuning.Tuning(self.network, distance, ws, self.job.pti_steps, self.job.seed)
            self._advance(tuned, "tuning", self.frames[1])
            results["tuned"] = self._measure(tuned.tuned, ws, distance)
        return self._write(ws, tuned, results)

    def _advance(self, phase: Any, name: str, frames: _Frames) -> None:
        """Make the remaining steps of a phase."""
        if name in self.parts:
            phase.restore(self.parts[name])
        self.phases[name] = phase
        left = phase.steps - phase.step
        with progress_bar(left, f"{self.target.name}: {name}") as done:
            for _ in range(left):
                begun, step = time.monotonic(), phase.step
                picture = phase.advance()
                frames.add(step, picture)
                self.seconds[name] += time.monotonic() - begun
                done(1)
                if time.monotonic() - self.saved > max(SAVE_SECONDS, 20 * self.save_cost):
                    self._save()

    def _measure(self, network: Network, ws: Tensor, distance: inversion.FeatureDistance) -> dict[str, Any]:
        """The image of a network and its distance from the target."""
        with torch.no_grad(), inversion.full_precision(network):
            value = float(distance(network.G.synthesis(ws, noise_mode="const")))
            pixels = render.synthesize(network, ws)[0].permute(1, 2, 0).numpy()
        found = inversion.psnr(pixels, self.target.pixels)
        return {"pixels": pixels, "psnr": found if math.isfinite(found) else None, "distance": value}

    def _save(self) -> None:
        begun = time.monotonic()
        self.parts.update((name, phase.state()) for name, phase in self.phases.items())
        step = sum(part["step"] for name, part in self.parts.items() if name != "start")
        frames = [torch.stack(kept.pictures) if kept.pictures else None for kept in self.frames]
        state = {
            "settings": json.dumps(self.settings),
            "about": self.about,
            "seconds": self.seconds,
            "frames": frames,
            "parts": self.parts,
        }
        checkpoint.save(self.folder, step, state, keep=1)
        self.saved = time.monotonic()
        self.save_cost = self.saved - begun

    def _restore(self) -> None:
        path = checkpoint.latest(self.folder)
        if path is None:
            return
        state = checkpoint.load(path)
        if not isinstance(state.get("settings"), str):
            raise ValueError(f"{path} is a checkpoint of another program: choose another --outdir")
        before = json.loads(state["settings"])
        other = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        if other:
            named = " and ".join(key.removesuffix("_sha256") for key in other)
            raise ValueError(
                f"{path}: an interrupted inversion with another {named}: give its options to "
                "resume it, remove this file to start again, or choose another --outdir"
            )
        self.about, self.seconds, self.parts = state["about"], state["seconds"], state["parts"]
        for kept, pictures in zip(self.frames, state["frames"], strict=True):
            kept.pictures = [] if pictures is None else list(pictures)
        click.echo(f"Resuming at step {checkpoint.nimg_of(path)}: {path}", err=True)

    def _write(self, ws: Tensor, tuned: tuning.Tuning | None, results: dict[str, Any]) -> dict[str, Any]:
        """Write all files of the target, and remove its checkpoints."""
        network, folder = self.network, self.folder
        (folder / FINISHED).unlink(missing_ok=True)  # of an earlier inversion, until all files are replaced
        text = {**render.about(network, [], None), "truncation": None, "target": self.target.name}
        images.save_png(self.target.pixels, folder / "target.png", {"target": self.target.name})
        images.save_png(results["projected"]["pixels"], folder / "proj.png", text)
        w_files.save_w(folder / "projected_w.npz", ws, network, target=self.target.name)
        names = ["target.png", "proj.png", "projected_w.npz"]
        if tuned is not None:
            images.save_png(results["tuned"]["pixels"], folder / "tuned.png", {**text, "tuned": True})
            write_tuned(tuned.tuned, folder / "tuned.pkl", self.target.name, self.job.pti_steps)
            names += ["tuned.png", "tuned.pkl"]
        if self.job.save_video:
            names.append(_write_video(folder, self.target, [kept.pictures for kept in self.frames], results))
        finished = {
            "target": self.target.name,
            "notes": list(self.target.notes),
            **self.about,
            **{name: {key: found[key] for key in ("psnr", "distance")} for name, found in results.items()},
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "seconds_per_step": {
                name: round(self.seconds[name] / steps, 5)
                for name, steps in (("projection", self.job.inv_steps), ("tuning", self.job.pti_steps))
                if self.seconds[name]
            },
            "files": names,
            "settings": self.settings,
        }
        with dnnlib.util.atomic_write(folder / FINISHED, "w") as file:
            file.write(json.dumps(finished, indent=1, allow_nan=False) + "\n")
        while (path := checkpoint.latest(folder)) is not None:
            path.unlink()
        old = [name for name in OUTPUTS if name not in names and (folder / name).is_file()]
        if old:
            click.echo(f"note: {folder}: kept from an earlier inversion: {', '.join(old)}", err=True)
        return finished


def write_tuned(network: Network, path: Path, target: str, steps: int) -> None:
    """Write a tuned network as a network pickle."""
    provenance = {
        **network.provenance,
        "tuned": {"network_sha256": network.sha256, "target": target, "steps": steps},
    }
    if network.class_names is not None:
        provenance["class_names"] = network.class_names
    G = network.G.requires_grad_(False)
    files.write_pickle(
        path, files.NetworkFile({"G_ema": G}, {}, network.training_set_kwargs or None, provenance)
    )


def _write_video(
    folder: Path, target: targets.Target, phases: Sequence[Sequence[Tensor]], results: dict[str, Any]
) -> str:
    """Write the target beside the images of the steps. Returns the name of the file."""
    name = f"proj{video.default_ending()}"
    last = [results[key]["pixels"] for key in ("projected", "tuned") if key in results][-1]
    shown = [picture.permute(1, 2, 0).numpy() for phase in phases for picture in phase]
    shown += [last] * FPS  # one second of the result
    factor = max(1, -(-SMALLEST_SIDE // last.shape[0]))

    def frames() -> Iterator[np.ndarray]:
        for picture in shown:
            both = np.concatenate([target.pixels, picture], axis=1).repeat(factor, 0).repeat(factor, 1)
            yield images.rgb_frame(both)

    plan = video.timing(len(shown), FPS, Path(name).suffix)
    video.write(folder / name, frames(), FPS, plan.milliseconds, {})
    return name


def summary(found: dict[str, Any]) -> str:
    """A line about a finished target."""
    parts = [found["target"]]
    for name in ("projected", "tuned"):
        if name in found:
            psnr, distance = found[name]["psnr"], found[name]["distance"]
            near = "every pixel equal" if psnr is None else f"PSNR {psnr:.1f} dB"
            parts.append(f"{name}: {near}, distance {distance:.4f}")
    rates = [f"{name} {value:.2g} s" for name, value in found["seconds_per_step"].items()]
    return f"{'; '.join(parts)}; {sum(found['seconds'].values()):.0f} s (per step: {', '.join(rates)})"


def run(job: Job, load: Callable[[], Network], device: Any) -> None:
    """Invert all targets of a job.

    Args:
        job: The options.
        load: Loads the network.
        device: Of network and detector.

    Raises:
        FileNotFoundError: A file does not exist, or weights are missing.
        ValueError: One line about an option or file.
    """
    found = targets.find(job.targets)
    folders = [Path(job.outdir, place[0] if len(found) > 1 else "") for place in found]
    detector = pick_detector(job.feature, job.weights)
    network = load()
    named = {"--network": network.path, "--w-init": job.w_init}
    for (_, reader, entry), folder in zip(found, folders, strict=True):
        inputs = {**named, "--target": os.path.join(reader.path, entry.name)}
        for name in (*OUTPUTS, FINISHED):
            outputs.check_output("--outdir", folder / name, inputs=inputs)
    size = network.G.img_resolution, network.G.img_channels
    for place in found:  # all of them before the first step
        target = targets.read(*place, *size)
        for note in target.notes:
            click.echo(f"note: {target.name}: {note}", err=True)
    inverter = Inverter(job, network, detectors.load(detector, device, weights=job.weights))
    for place, folder in zip(found, folders, strict=True):
        result = inverter.run(targets.read(*place, *size), folder)
        click.echo(f"{summary(result)}: {folder}{os.sep}")
