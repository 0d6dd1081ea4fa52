"""What is written to the hub: a device's tags and the base deployment."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

import cloudinit
from kvedge import errors

if TYPE_CHECKING:
    from kvedge import iothub, spec
    from kvedge.wire import Configuration

__all__ = [
    "OWNER_LABEL",
    "OWNER_TAGS",
    "ROLE_LABEL",
    "base_configuration",
    "base_owner",
    "device_key",
    "device_tags",
    "ensure_base",
    "whole",
]

_PRIORITY = 0
"""The lowest: every layer of the connector is above it."""
OWNER_LABEL = "kvedge-owner"
OWNER_TAGS = ("environment", "cluster", "namespace", "vm")
"""Tags below `kvedge` that tell whose a device is."""
ROLE_LABEL = "kvedge-role"


def base_configuration(environment: spec.Environment) -> dict[str, Any]:
    """Return the deployment; its id is derived from its content."""
    if environment.platform is None:
        raise ValueError(environment.name)
    content = {"modulesContent": _modules(environment.edge)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {
        "id": f"kvedge-base-{digest[:12]}",
        "schemaVersion": "2.0",
        "labels": {
            OWNER_LABEL: base_owner(environment),
            ROLE_LABEL: "base",
        },
        "content": content,
        "targetCondition": environment.platform.base_target,
        "priority": _PRIORITY,
    }


def _modules(edge: spec.EdgeRuntime) -> dict[str, Any]:
    def system(image: str, **more: Any) -> dict[str, Any]:
        return {"type": "docker", "settings": {"image": image, "createOptions": "{}"}, **more}

    agent = {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
        "systemModules": {
            "edgeAgent": system(edge.agent_image),
            "edgeHub": system(
                edge.hub_image, status="running", restartPolicy="always", startupOrder=0
            ),
        },
        "modules": {},
    }
    hub = {
        "schemaVersion": "1.1",
        "routes": {"upstream": {"route": "FROM /messages/* INTO $upstream"}},
        "storeAndForwardConfiguration": {"timeToLiveSecs": 604800},
    }
    return {
        "$edgeAgent": {"properties.desired": agent},
        "$edgeHub": {"properties.desired": hub},
    }


def device_key(dps: spec.Dps | None, device_id: str) -> str:
    """Return the key that the device's enrollment group gives it; empty without a group."""
    return cloudinit.derived_key(dps.group_key, device_id).reveal() if dps else ""


def device_tags(environment: spec.Environment, vm: spec.Vm) -> dict[str, Any]:
    """Return the device twin's tags: the user's, and `kvedge` by which everything finds it."""
    return {
        **vm.tags,
        "kvedge": {
            "managed": True,
            "environment": environment.name,
            "site": environment.site,
            "cluster": environment.cluster.identifier,
            "namespace": environment.cluster.namespace,
            "vm": vm.name,
        },
    }


def base_owner(environment: spec.Environment) -> str:
    """Return the owner label's value: cluster and environment."""
    return f"{environment.cluster.identifier}/{environment.name}"


async def ensure_base(hub: iothub.Hub, wanted: dict[str, Any]) -> None:
    """Create the base deployment; the same id is the same content, so ours is adopted.

    Raises:
        Conflict: another environment has it.
    """
    try:
        await hub.create_configuration(whole(wanted))
    except errors.Conflict:
        found = await hub.get_configuration(wanted["id"])
        owner = (found.get("labels") or {}).get(OWNER_LABEL)
        if owner != wanted["labels"][OWNER_LABEL]:
            raise errors.Conflict(
                f"create base deployment {wanted['id']!r}", status=409,
                details=f"the hub has one of {owner or 'somebody else'}",
                hint="one environment of a hub carries the platform section",
            ) from None  # fmt: skip
        await hub.update_configuration(whole(wanted))


def whole(wanted: dict[str, Any]) -> Configuration:
    """Return the configuration with whole numbers where pulumi's wire made them floats."""
    return cast("Configuration", _ints(wanted))


def _ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ints(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_ints(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
