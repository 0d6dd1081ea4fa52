"""Pods as deployments: placing, superseding, retiring, reporting.

Nothing is remembered that the hub or the API server does not hold: ids are computed from the pod,
owners are in the deployments' labels. A restarted connector computes again and finds its work done.
A superseded deployment stays until its successor runs on every device, so a device is never
without its modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

from kvedge import edge, errors, iothub
from kvedge.connector import logs as module_logs
from kvedge.connector.devices import Devices
from kvedge.connector.ledger import Ledger
from kvedge.connector.packing import Packs
from kvedge.connector.superseding import Superseding
from kvedge.edge import face, packing
from kvedge.edge.legacy import legacy_config_maps
from kvedge.node.provider import Health, LogOptions, Outcome, Provider
from kvedge.node.runtime import Tasks
from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from kvedge.connector.executing import Executing
    from kvedge.connector.settings import Settings
    from kvedge.edge import Revision
    from kvedge.iothub import Hub
    from kvedge.node.provider import Reporter, Terminal, Work
    from kvedge.wire import KubeObject

__all__ = ["IotEdgeProvider"]

_log = logging.getLogger(__name__)
_STALE_POLLS = 3
"""So many polls must fail before pods say that their state is not known."""
_CONTACT_SECONDS = 20.0
_SECONDS_PER_PAGE = 6.0
_FAST_SECONDS = 2.0
"""Polling while something has changed and does not run yet."""
_EAGER_SECONDS = 20.0
_UNSETTLED_SECONDS = 180.0
_SPARE_QUERIES = 6
_MOST_DOUBLINGS = 2
_BAD_REQUEST = 400
_NODE_LOOKED_DEAD = ("DeletionByTaintManager", "DeletionByPodGC")
Workload = tuple[str, str]


class IotEdgeProvider(Provider):
    """Runs the pods of one virtual node on the devices of one hub."""

    name = "iotedge"
    service_links = False  # a device reaches no Service of the cluster

    def __init__(self, hub: Hub, settings: Settings, executing: Executing | None = None) -> None:
        """Serve one node on a hub; with `executing`, modules in our own VMs can be entered."""
        self._hub, self._settings, self._executing = hub, settings, executing
        self._ledger = Ledger(hub, settings)
        self._devices = Devices(hub)
        self._tasks = Tasks()
        self._reporter: Reporter
        self._placed: dict[str, Revision] = {}
        self._packs = Packs(self._ledger, self._devices, settings, self._moved)
        self._superseding = Superseding(
            self._ledger, self._devices, settings, self._placed, self._warn
        )
        self._arrived: dict[Workload, asyncio.Event] = {}
        self._contact = asyncio.Event()
        """The hub's deployments and devices were read once."""
        self._listed = False
        self._failures = 0
        self._refusals = 0
        """Polls in a row that the hub refused for their number."""
        self._trouble = "the hub was not reached yet"
        self._poll_now = asyncio.Event()
        self._last_list = -math.inf
        self._changed_at = 0.0

    async def start(self, reporter: Reporter) -> None:
        """Begin to read the hub."""
        self._reporter = reporter
        self._tasks.spawn(self._follow(), "hub-poll")
        self._tasks.spawn(self._packs.run(), "hub-packs")

    async def stop(self) -> None:
        """End background work; deployments stay."""
        await self._tasks.aclose()

    def workload(self, pod: KubeObject) -> Workload:
        """Return namespace and workload, which stay the same over a rolling update."""
        return pod["metadata"]["namespace"], face.workload_of(pod)

    def wants(self, pod: KubeObject) -> Sequence[tuple[str, str]]:
        """Ask for pull secrets and, for legacy pods, the connector's ConfigMaps."""
        wanted = [
            ("Secret", entry["name"])
            for entry in pod["spec"].get("imagePullSecrets") or ()
            if entry.get("name")
        ]
        notes = pod["metadata"].get("annotations") or {}
        if notes.get("isEdgeDeployment") == "true":
            wanted += [("ConfigMap", name) for name in legacy_config_maps(pod)]
        return wanted

    def health(self) -> Health:
        """Tell whether the hub answers; an outage leaves the node Ready, for devices go on."""
        reachable = self._failures == 0 and self._contact.is_set()
        condition = {
            "type": "HubReachable",
            "status": "True" if reachable else "False",
            "reason": "HubAnswers" if reachable else "HubUnreachable",
            "message": f"hub {self._hub.host}" if reachable else self._trouble,
        }
        if self._contact.is_set():
            return Health(conditions=(condition,))
        return Health(
            ready=False, reason="HubUnreachable", message=self._trouble, conditions=(condition,)
        )

    # Placing

    async def create(self, work: Work) -> Outcome:
        """Have the pod's deployment in the hub."""
        revision = edge.revision_of(self._inputs(work))
        await self._reached("place a pod")
        before = self._placed.get(work.uid)
        try:
            adopted = await self._bring(work, revision)
        except errors.RemoteError as error:
            if error.status != _BAD_REQUEST:
                raise
            raise _refused(work.pod, error) from error
        revision = self._placed[work.uid]
        if arrived := self._arrived.get(revision.workload):
            arrived.set()
        if not adopted or (before and before.id != revision.id):
            self._changed_at = asyncio.get_running_loop().time()
            self._poll_now.set()
        return Outcome(status=self._status(work.pod, revision), adopted=adopted)

    async def _bring(self, work: Work, revision: Revision) -> bool:
        """Have a revision in the hub, alone or in a pack; return whether it was there already."""
        if self._packed(work.uid, revision):
            born = work.pod["metadata"].get("creationTimestamp", "")
            return await self._packs.place(work.uid, revision, born)
        self._leave_pack(work.uid)
        adopted = await self._ledger.ensure(revision, self._wanted(work.uid))
        self._placed[work.uid] = revision
        return adopted

    def _packed(self, uid: str, revision: Revision) -> bool:
        """Tell whether a pod shares a deployment: it says so, or the hub runs out of room."""
        if revision.face.packed is not None:
            return revision.face.packed
        if revision.id in self._ledger:
            return False
        return (
            uid in self._packs
            or self._packs.holds(revision)
            or len(self._ledger) >= self._settings.pack_above
        )

    def _leave_pack(self, uid: str) -> None:
        """Give a pod that no longer shares a deployment up to its own one."""
        if uid in self._packs:
            self._packs.forget(uid)
            self._placed.pop(uid, None)

    def _moved(self, uid: str, revision: Revision) -> None:
        self._placed[uid] = revision
        self._changed_at = asyncio.get_running_loop().time()
        self._poll_now.set()

    async def update(self, work: Work) -> Outcome:
        """Bring a new revision; the old one is retired when the new one runs."""
        return await self.create(work)

    async def _reached(self, attempt: str) -> None:
        """Wait until the hub was read once."""
        if not self._contact.is_set():
            try:
                async with asyncio.timeout(_CONTACT_SECONDS):
                    await self._contact.wait()
            except TimeoutError:
                raise errors.RemoteError(
                    attempt, reason="HubUnreachable", details=self._trouble
                ) from None

    def _inputs(self, work: Work) -> edge.Inputs:
        settings = self._settings
        return edge.Inputs(
            pod=work.pod,
            env=work.env,
            config_maps={n: v for (kind, n), v in work.objects.items() if kind == "ConfigMap"},
            secrets={n: v for (kind, n), v in work.objects.items() if kind == "Secret"},
            cluster=settings.cluster,
            node=settings.node,
            default_condition=settings.default_condition,
            images=settings.images,
        )

    # Ending

    async def delete(self, pod: KubeObject) -> bool:
        """Retire the pod's deployment, unless the workload's next pod takes over."""
        uid = pod["metadata"]["uid"]
        workload = self.workload(pod)
        await self._reached("retire a deployment")
        if _evicted(pod):
            # The node looked dead to the cluster; the devices are not. The sweep decides later.
            self._placed.pop(uid, None)
            self._packs.forget(uid)
            return True
        if _controlled(pod) and not self._others(workload, uid):
            await self._successor(workload, uid)
        if not self._others(workload, uid):
            for entry in self._ledger.of_workload(workload):
                await self._ledger.retire(entry["id"])
        await self._packs.remove(uid)
        self._placed.pop(uid, None)
        self._poll_now.set()
        return True

    async def _successor(self, workload: Workload, uid: str) -> None:
        """Wait a moment for another pod of the workload, as a rolling update brings it."""
        arrived = self._arrived.setdefault(workload, asyncio.Event())
        arrived.clear()
        deadline = self._settings.handover_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while not self._others(workload, uid):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.25):
                            await arrived.wait()
        self._arrived.pop(workload, None)

    def _others(self, workload: Workload, but: str) -> list[str]:
        """Return the UIDs of the workload's other pods that are not being deleted."""
        return [uid for uid in self._reporter.siblings(workload) if uid != but]

    async def listed(self, uids: frozenset[str]) -> None:
        """Know from now on which deployments have no pod."""
        del uids
        self._listed = True
        self._poll_now.set()

    # The hub's side

    async def _follow(self) -> None:
        """Poll for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._poll_now.clear()
            try:
                await self._round()
            except errors.Throttled as error:
                self._refusals += 1
                _log.warning("hub %s: %s", self._hub.host, error)
            except errors.KvedgeError as error:
                self._failures += 1
                self._trouble = error.message
                _log.warning("hub %s: %s", self._hub.host, error)
                if self._failures == _STALE_POLLS:
                    self._report_all()
            except Exception:  # noqa: BLE001 - polling must go on whatever a hub answers
                self._failures += 1
                self._trouble = "the hub's answer was not understood"
                _log.exception("hub %s", self._hub.host)
            took = loop.time() - began
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace()):
                    # A poll that is asked for waits too while the hub refuses them.
                    await (asyncio.Event() if self._refusals else self._poll_now).wait()
            # Several pods in a row share one poll, and polling takes a third of the time at most.
            rest = 3 * took if not self._failures else min(3 * took, self.poll_interval())
            gap = max(min(1.0, self._settings.poll_seconds), rest)
            await asyncio.sleep(max(0.0, began + gap - loop.time()))

    def _pace(self) -> float:
        """Return the seconds to the next poll: soon after a change, else the usual ones.

        Soon means a few seconds while a device that is there works on it. While there is none, as
        often as half of the quota allows, which leaves the budget for when it comes.
        """
        usual = self.poll_interval()
        if self._refusals:
            # A poll begins at its first page again, so there must be room for all of them.
            return usual * 2 ** min(self._refusals, _MOST_DOUBLINGS)
        since = asyncio.get_running_loop().time() - self._changed_at
        awaited = [placed for uid, placed in self._placed.items() if not self._runs(uid)]
        if since >= _UNSETTLED_SECONDS or not awaited:
            return usual
        room = self._hub.budget.left("query") >= 2 * self._devices.pages + _SPARE_QUERIES
        working = since < _EAGER_SECONDS or any(
            report.connected for placed in awaited for report in self._devices.of(*placed.ids)
        )
        return min(usual, _FAST_SECONDS if room and working else self._slowest())

    def _warn(self, uid: str, reason: str, message: str) -> None:
        self._reporter.event(uid, reason, message, warning=True)
        pod = self._reporter.pod(uid)
        if pod is not None and uid in self._placed:
            self._reporter.status(uid, self._status(pod, self._placed[uid]))

    def poll_interval(self) -> float:
        """Return the seconds between polls when nothing changes.

        A poll is one query per hundred devices; all polls take half of a unit's quota at most.
        """
        return max(self._settings.poll_seconds, self._slowest())

    def _slowest(self) -> float:
        """Return the seconds between polls that take half of the quota."""
        if self._hub.budget.units == iothub.UNLIMITED:
            return 0.0
        return self._devices.pages * _SECONDS_PER_PAGE / self._hub.budget.units

    async def _round(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._ledger.loaded or loop.time() - self._last_list > self._settings.list_seconds:
            await self._ledger.load()
            self._packs.load()
            self._last_list = loop.time()
        await self._devices.poll()
        recovered, self._failures, self._refusals = self._failures >= _STALE_POLLS, 0, 0
        first = not self._contact.is_set()
        self._contact.set()
        self._report_all(None if first or recovered else self._devices.changed)
        try:
            await self._sweep()
        except (errors.Conflict, errors.NotFound) as error:
            # Somebody else writes the hub's deployments, so they are read again first.
            _log.warning("hub %s: %s", self._hub.host, error)
            self._last_list = -math.inf

    def _report_all(self, changed: set[str] | None = None) -> None:
        for uid, revision in tuple(self._placed.items()):
            if changed is None or not revision.ids.isdisjoint(changed):
                pod = self._reporter.pod(uid)
                if pod is not None:
                    self._reporter.status(uid, self._status(pod, revision))

    def _status(self, pod: KubeObject, revision: Revision) -> dict[str, Any]:
        now, address = timestamp(), self._settings.address
        status = edge.pod_status(
            revision, self._devices.of(*revision.ids), pod.get("status") or {}, now,
            unknown=self._trouble if self._failures >= _STALE_POLLS else "",
            given_up=self._ledger.is_given_up(revision.id),
        )  # fmt: skip
        status |= {"hostIP": address, "podIP": address, "podIPs": [{"ip": address}]}
        return status

    async def _sweep(self) -> None:
        """Retire what is superseded, and what has had no pod for a while."""
        await self._restore()
        await self._ledger.separate()
        living: dict[Workload, list[str]] = {}
        unplaced: list[KubeObject] = []
        for pod in self._reporter.pods():
            if not pod["metadata"].get("deletionTimestamp"):
                living.setdefault(self.workload(pod), []).append(pod["metadata"]["uid"])
                if pod["metadata"]["uid"] not in self._placed:
                    unplaced.append(pod)
        await self._superseding.sweep(living, listed=self._listed, awaited=self._arrived.keys())
        await self._packs.sweep(lambda: packing.names_of(unplaced), listed=self._listed)

    async def _restore(self) -> None:
        """Make deployments again that somebody else took out of the hub."""
        for uid, revision in tuple(self._placed.items()):
            if uid not in self._packs and revision.id not in self._ledger:
                self._reporter.event(
                    uid, "DeploymentLost", f"{revision.id} was removed from the hub", warning=True
                )
                await self._ledger.ensure(revision, self._wanted(uid))

    def _wanted(self, but: str) -> set[str]:
        return {placed.id for uid, placed in self._placed.items() if uid != but}

    def _runs(self, uid: str) -> bool:
        """Tell whether a pod's own revision runs on every device that it targets."""
        revision = self._placed.get(uid)
        if revision is None:
            return False
        return edge.runs_everywhere(revision, self._devices.of(*revision.ids))

    # Looking in

    def logs(self, pod: KubeObject, container: str, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield a module's log from all devices that the pod targets."""
        revision, module = self._module(pod, container)
        devices = [report.device for report in self._devices.of(*revision.ids)]
        return module_logs.stream(self._hub, devices, module, options)

    async def execute(
        self, pod: KubeObject, container: str, command: Sequence[str], terminal: Terminal
    ) -> int:
        """Run a command in a module on the first device, by name, that runs it.

        Raises:
            KvedgeError: no device can be entered; the message says why.
        """
        revision, module = self._module(pod, container)
        if self._executing is None:
            raise errors.Unsupported(
                "exec", "the connector has no ssh key; set KVEDGE_EXEC_KEY_FILE or use kvedge ssh"
            )
        reports = self._devices.of(*revision.ids)
        running = [report.device for report in reports if module in report.modules]
        if not running:
            raise errors.Unsupported("exec", f"no device runs module {module!r}")
        if len(reports) > 1:
            words = f"device {running[0]}, one of {len(reports)}\n".encode()
            await (terminal.write(words) if terminal.tty else terminal.write_error(words))
        return await self._executing.run(self._hub, running[0], module, command, terminal)

    def _module(self, pod: KubeObject, container: str) -> tuple[Revision, str]:
        revision = self._placed.get(pod["metadata"]["uid"])
        if revision is None or container not in revision.modules:
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            raise errors.NotFound(
                f"look into {name!r}", status=404,
                details=f"container {container!r} is on no device",
            )  # fmt: skip
        return revision, revision.modules[container]


def _refused(pod: KubeObject, error: errors.RemoteError) -> errors.SpecError:
    """Return what a pod is told whose deployment the hub does not understand."""
    metadata = pod["metadata"]
    notes = metadata.get("annotations") or {}
    key = next((key for key in face.TARGET_KEYS if key in notes), face.TARGET_KEYS[0])
    problem = errors.Problem(
        path=f"metadata.annotations[{key}]",
        message=f"the hub refuses it: {error.details or error.reason}",
        hint="conditions are about deviceId, tags and properties.reported",
    )
    subject = f"cannot place pod '{metadata['namespace']}/{metadata['name']}'"
    return errors.SpecError(subject, [problem])


def _controlled(pod: KubeObject) -> bool:
    return any(o.get("controller") for o in pod["metadata"].get("ownerReferences") or ())


def _evicted(pod: KubeObject) -> bool:
    """Tell whether the cluster removes the pod because the node looked dead to it."""
    return any(
        entry["type"] == "DisruptionTarget" and entry.get("reason") in _NODE_LOOKED_DEAD
        for entry in (pod.get("status") or {}).get("conditions") or ()
    )
