"""The deployment engine: which configurations hit a device, and what its modules get.

A full deployment's `$edgeAgent` has the key `properties.desired`; a layer's has only keys below it.
For each edge device the full deployment of highest priority is the base (the newest one on a tie)
and the layers with a priority above the base's are laid on it in ascending order. When nothing
full matches, the last manifest stays
(https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring).
Configurations of devices and modules that are no edge deployments are decided in `configuring`.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from typing import TYPE_CHECKING

from kvedge.emulator import (
    configurations,
    configuring,
    documents,
    patching,
    query,
    records,
    registry,
    times,
)
from kvedge.emulator.records import AGENT, Configuration, Json, Twin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvedge.emulator.presence import Presence
    from kvedge.emulator.querying import Queries
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Engine", "is_layered", "manifest"]

_DESIRED = "properties.desired"
_BATCH = 50
"""Devices between two looks at what else the hub has to do."""
_OUTCOMES = 1000
"""Most combinations of fulfilled conditions whose outcome is remembered."""


def is_layered(content: Json) -> bool:
    """Tell a layer from a full deployment by its keys."""
    return _DESIRED not in content["modulesContent"].get(AGENT, {})


def manifest(base: Configuration | None, layers: Iterable[Configuration]) -> dict[str, Json]:
    """Return module name to desired values, of a base and ascending layers."""
    result: dict[str, Json] = {}
    for item in ([base] if base else []) + list(layers):
        layered = is_layered(item.content)
        for module, section in item.content["modulesContent"].items():
            # A whole `properties.desired` comes first: it clears what lower layers said.
            for path in sorted(section):
                value = copy.deepcopy(section[path])
                names = path.split(".")[2:]
                if layered and module == AGENT:
                    value = _with_origin(names, value, item.id)
                result[module] = configuring.set_path(result.get(module, {}), names, value)
            result.setdefault(module, {})
    # A null says that there is nothing, and no twin holds one.
    return {module: patching.merged_values({}, values) for module, values in result.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcome:
    """What the deployments mean for devices that fulfil the same conditions."""

    manifest: dict[str, Json]
    """Module name to desired values; empty without a base."""
    statuses: Json
    """Configuration id to `{"status": "Targeted" | "Applied"}`."""


class _Rules:
    """All configurations of one moment, with what is already known of them."""

    def __init__(self, known: Iterable[Configuration]) -> None:
        found = [*known]
        edge = [item for item in found if configurations.is_edge(item) and item.target_condition]
        self._ranked = sorted(edge, key=lambda item: (item.priority, item.sequence))
        self._conditions = {
            item.target_condition: _holds(item.target_condition) for item in self._ranked
        }
        self._outcomes: dict[tuple[bool, ...], _Outcome] = {}
        self.devices = configuring.Rules("deviceContent", found)
        self.modules = configuring.Rules("moduleContent", found)

    def outcome(self, row: Json) -> _Outcome:
        """Return what the edge deployments mean for one device."""
        fulfilled = tuple([holds(row) for holds in self._conditions.values()])
        known = self._outcomes.get(fulfilled)
        if known is None:
            true = {
                text for text, is_true in zip(self._conditions, fulfilled, strict=True) if is_true
            }
            matching = [item for item in self._ranked if item.target_condition in true]
            if len(self._outcomes) > _OUTCOMES:
                self._outcomes.clear()
            known = self._outcomes[fulfilled] = _decided(matching)
        return known


class Engine:
    """Evaluates configurations whenever something changed, and not more often than told."""

    def __init__(
        self, store: Store, presence: Presence, twins: Twins, queries: Queries, *, seconds: float
    ) -> None:
        """Evaluate changes at most every `seconds`, a changed configuration within a second."""
        self._store = store
        self._presence = presence
        self._twins = twins
        self._queries = queries
        self._seconds = seconds
        self._dirty: set[str] = set()
        self._all = True
        self._soon = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        self._rules: _Rules | None = None
        self._hit: dict[str, _Outcome] = {}
        self._documents: dict[tuple[int, int], tuple[Json, Json]] = {}
        self.evaluations = 0
        """How often it ran; for those who wait for the next time."""

    def device_changed(self, device_id: str) -> None:
        """Look at a device at the next evaluation."""
        self._dirty.add(device_id)
        self._awake.set()

    def configurations_changed(self) -> None:
        """Look at all devices soon, as the service does after a configuration is made."""
        self._all = True
        self._rules = None
        self._soon.set()
        self._awake.set()

    async def run(self) -> None:
        """Evaluate until cancelled."""
        loop = asyncio.get_running_loop()
        last = loop.time() - self._seconds
        while True:
            await self._awake.wait()
            await self._pause(last + self._seconds - loop.time())
            self._awake.clear()
            self._soon.clear()
            begun = loop.time()
            await self.evaluate()
            # Never spend more than a fifth of the time here, however many devices there are.
            last = max(begun, loop.time() + 4 * (loop.time() - begun) - self._seconds)

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._soon.wait()
                await asyncio.sleep(min(seconds, 0.05))
        except TimeoutError:
            pass

    async def evaluate(self) -> None:
        """Evaluate what changed since the last time, then all metrics."""
        everything, self._all = self._all, False
        dirty, self._dirty = self._dirty, set()
        if everything:
            self._hit.clear()
        candidates = [*self._store.identities] if everything else [*dirty]
        rules = self._rules = self._rules or _Rules(self._store.configurations.values())
        stamp = times.stamp()
        self._documents.clear()
        for count, device_id in enumerate(candidates, start=1):
            identity = self._store.identities.get(device_id)
            self._hit.pop(device_id, None)
            if identity is not None and not identity.module_id:
                edge = self._evaluate_edge(device_id, rules, stamp) if identity.edge else {}
                self._configure(self._store.twins[device_id], rules.devices, edge)
                for module in self._store.modules_of(device_id):
                    # The runtime's own modules belong to deployments.
                    if module.module_id not in records.RUNTIME_MODULES:
                        self._configure(self._store.twins[module.key], rules.modules, {})
            if count % _BATCH == 0:
                await asyncio.sleep(0)
        self._measure()
        self.evaluations += 1

    def apply(self, device_id: str, content: Json) -> None:
        """Write the content of one manifest to a device, belonging to no deployment."""
        single = Configuration(
            id="", content=content, created=times.stamp(), updated=times.stamp(), sequence=0
        )
        self._write(device_id, manifest(single, ()), times.stamp())

    def _evaluate_edge(self, device_id: str, rules: _Rules, stamp: str) -> Json:
        """Write what the edge deployments mean for a device; returns their statuses."""
        twin = self._store.twins[device_id]
        row: Json = {
            "deviceId": device_id,
            "tags": twin.tags,
            "properties": {"reported": twin.reported, "desired": twin.desired},
        }
        outcome = self._hit[device_id] = rules.outcome(row)
        self._write(device_id, outcome.manifest, stamp, outcome.statuses)
        return outcome.statuses

    def _configure(self, twin: Twin, rules: configuring.Rules, statuses: Json) -> None:
        """Write what configurations set in a twin, and note the statuses of all that hit it."""
        new, patch = twin, {}
        if rules:
            desired, own = rules.outcome(twin)
            statuses = statuses | own if own else statuses
            patch = patching.difference(patching.values(twin.desired), desired)
            if patch:
                new = _desiring(
                    twin, patching.replaced(twin.desired, desired, times.stamp(), versioned=True)
                )
        if new.configurations != statuses:
            new = dataclasses.replace(new, configurations=statuses)
        if new is not twin:
            with self._store.transaction() as transaction:
                transaction.put(new)
        if patch:
            self._twins.tell(new, patch)

    def _write(
        self, device_id: str, wanted: dict[str, Json], stamp: str, statuses: Json | None = None
    ) -> None:
        """Make the device's modules have these desired values; touch only those that differ.

        The statuses of the deployments that hit the device are its agent's; None leaves them.
        """
        made: list[records.Identity] = []
        changed: dict[str, Twin] = {}
        before: dict[str, Json] = {}
        for module, values in wanted.items():
            twin = self._store.twins.get(records.key_of(device_id, module))
            if twin is None:
                made.append(registry.new_module(device_id, module))
                blank = patching.empty(stamp)
                changed[module] = twin = Twin(
                    device_id=device_id, module_id=module, desired=blank, reported=dict(blank)
                )
            old = patching.values(twin.desired)
            if old != values:
                document = self._document(twin.desired["$version"], values, stamp)
                changed[module], before[module] = _desiring(twin, document), old
        if statuses is not None:
            agent = changed.get(AGENT) or self._store.twins[records.key_of(device_id, AGENT)]
            if agent.configurations != statuses:
                changed[AGENT] = dataclasses.replace(agent, configurations=statuses)
        if not changed:
            return
        with self._store.transaction() as transaction:
            for record in (*made, *changed.values()):
                transaction.put(record)
        for module, old in before.items():
            twin = changed[module]
            if self._presence.session(twin.key) is not None:
                self._twins.tell(twin, patching.difference(old, patching.values(twin.desired)))

    def _document(self, version: int, values: Json, stamp: str) -> Json:
        """Return desired properties after this version; alike devices share one object.

        Most devices of an evaluation get the same, so a document is made, kept in memory and
        visited by the garbage collector once instead of once a device.
        """
        # The entry holds `values`, so its id stays its own.
        place = (id(values), version)
        found = self._documents.get(place)
        if found is None:
            made = patching.replaced({"$version": version}, values, stamp, versioned=True)
            found = self._documents[place] = (values, made)
        return found[1]

    def _measure(self) -> None:
        """Compute all metrics from what was evaluated."""
        counts: dict[str, dict[str, int]] = {
            name: dict.fromkeys(documents.queries(item), 0)
            for name, item in self._store.configurations.items()
        }
        others = {
            name
            for name, item in self._store.configurations.items()
            if not configurations.is_edge(item)
        }
        groups: dict[_Outcome, dict[str, int]] = {}
        for device_id, hit in self._hit.items():
            agent = self._store.twins.get(records.key_of(device_id, AGENT))
            if agent is not None:
                reports = groups.setdefault(hit, {})
                report = _report(agent)
                reports[report] = reports.get(report, 0) + 1
        for hit, reports in groups.items():
            targeted = sum(reports.values())
            for name, entry in hit.statuses.items():
                if (count := counts.get(name)) is None:
                    continue
                count["targetedCount"] += targeted
                if entry["status"] == "Applied":
                    count["appliedCount"] += targeted
                    for report, devices in reports.items():
                        if report:
                            count[report] += devices
        for twin in self._store.twins.values() if others else ():
            for name in twin.configurations.keys() & others:
                counts[name]["targetedCount"] += 1
                applied = twin.configurations[name]["status"] == "Applied"
                counts[name]["appliedCount"] += applied
        texts = {
            text
            for item in self._store.configurations.values()
            for text in item.metric_queries.values()
        }
        results = self._queries.counts(texts)
        changed = []
        for name, count in counts.items():
            item = self._store.configurations[name]
            custom = {metric: results[text] for metric, text in item.metric_queries.items()}
            if (count, custom) != (item.system_results, item.metric_results):
                changed.append(
                    dataclasses.replace(item, system_results=count, metric_results=custom)
                )
        with self._store.transaction() as transaction:
            for item in changed:
                transaction.put(item)


def _decided(matching: list[Configuration]) -> _Outcome:
    """Return what deployments in ascending rank mean for the devices that they hit."""
    full = [item for item in matching if not is_layered(item.content)]
    base = full[-1] if full else None
    layers = [
        item
        for item in matching
        if base is not None and is_layered(item.content) and item.priority > base.priority
    ]
    effective = {item.id for item in (base, *layers) if item is not None and _tells_agent(item)}
    statuses = {
        item.id: {"status": "Applied" if item.id in effective else "Targeted"} for item in matching
    }
    return _Outcome(manifest=manifest(base, layers) if base else {}, statuses=statuses)


def _holds(condition: str) -> Callable[[Json], bool]:
    if condition.strip() == "*":
        return lambda _row: True
    return query.holds(query.parse_condition(condition))


def _tells_agent(item: Configuration) -> bool:
    """Tell whether the agent's twin is touched; else the service shows Targeted for ever."""
    return bool(item.content["modulesContent"].get(AGENT))


def _report(agent: Twin) -> str:
    """Return the name of the metric that counts this agent, "" while it has not reported."""
    if agent.reported.get("lastDesiredVersion") != agent.desired["$version"]:
        return ""
    status = agent.reported.get("lastDesiredStatus")
    code = status.get("code") if isinstance(status, dict) else None
    if not isinstance(code, int | float) or isinstance(code, bool):
        return ""
    return "reportedSuccessfulCount" if code == 200 else "reportedFailedCount"


def _desiring(twin: Twin, document: Json) -> Twin:
    return dataclasses.replace(
        twin, desired=document, writes=twin.writes + 1, version=twin.version + 1
    )


def _with_origin(names: list[str], value: Json, name: str) -> Json:
    """Return a layer's module entry with the layer's id, as the service marks it."""
    if len(names) == 2 and names[0] == "modules" and isinstance(value, dict):
        return {**value, "configuration": {"id": name}}
    return value
