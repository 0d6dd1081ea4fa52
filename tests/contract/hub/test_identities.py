"""Devices and modules, driven by azure-iot-hub."""

from __future__ import annotations

import base64

import pytest
from azure.iot.hub.models import ExportImportDevice
from azure.iot.hub.protocol.models import AuthenticationMechanism, SymmetricKey
from msrest.exceptions import HttpOperationError

KEY = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def code_of(failed) -> tuple[int, str]:
    response = failed.value.response
    return response.status_code, response.headers["iothub-errorcode"]


def test_a_device_is_made_with_keys(registry, new_id):
    """Keys that are not given are drawn by the hub."""
    device = registry.create_device_with_sas(new_id(), "", "", "enabled")
    assert device.authentication.type == "sas"
    assert len(base64.b64decode(device.authentication.symmetric_key.primary_key)) == 32
    assert device.status == "enabled"
    assert device.connection_state == "Disconnected"
    assert not device.capabilities.iot_edge
    assert registry.get_device(device.device_id).as_dict() == device.as_dict()


def test_given_keys_are_kept(registry, new_id):
    """A device made with keys has exactly these."""
    device = registry.create_device_with_sas(new_id(), KEY, KEY, "disabled")
    assert device.authentication.symmetric_key.primary_key == KEY
    assert device.status == "disabled"


def test_a_device_cannot_be_made_twice(registry, new_id):
    """Without If-Match an existing device is a conflict."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    with pytest.raises(HttpOperationError) as failed:
        registry.create_device_with_sas(name, "", "", "enabled")
    assert code_of(failed) == (409, "DeviceAlreadyExists")


def test_an_update_needs_the_right_etag(registry, new_id):
    """A stale etag is refused, the current one and `*` are taken."""
    name = new_id()
    first = registry.create_device_with_sas(name, KEY, KEY, "enabled")
    second = registry.update_device_with_sas(
        name, first.etag, KEY, KEY, "disabled", status_reason="spring clean"
    )
    assert second.etag != first.etag
    assert (second.status, second.status_reason) == ("disabled", "spring clean")
    with pytest.raises(HttpOperationError) as failed:
        registry.update_device_with_sas(name, first.etag, KEY, KEY, "enabled")
    assert code_of(failed) == (412, "PreconditionFailed")
    assert registry.update_device_with_sas(name, "*", KEY, KEY, "enabled").status == "enabled"


def test_a_missing_device_is_not_found(registry, new_id):
    """Reading, changing and removing what is not there are 404."""
    name = new_id()
    for act in (
        lambda: registry.get_device(name),
        lambda: registry.delete_device(name, "*"),
        lambda: registry.update_device_with_sas(name, "*", KEY, KEY, "enabled"),
        lambda: registry.get_twin(name),
    ):
        with pytest.raises(HttpOperationError) as failed:
            act()
        assert code_of(failed) == (404, "DeviceNotFound")


def test_an_edge_device_gets_its_runtime_modules(registry, new_id):
    """The hub makes $edgeAgent and $edgeHub and a scope."""
    name = new_id()
    device = registry.create_device_with_sas(name, "", "", "enabled", iot_edge=True)
    assert device.capabilities.iot_edge
    assert device.device_scope.startswith(f"ms-azure-iot-edge://{name}-")
    modules = registry.get_modules(name)
    assert sorted(module.module_id for module in modules) == ["$edgeAgent", "$edgeHub"]
    assert {module.managed_by for module in modules} == {"iotEdge"}


def test_a_leaf_device_takes_its_parents_scope(registry, new_id):
    """The scope of a child is the parent's, and is listed as a parent scope."""
    parent = registry.create_device_with_sas(new_id(), "", "", "enabled", iot_edge=True)
    child = registry.create_device_with_sas(
        new_id(), "", "", "enabled", device_scope=parent.device_scope
    )
    assert child.device_scope == parent.device_scope
    assert child.parent_scopes == [parent.device_scope]


def test_modules_come_and_go(registry, new_id):
    """A module is made, found, listed, changed and removed."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    module = registry.create_module_with_sas(name, "m1", "me", "", "")
    assert module.managed_by == "me"
    assert registry.get_module(name, "m1").etag == module.etag
    assert registry.update_module_with_sas(name, "m1", "you", "*", KEY, KEY).managed_by == "you"
    with pytest.raises(HttpOperationError) as failed:
        registry.create_module_with_sas(name, "m1", "me", "", "")
    assert code_of(failed) == (409, "ModuleAlreadyExistsOnDevice")
    registry.delete_module(name, "m1")
    assert registry.get_modules(name) == []


def test_names_with_a_dollar_are_the_hubs_own(registry, new_id):
    """A module id that begins with a dollar cannot be made."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    with pytest.raises(HttpOperationError) as failed:
        registry.create_module_with_sas(name, "$mine", "me", "", "")
    assert failed.value.response.status_code == 400


def test_thumbprints_are_kept(registry, new_id):
    """A device with certificates by thumbprint shows them."""
    device = registry.create_device_with_x509(new_id(), "A" * 40, "B" * 40, "enabled")
    assert device.authentication.type == "selfSigned"
    assert device.authentication.x509_thumbprint.primary_thumbprint == "A" * 40
    assert device.authentication.symmetric_key.primary_key is None


def test_removal_takes_everything(registry, new_id):
    """A device's modules and twin go with it."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled", iot_edge=True)
    registry.delete_device(name)
    with pytest.raises(HttpOperationError) as failed:
        registry.get_module_twin(name, "$edgeAgent")
    assert failed.value.response.status_code == 404


def test_bulk_tells_each_failure(registry, new_id):
    """One request makes many devices; those that fail are named, the others are there."""
    names = [new_id() for _ in range(3)]
    auth = AuthenticationMechanism(
        type="sas", symmetric_key=SymmetricKey(primary_key=KEY, secondary_key=KEY)
    )

    def item(name, mode):
        return ExportImportDevice(id=name, import_mode=mode, status="enabled", authentication=auth)

    result = registry.bulk_create_or_update_devices([item(name, "create") for name in names])
    assert result.is_successful
    again = registry.bulk_create_or_update_devices(
        [item(names[0], "create"), item(names[1], "delete")]
    )
    assert not again.is_successful
    assert [(e.device_id, e.error_code) for e in again.errors] == [
        (names[0], "DeviceAlreadyExists")
    ]
    with pytest.raises(HttpOperationError):
        registry.get_device(names[1])


def test_statistics_count_devices(registry, new_id):
    """Enabled and disabled devices add up."""
    before = registry.get_device_registry_statistics()
    registry.create_device_with_sas(new_id(), "", "", "enabled")
    registry.create_device_with_sas(new_id(), "", "", "disabled")
    after = registry.get_device_registry_statistics()
    assert after.total_device_count == before.total_device_count + 2
    assert after.disabled_device_count == before.disabled_device_count + 1
    assert registry.get_service_statistics().connected_device_count >= 0
