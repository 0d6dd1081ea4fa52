"""Secrets that cannot be printed by accident, and a filter that takes them out of text."""

from __future__ import annotations

import re

__all__ = ["Secret", "redacted"]

_MASK = "***"
_PATTERNS = (
    re.compile(r"(SharedAccessKey=)[^;\s\"']+"),
    re.compile(r"(SharedAccessSignature )\S+"),
    re.compile(r"([?&]sig=)[^&\s]+"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END)", re.DOTALL),
)


class Secret:
    """A text whose repr and str are masked; `reveal()` is the one way to read it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({_MASK})"

    def __str__(self) -> str:
        return _MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def redacted(text: str) -> str:
    """Return the text with keys, signatures and private keys masked."""
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: found.group(1) + _MASK, text)
    return text
