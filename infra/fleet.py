"""Rolling out and waiting for VMs and their devices, after their objects are written.

A VM is started anew when its template or its Secrets differ from what it was started with; that is
recorded on the VirtualMachineInstance, so it is true whoever started it. One waiter follows all VMs
and fails as soon as a cause is known, with the VM's name. Nothing of pulumi is in here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from kvedge import errors, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kvedge import iothub, kube
    from kvedge.wire import KubeObject

__all__ = ["Member", "Stage", "restart_changed", "stage_of", "wait_ready"]

CONTENT = f"{names.ANNOTATION}/content"
"""On a VirtualMachineInstance: hash of the template and Secrets that it was started with."""
_POLL_SECONDS = 1.0
_HUB_POLL_SECONDS = 3.0
_GRACE_SECONDS = 20.0
"""A cause must hold for so long: schedulers and importers try again by themselves."""
_RESTART_SECONDS = 600.0
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


async def restart_changed(
    client: kube.Client,
    members: Sequence[Member],
    *,
    on_restart: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Restart each running VM whose template or Secrets changed since its start; return names.

    Raises:
        KvedgeError: a VM did not come back.
    """
    raised: errors.KvedgeError | None = None
    tasks: list[asyncio.Task[bool]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [
                group.create_task(_restart_one(client, m, on_restart), name=f"restart {m.name}")
                for m in members
            ]
    except* errors.KvedgeError as failures:
        raised = _first(failures)
    if raised is not None:
        raise raised
    return [member.name for member, task in zip(members, tasks, strict=True) if task.result()]


def _first(group: BaseExceptionGroup[Any]) -> errors.KvedgeError:
    """Return one of the errors of a task group, as good as any."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _restart_one(
    client: kube.Client, member: Member, on_restart: Callable[[str], None]
) -> bool:
    vm_path, vmi_path = _paths(member)
    try:
        vmi = await client.get(vmi_path)
    except errors.NotFound:
        return False
    vm = await client.get(vm_path)
    content, written = await _content(client, member, vm)
    recorded = (vmi["metadata"].get("annotations") or {}).get(CONTENT)
    if recorded == content:
        return False
    if recorded is None and not _stale(vm, vmi, written):
        await _record(client, vmi_path, content)
        return False
    on_restart(member.name)
    root = "/apis/subresources.kubevirt.io/v1/namespaces"
    path = f"{root}/{member.namespace}/virtualmachines/{member.name}/restart"
    await client.request("PUT", path, {}, raw=True, accept="*/*")
    try:
        async with asyncio.timeout(_RESTART_SECONDS):
            while True:
                await asyncio.sleep(_POLL_SECONDS)
                try:
                    fresh = await client.get(vmi_path)
                except errors.NotFound:
                    continue
                if fresh["metadata"]["uid"] != vmi["metadata"]["uid"]:
                    break
    except TimeoutError as cause:
        raise errors.KvedgeError(
            f"VM {member.name!r} did not come back within {_RESTART_SECONDS:g} s of its restart",
            hint=f"kubectl describe vm {member.name} -n {member.namespace}",
        ) from cause
    await _record(client, vmi_path, content)
    return True


def _stale(vm: KubeObject, vmi: KubeObject, written: datetime.datetime | None) -> bool:
    """Tell whether a VMI without a record was started before the last change."""
    status = vm.get("status") or {}
    observed = status.get("observedGeneration")
    started = _time(vmi["metadata"]["creationTimestamp"])
    return (
        _condition(vm, "RestartRequired") is not None
        or (observed is not None and observed < vm["metadata"]["generation"])
        or (written is not None and started is not None and written > started)
    )


async def _content(
    client: kube.Client, member: Member, vm: KubeObject
) -> tuple[str, datetime.datetime | None]:
    """Return the hash of what a start would use now, and when its Secrets were last written."""
    spec = vm["spec"]["template"]["spec"]
    parts: list[Any] = [spec]
    written: datetime.datetime | None = None
    for name in _secret_names(spec):
        try:
            secret = await client.get(f"/api/v1/namespaces/{member.namespace}/secrets/{name}")
        except errors.NotFound:
            continue
        parts.append(secret.get("data") or {})
        times = [_time(secret["metadata"]["creationTimestamp"])]
        times += [_time(field.get("time")) for field in secret["metadata"].get("managedFields", ())]
        for found in times:
            if found and (written is None or found > written):
                written = found
    text = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:16], written


def _secret_names(spec: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for volume in spec.get("volumes") or ():
        if "secret" in volume:
            found.append(volume["secret"]["secretName"])
        seed = volume.get("cloudInitNoCloud") or {}
        found += [seed[key]["name"] for key in ("secretRef", "networkDataSecretRef") if key in seed]
    return sorted(set(found))


async def _record(client: kube.Client, vmi_path: str, content: str) -> None:
    await client.patch(vmi_path, {"metadata": {"annotations": {CONTENT: content}}}, "merge")


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
        objects = await _objects(client, {member.namespace for member in members})
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
            if cause and loop.time() - begun >= _GRACE_SECONDS
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
    if _condition(vmi, "Ready") is None:
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
    failure = _condition(vm, "Failure")
    if failure:
        return f"{failure.get('reason', 'Failure')}: {failure.get('message', '')}"
    return disk


def _detail(vm: KubeObject, vmi: KubeObject | None) -> str:
    for obj in (vmi, vm):
        for kind in ("Synchronized", "PodScheduled", "DataVolumesReady", "Ready"):
            found = _condition(obj, kind, wanted="False") if obj else None
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
        running = _condition(disk, "Running", wanted="False")
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


async def _objects(client: kube.Client, namespaces: Iterable[str]) -> Objects:
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


def _condition(obj: KubeObject, kind: str, *, wanted: str = "True") -> dict[str, Any] | None:
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == wanted:
            return condition
    return None


def _paths(member: Member) -> tuple[str, str]:
    root = f"/apis/kubevirt.io/v1/namespaces/{member.namespace}"
    return (
        f"{root}/virtualmachines/{member.name}",
        f"{root}/virtualmachineinstances/{member.name}",
    )


def _age(obj: KubeObject) -> float:
    made = _time(obj["metadata"].get("creationTimestamp"))
    now = datetime.datetime.now(datetime.UTC)
    return (now - made).total_seconds() if made else 0.0


def _time(text: str | None) -> datetime.datetime | None:
    return datetime.datetime.fromisoformat(text) if text else None
