"""The archived connector's ConfigMaps and its full deployment.

ConfigMaps named `edgehub`, `edgeagent` and like each container, in the pod's namespace, hold what a
pod has no field for. Defaults and shape follow Azure/iot-edge-virtual-kubelet-provider; the content
key is the one that IoT Edge has had since its general availability, `modulesContent`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.edge import module

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge.edge.revision import Inputs

__all__ = [
    "ContainerSettings",
    "RuntimeImages",
    "container_settings",
    "full_content",
    "legacy_config_maps",
    "parse_object",
]

_DEFAULT_ROUTE = {"route": "FROM /* INTO $upstream"}
_DEFAULT_STORE = {"timeToLiveSecs": 7200}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeImages:
    """Images of the edge runtime that a full deployment names."""

    agent: str = "mcr.microsoft.com/azureiotedge-agent:1.6"
    hub: str = "mcr.microsoft.com/azureiotedge-hub:1.6"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSettings:
    """What a ConfigMap that is named like a container says about its module."""

    status: str
    restart_policy: str
    version: str
    create_options: Mapping[str, Any]
    desired: dict[str, Any] | None


def legacy_config_maps(pod: Mapping[str, Any]) -> list[str]:
    """Return the names of the ConfigMaps that a legacy pod may have."""
    return ["edgehub", "edgeagent", *(c["name"] for c in pod["spec"]["containers"])]


def parse_object(text: str, path: str, problems: list[errors.Problem]) -> dict[str, Any]:
    """Return a JSON object; what is none is appended to `problems`."""
    try:
        value = json.loads(text)
    except ValueError as cause:
        problems.append(errors.Problem(path=path, message=f"is not JSON: {cause}"))
        return {}
    if not isinstance(value, dict):
        problems.append(errors.Problem(path=path, message="is not a JSON object"))
        return {}
    return value


def _data(inputs: Inputs, name: str) -> Mapping[str, str]:
    return inputs.config_maps.get(name) or {}


def container_settings(
    inputs: Inputs, container: str, problems: list[errors.Problem]
) -> ContainerSettings:
    """Return the module settings of the ConfigMap that is named like the container."""
    data = _data(inputs, container)
    path = f"configmap[{container}].data"
    options = data.get("createOptions")
    desired = data.get("desiredProperties")
    return ContainerSettings(
        status=data.get("status", "running").strip(),
        restart_policy=data.get("restartPolicy", "on-unhealthy").strip(),
        version=data.get("version", "1.0").strip(),
        create_options=parse_object(options, f"{path}.createOptions", problems) if options else {},
        desired=parse_object(desired, f"{path}.desiredProperties", problems) if desired else None,
    )


def full_content(
    inputs: Inputs,
    modules: Mapping[str, Any],
    twins: Mapping[str, Any],
    routes: Mapping[str, Any],
    credentials: Mapping[str, Any],
    problems: list[errors.Problem],
) -> dict[str, Any]:
    """Return the content of a full deployment: runtime, system modules and modules."""
    agent = _desired(inputs, "edgeagent", problems)
    hub = _desired(inputs, "edgehub", problems)
    runtime = (agent.get("runtime") or {}).get("settings") or {}
    given = agent.get("systemModules") or {}
    notes = inputs.pod["metadata"].get("annotations") or {}
    settings = {
        "minDockerVersion": runtime.get("minDockerVersion", "v1.25"),
        "loggingOptions": runtime.get("loggingOptions") or notes.get("loggingOptions", ""),
        "registryCredentials": {**(runtime.get("registryCredentials") or {}), **credentials},
    }
    desired = {
        "schemaVersion": _schema_version(modules),
        "runtime": {"type": "docker", "settings": settings},
        "systemModules": {
            "edgeAgent": _system(given.get("edgeAgent"), inputs.images.agent, problems),
            "edgeHub": _system(given.get("edgeHub"), inputs.images.hub, problems),
        },
        "modules": dict(modules),
    }
    edge_hub = {
        "schemaVersion": "1.0",
        "routes": {**(hub.get("routes") or _DEFAULT_ROUTE), **routes},
        "storeAndForwardConfiguration": hub.get("storeAndForwardConfiguration") or _DEFAULT_STORE,
    }
    content: dict[str, Any] = {
        "$edgeAgent": {"properties.desired": desired},
        "$edgeHub": {"properties.desired": edge_hub},
    }
    for name, twin in twins.items():
        content[name] = {"properties.desired": twin}
    return content


def _desired(inputs: Inputs, name: str, problems: list[errors.Problem]) -> dict[str, Any]:
    text = _data(inputs, name).get("desiredProperties")
    path = f"configmap[{name}].data.desiredProperties"
    return parse_object(text, path, problems) if text else {}


def _schema_version(modules: Mapping[str, Any]) -> str:
    newer = {"startupOrder", "imagePullPolicy"}
    return "1.1" if any(newer & set(entry) for entry in modules.values()) else "1.0"


def _system(
    given: Mapping[str, Any] | None, image: str, problems: list[errors.Problem]
) -> dict[str, Any]:
    """Return a system module; images, create options and env can be given, the rest is fixed."""
    given = given or {}
    settings = given.get("settings") or {}
    options = settings.get("createOptions") or {}
    path = "configmap[edgeagent].data.desiredProperties.systemModules"
    if isinstance(options, str):
        options = parse_object(options, path, problems)
    result: dict[str, Any] = {
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "settings": {
            "image": settings.get("image", image),
            **module.chunked(options, path, problems),
        },
    }
    if given.get("env"):
        result["env"] = dict(given["env"])
    return result
