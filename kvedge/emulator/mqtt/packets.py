"""MQTT 3.1.1 packets: bytes to records and back; no I/O.

http://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
"""

from __future__ import annotations

import dataclasses
import enum

__all__ = [
    "Connect",
    "Kind",
    "Malformed",
    "Publish",
    "Subscribe",
    "connack",
    "parse_connect",
    "parse_id",
    "parse_publish",
    "parse_subscribe",
    "parse_unsubscribe",
    "puback",
    "publish",
    "suback",
    "unsuback",
]


class Malformed(Exception):
    """The bytes are no MQTT; the connection is closed."""


class Kind(enum.IntEnum):
    """The packet types that IoT Hub knows."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """An application message."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    packet_id: int = 0
    """0 with QoS 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """The first packet of a client."""

    level: int
    client_id: str
    clean: bool
    keep_alive: int
    username: str
    password: str = dataclasses.field(repr=False)
    will: Publish | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """Wanted topics with the QoS asked for."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def byte(self) -> int:
        return self.raw(1)[0]

    def short(self) -> int:
        return int.from_bytes(self.raw(2), "big")

    def raw(self, count: int) -> bytes:
        taken = self._body[self._at : self._at + count]
        if len(taken) != count:
            raise Malformed("the packet is too short")
        self._at += count
        return taken

    def blob(self) -> bytes:
        return self.raw(self.short())

    def text(self) -> str:
        try:
            value = self.blob().decode()
        except UnicodeDecodeError as error:
            raise Malformed("a text is not UTF-8") from error
        if "\0" in value:
            raise Malformed("a text holds a null character")
        return value

    def rest(self) -> bytes:
        return self.raw(len(self._body) - self._at)

    @property
    def done(self) -> bool:
        return self._at == len(self._body)


def parse_connect(kind: int, flags: int, body: bytes) -> Connect:
    """Return a CONNECT packet; an unknown protocol level is left to the caller."""
    reader = _Reader(body)
    if kind != Kind.CONNECT or flags or reader.text() not in ("MQTT", "MQIsdp"):
        raise Malformed("not an MQTT connection")
    level, bits, keep_alive = reader.byte(), reader.byte(), reader.short()
    if bits & 1:
        raise Malformed("a reserved flag is set")
    client_id = reader.text()
    will = None
    if bits & 0x04:
        qos = bits >> 3 & 3
        will = Publish(
            topic=reader.text(), payload=reader.blob(), qos=qos, retain=bool(bits & 0x20)
        )
        if qos > 2:
            raise Malformed("the will's QoS is 3")
    elif bits & 0x38:
        raise Malformed("will flags without a will")
    username = reader.text() if bits & 0x80 else ""
    password = reader.blob().decode(errors="replace") if bits & 0x40 else ""
    if not reader.done:
        raise Malformed("bytes after the end of CONNECT")
    return Connect(
        level=level,
        client_id=client_id,
        clean=bool(bits & 2),
        keep_alive=keep_alive,
        username=username,
        password=password,
        will=will,
    )


def parse_publish(flags: int, body: bytes) -> Publish:
    """Return a PUBLISH packet."""
    reader = _Reader(body)
    qos = flags >> 1 & 3
    topic = reader.text()
    if qos > 2 or not topic or "#" in topic or "+" in topic:
        raise Malformed("the QoS or the topic is not allowed")
    packet_id = reader.short() if qos else 0
    if qos and not packet_id:
        raise Malformed("the packet id is 0")
    return Publish(
        topic=topic, payload=reader.rest(), qos=qos, retain=bool(flags & 1), packet_id=packet_id
    )


def parse_subscribe(flags: int, body: bytes) -> Subscribe:
    """Return a SUBSCRIBE packet."""
    reader = _Reader(body)
    packet_id = reader.short()
    filters = []
    while not reader.done:
        wanted = reader.text(), reader.byte()
        if wanted[1] > 2:
            raise Malformed("the QoS is not allowed")
        filters.append(wanted)
    if flags != 2 or not packet_id or not filters:
        raise Malformed("not a subscription")
    return Subscribe(packet_id=packet_id, filters=tuple(filters))


def parse_unsubscribe(flags: int, body: bytes) -> tuple[int, list[str]]:
    """Return the packet id and the topics of an UNSUBSCRIBE packet."""
    reader = _Reader(body)
    packet_id = reader.short()
    topics = []
    while not reader.done:
        topics.append(reader.text())
    if flags != 2 or not packet_id or not topics:
        raise Malformed("not the end of a subscription")
    return packet_id, topics


def parse_id(body: bytes) -> int:
    """Return the packet id of a PUBACK packet."""
    if len(body) != 2:
        raise Malformed("a packet id has two bytes")
    return int.from_bytes(body, "big")


def connack(code: int, *, session_present: bool = False) -> bytes:
    """Return a CONNACK packet."""
    return _packet(Kind.CONNACK, 0, bytes((int(session_present and code == 0), code)))


def puback(packet_id: int) -> bytes:
    """Return a PUBACK packet."""
    return _packet(Kind.PUBACK, 0, packet_id.to_bytes(2, "big"))


def suback(packet_id: int, codes: list[int]) -> bytes:
    """Return a SUBACK packet."""
    return _packet(Kind.SUBACK, 0, packet_id.to_bytes(2, "big") + bytes(codes))


def unsuback(packet_id: int) -> bytes:
    """Return an UNSUBACK packet."""
    return _packet(Kind.UNSUBACK, 0, packet_id.to_bytes(2, "big"))


def publish(message: Publish) -> bytes:
    """Return a PUBLISH packet."""
    topic = message.topic.encode()
    head = len(topic).to_bytes(2, "big") + topic
    if message.qos:
        head += message.packet_id.to_bytes(2, "big")
    flags = message.qos << 1 | message.retain
    return _packet(Kind.PUBLISH, flags, head + message.payload)


def _packet(kind: Kind, flags: int, body: bytes) -> bytes:
    length, encoded = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        encoded.append(digit | (0x80 if length else 0))
        if not length:
            return bytes((kind << 4 | flags,)) + bytes(encoded) + body
