"""The edge agent: makes the VM's containers equal to the deployment and keeps them so.

One thread calls `step` whenever something may have changed. A step looks at the engine afresh, so
it does not matter which events were missed. The last deployment is kept on disk and is followed
without the hub, also after a restart.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import manifest, restarting, times
from kvedge.edgesim.containers import OWNER, Container, create_body, read_container
from kvedge.edgesim.docker import DockerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from kvedge.edgesim.containers import Surroundings
    from kvedge.edgesim.docker import Docker
    from kvedge.edgesim.keeping import Keeper
    from kvedge.edgesim.manifest import Deployment, ModuleSpec

__all__ = ["Agent", "ModuleState", "Snapshot"]

_LOG = logging.getLogger("edgeAgent")
_OK: Final = 200
_FAILED: Final = 500
_LONGEST_RETRY_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 60.0
"""The engine is looked at this often even when it tells of no event."""
_PULLS_AT_ONCE: Final = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleState:
    """A module as it is."""

    container: Container
    runtime_status: str
    restarts: int
    last_restart: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the agent has to report."""

    version: int = 0
    """Version of the desired properties that were acted on last."""
    code: int = _OK
    description: str = ""
    deployment: Deployment | None = None
    states: dict[str, ModuleState] = dataclasses.field(default_factory=dict)


class Agent:
    """Follows one deployment on one engine."""

    def __init__(
        self,
        docker: Docker,
        *,
        keeper: Keeper,
        cool_off_unit: float,
        surroundings: Callable[[], Surroundings],
        module_key: Callable[[str], str],
        register: Callable[[str], None],
    ) -> None:
        """Make an agent.

        Args:
            keeper: holds deployment and restart counts.
            cool_off_unit: seconds of the first rest before a restart.
            surroundings: asked before each container is made.
            module_key: a module's key.
            register: makes a module's identity known to the hub; may fail while it is away.
        """
        self._docker = docker
        self._keeper = keeper
        self._unit = cool_off_unit
        self._surroundings = surroundings
        self._module_key = module_key
        self._register = register
        self._lock = threading.Lock()
        self._desired: dict[str, Any] | None = keeper.recall("deployment.json", None)
        self._restarts: dict[str, dict[str, Any]] = keeper.recall("restarts.json", {})
        self._booted = times.boot_time()
        self._failures = 0
        self.snapshot = Snapshot()

    @property
    def desired(self) -> dict[str, Any] | None:
        """Return the desired properties that are followed, if any ever came."""
        return self._desired

    def follow(self, desired: dict[str, Any]) -> None:
        """Take desired properties over; the next step acts on them."""
        with self._lock:
            if desired == self._desired:
                return
            self._desired = desired
            self._failures = 0
            self._keeper.keep("deployment.json", desired)

    def step(self) -> float:
        """Bring the containers one step closer and return the seconds until the next look."""
        with self._lock:
            desired = self._desired
        if desired is None:
            return _CHECK_SECONDS
        version = int(desired.get("$version", 0))
        try:
            deployment = manifest.parse_deployment(desired)
        except manifest.DeploymentError as error:
            _LOG.warning("deployment %s: %s", version, error)
            # The modules of the deployment before stay as they are, as the real agent leaves them.
            self.snapshot = dataclasses.replace(
                self.snapshot, version=version, code=error.code, description=str(error)
            )
            return _CHECK_SECONDS
        problems: list[str] = []
        wait = _CHECK_SECONDS
        try:
            wait = min(wait, self._reconcile(deployment, problems))
        except DockerError as error:
            problems.append(str(error))
        if problems:
            self._failures += 1
            wait = min(5.0 * 2 ** min(self._failures - 1, 10), _LONGEST_RETRY_SECONDS)
            _LOG.warning("deployment %s: %s", version, "; ".join(problems))
        else:
            self._failures = 0
        self.snapshot = Snapshot(
            version=version,
            code=_FAILED if problems else _OK,
            description="; ".join(problems),
            deployment=deployment,
            states=self.snapshot.states,
        )
        return wait

    def restart(self, name: str) -> None:
        """Restart a running module at once.

        Raises:
            LookupError: it does not exist or does not run.
        """
        details = self._docker.inspect(name)
        container = read_container(details) if details else None
        if container is None:
            raise LookupError(f"Module {name} not found in the current environment")
        if container.state != "running":
            raise LookupError(f"Module {name} cannot be restarted since it is not running")
        self._docker.restart(name)

    def _reconcile(self, deployment: Deployment, problems: list[str]) -> float:
        found = {
            name: read_container(details)
            for name, details in self._docker.containers(OWNER).items()
        }
        wanted = {spec.name for spec in deployment.modules}
        for name in sorted(found.keys() - wanted):
            _LOG.info("removing module %s", name)
            self._docker.stop(name)
            self._docker.remove(name)
            self._forget(name)
        wait = _CHECK_SECONDS
        # Images of new modules come while network, certificates and identities are made.
        with ThreadPoolExecutor(max_workers=_PULLS_AT_ONCE) as pulls:
            coming = {
                spec.name: pulls.submit(self._pull, spec, deployment)
                for spec in deployment.modules
                if spec.name not in found
            }
            for spec in deployment.modules:
                try:
                    self._ensure(spec, found.get(spec.name), deployment, coming.get(spec.name))
                except Exception as error:  # noqa: BLE001 - one module's trouble is not the others'
                    problems.append(f"module {spec.name}: {error}")
        states: dict[str, ModuleState] = {}
        for spec in deployment.modules:
            details = self._docker.inspect(spec.name)
            if details:
                state, pause = self._keep_running(spec, read_container(details))
                states[spec.name] = state
                wait = min(wait, pause)
        self._keeper.keep("restarts.json", self._restarts)
        self.snapshot = dataclasses.replace(self.snapshot, states=states)
        return wait

    def _pull(self, spec: ModuleSpec, deployment: Deployment) -> None:
        if spec.pull_policy == "on-create":
            _LOG.info("pulling image %s for module %s", spec.image, spec.name)
            self._docker.pull(spec.image, _credentials(spec.image, deployment))

    def _ensure(
        self,
        spec: ModuleSpec,
        present: Container | None,
        deployment: Deployment,
        coming: Future[None] | None,
    ) -> None:
        """Make a container that fits the wish exist, without starting it.

        `coming` is the pull of a new module's image.
        """
        options = (deployment.runtime.get("settings") or {}).get("loggingOptions")
        body, digest = create_body(
            spec,
            self._surroundings(),
            key=self._module_key(spec.name),
            logging=_log_config(options),
        )
        if present is not None and present.spec_hash == digest:
            if spec.status == "stopped" and present.state == "running":
                self._docker.stop(spec.name)
            return
        self._register(spec.name)
        if coming is not None:
            coming.result()
        else:
            # The container before goes on running while the new image comes.
            self._pull(spec, deployment)
        if present is not None:
            self._docker.stop(spec.name)
            self._docker.remove(spec.name)
            self._forget(spec.name)
        _LOG.info("creating module %s", spec.name)
        self._docker.create(spec.name, body)

    def _keep_running(self, spec: ModuleSpec, container: Container) -> tuple[ModuleState, float]:
        """Start a container that should run and does not; return its state and the time to wait."""
        record = self._restarts.setdefault(spec.name, {"count": 0, "last": times.NEVER})
        finished = times.seconds(container.finished)
        if container.state == "running":
            ran = time.time() - times.seconds(container.started)
            if ran > restarting.CALM_SECONDS:
                record["count"] = 0
            record["ran"] = True
            return self._state(container, "running", record), _CHECK_SECONDS
        pause = float(record.get("retry_at", 0.0)) - time.time()
        if 0 < pause <= restarting.LONGEST_WAIT_SECONDS and container.state == "created":
            return self._state(container, "backoff", record), pause
        verdict = restarting.judge(
            spec,
            state=container.state,
            exit_code=container.exit_code,
            restarts=record["count"],
            rested=time.time() - finished,
            unit=self._unit,
        )
        if record.get("ran") and finished < self._booted and spec.status == "running":
            # It ran when the machine went down: that is no exit of its own.
            verdict = restarting.Verdict(runtime_status="stopped", start=True)
            record["ran"] = False
        elif container.state != "created":
            record["ran"] = False
        if not verdict.start:
            return (
                self._state(container, verdict.runtime_status, record),
                verdict.wait_seconds or _CHECK_SECONDS,
            )
        if verdict.runtime_status == "backoff":
            record["count"] += 1
            record["last"] = times.now_text()
        _LOG.info("starting module %s", spec.name)
        try:
            self._docker.start(spec.name)
        except DockerError as error:
            _LOG.warning("module %s did not start: %s", spec.name, error)
            record["count"] += 1
            record["last"] = times.now_text()
            pause = restarting.cool_off_seconds(record["count"], self._unit)
            record["retry_at"] = time.time() + pause
            failed = dataclasses.replace(container, exit_code=container.exit_code or 127)
            return self._state(failed, "backoff", record), pause
        started = read_container(self._docker.inspect(spec.name))
        record["ran"] = started.state == "running"
        status = "running" if record["ran"] else "backoff"
        # An exit right after the start is seen at once by a second look.
        return self._state(started, status, record), _CHECK_SECONDS if record["ran"] else 1.0

    def _state(self, container: Container, status: str, record: dict[str, Any]) -> ModuleState:
        return ModuleState(
            container=container,
            runtime_status=status,
            restarts=int(record["count"]),
            last_restart=str(record["last"]),
        )

    def _forget(self, name: str) -> None:
        self._restarts.pop(name, None)


def _credentials(image: str, deployment: Deployment) -> dict[str, str] | None:
    """Return the engine's credentials for an image's registry, if the deployment has any."""
    registry = image.partition("/")[0]
    for entry in deployment.credentials:
        address = entry["address"].removeprefix("https://").rstrip("/")
        if address in {registry, registry.partition(":")[0]}:
            return {
                "username": entry["username"],
                "password": entry["password"],
                "serveraddress": address,
            }
    return None


def _log_config(options: Any) -> dict[str, Any] | None:
    """Return the engine's LogConfig from the deployment's loggingOptions, JSON text or object."""
    if isinstance(options, str) and options.strip():
        try:
            options = json.loads(options)
        except ValueError:
            return None
    return options if isinstance(options, dict) and options.get("Type") else None
