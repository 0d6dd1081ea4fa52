"""The configuration file."""

from __future__ import annotations

import pytest

from kvedge.edgesim import settings

GOOD = """
hostname = "Edge-1"
[provisioning]
source = "manual"
connection_string = "HostName=hub.kvedge.test;DeviceId=dev-edge;SharedAccessKey=a2V5PT0="
[agent.env]
CoolOffTimeUnitInSeconds = 3
"""


def test_manual_connection_string_is_taken():
    """The one form of provisioning that the stand-in knows."""
    found = settings.parse_settings(GOOD, default_hostname="vm")
    assert (found.hub, found.device_id, found.device_key) == (
        "hub.kvedge.test",
        "dev-edge",
        "a2V5PT0=",
    )
    assert found.hostname == "edge-1"
    assert found.network == "azure-iot-edge"
    assert found.agent_env == {"CoolOffTimeUnitInSeconds": "3"}


def test_key_is_not_in_the_repr():
    """Settings end up in logs and tracebacks."""
    assert "a2V5" not in repr(settings.parse_settings(GOOD, default_hostname="vm"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("provisioning = 3", "provisioning: a table is needed"),
        ("[provisioning]\nsource = 'dps'", "'dps' is not supported"),
        ("[provisioning]\nsource = 'none'", "'none' is not supported"),
        (
            "[provisioning]\nsource='manual'\n[provisioning.authentication]\nmethod='x509'",
            "'x509' is not supported",
        ),
        (
            "[provisioning]\nsource='manual'\nconnection_string='HostName=a;DeviceId=b'",
            "without SharedAccessKey",
        ),
        ("a = [", "no valid TOML"),
        ("parent_hostname = 'x'\n" + GOOD, "parent_hostname"),
        ("trust_bundle_cert = 'file:///does/not/exist'\n" + GOOD, "trust_bundle_cert"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(text, words):
    """Nobody may believe that a form is in force that is not."""
    with pytest.raises(settings.SettingsError, match=words.replace("'", ".")):
        settings.parse_settings(text, default_hostname="vm")
