# SPDX-License-Identifier: Apache-2.0
"""The rule that assigns classes to images, used by dataset_tool.py, its --check, training and metrics.

docs/datasets.md describes it for users.

1. A dataset.json defines the labels. It is at the root, or in the one folder that contains all images. So
   does a metadata.csv or metadata.jsonl with a column of labels, and the .cls or .json files in tar shards.
2. In an ILSVRC tree, the n######## folders are the classes. If there are several splits, those of the
   training split.
3. Otherwise sub-folders are classes, below any single folders around them.
4. The numbered folders of StyleGAN (00000/img00000000.png) and FFHQ (01000/01234.png) are parts of an
   unlabelled set.
5. Ambiguous cases are errors: splits, other numbered folders, data sets among class folders, images beside
   class folders.

The result is printed in one line, `Labelling.summary()`.
"""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import bounded
from image_data import archives, shards, tables
from image_data.archives import Archive, Index
from image_data.classes import SHOWN, check_distinct, classes_of, listed, sorted_classes
from image_data.parts import SYNSET, split_of

MODES = ("auto", "json", "folders", "none")
NO_INDEX = f"no {archives.INDEX_NAME}"
# Options of dataset_tool.py, because other commands that read data sets have none for labels.
ASK = "use dataset_tool.py --labels=folders to treat them as classes, or --labels=none to ignore them"
STYLEGAN_IMAGE = re.compile(r"\d{5}/img\d{8}\.[a-z0-9]+", re.IGNORECASE)
FFHQ_IMAGE = re.compile(r"(\d{5})/(\d{5})\.[a-z0-9]+", re.IGNORECASE)
TABLES = (".csv", ".tsv", ".json", ".jsonl")
# If all images are in one folder with such a name, it is a container, not a class.
CONTAINER = re.compile(
    r"images?|imgs?|pictures?|pics?|photos?|data|dataset|jpegimages|png|jpe?g|files",
    re.IGNORECASE,
)


class Undecided(ValueError):
    """The classes are ambiguous; the user must decide."""


@dataclass
class Labelling:
    """The result of the rule.

    `labels` is int64 [N] in the order of the archive's images, or None. Class c of `class_names` has label c.
    """

    archive: Archive  # the part with the images
    origin: str  # what defines the labels; without labels, why there are none
    labels: np.ndarray | None = None
    num_classes: int = 0
    class_names: list[str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    kind: str = ""  # 'ilsvrc' for an ILSVRC tree
    remark: str = ""  # with mode 'none': the ambiguity that the rule would have refused

    def summary(self) -> str:
        """'2 classes, from dataset.json; left out: nothing'."""
        return summary(self.num_classes, self.origin, self.archive.left_out)


def summary(num_classes: int, origin: str, left_out: archives.LeftOut) -> str:
    """The line that every conversion and check prints."""
    if not num_classes:
        return f"no classes ({origin}); left out: {left_out}"
    return f"{num_classes:,} class{'' if num_classes == 1 else 'es'}, from {origin}; left out: {left_out}"


def label(archive: Archive, mode: str = "auto", subfolder: str = "", column: str | None = None) -> Labelling:
    """Apply the rule.

    Args:
        archive: a whole zip or folder, or tar shards.
        mode: 'auto' = the rule; 'json' = only dataset.json; 'folders' = sub-folders, whatever their names and
            whatever dataset.json contains; 'none' = no classes.
        subfolder: use only this folder of the archive.
        column: the column of metadata.csv or metadata.jsonl with labels.

    Raises:
        Undecided: the images are readable, but their classes are ambiguous. One line with the remedy.
        ValueError: something is damaged or missing.
    """
    if mode not in MODES:
        raise ValueError(f"labels={mode!r}: choose one of {', '.join(MODES)}")
    archive = archives.below(archive, "")  # a copy, because the counts of files that are left out change
    if subfolder.strip("/"):
        archive = _subfolder(archive, subfolder.strip("/") + "/")
    if mode == "none":
        return _unlabelled(archive)
    if mode in ("auto", "json"):
        archive = _unwrap_index(archive)
        check_index_name(archive)
        found = _from_dataset_json(archive, mode)
        if found is None and mode == "auto":
            found = _from_table(archive, column) or _from_samples(archive)
        if found is not None:
            return found
    elif archive.index is not None:
        archive.left_out.add(f"{archives.INDEX_NAME}, as requested")
    if column is not None:
        raise ValueError(f"{archive.where}: --label-column={column}: no table with this column is used")
    _count_unused_indices(archive)
    tree = _synset_tree(archive)
    if tree is None:
        return _from_folders(archive, mode)
    return _from_synsets(archives.below(archive, tree) if tree else archive)


def _unlabelled(archive: Archive) -> Labelling:
    """The result of mode 'none'."""
    remark = _remark(archive)
    tree = _synset_tree(archive)
    archive = archives.below(archive, tree) if tree else archive
    if archive.index is not None:
        archive.left_out.add(f"{archives.INDEX_NAME}, as requested")
    _count_unused_indices(archive)
    return Labelling(archive, "as requested", remark=remark)


def _from_dataset_json(archive: Archive, mode: str) -> Labelling | None:
    """The labels of dataset.json; None if it is missing or empty and `mode` is 'auto'."""
    if archive.index is not None:
        index = archives.read_index(archive)
        if index.raw.strip() != b"{}":
            return _from_index(archive, index)
    if mode == "json":
        raise Undecided(f"{archive.where}: --labels=json, but there is no {archives.INDEX_NAME} with labels")
    return None


def _remark(archive: Archive) -> str:
    """The error that mode 'auto' would raise for an archive, or ''."""
    try:
        label(archive)
    except Undecided as error:
        return str(error).removeprefix(f"{archive.path}: ")
    except ValueError:
        pass  # a damaged dataset.json, which mode 'none' ignores
    return ""


def _subfolder(archive: Archive, prefix: str) -> Archive:
    if prefix.rstrip("/") not in archive.directories:
        known = listed(sorted(name for name in archive.directories if "/" not in name)) or "none"
        raise ValueError(f"{archive.path}: contains no folder {prefix.rstrip('/')}; its folders are: {known}")
    return archives.below(archive, prefix)


def _count_unused_indices(archive: Archive) -> None:
    for entry in archive.inner_indices:
        archive.left_out.add(f"{archives.INDEX_NAME} in subfolders", entry.name)
    for entry in archive.tables:
        archive.left_out.add("tables that define no labels", entry.name)


# dataset.json.


def _unwrap_index(archive: Archive) -> Archive:
    """The archive, or the folder in it whose dataset.json covers all images.

    Raises:
        Undecided: the archive contains data sets beside other images.
    """
    if archive.index is not None:
        return archive
    folders = [entry.name[: -len(archives.INDEX_NAME)] for entry in archive.inner_indices]
    holding = [folder for folder in folders if any(entry.name.startswith(folder) for entry in archive.images)]
    if not holding:
        return archive
    outer = min(holding, key=len)
    if all(entry.name.startswith(outer) for entry in archive.images):
        return archives.below(archive, outer)
    found = listed([f"{folder}{archives.INDEX_NAME}" for folder in sorted(holding)])
    raise Undecided(
        f"{archive.where}: it contains a data set ({found}) beside other images: select it "
        f"(dataset_tool.py --subfolder={outer.rstrip('/')}), or move it out; {ASK}"
    )


def _check_class_shards(archive: Archive) -> None:
    """Raise Undecided for ImageNet's tar files of one class each, whose images have no other label."""
    paths = archive.reader.shards if isinstance(archive.reader, shards.ShardReader) else []
    names = [Path(path).stem for path in paths]
    if len(names) > 1 and all(map(SYNSET.fullmatch, names)) and not archive.directories:
        raise Undecided(
            f"{archive.where}: {listed(names)} seem to be classes, but tar files give no labels: unpack each "
            "into a folder of its name, or use dataset_tool.py --labels=none to ignore them"
        )


def check_index_name(archive: Archive) -> None:
    """Raise Undecided if a Dataset.json, of another letter case, is where dataset.json would be read.

    Callers that need no labels use it, too, if they treat prepared data sets differently.
    """
    for entry in archive.misnamed if archive.index is None else ():
        folder, slash, name = entry.name.rpartition("/")
        if name.lower() == archives.INDEX_NAME and all(
            image.name.startswith(folder + slash) for image in archive.images
        ):
            raise Undecided(
                f"{archive.where}: {entry.name} is not read because of its letter case: rename it to "
                f"{archives.INDEX_NAME}, or remove it; dataset_tool.py --labels=folders and --labels=none "
                "ignore it"
            )


def unwrapped(archive: Archive) -> Archive:
    """The part of an archive that its dataset.json covers; the whole archive if that is ambiguous.

    For callers that need no labels.
    """
    try:
        return _unwrap_index(archive)
    except Undecided:
        return archive


def match_names(archive: Archive, labels: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of labels by the equivalent names of files.

    Accented letters have two encodings in Unicode: NFC, and NFD on macOS.

    Raises:
        ValueError: two files have equivalent names.
    """
    names = {entry.name for entry in archive.images}
    unmatched = names - labels.keys()
    spare = labels.keys() - names
    if not unmatched or not spare:
        return labels
    by_meaning: dict[str, str] = {}
    for name in unmatched:
        composed = unicodedata.normalize("NFC", name)
        if by_meaning.setdefault(composed, name) != name:
            raise ValueError(
                f"{archive.where}: two files are named {composed}, in different Unicode encodings"
            )
    there = {name: by_meaning.get(unicodedata.normalize("NFC", name), name) for name in spare}
    return {there.get(name, name): value for name, value in labels.items()}


def _from_index(archive: Archive, index: Index) -> Labelling:
    origin = f"{archive.prefix}{archives.INDEX_NAME}"
    _count_unused_indices(archive)
    if index.labels is None:
        folders = class_folders(archive)
        unused = (
            f"; use dataset_tool.py --labels=folders to treat the folders {listed(folders)} as classes"
            if folders
            else ""
        )
        return Labelling(archive, f"{origin} has no labels{unused}", metadata=index.metadata)
    values = np.array(_in_order(archive, index.labels, origin), dtype=np.int64)
    return Labelling(archive, origin, values, index.num_classes, index.class_names, index.metadata)


def _from_table(archive: Archive, column: str | None) -> Labelling | None:
    """The labels of metadata.csv or metadata.jsonl; None if there is no such table with labels."""
    folders = {entry.name.rpartition("/")[0] for entry in archive.tables}
    around = [f"{folder}/" if folder else "" for folder in sorted(folders, key=len)]
    prefix = next(
        (p for p in around if all(entry.name.startswith(p) for entry in archive.images)),
        None,
    )
    if prefix is None:
        return None
    part = archives.below(archive, prefix)
    inside = [entry for entry in part.tables if "/" not in entry.name]
    if len(inside) > 1:
        what = " and ".join(entry.name for entry in inside)
        raise Undecided(f"{part.where}: {what} both define labels: remove one; {ASK}")
    try:
        table = tables.read(part, inside[0], column)
    except ValueError as error:
        raise Undecided(str(error)) from None  # the images are readable without it
    if table is None:
        return None
    part.tables.remove(inside[0])
    return _from_values(part, table.values, f"{part.prefix}{inside[0].name}, column {table.column}")


def _from_samples(archive: Archive) -> Labelling | None:
    """The labels in the .cls or .json files of tar shards; None without any."""
    if not archive.sample_labels:
        _check_class_shards(archive)
        return None
    keys = {entry.name: shards.sample_key(entry.name)[0] for entry in archive.images}
    values = {name: archive.sample_labels[key] for name, key in keys.items() if key in archive.sample_labels}
    return _from_values(archive, values, "the .cls and .json files of the shards")


def _from_values(archive: Archive, values: dict[str, Any], origin: str) -> Labelling:
    """Classes from one value per image."""
    _count_unused_indices(archive)
    ordered = _in_order(archive, values, origin)
    names = [entry.name for entry in archive.images]
    try:
        found = classes_of(ordered, f"{archive.where}: {origin}", names)
    except ValueError as error:
        raise Undecided(str(error)) from None
    return Labelling(archive, origin, found.labels, found.num_classes, found.class_names)


def _in_order(archive: Archive, labels: dict[str, Any], origin: str) -> list[Any]:
    """The labels of all images, in the order of the archive.

    Raises:
        Undecided: an image has no label, or a label has no image.
    """
    labels = match_names(archive, labels)
    names = [entry.name for entry in archive.images]
    unlabelled = [name for name in names if name not in labels]
    if unlabelled:
        what = f"{len(unlabelled)} of {len(names)} images have no label in {origin}"
        other = (
            f"; it has labels for {listed(list(labels))}" if len(unlabelled) == len(names) and labels else ""
        )
        raise Undecided(f"{archive.where}: {what}, the first is {unlabelled[0]}{other}")
    if len(labels) > len(names):
        raise Undecided(f"{archive.where}: {origin} {missing_images(archive, labels)}")
    return [labels[name] for name in names]


def missing_images(archive: Archive, labels: Iterable[str]) -> str:
    """The message for labels whose images are missing."""
    present = {entry.name for entry in archive.images}
    absent = sorted(name for name in labels if name not in present)
    there = {entry.name for entry in archive.others}
    why = "not found"
    if absent[0] in there:
        why = "it exists, but its extension is not supported"
    return f"has labels for {len(absent)} images that are missing, the first is {absent[0]} ({why})"


def class_folders(archive: Archive) -> list[str]:
    """Folders that could be classes; [] for a flat folder and the numbered folders of StyleGAN and FFHQ."""
    below = _below(archive, wrapper(archive))
    if _numbered_set([entry.name for entry in archive.images]) or any("/" not in name for name in below):
        return []
    return sorted_classes({name.partition("/")[0] for name in below})


# ILSVRC.


def _synset_tree(archive: Archive) -> str | None:
    """The folder ('' or ending in '/') whose sub-folders are all n########; of several, the training split.

    None if there is none, or if the choice is ambiguous.
    """
    split = (name.rpartition("/") for name in archive.directories)
    prefixes = {parent + slash for parent, slash, name in split if SYNSET.fullmatch(name)}
    trees = [prefix for prefix in prefixes if all(map(SYNSET.fullmatch, _folders_in(archive, prefix)))]
    training = [prefix for prefix in trees if split_of(prefix.rstrip("/").rpartition("/")[2]) == "train"]
    chosen = trees if len(trees) == 1 else training
    return chosen[0] if len(chosen) == 1 else None


def _from_synsets(archive: Archive) -> Labelling:
    """Classes in synset order, with the names of LOC_synset_mapping.txt if it is found."""
    result = _from_folders(archive, "folders", prefix="")
    synsets = result.class_names or []
    known = _synset_names(archive)
    chosen = [known.get(synset, synset) for synset in synsets]
    counts = Counter(chosen)  # two synsets are named 'crane'; keep class names unique
    pairs = zip(chosen, synsets, strict=True)
    result.class_names = [name if counts[name] == 1 else f"{name} ({synset})" for name, synset in pairs]
    result.metadata = {"class_ids": synsets}
    result.kind = "ilsvrc"
    result.origin = f"the n######## folders of {archive.prefix or 'the ILSVRC tree'}"
    return result


def _synset_names(archive: Archive) -> dict[str, str]:
    pairs = (line.strip().partition(" ") for line in _synset_text(archive).splitlines())
    return {synset: name.strip() for synset, _, name in pairs if SYNSET.fullmatch(synset) and name}


def _synset_text(archive: Archive) -> str:
    """The content of LOC_synset_mapping.txt in a zip, or in or above a folder; '' if not found."""
    if not isinstance(archive.reader, archives.FolderReader):
        entry = archive.synset_names
        text = archive.reader.read(entry, bounded.MAX_TEXT_BYTES) if entry is not None else b""
        return text.decode("utf-8", "replace")
    tree = Path(archive.reader.path).resolve()
    files = (folder / archives.SYNSET_NAMES for folder in [tree, *list(tree.parents)[:4]])
    return next((bounded.read_bytes(file).decode("utf-8", "replace") for file in files if file.is_file()), "")


# Folders.


def _from_folders(archive: Archive, mode: str, prefix: str | None = None) -> Labelling:
    """Sub-folders as classes; no classes for a flat folder and for the parts of an unlabelled set.

    Args:
        archive: the archive.
        mode: see `label`.
        prefix: the folder with the class folders; None = below the folders around all images.
    """
    names = [entry.name for entry in archive.images]
    if mode == "auto" and (what := _numbered_set(names)):
        return Labelling(archive, f"{NO_INDEX}; the folders are numbered parts of a set, like {what}'s")
    prefix = wrapper(archive) if prefix is None else prefix
    below = _below(archive, prefix)
    if mode == "auto" and (what := _numbered_set(below)):
        return Labelling(
            archive,
            f"{NO_INDEX}; the folders in {prefix} are numbered parts of a set, like {what}'s",
        )
    top = [name.partition("/")[0] for name in below if "/" in name]
    if not top:
        return Labelling(archive, f"{NO_INDEX} and no class folders{_unread_tables(archive)}")
    if mode == "auto":
        _check_splits(archive, prefix, below)
    if len(top) < len(names):
        loose = next(name for name, rest in zip(names, below, strict=True) if "/" not in rest)
        what = f"{loose} is beside class folders"
        raise Undecided(f"{archive.where}: {what}; move it into one, or use dataset_tool.py --labels=none")
    folders = sorted_classes(set(top))
    if mode == "auto":
        _check_numbered(archive, folders, below)
        one = folders[0] if len(folders) == 1 else ""
        if one and (CONTAINER.fullmatch(one) or split_of(one) or one == archive.name):
            what = f"the only folder, {prefix}{one}, contains all images"
            return Labelling(archive, f"{NO_INDEX}; {what}{_unread_tables(archive)}")
    empty = sorted(_folders_in(archive, prefix) - set(folders))
    if empty:
        what = f"class folder {empty[0]!r} contains no images"
        raise Undecided(
            f"{archive.where}: {what}; remove it, add images, or use dataset_tool.py --labels=none"
        )
    class_names = [unicodedata.normalize("NFC", name) for name in folders]
    check_distinct(class_names, f"{archive.where}: the class folders")
    indices = {name: index for index, name in enumerate(folders)}
    deeper = len({name.rpartition("/")[0] for name in below} - set(folders))
    inside = f", {deeper:,} folders inside them are not classes" if deeper else ""
    values = np.array([indices[name] for name in top], dtype=np.int64)
    return Labelling(archive, f"the folders {listed(folders)}{inside}", values, len(folders), class_names)


def _unread_tables(archive: Archive) -> str:
    """What to do about files that may have the labels of an archive without class folders, or ''."""
    found = sorted(entry.name for entry in archive.others if entry.name.lower().endswith(TABLES))
    if not found:
        return ""
    return f"; {listed(found)} not read: labels are in metadata.csv, with the columns file_name and label"


def wrapper(archive: Archive) -> str:
    """The folders around all class folders, '' or ending in '/'.

    data/cats/1.png, data/dogs/2.png -> 'data/'; cats/1.png alone -> ''.
    """
    prefix = ""
    while len(folders := _folders_in(archive, prefix)) == 1:
        inner = f"{prefix}{min(folders)}/"
        names = (entry.name for entry in archive.images)
        if not all(name.startswith(inner) and "/" in name[len(inner) :] for name in names):
            break
        prefix = inner
    return prefix


def _check_splits(archive: Archive, prefix: str, below: Sequence[str]) -> None:
    """Raise Undecided if the folders are splits of a data set and not its classes."""
    inside: dict[str, set[str]] = defaultdict(set)
    for name in below:
        top, _, rest = name.partition("/")
        if rest:
            inside[top].add(rest.partition("/")[0] if "/" in rest else "")
    splits = sorted(name for name in inside.keys() | _folders_in(archive, prefix) if split_of(name))
    different = {split_of(name) for name in splits}
    # A single folder named like a split is a class ('train' beside 'bus'), unless it contains folders of its
    # own.
    alone = any(len(inside[name]) > 1 and "" not in inside[name] and len(inside) > 1 for name in splits)
    if len(different) > 1 or alone:
        one = prefix + next((name for name in splits if split_of(name) == "train"), splits[0])
        what = f"{splits[0]} is a split, not a class"
        if len(splits) > 1:
            what = f"{' and '.join(splits[:SHOWN])} are splits, not classes"
        raise Undecided(f"{archive.where}: {what}: select one (dataset_tool.py --subfolder={one}); {ASK}")


def _numbered_set(names: Sequence[str]) -> str:
    """'StyleGAN' or 'FFHQ' if the images are in the numbered folders of these sets, else ''."""
    if names and all(STYLEGAN_IMAGE.fullmatch(name) for name in names):
        return "StyleGAN"
    found = [FFHQ_IMAGE.fullmatch(name) for name in names]
    pairs = [(int(match[1]), int(match[2])) for match in found if match is not None]
    if names and len(pairs) == len(names):  # image 1234 is in folder 01000, in some copies in 00001
        for unit in (1000, 1):
            if all(folder == image // 1000 * unit for folder, image in pairs):
                return "FFHQ"
    return ""


def _check_numbered(archive: Archive, folders: Sequence[str], below: Sequence[str]) -> None:
    """Raise Undecided if folders look like numbered parts of a set: 00000, 00001, ... or 00, ..., ff."""
    width = len(folders[0])
    padded = all(len(name) == width and re.fullmatch("[0-9a-f]+", name) for name in folders)
    if not padded or not any(name[0] == "0" for name in folders):
        return
    decimal = all(name.isdecimal() for name in folders)
    stems: dict[str, list[str]] = defaultdict(list)
    for name in below:
        stems[name.partition("/")[0]].append(name.rpartition("/")[2].partition(".")[0])
    begin = all(stem.startswith(folder) and stem != folder for folder in folders for stem in stems[folder])
    hashed = begin and len(folders) > 1 and width > 1
    numbered_on = decimal and width > 1 and _numbered_on([stems[folder] for folder in folders])
    if (decimal and width >= 4) or hashed or numbered_on:
        what = f"{listed(folders)} could be numbered parts of one set or classes"
        raise Undecided(f"{archive.where}: {what}: {ASK}")


def _numbered_on(groups: Sequence[Sequence[str]]) -> bool:
    """Whether the files' numbers continue from folder to folder, so that each folder has one range."""
    ranges = []
    for stems in groups:
        numbers = [int(match[0]) for stem in stems if (match := re.search(r"\d+$", stem))]
        if len(numbers) < len(stems) or len(set(numbers)) < 2:
            return False
        ranges.append((min(numbers), max(numbers)))
    return len(ranges) > 1 and all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def _below(archive: Archive, prefix: str) -> list[str]:
    return [entry.name[len(prefix) :] for entry in archive.images]


def _folders_in(archive: Archive, prefix: str) -> set[str]:
    """The names of the folders directly below `prefix` ('' or ending in '/'), including empty ones."""
    inside = (name[len(prefix) :] for name in archive.directories if name.startswith(prefix))
    return {name for name in inside if "/" not in name}
