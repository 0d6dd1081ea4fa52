"""What the service side refuses, asked by raw HTTP since the vendor's client cannot ask it."""

from __future__ import annotations

import logging
import re
import time

import pytest

from kvedge.emulator import tokens


@pytest.fixture
def ask(hub):
    """Send one request and return status, headers and JSON."""

    def send(method, path, token="", body=None, headers=None):
        return hub.ask(method, path, body, token=token, headers=headers)

    return send


@pytest.fixture
def token(hub):
    """Make a token of a policy."""
    return hub.token


VERSION = "?api-version=2021-04-12"


def test_good_tokens_of_every_name(hub, ask, token):
    """The hub answers to all its names, with and without port, in any case of letters."""
    port = hub.emulator.https_port
    for name in (hub.host, hub.host.upper(), f"{hub.host}:443", f"localhost:{port}",
                 f"127.0.0.1:{port}", f"{hub.host}/devices"):  # fmt: skip
        status, headers, body = ask("GET", f"/devices{VERSION}", token(resource=name))
        assert (status, body) == (200, []), name
        assert headers["x-kvedge-emulator"] == "1"


def test_bad_tokens(hub, ask, token):
    """Missing, mangled, expired, foreign and wrongly signed tokens are all 401."""
    good = token()
    bad = [
        "",
        "Bearer x",
        "SharedAccessSignature ",
        good[:-1] if good[-1] != "r" else good + "x",
        good.replace("sig=", "sig=A"),
        re.sub(r"se=\d+", "se=9999999999", good),
        re.sub(r"se=\d+", "se=٣", good).encode("ascii", "ignore").decode(),
        token(seconds=-1),
        token(resource="other.azure-devices.net"),
        token(resource=f"{hub.host}.evil.test"),
        token(resource=f"{hub.host}/twins"),
        token(key=tokens.new_key()),
        good.replace("iothubowner", "service"),
        good.replace("iothubowner", "nobody"),
        good + "&sr=x",
    ]
    for text in bad:
        status, headers, body = ask("GET", f"/devices{VERSION}", text)
        assert status == 401, text
        assert headers["iothub-errorcode"] == "IotHubUnauthorizedAccess"
        assert headers["x-kvedge-emulator"] == "1"
        assert body["Message"].startswith("ErrorCode:IotHubUnauthorizedAccess;")
        assert re.fullmatch(
            r"Tracking ID:[0-9A-F]{32}-G:\d+-TimeStamp:\d\d/\d\d/\d{4} \d\d:\d\d:\d\d",
            body["ExceptionMessage"],
        )


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ("service", {"twin", "query", "statistics"}),
        ("registryRead", {"read"}),
        ("registryReadWrite", {"read", "write"}),
        ("device", set()),
        ("iothubowner", {"read", "write", "twin", "query", "statistics"}),
    ],
)
def test_rights_of_the_policies(hub, ask, token, policy, allowed):
    """Each policy does what it may and is refused the rest."""
    hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    requests = {
        "read": ("GET", f"/devices/d{VERSION}", None),
        "write": ("PUT", f"/devices/new{VERSION}", {"deviceId": "new"}),
        "twin": ("GET", f"/twins/d{VERSION}", None),
        "query": ("POST", f"/devices/query{VERSION}", {"query": "SELECT * FROM devices"}),
        "statistics": ("GET", f"/statistics/service{VERSION}", None),
    }
    for name, (method, path, body) in requests.items():
        status, _, _ = ask(method, path, token(policy), body)
        assert status == (200 if name in allowed else 401), name


def test_the_version_is_asked_for(ask, token):
    """A request without api-version, or with an odd one, is refused by name."""
    for query in ("?", "?api-version=1"):
        status, headers, _ = ask("GET", f"/devices{query}", token())
        assert (status, headers["iothub-errorcode"]) == (400, "InvalidProtocolVersion")


def test_removal_wants_an_etag(hub, ask, token):
    """DELETE of an identity without If-Match is 412, as the live service answers."""
    hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    status, headers, body = ask("DELETE", f"/devices/d{VERSION}", token())
    assert (status, headers["iothub-errorcode"]) == (412, "PreconditionFailed")
    assert "Etag missing" in body["Message"]


def test_a_device_cares_for_its_own_modules(hub, ask):
    """A device's token makes and reads its own modules, and nothing else."""
    registry = hub.registry_manager()
    device = registry.create_device_with_sas("Edge-1", "", "", "enabled", iot_edge=True)
    registry.create_device_with_sas("other", "", "", "enabled", iot_edge=True)
    key = device.authentication.symmetric_key.primary_key
    own = tokens.issue(f"{hub.host}/devices/Edge-1", key, expiry=int(time.time()) + 60)
    secret = tokens.new_key()
    body = {
        "deviceId": "Edge-1",
        "moduleId": "$edgeAgent",
        "authentication": {
            "type": "sas",
            "symmetricKey": {"primaryKey": secret, "secondaryKey": tokens.new_key()},
        },
    }
    path = f"/devices/Edge-1/modules/%24edgeAgent{VERSION}"
    status, _, made = ask("PUT", path, own, body, {"If-Match": "*"})
    assert status == 200
    assert made["authentication"]["symmetricKey"]["primaryKey"] == secret
    assert made["managedBy"] == "iotEdge"
    assert ask("GET", f"/devices/Edge-1/modules{VERSION}", own)[0] == 200
    body = {"deviceId": "Edge-1", "moduleId": "m"}
    assert ask("PUT", f"/devices/Edge-1/modules/m{VERSION}", own, body)[0] == 200
    assert (
        ask("DELETE", f"/devices/Edge-1/modules/m{VERSION}", own, None, {"If-Match": "*"})[0] == 204
    )
    for method, path in (
        ("GET", "/devices/other/modules"),
        ("GET", "/devices/Edge-1"),
        ("GET", "/twins/Edge-1"),
        ("GET", "/devices"),
        ("DELETE", "/devices/Edge-1"),
    ):
        assert ask(method, f"{path}{VERSION}", own, None, {"If-Match": "*"})[0] == 401, path


def test_what_is_not_emulated_says_so(ask, token):
    """Operations of the service that the emulator lacks are 501 with their name; others 404."""
    status, headers, body = ask("POST", f"/jobs/create{VERSION}", token(), {})
    assert (status, headers["iothub-errorcode"]) == (501, "NotImplemented")
    assert "import and export jobs" in body["Message"]
    assert ask("GET", f"/nothing{VERSION}", token())[0] == 404


def test_bodies_that_are_no_json(hub, ask, token):
    """Anything but the expected JSON is 400, never 500."""
    hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    for method, path in (
        ("PUT", "/devices/x"),
        ("POST", "/devices"),
        ("PATCH", "/twins/d"),
        ("PUT", "/twins/d"),
        ("POST", "/devices/query"),
        ("PUT", "/configurations/c"),
        ("POST", "/configurations/testQueries"),
        ("POST", "/twins/d/methods"),
    ):
        for body in (None, 1, "x", [1], [[]], True):
            status, _, _ = ask(method, f"{path}{VERSION}", token(), body)
            assert status == 400, (method, path, body)


def test_no_key_in_the_logs(hub, ask, token, caplog):
    """Neither tokens nor keys are logged, whatever is asked."""
    caplog.set_level(logging.DEBUG)
    device = hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    good = token()
    ask("GET", f"/devices{VERSION}", good)
    ask("GET", f"/devices{VERSION}", good + "x")
    ask("GET", f"/devices{VERSION}", token(key=device.authentication.symmetric_key.primary_key))
    text = caplog.text
    key = hub.connection_string.rpartition("SharedAccessKey=")[2]
    for secret in (
        key,
        device.authentication.symmetric_key.primary_key,
        good.split("sig=")[1][:20],
    ):
        assert secret not in text
