# SPDX-License-Identifier: Apache-2.0
"""Class indices of label values, as tables, shards and Parquet files store them; checks of class names."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Names of label columns, in order of preference, if --label-column is not given.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "class_id", "class_name", "fine_label", "category")
MAX_CLASSES = 2**24  # a larger label is a mistake, for which memory would be allocated
# Classes that an unnamed list may have if there are fewer images than classes; ImageNet-21k has 21,841.
MAX_NAMELESS_CLASSES = 2**15
SHOWN = 4  # names in a message
ONE_CLASS = "only one class per image is supported"
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_NUMBERS = re.compile(r"\d+([\s,;|]+\d+)+")


class Classes(NamedTuple):
    """Class indices int64 [N], the number of classes, and their names if known."""

    labels: np.ndarray
    num_classes: int
    class_names: list[str] | None


def classes_of(
    values: Sequence[Any], where: str, names: Sequence[str], class_names: list[str] | None = None
) -> Classes:
    """Convert label values to class indices.

    Integers, also as text or floats, and one-hot lists are indices. Other texts are names of classes,
    numbered in the order of `sorted_classes`.

    Args:
        values: one value per image.
        where: the file and column, for messages.
        names: names of the images, for messages.
        class_names: names of the indices, if the file has them.

    Raises:
        ValueError: a value is missing, negative, continuous, several classes or none; numbers and names, or
            lists and numbers are mixed; an index has no name.
    """
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    known = class_names is not None and set(texts) <= set(class_names)
    several = None if known else next((text for text in texts if _is_list(text.strip())), None)
    if several is not None:
        raise ValueError(f"{where}: {several[:60]!r} is a list: {ONE_CLASS}")
    number = _INTEGER if known else _NUMBER
    named = next((text for text in texts if not number.fullmatch(text.strip())), None)
    if named is not None:
        other = None if known else next((value for value in values if _is_number(value)), None)
        if other is not None:
            raise ValueError(f"{where}: names ({named!r}) and numbers ({other!r}) are mixed: use one of them")
        return _from_names(values, where, names, class_names if known else None)
    labels = np.array(
        [_index(value, f"{where}: label of {name}") for value, name in zip(values, names, strict=True)],
        dtype=np.int64,
    )
    return with_names(labels, where, class_names, one_hot_length(values, where))


def with_names(labels: np.ndarray, where: str, class_names: list[str] | None, least: int = 0) -> Classes:
    """Check class indices against the names of the classes.

    Args:
        labels: int64 [N].
        where: the file and column, for messages.
        class_names: names of the indices, if known.
        least: the least number of classes.

    Raises:
        ValueError: an index is negative, too large or without a name.
    """
    if labels.min(initial=0) < 0:
        raise ValueError(f'{where}: {labels.min()} means "unknown", but every image needs a class index')
    count = max(int(labels.max(initial=-1)) + 1, least)
    if class_names is not None:
        if count > len(class_names):
            raise ValueError(f"{where}: label {count - 1} has no name: there are {len(class_names)} names")
        return Classes(labels, len(class_names), class_names)
    if count > max(MAX_NAMELESS_CLASSES, len(labels)):
        raise ValueError(
            f"{where}: label {count - 1} is too large: {len(labels):,} images without class names can have "
            f"at most {MAX_NAMELESS_CLASSES:,} classes"
        )
    return Classes(labels, count, None)


def _from_names(
    values: Sequence[Any], where: str, names: Sequence[str], class_names: list[str] | None
) -> Classes:
    texts = []
    for value, name in zip(values, names, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {name} has no label")
        texts.append(unicodedata.normalize("NFC", value.strip()))
    known = class_names if class_names is not None else sorted_classes(set(texts))
    places = {text: index for index, text in enumerate(known)}
    return Classes(np.array([places[text] for text in texts], dtype=np.int64), len(known), known)


def _is_list(text: str) -> bool:
    """Whether a text has several values: '[0, 1]', "['a', 'b']", '[0.5]', '0 1', '0,1'; not '20-29'."""
    if text[:1] == "[" and text[-1:] == "]":
        return "," in text or not any(character.isalpha() for character in text)
    return _NUMBERS.fullmatch(text) is not None


def _is_number(value: Any) -> bool:
    return bool(_NUMBER.fullmatch(value.strip())) if isinstance(value, str) else value is not None


def _index(value: Any, where: str) -> int:
    """The class index of a value that is not a name."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{where} is missing")
    if isinstance(value, str):
        value = int(value) if _INTEGER.fullmatch(value.strip()) else float(value)
    elif isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return parse_label(value, where)


def one_hot_length(values: Iterable[Any], where: str) -> int:
    """The length of all one-hot lists among labels; 0 without lists.

    Args:
        values: labels that `parse_label` accepts.
        where: the file and column, for messages.

    Raises:
        ValueError: lists of one value, of different lengths, or beside labels that are no lists.
    """
    lengths = sorted({len(value) if isinstance(value, list | np.ndarray) else 0 for value in values})
    if len(lengths) > 1:
        what = "labels are lists and numbers" if lengths[0] == 0 else "lists of labels differ in length"
        raise ValueError(f"{where}: {what}: write one class index per image, or one-hot lists of one length")
    if lengths == [1]:
        raise ValueError(f"{where}: labels are lists of one value: write a class index instead of a list")
    return lengths[0] if lengths else 0


def parse_label(value: Any, where: str) -> int:
    """Convert an int, an integral float or a one-hot list to a class index.

    Raises:
        ValueError: -1, 2.5, an all-zero or a soft label, or several labels.
    """
    if isinstance(value, list):
        if (
            not all(isinstance(item, int | float) for item in value)
            or sorted(value)[:-1] != [0] * (len(value) - 1)
            or max(value, default=0) != 1
        ):
            raise ValueError(
                f"{where} is {str(value)[:60]}, a list that is not one-hot; expected a class index "
                f"({ONE_CLASS})"
            )
        return value.index(1)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or abs(value) >= MAX_CLASSES
        or not float(value).is_integer()
    ):
        expected = "expected a class index (0, 1, ...)"
        if isinstance(value, float):
            expected += "; continuous values are not supported"
        raise ValueError(f"{where} is {str(repr(value))[:60]}; {expected}")
    if value < 0:
        raise ValueError(f'{where} is {value}, which means "unknown", but every image needs a class index')
    return int(value)


def sorted_classes(names: set[str]) -> list[str]:
    """Sort class names: by number if all are numbers ('2' before '10'), otherwise by name."""
    numbered = all(re.fullmatch("[0-9]+", name) for name in names)
    numbered = numbered and len({int(name) for name in names}) == len(names)
    return sorted(names, key=int) if numbered else sorted(names)


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; that of a file in another encoding cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_distinct(names: Sequence[str], what: str) -> None:
    """Raise ValueError if two classes have the same name, or if a name is empty or no text."""
    broken = next((name for name in names if not _is_text(name)), None)
    if broken is not None:
        raise ValueError(f"{what} contain the name {broken!a}, which is not UTF-8 text: rename it")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{what} contain the name {twice!r} twice: class names must be unique")
    nameless = next((i for i, name in enumerate(names) if not name.strip()), None)
    if nameless is not None:
        raise ValueError(f"{what} have no name for class {nameless}")


def balance(counts: Sequence[int], names: Sequence[str] | None = None) -> str:
    """One line about the sizes of classes: smallest, median, largest. '' for fewer than two with images.

    Args:
        counts: images per class.
        names: names of the classes; None = their indices.
    """
    sizes = {label: count for label, count in enumerate(counts) if count}
    if len(sizes) < 2:
        return ""
    few, many = min(sizes, key=lambda label: sizes[label]), max(sizes, key=lambda label: sizes[label])
    if sizes[few] == sizes[many]:
        return f"{sizes[few]:,} images in every class"
    shown = [names[label] if names and names[label] else f"class {label}" for label in (few, many)]
    ratio = sizes[many] / sizes[few]
    remedy = " (train.py --balanced=True draws all classes equally often)" if ratio >= 2 else ""
    return (
        f"{sizes[few]:,} ({shown[0]}) to {sizes[many]:,} ({shown[1]}) images per class, median "
        f"{int(np.median(list(sizes.values()))):,}, ratio {ratio:.1f}{remedy}"
    )


def listed(names: Sequence[str]) -> str:
    """'a, b, c, d, ...'."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def pick_column(
    where: str, found: Sequence[str], wanted: str | None, known: Sequence[str], flag: str
) -> str | None:
    """Choose a column or array by name.

    Args:
        where: the file, for messages.
        found: the names that the file has.
        wanted: the value of the flag.
        known: names to look for without it, in order of preference.
        flag: the flag, for messages.

    Returns:
        The name; None if `wanted` is not given and no known name exists.

    Raises:
        ValueError: the file has no column `wanted`.
    """
    if wanted is None:
        return next((name for name in known if name in found), None)
    if wanted not in found:
        raise ValueError(
            f"{where}: {flag}={wanted}: no such column; the columns are {listed(sorted(found)) or 'none'}"
        )
    return wanted
