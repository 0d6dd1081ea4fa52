"""The hub as a whole: puts the parts together, starts and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Self

from kvedge import errors, names
from kvedge.emulator import access, clientcerts, messaging, mqtt, querying, registry, rest, twins
from kvedge.emulator.configurations import Configurations
from kvedge.emulator.deploying import Engine
from kvedge.emulator.faults import JOBS_AT_ONCE, Faults, Knobs
from kvedge.emulator.jobs import Jobs
from kvedge.emulator.mqtt.sessions import Services
from kvedge.emulator.presence import Presence
from kvedge.emulator.provisioning import Provisioning
from kvedge.emulator.rest.enrolling import EnrollingHandlers
from kvedge.emulator.rest.handlers import Handlers
from kvedge.emulator.rest.own import OwnHandlers
from kvedge.emulator.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

__all__ = ["Hub", "Settings"]

_LOG = logging.getLogger(__name__)
_JOBS_AT_ONCE = 10
"""Of a hub without a tier."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a hub is run."""

    directory: Path | None
    """Where the store is; None keeps all in memory."""
    connections: Path | None = None
    """Where the files with connection strings go; None writes none."""
    certificate: Path
    key: Path
    https: tuple[str, int] = ("127.0.0.1", 0)
    """Address and port of the service side; port 0 takes a free one."""
    mqtt: tuple[str, int] = ("127.0.0.1", 0)
    host: str = names.HUB_HOST
    """The hub's own name, in tokens and in MQTT user names."""
    aliases: tuple[str, ...] = ()
    """More names by which clients know it, such as `localhost:40002`."""
    evaluation_seconds: float = 0.2
    """At most so often deployments are evaluated; the service takes 300."""
    patience_seconds: float = 15.0
    """How long a client may take for its TLS handshake, its MQTT CONNECT or a request's body.

    An HTTPS connection may be idle, or be sending its headers, five times as long.
    """
    knobs: Knobs = dataclasses.field(default_factory=Knobs)
    """Throttles, lag and failures; none unless told."""
    deployments: int = 100
    """Most edge deployments, and most other configurations; a free hub has 10."""


class Hub:
    """A running hub; an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self.https_port = 0
        """Where the service side listens."""
        self.mqtt_port = 0
        """Where the device side listens."""

    async def __aenter__(self) -> Self:
        """Start; raises KvedgeError when a port is in use or the store cannot be opened."""
        async with self._stack:
            await self._start()
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        await self._stack.aclose()

    def turn(self, knobs: Knobs) -> None:
        """Make the hub more or less awkward; to be called in its own event loop."""
        self._faults.turn(knobs)

    @property
    def url(self) -> str:
        """Return the address of the service side."""
        return f"https://localhost:{self.https_port}"

    @property
    def evaluations(self) -> int:
        """Return how often deployments were evaluated."""
        return self._engine.evaluations

    def connection_string(self, policy: str = "iothubowner", *, host: str = "") -> str:
        """Return a service connection string, for clients on this machine unless told."""
        return self._access.connection_string(host or f"localhost:{self.https_port}", policy)

    async def _start(self) -> None:
        settings = self._settings
        path = None
        if settings.directory is not None:
            settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = settings.directory / "hub.db"
            path.touch(mode=0o600)
        store = Store(path)
        self._stack.callback(store.close)
        authorities = clientcerts.Authorities(store)
        self._access = access.Access(store, (settings.host, *settings.aliases), authorities)
        presence = Presence(lambda device_id: self._engine.device_changed(device_id))
        known_twins = twins.Twins(store, presence)
        self._faults = Faults(settings.knobs, presence.drop_all)
        self._stack.callback(self._faults.stop)
        queries = querying.Queries(store, presence, lambda: self._faults.knobs.query_lag_seconds)
        self._engine = Engine(
            store, presence, known_twins, queries, seconds=settings.evaluation_seconds
        )
        identities = registry.Registry(store, presence)
        jobs = Jobs(
            store, presence, known_twins, queries,
            lambda: JOBS_AT_ONCE.get(self._faults.knobs.tier, _JOBS_AT_ONCE),
        )  # fmt: skip
        queries.job_rows = jobs.device_rows
        provisioning = Provisioning(store, identities, known_twins, authorities, settings.host)
        tls = _tls(
            settings,
            lambda chain: self._access.vouches_for(chain) or provisioning.vouches_for(chain),
        )
        telemetry = messaging.Telemetry(store)
        commands = messaging.Commands(store, presence)
        handlers = (
            Handlers(
                store=store,
                presence=presence,
                registry=identities,
                twins=known_twins,
                queries=queries,
                known_configurations=Configurations(
                    store, self._engine.configurations_changed, limit=settings.deployments
                ),
                engine=self._engine,
                commands=commands,
                faults=self._faults,
                jobs=jobs,
            ),
            EnrollingHandlers(provisioning, tls.chain_of),
            OwnHandlers(
                store=store,
                presence=presence,
                registry=identities,
                engine=self._engine,
                telemetry=telemetry,
                commands=commands,
                knobs=self._faults,
                provisioning=provisioning,
                authorities=authorities,
            ),
        )
        services = Services(
            store=store,
            access=self._access,
            presence=presence,
            twins=known_twins,
            telemetry=telemetry,
            commands=commands,
            provisioning=provisioning,
            takes_connection=lambda: self._faults.take("Connection"),
        )
        devices = mqtt.MqttServer(services, tls, settings.patience_seconds)
        https = rest.HttpsServer(
            handlers,
            self._access,
            store,
            tls,
            self._faults.admit,
            devices.serve_socket,
            settings.patience_seconds,
        )
        self._stack.push_async_callback(https.stop)
        self.https_port = await _listening(https.start, settings.https)
        self._stack.push_async_callback(devices.stop)
        self.mqtt_port = await _listening(devices.start, settings.mqtt)
        for name in ("localhost", "127.0.0.1"):
            self._access.answer_to(f"{name}:{self.https_port}")
        if settings.connections is not None:
            self._write_connections(settings.connections)
        await self._run(jobs)
        _LOG.info("hub listens: https %s, mqtt %s", self.https_port, self.mqtt_port)

    async def _run(self, jobs: Jobs) -> None:
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        for name, running in (("deployments", self._engine.run()), ("jobs", jobs.run())):
            task = group.create_task(running, name=f"hub: {name}")
            self._stack.callback(task.cancel)

    def _write_connections(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        outside = (
            self._settings.aliases[0] if self._settings.aliases else f"localhost:{self.https_port}"
        )
        for name, host in (
            ("service.connection", outside),
            ("inside.connection", self._settings.host),
        ):
            _write_secret(directory / name, self._access.connection_string(host))


def _tls(settings: Settings, vouched: Callable[[clientcerts.Chain], bool]) -> clientcerts.ServerTls:
    try:
        return clientcerts.ServerTls(settings.certificate, settings.key, vouched)
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot use the hub's certificate {str(settings.certificate)!r}: {cause}",
            hint="give a PEM certificate and its key with --cert and --key",
        ) from cause


async def _listening(start, place: tuple[str, int]) -> int:  # noqa: ANN001 - a bound method
    try:
        return await start(*place)
    except OSError as cause:
        raise errors.KvedgeError(
            f"the hub cannot listen on {place[0]}:{place[1]}: {cause.strerror or cause}",
            hint="stop what listens there, or give another port (0 takes a free one)",
        ) from cause


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)
