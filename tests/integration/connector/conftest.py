"""An API server, the hub emulator, simulated devices and a connector between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from kvedge import iothub, kube
from kvedge.connector import IotEdgeProvider, Settings
from kvedge.emulator import Knobs, simulation
from kvedge.node import NodeSpec, running
from kvedge.redact import Secret
from kvedge.testing.clusters import client, cluster  # noqa: F401 - fixtures
from kvedge.testing.hubs import base_deployment, hub, hub_certificates  # noqa: F401 - fixtures

_serial = itertools.count(1)


@pytest.fixture
async def namespace(client):  # noqa: F811
    """A namespace of its own for each test."""
    name = f"c{next(_serial)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.post("/api/v1/namespaces", body)
    return name


@pytest.fixture
async def service(hub):  # noqa: F811
    """The service side of the hub, without quotas, with a base deployment for all devices."""
    async with iothub.Hub.from_connection_string(
        Secret(hub.connection_string),
        ca_file=hub.ca,
        budget=iothub.Budget(iothub.UNLIMITED),
        backoff=iothub.Backoff(base_seconds=0.1, tries=2),
    ) as made:
        await made.create_configuration(base_deployment())
        yield made


@pytest.fixture
def devices(hub):  # noqa: F811
    """Return what runs a number of simulated devices as an async context."""

    def made(count, **options):
        return simulation.Simulation(
            simulation.Plan(
                connection_string=hub.connection_string,
                mqtt=("127.0.0.1", hub.mqtt_port),
                host=hub.host,
                ca=hub.ca,
                devices=count,
                **options,
            )
        )

    return made


@pytest.fixture
def start_connector(cluster, service):  # noqa: F811
    """Return what runs a connector as an async context: `start_connector(name, **settings)`."""

    @contextlib.asynccontextmanager
    async def start(name, **settings):
        stop = asyncio.Event()
        given = {
            "cluster": "c0ffee00-0000",
            "poll_seconds": 0.3,
            "handover_seconds": 1.0,
            "orphan_seconds": 1.0,
            "list_seconds": 1.0,
            **settings,
        }
        provider = IotEdgeProvider(service, Settings(node=name, address="10.9.9.9", **given))
        node = running.VirtualNode(
            config=kube.load_config(cluster.kubeconfig),
            spec=NodeSpec(name=name, address="127.0.0.1", provider="iotedge"),
            provider=provider,
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(node.run(stop), name="connector")
            try:
                await node.registered.wait()
                yield node
            finally:
                stop.set()
                await task

    return start


@pytest.fixture
def knobs(hub):  # noqa: F811
    """Return what makes the hub awkward, or with no argument kind again."""

    def turn(**settings):
        async def inside():
            hub.emulator.turn(Knobs(**settings))

        hub.run(inside())

    return turn
