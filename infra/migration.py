"""From the values of the KVEdge Helm chart to settings of an environment.

The chart made one VM a release, from an image that was fetched, with a device that was registered
by hand. Its device key is never carried over: kvedge registers a device of its own, and the old one
goes with the release.
"""

from __future__ import annotations

import dataclasses
import tomllib
from typing import TYPE_CHECKING, Any

import yaml

from kvedge import errors, settings
from kvedge.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Migrated", "from_kvedge", "stack_text"]

# What the chart does where its values say nothing, or cannot say anything.
_CORES, _MEMORY, _DISK = 4, "2048M", "16Gi"
_NAME = "aziot-edge-kubevirt"
_CERTIFICATES = ("rootCA", "deviceCACert", "deviceCAKey")
_CERTIFICATE_NAMES = tuple(f"{name}Name" for name in _CERTIFICATES)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """Settings without prefix, and what a person must know."""

    stack: Mapping[str, Any]
    notes: tuple[str, ...]


def from_kvedge(values: Any) -> Migrated:
    """Return the settings that make the same VM.

    Raises:
        SpecError: the values are none of this chart; every mistake with its path.
    """
    problems: list[errors.Problem] = []
    part = Fields(values, "", problems)
    name = part.text("nameOverride", _NAME)
    key = part.text("publicSshKey").strip()
    external = part.flag("aziotEdgeVmEnableExternalSsh", default=True)
    disk = part.text("aziotEdgeVmDiskSize", _DISK)
    mac = part.text("macAddress")
    config = part.text("azIotEdgeConfig")
    given = [field for field in _CERTIFICATES if part.text(field)]
    for field in _CERTIFICATE_NAMES:
        part.raw(field)
    part.done()
    edge = _edge_config(config, problems)
    vm = {"name": name, "vcpus": _CORES, "memory": _MEMORY, "osDisk": disk}
    if mac:
        vm["mac"] = mac
    # A fixed MAC moves with the VM, so that leases and firewall rules go on; the old VM must be
    # gone before the new one starts.
    stack: dict[str, Any] = {
        "ssh": {"serviceType": "LoadBalancer" if external else "None"},
        "fleet": [vm],
    }
    if key:
        stack["ssh"]["authorizedKeys"] = [key]
    if edge.host:
        stack["hub"] = {"deviceHost": edge.host}
    if edge.agent_image:
        stack["edge"] = {"agentImage": edge.agent_image}
    problems += _mistakes(stack)
    if problems:
        raise errors.SpecError("values of the KVEdge chart", sorted(set(problems)))
    return Migrated(stack=stack, notes=tuple(_notes(name, edge, given)))


def stack_text(found: Migrated) -> str:
    """Return a stack file with the notes as comments."""
    config = {f"{settings.NAMESPACE}:{key}": value for key, value in found.stack.items()}
    notes = "".join(f"# {note}\n" for note in found.notes)
    return notes + yaml.safe_dump({"config": config}, sort_keys=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """What config.toml says and kvedge has a setting for."""

    host: str = ""
    device_id: str = ""
    agent_image: str = ""
    source: str = ""


def _edge_config(text: str, problems: list[errors.Problem]) -> _Edge:
    if not text.strip():
        return _Edge()
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        problems.append(errors.Problem(path="azIotEdgeConfig", message=f"is no TOML: {cause}"))
        return _Edge()
    provisioning = document.get("provisioning") or {}
    words = str(provisioning.get("connection_string", "")).split(";")
    members = dict(word.split("=", 1) for word in words if "=" in word)
    agent = (document.get("agent") or {}).get("config") or {}
    return _Edge(
        host=members.get("HostName", ""),
        device_id=members.get("DeviceId", ""),
        agent_image=str(agent.get("image", "")),
        source=str(provisioning.get("source", "")),
    )


def _mistakes(stack: Mapping[str, Any]) -> list[errors.Problem]:
    """Return what `kvedge env validate` would say of the values, by the values' names."""
    places = {
        "fleet[0].name": "nameOverride", "fleet[0].osDisk": "aziotEdgeVmDiskSize",
        "fleet[0].mac": "macAddress", "ssh.authorizedKeys[0]": "publicSshKey",
        "hub.deviceHost": "azIotEdgeConfig", "edge.agentImage": "azIotEdgeConfig",
    }  # fmt: skip
    try:
        settings.parse("migrated", stack, environ={})
    except errors.SpecError as wrong:
        return [
            dataclasses.replace(problem, path=places[problem.path])
            for problem in wrong.problems
            if problem.path in places
        ]
    return []


def _notes(name: str, edge: _Edge, certificates: list[str]) -> list[str]:
    found = [
        f"The VM of the KVEdge release {name!r}. Before `kvedge up`: helm uninstall it, which "
        "deletes its disk",
        "and the messages that wait in it; the new data disk outlives VM and image.",
    ]
    if edge.device_id:
        found.append(
            f"The device {edge.device_id!r} is not taken over: its id becomes <environment>-{name}."
        )
        found.append("Delete the old one in the hub and give target conditions the new name.")
    if edge.source not in ("", "manual"):
        found.append(f"Provisioning by {edge.source!r} becomes a device that kvedge registers.")
    if certificates:
        found.append(f"Not taken over: {', '.join(certificates)}.")
        found.append("A hub with a certificate of its own: kvedge:hub.caFile.")
    found.append("The hub's service policy: pulumi config set --secret --path ")
    found[-1] += "kvedge:hub.connectionString '…'"
    return found
