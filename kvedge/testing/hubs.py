"""The hub emulator for tests: a fixture `hub` with a running one, reached by the vendor's clients.

Use it with `pytest_plugins = ["kvedge.testing.hubs"]` or import `hub` and `hub_certificates`.
It runs in a thread with an event loop of its own: the device client blocks its loop while it
waits for the hub. `azure-iot-device` has port 8883 built in, so devices go through a small CONNECT
proxy, which leads `*:8883` to the hub's MQTT port and `*:443` to its HTTPS port.
Limits: one process, no real name resolution.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from kvedge import names
from kvedge.emulator import Hub, Settings, certificates, running, tokens

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping
    from email.message import Message
    from pathlib import Path

    from kvedge.wire import Configuration

__all__ = [
    "Ports",
    "RunningHub",
    "base_deployment",
    "connect_proxy",
    "hub",
    "hub_certificates",
    "running_hub",
]

_T = TypeVar("_T")


@dataclasses.dataclass(kw_only=True)
class RunningHub:
    """A hub and what a client needs to reach it."""

    emulator: Hub
    ca: Path
    """The CA that signed its certificate (PEM)."""
    host: str
    """Its own name, for devices."""
    proxy_port: int
    """The CONNECT proxy on 127.0.0.1."""
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """Address of the service side."""
        return self.emulator.url

    @property
    def endpoint(self) -> str:
        """`localhost:PORT` of the service side."""
        return f"localhost:{self.emulator.https_port}"

    @property
    def mqtt_port(self) -> int:
        """Port of the device side on 127.0.0.1."""
        return self.emulator.mqtt_port

    @property
    def connection_string(self) -> str:
        """Service connection string with all rights."""
        return self.emulator.connection_string()

    def policy(self, name: str) -> str:
        """Return the connection string of a policy such as `service` or `registryRead`."""
        return self.emulator.connection_string(name)

    def token(
        self, policy: str = "iothubowner", *, resource: str = "", key: str = "", seconds: int = 600
    ) -> str:
        """Return a shared access signature of a policy, for all of the hub unless told."""
        fields = dict(part.split("=", 1) for part in self.policy(policy).split(";"))
        return tokens.issue(
            resource or fields["HostName"],
            key or fields["SharedAccessKey"],
            expiry=int(time.time()) + seconds,
            policy=policy,
        )

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[int, Message, Any]:
        """Send one raw HTTPS request; returns status, headers and the body's JSON.

        Args:
            path: with `?api-version=2021-04-12` unless it has a query of its own.
            token: the Authorization header; "" sends none, None one with all rights.
            context: TLS with a client's certificate; the plain one trusts the hub's CA.
        """
        shown = self.token() if token is None else token
        connection = http.client.HTTPSConnection(
            "localhost",
            self.emulator.https_port,
            context=context or ssl.create_default_context(cafile=self.ca),
            timeout=20,
        )
        try:
            connection.request(
                method,
                path if "?" in path else f"{path}?api-version=2021-04-12",
                None if body is None else json.dumps(body),
                {**({"Authorization": shown} if shown else {}), **(headers or {})},
            )
            response = connection.getresponse()
            raw = response.read()
            return response.status, response.headers, json.loads(raw) if raw else None
        finally:
            connection.close()

    def run(self, coroutine: Coroutine[Any, Any, _T], *, seconds: float = 30) -> _T:
        """Run a coroutine in the hub's thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    def registry_manager(self, policy: str = "iothubowner") -> Any:
        """Return the vendor's IoTHubRegistryManager."""
        from azure.iot.hub import IoTHubRegistryManager

        return self.trusting(IoTHubRegistryManager.from_connection_string(self.policy(policy)))

    def configuration_manager(self, policy: str = "iothubowner") -> Any:
        """Return the vendor's IoTHubConfigurationManager."""
        from azure.iot.hub import IoTHubConfigurationManager

        return self.trusting(IoTHubConfigurationManager.from_connection_string(self.policy(policy)))

    def device_connection_string(self, device_id: str, key: str, module_id: str = "") -> str:
        """Return the connection string of a device or module."""
        module = f"ModuleId={module_id};" if module_id else ""
        return f"HostName={self.host};DeviceId={device_id};{module}SharedAccessKey={key}"

    def device_options(self, **more: Any) -> dict[str, Any]:
        """Return keyword arguments that let a vendor's device client reach this hub."""
        from azure.iot.device import ProxyOptions

        return {
            "proxy_options": ProxyOptions("HTTP", "127.0.0.1", self.proxy_port),
            "server_verification_cert": self.ca.read_text(encoding="utf-8"),
            **more,
        }

    def trusting(self, manager: Any) -> Any:
        """Let a vendor's service client trust this hub's CA."""
        manager.protocol.config.connection.verify = str(self.ca)
        return manager


def base_deployment(condition: str = "*", *, name: str = "base") -> Configuration:
    """Return a full deployment without modules, which layers of pods are laid on."""
    system = {
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "settings": {"image": "runtime", "createOptions": "{}"},
    }
    agent = {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {}},
        "systemModules": {"edgeAgent": system, "edgeHub": system},
        "modules": {},
    }
    edge_hub = {
        "schemaVersion": "1.1",
        "routes": {},
        "storeAndForwardConfiguration": {"timeToLiveSecs": 7200},
    }
    sections = {"$edgeAgent": agent, "$edgeHub": edge_hub}
    content = {module: {"properties.desired": section} for module, section in sections.items()}
    return {
        "id": name,
        "targetCondition": condition,
        "priority": 0,
        "content": {"modulesContent": content},
    }


@contextlib.contextmanager
def running_hub(
    directory: Path | None,
    made: tuple[Path, Path, Path],
    *,
    evaluation_seconds: float = 0.05,
    **settings: Any,
) -> Iterator[RunningHub]:
    """Run a hub in a thread; `made` is what `hub_certificates` yields."""
    ca, certificate, key = made
    started = threading.Event()
    outcome: list[Any] = []

    async def serve() -> None:
        stop = asyncio.Event()
        chosen = Settings(
            directory=directory,
            certificate=certificate,
            key=key,
            evaluation_seconds=evaluation_seconds,
            **settings,
        )
        async with Hub(chosen) as emulator, await connect_proxy(emulator) as proxy:
            proxy_port = proxy.sockets[0].getsockname()[1]
            loop = asyncio.get_running_loop()
            outcome.append(
                RunningHub(
                    emulator=emulator, ca=ca, host=chosen.host, proxy_port=proxy_port, loop=loop
                )
            )
            outcome.append(lambda: loop.call_soon_threadsafe(stop.set))
            started.set()
            await stop.wait()

    def body() -> None:
        try:
            running.main(serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            outcome.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=body, name="hub emulator", daemon=True)
    thread.start()
    if not started.wait(20) or isinstance(outcome[0], BaseException):
        raise RuntimeError("the hub emulator did not start") from (outcome or [None])[0]
    try:
        yield outcome[0]
    finally:
        outcome[1]()
        thread.join(20)
        failures = [item for item in outcome if isinstance(item, BaseException)]
        if failures:
            raise RuntimeError("the hub emulator failed") from failures[0]


@pytest.fixture(scope="session")
def hub_certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """CA, certificate and key of the test hubs."""
    return certificates.ensure(tmp_path_factory.mktemp("hub-pki"), [names.HUB_HOST])


@pytest.fixture
def hub(hub_certificates: tuple[Path, Path, Path]) -> Iterator[RunningHub]:
    """A hub of its own for each test, all in memory."""
    with running_hub(None, hub_certificates) as running:
        yield running


class Ports(Protocol):
    """A running hub, in this process or another one."""

    @property
    def https_port(self) -> int:
        """Where the service side listens."""
        ...

    @property
    def mqtt_port(self) -> int:
        """Where the device side listens."""
        ...


async def connect_proxy(emulator: Ports) -> asyncio.Server:
    """Start the CONNECT proxy that leads the vendor's device client to a hub's ports."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            port = emulator.mqtt_port if target.endswith(":8883") else emulator.https_port
            back, other = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_copy(reader, other), _copy(back, writer))
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, other):
                if end is not None:
                    end.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
