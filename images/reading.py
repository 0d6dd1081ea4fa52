"""Typed values out of a TOML document; mistakes are gathered with their place, not raised."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    import re

__all__ = ["Reader", "Table"]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A table and where it is in the document."""

    path: str
    values: Mapping[str, Any]

    def field(self, key: str) -> str:
        """Return the path of one of its keys."""
        return f"{self.path}.{key}" if self.path else key


class Reader:
    """Takes typed values out of tables and remembers each mistake instead of stopping at it."""

    def __init__(self) -> None:
        self.problems: list[errors.Problem] = []
        self.words_for: dict[str, str] = {}
        """What `{name}` in a text stands for."""

    def filled(self, text: str) -> str:
        """Return a text with its placeholders replaced."""
        for name, word in self.words_for.items():
            text = text.replace(f"{{{name}}}", word)
        return text

    def add(self, path: str, message: str) -> None:
        """Remember a mistake."""
        self.problems.append(errors.Problem(path=path, message=message))

    def table(self, raw: object, path: str, known: set[str]) -> Table:
        """Return a table; keys that are not known are mistakes."""
        if not isinstance(raw, Mapping):
            self.add(path, "must be a table")
            return Table(path, {})
        table = Table(path, raw)
        for key in sorted(set(raw) - known):
            self.add(table.field(key), f"unknown key; known are {', '.join(sorted(known))}")
        return table

    def sub(self, top: Table, key: str, known: set[str], *, optional: bool = False) -> Table:
        """Return a table of a table."""
        if key not in top.values:
            if not optional:
                self.add(top.field(key), "missing")
            return Table(top.field(key), {})
        return self.table(top.values[key], top.field(key), known)

    def tables(self, top: Table, key: str, known: set[str]) -> list[Table]:
        """Return the tables of a list."""
        raw = top.values.get(key, [])
        if not isinstance(raw, list):
            self.add(top.field(key), "must be a list of tables")
            return []
        return [self.table(one, f"{top.field(key)}[{at}]", known) for at, one in enumerate(raw)]

    def text(
        self,
        table: Table,
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        allowed: tuple[str, ...] = (),
        default: str | None = None,
    ) -> str:
        """Return a text with its placeholders replaced."""
        value = table.values.get(key, default)
        if value is None:
            self.add(table.field(key), "missing")
            return ""
        if not isinstance(value, str):
            self.add(table.field(key), f"{value!r} is not a text")
            return ""
        value = self.filled(value)
        if allowed and value not in allowed:
            self.add(table.field(key), f"{value!r} is not one of {', '.join(allowed)}")
        elif pattern and not pattern.fullmatch(value):
            self.add(table.field(key), f"{value!r} does not match {pattern.pattern}")
        else:
            return value
        return ""

    def number(
        self, table: Table, key: str, low: int, high: int, *, default: int | None = None
    ) -> int:
        """Return a whole number within limits."""
        value = table.values.get(key, default)
        if value is None:
            self.add(table.field(key), "missing")
        elif not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.add(table.field(key), f"{value!r} is not a number from {low} to {high}")
        else:
            return value
        return low

    def flag(self, table: Table, key: str) -> bool:
        """Return a truth value, false if it is missing."""
        value = table.values.get(key, False)
        if not isinstance(value, bool):
            self.add(table.field(key), f"{value!r} is not true or false")
            return False
        return value

    def words(
        self,
        table: Table,
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        allowed: tuple[str, ...] = (),
        required: bool = False,
    ) -> tuple[str, ...]:
        """Return a list of texts with their placeholders replaced."""
        value = table.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.add(table.field(key), "must be a list of texts")
            return ()
        value = [self.filled(one) for one in value]
        for at, one in enumerate(value):
            if pattern and not pattern.fullmatch(one):
                self.add(f"{table.field(key)}[{at}]", f"{one!r} does not match {pattern.pattern}")
            if allowed and one not in allowed:
                self.add(f"{table.field(key)}[{at}]", f"{one!r} is not one of {', '.join(allowed)}")
        if required and not value:
            self.add(table.field(key), "must not be empty")
        return tuple(value)

    def time(self, table: Table, key: str) -> int:
        """Return a date and time as seconds since 1970."""
        value = table.values.get(key)
        if not isinstance(value, datetime.datetime) or value.tzinfo is None:
            self.add(table.field(key), "must be a date and time with zone (2026-01-31T00:00:00Z)")
            return 0
        return int(value.timestamp())
