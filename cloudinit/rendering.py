"""First-boot data as types, printed as one `#cloud-config` document and one network document.

One document instead of multipart: cloud-init's merging rules drop lists silently. Conflicts between
what is typed and extra fragments are errors here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml

from kvedge import errors, names

__all__ = ["File", "NetworkData", "User", "UserData", "merge", "render", "render_network"]

_HEADER = "#cloud-config\n"
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_MODE = re.compile(r"0[0-7]{3,4}")
_PROXY_UNITS = ("docker", "aziot-edged", "aziot-identityd")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account made at first boot."""

    name: str
    authorized_keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    sudo: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file written at first boot."""

    path: str
    content: str
    mode: str = "0644"
    owner: str = "root:root"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UserData:
    """What a machine is told at its first boot. Keys and secrets go on the secret disk instead."""

    hostname: str
    users: tuple[User, ...] = ()
    files: tuple[File, ...] = ()
    packages: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    """Run once, late, each as an argument list."""
    ntp_servers: tuple[str, ...] = ()
    timezone: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """A cloud-config fragment of the user's own; it must not say what is said above."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkData:
    """The first network card, found by its address, which is portable over all releases."""

    mac: str
    addresses: tuple[str, ...] = ()
    """With prefix length; empty means DHCP."""
    gateway: str = ""
    nameservers: tuple[str, ...] = ()
    name: str = "eth0"


def render(data: UserData) -> str:
    """Return the `#cloud-config` text; equal data gives equal text.

    Raises:
        SpecError: with every mistake that was found.
    """
    problems = list(_problems(data))
    document = _document(data)
    document = _merged(document, data.extra, "extra", problems)
    if problems:
        raise errors.SpecError("cloud-init user data", problems)
    return _HEADER + _yaml(document)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two cloud-config fragments as one; lists are joined, tables merged key by key.

    Raises:
        SpecError: they say different things, with the path of each.
    """
    problems: list[errors.Problem] = []
    document = _merged(first, second, "fragment", problems)
    if problems:
        raise errors.SpecError("cloud-config fragments", problems)
    return document


def _merged(
    first: Mapping[str, Any], second: Mapping[str, Any], path: str, problems: list[errors.Problem]
) -> dict[str, Any]:
    document = dict(first)
    for key, value in second.items():
        known, here = document.get(key), f"{path}.{key}"
        if key not in document:
            document[key] = value
        elif isinstance(value, Mapping) and isinstance(known, Mapping):
            document[key] = _merged(known, value, here, problems)
        elif isinstance(value, list) and isinstance(known, list):
            document[key] = [*known, *value]
        elif value != known:
            problems.append(
                errors.Problem(
                    path=here,
                    message=f"is {known!r} already"[:200],
                    hint="use the typed setting, or leave it out of the fragment",
                )
            )
    return document


def render_network(data: NetworkData) -> str:
    """Return a network document of version 2.

    Raises:
        SpecError: with every mistake that was found.
    """
    problems = []
    if not _MAC.fullmatch(data.mac):
        problems.append(
            errors.Problem(
                path="mac", message=f"{data.mac!r} is not an address like 02:00:00:0a:0b:0c"
            )
        )
    if data.gateway and not data.addresses:
        problems.append(errors.Problem(path="gateway", message="needs addresses"))
    if problems:
        raise errors.SpecError("network data", problems)
    card: dict[str, Any] = {"match": {"macaddress": data.mac}, "set-name": data.name}
    if data.addresses:
        card |= {"dhcp4": False, "addresses": list(data.addresses)}
    else:
        card["dhcp4"] = True
    if data.gateway:
        card["routes"] = [{"to": "0.0.0.0/0", "via": data.gateway}]
    if data.nameservers:
        card["nameservers"] = {"addresses": list(data.nameservers)}
    return _yaml({"version": 2, "ethernets": {data.name: card}})


def _document(data: UserData) -> dict[str, Any]:
    document: dict[str, Any] = {"hostname": data.hostname, "preserve_hostname": False}
    if data.users:
        document["users"] = [_user(user) for user in data.users]
    files = [*data.files, *_proxy_files(data)]
    if files:
        document["write_files"] = [
            {"path": f.path, "content": f.content, "permissions": f.mode, "owner": f.owner}
            for f in files
        ]
    if data.packages:
        document["packages"] = list(data.packages)
    commands = [*_proxy_commands(data), *data.commands]
    if commands:
        document["runcmd"] = [list(command) for command in commands]
    if data.ntp_servers:
        document["ntp"] = {"enabled": True, "servers": list(data.ntp_servers)}
    if data.timezone:
        document["timezone"] = data.timezone
    if data.https_proxy:
        document["apt"] = {"https_proxy": data.https_proxy, "preserve_sources_list": True}
    return document


def _user(user: User) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": user.name, "shell": "/bin/bash", "lock_passwd": True}
    if user.groups:
        entry["groups"] = list(user.groups)
    if user.sudo:
        entry["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    if user.authorized_keys:
        entry["ssh_authorized_keys"] = list(user.authorized_keys)
    return entry


def _proxy_files(data: UserData) -> list[File]:
    """Return the drop-ins of all daemons that must have the very same proxy.

    `iotedge check proxy-settings` compares them with the agent's environment in config.toml.
    """
    if not data.https_proxy:
        return []
    lines = [f'Environment="https_proxy={data.https_proxy}"']
    if data.no_proxy:
        lines.append(f'Environment="no_proxy={data.no_proxy}"')
    text = "[Service]\n" + "\n".join(lines) + "\n"
    return [
        File(path=f"/etc/systemd/system/{unit}.service.d/90-kvedge-proxy.conf", content=text)
        for unit in _PROXY_UNITS
    ]


def _proxy_commands(data: UserData) -> list[tuple[str, ...]]:
    """Return what lets daemons that run already see the drop-ins at the first boot."""
    if not data.https_proxy:
        return []
    return [
        ("systemctl", "daemon-reload"),
        ("systemctl", "--no-block", "try-restart", *(f"{unit}.service" for unit in _PROXY_UNITS)),
    ]


def _problems(data: UserData) -> list[errors.Problem]:
    found = []
    if not names.DNS_LABEL.fullmatch(data.hostname):
        found.append(
            errors.Problem(path="hostname", message=f"{data.hostname!r} is not a DNS label")
        )
    for at, user in enumerate(data.users):
        if not _USER.fullmatch(user.name):
            found.append(
                errors.Problem(path=f"users[{at}].name", message=f"{user.name!r} is no user name")
            )
        for key_at, key in enumerate(user.authorized_keys):
            if len(key.split()) < 2 or "\n" in key.strip():
                found.append(
                    errors.Problem(
                        path=f"users[{at}].authorized_keys[{key_at}]", message="is no public key"
                    )
                )
    seen: set[str] = set()
    for at, file in enumerate(data.files):
        if not file.path.startswith("/"):
            found.append(
                errors.Problem(path=f"files[{at}].path", message=f"{file.path!r} is not absolute")
            )
        if not _MODE.fullmatch(file.mode):
            found.append(
                errors.Problem(path=f"files[{at}].mode", message=f"{file.mode!r} is not like 0644")
            )
        if file.path in seen:
            found.append(
                errors.Problem(path=f"files[{at}].path", message=f"{file.path!r} is there twice")
            )
        seen.add(file.path)
    return found


class _Dumper(yaml.SafeDumper):
    """Writes long texts as blocks, so that people can read a script in user data."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=1000,
        allow_unicode=True,
    )  # fmt: skip
