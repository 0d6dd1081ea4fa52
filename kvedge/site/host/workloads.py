"""Pods of kvedge's own image as local processes.

Any other image is refused: there is no container runtime. A process has its pod's arguments,
environment, token, files and address; of its isolation only the mounts are its own. Resources,
security contexts, DNS settings and images' contents have no effect here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kvedge import errors, names, processes
from kvedge.site.host.detached import Detached
from kvedge.site.host.podcontent import VOLUME_KINDS, PodContent, expand, write_files
from kvedge.site.host.podstatus import conditions, container
from kvedge.site.host.probes import parse_probe, watch_probe
from kvedge.site.host.running import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kvedge import kube
    from kvedge.site.host.addresses import AddressPool
    from kvedge.site.host.podstatus import PodWriter
    from kvedge.site.host.running import Crew
    from kvedge.site.host.settings import HostSettings

__all__ = ["Workload", "Workloads", "repository"]

_LOG = logging.getLogger("kvedge.site.host")
_REFRESH_SECONDS = 30.0
_RETRY_SECONDS = 2.0
_FIRST_BACK_OFF, _LONGEST_BACK_OFF, _STEADY_SECONDS = 10.0, 300.0, 600.0
_STOP_SECONDS = 5.0
_INHERITED = ("PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV", "KVEDGE_SITE_FOLDER")
_ROOTS = ("/run", "/var/run")


def repository(image: str) -> str:
    """Return an image reference without tag and digest."""
    name = image.split("@")[0]
    head, slash, tail = name.rpartition("/")
    return head + slash + tail.split(":")[0]


def _problems(pod: Mapping[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    for field in ("initContainers", "hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"spec.{field}: not done for local processes"
    volumes: Sequence[Mapping[str, Any]] = spec.get("volumes") or ()
    for number, volume in enumerate(volumes):
        kind = next((key for key in volume if key != "name"), "none")
        if kind not in VOLUME_KINDS:
            yield f"spec.volumes[{number}].{kind}: only {', '.join(VOLUME_KINDS)}"
    for number, item in enumerate(spec["containers"]):
        path = f"spec.containers[{number}]"
        if not f"/{repository(item['image'])}".endswith(f"/{names.CONNECTOR_IMAGE_NAME}"):
            yield (
                f"{path}.image: this node runs no containers, only {names.CONNECTOR_IMAGE_NAME} "
                "as a local process"
            )
        if (item.get("command") or ["kvedge"]) != ["kvedge"]:
            yield f"{path}.command: only kvedge"
        if item.get("lifecycle"):
            yield f"{path}.lifecycle: no hooks"
        for mount in item.get("volumeMounts") or ():
            target = PurePosixPath(mount["mountPath"])
            if ".." in target.parts or not any(
                target.is_relative_to(root) and str(target) != root for root in _ROOTS
            ):
                yield f"{path}.volumeMounts {mount['mountPath']!r}: only below /run or /var/run"
            if mount.get("subPathExpr"):
                yield f"{path}.volumeMounts {mount['mountPath']!r}: no subPathExpr"


@dataclasses.dataclass(slots=True, kw_only=True)
class _Run:
    """One container: its process of this moment and what came before."""

    spec: Mapping[str, Any]
    process: Detached | None = None
    restarts: int = 0
    begun: str = ""
    begun_at: float = 0.0
    ended: dict[str, Any] | None = None
    """Terminated state of the last process."""
    wait_until: float = 0.0
    back_off: float = 0.0
    ready: bool = False
    tasks: list[asyncio.Task[None]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, kw_only=True)
class _ProcessTarget:
    """A local process as probes see it."""

    address: str
    ports: Mapping[str, int]
    pid: int

    async def run(self, argv: Sequence[str], seconds: float) -> bool:
        del seconds
        done = await processes.arun(
            ["nsenter", "-t", str(self.pid), "-m", "--", *argv], what="exec probe", check=False
        )
        return done.returncode == 0

    async def ping(self, seconds: float) -> bool:
        del seconds
        raise errors.SiteError("a local process has no guest agent")


class Workload:
    """The actor of one local-process pod."""

    def __init__(self, workloads: Workloads, pod: dict[str, Any], wake: Callable[[], None]) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.name = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self.directory = workloads.settings.pods / self.uid
        self.runs = {item["name"]: _Run(spec=item) for item in pod["spec"]["containers"]}
        self._workloads = workloads
        self._wake = wake
        self._content: PodContent | None = None
        self._adopted = False
        self._told = ""

    def log(self, name: str, restarts: int) -> Path:
        """Return the log file of one life of a container."""
        return self.directory / "logs" / f"{name}-{restarts}.log"

    async def step(self) -> float | None:
        """Do what the pod and its processes ask for."""
        if self._workloads.quiet:
            return None
        if not self._adopted:
            self._adopt()
        if self.pod["metadata"].get("deletionTimestamp"):
            grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
            await self.stop(30.0 if grace is None else float(grace))
            await self._finish()
            await self._workloads.writer.remove(self.pod)
            return None
        if (self.pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return None
        try:
            await self._fill_volumes()
            for run in self.runs.values():
                await self._keep(run)
        except (errors.SiteError, errors.RemoteError) as error:
            if any(run.process for run in self.runs.values()):
                _LOG.warning("%s: %s", self.name, error)
            else:
                await self._wait(error.message)
            return _RETRY_SECONDS
        return await self._tell()

    # Processes

    async def _keep(self, run: _Run) -> None:
        if run.process is not None and run.process.alive:
            return
        policy = self.pod["spec"].get("restartPolicy") or "Always"
        if run.ended is not None and (
            policy == "Never" or (policy == "OnFailure" and run.ended["exitCode"] == 0)
        ):
            return
        if asyncio.get_running_loop().time() < run.wait_until:
            return
        assert self._content is not None
        address = self._workloads.pool.take(self.uid)
        own = await self._content.environment(run.spec)
        environment = {
            **{key: os.environ[key] for key in _INHERITED if key in os.environ},
            "HOSTNAME": self.pod["metadata"]["name"],
            "KUBERNETES_SERVICE_HOST": names.API_ADDRESS,
            "KUBERNETES_SERVICE_PORT": "6443",
            "KUBERNETES_SERVICE_PORT_HTTPS": "6443",
            **own,
        }
        plan = {
            "mounts": [*self._mounts(run.spec), *self._hosts()],
            "folder": "/",
            "argv": [
                sys.executable, "-m", "kvedge",
                *(expand(word, environment) for word in run.spec.get("args") or ()),
            ],
        }  # fmt: skip
        file = self.directory / f"{run.spec['name']}.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        log = self.log(run.spec["name"], run.restarts)
        log.parent.mkdir(parents=True, exist_ok=True)
        run.process = Detached.start(
            ["unshare", "-m", "--propagation", "private", "--",
             sys.executable, "-m", "kvedge.site.host.entering", str(file)],
            log=log, env=environment, clean_env=True,
        )  # fmt: skip
        _LOG.info(
            "%s: %s is process %s at %s", self.name, run.spec["name"], run.process.pid, address
        )
        run.begun, run.begun_at = timestamp(), asyncio.get_running_loop().time()
        self._save()
        self._follow(run, was_ready=False)

    def _follow(self, run: _Run, *, was_ready: bool) -> None:
        start = self._workloads.crew.start
        name = f"{self.name} {run.spec['name']}"
        readiness = parse_probe(run.spec.get("readinessProbe"))
        liveness = parse_probe(run.spec.get("livenessProbe"))
        assert run.process is not None
        target = _ProcessTarget(
            address=self._workloads.pool.take(self.uid),
            ports={
                port["name"]: port["containerPort"]
                for port in run.spec.get("ports") or ()
                if port.get("name")
            },
            pid=run.process.pid,
        )
        run.ready = was_ready or readiness is None

        def ready(good: bool) -> None:
            run.ready = good
            self._wake()

        def alive(good: bool) -> None:
            if not good and run.process:
                _LOG.warning("%s: liveness probe failed", name)
                run.process.send(signal.SIGTERM)

        run.tasks = [start(f"{name} end", self._await_end(run, run.process))]
        if readiness:
            run.tasks.append(
                start(f"{name} readiness", watch_probe(readiness, target, ready, good=was_ready))
            )
        if liveness:
            run.tasks.append(
                start(f"{name} liveness", watch_probe(liveness, target, alive, good=True))
            )

    async def _await_end(self, run: _Run, process: Detached) -> None:
        code = await process.wait()
        for task in run.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        now = asyncio.get_running_loop().time()
        if now - run.begun_at > _STEADY_SECONDS:
            run.back_off = 0.0
        # Another process's child tells no code; the kubelet says 255 when it does not know.
        number = 255 if code is None else code if code >= 0 else 128 - code
        run.ended = {
            "exitCode": number,
            "reason": "Completed" if number == 0 else "Error",
            "startedAt": run.begun or timestamp(),
            "finishedAt": timestamp(),
        }
        run.process, run.ready = None, False
        run.restarts += 1
        run.wait_until = now + run.back_off
        run.back_off = min(max(run.back_off * 2, _FIRST_BACK_OFF), _LONGEST_BACK_OFF)
        _LOG.info("%s: %s ended with %s", self.name, run.spec["name"], number)
        self._save()
        self._wake()

    async def stop(self, grace: float) -> None:
        """End all processes: SIGTERM, then SIGKILL when the grace time is over."""
        living = [run.process for run in self.runs.values() if run.process]
        for process in living:
            process.send(signal.SIGTERM)
        for process in living:
            try:
                async with asyncio.timeout(max(grace, 0.1)):
                    await process.wait()
            except TimeoutError:
                process.send(signal.SIGKILL)
                await process.wait()

    # Memory over restarts of the host

    def _save(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = {
            name: {
                **(run.process.record() if run.process else {}),
                "restarts": run.restarts,
                "begun": run.begun,
                "ended": run.ended,
            }
            for name, run in self.runs.items()
        }
        fresh = self.directory / "record.new"
        fresh.write_text(json.dumps(record), encoding="utf-8")
        fresh.replace(self.directory / "record.json")

    def _adopt(self) -> None:
        self._adopted = True
        try:
            record = json.loads((self.directory / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        for name, run in self.runs.items():
            kept = record.get(name) or {}
            run.restarts, run.begun = kept.get("restarts", 0), kept.get("begun", "")
            run.ended = kept.get("ended")
            run.process = Detached.adopt(kept)
            if run.process:
                _LOG.info("%s: adopted process %s", self.name, run.process.pid)
                self._follow(run, was_ready=True)
            elif kept.get("pid"):
                run.restarts += 1

    # Volumes

    async def _fill_volumes(self) -> None:
        address = self._workloads.pool.take(self.uid)
        if self._content is None:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._content = PodContent(
                self._workloads.kube,
                self.pod,
                address=address,
                host=self._workloads.settings.address,
            )
        for volume in self.pod["spec"].get("volumes") or ():
            folder = self.directory / "volumes" / volume["name"]
            files = await self._content.files(volume)
            if files is None:
                folder.mkdir(parents=True, exist_ok=True)
            else:
                write_files(folder, files)

    def _mounts(self, spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        kinds = {
            volume["name"]: next(key for key in volume if key != "name")
            for volume in self.pod["spec"].get("volumes") or ()
        }
        for mount in spec.get("volumeMounts") or ():
            source = self.directory / "volumes" / mount["name"] / (mount.get("subPath") or "")
            if kinds[mount["name"]] == "emptyDir":
                source.mkdir(parents=True, exist_ok=True)
            yield {
                "source": str(source),
                "target": mount["mountPath"],
                "read_only": bool(mount.get("readOnly")) or kinds[mount["name"]] != "emptyDir",
            }

    def _hosts(self) -> Iterator[dict[str, Any]]:
        """Bind an /etc/hosts of the pod's own when it names aliases."""
        aliases = self.pod["spec"].get("hostAliases")
        if not aliases:
            return
        lines = [f"{item['ip']} {' '.join(item.get('hostnames') or ())}\n" for item in aliases]
        file = self.directory / "hosts"
        # The first match wins, so the pod's own names come before the site's.
        file.write_text("".join(lines) + Path("/etc/hosts").read_text(encoding="utf-8"))
        yield {"source": str(file), "target": "/etc/hosts", "read_only": True}

    # Status

    async def _wait(self, message: str) -> None:
        if self._told != message:
            self._told = message
            await self._workloads.writer.waiting(self.pod, "ContainerCreating", message)
            await self._workloads.writer.event(self.pod, "FailedMount", message)

    async def _tell(self) -> float | None:
        policy = self.pod["spec"].get("restartPolicy") or "Always"
        pauses = [_REFRESH_SECONDS]
        now = asyncio.get_running_loop().time()
        statuses, over = [], []
        for name, run in self.runs.items():
            state: dict[str, Any]
            if run.process:
                state = {"running": {"startedAt": run.begun}}
            elif run.ended and (
                policy == "Never" or (policy == "OnFailure" and run.ended["exitCode"] == 0)
            ):
                state = {"terminated": run.ended}
                over.append(run.ended["exitCode"])
            else:
                pauses.append(max(run.wait_until - now, 0.1))
                state = {
                    "waiting": {
                        "reason": "CrashLoopBackOff",
                        "message": f"back-off {run.wait_until - now:.0f}s restarting {name}",
                    }
                }
            shown = container(run.spec, state, ready=run.ready, restarts=run.restarts)
            shown["containerID"] = f"kvedge://{self.uid}/{name}/{run.restarts}"
            if run.ended and "terminated" not in state:
                shown["lastState"] = {"terminated": run.ended}
            statuses.append(shown)
        if len(over) == len(self.runs):
            await self._finish()
            return None
        await self._write(statuses)
        return min(pauses)

    async def _write(self, statuses: list[dict[str, Any]]) -> None:
        address = self._workloads.pool.take(self.uid)
        status = self.pod.get("status") or {}
        wanted = {
            "phase": "Running",
            "hostIP": self._workloads.settings.address,
            "hostIPs": [{"ip": self._workloads.settings.address}],
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": status.get("startTime") or timestamp(),
            "containerStatuses": statuses,
            "conditions": conditions(
                self.pod,
                initialized=True,
                containers_ready=all(item["ready"] for item in statuses),
                reason="ContainersNotReady",
            ),
        }
        told = json.dumps(
            [
                [item["name"], item["ready"], item["restartCount"], sorted(item["state"])]
                for item in statuses
            ]
            + [[item["type"], item["status"]] for item in wanted["conditions"]]
            + [status.get("phase") == "Running" and status.get("podIP") == address]
        )
        if told != self._told or status.get("phase") != "Running":
            self._told = told
            await self._workloads.writer.write(self.pod, wanted)

    async def _finish(self) -> None:
        codes = {name: run.ended["exitCode"] if run.ended else 0 for name, run in self.runs.items()}
        phase = "Failed" if any(codes.values()) else "Succeeded"
        await self._workloads.writer.finish(self.pod, phase, codes=codes)


class Workloads:
    """All local-process pods of this node."""

    def __init__(
        self,
        *,
        settings: HostSettings,
        kube: kube.Client,
        crew: Crew,
        writer: PodWriter,
        pool: AddressPool,
    ) -> None:
        self.settings = settings
        self.kube = kube
        self.crew = crew
        self.writer = writer
        self.pool = pool
        self.quiet = False
        self._actors: dict[str, Workload] = {}

    def refusal(self, pod: Mapping[str, Any]) -> str:
        """Return why a pod cannot run here, empty when it can."""
        return "; ".join(_problems(pod))

    def actor(self, pod: dict[str, Any], wake: Callable[[], None]) -> Workload:
        """Return the actor of a pod."""
        made = self._actors[pod["metadata"]["uid"]] = Workload(self, pod, wake)
        return made

    def find(self, namespace: str, name: str) -> Workload | None:
        """Return a pod by name."""
        for workload in self._actors.values():
            metadata = workload.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return workload
        return None

    def gone(self, workload: Workload) -> None:
        """Forget a deleted pod, ending what may still run of it."""
        self._actors.pop(workload.uid, None)
        self.crew.start(f"{workload.name} gone", self._end(workload))

    async def _end(self, workload: Workload) -> None:
        await workload.stop(0.0)
        for run in workload.runs.values():
            for task in run.tasks:
                task.cancel()
        self.pool.free(workload.uid)
        shutil.rmtree(workload.directory, ignore_errors=True)

    def sweep(self, known: set[str]) -> None:
        """End processes of pods that vanished while nobody looked."""
        root = self.settings.pods
        for folder in root.iterdir() if root.exists() else ():
            if folder.name in known:
                continue
            try:
                record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                record = {}
            for kept in record.values():
                process = Detached.adopt(kept)
                if process:
                    process.send(signal.SIGKILL)
            self.pool.free(folder.name)
            shutil.rmtree(folder, ignore_errors=True)

    async def shut_down(self) -> None:
        """End all processes without telling anybody: the site goes down."""
        self.quiet = True
        async with asyncio.TaskGroup() as group:
            for workload in self._actors.values():
                group.create_task(workload.stop(_STOP_SECONDS), name=f"{workload.name} stop")
