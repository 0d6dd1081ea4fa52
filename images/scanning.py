"""Looking into a built image without booting it: packages, schema, and what must not be.

In well under a second, from the tar of its root file system or from the disk itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from images.trees import Tree

__all__ = ["Package", "guest_schema", "packages", "scan"]

_SCHEMA = "usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"
_STATUS = "var/lib/dpkg/status"
_SECRETS = re.compile(
    rb"SharedAccessKey=[A-Za-z0-9+/]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{20,}"
)
_SECRET_PLACES = ("etc/", "home/", "root/", "srv/", "usr/lib/kvedge/", "var/lib/aziot/")
_SETUID_FINE = frozenset(
    {
        "usr/bin/chage", "usr/bin/chfn", "usr/bin/chsh", "usr/bin/expiry", "usr/bin/gpasswd",
        "usr/bin/mount", "usr/bin/newgrp", "usr/bin/passwd", "usr/bin/ssh-agent", "usr/bin/su",
        "usr/bin/sudo", "usr/bin/umount", "usr/lib/dbus-1.0/dbus-daemon-launch-helper",
        "usr/lib/openssh/ssh-keysign", "usr/sbin/unix_chkpwd",
    }
)  # fmt: skip
_MUST_BE = ("etc/ssh/sshd_config.d/10-kvedge.conf", "etc/fstab", "boot/grub/grub.cfg")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Package:
    """An installed package."""

    name: str
    version: str
    architecture: str
    source: str
    """Source package, with version if it has another one."""
    installed_kib: int


def packages(tree: Tree) -> list[Package]:
    """Return the packages of a tree's dpkg status."""
    return sorted(_packages((tree.read(_STATUS) or b"").decode()))


def _packages(text: str) -> Iterator[Package]:
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " "
        )
        if fields.get("Status", "").endswith("installed") and "Package" in fields:
            yield Package(
                name=fields["Package"],
                version=fields["Version"],
                architecture=fields["Architecture"],
                source=fields.get("Source", fields["Package"]),
                installed_kib=int(fields.get("Installed-Size", "0")),
            )


def guest_schema(tree: Tree) -> dict[str, Any]:
    """Return the cloud-config schema of the very cloud-init in a tree.

    Raises:
        KvedgeError: there is none.
    """
    found = tree.read(_SCHEMA)
    if found is None:
        raise errors.KvedgeError(
            "the image has no cloud-config schema", hint="is cloud-init in it?"
        )
    return json.loads(found)


def scan(tree: Tree) -> list[errors.Problem]:
    """Return what must not be in an image that many machines start from."""
    problems: list[errors.Problem] = []
    seen: dict[str, int] = {}

    def add(path: str, message: str) -> None:
        problems.append(errors.Problem(path=f"/{path}", message=message))

    for entry in tree.entries():
        path = entry.path
        seen[path] = entry.size
        if path.startswith("etc/ssh/ssh_host_"):
            add(path, "every machine would have this host key")
        if path.endswith("/authorized_keys") and entry.size:
            add(path, "a key that opens every machine")
        if not entry.regular:
            continue
        if entry.mode & 0o6000 and path not in _SETUID_FINE:
            add(path, f"set-user-id or set-group-id file of mode {entry.mode:o}")
        if entry.size < 1 << 20 and path.startswith(_SECRET_PLACES):
            data = entry.read()
            if _SECRETS.search(data):
                add(path, "has a private key or a shared access key in it")
            if path == "etc/shadow":
                for line in data.decode().splitlines():
                    name, secret = line.split(":")[:2]
                    if secret not in {"*", "!", "!*", "!!"}:
                        add(path, f"user {name!r} has a password")
    if seen.get("etc/machine-id", -1) != 0:
        add("etc/machine-id", "must be there and empty")
    problems += [
        errors.Problem(path=f"/{path}", message="missing") for path in _MUST_BE if path not in seen
    ]
    return sorted(problems)
