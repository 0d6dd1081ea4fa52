"""The cloud side under pulumi's mocks, held to pulumi-azure-native's own types. No Azure."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pulumi
import pytest

from infra.cloud import program, resources
from kvedge import processes, settings, spec
from kvedge.testing import azure_types

TYPES = json.loads(
    (Path(__file__).parents[2] / "golden" / "azure" / "types.json").read_text(encoding="utf-8")
)
SECTION: dict[str, Any] = {
    "location": "westeurope", "resourceGroup": "kvedge-lille", "tags": {"cost": "edge"},
    "subscription": "00000000-0000-0000-0000-000000000001",
    "hub": {"name": "kvedge-lille", "units": 2},
    "dps": {"name": "kvedge-lille-dps"},
    "aks": {"name": "lille", "nodes": 2, "version": "1.33"},
    "arc": {"name": "lille", "connect": True,
            "flux": {"url": "https://git.example.net/fleet", "path": "./fleet/lille",
                     "user": "reader", "token": "TOKEN"}},
}  # fmt: skip
KEY = base64.b64encode(b"k" * 32).decode()


class Mocks(pulumi.runtime.Mocks):
    """Answers with inputs, and with what only Azure knows."""

    def __init__(self) -> None:
        self.seen: dict[str, pulumi.runtime.MockResourceArgs] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        """Register one resource."""
        self.seen[args.name] = args
        outs = dict(args.inputs)
        if args.typ == f"azure-native:{resources.HUB}":
            outs["properties"] = {"hostName": "kvedge-lille.azure-devices.net"}
        if args.typ == f"azure-native:{resources.DPS}":
            outs["properties"] = {
                "idScope": "0ne00123ABC", "serviceOperationsHostName": "dps.example.net",
            }  # fmt: skip
        if args.typ.endswith("EnrollmentGroup"):
            outs["group_key"] = KEY
        return f"/{args.name}", outs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        """Answer a function."""
        token = args.token.partition(":")[2]
        self.asked.append((token, args.args))
        if token == resources.AKS_CREDENTIALS:
            text = base64.b64encode(b"kind: Config\n").decode()
            return {"kubeconfigs": [{"name": "clusterUser", "value": text}]}
        return {"keyName": args.args["keyName"], "primaryKey": KEY}


def registered(section: dict[str, Any], cluster: spec.Cluster | None = None) -> Mocks:
    """Run the program and return what it registered and asked."""
    mocks = Mocks()
    azure = settings.parse_azure({"azure": section}, environ={})
    assert azure is not None
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        pulumi.runtime.set_mocks(mocks, project="kvedge-azure", stack="lille", preview=False)

        async def run() -> None:
            program.build("lille", azure, cluster or spec.Cluster())
            await pulumi.runtime.stack.wait_for_rpcs()

        loop.run_until_complete(run())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return mocks


@pytest.fixture(scope="module")
def seen() -> Mocks:
    """What the whole section registers."""
    return registered(SECTION)


def plain(value: Any) -> Any:
    """Return a value without pulumi's marks of secrets."""
    if isinstance(value, dict):
        if "4dabf18193072939515e22adb298388d" in value:
            return plain(value["value"])
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_types_are_of_the_pinned_version() -> None:
    """The types and the provider are of one version."""
    assert TYPES["version"] == resources.PROVIDER_VERSION


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("resource-group", resources.RESOURCE_GROUP), ("hub", resources.HUB),
        ("dps", resources.DPS), ("aks", resources.AKS),
        ("flux-extension", resources.FLUX_EXTENSION), ("flux", resources.FLUX_CONFIGURATION),
    ],
)  # fmt: skip
def test_properties_fit_the_packages_own_types(seen: Mocks, name: str, token: str) -> None:
    """Every name, every required field, every value of an enum."""
    found = seen.seen[name]
    assert found.typ == f"azure-native:{token}"
    assert azure_types.mistakes(TYPES, token, plain(found.inputs)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_types_are_those_of_the_package(tmp_path: Path) -> None:
    """The package's wheel, by its hash, gives the same types again; needs a package index."""
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(f"pulumi-azure-native=={TYPES['version']} --hash=sha256:{TYPES['sha256']}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    argv = [*pip, "-r", str(wanted), "-d", str(tmp_path)]
    processes.run(argv, what="download pulumi-azure-native", timeout=300)
    made = tmp_path / "types.json"
    script = Path(__file__).parents[3] / "scripts" / "azure-types"
    wheel = next(tmp_path.glob("*.whl"))
    processes.run([sys.executable, script, wheel, made], what="read the wheel", timeout=300)
    assert json.loads(made.read_text()) == TYPES


def test_the_comparison_finds_mistakes() -> None:
    """A wrong name, a missing field and a wrong value of an enum are told by their paths."""
    azure = settings.parse_azure({"azure": SECTION}, environ={})
    assert azure is not None
    wrong = resources.hub(azure)
    wrong["sku"] = {"nam": "S1"}
    wrong["properties"]["authorizationPolicies"][0]["rights"] = "Everything"
    found = azure_types.mistakes(TYPES, resources.HUB, wrong)
    token = resources.HUB
    assert f"{token}.sku.nam: unknown field" in found
    assert f"{token}.sku.name: missing" in found
    assert any("authorizationPolicies[0].rights: 'Everything' is none of" in one for one in found)


def test_functions_are_asked_as_the_package_asks_them(seen: Mocks) -> None:
    """Arguments and results by the names that the package has."""
    assert {token for token, _ in seen.asked} == set(TYPES["functions"])
    for token, arguments in seen.asked:
        assert set(arguments) <= set(TYPES["functions"][token]["inputs"]), token
    for token in (resources.HUB_KEYS, resources.DPS_KEYS):
        assert {"keyName", "primaryKey"} <= set(TYPES["functions"][token]["outputs"])


def test_what_only_azure_knows_is_where_it_is_looked_for(seen: Mocks) -> None:
    """The mocks answer with fields that the package's outputs have."""
    assert "hostName" in TYPES["resources"][resources.HUB]["properties"]
    told = TYPES["resources"][resources.DPS]["properties"]
    assert {"idScope", "serviceOperationsHostName"} <= set(told)
    assert seen.seen["enrollment-group"].inputs["host"] == "dps.example.net"


def test_nobody_may_pose_as_a_device(seen: Mocks) -> None:
    """Two policies, neither an owner's, each with a key of its own."""
    policies = seen.seen["hub"].inputs["properties"]["authorizationPolicies"]
    assert [one["keyName"] for one in policies] == ["kvedge-provision", "kvedge-connector"]
    assert not any("DeviceConnect" in one["rights"] for one in policies)


def test_secrets_are_marked(seen: Mocks) -> None:
    """Keys and tokens go to the engine as secrets."""
    for name in ("dps", "flux", "enrollment-group", "arc"):
        text = json.dumps(seen.seen[name].inputs, default=str)
        assert "4dabf18193072939515e22adb298388d" in text, name
    token = base64.b64encode(b"TOKEN").decode()
    clear = {k: v.inputs for k, v in seen.seen.items() if k != "flux"}
    assert token not in json.dumps(clear, default=str)


def test_the_subscription_has_a_provider_of_its_own(seen: Mocks) -> None:
    """All resources of the section go to it."""
    assert seen.seen["azure"].inputs["subscriptionId"].endswith("1")
    assert "azure::" in str(seen.seen["hub"].provider)


def test_a_hub_alone_makes_nothing_else() -> None:
    """What is not in the section is not made."""
    found = registered({key: SECTION[key] for key in ("location", "resourceGroup", "hub")})
    assert set(found.seen) == {"resource-group", "hub"}


def test_a_cluster_that_is_there_is_connected_by_its_kubeconfig() -> None:
    """Without AKS, Arc gets the environment's own cluster."""
    section = {k: v for k, v in SECTION.items() if k not in ("aks", "dps")}
    cluster = spec.Cluster(kubeconfig=Path("/k"), context="plant", identifier="plant-1")
    found = plain(registered(section, cluster).seen["arc"].inputs)
    assert (found["file"], found["context"], found["cluster"]) == ("/k", "plant", "plant-1")
    assert found["kubeconfig"] == ""
