# ruff: noqa: S608 - the texts are IoT Hub queries, never run as SQL
"""Scheduled jobs (jobs v2): a twin update or a direct method on all devices of a condition.

A job waits for its start time, runs over the devices that the condition selects at that moment and
ends when each of them has succeeded or failed. Unfinished jobs go on after a restart.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, methods, query, times

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvedge.emulator.presence import Presence
    from kvedge.emulator.querying import Queries
    from kvedge.emulator.records import Json
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Jobs"]

_ID = re.compile(r"[a-z0-9\-']{1,64}")
_TYPES = ("scheduleUpdateTwin", "scheduleDeviceMethod")
_AHEAD_SECONDS = 168 * 3600
_AT_ONCE = 10
_FINISHED = ("completed", "failed", "cancelled")


class Jobs:
    """All scheduled jobs; `run` carries them out."""

    def __init__(
        self,
        store: Store,
        presence: Presence,
        twins: Twins,
        queries: Queries,
        at_once: Callable[[], int],
    ) -> None:
        """Carry out so many jobs at once."""
        self._store = store
        self._presence = presence
        self._twins = twins
        self._queries = queries
        self._at_once = at_once
        self._changed = asyncio.Event()
        self._changed.set()
        self._running: dict[str, asyncio.Task[None]] = {}

    def make(self, name: str, body: Any) -> Json:
        """Schedule a job; raises HubError."""
        if not isinstance(body, dict):
            raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")
        if not _ID.fullmatch(name):
            raise catalogue.HubError(
                "ArgumentInvalid", "A job id has 1 to 64 of a-z, 0-9, - and '."
            )
        if f"job/{name}" in self._store.values:
            raise catalogue.HubError("JobAlreadyExists", f"Job {name} exists already.")
        kind = body.get("type")
        if kind not in _TYPES:
            raise catalogue.HubError("ArgumentInvalid", f"Unknown job type {kind!r}.")
        payload = "updateTwin" if kind == "scheduleUpdateTwin" else "cloudToDeviceMethod"
        if not isinstance(body.get(payload), dict):
            raise catalogue.HubError("ArgumentInvalid", f"{payload!r} is missing.")
        condition = body.get("queryCondition") or "*"
        _parsed(condition)
        now = times.now()
        start = _start(body.get("startTime"), now)
        longest = body.get("maxExecutionTimeInSeconds") or 3600
        if not isinstance(longest, int) or longest < 1:
            raise catalogue.HubError("ArgumentInvalid", "maxExecutionTimeInSeconds is too small.")
        shown = {
            "jobId": name,
            "type": kind,
            "queryCondition": condition,
            "createdTime": times.stamp(now),
            "startTime": times.stamp(start),
            "maxExecutionTimeInSeconds": longest,
            "status": "scheduled" if start > now else "queued",
            payload: body[payload],
        }
        self._save(name, {"shown": shown, "start": start})
        return shown

    def find(self, name: str) -> Json:
        """Return a job as the service shows it."""
        return _counted(self._record(name), self._rows(name))

    def all(self, kind: str, status: str) -> list[Json]:
        """Return jobs of a type and status; empty texts take any."""
        rows = self._rows_by_job()
        found = [_counted(record, rows.get(name, {})) for name, record in self._records()]
        return [
            item
            for item in found
            if kind in ("", item["type"]) and status.lower() in ("", item["status"])
        ]

    def cancel(self, name: str) -> Json:
        """Stop a job; devices that are done stay done."""
        record = self._record(name)
        if record["shown"]["status"] not in _FINISHED:
            record = _finished(record, "cancelled")
            self._save(name, record)
            if (task := self._running.get(name)) is not None:
                task.cancel()
        return _counted(record, self._rows(name))

    def device_rows(self) -> list[Json]:
        """Return the rows of `devices.jobs`."""
        return [row for rows in self._rows_by_job().values() for row in rows.values()]

    async def run(self) -> None:
        """Carry jobs out until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                now, next_start = times.now(), None
                for name, record in self._records():
                    if record["shown"]["status"] in _FINISHED or name in self._running:
                        continue
                    if record["start"] <= now and len(self._running) >= self._at_once():
                        continue
                    if record["start"] <= now:
                        self._running[name] = group.create_task(
                            self._carry_out(name), name=f"job {name}"
                        )
                    else:
                        next_start = min(record["start"], next_start or record["start"])
                try:
                    async with asyncio.timeout(None if next_start is None else next_start - now):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def _carry_out(self, name: str) -> None:
        try:
            record = self._record(name)
            if record["shown"]["status"] != "running":
                keys = self._selected(record["shown"]["queryCondition"])
                shown = {**record["shown"], "status": "running"}
                record = {**record, "shown": shown}
                self._save(name, record, {key: _row(shown, key) for key in keys})
            rows = self._rows(name)
            left = [key for key, row in rows.items() if row["status"] != "completed"]
            gate = asyncio.Semaphore(_AT_ONCE)
            try:
                async with (
                    asyncio.timeout(record["shown"]["maxExecutionTimeInSeconds"]),
                    asyncio.TaskGroup() as group,
                ):
                    for key in left:
                        group.create_task(
                            self._one(name, key, rows[key], gate), name=f"job {name} {key}"
                        )
                status = "completed"
            except TimeoutError:
                status = "failed"
            if any(row["status"] == "failed" for row in self._rows(name).values()):
                status = "failed"
            self._save(name, _finished(self._record(name), status))
        finally:
            self._running.pop(name, None)
            self._changed.set()

    async def _one(self, name: str, key: str, row: Json, gate: asyncio.Semaphore) -> None:
        shown = self._record(name)["shown"]
        async with gate:
            try:
                change = await self._act(shown, key)
            except catalogue.HubError as error:
                change = {
                    "status": "failed",
                    "error": {"code": error.code.name, "description": error.text},
                }
        now = times.stamp()
        done = {**row, **change, "endTimeUtc": now, "lastUpdatedDateTimeUtc": now}
        with self._store.transaction() as transaction:
            transaction.put_value(f"job/{name}/{key}", done)

    async def _act(self, shown: Json, key: str) -> Json:
        if shown["type"] == "scheduleUpdateTwin":
            device_id, _, module_id = key.partition("/")
            body = shown["updateTwin"]
            self._twins.write(
                self._twins.find(device_id, module_id), body, body.get("etag") or "*", replace=False
            )
            return {"status": "completed"}
        outcome = await methods.invoke(self._presence, key, shown["cloudToDeviceMethod"])
        return {"status": "completed", "outcome": {"deviceMethodResponse": outcome}}

    def _selected(self, condition: str) -> list[str]:
        return self._queries.keys(_parsed(condition))

    def _records(self) -> list[tuple[str, Json]]:
        """Return each job's name and record; its rows have keys of their own, `job/name/…`."""
        found = []
        for key, value in self._store.values.items():
            kind, _, name = key.partition("/")
            if kind == "job" and "/" not in name:
                found.append((name, value))
        return found

    def _rows(self, name: str) -> dict[str, Json]:
        """Return a job's rows by the key of their device or module."""
        return self._rows_by_job().get(name, {})

    def _rows_by_job(self) -> dict[str, dict[str, Json]]:
        found: dict[str, dict[str, Json]] = {}
        for key, value in self._store.values.items():
            parts = key.split("/", 2)
            if len(parts) == 3 and parts[0] == "job":
                found.setdefault(parts[1], {})[parts[2]] = value
        return found

    def _record(self, name: str) -> Json:
        found = self._store.values.get(f"job/{name}")
        if found is None:
            raise catalogue.HubError("JobNotFound", f"Job {name} does not exist.")
        return found

    def _save(self, name: str, record: Json, rows: Mapping[str, Json] | None = None) -> None:
        with self._store.transaction() as transaction:
            transaction.put_value(f"job/{name}", record)
            for key, row in (rows or {}).items():
                transaction.put_value(f"job/{name}/{key}", row)
        self._changed.set()


def _counted(record: Json, rows: Mapping[str, Json]) -> Json:
    """Return a job as the service shows it, with how far its devices are."""
    if not rows:
        return record["shown"]
    states = [row["status"] for row in rows.values()]
    counts = {
        "deviceCount": len(states),
        "failedCount": states.count("failed"),
        "succeededCount": states.count("completed"),
        "runningCount": states.count("running"),
        "pendingCount": states.count("pending"),
    }
    return {**record["shown"], "deviceJobStatistics": counts}


def _row(shown: Json, key: str) -> Json:
    device_id, _, module_id = key.partition("/")
    row = {"deviceId": device_id} | ({"moduleId": module_id} if module_id else {})
    now = times.stamp()
    return row | {
        "jobId": shown["jobId"],
        "jobType": shown["type"],
        "status": "pending",
        "startTimeUtc": shown["startTime"],
        "createdDateTimeUtc": now,
        "lastUpdatedDateTimeUtc": now,
    }


def _finished(record: Json, status: str) -> Json:
    shown = {**record["shown"], "status": status, "endTime": times.stamp()}
    return {**record, "shown": shown}


def _parsed(condition: Any) -> query.Query:
    if not isinstance(condition, str):
        raise catalogue.HubError("ArgumentInvalid", "'queryCondition' must be a text.")
    text = condition.strip()
    if text in ("", "*"):
        text = "SELECT * FROM devices"
    elif text.lower().startswith("from "):
        text = f"SELECT * {text}"
    else:
        text = f"SELECT * FROM devices WHERE {text}"
    try:
        return query.parse_query(text)
    except query.QueryError as error:
        raise catalogue.HubError("ArgumentInvalid", f"Query is not valid. {error}") from error


def _start(given: Any, now: float) -> float:
    if not given:
        return now
    try:
        start = times.parse(str(given))
    except ValueError as error:
        raise catalogue.HubError("ArgumentInvalid", "'startTime' is no time.") from error
    if start > now + _AHEAD_SECONDS:
        raise catalogue.HubError("ArgumentInvalid", "'startTime' is more than 7 days ahead.")
    return start
