"""Configuration for OpenSSH's own programs: the way through the Kubernetes API, pinned host keys.

OpenSSH learns nothing from it: keys come from the VM objects into a known_hosts file of ours, under
the names that virtctl uses, and everything else is refused.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kvedge.access.guests import Guest

__all__ = ["Settings", "config_text", "known_hosts_text", "write"]

_CONFIG, _KNOWN_HOSTS = "config", "known_hosts"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all hosts of a file share."""

    folder: Path
    """Where config and known_hosts lie; absolute."""
    kubeconfig: Path | None = None
    """Absolute; None leaves kvedge to find the cluster when a connection is made."""
    identities: Sequence[Path] = ()
    """Private keys to offer; without any, OpenSSH's own choice."""
    through_address: bool = False
    """Dial the LoadBalancer address instead of the Kubernetes API."""


def config_text(guests: Iterable[Guest], settings: Settings) -> str:
    """Return an ssh_config(5) file with one Host block a guest.

    Raises:
        KvedgeError: a guest has no host key, or no address where one is needed.
    """
    return "\n".join(_block(guest, settings) for guest in guests)


def known_hosts_text(guests: Iterable[Guest]) -> str:
    """Return known_hosts lines, by the same aliases as virtctl's."""
    return "".join(f"{guest.target.alias} {_key(guest)}\n" for guest in guests)


def write(guests: Sequence[Guest], settings: Settings) -> Path:
    """Write both files for these guests and return the config's path."""
    texts = {
        _CONFIG: config_text(guests, settings),
        _KNOWN_HOSTS: known_hosts_text(guests),
    }
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in texts.items():
        # OpenSSH may read while we write.
        fresh = settings.folder / f".{name}.{os.getpid()}"
        fresh.touch(mode=0o600)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(settings.folder / name)
    return settings.folder / _CONFIG


def _key(guest: Guest) -> str:
    return " ".join(guest.pinned_key().split()[:2])


def _block(guest: Guest, settings: Settings) -> str:
    target = guest.target
    lines = [
        f"Host {guest.host_name}",
        f"  User {target.user}",
        f"  HostKeyAlias {target.alias}",
        f"  HostKeyAlgorithms {_key(guest).split()[0]}",
        f"  UserKnownHostsFile {_quoted(settings.folder / _KNOWN_HOSTS)}",
        "  GlobalKnownHostsFile /dev/null",
        "  StrictHostKeyChecking yes",
        "  UpdateHostKeys no",
        "  VerifyHostKeyDNS no",
    ]
    if settings.through_address:
        host, port = guest.service()
        lines += [f"  HostName {host}", f"  Port {port}"]
    else:
        lines.append(f"  ProxyCommand {_proxy_command(guest, settings.kubeconfig)}")
    for identity in settings.identities:
        lines.append(f"  IdentityFile {_quoted(identity)}")
    if settings.identities:
        lines.append("  IdentitiesOnly yes")
    return "\n".join(lines) + "\n"


def _proxy_command(guest: Guest, kubeconfig: Path | None) -> str:
    target = guest.target
    words = [sys.executable, "-m", "kvedge", "port-forward", "--stdio"]
    if kubeconfig:
        words += ["--kubeconfig", str(kubeconfig)]
    words += [f"vmi/{target.name}/{target.namespace}", "22"]
    # OpenSSH expands % in a ProxyCommand and runs it by the user's shell.
    return shlex.join(words).replace("%", "%%")


def _quoted(path: Path) -> str:
    """Quote a path for ssh_config: it may have spaces, and a % would be expanded."""
    return '"' + str(path).replace("%", "%%") + '"'
