"""From an HTTP request to a connection of streams: upgrading to SPDY/3.1 and what comes after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, cast

from aiohttp import WSMsgType, web

from kvedge import errors
from kvedge.node.runtime import Tasks
from kvedge.node.spdy import Inbox, ProtocolError, SpdyConnection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

__all__ = ["SPDY", "fed", "messages", "upgraded"]

_log = logging.getLogger(__name__)
SPDY = "SPDY/3.1"
"""Name of the protocol in headers."""
_FAREWELL_SECONDS = 5.0


@contextlib.asynccontextmanager
async def upgraded(
    request: web.Request, protocols: tuple[str, ...]
) -> AsyncGenerator[tuple[web.StreamResponse, SpdyConnection], None]:
    """Answer an upgrade to SPDY and yield the connection."""
    if request.headers.get("Upgrade", "").lower() != SPDY.lower():
        raise errors.Unsupported("Upgrade", f"must be {SPDY} or websocket")
    offered = [
        name.strip()
        for line in request.headers.getall("X-Stream-Protocol-Version", [])
        for name in line.split(",")
    ]
    chosen = next((name for name in protocols if name in offered), None)
    if chosen is None:
        found = ", ".join(offered) or "none"
        raise errors.Unsupported(
            "X-Stream-Protocol-Version", f"{found}; one of {', '.join(protocols)} is needed"
        )
    assert request.transport is not None
    wire = _Wire(request)
    # The signature names aiohttp's own WebSocket reader; any object with its two methods serves.
    request.protocol.set_parser(cast("Any", wire))
    headers = {"Connection": "Upgrade", "Upgrade": SPDY, "X-Stream-Protocol-Version": chosen}
    answer = web.StreamResponse(status=101, headers=headers)
    answer.force_close()
    await answer.prepare(request)
    answer.headers["Connection"] = "Upgrade"
    connection = SpdyConnection(wire.send)
    async with fed(connection, wire.pieces()):
        yield answer, connection
        # Whoever closes first may cut off what is under way to the other end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await wire.ended.wait()


class _Wire:
    """A connection after its upgrade; aiohttp hands over what comes in."""

    def __init__(self, request: web.Request) -> None:
        self._protocol, self._transport = request.protocol, request.transport
        self._inbox = Inbox()
        self.ended = asyncio.Event()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes; called by aiohttp."""
        self._inbox.put(bytes(data))
        return False, b""

    def feed_eof(self) -> None:
        """Take the end; called by aiohttp."""
        self._inbox.end()
        self.ended.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what comes in; while nobody takes it, nothing more is read."""
        while data := await self._inbox.read():
            if self._transport is not None:
                self._transport.pause_reading()
            yield data
            if self._transport is not None and not self.ended.is_set():
                self._transport.resume_reading()

    async def send(self, data: bytes) -> None:
        """Send bytes; waits while the other end is slow."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        with contextlib.suppress(ConnectionError):
            await self._protocol._drain_helper()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


@contextlib.asynccontextmanager
async def fed(
    connection: SpdyConnection, pieces: AsyncIterator[bytes]
) -> AsyncGenerator[None, None]:
    """Feed a connection in the background."""

    async def feed() -> None:
        try:
            async for piece in pieces:
                await connection.feed(piece)
        except ProtocolError as error:
            _log.warning("a caller does not speak %s: %s", SPDY, error)
        finally:
            connection.end()

    async with Tasks() as tasks:
        tasks.spawn(feed(), "caller's-bytes")
        yield


async def messages(answer: web.WebSocketResponse) -> AsyncIterator[bytes]:
    """Yield a WebSocket's messages, text as its bytes."""
    async for message in answer:
        if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
            yield message.data if message.type == WSMsgType.BINARY else message.data.encode()
