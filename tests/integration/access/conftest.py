"""VMs of a bare API server whose LoadBalancer addresses lead to ssh servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading

import pytest

from kvedge import errors, kube
from kvedge.testing import kinds, sshd
from kvedge.testing.clusters import cluster  # noqa: F401 - a fixture
from kvedge.testing.hubs import hub_certificates  # noqa: F401 - a fixture
from kvedge.testing.portforwards import api_objects, running_portforwards
from kvedge.testing.waiting import until

_serial = itertools.count(1)


class Fleet:
    """VMs in a namespace of their own; each one's ssh server is a real one with its own key."""

    def __init__(self, config, folder):
        self.config, self.folder, self.namespace = config, folder, f"access{next(_serial)}"
        self.user_key = None
        self.host_keys = {}
        self.places = {}
        self._listeners = []

    def call(self, method, *arguments, **more):
        """Run one call of a kube.Client."""

        async def run():
            async with kube.Client(self.config) as client:
                return await getattr(client, method)(*arguments, **more)

        return asyncio.run(run())

    def add(self, name, *, pinned=None, address=None):
        """Make a VM object, its Service and the ssh server behind its address."""
        folder = self.folder / name
        host_key, user_key = sshd.make_folder(folder)
        if self.user_key is None:
            self.user_key = user_key
        (folder / "authorized_keys").write_text(
            (self.user_key.parent / "authorized_keys").read_text()
        )
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listeners.append(listener)
        threading.Thread(target=sshd.serve, args=(folder, listener), daemon=True).start()
        self.host_keys[name] = host_key
        self.places[name] = listener.getsockname()
        labels = {
            "app.kubernetes.io/managed-by": "kvedge",
            "kvedge.io/environment": "plant",
            "kvedge.io/vm": name,
        }
        vm = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": {"kvedge.io/host-key": pinned or host_key},
            },
            "spec": {"template": {"metadata": {"labels": labels}}},
        }
        where = address or f"127.0.0.1:{listener.getsockname()[1]}"
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": f"{name}-ssh",
                "namespace": self.namespace,
                "annotations": {"kvedge.io/published": f"22={where}"},
            },
            "spec": {
                "type": "LoadBalancer",
                "selector": {"kvedge.io/vm": name},
                "ports": [{"port": 22}],
            },
        }
        self.call("apply", vm)
        self.call("apply", service)
        return folder

    def close(self):
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture
def fleet(cluster, tmp_path):  # noqa: F811
    """An empty fleet; `fleet.add(name)` makes a VM."""
    made = Fleet(kube.load_config(cluster.kubeconfig), tmp_path / "guests")

    async def prepare():
        async with kube.Client(made.config) as client:
            await kinds.install(
                client,
                [
                    kinds.definition("kubevirt.io", "v1", "VirtualMachine", "virtualmachines"),
                    kinds.definition(
                        "kubevirt.io", "v1", "VirtualMachineInstance", "virtualmachineinstances"
                    ),
                ],
            )
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.namespace}}
            await client.apply(body)

    asyncio.run(prepare())
    yield made
    made.close()


@pytest.fixture
def api_way(fleet, hub_certificates):  # noqa: F811
    """Let the API server lead port-forwards to the fleet's ssh servers."""
    acts = []
    with running_portforwards(fleet.places, hub_certificates, acts=acts) as port:
        for one in api_objects(port):
            fleet.call("apply", one)
        until(lambda: _served(fleet), "the aggregated API is served", seconds=120)
        yield acts
        fleet.call(
            "delete", "/apis/apiregistration.k8s.io/v1/apiservices/v1.subresources.kubevirt.io"
        )


def _served(fleet):
    try:
        return fleet.call("get", "/apis/subresources.kubevirt.io/v1")["kind"]
    except errors.RemoteError:
        return None


@pytest.fixture
def cli(cluster, fleet, monkeypatch):  # noqa: F811
    """Run a command in this process as the fleet's user; returns (exit code, stdout, stderr)."""
    from click.testing import CliRunner

    from kvedge.cli import root

    for name in ("KVEDGE_SITE", "KVEDGE_STATE", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)

    def run(*words, kubeconfig=None, input=None):  # noqa: A002
        command, *rest = words
        argv = [command, "--kubeconfig", str(kubeconfig or cluster.kubeconfig),
                "-n", fleet.namespace, *rest]  # fmt: skip
        done = CliRunner().invoke(root, argv, input=input)
        if isinstance(done.exception, errors.KvedgeError):
            return 1, done.stdout, f"{done.exception.message}\n{done.exception.hint}"
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return run
