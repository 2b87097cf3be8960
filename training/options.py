# SPDX-License-Identifier: Apache-2.0
"""An option: a field of a configuration that knows its flag, its meaning, the source of its default and how
its text is read.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

_BOOLEANS = {True: ("1", "true", "t", "yes", "y", "on"), False: ("0", "false", "f", "no", "n", "off")}


MAX_INTEGER, MAX_NUMBER = 2**31 - 1, 1e12  # of options that do not say what the largest value is


def opt(
    default: Any,
    about: str,
    source: str,
    low: float | None = None,
    high: float | None = None,
    flag: str | None = "",
    switch: bool = False,
    required: bool = False,
) -> Any:
    """A dataclass field that is an option.

    Args:
        about: its meaning. source: where its default comes from. low, high: for numbers, the smallest and the
        largest value that make sense. flag: its name on command lines and in recipes, with underscores; "" =
        the field's, None = it has no flag. switch: the flag takes no value. required: the command line of a
        new run must give it.
    """
    metadata = {
        "about": about,
        "source": source,
        "low": low,
        "high": high,
        "flag": flag,
        "switch": switch,
        "required": required,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(sections: dict[str, type]) -> dict[str, Option]:
    """'section.key' -> option, for every field of every section (name -> dataclass), in their order."""
    found = {}
    for section, cls in sections.items():
        hints, defaults = typing.get_type_hints(cls), cls()
        for f in dataclasses.fields(cls):
            said = {**f.metadata, "flag": f.name if f.metadata["flag"] == "" else f.metadata["flag"]}
            found[f"{section}.{f.name}"] = Option(
                section, f.name, hints[f.name], getattr(defaults, f.name), **said
            )
    return found


@dataclass(frozen=True)
class Option:
    """A field as command lines, recipes and JSON files know it. The last seven are those of `opt`, with the
    flag's name filled in.
    """

    section: str
    key: str
    hint: Any  # the field's type
    default: Any
    about: str
    source: str
    low: float | None
    high: float | None
    flag: str | None
    switch: bool
    required: bool

    @property
    def name(self) -> str:
        """'section.key'."""
        return f"{self.section}.{self.key}"

    @property
    def shown_flag(self) -> str:
        """The flag as messages name it."""
        return f"--{(self.flag or self.key).replace('_', '-')}"

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The types of a union, or the one type."""
        return (
            typing.get_args(self.hint)
            if typing.get_origin(self.hint) in (types.UnionType, typing.Union)
            else (self.hint,)
        )

    @property
    def words(self) -> tuple[str, ...]:
        """Words that may stand in the place of a number."""
        return tuple(
            word for a in self.alternatives if typing.get_origin(a) is Literal for word in typing.get_args(a)
        )

    @property
    def kind(self) -> type:
        """The plain type: int for int | None, tuple for tuple[str, ...]."""
        first = next(a for a in self.alternatives if a is not type(None))
        return typing.get_origin(first) or first

    @property
    def maximum(self) -> float | None:
        """The largest number that it may be; None where it is no number."""
        return self.high if self.high is not None else {int: MAX_INTEGER, float: MAX_NUMBER}.get(self.kind)

    def check_range(self, value: Any) -> None:
        """Raises ValueError for a number below `low` or above `most`, and for NaN."""
        if self.maximum is None or not isinstance(value, (int, float)):
            return
        # "not (a >= b)" and not "a < b", because NaN is refused too
        if self.low is not None and not value >= self.low:
            raise ValueError(f"{self.shown_flag}={value}: must be at least {self.low}")
        if not -MAX_NUMBER <= value <= self.maximum:
            raise ValueError(f"{self.shown_flag}={str(value)[:40]}: must be at most {self.maximum:.12g}")

    def of(self, config: Any) -> Any:
        """Its value in a configuration."""
        return getattr(getattr(config, self.section), self.key)

    @property
    def metavar(self) -> str:
        """How --help shows the value."""
        names = {bool: "BOOLEAN", int: "INTEGER", float: "FLOAT", tuple: "LIST", dict: "NAME=FILE,..."}
        return "|".join([names.get(self.kind, "TEXT"), *self.words])

    def parse(self, text: str) -> Any:
        """The value that a text of a command line or a recipe means.

        Raises:
            ValueError: it means none. The message has the text, not the flag.
        """
        word, kind = text.strip().lower(), self.kind
        if word in self.words:
            return word
        if kind is tuple:
            return _items(text)
        if kind is dict:
            return _pairs(text)
        if kind is bool:
            return _boolean(text)
        if kind in (int, float):
            if self.words and word == "none":
                return 0
            try:
                return kind(text)
            except ValueError:
                valid = " or ".join(["integer" if kind is int else "float", *self.words])
                raise ValueError(f"'{text[:40]}' is not a valid {valid}") from None
        return text

    def coerce(self, value: Any) -> Any:
        """The field's value from JSON's.

        Raises:
            ValueError: it is of another type.
        """
        kind = self.kind
        if (value is None and type(None) in self.alternatives) or (
            isinstance(value, str) and value in self.words
        ):
            return value
        if kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return (
                float(value) if abs(value) < MAX_NUMBER else float("inf") * (1 if value > 0 else -1)
            )  # refused by `check_range`
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        raise ValueError(f"option '{self.name}' must be of type {kind.__name__}, not {repr(value)[:80]}")

    def text(self, value: Any) -> str:
        """Inverse of `parse`."""
        items = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        return (",".join(items) or "none") if isinstance(items, (list, tuple)) else str(items)


def _items(text: str) -> tuple[str, ...]:
    return () if text.strip().lower() in ("", "none") else tuple(item.strip() for item in text.split(","))


def _pairs(text: str) -> dict[str, str]:
    pairs = [item.split("=", 1) for item in _items(text)]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"'{text}': give NAME=FILE, several separated by commas")
    return {name: file for name, file in pairs}


def _boolean(text: str) -> bool:
    for value, words in _BOOLEANS.items():
        if text.strip().lower() in words:
            return value
    raise ValueError(f"'{text}' is not a valid boolean: give True or False")
