"""MQTT 3.1.1 packets as the edge hub's listener needs them.

https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CONNECT",
    "DISCONNECT",
    "PINGREQ",
    "PINGRESP_BYTES",
    "PUBACK",
    "PUBLISH",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "Connect",
    "PacketError",
    "Publish",
    "connack",
    "parse_connect",
    "parse_publish",
    "parse_subscribe",
    "parse_unsubscribe",
    "puback",
    "publish",
    "read_packet",
    "suback",
    "topic_matches",
    "unsuback",
]

CONNECT: Final = 1
PUBLISH: Final = 3
PUBACK: Final = 4
SUBSCRIBE: Final = 8
UNSUBSCRIBE: Final = 10
PINGREQ: Final = 12
DISCONNECT: Final = 14
PINGRESP_BYTES: Final = b"\xd0\x00"
_LARGEST: Final = 300_000
"""A hub message may have 256 KB."""


class PacketError(Exception):
    """The peer does not speak MQTT 3.1.1, or too much of it."""


class _Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes | None:
        """Return exactly so many bytes, or fewer at the end."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """A CONNECT packet."""

    client_id: str
    username: str
    password: str
    keepalive: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A PUBLISH packet."""

    topic: str
    body: bytes
    qos: int
    packet_id: int


def read_packet(stream: _Readable) -> tuple[int, int, bytes] | None:
    """Return type, flags and body of the next packet, or nothing at the end of the stream."""
    head = stream.read(1)
    if not head:
        return None
    length = shift = 0
    while True:
        byte = stream.read(1)
        if not byte:
            return None
        length |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            break
        shift += 7
        if shift > 21:
            raise PacketError("malformed length")
    if length > _LARGEST:
        raise PacketError(f"packet of {length} bytes")
    body = stream.read(length) if length else b""
    if body is None or len(body) != length:
        return None
    return head[0] >> 4, head[0] & 0x0F, body


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._body[self._at : self._at + count]
        if len(piece) != count:
            raise PacketError("packet is too short")
        self._at += count
        return piece

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def binary(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            return self.binary().decode("utf-8")
        except UnicodeDecodeError as error:
            raise PacketError("text is no UTF-8") from error

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)

    @property
    def more(self) -> bool:
        return self._at < len(self._body)


def parse_connect(body: bytes) -> Connect:
    """Return a CONNECT packet's content."""
    reader = _Reader(body)
    protocol, level = reader.text(), reader.take(1)[0]
    if (protocol, level) != ("MQTT", 4):
        raise PacketError(f"protocol {protocol!r} level {level} is not MQTT 3.1.1")
    flags, keepalive = reader.take(1)[0], reader.number()
    client_id = reader.text()
    if flags & 0x04:
        reader.text()
        reader.binary()
    username = reader.text() if flags & 0x80 else ""
    password = reader.text() if flags & 0x40 else ""
    return Connect(client_id=client_id, username=username, password=password, keepalive=keepalive)


def parse_publish(flags: int, body: bytes) -> Publish:
    """Return a PUBLISH packet's content."""
    reader = _Reader(body)
    qos = flags >> 1 & 3
    if qos > 1:
        raise PacketError("QoS 2 is not supported")
    topic = reader.text()
    packet_id = reader.number() if qos else 0
    return Publish(topic=topic, body=reader.rest(), qos=qos, packet_id=packet_id)


def parse_subscribe(body: bytes) -> tuple[int, list[tuple[str, int]]]:
    """Return packet id and topic filters with their QoS."""
    reader = _Reader(body)
    packet_id = reader.number()
    topics: list[tuple[str, int]] = []
    while reader.more:
        topics.append((reader.text(), reader.take(1)[0]))
    return packet_id, topics


def parse_unsubscribe(body: bytes) -> tuple[int, list[str]]:
    """Return packet id and topic filters."""
    reader = _Reader(body)
    packet_id = reader.number()
    topics: list[str] = []
    while reader.more:
        topics.append(reader.text())
    return packet_id, topics


def connack(code: int) -> bytes:
    """Return a CONNACK: 0 accepted, 4 bad credentials, 5 not allowed."""
    return bytes((0x20, 2, 0, code))


def puback(packet_id: int) -> bytes:
    """Return a PUBACK."""
    return struct.pack(">BBH", 0x40, 2, packet_id)


def suback(packet_id: int, grants: Iterable[int]) -> bytes:
    """Return a SUBACK."""
    return _packet(0x90, packet_id.to_bytes(2, "big") + bytes(grants))


def unsuback(packet_id: int) -> bytes:
    """Return an UNSUBACK."""
    return struct.pack(">BBH", 0xB0, 2, packet_id)


def publish(topic: str, body: bytes, *, packet_id: int = 0) -> bytes:
    """Return a PUBLISH, with QoS 1 when there is a packet id."""
    name = topic.encode()
    content = struct.pack(">H", len(name)) + name
    if packet_id:
        content += packet_id.to_bytes(2, "big")
    return _packet(0x32 if packet_id else 0x30, content + body)


def _packet(head: int, body: bytes) -> bytes:
    length, size = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        size.append(digit | (0x80 if length else 0))
        if not length:
            return bytes((head,)) + bytes(size) + body


def topic_matches(pattern: str, topic: str) -> bool:
    """Tell whether a topic filter with `#` at its end, or without wildcards, takes a topic."""
    if pattern.endswith("#"):
        return topic.startswith(pattern[:-1]) or topic == pattern[:-2]
    return topic == pattern
