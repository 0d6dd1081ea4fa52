"""Pods' statuses in the kubelet's words, and the few requests that write them."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.site.host.running import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvedge import kube

__all__ = ["PodWriter", "conditions", "container", "is_running", "pod_path", "with_ready"]

_LOG = logging.getLogger("kvedge.site.host")
_MESSAGE_LIMIT = 1000


def pod_path(pod: Mapping[str, Any]) -> str:
    """Return the API path of a pod."""
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def is_running(pod: Mapping[str, Any]) -> bool:
    """Whether the pod's status says Running."""
    return (pod.get("status") or {}).get("phase") == "Running"


def container(
    spec: Mapping[str, Any], state: Mapping[str, Any], *, ready: bool = False, restarts: int = 0
) -> dict[str, Any]:
    """Return a container status.

    Args:
        state: `{"running": …}`, `{"waiting": …}` or `{"terminated": …}`.
    """
    running = "running" in state
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": "" if "waiting" in state else spec["image"],
        "containerID": "" if "waiting" in state else f"kvedge://{secrets.token_hex(16)}",
        "ready": ready and running,
        "started": running,
        "restartCount": restarts,
        "state": dict(state),
    }


def conditions(
    pod: Mapping[str, Any], *, initialized: bool, containers_ready: bool, reason: str = ""
) -> list[dict[str, Any]]:
    """Return the kubelet's conditions; Ready also needs the pod's readiness gates."""
    present = {item["type"]: item for item in (pod.get("status") or {}).get("conditions") or ()}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()]
    closed = [gate for gate in gates if present.get(gate, {}).get("status") != "True"]
    ready_reason = "" if containers_ready and not closed else reason or "ContainersNotReady"
    if containers_ready and closed:
        ready_reason = "ReadinessGatesNotReady"
    wanted = (
        ("PodReadyToStartContainers", initialized, ""),
        ("Initialized", initialized, "" if initialized else reason),
        ("ContainersReady", containers_ready, "" if containers_ready else reason),
        ("Ready", containers_ready and not closed, ready_reason),
        ("PodScheduled", True, ""),
    )
    return [_condition(present.get(kind), kind, good, why) for kind, good, why in wanted]


def _condition(old: Mapping[str, Any] | None, kind: str, good: bool, reason: str) -> dict[str, Any]:
    status = "True" if good else "False"
    same = old is not None and old["status"] == status
    return {
        "type": kind,
        "status": status,
        "lastProbeTime": None,
        "lastTransitionTime": old["lastTransitionTime"]
        if same and old and old.get("lastTransitionTime")
        else timestamp(),
        # A strategic merge keeps what it is not told, so an empty reason must be said.
        "reason": reason or None,
    }


def with_ready(pod: Mapping[str, Any], ready: Mapping[str, bool]) -> dict[str, Any] | None:
    """Return the status change that sets containers' readiness, None when it is so already."""
    status = pod.get("status") or {}
    old = status.get("containerStatuses") or []
    fresh = [{**item, "ready": ready.get(item["name"], item["ready"])} for item in old]
    all_ready = bool(fresh) and all(item["ready"] for item in fresh)
    wanted = conditions(pod, initialized=True, containers_ready=all_ready)
    present = {item["type"]: item["status"] for item in status.get("conditions") or ()}
    if fresh == old and all(present.get(item["type"]) == item["status"] for item in wanted):
        return None
    return {"containerStatuses": fresh, "conditions": wanted}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodWriter:
    """Writes pods' statuses and events with the node's identity."""

    kube: kube.Client
    node: str
    address: str

    async def write(self, pod: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Patch the status; conditions that others own stay."""
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": dict(status)}
        try:
            await self.kube.patch(f"{pod_path(pod)}/status", body, kind="strategic")
        except errors.NotFound:
            return

    async def waiting(
        self, pod: Mapping[str, Any], reason: str, message: str, *, only: Iterable[str] = ()
    ) -> None:
        """Say that containers cannot start; those not named in `only` are being created."""
        named = set(only)
        message = message[:_MESSAGE_LIMIT]

        def state(spec: Mapping[str, Any]) -> dict[str, Any]:
            if named and spec["name"] not in named:
                return {"waiting": {"reason": "PodInitializing"}}
            return {"waiting": {"reason": reason, "message": message}}

        spec = pod["spec"]
        await self.write(
            pod,
            {
                "phase": "Pending",
                "hostIP": self.address,
                "hostIPs": [{"ip": self.address}],
                "conditions": conditions(
                    pod, initialized=False, containers_ready=False, reason="ContainersNotReady"
                ),
                "containerStatuses": [container(item, state(item)) for item in spec["containers"]],
            },
        )

    async def finish(
        self,
        pod: Mapping[str, Any],
        phase: str,
        *,
        codes: Mapping[str, int] | None = None,
        reason: str = "",
        message: str = "",
    ) -> None:
        """Write a terminal status; `codes` are exit codes by container name."""
        status = pod.get("status") or {}
        default = 0 if phase == "Succeeded" else 1

        def end(item: Mapping[str, Any]) -> dict[str, Any]:
            if "terminated" in item.get("state", {}):
                return {**item, "ready": False, "started": False}
            code = (codes or {}).get(item["name"], default)
            begun = item.get("state", {}).get("running", {}).get("startedAt") or timestamp()
            terminated = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": begun,
                "finishedAt": timestamp(),
                "containerID": item.get("containerID", ""),
            }
            return {**item, "ready": False, "started": False, "state": {"terminated": terminated}}

        await self.write(
            pod,
            {
                "phase": phase,
                "containerStatuses": [end(i) for i in status.get("containerStatuses") or ()],
                "initContainerStatuses": [
                    end(i) for i in status.get("initContainerStatuses") or ()
                ],
                "conditions": [
                    item
                    for item in conditions(
                        pod, initialized=True, containers_ready=False, reason="PodCompleted"
                    )
                    if item["type"] in {"Ready", "ContainersReady"}
                ],
                **({"reason": reason} if reason else {}),
                **({"message": message[:_MESSAGE_LIMIT]} if message else {}),
            },
        )

    async def remove(self, pod: Mapping[str, Any]) -> None:
        """Take the pod object away: everything behind it has ended."""
        try:
            await self.kube.delete(
                pod_path(pod),
                {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}},
            )
        except (errors.NotFound, errors.Conflict):
            return

    async def event(
        self, obj: Mapping[str, Any], reason: str, message: str, *, kind: str = "Warning"
    ) -> None:
        """Record an Event about an object; a lost one is no failure."""
        metadata = obj["metadata"]
        now = timestamp()
        try:
            await self.kube.post(
                f"/api/v1/namespaces/{metadata['namespace']}/events",
                {
                    "metadata": {
                        "name": f"{metadata['name'][:200]}.{secrets.token_hex(8)}",
                        "namespace": metadata["namespace"],
                    },
                    "involvedObject": {
                        "apiVersion": obj.get("apiVersion", "v1"),
                        "kind": obj.get("kind", "Pod"),
                        "namespace": metadata["namespace"],
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    },
                    "reason": reason,
                    "message": message[:_MESSAGE_LIMIT],
                    "type": kind,
                    "source": {"component": "kvedge-host", "host": self.node},
                    "firstTimestamp": now,
                    "lastTimestamp": now,
                    "count": 1,
                },
            )
        except errors.RemoteError as error:
            _LOG.info("event %s: %s", reason, error)
