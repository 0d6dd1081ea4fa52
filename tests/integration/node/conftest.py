"""A real API server, a client for it and virtual nodes of the mock provider."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import pytest

from kvedge import kube
from kvedge.node import NodeSpec, running
from kvedge.node.mock import MockProvider
from kvedge.testing.clusters import client, cluster  # noqa: F401 - fixtures


@pytest.fixture
async def namespace(client):  # noqa: F811
    """A namespace of its own for each test."""
    name = f"t{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.post("/api/v1/namespaces", body)
    yield name
    # The cluster may be a developer's, which the next run finds as this one leaves it.
    await client.delete(f"/api/v1/namespaces/{name}/pods", gracePeriodSeconds=0)


@pytest.fixture
def start_node(cluster):  # noqa: F811
    """Return what starts a virtual node as an async context: `start_node(name, provider)`."""

    @contextlib.asynccontextmanager
    async def start(name=None, provider=None, *, registered=True, spec=None, **options):
        stop = asyncio.Event()
        node = running.VirtualNode(
            config=kube.load_config(cluster.kubeconfig),
            spec=NodeSpec(
                name=name or f"n{secrets.token_hex(4)}",
                provider="mock",
                **{
                    "address": "127.0.0.1",
                    "port": 10250,
                    "capacity": {"cpu": "100", "memory": "100Gi", "pods": "1000"},
                    **(spec or {}),
                },
            ),
            provider=provider or MockProvider(),
            **options,
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(node.run(stop), name="node")
            try:
                if registered:
                    await node.registered.wait()
                yield node
            finally:
                stop.set()
                await task

    return start
