"""Provisioning with symmetric keys, driven by azure-iot-device."""

from __future__ import annotations

import asyncio
import time

import pytest
from azure.iot.device import IoTHubDeviceClient, ProvisioningDeviceClient, exceptions
from azure.iot.device.aio import ProvisioningDeviceClient as AsyncProvisioningClient

from kvedge.emulator import tokens
from kvedge.emulator.provisioning import derived_key

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")


def provision(hub, scope, registration_id, key):
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        hub.host, registration_id, scope, key, **hub.device_options()
    )
    return client.register()


def test_a_group(hub, call, registry, new_id):
    """A group's device derives its key, is assigned, and connects with what it got."""
    scope = call("GET", "/kvedge/v1/hub")[1]["idScope"]
    status, group = call(
        "PUT", "/enrollmentGroups/fleet",
        {
            "capabilities": {"iotEdge": True},
            "initialTwin": {"tags": {"site": "lille"}, "properties": {"desired": {"a": 1}}},
        },
    )  # fmt: skip
    assert status == 200
    name = new_id()
    key = derived_key(group["attestation"]["symmetricKey"]["primaryKey"], name)
    result = provision(hub, scope, name, key)
    assert result.status == "assigned"
    assert result.registration_state.assigned_hub == hub.host
    assert result.registration_state.device_id == name
    assert registry.get_device(name).capabilities.iot_edge
    twin = registry.get_twin(name)
    assert (twin.tags, twin.properties.desired["a"]) == ({"site": "lille"}, 1)
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(name, key), **hub.device_options()
    )
    client.connect()
    assert client.get_twin()["desired"]["a"] == 1
    client.shutdown()
    assert provision(hub, scope, name, key).status == "assigned"
    with pytest.raises((exceptions.CredentialError, exceptions.ConnectionFailedError)):
        provision(hub, scope, name, tokens.new_key())
    assert call("DELETE", "/enrollmentGroups/fleet")[0] == 204
    assert call("GET", "/enrollmentGroups/fleet")[0] == 404


def test_an_individual_by_https(hub, call, registry, new_id):
    """A single device is provisioned over HTTPS as aziot-identityd does."""
    scope = call("GET", "/kvedge/v1/hub")[1]["idScope"]
    name = new_id()
    _, enrollment = call("PUT", f"/enrollments/{name}", {})
    key = enrollment["attestation"]["symmetricKey"]["primaryKey"]
    place = f"/{scope}/registrations/{name}"
    token = tokens.issue(place[1:], key, expiry=int(time.time()) + 60, policy="registration")
    status, started = call("PUT", f"{place}/register", {"registrationId": name}, token)
    assert (status, started["status"]) == (202, "assigning")
    operation = f"{place}/operations/{started['operationId']}"
    status, done = call("GET", operation, None, token)
    assert (status, done["registrationState"]["deviceId"]) == (200, name)
    assert registry.get_device(name).authentication.symmetric_key.primary_key == key
    bad = tokens.issue(place[1:], tokens.new_key(), expiry=int(time.time()) + 60)
    assert call("PUT", f"{place}/register", {}, bad)[0] == 401


async def test_the_async_client(hub, call, new_id):
    """The aio client registers as the sync one does."""
    scope = (await asyncio.to_thread(call, "GET", "/kvedge/v1/hub"))[1]["idScope"]
    name = new_id()
    _, enrollment = await asyncio.to_thread(call, "PUT", f"/enrollments/{name}", {})
    client = AsyncProvisioningClient.create_from_symmetric_key(
        hub.host, name, scope, enrollment["attestation"]["symmetricKey"]["secondaryKey"],
        **hub.device_options(),
    )  # fmt: skip
    result = await client.register()
    assert (result.status, result.registration_state.device_id) == ("assigned", name)


@pytest.mark.parametrize(
    "attestation",
    [
        {"type": "other"},
        {"type": "tpm"},
        {"type": "tpm", "tpm": {}},
        {"type": "tpm", "tpm": {"endorsementKey": "bm90IGEga2V5"}},
        {"type": "symmetricKey", "symmetricKey": {"primaryKey": "short"}},
    ],
)
def test_attestations_that_prove_nothing(call, attestation):
    """An unknown kind, or keys that are none, are an invalid argument."""
    status, body = call("PUT", "/enrollments/x", {"attestation": attestation})
    assert status == 400
    assert body["Message"].startswith("ErrorCode:ArgumentInvalid;")
