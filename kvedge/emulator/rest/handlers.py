"""The service's own operations: unpack the request, call a part of the hub, pack the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from kvedge.emulator import (
    catalogue,
    configurations,
    digitaltwins,
    documents,
    methods,
    querying,
    records,
)
from kvedge.emulator.rest.answering import answer, body_of, ids, number, tagged

if TYPE_CHECKING:
    from kvedge.emulator.deploying import Engine
    from kvedge.emulator.faults import Faults
    from kvedge.emulator.jobs import Jobs
    from kvedge.emulator.messaging import Commands
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.registry import Registry
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Handlers"]

_METER_BYTES = 4096
"""A direct method is charged once more for each further so many bytes."""


class Handlers:
    """One method for each name in `routes.ROUTES` that the service has."""

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
        commands: Commands,
        faults: Faults,
        jobs: Jobs,
    ) -> None:
        self._store = store
        self._presence = presence
        self._registry = registry
        self._twins = twins
        self._queries = queries
        self._configurations = known_configurations
        self._engine = engine
        self._commands = commands
        self._faults = faults
        self._jobs = jobs

    async def list_devices(self, request: web.Request) -> web.Response:
        """List device identities."""
        return answer(self._registry.devices(number(request, "top", 1000)))

    async def bulk(self, request: web.Request) -> web.Response:
        """Do many identity operations."""
        items = await body_of(request)
        if isinstance(items, list) and len(items) > 1:
            # Each identity counts; the first one is paid for already.
            self._faults.charge("IdentityWrite", len(items) - 1)
        good, body = self._registry.bulk(items)
        return answer(body, status=200 if good else 400)

    async def get_device(self, request: web.Request) -> web.Response:
        """Return a device identity."""
        return tagged(self._registry.device(request.match_info["device"]))

    async def put_device(self, request: web.Request) -> web.Response:
        """Make or change a device identity."""
        body = await body_of(request)
        return tagged(
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
        return tagged(self._registry.module(*ids(request)))

    async def put_module(self, request: web.Request) -> web.Response:
        """Make or change a module identity."""
        body = await body_of(request)
        return tagged(self._registry.put(*ids(request), body, request.headers.get("If-Match")))

    async def delete_module(self, request: web.Request) -> web.Response:
        """Remove a module."""
        self._registry.delete(*ids(request), request.headers.get("If-Match"))
        return web.Response(status=204)

    async def apply_content(self, request: web.Request) -> web.Response:
        """Write one device's manifest."""
        device_id = request.match_info["device"]
        content = await body_of(request)
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
        return self._twin(self._twins.find(*ids(request)))

    async def patch_twin(self, request: web.Request) -> web.Response:
        """Merge into a twin."""
        return await self._write_twin(request, replace=False)

    async def replace_twin(self, request: web.Request) -> web.Response:
        """Replace a twin's tags and desired properties."""
        return await self._write_twin(request, replace=True)

    async def invoke_method(self, request: web.Request) -> web.Response:
        """Call a direct method."""
        body = await body_of(request)
        if more := len(await request.read()) // _METER_BYTES:
            self._faults.charge("DirectMethod", more)
        identity = self._registry.find(*ids(request))
        return answer(await methods.invoke(self._presence, identity.key, body))

    async def query(self, request: web.Request) -> web.Response:
        """Answer one page of a query."""
        body = await body_of(request)
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
        return answer(self._configurations.test(await body_of(request)))

    async def get_configuration(self, request: web.Request) -> web.Response:
        """Return a configuration."""
        found = self._configurations.find(request.match_info["name"])
        return tagged(documents.configuration_json(found))

    async def put_configuration(self, request: web.Request) -> web.Response:
        """Make or change a configuration."""
        body = await body_of(request)
        made, written = self._configurations.put(
            request.match_info["name"], body, request.headers.get("If-Match")
        )
        return tagged(documents.configuration_json(written), status=201 if made else 200)

    async def delete_configuration(self, request: web.Request) -> web.Response:
        """Remove a configuration."""
        self._configurations.delete(request.match_info["name"], request.headers.get("If-Match"))
        return web.Response(status=204)

    async def put_job(self, request: web.Request) -> web.Response:
        """Schedule a job."""
        return answer(self._jobs.make(request.match_info["name"], await body_of(request)))

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
        body = digitaltwins.desired_patch(await body_of(request))
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
                "payload": await body_of(request),
                "connectTimeoutInSeconds": number(request, "connectTimeoutInSeconds", 0),
                "responseTimeoutInSeconds": number(request, "responseTimeoutInSeconds", 30),
            },
        )
        headers = {"x-ms-command-statuscode": str(outcome["status"])}
        return answer(outcome["payload"], headers=headers)

    async def _write_twin(self, request: web.Request, *, replace: bool) -> web.Response:
        body = await body_of(request)
        twin = self._twins.find(*ids(request))
        if_match = request.headers.get("If-Match")
        return self._twin(self._twins.write(twin, body, if_match, replace=replace))

    def _twin(self, twin: records.Twin) -> web.Response:
        return tagged(self._twins.shown(twin))
