"""The connector as processes on a site's control plane, while one thing after the other breaks.

Hub, devices and connectors run beside the site; its controllers see the node as on a user's
cluster. Whatever happens, devices keep what pods ask for, and status says what is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from kvedge import iothub, processes
from kvedge.connector.ledger import workload_of
from kvedge.edge import packing
from kvedge.redact import Secret
from kvedge.site import control
from kvedge.testing.clusters import free_ports
from kvedge.testing.forwarding import way_to
from kvedge.testing.hubs import base_deployment
from kvedge.testing.sites import kubectl
from kvedge.testing.waiting import until

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
NODE = "faulty-iotedge"
OUTAGE_SECONDS = 300
CLOCK = """
import os, time

wall = time.time

def shifted():
    with open(os.environ["CLOCK_FILE"], encoding="ascii") as file:
        return wall() + float(file.read() or 0)

time.time = shifted
"""
"""A wrong clock for one process: of time.time, by which tokens for the hub are made."""


class Field:
    """A hub with two devices, and connectors on the site's API server."""

    def __init__(self, site, folder):
        self.site, self.folder = site, folder
        self.https, self.mqtt = free_ports(2)
        self.kubeconfig = Path(site.kubernetes.kubeconfig)
        self.running = []
        self.hub = self.start_hub()
        self.connection = (folder / "hub" / "service.connection").read_text().strip()
        self.authority = folder / "hub" / "pki" / "ca.crt"
        words = ["hub", "simulate", "--devices", "2", "--prefix", "faulty", "--delay", "0.2"]
        words += ["--connection-file", str(folder / "hub" / "service.connection")]
        words += ["--ca", str(self.authority), "--mqtt", f"127.0.0.1:{self.mqtt}"]
        self.start(words, folder / "devices.log")
        self.call("create_configuration", base_deployment())

    def start(self, words, log, env=None):
        """Start kvedge; it is ended with the field at the latest."""
        argv = [sys.executable, "-m", "kvedge", *words]
        child = processes.popen(argv, env=env, log=log)
        self.running.append(child)
        return child

    def start_hub(self):
        log = self.folder / f"hub-{len(self.running)}.log"
        words = ["hub", "emulate", "--dir", str(self.folder / "hub")]
        words += ["--https", f"127.0.0.1:{self.https}", "--mqtt", f"127.0.0.1:{self.mqtt}"]
        child = self.start(words, log)
        until(lambda: log.exists() and str(self.mqtt) in log.read_text(), "the hub answers")
        return child

    def connector(self, *, kubeconfig=None, env=None, elect=False, options=()):
        """Start a replica; return its process."""
        connection = self.folder / "hub" / "service.connection"
        words = ["connector", "run", "--node-name", NODE, "--hub-units", "0"]
        words += ["--kubeconfig", str(kubeconfig or self.kubeconfig), "--kubelet-port", "0"]
        words += ["--hub-connection-string-file", str(connection)]
        words += ["--hub-ca-file", str(self.authority), "--poll-seconds", "0.5"]
        words += ["--orphan-seconds", "3", "--handover-seconds", "1"]
        words += ["--leader-elect" if elect else "--no-leader-elect", *options]
        log = self.folder / f"connector-{len(self.running)}.log"
        child = self.start(words, log, env)
        child.log = log
        return child

    def call(self, method, *arguments):
        """Ask the hub as a service does."""

        async def ask():
            async with iothub.Hub.from_connection_string(
                Secret(self.connection),
                ca_file=self.authority,
                budget=iothub.Budget(iothub.UNLIMITED),
                backoff=iothub.Backoff(base_seconds=0.2, tries=3),
            ) as hub:
                return await getattr(hub, method)(*arguments)

        return asyncio.run(ask())

    def deployments(self):
        """Return etag by id of the deployments of this test's pods."""
        return {
            entry["id"]: entry["etag"]
            for entry in self.call("configurations")
            if workload_of(entry)[0] == "default" or packing.pack_of(entry)
        }

    def modules(self):
        """Return what each device reports to run: module, image and time of its start."""
        rows = self.call("query", "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'")
        return {
            row["deviceId"]: {
                name: (entry["settings"]["image"], entry["lastStartTimeUtc"])
                for name, entry in row["properties"]["reported"].get("modules", {}).items()
            }
            for row in rows
        }

    def apply(self, name, image="reg/sensor:1", **notes):
        """Have a pod on the node."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": {"kvedge.io/target-condition": "*", **notes},
            },
            "spec": {
                "nodeName": NODE,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": image}],
            },
        }
        kubectl(self.site, "apply", "-f", "-", stdin=json.dumps(body))

    def delete(self, name, *, wait=True):
        kubectl(self.site, "delete", "pod", name, f"--wait={str(wait).lower()}", "--timeout=50s")

    def pod(self, name):
        done = kubectl(self.site, "get", "pod", name, "-o", "json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def condition(self, name, kind="Ready"):
        """Return status and message of a pod's condition."""
        found = (self.pod(name) or {}).get("status", {}).get("conditions") or ()
        return next(
            ((c["status"], c.get("message", "")) for c in found if c["type"] == kind), ("", "")
        )

    def node_condition(self, kind):
        node = json.loads(kubectl(self.site, "get", "node", NODE, "-o", "json").stdout)
        return next(
            (c["status"], c.get("message", ""))
            for c in node["status"]["conditions"]
            if c["type"] == kind
        )

    def until_ready(self, *names, seconds=60):
        for name in names:
            until(lambda name=name: self.condition(name)[0] == "True", f"{name} is ready",
                  seconds=seconds)  # fmt: skip

    def end(self, child, number=signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        child.wait(30)

    def clear(self):
        """Take pods, connectors and the node away."""
        names = kubectl(
            self.site, "get", "pods", "-o", "name", f"--field-selector=spec.nodeName={NODE}"
        )
        for name in names.stdout.split():
            kubectl(self.site, "delete", name, "--grace-period=0", "--force", "--wait=false")
        for child in self.running:
            if hasattr(child, "log") and child.poll() is None:
                self.end(child, signal.SIGKILL)
        kubectl(self.site, "delete", "node", NODE, "--ignore-not-found")
        for name in self.deployments():
            self.call("delete_configuration", name)


@pytest.fixture(scope="module")
def shared(site):
    """One hub and its devices for all tests here."""
    with tempfile.TemporaryDirectory(prefix="kvedge-f-") as folder:
        made = Field(site, Path(folder))
        try:
            yield made
        finally:
            for child in reversed(made.running):
                made.end(child, signal.SIGKILL)


@pytest.fixture
def field(shared):
    """The field, without pods and connectors."""
    yield shared
    shared.clear()


@pytest.mark.slow
def test_killed_at_each_step(field):
    """A connector that is killed while it places, changes and retires finds its work and ends it."""
    child = field.connector()
    field.apply("kept")
    field.until_ready("kept")
    before = field.modules()
    steps = [
        lambda: (field.apply("a"), field.apply("p", **{"kvedge.io/packed": "true"})),
        lambda: field.apply("a", "reg/sensor:2"),
        lambda: field.apply("p", "reg/sensor:2", **{"kvedge.io/packed": "true"}),
        lambda: (field.delete("a", wait=False), field.delete("p", wait=False)),
    ]
    for number, step in enumerate(steps):
        for after in (0.05, 0.3, 0.8):
            step()
            time.sleep(after)  # the moment of the kill, not a wait for anything
            field.end(child, signal.SIGKILL)
            child = field.connector()
        if number < len(steps) - 1:
            field.until_ready("a", "p")
    until(
        lambda: field.pod("a") is None and field.pod("p") is None, "the pods have gone", seconds=60
    )
    until(lambda: len(field.deployments()) == 1, "only the kept pod's deployment is left")
    until(lambda: field.modules() == before, "devices run what they ran before")


def test_api_server_restarts(field):
    """The connector outlives the API server, writes nothing for it, and goes on when it is back."""
    child = field.connector()
    field.apply("a")
    field.until_ready("a")
    before, modules = field.deployments(), field.modules()
    parts = {part.name: part.pid for part in control.status(field.site.directory).parts}
    os.kill(parts["kube-apiserver"], signal.SIGKILL)
    until(lambda: kubectl(field.site, "get", "--raw", "/readyz", check=False).stdout == "ok",
          "the API server is back", seconds=60)  # fmt: skip
    field.apply("b")
    field.until_ready("b")
    assert child.poll() is None
    after = field.deployments()
    assert {name: after[name] for name in before} == before
    assert field.modules()["faulty-1"]["a-main"] == modules["faulty-1"]["a-main"]
    assert field.condition("a")[0] == "True"


@pytest.mark.slow
def test_partitioned_leader_stops_before_the_next_one_leads(field):
    """A leader that no longer reaches the API server ends; the standby takes over what it finds."""
    kubeconfig = yaml.safe_load(field.kubeconfig.read_text())
    cluster = kubeconfig["clusters"][0]["cluster"]
    host, _, port = cluster["server"].rpartition(":")
    with way_to(int(port), field.folder / "way.log") as way:
        cluster["server"] = f"{host}:{way.port}"
        other_way = field.folder / "partitioned.kubeconfig"
        other_way.write_text(yaml.safe_dump(kubeconfig))
        first = field.connector(kubeconfig=other_way, elect=True)
        field.apply("a")
        field.apply("b", **{"kvedge.io/packed": "true"})
        field.until_ready("a", "b")
        second = field.connector(elect=True)
        before, modules = field.deployments(), field.modules()
        leader = holder(field)
        way.cut()
        until(lambda: first.poll() is not None, "the old leader has ended", seconds=60)
        until(lambda: holder(field) not in ("", leader), "the other one leads", seconds=60)
        assert told(first, " has lost ") < told(second, " leads ")
        field.apply("c")
        field.until_ready("c")
        field.delete("b")
        after = field.deployments()
        assert {n: e for n, e in after.items() if "-a-" in n} == {
            n: e for n, e in before.items() if "-a-" in n
        }
        assert field.modules()["faulty-1"]["a-main"] == modules["faulty-1"]["a-main"]
        way.mend()
        third = field.connector(kubeconfig=other_way, elect=True)
        until(lambda: third.poll() is None and "leads" not in third.log.read_text(), "it waits")
        assert second.poll() is None
        assert field.condition("a")[0] == "True"
        until(lambda: "b-main" not in field.modules()["faulty-1"], "the device has dropped b")


def told(child, words):
    """Return when a connector's log says something (its time as text)."""
    (first, *_) = until(lambda: [line for line in lines(child) if words in line])
    return first[:23]


def lines(child):
    """Return the lines of a connector's log."""
    return child.log.read_text().splitlines()


def holder(field):
    """Return who leads."""
    path = "jsonpath={.spec.holderIdentity}"
    return kubectl(field.site, "get", "lease", f"kvedge-{NODE}", "-o", path, check=False).stdout


@pytest.mark.slow
def test_stopped_leader_does_nothing_when_it_wakes(field):
    """A leader whose process stood still sees at once that its time is over."""
    first = field.connector(elect=True)
    field.apply("a")
    field.until_ready("a")
    leader = holder(field)
    field.connector(elect=True)
    os.killpg(first.pid, signal.SIGSTOP)
    until(lambda: holder(field) not in ("", leader), "the other one leads", seconds=60)
    field.apply("b")
    field.until_ready("b")
    field.delete("a")
    until(lambda: field.modules()["faulty-1"].keys() == {"b-main"}, "only b is left")
    before, modules = field.deployments(), field.modules()
    os.killpg(first.pid, signal.SIGCONT)
    until(lambda: first.poll() is not None, "the old leader has ended", seconds=30)
    assert field.deployments() == before
    assert field.modules() == modules


@pytest.mark.slow
def test_hub_is_down_for_minutes(field):
    """Nothing is taken from devices; pods say what is not known; what was asked meanwhile follows."""
    child = field.connector()
    for name in ("a", "b", "gone"):
        field.apply(name)
    field.until_ready("a", "b", "gone")
    before, modules = field.deployments(), field.modules()
    field.end(field.hub, signal.SIGKILL)
    ends = time.monotonic() + OUTAGE_SECONDS
    until(
        lambda: field.condition("a", "kvedge.io/Deployment")[0] == "Unknown",
        "a says so",
        seconds=60,
    )
    field.apply("new")
    field.delete("gone", wait=False)
    until(
        lambda: time.monotonic() > ends, "the outage is over", seconds=OUTAGE_SECONDS + 5, pause=1
    )
    status, message = field.condition("a", "kvedge.io/Deployment")
    assert status == "Unknown"
    assert "last seen: 2 targeted, 2 applied, 2 running" in message
    assert field.condition("a")[0] == "True"
    assert field.node_condition("Ready")[0] == "True"
    assert field.node_condition("HubReachable")[0] == "False"
    assert field.pod("gone")["metadata"]["deletionTimestamp"]
    assert field.condition("new")[0] != "True"
    field.hub = field.start_hub()
    field.until_ready("new", seconds=120)
    until(lambda: field.pod("gone") is None, "the deleted pod has gone", seconds=120)
    after = field.deployments()
    assert {n: e for n, e in after.items() if n in before} == {
        n: e for n, e in before.items() if "-gone-" not in n
    }
    until(
        lambda: field.modules()["faulty-1"].keys() == {"a-main", "b-main", "new-main"}, seconds=60
    )
    assert field.modules()["faulty-1"]["a-main"] == modules["faulty-1"]["a-main"]
    until(lambda: field.condition("a", "kvedge.io/Deployment")[0] == "True", "a is known again")
    assert child.poll() is None


def test_credentials_expire(field):
    """Refused by the API server or by the hub, the connector waits, says so, and goes on after."""
    account = field.folder / "account.kubeconfig"
    kubectl(field.site, "create", "serviceaccount", "faulty")
    kubectl(field.site, "create", "clusterrolebinding", "faulty", "--clusterrole=cluster-admin",
            "--serviceaccount=default:faulty")  # fmt: skip
    kubeconfig = yaml.safe_load(field.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": new_token(field)}
    account.write_text(yaml.safe_dump(kubeconfig))
    string = field.folder / "rotating.connection"
    string.write_text(field.connection)
    options = ["--hub-connection-string-file", str(string)]
    try:
        child = field.connector(kubeconfig=account, options=options)
        field.apply("a")
        field.until_ready("a")
        before, modules = field.deployments(), field.modules()
        # The account's end makes its tokens void, as their expiry would.
        kubectl(field.site, "delete", "serviceaccount", "faulty")
        kubectl(field.site, "create", "serviceaccount", "faulty")
        until(lambda: "Unauthorized" in child.log.read_text(), "the API server refuses", seconds=60)
        kubeconfig["users"][0]["user"] = {"token": new_token(field)}
        account.write_text(yaml.safe_dump(kubeconfig))
        field.apply("b")
        field.until_ready("b")
        old, field.connection = field.connection, renew_hub_keys(field)
        assert old != field.connection
        until(
            lambda: "401" in field.node_condition("HubReachable")[1], "the hub refuses", seconds=60
        )
        assert field.condition("a")[0] == "True"
        string.write_text(field.connection)
        until(
            lambda: field.node_condition("HubReachable")[0] == "True", "it is reached", seconds=60
        )
        assert child.poll() is None
        after = field.deployments()
        assert {name: after[name] for name in before} == before
        assert field.modules()["faulty-1"]["a-main"] == modules["faulty-1"]["a-main"]
    finally:
        kubectl(field.site, "delete", "serviceaccount/faulty", "clusterrolebinding/faulty")


def new_token(field):
    """Return a token of the test's account."""
    return kubectl(field.site, "create", "token", "faulty").stdout.strip()


def renew_hub_keys(field):
    """Give the hub's policies new keys, as `az iot hub policy renew-key` does; return the string."""
    field.end(field.hub)
    with contextlib.closing(sqlite3.connect(field.folder / "hub" / "hub.db")) as store, store:
        assert store.execute("DELETE FROM documents WHERE key = 'policies'").rowcount == 1
    field.hub = field.start_hub()
    return (field.folder / "hub" / "service.connection").read_text().strip()


@pytest.mark.slow
@pytest.mark.parametrize("offset", [86_400, -86_400])
def test_clock_jumps(field, offset):
    """A wrong clock takes nothing from devices; the hub refuses one that is late, until it is right."""
    clock = field.folder / "offset"
    clock.write_text("0")
    (field.folder / "clock").mkdir(exist_ok=True)
    (field.folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    env = {
        "PYTHONPATH": f"{field.folder / 'clock'}:{os.environ.get('PYTHONPATH', '')}",
        "CLOCK_FILE": str(clock),
    }
    child = field.connector(env=env)
    field.apply("a")
    field.until_ready("a")
    before, modules = field.deployments(), field.modules()
    clock.write_text(str(offset))
    if offset < 0:
        # A token that is made a day late has expired before it is sent.
        until(lambda: field.condition("a", "kvedge.io/Deployment")[0] == "Unknown", "a says so")
        assert "401" in field.node_condition("HubReachable")[1]
        assert field.condition("a")[0] == "True"
        field.apply("b")
        clock.write_text("0")
    else:
        field.apply("b")
    field.until_ready("b")
    assert child.poll() is None
    field.end(child)
    clock.write_text(str(offset))
    again = field.connector(env=env)
    if offset < 0:
        until(lambda: "401" in again.log.read_text(), "the hub refuses", seconds=60)
        clock.write_text("0")
    field.apply("c")
    field.until_ready("c")
    assert {n: e for n, e in field.deployments().items() if n in before} == before
    assert field.modules()["faulty-1"]["a-main"] == modules["faulty-1"]["a-main"]
