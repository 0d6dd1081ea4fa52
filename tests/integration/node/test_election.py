"""Leader and standby on a real Lease."""

from __future__ import annotations

import asyncio

import pytest

from kvedge.node.election import Election

pytestmark = pytest.mark.timeout(180)


def candidate(client, namespace, identity):
    """Return a candidate with short times."""
    return Election(
        client=client,
        namespace=namespace,
        name="node",
        identity=identity,
        lease_seconds=2.0,
        renew_seconds=1.5,
        retry_seconds=0.1,
    )


async def test_standby_takes_over_a_released_lease(client, namespace):
    """One leads; the other one leads as soon as the first lets go."""
    first, second = candidate(client, namespace, "a"), candidate(client, namespace, "b")
    await first.acquire()
    async with asyncio.TaskGroup() as group:
        hold = group.create_task(first.hold())
        waiting = group.create_task(second.acquire())
        await asyncio.sleep(3)
        assert not waiting.done(), "the Lease was renewed, so nobody may take it"
        hold.cancel()
        await first.release()
        async with asyncio.timeout(1.5):
            await waiting


async def test_standby_takes_over_a_silent_leader(client, namespace):
    """A leader that dies is followed after the Lease's time, not before."""
    first, second = candidate(client, namespace, "a"), candidate(client, namespace, "b")
    await first.acquire()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(20):
        await second.acquire()
    assert loop.time() - began >= 1.9


async def test_leader_stops_when_another_leads(client, namespace):
    """A leader that finds another holder ends by itself."""
    first = candidate(client, namespace, "a")
    await first.acquire()
    async with asyncio.TaskGroup() as group:
        hold = group.create_task(first.hold())
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/node"
        body = {"spec": {"holderIdentity": "b"}}
        await client.patch(path, body)

        async def other():
            while True:
                now = f"2030-01-01T00:00:{asyncio.get_running_loop().time() % 60:09.6f}Z"
                await client.patch(path, {"spec": {"holderIdentity": "b", "renewTime": now}})
                await asyncio.sleep(0.2)

        renewing = group.create_task(other())
        async with asyncio.timeout(15):
            await hold
        renewing.cancel()


async def test_shards_share_out_and_stand_in(client, namespace):
    """A free Lease is left to the replica whose shard it is; a silent one's is taken all the same."""
    home, other = candidate(client, namespace, "home"), candidate(client, namespace, "other")
    other.patience_seconds = 1.0
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(other.acquire(), name="other")
        await asyncio.sleep(0.3)
        await home.acquire()
        await asyncio.sleep(1.2)
        assert not waiting.done(), "the Lease was free for less than its patience"
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(20):
            await waiting
    assert asyncio.get_running_loop().time() - began >= 1.5
