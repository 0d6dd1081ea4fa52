"""The hub's state as JSON, and the table of what the emulator covers."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from pathlib import Path

import pytest
from azure.iot.hub.models import Configuration, ConfigurationContent, Twin

from kvedge.emulator import coverage, tokens
from kvedge.emulator.rest import routes
from kvedge.testing.hubs import running_hub

_ROOT = Path(__file__).parents[3]


def ask(hub, method, path, body=None, policy="iothubowner"):
    fields = dict(part.split("=", 1) for part in hub.policy(policy).split(";"))
    token = tokens.issue(
        fields["HostName"], fields["SharedAccessKey"], expiry=int(time.time()) + 60, policy=policy
    )
    context = ssl.create_default_context(cafile=hub.ca)
    connection = http.client.HTTPSConnection(
        "localhost", hub.emulator.https_port, context=context, timeout=10
    )
    payload = None if body is None else json.dumps(body)
    connection.request(method, path, payload, {"Authorization": token})
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    return response.status, json.loads(raw) if raw else None


def test_a_state_moves_to_another_hub(hub, hub_certificates):
    """What one hub exports, another one imports: devices, keys, twins and deployments."""
    registry = hub.registry_manager()
    device = registry.create_device_with_sas("e", "", "", "enabled", iot_edge=True)
    registry.update_twin("e", Twin(tags={"a": 1}), "*")
    content = ConfigurationContent(modules_content={"$edgeAgent": {"properties.desired": {"v": 1}}})
    hub.configuration_manager().create_configuration(
        Configuration(id="c", content=content, target_condition="*")
    )
    status, state = ask(hub, "GET", "/kvedge/v1/state")
    assert status == 200
    with running_hub(None, hub_certificates) as other:
        manager = other.registry_manager()
        manager.create_device_with_sas("gone", "", "", "enabled")
        status, counts = ask(other, "PUT", "/kvedge/v1/state", state)
        assert (status, counts) == (200, {"identities": 3, "twins": 3, "configurations": 1})
        moved = manager.get_device("e")
        assert moved.authentication.as_dict() == device.authentication.as_dict()
        assert manager.get_twin("e").tags == {"a": 1}
        assert [item.device_id for item in manager.get_devices()] == ["e"]
        assert other.configuration_manager().get_configuration("c").content.modules_content


@pytest.mark.parametrize(
    "state",
    [None, {}, {"format": 2}, {"format": 1, "identities": [{}]}, {"format": 1, "twins": 3},
     {"format": 1, "values": {"policies": {}}}],
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
    """Each refused request is answered 501 and says what it is that is not there."""
    requests = [row.request for row in coverage.ROWS if row.request]
    assert len(requests) >= 3
    for request in requests:
        method, path = request.split()
        body = {"attestation": {"type": "tpm"}} if method == "PUT" else None
        status, answer = ask(hub, method, f"{path}?api-version=2021-04-12", body)
        assert status == 501, request
        assert re.match(r"ErrorCode:NotImplemented;The emulator .+", answer["Message"])


def test_the_page_is_the_table():
    """docs/reference/emulator.md is what the table says."""
    page = (_ROOT / "docs" / "reference" / "emulator.md").read_text(encoding="utf-8")
    assert page == coverage.page(), "write it anew: python -m kvedge.emulator.coverage"
