"""Automatic edge deployments, driven by azure-iot-hub."""

from __future__ import annotations

import contextlib
import secrets

import pytest
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    QuerySpecification,
    Twin,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError


def values(document):
    return {name: value for name, value in document.items() if name[0] != "$"}


def full(modules=(), **extra):
    return {
        "$edgeAgent": {
            "properties.desired": {
                "schemaVersion": "1.1",
                "modules": {name: {"settings": {"image": name}} for name in modules},
            }
        },
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
        **extra,
    }


def layer(name, image="layer", **extra):
    return {
        "$edgeAgent": {f"properties.desired.modules.{name}": {"settings": {"image": image}}},
        **extra,
    }


@pytest.fixture
def device(registry, new_id):
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled", iot_edge=True)
    return name


@pytest.fixture
def deploy(deployments):
    made = []

    def make(content, condition, priority=0, **more):
        name = f"kvedge-{secrets.token_hex(6)}"
        body = Configuration(
            id=name,
            schema_version="2.0",
            content=ConfigurationContent(modules_content=content),
            target_condition=condition,
            priority=priority,
            **more,
        )
        made.append(name)
        return deployments.create_configuration(body)

    yield make
    for name in made:
        with contextlib.suppress(HttpOperationError):  # some tests remove their own
            deployments.delete_configuration(name)


@pytest.fixture
def modules(registry, device):
    """What the agent of the device is told to run."""

    def read():
        twin = registry.get_module_twin(device, "$edgeAgent")
        return {
            name: entry["settings"]["image"]
            for name, entry in (twin.properties.desired.get("modules") or {}).items()
        }

    return read


def test_a_base_reaches_its_device(registry, device, deploy, modules, eventually):
    """The manifest is written to the agent, the hub and the modules, which the hub makes."""
    deploy(full(["a"], a={"properties.desired": {"rate": 5}}), f"deviceId = '{device}'")
    eventually(lambda: modules() == {"a": "a"})
    assert registry.get_module_twin(device, "a").properties.desired["rate"] == 5
    assert registry.get_module_twin(device, "$edgeHub").properties.desired["routes"] == {}
    assert registry.get_module(device, "a").managed_by == "iotEdge"


def test_layers_add_to_the_base(registry, device, deploy, modules, eventually):
    """Layers above the base are merged by ascending priority and marked in the agent's twin."""
    condition = f"deviceId = '{device}'"
    deploy(full(["a"], a={"properties.desired": {"rate": 5}}), condition, 1)
    deploy(layer("b", "low", a={"properties.desired.extra": {"x": 1}}), condition, 10)
    top = deploy(layer("b", "high"), condition, 11)
    deploy(layer("c"), condition, 1)
    eventually(lambda: modules() == {"a": "a", "b": "high"})
    agent = registry.get_module_twin(device, "$edgeAgent").properties.desired
    assert agent["modules"]["b"]["configuration"] == {"id": top.id}
    assert values(registry.get_module_twin(device, "a").properties.desired) == {
        "rate": 5,
        "extra": {"x": 1},
    }


def test_a_layer_goes_and_the_base_stays(device, deploy, deployments, modules, eventually):
    """A removed layer takes its modules with it; a removed base leaves the last manifest."""
    condition = f"deviceId = '{device}'"
    base = deploy(full(["a"]), condition, 0)
    upper = deploy(layer("b"), condition, 5)
    eventually(lambda: modules() == {"a": "a", "b": "layer"})
    deployments.delete_configuration(upper.id)
    eventually(lambda: modules() == {"a": "a"})
    deployments.delete_configuration(base.id)
    other = deploy(layer("never"), condition, 5)
    eventually(
        lambda: deployments.get_configuration(other.id).system_metrics.results.get("targetedCount")
    )
    assert modules() == {"a": "a"}


def test_the_highest_priority_wins_and_the_newest_of_equals(
    device, deploy, deployments, modules, eventually
):
    """Of several full deployments one is applied; without it the next one takes over."""
    condition = f"deviceId = '{device}'"
    deploy(full(["low"]), condition, 1)
    deploy(full(["old"]), condition, 5)
    newest = deploy(full(["new"]), condition, 5)
    eventually(lambda: modules() == {"new": "new"})
    deployments.delete_configuration(newest.id)
    eventually(lambda: modules() == {"old": "old"})


def test_metrics_count_devices(registry, device, deploy, deployments, eventually):
    """Targeted, applied, successful and failed are counted, and custom metrics run."""
    condition = f"deviceId = '{device}'"
    metrics = ConfigurationMetrics(
        queries={"mine": f"SELECT deviceId FROM devices WHERE deviceId = '{device}'"}
    )
    low = deploy(full(["a"]), condition, 1)
    high = deploy(full(["b"]), condition, 2, metrics=metrics)

    def counts(name):
        return deployments.get_configuration(name).system_metrics.results

    eventually(lambda: counts(high.id).get("appliedCount") == 1)
    assert counts(low.id) == {
        "targetedCount": 1,
        "appliedCount": 0,
        "reportedSuccessfulCount": 0,
        "reportedFailedCount": 0,
    }
    assert deployments.get_configuration(high.id).metrics.results == {"mine": 1}
    text = (
        "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent' AND "
        f"configurations.[[{high.id}]].status = 'Applied'"
    )
    (row,) = eventually(lambda: registry.query_iot_hub(QuerySpecification(query=text)).items)
    assert row.device_id == device
    assert row.additional_properties["configurations"] == {
        low.id: {"status": "Targeted"},
        high.id: {"status": "Applied"},
    }
    queries = deployments.get_configuration(high.id).system_metrics.queries
    assert queries["targetedCount"] == (
        f"select deviceId from devices where capabilities.iotEdge = true and {condition}"
    )
    for text in queries.values():
        registry.query_iot_hub(QuerySpecification(query=text))


def test_content_cannot_be_changed(deploy, deployments):
    """A PUT with other content is answered with 200 and keeps the old content."""
    made = deploy(full(["a"]), "deviceId = 'nobody'")
    made.content = ConfigurationContent(modules_content=full(["b"]))
    made.priority = 7
    made.labels = {"k": "v"}
    changed = deployments.update_configuration(made, f'"{made.etag}"')
    assert changed.content.modules_content == full(["a"])
    assert (changed.priority, changed.labels) == (7, {"k": "v"})
    assert changed.etag != made.etag


def test_only_a_quoted_etag_counts(deploy, deployments):
    """A bare etag is a conflict, a wrong quoted one fails the precondition."""
    made = deploy(full(), "deviceId = 'nobody'")
    for etag, status in ((made.etag, 409), ('"wrong"', 412)):
        with pytest.raises(HttpOperationError) as failed:
            deployments.update_configuration(made, etag)
        assert failed.value.response.status_code == status
    with pytest.raises(HttpOperationError) as failed:
        deployments.create_configuration(made)
    assert failed.value.response.headers["iothub-errorcode"] == "ConfigurationAlreadyExists"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"id": "Upper"}, "ArgumentInvalid"),
        ({"target_condition": "tags.a ="}, "InvalidConfigurationTargetCondition"),
        ({"target_condition": "status = 'enabled'"}, "InvalidConfigurationTargetCondition"),
        (
            {"content": ConfigurationContent(modules_content={"a": {"properties.desired": {}}})},
            "InvalidConfigurationContent",
        ),
        (
            {
                "content": ConfigurationContent(
                    modules_content=full(), device_content={"properties.desired.a": 1}
                )
            },
            "InvalidConfigurationContent",
        ),
        ({"content": None}, "InvalidConfigurationContent"),
    ],
)
def test_bad_configurations(deployments, change, code):
    """What the service would not take is refused by name."""
    fields = {
        "id": "kvedge-bad",
        "content": ConfigurationContent(modules_content=full()),
        "target_condition": "*",
        **change,
    }
    with pytest.raises(HttpOperationError) as failed:
        deployments.create_configuration(Configuration(**fields))
    assert failed.value.response.status_code == 400
    assert failed.value.response.headers["iothub-errorcode"] == code


def test_testing_a_condition(deployments):
    """A test of queries says what is wrong, and does not know `*`."""

    def tested(condition, queries):
        body = ConfigurationQueriesTestInput(
            target_condition=condition, custom_metric_queries=queries
        )
        return deployments.test_configuration_queries(body)

    good = tested("tags.site = 'lille'", {"m": "SELECT deviceId FROM devices"})
    assert not good.target_condition_error
    assert good.custom_metric_query_errors == {}
    bad = tested("tags.site =", {"m": "SELECT"})
    assert bad.target_condition_error
    assert set(bad.custom_metric_query_errors) == {"m"}
    assert tested("*", {}).target_condition_error


def test_one_device_by_hand(registry, device, deployments, modules):
    """Applied content writes one device and marks no configuration."""
    deployments.apply_configuration_on_edge_device(
        device, ConfigurationContent(modules_content=full(["hand"]))
    )
    assert modules() == {"hand": "hand"}


def test_only_edge_devices_take_content(registry, new_id, deployments):
    """A device without the capability is refused."""
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled")
    with pytest.raises(HttpOperationError) as failed:
        deployments.apply_configuration_on_edge_device(
            name, ConfigurationContent(modules_content=full())
        )
    assert failed.value.response.status_code == 400


def test_edits_by_hand_are_undone(registry, device, deploy, modules, eventually):
    """A module twin that a deployment owns goes back to what the deployment says."""
    deploy(full(["a"], a={"properties.desired": {"rate": 5}}), f"deviceId = '{device}'")
    eventually(lambda: modules() == {"a": "a"})
    patch = Twin(properties=TwinProperties(desired={"rate": 99}))
    registry.update_module_twin(device, "a", patch, "*")
    eventually(lambda: registry.get_module_twin(device, "a").properties.desired.get("rate") == 5)


def test_equal_content_is_written_once(registry, device, deploy, deployments, eventually):
    """Another deployment of equal content does not move the agent's version."""
    condition = f"deviceId = '{device}'"
    deploy(full(["a"]), condition, 1)
    eventually(
        lambda: registry.get_module_twin(device, "$edgeAgent").properties.desired.get("modules")
    )
    before = registry.get_module_twin(device, "$edgeAgent").properties.desired["$version"]
    twin = deploy(full(["a"]), condition, 2)
    eventually(
        lambda: deployments.get_configuration(twin.id).system_metrics.results.get("appliedCount")
    )
    after = registry.get_module_twin(device, "$edgeAgent").properties.desired["$version"]
    assert after == before
