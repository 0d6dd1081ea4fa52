"""VirtualMachineInstances: one actor a UID that makes the guest what the object says.

Only the handler's identity may write a VMI's status: KubeVirt's webhook silently drops what
others write. Its role has no `get`, so objects are read by a list with a field selector.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.site.host import guestinfo, qemu, tpm
from kvedge.site.host.accesskeys import follow_keys
from kvedge.site.host.machine import Machine
from kvedge.site.host.probes import AgentTarget, parse_probe, watch_probe
from kvedge.site.host.running import Actors, timestamp
from kvedge.site.host.vmspec import plan_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvedge import kube
    from kvedge.site.host.addresses import AddressPool
    from kvedge.site.host.disks import DiskMaker
    from kvedge.site.host.running import Crew
    from kvedge.site.host.settings import HostSettings

__all__ = ["Guest", "Guests", "set_condition", "set_phase"]

_LOG = logging.getLogger("kvedge.site.host")
_ROOT = "/apis/kubevirt.io/v1"
_FINAL = ("Succeeded", "Failed")
_UPDATE_TRIES = 30
_RETRIED = (0, 409, 500, 503, 504)
"""500 is the API server that cannot reach virt-api's webhook while virt-api is restarted."""
_AGENT_SECONDS = 10.0


def set_phase(vmi: dict[str, Any], phase: str) -> None:
    """Enter a phase and note when."""
    status = vmi["status"]
    if status.get("phase") != phase:
        status["phase"] = phase
        status.setdefault("phaseTransitionTimestamps", []).append(
            {"phase": phase, "phaseTransitionTimestamp": timestamp()}
        )


def set_condition(
    vmi: dict[str, Any], kind: str, status: str | None, reason: str = "", message: str = ""
) -> None:
    """Set a condition; None takes it away. The transition time moves only with the status."""
    conditions = vmi["status"].setdefault("conditions", [])
    old = next((item for item in conditions if item["type"] == kind), None)
    if status is None:
        if old:
            conditions.remove(old)
        return
    fresh = {
        "type": kind,
        "status": status,
        "lastProbeTime": None,
        "lastTransitionTime": timestamp(),
        **({"reason": reason} if reason else {}),
        **({"message": message} if message else {}),
    }
    if old is None:
        conditions.append(fresh)
    elif (old["status"], old.get("reason", ""), old.get("message", "")) != (
        status,
        reason,
        message,
    ):
        if old["status"] == status:
            fresh["lastTransitionTime"] = old.get("lastTransitionTime")
        conditions[conditions.index(old)] = fresh


class Guest:
    """The actor of one VMI."""

    def __init__(self, guests: Guests, vmi: dict[str, Any]) -> None:
        self.vmi = vmi
        self.uid: str = vmi["metadata"]["uid"]
        self.namespace: str = vmi["metadata"]["namespace"]
        self.vm: str = vmi["metadata"]["name"]
        self.name = f"vmi {self.namespace}/{self.vm}"
        self.directory = guests.settings.guests / self.uid
        self.machine = Machine(self.directory, guests.crew, self._changed)
        self.console: Any = None
        """The client that holds the serial console; a new one puts it out."""
        self.screen: Any = None
        self._guests = guests
        self._adopted = False
        self._stop_grace: float | None = None
        self._probed_ready = False
        self._agent: dict[str, Any] | None = None
        self._keys: tuple[bool, str] | None = None
        """Whether the ssh keys of the VMI's Secrets are in the guest, and why not."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def known(self) -> bool:
        """Whether it is known yet if an earlier host left a process."""
        return self._adopted

    @property
    def ready(self) -> bool:
        """Whether the guest runs and its readiness probe, if it has one, is content."""
        probed = self._probed_ready or not self.vmi["spec"].get("readinessProbe")
        return self.machine.running and probed

    @property
    def over(self) -> bool:
        """Whether there is no process any more and there was one."""
        return self._adopted and self.machine.started and not self.machine.running

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by the guest's own power off."""
        return self.machine.ending != "guest"

    def request_stop(self, grace: float) -> None:
        """Ask for a stop: the launcher pod is being deleted."""
        self._stop_grace = grace if self._stop_grace is None else min(grace, self._stop_grace)
        self._guests.actors.wake(self.uid)

    def grace(self) -> float:
        """Return the grace time of this moment: a forced stop lowers it in the spec."""
        grace = self.vmi["spec"].get("terminationGracePeriodSeconds")
        wanted = 30.0 if grace is None else float(grace)
        return wanted if self._stop_grace is None else min(wanted, self._stop_grace)

    def _changed(self) -> None:
        self._guests.actors.wake(self.uid)
        self._guests.on_change(self.uid)

    async def step(self) -> float | None:
        """Do what the VMI and the process ask for."""
        if self._guests.quiet:
            return None
        if not self._adopted:
            if await self.machine.adopt():
                _LOG.info("%s: adopted QEMU %s", self.name, self.machine.pid)
                self._begin_watching(was_ready=True)
            self._adopted = True
        phase = self.vmi.get("status", {}).get("phase")
        stopping = bool(self.vmi["metadata"].get("deletionTimestamp")) or (
            self._stop_grace is not None
        )
        if self.machine.running and stopping:
            await self.machine.stop(self.grace)
            if self._guests.quiet:
                return None
        if self.machine.running:
            await self._update(self._tell_running)
            return None
        if self.machine.started:
            self._end_watching()
            await self._update(self._tell_end)
            self._guests.on_change(self.uid)
            return None
        if phase in _FINAL or phase not in {"Scheduled", "Running"}:
            return None
        if stopping or phase == "Running":
            # Running without a process: this machine was switched off meanwhile.
            await self._update(lambda vmi: set_phase(vmi, "Failed"))
            self._guests.on_change(self.uid)
            return None
        await self._start()
        return None

    async def _start(self) -> None:
        try:
            plan = plan_guest(self.vmi)
            firmware = qemu.find_firmware() if plan.efi else None
            if plan.efi and not firmware:
                raise errors.SpecError(  # noqa: TRY301 - told as the plan's own problems are
                    self.name,
                    [
                        errors.Problem(
                            path="spec.domain.firmware.bootloader.efi",
                            message="no OVMF on this machine",
                            hint="install ovmf",
                        )
                    ],
                )
        except errors.SpecError as error:
            _LOG.warning("%s", error)
            await self._refuse("Unsupported", "; ".join(map(str, error.problems)))
            return
        self.machine.clear()
        try:
            disks = await self._guests.disks.make(plan, self.directory)
        except errors.KvedgeError as error:
            await self._refuse("FailedDisk", error.message)
            raise
        if firmware:
            variables = self.directory / "efivars.fd"
            shutil.copyfile(firmware.variables, variables)
            firmware = qemu.Firmware(code=firmware.code, variables=variables)
        argv = qemu.arguments(
            plan,
            disks,
            address=self._guests.pool.take(self.uid),
            accelerator=self._guests.accelerator,
            firmware=firmware,
        )
        (self.directory / "qemu.json").write_text(json.dumps(argv), encoding="utf-8")
        try:
            if plan.tpm:
                kept = self._guests.settings.tpms / plan.owner
                state = kept if plan.tpm == "persistent" else self.directory / "tpm"
                await tpm.start(self.directory, state)
            await self.machine.start(argv)
        except (errors.SiteError, errors.ToolMissing) as error:
            tpm.end(self.directory)
            message = error.message
            _LOG.warning("%s: %s", self.name, message)

            def broken(vmi: dict[str, Any]) -> None:
                set_phase(vmi, "Failed")
                set_condition(vmi, "Synchronized", "False", "FailedStart", message)

            await self._update(broken)
            return
        _LOG.info("%s: QEMU %s", self.name, self.machine.pid)
        self._begin_watching(was_ready=False)
        await self._update(self._tell_running)
        self._guests.on_change(self.uid)

    async def _refuse(self, reason: str, message: str) -> None:
        await self._update(lambda vmi: set_condition(vmi, "Synchronized", "False", reason, message))

    # What is told

    def _tell_running(self, vmi: dict[str, Any]) -> None:
        set_phase(vmi, "Running")
        status = vmi["status"]
        address = self._guests.pool.take(self.uid)
        plan = plan_guest(vmi)
        status["interfaces"] = [
            {
                **next(
                    (old for old in status.get("interfaces") or () if old["name"] == item["name"]),
                    {},
                ),
                "name": item["name"],
                "ipAddress": address,
                "ipAddresses": [address],
                "mac": plan.mac,
                "infoSource": "domain, guest-agent" if self._agent else "domain",
                "queueCount": 1,
                "linkState": "up",
                "podInterfaceName": "eth0",
                **self._interface_name(plan.mac),
            }
            for item in vmi["spec"]["domain"]["devices"].get("interfaces") or ()
        ]
        status["machine"] = {"type": qemu.MACHINE}
        message = "a site has one node: there is nowhere to migrate to"
        set_condition(vmi, "LiveMigratable", "False", "HostNotLiveMigratable", message)
        set_condition(vmi, "StorageLiveMigratable", "False", "NotMigratable", message)
        set_condition(vmi, "Synchronized", None)
        if self.machine.paused and self.machine.disk_failed:
            message = "a write to a disk failed: is this machine's disk full?"
            set_condition(vmi, "Paused", "True", "PausedIOError", message)
        elif self.machine.paused:
            set_condition(vmi, "Paused", "True", "PausedByUser", "VMI was paused by user")
        else:
            set_condition(vmi, "Paused", None)
        if self._agent:
            set_condition(vmi, "AgentConnected", "True")
            status["guestOSInfo"] = self._agent["os"]
        else:
            set_condition(vmi, "AgentConnected", None)
        if self._keys:
            good, why = self._keys
            set_condition(
                vmi, "AccessCredentialsSynchronized", "True" if good else "False", "", why
            )

    def _interface_name(self, mac: str) -> dict[str, str]:
        name = (self._agent or {}).get("interfaces", {}).get(mac.lower())
        return {"interfaceName": name} if name else {}

    def _tell_end(self, vmi: dict[str, Any]) -> None:
        if vmi["status"].get("phase") not in _FINAL:
            set_phase(vmi, "Failed" if self.failed else "Succeeded")
        set_condition(vmi, "AgentConnected", None)
        set_condition(vmi, "Paused", None)

    async def _update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the VMI's status, if that makes a difference."""
        tried = copy.deepcopy(self.vmi)
        tried.setdefault("status", {})
        change(tried)
        if tried == self.vmi:
            return
        path = f"{_ROOT}/namespaces/{self.namespace}/virtualmachineinstances"
        for _ in range(_UPDATE_TRIES):
            try:
                found = await self._guests.handler.get(
                    path, fieldSelector=f"metadata.name={self.vm}"
                )
                items = [item for item in found["items"] if item["metadata"]["uid"] == self.uid]
                if not items:
                    return
                current = {
                    "apiVersion": "kubevirt.io/v1",
                    "kind": "VirtualMachineInstance",
                    **items[0],
                }
                wanted = copy.deepcopy(current)
                change(wanted)
                if wanted != current:
                    self.vmi = await self._guests.handler.put(f"{path}/{self.vm}", wanted)
            except errors.NotFound:
                return
            except errors.RemoteError as error:
                if error.status not in _RETRIED:
                    raise
                _LOG.info("%s: %s", self.name, error)
                await asyncio.sleep(0.05 if error.status == 409 else 1.0)
            else:
                return
        raise errors.SiteError(f"{self.name}: status not written in {_UPDATE_TRIES} tries")

    # What is watched while the guest runs

    def _begin_watching(self, *, was_ready: bool) -> None:
        start = self._guests.crew.start
        self._tasks.append(start(f"{self.name} agent", self._follow_agent()))
        credentials = self.vmi["spec"].get("accessCredentials")
        if credentials:
            keys = follow_keys(
                self.name, credentials,
                lambda secret: self._guests.disks.secret(self.namespace, secret),
                self.machine.agent, lambda: self._agent is not None, self._keys_told,
            )  # fmt: skip
            self._tasks.append(start(f"{self.name} keys", keys))
        address = self._guests.pool.take(self.uid)
        target = AgentTarget(address=address, ports={}, agent=self.machine.agent)
        readiness = parse_probe(self.vmi["spec"].get("readinessProbe"))
        liveness = parse_probe(self.vmi["spec"].get("livenessProbe"))
        self._probed_ready = was_ready
        if readiness:
            self._tasks.append(
                start(
                    f"{self.name} readiness",
                    watch_probe(readiness, target, self._probed, good=was_ready),
                )
            )
        if liveness:
            self._tasks.append(
                start(
                    f"{self.name} liveness",
                    watch_probe(liveness, target, self._lives, good=True),
                )
            )

    def _end_watching(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._agent = None

    def _keys_told(self, good: bool, why: str) -> None:
        if self._agent and (good, why) != self._keys:
            self._keys = good, why
            self._changed()

    def _probed(self, good: bool) -> None:
        self._probed_ready = good
        self._changed()

    def _lives(self, good: bool) -> None:
        if not good:
            _LOG.warning("%s: liveness probe failed", self.name)
            self._tasks.append(self._guests.crew.start(f"{self.name} kill", self.machine.kill()))

    async def _follow_agent(self) -> None:
        misses = 0
        while True:
            found: dict[str, Any] | None = None
            if self.machine.agent_open and not self.machine.paused:
                try:
                    found = {
                        "os": await guestinfo.os_info(self.machine.agent),
                        "interfaces": await guestinfo.network_interfaces(self.machine.agent),
                    }
                    misses = 0
                except errors.SiteError:
                    misses += 1
                    # One slow answer of a busy guest is no lost agent.
                    found = self._agent if misses < 3 else None
            elif self.machine.paused:
                found = self._agent
            if found != self._agent:
                self._agent = found
                self._changed()
            await asyncio.sleep(_AGENT_SECONDS if found else 0.5)

    def close(self) -> None:
        """Stop watching."""
        self._end_watching()


class Guests:
    """All VMIs of this node."""

    def __init__(
        self,
        *,
        settings: HostSettings,
        handler: kube.Client,
        crew: Crew,
        pool: AddressPool,
        disks: DiskMaker,
        accelerator: str,
    ) -> None:
        self.settings = settings
        self.handler = handler
        self.crew = crew
        self.pool = pool
        self.disks = disks
        self.accelerator = accelerator
        self.actors: Actors[Guest] = Actors(crew)
        self.on_change: Callable[[str], None] = lambda _uid: None
        """Called with a VMI's UID when its guest changed; the pod's half listens."""
        self.quiet = False
        """Set when the site goes down: guests end, and nobody is told that they did."""

    def get(self, uid: str) -> Guest | None:
        """Return the guest of a VMI."""
        return self.actors.get(uid)

    def find(self, namespace: str, name: str) -> Guest | None:
        """Return the running guest of a VMI by name."""
        for guest in self.actors:
            if (guest.namespace, guest.vm) == (namespace, name) and guest.machine.running:
                return guest
        return None

    async def watch(self) -> None:
        """Serve VMIs for ever."""
        path = f"{_ROOT}/virtualmachineinstances"
        selector = f"kubevirt.io/nodeName={self.settings.node}"
        async for kind, vmi in self.handler.watch(path, labelSelector=selector):
            if kind == "SYNCED":
                self._sweep()
                continue
            uid = vmi["metadata"]["uid"]
            guest = self.actors.get(uid)
            if kind == "DELETED":
                self.crew.start(f"vmi {vmi['metadata']['name']} gone", self._gone(uid, guest))
            elif guest is None:
                self.actors.add(uid, Guest(self, vmi))
            else:
                guest.vmi = vmi
                self.actors.wake(uid)

    async def _gone(self, uid: str, guest: Guest | None) -> None:
        if guest:
            self.actors.discard(uid)
            guest.close()
            await guest.machine.kill()
            shutil.rmtree(guest.directory, ignore_errors=True)
        self.pool.free(uid)
        self.on_change(uid)

    def _sweep(self) -> None:
        """End guests whose VMI vanished while nobody looked."""
        root = self.settings.guests
        for folder in root.iterdir() if root.exists() else ():
            if self.actors.get(folder.name) is None:
                self.crew.start(f"sweep {folder.name}", self._end_orphan(folder))

    async def _end_orphan(self, folder: Path) -> None:
        machine = Machine(folder, self.crew, lambda: None)
        await machine.adopt()
        await machine.kill()
        shutil.rmtree(folder, ignore_errors=True)

    async def shut_down(self) -> None:
        """Power all guests off without telling anybody, so that they run again with the site."""
        self.quiet = True
        limit = self.settings.stop_seconds
        async with asyncio.TaskGroup() as group:
            for guest in self.actors:
                if guest.machine.running:
                    group.create_task(
                        guest.machine.stop(lambda guest=guest: min(limit, guest.grace())),
                        name=f"{guest.name} stop",
                    )
        for guest in self.actors:
            (guest.directory / "record.json").unlink(missing_ok=True)
