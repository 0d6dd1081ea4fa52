"""Reads /etc/aziot/config.toml: the real file's format, of which one form of provisioning is taken.

The real runtime ignores unknown keys; so does this. Forms that it has and this lacks are refused by
name, so that nobody believes that they are in force.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from pathlib import Path
from typing import Any, Final

__all__ = [
    "APPLIED",
    "SOURCE",
    "Paths",
    "Settings",
    "SettingsError",
    "parse_settings",
    "split_fields",
]

SOURCE: Final = Path("/etc/aziot/config.toml")
APPLIED: Final = Path("/etc/aziot/edged/config.d/00-super.toml")
"""The copy that `iotedge config apply` makes and the daemon reads."""

_DEFAULT_AGENT: Final = "kvedge.invalid/edgesim-agent:1.6"
_DEFAULT_NETWORK: Final = "azure-iot-edge"
_DEFAULT_DOCKER: Final = "unix:///var/run/docker.sock"


class SettingsError(Exception):
    """The configuration file cannot be used; the text says which key and why."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the runtime keeps its things."""

    state: Path = Path("/var/lib/aziot/edged")
    """Survives restarts: keys, certificates, last deployment, the edge hub's queue."""
    management: Path = Path("/var/run/iotedge/mgmt.sock")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the configuration file says."""

    hub: str
    """Host name of the hub; a port, if any, is the one of its HTTPS side."""
    device_id: str
    device_key: str = dataclasses.field(repr=False)
    hostname: str
    """The name by which modules reach the edge hub."""
    trust_bundle: str
    """PEM text of authorities for hub and modules; empty means the system's own."""
    agent_image: str
    agent_env: dict[str, str]
    docker: Path
    network: str

    @property
    def hub_host(self) -> str:
        """Return the hub's name without the port."""
        return self.hub.partition(":")[0]

    @property
    def hub_https_port(self) -> int:
        """Return the port of the hub's HTTPS side."""
        return int(self.hub.partition(":")[2] or 443)


def parse_settings(text: str, *, default_hostname: str) -> Settings:
    """Return the settings that a configuration file's text holds.

    Raises:
        SettingsError: the text is no TOML, a key is missing or has a form that is not supported.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"config.toml is no valid TOML: {error}") from error
    connection = _connection(_table(raw, "provisioning"))
    moby = _table(raw, "moby_runtime")
    network = moby.get("network", _DEFAULT_NETWORK)
    agent = _table(raw, "agent")
    if "parent_hostname" in raw or "local_gateway_hostname" in raw:
        raise SettingsError("parent_hostname: nested edge is not supported by the stand-in runtime")
    return Settings(
        hub=connection["HostName"],
        device_id=connection["DeviceId"],
        device_key=connection["SharedAccessKey"],
        hostname=str(raw.get("hostname") or default_hostname).lower(),
        trust_bundle=_file(raw.get("trust_bundle_cert", ""), "trust_bundle_cert"),
        agent_image=str(_table(agent, "config", "agent.config").get("image", _DEFAULT_AGENT)),
        agent_env={key: str(value) for key, value in _table(agent, "env", "agent.env").items()},
        docker=_socket(str(moby.get("uri", _DEFAULT_DOCKER))),
        network=str(network.get("name", _DEFAULT_NETWORK))
        if isinstance(network, dict)
        else str(network),
    )


def split_fields(text: str, separator: str) -> dict[str, str]:
    """Return the `key=value` pairs of a text; a value may hold further equals signs."""
    found: dict[str, str] = {}
    for part in text.split(separator):
        key, equals, value = part.partition("=")
        if equals:
            found[key] = value
    return found


def _table(raw: dict[str, Any], key: str, path: str = "") -> dict[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise SettingsError(f"{path or key}: a table is needed")
    return value


def _connection(provisioning: dict[str, Any]) -> dict[str, str]:
    source = provisioning.get("source")
    if source is None:
        raise SettingsError("provisioning.source: missing; the stand-in runtime takes 'manual'")
    if source != "manual":
        raise SettingsError(
            f"provisioning.source: {source!r} is not supported by the stand-in runtime;"
            " it takes 'manual' with connection_string"
        )
    text = provisioning.get("connection_string")
    if text is None:
        method = _table(provisioning, "authentication", "provisioning.authentication").get(
            "method", "none given"
        )
        raise SettingsError(
            f"provisioning.connection_string: missing; authentication by {method!r} is not"
            " supported by the stand-in runtime"
        )
    parts = split_fields(str(text), ";")
    missing = [key for key in ("HostName", "DeviceId", "SharedAccessKey") if not parts.get(key)]
    if missing:
        raise SettingsError(f"provisioning.connection_string: without {', '.join(missing)}")
    try:
        base64.b64decode(parts["SharedAccessKey"], validate=True)
    except binascii.Error as error:
        raise SettingsError(
            "provisioning.connection_string: SharedAccessKey is no base64"
        ) from error
    return parts


def _file(uri: object, key: str) -> str:
    if not uri:
        return ""
    path = str(uri)
    if not path.startswith("file://"):
        raise SettingsError(f"{key}: only file:// is supported by the stand-in runtime")
    try:
        return Path(path.removeprefix("file://")).read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"{key}: {error}") from error


def _socket(uri: str) -> Path:
    if not uri.startswith("unix://"):
        raise SettingsError(f"moby_runtime.uri: {uri!r} is no unix:// address")
    return Path(uri.removeprefix("unix://"))
