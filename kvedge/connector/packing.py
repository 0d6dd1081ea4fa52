"""Packs: which pods share a deployment, and when one is written.

A pack's content is what the hub holds, so nothing else has to be remembered. Changes are gathered
for a moment and written one pack at a time; a request that waits for the hub's budget lets further
pods join. The deployment before stays until every device has the new one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

from kvedge import errors
from kvedge.edge import packing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from kvedge.connector.devices import Devices
    from kvedge.connector.ledger import Ledger
    from kvedge.connector.settings import Settings
    from kvedge.edge import Revision
    from kvedge.edge.packing import Pack, Parts

__all__ = ["Packs"]

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.001
"""A timer's resolution: a shorter sleep may end before the clock has moved."""
_GATHER_FACTOR = 5
"""A pack that never comes to rest is written after so many times the gathering time."""


@dataclasses.dataclass(slots=True, eq=False)
class _Member:
    revision: Revision
    parts: Parts
    born: tuple[str, str]
    """Creation time and UID: of two pods of a workload the younger one's modules count."""
    leaving: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class _State:
    """One pack."""

    pack: Pack
    deployment: str = ""
    """The newest one in the hub; empty if there is none."""
    written: Parts = dataclasses.field(default_factory=dict)
    extra: Parts = dataclasses.field(default_factory=dict)
    """What the hub has and no known pod: kept until it is sure that nobody wants it."""
    strange_since: float | None = None
    """When it was first seen that all pods are known and none wants the extra parts."""
    members: dict[str, _Member] = dataclasses.field(default_factory=dict)
    first_change: float = 0.0
    """0: nothing is to be written."""
    last_change: float = 0.0
    waiters: list[asyncio.Future[None]] = dataclasses.field(default_factory=list)

    def parts(self) -> Parts:
        """Return what the pack shall hold."""
        wanted = dict(self.extra)
        for member in sorted(self.members.values(), key=lambda member: member.born):
            if not member.leaving:
                wanted.update(member.parts)
        return wanted


class Packs:
    """All packs of one node."""

    def __init__(
        self,
        ledger: Ledger,
        devices: Devices,
        settings: Settings,
        moved: Callable[[str, Revision], None],
    ) -> None:
        """Manage packs; `moved` learns of a pod's deployment whenever it changes."""
        self._ledger, self._devices, self._settings = ledger, devices, settings
        self._moved = moved
        self._states: dict[Pack, _State] = {}
        self._of: dict[str, _State] = {}
        """Pack by pod."""
        self._changed = asyncio.Event()

    def __contains__(self, uid: str) -> bool:
        return uid in self._of

    def load(self) -> None:
        """Take over what the hub holds and this process has not written, and miss what it lost."""
        for state in self._states.values():
            if state.deployment and state.deployment not in self._ledger:
                state.deployment, state.written = "", {}
                self._touch(state)
        newest: dict[Pack, tuple[int, str]] = {}
        for entry in self._ledger.own():
            pack = packing.pack_of(entry)
            if pack and not self._ledger.is_making(entry["id"]):
                newest[pack] = max(
                    newest.get(pack, (0, "")), (entry.get("priority", 0), entry["id"])
                )
        for pack, (_, deployment) in newest.items():
            state = self._states.setdefault(pack, _State(pack))
            if not state.deployment:
                self._adopt(state, deployment)

    def _adopt(self, state: _State, deployment: str) -> None:
        """Take over a deployment of an earlier self, or one whose making was not answered."""
        state.deployment = deployment
        state.written = packing.parts_of(self._ledger.content(deployment))
        known = {key for member in state.members.values() for key in member.parts}
        state.extra = {key: part for key, part in state.written.items() if key not in known}
        if state.members:
            self._touch(state)

    def deployments(self) -> set[str]:
        """Return the deployments that packs have at present."""
        return {state.deployment for state in self._states.values() if state.deployment}

    def holds(self, revision: Revision) -> bool:
        """Tell whether the hub has a pod's modules in a pack."""
        parts = packing.parts_of(revision.content)
        return any(_within(parts, state.written) for state in self._of_target(revision))

    # Joining and leaving

    async def place(self, uid: str, revision: Revision, born: str) -> bool:
        """Have a pod's modules in a pack of the hub; return whether they were there already.

        Raises:
            RemoteError: the hub refused the pack.
        """
        parts = packing.parts_of(revision.content)
        state = self._of.get(uid)
        if state is not None and not (
            state.pack[:2] == (revision.face.condition, revision.face.priority)
            and self._fits(state, uid, revision, parts)
        ):
            state.members.pop(uid)
            self._touch(state)
            state = None
        if state is None:
            state = self._choose(uid, revision, parts)
        self._of[uid] = state
        state.members[uid] = _Member(revision, parts, (born, uid))
        for key in parts:
            state.extra.pop(key, None)
        adopted = bool(state.deployment) and state.parts() == state.written
        if not adopted and _within(parts, state.written) and state.deployment:
            adopted = True
            self._touch(state)
        elif not adopted:
            await self._written(state)
        self._tell(state, uid)
        return adopted

    def _of_target(self, revision: Revision) -> Iterable[_State]:
        target = revision.face.condition, revision.face.priority
        return [state for pack, state in sorted(self._states.items()) if pack[:2] == target]

    def _choose(self, uid: str, revision: Revision, parts: Parts) -> _State:
        states = list(self._of_target(revision))
        for state in states:
            if _within(parts, state.written) and self._fits(state, uid, revision, parts):
                return state
        for state in states:
            if self._fits(state, uid, revision, parts):
                return state
        taken = {state.pack[2] for state in states}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        pack = revision.face.condition, revision.face.priority, number
        state = self._states[pack] = _State(pack)
        return state

    def _fits(self, state: _State, uid: str, revision: Revision, parts: Parts) -> bool:
        """Tell whether a pod can be in a pack: there is room, and no name is somebody else's."""
        others: Parts = dict(state.extra)
        for other, member in state.members.items():
            if other == uid or member.leaving or member.revision.workload == revision.workload:
                continue
            if any(parts.get(key, value) != value for key, value in member.parts.items()):
                return False
            others |= member.parts
        return packing.room_for(others | parts)

    async def remove(self, uid: str) -> None:
        """Take a pod's modules out of its pack; returns when the hub no longer has them.

        Raises:
            RemoteError: the hub refused; the pod stays known, so that it is tried again.
        """
        state = self._of.get(uid)
        if state is None:
            return
        state.members[uid].leaving = True
        if state.parts() != state.written:
            await self._written(state)
        names = state.members[uid].revision.modules.values()
        while self._behind(state, names):
            await self._retired(state)
        state.members.pop(uid, None)
        self._of.pop(uid, None)
        if not state.members and not state.deployment:
            self._states.pop(state.pack, None)

    def forget(self, uid: str) -> None:
        """Let go of a pod whose modules stay for now."""
        if (state := self._of.pop(uid, None)) is not None:
            member = state.members.pop(uid)
            state.extra.update(member.parts)

    def _behind(self, state: _State, names: Collection[str]) -> bool:
        """Tell whether a superseded deployment still has modules that the pack has lost."""
        kept = state.parts().keys()
        for entry in self._older(state):
            parts = packing.parts_of(self._ledger.content(entry))
            if packing.held_by(parts, names) - kept:
                return True
        return False

    # Writing

    def _touch(self, state: _State) -> None:
        now = asyncio.get_running_loop().time()
        state.first_change = state.first_change or now
        state.last_change = now
        self._changed.set()

    async def _written(self, state: _State) -> None:
        """Wait until the pack as it is now has been written."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiters.append(turn)
        self._touch(state)
        await turn

    async def _retired(self, state: _State) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiters.append(turn)
        await turn

    def _due(self, state: _State) -> float:
        gather = self._settings.gather_seconds
        return min(state.last_change + gather, state.first_change + _GATHER_FACTOR * gather)

    async def run(self) -> None:
        """Write changed packs for ever, the one that has waited longest first."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            waiting = [state for state in self._states.values() if state.first_change]
            if not waiting:
                await self._changed.wait()
                continue
            state = min(waiting, key=self._due)
            if (pause := self._due(state) - loop.time()) > _TICK_SECONDS:
                await asyncio.sleep(pause)
                continue
            await self.write(state)
            await asyncio.sleep(0)  # even a hub that fails at once lets others go on

    async def write(self, state: _State) -> None:
        """Bring one pack into the hub as its pods want it."""
        state.first_change = 0.0
        waiters, state.waiters = state.waiters, []
        try:
            await self._bring(state)
        except errors.KvedgeError as error:
            for turn in waiters:
                if not turn.done():
                    turn.set_exception(error)
            if not waiters:
                _log.warning("pack of %r: %s", state.pack[0], error)
                state.first_change = state.last_change = (
                    asyncio.get_running_loop().time() + self._settings.poll_seconds
                )
            return
        for turn in waiters:
            if not turn.done():
                turn.set_result(None)

    async def _bring(self, state: _State) -> None:
        parts = state.parts()
        if not parts:
            for deployment in [*self._older(state), state.deployment]:
                if deployment:
                    await self._ledger.retire(deployment)
            state.written, state.deployment = {}, ""
            if not state.members:
                self._states.pop(state.pack, None)
            return
        settings = self._settings
        revision = packing.pack_revision(
            state.pack, parts, cluster=settings.cluster, node=settings.node
        )
        if await self._ledger.ensure(revision, self.deployments()):
            await self._ledger.lift(revision.id)
        state.deployment, state.written = revision.id, parts
        self._tell(state, *(u for u, m in state.members.items() if _within(m.parts, parts)))

    def _tell(self, state: _State, *uids: str) -> None:
        """Tell where pods' modules are; both deployments count until the older one has gone."""
        older = {
            entry: packing.parts_of(self._ledger.content(entry)) for entry in self._older(state)
        }
        for uid in uids:
            member = state.members[uid]
            if not member.leaving:
                also = frozenset(e for e, parts in older.items() if _within(member.parts, parts))
                revision = dataclasses.replace(member.revision, id=state.deployment, also=also)
                self._moved(uid, revision)

    def _older(self, state: _State) -> list[str]:
        return [
            entry["id"]
            for entry in self._ledger.own()
            if entry["id"] != state.deployment and packing.pack_of(entry) == state.pack
        ]

    # Cleaning

    async def sweep(self, unplaced: Callable[[], set[str]], *, listed: bool) -> None:
        """Retire superseded deployments, and drop what nobody wants.

        Args:
            unplaced: modules of living pods that have not been placed yet.
            listed: all pods are known.
        """
        older: dict[Pack, list[str]] = {}
        for entry in self._ledger.own():
            pack = packing.pack_of(entry)
            if pack in self._states and entry["id"] != self._states[pack].deployment:
                older.setdefault(pack, []).append(entry["id"])
        for pack, deployments in older.items():
            await self._supersede(self._states[pack], deployments)
        strange = [state for state in self._states.values() if state.extra]
        if listed and strange:
            names = unplaced()
            now = asyncio.get_running_loop().time()
            for state in strange:
                if state.strange_since is None:
                    state.strange_since = now
                if now - state.strange_since >= self._settings.orphan_seconds:
                    self._drop(state, names)
                    state.strange_since = None

    async def _supersede(self, state: _State, older: list[str]) -> None:
        """Retire what every device that has it has the newest deployment of, too."""
        if not state.deployment:
            return
        there = [report for entry in older for report in self._devices.of(entry)]
        if all(state.deployment in report.applied for report in there):
            for entry in older:
                if not self._ledger.is_making(entry):
                    await self._ledger.retire(entry)
            self._tell(state, *state.members)
            waiters, state.waiters = state.waiters, []
            if state.first_change:
                state.waiters = waiters
                return
            for turn in waiters:
                if not turn.done():
                    turn.set_result(None)

    def _drop(self, state: _State, wanted: set[str]) -> None:
        kept = packing.held_by(state.extra, wanted)
        before = len(state.extra)
        if kept:
            kept |= {key for key in state.extra if "registryCredentials" in key[1]}
        state.extra = {key: value for key, value in state.extra.items() if key in kept}
        if len(state.extra) != before:
            self._touch(state)


def _within(parts: Parts, whole: Parts) -> bool:
    return all(whole.get(key) == value for key, value in parts.items())
