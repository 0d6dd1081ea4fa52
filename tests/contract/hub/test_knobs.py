"""The emulator made as awkward as the real hub; azure-iot-hub must notice."""

from __future__ import annotations

import time

import pytest
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification
from msrest.exceptions import ClientException, ClientRequestError, HttpOperationError


def test_throttles(turn, deployments):
    """The 21st configuration operation of a minute is 429 without Retry-After."""
    turn(tier="S1")
    for _ in range(20):
        deployments.get_configurations(100)
    with pytest.raises(HttpOperationError) as failed:
        deployments.get_configurations(100)
    response = failed.value.response
    assert response.status_code == 429
    assert response.headers["iothub-errorcode"] == "ThrottlingBacklogTimeout"
    assert "Retry-After" not in response.headers
    assert "Operation type: ConfigurationRead" in response.text


def test_the_budget_fills_again(turn, deployments):
    """Throttles pass with time; units multiply them."""
    turn(tier="S1", units=50)
    for _ in range(40):
        deployments.get_configurations(100)
    turn(tier="S1", throttle_scale=0.05)
    deployments.get_configurations(100)
    with pytest.raises(HttpOperationError):
        deployments.get_configurations(100)


def test_long_methods_cost_more(turn, registry, new_id):
    """A direct method is metered by 4 KB: a long payload takes what many short ones would."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    turn(tier="S1")
    statuses = []
    for payload in ("x" * 120_000, "x" * 120_000, "x"):
        with pytest.raises(HttpOperationError) as failed:
            registry.invoke_device_method(
                name, CloudToDeviceMethod(method_name="m", payload=payload)
            )
        statuses.append(failed.value.response.status_code)
    assert statuses[:2] == [404, 429]


def test_failures(turn, registry, new_id):
    """A burst of 503 is ridden out by the client's own retries; a longer one is not."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    turn(fail_status=503, fail_count=2)
    assert registry.get_device(name).device_id == name
    turn(fail_status=500, fail_count=-1, fail_operation="TwinRead")
    registry.protocol.config.retry_policy.retries = 1
    with pytest.raises(ClientRequestError):
        registry.get_twin(name)
    assert registry.get_device(name).device_id == name


def test_latency(turn, registry):
    """Every answer comes later."""
    turn(latency_seconds=0.3)
    begun = time.monotonic()
    registry.get_device_registry_statistics()
    assert time.monotonic() - begun >= 0.3


def test_query_lag(turn, registry, new_id, eventually):
    """A new device is found late, and a removed one lingers in queries only."""
    turn(query_lag_seconds=1.0)
    name = new_id()
    query = QuerySpecification(query=f"SELECT deviceId FROM devices WHERE deviceId = '{name}'")
    assert registry.query_iot_hub(query).items == []
    registry.create_device_with_sas(name, "", "", "enabled")
    assert registry.query_iot_hub(query).items == []
    eventually(lambda: registry.query_iot_hub(query).items)
    registry.delete_device(name)
    assert registry.query_iot_hub(query).items
    eventually(lambda: not registry.query_iot_hub(query).items)


def test_bursts_of_failures(turn, registry, eventually):
    """With an interval, failures come again after a quiet time."""
    turn(fail_status=500, fail_count=1, fail_operation="TwinRead", fail_every_seconds=0.3)

    def outcome():
        registry.protocol.config.retry_policy.retries = 0
        try:
            registry.get_twin("nobody")
        except ClientException as error:
            response = getattr(error, "response", None)
            return 500 if response is None else response.status_code
        return 200

    for expected in (500, 404, 500, 404):
        eventually(lambda expected=expected: outcome() == expected)


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")
def test_connections_drop_again_and_again(hub, turn, registry, new_id, eventually):
    """A device that comes back is put out again."""
    import queue

    from azure.iot.device import IoTHubDeviceClient

    name = new_id()
    key = registry.create_device_with_sas(name, "", "", "enabled").authentication.symmetric_key
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(name, key.primary_key),
        **hub.device_options(connection_retry=False),
    )
    lost = queue.Queue()
    client.on_connection_state_change = lambda: client.connected or lost.put(None)
    turn(drop_every_seconds=0.5)
    for _ in range(2):
        client.connect()
        lost.get(timeout=20)
    turn()
    client.shutdown()
