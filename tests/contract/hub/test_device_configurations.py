"""Automatic configurations of devices and modules, driven by azure-iot-hub."""

from __future__ import annotations

import contextlib
import secrets

import pytest
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    QuerySpecification,
    Twin,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError


@pytest.fixture
def configure(deployments):
    """Make configurations; they are gone after the test."""
    made = []

    def make(condition, *, devices=None, modules=None, priority=1):
        made.append(f"kvedge-{secrets.token_hex(6)}")
        content = ConfigurationContent(device_content=devices, module_content=modules)
        deployments.create_configuration(
            Configuration(
                id=made[-1], content=content, target_condition=condition, priority=priority,
                metrics=ConfigurationMetrics(queries={}),
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for name in made:
        with contextlib.suppress(HttpOperationError):  # some are gone already
            deployments.delete_configuration(name)


@pytest.fixture
def device(registry, new_id):
    """A device without edge runtime and the tag that its configurations ask for."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    registry.update_twin(name, Twin(tags={"mark": name}), "*")
    return name


def values(twin):
    return {name: value for name, value in twin.properties.desired.items() if name[0] != "$"}


def found(registry, text):
    """Return device and module of each row."""
    rows = registry.query_iot_hub(QuerySpecification(query=text)).items
    return [(row.device_id, row.module_id) for row in rows]


def test_the_highest_priority_wins_each_setting(
    registry, device, configure, deployments, eventually
):
    """Settings of several configurations meet in one twin, the highest one last."""
    by_hand = Twin(properties=TwinProperties(desired={"own": 1}))
    registry.update_twin(device, by_hand, "*")
    condition = f"tags.mark = '{device}'"
    low = configure(
        condition, priority=1,
        devices={"properties.desired.water": {"rate": 1}, "properties.desired.air.rate": 1},
    )  # fmt: skip
    high = configure(condition, priority=9, devices={"properties.desired.water.rate": 5})
    over = configure(condition, priority=3, devices={"properties.desired": {"water": {"rate": 3}}})
    wanted = {"own": 1, "water": {"rate": 5}, "air": {"rate": 1}}
    eventually(lambda: values(registry.get_twin(device)) == wanted)

    def counted(name):
        results = deployments.get_configuration(name).system_metrics.results
        return results.get("targetedCount"), results.get("appliedCount")

    eventually(lambda: counted(high) == (1, 1))
    eventually(lambda: counted(low) == (1, 1))
    eventually(lambda: counted(over) == (1, 1))
    text = f"SELECT deviceId FROM devices WHERE configurations.[[{high}]].status = 'Applied'"
    eventually(lambda: found(registry, text) == [(device, None)])


def test_what_is_overruled_is_only_targeted(registry, device, configure, deployments, eventually):
    """A configuration without any setting that lasts has Targeted but not Applied."""
    condition = f"tags.mark = '{device}'"
    low = configure(condition, priority=1, devices={"properties.desired.a.b": 1})
    configure(condition, priority=2, devices={"properties.desired.a": {"c": 2}})
    eventually(lambda: values(registry.get_twin(device)) == {"a": {"c": 2}})
    results = {"targetedCount": 1, "appliedCount": 0}
    eventually(lambda: deployments.get_configuration(low).system_metrics.results == results)


def test_settings_stay_and_edits_are_undone(registry, device, configure, deployments, eventually):
    """A manual edit of a setting is reverted; when the configuration goes, its values stay."""
    name = configure(f"tags.mark = '{device}'", devices={"properties.desired.a": 1})
    eventually(lambda: values(registry.get_twin(device)) == {"a": 1})
    registry.update_twin(device, Twin(properties=TwinProperties(desired={"a": 2, "b": 3})), "*")
    eventually(lambda: values(registry.get_twin(device)) == {"a": 1, "b": 3})
    deployments.delete_configuration(name)
    text = f"SELECT * FROM devices WHERE deviceId = '{device}'"

    def statuses():
        (row,) = registry.query_iot_hub(QuerySpecification(query=text)).items
        return row.additional_properties.get("configurations")

    eventually(lambda: not statuses())
    assert values(registry.get_twin(device)) == {"a": 1, "b": 3}


def test_modules(registry, device, configure, deployments, eventually):
    """A module configuration hits modules by its own kind of condition."""
    for module in ("pump", "valve"):
        registry.create_module_with_sas(device, module, "me", "", "")
    name = configure(
        f"FROM devices.modules WHERE deviceId = '{device}' AND moduleId = 'pump'",
        modules={"properties.desired.rate": 7},
    )
    eventually(lambda: values(registry.get_module_twin(device, "pump")) == {"rate": 7})
    assert values(registry.get_module_twin(device, "valve")) == {}
    results = {"targetedCount": 1, "appliedCount": 1}
    eventually(lambda: deployments.get_configuration(name).system_metrics.results == results)
    text = (
        "SELECT deviceId, moduleId FROM devices.modules "
        f"WHERE configurations.[[{name}]].status = 'Applied'"
    )
    eventually(lambda: found(registry, text) == [(device, "pump")])


def test_an_edge_device_has_both(registry, new_id, configure, deployments, eventually):
    """A device configuration and a deployment hit the same edge device."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled", iot_edge=True)
    own = configure(f"deviceId = '{name}'", devices={"properties.desired.zone": "north"})
    base = f"kvedge-{secrets.token_hex(6)}"
    desired = {"schemaVersion": "1.1", "modules": {}}
    content = ConfigurationContent(modules_content={"$edgeAgent": {"properties.desired": desired}})
    deployments.create_configuration(
        Configuration(id=base, content=content, target_condition=f"deviceId = '{name}'")
    )
    try:
        text = f"SELECT * FROM devices WHERE deviceId = '{name}'"

        def statuses():
            (row,) = registry.query_iot_hub(QuerySpecification(query=text)).items
            return row.additional_properties.get("configurations")

        applied = {"status": "Applied"}
        eventually(lambda: statuses() == {own: applied, base: applied})
        assert values(registry.get_twin(name)) == {"zone": "north"}
        assert values(registry.get_module_twin(name, "$edgeAgent")) == desired
    finally:
        deployments.delete_configuration(base)
