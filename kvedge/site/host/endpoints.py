"""virt-handler's HTTPS endpoints, which virt-api calls with a client certificate of its own.

Shapes and answers follow KubeVirt 1.8 (pkg/virt-handler/rest): console and VNC are websockets
with raw bytes in binary frames; a new client puts the old one out.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from kvedge import errors
from kvedge.site.host import guestinfo, qemu
from kvedge.site.host.monitor import open_socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kvedge.site.host.settings import HostSettings
    from kvedge.site.host.vmis import Guest, Guests

__all__ = ["handler_app", "peer_names", "server_context"]

_CLIENT = "kubevirt.io:system:client:virt-handler"
_PROTOCOL = "plain.kubevirt.io"
_BUFFER = 10240
_BASE = "/v1/namespaces/{namespace}/virtualmachineinstances/{name}"
_SETTLE_SECONDS = 0.1
_CTRL_ALT_DELETE = ("ctrl", "alt", "delete")


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """Return a TLS context that demands a client certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_names(request: web.Request) -> list[str]:
    """Return the common names of the caller's certificate."""
    certificate = (request.transport.get_extra_info("peercert") if request.transport else {}) or {}
    return [
        value
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName"
    ]


def handler_app(guests: Guests, settings: HostSettings) -> web.Application:
    """Return the application; serve it with the kubevirt authority's server context."""
    del settings

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if _CLIENT not in peer_names(request):
            return web.Response(status=403, text="common name is invalid")
        try:
            return await handler(request)
        except errors.KvedgeError as error:
            return web.Response(status=500, text=error.message)

    app = web.Application(middlewares=[guard])
    endpoints = _Endpoints(guests)
    app.router.add_get("/healthz", endpoints.healthz)
    app.router.add_get(f"{_BASE}/console", endpoints.console)
    app.router.add_get(f"{_BASE}/vnc", endpoints.vnc)
    app.router.add_get(f"{_BASE}/vnc/screenshot", endpoints.screenshot)
    app.router.add_get(f"{_BASE}/guestosinfo", endpoints.guestosinfo)
    app.router.add_get(f"{_BASE}/userlist", endpoints.userlist)
    app.router.add_get(f"{_BASE}/filesystemlist", endpoints.filesystemlist)
    for act in ("pause", "unpause", "softreboot", "reset"):
        app.router.add_put(f"{_BASE}/{act}", getattr(endpoints, act))
    app.router.add_route("*", _BASE + "/{act:.*}", endpoints.unknown)
    return app


class _Endpoints:
    def __init__(self, guests: Guests) -> None:
        self._guests = guests

    def _guest(self, request: web.Request) -> Guest:
        found = self._guests.find(request.match_info["namespace"], request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="VMI does not exist")
        return found

    async def healthz(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok")

    async def unknown(self, request: web.Request) -> web.Response:
        act = request.match_info["act"]
        return web.Response(status=501, text=f"{act} is not done by this host")

    # Streams

    async def console(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, qemu.CONSOLE_SOCKET, "console")

    async def vnc(self, request: web.Request) -> web.StreamResponse:
        guest = self._guest(request)
        if guest.screen and request.query.get("preserveSession") == "true":
            return web.Response(status=503, text="Active VNC connection. Request denied.")
        return await self._stream(request, qemu.SCREEN_SOCKET, "screen")

    async def _stream(self, request: web.Request, name: str, slot: str) -> web.StreamResponse:
        guest = self._guest(request)
        if not (guest.directory / name).exists():
            return web.Response(status=400, text=f"the guest has no {slot}")
        socket = web.WebSocketResponse(protocols=(_PROTOCOL,), compress=False)
        await socket.prepare(request)
        # virt-api splices two TCP connections: bytes that come together with the answer to the
        # upgrade could be lost.
        await asyncio.sleep(_SETTLE_SECONDS)
        old: web.WebSocketResponse | None = getattr(guest, slot)
        setattr(guest, slot, socket)
        if old is not None:
            await old.close()
        try:
            reader, writer = await self._open(guest, name)
            try:
                async with asyncio.TaskGroup() as group:
                    out = group.create_task(_send(reader, socket), name=f"{guest.name} {slot}")
                    await _receive(socket, writer)
                    out.cancel()
            finally:
                writer.close()
        finally:
            if getattr(guest, slot) is socket:
                setattr(guest, slot, None)
        return socket

    async def _open(
        self, guest: Guest, name: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await open_socket(guest.directory / name)
        except OSError as cause:
            raise errors.SiteError(f"{guest.name}: {name} is gone") from cause

    async def screenshot(self, request: web.Request) -> web.Response:
        guest = self._guest(request)
        file = guest.directory / "screen.png"
        await guest.machine.command("screendump", filename=file.name, format="png")
        return web.Response(body=file.read_bytes(), content_type="image/png")

    # What the agent tells

    async def guestosinfo(self, request: web.Request) -> web.Response:
        return web.json_response(await guestinfo.guest_info(self._guest(request).machine.agent))

    async def userlist(self, request: web.Request) -> web.Response:
        items = await guestinfo.user_list(self._guest(request).machine.agent)
        return web.json_response({"metadata": {}, "items": items})

    async def filesystemlist(self, request: web.Request) -> web.Response:
        items = await guestinfo.filesystem_list(self._guest(request).machine.agent)
        return web.json_response({"metadata": {}, "items": items})

    # Power

    async def pause(self, request: web.Request) -> web.Response:
        await self._guest(request).machine.command("stop")
        return web.Response(status=202)

    async def unpause(self, request: web.Request) -> web.Response:
        await self._guest(request).machine.command("cont")
        return web.Response(status=202)

    async def reset(self, request: web.Request) -> web.Response:
        await self._guest(request).machine.command("system_reset")
        return web.Response(status=202)

    async def softreboot(self, request: web.Request) -> web.Response:
        machine = self._guest(request).machine
        if machine.agent_open:
            # The agent ends the answer with the guest, so none is awaited for long.
            with contextlib.suppress(errors.SiteError):
                await machine.agent.command("guest-shutdown", 2.0, mode="reboot")
        else:
            keys: list[dict[str, Any]] = [
                {"type": "qcode", "data": key} for key in _CTRL_ALT_DELETE
            ]
            await machine.command("send-key", keys=keys)
        return web.Response(status=202)


async def _send(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_BUFFER):
            await socket.send_bytes(data)
        await socket.close()


async def _receive(socket: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for message in socket:
            if message.type in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}:
                data = message.data
                writer.write(data if isinstance(data, bytes) else data.encode())
                await writer.drain()
