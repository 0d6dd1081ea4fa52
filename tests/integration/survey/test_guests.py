"""What guests told on their consoles, read through a real API server."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from aiohttp import web

from kvedge import kube, names, survey
from kvedge.testing import kinds

KINDS = (
    kinds.definition("kubevirt.io", "v1", "VirtualMachine", "virtualmachines"),
    kinds.definition("kubevirt.io", "v1", "VirtualMachineInstance", "virtualmachineinstances"),
)
TOLD = (
    'kvedge-apply: {"ok": true, "changed": [], "error": ""}\r\nedge login: \r\n'
    'kvedge-apply: {"ok": false, "changed": [], "error": "iotedge is not installed"}\r\n'
)


@contextlib.asynccontextmanager
async def kubelet(certificate, consoles):
    """Serve the logs of pods' console containers by pod name, as a kubelet does; yield its port."""

    async def logs(request):
        assert request.match_info["container"] == "guest-console-log"
        assert request.query["tailLines"]
        return web.Response(text=consoles[request.match_info["pod"]])

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def vm(name, status="Running"):
    """Return a VM that kvedge manages."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {names.LABEL_MANAGED: "kvedge"},
        },
        "spec": {},
        "status": {"printableStatus": status},
    }


def launcher(name, of, node=""):
    """Return a VM's launcher pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default",
                     "labels": {"kubevirt.io": "virt-launcher"},
                     "annotations": {"kubevirt.io/domain": of}},
        "spec": {"containers": [{"name": "guest-console-log", "image": "x"}],
                 **({"nodeName": node} if node else {})},
    }  # fmt: skip


@pytest.fixture
async def placed(good):
    """A function that makes an object which is gone after the test."""
    made = []

    async def place(one):
        await good.apply(one)
        made.append(one)

    yield place
    for one in made:
        about = one["metadata"]
        path = await good.path_of(one["apiVersion"], one["kind"], about["namespace"], about["name"])
        await good.delete(path, {"gracePeriodSeconds": 0})


async def test_a_guest_that_did_not_take_its_secret_disk_is_told(good, placed, hub_certificates):
    """The last result on the console of a running VM counts; a VM without a console has none."""
    await kinds.install(good, KINDS)
    async with kubelet(hub_certificates[1:], {"launcher-a": TOLD, "launcher-b": ""}) as port:
        await good.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "consoles"}})
        status = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                  "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}  # fmt: skip
        await good.patch("/api/v1/nodes/consoles/status", {"status": status})
        for one in (
            *(vm(name) for name in ("failed", "silent", "unplaced", "without")),
            vm("stopped", "Stopped"),
            launcher("launcher-a", "failed", "consoles"),
            launcher("launcher-b", "silent", "consoles"),
            launcher("launcher-c", "unplaced"),
        ):
            await placed(one)
        fleet = await survey.read_fleet(good, None)
    told = {row.name: row.apply_error for row in fleet.vms if row.apply_error}
    assert told == {"failed": "iotedge is not installed"}
    assert fleet.notes == (
        "VM default/failed did not take its secret disk: iotedge is not installed",
    )


async def test_a_console_that_cannot_be_read_is_a_note(good, placed, operator):
    """Status goes on without the right to read logs, and says what it did not see."""
    await kinds.install(good, KINDS)
    await placed(vm("hidden"))
    await placed(launcher("launcher-h", "hidden"))
    rules = [{"apiGroups": ["", "kubevirt.io"], "verbs": ["get", "list"],
              "resources": ["virtualmachines", "virtualmachineinstances", "services", "pods",
                            "nodes"]}]  # fmt: skip
    async with kube.Client(await operator(rules)) as client:
        fleet = await survey.read_fleet(client, None)
    (note,) = fleet.notes
    assert "launcher-h/log" in note
