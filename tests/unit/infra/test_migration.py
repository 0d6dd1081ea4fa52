"""The KVEdge chart's values become settings, and its device key is never shown."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from infra import migration
from kvedge import errors, settings

CONFIG = """
[provisioning]
source = "manual"
connection_string = "HostName=h.azure-devices.net;DeviceId=old1;SharedAccessKey=TOPSECRET="

[agent.config]
image = "mcr.microsoft.com/azureiotedge-agent:1.4"
"""
VALUES: dict[str, Any] = {
    "nameOverride": "plant-vm", "publicSshKey": "ssh-rsa AAAAB3Nza me@host", "rootCA": "PEM",
    "azIotEdgeConfig": CONFIG, "aziotEdgeVmDiskSize": "20Gi",
    "aziotEdgeVmEnableExternalSsh": False, "macAddress": "FE:7E:48:A0:7D:22",
    "rootCAName": "azure-iot.root.ca.cert.pem",
}  # fmt: skip


def test_values_become_a_valid_stack_file() -> None:
    """Name, key, disk, MAC, hub and agent image are carried over; what is not is told."""
    text = migration.stack_text(migration.from_kvedge(VALUES))
    assert "TOPSECRET" not in text
    config = yaml.safe_load(text)["config"]
    raw = {key.removeprefix("kvedge:"): value for key, value in config.items()}
    environ = {
        "KVEDGE_HUB_CONNECTION_STRING": "HostName=h;SharedAccessKeyName=n;SharedAccessKey=k",
        "KVEDGE_REGISTRY_PUSH": "r",
    }
    found = settings.parse("plant", raw, environ=environ)
    (vm,) = found.fleet
    assert (vm.name, vm.vcpus, vm.memory, vm.os_disk) == ("plant-vm", 4, "2048M", "20Gi")
    assert vm.mac == "fe:7e:48:a0:7d:22"
    assert found.ssh.service_type == "None"
    assert found.hub.device_host == "h.azure-devices.net"
    assert found.edge.agent_image.endswith("agent:1.4")
    for told in ("'old1'", "rootCA", "helm uninstall", "connectionString"):
        assert told in text


def test_a_release_without_values_is_the_charts_default() -> None:
    """Whoever set nothing gets the same size and the open ssh Service that they had."""
    found = migration.from_kvedge({}).stack
    assert found["fleet"][0]["name"] == "aziot-edge-kubevirt"
    assert found["ssh"]["serviceType"] == "LoadBalancer"


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"macAddress": "fe:7e"}, "macAddress", "not a MAC"),
        ({"aziotEdgeVmDiskSize": "4 GB"}, "aziotEdgeVmDiskSize", "not a size"),
        ({"nameOverride": "Plant"}, "nameOverride", "not a DNS label"),
        ({"publicSshKey": "-----BEGIN"}, "publicSshKey", "public key"),
        ({"azIotEdgeConfig": "a = ["}, "azIotEdgeConfig", "is no TOML"),
        ({"aziotEdgeVmEnableExternalSsh": "x"}, "aziotEdgeVmEnableExternalSsh", "true nor false"),
        ({"replicaCount": 1}, "replicaCount", "unknown setting"),
    ],
)
def test_wrong_values_are_told_by_the_charts_names(
    change: dict[str, Any], path: str, message: str
) -> None:
    """The user reads the name that stands in the file."""
    with pytest.raises(errors.SpecError) as caught:
        migration.from_kvedge({**VALUES, **change})
    assert [p.path for p in caught.value.problems] == [path]
    assert message in caught.value.problems[0].message
