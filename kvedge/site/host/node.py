"""The node object, its lease, and the virt-handler pod that virt-api looks for."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import platform
import shutil
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.site.host.podstatus import conditions, container
from kvedge.site.host.qemu import MACHINE
from kvedge.site.host.running import timestamp

if TYPE_CHECKING:
    from kvedge import kube
    from kvedge.site.host.settings import HostSettings

__all__ = ["Node"]

_LOG = logging.getLogger("kvedge.site.host")
_BEAT_SECONDS = 10.0
_STATUS_BEATS = 18
_LEASE_SECONDS = 40
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_KUBEVIRT = "kubevirt"
_VERSION = "v1.36.1"
"""Version of the kubelet that this stands in for."""
_PODS = 110


def _memory_kib() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemTotal:"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Keeps the node object true."""

    settings: HostSettings
    kube: kube.Client
    """Node identity."""
    handler: kube.Client
    """virt-handler's identity: the heartbeat is its to give."""
    accelerator: str

    @property
    def _path(self) -> str:
        return f"/api/v1/nodes/{self.settings.node}"

    def _labels(self) -> dict[str, str]:
        return {
            "kubernetes.io/hostname": self.settings.node,
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            "kubevirt.io/schedulable": "true",
            "cpumanager": "false",
            f"machine-type.node.kubevirt.io/{MACHINE}": "true",
            f"machine-type.node.kubevirt.io/pc-{MACHINE}": "true",
            "kvedge.io/accelerator": self.accelerator,
        }

    async def register(self) -> None:
        """Make the node, its status and the virt-handler pod."""
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.settings.node,
                "labels": self._labels(),
                "annotations": {"kubevirt.io/heartbeat": timestamp()},
            },
        }
        try:
            await self.kube.post("/api/v1/nodes", body)
        except errors.Conflict:
            await self.kube.patch(self._path, {"metadata": {"labels": self._labels()}})
        await self._write_status()
        await self._beat()
        found = await self.kube.get(self._path)
        taints = [
            taint
            for taint in found["spec"].get("taints") or ()
            if not taint["key"].startswith("node.kubernetes.io/not-ready")
        ]
        if taints != (found["spec"].get("taints") or []):
            # Nodes may not change their taints; the node controller would, some seconds later.
            try:
                await self.handler.patch(self._path, {"spec": {"taints": taints or None}})
            except errors.RemoteError as error:
                _LOG.info("taints are left to the node controller: %s", error)
        await self._ensure_handler_pod(found["metadata"]["uid"])

    async def keep(self) -> None:
        """Renew lease, heartbeat and status for ever."""
        beats = 0
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            beats += 1
            await self._beat()
            if beats % _STATUS_BEATS == 0:
                await self._write_status()

    async def _beat(self) -> None:
        lease = {
            "metadata": {"name": self.settings.node, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": self.settings.node,
                "leaseDurationSeconds": _LEASE_SECONDS,
                "renewTime": timestamp(micro=True),
            },
        }
        try:
            await self.kube.patch(f"{_LEASES}/{self.settings.node}", lease)
        except errors.NotFound:
            await self.kube.post(_LEASES, lease)
        await self.handler.patch(
            self._path,
            {
                "metadata": {
                    "labels": {"kubevirt.io/schedulable": "true"},
                    "annotations": {"kubevirt.io/heartbeat": timestamp()},
                }
            },
        )

    async def _write_status(self) -> None:
        disk = shutil.disk_usage(self.settings.directory)
        capacity = {
            "cpu": str(os.cpu_count() or 1),
            "memory": f"{_memory_kib()}Ki",
            "ephemeral-storage": f"{disk.total // 1024}Ki",
            "pods": str(_PODS),
            # Launcher pods ask for these devices; user networking needs none of them.
            "devices.kubevirt.io/tun": "1k",
            "devices.kubevirt.io/kvm": "1k",
            "devices.kubevirt.io/vhost-net": "1k",
        }
        now = timestamp()
        full = disk.free < disk.total // 50
        states = (
            ("Ready", "True", "KubeletReady"),
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            (
                "DiskPressure",
                "True" if full else "False",
                "KubeletHasDiskPressure" if full else "KubeletHasNoDiskPressure",
            ),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
        )
        status: dict[str, Any] = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [
                {
                    "type": kind,
                    "status": state,
                    "reason": reason,
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
                for kind, state, reason in states
            ],
            "addresses": [
                {"type": "InternalIP", "address": self.settings.address},
                {"type": "Hostname", "address": self.settings.node},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.settings.kubelet_port}},
            "nodeInfo": {
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
                "kernelVersion": platform.release(),
                "osImage": "kvedge VM host",
                "containerRuntimeVersion": "kvedge://1",
                "kubeletVersion": _VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
        }
        await self.kube.patch(f"{self._path}/status", {"status": status}, kind="strategic")

    async def _ensure_handler_pod(self, node_uid: str) -> None:
        """Make the pod by which virt-api finds this host's endpoints.

        A node may make mirror pods only, and owns them.
        """
        name = f"virt-handler-{self.settings.node}"
        path = f"/api/v1/namespaces/{_KUBEVIRT}/pods"
        image = "kvedge.local/kubevirt/virt-handler:v1.8.2"
        pod: dict[str, Any] = {
            "metadata": {
                "name": name,
                "namespace": _KUBEVIRT,
                "labels": {"kubevirt.io": "virt-handler"},
                "annotations": {
                    "kubernetes.io/config.mirror": "kvedge",
                    "kubernetes.io/config.source": "file",
                },
                "ownerReferences": [
                    {
                        "apiVersion": "v1",
                        "kind": "Node",
                        "name": self.settings.node,
                        "uid": node_uid,
                        "controller": True,
                    }
                ],
            },
            "spec": {
                "nodeName": self.settings.node,
                "hostNetwork": True,
                "containers": [{"name": "virt-handler", "image": image}],
                "tolerations": [{"operator": "Exists"}],
            },
        }
        try:
            await self.kube.post(path, pod)
        except errors.Conflict:
            found = await self.kube.get(f"{path}/{name}")
            owners = [owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()]
            if node_uid not in owners:
                await self.kube.delete(f"{path}/{name}", {"gracePeriodSeconds": 0})
                await self.kube.post(path, pod)
        running = {"running": {"startedAt": timestamp()}}
        status = {
            "phase": "Running",
            "hostIP": self.settings.address,
            "podIP": self.settings.address,
            "podIPs": [{"ip": self.settings.address}],
            "startTime": timestamp(),
            "conditions": conditions(pod, initialized=True, containers_ready=True),
            "containerStatuses": [container(pod["spec"]["containers"][0], running, ready=True)],
        }
        await self.kube.patch(f"{path}/{name}/status", {"status": status}, kind="strategic")
