"""Comparing and making pod statuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge.wire import KubeObject

__all__ = ["covers", "refused_status", "waiting_status"]

_EMPTY: tuple[Any, ...] = (None, "", [], {})
_BY_TYPE = "conditions"


def covers(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether writing `wanted` over the status `found` would change nothing."""
    for key, value in wanted.items():
        present = found.get(key)
        if key == _BY_TYPE:
            by_type = {entry["type"]: entry for entry in present or ()}
            if not all(_same(by_type.get(entry["type"]), entry) for entry in value):
                return False
        elif not _same(present, value):
            return False
    return True


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return not found and all(value in _EMPTY for value in wanted.values())
        return all(_same(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        found = found or []
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return found == wanted or (found in _EMPTY and wanted in _EMPTY)


def refused_status(reason: str, message: str) -> dict[str, Any]:
    """Return the status of a pod that the node does not take; it is final."""
    return {
        "phase": "Failed", "reason": reason, "message": message, "startTime": timestamp(),
    }  # fmt: skip


def waiting_status(
    pod: KubeObject, reason: str, message: str, *, pod_reason: str = "", phase: str = "Pending"
) -> dict[str, Any]:
    """Return the status of a pod that cannot start, with the same reason on each container."""
    before = {entry["type"]: entry for entry in pod.get("status", {}).get("conditions") or ()}

    def condition(kind: str) -> dict[str, Any]:
        old = before.get(kind) or {}
        since = old.get("lastTransitionTime") if old.get("status") == "False" else None
        return {
            "type": kind, "status": "False", "lastTransitionTime": since or timestamp(),
            "reason": pod_reason or reason, "message": message,
        }  # fmt: skip

    return {
        "phase": phase,
        "reason": pod_reason or reason,
        "message": message,
        "conditions": [condition("ContainersReady"), condition("Ready")],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": False,
                "started": False,
                "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}},
            }
            for container in pod["spec"]["containers"]
        ],
    }
