"""One HTTP/1.1 request and its answer, for a few tens of microseconds.

A virtual node sends two short requests for each pod, so their cost is the node's cost. This keeps
connections open and does just what Kubernetes' JSON answers need; streams and WebSockets are
aiohttp's. Why it is here: docs/decisions/0009-requests-by-ourselves.md.
"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

__all__ = ["Answer", "Broken", "Pool"]

_END = b"\r\n\r\n"
_MAX_HEAD = 64 * 1024
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class Broken(ConnectionError):
    """The connection ended, or what came is not HTTP."""


class Answer(NamedTuple):
    """What the server said."""

    status: int
    headers: dict[str, str]
    """By lower-case name; of several lines of one name the last."""
    body: bytes


class Pool:
    """Connections to one server; at most `limit` at once, kept open between requests."""

    def __init__(self, server: str, tls: ssl.SSLContext | bool, limit: int) -> None:
        parts = urlsplit(server)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = tls if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._netloc = parts.netloc.rpartition("@")[2]
        self._idle: list[_Connection] = []
        self._slots = asyncio.Semaphore(limit)
        self._closed = False

    async def exchange(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Send a request and return its answer.

        A kept connection that the server turns out to have closed is replaced, unless the request
        could then be done twice.

        Args:
            method: HTTP method.
            target: path and query, quoted.
            headers: all but Host and Content-Length.
            body: may be empty.

        Raises:
            Broken: the server ended the connection or does not speak HTTP.
            OSError: there is no connection.
        """
        head = [f"{method} {self._prefix}{target} HTTP/1.1", f"Host: {self._netloc}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        if body or method not in ("GET", "DELETE"):
            head.append(f"Content-Length: {len(body)}")
        if any("\n" in line or "\r" in line for line in head):
            raise Broken("a header of the request holds a line break")
        message = "\r\n".join(head).encode() + _END + body
        async with self._slots:
            while self._idle:
                kept = self._idle.pop()
                if kept.open:
                    try:
                        return await self._on(kept, message)
                    except Broken:
                        if kept.begun or method not in _REPEATABLE:
                            raise
            return await self._on(await self._connect(), message)

    async def _on(self, connection: _Connection, message: bytes) -> Answer:
        try:
            answer = await connection.send(message)
        except BaseException:
            # What is still to come on it belongs to nobody.
            connection.close()
            raise
        if self._closed:
            connection.close()
        elif connection.open:
            self._idle.append(connection)
        return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self._host, self._port, ssl=self._tls
        )
        return connection

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class _Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self.begun = False
        """A byte of the answer has come."""
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self._pieces: collections.deque[bytes] = collections.deque()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._left: int | None = None
        """Bytes of the body or chunk that are still to come; None until the end of the stream."""
        self._chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.open = True

    def send(self, message: bytes) -> asyncio.Future[Answer]:
        """Send a request and return its future answer."""
        self.begun, self._status = False, 0
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._waiter

    def close(self) -> None:
        """Close it."""
        self.open = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self.begun = True
        self._buffer += data
        try:
            while not self._status and self._parse_head():
                pass
            if self._status:
                self._parse_body()
        except (ValueError, IndexError) as cause:
            self._fail(Broken(f"not HTTP: {cause}"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._status and self._left is None and exc is None:
            self._pieces.append(bytes(self._buffer))
            self._finish()
        else:
            self._fail(Broken(str(exc) if exc else "the server closed the connection"))

    def _fail(self, error: Broken) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.close()

    def _parse_head(self) -> bool:
        """Take the head off the buffer; return whether another one follows at once."""
        end = self._buffer.find(_END)
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise ValueError("the head does not end")
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + len(_END)]
        version, status = first.split(" ", 2)[:2]
        if not version.startswith("HTTP/1."):
            raise ValueError(repr(first))
        if 100 <= int(status) < 200:
            return True
        self._status = int(status)
        self._headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self._headers[name.lower()] = value.strip()
        self._chunked = self._headers.get("transfer-encoding", "").lower() == "chunked"
        length = self._headers.get("content-length")
        if self._chunked or self._status in (204, 304):
            self._left = 0
        else:
            self._left = int(length) if length is not None else None
        return False

    def _parse_body(self) -> None:
        if not self._chunked:
            if self._left is not None and len(self._buffer) >= self._left:
                self._pieces.append(bytes(self._buffer[: self._left]))
                del self._buffer[: self._left]
                self._finish()
            return
        position = 0
        while True:
            end = self._buffer.find(b"\r\n", position)
            if end < 0:
                break
            size = int(self._buffer[position:end].split(b";", 1)[0], 16)
            after = end + 2 + size + 2
            if len(self._buffer) < after:
                break
            if size == 0:
                del self._buffer[:after]
                self._finish()
                return
            self._pieces.append(bytes(self._buffer[end + 2 : after - 2]))
            position = after
        del self._buffer[:position]

    def _finish(self) -> None:
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._headers.get("connection", "").lower() == "close" or self._buffer:
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Answer(self._status, self._headers, body))
