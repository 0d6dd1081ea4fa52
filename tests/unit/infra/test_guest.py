"""What a guest is told: keys, names, config.toml, cloud-init."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import strategies

from infra import guest
from kvedge import errors, processes, spec
from kvedge.redact import Secret

if TYPE_CHECKING:
    import pathlib
    import subprocess


@hypothesis.given(strategies.text(min_size=1, max_size=60), strategies.text(max_size=40))
def test_host_keys_are_real_and_always_the_same(seed: str, device: str) -> None:
    """Both halves belong together, parse, and are equal bytes at every run."""
    private, public = guest.host_key(seed, "d" + "".join(re.findall("[a-z]", device)))
    again = guest.host_key(seed, "d" + "".join(re.findall("[a-z]", device)))
    assert (private, public) == again
    key = serialization.load_ssh_private_key(private.encode(), None)
    found = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert public.startswith(found.decode())


def test_each_device_has_a_key_of_its_own() -> None:
    """One seed, many keys."""
    assert guest.host_key("s", "a")[1] != guest.host_key("s", "b")[1]


def run_as_connector(tmp_path: pathlib.Path, asked: str) -> subprocess.CompletedProcess[str]:
    """Run what sshd runs for the connector's key; docker is a script that tells its arguments."""
    line = guest.exec_only(guest.exec_key("seed")[1])
    match = re.fullmatch(r'restrict,pty,command="(.*)" ssh-ed25519 [A-Za-z0-9+/=]+ \S+', line)
    assert match
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    docker.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SSH_ORIGINAL_COMMAND": asked}
    return processes.run(
        ["/bin/sh", "-c", match[1].replace('\\"', '"')], what="exec", env=env, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ["-i", "-t", "app-main", "sh"],
        ["app_1", "sh", "-c", "echo 'a b' \"$HOME\"; ls *"],
        ["m", "printf", "%s\n", "-i", "", "\n"],
    ],
)
def test_connectors_key_runs_commands_in_modules(tmp_path: pathlib.Path, words: list[str]) -> None:
    """Each word arrives as it was, and no shell of the guest sees it."""
    done = run_as_connector(tmp_path, shlex.join(["docker", "exec", *words]))
    assert done.stdout == "".join(f"{word}|" for word in ["exec", *words])


@pytest.mark.parametrize(
    "asked",
    [
        "", "id", "docker ps", "docker run --privileged x sh", "docker exec m",
        "docker exec --privileged m sh", "docker exec -u root m sh", "docker exec -- m sh",
        "docker exec -it m sh", "sh -c 'docker exec m sh'", "docker exec 'm;id' sh", "docker exec '",
    ],
)  # fmt: skip
def test_connectors_key_runs_nothing_else(tmp_path: pathlib.Path, asked: str) -> None:
    """No other command, and none of docker's options but the two for input and terminal."""
    done = run_as_connector(tmp_path, asked)
    assert done.returncode != 0
    assert done.stdout == ""


def test_macs_are_local_unicast_and_stay(environment: spec.Environment) -> None:
    """A MAC is derived once and for all, or taken from the settings."""
    first, second = environment.fleet
    mac = guest.mac_address(environment, first)
    assert int(mac[:2], 16) & 3 == 2
    assert mac == guest.mac_address(environment, first)
    assert guest.mac_address(environment, second) == "02:00:00:00:00:07"


CONNECTION = "HostName=h;DeviceId=d;SharedAccessKey=S0VZ"


def test_config_toml_is_toml_with_the_connection_string(environment: spec.Environment) -> None:
    """The identity service reads exactly what was meant."""
    text = CONNECTION
    found = tomllib.loads(guest.config_toml(environment, environment.fleet[0], text))
    assert found["provisioning"] == {"source": "manual", "connection_string": text}
    assert found["hostname"] == "plant-edge1"
    assert found["trust_bundle_cert"] == "file:///etc/kvedge/trusted-ca.pem"
    assert found["agent"]["config"]["image"].startswith("mcr.microsoft.com/")


def test_config_toml_of_an_enrollment_group(environment: spec.Environment) -> None:
    """The device registers itself: scope, its own id, and the key that is derived for it."""
    dps = spec.Dps(id_scope="0ne00123ABC", group_key=Secret("R1JPVVA="))
    joined = dataclasses.replace(environment, dps=dps)
    found = tomllib.loads(guest.config_toml(joined, joined.fleet[0], CONNECTION))
    assert found["provisioning"] == {
        "source": "dps",
        "global_endpoint": "https://global.azure-devices-provisioning.net",
        "id_scope": "0ne00123ABC",
        "attestation": {
            "method": "symmetric_key", "registration_id": "plant-edge1",
            "symmetric_key": {"value": "S0VZ"},
        },
    }  # fmt: skip
    assert "R1JPVVA" not in str(found)


def test_cloud_init_documents_parse(environment: spec.Environment) -> None:
    """The header line is there, and the network is matched by MAC alone."""
    vm = environment.fleet[0]
    text = guest.user_data(environment, vm)
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text)["hostname"] == "plant-edge1"
    network = yaml.safe_load(guest.network_data(environment, vm))
    assert network["ethernets"]["eth0"]["match"] == {
        "macaddress": guest.mac_address(environment, vm)
    }


def with_cloud_init(environment: spec.Environment, part: dict[str, Any]) -> spec.Environment:
    first, *others = environment.fleet
    return dataclasses.replace(
        environment, fleet=(dataclasses.replace(first, cloud_init=part), *others)
    )


def test_a_vms_own_cloud_config_is_added(environment: spec.Environment) -> None:
    """Its keys stand beside ours."""
    own = with_cloud_init(environment, {"runcmd": [["true"]], "timezone": "Europe/Paris"})
    guest.check_user_data(own)
    told = yaml.safe_load(guest.user_data(own, own.fleet[0]))
    assert told["runcmd"] == [["true"]]
    assert told["hostname"] == "plant-edge1"


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"hostname": "other"}, "cloudInit.hostname"),
        ({"ssh_deletekeys": True}, "cloudInit.ssh_deletekeys"),
        ({"growpart": {"mode": "off"}}, "cloudInit.growpart.mode"),
        ({"runcmd": "ls"}, "cloudInit.runcmd"),
        ({"no_such_module": 1}, "cloudInit.no_such_module"),
    ],
)
def test_a_cloud_config_that_cannot_work_is_refused(
    environment: spec.Environment, part: dict[str, Any], path: str
) -> None:
    """What contradicts ours and what the image's schema refuses is told by VM and path."""
    schema = {"properties": {"runcmd": {"type": "array"}, "hostname": {}, "preserve_hostname": {},
                             "ssh_deletekeys": {}, "ssh_genkeytypes": {}, "growpart": {},
                             "manage_etc_hosts": {}}}  # fmt: skip
    with pytest.raises(errors.SpecError) as caught:
        guest.check_user_data(with_cloud_init(environment, part), schema)
    assert f"VM edge1: {path}" in [one.path for one in caught.value.problems]


def test_the_secret_disk_has_what_the_image_applies(environment: spec.Environment) -> None:
    """File names are a contract with the image's unit."""
    files = guest.secret_disk(
        environment, environment.fleet[0], connection_string=CONNECTION, keys=("private", "public"),
        authorized_keys=["k1", "k2"], trusted_ca="PEM\n",
    )  # fmt: skip
    assert set(files) == {
        "config.toml", "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "authorized_keys",
        "trusted-ca.pem", "registries", "hosts",
    }  # fmt: skip
    assert files["authorized_keys"] == "k1\nk2\n"
    assert files["hosts"] == "10.0.0.7 hub.example.net\n"
    assert files["registries"] == "registry.example.net\n"


@pytest.mark.parametrize("trusted", ["", "PEM\n"])
def test_public_authorities_need_no_file(environment: spec.Environment, trusted: str) -> None:
    """Without a private authority there is no trust file."""
    files = guest.secret_disk(
        environment, environment.fleet[0], connection_string=CONNECTION, keys=("a", "b"),
        authorized_keys=[], trusted_ca=trusted,
    )  # fmt: skip
    assert ("trusted-ca.pem" in files) is bool(trusted)


def test_another_key_version_is_another_host_key() -> None:
    """The first version is what VMs have that never rotated."""
    first = guest.host_key("seed", "plant-edge1")
    assert guest.host_key("seed", "plant-edge1", 1) == first
    assert guest.host_key("seed", "plant-edge1", 2) != first
