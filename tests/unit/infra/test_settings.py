"""Stack settings: what is accepted, where values come from, and every mistake by its path."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from images import recipe
from kvedge import errors, settings, spec

REMOVE = object()
AZURE: dict[str, Any] = {
    "location": "westeurope", "resourceGroup": "edge", "hub": {"name": "edge-hub"},
}  # fmt: skip

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    # name, changes by path, path of the problem, part of its message
    ("unknown section", {"flet": []}, "flet", "did you mean 'fleet'"),
    ("unknown field", {"fleet.0.memroy": "1Gi"}, "fleet[0].memroy", "did you mean 'memory'"),
    ("unknown far field", {"fleet.0.xyzzy": 1}, "fleet[0].xyzzy", "unknown setting"),
    ("unknown cluster field", {"cluster.contxt": "a"}, "cluster.contxt", "did you mean 'context'"),
    ("section is text", {"cluster": "here"}, "cluster", "not a mapping"),
    ("fleet is text", {"fleet": "a"}, "fleet", "not a list"),
    ("fleet as mapping", {"fleet": {"cuont": 1}}, "fleet.cuont", "did you mean 'count'"),
    ("count below zero", {"fleet": {"count": -1}}, "fleet.count", "from 0 to 1000"),
    ("template's memory", {"fleet": {"count": 2, "template": {"memory": 1}}}, "fleet.template.memory", "not a text"),
    ("template's name", {"fleet": {"count": 2, "template": {"name": "a"}}}, "fleet.template.name", "unknown setting"),
    ("override of nobody", {"fleet": {"count": 2, "overrides": {"edge3": {}}}}, "fleet.overrides.edge3", "did you mean"),
    ("override's field", {"fleet": {"count": 2, "overrides": {"edge2": {"vcpus": 0}}}}, "fleet.overrides.edge2.vcpus", "from 1"),
    ("named like a counted one", {"fleet": {"count": 2, "vms": [{"name": "edge2"}]}}, "fleet.count.name", "taken by fleet.vms[0]"),
    ("bad prefix", {"fleet": {"count": 2, "namePrefix": "E-"}}, "fleet.namePrefix", "begin a DNS label"),
    ("two sizes", {"fleet.0.instancetype": "u1.small", "fleet.0.vcpus": 2}, "fleet[0].vcpus", "given by the instancetype"),
    ("no key version", {"fleet.0.keyVersion": 0}, "fleet[0].keyVersion", "from 1"),
    ("bad firmware", {"fleet.0.firmware": "uefi"}, "fleet[0].firmware", "none of bios, efi"),
    ("tpm as text", {"fleet.0.tpm": "yes"}, "fleet[0].tpm", "neither true nor false"),
    ("bad eviction", {"fleet.0.evictionStrategy": "Evict"}, "fleet[0].evictionStrategy", "none of None"),
    ("bad access mode", {"fleet.0.accessMode": "RWX"}, "fleet[0].accessMode", "none of ReadWriteOnce"),
    ("bad volume mode", {"fleet.0.volumeMode": "block"}, "fleet[0].volumeMode", "did you mean 'Block'"),
    ("nobody at once", {"rollout": {"maxUnavailable": 0}}, "rollout.maxUnavailable", "from 1 on"),
    ("too big a share", {"rollout": {"maxUnavailable": "101%"}}, "rollout.maxUnavailable", "1% to 100%"),
    ("hasty roll-out", {"rollout": {"readySeconds": 1}}, "rollout.readySeconds", "from 30"),
    ("vm is text", {"fleet": ["edge1"]}, "fleet[0]", "not a mapping"),
    ("vm without name", {"fleet.0.name": REMOVE}, "fleet[0].name", "is missing"),
    ("two VMs of one name", {"fleet.1.name": "edge1"}, "fleet[1].name", "taken by fleet[0]"),
    ("capital letters", {"fleet.0.name": "Edge1"}, "fleet[0].name", "not a DNS label"),
    ("underscore", {"fleet.0.name": "edge_1"}, "fleet[0].name", "not a DNS label"),
    ("dash at the end", {"fleet.0.name": "edge-"}, "fleet[0].name", "not a DNS label"),
    ("long name", {"fleet.0.name": "e" * 41}, "fleet[0].name", "longer than 40"),
    ("name is a number", {"fleet.0.name": 7}, "fleet[0].name", "not a text"),
    ("no vcpus", {"fleet.0.vcpus": 0}, "fleet[0].vcpus", "from 1 to 64"),
    ("half a vcpu", {"fleet.0.vcpus": 1.5}, "fleet[0].vcpus", "from 1 to 64"),
    ("vcpus is a flag", {"fleet.0.vcpus": True}, "fleet[0].vcpus", "from 1 to 64"),
    ("memory without unit", {"fleet.0.memory": 1024}, "fleet[0].memory", "not a text"),
    ("wrong unit", {"fleet.0.memory": "1GB"}, "fleet[0].memory", "not a size"),
    ("too little memory", {"fleet.0.memory": "128Mi"}, "fleet[0].memory", "less than 256Mi"),
    ("small OS disk", {"fleet.0.osDisk": "1Gi"}, "fleet[0].osDisk", "less than 2Gi"),
    ("small data disk", {"fleet.0.dataDisk": "1Mi"}, "fleet[0].dataDisk", "less than 64Mi"),
    ("bad storage class", {"fleet.0.storageClass": "a b"}, "fleet[0].storageClass", "not a DNS"),
    ("bad MAC", {"fleet.0.mac": "02:00"}, "fleet[0].mac", "not a MAC"),
    ("multicast MAC", {"fleet.0.mac": "01:00:00:00:00:01"}, "fleet[0].mac", "multicast"),
    ("MAC twice", {"fleet.0.mac": "02:00:00:00:00:07"}, "fleet[1].mac", "taken by fleet[0]"),
    ("bad label", {"fleet.0.nodeSelector": {"a": "b c"}}, "fleet[0].nodeSelector.a", "label value"),
    ("bad label key", {"fleet.0.nodeSelector": {"a b": "c"}}, "fleet[0].nodeSelector.a b", "label key"),
    ("own tag", {"fleet.0.tags": {"kvedge": 1}}, "fleet[0].tags.kvedge", "kept for kvedge"),
    ("dot in tag", {"fleet.0.tags": {"a.b": 1}}, "fleet[0].tags.a.b", "hub refuses"),
    ("tags too long", {"fleet.0.tags": {"a": "x" * 9000}}, "fleet[0].tags", "8192 bytes"),
    ("no hub", {"hub": REMOVE}, "hub", "no hub is named"),
    ("device's connection string", {"hub.connectionString": "HostName=h;DeviceId=d;SharedAccessKey=k"},
     "hub.connectionString", "lacks SharedAccessKeyName"),
    ("missing hub CA", {"hub.caFile": "/nowhere"}, "hub.caFile", "not a file"),
    ("missing connection file", {"hub.connectionStringFile": "/nowhere"},
     "hub.connectionStringFile", "not a file"),
    ("bad device host", {"hub.deviceHost": "a_b"}, "hub.deviceHost", "not a DNS name"),
    ("no ID scope", {"dps": {"groupKey": "S0VZ"}}, "dps.idScope", "is missing"),
    ("no group key", {"dps": {"idScope": "0ne00123ABC"}}, "dps.groupKey", "is missing"),
    ("bad ID scope", {"dps": {"idScope": "my-dps", "groupKey": "S0VZ"}}, "dps.idScope", "not an ID scope"),
    ("group key is none", {"dps": {"idScope": "0ne00123ABC", "groupKey": "key!"}}, "dps.groupKey", "not base64"),
    ("endpoint without scheme", {"dps": {"idScope": "0ne00123ABC", "groupKey": "S0VZ", "endpoint": "dps.test"}},
     "dps.endpoint", "not https://HOST"),
    ("no registry", {"registry": REMOVE}, "registry.push", "no registry is named"),
    ("registry with scheme", {"registry.push": "https://r"}, "registry.push", "HOST or HOST:PORT"),
    ("registry's port", {"registry.push": "r:99999"}, "registry.push", "not from 1 to 65535"),
    ("missing kubeconfig", {"cluster.kubeconfig": "/nowhere"}, "cluster.kubeconfig", "not a file"),
    ("bad namespace", {"cluster.namespace": "Edge"}, "cluster.namespace", "not a DNS label"),
    ("image by tag", {"image": {"reference": "r/i:1"}}, "image.reference", "by digest"),
    ("bad recipe", {"image": {"recipe": "../x"}}, "image.recipe", "not a DNS name"),
    ("private key as key", {"ssh.authorizedKeys": ["-----BEGIN"]}, "ssh.authorizedKeys[0]", "public key"),
    ("bad CIDR", {"ssh.sourceRanges": ["10.0.0.0/33"]}, "ssh.sourceRanges[0]", "not a network"),
    ("host bits", {"ssh.sourceRanges": ["10.0.0.1/8"]}, "ssh.sourceRanges[0]", "host bits"),
    ("bad Service type", {"ssh.serviceType": "Loadbalancer"}, "ssh.serviceType", "did you mean 'LoadBalancer'"),
    ("bad port", {"ssh.port": 70000}, "ssh.port", "from 1 to 65535"),
    ("bad address", {"hosts": {"h": "10.0.0"}}, "hosts.h", "not an IP address"),
    ("bad target", {"platform.baseTarget": "tags.site='lille"}, "platform.baseTarget", "has no meaning"),
    ("bad target name", {"platform.baseTarget": "site='a'"}, "platform.baseTarget", "names 'site'"),
    ("target ends early", {"platform.baseTarget": "tags.a ="}, "platform.baseTarget", "ends too early"),
    ("bad node name", {"platform.connector": {"nodeName": "A"}}, "platform.connector.nodeName", "DNS"),
    ("no replica", {"platform.connector": {"replicas": 0}}, "platform.connector.replicas", "from 1"),
    ("operators is a flag", {"operators": True}, "operators", "not a mapping"),
    ("bad operators' registry", {"operators": {"registry": "HTTP://x"}}, "operators.registry", "not an image name"),
    ("emulation as text", {"operators": {"emulation": "on"}}, "operators.emulation", "neither true nor false"),
    ("azure is text", {"azure": "westeurope"}, "azure", "not a mapping"),
    ("no location", {"azure": AZURE, "azure.location": REMOVE}, "azure.location", "is missing"),
    ("location with blank", {"azure": AZURE, "azure.location": "West Europe"}, "azure.location", "does not fit"),
    ("group ends in a dot", {"azure": AZURE, "azure.resourceGroup": "edge."}, "azure.resourceGroup", "does not fit"),
    ("no hub's name", {"azure": AZURE, "azure.hub": {}}, "azure.hub.name", "is missing"),
    ("underscore in hub", {"azure": AZURE, "azure.hub.name": "my_hub"}, "azure.hub.name", "does not fit"),
    ("free hub", {"azure": AZURE, "azure.hub.sku": "F1"}, "azure.hub.sku", "none of S1"),
    ("bad subscription", {"azure": AZURE, "azure.subscription": "mine"}, "azure.subscription", "subscription's id"),
    ("no DPS name", {"azure": AZURE, "azure.dps": {"group": "a"}}, "azure.dps.name", "is missing"),
    ("node without nesting", {"azure": AZURE, "azure.aks": {"name": "a", "nodeSize": "Standard_B2s"}},
     "azure.aks.nodeSize", "nested virtualization"),
    ("Arm64 node", {"azure": AZURE, "azure.aks": {"name": "a", "nodeSize": "Standard_D4ps_v5"}},
     "azure.aks.nodeSize", "nested virtualization"),
    ("no nodes", {"azure": AZURE, "azure.aks": {"name": "a", "nodes": 0}}, "azure.aks.nodes", "from 1"),
    ("version of Kubernetes", {"azure": AZURE, "azure.aks": {"name": "a", "version": "latest"}},
     "azure.aks.version", "does not fit"),
    ("repository by name", {"azure": AZURE, "azure.arc": {"name": "a", "flux": {"url": "git.x/y", "path": "p"}}},
     "azure.arc.flux.url", "does not fit"),
    ("path above", {"azure": AZURE, "azure.arc": {"name": "a", "flux": {"url": "https://git.x/y", "path": "../p"}}},
     "azure.arc.flux.path", "does not fit"),
    ("user without token", {"azure": AZURE, "azure.arc": {"name": "a", "flux": {"url": "https://git.x/y", "path": "p", "user": "me"}}},
     "azure.arc.flux.user", "belong together"),
    ("bad site", {"site": "Lille!"}, "site", "not a DNS label"),
    ("bad own label", {"labels": {"a": "b c"}}, "labels.a", "label value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_each_mistake_is_told_with_its_path(
    raw: dict[str, Any], changes: dict[str, Any], path: str, message: str
) -> None:
    """A wrong setting is refused, alone, with its path and what is wrong."""
    wrong = changed(raw, changes)
    with pytest.raises(errors.SpecError) as caught:
        settings.parse("plant", wrong, environ={})
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert path in found, found
    assert message in found[path]
    assert len(found) == 1


def test_all_mistakes_come_at_once(raw: dict[str, Any]) -> None:
    """Nobody has to run it again to hear of the next mistake."""
    wrong = changed(raw, {"fleet.0.memory": "x", "fleet.1.vcpus": 0, "hub": REMOVE, "zite": 1})
    with pytest.raises(errors.SpecError) as caught:
        settings.parse("plant", wrong, environ={})
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["fleet[0].memory", "fleet[1].vcpus", "hub", "zite"]
    assert caught.value.exit_code == 2


def test_a_secret_is_never_in_a_message(raw: dict[str, Any]) -> None:
    """The hub's key stays out of messages, even of those about the connection string."""
    wrong = changed(raw, {"hub.connectionString": "HostName=h;SharedAccessKey=TOPSECRET"})
    with pytest.raises(errors.SpecError) as caught:
        settings.parse("plant", wrong, environ={})
    assert "TOPSECRET" not in str(caught.value)


def test_the_stack_name_is_checked(raw: dict[str, Any]) -> None:
    """The stack's name becomes part of device ids and labels."""
    with pytest.raises(errors.SpecError, match="stack: 'Plant 1' is not a DNS label"):
        settings.parse("Plant 1", raw, environ={})


def test_defaults_fill_a_short_file() -> None:
    """One VM name and a hub are enough."""
    hub = "HostName=h.azure-devices.net;SharedAccessKeyName=n;SharedAccessKey=k"
    raw = {"fleet": [{"name": "a"}], "hub": {"connectionString": hub}, "registry": {"push": "r"}}
    found = settings.parse("plant", raw, environ={})
    assert found.site == "plant"
    assert found.hub.device_host == "h.azure-devices.net"
    assert found.registry.pull == "r"
    assert found.fleet[0].vcpus == 2
    assert found.platform is None
    assert found.cluster.namespace == "default"


def test_a_fleet_may_be_counted(raw: dict[str, Any]) -> None:
    """A template, a count, overrides by name and named VMs beside them."""
    raw["fleet"] = {
        "count": 3, "namePrefix": "press-",
        "template": {"memory": "2Gi", "tags": {"line": "press", "shift": 1}},
        "overrides": {"press-2": {"memory": "4Gi", "tags": {"line": "paint"}}},
        "vms": [{"name": "gate", "vcpus": 1}],
    }  # fmt: skip
    found = {vm.name: vm for vm in settings.parse("plant", raw, environ={}).fleet}
    assert list(found) == ["gate", "press-1", "press-2", "press-3"]
    assert [vm.memory for vm in found.values()] == ["2Gi", "2Gi", "4Gi", "2Gi"]
    assert found["press-2"].tags == {"line": "paint", "shift": 1}
    assert found["gate"].vcpus == 1


@pytest.mark.parametrize(
    ("given", "vms", "at_once"), [(2, 10, 2), ("25%", 10, 2), ("25%", 3, 1), ("100%", 7, 7)]
)
def test_the_roll_outs_step_is_a_number_or_a_share(
    raw: dict[str, Any], given: Any, vms: int, at_once: int
) -> None:
    """A share is rounded down, and one VM goes at any rate."""
    raw["rollout"] = {"maxUnavailable": given}
    assert settings.parse("plant", raw, environ={}).rollout.at_once(vms) == at_once


def test_variables_override_settings(raw: dict[str, Any], ca_file: Path) -> None:
    """A local site's env file wins over what the stack's file says."""
    environ = {
        "KVEDGE_REGISTRY_PUSH": "localhost:1234",
        "KVEDGE_HOSTS": "a.test=10.0.0.1,b.test=10.0.0.2",
        "KVEDGE_CLUSTER_ID": "from-variable",
        "KVEDGE_HUB_CA_FILE": str(ca_file),
    }
    found = settings.parse("plant", raw, environ=environ)
    assert found.registry.push == "localhost:1234"
    assert dict(found.hosts) == {"a.test": "10.0.0.1", "b.test": "10.0.0.2"}
    assert found.cluster.identifier == "from-variable"


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_can_be_chosen(raw: dict[str, Any], name: str) -> None:
    """A recipe's name is taken as it is."""
    wanted = changed(raw, {"image": {"recipe": name}})
    environment = settings.parse("plant", wanted, environ={})
    assert environment.image.recipe == name


def test_the_source_of_each_value_is_known(raw: dict[str, Any]) -> None:
    """Flag, variable, settings, default: in this order, and it is told which it was."""
    environ = {"KVEDGE_REGISTRY_PUSH": "r", "KVEDGE_CONTEXT": "c"}
    found = settings.sources(raw, environ=environ, flags={"cluster.context": "flag"})
    by_path = {one.path: (one.value, one.source) for one in found}
    assert by_path["cluster.context"] == ("flag", "flag")
    assert by_path["registry.push"] == ("r", "KVEDGE_REGISTRY_PUSH")
    assert by_path["registry.pull"] == ("registry.example.net", "settings")
    assert by_path["image.recipe"] == ("debian-12-edge", "default")
    assert "c2VjcmV0" not in repr(found)


def test_the_connection_string_may_be_in_a_file(raw: dict[str, Any], tmp_path: Path) -> None:
    """A file of mode 0600 is how a local site hands it over."""
    file = tmp_path / "service.connection"
    file.write_text("HostName=x:8443;SharedAccessKeyName=n;SharedAccessKey=k\n")
    found = settings.parse("plant", raw, environ={"KVEDGE_HUB_CONNECTION_STRING_FILE": str(file)})
    assert found.hub.connection_string.reveal().startswith("HostName=x:8443")
    assert found.hub.device_host == "x"


def test_a_variable_makes_no_platform(raw: dict[str, Any]) -> None:
    """The connector's own policy is taken by the environment that has a connector, and no other."""
    environ = {
        "KVEDGE_CONNECTOR_CONNECTION_STRING": "HostName=h;SharedAccessKeyName=c;SharedAccessKey=k"
    }
    carrier = settings.parse("plant", raw, environ=environ).platform
    assert carrier is not None
    assert carrier.connector.connection_string is not None
    other = changed(raw, {"platform": REMOVE})
    assert settings.parse("plant", other, environ=environ).platform is None


def test_azure_makes_the_hub_that_nobody_knows_yet(raw: dict[str, Any]) -> None:
    """Validating needs no hub; its name is known from the section."""
    made = changed(raw, {"hub": REMOVE, "azure": AZURE, "azure.aks": {"name": "lille"}})
    found = settings.parse("plant", made, environ={})
    assert found.hub.device_host == "edge-hub.azure-devices.net"
    assert found.azure is not None
    assert found.azure.aks == spec.Aks(name="lille")


@pytest.mark.parametrize(
    "size", ["Standard_D4s_v5", "Standard_D2_v3", "Standard_E8ds_v5", "Standard_D16as_v6"]
)
def test_sizes_with_nested_virtualization(raw: dict[str, Any], size: str) -> None:
    """D, E and F series from the third generation on."""
    made = changed(raw, {"azure": AZURE, "azure.aks": {"name": "a", "nodeSize": size}})
    assert settings.parse("plant", made, environ={}).azure


def test_encrypted_values_pass_without_the_key(raw: dict[str, Any]) -> None:
    """Validating needs no passphrase."""
    hidden = changed(raw, {"hub.connectionString": {"secure": "v1:x"}, "hub.deviceHost": "h"})
    assert settings.parse("plant", hidden, environ={}).hub.device_host == "h"


@pytest.mark.parametrize("stack", ["dev", "site-example"])
def test_shipped_stack_files_are_right(stack: str, ca_file: Path) -> None:
    """Both shipped files parse; only what the site or the user adds is put in."""
    file = Path(__file__).parents[3] / "infra" / "stacks" / f"Pulumi.{stack}.yaml"
    raw = settings.read_stack(file)
    raw.setdefault("cluster", {}).pop("kubeconfig", None)
    environ = {
        "KVEDGE_HUB_CONNECTION_STRING": "HostName=h;SharedAccessKeyName=n;SharedAccessKey=k",
        "KVEDGE_REGISTRY_PUSH": "localhost:5000",
    }
    found = settings.parse(stack, raw, environ=environ)
    assert found.fleet


@pytest.mark.parametrize(
    ("text", "size"),
    [("1Gi", 2**30), ("1.5Gi", 3 * 2**29), ("512Mi", 2**29), ("1G", 10**9), ("7", 7)],
)
def test_sizes_are_kubernetes_quantities(text: str, size: int) -> None:
    """A size means what it means in a manifest."""
    assert settings.quantity(text) == size


def test_a_missing_stack_file_says_what_to_do(tmp_path: Path) -> None:
    """The first thing that a new user meets."""
    with pytest.raises(errors.SpecError, match="no such stack file"):
        settings.read_stack(tmp_path / "Pulumi.x.yaml")


def changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with values at paths such as `fleet.0.name` put in or removed."""
    copied = copy.deepcopy(raw)
    for path, value in changes.items():
        *above, last = path.split(".")
        target: Any = copied
        for part in above:
            target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
        if value is REMOVE:
            del target[last]
        else:
            target[last] = copy.deepcopy(value)
    return copied
