"""Both halves of an environment with a section `azure`, on a real engine and a local site.

Azure itself is a double (`kvedge.testing.azure_provider`): its hub is the site's emulator and its
cluster the site's. What it takes is held to pulumi-azure-native's own types.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from infra.cloud import resources
from kvedge.testing import azure_provider

pytestmark = [pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(600)]

TYPES = Path(__file__).parents[2] / "golden" / "azure" / "types.json"
SECTION = {
    "location": "westeurope", "resourceGroup": "kvedge-plant",
    "hub": {"name": "kvedge-plant"}, "dps": {"name": "kvedge-plant-dps"},
    "aks": {"name": "plant"},
}  # fmt: skip


@pytest.fixture
def azure(stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the double in Azure's place; return its folder."""
    site = stack.site
    text = Path(site.hub.connection_string_file).read_text().strip()
    fields = dict(part.split("=", 1) for part in text.split(";"))
    rule = {"keyName": fields["SharedAccessKeyName"], "primaryKey": fields["SharedAccessKey"]}
    kubeconfig = Path(site.kubernetes.kubeconfig).read_bytes()
    answers = {
        resources.HUB: {"properties": {"hostName": fields["HostName"]}},
        resources.DPS: {
            "properties": {
                "idScope": "0ne0012ABCD", "serviceOperationsHostName": fields["HostName"],
            }
        },
        resources.HUB_KEYS: rule,
        resources.DPS_KEYS: rule,
        resources.AKS_CREDENTIALS: {
            "kubeconfigs": [{"name": "user", "value": base64.b64encode(kubeconfig).decode()}]
        },
    }  # fmt: skip
    folder = tmp_path / "azure-double"
    variables = azure_provider.install(
        Path(os.environ["PULUMI_HOME"]), folder, resources.PROVIDER_VERSION,
        types=TYPES, answers=answers,
    )  # fmt: skip
    for name, value in {**variables, "SSL_CERT_FILE": site.hub.ca}.items():
        monkeypatch.setenv(name, value)
    # What a local site says of hub and cluster is what Azure says here.
    for name in ("KVEDGE_SITE", "KVEDGE_KUBECONFIG", "KVEDGE_CLUSTER_ID", "KVEDGE_HUB_DEVICE_HOST",
                 "KVEDGE_HUB_CONNECTION_STRING_FILE", "PULUMI_OPTION_CONFIG_FILE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return folder


def test_one_up_makes_both_halves_and_one_down_takes_both_away(
    stack: Any, azure: Path, tmp_path: Path
) -> None:
    """The hub, its provisioning service and the cluster first, then the VMs and devices on them."""
    stack.write({**stack.settings, "azure": SECTION})
    done = stack.run("up", stack.name, "--no-wait")
    assert done.returncode == 0, done.stderr
    made = azure_provider.made(azure)
    assert set(made) == {
        resources.RESOURCE_GROUP, resources.HUB, resources.DPS, resources.AKS,
    }  # fmt: skip
    linked = made[resources.DPS]["properties"]["iotHubs"][0]["connectionString"]
    assert linked.startswith("HostName=localhost")
    assert stack.hub()[0] == ["plant-p1", "plant-p2"]
    state = stack.project.folder / ".kvedge" / stack.name
    assert (state / "env").stat().st_mode & 0o777 == 0o600
    assert (state / "kubeconfig").stat().st_mode & 0o777 == 0o600
    key = linked.rpartition("SharedAccessKey=")[2]
    kept = "".join(
        file.read_text() for file in (tmp_path / "pulumi").rglob("*.json") if file.is_file()
    )
    assert key not in kept, "a key is in a stack's state in the clear"

    again = json.loads(stack.run("up", stack.name, "--no-wait", "-o", "json").stdout)
    assert set(again["changes"]) == {"same"}
    assert azure_provider.made(azure) == made

    down = stack.run("down", stack.name)
    assert down.returncode == 0, down.stderr
    assert azure_provider.made(azure) == {}
    assert stack.objects() == []
    assert not (state / "env").exists()
