"""ConfigMaps, Secrets and Services that pods refer to, watched one by one while they are needed.

Only objects that a pod names are read, so the node needs no list of all Secrets. A change, also the
arrival of what was missing, wakes the pods that hold the object within one watch event.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvedge.kube import Client
    from kvedge.node.runtime import Tasks
    from kvedge.wire import KubeObject

__all__ = ["Objects"]

_PLURAL = {"ConfigMap": "configmaps", "Secret": "secrets", "Service": "services"}
_IDLE_SECONDS = 30.0
_READ_SECONDS = 10.0
"""How often a Secret that may not be watched is read."""
Key = tuple[str, str, str]
"""Kind, namespace and name; an empty name stands for all of the namespace."""


@dataclasses.dataclass(slots=True)
class _Entry:
    known: asyncio.Future[None]
    objects: dict[str, KubeObject]
    holders: set[str]
    task: asyncio.Task[Any] | None = None
    closing: asyncio.TimerHandle | None = None


class Objects:
    """The dependency index of one process; shared by its nodes."""

    def __init__(self, client: Client, tasks: Tasks, wake: Callable[[str], None]) -> None:
        self._client = client
        self._tasks = tasks
        self._wake = wake
        self._entries: dict[Key, _Entry] = {}
        self._held: dict[str, set[Key]] = {}

    async def hold(self, uid: str, keys: Iterable[Key]) -> dict[Key, list[KubeObject]]:
        """Return the objects of the keys and wake the pod when one of them changes.

        What the pod held before and does not name any more is let go.

        Raises:
            RemoteError: an object cannot be read.
        """
        wanted = set(keys)
        for key in self._held.get(uid, set()) - wanted:
            self._release(uid, key)
        if not wanted:
            self._held.pop(uid, None)
            return {}
        self._held[uid] = wanted
        found: dict[Key, list[KubeObject]] = {}
        for key in wanted:
            entry = self._entries.get(key) or self._open(key)
            entry.holders.add(uid)
            if entry.closing:
                entry.closing.cancel()
                entry.closing = None
            await asyncio.shield(entry.known)
            found[key] = list(entry.objects.values())
        return found

    def drop(self, uid: str) -> None:
        """Let go of all that a pod held."""
        for key in self._held.pop(uid, ()):
            self._release(uid, key)

    def _release(self, uid: str, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.holders.discard(uid)
        if not entry.holders and entry.closing is None:
            loop = asyncio.get_running_loop()
            entry.closing = loop.call_later(_IDLE_SECONDS, self._close, key)

    def _close(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry and entry.task:
            entry.task.cancel()

    def _open(self, key: Key) -> _Entry:
        known = asyncio.get_running_loop().create_future()
        entry = self._entries[key] = _Entry(known, {}, set())
        entry.task = self._tasks.spawn(self._follow(key, entry), f"watch-{'/'.join(key)}")
        return entry

    async def _follow(self, key: Key, entry: _Entry) -> None:
        kind, namespace, name = key
        path = f"/api/v1/namespaces/{namespace}/{_PLURAL[kind]}"
        selector = f"metadata.name={name}" if name else None
        try:
            await self._watch(path, selector, entry)
        except errors.Unauthorized as error:
            if kind == "Secret":
                # Rights that let a Secret be read by name, as kubelets have, allow no watch.
                await self._read_on(f"{path}/{name}", key, entry)
            else:
                self._fail(key, entry, error)
        except errors.RemoteError as error:
            self._fail(key, entry, error)

    def _fail(self, key: Key, entry: _Entry, error: errors.RemoteError) -> None:
        """Tell who waits; the next pod that asks tries again."""
        self._entries.pop(key, None)
        if not entry.known.done():
            entry.known.set_exception(error)
            entry.known.exception()

    async def _watch(self, path: str, selector: str | None, entry: _Entry) -> None:
        async with contextlib.aclosing(self._client.watch(path, fieldSelector=selector)) as watch:
            async for event, obj in watch:
                if event == "SYNCED":
                    if not entry.known.done():
                        entry.known.set_result(None)
                    continue
                obj["metadata"].pop("managedFields", None)
                uid = obj["metadata"]["uid"]
                if event == "DELETED":
                    entry.objects.pop(uid, None)
                else:
                    old = entry.objects.get(uid)
                    entry.objects[uid] = obj
                    if old is not None and _content(old) == _content(obj):
                        continue
                if entry.known.done():
                    for holder in tuple(entry.holders):
                        self._wake(holder)

    async def _read_on(self, path: str, key: Key, entry: _Entry) -> None:
        """Read one object again and again."""
        while True:
            try:
                obj = await self._client.get(path)
            except errors.NotFound:
                found: dict[str, KubeObject] = {}
            except errors.RemoteError as error:
                if not entry.known.done():
                    self._fail(key, entry, error)
                    return
                found = entry.objects
            else:
                found = {obj["metadata"]["uid"]: obj}
            old, entry.objects = entry.objects, found
            if not entry.known.done():
                entry.known.set_result(None)
            elif [_content(o) for o in old.values()] != [_content(o) for o in found.values()]:
                for holder in tuple(entry.holders):
                    self._wake(holder)
            await asyncio.sleep(_READ_SECONDS)


def _content(obj: KubeObject) -> tuple[Any, ...]:
    return obj.get("data"), obj.get("binaryData"), obj.get("spec")
