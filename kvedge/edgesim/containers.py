"""Turns a wanted module into the body of the engine's create call, and reads containers back."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import times

if TYPE_CHECKING:
    from kvedge.edgesim.manifest import ModuleSpec

__all__ = ["OWNER", "Container", "Surroundings", "create_body", "read_container"]

OWNER: Final = "net.azure-devices.edge.owner=Microsoft.Azure.Devices.Edge.Agent"
"""The label by which the real agent knows its containers."""
_HASH_LABEL: Final = "io.kvedge.edgesim.spec"
_CA_IN_MODULE: Final = "/run/iotedge/edge-ca.pem"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every module gets told about the device."""

    hub: str
    device_id: str
    hostname: str
    """The edge hub's name."""
    gateway: str
    """The address of the edge hub on the modules' network."""
    network: str
    ca_file: str
    """Path on the VM of the edge hub's authority."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A module's container as the engine tells it."""

    name: str
    state: str
    exit_code: int
    started: str
    finished: str
    image: str
    image_hash: str
    spec_hash: str


def read_container(details: dict[str, Any]) -> Container:
    """Return the parts of an inspect answer that the runtime uses."""
    state = details.get("State") or {}
    config = details.get("Config") or {}
    return Container(
        name=str(details.get("Name", "")).lstrip("/"),
        state=str(state.get("Status", "unknown")),
        exit_code=int(state.get("ExitCode") or 0),
        started=str(state.get("StartedAt") or times.NEVER),
        finished=str(state.get("FinishedAt") or times.NEVER),
        image=str(config.get("Image", "")),
        image_hash=str(details.get("Image", "")),
        spec_hash=str((config.get("Labels") or {}).get(_HASH_LABEL, "")),
    )


def create_body(
    spec: ModuleSpec, surroundings: Surroundings, *, key: str, logging: dict[str, Any] | None
) -> tuple[dict[str, Any], str]:
    """Return the create call's body and the hash that tells whether a container still fits.

    Args:
        key: the module's key in base64.
        logging: the engine's LogConfig from the deployment's loggingOptions.
    """
    body = copy.deepcopy(spec.create)
    host = dict(body.get("HostConfig") or {})
    owner, _, value = OWNER.partition("=")
    body["Image"] = spec.image
    body["Env"] = [*(body.get("Env") or ()), *_environment(spec, surroundings, key)]
    host["Binds"] = [*(host.get("Binds") or ()), f"{surroundings.ca_file}:{_CA_IN_MODULE}:ro"]
    host["ExtraHosts"] = [
        *(host.get("ExtraHosts") or ()),
        f"{surroundings.hostname}:{surroundings.gateway}",
    ]
    if logging and "LogConfig" not in host:
        host["LogConfig"] = logging
    if host.get("NetworkMode", "default") in {"", "default"} and not _endpoints(body):
        host["NetworkMode"] = surroundings.network
        body["NetworkingConfig"] = {
            "EndpointsConfig": {surroundings.network: {"Aliases": [spec.name]}}
        }
    body["HostConfig"] = host
    text = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    body["Labels"] = {**(body.get("Labels") or {}), owner: value, _HASH_LABEL: digest}
    return body, digest


def _endpoints(body: dict[str, Any]) -> dict[str, Any]:
    return (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}


def _environment(spec: ModuleSpec, surroundings: Surroundings, key: str) -> list[str]:
    connection = (
        f"HostName={surroundings.hub};GatewayHostName={surroundings.hostname};"
        f"DeviceId={surroundings.device_id};ModuleId={spec.name};SharedAccessKey={key}"
    )
    # No workload variables: device clients then take the connection string, as under a debugger.
    given = {
        "EdgeHubConnectionString": connection,
        "EdgeModuleCACertificateFile": _CA_IN_MODULE,
        "IOTEDGE_DEVICEID": surroundings.device_id,
        "IOTEDGE_GATEWAYHOSTNAME": surroundings.hostname,
        "IOTEDGE_IOTHUBHOSTNAME": surroundings.hub,
        "IOTEDGE_MODULEID": spec.name,
    }
    return [f"{name}={value}" for name, value in sorted({**given, **spec.env}.items())]
