"""What a VM is told at its start: cloud-init documents, the secret disk's files, its host key.

Pure text. The secret disk is applied by the image at every boot, cloud-init only at the first, so
everything that may change is on the disk and cloud-init says little.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import uuid
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import cloudinit
from kvedge import errors
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvedge import spec

__all__ = [
    "check_user_data",
    "config_toml",
    "device_connection_string",
    "exec_key",
    "exec_only",
    "firmware_uuid",
    "host_key",
    "host_name",
    "hosts_lines",
    "key_of",
    "mac_address",
    "network_data",
    "new_key_pair",
    "secret_disk",
    "user_data",
]

TRUSTED_CA = "/etc/kvedge/trusted-ca.pem"
"""Where the image puts the secret disk's trusted-ca.pem."""
_EXEC_ONLY = (
    "import os,re,shlex,sys;"
    'w=shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND",""));'
    'n=next((i for i,x in enumerate(w) if i>1 and x not in("-i","-t")),len(w));'
    'w[:2]==["docker","exec"] and w[n+1:] and re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*",w[n]) '
    'or sys.exit("this key may only run docker exec");'
    'os.execvp("docker",w)'
)
"""Runs what the caller asked for, if it is `docker exec [-i] [-t] MODULE COMMAND…`."""


def host_name(environment: spec.Environment, vm: spec.Vm) -> str:
    """Return the guest's host name; final from the first boot on, as IoT Edge wants it."""
    return environment.device_id(vm)[:63].rstrip("-")


def firmware_uuid(environment: spec.Environment, vm: spec.Vm) -> str:
    """Return the machine's UUID, which is also cloud-init's instance id: the same for good."""
    return str(
        uuid.uuid5(uuid.NAMESPACE_URL, f"kvedge.io/{environment.cluster.namespace}/{vm.name}")
    )


def mac_address(environment: spec.Environment, vm: spec.Vm) -> str:
    """Return the VM's MAC: the one asked for, else a locally administered one from its UUID."""
    if vm.mac:
        return vm.mac
    digest = hashlib.sha256(firmware_uuid(environment, vm).encode()).digest()
    # IEEE 802: bit 1 of the first byte means locally administered, bit 0 multicast.
    return ":".join(f"{byte:02x}" for byte in [(digest[0] & 0xFC) | 0x02, *digest[1:6]])


def host_key(seed: str, device_id: str, version: int = 1) -> tuple[str, str]:
    """Return private (OpenSSH PEM) and public (one line) ssh host key of a device.

    Derived (HKDF, RFC 5869), so that the public half is known before anything is created and a
    VM that is made anew keeps its key.
    """
    raw = HKDF(
        algorithm=hashes.SHA256(),
        length=32,
        salt=None,
        info=f"ssh host key of {device_id}{'' if version == 1 else f' {version}'}".encode(),
    ).derive(seed.encode())
    return _openssh(ed25519.Ed25519PrivateKey.from_private_bytes(raw), raw, device_id)


def exec_key(seed: str) -> tuple[str, str]:
    """Return both halves of the key by which the connector enters modules; derived likewise."""
    raw = HKDF(
        algorithm=hashes.SHA256(), length=32, salt=None, info=b"ssh key of the connector"
    ).derive(seed.encode())
    return _openssh(ed25519.Ed25519PrivateKey.from_private_bytes(raw), raw, "kvedge-connector")


def exec_only(public: str) -> str:
    """Return the line of authorized_keys (sshd(8)) that lets a key run `docker exec` only.

    The arguments are parsed by Python, which cloud-init brings along, and never by a shell: of
    docker's options only `-i` and `-t` are taken, and no file of the guest is needed.
    """
    escaped = _EXEC_ONLY.replace('"', '\\"')
    return f"restrict,pty,command=\"/usr/bin/python3 -ISc '{escaped}'\" {public}"


def new_key_pair(comment: str) -> tuple[str, str]:
    """Return a fresh private and public ssh key for a user."""
    key = ed25519.Ed25519PrivateKey.generate()
    raw = key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    return _openssh(key, raw, comment)


def device_connection_string(host: str, device_id: str, key: str) -> str:
    """Return a device's connection string."""
    return f"HostName={host};DeviceId={device_id};SharedAccessKey={key}"


def user_data(environment: spec.Environment, vm: spec.Vm) -> str:
    """Return the cloud-config: the name, that host keys are on the secret disk, the VM's own part.

    Raises:
        SpecError: the VM's own part says otherwise, with the path of each.
    """
    ours = {
        "manage_etc_hosts": False,
        "ssh_deletekeys": False,
        "ssh_genkeytypes": ["ed25519"],
        "growpart": {"mode": "auto", "devices": ["/"]},
    }
    try:
        extra = cloudinit.merge(vm.cloud_init, ours)
        return cloudinit.render(
            cloudinit.UserData(hostname=host_name(environment, vm), extra=extra)
        )
    except errors.SpecError as cause:
        problems = [
            dataclasses.replace(one, path=f"cloudInit.{one.path.partition('.')[2]}")
            for one in cause.problems
        ]
        raise errors.SpecError(f"VM {vm.name!r}", problems) from cause


def check_user_data(environment: spec.Environment, schema: Mapping[str, Any] | None = None) -> None:
    """Find out whether cloud-init will take what VMs are told at their first boot.

    Args:
        schema: the content of `schema-cloud-config-v1.json` of the image; None when it is not at
            hand, then only known traps are looked for.

    Raises:
        SpecError: with every mistake of every VM.
    """
    problems: list[errors.Problem] = []
    for vm in environment.fleet:
        if not vm.cloud_init:
            continue
        try:
            text = user_data(environment, vm)
        except errors.SpecError as cause:
            found = list(cause.problems)
        else:
            found = cloudinit.lint(text)
            if schema is not None:
                found += [one for one in cloudinit.validate(text, schema) if one not in found]
            found = [dataclasses.replace(one, path=f"cloudInit.{one.path}") for one in found]
        problems += [dataclasses.replace(one, path=f"VM {vm.name}: {one.path}") for one in found]
    if problems:
        raise errors.SpecError(f"environment {environment.name!r}", problems)


def network_data(environment: spec.Environment, vm: spec.Vm) -> str:
    """Return the network config: DHCP on the one interface, found by its MAC.

    Netplan takes no globs, and networkd matches a name that may differ, so only the MAC is safe.
    """
    return cloudinit.render_network(cloudinit.NetworkData(mac=mac_address(environment, vm)))


def key_of(connection_string: str) -> str:
    """Return the key of a device's connection string."""
    return connection_string.rpartition("SharedAccessKey=")[2]


def config_toml(environment: spec.Environment, vm: spec.Vm, connection_string: str) -> str:
    """Return /etc/aziot/config.toml, which holds the device's key."""
    how: cloudinit.ManualConnectionString | cloudinit.DpsSymmetricKey
    how = cloudinit.ManualConnectionString(connection_string=Secret(connection_string))
    if environment.dps:
        how = cloudinit.DpsSymmetricKey(
            id_scope=environment.dps.id_scope,
            registration_id=environment.device_id(vm),
            key=Secret(key_of(connection_string)),
            global_endpoint=environment.dps.endpoint,
        )
    return cloudinit.render_edge_config(
        cloudinit.EdgeConfig(
            provisioning=how,
            hostname=host_name(environment, vm),
            trust_bundle=f"file://{TRUSTED_CA}" if environment.hub.ca_file else "",
            agent=cloudinit.Agent(image=environment.edge.agent_image),
        )
    )


def hosts_lines(hosts: Mapping[str, str]) -> str:
    """Return lines of hosts(5)."""
    return "".join(f"{address} {name}\n" for name, address in sorted(hosts.items()))


def secret_disk(
    environment: spec.Environment,
    vm: spec.Vm,
    *,
    connection_string: str,
    keys: tuple[str, str],
    authorized_keys: Iterable[str],
    trusted_ca: str,
) -> dict[str, str]:
    """Return the files of the VM's secret disk.

    Args:
        connection_string: the device's own.
        keys: private and public ssh host key.
        authorized_keys: public keys of user `edge`.
        trusted_ca: PEM of the authorities of hub and registry; empty if they are public ones.
    """
    files = {
        "config.toml": config_toml(environment, vm, connection_string),
        "ssh_host_ed25519_key": keys[0],
        "ssh_host_ed25519_key.pub": keys[1] + "\n",
        "authorized_keys": "".join(f"{key}\n" for key in authorized_keys),
    }
    if trusted_ca:
        files["trusted-ca.pem"] = trusted_ca
    if environment.registry.ca_file and environment.registry.pull:
        files["registries"] = environment.registry.pull + "\n"
    if environment.hosts:
        files["hosts"] = hosts_lines(environment.hosts)
    return files


def _openssh(key: ed25519.Ed25519PrivateKey, raw: bytes, comment: str) -> tuple[str, str]:
    """Return both halves in OpenSSH's form, the same bytes for the same key.

    The library draws the private form's check number at random, which would make a derived key
    look changed at every run, so the form (openssh PROTOCOL.key) is written here.
    """
    public = key.public_key().public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )
    kind = b"ssh-ed25519"
    blob = _string(kind) + _string(public)
    check = hashlib.sha256(b"check" + raw).digest()[:4]
    inner = (
        check + check + blob + _string(raw + public) + _string(comment.encode())
    )  # fmt: skip
    inner += bytes(range(1, 1 + -len(inner) % 8))
    body = (
        b"openssh-key-v1\0" + _string(b"none") + _string(b"none") + _string(b"")
        + (1).to_bytes(4, "big") + _string(blob) + _string(inner)
    )  # fmt: skip
    text = base64.b64encode(body).decode()
    lines = "".join(text[at : at + 70] + "\n" for at in range(0, len(text), 70))
    begin, end = (f"-----{word} OPENSSH PRIVATE KEY-----\n" for word in ("BEGIN", "END"))
    return begin + lines + end, f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
