"""Who is connected right now; forgotten at a restart, as connections are."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from kvedge.emulator import records, times

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Presence", "Seen", "Session"]


class Session(Protocol):
    """A live connection of a device or module."""

    def close(self, reason: str) -> None:
        """End the connection."""
        ...

    def notify_desired(self, patch: records.Json) -> None:
        """Tell changed desired properties, if the device has asked for them."""
        ...

    def takes_methods(self) -> bool:
        """Tell whether the device has registered for direct methods."""
        ...

    async def invoke(self, name: str, payload: Any) -> tuple[int, Any]:
        """Call a direct method and return its status and payload."""
        ...

    def deliver(self, message: records.Message) -> bool:
        """Send a cloud-to-device message; False if the device has not asked for them."""
        ...


@dataclasses.dataclass(slots=True)
class Seen:
    """What is known of an identity's connections."""

    session: Session | None = None
    changed: str = times.NEVER
    """When it last connected or disconnected."""
    activity: str = times.NEVER
    """When it last said anything."""


class Presence:
    """One session for each identity; the newest takes over."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        """Make an empty room; `changed` hears the device id of each announced change."""
        self._seen: dict[str, Seen] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._changed = changed
        self._nobody = Seen()

    def of(self, key: str) -> Seen:
        """Return what is known of an identity, a blank record if nothing."""
        return self._seen.get(key, self._nobody)

    def session(self, key: str) -> Session | None:
        """Return the live connection of an identity."""
        return self.of(key).session

    def arrive(self, key: str, session: Session) -> None:
        """Make this the identity's session and end the one that it replaces."""
        seen = self._seen.setdefault(key, Seen())
        older, seen.session = seen.session, session
        seen.changed = seen.activity = times.stamp()
        if older is not None:
            older.close("another connection with the same identity took over")
        self.wake(key)

    def leave(self, key: str, session: Session) -> None:
        """Forget a session unless another one has taken over already."""
        seen = self._seen.get(key)
        if seen is not None and seen.session is session:
            seen.session = None
            seen.changed = times.stamp()

    def wake(self, key: str) -> None:
        """Let those look again who wait for something of this identity's session."""
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def with_methods(self, key: str, timeout: float) -> Session | None:
        """Return the session as soon as it takes direct methods; None after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while (session := self.session(key)) is None or not session.takes_methods():
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.setdefault(key, []).append(waiter)
                    await waiter
        except TimeoutError:
            return None
        return session

    def touch(self, key: str) -> None:
        """Note that an identity said something."""
        seen = self._seen.get(key)
        if seen is not None:
            seen.activity = times.stamp()

    def announce(self, device_id: str) -> None:
        """Tell that something of this device changed."""
        self._changed(device_id)

    def drop(self, key: str, reason: str) -> None:
        """End an identity's connection, if it has one."""
        if (session := self.session(key)) is not None:
            session.close(reason)

    def drop_all(self) -> None:
        """End every connection, as a restart of the service's gateway does."""
        for session in self.sessions():
            session.close("the connection was dropped on purpose")

    def forget(self, key: str) -> None:
        """End an identity's connection and all memory of it."""
        self.drop(key, "the identity was removed")
        self._seen.pop(key, None)

    def connected_devices(self) -> int:
        """Return how many devices (not modules) are connected."""
        return sum(seen.session is not None for key, seen in self._seen.items() if "/" not in key)

    def sessions(self) -> list[Session]:
        """Return all live connections."""
        return [seen.session for seen in self._seen.values() if seen.session is not None]
