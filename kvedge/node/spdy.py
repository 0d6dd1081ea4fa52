"""SPDY/3.1, the server's end: the many streams that API servers carry a terminal over.

Only what Kubernetes uses of the draft at https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/
is here: streams that the client opens, data, closing, pings. There is no flow control by windows,
for the Go implementation at the other end has none (docs/decisions/0008-spdy-by-ourselves.md).
"""

from __future__ import annotations

import asyncio
import collections
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Inbox", "ProtocolError", "SpdyConnection", "SpdyStream"]

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY, _HEADERS = 1, 2, 3, 6, 7, 8
_FIN = 0x01
_CANCEL = 5
_VERSION = 0x8003
_HEAD = 8
_PIECE = 32 * 1024
_MAX_HEADERS = 64 * 1024
_MAX_STREAMS = 1000
_ROOM = 1024 * 1024
"""Bytes that a stream holds before its connection is read no further."""


def _dictionary() -> bytes:
    """Return what both ends' header compression starts from (section 2.6.10.1 of the draft)."""
    words = (  # noqa: SIM905 - a list of sixty strings is no better
        "options head post put delete trace accept accept-charset accept-encoding accept-language "
        "accept-ranges age allow authorization cache-control connection content-base "
        "content-encoding content-language content-length content-location content-md5 "
        "content-range content-type date etag expect expires from host if-match if-modified-since "
        "if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
        "proxy-authenticate proxy-authorization range referer retry-after server te trailer "
        "transfer-encoding upgrade user-agent vary via warning www-authenticate method get status"
    ).split()
    words += ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive"]
    words += ["origin"]
    text = (
        "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
        "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
        "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
        "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
        "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
        "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,"
        "text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
        "charset=iso-8859-1,utf-,*,enq=0."
    )
    return b"".join(_text(word) for word in words) + text.encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data


class ProtocolError(Exception):
    """The other end does not speak SPDY/3.1."""


class Inbox:
    """Bytes that have arrived for one reader."""

    def __init__(self) -> None:
        self._pieces: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Add a piece."""
        if data and not self._ended:
            self._pieces.append(data)
            self._size += len(data)
            self._changed.set()

    def end(self) -> None:
        """Let the reader know that no more comes."""
        self._ended = True
        self._changed.set()

    async def room(self) -> None:
        """Wait until the reader has taken enough for more to be sent."""
        while self._size > _ROOM and not self._ended:
            self._changed.clear()
            await self._changed.wait()

    async def read(self) -> bytes:
        """Return the next piece; empty at the end."""
        while not self._pieces:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._size -= len(piece)
        self._changed.set()
        return piece


class SpdyStream:
    """One stream that the client opened."""

    def __init__(self, connection: SpdyConnection, number: int, headers: Mapping[str, str]) -> None:
        self._connection, self._number = connection, number
        self.headers = headers
        """By lower-case name."""
        self.inbox = Inbox()
        self.closed = False
        """Nothing more may be written."""

    async def read(self) -> bytes:
        """Return the next piece; empty when the client has closed its side."""
        return await self.inbox.read()

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the connection is full."""
        for start in range(0, len(data), _PIECE):
            if self.closed:
                return
            await self._connection.send_data(self._number, data[start : start + _PIECE])

    async def close(self) -> None:
        """End our side."""
        if not self.closed:
            self.closed = True
            await self._connection.send_data(self._number, b"", fin=True)

    async def reset(self) -> None:
        """End both sides at once."""
        if not self.closed:
            self.closed = True
            await self._connection.send_reset(self._number)
        self.inbox.end()


class SpdyConnection:
    """A session of streams; bytes go in by `feed` and out by `send`."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._buffer = bytearray()
        self._streams: dict[int, SpdyStream] = {}
        self._opened: asyncio.Queue[SpdyStream | None] = asyncio.Queue()
        dictionary = _dictionary()
        self._inflate = zlib.decompressobj(zdict=dictionary)
        self._deflate = zlib.compressobj(zdict=dictionary)

    async def accept(self) -> SpdyStream | None:
        """Return the next stream that the client opens; None when the connection has ended."""
        return await self._opened.get()

    async def feed(self, data: bytes) -> None:
        """Take bytes from the client; waits while a stream's reader is far behind.

        Raises:
            ProtocolError: the bytes are not SPDY/3.1.
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD:
            first, second = struct.unpack_from(">II", self._buffer)
            size = second & 0xFFFFFF
            if len(self._buffer) < _HEAD + size:
                return
            body = bytes(self._buffer[_HEAD : _HEAD + size])
            del self._buffer[: _HEAD + size]
            if first & 0x80000000:
                if first >> 16 != _VERSION:
                    raise ProtocolError(f"version {first >> 16 & 0x7FFF} is not 3")
                await self._control(first & 0xFFFF, second >> 24, body)
            else:
                await self._data(first, second >> 24, body)

    def end(self) -> None:
        """Let all readers know that the client has gone."""
        for stream in self._streams.values():
            stream.closed = True
            stream.inbox.end()
        self._opened.put_nowait(None)

    async def _data(self, number: int, flags: int, body: bytes) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.inbox.put(body)
        if flags & _FIN:
            stream.inbox.end()
        await stream.inbox.room()

    async def _control(self, kind: int, flags: int, body: bytes) -> None:
        try:
            if kind == _SYN_STREAM:
                await self._open(struct.unpack_from(">I", body)[0] & 0x7FFFFFFF, flags, body[10:])
            elif kind == _PING:
                await self._send(_frame(_PING, 0, body))
            elif kind == _RST_STREAM:
                stream = self._streams.pop(struct.unpack_from(">I", body)[0] & 0x7FFFFFFF, None)
                if stream is not None:
                    stream.closed = True
                    stream.inbox.end()
            elif kind == _HEADERS:
                # Nobody reads further headers, but the compression's state has to go on.
                self._headers(body[4:])
            elif kind == _GOAWAY:
                self._opened.put_nowait(None)
        except (struct.error, zlib.error, UnicodeDecodeError) as cause:
            raise ProtocolError(f"control frame {kind}: {cause}") from cause

    async def _open(self, number: int, flags: int, block: bytes) -> None:
        headers = self._headers(block)
        if len(self._streams) >= _MAX_STREAMS:
            raise ProtocolError(f"more than {_MAX_STREAMS} streams")
        stream = self._streams[number] = SpdyStream(self, number, headers)
        if flags & _FIN:
            stream.inbox.end()
        reply = self._deflate.compress(struct.pack(">I", 0))
        reply += self._deflate.flush(zlib.Z_SYNC_FLUSH)
        await self._send(_frame(_SYN_REPLY, 0, struct.pack(">I", number) + reply))
        self._opened.put_nowait(stream)

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._inflate.decompress(block, _MAX_HEADERS)
        if self._inflate.unconsumed_tail:
            raise ProtocolError(f"headers of more than {_MAX_HEADERS} bytes")
        (count,) = struct.unpack_from(">I", plain)
        found: dict[str, str] = {}
        offset = 4
        for _ in range(count):
            parts: list[str] = []
            for _ in range(2):
                (size,) = struct.unpack_from(">I", plain, offset)
                parts.append(plain[offset + 4 : offset + 4 + size].decode())
                offset += 4 + size
            found[parts[0].lower()] = parts[1]
        return found

    async def send_data(self, number: int, data: bytes, *, fin: bool = False) -> None:
        """Send a data frame."""
        head = struct.pack(">II", number, (_FIN if fin else 0) << 24 | len(data))
        await self._send(head + data)

    async def send_reset(self, number: int) -> None:
        """Cancel a stream."""
        await self._send(_frame(_RST_STREAM, 0, struct.pack(">II", number, _CANCEL)))

    def forget(self, stream: SpdyStream) -> None:
        """Let go of a stream that is done."""
        self._streams = {n: known for n, known in self._streams.items() if known is not stream}


def _frame(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack(">HHI", _VERSION, kind, flags << 24 | len(body)) + body
