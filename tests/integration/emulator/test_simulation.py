"""Simulated edge devices against a running emulator."""

from __future__ import annotations

import asyncio

import pytest
from azure.iot.hub.models import CloudToDeviceMethod, Configuration, ConfigurationContent
from msrest.exceptions import HttpOperationError

from kvedge.emulator.simulation import Behaviour, Plan, Simulation
from kvedge.testing.waiting import until_async

CONTENT = {
    "$edgeAgent": {
        "properties.desired": {
            "schemaVersion": "1.1",
            "modules": {"sensor": {"type": "docker", "settings": {"image": "x"}}},
        }
    },
    "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
}


@pytest.fixture
def plan(hub):
    def make(**more):
        return Plan(
            connection_string=hub.connection_string,
            mqtt=("127.0.0.1", hub.mqtt_port),
            host=hub.host,
            ca=hub.ca,
            **more,
        )

    return make


def elsewhere(fact):
    """Return a fact that is asked in a thread, since the devices live in this loop."""
    return lambda: asyncio.to_thread(fact)


def deploy(hub):
    hub.configuration_manager().create_configuration(
        Configuration(
            id="base",
            content=ConfigurationContent(modules_content=CONTENT),
            target_condition="tags.site = 'lille'",
        )
    )


async def test_a_mix_of_devices(hub, plan):
    """Behaviours are dealt by their shares, and the hub counts what the devices report."""
    mix = {Behaviour.SUCCESS: 3, Behaviour.FAILING: 1, Behaviour.OFFLINE: 1}
    async with Simulation(plan(devices=10, tags={"site": "lille"}, mix=mix)) as running:
        async with asyncio.timeout(15):
            await running.connected()
        await asyncio.to_thread(deploy, hub)
        manager = hub.configuration_manager()

        def counted():
            results = manager.get_configuration("base").system_metrics.results
            return results == {
                "targetedCount": 10,
                "appliedCount": 10,
                "reportedSuccessfulCount": 6,
                "reportedFailedCount": 2,
            }

        await until_async(elsewhere(counted))


async def test_one_device_is_led_through_its_life(hub, plan):
    """Overrides, absence and return of a device show in its twin; its methods answer."""
    async with Simulation(plan(tags={"site": "lille"})) as running:
        device = running.devices["sim-1"]
        registry = hub.registry_manager()
        await asyncio.to_thread(deploy, hub)

        def module():
            twin = registry.get_module_twin("sim-1", "$edgeAgent")
            return twin.properties.reported.get("modules", {}).get("sensor", {})

        await until_async(elsewhere(lambda: module().get("runtimeStatus") == "running"))
        device.override("sensor", runtimeStatus="backoff", restartCount=3)
        await until_async(
            elsewhere(
                lambda: (module()["runtimeStatus"], module()["restartCount"]) == ("backoff", 3)
            )
        )

        def call(name, payload=None):
            method = CloudToDeviceMethod(method_name=name, payload=payload)
            return registry.invoke_device_module_method("sim-1", "$edgeAgent", method)

        assert (await asyncio.to_thread(call, "ping")).status == 200
        logs = {"schemaVersion": "1.0", "items": [{"id": "sensor", "filter": {"tail": 1}}]}
        answer = await asyncio.to_thread(call, "GetModuleLogs", logs)
        assert answer.payload == [{"id": "sensor", "payload": "sensor of sim-1: line 10\n"}]
        assert (await asyncio.to_thread(call, "nothing")).status == 400
        device.go_offline()
        await until_async(
            elsewhere(
                lambda: registry.get_module_twin("sim-1", "$edgeAgent").connection_state
                != "Connected"
            )
        )
        with pytest.raises(HttpOperationError):
            await asyncio.to_thread(call, "ping")
        device.clear_overrides()
        device.go_online()
        await until_async(elsewhere(lambda: module()["runtimeStatus"] == "running"))


def test_shares_are_dealt_evenly(plan):
    """Any prefix of the devices has about the shares of the whole."""
    mix = {Behaviour.SUCCESS: 80, Behaviour.FAILING: 20}
    dealt = [kind for _, kind in plan(devices=100, mix=mix).behaviours()]
    assert dealt.count(Behaviour.FAILING) == 20
    assert dealt[:10].count(Behaviour.FAILING) == 2
