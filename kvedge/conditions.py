"""Checking target conditions of IoT Edge deployments before the hub sees them.

The grammar is the filter part of the hub's query language, limited to what a deployment may use:
`deviceId`, `tags.…` and `properties.reported.…`
(https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring#target-condition).
"""

from __future__ import annotations

import re

__all__ = ["mistake_in"]

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")"
    r"|(?P<number>-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?))"
    r"|(?P<sign><=|>=|!=|<>|=|<|>|\(|\)|\[|\]|,)"
    r"|(?P<name>[A-Za-z_$][\w$-]*(?:\.(?:[\w$-]+|\[\[[^\]]+\]\]))*))"
)
_COMPARE = {"=", "!=", "<>", "<", "<=", ">", ">="}
_CONSTANTS = {"true", "false", "null", "undefined"}


def mistake_in(condition: str) -> str:
    """Return what is wrong with a target condition, or an empty text."""
    if condition.strip() == "*":
        return ""
    tokens: list[tuple[str, str]] = []
    at = 0
    text = condition.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found or found.end() == at:
            return f"has no meaning from {text[at:].strip()[:20]!r} on"
        tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
        at = found.end()
    if not tokens:
        return "is empty"
    reader = _Reader(tokens)
    try:
        reader.either()
        reader.end()
    except _Mistake as mistake:
        return str(mistake)
    return ""


class _Mistake(Exception):
    """What is wrong."""


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def either(self) -> None:
        self._both()
        while self._word("or"):
            self._both()

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise _Mistake(f"has {self._next()[1]!r} where it should end")

    def _both(self) -> None:
        self._one()
        while self._word("and"):
            self._one()

    def _one(self) -> None:
        if self._word("not"):
            self._one()
            return
        if self._peek() == ("sign", "("):
            self._next()
            self.either()
            self._expect(")")
            return
        self._operand()
        kind, text = self._next()
        if kind == "name" and text.lower() in ("in", "nin"):
            self._expect("[")
            self._operand()
            while self._peek() == ("sign", ","):
                self._next()
                self._operand()
            self._expect("]")
        elif text in _COMPARE:
            self._operand()
        else:
            raise _Mistake(f"has {text!r} where a comparison belongs")

    def _operand(self) -> None:
        kind, text = self._next()
        if kind in ("text", "number"):
            return
        if kind != "name":
            raise _Mistake(f"has {text!r} where a name or a value belongs")
        if text.lower() in _CONSTANTS or text.lower() == "deviceid":
            return
        if text.lower().startswith(("tags.", "properties.reported.")):
            return
        raise _Mistake(
            f"names {text!r}; only deviceId, tags.… and properties.reported.… can be used"
        )

    def _word(self, word: str) -> bool:
        kind, text = self._peek()
        if kind == "name" and text.lower() == word:
            self._at += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        text = self._next()[1]
        if text != sign:
            raise _Mistake(f"has {text!r} where {sign!r} belongs")

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise _Mistake("ends too early")
        self._at += 1
        return self._tokens[self._at - 1]
