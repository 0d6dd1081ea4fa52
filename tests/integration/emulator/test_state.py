"""The hub's state as JSON, and the table of what the emulator covers."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from azure.iot.hub.models import Configuration, ConfigurationContent, Twin

from kvedge.emulator import coverage
from kvedge.emulator.rest import routes
from kvedge.testing.hubs import running_hub

_ROOT = Path(__file__).parents[3]


def ask(hub, method, path, body=None, policy="iothubowner"):
    status, _, answer = hub.ask(method, path, body, token=hub.token(policy))
    return status, answer


def test_a_state_moves_to_another_hub(hub, hub_certificates):
    """What one hub exports, another one imports: devices, keys, twins and deployments."""
    registry = hub.registry_manager()
    device = registry.create_device_with_sas("e", "", "", "enabled", iot_edge=True)
    registry.update_twin("e", Twin(tags={"a": 1}), "*")
    content = ConfigurationContent(modules_content={"$edgeAgent": {"properties.desired": {"v": 1}}})
    hub.configuration_manager().create_configuration(
        Configuration(id="c", content=content, target_condition="*")
    )
    assert ask(hub, "POST", "/kvedge/v1/devices/e/messages", {"body": "wait"})[0] == 201
    status, state = ask(hub, "GET", "/kvedge/v1/state")
    assert status == 200
    with running_hub(None, hub_certificates) as other:
        manager = other.registry_manager()
        manager.create_device_with_sas("gone", "", "", "enabled")
        status, counts = ask(other, "PUT", "/kvedge/v1/state", state)
        expected = {"identities": 3, "twins": 3, "configurations": 1, "messages": 1}
        assert (status, counts) == (200, expected)
        moved = manager.get_device("e")
        assert moved.authentication.as_dict() == device.authentication.as_dict()
        assert manager.get_twin("e").tags == {"a": 1}
        assert [item.device_id for item in manager.get_devices()] == ["e"]
        assert moved.cloud_to_device_message_count == 1
        assert other.configuration_manager().get_configuration("c").content.modules_content


@pytest.mark.parametrize(
    "state",
    [None, {}, {"format": 2}, {"format": 1, "identities": [{}]}, {"format": 1, "twins": 3},
     {"format": 1, "values": {"policies": {}}}, {"format": 1, "messages": [{"payload": "="}]}],
)  # fmt: skip
def test_a_broken_state_changes_nothing(hub, state):
    """A state that is not whole is refused, and the hub keeps what it has."""
    hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    assert ask(hub, "PUT", "/kvedge/v1/state", state)[0] == 400
    assert hub.registry_manager().get_device("d").device_id == "d"


def test_the_state_is_for_owners(hub):
    """It holds keys, so a policy without all rights does not get it."""
    for policy in ("service", "registryReadWrite", "device"):
        assert ask(hub, "GET", "/kvedge/v1/state", policy=policy)[0] == 401


def test_every_operation_has_a_row():
    """The table names each handler once, and no handler that is not there."""
    named = [name for row in coverage.ROWS for name in row.operations]
    assert sorted(named) == sorted({route.name for route in routes.ROUTES})


def test_every_row_is_shown():
    """The tests that a row names exist; what is done has some."""
    for row in coverage.ROWS:
        for test in row.tests:
            assert (_ROOT / "tests" / test).exists(), test
        assert row.tests or row.state in ("differs", "refused"), row.what


def test_what_is_refused_says_so(hub):
    """Each refused operation is answered 501 and says what it is that is not there."""
    rows = [row for row in coverage.ROWS if row.refused]
    assert {row.refused for row in rows} == set(routes.REFUSED)
    for row in rows:
        for line in coverage.endpoints(row):
            method, path = re.sub(r"\{\w+\}", "x", line).split()
            status, answer = ask(hub, method, path)
            assert status == 501, line
            assert answer["Message"] == (
                f"ErrorCode:NotImplemented;The emulator has no {row.refused}."
            )


def test_every_operation_of_the_vendors_package_has_a_row():
    """All that azure-iot-hub 2.7.0 can ask is in the table, done or refused."""
    from azure.iot.hub.protocol import operations

    asked = set()
    for name in operations.__all__:
        for function in vars(getattr(operations, name)).values():
            if url := getattr(function, "metadata", {}).get("url"):
                source = inspect.getsource(function)
                (verb,) = re.findall(r"request = self\._client\.(\w+)\(", source)
                asked.add(unnamed(f"{verb.upper()} {url}"))
    assert len(asked) > 40
    told = {unnamed(line) for row in coverage.ROWS for line in coverage.endpoints(row)}
    assert asked - told == set()


def unnamed(line):
    return re.sub(r"\{\w+\}", "{}", line)


def test_the_page_is_the_table():
    """docs/reference/emulator.md is what the table says."""
    page = (_ROOT / "docs" / "reference" / "emulator.md").read_text(encoding="utf-8")
    assert page == coverage.page(), "write it anew: python -m kvedge.emulator.coverage"
