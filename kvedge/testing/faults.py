"""An API server behind which things go wrong: passes requests on and fails them as it is told.

Limits: plain HTTP on loopback, no upgrades (exec and WebSockets are not passed on).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, Self

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge import kube

__all__ = ["Fault", "FaultyServer"]

Fault = Literal["throttle", "error", "cut", "lose-answer"]
"""429 with Retry-After; 500; the connection ends before the request counts; it ends after."""
_PASSED_ON = ("Accept", "Content-Type")


class FaultyServer:
    """An async context manager whose `config` leads to the real API server through faults."""

    def __init__(
        self, config: kube.Config, decide: Callable[[str, str], Fault | None] | None = None
    ) -> None:
        self._real = config
        self.decide = decide or (lambda _method, _path: None)
        """Called with method and path of each request."""
        self.failed = 0
        """Requests that met a fault so far."""
        self._runner: web.AppRunner
        self._session: aiohttp.ClientSession
        self.config: kube.Config

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._real.ssl_context or True, limit=0),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{rest:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        self.config = dataclasses.replace(
            self._real, server=f"http://127.0.0.1:{port}", ssl_context=None
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = self.decide(request.method, request.path)
        if fault:
            self.failed += 1
        if fault == "throttle":
            return web.Response(status=429, headers={"Retry-After": "1"})
        if fault == "error":
            return web.Response(status=500)
        if fault == "cut":
            return self._cut(request)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        if token := self._real.token():
            headers["Authorization"] = f"Bearer {token}"
        url = self._real.server + request.raw_path
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.request(
                request.method, url, data=body, headers=headers, timeout=timeout
            ) as found:
                if fault == "lose-answer":
                    await found.read()
                    return self._cut(request)
                kind = found.headers.get("Content-Type", "application/json")
                answer = web.StreamResponse(status=found.status, headers={"Content-Type": kind})
                await answer.prepare(request)
                async for piece in found.content.iter_any():
                    if request.query.get("watch") == "true" and self.decide("WATCH", request.path):
                        self.failed += 1
                        return self._cut(request)
                    await answer.write(piece)
                return answer
        except (aiohttp.ClientError, ConnectionError):
            return self._cut(request)

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
