"""The node's object and lease: registering, heart-beat, re-creation, shutdown.

Other writers' labels, taints and conditions are left alone. A node that somebody deletes is made
again. The lease says that the process lives; Ready says whether pods can be taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
from typing import TYPE_CHECKING, Any

import kvedge
from kvedge import errors
from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvedge.kube import Client
    from kvedge.node.provider import Health
    from kvedge.wire import KubeObject

__all__ = ["NodeKeeper", "NodeSpec"]

_log = logging.getLogger(__name__)
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LEASE_SECONDS = 40
_RENEW_SECONDS = 10.0
_STATUS_SECONDS = 60.0
_LOOK_SECONDS = 1.0
"""How soon a change of the provider's health is told."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What a virtual node says about itself."""

    name: str
    address: str
    """InternalIP, where the API server reaches the kubelet API."""
    port: int = 10250
    provider: str
    """Goes into the taint `virtual-kubelet.io/provider`."""
    capacity: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"cpu": "1000", "memory": "4Ti", "pods": "10000"}
    )
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    taint: tuple[str, str, str] | None = None
    """Key, value and effect; None takes the provider's usual one."""
    no_taint: bool = False
    operating_system: str = "linux"
    declared_features: tuple[str, ...] = ("ExtendWebSocketsToKubelet",)
    """What newer API servers may ask of the kubelet API: callers' WebSockets as they are."""
    namespace: str = ""
    """Whose pods the node takes; empty takes those of all namespaces."""

    def pods_path(self) -> str:
        """Return where the API server lists the pods that the node may take."""
        within = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"/api/v1{within}/pods"

    def all_labels(self) -> dict[str, str]:
        """Return the labels that schedulers, load balancers and people look for."""
        return {
            "type": "virtual-kubelet",
            "kubernetes.io/role": "agent",
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": self.operating_system,
            "kubernetes.io/arch": "amd64",
            "beta.kubernetes.io/os": self.operating_system,
            "beta.kubernetes.io/arch": "amd64",
            "node.kubernetes.io/exclude-from-external-load-balancers": "true",
            "alpha.service-controller.kubernetes.io/exclude-balancer": "true",
            **self.labels,
        }

    def taints(self) -> list[dict[str, str]]:
        """Return the taint that keeps other pods away."""
        if self.no_taint:
            return []
        key, value, effect = self.taint or (
            "virtual-kubelet.io/provider", self.provider, "NoSchedule",
        )  # fmt: skip
        return [{"key": key, "value": value, "effect": effect}]


class NodeKeeper:
    """Keeps one node object and its lease true."""

    def __init__(
        self, client: Client, spec: NodeSpec, health: Callable[[], Health], holder: str = ""
    ) -> None:
        self._client, self._spec, self._health = client, spec, health
        self._holder = holder or spec.name
        self._uid = ""
        self._since: dict[str, tuple[str, str]] = {}
        """Status and transition time of each condition."""
        self._path = f"/api/v1/nodes/{spec.name}"
        self._agreed: tuple[Any, ...] | None = None
        """What the API server made of our last words; it may have normalised or refused some."""
        self._drifted = asyncio.Event()
        self.registered = asyncio.Event()

    async def run(self) -> None:
        """Register, then keep object, status and lease for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="node-watch")
            group.create_task(self._keep(), name="node-keep")

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        written, renewed, told = 0.0, 0.0, None
        while True:
            now, health = loop.time(), self._health()
            drifted = self._drifted.is_set()
            self._drifted.clear()
            try:
                if not self._uid:
                    await self._register()
                    told = None
                if drifted or health != told or now - written >= _STATUS_SECONDS:
                    await self._write(health)
                    told, written = health, now
                    self.registered.set()
                if now - renewed >= _RENEW_SECONDS or not renewed:
                    await self._renew()
                    renewed = now
            except errors.NotFound:
                self._uid = ""
            except errors.RemoteError as error:
                _log.warning("node %s: %s", self._spec.name, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._drifted.wait()

    async def _watch(self) -> None:
        """Notice at once that the object was removed or that somebody doubts that we live."""
        selector = f"metadata.name={self._spec.name}"
        try:
            async with contextlib.aclosing(
                self._client.watch("/api/v1/nodes", fieldSelector=selector)
            ) as stream:
                async for kind, node in stream:
                    if kind == "DELETED" and node["metadata"]["uid"] == self._uid:
                        _log.warning("node %s has gone and is made again", self._spec.name)
                        self._uid = ""
                        self._drifted.set()
                    elif kind == "MODIFIED" and self._is_doubted(node):
                        self._drifted.set()
                    elif kind == "MODIFIED" and self._is_changed(node):
                        _log.warning("node %s was changed and is put right", self._spec.name)
                        self._uid = ""
                        self._drifted.set()
        except errors.RemoteError as error:
            _log.warning("node %s is not watched: %s", self._spec.name, error)

    def _is_changed(self, node: KubeObject) -> bool:
        """Tell whether somebody else has changed what we say of the node."""
        return bool(self._uid) and self._agreed not in (None, self._traits(node))

    def _traits(self, node: KubeObject) -> tuple[Any, ...]:
        """Return what of a node is ours to say: our labels, our taints, its capacity."""
        labels, spec = node["metadata"].get("labels") or {}, self._spec
        ours = {(taint["key"], taint["effect"]) for taint in spec.taints()}
        taints = [t for t in node["spec"].get("taints") or () if (t["key"], t["effect"]) in ours]
        capacity = (node.get("status") or {}).get("capacity") or {}
        return (
            {key: labels.get(key) for key in spec.all_labels()},
            sorted((taint["key"], taint["effect"], taint.get("value", "")) for taint in taints),
            {key: capacity.get(key) for key in spec.capacity},
        )

    def _is_doubted(self, node: KubeObject) -> bool:
        """Tell whether the node lifecycle controller has marked the node as silent."""
        conditions = (node.get("status") or {}).get("conditions") or ()
        return any(entry["status"] == "Unknown" for entry in conditions)

    async def shut_down(self) -> None:
        """Tell that the node stops; the object, its pods and their work stay."""
        if self._uid:
            condition = self._condition("Ready", "False", "NodeShutdown", "the node is stopping")
            body = {"status": {"conditions": [condition]}}
            try:
                await self._client.patch(f"{self._path}/status", body, "strategic")
            except errors.RemoteError as error:
                _log.warning("node %s: %s", self._spec.name, error)

    async def _register(self) -> None:
        spec = self._spec
        node: KubeObject = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": spec.name, "labels": spec.all_labels()},
            "spec": {"taints": spec.taints()},
        }
        try:
            made = await self._client.post("/api/v1/nodes", node)
        except errors.Conflict:
            found = await self._client.get(self._path)
            mine = {(taint["key"], taint["effect"]) for taint in spec.taints()}
            foreign = [
                taint
                for taint in found["spec"].get("taints") or ()
                if (taint["key"], taint["effect"]) not in mine
            ]
            patch = {
                "metadata": {
                    "labels": spec.all_labels(),
                    "resourceVersion": found["metadata"]["resourceVersion"],
                },
                "spec": {"taints": foreign + spec.taints()},
            }
            made = await self._client.patch(self._path, patch, "merge")
            for entry in (found.get("status") or {}).get("conditions") or ():
                since = entry.get("lastTransitionTime") or timestamp()
                self._since[entry["type"]] = (entry["status"], since)
        self._uid = made["metadata"]["uid"]

    async def _write(self, health: Health) -> None:
        spec = self._spec
        ready = "True" if health.ready else "False"
        conditions = [
            self._condition("Ready", ready, health.reason, health.message),
            *(
                self._condition(kind, "False", f"KubeletHasNo{kind}", "")
                for kind in ("MemoryPressure", "DiskPressure", "PIDPressure")
            ),
            self._condition("NetworkUnavailable", "False", "RouteCreated", ""),
            *(
                self._condition(c["type"], c["status"], c.get("reason", ""), c.get("message", ""))
                for c in health.conditions
            ),
        ]
        status: dict[str, Any] = {
            "phase": "Running" if health.ready else "Pending",
            "capacity": dict(spec.capacity),
            "allocatable": dict(spec.capacity),
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": spec.address}],
            # Unknown to API servers before 1.35, which leave it out.
            "declaredFeatures": list(spec.declared_features),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": spec.port}},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": f"kvedge-{spec.provider}://{kvedge.__version__}",
                "kernelVersion": "",
                "kubeProxyVersion": "",
                "kubeletVersion": f"v1.36.1-kvedge-{kvedge.__version__}",
                "machineID": "",
                "operatingSystem": spec.operating_system,
                "osImage": "",
                "systemUUID": "",
            },
        }
        made = await self._client.patch(f"{self._path}/status", {"status": status}, "strategic")
        self._agreed = self._traits(made)

    def _condition(self, kind: str, status: str, reason: str, message: str) -> dict[str, str]:
        before, since = self._since.get(kind, ("", ""))
        if before != status:
            since = timestamp()
            self._since[kind] = (status, since)
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": timestamp(),
            "lastTransitionTime": since,
        }

    async def _renew(self) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": self._spec.name,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": now,
        }
        path = f"{_LEASES}/{self._spec.name}"
        try:
            await self._client.patch(path, {"spec": spec}, "merge")
        except errors.NotFound:
            owner = {
                "apiVersion": "v1", "kind": "Node", "name": self._spec.name, "uid": self._uid,
            }  # fmt: skip
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._spec.name, "ownerReferences": [owner]},
                "spec": spec,
            }
            await self._client.post(_LEASES, lease)
