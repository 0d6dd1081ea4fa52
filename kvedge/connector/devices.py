"""What the devices report, read with one paged query whatever the number of pods."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from kvedge import edge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvedge.edge import DeviceReport
    from kvedge.iothub import Hub

__all__ = ["Devices"]

_QUERY = "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'"


class Devices:
    """The newest reports of all edge agents of a hub, by deployment."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._reports: dict[str, DeviceReport] = {}
        self._by_deployment: dict[str, list[DeviceReport]] = {}
        self.pages = 1
        """Requests that the last poll took."""
        self.changed: set[str] = set()
        """Deployments whose devices said something new in the last poll."""

    def __len__(self) -> int:
        return len(self._reports)

    def of(self, *deployments: str) -> Sequence[DeviceReport]:
        """Return the reports of the devices that any of these deployments targets."""
        if len(deployments) == 1:
            return self._by_deployment.get(deployments[0], ())
        found = {
            report.device: report
            for deployment in deployments
            for report in self._by_deployment.get(deployment, ())
        }
        return [found[device] for device in sorted(found)]

    async def poll(self) -> None:
        """Read all reports."""
        fresh: dict[str, DeviceReport] = {}
        pages = 0
        async for page in self._hub.query_pages(_QUERY, retry=False):
            pages += 1
            fresh.update(edge.device_reports(page))
        self.pages = max(1, pages)
        changed: set[str] = set()
        for device in fresh.keys() | self._reports.keys():
            old, new = self._reports.get(device), fresh.get(device)
            if old != new:
                changed |= (old.targeted if old else frozenset()) | (
                    new.targeted if new else frozenset()
                )
        by_deployment: dict[str, list[DeviceReport]] = collections.defaultdict(list)
        for device in sorted(fresh):
            for deployment in fresh[device].targeted:
                by_deployment[deployment].append(fresh[device])
        self._reports, self._by_deployment, self.changed = fresh, dict(by_deployment), changed
