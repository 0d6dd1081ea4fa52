"""Kubernetes events of the fleet: of one VM with everything that belongs to it, or of all."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from kvedge import errors, names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kvedge import kube

__all__ = ["Happening", "follow_events", "read_events"]

_BELONGINGS = (
    "/apis/cdi.kubevirt.io/v1beta1/namespaces/{}/datavolumes",
    "/api/v1/namespaces/{}/persistentvolumeclaims",
    "/api/v1/namespaces/{}/services",
    "/api/v1/namespaces/{}/pods",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event, as `kubectl get events` has it."""

    time: str
    """When it was last seen (RFC 3339)."""
    kind: str
    """Normal or Warning."""
    reason: str
    subject: str
    """`KIND/NAME` of what it is about, in lower case."""
    message: str
    count: int


async def read_events(
    client: kube.Client, *, namespace: str, vm: str = "", warnings: bool = False
) -> list[Happening]:
    """Return the events of a namespace, oldest first.

    Args:
        vm: only of this VM, its guest, launcher pods, disks and Service.
        warnings: only those that are no matter of course.
    """
    fits = await _filter(client, namespace, vm, warnings=warnings)
    listed = await client.get(f"/api/v1/namespaces/{namespace}/events")
    found = [_happening(event) for event in listed["items"] if fits(event)]
    return sorted(found, key=lambda one: one.time)


async def follow_events(
    client: kube.Client, *, namespace: str, vm: str = "", warnings: bool = False
) -> AsyncIterator[Happening]:
    """Yield the events there are, then each new one, for ever."""
    fits = await _filter(client, namespace, vm, warnings=warnings)
    first: list[Happening] | None = []
    async for kind, event in client.watch(f"/api/v1/namespaces/{namespace}/events"):
        if kind == "SYNCED":
            for one in sorted(first or (), key=lambda one: one.time):
                yield one
            first = None
        elif kind != "DELETED" and fits(event):
            if first is None:
                yield _happening(event)
            else:
                first.append(_happening(event))


async def _filter(client: kube.Client, namespace: str, vm: str, *, warnings: bool) -> Any:
    belongings: set[str] = set()
    if vm:
        selector = f"{names.LABEL_VM}={vm}"
        listed = await asyncio.gather(
            *(_names(client, path.format(namespace), selector) for path in _BELONGINGS)
        )
        belongings = {vm}.union(*listed)

    def fits(event: Mapping[str, Any]) -> bool:
        name = event["involvedObject"].get("name", "")
        mine = not vm or name in belongings or name.startswith(f"virt-launcher-{vm}-")
        return mine and (not warnings or event.get("type") == "Warning")

    return fits


async def _names(client: kube.Client, path: str, selector: str) -> set[str]:
    try:
        listed = await client.get(path, labelSelector=selector)
    except errors.NotFound:
        return set()
    return {item["metadata"]["name"] for item in listed["items"]}


def _happening(event: Mapping[str, Any]) -> Happening:
    about = event["involvedObject"]
    series = event.get("series") or {}
    return Happening(
        time=str(
            series.get("lastObservedTime")
            or event.get("lastTimestamp")
            or event.get("eventTime")
            or event["metadata"].get("creationTimestamp")
            or ""
        ),
        kind=event.get("type") or "Normal",
        reason=event.get("reason") or "",
        subject=f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        message=(event.get("message") or "").strip(),
        count=int(series.get("count") or event.get("count") or 1),
    )
