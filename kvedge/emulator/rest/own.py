"""What only the emulator has, below `/kvedge/v1/`: state, knobs, messages, authorities."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import TYPE_CHECKING

from aiohttp import web

from kvedge.emulator import archiving, catalogue, faults
from kvedge.emulator.rest.answering import answer, body_of, number

if TYPE_CHECKING:
    from kvedge.emulator.clientcerts import Authorities
    from kvedge.emulator.deploying import Engine
    from kvedge.emulator.messaging import Commands, Telemetry
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.provisioning import Provisioning
    from kvedge.emulator.registry import Registry
    from kvedge.emulator.store import Store

__all__ = ["OwnHandlers"]

_WAIT_SECONDS = 30.0


class OwnHandlers:
    """One method for each name in `routes.ROUTES` that the service does not have."""

    def __init__(
        self,
        *,
        store: Store,
        presence: Presence,
        registry: Registry,
        engine: Engine,
        telemetry: Telemetry,
        commands: Commands,
        knobs: faults.Faults,
        provisioning: Provisioning,
        authorities: Authorities,
    ) -> None:
        self._store = store
        self._presence = presence
        self._registry = registry
        self._engine = engine
        self._telemetry = telemetry
        self._commands = commands
        self._faults = knobs
        self._provisioning = provisioning
        self._authorities = authorities

    async def read_events(self, request: web.Request) -> web.Response:
        """Return received messages after a number; the emulator's own stand-in for Event Hubs."""
        after = number(request, "after", -1)
        if after < 0:
            # -1: begin with what comes from now on.
            after = self._store.last_event()
        events = await self._telemetry.after(
            after,
            limit=min(number(request, "limit", 100), 1000),
            wait_seconds=min(float(number(request, "wait", 0)), _WAIT_SECONDS),
        )
        return answer({"events": events, "next": events[-1]["sequence"] if events else after})

    async def send_command(self, request: web.Request) -> web.Response:
        """Send a message to a device; the vendor's client does it over AMQP, which is not here."""
        body = await body_of(request)
        device_id = request.match_info["device"]
        self._registry.find(device_id)
        if not isinstance(body, dict):
            raise catalogue.HubError("IotHubFormatError")
        data, properties = body.get("body", ""), body.get("properties") or {}
        try:
            encoded = body.get("bodyEncoding") == "base64"
            payload = base64.b64decode(data, validate=True) if encoded else str(data).encode()
        except (binascii.Error, ValueError) as error:
            raise catalogue.HubError("ArgumentInvalid", "'body' is not base64.") from error
        if not isinstance(properties, dict):
            raise catalogue.HubError("ArgumentInvalid", "'properties' must be an object.")
        texts = {str(name): str(value) for name, value in properties.items()}
        expiry = body.get("expirySeconds") or 0
        if not isinstance(expiry, int | float):
            raise catalogue.HubError("ArgumentInvalid", "'expirySeconds' must be a number.")
        sequence = self._commands.send(device_id, payload, texts, float(expiry))
        return answer({"sequence": sequence}, status=201)

    async def export_state(self, request: web.Request) -> web.Response:
        """Return the hub's whole state, keys included."""
        del request
        return answer(archiving.exported(self._store))

    async def import_state(self, request: web.Request) -> web.Response:
        """Replace the hub's whole state."""
        counts = archiving.imported(self._store, self._presence, await body_of(request))
        self._engine.configurations_changed()
        return answer(counts)

    async def get_knobs(self, request: web.Request) -> web.Response:
        """Return how awkward the hub is."""
        del request
        return answer(dataclasses.asdict(self._faults.knobs))

    async def put_knobs(self, request: web.Request) -> web.Response:
        """Make the hub more or less awkward."""
        self._faults.turn(faults.knobs_from_json(await body_of(request)))
        return answer(dataclasses.asdict(self._faults.knobs))

    async def list_authorities(self, request: web.Request) -> web.Response:
        """List the CA certificates that devices may chain up to."""
        del request
        return answer(self._authorities.all())

    async def put_authority(self, request: web.Request) -> web.Response:
        """Keep a CA certificate; on the service this is done in the resource's management."""
        return answer(self._authorities.put(request.match_info["name"], await body_of(request)))

    async def delete_authority(self, request: web.Request) -> web.Response:
        """Forget a CA certificate."""
        self._authorities.delete(request.match_info["name"])
        return web.Response(status=204)

    async def describe(self, request: web.Request) -> web.Response:
        """Return what a client has to know of this hub."""
        del request
        return answer({"idScope": self._provisioning.id_scope})
