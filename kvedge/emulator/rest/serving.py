"""The HTTPS listener: authentication, rights, versions and error bodies around the handlers."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

from aiohttp import http_exceptions, web

from kvedge.emulator import catalogue, records
from kvedge.emulator.access import Caller
from kvedge.emulator.rest import routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from kvedge.emulator.access import Access
    from kvedge.emulator.clientcerts import Chain, ServerTls
    from kvedge.emulator.store import Store

__all__ = ["EMULATOR_HEADER", "HttpsServer"]

_LOG = logging.getLogger(__name__)
_PROTOCOL_LOG = logging.getLogger(f"{__name__}.protocol")
_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_BODY_BYTES = 2 * 1024 * 1024
_STATE_BYTES = 256 * 1024 * 1024
EMULATOR_HEADER = "x-kvedge-emulator"
"""On every answer, so that a stand-in edge runtime can refuse a real hub."""


class HttpsServer:
    """Serves the routes of `routes.ROUTES`."""

    def __init__(
        self,
        handlers: Iterable[object],
        access: Access,
        store: Store,
        tls: ServerTls,
        admit: Callable[[str], Awaitable[None]],
        serve_mqtt: Callable[[web.WebSocketResponse, Chain | None], Awaitable[None]],
        patience_seconds: float,
    ) -> None:
        """Make a server.

        Args:
            handlers: objects that have a method for each route's name.
            admit: asked before each operation; may delay or refuse it.
            serve_mqtt: takes over a client that speaks MQTT over WebSocket.
            patience_seconds: for a handshake or a body; an idle connection has five times as long.
        """
        self._handlers = tuple(handlers)
        self._access = access
        self._store = store
        self._tls = tls
        self._admit = admit
        self._serve_mqtt = serve_mqtt
        self._patience = patience_seconds
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> int:
        """Listen and return the port."""
        app = web.Application(client_max_size=_BODY_BYTES, middlewares=[self._around])
        for route in routes.ROUTES:
            app.router.add_route(route.method, route.path, self._serving(route))
        for what, lines in routes.REFUSED.items():
            for line in lines:
                method, path = line.split()
                app.router.add_route(method, path, _refusing(what))
        app.router.add_get("/$iothub/websocket", self._websocket)
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        app.on_response_prepare.append(_mark)
        # Clients that vanish, or never finish their headers, are put out by the same timer.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_PROTOCOL_LOG,
            keepalive_timeout=5 * self._patience,
            shutdown_timeout=1,
            lingering_time=1,
            handle_signals=False,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        # aiohttp's own TCPSite leaves a TLS handshake a whole minute.
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server,
            address,
            port,
            ssl=self._tls.context,
            ssl_handshake_timeout=self._patience,
            backlog=1024,
            reuse_address=True,
        )
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _serving(self, route: routes.Route) -> Callable[[web.Request], Awaitable[web.Response]]:
        handler = next(
            found for item in self._handlers if (found := getattr(item, route.name, None))
        )

        async def serve(request: web.Request) -> web.Response:
            caller = self._caller(request) if route.right else Caller()
            if route.versioned and not _VERSION.fullmatch(request.query.get("api-version", "")):
                raise catalogue.HubError("InvalidProtocolVersion")
            if caller.device_id:
                self._check_own(route, request, caller)
            elif route.right not in caller.rights:
                raise catalogue.HubError("IotHubUnauthorizedAccess")
            if route.name == "import_state":
                request = request.clone(client_max_size=_STATE_BYTES)
            await self._admit(route.operation)
            if request.body_exists:
                await self._read(request)
            return await handler(request)

        return serve

    async def _read(self, request: web.Request) -> None:
        """Read the body, which aiohttp then keeps for the handler."""
        if (request.content_length or 0) > request.client_max_size:
            raise catalogue.HubError("MessageTooLarge", "The body is too large.")
        try:
            async with asyncio.timeout(self._patience):
                await request.read()
        except TimeoutError as error:
            raise catalogue.HubError("RequestTimeout") from error

    def _caller(self, request: web.Request) -> Caller:
        header = request.headers.get("Authorization", "")
        if header:
            caller = self._access.service_caller(header, request.path)
        else:
            caller = self._access.certified_caller(self._chain(request), request.path)
        if caller is None:
            raise catalogue.HubError("IotHubUnauthorizedAccess")
        return caller

    def _chain(self, request: web.Request) -> Chain | None:
        transport = request.transport
        return self._tls.chain_of(transport and transport.get_extra_info("ssl_object"))

    def _check_own(self, route: routes.Route, request: web.Request, caller: Caller) -> None:
        """Let a device read and write its own modules only."""
        if not route.own or request.match_info["device"] != caller.device_id:
            raise catalogue.HubError("IotHubUnauthorizedAccess")
        identity = self._store.identities[caller.device_id]
        module = request.match_info.get("module", "")
        runtime = module in records.RUNTIME_MODULES
        if request.method != "GET" and not identity.edge and runtime:
            raise catalogue.HubError("IotHubUnauthorizedAccess")

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        """MQTT in WebSocket frames; the client shows its token inside MQTT."""
        socket = web.WebSocketResponse(protocols=("mqtt",), max_msg_size=_BODY_BYTES)
        await socket.prepare(request)
        await self._serve_mqtt(socket, self._chain(request))
        return socket

    async def _unknown(self, request: web.Request) -> web.Response:
        self._caller(request)
        raise catalogue.HubError("NotFound")

    @web.middleware
    async def _around(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except catalogue.HubError as error:
            return _failed(error)
        except web.HTTPRequestEntityTooLarge:
            return _failed(catalogue.HubError("MessageTooLarge", "The body is too large."))
        except web.HTTPException:
            raise
        except Exception:  # noqa: BLE001 - logged in full, answered in short
            _LOG.exception("%s %s failed", request.method, request.path)
            return _failed(catalogue.HubError("ServerError"))


def _refusing(what: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def refuse(request: web.Request) -> web.Response:
        del request
        raise catalogue.HubError("NotImplemented", f"The emulator has no {what}.")

    return refuse


def _failed(error: catalogue.HubError) -> web.Response:
    response = web.Response(
        body=catalogue.body(error),
        status=error.code.status,
        headers={"iothub-errorcode": error.code.name},
        content_type="application/json",
        charset="utf-8",
    )
    if error.code.status in (408, 429):
        # As seen on the live service when it throttles: no Retry-After, and the connection ends.
        response.force_close()
    return response


def _is_ours(record: logging.LogRecord) -> bool:
    """Tell faults of the server from bytes that are no HTTP, which could hold a token."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, http_exceptions.HttpProcessingError)


_PROTOCOL_LOG.addFilter(_is_ours)


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers[EMULATOR_HEADER] = "1"
