"""Kubernetes objects: golden files for the whole, assertions for the decisions."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import hub_content, manifests, node_manifests
from kvedge import names, spec

GOLDEN = Path(__file__).parents[2] / "golden" / "manifests"
KEY = "oci-" + "0123456789abcdef" * 2
HOST_KEY = "ssh-ed25519 AAAA plant-edge1"


def everything(environment: spec.Environment) -> dict[str, list[Any]]:
    """Return all objects, by the golden file that holds them."""
    found: dict[str, list[Any]] = {}
    for vm in environment.fleet:
        url = f"docker://registry.example.net/kvedge/debian-12-edge@sha256:{'0' * 64}"
        found[vm.name] = [
            manifests.os_disk(environment, vm, KEY, url),
            manifests.data_disk(environment, vm),
            manifests.virtual_machine(environment, vm, KEY, HOST_KEY),
            manifests.ssh_service(environment, vm),
        ]
    found["connector"] = [
        *node_manifests.rights(environment),
        *node_manifests.guards(environment),
        node_manifests.hub_secret(environment, "CONNECTION", "PEM"),
        node_manifests.deployment(environment, "registry.example.net/kvedge/kvedge:1", "abc"),
    ]
    found["hub"] = [
        hub_content.base_configuration(environment),
        *({vm.name: hub_content.device_tags(environment, vm)} for vm in environment.fleet),
    ]
    return found


@pytest.mark.parametrize("name", ["edge1", "edge2", "connector", "hub"])
def test_objects_are_as_the_golden_file_says(environment: spec.Environment, name: str) -> None:
    """Every change of an object is seen in review; KVEDGE_GOLDEN=write writes the files anew."""
    text = yaml.safe_dump_all(everything(environment)[name], sort_keys=True)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("KVEDGE_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


def test_nothing_is_an_endless_difference(environment: spec.Environment) -> None:
    """The provider prunes empty maps of metadata, which would differ at every run."""
    for objects in everything(environment).values():
        for obj in objects:
            for key in ("labels", "annotations"):
                assert obj.get("metadata", {}).get(key) != {}


def test_no_vm_waits_for_a_condition(environment: spec.Environment) -> None:
    """After an edit of a running VM the provider's wait could never end."""
    assert "waitFor" not in str(everything(environment))


def test_a_vm_holds_no_secret_and_nothing_unknown(environment: spec.Environment) -> None:
    """A preview sends the VM through admission, so all of it is known before the run."""
    vm = manifests.virtual_machine(environment, environment.fleet[0], KEY, HOST_KEY)
    assert "SharedAccessKey" not in str(vm)


def test_another_image_is_another_disk(environment: spec.Environment) -> None:
    """The OS disk is named by the recipe's key, the data disk stays."""
    vm = environment.fleet[0]
    assert manifests.os_disk_name(vm, "oci-aaaa") != manifests.os_disk_name(vm, "oci-bbbb")
    assert manifests.os_disk_name(vm, KEY) == "edge1-os-0123456789ab"


def test_disks_are_virtio_with_the_serials_of_the_image(environment: spec.Environment) -> None:
    """The guest finds its disks by serial."""
    vm = manifests.virtual_machine(environment, environment.fleet[0], KEY, HOST_KEY)
    disks = vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"]
    assert {d["disk"]["bus"] for d in disks} == {"virtio"}
    serials = {d["name"]: d.get("serial") for d in disks}
    assert serials["data"] == names.DATA_DISK_SERIAL
    assert serials["config"] == names.CONFIG_DISK_SERIAL


def test_the_service_can_be_left_out(environment: spec.Environment) -> None:
    """Ssh through the Kubernetes API needs no Service."""
    ssh = dataclasses.replace(environment.ssh, service_type="None")
    quiet = dataclasses.replace(environment, ssh=ssh)
    assert manifests.ssh_service(quiet, quiet.fleet[0]) is None


def test_the_connector_asks_for_no_more_than_it_uses(environment: spec.Environment) -> None:
    """No wildcard, no write to what it only reads, no list of all Secrets."""
    for obj in node_manifests.rights(environment):
        for rule in obj.get("rules", ()):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if "configmaps" in rule["resources"]:
                assert set(rule["verbs"]) == {"get", "list", "watch"}
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["get"]


def test_the_base_id_follows_its_content(environment: spec.Environment) -> None:
    """The hub never changes a deployment's content, so another content is another id."""
    other = dataclasses.replace(
        environment, edge=dataclasses.replace(environment.edge, hub_image="other:1")
    )
    first, second = (
        hub_content.base_configuration(environment),
        hub_content.base_configuration(other),
    )
    assert first["id"] != second["id"]
    assert first["id"] == hub_content.base_configuration(environment)["id"]
    assert first["priority"] == 0
