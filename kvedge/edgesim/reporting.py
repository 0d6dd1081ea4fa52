"""The reported properties of `$edgeAgent`, in the real agent's words and order."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import times

if TYPE_CHECKING:
    from kvedge.edgesim.agent import ModuleState, Snapshot
    from kvedge.edgesim.manifest import ModuleSpec

__all__ = ["RUNTIME_VERSION", "agent_report"]

RUNTIME_VERSION: Final = {"version": "1.6.0", "build": "kvedge", "commit": "stand-in"}
_SCHEMA: Final = "1.1"


def agent_report(
    snapshot: Snapshot, *, started: str, hub_status: str, agent_image: str
) -> dict[str, Any]:
    """Return the whole of `$edgeAgent`'s reported properties.

    Args:
        started: when the runtime started.
        hub_status: the edge hub's runtimeStatus.
        agent_image: what to tell as edgeAgent's image while there is no deployment.
    """
    deployment = snapshot.deployment
    report: dict[str, Any] = {
        "schemaVersion": _SCHEMA,
        "version": RUNTIME_VERSION,
        "lastDesiredVersion": snapshot.version,
        "lastDesiredStatus": {"code": snapshot.code, "description": snapshot.description},
        "runtime": {
            "type": "docker",
            "platform": {
                "os": "linux",
                "architecture": platform.machine(),
                "version": RUNTIME_VERSION["version"],
            },
        },
        "systemModules": {
            "edgeAgent": {
                "type": "docker",
                "settings": {"image": agent_image},
                **_part_of_runtime("running", started),
            }
        },
        "modules": {},
    }
    if deployment is None:
        return report
    settings = deployment.runtime.get("settings") or {}
    report["runtime"]["settings"] = {
        key: value for key, value in settings.items() if key != "registryCredentials"
    }
    report["systemModules"] = {
        "edgeAgent": {
            "type": "docker",
            "settings": _settings(deployment.agent, ""),
            "imagePullPolicy": deployment.agent.pull_policy,
            "env": deployment.agent.raw_env,
            **_part_of_runtime("running", started),
        },
        "edgeHub": {
            **_wish(deployment.hub, ""),
            **_part_of_runtime(hub_status, started),
            "restartCount": 0,
            "lastRestartTimeUtc": times.NEVER,
        },
    }
    report["modules"] = {
        spec.name: _module(spec, snapshot.states[spec.name])
        for spec in deployment.modules
        if spec.name in snapshot.states
    }
    return report


def _part_of_runtime(status: str, started: str) -> dict[str, Any]:
    return {
        "exitCode": 0,
        "statusDescription": status,
        "lastStartTimeUtc": started,
        "lastExitTimeUtc": times.NEVER,
        "runtimeStatus": status,
    }


def _settings(spec: ModuleSpec, image_hash: str) -> dict[str, Any]:
    found: dict[str, Any] = {"image": spec.image}
    if image_hash:
        found["imageHash"] = image_hash
    # Twin strings are limited to 4 KB, so long options are told in the same pieces as they came.
    text = json.dumps(spec.create, separators=(",", ":"))
    pieces = [text[at : at + 512] for at in range(0, len(text), 512)]
    for number, piece in enumerate(pieces):
        found[f"createOptions{number:02}" if number else "createOptions"] = piece
    return found


def _wish(spec: ModuleSpec, image_hash: str) -> dict[str, Any]:
    wish: dict[str, Any] = {
        "type": "docker",
        "status": spec.status,
        "restartPolicy": spec.restart_policy,
        "imagePullPolicy": spec.pull_policy,
        "startupOrder": spec.startup_order,
        "settings": _settings(spec, image_hash),
        "env": spec.raw_env,
    }
    if spec.version:
        wish["version"] = spec.version
    return wish


def _module(spec: ModuleSpec, state: ModuleState) -> dict[str, Any]:
    container = state.container
    exited = container.state not in {"running", "created"}
    return {
        **_wish(spec, container.image_hash),
        "exitCode": container.exit_code if exited or state.runtime_status == "backoff" else 0,
        "statusDescription": _description(state),
        "lastStartTimeUtc": times.twin_text(container.started),
        "lastExitTimeUtc": times.twin_text(container.finished),
        "restartCount": state.restarts,
        "lastRestartTimeUtc": state.last_restart,
        "runtimeStatus": state.runtime_status,
    }


def _description(state: ModuleState) -> str:
    container = state.container
    if container.state == "exited":
        return f"Exited ({container.exit_code})"
    return container.state
