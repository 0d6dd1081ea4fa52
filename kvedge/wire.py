"""Shapes of raw JSON that kvedge handles: the hub's and, where useful, Kubernetes'.

Only the members that kvedge reads or writes are named; the objects hold more.
"""

from __future__ import annotations

from typing import Any, Required, TypedDict

__all__ = [
    "Configuration",
    "DeviceIdentity",
    "KubeObject",
    "ModuleIdentity",
    "QueryRow",
    "Twin",
]

KubeObject = dict[str, Any]
"""A Kubernetes object as the API server sends it."""
QueryRow = dict[str, Any]
"""A row of a hub query: a twin, or the projected members."""


class Configuration(TypedDict, total=False):
    """An IoT Hub configuration; an edge deployment is one with `content.modulesContent`."""

    id: Required[str]
    schemaVersion: str
    labels: dict[str, str]
    content: dict[str, Any]
    targetCondition: str
    priority: int
    metrics: dict[str, Any]
    systemMetrics: dict[str, Any]
    createdTimeUtc: str
    lastUpdatedTimeUtc: str
    etag: str


class DeviceIdentity(TypedDict, total=False):
    """A device of the hub's registry."""

    deviceId: Required[str]
    generationId: str
    etag: str
    status: str
    connectionState: str
    lastActivityTime: str
    authentication: dict[str, Any]
    capabilities: dict[str, Any]


class ModuleIdentity(TypedDict, total=False):
    """A module of a device."""

    deviceId: str
    moduleId: str
    managedBy: str
    generationId: str
    etag: str
    connectionState: str
    authentication: dict[str, Any]


class Twin(TypedDict, total=False):
    """A device's or module's twin."""

    deviceId: str
    moduleId: str
    tags: dict[str, Any]
    properties: dict[str, Any]
    etag: str
    version: int
    connectionState: str
    lastActivityTime: str
    configurations: dict[str, Any]
