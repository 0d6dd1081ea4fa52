"""The hub's deployments as the connector knows them, and their effective priorities.

A deployment's effective priority is 1000 times the user's plus a revision slot, and no two
deployments of a hub keep the same one: which of two equals wins is not told by the hub. A newer
revision of a workload always has the higher slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from kvedge import edge, errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from kvedge.connector.settings import Settings
    from kvedge.edge import Revision
    from kvedge.iothub import Hub
    from kvedge.wire import Configuration

__all__ = ["Ledger", "slot_for", "workload_of"]

_log = logging.getLogger(__name__)
_SLOTS = 1000
_HIGH_SLOT = 900
"""From here on a lone revision is moved down again."""


def slot_for(lowest: int, taken: Iterable[int], own: Iterable[int]) -> int | None:
    """Return the effective priority of a new revision; None if the block has no room.

    Args:
        lowest: effective priority of slot 0, which is never given.
        taken: effective priorities of all deployments of the hub.
        own: those of the workload's older revisions.
    """
    block = range(lowest + 1, lowest + _SLOTS)
    used = set(taken)
    start = max((value for value in own if value in block), default=lowest) + 1
    return next((value for value in range(start, block.stop) if value not in used), None)


class Ledger:
    """All deployments of one hub, and which of them belong to this node."""

    def __init__(self, hub: Hub, settings: Settings) -> None:
        self._hub, self._settings = hub, settings
        self._known: dict[str, Configuration] = {}
        self._meanwhile: dict[str, Configuration | None] = {}
        self._unsure: dict[int, tuple[str, str]] = {}
        self._making: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Lock()
        self.loaded = False

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, deployment: str) -> bool:
        return deployment in self._known

    async def load(self) -> None:
        """Read all deployments; what is written while the hub answers is newer than the answer."""
        unsure = set(self._unsure)
        self._meanwhile = {}
        listed = await self._hub.configurations(retry=False)
        known = {entry["id"]: entry for entry in listed}
        for deployment, entry in self._meanwhile.items():
            if entry is None:
                known.pop(deployment, None)
            else:
                known[deployment] = entry
        for deployment in self._making:
            if deployment in self._known:
                known.setdefault(deployment, self._known[deployment])
        self._known = known
        for priority in unsure:
            self._unsure.pop(priority, None)
        self.loaded = True

    def is_making(self, deployment: str) -> bool:
        """Tell whether a deployment is being written, so that nobody's pod has it yet."""
        return deployment in self._making

    def _note(self, deployment: str, entry: Configuration | None) -> None:
        self._meanwhile[deployment] = entry
        if entry is None:
            self._known.pop(deployment, None)
        else:
            self._known[deployment] = entry

    def priority(self, deployment: str) -> int:
        """Return a deployment's effective priority; 0 if it is not known."""
        entry = self._known.get(deployment)
        return entry.get("priority", 0) if entry else 0

    def content(self, deployment: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the modules' part of a deployment's content; empty if it is not known."""
        entry = self._known.get(deployment)
        return (entry.get("content") or {}).get("modulesContent") or {} if entry else {}

    def is_given_up(self, deployment: str) -> bool:
        """Tell whether a revision was rolled back: it says so and an older one is above it."""
        entry = self._known.get(deployment)
        if entry is None or edge.LABEL_ROLLED_BACK not in (entry.get("labels") or {}):
            return False
        others = self.of_workload(workload_of(entry))
        return max(o.get("priority", 0) for o in others) > entry.get("priority", 0)

    async def roll_back(self, deployment: str, good: str, now: str) -> None:
        """Put the last good revision above one that did not become ready, which stays known."""
        entry = self._known[deployment]
        labels = {**(entry.get("labels") or {}), edge.LABEL_ROLLED_BACK: now}
        made = await self._hub.update_configuration({**entry, "labels": labels})
        self._note(deployment, made)
        await self.lift(good)
        _log.warning("deployment %s rolled back to %s", deployment, good)

    def _taken(self) -> set[int]:
        return {entry.get("priority", 0) for entry in self._known.values()} | set(self._unsure)

    def own(self) -> list[Configuration]:
        """Return this node's deployments."""
        return [entry for entry in self._known.values() if self._is_own(entry)]

    def _is_own(self, entry: Configuration) -> bool:
        labels = entry.get("labels") or {}
        return (
            labels.get(edge.LABEL_CLUSTER) == self._settings.cluster
            and labels.get(edge.LABEL_NODE) == self._settings.node
        )

    def of_workload(self, workload: tuple[str, str]) -> list[Configuration]:
        """Return this node's deployments of one workload."""
        return [entry for entry in self.own() if workload_of(entry) == workload]

    async def ensure(self, revision: Revision, wanted: AbstractSet[str] = frozenset()) -> bool:
        """Have a revision in the hub; return whether it was there already.

        Args:
            revision: what shall be there.
            wanted: deployments that living pods have; the others of a workload are bounded.

        Raises:
            RemoteError: the hub refused it, or too many old revisions wait to be retired.
        """
        if revision.id in self._known and revision.id not in self._making:
            return True
        lock = self._making.setdefault(revision.id, asyncio.Lock())
        try:
            async with lock:
                self._making[revision.id] = lock  # the one before has taken it away
                return await self._ensure(revision, wanted)
        finally:
            self._making.pop(revision.id, None)

    async def _ensure(self, revision: Revision, wanted: AbstractSet[str]) -> bool:
        if revision.id in self._known:
            return True
        try:
            made = await self._create(revision, wanted)
        except errors.Conflict:
            # Somebody, most likely an earlier self, made it since the last list.
            found = await self._hub.get_configuration(revision.id)
            if not self._is_own(found):
                raise
            self._note(revision.id, found)
            return True
        self._note(revision.id, made)
        return False

    async def _create(self, revision: Revision, wanted_ids: AbstractSet[str]) -> Configuration:
        async with self._slots:
            older = self.of_workload(revision.workload)
            limit = self._settings.revisions_per_workload
            name = "/".join(revision.workload)
            unsure = [1 for workload in self._unsure.values() if workload == revision.workload]
            waiting = [entry for entry in older if entry["id"] not in wanted_ids]
            if len(waiting) + len(unsure) >= limit:
                raise errors.RemoteError(
                    f"create deployment of {name!r}", reason="TooManyRevisions",
                    details=f"{len(waiting)} revisions wait to be retired, "
                    f"{len(unsure)} for the hub's answer",
                )  # fmt: skip
            priority = slot_for(
                revision.lowest_priority(),
                self._taken(),
                (entry.get("priority", 0) for entry in older),
            )
            if priority is None:
                raise errors.RemoteError(
                    f"create deployment of {name!r}", reason="NoRevisionSlot",
                    hint="choose another kvedge.io/priority",
                )  # fmt: skip
            # The number is taken before the hub answers, so that two pods never share one.
            wanted = revision.configuration(priority)
            self._known[revision.id] = wanted
        try:
            made = await self._hub.create_configuration(wanted)
        except BaseException:
            # It may exist although no answer came, so its number stays taken until the next list.
            self._unsure[priority] = revision.workload
            self._known.pop(revision.id, None)
            raise
        _log.info("deployment %s made for %s at priority %d", revision.id, name, priority)
        return {**wanted, **made}

    async def retire(self, deployment: str) -> None:
        """Take a deployment away; one that has gone is fine."""
        with contextlib.suppress(errors.NotFound):
            await self._hub.delete_configuration(deployment)
        self._note(deployment, None)
        _log.info("deployment %s retired", deployment)

    async def lift(self, deployment: str) -> None:
        """Move a revision above all others of its workload, as going back to an older one needs."""
        entry = self._known[deployment]
        others = [other.get("priority", 0) for other in self.of_workload(workload_of(entry))]
        lowest = entry.get("priority", 0) // _SLOTS * _SLOTS
        higher = slot_for(lowest, self._taken(), others)
        if higher is not None and max(others) != entry.get("priority", 0):
            await self._move(entry, higher)

    async def separate(self) -> None:
        """Give deployments priorities of their own again, where two have the same one.

        A request that arrives after its sender gave it up can do that, or another node of the hub.
        Of connectors' deployments the one whose id comes first stays, and others' always do. The
        newer revisions of the workload move as well, before it, so that each stays above the last.
        """

        def rank(entry: Configuration) -> tuple[bool, str]:
            return edge.LABEL_CLUSTER in (entry.get("labels") or {}), entry["id"]

        holders: dict[int, str] = {}
        for deployment in [entry["id"] for entry in sorted(self._known.values(), key=rank)]:
            entry = self._known.get(deployment)
            if entry is None:
                continue
            first = holders.setdefault(entry.get("priority", 0), deployment)
            if first != deployment and self._is_own(entry):
                await self._raise(entry)

    async def _raise(self, entry: Configuration) -> None:
        """Move a revision and all newer ones of its workload above what they are now."""
        priority = entry.get("priority", 0)
        own = self.of_workload(workload_of(entry))
        newer = [other for other in own if other.get("priority", 0) > priority]
        moving = [entry, *sorted(newer, key=lambda other: other.get("priority", 0))]
        if any(each["id"] in self._making for each in moving):
            return
        priorities, slots = [other.get("priority", 0) for other in own], []
        for _ in moving:
            free = slot_for(priority // _SLOTS * _SLOTS, self._taken(), [*priorities, *slots])
            if free is None:
                return
            slots.append(free)
        for each, free in zip(reversed(moving), reversed(slots), strict=True):
            await self._move(each, free)

    async def _move(self, entry: Configuration, priority: int) -> None:
        made = await self._hub.update_configuration({**entry, "priority": priority})
        self._note(entry["id"], made)
        _log.info("deployment %s moved to priority %d", entry["id"], priority)

    async def settle(self, deployment: str) -> None:
        """Move a lone revision to a low slot, so that slots never run out."""
        entry = self._known.get(deployment)
        priority = entry.get("priority", 0) if entry else 0
        if entry is None or priority % _SLOTS < _HIGH_SLOT:
            return
        lowest = priority // _SLOTS * _SLOTS
        lower = slot_for(lowest, self._taken(), ())
        if lower is not None and lower < priority:
            await self._move(entry, lower)


def workload_of(entry: Configuration) -> tuple[str, str]:
    """Return namespace and workload that a deployment's labels name."""
    labels = entry.get("labels") or {}
    return labels.get(edge.LABEL_NAMESPACE, ""), labels.get(edge.LABEL_WORKLOAD, "")
