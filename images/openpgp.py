"""Just enough of OpenPGP (RFC 4880, RFC 9580) to tell public keys apart by their fingerprint.

apt checks signatures; here only the key that it is given is compared with what a recipe states.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["armored", "fingerprints"]

_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+\r?\n)*?\r?\n(.*?)"
    rb"(?:\r?\n=[A-Za-z0-9+/]{4})?\s*\r?\n?-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)
_PUBLIC_KEY = 6
_LINE = 64


def fingerprints(data: bytes) -> list[str]:
    """Return the fingerprints of all primary keys in a binary or armored keyring."""
    return [name for name, _ in _keys(data)]


def armored(data: bytes, fingerprint: str) -> bytes:
    """Return the one key with that fingerprint, ASCII-armored, without any other.

    Raises:
        KeyError: it is not in the keyring.
    """
    key = dict(_keys(data))[fingerprint]
    text = base64.b64encode(key).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    head, foot = (f"-----{word} PGP PUBLIC KEY BLOCK-----" for word in ("BEGIN", "END"))
    return "\n".join([head, "", *lines, f"={_checksum(key)}", foot, ""]).encode()


def _keys(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield fingerprint and packets of each primary key with all that belongs to it."""
    name, block = "", b""
    for kind, body, packet in _packets(_binary(data)):
        if kind == _PUBLIC_KEY:
            if name:
                yield name, block
            name, block = _fingerprint(body), b""
        block += packet
    if name:
        yield name, block


def _fingerprint(body: bytes) -> str:
    # Version 4 is SHA-1 by definition (RFC 9580, section 5.5.4); other versions are not matched.
    head = b"\x99" + len(body).to_bytes(2, "big")
    return hashlib.sha1(head + body, usedforsecurity=False).hexdigest().upper()


def _binary(data: bytes) -> bytes:
    blocks = _ARMOR.findall(data)
    try:
        return b"".join(base64.b64decode(block) for block in blocks) if blocks else data
    except binascii.Error:
        return b""


def _packets(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield type, body and the whole of each packet; what is no packet ends it."""
    at = 0
    while at + 1 < len(data) and data[at] & 0x80:
        start, head = at, data[at]
        at += 1
        if head & 0x40:
            kind, first = head & 0x3F, data[at]
            width = 1 if first < 192 else 2 if first < 224 else 5
            raw = data[at : at + width]
            size = {
                1: first,
                2: ((first - 192) << 8) + (raw[1] if len(raw) > 1 else 0) + 192,
                5: int.from_bytes(raw[1:], "big"),
            }[width]
        else:
            kind, width = (head >> 2) & 0x0F, {0: 1, 1: 2, 2: 4}.get(head & 3, 0)
            size = int.from_bytes(data[at : at + width], "big") if width else len(data) - at
        at += width
        if at + size > len(data):
            return
        yield kind, data[at : at + size], data[start : at + size]
        at += size


def _checksum(data: bytes) -> str:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = (crc << 1) ^ (0x1864CFB if crc & 0x800000 else 0)
    return base64.b64encode((crc & 0xFFFFFF).to_bytes(3, "big")).decode()
