"""The listener for MQTT over TLS."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kvedge.emulator.mqtt.sessions import Services, Session

if TYPE_CHECKING:
    import ssl

__all__ = ["MqttServer"]

_LOG = logging.getLogger(__name__)
_HANDSHAKE_SECONDS = 15.0
_SHUTDOWN_SECONDS = 1.0


class _StreamWire:
    """A connection by asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, count: int) -> bytes:
        return await self._reader.readexactly(count)

    def write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    def unsent(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    def close(self) -> None:
        self._writer.close()
        # A client that is told to go also sees it when it does not answer the TLS farewell.
        self._reader.feed_eof()


class MqttServer:
    """Accepts connections and gives each a session."""

    def __init__(self, services: Services, context: ssl.SSLContext) -> None:
        self._services = services
        self._context = context
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: str, port: int) -> int:
        """Listen and return the port."""
        self._server = await asyncio.start_server(
            self._serve,
            address,
            port,
            ssl=self._context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            backlog=1024,
            reuse_address=True,
        )
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, end all sessions and wait for them."""
        if self._server is not None:
            self._server.close()
        for session in self._services.presence.sessions():
            session.close("the hub stops")
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=2)
            for task in late:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.set_name("mqtt session")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await Session(self._services, _StreamWire(reader, writer)).run()
        except Exception:  # noqa: BLE001 - logged in full, answered in short
            # One client's fault must not end the server, but it is ours to know.
            _LOG.exception("an MQTT session failed")
        finally:
            writer.close()
