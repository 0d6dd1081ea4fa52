"""When a module that ended is started again: the real agent's rules and waiting times."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvedge.edgesim.manifest import ModuleSpec

__all__ = [
    "CALM_SECONDS",
    "LONGEST_WAIT_SECONDS",
    "MAX_RESTARTS",
    "Verdict",
    "cool_off_seconds",
    "judge",
]

MAX_RESTARTS: Final = 20
LONGEST_WAIT_SECONDS: Final = 300.0
CALM_SECONDS: Final = 600.0
"""A module that ran this long has its restart count forgotten."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a module's container is, and what is to be done."""

    runtime_status: str
    """As reported: running, stopped, failed, backoff, unknown."""
    start: bool = False
    wait_seconds: float = 0.0
    """Time until the verdict may change."""


def cool_off_seconds(restarts: int, unit: float) -> float:
    """Return how long a module rests after an exit, given its restarts so far."""
    return min(unit * 2**restarts, LONGEST_WAIT_SECONDS)


def judge(
    spec: ModuleSpec, *, state: str, exit_code: int, restarts: int, rested: float, unit: float
) -> Verdict:
    """Decide about one container.

    Args:
        state: the engine's word: created, running, exited, …
        restarts: how often it was restarted since it last ran calmly.
        rested: seconds since it ended; negative when the clock was set back.
        unit: seconds of the first rest (the agent's CoolOffTimeUnitInSeconds).
    """
    if state == "running":
        return Verdict(runtime_status="running")
    if state in {"created", "paused", "restarting"}:
        return Verdict(runtime_status="stopped", start=spec.status == "running")
    ended = "stopped" if exit_code == 0 else "failed"
    if spec.status != "running" or spec.restart_policy == "never":
        return Verdict(runtime_status=ended)
    if ended == "stopped" and spec.restart_policy != "always":
        return Verdict(runtime_status=ended)
    if restarts >= MAX_RESTARTS:
        return Verdict(runtime_status="failed")
    wait = cool_off_seconds(restarts, unit)
    if 0 < rested < wait:
        return Verdict(runtime_status="backoff", wait_seconds=wait - rested)
    return Verdict(runtime_status="backoff", start=True)
