"""What each HTTPS route does: unpack the request, call a service, pack the answer."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from kvedge.emulator import (
    archiving,
    catalogue,
    configurations,
    digitaltwins,
    documents,
    faults,
    methods,
    querying,
    records,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.emulator.clientcerts import Authorities, Chain
    from kvedge.emulator.deploying import Engine
    from kvedge.emulator.faults import Faults
    from kvedge.emulator.jobs import Jobs
    from kvedge.emulator.messaging import Commands, Telemetry
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.provisioning import Provisioning
    from kvedge.emulator.registry import Registry
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Handlers", "answer"]

_WAIT_SECONDS = 30.0


class Handlers:
    """One method for each name in `routes.ROUTES`."""

    def __init__(
        self,
        *,
        store: Store,
        presence: Presence,
        registry: Registry,
        twins: Twins,
        queries: querying.Queries,
        known_configurations: configurations.Configurations,
        engine: Engine,
        telemetry: Telemetry,
        commands: Commands,
        faults: Faults,
        jobs: Jobs,
        provisioning: Provisioning,
        authorities: Authorities,
        chain_of: Callable[[Any], Chain | None],
    ) -> None:
        self._store = store
        self._presence = presence
        self._registry = registry
        self._twins = twins
        self._queries = queries
        self._configurations = known_configurations
        self._engine = engine
        self._telemetry = telemetry
        self._commands = commands
        self._faults = faults
        self._jobs = jobs
        self._provisioning = provisioning
        self._authorities = authorities
        self._chain_of = chain_of

    async def list_devices(self, request: web.Request) -> web.Response:
        """List device identities."""
        return answer(self._registry.devices(_number(request, "top", 1000)))

    async def bulk(self, request: web.Request) -> web.Response:
        """Do many identity operations."""
        items = await _json(request)
        if isinstance(items, list) and len(items) > 1:
            # Each identity counts; the first one is paid for already.
            await self._faults.admit("IdentityWrite", len(items) - 1)
        good, body = self._registry.bulk(items)
        return answer(body, status=200 if good else 400)

    async def get_device(self, request: web.Request) -> web.Response:
        """Return a device identity."""
        return _tagged(self._registry.device(request.match_info["device"]))

    async def put_device(self, request: web.Request) -> web.Response:
        """Make or change a device identity."""
        body = await _json(request)
        return _tagged(
            self._registry.put(
                request.match_info["device"], "", body, request.headers.get("If-Match")
            )
        )

    async def delete_device(self, request: web.Request) -> web.Response:
        """Remove a device with its modules."""
        self._registry.delete(request.match_info["device"], "", request.headers.get("If-Match"))
        return web.Response(status=204)

    async def list_modules(self, request: web.Request) -> web.Response:
        """List the module identities of a device."""
        return answer(self._registry.modules(request.match_info["device"]))

    async def get_module(self, request: web.Request) -> web.Response:
        """Return a module identity."""
        return _tagged(self._registry.module(*_ids(request)))

    async def put_module(self, request: web.Request) -> web.Response:
        """Make or change a module identity."""
        body = await _json(request)
        return _tagged(self._registry.put(*_ids(request), body, request.headers.get("If-Match")))

    async def delete_module(self, request: web.Request) -> web.Response:
        """Remove a module."""
        self._registry.delete(*_ids(request), request.headers.get("If-Match"))
        return web.Response(status=204)

    async def apply_content(self, request: web.Request) -> web.Response:
        """Write one device's manifest."""
        device_id = request.match_info["device"]
        content = await _json(request)
        if not self._registry.find(device_id).edge:
            raise catalogue.HubError("ArgumentInvalid", "Not an Azure IoT Edge device")
        if configurations.check_content(content) != "modulesContent":
            raise catalogue.HubError("InvalidConfigurationContent")
        self._engine.apply(device_id, content)
        return web.Response(status=204)

    async def purge_commands(self, request: web.Request) -> web.Response:
        """Forget a device's waiting messages."""
        device_id = request.match_info["device"]
        self._registry.find(device_id)
        return answer(
            {
                "totalMessagesPurged": self._commands.purge(device_id),
                "deviceId": device_id,
                "moduleId": None,
            }
        )

    async def get_twin(self, request: web.Request) -> web.Response:
        """Return a twin."""
        return self._twin(self._twins.find(*_ids(request)))

    async def patch_twin(self, request: web.Request) -> web.Response:
        """Merge into a twin."""
        return await self._write_twin(request, replace=False)

    async def replace_twin(self, request: web.Request) -> web.Response:
        """Replace a twin's tags and desired properties."""
        return await self._write_twin(request, replace=True)

    async def invoke_method(self, request: web.Request) -> web.Response:
        """Call a direct method."""
        body = await _json(request)
        identity = self._registry.find(*_ids(request))
        return answer(await methods.invoke(self._presence, identity.key, body))

    async def query(self, request: web.Request) -> web.Response:
        """Answer one page of a query."""
        body = await _json(request)
        size = request.headers.get("x-ms-max-item-count", "")
        if size and not (size.isascii() and size.lstrip("-").isdigit()):
            raise catalogue.HubError("ArgumentInvalid", "x-ms-max-item-count must be a number.")
        rows, kind, continuation = self._queries.run(
            body.get("query") if isinstance(body, dict) else None,
            size=min(max(int(size), 1), querying.PAGE) if size else querying.PAGE,
            continuation=request.headers.get("x-ms-continuation", ""),
        )
        headers = {"x-ms-item-type": kind}
        if continuation:
            headers["x-ms-continuation"] = continuation
        return answer(rows, headers=headers)

    async def registry_statistics(self, request: web.Request) -> web.Response:
        """Count devices."""
        del request
        return answer(self._registry.statistics())

    async def service_statistics(self, request: web.Request) -> web.Response:
        """Count connected devices."""
        del request
        return answer({"connectedDeviceCount": self._presence.connected_devices()})

    async def list_configurations(self, request: web.Request) -> web.Response:
        """List configurations."""
        del request
        return answer(self._configurations.all())

    async def test_queries(self, request: web.Request) -> web.Response:
        """Say what is wrong with a target condition and metric queries."""
        return answer(self._configurations.test(await _json(request)))

    async def get_configuration(self, request: web.Request) -> web.Response:
        """Return a configuration."""
        found = self._configurations.find(request.match_info["name"])
        return _tagged(documents.configuration_json(found))

    async def put_configuration(self, request: web.Request) -> web.Response:
        """Make or change a configuration."""
        body = await _json(request)
        made, written = self._configurations.put(
            request.match_info["name"], body, request.headers.get("If-Match")
        )
        return _tagged(documents.configuration_json(written), status=201 if made else 200)

    async def delete_configuration(self, request: web.Request) -> web.Response:
        """Remove a configuration."""
        self._configurations.delete(request.match_info["name"], request.headers.get("If-Match"))
        return web.Response(status=204)

    async def read_events(self, request: web.Request) -> web.Response:
        """Return received messages after a number; the emulator's own stand-in for Event Hubs."""
        after = _number(request, "after", -1)
        if after < 0:
            # -1: begin with what comes from now on.
            after = self._store.last_event()
        events = await self._telemetry.after(
            after,
            limit=min(_number(request, "limit", 100), 1000),
            wait_seconds=min(float(_number(request, "wait", 0)), _WAIT_SECONDS),
        )
        return answer({"events": events, "next": events[-1]["sequence"] if events else after})

    async def send_command(self, request: web.Request) -> web.Response:
        """Send a message to a device; the vendor's client does it over AMQP, which is not here."""
        body = await _json(request)
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
        counts = archiving.imported(self._store, self._presence, await _json(request))
        self._engine.configurations_changed()
        return answer(counts)

    async def get_knobs(self, request: web.Request) -> web.Response:
        """Return how awkward the hub is."""
        del request
        return answer(dataclasses.asdict(self._faults.knobs))

    async def put_knobs(self, request: web.Request) -> web.Response:
        """Make the hub more or less awkward."""
        self._faults.turn(faults.knobs_from_json(await _json(request)))
        return answer(dataclasses.asdict(self._faults.knobs))

    async def put_job(self, request: web.Request) -> web.Response:
        """Schedule a job."""
        return answer(self._jobs.make(request.match_info["name"], await _json(request)))

    async def get_job(self, request: web.Request) -> web.Response:
        """Return a job."""
        return answer(self._jobs.find(request.match_info["name"]))

    async def cancel_job(self, request: web.Request) -> web.Response:
        """Stop a job."""
        return answer(self._jobs.cancel(request.match_info["name"]))

    async def query_jobs(self, request: web.Request) -> web.Response:
        """List jobs."""
        found = self._jobs.all(request.query.get("jobType", ""), request.query.get("jobStatus", ""))
        return answer(found, headers={"x-ms-item-type": "JobResponse"})

    async def get_digital_twin(self, request: web.Request) -> web.Response:
        """Return a device's digital twin."""
        twin = self._twins.find(request.match_info["device"])
        return answer(digitaltwins.shown(twin), headers={"ETag": f'"{twin.etag}"'})

    async def patch_digital_twin(self, request: web.Request) -> web.Response:
        """Change what is desired of a digital twin."""
        twin = self._twins.find(request.match_info["device"])
        body = digitaltwins.desired_patch(await _json(request))
        new = self._twins.write(twin, body, request.headers.get("If-Match"), replace=False)
        return web.Response(
            status=202,
            headers={"ETag": f'"{new.etag}"', "Location": f"/digitaltwins/{twin.device_id}"},
        )

    async def invoke_command(self, request: web.Request) -> web.Response:
        """Call a command of a digital twin; a component's is the method `component*command`."""
        identity = self._registry.find(request.match_info["device"])
        component = request.match_info.get("component")
        name = request.match_info["command"]
        outcome = await methods.invoke(
            self._presence,
            identity.key,
            {
                "methodName": f"{component}*{name}" if component else name,
                "payload": await _json(request),
                "connectTimeoutInSeconds": _number(request, "connectTimeoutInSeconds", 0),
                "responseTimeoutInSeconds": _number(request, "responseTimeoutInSeconds", 30),
            },
        )
        headers = {"x-ms-command-statuscode": str(outcome["status"])}
        return answer(outcome["payload"], headers=headers)

    async def put_enrollment(self, request: web.Request) -> web.Response:
        """Make or replace an individual enrollment."""
        name = request.match_info["name"]
        return _tagged(self._provisioning.put("individual", name, await _json(request)))

    async def get_enrollment(self, request: web.Request) -> web.Response:
        """Return an individual enrollment."""
        return _tagged(self._provisioning.enrollment("individual", request.match_info["name"]))

    async def delete_enrollment(self, request: web.Request) -> web.Response:
        """Remove an individual enrollment."""
        self._provisioning.delete("individual", request.match_info["name"])
        return web.Response(status=204)

    async def put_group(self, request: web.Request) -> web.Response:
        """Make or replace an enrollment group."""
        name = request.match_info["name"]
        return _tagged(self._provisioning.put("group", name, await _json(request)))

    async def get_group(self, request: web.Request) -> web.Response:
        """Return an enrollment group."""
        return _tagged(self._provisioning.enrollment("group", request.match_info["name"]))

    async def delete_group(self, request: web.Request) -> web.Response:
        """Remove an enrollment group."""
        self._provisioning.delete("group", request.match_info["name"])
        return web.Response(status=204)

    async def list_authorities(self, request: web.Request) -> web.Response:
        """List the CA certificates that devices may chain up to."""
        del request
        return answer(self._authorities.all())

    async def put_authority(self, request: web.Request) -> web.Response:
        """Keep a CA certificate; on the service this is done in the resource's management."""
        return answer(self._authorities.put(request.match_info["name"], await _json(request)))

    async def delete_authority(self, request: web.Request) -> web.Response:
        """Forget a CA certificate."""
        self._authorities.delete(request.match_info["name"])
        return web.Response(status=204)

    async def describe(self, request: web.Request) -> web.Response:
        """Return what a client has to know of this hub."""
        del request
        return answer({"idScope": self._provisioning.id_scope})

    async def register(self, request: web.Request) -> web.Response:
        """Register a device that provisions itself."""
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

    async def _write_twin(self, request: web.Request, *, replace: bool) -> web.Response:
        body = await _json(request)
        twin = self._twins.find(*_ids(request))
        if_match = request.headers.get("If-Match")
        return self._twin(self._twins.write(twin, body, if_match, replace=replace))

    def _twin(self, twin: records.Twin) -> web.Response:
        return _tagged(self._twins.shown(twin))


def answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON response."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )


def _tagged(body: records.Json, *, status: int = 200) -> web.Response:
    return answer(body, status=status, headers={"ETag": f'"{body["etag"]}"'})


def _ids(request: web.Request) -> tuple[str, str]:
    return request.match_info["device"], request.match_info.get("module", "")


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.lstrip("-").isdigit() and len(text) < 19):
        raise catalogue.HubError("ArgumentInvalid", f"{name!r} must be a number.")
    return int(text)


async def _json(request: web.Request) -> Any:
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise catalogue.HubError("IotHubFormatError", "The body is not JSON.") from error
