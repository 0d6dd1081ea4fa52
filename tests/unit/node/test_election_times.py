"""However requests end, a leader stops before a standby may begin; time is virtual."""

from __future__ import annotations

import asyncio
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvedge import errors
from kvedge.node.election import Election

LEASE, RENEW, RETRY = 15.0, 10.0, 2.0


class Leases:
    """One Lease; a client of it can be cut off."""

    def __init__(self):
        self.lease, self.version = None, 0

    def write(self, body):
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)


class Client:
    """A client that from some moment on gets errors, or no answer at all."""

    def __init__(self, leases):
        self.leases, self.cut, self.hangs = leases, None, False

    async def _reach(self, pause=0.05):
        await asyncio.sleep(pause)
        if self.cut is not None and asyncio.get_running_loop().time() >= self.cut:
            if self.hangs:
                await asyncio.sleep(60)
            raise errors.RemoteError("ask", reason="Unreachable")

    async def get(self, _path):
        await self._reach()
        if self.leases.lease is None:
            raise errors.NotFound("get", status=404)
        return copy.deepcopy(self.leases.lease)

    async def post(self, _path, body):
        await self._reach()
        if self.leases.lease is not None:
            raise errors.Conflict("post", status=409)
        return self.leases.write(body)

    async def put(self, _path, body):
        await self._reach()
        if body["metadata"].get("resourceVersion") != str(self.leases.version):
            raise errors.Conflict("put", status=409)
        return self.leases.write(body)


def candidate(leases, identity):
    """Return a candidate and its client, with the times that processes use."""
    client = Client(leases)
    election = Election(
        client=client, namespace="ns", name="n", identity=identity,
        lease_seconds=LEASE, renew_seconds=RENEW, retry_seconds=RETRY,
    )  # fmt: skip
    return election, client


async def overlap(cut, hangs, start):
    """Return how long before the standby's beginning the cut-off leader has ended."""
    leases, loop = Leases(), asyncio.get_running_loop()
    (first, client), (second, _) = candidate(leases, "a"), candidate(leases, "b")
    await first.acquire()
    client.cut, client.hangs = loop.time() + cut, hangs
    ended, began = [], []

    async def hold():
        await first.hold()
        ended.append(loop.time())

    async def stand_by():
        await asyncio.sleep(start)
        await second.acquire()
        began.append(loop.time())

    async with asyncio.TaskGroup() as group:
        group.create_task(hold(), name="leader")
        group.create_task(stand_by(), name="standby")
    assert ended[0] <= client.cut + RENEW
    return began[0] - ended[0]


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.looptime
async def test_leader_that_is_cut_off_ends_first(hangs):
    """Five seconds lie between the two, as the runbook says."""
    assert await overlap(7.3, hangs, 0.0) >= LEASE - RENEW - 0.2


@settings(max_examples=60, deadline=None)
@given(
    cut=st.floats(0, 40), hangs=st.booleans(), start=st.floats(0, 30),
)  # fmt: skip
def test_two_never_lead_at_once(cut, hangs, start):
    """Whenever the leader is cut off, in whatever way, and whenever the standby came."""
    import looptime

    loop = looptime.new_event_loop()
    try:
        assert loop.run_until_complete(overlap(cut, hangs, start)) > 0
    finally:
        loop.close()
