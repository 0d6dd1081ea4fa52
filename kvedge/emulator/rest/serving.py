"""The HTTPS listener: authentication, rights, versions and error bodies around the handlers."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from aiohttp import web

from kvedge.emulator import catalogue, records
from kvedge.emulator.access import Caller
from kvedge.emulator.rest import routes

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from kvedge.emulator.access import Access
    from kvedge.emulator.rest.handlers import Handlers
    from kvedge.emulator.store import Store

__all__ = ["EMULATOR_HEADER", "HttpsServer"]

_LOG = logging.getLogger(__name__)
_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_BODY_BYTES = 2 * 1024 * 1024
_STATE_BYTES = 256 * 1024 * 1024
EMULATOR_HEADER = "x-kvedge-emulator"
"""On every answer, so that a stand-in edge runtime can refuse a real hub."""


class HttpsServer:
    """Serves the routes of `routes.ROUTES`."""

    def __init__(
        self,
        handlers: Handlers,
        access: Access,
        store: Store,
        context: ssl.SSLContext,
        admit: Callable[[str], Awaitable[None]],
        serve_mqtt: Callable[[web.WebSocketResponse], Awaitable[None]],
    ) -> None:
        """Make a server.

        Args:
            admit: asked before each operation; may delay or refuse it.
            serve_mqtt: takes over a client that speaks MQTT over WebSocket.
        """
        self._handlers = handlers
        self._access = access
        self._store = store
        self._context = context
        self._admit = admit
        self._serve_mqtt = serve_mqtt
        self._runner: web.AppRunner | None = None

    async def start(self, address: str, port: int) -> int:
        """Listen and return the port."""
        app = web.Application(client_max_size=_STATE_BYTES, middlewares=[self._around])
        for route in routes.ROUTES:
            app.router.add_route(route.method, route.path, self._serving(route))
        app.router.add_get("/$iothub/websocket", self._websocket)
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        app.on_response_prepare.append(_mark)
        # A day of idle connections would be kept otherwise by clients that vanish.
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=75, shutdown_timeout=1, handle_signals=False
        )
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, address, port, ssl_context=self._context, backlog=1024, reuse_address=True
        )
        await site.start()
        return self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _serving(self, route: routes.Route) -> Callable[[web.Request], Awaitable[web.Response]]:
        handler = getattr(self._handlers, route.name)

        async def serve(request: web.Request) -> web.Response:
            caller = self._caller(request) if route.right else Caller()
            if route.versioned and not _VERSION.fullmatch(request.query.get("api-version", "")):
                raise catalogue.HubError("InvalidProtocolVersion")
            if caller.device_id:
                self._check_own(route, request, caller)
            elif route.right not in caller.rights:
                raise catalogue.HubError("IotHubUnauthorizedAccess")
            if route.operation != "Emulator" and (request.content_length or 0) > _BODY_BYTES:
                raise catalogue.HubError("MessageTooLarge", "The body is too large.")
            await self._admit(route.operation)
            return await handler(request)

        return serve

    def _caller(self, request: web.Request) -> Caller:
        header = request.headers.get("Authorization", "")
        caller = self._access.service_caller(header, request.path)
        if caller is None:
            raise catalogue.HubError("IotHubUnauthorizedAccess")
        return caller

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
        await self._serve_mqtt(socket)
        return socket

    async def _unknown(self, request: web.Request) -> web.Response:
        for start, what in routes.REFUSED.items():
            if request.path == start or request.path.startswith(f"{start}/"):
                raise catalogue.HubError("NotImplemented", f"The emulator has no {what}.")
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


def _failed(error: catalogue.HubError) -> web.Response:
    response = web.Response(
        body=catalogue.body(error),
        status=error.code.status,
        headers={"iothub-errorcode": error.code.name},
        content_type="application/json",
        charset="utf-8",
    )
    if error.code.status == 429:
        # As seen on the live service: no Retry-After, and the connection ends.
        response.force_close()
    return response


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers[EMULATOR_HEADER] = "1"
