"""Pods that are bound to this node: launcher pods here, local processes in `workloads`.

A launcher pod has no process of its own: it stands for its VMI's guest, so its status follows
the guest's, and its deletion stops the guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.site.host.podstatus import conditions, container, with_ready
from kvedge.site.host.running import Actor, Actors, timestamp

if TYPE_CHECKING:
    from kvedge import kube
    from kvedge.site.host.addresses import AddressPool
    from kvedge.site.host.podstatus import PodWriter
    from kvedge.site.host.registry import ImageStore
    from kvedge.site.host.running import Crew
    from kvedge.site.host.vmis import Guest, Guests
    from kvedge.site.host.workloads import Workload, Workloads

__all__ = ["LauncherPod", "Pods", "RefusedPod"]

_VMI_LABEL = "kubevirt.io/created-by"
_DISK_PREFIX = "volume"
"""Launcher pods name the container of containerDisk `root` `volumeroot`."""
_RETRY_SECONDS = 5.0


class LauncherPod:
    """The actor of one virt-launcher pod."""

    def __init__(self, pods: Pods, pod: dict[str, Any]) -> None:
        self.pod = pod
        self.vmi_uid: str = pod["metadata"]["labels"].get(_VMI_LABEL, pod["metadata"]["uid"])
        self.name = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self._pods = pods
        self._told = ""

    def _guest(self) -> Guest | None:
        return self._pods.guests.get(self.vmi_uid)

    async def step(self) -> float | None:
        """Let the pod's status say what is."""
        if self._pods.guests.quiet:
            return None
        guest = self._guest()
        if self.pod["metadata"].get("deletionTimestamp"):
            return await self._end(guest)
        phase = (self.pod.get("status") or {}).get("phase")
        if phase == "Pending":
            return await self._begin()
        if phase != "Running" or guest is None or not guest.known:
            return None
        if guest.over:
            await self._pods.writer.finish(self.pod, "Failed" if guest.failed else "Succeeded")
            return None
        change = with_ready(self.pod, {"compute": guest.ready})
        # Before the guest has been started the pod is as ready as it was made.
        if change and guest.machine.started:
            await self._pods.writer.write(self.pod, change)
        return None

    async def _end(self, guest: Guest | None) -> float | None:
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
        if guest is not None:
            guest.request_stop(30.0 if grace is None else float(grace))
            if guest.machine.running or not guest.known:
                return 1.0
        failed = guest is not None and guest.failed and guest.over
        await self._pods.writer.finish(self.pod, "Failed" if failed else "Succeeded")
        await self._pods.writer.remove(self.pod)
        if guest is None:
            self._pods.pool.free(self.vmi_uid)
        return None

    async def _begin(self) -> float | None:
        spec = self.pod["spec"]
        if not await self._mounts_are_there():
            return _RETRY_SECONDS
        for item in spec["containers"]:
            if item["name"].startswith(_DISK_PREFIX):
                try:
                    await self._pods.images.disk(item["image"])
                except errors.KvedgeError as error:
                    await self._wait("ErrImagePull", error.message, only=item["name"])
                    return _RETRY_SECONDS
        address = self._pods.pool.take(self.vmi_uid)
        now = timestamp()
        running = {"running": {"startedAt": now}}
        ended = {
            "terminated": {
                "exitCode": 0,
                "reason": "Completed",
                "startedAt": now,
                "finishedAt": now,
            }
        }
        statuses = [
            container(item, running, ready=not item.get("readinessProbe"))
            for item in spec["containers"]
        ]
        all_ready = all(item["ready"] for item in statuses)
        await self._pods.writer.write(
            self.pod,
            {
                "phase": "Running",
                "hostIP": self._pods.writer.address,
                "hostIPs": [{"ip": self._pods.writer.address}],
                "podIP": address,
                "podIPs": [{"ip": address}],
                "startTime": now,
                "containerStatuses": statuses,
                "initContainerStatuses": [
                    container(item, running, ready=True)
                    if item.get("restartPolicy") == "Always"
                    else {**container(item, ended), "ready": True}
                    for item in spec.get("initContainers") or ()
                ],
                "conditions": conditions(self.pod, initialized=True, containers_ready=all_ready),
            },
        )
        return None

    async def _mounts_are_there(self) -> bool:
        namespace = self.pod["metadata"]["namespace"]
        for volume in self.pod["spec"].get("volumes") or ():
            for field, key, plural in (
                ("secret", "secretName", "secrets"),
                ("configMap", "name", "configmaps"),
            ):
                source = volume.get(field)
                if not source or source.get("optional"):
                    continue
                path = f"/api/v1/namespaces/{namespace}/{plural}/{source[key]}"
                try:
                    await self._pods.kube.get(path)
                except (errors.NotFound, errors.Unauthorized) as error:
                    # The node authorizer answers 403 until it has seen that the pod names it.
                    message = f"volume {volume['name']!r}: {field} {source[key]!r}: {error.reason}"
                    await self._wait("ContainerCreating", message)
                    return False
        return True

    async def _wait(self, reason: str, message: str, *, only: str = "") -> None:
        if self._told == message:
            return
        self._told = message
        await self._pods.writer.waiting(self.pod, reason, message, only=(only,) if only else ())
        event = "FailedMount" if reason == "ContainerCreating" else "Failed"
        await self._pods.writer.event(self.pod, event, message)


class RefusedPod:
    """The actor of a pod that this node cannot run."""

    def __init__(self, pods: Pods, pod: dict[str, Any], why: str) -> None:
        self.pod = pod
        self.name = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self._pods = pods
        self._why = why

    async def step(self) -> float | None:
        """Say why, and let the pod go when it is deleted."""
        if self.pod["metadata"].get("deletionTimestamp"):
            await self._pods.writer.remove(self.pod)
        elif (self.pod.get("status") or {}).get("phase") == "Pending" and not (
            self.pod["status"].get("containerStatuses")
        ):
            await self._pods.writer.waiting(self.pod, "Unsupported", self._why)
            await self._pods.writer.event(self.pod, "Unsupported", self._why)
        return None


class Pods:
    """All pods of this node."""

    def __init__(
        self,
        *,
        kube: kube.Client,
        crew: Crew,
        writer: PodWriter,
        guests: Guests,
        workloads: Workloads,
        images: ImageStore,
        pool: AddressPool,
    ) -> None:
        self.kube = kube
        self.writer = writer
        self.guests = guests
        self.workloads = workloads
        self.images = images
        self.pool = pool
        self.actors: Actors[LauncherPod | RefusedPod | Workload] = Actors(crew)
        guests.on_change = self._guest_changed

    def _guest_changed(self, vmi_uid: str) -> None:
        for actor in self.actors:
            if isinstance(actor, LauncherPod) and actor.vmi_uid == vmi_uid:
                self.actors.wake(actor.pod["metadata"]["uid"])

    async def watch(self) -> None:
        """Serve this node's pods for ever."""
        async for kind, pod in self.kube.watch(
            "/api/v1/pods", fieldSelector=f"spec.nodeName={self.writer.node}"
        ):
            if kind == "SYNCED":
                self.workloads.sweep({actor.pod["metadata"]["uid"] for actor in self.actors})
                continue
            uid = pod["metadata"]["uid"]
            actor = self.actors.get(uid)
            if kind == "DELETED":
                self.actors.discard(uid)
                self._gone(actor)
            elif actor is None:
                fresh = self._actor(pod)
                if fresh:
                    self.actors.add(uid, fresh)
            else:
                actor.pod = pod
                self.actors.wake(uid)

    def _gone(self, actor: Actor | None) -> None:
        if isinstance(actor, LauncherPod):
            guest = self.guests.get(actor.vmi_uid)
            if guest is not None:
                # Deleted by force: nobody waits for the guest any more.
                guest.request_stop(0.0)
        elif actor is not None and not isinstance(actor, RefusedPod):
            self.workloads.gone(actor)  # type: ignore[arg-type]

    def _actor(self, pod: dict[str, Any]) -> LauncherPod | RefusedPod | Workload | None:
        role = (pod["metadata"].get("labels") or {}).get("kubevirt.io")
        if role == "virt-handler":
            return None
        if role == "virt-launcher":
            return LauncherPod(self, pod)
        why = self.workloads.refusal(pod)
        if why:
            return RefusedPod(self, pod, why)
        return self.workloads.actor(pod, lambda: self.actors.wake(pod["metadata"]["uid"]))
