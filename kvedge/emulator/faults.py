"""What makes the hub as awkward as the real one: throttles, delays, failures, lag; off at first.

Throttle budgets are the service's own
(https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling), refused as the live
service refuses: 429 without Retry-After, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.emulator.records import Json

__all__ = ["BUDGETS", "JOBS_AT_ONCE", "Faults", "Knobs", "knobs_from_json"]

_S1 = {
    "Identity": (0, 100, 60),
    "Query": (0, 20, 60),
    "TwinRead": (100, 0, 1),
    "TwinUpdate": (50, 0, 1),
    "DirectMethod": (0, 40, 1),
    "Configuration": (0, 20, 60),
    "Jobs": (0, 100, 60),
    "Connection": (100, 12, 1),
}
BUDGETS: dict[str, dict[str, tuple[int, int, int]]] = {
    "F1": _S1,
    "S1": _S1,
    "S2": _S1 | {
        "TwinRead": (100, 10, 1), "TwinUpdate": (50, 5, 1), "DirectMethod": (0, 120, 1),
        "Connection": (0, 120, 1),
    },
    "S3": {
        "Identity": (0, 5000, 60), "Query": (0, 1000, 60), "TwinRead": (0, 500, 1),
        "TwinUpdate": (0, 250, 1), "DirectMethod": (0, 6144, 1), "Configuration": (0, 20, 60),
        "Jobs": (0, 5000, 60), "Connection": (0, 6000, 1),
    },
}  # fmt: skip
"""Tier and kind of operation to (least operations, operations of each unit, in so many seconds).

Reads and writes of identities share one budget, and so do those of configurations. A direct method
counts once for each 4 KB of its payload.
"""
JOBS_AT_ONCE = {"F1": 1, "S1": 1, "S2": 5, "S3": 10}
"""Tier to jobs that may run together."""
_SHARED = {"ConfigurationRead": "Configuration", "ConfigurationWrite": "Configuration",
           "IdentityRead": "Identity", "IdentityWrite": "Identity"}  # fmt: skip
_STATUS_CODES = {500: "ServerError", 503: "ServiceUnavailable", 429: "ThrottlingException"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How awkward the hub is."""

    tier: str = ""
    """`S1`, `S2`, `S3` or `F1`: throttle as this tier does; empty: no throttles."""
    units: int = 1
    """Units of the tier."""
    throttle_scale: float = 1.0
    """Multiplies the budgets, to make a test quick."""
    latency_seconds: float = 0.0
    """Added to each request."""
    fail_status: int = 0
    """Answer with this error (429, 500 or 503) …"""
    fail_count: int = 0
    """… for the next so many requests (-1: for all) …"""
    fail_operation: str = ""
    """… of this operation, such as `Query`; empty: of any …"""
    fail_seconds: float = 0.0
    """… for so long at most, whether the number is reached or not; 0: until it is reached …"""
    fail_every_seconds: float = 0.0
    """… and again so often, in bursts; 0: once."""
    query_lag_seconds: float = 0.0
    """Queries see the hub as it was up to so long ago; removed devices linger too."""
    drop_connections: bool = False
    """End all MQTT connections now; a one-time act."""
    drop_every_seconds: float = 0.0
    """End all MQTT connections so often; 0: never."""


class Faults:
    """Admits, delays or refuses requests."""

    def __init__(self, knobs: Knobs, drop: Callable[[], None]) -> None:
        """Begin with these knobs; `drop` ends all MQTT connections."""
        self._drop = drop
        self._buckets: dict[str, tuple[float, float]] = {}
        self.knobs = knobs
        self._left = 0
        self._burst_began = 0.0
        self._next_drop: asyncio.TimerHandle | None = None
        self.turn(knobs)

    def turn(self, knobs: Knobs) -> None:
        """Set the knobs anew; to be called in the hub's event loop."""
        self.knobs = dataclasses.replace(knobs, drop_connections=False)
        self._left = knobs.fail_count
        self._burst_began = time.monotonic()
        self._buckets.clear()
        if knobs.drop_connections:
            self._drop()
        self.stop()
        if knobs.drop_every_seconds:
            self._arm()

    def stop(self) -> None:
        """End what goes on by itself."""
        if self._next_drop is not None:
            self._next_drop.cancel()

    def _arm(self) -> None:
        def drop() -> None:
            self._drop()
            self._arm()

        seconds = self.knobs.drop_every_seconds
        self._next_drop = asyncio.get_running_loop().call_later(seconds, drop)

    async def admit(self, operation: str) -> None:
        """Let an operation pass, later or not at all; raises HubError."""
        if operation == "Emulator":
            return
        knobs = self.knobs
        if knobs.latency_seconds:
            await asyncio.sleep(knobs.latency_seconds)
        if self._fails(operation):
            raise catalogue.HubError(_STATUS_CODES[knobs.fail_status])
        self.charge(operation)

    def _fails(self, operation: str) -> bool:
        """Tell whether a request falls into a burst of failures, and count it."""
        knobs, now = self.knobs, time.monotonic()
        if knobs.fail_every_seconds and now >= self._burst_began + knobs.fail_every_seconds:
            self._left, self._burst_began = knobs.fail_count, now
        if knobs.fail_seconds and now >= self._burst_began + knobs.fail_seconds:
            return False
        if not knobs.fail_status or not self._left or knobs.fail_operation not in ("", operation):
            return False
        self._left -= self._left > 0
        return True

    def charge(self, operation: str, cost: int = 1) -> None:
        """Take what an operation costs from its budget; raises HubError when it is used up."""
        if not self.take(operation, cost):
            raise catalogue.HubError(
                "ThrottlingBacklogTimeout",
                "The request has been throttled. Wait 10 seconds and try again. "
                f"Operation type: {operation}",
            )

    def take(self, operation: str, cost: int = 1) -> bool:
        """Take from the operation's bucket, which fills evenly up to one period's budget."""
        budgets = BUDGETS.get(self.knobs.tier, {})
        name = _SHARED.get(operation, operation)
        if name not in budgets:
            return True
        least, by_unit, seconds = budgets[name]
        count = max(least, by_unit * self.knobs.units)
        size = max(1.0, count * self.knobs.throttle_scale)
        now = time.monotonic()
        level, then = self._buckets.get(name, (size, now))
        level = min(size, level + (now - then) * size / seconds)
        taken = level >= min(cost, size)
        self._buckets[name] = (level - cost if taken else level, now)
        return taken


def knobs_from_json(given: Any) -> Knobs:
    """Return the knobs that a request names; the others are off. Raises HubError."""
    if not isinstance(given, dict):
        raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")
    kinds = {field.name: field for field in dataclasses.fields(Knobs)}
    values: Json = {}
    for name, value in given.items():
        if name not in kinds:
            raise catalogue.HubError(
                "ArgumentInvalid", f"Unknown knob {name!r}; there are {', '.join(kinds)}."
            )
        wanted = type(kinds[name].default)
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise catalogue.HubError("ArgumentInvalid", f"{name} must be a {wanted.__name__}.")
        values[name] = value
    knobs = Knobs(**values)
    if knobs.tier not in ("", *BUDGETS):
        raise catalogue.HubError("ArgumentInvalid", f"Unknown tier {knobs.tier!r}.")
    if knobs.fail_status not in (0, *_STATUS_CODES):
        raise catalogue.HubError("ArgumentInvalid", "fail_status must be 429, 500 or 503.")
    return knobs
