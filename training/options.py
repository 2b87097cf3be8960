# SPDX-License-Identifier: Apache-2.0
"""Options: dataclass fields with a flag, a help text, bounds and the source of the default.

An `Option` also parses the text of a command line or recipe, checks ranges, and reads JSON values.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

PROJECT = "this project"  # the source of a default that no published code has

_BOOLEANS = {True: ("1", "true", "t", "yes", "y", "on"), False: ("0", "false", "f", "no", "n", "off")}

MAX_INTEGER, MAX_NUMBER = 2**31 - 1, 1e12  # upper bounds of options without `high`


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
    """Declare a dataclass field that is an option.

    Args:
        default: The default value.
        about: Help text.
        source: Where the default comes from.
        low: For numbers, the smallest sensible value.
        high: For numbers, the largest sensible value.
        flag: Name on command lines and in recipes, with underscores. "" = the name of the field, None = no
            flag.
        switch: The flag takes no value.
        required: The command line of a new run must give it.
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
    """Return 'section.key' -> option for every field of every section (name -> dataclass), in order."""
    found = {}
    for section, cls in sections.items():
        hints, defaults = typing.get_type_hints(cls), cls()
        for f in dataclasses.fields(cls):
            metadata = {**f.metadata, "flag": f.name if f.metadata["flag"] == "" else f.metadata["flag"]}
            found[f"{section}.{f.name}"] = Option(
                section, f.name, hints[f.name], getattr(defaults, f.name), **metadata
            )
    return found


@dataclass(frozen=True)
class Option:
    """A field as command lines, recipes and JSON files use it.

    The last seven attributes are those of `opt`, with the name of the flag filled in.
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
        """The flag as messages show it."""
        return f"--{(self.flag or self.key).replace('_', '-')}"

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The member types of a union, or the one type."""
        return (
            typing.get_args(self.hint)
            if typing.get_origin(self.hint) in (types.UnionType, typing.Union)
            else (self.hint,)
        )

    @property
    def words(self) -> tuple[str, ...]:
        """Words that are accepted in place of a number."""
        return tuple(
            word for a in self.alternatives if typing.get_origin(a) is Literal for word in typing.get_args(a)
        )

    @property
    def kind(self) -> type:
        """The plain type: int for int | None, tuple for tuple[str, ...]."""
        first: type = next(a for a in self.alternatives if a is not type(None))
        return typing.get_origin(first) or first

    @property
    def maximum(self) -> float | None:
        """The largest number allowed; None if the option is not a number."""
        return self.high if self.high is not None else {int: MAX_INTEGER, float: MAX_NUMBER}.get(self.kind)

    def check_range(self, value: Any) -> None:
        """Check a number against its bounds. Other values pass.

        Raises:
            ValueError: The number is below `low`, above `maximum`, or NaN.
        """
        if self.maximum is None or not isinstance(value, (int, float)):
            return
        # "not a >= b" instead of "a < b": also true for NaN
        if self.low is not None and not value >= self.low:
            raise ValueError(f"{self.shown_flag}={value}: must be at least {self.low}")
        if not -MAX_NUMBER <= value <= self.maximum:
            raise ValueError(f"{self.shown_flag}={str(value)[:40]}: must be at most {self.maximum:.12g}")

    def of(self, config: Any) -> Any:
        """Return the value of this option in a configuration."""
        return getattr(getattr(config, self.section), self.key)

    @property
    def metavar(self) -> str:
        """Placeholder for the value in --help."""
        names = {bool: "BOOLEAN", int: "INTEGER", float: "FLOAT", tuple: "LIST", dict: "NAME=FILE,..."}
        return "|".join([names.get(self.kind, "TEXT"), *self.words])

    @property
    def default_text(self) -> str:
        """The default as --help shows it, with its source."""
        default = "not set" if self.default is None else self.text(self.default)
        if isinstance(self.default, float):
            default = f"{self.default:.12g}"
        return default if self.source == PROJECT else f"{default} ({self.source})"

    def parse(self, text: str) -> Any:
        """Parse the text of a command line or a recipe.

        Raises:
            ValueError: The text is not valid. The message has the text, not the flag.
        """
        word = text.strip().lower()
        if word in self.words:
            return word
        if self.kind in (int, float):
            return 0 if self.words and word == "none" else self._parse_number(text)
        parsers: dict[type, Callable[[str], Any]] = {tuple: _items, dict: _pairs, bool: _boolean}
        return parsers.get(self.kind, str)(text)

    def _parse_number(self, text: str) -> int | float:
        try:
            return int(text) if self.kind is int else float(text)
        except ValueError:
            valid = " or ".join(["integer" if self.kind is int else "float", *self.words])
            raise ValueError(f"'{text[:40]}' is not a valid {valid}") from None

    def coerce(self, value: Any) -> Any:
        """Convert a value from JSON to the type of the field.

        Raises:
            ValueError: The value has another type.
        """
        kind = self.kind
        if (value is None and type(None) in self.alternatives) or (
            isinstance(value, str) and value in self.words
        ):
            return value
        if kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            # an infinity is rejected by `check_range`
            return float(value) if abs(value) < MAX_NUMBER else (math.inf if value > 0 else -math.inf)
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
