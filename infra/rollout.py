"""Starting changed VMs anew, a few at once, each behind a health gate.

A VM is changed when its template or its Secrets differ from what it was started with; that is
recorded on the VirtualMachineInstance, so it is true whoever started it. A restarted VM must be
ready, its agent connected since the restart and its deployment good before another one goes; the
first that is not stops the roll-out. Nothing of pulumi is in here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from infra import fleet
from kvedge import errors, names

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kvedge import iothub, kube, spec
    from kvedge.wire import KubeObject, QueryRow

__all__ = ["CONTENT", "note", "roll_out"]

CONTENT = f"{names.ANNOTATION}/content"
"""On a VirtualMachineInstance: hash of the template and Secrets that it was started with."""
_POLL_SECONDS = 1.0
_BATCH = 50
_AT_ONCE = 8
_UNUSED = frozenset({"authorized_keys"})
"""Files of the secret disk that reach a running guest without a restart."""


@dataclasses.dataclass(slots=True)
class _Candidate:
    """A VM on its way through the roll-out."""

    member: fleet.Member
    uid: str = ""
    """Of the instance that is to go; empty once nothing is to be restarted."""
    content: str = ""
    report: int = -1
    """Version of the agent's report before the restart."""
    begun: float = 0.0
    stage: fleet.Stage | None = None
    caused: float = 0.0
    """Since when the stage has its cause."""


async def roll_out(
    client: kube.Client,
    hub: iothub.Hub,
    members: Sequence[fleet.Member],
    plan: spec.Rollout,
    *,
    on_stage: Callable[[str, fleet.Stage], None] = lambda _name, _stage: None,
) -> list[str]:
    """Restart each running VM that changed since its start; return the names of these.

    VMs that are down already go first, as they lose nothing. VMs that were restarted by an earlier
    run and are not healthy count as unavailable, so that the same command never goes past them.

    Args:
        on_stage: called with name and stage whenever a VM's stage changes.

    Raises:
        KvedgeError: a VM did not get healthy; the others were not touched.
    """
    running = await _running(client, members)
    changed = [one for one in running if one.uid]
    if not changed:
        return []
    gate = _Gate(client, hub, plan, on_stage)
    await gate.look(running)
    changed.sort(key=lambda one: bool(one.stage and one.stage.ready))
    pending = [one for one in running if not one.uid and not (one.stage and one.stage.ready)]
    for one in pending:
        one.begun = gate.now()
    at_once = plan.at_once(len(members))
    done: list[str] = []
    while changed or pending:
        while changed and len(pending) < at_once:
            one = changed.pop(0)
            await gate.restart(one)
            done.append(one.member.name)
            pending.append(one)
        await asyncio.sleep(_POLL_SECONDS)
        await gate.look(pending)
        gate.refuse_failed(pending, changed)
        pending = [one for one in pending if one.uid or not (one.stage and one.stage.ready)]
    return done


async def note(client: kube.Client, members: Sequence[fleet.Member]) -> None:
    """Record what running VMs were started with, where nobody has and nothing changed since.

    To be called before anything changes: a VM that KubeVirt or a user started has no record, and
    once its Secrets are written nobody can tell whether it was started with what they hold.
    """
    await _running(client, members)


class _Gate:
    """Restarts, and tells which VMs are healthy."""

    def __init__(
        self, client: kube.Client, hub: iothub.Hub, plan: spec.Rollout,
        on_stage: Callable[[str, fleet.Stage], None],
    ) -> None:  # fmt: skip
        self._client, self._hub, self._plan, self._on_stage = client, hub, plan, on_stage

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    async def restart(self, one: _Candidate) -> None:
        member = one.member
        one.begun = self.now()
        self._tell(one, fleet.Stage(text="restarting", share=0.0))
        agents = await _agents(self._hub, [member.device_id])
        one.report = _report(agents.get(member.device_id))
        root = "/apis/subresources.kubevirt.io/v1/namespaces"
        path = f"{root}/{member.namespace}/virtualmachines/{member.name}/restart"
        await self._client.request("PUT", path, {}, raw=True, accept="*/*")

    async def look(self, candidates: Sequence[_Candidate]) -> None:
        """Find each one's stage; note the content of those that came back."""
        members = [one.member for one in candidates]
        objects = await fleet.objects_of(self._client, {m.namespace for m in members})
        agents = await _agents(self._hub, [m.device_id for m in members])
        for one in candidates:
            key = ("VirtualMachineInstance", one.member.namespace, one.member.name)
            vmi = objects.get(key)
            if one.begun and one.uid:
                if vmi is None or vmi["metadata"]["uid"] == one.uid:
                    stage = fleet.stage_of(objects, one.member, connected=False)
                    self._tell(one, dataclasses.replace(stage, text="restarting", ready=False))
                    continue
                await _record(self._client, one.member, one.content)
                one.uid = ""
            agent = agents.get(one.member.device_id)
            connected = agent is not None and agent.get("connectionState") == "Connected"
            fresh = connected and _report(agent) > one.report
            stage = fleet.stage_of(objects, one.member, connected=fresh)
            if stage.ready and agent is not None and fresh and not _good(agent):
                stage = fleet.Stage(text="applying its deployment", share=0.9)
            self._tell(one, stage)

    def refuse_failed(self, pending: Sequence[_Candidate], rest: Sequence[_Candidate]) -> None:
        failed: list[str] = []
        for one in pending:
            stage = one.stage
            if stage is None or stage.ready:
                continue
            if stage.cause and self.now() - one.caused >= fleet.GRACE_SECONDS:
                failed.append(f"VM {one.member.name!r}: {stage.cause}")
            elif self.now() - one.begun >= self._plan.ready_seconds:
                late = f"{stage.text} after {self._plan.ready_seconds} s"
                failed.append(f"VM {one.member.name!r}: {late}")
        if failed:
            left = ", ".join(one.member.name for one in rest) or "none"
            raise errors.KvedgeError(
                f"roll-out stopped: {'; '.join(failed)}; not restarted: {left}",
                hint="mend the cause, or set what was before, such as the old image's digest; "
                "then run the same again",
            )

    def _tell(self, one: _Candidate, stage: fleet.Stage) -> None:
        before = one.stage
        if before is None or stage.cause != before.cause:
            one.caused = self.now()
        one.stage = stage
        if stage != before and one.begun:
            self._on_stage(one.member.name, stage)


async def _running(client: kube.Client, members: Sequence[fleet.Member]) -> list[_Candidate]:
    """Return the VMs that run, those to be restarted with `uid`; record what can be recorded."""
    namespaces = {member.namespace for member in members}
    objects = await fleet.objects_of(client, namespaces)
    secrets = await _secrets(client, namespaces)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def candidate(member: fleet.Member) -> _Candidate | None:
        async with slots:
            return await _candidate(client, objects, secrets, member)

    found = await asyncio.gather(*(candidate(member) for member in members))
    return [one for one in found if one is not None]


async def _secrets(
    client: kube.Client, namespaces: Iterable[str]
) -> dict[tuple[str, str], KubeObject]:
    """Return the environments' Secrets by namespace and name, in one request a namespace."""
    selector = f"{names.LABEL_MANAGED}=kvedge"
    return {
        (namespace, secret["metadata"]["name"]): secret
        for namespace in namespaces
        for secret in (
            await client.get(f"/api/v1/namespaces/{namespace}/secrets", labelSelector=selector)
        ).get("items")
        or ()
    }


async def _candidate(
    client: kube.Client, objects: fleet.Objects,
    secrets: Mapping[tuple[str, str], KubeObject], member: fleet.Member,
) -> _Candidate | None:  # fmt: skip
    """Return the VM, with `uid` if it is to be restarted; None if it is not running."""
    key = member.namespace, member.name
    vmi, vm = (objects.get((kind, *key)) for kind in ("VirtualMachineInstance", "VirtualMachine"))
    if vmi is None or vm is None:
        return None
    content, written = _content(secrets, member, vm)
    recorded = (vmi["metadata"].get("annotations") or {}).get(CONTENT)
    if recorded == content:
        return _Candidate(member)
    if recorded is None and not _stale(vm, vmi, written):
        await _record(client, member, content)
        return _Candidate(member)
    return _Candidate(member, uid=vmi["metadata"]["uid"], content=content)


def _stale(vm: KubeObject, vmi: KubeObject, written: datetime.datetime | None) -> bool:
    """Tell whether a VMI without a record was started before the last change."""
    status = vm.get("status") or {}
    observed = status.get("observedGeneration")
    started = fleet.time_of(vmi["metadata"]["creationTimestamp"])
    return (
        fleet.condition(vm, "RestartRequired") is not None
        or (observed is not None and observed < vm["metadata"]["generation"])
        or (written is not None and started is not None and written > started)
    )


def _content(
    secrets: Mapping[tuple[str, str], KubeObject], member: fleet.Member, vm: KubeObject
) -> tuple[str, datetime.datetime | None]:
    """Return the hash of what a start would use now, and when its Secrets were last written."""
    template = vm["spec"]["template"]
    spec = template["spec"]
    parts: list[Any] = [spec, (template.get("metadata") or {}).get("annotations") or {}]
    written: datetime.datetime | None = None
    for name in _secret_names(spec):
        secret = secrets.get((member.namespace, name))
        if secret is None:
            continue
        data = secret.get("data") or {}
        parts.append({key: value for key, value in data.items() if key not in _UNUSED})
        times = [fleet.time_of(secret["metadata"]["creationTimestamp"])]
        fields = secret["metadata"].get("managedFields", ())
        times += [fleet.time_of(field.get("time")) for field in fields]
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


async def _record(client: kube.Client, member: fleet.Member, content: str) -> None:
    annotations = {"metadata": {"annotations": {CONTENT: content}}}
    await client.patch(
        f"/apis/kubevirt.io/v1/namespaces/{member.namespace}/virtualmachineinstances/{member.name}",
        annotations, "merge",
    )  # fmt: skip


async def _agents(hub: iothub.Hub, device_ids: Sequence[str]) -> dict[str, QueryRow]:
    found: dict[str, QueryRow] = {}
    for at in range(0, len(device_ids), _BATCH):
        listed = ", ".join(f"'{device_id}'" for device_id in device_ids[at : at + _BATCH])
        rows = await hub.query(  # device ids are DNS labels; nothing to escape
            "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent' "  # noqa: S608
            f"AND deviceId IN [{listed}]"
        )
        found.update({row["deviceId"]: row for row in rows})
    return found


def _report(agent: QueryRow | None) -> int:
    """Return the version of the agent's report; it grows with every start of the agent."""
    return int(_side(agent, "reported").get("$version") or 0)


def _good(agent: QueryRow) -> bool:
    """Tell whether the agent runs what the hub wants of it, the edge hub included."""
    desired, reported = _side(agent, "desired"), _side(agent, "reported")
    if not desired.get("systemModules"):
        return True  # no deployment targets the device
    hub = (reported.get("systemModules") or {}).get("edgeHub") or {}
    return (
        (reported.get("lastDesiredStatus") or {}).get("code") == 200
        and reported.get("lastDesiredVersion") == desired.get("$version")
        and hub.get("runtimeStatus") == "running"
    )


def _side(agent: QueryRow | None, side: str) -> Mapping[str, Any]:
    return ((agent or {}).get("properties") or {}).get(side) or {}
