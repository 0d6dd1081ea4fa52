"""Virtual Kubelet's own end-to-end suite, unmodified, against our mock on a bare API server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys

import pytest

from kvedge import processes, tools
from kvedge.testing.waiting import until

pytestmark = pytest.mark.timeout(900)

NAME = "suite-mock"
TESTS = 9


def own_address() -> str:
    """Return an address of this machine; the API server's proxy refuses 127.0.0.0/8."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return probe.getsockname()[0]


@pytest.fixture
def kubectl(cluster):
    """Return what runs kubectl as admin and returns its result."""
    program = tools.ensure(["kubectl"])["kubectl"]

    def run(*words, check=True, given=None):
        return processes.run(
            [program, f"--kubeconfig={cluster.kubeconfig}", *words],
            what=f"kubectl {words[0]}", check=check, timeout=60, stdin=given,
        )  # fmt: skip

    return run


@pytest.fixture
def node(cluster, kubectl, tmp_path):
    """Run a mock node, with a pod of its name that the suite reaches it through."""
    address, log = own_address(), tmp_path / "node.log"
    config = tmp_path / "capacity.json"
    config.write_text(json.dumps({NAME: {"cpu": "100", "memory": "1Ti", "pods": "1000"}}))
    env = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "VKUBELET_POD_IP": address,
        "APISERVER_CA_CERT_LOCATION": str(cluster.kubelet_client),
    }
    argv = [sys.executable, "-m", "kvedge", "node", "run", "--nodename", NAME]
    argv += ["--provider-config", str(config), "--unsafe-anonymous-reads"]
    child = processes.popen(argv, env=env, log=log)
    try:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"

        def ready():
            assert child.poll() is None, log.read_text()
            return kubectl("get", "node", NAME, "-o", path, check=False).stdout == "True"

        until(ready, "the node is ready", seconds=60)
        spec = {"schedulerName": "none", "containers": [{"name": "self", "image": "self"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME}, "spec": spec}
        kubectl("apply", "-f", "-", given=json.dumps(body).encode())
        status = {"podIP": address, "podIPs": [{"ip": address}], "phase": "Running"}
        patch = json.dumps({"status": status})
        kubectl("patch", "pod", NAME, "--subresource=status", "--type=merge", "-p", patch)
        yield NAME
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)
        child.wait(30)
        kubectl("delete", "pod", NAME, "--ignore-not-found", "--force", "--grace-period=0")
        kubectl("delete", "node", NAME, "--ignore-not-found")


def test_suite(cluster, node):
    """Nine of nine."""
    suite = tools.ensure(["vke2e"])["vke2e"]
    argv = [suite, "-test.v", "-kubeconfig", str(cluster.kubeconfig)]
    argv += ["-namespace", "default", "-node-name", node]
    done = processes.run(argv, what="run the suite", check=False, timeout=400)
    text = done.stdout + done.stderr
    assert text.count("--- PASS: TestVirtualKubelet/") == TESTS, text
    assert done.returncode == 0, text


def test_node_is_looked_into(kubectl, node):
    """All that a kubelet serves is read, and a command is run, through the API server."""

    def read(path):
        return kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/{path}").stdout

    assert read("healthz") == "ok"
    assert json.loads(read("configz"))["kubeletconfig"]["kind"] == "KubeletConfiguration"
    assert json.loads(read("stats/summary"))["node"]["nodeName"] == node
    assert json.loads(read("pods"))["kind"] == json.loads(read("runningpods"))["kind"] == "PodList"
    assert "# TYPE pod_cpu_usage_seconds_total counter" in read("metrics/resource")
    assert "kvedge_node_leader 1" in read("metrics")
    overrides = json.dumps({"spec": {"nodeName": node}})
    kubectl("run", "echo", "--image=none", f"--overrides={overrides}")
    try:
        kubectl("wait", "pod", "echo", "--for=condition=Ready", "--timeout=30s")
        assert kubectl("exec", "echo", "--", "hello", "you").stdout == "hello you\n"
        assert kubectl("exec", "echo", "--", "exit", "3", check=False).returncode == 3
    finally:
        kubectl("delete", "pod", "echo", "--force", "--grace-period=0")
