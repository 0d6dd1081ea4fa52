"""Everything too large: refused with the service's code, and the hub goes on."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import ssl

import pytest

from kvedge.testing.hubs import running_hub


@pytest.fixture(scope="module")
def hub(hub_certificates):
    """One hub for all of these, which takes three configurations of a kind; it has device `d`."""
    with running_hub(None, hub_certificates, deployments=3) as running:
        running.registry_manager().create_device_with_sas("d", "", "", "enabled", iot_edge=True)
        yield running


@pytest.fixture(autouse=True)
def unshaken(hub, caplog):
    """After each test the hub answers, and has logged no fault of its own."""
    yield
    assert hub.ask("GET", "/devices/d")[0] == 200
    assert not [item for item in caplog.records if item.levelno >= logging.ERROR]


def nested(levels):
    return {"a": nested(levels - 1)} if levels else 1


def desired(values):
    return {"properties": {"desired": values}}


def deployment(content, **more):
    return {"content": {"modulesContent": content}, "targetCondition": "*", **more}


AGENT = {"$edgeAgent": {"properties.desired": {}}}
FIVE = {f"m{n}": "SELECT deviceId FROM devices" for n in range(6)}

REFUSED = [
    ("PUT", f"/devices/{'x' * 129}", {}, 400, "ArgumentInvalid"),
    ("PUT", f"/devices/d/modules/{'x' * 129}", {}, 400, "ArgumentInvalid"),
    ("PUT", f"/configurations/{'x' * 129}", deployment(AGENT), 400, "ArgumentInvalid"),
    ("PUT", f"/jobs/v2/{'x' * 65}", {}, 400, "ArgumentInvalid"),
    ("PUT", f"/enrollments/{'x' * 129}", {}, 400, "ArgumentInvalid"),
    ("POST", "/devices", [{"id": f"b{n}"} for n in range(101)], 400, "ArgumentInvalid"),
    ("POST", "/devices", [{"id": "x" * 3_000_000}], 413, "MessageTooLarge"),
    ("PATCH", "/twins/d", {"tags": {"a": "x" * 5000}}, 400, "ArgumentInvalid"),
    ("PATCH", "/twins/d", {"tags": {"x" * 1025: 1}}, 400, "ArgumentInvalid"),
    ("PATCH", "/twins/d", {"tags": {f"k{n}": "x" * 4000 for n in range(3)}}, 403,
     "DeviceModelMaxPropertiesExceeded"),
    ("PATCH", "/twins/d", desired({f"k{n}": "x" * 4000 for n in range(9)}), 403,
     "DeviceModelMaxPropertiesExceeded"),
    ("PATCH", "/twins/d", desired(nested(11)), 400, "ArgumentInvalid"),
    ("PATCH", "/twins/d", desired(nested(900)), 400, "ArgumentInvalid"),
    ("PATCH", "/twins/d", desired({"n": 2**53}), 400, "ArgumentInvalid"),
    ("POST", "/devices/query", {"query": "SELECT * FROM devices WHERE " + "1=1 AND " * 1100 + "1=1"},
     400, "ArgumentInvalid"),
    ("POST", "/devices/query", {"query": f"SELECT * FROM devices WHERE {'(' * 900}1{')' * 900}"},
     400, "ArgumentInvalid"),
    ("PUT", "/configurations/many", deployment(
        {**AGENT, **{f"m{n}": {"properties.desired": {}} for n in range(52)}}),
     400, "InvalidConfigurationContent"),
    ("PUT", "/configurations/large", deployment(
        {"$edgeAgent": {"properties.desired": {f"k{n}": "x" * 5000 for n in range(9)}}}),
     400, "InvalidConfigurationContent"),
    ("PUT", "/configurations/metrics", deployment(AGENT, metrics={"queries": FIVE}), 400,
     "InvalidConfigurationCustomMetricsQuery"),
    ("POST", "/twins/d/methods", {"methodName": "m", "payload": "x" * 131_072}, 413,
     "MessageTooLarge"),
    ("POST", "/twins/d/methods", {"methodName": "m", "responseTimeoutInSeconds": 301}, 400,
     "ArgumentInvalid"),
    ("POST", "/kvedge/v1/devices/d/messages", {"body": "x" * 65_537}, 413, "MessageTooLarge"),
    ("PUT", "/kvedge/v1/knobs", {"tier": "S9"}, 400, "ArgumentInvalid"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    REFUSED,
    ids=[f"{row[0]}-{row[1][:24]}-{index}" for index, row in enumerate(REFUSED)],
)
def test_requests(hub, method, path, body, status, code):
    """One thing too large in a request is told by the service's code."""
    found, headers, answer = hub.ask(method, path, body)
    assert (found, headers["iothub-errorcode"]) == (status, code), answer


def test_json_too_deep_to_read(hub):
    """A body that no parser should follow to its end is no JSON."""
    raw = ("[" * 100_000).encode()
    connection = http.client.HTTPSConnection(
        "localhost",
        hub.emulator.https_port,
        context=ssl.create_default_context(cafile=hub.ca),
        timeout=20,
    )
    connection.request(
        "PUT", "/devices/e?api-version=2021-04-12", raw, {"Authorization": hub.token()}
    )
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["Message"]) == (
        400,
        "ErrorCode:IotHubFormatError;The body is not JSON.",
    )
    connection.close()


@pytest.mark.parametrize("place", ["path", "header", "headers"])
def test_heads_that_are_too_long(hub, place):
    """A request line or header that does not end is 400, and the connection closes."""
    headers = {
        "path": {},
        "header": {"X-A": "x" * 20_000},
        "headers": {f"X-{n}": "x" * 100 for n in range(1000)},
    }[place]
    path = f"/devices/{'x' * 20_000 if place == 'path' else 'd'}"
    try:
        assert hub.ask("GET", path, headers=headers)[0] == 400
    except json.JSONDecodeError:
        pass  # the HTTP parser's own answer is plain text
    except http.client.HTTPException as error:  # client side: more headers than it sends
        pytest.fail(repr(error))


def test_the_quota_of_modules(hub):
    """A device takes 50 modules of its own choice."""
    hub.registry_manager().create_device_with_sas("full", "", "", "enabled")
    for number in range(50):
        assert hub.ask("PUT", f"/devices/full/modules/m{number}", {})[0] == 200
    status, headers, _ = hub.ask("PUT", "/devices/full/modules/one-more", {})
    assert (status, headers["iothub-errorcode"]) == (413, "TooManyModulesOnDevice")


def test_the_quota_of_configurations(hub):
    """Deployments and other configurations are counted apart, each up to the hub's limit."""
    for kind, content in (
        ("edge", {"modulesContent": AGENT}),
        ("device", {"deviceContent": {"properties.desired.a": 1}}),
    ):
        for number in range(4):
            status, headers, answer = hub.ask(
                "PUT",
                f"/configurations/{kind}-{number}",
                {"content": content, "targetCondition": "deviceId = 'nobody'"},
            )
            assert status == (201 if number < 3 else 413), answer
        assert headers["iothub-errorcode"] == "ConfigurationCountLimitExceeded"
        assert "exceed the maximum quota 3 for this IotHub" in answer["Message"]


def test_the_queue_of_messages(hub):
    """A device that does not listen takes 50 messages, binary ones too."""
    body = {"body": base64.b64encode(b"\xff").decode(), "bodyEncoding": "base64"}
    for _ in range(50):
        assert hub.ask("POST", "/kvedge/v1/devices/d/messages", body)[0] == 201
    status, headers, _ = hub.ask("POST", "/kvedge/v1/devices/d/messages", body)
    assert (status, headers["iothub-errorcode"]) == (403, "DeviceMaximumQueueDepthExceeded")
    assert hub.ask("GET", "/devices/d")[2]["cloudToDeviceMessageCount"] == 50
    assert hub.ask("DELETE", "/devices/d/commands")[2]["totalMessagesPurged"] == 50
