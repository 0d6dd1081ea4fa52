"""A hub of our own, a double of the container engine, and the daemon as a process."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from kvedge.edgesim import identity
from kvedge.testing.waiting import until

_HERE = Path(__file__).parent
_COUNTER = itertools.count(os.getpid() % 200 * 100)
_HUB = """
import asyncio, sys
from pathlib import Path
from kvedge.emulator import running
folder, address, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
asyncio.run(running.run(directory=folder, ephemeral=False, https=(address, port),
    mqtt=(address, 8883), certificate=None, host=f"{address}:{port}", aliases=(address,),
    evaluation_seconds=0.2, verbose=False, ready=lambda line: print(line, flush=True)))
"""
_DAEMON = """
import logging, signal, sys, os
from pathlib import Path
from kvedge.edgesim import daemon, settings
logging.basicConfig(level=logging.INFO)
for chatty in ("azure", "paho", "urllib3"):
    logging.getLogger(chatty).setLevel(logging.CRITICAL)
folder = Path(sys.argv[1])
text = (folder / "config.toml").read_text()
paths = settings.Paths(state=folder / "state", management=folder / "mgmt.sock")
runtime = daemon.Daemon(settings.parse_settings(text, default_hostname="edge"), paths)
signal.signal(signal.SIGTERM, runtime.stop)
code = runtime.run()
os._exit(code)
"""


def _double():
    spec = importlib.util.spec_from_file_location("docker_double", _HERE / "docker_double.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hub:
    """A hub process and its service side."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address, self.port = folder, address, 44300
        self.name = f"{address}:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HUB, str(self.folder), self.address, str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "ready" in self.process.stdout.readline()
        text = (self.folder / "service.connection").read_text().strip()
        self.policy = dict(part.split("=", 1) for part in text.split(";"))
        self.ca = next(self.folder.glob("pki/*ca*.crt"), None) or next(self.folder.glob("pki/*ca*"))

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def call(self, method, path, body=None, *, etag="", api="2021-04-12"):
        token = identity.sas_token(self.policy["HostName"], self.policy["SharedAccessKey"])
        headers = {
            "Authorization": f"{token}&skn={self.policy['SharedAccessKeyName']}",
            "Content-Type": "application/json",
        }
        if etag:
            headers["If-Match"] = etag
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection(
            self.address, self.port, context=context, timeout=40
        )
        with contextlib.closing(connection):
            connection.request(
                method,
                path if "?" in path else f"{path}?api-version={api}",
                json.dumps(body) if body else None,
                headers,
            )
            answer = connection.getresponse()
            text = answer.read()
        return answer.status, json.loads(text) if text else None

    def twin(self, device, module="$edgeAgent"):
        name = urllib.parse.quote(module, safe="")
        return self.call("GET", f"/twins/{device}/modules/{name}")[1]

    def reported(self, device, module="$edgeAgent"):
        return self.twin(device, module)["properties"]["reported"]

    def events(self):
        """Return the messages that the hub has got since it started."""
        after, found = 0, []
        while True:
            answer = self.call("GET", f"/kvedge/v1/events?after={after}&limit=1000&wait=0")[1]
            found += answer["events"]
            if not answer["events"]:
                return found
            after = answer["next"]

    def invoke(self, device, module, method, payload=None):
        path = f"/twins/{device}/modules/{urllib.parse.quote(module, safe='')}/methods"
        body = {"methodName": method, "payload": payload, "responseTimeoutInSeconds": 20}
        return self.call("POST", path, body)

    def deploy(self, device, modules, *, routes=None, agent=None):
        """Apply a deployment to one device."""
        content = {
            "modulesContent": {
                "$edgeAgent": {
                    "properties.desired": {
                        "schemaVersion": "1.1",
                        "runtime": {"type": "docker", "settings": {}},
                        "systemModules": {
                            "edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}},
                            "edgeHub": {
                                "type": "docker",
                                "status": "running",
                                "restartPolicy": "always",
                                "settings": {"image": "hub:1"},
                            },
                        },
                        "modules": modules,
                        **(agent or {}),
                    }
                },
                "$edgeHub": {
                    "properties.desired": {
                        "schemaVersion": "1.1",
                        "routes": routes
                        if routes is not None
                        else {"up": "FROM /messages/* INTO $upstream"},
                        "storeAndForwardConfiguration": {"timeToLiveSecs": 7200},
                    }
                },
            }
        }
        status, answer = self.call("POST", f"/devices/{device}/applyConfigurationContent", content)
        assert status == 204, answer


class Edge:
    """One device: its folder, engine and daemon."""

    def __init__(self, hub: Hub, folder: Path, address: str) -> None:
        self.hub, self.folder, self.address = hub, folder, address
        self.device = f"edge-{next(_COUNTER)}"
        self.engine = _double().Engine(folder, gateway=address)
        self.process: subprocess.Popen | None = None
        self.key = base64.b64encode(os.urandom(32)).decode()
        symmetric = {"primaryKey": self.key, "secondaryKey": self.key}
        body = {
            "deviceId": self.device,
            "status": "enabled",
            "capabilities": {"iotEdge": True},
            "authentication": {"type": "sas", "symmetricKey": symmetric},
        }
        status, answer = hub.call("PUT", f"/devices/{self.device}", body)
        assert status == 200, answer
        self.configure()

    def configure(self, *, hub="", ca=None):
        (self.folder / "config.toml").write_text(
            f'hostname = "{self.address}"\n'
            f'trust_bundle_cert = "file://{ca or self.hub.ca}"\n'
            "[provisioning]\n"
            'source = "manual"\n'
            f'connection_string = "HostName={hub or self.hub.name};DeviceId={self.device};'
            f'SharedAccessKey={self.key}"\n'
            "[agent.env]\n"
            'CoolOffTimeUnitInSeconds = "0.3"\n'
            "[moby_runtime]\n"
            f'uri = "unix://{self.engine.path}"\n'
        )

    def start(self):
        self.log = (self.folder / "daemon.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DAEMON, str(self.folder)], stderr=self.log, stdout=self.log
        )

    def stop(self, sig=signal.SIGTERM):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(20)
        return self.process.returncode if self.process else None

    def close(self):
        self.stop(signal.SIGKILL)
        self.engine.close()

    def wait_report(self, probe, *, seconds=30.0):
        """Poll `$edgeAgent`'s reported properties until a probe of them holds."""

        def look():
            found = self.hub.reported(self.device)
            try:
                return found if probe(found) else None
            except (KeyError, TypeError):
                return None

        try:
            return until(look, "the report", seconds=seconds)
        except AssertionError as error:
            log = (self.folder / "daemon.log").read_text()[-4000:]
            found = json.dumps(self.hub.reported(self.device), indent=1)[-3000:]
            raise AssertionError(f"{error}\n{found}\n{log}") from None

    def iotedge(self, *arguments):
        """Run the iotedge program against this daemon."""
        code = "import sys; from kvedge.edgesim.commands import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, "-H", str(self.folder / "mgmt.sock"), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture(scope="session")
def addresses():
    """Loopback addresses of this test session: port 8883 is a literal in the device client."""
    base = f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 250}"
    return (f"{base}.{number}" for number in range(2, 250))


@pytest.fixture(scope="module")
def hub(tmp_path_factory, addresses):
    """A running hub."""
    found = Hub(tmp_path_factory.mktemp("hub"), next(addresses))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def edge(hub, tmp_path, addresses):
    """A device whose daemon is not started yet."""
    found = Edge(hub, tmp_path, next(addresses))
    yield found
    found.close()
