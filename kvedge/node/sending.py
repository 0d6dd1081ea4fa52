"""What is written to the API server, in two lanes: pods first, events when there is room.

Pod writes have no rate of their own; a bound on requests in flight and the server's 429s pace them.
Events wait while pod writes are waiting, are never dropped, and never delay a pod.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import itertools
import logging
import secrets
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kvedge.kube import Client
    from kvedge.node.runtime import Tasks

__all__ = ["Counters", "EventLane", "PodLane", "timestamp"]

_log = logging.getLogger(__name__)
_STRATEGIC = "application/strategic-merge-patch+json"
_MESSAGE_LIMIT = 1024
"""The API server refuses longer event messages."""
_EVENT_TRIES = 6


def timestamp() -> str:
    """Return this moment as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(slots=True)
class Counters:
    """What was written so far."""

    statuses: int = 0
    deletes: int = 0
    events: int = 0
    events_lost: int = 0
    failures: int = 0


class PodLane:
    """Status patches and deletions of pods."""

    def __init__(self, client: Client, counters: Counters, *, in_flight: int = 24) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(in_flight)
        self.counters = counters
        self.waiting = 0
        """Pod writes that are waiting or under way."""
        self.idle = asyncio.Event()
        self.idle.set()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        self.idle.clear()
        try:
            async with self._slots:
                yield
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.idle.set()

    async def patch_status(
        self, namespace: str, name: str, uid: str, status: Mapping[str, Any]
    ) -> Any:
        """Write a pod's status and return the object.

        Only the status is sent, with the UID: labels that somebody else writes meanwhile survive,
        and a successor of the same name is never written to.

        Raises:
            NotFound: the pod has gone.
            Conflict: another pod has its name now.
        """
        body = {"metadata": {"uid": uid}, "status": status}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        async with self._slot():
            answer = await self._client.request("PATCH", path, body, content_type=_STRATEGIC)
        self.counters.statuses += 1
        return answer

    async def delete(self, namespace: str, name: str, uid: str) -> None:
        """Remove a pod's object at once; one that has gone already is fine."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        async with self._slot():
            with contextlib.suppress(errors.NotFound, errors.Conflict):
                await self._client.request("DELETE", path, body, raw=True)
        self.counters.deletes += 1


class EventLane:
    """Events, written one after the other by a few workers."""

    def __init__(
        self, client: Client, pods: PodLane, counters: Counters, component: str, host: str
    ) -> None:
        self._client = client
        self._pods = pods
        self._counters = counters
        self._source = {"component": component, "host": host}
        self._queue: collections.deque[tuple[str, bytes | dict[str, Any], int]] = (
            collections.deque()
        )
        self._more = asyncio.Event()
        self._serial = itertools.count(secrets.randbits(40))
        self._busy = 0

    def start(self, tasks: Tasks, workers: int = 6) -> None:
        """Begin writing."""
        for number in range(workers):
            tasks.spawn(self._work(number), f"events-{number}")

    def put(self, involved: Mapping[str, str], reason: str, message: str, *, warning: bool) -> None:
        """Write an Event about an object as soon as pods leave room.

        Args:
            involved: apiVersion, kind, name, namespace, uid of the object.
            reason: one word in CamelCase.
            message: a sentence for the user.
            warning: something is wrong.
        """
        now = timestamp()
        namespace = involved.get("namespace") or "default"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{involved['name']}.{next(self._serial):x}"},
            "involvedObject": dict(involved),
            "reason": reason,
            "message": message[:_MESSAGE_LIMIT],
            "type": "Warning" if warning else "Normal",
            "source": self._source,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self._queue.append((f"/api/v1/namespaces/{namespace}/events", event, 0))
        self._more.set()

    def __len__(self) -> int:
        return len(self._queue) + self._busy

    async def flush(self) -> None:
        """Wait until all events are written."""
        while len(self):  # noqa: ASYNC110 - only at the end of a process
            await asyncio.sleep(0.02)

    async def _work(self, number: int) -> None:
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            if self._pods.waiting and number:
                # The first worker goes on, so that events of a busy node are late but not stuck.
                await self._pods.idle.wait()
                continue
            path, event, tries = self._queue.popleft()
            self._busy += 1
            try:
                await self._client.request("POST", path, event, raw=True)
                self._counters.events += 1
            except errors.RemoteError as error:
                await self._failed(error, path, event, tries)
            finally:
                self._busy -= 1

    async def _failed(self, error: errors.RemoteError, path: str, event: Any, tries: int) -> None:
        # A namespace that is being removed takes no events (403), a removed one is not found.
        if error.status in (400, 403, 404, 409, 422) or tries >= _EVENT_TRIES:
            self._counters.events_lost += error.status != 409
            _log.debug("event not written: %s", error)
            return
        self._queue.append((path, event, tries + 1))
        await asyncio.sleep(min(0.2 * 2**tries, 5))
