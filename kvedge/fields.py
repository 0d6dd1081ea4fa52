"""Reading nested settings field by field, with every mistake noted and none raised.

A `Fields` is one mapping of the settings with its path. A wrong field yields its default, so that
reading goes on and the user hears of all mistakes at once.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Fields", "did_you_mean"]

Check = "Callable[[str], str]"
"""Returns what is wrong with a text, or an empty text."""


class Fields:
    """One mapping of the settings; ask for each known field, then call `done()`."""

    def __init__(self, raw: Any, path: str, problems: list[errors.Problem]) -> None:
        self.path = path
        self._problems = problems
        self._known: list[str] = []
        self._raw: Mapping[str, Any] = {}
        self.usable = raw is None or isinstance(raw, dict)
        """False if something else than a mapping was given, which is told already."""
        if raw is None:
            return
        if isinstance(raw, dict):
            self._raw = raw
        else:
            self.problem("", f"{_shown(raw)} is not a mapping", "write fields below it")

    def problem(self, field: str, message: str, hint: str = "") -> None:
        """Note a mistake of a field, or of the whole mapping if the field is empty."""
        path = self._at(field) if field else self.path or "settings"
        self._problems.append(errors.Problem(path=path, message=message, hint=hint))

    def has(self, field: str) -> bool:
        """Tell whether the field is given."""
        return self._raw.get(field) is not None

    def is_mapping(self, field: str) -> bool:
        """Tell whether the field is given and is a mapping."""
        return isinstance(self._raw.get(field), dict)

    def raw(self, field: str) -> Any:
        """Return the field as it is."""
        self._known.append(field)
        return self._raw.get(field)

    def text(
        self, field: str, default: str = "", *, check: Callable[[str], str] | None = None,
        hint: str = "", digits: bool = False,
    ) -> str:  # fmt: skip
        """Return a text; numbers and booleans, as YAML reads some texts, are refused.

        Args:
            digits: take a whole number as its digits.
        """
        value = self.raw(field)
        if value is None:
            return default
        if digits and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.problem(field, f"{_shown(value)} is not a text", hint or "put it in quotes")
            return default
        wrong = check(value) if check else ""
        if wrong:
            self.problem(field, f"{_shown(value)} {wrong}", hint)
            return default
        return value

    def choice(self, field: str, default: str, allowed: tuple[str, ...]) -> str:
        """Return one of the allowed texts."""

        def check(value: str) -> str:
            if value in allowed:
                return ""
            return f"is none of {', '.join(allowed)}{did_you_mean(value, allowed)}"

        return self.text(field, default, check=check)

    def flag(self, field: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.raw(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(field, f"{_shown(value)} is neither true nor false")
            return default
        return value

    def whole(self, field: str, default: int, low: int, high: int) -> int:
        """Return a whole number within bounds; a text of digits is taken, as pulumi keeps one."""
        value = self.raw(field)
        if value is None:
            return default
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.problem(field, f"{_shown(value)} is not a whole number from {low} to {high}")
            return default
        return value

    def texts(
        self, field: str, *, check: Callable[[str], str] | None = None, hint: str = ""
    ) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(
            value
            for place, value in self._list(field)
            if self._accept(place, value, check, hint)
        )  # fmt: skip

    def mapping(
        self, field: str, *, key: Callable[[str], str] | None = None,
        value: Callable[[str], str] | None = None, hint: str = "",
    ) -> dict[str, str]:  # fmt: skip
        """Return a mapping of texts to texts."""
        found = self.raw(field)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.problem(field, f"{_shown(found)} is not a mapping")
            return {}
        kept: dict[str, str] = {}
        for name, text in found.items():
            place = f"{field}.{name}"
            wrong = key(str(name)) if key else ""
            if wrong:
                self.problem(place, f"{_shown(name)} {wrong}", hint)
            elif self._accept(place, text, value, hint):
                kept[str(name)] = text
        return kept

    def section(self, field: str) -> Fields:
        """Return the fields of a nested mapping; empty if it is not given."""
        return Fields(self.raw(field), self._at(field), self._problems)

    def sections(self, field: str) -> Iterator[Fields]:
        """Yield the mappings of a list."""
        for place, value in self._list(field):
            yield Fields(value, self._at(place), self._problems)

    def named_sections(self, field: str) -> Iterator[tuple[str, Fields]]:
        """Yield names and mappings of a mapping of mappings."""
        part = self.section(field)
        for name, value in part._raw.items():  # noqa: SLF001
            yield str(name), Fields(value, part._at(str(name)), self._problems)  # noqa: SLF001

    def done(self) -> None:
        """Note every field that nobody asked for."""
        for field in self._raw:
            if field not in self._known:
                known = ", ".join(sorted(set(self._known)))
                near = did_you_mean(str(field), self._known)
                self.problem(
                    str(field), f"unknown setting{near}", "" if near else f"known: {known}"
                )

    def _list(self, field: str) -> Iterator[tuple[str, Any]]:
        value = self.raw(field)
        if value is None:
            return
        if not isinstance(value, list):
            self.problem(
                field, f"{_shown(value)} is not a list", "write one item a line, after '-'"
            )
            return
        for index, item in enumerate(value):
            yield f"{field}[{index}]", item

    def _accept(
        self, place: str, value: Any, check: Callable[[str], str] | None, hint: str
    ) -> bool:
        if not isinstance(value, str):
            self.problem(place, f"{_shown(value)} is not a text", "put it in quotes")
            return False
        wrong = check(value) if check else ""
        if wrong:
            self.problem(place, f"{_shown(value)} {wrong}", hint)
        return not wrong

    def _at(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field


def did_you_mean(text: str, known: Any) -> str:
    """Return `, did you mean 'x'?` for the nearest known text, or an empty text."""
    folded = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(text.lower(), folded, n=1, cutoff=0.6)
    return f", did you mean {folded[near[0]]!r}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
