"""Reads `$edgeAgent`'s desired properties: which modules run, and how.

Codes and rules are the real agent's: 400 bad format, 412 schema version, 417 empty configuration.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

__all__ = ["Deployment", "DeploymentError", "ModuleSpec", "create_options_text", "parse_deployment"]

BAD_FORMAT: Final = 400
BAD_SCHEMA: Final = 412
EMPTY: Final = 417
_LAST_ORDER: Final = 4294967295
_STATUSES: Final = frozenset({"running", "stopped"})
_POLICIES: Final = frozenset({"never", "on-failure", "on-unhealthy", "always"})
_PULLS: Final = frozenset({"on-create", "never"})


class DeploymentError(Exception):
    """The desired properties cannot be used; `code` is what the agent reports."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """One module as it is wanted."""

    name: str
    image: str
    status: str = "running"
    restart_policy: str = "on-unhealthy"
    pull_policy: str = "on-create"
    startup_order: int = _LAST_ORDER
    version: str = ""
    kind: str = "docker"
    create_text: str = ""
    """createOptions as one JSON text, its chunks joined."""
    create: dict[str, Any] = dataclasses.field(default_factory=dict)
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    raw_env: dict[str, Any] = dataclasses.field(default_factory=dict)
    """env as the twin has it, for the report."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """All that the hub wants of this device."""

    version: int
    runtime: dict[str, Any]
    credentials: tuple[dict[str, str], ...]
    """One entry a registry: username, password, address."""
    agent: ModuleSpec
    hub: ModuleSpec
    modules: tuple[ModuleSpec, ...]
    """In order of start."""


def parse_deployment(desired: dict[str, Any]) -> Deployment:
    """Return what desired properties say.

    Raises:
        DeploymentError: with the code that the real agent reports.
    """
    version = int(desired.get("$version", 0))
    if not any(not key.startswith("$") for key in desired):
        raise DeploymentError(EMPTY, "Empty edge agent config: there is no deployment")
    _check_schema(str(desired.get("schemaVersion", "")))
    system = _object(desired, "systemModules")
    for name in ("edgeAgent", "edgeHub"):
        if name not in system:
            raise DeploymentError(BAD_FORMAT, f"systemModules.{name} is missing")
    runtime = _object(desired, "runtime")
    modules = [
        _module(name, value, f"modules.{name}")
        for name, value in _object(desired, "modules").items()
        if value is not None
    ]
    registries = _object(_object(runtime, "settings"), "registryCredentials").values()
    return Deployment(
        version=version,
        runtime=runtime,
        credentials=tuple(
            {key: str(entry.get(key, "")) for key in ("username", "password", "address")}
            for entry in registries
            if isinstance(entry, dict)
        ),
        agent=_module("edgeAgent", system["edgeAgent"], "systemModules.edgeAgent"),
        hub=_module("edgeHub", system["edgeHub"], "systemModules.edgeHub"),
        modules=tuple(sorted(modules, key=lambda module: (module.startup_order, module.name))),
    )


def _check_schema(text: str) -> None:
    if not text:
        raise DeploymentError(BAD_FORMAT, "schemaVersion is missing")
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise DeploymentError(BAD_SCHEMA, f"Invalid schema version {text}")
    if int(major) != 1 or int(minor) > 1:
        raise DeploymentError(
            BAD_SCHEMA, f"The deployment schema version {text} is not compatible with 1.1"
        )


def _object(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key) or {}
    if not isinstance(value, dict):
        raise DeploymentError(BAD_FORMAT, f"{key} is no object")
    return value


def _choice(raw: dict[str, Any], key: str, allowed: frozenset[str], default: str, path: str) -> str:
    value = str(raw.get(key) or default).lower()
    if value not in allowed:
        raise DeploymentError(
            BAD_FORMAT, f"{path}.{key}: {value!r} is not one of {sorted(allowed)}"
        )
    return value


def _module(name: str, raw: Any, path: str) -> ModuleSpec:
    if not isinstance(raw, dict):
        raise DeploymentError(BAD_FORMAT, f"{path} is no object")
    kind = str(raw.get("type", "docker"))
    if kind != "docker":
        raise DeploymentError(BAD_FORMAT, f"{path}.type: {kind!r} is not 'docker'")
    settings = _object(raw, "settings")
    image = str(settings.get("image") or "").strip()
    if not image:
        raise DeploymentError(BAD_FORMAT, f"{path}.settings.image is missing")
    text = create_options_text(settings, path)
    try:
        create = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise DeploymentError(
            BAD_FORMAT, f"{path}.settings.createOptions is no JSON: {error}"
        ) from error
    if not isinstance(create, dict):
        raise DeploymentError(BAD_FORMAT, f"{path}.settings.createOptions is no object")
    env = _object(raw, "env")
    return ModuleSpec(
        name=name,
        image=image,
        status=_choice(raw, "status", _STATUSES, "running", path),
        restart_policy=_choice(raw, "restartPolicy", _POLICIES, "on-unhealthy", path),
        pull_policy=_choice(raw, "imagePullPolicy", _PULLS, "on-create", path),
        startup_order=int(raw.get("startupOrder", _LAST_ORDER)),
        version=str(raw.get("version") or ""),
        create_text=text,
        create=create,
        env={key: _env_text(value) for key, value in env.items()},
        raw_env=env,
    )


def create_options_text(settings: dict[str, Any], path: str = "") -> str:
    """Return createOptions with its chunks createOptions01 … createOptions99 joined.

    A twin's string is limited, so long options arrive in pieces; a gap between them is an error.
    """
    first = settings.get("createOptions") or ""
    if isinstance(first, dict):
        return json.dumps(first, separators=(",", ":"))
    parts = [str(first)]
    numbers = sorted(
        int(key.removeprefix("createOptions"))
        for key in settings
        if key.startswith("createOptions") and key.removeprefix("createOptions").isdigit()
    )
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise DeploymentError(
                BAD_FORMAT, f"{path}.settings: createOptions{expected:02} is missing"
            )
        parts.append(str(settings.get(f"createOptions{number:02}") or ""))
    return "".join(parts)


def _env_text(value: Any) -> str:
    inner = value.get("value") if isinstance(value, dict) else value
    if isinstance(inner, bool):
        return "true" if inner else "false"
    return "" if inner is None else str(inner)
