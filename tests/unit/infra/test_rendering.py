"""What is rendered is what `up` registers, byte for byte the same each time, and without secrets."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import rendering
from kvedge import errors, spec

DIGEST = f"sha256:{'1' * 64}"


def facts(environment: spec.Environment) -> rendering.Facts:
    """Return what the registry and the hub would say in the program's mocks."""
    device = "HostName=h;DeviceId=d;SharedAccessKey=DEVICEKEY123"
    return rendering.Facts(
        image=f"registry.example.net/kvedge/debian-12-edge@{DIGEST}",
        image_key="oci-diskdebian-12-edge".ljust(36, "0"),
        connector_image=f"registry.example.net/kvedge/kvedge@{DIGEST}",
        connection_strings={vm.name: device for vm in environment.fleet},
    )


def registered(environment: spec.Environment) -> dict[str, Any]:
    """Run the program under pulumi's mocks, as its own test does."""
    file = Path(__file__).with_name("test_program.py")
    loaded = importlib.util.spec_from_file_location("program_under_mocks", file)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module.registered(environment)


def key(obj: dict[str, Any]) -> tuple[str, str, str]:
    """Return kind, namespace and name."""
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def plain(value: Any) -> Any:
    """Return a value without pulumi's marks of secrets."""
    if isinstance(value, dict):
        inner = value.get("value") if "4dabf18193072939515e22adb298388d" in value else None
        return plain(inner) if inner is not None else {k: plain(v) for k, v in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_rendered_objects_are_those_that_up_registers(environment: spec.Environment) -> None:
    """Object by object: nothing is missing, nothing differs, Secrets included."""
    found = rendering.rendered(environment, facts(environment))
    ours = {key(obj): obj for obj in (*found.objects, *found.secrets)}
    theirs = {}
    for inputs in registered(environment).values():
        if "apiVersion" in inputs:
            # The mocks keep pulumi's type token in `type`, unless the object has one of its own.
            own = inputs["kind"] == "Secret"
            obj = {k: plain(v) for k, v in inputs.items() if k != "type" or own}
            theirs[key(obj)] = obj
    assert set(ours) == set(theirs)
    for name, obj in ours.items():
        assert obj == theirs[name], name


def test_references_hold_no_secret(environment: spec.Environment, tmp_path: Path) -> None:
    """No device key, hub key or host key is in any file; a reference stands for each Secret."""
    found = rendering.rendered(environment, facts(environment), store="vault")
    files = rendering.write(found, tmp_path / "out")
    text = "".join(file.read_text() for file in files)
    for secret in ("DEVICEKEY", "c2VjcmV0", "PRIVATE KEY", "LS0tLS1CRUdJTiBPUEVOU1NI"):
        assert secret not in text
    references = [one for one in found.secrets if one["kind"] == "ExternalSecret"]
    assert len(references) == len(found.secrets) == 3
    assert references[0]["spec"]["dataFrom"] == [{"extract": {"key": "kvedge/plant/edge1-edge"}}]


def test_the_same_settings_give_the_same_bytes(
    environment: spec.Environment, tmp_path: Path
) -> None:
    """A second run writes the same files, and drops those of a VM that is gone."""
    out = tmp_path / "out"

    def run(what: spec.Environment) -> dict[str, str]:
        files = rendering.write(rendering.rendered(what, facts(what)), out)
        return {str(file.relative_to(out)): file.read_text() for file in files}

    first = run(environment)
    assert run(environment) == first
    listed = yaml.safe_load(first["kustomization.yaml"])["resources"]
    assert set(listed) - {"secrets"} == {f for f in first if "/" not in f} - {"kustomization.yaml"}

    fewer = dataclasses.replace(environment, fleet=environment.fleet[:1])
    assert not [name for name in run(fewer) if "edge2" in name]


def test_operators_are_a_kustomization_of_their_own(
    environment: spec.Environment, tmp_path: Path
) -> None:
    """KubeVirt and CDI must be there before the rest is applied, so the rest does not list them."""
    wanted = dataclasses.replace(environment, operators=spec.Operators(emulation=True))
    out = tmp_path / "out"
    rendering.write(rendering.rendered(wanted, facts(wanted)), out)
    listed = yaml.safe_load((out / "kustomization.yaml").read_text())["resources"]
    assert "operators" not in listed
    own = yaml.safe_load((out / "operators" / "kustomization.yaml").read_text())["resources"]
    assert {"kubevirt-kubevirt.yaml", "cdi-cdi.yaml", "deployment-virt-operator.yaml"} <= set(own)
    kubevirt = yaml.safe_load((out / "operators" / "kubevirt-kubevirt.yaml").read_text())
    developer = kubevirt["spec"]["configuration"]["developerConfiguration"]
    assert developer == {"useEmulation": True}
    rendering.write(rendering.rendered(environment, facts(environment)), out)
    assert not (out / "operators").exists()


def test_a_folder_of_somebody_else_is_left_alone(
    environment: spec.Environment, tmp_path: Path
) -> None:
    """A wrong --out deletes nothing."""
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with pytest.raises(errors.KvedgeError, match="not rendered by kvedge"):
        rendering.write(rendering.rendered(environment, facts(environment)), tmp_path)
    assert (tmp_path / "mine.yaml").exists()
