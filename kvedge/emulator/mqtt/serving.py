"""The listener for MQTT over TLS, and the sessions of WebSockets that the HTTPS side hands over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kvedge.emulator.mqtt import wires
from kvedge.emulator.mqtt.sessions import Services, Session

if TYPE_CHECKING:
    from aiohttp import web

    from kvedge.emulator.clientcerts import Chain, ServerTls

__all__ = ["MqttServer"]

_LOG = logging.getLogger(__name__)
_SHUTDOWN_SECONDS = 1.0


class MqttServer:
    """Accepts connections and gives each a session."""

    def __init__(self, services: Services, tls: ServerTls, patience_seconds: float) -> None:
        """Make a server; a client has so many seconds for its handshake, then for CONNECT."""
        self._services = services
        self._tls = tls
        self._patience = patience_seconds
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: str, port: int) -> int:
        """Listen and return the port."""
        self._server = await asyncio.start_server(
            self._serve,
            address,
            port,
            ssl=self._tls.context,
            ssl_handshake_timeout=self._patience,
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

    async def serve_socket(self, socket: web.WebSocketResponse, chain: Chain | None) -> None:
        """Serve a client that came over WebSocket (`/$iothub/websocket`) until it ends."""
        wire = wires.SocketWire(socket)
        session = Session(self._services, wire, chain)
        async with asyncio.TaskGroup() as group:
            group.create_task(wire.run(), name="mqtt websocket")
            await session.run(self._patience)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.set_name("mqtt session")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            chain = self._tls.chain_of(writer.get_extra_info("ssl_object"))
            session = Session(self._services, wires.StreamWire(reader, writer), chain)
            await session.run(self._patience)
        except Exception:  # noqa: BLE001 - logged in full, answered in short
            # One client's fault must not end the server, but it is ours to know.
            _LOG.exception("an MQTT session failed")
        finally:
            writer.close()
