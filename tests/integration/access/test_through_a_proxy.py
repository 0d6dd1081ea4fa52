"""A kubeconfig whose server is a proxy with a rotating token and address, as Arc's is."""

from __future__ import annotations

import asyncio
import json

import pytest

from kvedge import access, errors, kube
from kvedge.testing import kinds
from kvedge.testing.proxies import running_proxy


@pytest.fixture
def arc(fleet, hub_certificates, tmp_path):
    """A proxy in front of the fleet's API server."""
    with running_proxy(fleet.config, tmp_path, hub_certificates) as proxy:
        yield proxy


def test_commands_work_after_each_rotation(cli, fleet, arc):
    """Every command finds the proxy where its kubeconfig says, whatever was before."""
    fleet.add("edge1")
    common = ("exec", "--via", "address", "-i", str(fleet.user_key), "-o", "json", "echo here")
    for _ in range(3):
        code, out, err = cli(*common, kubeconfig=arc.kubeconfig)
        assert code == 0, err
        assert json.loads(out)["vms"][0]["stdout"] == "here\n"
        arc.rotate()
    assert arc.refused == 0


def test_a_running_client_follows_a_new_token(fleet, arc):
    """A process that goes on (port-forward, dashboard) takes the new token by itself."""
    fleet.add("edge1")
    target = access.Target(name="edge1", namespace=fleet.namespace)

    async def run():
        async with kube.Client(kube.load_config(arc.kubeconfig)) as client:
            for _ in range(3):
                assert (await access.find_guest(client, target)).host_key
                arc.rotate_token()

    asyncio.run(run())
    assert arc.refused == 0


def test_watches_and_lists_pass(fleet, arc):
    """A watch streams through the proxy."""

    async def run():
        async with kube.Client(kube.load_config(arc.kubeconfig)) as client:
            watch = client.watch(f"/api/v1/namespaces/{fleet.namespace}/configmaps")
            async with asyncio.timeout(30):
                async for kind, obj in watch:
                    if kind == "SYNCED":
                        body = {"apiVersion": "v1", "kind": "ConfigMap",
                                "metadata": {"name": "x", "namespace": fleet.namespace}}  # fmt: skip
                        await client.apply(body)
                    elif obj["metadata"]["name"] == "x":
                        return

    asyncio.run(run())


def test_an_expired_token_is_told_as_such(fleet, arc):
    """Without a new kubeconfig the answer is 401, not a hang."""

    async def run():
        config = kube.load_config(arc.kubeconfig)
        arc.rotate()
        arc.kubeconfig.unlink()
        async with kube.Client(config) as client:
            with pytest.raises(errors.RemoteError) as caught:
                await client.get("/version")
            assert caught.value.status in (401, 404)

    asyncio.run(run())
    assert arc.refused == 1


def test_kinds_are_read_through_it(fleet, arc):
    """Discovery and server-side apply pass as well."""

    async def run():
        async with kube.Client(kube.load_config(arc.kubeconfig)) as client:
            await kinds.install(client, [kinds.definition("proxied.test", "v1", "Thing", "things")])

    asyncio.run(run())
