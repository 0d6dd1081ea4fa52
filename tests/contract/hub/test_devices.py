"""Devices and modules on MQTT, driven by azure-iot-device (sync and aio)."""

from __future__ import annotations

import asyncio
import queue
import time

import pytest
from azure.iot.device import (
    IoTHubDeviceClient,
    IoTHubModuleClient,
    Message,
    MethodResponse,
    exceptions,
)
from azure.iot.device.aio import IoTHubDeviceClient as AsyncDeviceClient
from azure.iot.device.aio import IoTHubModuleClient as AsyncModuleClient
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

# The vendor's client asks Python for TLS 1.2 by a name that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")


@pytest.fixture
def connect(hub, registry, new_id):
    """Make a device (or a module of it) and its connected client."""
    clients = []

    def make(module_id="", *, device_id="", wait=True, **options):
        if not device_id:
            device_id = new_id()
            registry.create_device_with_sas(device_id, "", "", "enabled")
        if module_id:
            identity = registry.create_module_with_sas(device_id, module_id, "test", "", "")
            kind = IoTHubModuleClient
        else:
            identity, kind = registry.get_device(device_id), IoTHubDeviceClient
        key = identity.authentication.symmetric_key.primary_key
        client = kind.create_from_connection_string(
            hub.device_connection_string(device_id, key, module_id), **hub.device_options(**options)
        )
        client.device_id = device_id
        clients.append(client)
        if wait:
            client.connect()
        return client

    yield make
    for client in clients:
        client.shutdown()


def answer(client, status=200):
    """Answer each method with its own name and payload."""

    def heard(request):
        client.send_method_response(
            MethodResponse.create_from_method_request(
                request, status, {"name": request.name, "got": request.payload}
            )
        )

    client.on_method_request_received = heard


def test_a_connection_shows_in_the_registry(connect, registry, eventually):
    """The twin says whether the device is connected and when it was last heard."""
    client = connect()
    eventually(lambda: registry.get_twin(client.device_id).connection_state == "Connected")
    assert registry.get_device(client.device_id).last_activity_time.year > 2000
    client.disconnect()
    eventually(lambda: registry.get_twin(client.device_id).connection_state == "Disconnected")


@pytest.mark.parametrize("module_id", ["", "m1"])
def test_twin_both_ways(connect, registry, module_id):
    """Reported properties reach the service, desired ones the device."""
    client = connect(module_id)
    heard = queue.Queue()
    client.on_twin_desired_properties_patch_received = heard.put
    assert client.get_twin() == {"desired": {"$version": 1}, "reported": {"$version": 1}}
    client.patch_twin_reported_properties({"a": {"b": 1}, "gone": 1})
    client.patch_twin_reported_properties({"gone": None})
    read = registry.get_module_twin if module_id else registry.get_twin
    write = registry.update_module_twin if module_id else registry.update_twin
    ids = (client.device_id, module_id) if module_id else (client.device_id,)
    reported = read(*ids).properties.reported
    assert reported["a"] == {"b": 1}
    assert "gone" not in reported
    assert reported["$version"] == 3
    write(*ids, Twin(properties=TwinProperties(desired={"x": {"y": 1}})), "*")
    assert heard.get(timeout=10) == {"x": {"y": 1}, "$version": 2}
    write(*ids, Twin(properties=TwinProperties(desired={"x": None})), "*")
    assert heard.get(timeout=10) == {"x": None, "$version": 3}
    assert client.get_twin()["desired"] == {"$version": 3}


def test_mqtt_over_websocket(connect, registry):
    """Port 443 serves the same sessions in WebSocket frames."""
    client = connect(websockets=True)
    answer(client)
    client.send_message("x" * 200_000)
    client.patch_twin_reported_properties({"a": 1})
    assert registry.get_twin(client.device_id).properties.reported["a"] == 1
    method = CloudToDeviceMethod(method_name="ping", connect_timeout_in_seconds=5)
    assert registry.invoke_device_method(client.device_id, method).status == 200
    client.disconnect()


def test_a_replaced_twin_tells_the_difference(connect, registry):
    """After PUT the device hears what to remove and what to set."""
    client = connect()
    heard = queue.Queue()
    desired = Twin(properties=TwinProperties(desired={"old": 1, "same": 2}))
    registry.update_twin(client.device_id, desired, "*")
    client.on_twin_desired_properties_patch_received = heard.put
    desired = Twin(properties=TwinProperties(desired={"new": 3, "same": 2}))
    registry.replace_twin(client.device_id, desired, "*")
    patch = heard.get(timeout=10)
    assert (patch["new"], patch["old"]) == (3, None)


@pytest.mark.parametrize(
    ("patch", "status"),
    [({"big": "x" * 5000}, "400"), ({f"k{n}": "x" * 4000 for n in range(9)}, "403")],
)
def test_reports_that_are_too_large_are_refused(connect, patch, status):
    """The device hears that the service does not take its report."""
    client = connect()
    with pytest.raises(exceptions.ClientError) as failed:
        client.patch_twin_reported_properties(patch)
    assert status in str(failed.value.__cause__)


def test_methods(connect, registry):
    """A direct method goes to the device and its answer comes back."""
    client = connect()
    answer(client, 207)
    method = CloudToDeviceMethod(
        method_name="do it", payload={"k": [1, None]}, response_timeout_in_seconds=20
    )
    result = registry.invoke_device_method(client.device_id, method)
    assert (result.status, result.payload) == (207, {"name": "do it", "got": {"k": [1, None]}})


def test_methods_of_modules(connect, registry):
    """A module is called by its own name."""
    client = connect("m1")
    answer(client)
    result = registry.invoke_device_module_method(
        client.device_id, "m1", CloudToDeviceMethod(method_name="ping", payload=None)
    )
    assert result.payload["name"] == "ping"


def test_methods_of_absent_devices(connect, registry):
    """A device that is not there, or does not listen, answers 404 with code 404103."""
    client = connect()
    with pytest.raises(HttpOperationError) as failed:
        registry.invoke_device_method(client.device_id, CloudToDeviceMethod(method_name="ping"))
    assert failed.value.response.status_code == 404
    assert '\\"errorCode\\": 404103' in failed.value.response.text


def test_methods_that_are_not_answered(connect, registry):
    """A silent device is a gateway timeout after the response time."""
    client = connect()
    client.on_method_request_received = lambda request: None
    method = CloudToDeviceMethod(method_name="ping", response_timeout_in_seconds=5)
    begun = time.monotonic()
    with pytest.raises(HttpOperationError) as failed:
        registry.invoke_device_method(client.device_id, method)
    assert failed.value.response.status_code == 504
    assert 4.5 < time.monotonic() - begun < 15


def test_connect_timeout_waits_for_the_device(connect, registry):
    """A method may wait until its device arrives."""
    client = connect(wait=False)
    method = CloudToDeviceMethod(
        method_name="ping", response_timeout_in_seconds=30, connect_timeout_in_seconds=30
    )

    async def both():
        call = asyncio.create_task(
            asyncio.to_thread(registry.invoke_device_method, client.device_id, method)
        )
        await asyncio.to_thread(client.connect)
        await asyncio.to_thread(answer, client)
        return await call

    assert asyncio.run(both()).status == 200


def test_a_newer_connection_takes_over(hub, connect, registry, eventually):
    """The same identity connects again: the older connection ends."""
    first = connect(connection_retry=False)
    lost = queue.Queue()
    first.on_connection_state_change = lambda: lost.put(first.connected)
    key = registry.get_device(first.device_id).authentication.symmetric_key.secondary_key
    second = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(first.device_id, key), **hub.device_options()
    )
    try:
        second.connect()
        assert lost.get(timeout=10) is False
        assert second.connected
    finally:
        second.shutdown()


def test_wrong_keys_are_refused(hub, registry, new_id):
    """A token signed with another key does not connect."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    other = registry.create_device_with_sas(new_id(), "", "", "enabled")
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(name, other.authentication.symmetric_key.primary_key),
        **hub.device_options(),
    )
    with pytest.raises((exceptions.CredentialError, exceptions.ConnectionFailedError)):
        client.connect()
    client.shutdown()


def test_disabled_devices_are_put_out(connect, registry, eventually):
    """A device that is disabled loses its connection and cannot come back."""
    client = connect(connection_retry=False)
    keys = registry.get_device(client.device_id).authentication.symmetric_key
    registry.update_device_with_sas(
        client.device_id, "*", keys.primary_key, keys.secondary_key, "disabled"
    )
    eventually(lambda: not client.connected)
    with pytest.raises((exceptions.CredentialError, exceptions.ConnectionFailedError)):
        client.connect()


def test_subscriptions_outlive_the_connection(connect, registry, eventually):
    """The client subscribes once; after a reconnect methods still reach it (CleanSession 0)."""
    client = connect()
    answer(client)
    client.disconnect()
    client.connect()
    method = CloudToDeviceMethod(method_name="ping", connect_timeout_in_seconds=10)
    assert registry.invoke_device_method(client.device_id, method).status == 200


async def test_the_async_client(hub, registry, new_id):
    """The aio client works as the sync one does."""
    name = new_id()
    device = await asyncio.to_thread(registry.create_device_with_sas, name, "", "", "enabled")
    key = device.authentication.symmetric_key.primary_key
    client = AsyncDeviceClient.create_from_connection_string(
        hub.device_connection_string(name, key), **hub.device_options()
    )
    heard = asyncio.Queue()

    async def patched(patch):
        await heard.put(patch)

    client.on_twin_desired_properties_patch_received = patched
    try:
        await client.connect()
        assert (await client.get_twin())["desired"]["$version"] == 1
        await client.send_message(Message("hello"))
        await client.patch_twin_reported_properties({"a": 1})
        desired = Twin(properties=TwinProperties(desired={"b": 2}))
        await asyncio.to_thread(registry.update_twin, name, desired, "*")
        async with asyncio.timeout(10):
            # The client makes up a patch of the whole twin when it connects late.
            while (await heard.get()).get("b") != 2:
                pass
    finally:
        await client.shutdown()


async def test_an_async_module(hub, registry, new_id):
    """An aio module client answers methods and hears what is desired of it."""
    name = new_id()
    await asyncio.to_thread(registry.create_device_with_sas, name, "", "", "enabled")
    made = await asyncio.to_thread(registry.create_module_with_sas, name, "m", "test", "", "")
    key = made.authentication.symmetric_key.primary_key
    client = AsyncModuleClient.create_from_connection_string(
        hub.device_connection_string(name, key, "m"), **hub.device_options()
    )

    async def called(request):
        await client.send_method_response(
            MethodResponse.create_from_method_request(request, 201, {"got": request.payload})
        )

    client.on_method_request_received = called
    method = CloudToDeviceMethod(method_name="m", payload=[1], connect_timeout_in_seconds=20)
    try:
        await client.connect()
        result = await asyncio.to_thread(registry.invoke_device_module_method, name, "m", method)
        assert (result.status, result.payload) == (201, {"got": [1]})
        with pytest.raises(exceptions.ClientError):
            await client.patch_twin_reported_properties({"big": "x" * 5000})
        assert (await client.get_twin())["reported"] == {"$version": 1}
    finally:
        await client.shutdown()
