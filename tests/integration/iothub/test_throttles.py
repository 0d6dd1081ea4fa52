"""The client's budget, lanes and back-off against a hub that really throttles."""

from __future__ import annotations

import asyncio

import pytest

from kvedge import errors, iothub
from kvedge.emulator import Knobs
from kvedge.redact import Secret


@pytest.fixture
def throttled(hub):
    """Make the emulator throttle as a tier does."""

    async def turn(knobs):
        hub.emulator.turn(knobs)

    return lambda **knobs: hub.run(turn(Knobs(tier="S1", **knobs)))


@pytest.fixture
def client(hub):
    """Make a client of the hub with a budget and short pauses."""

    def make(units, *, tries=5, base_seconds=0.2):
        return iothub.Hub.from_connection_string(
            Secret(hub.connection_string),
            ca_file=hub.ca,
            budget=iothub.Budget(units),
            backoff=iothub.Backoff(base_seconds=base_seconds, tries=tries),
        )

    return make


def deployment(name):
    return {
        "id": name,
        "content": {"modulesContent": {"$edgeAgent": {"properties.desired": {}}}},
        "targetCondition": "deviceId = 'nobody'",
    }


async def test_a_budget_of_the_hubs_size_is_never_refused(throttled, client):
    """More callers than the quota has room for all get an answer, and no request goes twice."""
    throttled(units=10)
    calls = 205
    async with client(units=10) as hub, asyncio.TaskGroup() as group:
        for _ in range(calls):
            group.create_task(hub.configurations())
    assert hub.budget.spent == {"configurations": calls}


async def test_what_others_use_up_is_ridden_out(throttled, client):
    """Where others spend the same quota the hub refuses, and every call succeeds later."""
    throttled(throttle_scale=0.2)
    async with client(units=1, tries=12) as one, client(units=1, tries=12) as other:
        await one.create_device("d")
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task((one, other)[number % 2].get_twin("d"))
    assert one.budget.spent["twins"] + other.budget.spent["twins"] > 60


async def test_a_refusal_is_told_as_it_is(throttled, client):
    """The last refusal carries the hub's code, its text and a tracking id."""
    throttled(throttle_scale=0.05)
    async with client(iothub.UNLIMITED, tries=2, base_seconds=0.01) as hub:
        await hub.configurations()
        with pytest.raises(errors.Throttled) as caught:
            await hub.configurations()
    assert caught.value.reason == "ThrottlingBacklogTimeout"
    assert "Wait 10 seconds" in caught.value.details
    assert "tracking id" in caught.value.details
    assert hub.budget.spent == {"configurations": 3}


async def test_deletion_and_status_before_bulk(throttled, client):
    """A queue of new deployments is overtaken by a look at them, and both by a removal."""
    throttled(units=20)
    done = []

    async def noted(what, call):
        await call
        done.append(what)

    async with client(units=20) as hub:
        await hub.create_configuration(deployment("old"))
        hub.budget.refused("configurations")
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                call = hub.create_configuration(deployment(f"new-{number}"))
                group.create_task(noted("bulk", call))
            for _ in range(2):
                group.create_task(noted("status", hub.configurations()))
            group.create_task(noted("delete", hub.delete_configuration("old")))
    assert done == ["delete", "status", "status", "bulk", "bulk", "bulk", "bulk"]
