"""The daemon: joins agent, edge hub and their connections, and runs until it is told to stop.

Exit codes: 0 stopped, 1 failed (systemd starts it again), 153 wrong configuration or refused hub
(a restart would not help, as in the real daemon's unit).
"""

from __future__ import annotations

import collections
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import settings as configuration
from kvedge.edgesim import times
from kvedge.edgesim.agent import Agent
from kvedge.edgesim.certificates import ensure_certificates
from kvedge.edgesim.containers import OWNER, Surroundings
from kvedge.edgesim.docker import Docker, DockerError
from kvedge.edgesim.edgehub import EdgeHub
from kvedge.edgesim.identity import HubRefused, HubUnreachable, Keys, Registry
from kvedge.edgesim.keeping import Keeper
from kvedge.edgesim.reporting import RUNTIME_VERSION, agent_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvedge.edgesim.certificates import EdgeCertificates
    from kvedge.edgesim.settings import Paths, Settings

__all__ = ["Daemon", "main"]

_LOG = logging.getLogger("edgeAgent")
_NO_RESTART: Final = 153
_MQTT_PORT: Final = 8883
_LOG_LINES: Final = 2000
_SYSTEM_MODULES: Final = ("edgeAgent", "edgeHub")


class _Recent(logging.Handler):
    """Keeps the newest log lines of one of the runtime's two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: collections.deque[tuple[float, str]] = collections.deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.created, f"{self.format(record)}\n"))

    def read(
        self, *, tail: int | None, since: float | None, until: float | None
    ) -> Iterator[bytes]:
        chosen = [
            line
            for moment, line in list(self.lines)
            if moment >= (since or 0) and moment <= (until or moment)
        ]
        yield "".join(chosen if tail is None else chosen[-tail:] if tail else []).encode()


class Daemon:
    """The runtime of one device."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        """Make the runtime; `run` works until `stop`."""
        self._settings = settings
        self._paths = paths
        self._started = times.now_text()
        self._docker = Docker(settings.docker)
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys = Keys(paths.state)
        self._registry = Registry(settings)
        self._gateway = ""
        self._network_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._fatal: Exception | None = None
        self._files_lock = threading.Lock()
        self._files: EdgeCertificates | None = None
        self._registered: set[str] = set()
        self._logs = {name: _Recent() for name in _SYSTEM_MODULES}
        keeper = Keeper(paths.state)
        self._agent = Agent(
            self._docker,
            keeper=keeper,
            cool_off_unit=float(settings.agent_env.get("CoolOffTimeUnitInSeconds", "10")),
            surroundings=self._surroundings,
            module_key=self._keys.module,
            register=self._register,
        )
        self._edge_hub = EdgeHub(
            settings,
            paths.state,
            keeper,
            address=self._listen_address,
            certificates=self._certificates,
            known=self._module_names_wanted,
            module_key=self._keys.module,
            register=self._register_again,
            report=lambda document: self._hub_link.report(document),
            on_listening=self._wake.set,
        )
        self._agent_link: Any = None
        self._hub_link: Any = None

    def stop(self, *_: object) -> None:
        """End `run` soon."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> int:
        """Work until stopped and return the exit code."""
        from kvedge.edgesim.management import Management, ManagementServer
        from kvedge.edgesim.methods import AgentMethods

        self._collect_logs()
        _LOG.info(
            "kvedge stand-in runtime %s for device %s at hub %s",
            RUNTIME_VERSION["version"], self._settings.device_id, self._settings.hub,
        )  # fmt: skip
        methods = AgentMethods(
            modules=self._module_names, read_logs=self._read_logs, restart=self._agent.restart
        )
        self._connect(methods)
        management = ManagementServer(
            self._paths.management,
            Management(
                modules=self._list,
                read_logs=self._read_logs,
                restart=self._agent.restart,
                status=self._status,
            ),
        )
        management.start()
        self._edge_hub.start()
        threading.Thread(target=self._watch_engine, name="engine-events", daemon=True).start()
        try:
            self._loop()
        finally:
            management.close()
            for link in (self._agent_link, self._hub_link):
                link.stop()
            self._edge_hub.close()
        if self._fatal is not None:
            _LOG.error("%s", self._fatal)
            return _NO_RESTART
        return 0

    def _connect(self, methods: Any) -> None:
        from kvedge.edgesim.connecting import ModuleConnection

        def prepare(module: str) -> str:
            key = self._keys.module(module)
            self._registry.ensure_module(module, key)
            return key

        self._agent_link = ModuleConnection(
            self._settings,
            "$edgeAgent",
            prepare=lambda: prepare("$edgeAgent"),
            on_desired=self._desired_changed,
            on_method=methods.call,
            on_fatal=self._refused,
        )
        self._hub_link = ModuleConnection(
            self._settings,
            "$edgeHub",
            prepare=lambda: prepare("$edgeHub"),
            on_desired=self._edge_hub.follow,
            on_fatal=self._refused,
        )
        self._agent_link.start()
        self._hub_link.start()

    def _loop(self) -> None:
        """Step the agent whenever something changed, and report what came of it."""
        while not self._stopping.is_set():
            wait = self._agent.step()
            self._report()
            self._wake.wait(wait)
            self._wake.clear()

    def _report(self) -> None:
        snapshot = self._agent.snapshot
        if self._agent.desired is None:
            return
        self._agent_link.report(
            agent_report(
                snapshot,
                started=self._started,
                hub_status=self._edge_hub.runtime_status,
                agent_image=self._settings.agent_image,
            )
        )

    def _desired_changed(self, desired: dict[str, Any]) -> None:
        self._agent.follow(desired)
        self._wake.set()

    def _refused(self, error: Exception) -> None:
        self._fatal = error
        self.stop()

    def _watch_engine(self) -> None:
        """Wake the agent when a container starts or ends."""
        while not self._stopping.is_set():
            try:
                for event in self._docker.events(OWNER):
                    if event.get("Action") in {"die", "start", "destroy", "oom", "stop"}:
                        self._wake.set()
            except DockerError as error:
                _LOG.warning("the container engine gives no events: %s", error)
            self._stopping.wait(3)
            self._wake.set()

    def _register(self, module: str) -> None:
        """Make a module known to the hub; while the hub is away a known module goes on."""
        if module in self._registered:
            return
        try:
            self._registry.ensure_module(module, self._keys.module(module))
        except HubUnreachable as error:
            _LOG.warning("%s", error)
        except HubRefused as error:
            self._refused(error)
        else:
            self._registered.add(module)

    def _register_again(self, module: str) -> None:
        self._registered.discard(module)
        self._registry.ensure_module(module, self._keys.module(module))

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            hub=self._settings.hub,
            device_id=self._settings.device_id,
            hostname=self._settings.hostname,
            gateway=self._network_gateway(),
            network=self._settings.network,
            # The file must exist before a container is made: the engine puts a folder in its place.
            ca_file=str(self._certificates().bundle),
        )

    def _certificates(self) -> EdgeCertificates:
        """Return the edge hub's certificates, made at the first call."""
        with self._files_lock:
            if self._files is None:
                self._files = ensure_certificates(
                    self._paths.state,
                    hostname=self._settings.hostname,
                    trust_bundle=self._settings.trust_bundle,
                )
            return self._files

    def _listen_address(self) -> tuple[str, int]:
        """Return the modules' gateway, or all addresses when the deployment publishes the port."""
        deployment = self._agent.snapshot.deployment
        host = (deployment.hub.create.get("HostConfig") or {}) if deployment else {}
        published = f"{_MQTT_PORT}/tcp" in (host.get("PortBindings") or {})
        return ("0.0.0.0" if published else self._network_gateway()), _MQTT_PORT

    def _network_gateway(self) -> str:
        with self._network_lock:
            if not self._gateway:
                self._gateway = self._docker.ensure_network(self._settings.network)
            return self._gateway

    def _module_names_wanted(self) -> set[str]:
        deployment = self._agent.snapshot.deployment
        return {spec.name for spec in deployment.modules} if deployment else set()

    def _module_names(self) -> list[str]:
        return [*_SYSTEM_MODULES, *sorted(self._agent.snapshot.states)]

    def _read_logs(
        self,
        name: str,
        *,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        follow: bool = False,
    ) -> Iterable[bytes]:
        if name in self._logs:
            return self._logs[name].read(tail=tail, since=since, until=until)
        if name not in self._agent.snapshot.states:
            raise LookupError(f"Module {name} not found")
        return self._docker.logs(name, tail=tail, since=since, until=until, follow=follow)

    def _list(self) -> list[dict[str, Any]]:
        """Return the modules in the management API's form."""
        snapshot = self._agent.snapshot
        deployment = snapshot.deployment
        images = {
            "edgeAgent": deployment.agent.image if deployment else self._settings.agent_image,
            "edgeHub": deployment.hub.image if deployment else "",
        }
        hub = self._edge_hub.runtime_status
        listed = [
            _entry(name, images[name], status, started=self._started)
            for name, status in (("edgeAgent", "running"), ("edgeHub", hub))
            if name == "edgeAgent" or deployment
        ]
        for name, state in sorted(snapshot.states.items()):
            found = state.container
            listed.append(
                _entry(
                    name,
                    found.image,
                    state.runtime_status,
                    started=found.started,
                    finished=found.finished,
                    exit_code=found.exit_code,
                )
            )
        return listed

    def _status(self) -> dict[str, Any]:
        return {
            "version": RUNTIME_VERSION["version"],
            "standIn": True,
            "hub": self._settings.hub,
            "deviceId": self._settings.device_id,
            "connected": bool(self._agent_link and self._agent_link.connected),
            "lastDesiredVersion": self._agent.snapshot.version,
            "lastDesiredStatus": self._agent.snapshot.code,
            "description": self._agent.snapshot.description,
            "waitingMessages": self._edge_hub.waiting,
        }

    def _collect_logs(self) -> None:
        formatter = logging.Formatter("<6> %(asctime)s [%(levelname)s] - %(message)s")
        formatter.converter = time.gmtime
        for name, recent in self._logs.items():
            recent.setFormatter(formatter)
            logging.getLogger(name).addHandler(recent)


def _entry(
    name: str,
    image: str,
    status: str,
    *,
    started: str,
    finished: str = times.NEVER,
    exit_code: int = 0,
) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "type": "docker",
        "config": {"settings": {"image": image}, "env": []},
        "status": {
            "startTime": started,
            "exitStatus": {"exitTime": finished, "statusCode": str(exit_code)},
            "runtimeStatus": {"status": status, "description": ""},
        },
    }


def main() -> int:
    """Run the daemon as systemd starts it."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("azure", "paho", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    path = os.environ.get("KVEDGE_EDGESIM_CONFIG") or str(configuration.APPLIED)
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        settings = configuration.parse_settings(text, default_hostname=socket.gethostname())
    except (OSError, configuration.SettingsError) as error:
        _LOG.error("%s", error)
        return _NO_RESTART
    daemon = Daemon(settings, configuration.Paths())
    signal.signal(signal.SIGTERM, daemon.stop)
    signal.signal(signal.SIGINT, daemon.stop)
    code = daemon.run()
    logging.shutdown()
    sys.stderr.flush()
    # The device client leaves threads behind that would hold the process for seconds.
    os._exit(code)
