# SPDX-License-Identifier: Apache-2.0
"""Prepare a StyleGAN data set from any source of images.

The result is a zip file or folder of square PNGs, with a power-of-two side, and a dataset.json with labels.

    python dataset_tool.py --source=photos/ --dest=photos64.zip --resolution=64x64 --transform=center-crop
    python dataset_tool.py --source=photos.zip --dest=photos{res}.zip --resolution=16,32,64
    python dataset_tool.py --source=train-images-idx3-ubyte.gz --dest=fashion32.zip --resolution=32
    python dataset_tool.py --source=cifar-10-python.tar.gz --dest=cifar10_16.zip --resolution=16x16
    python dataset_tool.py --source=ILSVRC/ --dest=in{res}.zip --resolution=16,32,64 --transform=center-crop
    python dataset_tool.py --check photos64.zip

Sources: folders and zips of images, Hugging Face image folders, tar shards (webdataset), Parquet, .npz and
HDF5 files, IDX pairs, CIFAR-10/100 python tarballs, the ILSVRC tree, LSUN LMDB folders.

Labels come from dataset.json, from the labels of the format, or from sub-folders; docs/datasets.md has the
exact rule.

From Python, `convert` does the same, also for arrays in memory. The engine is image_data/conversion.py.
"""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import click
import numpy as np

from dnnlib import bounded, outputs, util
from dnnlib.one_path import OnePath
from image_data import archives
from image_data import labels as label_rule
from image_data.classes import balance, check_distinct
from image_data.conversion import (
    MAX_CHUNK_IMAGES,
    ConvertReport,
    Progress,
    chunked,
    convert,
    count_workers,
    ordered_map,
    parse_resolutions,
)
from image_data.selection import Subset
from image_data.sources import Columns, array_source
from image_data.transforms import FILTERS, TRANSFORMS

__all__ = [
    "CheckReport",
    "ConvertReport",
    "Progress",
    "array_source",
    "check",
    "convert",
    "main",
    "parse_resolutions",
]

LISTED_PROBLEMS = 10

# Checking a data set.


@dataclass
class CheckReport:
    """The result of `check`. `classes` contains (index, name, number of images)."""

    path: str
    num_images: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    classes: list[tuple[int, str, int]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    labels: str = ""  # the number of classes, where they come from, and what was left out

    def format(self) -> str:
        """Format as text: facts, table of classes, problems."""
        channels = {"L": 1, "1": 1, "P": 3, "RGB": 3, "LA": 2, "RGBA": 4}
        modes = {f"{channels.get(mode, mode)} ({mode})": n for mode, n in self.modes.items()}
        lines = [
            self.path,
            f"images    {self.num_images:,}",
            f"size      {_join_counts(self.sizes)}",
            f"channels  {_join_counts(Counter(modes))}",
            f"classes   {len(self.classes) or 'none (unlabelled)'}",
            f"labels    {self.labels}",
        ]
        for key in ("transform", "filter"):
            if self.metadata.get(key):
                lines.append(f"{key:9s} {self.metadata[key]}")
        if isinstance(self.metadata.get("source"), dict):
            lines.append(
                f"source    {self.metadata['source'].get('name')} (sha256 "
                f"{str(self.metadata['source'].get('sha256'))[:12]})"
            )
        width = max((len(name) for _, name, _ in self.classes), default=0)
        counts = [count for _, _, count in self.classes]
        if found := balance(counts, [name for _, name, _ in self.classes]):
            lines.append(f"balance   {found}")
        lines += [f"  {index:5d}  {name:{width}s}  {count:8,}" for index, name, count in self.classes]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines + ([] if self.problems else ["no problems found"]))


class _Inspected(NamedTuple):
    """One image of a data set, or the error of reading it."""

    size: str = ""  # WxH
    mode: str = ""
    error: str = ""


@dataclass(frozen=True)
class _InspectTask:
    """Reads and decodes entries of an archive."""

    reader: archives.Reader

    def __call__(self, entries: list[archives.Entry]) -> list[_Inspected]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [self._inspect(entry) for entry in entries]

    def _inspect(self, entry: archives.Entry) -> _Inspected:
        try:
            data = self.reader.read(entry)
        except ValueError as error:
            return _Inspected(error=str(error))
        try:
            image = archives.open_image(data)
            image.load()
        except Exception as error:  # Pillow's decoders can raise any exception on damaged data
            return _Inspected(error=f"{entry.name}: {error}")
        return _Inspected(f"{image.width}x{image.height}", image.mode)


def check(
    path: str | os.PathLike[str],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    labels: str = "auto",
    subfolder: str = "",
    follow_links: bool = False,
) -> CheckReport:
    """Decode every image of a data set, and compare the images with the labels.

    Args:
        path: the data set.
        workers: number of processes; None = one per core.
        progress: called with (images done, total images).
        labels: see `convert`.
        subfolder: see `convert`.
        follow_links: see `convert`.

    Returns:
        The report. Its `problems` list everything that is wrong.

    Raises:
        ValueError: `path` cannot be opened.
    """
    workers = count_workers(workers)
    report = CheckReport(os.fspath(path))
    archive, label_problems = _check_labels(
        archives.open_archive(path, follow_links), report, labels, subfolder
    )
    report.num_images = len(archive.images)
    if not archive.images:
        report.problems.append("no images")
    report.problems += _abridge(list(map(archive.twice, archive.duplicates)))
    chunks = (
        archive.images[positions.start : positions.stop]
        for positions in chunked(len(archive.images), MAX_CHUNK_IMAGES)
    )
    errors = []
    done = 0
    results: Generator[list[_Inspected], None, None] = ordered_map(
        _InspectTask(archive.reader), chunks, workers
    )
    for items in results:
        for item in items:
            if item.error:
                errors.append(f"unreadable: {item.error}")
            else:
                report.sizes[item.size] += 1
                report.modes[item.mode] += 1
        done += len(items)
        if progress is not None:
            progress(done, len(archive.images))
    report.problems += _abridge(errors) + _size_problems(report) + label_problems
    return report


def _size_problems(report: CheckReport) -> list[str]:
    problems = []
    if len(report.sizes) > 1:
        problems.append(f"images of different sizes: {_join_counts(report.sizes)}")
    for size in report.sizes:
        width, height = map(int, size.split("x"))
        if width != height or width & (width - 1):
            problems.append(f"{report.sizes[size]:,} images are {size}, not a power-of-two square")
    usual = ("RGBA",) if report.metadata.get("channels") == 4 else ("RGB", "L")
    unusual = {mode: count for mode, count in report.modes.items() if mode not in usual}
    problems += [
        f"{count:,} images have mode {mode} instead of {' or '.join(usual)}: prepare them again, with this "
        "data set as --source"
        for mode, count in unusual.items()
    ]
    return _abridge(problems)


def _check_labels(
    archive: archives.Archive, report: CheckReport, mode: str, subfolder: str
) -> tuple[archives.Archive, list[str]]:
    """Fill in classes and metadata.

    Returns:
        (the part of the archive with the images, problems of the labels).
    """
    try:
        found = label_rule.label(archive, mode, subfolder)
    except ValueError as error:
        return _check_index(archive, report, str(error))
    report.metadata, report.labels = found.metadata, found.summary()
    counts = np.bincount(found.labels if found.labels is not None else [], minlength=found.num_classes)
    return found.archive, _count_classes(
        report, found.class_names or [""] * found.num_classes, counts.tolist()
    )


def _check_index(
    archive: archives.Archive, report: CheckReport, error: str
) -> tuple[archives.Archive, list[str]]:
    """`_check_labels` if the rule failed with `error`: use as much of a dataset.json as possible."""
    report.labels = "unknown, see below"
    try:
        part = label_rule.unwrapped(archive)
        index = archives.read_index(part)
        labels = label_rule.match_names(part, index.labels) if index.labels is not None else None
    except ValueError as damaged:
        return archive, [str(damaged)]
    if labels is None:
        return part, [error]
    report.metadata = index.metadata
    present = {entry.name for entry in part.images}
    unlabelled, absent = sorted(present - labels.keys()), sorted(labels.keys() - present)
    problems = (
        [f"{len(unlabelled):,} images have no label, the first is {unlabelled[0]}"] if unlabelled else []
    )
    problems += [f"{len(absent):,} labels have no image, the first is {absent[0]}"] if absent else []
    counts = Counter(label for name, label in labels.items() if name in present)
    names = index.class_names or [""] * index.num_classes
    return part, (problems or [error]) + _count_classes(
        report, names, [counts[label] for label in range(index.num_classes)]
    )


def _count_classes(report: CheckReport, names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Fill in the table of classes. Returns its problems."""
    report.classes = [
        (label, name, count) for label, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    empty = [(label, name) for label, name, count in report.classes if not count]
    named = [f" {name!r}" if name not in ("", str(label)) else "" for label, name in empty]
    problems = [f"class {label}{name} has no images" for (label, _), name in zip(empty, named, strict=True)]
    if any(names):
        try:
            check_distinct(names, "the classes")
        except ValueError as error:
            problems.append(str(error))
    return _abridge(problems)


def _abridge(problems: list[str]) -> list[str]:
    more = len(problems) - LISTED_PROBLEMS
    return problems if more <= 0 else [*problems[:LISTED_PROBLEMS], f"... and {more:,} more like this"]


def _join_counts(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name}: {count:,}" for name, count in counts.most_common(LISTED_PROBLEMS)) or "-"


# Command line.


def _parse_class_names(flag: str, text: str | None) -> list[str] | None:
    """Parse 'a,b,c', or '@file' with one name per line."""
    if text is None:
        return None
    if not text.startswith("@"):
        return [name.strip() for name in text.split(",")]
    try:
        return [line.strip() for line in bounded.read_text(text[1:]).splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{flag}={text}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{flag}=@{error}") from None


def _print_report(report: ConvertReport) -> None:
    for line in _abridge(report.skipped):
        click.echo(f"skipped {line}", err=True)
    if report.skipped:
        click.echo(f"warning: {len(report.skipped):,} unreadable images were skipped", err=True)
    if report.dropped:
        click.echo(
            f"warning: {report.dropped:,} images were left out because they are too small for the transform",
            err=True,
        )
    if report.empty_classes:
        names = ", ".join(report.empty_classes[:LISTED_PROBLEMS]) + (
            ", ..." if len(report.empty_classes) > LISTED_PROBLEMS else ""
        )
        click.echo(f"warning: {len(report.empty_classes):,} classes have no images: {names}", err=True)
    click.echo(f"labels: {report.summary}")
    if report.balance:
        click.echo(f"balance: {report.balance}")
    for path in report.paths:
        click.echo(f"{path}: {report.num_images:,} images")


@click.command(
    context_settings={"max_content_width": 140, "show_default": True},
    help=str(__doc__).replace("\n\n", "\n\n\b\n"),
)
@click.option(
    "--source",
    cls=OnePath,
    help="Folder or zip of images, tar shards, Parquet, .npz or HDF5 files, IDX file of images, CIFAR "
    "tarball, ILSVRC tree or LSUN LMDB folder. Several files: 'train-{000..009}.tar', in quotes.",
    metavar="PATH",
)
@click.option(
    "--dest",
    help="Data set to write: .zip file or folder. {res} is replaced by the resolution.",
    metavar="PATH",
)
@click.option(
    "--resolution",
    help="Size in pixels: 64, 64x64, or several at once: 16,32,64.  [default: size of the images]",
    metavar="WxH",
)
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    default="none",
    help="How to make images square. none: accept square images only. center-crop: cut out the largest "
    "centred square. center-crop-wide: crop to a wide size such as 256x192 and add black bars. "
    "center-crop-dhariwal: as ADM for ImageNet.",
)
@click.option(
    "--filter",
    type=click.Choice(list(FILTERS)),
    help="Resize filter.  [default: lanczos; center-crop-dhariwal has its own]",
)
@click.option(
    "--background",
    default="white",
    help="Colour under transparent pixels: a CSS name or #rrggbb.",
    metavar="COLOUR",
)
@click.option(
    "--channels",
    type=click.Choice(["1", "3", "4"]),
    default="3",
    help="1: grey. 3: RGB. 4: RGB and alpha, not premultiplied.",
)
@click.option(
    "--labels",
    type=click.Choice(label_rule.MODES),
    default="auto",
    help="Source of the labels: dataset.json, sub-folders, or none. auto: the rule in docs/datasets.md.",
)
@click.option(
    "--subfolder", default="", show_default="all", help="Use only this folder of the source.", metavar="NAME"
)
@click.option(
    "--follow-links", is_flag=True, help="Follow symbolic links in a folder, including links out of it."
)
@click.option(
    "--class-names",
    help="Class names that replace those of the source: a,b,c or @FILE with one per line.",
    metavar="LIST",
)
@click.option(
    "--classes", help="Use only these classes, numbered in this order: a,b,c or @FILE.", metavar="LIST"
)
@click.option("--max-images", type=int, help="Use only the first N images.  [default: all]", metavar="N")
@click.option(
    "--subset-seed",
    type=int,
    help="With --max-images: use a random choice with this seed instead.",
    metavar="SEED",
)
@click.option(
    "--subset",
    help="Use only the images that a file lists: one name or index per line.",
    metavar="FILE",
)
@click.option(
    "--image-column",
    help="Parquet, .npz, HDF5: the column or array of images.  [default: found by name and type]",
    metavar="NAME",
)
@click.option(
    "--label-column",
    help="Parquet, .npz, HDF5, metadata.csv, .json in tar shards: the column of labels.  [default: found by "
    "name and type]",
    metavar="NAME",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="Whether an unreadable image stops the command or is skipped.",
)
@click.option("--workers", type=int, help="Number of processes.  [default: one per core]", metavar="N")
@click.option(
    "--compress-level",
    type=click.IntRange(0, 9),
    default=0,
    help="zlib level of the PNGs. 0: large files, fast to read.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing data set.")
@click.option(
    "--check",
    "check_path",
    help="Print the contents and problems of a data set. The exit code is 1 if there are problems.",
    metavar="DATASET",
)
def main(**values: Any) -> None:
    """Prepare a StyleGAN data set, or --check one."""
    util.plain_warnings()
    util.print_any_name()
    values = outputs.expand_home(values)
    check_path = values.pop("check_path")
    try:
        with outputs.interruptible():
            problems = _run_convert(**values) if check_path is None else _run_check(check_path, **values)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"{error.filename or check_path or values['dest']}: {error.strerror or error}"
        ) from None
    sys.exit(1 if problems else 0)


def _run_check(path: str, source: str | None, dest: str | None, workers: int | None, **options: Any) -> bool:
    """Run --check. Returns whether there are problems."""
    if source is not None or dest is not None:
        raise ValueError("--check reads a finished data set; remove --source and --dest")
    report = check(
        path, workers, Progress(sys.stderr), options["labels"], options["subfolder"], options["follow_links"]
    )
    click.echo(report.format())
    return bool(report.problems)


def _run_convert(
    source: str | None,
    dest: str | None,
    workers: int | None,
    resolution: str | None,
    class_names: str | None,
    classes: str | None,
    subset: str | None,
    image_column: str | None,
    label_column: str | None,
    channels: str,
    **options: Any,
) -> bool:
    """Convert --source to --dest."""
    if source is None or dest is None:
        raise ValueError("--source and --dest are required (or --check DATASET); see --help")
    report = convert(
        source,
        dest,
        parse_resolutions(resolution) if resolution is not None else None,
        class_names=_parse_class_names("--class-names", class_names),
        classes=_parse_class_names("--classes", classes),
        subset=None if subset is None else Subset.read(subset),
        columns=Columns(image_column, label_column),
        channels=int(channels),
        workers=workers,
        progress=Progress(sys.stderr),
        **options,
    )
    _print_report(report)
    return False


if __name__ == "__main__":
    main()
