"""What `up` makes before anything runs: folders, environment, ports, settings, links, stamps."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import kvedge
from kvedge import errors, names, tools
from kvedge.site import attending, namespace, state

if TYPE_CHECKING:
    from kvedge.progress import Progress

__all__ = [
    "choose_ports",
    "code_stamps",
    "environment",
    "is_there",
    "link_programs",
    "make_folders",
    "stamp",
    "write_registry_settings",
]

_FREE_MIB = 300
_INHERITED = (
    "HOME",
    "KVEDGE_CACHE",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "TZ",
    "USER",
    "XDG_CACHE_HOME",
)
"""What parts see of the caller's environment; a proxy in it would swallow the site's traffic."""


def make_folders(folder: state.Folder) -> None:
    """Make the site's folders and its passphrase.

    Raises:
        SiteError: there is too little space.
    """
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.root.chmod(0o700)
    for path in (
        folder.identities,
        folder.logs,
        folder.run,
        folder.temporary,
        folder.root / "pulumi",
    ):
        path.mkdir(mode=0o700, exist_ok=True)
    free = shutil.disk_usage(folder.root).free // (1024 * 1024)
    if free < _FREE_MIB:
        raise errors.SiteError(
            f"only {free} MiB free for {str(folder.root)!r}, a site needs {_FREE_MIB} MiB",
            hint="free some space or choose another folder with --dir",
        )
    passphrase = folder.root / "passphrase"
    if not passphrase.exists():
        state.write_atomically(passphrase, secrets.token_urlsafe(24))


def environment(folder: state.Folder) -> dict[str, str]:
    """Return the environment of all the site's processes."""
    env = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    package = str(Path(kvedge.__file__).parent.parent)
    python_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([package, *filter(None, python_path)]))
    env["PATH"] = f"{env.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    env["TMPDIR"] = str(folder.temporary)
    env[namespace.SITE_VARIABLE] = str(folder.root)
    return env


def is_there(module: str) -> bool:
    """Tell whether a module of ours is installed, without loading it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def stamp(folder: state.Folder) -> str:
    """Return a digest of all certificates."""
    digest = hashlib.sha256()
    for path in sorted(folder.pki.glob("*.crt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_CODE = {
    "hub": ("emulator/**/*.py", "names.py"),
    "host": (
        *("site/host/*.py", "kube/*.py", "connector/*.py", "node/**/*.py", "edge/*.py"),
        *("iothub/*.py", "cli/connector.py"),
    ),
    "ports": ("site/publishing.py",),
    "supervisor": ("site/supervising.py", "site/bootstrap.py", "site/checking.py"),
}
"""Part -> what its code is in; whoever pulls a new version and says `up` gets it running."""


def code_stamps() -> dict[str, str]:
    """Return, by part, a digest of the code that it runs."""
    package = Path(kvedge.__file__).parent
    stamps = {}
    for part, patterns in _CODE.items():
        digest = hashlib.sha256()
        for pattern in patterns:
            for path in sorted(package.glob(pattern)):
                digest.update(path.read_bytes())
        stamps[part] = digest.hexdigest()[:16]
    return stamps


def choose_ports(
    folder: state.Folder, known: state.Site | None, progress: Progress
) -> dict[str, int]:
    """Return the published ports: those of the last time unless somebody else took one."""
    wanted = dict(known.ports) if known else {}
    held = attending.record_alive(attending.read_status(folder).get("parts", {}).get("ports", {}))
    chosen: dict[str, int] = {}
    for key in state.PORTS:
        port = wanted.get(key, 0)
        if port and (held or _is_free(port)):
            chosen[key] = port
            continue
        chosen[key] = _free_port({*chosen.values(), *wanted.values()})
        if port:
            note = f"port {port} is taken by another program; {key} moves to {chosen[key]}"
            progress("ports", 1, 1, note)
    return chosen


def _free_port(taken: set[int]) -> int:
    # Below the range that outgoing connections take theirs from, so that it is free again tomorrow.
    first = int(
        Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0]
    )
    pool = range(20000, first) if first > 21000 else range(20000, 32000)
    for port in random.sample(pool, 200):
        if port not in taken and _is_free(port):
            return port
    raise errors.SiteError("no free port on 127.0.0.1", hint="see 'ss -ltn' for what listens")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def write_registry_settings(folder: state.Folder) -> None:
    """Write the configuration of docker-registry."""
    secret = folder.root / "registry.secret"
    if not secret.exists():
        state.write_atomically(secret, secrets.token_hex(16))
    settings = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder.root / "registry")},
            "delete": {"enabled": True},
        },
        "http": {
            "addr": f"{names.REGISTRY_ADDRESS}:443",
            "secret": secret.read_text(encoding="ascii"),
            "tls": {
                "certificate": str(folder.pki / "registry.crt"),
                "key": str(folder.pki / "registry.key"),
            },
        },
    }
    # YAML is a superset of JSON.
    state.write_atomically(folder.run / "registry.yml", json.dumps(settings))


def link_programs(folder: state.Folder) -> None:
    """Put what people call by name into the site's bin folder: what there is, nothing is built."""
    there = {row.name for row in tools.status() if row.path is not None}
    wanted = ("kubectl", "virtctl", *tools.PULUMI)
    tools.link([name for name in wanted if name in there], folder.root / "bin")
