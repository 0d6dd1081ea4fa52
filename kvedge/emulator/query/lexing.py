"""Query text to tokens."""

from __future__ import annotations

import dataclasses
import re

__all__ = ["QueryError", "Token", "tokenize"]


class QueryError(Exception):
    """A text is not a query; the message says where and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One word of a query."""

    kind: str
    """`name`, `quoted` (a bracketed name), `text`, `number`, `sign` or `end`."""
    value: str | int | float
    at: int
    """Offset in the text."""


_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_SIGN = re.compile(r"<=|>=|<>|!=|[=<>+\-*/%(),.\[\]]")
_ESCAPES = {
    "'": "'", '"': '"', "\\": "\\", "/": "/",
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip
_HEX = re.compile(r"[0-9a-fA-F]{4}")


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a text, the last one being `end`; raises QueryError."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char.isspace():
            at += 1
        elif char in "'\"":
            value, end = _string(text, at)
            tokens.append(Token("text", value, at))
            at = end
        elif text.startswith("[[", at) and tokens and tokens[-1].value == ".":
            end = text.find("]]", at)
            if end < 0:
                raise QueryError(f"'[[' at position {at} is not closed.")
            tokens.append(Token("quoted", text[at + 2 : end], at))
            at = end + 2
        elif found := _NUMBER.match(text, at):
            tokens.append(Token("number", _number(found[0]), at))
            at = found.end()
        elif found := _NAME.match(text, at):
            tokens.append(Token("name", found[0], at))
            at = found.end()
        elif found := _SIGN.match(text, at):
            tokens.append(Token("sign", found[0], at))
            at = found.end()
        else:
            raise QueryError(f"Unexpected character {char!r} at position {at}.")
    tokens.append(Token("end", "", len(text)))
    return tokens


def _number(text: str) -> int | float:
    if text[:2].lower() == "0x":
        whole = int(text, 16)
    elif text.isdigit() and len(text) <= 20:
        whole = int(text)
    else:
        return float(text)
    return whole if whole < 2**63 else float(min(whole, 2**1023))


def _string(text: str, start: int) -> tuple[str, int]:
    quote, parts, at = text[start], [], start + 1
    while at < len(text):
        char = text[at]
        if char == quote:
            return "".join(parts), at + 1
        if char != "\\":
            parts.append(char)
            at += 1
            continue
        escape = text[at + 1 : at + 2]
        if escape == "u" and (found := _HEX.match(text, at + 2)):
            parts.append(chr(int(found[0], 16)))
            at += 6
        elif escape in _ESCAPES:
            parts.append(_ESCAPES[escape])
            at += 2
        else:
            raise QueryError(f"Unknown escape at position {at}.")
    raise QueryError(f"The text that begins at position {start} is not closed.")
