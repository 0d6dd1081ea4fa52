"""The bytes of a connection, be it TLS or WebSocket, and packets out of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from kvedge.emulator.mqtt import packets

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["SocketWire", "StreamWire", "Wire", "read_packet"]

_PACKET_BYTES = 256 * 1024 + 4096


class Wire(Protocol):
    """One connection."""

    async def read(self, count: int) -> bytes:
        """Return exactly so many bytes; raises IncompleteReadError or OSError at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Send without waiting."""
        ...

    def unsent(self) -> int:
        """Return how many bytes wait for the network."""
        ...

    def close(self) -> None:
        """End the connection; may be called twice."""
        ...


class StreamWire:
    """A connection by asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, count: int) -> bytes:
        """Return exactly so many bytes."""
        return await self._reader.readexactly(count)

    def write(self, data: bytes) -> None:
        """Send without waiting."""
        if not self._writer.is_closing():
            self._writer.write(data)

    def unsent(self) -> int:
        """Return how many bytes wait for the network."""
        return self._writer.transport.get_write_buffer_size()

    def close(self) -> None:
        """End the connection."""
        self._writer.close()
        # The session also ends when the client does not answer the TLS farewell.
        self._reader.feed_eof()


class SocketWire:
    """A connection by WebSocket; `run` moves its messages until it ends."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._reader = asyncio.StreamReader(limit=_PACKET_BYTES)
        self._unsent: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._size = 0
        self._ended = False

    async def run(self) -> None:
        """Move bytes both ways until either side ends."""
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(self._send(), name="mqtt websocket sender")
            async for message in self._socket:
                if isinstance(message.data, bytes):
                    self._reader.feed_data(message.data)
            self.close()
            await sender

    async def read(self, count: int) -> bytes:
        """Return exactly so many bytes."""
        return await self._reader.readexactly(count)

    def write(self, data: bytes) -> None:
        """Send without waiting."""
        if not self._ended:
            self._size += len(data)
            self._unsent.put_nowait(data)

    def unsent(self) -> int:
        """Return how many bytes wait for the network."""
        return self._size

    def close(self) -> None:
        """End the connection."""
        if not self._ended:
            self._ended = True
            self._unsent.put_nowait(None)
            self._reader.feed_eof()

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionError):
            while (data := await self._unsent.get()) is not None:
                await self._socket.send_bytes(data)
                self._size -= len(data)
        await self._socket.close()


async def read_packet(wire: Wire) -> tuple[int, int, bytes]:
    """Return the next packet's type, flags and body; raises Malformed."""
    first = (await wire.read(1))[0]
    length, shift = 0, 0
    while True:
        digit = (await wire.read(1))[0]
        length |= (digit & 0x7F) << shift
        if not digit & 0x80:
            break
        shift += 7
        if shift > 21:
            raise packets.Malformed("the length has more than four digits")
    if length > _PACKET_BYTES:
        raise packets.Malformed("the packet is larger than 256 KB")
    return first >> 4, first & 0x0F, await wire.read(length) if length else b""
