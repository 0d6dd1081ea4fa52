"""VMs, their devices, their deployments and the pods behind them, joined by name."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from kvedge import access, edge, errors, names
from kvedge.survey import guests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge import iothub, kube
    from kvedge.wire import Configuration, KubeObject, QueryRow

__all__ = ["Fleet", "PodRow", "VmRow", "read_fleet"]

_AGENTS = "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodRow:
    """A pod on a virtual node."""

    namespace: str
    name: str
    workload: str
    ready: str
    """Ready containers of all, as `1/1`."""
    status: str
    """Phase, or the reason that a container waits for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VmRow:
    """One VM and the device in it."""

    environment: str
    namespace: str
    name: str
    status: str
    """KubeVirt's printable status."""
    ready: bool
    agent: bool
    """The guest agent answers."""
    address: str
    """`host:port` of its ssh Service; empty if it has none yet."""
    device: str
    connection: str
    """Connected or Disconnected as the hub says; `unknown` if it was not asked."""
    deployments: Mapping[str, str]
    """Targeted or Applied by deployment id."""
    modules: Mapping[str, str]
    """Runtime status by module name, as the device reported it."""
    pods: tuple[str, ...]
    """Workloads (namespace/name) whose deployment is on the device."""
    apply_error: str = ""
    """Why the guest did not take its secret disk, as it told on its console; asked only of running
    VMs whose device is not connected."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What was read, and what could not be."""

    vms: tuple[VmRow, ...]
    pods: tuple[PodRow, ...]
    notes: tuple[str, ...]
    """What could not be read, and why."""


async def read_fleet(client: kube.Client, hub: iothub.Hub | None) -> Fleet:
    """Read all managed VMs of a cluster and, if a hub is given, what their devices report.

    Raises:
        RemoteError: the cluster does not answer. A hub that does not answer is a note.
    """
    notes: list[str] = []
    async with asyncio.TaskGroup() as group:
        vms = group.create_task(_items(client, "/apis/kubevirt.io/v1/virtualmachines"), name="vms")
        vmis = group.create_task(
            _items(client, "/apis/kubevirt.io/v1/virtualmachineinstances"), name="vmis"
        )
        services = group.create_task(_items(client, "/api/v1/services"), name="services")
        pods = group.create_task(_virtual_pods(client), name="pods")
        told = group.create_task(_hub_side(hub, notes), name="hub")
    rows, configurations = told.result()
    conditions = {_key(vmi): _conditions(vmi) for vmi in vmis.result()}
    owners = {
        found["id"]: f"{labels[edge.LABEL_NAMESPACE]}/{labels[edge.LABEL_WORKLOAD]}"
        for found in configurations
        if edge.LABEL_WORKLOAD in (labels := found.get("labels") or {})
    }
    agents = {row["deviceId"]: row for row in rows}
    found = [
        _vm_row(vm, conditions.get(_key(vm), {}), services.result(), agents, owners, hub)
        for vm in vms.result()
    ]
    found = await _with_apply_errors(client, found, notes)
    return Fleet(
        vms=tuple(sorted(found, key=lambda row: (row.environment, row.namespace, row.name))),
        pods=tuple(sorted(map(_pod_row, pods.result()), key=lambda row: (row.namespace, row.name))),
        notes=tuple(notes),
    )


async def _with_apply_errors(
    client: kube.Client, rows: list[VmRow], notes: list[str]
) -> list[VmRow]:
    asked = {
        (row.namespace, row.name)
        for row in rows
        if row.status == "Running" and row.connection != "Connected"
    }
    told, unread = await guests.read_apply_errors(client, asked)
    notes += unread
    notes += [
        f"VM {namespace}/{name} did not take its secret disk: {error}"
        for (namespace, name), error in sorted(told.items())
    ]
    return [
        dataclasses.replace(row, apply_error=told.get((row.namespace, row.name), ""))
        for row in rows
    ]


async def _items(client: kube.Client, path: str) -> list[KubeObject]:
    return (await client.get(path, labelSelector=f"{names.LABEL_MANAGED}=kvedge"))["items"]


async def _virtual_pods(client: kube.Client) -> list[KubeObject]:
    listed = await client.get("/api/v1/nodes", labelSelector="type=virtual-kubelet")
    found: list[KubeObject] = []
    for node in listed["items"]:
        selector = f"spec.nodeName={node['metadata']['name']}"
        found += (await client.get("/api/v1/pods", fieldSelector=selector))["items"]
    return found


async def _hub_side(
    hub: iothub.Hub | None, notes: list[str]
) -> tuple[list[QueryRow], list[Configuration]]:
    if hub is None:
        return [], []
    rows: list[QueryRow] = []
    configurations: list[Configuration] = []
    try:
        async with asyncio.TaskGroup() as group:
            reports = group.create_task(hub.query(_AGENTS), name="reports")
            deployments = group.create_task(hub.configurations(), name="deployments")
    except* errors.KvedgeError as failed:
        notes.append(f"the hub was not read: {failed.exceptions[0]}")
    else:
        rows, configurations = reports.result(), deployments.result()
    return rows, configurations


def _key(obj: KubeObject) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _conditions(obj: KubeObject) -> dict[str, str]:
    found = (obj.get("status") or {}).get("conditions") or ()
    return {condition["type"]: condition["status"] for condition in found}


def _vm_row(
    vm: KubeObject,
    conditions: Mapping[str, str],
    services: list[KubeObject],
    agents: Mapping[str, QueryRow],
    owners: Mapping[str, str],
    hub: iothub.Hub | None,
) -> VmRow:
    labels = vm["metadata"].get("labels") or {}
    name, environment = vm["metadata"]["name"], labels.get(names.LABEL_ENVIRONMENT, "")
    device = names.device_id(environment, name)
    row = agents.get(device)
    placed = {key: str(value.get("status")) for key, value in _of(row, "configurations").items()}
    reported = _of(_of(row, "properties"), "reported")
    return VmRow(
        environment=environment,
        namespace=vm["metadata"]["namespace"],
        name=name,
        status=(vm.get("status") or {}).get("printableStatus", "Unknown"),
        ready=conditions.get("Ready") == "True",
        agent=conditions.get("AgentConnected") == "True",
        address=access.service_address(vm, services),
        device=device,
        connection=row.get("connectionState", "unknown")
        if row
        else ("unknown" if hub is None else "not registered"),
        deployments=placed,
        modules={
            key: str(value.get("runtimeStatus", "unknown"))
            for key, value in _of(reported, "modules").items()
            if isinstance(value, dict)
        },
        pods=tuple(sorted({owners[key] for key in placed if key in owners})),
    )


def _of(row: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    return (row or {}).get(key) or {}


def _pod_row(pod: KubeObject) -> PodRow:
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or ()
    word = status.get("reason") or status.get("phase", "Unknown")
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason"):
            word = waiting["reason"]
            break
    if pod["metadata"].get("deletionTimestamp"):
        word = "Terminating"
    total = len(pod["spec"]["containers"])
    return PodRow(
        namespace=pod["metadata"]["namespace"],
        name=pod["metadata"]["name"],
        workload=edge.workload_of(pod),
        ready=f"{sum(bool(one.get('ready')) for one in containers)}/{total}",
        status=word,
    )
