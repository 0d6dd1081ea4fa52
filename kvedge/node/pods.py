"""The pod engine: one actor a pod, keyed by UID, between the provider and the API server.

An actor has a mailbox of one: the newest form of the pod. While it works, newer news replace older
ones; when it is idle it costs no task. Nothing is limited but requests in flight, so thousands of
pods wait for a slow provider at once. Pods are kept as bytes, which is a tenth of their size as
objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any

import orjson

from kvedge import errors
from kvedge.node import env as environment
from kvedge.node import status as statuses
from kvedge.node.admission import Admission
from kvedge.node.objects import Objects
from kvedge.node.provider import Work
from kvedge.node.sending import Counters, EventLane, PodLane

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from kvedge.kube import Client
    from kvedge.node.node_object import NodeSpec
    from kvedge.node.provider import Provider
    from kvedge.node.runtime import Tasks
    from kvedge.wire import KubeObject

__all__ = ["PodEngine"]

_log = logging.getLogger(__name__)
_PAGE = 500
_TERMINAL = ("Succeeded", "Failed")
_RETRY_BASE, _RETRY_CAP = 0.5, 60.0


class _Actor:
    """What the engine knows about one pod."""

    __slots__ = (
        "acked", "admitted", "deleting", "dirty", "ended", "failures", "inputs", "mark", "name",
        "namespace", "placed", "placed_mark", "raw", "refresh", "refused", "removed", "retry",
        "running", "task", "told", "uid", "vanished", "version", "wanted", "workload",
    )  # fmt: skip

    def __init__(self, uid: str, namespace: str, name: str, workload: Hashable) -> None:
        self.uid, self.namespace, self.name, self.workload = uid, namespace, name, workload
        self.raw = b""
        self.version = 0
        self.mark = 0
        """Hash of what a provider has to act on: spec, labels, annotations, deletion."""
        self.placed = False
        """The provider has the pod."""
        self.placed_mark: int | None = None
        self.inputs: int = 0
        """Hash of the variables and objects that the provider was given."""
        self.refresh = False
        """An object that the pod refers to has changed."""
        self.wanted: dict[str, Any] | None = None
        self.acked: dict[str, Any] | None = None
        """The status that the API server took last."""
        self.admitted = self.refused = False
        self.deleting = self.vanished = self.ended = self.removed = self.running = False
        self.dirty = False
        self.task: asyncio.Task[Any] | None = None
        self.retry: asyncio.TimerHandle | None = None
        self.failures = 0
        self.told: set[int] = set()
        """Hashes of the events that need not be written twice."""


class PodEngine:
    """All pods of one node. It is the provider's Reporter."""

    def __init__(
        self,
        *,
        client: Client,
        node: NodeSpec,
        provider: Provider,
        tasks: Tasks,
        linger_seconds: float = 0.0,
    ) -> None:
        self._client, self._node, self._provider, self._tasks = client, node, provider, tasks
        self._linger = linger_seconds
        self._actors: dict[str, _Actor] = {}
        self._workloads: dict[Hashable, dict[str, _Actor]] = {}
        self.counters = Counters()
        self._lane = PodLane(client, self.counters)
        self.events = EventLane(
            client, self._lane, self.counters, f"{node.name}/pod-controller", node.name
        )
        self._objects = Objects(client, tasks, self._changed)
        self._admission = Admission(node.name, node.all_labels(), node.capacity)
        self._facts = environment.Facts(
            node=node.name, host_ip=node.address, allocatable=node.capacity
        )
        self.listed = False
        """All pods of the API server are known; those that were seen first may wait for others."""
        self.synced = asyncio.Event()
        """All pods of the API server were seen once."""

    async def run(self) -> None:
        """Watch the node's pods for ever."""
        self.events.start(self._tasks)
        self._tasks.spawn(self._urgent(), "pending-pods")
        selector = f"spec.nodeName={self._node.name}"
        watch = self._client.watch(
            self._node.pods_path(), page=_PAGE, keep=_trace, fieldSelector=selector
        )
        async with contextlib.aclosing(watch) as stream:
            async for kind, obj in stream:
                if kind == "SYNCED":
                    self.listed = True
                    self._tasks.spawn(self._tell_listed(), "tell-listed")
                elif kind == "DELETED":
                    self._vanished(obj)
                else:
                    self._seen(obj)

    async def _urgent(self) -> None:
        """Take pods that nobody has started yet before the long list of those that run."""
        selector = f"spec.nodeName={self._node.name},status.phase=Pending"
        with contextlib.suppress(errors.RemoteError):
            listed = await self._client.get(self._node.pods_path(), fieldSelector=selector)
            for obj in listed["items"]:
                self._seen(obj)

    async def _tell_listed(self) -> None:
        busy = [actor.task for actor in self._actors.values() if actor.task]
        if busy:
            await asyncio.wait(busy)
        self.synced.set()
        await self._provider.listed(frozenset(self._actors))

    # The mailbox

    def _seen(self, obj: KubeObject) -> None:
        metadata = obj["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        actor = self._actors.get(uid)
        if actor is None:
            workload = self._provider.workload(obj)
            actor = _Actor(uid, metadata["namespace"], metadata["name"], workload)
            self._actors[uid] = self._workloads.setdefault(workload, {})[uid] = actor
            if (obj.get("status") or {}).get("phase") == "Running":
                # Counted at once, so that it goes before all that do not run yet.
                self._admission.count(obj)
                actor.admitted = True
        elif version <= actor.version:
            return
        if self._store(actor, obj, version):
            self._wake(actor)
        elif (
            actor.task is None
            and actor.wanted is not None
            and not statuses.covers(obj.get("status") or {}, actor.wanted)
        ):
            # Somebody else wrote the status, such as the node lifecycle controller.
            actor.acked = None
            self._wake(actor)

    def _store(self, actor: _Actor, obj: KubeObject, version: int) -> bool:
        """Keep the newest form of a pod; return whether the provider may have to act."""
        metadata = obj["metadata"]
        metadata.pop("managedFields", None)
        mark = hash(
            orjson.dumps(
                [
                    obj["spec"],
                    metadata.get("labels"),
                    metadata.get("annotations"),
                    metadata.get("deletionTimestamp"),
                ]
            )
        )
        changed = mark != actor.mark
        actor.mark, actor.version = mark, version
        actor.raw = orjson.dumps(obj)
        if metadata.get("deletionTimestamp"):
            actor.deleting, actor.running = True, False
        return changed

    def _vanished(self, obj: KubeObject) -> None:
        actor = self._actors.get(obj["metadata"]["uid"])
        if actor is not None:
            actor.vanished, actor.running = True, False
            self._wake(actor)

    def _wake(self, actor: _Actor) -> None:
        if actor.task is not None:
            actor.dirty = True
            return
        if actor.retry is not None:
            actor.retry.cancel()
            actor.retry = None
        actor.task = self._tasks.spawn(self._drive(actor), actor.uid)

    def _changed(self, uid: str) -> None:
        actor = self._actors.get(uid)
        if actor is not None and not actor.deleting:
            actor.refresh = True
            self._wake(actor)

    # The actor's work

    async def _drive(self, actor: _Actor) -> None:
        try:
            while True:
                actor.dirty = False
                try:
                    await self._step(actor)
                    actor.failures = 0
                except errors.KvedgeError as error:
                    self._retry_later(actor, error)
                except Exception as error:  # noqa: BLE001 - one pod's bug must not stop the node
                    _log.exception("pod %s/%s", actor.namespace, actor.name)
                    self._retry_later(actor, error)
                if not actor.dirty:
                    return
        finally:
            actor.task = None

    async def _step(self, actor: _Actor) -> None:
        if actor.vanished:
            await self._forget(actor)
        elif actor.deleting:
            await self._end(actor)
        else:
            pod = orjson.loads(actor.raw)
            phase = (pod.get("status") or {}).get("phase")
            if phase in _TERMINAL:
                self._admission.release(actor.uid)
                return
            if not actor.admitted and not self._admitted(actor, pod):
                await self._flush(actor)
                return
            if actor.placed_mark != actor.mark or actor.refresh:
                await self._place(actor, pod)
            await self._flush(actor)

    def _retry_later(self, actor: _Actor, error: Exception) -> None:
        self.counters.failures += 1
        asked = error.retry_after if isinstance(error, errors.Throttled) else None
        ceiling = min(_RETRY_CAP, _RETRY_BASE * 2 ** min(actor.failures, 10))
        actor.failures += 1
        delay = asked or random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreading load
        loop = asyncio.get_running_loop()
        if actor.retry is not None:
            actor.retry.cancel()
        actor.retry = loop.call_later(delay, self._again, actor)

    def _again(self, actor: _Actor) -> None:
        actor.retry = None
        self._wake(actor)

    # Placing

    def _admitted(self, actor: _Actor, pod: KubeObject) -> bool:
        """Tell whether a new pod fits."""
        if actor.refused:
            return False
        refusal = self._admission.refusal(pod, room_is_known=self.listed)
        if refusal is None:
            actor.admitted = True
            return True
        actor.refused = True
        self._tell(actor, refusal.reason, refusal.message, warning=True)
        actor.wanted = statuses.refused_status(refusal.reason, refusal.message)
        return False

    async def _place(self, actor: _Actor, pod: KubeObject) -> None:
        mark, actor.refresh = actor.mark, False
        found = await self._resolve(actor, pod)
        if found is None:
            return
        work, inputs = found
        if actor.placed and actor.placed_mark == mark and actor.inputs == inputs:
            return
        verb = "Update" if actor.placed else "Create"
        try:
            outcome = await (
                self._provider.update(work) if actor.placed else self._provider.create(work)
            )
        except (errors.SpecError, errors.Unsupported) as error:
            self._refused(actor, pod, verb, error)
            actor.placed_mark, actor.inputs = mark, inputs
            return
        except errors.KvedgeError as error:
            self._tell(actor, f"Provider{verb}Failed", _text(error), warning=True)
            if not actor.placed:
                actor.wanted = statuses.waiting_status(
                    pod, "ProviderFailed", _text(error), pod_reason="ProviderFailed"
                )
                await self._flush(actor)
            raise
        actor.placed_mark, actor.inputs = mark, inputs
        actor.placed = actor.running = True
        actor.told.clear()
        if outcome.status is not None:
            actor.wanted = outcome.status
        if not outcome.adopted:
            past = "Update" if verb == "Update" else "Create"
            self._tell(actor, f"Provider{verb}Success", f"{past} pod in provider successfully")

    async def _resolve(self, actor: _Actor, pod: KubeObject) -> tuple[Work, int] | None:
        """Return what the provider is given and its hash; None if the pod must wait."""
        named = environment.references(pod)
        extra = self._provider.wants(pod)
        services = self._service_keys(pod)
        if not (named or extra or services):
            containers = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
            if not any(container.get("env") for container in containers):
                return Work(pod=pod, env={}, objects={}), 0
        keys = [(kind, actor.namespace, name) for kind, name in {*named, *extra}]
        try:
            held = await self._objects.hold(actor.uid, [*keys, *services])
        except errors.RemoteError as error:
            kind = "ConfigMap" if "configmaps" in str(error) else "Secret"
            self._tell(actor, f"FailedToReadMandatory{kind}", _text(error), warning=True)
            raise
        objects = {(k, n): next(iter(held[k, ns, n]), None) for k, ns, n in keys}
        links = environment.service_variables([obj for key in services for obj in held[key]])
        result = environment.resolve(pod, objects, self._facts, links)
        for entry in result.missing:
            self._tell(actor, entry.reason, entry.message, warning=True)
        if result.blocked:
            if not actor.placed:
                reason = "CreateContainerConfigError"
                actor.wanted = statuses.waiting_status(pod, reason, result.blocked)
            return None
        data = {key: (objects[key] or {}).get("data") for key in extra}
        whole = [result.env, [[*key, value] for key, value in sorted(data.items())]]
        return Work(pod=pod, env=result.env, objects=data), hash(orjson.dumps(whole))

    def _service_keys(self, pod: KubeObject) -> list[tuple[str, str, str]]:
        if not self._provider.service_links or not pod["spec"].get("enableServiceLinks", True):
            return []
        namespaces = {"default", pod["metadata"]["namespace"]}
        return [("Service", namespace, "") for namespace in sorted(namespaces)]

    def _refused(
        self, actor: _Actor, pod: KubeObject, verb: str, error: errors.KvedgeError
    ) -> None:
        text = _text(error)
        self._tell(actor, f"Provider{verb}Failed", text, warning=True)
        if not actor.placed:
            actor.wanted = statuses.waiting_status(
                pod, "ProviderFailed", text, pod_reason="ProviderFailed"
            )

    # Status

    async def _flush(self, actor: _Actor) -> None:
        """Write the newest wanted status, if the API server has another one."""
        while (wanted := actor.wanted) is not None and wanted is not actor.acked:
            found = orjson.loads(actor.raw).get("status") or {}
            if found.get("phase") in _TERMINAL or statuses.covers(found, wanted):
                actor.acked = wanted
                return
            try:
                answer = await self._lane.patch_status(
                    actor.namespace, actor.name, actor.uid, wanted
                )
            except (errors.NotFound, errors.Conflict):
                # The watch will tell that the pod has gone.
                actor.acked = wanted
                return
            actor.acked = wanted
            version = int(answer["metadata"]["resourceVersion"])
            if version > actor.version and self._store(actor, answer, version):
                actor.dirty = True

    # Ending

    async def _end(self, actor: _Actor) -> None:
        if actor.removed:
            return
        if not actor.ended:
            pod = orjson.loads(actor.raw)
            try:
                ended = await self._provider.delete(pod)
            except errors.KvedgeError as error:
                self._tell(actor, "ProviderDeleteFailed", _text(error), warning=True)
                raise
            if not (ended or actor.ended):
                return
            actor.ended = True
            if actor.placed:
                self._tell(actor, "ProviderDeleteSuccess", "Delete pod in provider successfully")
        if self._linger and not actor.vanished:
            await asyncio.sleep(self._linger)
        self._admission.release(actor.uid)
        await self._lane.delete(actor.namespace, actor.name, actor.uid)
        actor.removed = True

    async def _forget(self, actor: _Actor) -> None:
        """Let go of a pod whose object has gone."""
        if not actor.ended:
            pod = orjson.loads(actor.raw)
            if not await self._provider.delete(pod):
                return
        self._objects.drop(actor.uid)
        self._admission.release(actor.uid)
        self._actors.pop(actor.uid, None)
        siblings = self._workloads.get(actor.workload, {})
        siblings.pop(actor.uid, None)
        if not siblings:
            self._workloads.pop(actor.workload, None)

    # Reporter

    def status(self, uid: str, status: dict[str, Any]) -> None:
        """Report a pod's whole status; the newest one counts."""
        actor = self._actors.get(uid)
        if actor is None or actor.deleting or actor.vanished or not actor.placed:
            return
        actor.wanted = status
        self._wake(actor)

    def gone(self, uid: str) -> None:
        """Report that a pod that is being deleted has ended."""
        actor = self._actors.get(uid)
        if actor is not None:
            actor.ended = True
            self._wake(actor)

    def event(self, uid: str, reason: str, message: str, *, warning: bool = False) -> None:
        """Write an Event about a pod, unless the same one was its last."""
        actor = self._actors.get(uid)
        if actor is not None:
            self._tell(actor, reason, message, warning=warning)

    def pod(self, uid: str) -> KubeObject | None:
        """Return a pod as the API server last told it."""
        actor = self._actors.get(uid)
        return orjson.loads(actor.raw) if actor else None

    def pods(self) -> Iterator[KubeObject]:
        """Yield all pods of the node that the API server has."""
        for actor in tuple(self._actors.values()):
            if not actor.vanished:
                yield orjson.loads(actor.raw)

    def siblings(self, workload: Hashable) -> list[str]:
        """Return the UIDs of a workload's pods that are not being deleted."""
        actors = self._workloads.get(workload, {}).values()
        return [actor.uid for actor in actors if not actor.deleting and not actor.vanished]

    def pod_list(self, *, running: bool) -> bytes:
        """Return a PodList as JSON: all pods, or those that the provider runs."""
        chosen = [
            actor.raw
            for actor in self._actors.values()
            if not actor.vanished and (actor.running or not running)
        ]
        head = b'{"kind":"PodList","apiVersion":"v1","metadata":{},"items":['
        return head + b",".join(chosen) + b"]}"

    def find(self, namespace: str, name: str) -> KubeObject | None:
        """Return the newest pod of a name."""
        found = [
            actor
            for actor in self._actors.values()
            if actor.name == name and actor.namespace == namespace and not actor.vanished
        ]
        return orjson.loads(max(found, key=lambda a: a.version).raw) if found else None

    def _tell(self, actor: _Actor, reason: str, message: str, *, warning: bool = False) -> None:
        if warning:
            key = hash((reason, message))
            if key in actor.told:
                return
            actor.told.add(key)
        involved = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": actor.name,
            "namespace": actor.namespace,
            "uid": actor.uid,
        }
        self.events.put(involved, reason, message, warning=warning)


def _trace(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the watch has to remember of a pod."""
    metadata = obj["metadata"]
    return {"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}}


def _text(error: errors.KvedgeError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
