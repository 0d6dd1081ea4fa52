"""A small MQTT client in IoT Hub's dialect, for many simulated devices in one process.

It keeps one connection as a module, answers methods and reports properties; no reconnect, no
queue. Tests of the hub use the vendor's client; this one is for numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import orjson

from kvedge.emulator import tokens

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from kvedge.emulator.records import Json

    Methods = Callable[[str, Any], Awaitable[tuple[int, Any]]]

__all__ = ["LightClient", "Refused"]

_KEEP_ALIVE = 240
_TOKEN_SECONDS = 86400
_ANSWER_SECONDS = 30.0


class Refused(ConnectionError):
    """The hub answered CONNECT with a code other than 0."""


class LightClient:
    """One connection; `run` serves it until it ends."""

    def __init__(
        self, *, host: str, client_id: str, key: str, on_desired: Callable[[Json], None],
        on_method: Methods,
    ) -> None:  # fmt: skip
        """Prepare a connection as `device/module`; the callbacks hear patches and methods."""
        self._host = host
        self._client_id = client_id
        self._key = key
        self._on_desired = on_desired
        self._on_method = on_method
        self._answers: dict[str, asyncio.Future[tuple[int, bytes]]] = {}
        self._ids = itertools.count(1)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def connect(self, address: str, port: int, context: ssl.SSLContext) -> None:
        """Open the connection and subscribe; raises Refused or OSError."""
        self._reader, self._writer = await asyncio.open_connection(
            address, port, ssl=context, server_hostname=self._host, ssl_shutdown_timeout=1
        )
        device, _, module = self._client_id.partition("/")
        resource = f"{self._host}/devices/{device}" + (f"/modules/{module}" if module else "")
        token = tokens.issue(resource, self._key, expiry=int(time.time()) + _TOKEN_SECONDS)
        username = f"{self._host}/{self._client_id}/?api-version=2021-04-12"
        head = _text("MQTT") + bytes((4, 0xC2)) + _KEEP_ALIVE.to_bytes(2, "big")
        body = head + _text(self._client_id) + _text(username) + _text(token)
        self._send(0x10, body)
        kind, answer = await self._packet()
        if kind != 0x20 or answer[1] != 0:
            self._writer.close()
            raise Refused(f"{self._client_id!r} refused with code {answer[1:2].hex()}")
        topics = (
            "$iothub/twin/res/#",
            "$iothub/twin/PATCH/properties/desired/#",
            "$iothub/methods/POST/#",
        )
        self._send(0x82, b"\0\1" + b"".join(_text(topic) + b"\0" for topic in topics))

    async def run(self) -> None:
        """Handle what the hub sends until the connection ends; raises OSError."""
        async with asyncio.TaskGroup() as group:
            pings = group.create_task(self._ping(), name=f"ping {self._client_id}")
            try:
                while True:
                    kind, body = await self._packet()
                    if kind & 0xF0 == 0x30:
                        self._published(kind, body, group)
            except asyncio.IncompleteReadError:
                pass
            finally:
                pings.cancel()
                self.close()

    async def twin(self) -> Json:
        """Return the twin's desired and reported properties."""
        status, body = await self._ask("$iothub/twin/GET/", b" ")
        if status != 200:
            raise ConnectionError(f"the hub answered {status} to a twin request")
        return orjson.loads(body)

    async def report(self, patch: Json) -> int:
        """Patch reported properties and return the hub's status."""
        topic = "$iothub/twin/PATCH/properties/reported/"
        return (await self._ask(topic, orjson.dumps(patch)))[0]

    def send(self, payload: bytes) -> None:
        """Send telemetry (QoS 0)."""
        self._publish(
            f"devices/{self._client_id.replace('/', '/modules/')}/messages/events/", payload
        )

    def close(self) -> None:
        """End the connection."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the connection ended"))
        with contextlib.suppress(OSError):
            self._writer.close()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_ALIVE * 0.8)
            self._send(0xC0, b"")

    async def _ask(self, topic: str, payload: bytes) -> tuple[int, bytes]:
        request_id = str(next(self._ids))
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = answer
        try:
            self._publish(f"{topic}?$rid={request_id}", payload)
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await answer
        finally:
            self._answers.pop(request_id, None)

    def _published(self, kind: int, body: bytes, group: asyncio.TaskGroup) -> None:
        size = int.from_bytes(body[:2], "big")
        topic, at = body[2 : 2 + size].decode(), 2 + size
        if kind & 0x06:
            self._send(0x40, body[at : at + 2])
            at += 2
        payload = body[at:]
        path, _, query = topic.partition("?")
        request_id = urllib.parse.parse_qs(query).get("$rid", [""])[0]
        if path.startswith("$iothub/twin/res/"):
            answer = self._answers.get(request_id)
            if answer is not None and not answer.done():
                answer.set_result((int(path.split("/")[3]), payload))
        elif path.startswith("$iothub/twin/PATCH/properties/desired/"):
            self._on_desired(orjson.loads(payload))
        elif path.startswith("$iothub/methods/POST/"):
            name = urllib.parse.unquote(path.split("/")[3])
            group.create_task(
                self._call(name, request_id, orjson.loads(payload)), name=f"method {name}"
            )

    async def _call(self, name: str, request_id: str, payload: Any) -> None:
        status, answer = await self._on_method(name, payload)
        self._publish(f"$iothub/methods/res/{status}/?$rid={request_id}", orjson.dumps(answer))

    def _publish(self, topic: str, payload: bytes) -> None:
        self._send(0x30, _text(topic) + payload)

    def _send(self, kind: int, body: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionError("the connection ended")
        length, encoded = len(body), bytearray()
        while True:
            length, digit = divmod(length, 128)
            encoded.append(digit | (0x80 if length else 0))
            if not length:
                break
        self._writer.write(bytes((kind,)) + encoded + body)

    async def _packet(self) -> tuple[int, bytes]:
        kind = (await self._reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            digit = (await self._reader.readexactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return kind, await self._reader.readexactly(length)


def _text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw
