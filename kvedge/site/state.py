"""What a site tells others: its folder's layout, site.json, and the env file to source.

site.json is the one contract between the local site and every other room; it names published ports,
files and inside addresses and holds no secrets. The folder is 0700, so files in it are private.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from kvedge import errors, names

__all__ = [
    "PORTS",
    "Folder",
    "Hub",
    "Kubernetes",
    "Registry",
    "Site",
    "default_directory",
    "load",
    "save",
    "site_from_ports",
    "write_atomically",
    "write_env",
]

_VERSION = 1

PORTS = {
    "api": (names.API_ADDRESS, 6443),
    "hub": (names.HUB_ADDRESS, 443),
    "mqtt": (names.HUB_ADDRESS, 8883),
    "registry": (names.REGISTRY_ADDRESS, 443),
}
"""Published port's name -> address and port inside the site."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Paths of everything that a site keeps."""

    root: Path
    """The site's own folder, absolute, such as /home/me/project/.kvedge/dev."""

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def identities(self) -> Path:
        """One kubeconfig a component, with the inside server address."""
        return self.root / "identities"

    @property
    def logs(self) -> Path:
        """One log a part."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Sockets, records of processes, the plan: only good while the machine runs."""
        return self.root / "run"

    @property
    def temporary(self) -> Path:
        """Temporary files of the parts, so that they leave none elsewhere."""
        return self.run / "tmp"

    @property
    def publisher_socket(self) -> Path:
        """Where the publisher is asked for sockets of the host's network namespace."""
        return self.run / "publisher.sock"

    @property
    def plan_file(self) -> Path:
        """What the supervisor runs."""
        return self.run / "plan.json"

    @property
    def status_file(self) -> Path:
        """What the supervisor says about its parts."""
        return self.run / "status.json"

    @property
    def namespace_file(self) -> Path:
        """Which namespaces are the site's."""
        return self.run / "namespace.json"

    @property
    def asked_file(self) -> Path:
        """Holds the token of the newest request to check everything (SIGHUP to the supervisor)."""
        return self.run / "asked"

    @property
    def stopping_file(self) -> Path:
        """Exists while the whole site is being stopped (and not only one part of it)."""
        return self.run / "stopping"

    @property
    def site_file(self) -> Path:
        """site.json."""
        return self.root / "site.json"

    @property
    def env_file(self) -> Path:
        """POSIX `export` lines."""
        return self.root / "env"

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig, for use outside the site's namespaces."""
        return self.root / "kubeconfig"

    def log(self, part: str) -> Path:
        """Return the log of a part."""
        return self.logs / f"{part}.log"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """How to reach the cluster."""

    server: str
    kubeconfig: str
    inside_server: str
    cluster_id: str = ""
    """UID of the namespace kube-system; empty before the first start is through."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """How to reach the IoT Hub emulator."""

    endpoint: str
    mqtt_port: int
    host: str
    ca: str
    connection_string_file: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """How to reach the OCI registry."""

    endpoint: str
    host: str
    ca: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The content of site.json."""

    directory: Path
    name: str
    state: str
    """`starting`, `up` or `down`: what the last command left; `control.status` looks for itself."""
    kubernetes: Kubernetes
    hub: Hub
    registry: Registry
    hosts: dict[str, str]
    """Host name -> inside address."""
    ports: dict[str, int]
    """Published port's name -> port on 127.0.0.1."""

    @property
    def folder(self) -> Folder:
        """The layout of the site's folder."""
        return Folder(root=self.directory)


def default_directory(name: str, base: Path | None = None) -> Path:
    """Return the folder of a named site: `.kvedge/<name>` below `base` or the current directory."""
    if not names.DNS_LABEL.fullmatch(name):
        raise errors.SpecError(
            "site name",
            [errors.Problem(path="NAME", message=f"{name!r} is not a DNS label (a-z, 0-9, -)")],
        )
    return (base or Path.cwd()) / ".kvedge" / name


def site_from_ports(
    directory: Path, name: str, ports: dict[str, int], *, state: str, cluster_id: str = ""
) -> Site:
    """Return the description of a site whose published ports are known."""
    folder = Folder(root=directory)
    ca = str(folder.pki / "site-ca.crt")
    return Site(
        directory=directory,
        name=name,
        state=state,
        kubernetes=Kubernetes(
            server=f"https://127.0.0.1:{ports['api']}",
            kubeconfig=str(folder.kubeconfig),
            inside_server=f"https://{names.API_ADDRESS}:6443",
            cluster_id=cluster_id,
        ),
        hub=Hub(
            endpoint=f"localhost:{ports['hub']}",
            mqtt_port=ports["mqtt"],
            host=names.HUB_HOST,
            ca=ca,
            connection_string_file=str(directory / "hub" / "service.connection"),
        ),
        registry=Registry(
            endpoint=f"localhost:{ports['registry']}", host=names.REGISTRY_HOST, ca=ca
        ),
        hosts={
            names.HUB_HOST: names.HUB_ADDRESS,
            names.REGISTRY_HOST: names.REGISTRY_ADDRESS,
        },
        ports=dict(ports),
    )


def load(directory: Path) -> Site:
    """Read site.json.

    Raises:
        SiteError: there is no site in that folder, or its file cannot be understood.
    """
    path = directory / "site.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as cause:
        raise errors.SiteError(
            f"no site in {str(directory)!r}", hint="start one with 'kvedge site up'"
        ) from cause
    except (OSError, ValueError) as cause:
        raise errors.SiteError(
            f"cannot read {str(path)!r}: {cause}", hint="'kvedge site down --purge' starts afresh"
        ) from cause
    if raw.get("version") != _VERSION:
        raise errors.SiteError(
            f"{str(path)!r} has version {raw.get('version')!r}, this kvedge knows {_VERSION}",
            hint="'kvedge site down --purge' starts afresh",
        )
    try:
        return Site(
            directory=directory.resolve(),
            name=raw["name"],
            state=raw["state"],
            kubernetes=Kubernetes(**raw["kubernetes"]),
            hub=Hub(**raw["hub"]),
            registry=Registry(**raw["registry"]),
            hosts=raw["hosts"],
            ports=raw["ports"],
        )
    except (KeyError, TypeError) as cause:
        raise errors.SiteError(
            f"{str(path)!r} is not a site file: {cause}",
            hint="'kvedge site down --purge' starts afresh",
        ) from cause


def save(site: Site) -> None:
    """Write site.json, 0600, in one step."""
    raw = {"version": _VERSION} | dataclasses.asdict(site)
    del raw["directory"]
    write_atomically(site.folder.site_file, json.dumps(raw, indent=2) + "\n")


def write_env(site: Site, *, path_folders: list[Path]) -> None:
    """Write the env file that kubectl, virtctl, pulumi and kvedge take their settings from.

    Args:
        path_folders: folders that come first on PATH.
    """
    folder = site.folder
    path = ":".join(shlex.quote(str(item)) for item in path_folders)
    hosts = ",".join(f"{host}={address}" for host, address in site.hosts.items())
    variables = {
        "KUBECONFIG": site.kubernetes.kubeconfig,
        "PULUMI_HOME": str(folder.root / "pulumi-home"),
        "PULUMI_BACKEND_URL": f"file://{folder.root / 'pulumi'}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(folder.root / "passphrase"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        # Every create is idempotent, so a lost checkpoint costs nothing; writing it costs time.
        "PULUMI_SKIP_CHECKPOINTS": "true",
        # The stack file that `kvedge up` writes to: committed settings get no key of this machine.
        "PULUMI_OPTION_CONFIG_FILE": str(folder.root / "stacks" / f"Pulumi.{site.name}.yaml"),
        "KVEDGE_STATE": str(folder.root),
        "KVEDGE_SITE": site.name,
        "KVEDGE_KUBECONFIG": site.kubernetes.kubeconfig,
        "KVEDGE_CLUSTER_ID": site.kubernetes.cluster_id,
        "KVEDGE_HUB_CONNECTION_STRING_FILE": site.hub.connection_string_file,
        "KVEDGE_HUB_DEVICE_HOST": site.hub.host,
        "KVEDGE_HUB_CA_FILE": site.hub.ca,
        "KVEDGE_REGISTRY_PUSH": site.registry.endpoint,
        "KVEDGE_REGISTRY_PULL": site.registry.host,
        "KVEDGE_REGISTRY_CA_FILE": site.registry.ca,
        "KVEDGE_HOSTS": hosts,
    }
    lines = [
        f"# Settings of the local site {site.name!r}; use: . {shlex.quote(str(folder.env_file))}"
    ]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    lines.append(f"export PATH={path}:$PATH")
    write_atomically(folder.env_file, "\n".join(lines) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by a whole new one of mode 0600; a reader never sees half of it."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except OSError as cause:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise _unwritable(path, cause) from cause


def _unwritable(path: Path, cause: OSError) -> errors.SiteError:
    reason = re.sub(r"^\[Errno \d+\] ", "", str(cause.strerror or cause)).lower()
    return errors.SiteError(
        f"cannot write {str(path)!r}: {reason}",
        hint="free some space or choose another folder with --dir",
    )
