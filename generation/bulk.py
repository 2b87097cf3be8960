# SPDX-License-Identifier: Apache-2.0
"""Generate many images into one target, with several processes, resumable after a kill (gen_images.py --to).

The images are divided into parts of fixed size. Each process computes some of them and writes each atomically
into TARGET.partial. The same command continues with the missing parts. On a CPU every process computes with
one thread, because more threads change the order of sums: so the images are the same for any number of
processes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import torch

from dnnlib import bounded, files
from dnnlib.locks import Lock
from dnnlib.progress import Progress
from dnnlib.util import atomic_write, sha256_file
from generation import render
from generation.commands import NetworkOptions, progress_bar
from generation.containers import Parts, Target, assemble
from torch_utils import distributed, images, launcher
from torch_utils.devices import use_device

PART_BYTES, PART_IMAGES = 2**26, 64  # at most, in one part
JOB_FILE, LOCK_FILE = "job.json", ".lock"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What determines the images of a target.

    Attributes:
        options: The network and how it is used.
        seeds: One image each.
        class_text: --class, or None.
        translate: See `render.set_transform`.
        rotate: See `render.set_transform`.
        batch: Images at a time on a GPU.
        target: Where to write.
        about: Further metadata of PNG files.
        part_images: Images in a part, at most.
    """

    options: NetworkOptions
    seeds: tuple[int, ...]
    class_text: str | None
    translate: tuple[float, float]
    rotate: float
    batch: int
    target: Target
    about: dict[str, Any] = field(default_factory=dict)
    part_images: int = field(default_factory=lambda: PART_IMAGES)

    def check(self) -> None:
        """Raise ValueError for a target that exists, or seeds that do not fit it."""
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("--seeds: with --to every seed may be given only once")
        shards = len(self.target.paths)
        if shards > len(self.seeds):
            raise ValueError(
                f"--to={self.target.text} has {shards:,} shards for {len(self.seeds):,} images: give fewer"
            )
        existing = self.target.existing()
        if existing is not None and not (self.target.work / JOB_FILE).is_file():
            full = "contains files" if existing.is_dir() else "exists"
            raise ValueError(f"--to={self.target.text}: {existing} {full}: remove it, or choose another name")

    def settings(self, network: render.Network) -> dict[str, Any]:
        """What must be the same when a command continues an earlier one."""
        options = {
            key: value for key, value in asdict(self.options).items() if key not in ("network", "device")
        }
        centroids = self.options.centroids_path
        if centroids and os.path.isfile(centroids):
            options["centroids_path"] = sha256_file(centroids)
        specs = self.options.specs()
        edits = [[sha256_file(spec.path), spec.index, *spec.strengths] for spec in specs]
        options["edit"] = edits or None
        return {
            "network": network.sha256,
            "device": network.device.type,
            **options,
            "seeds": images.number_list(self.seeds),
            "class": self.class_text,
            "translate": list(self.translate),
            "rotate": self.rotate,
            "batch": self.batch if network.device.type != "cpu" else None,
            "part": self.part_images,
        }


def generate(job: Job, processes: int) -> None:
    """Write the target of a job with several processes.

    Raises:
        ValueError: One line about the job.
        OSError: A file cannot be written.
    """
    job.check()
    try:
        launcher.launch(run, processes, job)
    except KeyboardInterrupt:
        click.echo(f"\nfinished parts stay in {job.target.work}: the same command resumes", err=True)
        raise
    except launcher.ProcessDied as error:
        raise ValueError(
            f"{error}; finished parts stay in {job.target.work}: the same command resumes"
        ) from None


def run(job: Job) -> None:
    """Do the work of one process; the first one prepares and assembles."""
    device = use_device(job.options.device)
    distributed.init(device.type)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        _run(job)
    finally:
        torch.set_num_threads(threads)


def _run(job: Job) -> None:
    network, centroids = job.options.load(distributed.local_rank())
    index = None if job.class_text is None else render.class_index(network, job.class_text)
    render.set_transform(network.G, job.translate, job.rotate)
    ranges = _ranges(job, network)
    parts = Parts(job.target, [len(rows) for rows in ranges])
    if len(set(distributed.all_gather_object(network.sha256))) > 1:
        raise ValueError(f"{network.path} was replaced while the processes loaded it: run the command again")
    lock = Lock(job.target.work / LOCK_FILE)
    try:
        todo = distributed.on_main(lambda: _prepare(job, network, parts, lock))
        with _shown_progress(parts):
            for number in todo[distributed.rank() :: distributed.world_size()]:
                seeds = [job.seeds[row] for row in ranges[number]]
                _write_part(job, network, centroids, parts, number, seeds, index)
        distributed.barrier()
        distributed.on_main(lambda: _finish(job, network, parts, index), share=False)
    finally:
        if distributed.is_main():
            lock.release()


def _ranges(job: Job, network: render.Network) -> list[range]:
    """The rows of each part."""
    size = max(1, min(job.part_images, PART_BYTES // (3 * network.G.img_resolution**2)))
    if network.device.type != "cpu":
        size = max(size, job.batch)
    total = len(job.seeds)
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _prepare(job: Job, network: render.Network, parts: Parts, lock: Lock) -> list[int]:
    """Create TARGET.partial or check that it belongs to this job. Returns the missing parts."""
    work, settings = job.target.work, job.settings(network)
    job_file = work / JOB_FILE
    work.mkdir(parents=True, exist_ok=True)
    if not lock.acquire():
        raise ValueError(f"--to={job.target.text}: {lock.holder_text()} writes it already")
    lock.write_holder()
    files.remove_temporaries(work)
    if job_file.exists():
        earlier = bounded.read_json(job_file, 2**27)
        differing = [key for key, value in settings.items() if earlier.get(key) != value]
        if differing:
            raise ValueError(
                f"{work} is of a command with another {', '.join(differing)}: repeat that command, or remove "
                "the folder"
            )
    else:
        for old in work.glob("part-*"):
            old.unlink()  # of a target that was finished
        with atomic_write(job_file, "w") as file:
            json.dump(settings, file)
    if job.target.kind == "folder":
        job.target.paths[0].mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(job.target.paths[0])
    missing = parts.missing()
    if len(missing) < len(parts.sizes):
        click.echo(f"{parts.images_done():,} of {len(job.seeds):,} images are finished already", err=True)
    return missing


def _write_part(
    job: Job,
    network: render.Network,
    centroids: torch.Tensor | None,
    parts: Parts,
    number: int,
    seeds: Sequence[int],
    index: int | None,
) -> None:
    """Compute the images of seeds and write them as one part."""
    z = torch.cat([render.latents(seed, 1, network.G.z_dim) for seed in seeds])
    labels = labels_of(network, seeds, index)
    pixels = render.render(
        network,
        z,
        None if labels is None else torch.tensor(labels),
        truncation=job.options.truncation,
        centroids=centroids,
        batch=job.batch,
    )
    more = {**job.options.description(), **job.about}
    about = [
        render.about(network, [seed], None if labels is None else [labels[row]], **more)
        for row, seed in enumerate(seeds)
    ]
    parts.write(number, pixels.permute(0, 2, 3, 1).numpy(), seeds, about)


def labels_of(network: render.Network, seeds: Sequence[int], index: int | None) -> list[int] | None:
    """The class of each seed's image; None without classes."""
    labels = [render.seed_labels(network, seed, 1, index) for seed in seeds]
    known = [int(label) for label in labels if label is not None]
    return known or None


def _finish(job: Job, network: render.Network, parts: Parts, index: int | None) -> None:
    """Write the target and remove the parts."""
    missing = parts.missing()
    if missing:
        raise ValueError(f"{job.target.work}: {len(missing)} parts are missing: run the same command again")
    labels = labels_of(network, job.seeds, index)
    with progress_bar(len(job.seeds), f"Writing {job.target.text}") as done:
        assemble(parts, labels, network.class_names, done)
    (job.target.work / JOB_FILE).unlink()
    shutil.rmtree(job.target.work)
    click.echo(f"{len(job.seeds):,} images in {job.target.text}")


@contextmanager
def _shown_progress(parts: Parts) -> Iterator[None]:
    """Show in the first process how many images all processes have finished."""
    if not distributed.is_main():
        yield
        return
    ended, total = threading.Event(), sum(parts.sizes)
    done = parts.images_done()

    def show() -> None:
        with Progress(label="Images", unit="", silent=10) as progress:
            progress.first = done
            while not ended.wait(POLL_SECONDS):
                progress(parts.images_done(), total)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
