"""How many requests of each kind one hub may get a minute, and who goes first.

A hub takes 20 configuration operations, 20 queries and 100 registry operations a minute and unit,
and 50 twin writes a second
(https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling). Above that it delays
and then refuses, so requests wait here instead, where a retirement can overtake a poll.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
import math

__all__ = ["UNLIMITED", "Budget", "Lane"]

UNLIMITED = 0
"""Units of a hub that nobody throttles, such as the emulator."""

_PER_MINUTE = {"configurations": 20, "query": 20, "registry": 100}
"""Multiplied by the units."""
_TWINS_PER_SECOND = 50
"""Reads and writes together, whatever the units; reads alone could be twice as many."""

_SHARE = 0.95
"""Of the hub's budget: requests bunch up on their way, and somebody may look at the hub by hand."""


class Lane(enum.IntEnum):
    """Who goes first when requests must wait; a lower number overtakes."""

    URGENT = 0
    """A user waits for it: logs, deletion."""
    STATUS = 1
    """Reads that tell how things are; who polls bounds how often."""
    BULK = 2
    """Everything that is made or changed: a fleet of it may come at once."""


class Budget:
    """Tokens for one hub; shared by everything in the process that talks to that hub."""

    def __init__(self, units: int = 1) -> None:
        self.units = units
        self._buckets = {kind: _Bucket(limit * units, 60) for kind, limit in _PER_MINUTE.items()}
        self._buckets["twins"] = _Bucket(_TWINS_PER_SECOND, 1)
        self.spent: dict[str, int] = {}
        """Requests sent so far, by kind."""

    async def spend(self, kind: str, lane: Lane) -> None:
        """Wait until one more request of the kind may be sent."""
        if self.units != UNLIMITED and (bucket := self._buckets.get(kind)) is not None:
            await bucket.take(lane)
        self.spent[kind] = self.spent.get(kind, 0) + 1

    def refused(self, kind: str) -> None:
        """Note that the hub throttles the kind: others use its quota too, so all wait here."""
        if self.units != UNLIMITED and (bucket := self._buckets.get(kind)) is not None:
            bucket.drain()

    def left(self, kind: str) -> float:
        """Return how many requests of the kind could be sent at once."""
        bucket = self._buckets.get(kind)
        return math.inf if self.units == UNLIMITED or bucket is None else bucket.level()


class _Bucket:
    """A token bucket whose waiters are served by lane, then by arrival."""

    def __init__(self, count: int, seconds: int) -> None:
        self._capacity = count * _SHARE
        self._seconds = seconds
        self._level = self._capacity
        self._at: float | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def level(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._at is not None:
            grown = (now - self._at) * self._capacity / self._seconds
            self._level = min(self._capacity, self._level + grown)
        self._at = now
        return self._level

    def drain(self) -> None:
        self._level = min(self.level(), 0.0)

    async def take(self, lane: Lane) -> None:
        if not self._waiting and self.level() >= 1:
            self._level -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (lane, next(self._order), turn))
        self._arm()
        await turn

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            missing = max(0.0, 1 - self.level())
            delay = missing * self._seconds / self._capacity
            self._timer = asyncio.get_running_loop().call_later(delay + 0.001, self._serve)

    def _serve(self) -> None:
        self._timer = None
        while self._waiting and self.level() >= 1:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self._level -= 1
        self._arm()
