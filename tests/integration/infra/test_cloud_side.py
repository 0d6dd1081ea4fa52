"""The cloud side alone, on a real engine: a double of Azure's provider, and the hub emulator.

The double refuses what pulumi-azure-native's own types do not have; the enrollment group is written
to the emulator's provisioning service as it would be to the real one.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.cloud import resources, running
from infra.cloud.enrolling import EnrollmentGroupProvider
from kvedge import errors, settings, spec
from kvedge.emulator.provisioning import derived_key
from kvedge.testing import azure_provider
from kvedge.testing.hubs import RunningHub, hub, hub_certificates  # noqa: F401, TC001 - fixtures

if TYPE_CHECKING:
    from infra.engine import Event

pytestmark = pytest.mark.timeout(900)

TYPES = Path(__file__).parents[2] / "golden" / "azure" / "types.json"
KUBECONFIG = "apiVersion: v1\nkind: Config\n"
RAW: dict[str, Any] = {
    "azure": {
        "location": "westeurope", "resourceGroup": "kvedge-lille", "tags": {"cost": "edge"},
        "hub": {"name": "kvedge-lille"}, "dps": {"name": "kvedge-lille-dps", "group": "fleet"},
        "aks": {"name": "lille"},
        "arc": {"name": "lille", "flux": {"url": "https://git.example.net/fleet", "path": "lille",
                                          "user": "reader", "token": "TOPSECRET"}},
    },
    "registry": {"push": "registry.example.net"},
    "fleet": [{"name": "edge1"}],
    "platform": {},
}  # fmt: skip


@pytest.fixture
def azure(hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Put the double in Azure's place, with the emulator as its hub; return its folder."""
    for name in [n for n in os.environ if n.startswith(("KVEDGE_", "PULUMI_"))]:
        if name != "KVEDGE_CACHE":
            monkeypatch.delenv(name)
    fields = dict(part.split("=", 1) for part in hub.connection_string.split(";"))
    rule = {"keyName": fields["SharedAccessKeyName"], "primaryKey": fields["SharedAccessKey"]}
    told = {"idScope": "0ne0012ABCD", "serviceOperationsHostName": fields["HostName"]}
    user = {"name": "user", "value": base64.b64encode(KUBECONFIG.encode()).decode()}
    folder, home = tmp_path / "azure", tmp_path / "home"
    variables = azure_provider.install(
        home, folder, resources.PROVIDER_VERSION, types=TYPES,
        answers={
            resources.HUB: {"properties": {"hostName": fields["HostName"]}},
            resources.DPS: {"properties": told},
            resources.HUB_KEYS: rule,
            resources.DPS_KEYS: rule,
            resources.AKS_CREDENTIALS: {"kubeconfigs": [user]},
        },
    )  # fmt: skip
    variables |= {
        "PULUMI_HOME": str(home),
        "PULUMI_BACKEND_URL": f"file://{tmp_path / 'pulumi'}",
        "PULUMI_CONFIG_PASSPHRASE": "test",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "SSL_CERT_FILE": str(hub.ca),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return folder


def parsed(**more: Any) -> spec.Environment:
    """Return the environment as `kvedge up` parses it."""
    return settings.parse("lille", {**RAW, **more}, environ=os.environ)


def ignored(_: Event) -> None:
    """Show nothing."""


def variables() -> dict[str, str]:
    """Return what the environment is handed."""
    file = Path(".kvedge/lille/env")
    assert file.stat().st_mode & 0o777 == 0o600
    return settings.read_variables(file)


@pytest.mark.slow
def test_the_life_of_the_cloud_side(
    azure: Path,
    hub: RunningHub,  # noqa: F811 - the fixture itself
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made once, handed on, the same when run again, changed in place, and gone at the end."""
    # What bring_up sets is undone with the test.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    first = running.bring_up(parsed(), RAW, on_event=ignored)
    assert first["create"] >= 7
    made = azure_provider.made(azure)
    assert set(made) == {
        resources.RESOURCE_GROUP, resources.HUB, resources.DPS, resources.AKS,
        resources.FLUX_EXTENSION, resources.FLUX_CONFIGURATION,
    }  # fmt: skip
    linked = made[resources.DPS]["properties"]["iotHubs"][0]["connectionString"]
    assert linked == hub.connection_string
    handed = variables()
    assert handed["KVEDGE_HUB_CONNECTION_STRING"] == hub.connection_string
    assert handed["KVEDGE_CONNECTOR_CONNECTION_STRING"] == hub.connection_string
    assert handed["KVEDGE_DPS_ID_SCOPE"] == "0ne0012ABCD"
    assert Path(handed["KVEDGE_KUBECONFIG"]).read_text() == KUBECONFIG
    assert Path(handed["KVEDGE_KUBECONFIG"]).stat().st_mode & 0o777 == 0o600
    found = parsed()
    assert found.hub.connection_string.reveal() == hub.connection_string
    assert found.dps is not None
    assert derived_key(found.dps.group_key.reveal(), "lille-edge1")

    state = "".join(f.read_text() for f in Path("pulumi").rglob("*.json") if f.is_file())
    key = hub.connection_string.rpartition("SharedAccessKey=")[2]
    for secret in (key, found.dps.group_key.reveal(), "TOPSECRET", "kind: Config"):
        assert secret not in state, "in the stack's state in the clear"

    assert "TOPSECRET" not in Path(".kvedge/lille/azure/Pulumi.lille.yaml").read_text()
    protected = made[resources.FLUX_CONFIGURATION]["configurationProtectedSettings"]
    assert base64.b64decode(protected["httpsKey"]) == b"TOPSECRET"

    assert set(running.bring_up(parsed(), RAW, on_event=ignored)) == {"same"}
    assert variables() == handed, "the group's key stays"

    larger = {**RAW, "azure": {**RAW["azure"], "aks": {"name": "lille", "nodes": 3}}}
    changes = running.bring_up(parsed(**larger), larger, on_event=ignored)
    assert set(changes) == {"same", "update"}, changes
    assert azure_provider.made(azure)[resources.AKS]["agentPoolProfiles"][1]["count"] == 3

    Path(".kvedge/lille/env").unlink()
    assert running.recall(parsed(), RAW)
    assert variables() == handed

    running.take_down(parsed(), on_event=ignored)
    assert azure_provider.made(azure) == {}
    assert not Path(".kvedge/lille/env").exists()
    assert not Path(".kvedge/lille/kubeconfig").exists()
    assert not running.recall(parsed(), RAW)
    gone = {"host": hub.endpoint, "group": "fleet", "policy": "iothubowner", "key": key}
    EnrollmentGroupProvider().delete("fleet", gone)


def test_a_missing_plugin_is_told_before_anything_is_made(
    azure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next act is in the message."""
    monkeypatch.setenv("PULUMI_HOME", str(azure / "no-home"))
    with pytest.raises(errors.ToolMissing) as caught:
        running.bring_up(parsed(), RAW, on_event=ignored)
    assert "pulumi plugin install resource azure-native" in caught.value.hint
    assert azure_provider.made(azure) == {}


def test_a_local_sites_variables_are_not_overwritten(azure: Path) -> None:
    """An environment has a local site or a cloud side, not both."""
    site = Path(".kvedge/lille/site.json")
    site.parent.mkdir(parents=True)
    site.write_text("{}")
    with pytest.raises(errors.SpecError, match="has a local site"):
        running.bring_up(parsed(), RAW, on_event=ignored)


def test_a_group_that_a_killed_run_left_is_taken_over(azure: Path, hub: RunningHub) -> None:  # noqa: F811
    """Made twice without a memory of the first, it is one group with one new key."""
    fields = dict(part.split("=", 1) for part in hub.connection_string.split(";"))
    wanted = {
        "host": hub.endpoint, "group": "fleet", "policy": fields["SharedAccessKeyName"],
        "key": fields["SharedAccessKey"],
    }  # fmt: skip
    first = EnrollmentGroupProvider().create(dict(wanted)).outs["group_key"]
    second = EnrollmentGroupProvider().create(dict(wanted)).outs["group_key"]
    assert first != second
    kept = EnrollmentGroupProvider().update("fleet", {**wanted, "group_key": second}, dict(wanted))
    assert kept.outs["group_key"] == second
    with pytest.raises(RuntimeError, match="401"):
        EnrollmentGroupProvider().create({**wanted, "key": "S0VZ"})
