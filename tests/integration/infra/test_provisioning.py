"""Devices of an enrollment group: the hub emulator, its provisioning service, the vendor's client."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import time
import tomllib
from types import SimpleNamespace
from typing import Any

import pytest
from azure.iot.device import ProvisioningDeviceClient

from infra import guest, hub_content
from infra.components.edge_device import EdgeDeviceProvider
from kvedge import iothub, settings, spec
from kvedge.emulator import tokens
from kvedge.redact import Secret
from kvedge.testing.hubs import hub, hub_certificates  # noqa: F401 - fixtures

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")


def service(hub: Any, method: str, path: str, body: Any = None) -> Any:  # noqa: F811
    """Send one request with all rights and return its answer."""
    fields = dict(part.split("=", 1) for part in hub.connection_string.split(";"))
    connection = http.client.HTTPSConnection(
        "localhost", hub.emulator.https_port,
        context=ssl.create_default_context(cafile=hub.ca), timeout=10,
    )  # fmt: skip
    token = tokens.issue(
        fields["HostName"], fields["SharedAccessKey"], expiry=int(time.time()) + 60,
        policy=fields["SharedAccessKeyName"],
    )  # fmt: skip
    text = json.dumps(body) if body is not None else None
    connection.request(method, f"{path}?api-version=2021-10-01", text, {"Authorization": token})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def group_key(hub: Any, name: str) -> str:  # noqa: F811
    """Make an enrollment group and return its primary key."""
    group = service(hub, "PUT", f"/enrollmentGroups/{name}", {"capabilities": {"iotEdge": True}})
    return group["attestation"]["symmetricKey"]["primaryKey"]


@pytest.fixture
def stack(hub: Any) -> dict[str, Any]:  # noqa: F811
    """Settings with the emulator's hub and an enrollment group of its."""
    return {
        "hub": {"connectionString": hub.connection_string, "caFile": str(hub.ca), "deviceHost": hub.host},
        "dps": {
            "idScope": service(hub, "GET", "/kvedge/v1/hub")["idScope"],
            "groupKey": group_key(hub, "fleet"),
            "endpoint": f"https://{hub.host}",
        },
        "registry": {"push": "registry.example.net"},
        "fleet": [{"name": "edge1", "tags": {"line": "press"}}],
    }  # fmt: skip


def provider(stack: dict[str, Any]) -> EdgeDeviceProvider:
    """Return the provider as the engine configures it."""
    found = EdgeDeviceProvider()
    found.configure(SimpleNamespace(config=stack))  # type: ignore[arg-type]
    return found


def properties(environment: spec.Environment) -> dict[str, Any]:
    """Return the inputs of the first VM's device."""
    vm = environment.fleet[0]
    return {
        "device_id": environment.device_id(vm), "device_host": environment.hub.device_host,
        "tags": hub_content.device_tags(environment, vm), "key_version": vm.key_version,
    }  # fmt: skip


def registered(hub: Any, environment: spec.Environment, connection_string: str) -> Any:  # noqa: F811
    """Register as the VM does, with nothing but what its config.toml says."""
    text = guest.config_toml(environment, environment.fleet[0], connection_string)
    found = tomllib.loads(text)["provisioning"]
    assert found["source"] == "dps"
    how = found["attestation"]
    assert how["method"] == "symmetric_key"
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        found["global_endpoint"].removeprefix("https://"), how["registration_id"],
        found["id_scope"], how["symmetric_key"]["value"], **hub.device_options(),
    )  # fmt: skip
    return client.register()


def in_hub(hub: Any, device_id: str) -> tuple[str, bool, dict[str, Any]]:  # noqa: F811
    """Return a device's primary key, whether it is an edge device, and its tags."""

    async def read() -> tuple[str, bool, dict[str, Any]]:
        async with iothub.Hub.from_connection_string(
            Secret(hub.connection_string), ca_file=hub.ca
        ) as found:
            device = await found.get_device(device_id)
            twin = await found.get_twin(device_id)
        key = device["authentication"]["symmetricKey"]["primaryKey"]
        return key, device["capabilities"]["iotEdge"], twin["tags"]

    return asyncio.run(read())


def test_a_vm_registers_itself_with_its_derived_key(hub: Any, stack: dict[str, Any]) -> None:  # noqa: F811
    """The device keeps the tags that it got ahead, and another group's key is another device key."""
    environment = settings.parse("plant", stack, environ={})
    inputs = properties(environment)
    made = provider(stack).create(inputs)
    assert environment.dps is not None
    assert environment.dps.group_key.reveal() not in json.dumps(made.outs)
    result = registered(hub, environment, made.outs["connection_string"])
    assert result.status == "assigned"
    assert result.registration_state.device_id == "plant-edge1"
    assert result.registration_state.assigned_hub == hub.host
    key, edge, tags = in_hub(hub, "plant-edge1")
    assert (key, edge) == (guest.key_of(made.outs["connection_string"]), True)
    assert (tags["line"], tags["kvedge"]["environment"]) == ("press", "plant")

    assert not provider(stack).diff("", made.outs, inputs).changes
    later = {**stack, "dps": {**stack["dps"], "groupKey": group_key(hub, "fleet")}}
    assert provider(later).diff("", made.outs, inputs).changes
    changed = provider(later).update("", made.outs, inputs).outs
    assert changed["connection_string"] != made.outs["connection_string"]
    assert registered(hub, settings.parse("plant", later, environ={}), changed["connection_string"])
    key, _, tags = in_hub(hub, "plant-edge1")
    assert (key, tags["line"]) == (guest.key_of(changed["connection_string"]), "press")


def test_a_key_version_leaves_a_derived_key_alone(hub: Any, stack: dict[str, Any]) -> None:  # noqa: F811
    """The group's key decides; only the ssh host key goes by the version."""
    environment = settings.parse("plant", stack, environ={})
    inputs = properties(environment)
    made = provider(stack).create(inputs)
    renewed = provider(stack).update("", made.outs, {**inputs, "key_version": 2}).outs
    assert renewed["connection_string"] == made.outs["connection_string"]


def test_a_device_that_was_given_its_key_can_join_a_group(hub: Any, stack: dict[str, Any]) -> None:  # noqa: F811
    """The section is added to an environment that runs: the hub's key becomes the derived one."""
    plain = {key: value for key, value in stack.items() if key != "dps"}
    inputs = properties(settings.parse("plant", plain, environ={}))
    made = provider(plain).create(inputs)
    assert provider(stack).diff("", made.outs, inputs).changes
    joined = provider(stack).update("", made.outs, inputs).outs
    environment = settings.parse("plant", stack, environ={})
    assert registered(hub, environment, joined["connection_string"]).status == "assigned"
    assert len(base64.b64decode(guest.key_of(joined["connection_string"]))) == 32
