"""How far VMs and their devices are, and waiting for them after their objects are written.

One waiter follows all VMs and fails as soon as a cause is known, with the VM's name. Nothing of
pulumi is in here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvedge import iothub, kube
    from kvedge.wire import KubeObject

__all__ = [
    "GRACE_SECONDS",
    "Member",
    "Objects",
    "Stage",
    "condition",
    "objects_of",
    "stage_of",
    "time_of",
    "wait_ready",
]

_POLL_SECONDS = 1.0
_HUB_POLL_SECONDS = 3.0
GRACE_SECONDS = 20.0
"""A cause must hold for so long: schedulers and importers try again by themselves."""
_STOPPED_SECONDS = 20.0
_BATCH = 50
_FATAL = {
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "ErrorUnschedulable": "no node can take it",
    "ErrorPvcNotFound": "a disk is missing",
    "DataVolumeError": "a disk cannot be filled",
    "CrashLoopBackOff": "it ends again and again",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A VM to wait for."""

    name: str
    namespace: str
    device_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How far one VM is."""

    text: str
    """A short word for people: `importing disk 40%`, `booting`, `ready`."""
    share: float
    """From 0 to 1."""
    ready: bool = False
    cause: str = ""
    """Why it cannot go on, if that is known."""


async def wait_ready(
    client: kube.Client,
    hub: iothub.Hub | None,
    members: Sequence[Member],
    *,
    seconds: float,
    on_stage: Callable[[str, Stage], None] = lambda _name, _stage: None,
) -> None:
    """Wait until every VM is ready and every device is connected.

    Args:
        hub: None to wait for VMs only.
        seconds: how long at most.
        on_stage: called with name and stage whenever a VM's stage changes.

    Raises:
        KvedgeError: naming each VM that failed or was not ready in time, and why.
    """
    loop = asyncio.get_running_loop()
    last: dict[str, Stage] = {}
    since: dict[str, tuple[str, float]] = {}
    connected: set[str] = set()
    hub_asked = -_HUB_POLL_SECONDS
    end = loop.time() + seconds
    while members:
        waiting = [m for m in members if m.device_id not in connected]
        if hub is not None and waiting and loop.time() - hub_asked >= _HUB_POLL_SECONDS:
            hub_asked = loop.time()
            connected |= await _connected(hub, [member.device_id for member in waiting])
        objects = await objects_of(client, {member.namespace for member in members})
        for member in members:
            joined = hub is None or member.device_id in connected
            stage = stage_of(objects, member, connected=joined)
            if stage != last.get(member.name):
                last[member.name] = stage
                on_stage(member.name, stage)
            if stage.cause != since.get(member.name, ("", 0.0))[0]:
                since[member.name] = (stage.cause, loop.time())
        if all(last[member.name].ready for member in members):
            return
        failed = [
            f"VM {name!r}: {cause}"
            for name, (cause, begun) in since.items()
            if cause and loop.time() - begun >= GRACE_SECONDS
        ]
        if failed:
            raise errors.KvedgeError(
                "; ".join(failed), hint="mend the cause and run the same command again"
            )
        if loop.time() >= end:
            late = [f"{m.name!r} is {last[m.name].text}" for m in members if not last[m.name].ready]
            raise errors.KvedgeError(
                f"not ready after {seconds:g} s: {', '.join(late)}",
                hint="`kvedge status` tells more; the same command goes on waiting",
            )
        await asyncio.sleep(_POLL_SECONDS)


Objects = dict[tuple[str, str, str], Any]
"""Kind, namespace and name to object."""


def stage_of(objects: Objects, member: Member, *, connected: bool) -> Stage:
    """Return how far a VM is.

    Args:
        objects: what the cluster has of VirtualMachine, VirtualMachineInstance and DataVolume.
        connected: whether the device's agent is connected to the hub.
    """
    vm = objects.get(("VirtualMachine", member.namespace, member.name))
    if vm is None:
        return Stage(text="not there yet", share=0.0)
    status = vm.get("status") or {}
    printable = status.get("printableStatus", "")
    vmi = objects.get(("VirtualMachineInstance", member.namespace, member.name))
    cause = _cause(objects, member, vm, vmi, printable)
    if vmi is None:
        if printable == "Stopped" and _age(vm) > _STOPPED_SECONDS and not cause:
            # Stopped by somebody: a wish of theirs and no failure.
            return Stage(text="stopped", share=1.0, ready=True)
        return Stage(text=_importing(objects, member, vm) or "starting", share=0.1, cause=cause)
    phase = (vmi.get("status") or {}).get("phase", "")
    if phase != "Running":
        disk = _importing(objects, member, vm)
        return Stage(text=disk or phase.lower() or "starting", share=0.2, cause=cause)
    if condition(vmi, "Ready") is None:
        return Stage(text="booting", share=0.5, cause=cause)
    if not connected:
        return Stage(text="connecting to the hub", share=0.8, cause=cause)
    return Stage(text="ready", share=1.0, ready=True)


def _cause(
    objects: Objects, member: Member, vm: KubeObject, vmi: KubeObject | None, printable: str
) -> str:
    disk = _disk_cause(objects, member, vm)
    if printable in _FATAL:
        detail = disk or _detail(vm, vmi)
        return f"{printable}: {_FATAL[printable]}" + (f": {detail}" if detail else "")
    failure = condition(vm, "Failure")
    if failure is None and vmi is not None:
        unsynchronized = condition(vmi, "Synchronized", wanted="False") or {}
        # What the node cannot do will not change by waiting.
        failure = unsynchronized if unsynchronized.get("reason") == "Unsupported" else None
    if failure:
        return f"{failure.get('reason', 'Failure')}: {failure.get('message', '')}"
    return disk


def _detail(vm: KubeObject, vmi: KubeObject | None) -> str:
    for obj in (vmi, vm):
        for kind in ("Synchronized", "PodScheduled", "DataVolumesReady", "Ready"):
            found = condition(obj, kind, wanted="False") if obj else None
            if found and found.get("message"):
                return str(found["message"])
    return ""


def _disks(objects: Objects, member: Member, vm: KubeObject) -> Iterable[KubeObject]:
    for volume in vm["spec"]["template"]["spec"].get("volumes") or ():
        name = (volume.get("dataVolume") or {}).get("name")
        disk = objects.get(("DataVolume", member.namespace, name)) if name else None
        if disk is not None:
            yield disk


def _disk_cause(objects: Objects, member: Member, vm: KubeObject) -> str:
    for disk in _disks(objects, member, vm):
        status = disk.get("status") or {}
        running = condition(disk, "Running", wanted="False")
        name = disk["metadata"]["name"]
        if status.get("phase") == "Failed":
            return f"disk {name!r} failed: {(running or {}).get('message', '')}"
        reason = (running or {}).get("reason", "")
        if running and ("Fail" in reason or "Err" in reason or "BackOff" in reason):
            return f"disk {name!r}: {reason}: {running.get('message', '')}"
    return ""


def _importing(objects: Objects, member: Member, vm: KubeObject) -> str:
    for disk in _disks(objects, member, vm):
        status = disk.get("status") or {}
        if status.get("phase") not in ("Succeeded", "WaitForFirstConsumer", "PendingPopulation"):
            progress = status.get("progress", "")
            shown = f" {progress}" if progress and progress != "N/A" else ""
            return f"filling disk {disk['metadata']['name']}{shown}"
    return ""


async def objects_of(client: kube.Client, namespaces: Iterable[str]) -> Objects:
    """Read the VirtualMachines, their instances and the DataVolumes of the namespaces."""
    found: Objects = {}
    kinds = {
        "VirtualMachine": "kubevirt.io/v1/namespaces/{}/virtualmachines",
        "VirtualMachineInstance": "kubevirt.io/v1/namespaces/{}/virtualmachineinstances",
        "DataVolume": "cdi.kubevirt.io/v1beta1/namespaces/{}/datavolumes",
    }
    for namespace in namespaces:
        for kind, path in kinds.items():
            listed = await client.get(f"/apis/{path.format(namespace)}")
            for obj in listed.get("items") or ():
                found[kind, namespace, obj["metadata"]["name"]] = obj
    return found


async def _connected(hub: iothub.Hub, device_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for at in range(0, len(device_ids), _BATCH):
        listed = ", ".join(f"'{device_id}'" for device_id in device_ids[at : at + _BATCH])
        rows = await hub.query(  # device ids are DNS labels; nothing to escape
            "SELECT deviceId FROM devices.modules WHERE moduleId = '$edgeAgent' "  # noqa: S608
            f"AND connectionState = 'Connected' AND deviceId IN [{listed}]"
        )
        found |= {row["deviceId"] for row in rows}
    return found


def condition(obj: KubeObject, kind: str, *, wanted: str = "True") -> dict[str, Any] | None:
    """Return the object's condition of a type, if it has the wanted status."""
    for one in (obj.get("status") or {}).get("conditions") or ():
        if one.get("type") == kind and one.get("status") == wanted:
            return one
    return None


def _age(obj: KubeObject) -> float:
    made = time_of(obj["metadata"].get("creationTimestamp"))
    now = datetime.datetime.now(datetime.UTC)
    return (now - made).total_seconds() if made else 0.0


def time_of(text: str | None) -> datetime.datetime | None:
    """Return the time that an object's field tells."""
    return datetime.datetime.fromisoformat(text) if text else None
