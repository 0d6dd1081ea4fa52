"""Simulated IoT Edge devices: each reports to the hub as `$edgeAgent` would, and runs nothing.

For tests of the connector, for load and for demos. A device takes over its desired modules after a
delay and reports them in the agent's form; its behaviour says whether that goes well. It answers
the agent's methods `ping`, `GetModuleLogs` and `RestartModule`. There are no containers behind it.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import enum
import gzip
import re
import ssl
import time
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from kvedge import errors
from kvedge.emulator import patching, times, tokens
from kvedge.emulator.lightclient import LightClient
from kvedge.emulator.monitoring import connection_parts
from kvedge.emulator.records import AGENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from kvedge.emulator.records import Json

__all__ = ["Behaviour", "Plan", "SimulatedDevice", "Simulation"]

_BULK = 50
_CONNECTS_AT_ONCE = 32
_SLOW_FACTOR = 20


class Behaviour(enum.StrEnum):
    """What becomes of a device's modules."""

    SUCCESS = "success"
    """They run."""
    FAILING = "failing"
    """They fail, and the agent says so with code 500."""
    SLOW = "slow"
    """They run, after twenty times the delay."""
    OFFLINE = "offline"
    """The device is registered and never connects."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many devices of which kind."""

    connection_string: str = dataclasses.field(repr=False)
    """The hub's service connection string, with the right to write identities."""
    mqtt: tuple[str, int]
    """Address and port of the hub's device side."""
    host: str
    """The hub's name, as devices know it."""
    ca: Path | None = None
    devices: int = 1
    prefix: str = "sim"
    """Device ids are `<prefix>-<number>` from 1."""
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mix: Mapping[Behaviour, int] = dataclasses.field(default_factory=lambda: {Behaviour.SUCCESS: 1})
    """Shares of the behaviours; they are dealt out evenly."""
    delay_seconds: float = 0.0
    """Time from a changed manifest to the report of it."""

    def behaviours(self) -> Iterator[tuple[str, Behaviour]]:
        """Yield each device id with its behaviour."""
        shares = [(kind, share) for kind, share in self.mix.items() if share > 0]
        total = sum(share for _, share in shares)
        dealt = dict.fromkeys((kind for kind, _ in shares), 0)
        for number in range(1, self.devices + 1):
            kind = max(shares, key=lambda item: item[1] * number / total - dealt[item[0]])[0]
            dealt[kind] += 1
            yield f"{self.prefix}-{number}", kind


class SimulatedDevice:
    """One device's agent."""

    def __init__(self, device_id: str, behaviour: Behaviour, plan: Plan) -> None:
        self.id = device_id
        self.behaviour = behaviour
        """May be changed at any time; `touch` makes the device report anew."""
        self.key = tokens.new_key()
        """The device's own key."""
        self.agent_key = tokens.new_key()
        self.connected = asyncio.Event()
        """Set while the hub knows the agent as connected."""
        self.online = asyncio.Event()
        """Cleared to keep the device away from the hub."""
        if behaviour is not Behaviour.OFFLINE:
            self.online.set()
        self.reported: Json = {}
        """What the device has told the hub."""
        self._plan = plan
        self._desired: Json = {}
        self._overrides: dict[str, Json] = {}
        self._started: dict[str, tuple[Json, str]] = {}
        self._changed = asyncio.Event()
        self._client: LightClient | None = None

    def touch(self) -> None:
        """Report again as soon as the delay has passed."""
        self._changed.set()

    def override(self, module: str, **fields: Any) -> None:
        """Report these fields for a module whatever its behaviour, such as `runtimeStatus`."""
        self._overrides[module] = {**self._overrides.get(module, {}), **fields}
        self.touch()

    def clear_overrides(self) -> None:
        """Report by behaviour alone."""
        self._overrides.clear()
        self.touch()

    def go_offline(self) -> None:
        """Drop the connection and stay away."""
        self.online.clear()
        if self._client is not None:
            self._client.close()

    def go_online(self) -> None:
        """Come back."""
        self.online.set()

    async def run(self, context: ssl.SSLContext, gate: asyncio.Semaphore) -> None:
        """Stay connected while the device is to be online; never returns."""
        pause = 0.2
        while True:
            await self.online.wait()
            client = LightClient(
                host=self._plan.host,
                client_id=f"{self.id}/{AGENT}",
                key=self.agent_key,
                on_desired=self._patched,
                on_method=self._method,
            )
            try:
                async with gate:
                    await client.connect(*self._plan.mqtt, context)
                self._client = client
                pause = 0.2
                async with asyncio.TaskGroup() as group:
                    reports = group.create_task(self._report(client), name=f"report {self.id}")
                    await client.run()
                    reports.cancel()
            except (OSError, asyncio.IncompleteReadError, ExceptionGroup):
                pause = min(pause * 2, 10.0)
            finally:
                self.connected.clear()
                self._client = None
            await asyncio.sleep(pause)

    async def _report(self, client: LightClient) -> None:
        twin = await client.twin()
        self._desired, self.reported = twin["desired"], patching.values(twin["reported"])
        self.connected.set()
        while True:
            self._changed.clear()
            delay = self._plan.delay_seconds
            await asyncio.sleep(delay * (_SLOW_FACTOR if self.behaviour is Behaviour.SLOW else 1))
            wanted = self._state()
            if patch := patching.difference(self.reported, wanted):
                await client.report(patch)
                self.reported = wanted
            await self._changed.wait()

    def _patched(self, patch: Json) -> None:
        self._desired = {
            **patching.merged_values(patching.values(self._desired), patching.values(patch)),
            "$version": patch["$version"],
        }
        self._changed.set()

    def _state(self) -> Json:
        """Return the reported properties that fit the desired ones."""
        failing = self.behaviour is Behaviour.FAILING
        desired = self._desired
        status = {"code": 200, "description": ""}
        if not desired.get("modules") and not desired.get("systemModules"):
            status = {"code": 417, "description": "Empty edge agent config was received"}
        if failing:
            status = {"code": 500, "description": "the image of a module cannot be pulled"}
        system = desired.get("systemModules") or {}
        return {
            "schemaVersion": "1.1",
            "version": {"version": "0.0.0", "build": "simulation", "commit": ""},
            "lastDesiredVersion": desired.get("$version", 0),
            "lastDesiredStatus": status,
            "runtime": {
                "type": "docker",
                "platform": {"os": "linux", "architecture": "x86_64", "version": "simulation"},
            },
            "systemModules": {
                name: self._module(name, {**entry, "status": "running"}, failing=False)
                for name, entry in system.items()
                if isinstance(entry, dict)
            },
            "modules": {
                name: self._module(name, entry, failing=failing)
                for name, entry in (desired.get("modules") or {}).items()
                if isinstance(entry, dict)
            },
        }

    def _module(self, name: str, entry: Json, *, failing: bool) -> Json:
        # Which deployment a module is from does not restart it.
        wanted = {field: value for field, value in entry.items() if field != "configuration"}
        known = self._started.get(name)
        if known is None or known[0] != wanted:
            known = self._started[name] = (wanted, times.stamp())
        running = entry.get("status", "running") == "running"
        kept = {
            field: entry[field]
            for field in ("type", "version", "restartPolicy", "imagePullPolicy", "settings", "env")
            if field in entry
        }
        state: Json = {
            **kept,
            "status": entry.get("status", "running"),
            "runtimeStatus": "backoff" if failing else "running" if running else "stopped",
            "exitCode": 1 if failing else 0,
            "statusDescription": "Exited (1)" if failing else "running",
            "lastStartTimeUtc": known[1],
            "restartCount": 3 if failing else 0,
        }
        return {**state, **self._overrides.get(name, {})}

    async def _method(self, name: str, payload: Any) -> tuple[int, Any]:
        match name:
            case "ping":
                return 200, None
            case "RestartModule":
                module = payload.get("id") if isinstance(payload, dict) else None
                if module not in self._names():
                    return 500, {"message": f"Module {module} not found in the current environment"}
                self._started.pop(str(module), None)
                self.touch()
                return 200, None
            case "GetModuleLogs":
                return self._logs(payload)
            case _:
                return 400, {
                    "message": f"Command '{name}' not found. The supported commands are - "
                    "ping,GetModuleLogs,RestartModule"
                }

    def _logs(self, payload: Any) -> tuple[int, Any]:
        request = payload if isinstance(payload, dict) else {}
        items = request.get("items")
        items = [items] if isinstance(items, dict) else items or []
        found = []
        for item in items:
            try:
                pattern = re.compile(str(item.get("id", "")))
            except re.error as error:
                return 400, {"message": f"'id' is no regular expression: {error}"}
            tail = (item.get("filter") or {}).get("tail")
            for module in sorted(self._names()):
                if not pattern.search(module):
                    continue
                lines = [f"{module} of {self.id}: line {number}" for number in range(1, 11)]
                text = "\n".join(lines[-tail:] if isinstance(tail, int) else lines) + "\n"
                if request.get("encoding") == "gzip":
                    packed = base64.b64encode(gzip.compress(text.encode())).decode()
                    found.append({"id": module, "payloadBytes": packed})
                else:
                    found.append({"id": module, "payload": text})
        return 200, found

    def _names(self) -> set[str]:
        return {*(self._desired.get("modules") or {}), *(self._desired.get("systemModules") or {})}


class Simulation:
    """Registers the devices of a plan and keeps them running; an async context manager."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.devices = {
            device_id: SimulatedDevice(device_id, behaviour, plan)
            for device_id, behaviour in plan.behaviours()
        }
        """All devices by id."""
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Register the devices and start them; raises RemoteError."""
        await self._register()
        await self._group.__aenter__()
        context = ssl.create_default_context(cafile=self.plan.ca)
        gate = asyncio.Semaphore(_CONNECTS_AT_ONCE)
        for device in self.devices.values():
            task = self._group.create_task(device.run(context, gate), name=f"device {device.id}")
            self._tasks.append(task)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the devices; their identities stay in the hub."""
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    async def connected(self) -> None:
        """Wait until every device that is to be online is connected."""
        for device in self.devices.values():
            if device.online.is_set():
                await device.connected.wait()

    async def _register(self) -> None:
        devices = [*self.devices.values()]
        context = ssl.create_default_context(cafile=self.plan.ca)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector) as session:
            for start in range(0, len(devices), _BULK):
                batch = devices[start : start + _BULK]
                made = await self._bulk(session, [self._item(item, "create") for item in batch])
                again = {failure["deviceId"] for failure in made["errors"]}
                items = [self._item(item, "update") for item in batch if item.id in again]
                items += [
                    {"id": item.id, "moduleId": AGENT, "importMode": "update",
                     "authentication": _sas(item.agent_key)}
                    for item in batch
                ]  # fmt: skip
                items += [
                    {"id": item.id, "importMode": "updateTwin", "tags": dict(self.plan.tags)}
                    for item in batch
                    if item.id in again
                ]
                for first in range(0, len(items), 100):
                    answer = await self._bulk(session, items[first : first + 100])
                    if not answer["isSuccessful"]:
                        raise errors.RemoteError(
                            "registering simulated devices",
                            details=str(answer["errors"][:3]),
                        )

    async def _bulk(self, session: aiohttp.ClientSession, items: list[Json]) -> Json:
        if not items:
            return {"isSuccessful": True, "errors": []}
        host, policy, key = connection_parts(self.plan.connection_string)
        token = tokens.issue(host, key, expiry=int(time.time()) + 600, policy=policy)
        try:
            async with session.post(
                f"https://{host}/devices",
                params={"api-version": "2021-04-12"},
                json=items,
                headers={"Authorization": token},
            ) as response:
                if response.status not in (200, 400):
                    raise errors.RemoteError(
                        "registering simulated devices",
                        status=response.status,
                        reason=response.headers.get("iothub-errorcode", ""),
                    )
                return await response.json()
        except aiohttp.ClientError as cause:
            raise errors.RemoteError(
                "registering simulated devices",
                details=str(cause),
                hint="is the hub up, and is its CA given?",
            ) from cause

    def _item(self, device: SimulatedDevice, mode: str) -> Json:
        return {
            "id": device.id,
            "importMode": mode,
            "status": "enabled",
            "authentication": _sas(device.key),
            "capabilities": {"iotEdge": True},
            "tags": dict(self.plan.tags),
        }


def _sas(key: str) -> Json:
    return {"type": "sas", "symmetricKey": {"primaryKey": key, "secondaryKey": tokens.new_key()}}
