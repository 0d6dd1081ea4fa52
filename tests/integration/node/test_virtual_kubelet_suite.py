"""Virtual Kubelet's own end-to-end suite, unmodified, against the connector on a local site."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import pytest

from kvedge import processes, tools
from kvedge.site import namespace
from kvedge.testing.sites import kubectl
from kvedge.testing.waiting import until

pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]

ADDRESS = "10.77.100.1"
"""Free in the site's network, and one that the API server's proxy accepts."""
TESTS = 9


@pytest.fixture(scope="module")
def suite() -> str:
    """The suite's program; it is built once (150 s)."""
    return str(tools.ensure(["vke2e"])["vke2e"])


@contextlib.contextmanager
def running(site, name: str, *arguments: str, log, env=None):
    """Run a node in the site's namespaces, with a pod of its name that the suite asks through."""
    found = namespace.find(site.folder)
    assert found is not None
    given = {
        "KUBECONFIG": str(site.folder.identities / "admin.kubeconfig"),
        "VKUBELET_POD_IP": ADDRESS,
        **(env or {}),
    }
    argv = [*found.enter(), sys.executable, "-m", "kvedge", *arguments, "--unsafe-anonymous-reads"]
    child = processes.popen(argv, env=given, log=log)
    try:
        until(
            lambda: is_ready(site, name) or child.poll() is not None,
            seconds=60,
            what=f"node {name} is ready",
        )
        assert child.poll() is None, log.read_text()
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"schedulerName": "none", "containers": [{"name": "self", "image": "self"}]},
        }
        kubectl(site, "apply", "-f", "-", stdin=json.dumps(body))
        addresses = {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}], "phase": "Running"}
        patch = json.dumps({"status": addresses})
        kubectl(site, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)
        child.wait(30)
        for kind in ("pod", "node"):
            kubectl(site, "delete", kind, name, "--ignore-not-found", "--wait=false")


def is_ready(site, name: str) -> bool:
    """Tell whether a node is Ready."""
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return kubectl(site, "get", "node", name, "-o", path, check=False).stdout == "True"


def run_suite(site, suite: str, name: str) -> None:
    """Run the suite and require that all its tests pass."""
    config = str(site.kubernetes.kubeconfig)
    argv = [suite, "-test.v", "-kubeconfig", config, "-namespace", "default", "-node-name", name]
    done = processes.run(argv, what="run the suite", check=False, timeout=400)
    text = done.stdout + done.stderr
    assert text.count("--- PASS: TestVirtualKubelet/") == TESTS, text
    assert done.returncode == 0, text


def test_connector_on_simulated_devices(site, suite, tmp_path):
    """The connector passes nine of nine, and logs come from the device through the API server."""
    name = "suite-iotedge"
    found = namespace.find(site.folder)
    assert found is not None
    connection = site.folder.root / "hub" / "inside.connection"
    authority = site.folder.pki / "site-ca.crt"
    devices = processes.popen(
        [
            *found.enter(), sys.executable, "-m", "kvedge", "hub", "simulate",
            "--devices", "2", "--prefix", "suite", "--tag", "suite=yes", "--delay", "0.2",
            "--connection-file", str(connection), "--ca", str(authority),
            "--mqtt", "10.77.0.2:8883",
        ],
        log=tmp_path / "devices.log",
    )  # fmt: skip
    arguments = ["connector", "run", "--node-name", name, "--no-leader-elect"]
    arguments += ["--default-target-condition", "tags.suite='yes'", "--hub-units", "0"]
    arguments += ["--poll-seconds", "1", "--handover-seconds", "1"]
    env = {
        "KVEDGE_HUB_CONNECTION_STRING_FILE": str(connection),
        "KVEDGE_HUB_CA_FILE": str(authority),
        "APISERVER_CA_CERT_LOCATION": str(site.folder.pki / "cluster-ca.crt"),
    }
    try:
        base(site, found, connection, authority)
        with running(site, name, *arguments, log=tmp_path / "node.log", env=env):
            run_suite(site, suite, name)
            logs_arrive(site, name)
    finally:
        os.killpg(devices.pid, 15)
        devices.wait(30)


def base(site, found, connection, authority) -> None:
    """Have a base deployment, which the devices of a real environment have from its platform."""
    script = """
import asyncio, sys
from pathlib import Path
from kvedge import errors, iothub
from kvedge.redact import Secret
from kvedge.testing.hubs import base_deployment
async def main():
    async with iothub.Hub.from_connection_string(
        Secret(Path(sys.argv[1]).read_text().strip()), ca_file=Path(sys.argv[2])) as hub:
        try:
            await hub.create_configuration(
                base_deployment("tags.suite='yes'", name="suite-base"))
        except errors.Conflict:
            pass
asyncio.run(main())
"""
    argv = [*found.enter(), sys.executable, "-c", script, str(connection), str(authority)]
    processes.run(argv, what="make the base deployment", timeout=60)


def logs_arrive(site, name: str) -> None:
    """Read a module's log by kubectl, through the API server's client certificate."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "talking"},
        "spec": {"nodeName": name, "containers": [{"name": "main", "image": "reg/talk:1"}]},
    }
    kubectl(site, "apply", "-f", "-", stdin=json.dumps(body))
    try:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        until(
            lambda: kubectl(site, "get", "pod", "talking", "-o", path).stdout == "True",
            seconds=60,
            what="the pod runs",
        )
        text = kubectl(site, "logs", "talking", "--tail=1").stdout
        assert "[suite-1] talking-main of suite-1: line 10" in text
    finally:
        kubectl(site, "delete", "pod", "talking", "--wait=false")
