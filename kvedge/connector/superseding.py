"""Which deployments of a workload leave the hub, and when its last good one comes back.

A superseded deployment stays until enough devices run its successor; then nothing of it is needed.
If the successor fails instead and its pod asks for that, the last good one is put above it again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvedge import edge
from kvedge.connector.ledger import workload_of
from kvedge.edge import packing
from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from kvedge.connector.devices import Devices
    from kvedge.connector.ledger import Ledger
    from kvedge.connector.settings import Settings
    from kvedge.edge import DeviceReport, Revision
    from kvedge.wire import Configuration

__all__ = ["Superseding"]

Workload = tuple[str, str]


class Superseding:
    """The life's end of deployments that are one workload's alone."""

    def __init__(
        self,
        ledger: Ledger,
        devices: Devices,
        settings: Settings,
        placed: Mapping[str, Revision],
        tell: Callable[[str, str, str], None],
    ) -> None:
        """Look after `placed` (revision by pod); `tell` writes a warning event of a pod."""
        self._ledger, self._devices, self._settings = ledger, devices, settings
        self._placed, self._tell = placed, tell
        self._absent: dict[str, float] = {}
        self._unready: dict[str, float] = {}
        """Since when a newest revision is awaited."""

    async def sweep(
        self,
        living: Mapping[Workload, Sequence[str]],
        *,
        listed: bool,
        awaited: Collection[Workload],
    ) -> None:
        """Retire what is superseded, and what has had no pod for a while.

        Args:
            living: UIDs of the pods that are not being deleted, by workload.
            listed: all pods are known.
            awaited: workloads whose next pod is waited for.
        """
        wanted = {revision.id for revision in self._placed.values()}
        older: dict[Workload, list[Configuration]] = {}
        for entry in sorted(self._ledger.own(), key=lambda entry: entry.get("priority", 0)):
            workload = workload_of(entry)
            if packing.pack_of(entry):
                continue
            if entry["id"] in wanted:
                self._absent.pop(entry["id"], None)
                if len(self._ledger.of_workload(workload)) == 1:
                    await self._ledger.settle(entry["id"])
            elif self._ledger.is_making(entry["id"]):
                continue
            elif workload in living:
                self._absent.pop(entry["id"], None)
                older.setdefault(workload, []).append(entry)
            elif listed and workload not in awaited:
                await self._collect(entry["id"])
        for workload, entries in older.items():
            await self._supersede(entries, living[workload], listed=listed)

    async def _supersede(
        self, older: Sequence[Configuration], uids: Sequence[str], *, listed: bool
    ) -> None:
        """Retire a workload's older revisions.

        The oldest that was never given up is the last one that ran, for all before it were retired
        then. It stays until the newest runs. Those between never ran; they go when the newest is
        applied, or before there are too many for a new one. Without a newest one, because the hub
        has none that a pod wants, the uppermost stays too: it is what devices have.
        """
        ids = {self._placed[uid].id for uid in uids if uid in self._placed}
        placed = sorted(ids, key=self._ledger.priority)
        good = next((e["id"] for e in older if not _is_marked(e)), older[0]["id"])
        if placed and self._ledger.is_given_up(placed[-1]):
            leaving = [entry["id"] for entry in older if entry["id"] != good]
        else:
            highest = max(entry.get("priority", 0) for entry in older)
            for deployment in placed:
                if self._ledger.priority(deployment) < highest:
                    await self._ledger.lift(deployment)
            applied, runs = self._effect(uids)
            if not runs and await self._rolled_back(uids, good):
                return
            everything = self._ledger.of_workload(workload_of(older[0]))
            # Until all pods are known, one of these may still be wanted.
            crowded = listed and len(everything) >= self._settings.revisions_per_workload
            kept = {good} if placed else {good, older[-1]["id"]}
            leaving = [
                e["id"]
                for e in older
                if runs or (applied and e["id"] != good) or (crowded and e["id"] not in kept)
            ]
        for deployment in leaving:
            await self._ledger.retire(deployment)

    def _newest(self, uids: Sequence[str]) -> list[tuple[Revision, DeviceReport]]:
        """Return the revision that counts on each device, the newest one's devices last.

        Pods of one workload may differ for a while; on a device the one of highest priority counts.
        """
        placed = [self._placed[uid] for uid in uids if uid in self._placed]
        placed.sort(key=lambda revision: self._ledger.priority(revision.id))
        if not all(self._devices.of(revision.id) for revision in placed):
            return []
        newest: dict[str, tuple[Revision, DeviceReport]] = {}
        for revision in placed:
            for report in self._devices.of(revision.id):
                newest.pop(report.device, None)
                newest[report.device] = (revision, report)
        return list(newest.values())

    def _effect(self, uids: Sequence[str]) -> tuple[bool, bool]:
        """Tell whether the newest revision is applied on each device, and runs on enough."""
        newest = self._newest(uids)
        if not newest:
            return False, False
        applied = all(revision.id in report.applied for revision, report in newest)
        everyone = all(uid in self._placed for uid in uids)
        return applied, applied and everyone and edge.enough_run(
            newest, newest[-1][0].face.min_ready
        )

    async def _rolled_back(self, uids: Sequence[str], good: str) -> bool:
        """Bring the last good revision back, if the newest had its time and fails."""
        newest = self._newest(uids)
        if not newest:
            return False
        revision, now = newest[-1][0], asyncio.get_running_loop().time()
        since = self._unready.setdefault(revision.id, now)
        self._unready = {k: v for k, v in self._unready.items() if k in self._ledger}
        limit = revision.face.rollback_seconds
        failed = edge.failing(revision, [r for owner, r in newest if owner.id == revision.id])
        if not limit or now - since < limit or not failed:
            return False
        await self._ledger.roll_back(revision.id, good, timestamp())
        words = f"not ready after {limit:g} s, failing on {', '.join(failed[:3])}: back to {good}"
        for uid in uids:
            if uid in self._placed and self._placed[uid].id == revision.id:
                self._tell(uid, "RolledBack", words)
        return True

    async def _collect(self, deployment: str) -> None:
        """Retire a deployment without any pod, if that has lasted for a while."""
        now = asyncio.get_running_loop().time()
        since = self._absent.setdefault(deployment, now)
        if now - since >= self._settings.orphan_seconds:
            await self._ledger.retire(deployment)
            self._absent.pop(deployment, None)


def _is_marked(entry: Configuration) -> bool:
    return edge.LABEL_ROLLED_BACK in (entry.get("labels") or {})
