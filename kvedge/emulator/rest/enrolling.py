"""The provisioning service's operations: enrollments, and devices that register over HTTPS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from kvedge.emulator import catalogue
from kvedge.emulator.rest.answering import answer, body_of, tagged

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.emulator import records
    from kvedge.emulator.clientcerts import Chain
    from kvedge.emulator.provisioning import Provisioning

__all__ = ["EnrollingHandlers"]


class EnrollingHandlers:
    """One method for each name in `routes.ROUTES` that belongs to provisioning."""

    def __init__(self, provisioning: Provisioning, chain_of: Callable[[Any], Chain | None]) -> None:
        """Lead to a provisioning service; `chain_of` tells the certificates of a TLS connection."""
        self._provisioning = provisioning
        self._chain_of = chain_of

    async def put_enrollment(self, request: web.Request) -> web.Response:
        """Make or replace an individual enrollment."""
        name = request.match_info["name"]
        return tagged(self._provisioning.put("individual", name, await body_of(request)))

    async def get_enrollment(self, request: web.Request) -> web.Response:
        """Return an individual enrollment."""
        return tagged(self._provisioning.enrollment("individual", request.match_info["name"]))

    async def delete_enrollment(self, request: web.Request) -> web.Response:
        """Remove an individual enrollment."""
        self._provisioning.delete("individual", request.match_info["name"])
        return web.Response(status=204)

    async def put_group(self, request: web.Request) -> web.Response:
        """Make or replace an enrollment group."""
        name = request.match_info["name"]
        return tagged(self._provisioning.put("group", name, await body_of(request)))

    async def get_group(self, request: web.Request) -> web.Response:
        """Return an enrollment group."""
        return tagged(self._provisioning.enrollment("group", request.match_info["name"]))

    async def delete_group(self, request: web.Request) -> web.Response:
        """Remove an enrollment group."""
        self._provisioning.delete("group", request.match_info["name"])
        return web.Response(status=204)

    async def register(self, request: web.Request) -> web.Response:
        """Register a device that provisions itself; one with a TPM is first given its key."""
        if not request.headers.get("Authorization") and request.body_exists:
            sealed = self._provisioning.challenge(
                request.match_info["scope"],
                request.match_info["registration"],
                await body_of(request),
            )
            if sealed is not None:
                body = {"authenticationKey": sealed, "keyName": "registration"}
                return answer(body, status=401)
        enrollment = self._enrolled(request)
        started = self._provisioning.register(
            request.match_info["registration"], enrollment, self._chain(request)
        )
        return answer(started, status=202, headers={"Retry-After": "1"})

    async def registration_status(self, request: web.Request) -> web.Response:
        """Return what became of a registration."""
        self._enrolled(request)
        return answer(
            self._provisioning.operation(
                request.match_info["registration"], request.match_info["operation"]
            )
        )

    def _enrolled(self, request: web.Request) -> records.Json:
        found = self._provisioning.admitted(
            request.match_info["scope"],
            request.match_info["registration"],
            request.headers.get("Authorization", ""),
            self._chain(request),
        )
        if found is None:
            raise catalogue.HubError("IotHubUnauthorized")
        return found

    def _chain(self, request: web.Request) -> Chain | None:
        transport = request.transport
        return self._chain_of(transport and transport.get_extra_info("ssl_object"))
