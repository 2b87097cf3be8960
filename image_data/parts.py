# SPDX-License-Identifier: Apache-2.0
"""Sets in several files: brace patterns, folders of shards, and the training split among them."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable

from image_data.classes import listed

MAX_PARTS = 100_000
# 'train', 'Training_set', 'seg_test', 'val2017', 'trainA'; the matching group is the kind of split.
SPLIT = re.compile(
    r"(?:[a-z0-9]+[-_ ])?"
    r"(?:(train)(?:ing)?|(val)(?:id|idation)?|(test)(?:ing)?|(dev)|(eval)(?:uation)?|(unlabell?ed))"
    r"(?:[-_ ]?(?:set|data|images|imgs|split|[ab]|\d+))*",
    re.IGNORECASE,
)
# The number of a part at the end of its name: train-000012, train-00000-of-00004, 00012.
_NUMBER = re.compile(r"[-_.]?\d+(?:-of-\d+)?(?:-[0-9a-f]{8,32})?$")
SYNSET = re.compile(r"n\d{8}")  # of WordNet; the name of a class of ImageNet
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def split_of(name: str) -> str | None:
    """The kind of a split: 'train' for 'Training', 'val' for 'val2017'; None for other names."""
    match = SPLIT.fullmatch(name)
    return next(group.lower() for group in match.groups() if group) if match else None


def is_pattern(path: str, ending: str) -> bool:
    """Whether a path is a brace pattern such as train-{000000..000009}.tar, and not the name of a file."""
    return path.endswith(ending) and _BRACES.search(path) is not None and not os.path.exists(path)


def expand(pattern: str) -> list[str]:
    """The paths of a brace pattern, as a shell expands it: numbers {000..012}, lists {train,val}.

    Raises:
        ValueError: the numbers fall, or there are more than MAX_PARTS paths.
    """
    pieces: list[list[str]] = []
    end, count = 0, 1
    for match in _BRACES.finditer(pattern):
        pieces.append([pattern[end : match.start()]])
        first, last, names = match.groups()
        if names is not None:
            pieces.append(names.split(","))
        else:
            size = int(last) - int(first) + 1
            if not 0 < size <= MAX_PARTS:
                raise ValueError(f"{pattern}: {match[0]} must count up, to at most {MAX_PARTS:,} files")
            width = len(first) if first[0] == "0" else 1
            pieces.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
        count *= len(pieces[-1])
        if count > MAX_PARTS:
            raise ValueError(f"{pattern}: more than {MAX_PARTS:,} files")
        end = match.end()
    pieces.append([pattern[end:]])
    return ["".join(parts) for parts in itertools.product(*pieces)]


def missing(path: str) -> str:
    """The message for a path that does not exist."""
    remedy = ": give the folder, or a pattern such as train-{000..009}.tar" if re.search("[*?]", path) else ""
    return f"{path}: no such file or folder{remedy}"


def files(pattern: str) -> list[str]:
    """The files of a brace pattern.

    Raises:
        ValueError: as `expand`, or one does not exist.
    """
    found = expand(pattern)
    missing = next((path for path in found if not os.path.isfile(path)), None)
    if missing is not None:
        raise ValueError(f"{pattern}: {missing} does not exist")
    return found


def in_folder(folder: str, ending: str) -> list[str]:
    """The files with an ending directly in a folder, or else those in the folders directly below it."""
    found = _in_folder(folder, ending)
    if found:
        return found
    below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    return [path for inside in below for path in _in_folder(inside, ending)]


def _in_folder(folder: str, ending: str) -> list[str]:
    names = (name for name in os.listdir(folder) if name.endswith(ending) and not name.startswith("."))
    return [os.path.join(folder, name) for name in sorted(names)]


def training_set(where: str, paths: Iterable[str], otherwise: str = "") -> tuple[list[str], list[str]]:
    """Choose one set among files that may belong to several, such as train-*.tar and val-*.tar.

    Args:
        where: the folder, for messages.
        paths: the files.
        otherwise: for the message, what else to do about several sets.

    Returns:
        (the files of the only set, or of the training split; all others).

    Raises:
        ValueError: several sets, and not exactly one is a training split.
    """
    paths = list(paths)
    sets: dict[str, list[str]] = defaultdict(list)
    in_one = len({os.path.dirname(path) for path in paths}) <= 1
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        folder = os.path.basename(os.path.dirname(path))
        sets[_NUMBER.sub("", stem) if in_one else folder].append(path)
    names = list(sets)
    training = [name for name in names if split_of(name) == "train"]
    chosen = names if len(names) == 1 else training
    if len(chosen) != 1:
        first = sets[names[0]][0]
        raise ValueError(
            f"{where}: contains the files of {len(names)} sets ({listed(names)}): give those of one, such as "
            f"{os.path.basename(first)}{otherwise}"
        )
    return sets[chosen[0]], [path for name in names if name != chosen[0] for path in sets[name]]
