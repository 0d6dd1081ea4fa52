# ruff: noqa: S608 - the texts are IoT Hub queries that are shown, never run as SQL
"""The JSON that the service shows of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kvedge.emulator.presence import Seen
    from kvedge.emulator.records import Configuration, Identity, Json, Twin

__all__ = ["configuration_json", "device_json", "module_json", "queries", "twin_json"]


class _Records(Protocol):
    """What a twin's JSON is put together from: the store, or an older view of it."""

    @property
    def identities(self) -> dict[str, Identity]:
        """Identities by key."""
        ...

    def waiting(self, device_id: str) -> int:
        """Return how many messages wait for a device."""
        ...


def _authentication(identity: Identity) -> Json:
    return {
        "symmetricKey": {
            "primaryKey": identity.primary_key,
            "secondaryKey": identity.secondary_key,
        },
        "x509Thumbprint": {
            "primaryThumbprint": identity.primary_thumbprint,
            "secondaryThumbprint": identity.secondary_thumbprint,
        },
        "type": identity.auth,
    }


def device_json(identity: Identity, seen: Seen, messages: int) -> Json:
    """Return a device identity as `GET /devices/{id}` answers it."""
    shown: Json = {
        "deviceId": identity.device_id,
        "generationId": identity.generation_id,
        "etag": identity.etag,
        "connectionState": "Connected" if seen.session else "Disconnected",
        "status": "enabled" if identity.enabled else "disabled",
        "statusReason": identity.status_reason,
        "connectionStateUpdatedTime": seen.changed,
        "statusUpdatedTime": identity.status_updated,
        "lastActivityTime": seen.activity,
        "cloudToDeviceMessageCount": messages,
        "authentication": _authentication(identity),
        "capabilities": {"iotEdge": identity.edge},
    }
    return shown | _scopes(identity)


def module_json(identity: Identity, seen: Seen) -> Json:
    """Return a module identity as `GET /devices/{id}/modules/{mid}` answers it."""
    return {
        "moduleId": identity.module_id,
        "managedBy": identity.managed_by,
        "deviceId": identity.device_id,
        "generationId": identity.generation_id,
        "etag": identity.etag,
        "connectionState": "Connected" if seen.session else "Disconnected",
        "connectionStateUpdatedTime": seen.changed,
        "lastActivityTime": seen.activity,
        "cloudToDeviceMessageCount": 0,
        "authentication": _authentication(identity),
    }


def twin_json(store: _Records, twin: Twin, seen: Seen, *, row: bool = False) -> Json:
    """Return a twin as `GET /twins/...` answers it; a query's row also names its configurations."""
    identity = store.identities[twin.key]
    device = store.identities[twin.device_id] if twin.module_id else identity
    shown: Json = {"deviceId": twin.device_id}
    if twin.module_id:
        shown["moduleId"] = twin.module_id
    shown |= {
        "etag": twin.etag,
        "deviceEtag": identity.etag,
        "status": "enabled" if device.enabled else "disabled",
        "statusReason": identity.status_reason,
        "statusUpdateTime": identity.status_updated,
        "connectionState": "Connected" if seen.session else "Disconnected",
        "lastActivityTime": seen.activity,
        "cloudToDeviceMessageCount": 0 if twin.module_id else store.waiting(twin.device_id),
        "authenticationType": identity.auth,
        # The live service spells these two with a capital in twins, and small in identities.
        "x509Thumbprint": {
            "PrimaryThumbprint": identity.primary_thumbprint,
            "SecondaryThumbprint": identity.secondary_thumbprint,
        },
        "modelId": twin.model_id,
        "version": twin.version,
    }
    if twin.tags or not twin.module_id:
        shown["tags"] = twin.tags
    shown["properties"] = {"desired": twin.desired, "reported": twin.reported}
    if row and (device.edge or twin.configurations):
        shown["configurations"] = twin.configurations
    if not twin.module_id:
        shown["capabilities"] = {"iotEdge": identity.edge}
        shown |= _scopes(identity)
    return shown


def configuration_json(configuration: Configuration) -> Json:
    """Return a configuration as `GET /configurations/{id}` answers it."""
    return {
        "id": configuration.id,
        "schemaVersion": configuration.schema_version,
        "labels": configuration.labels,
        "content": configuration.content,
        "targetCondition": configuration.target_condition,
        "createdTimeUtc": configuration.created,
        "lastUpdatedTimeUtc": configuration.updated,
        "priority": configuration.priority,
        "systemMetrics": {
            "results": configuration.system_results,
            "queries": queries(configuration),
        },
        "metrics": {
            "results": configuration.metric_results,
            "queries": configuration.metric_queries,
        },
        "etag": configuration.etag,
    }


def queries(configuration: Configuration) -> Json:
    """Return the system metrics' queries in the words that the service writes."""
    condition = configuration.target_condition
    if "modulesContent" not in configuration.content:
        table = "devices.modules" if "moduleContent" in configuration.content else "devices"
        applied = (
            f"select deviceId from {table} where "
            f"configurations.[[{configuration.id}]].status = 'Applied'"
        )
        return {"targetedCount": _targeted(table, condition), "appliedCount": applied}
    if not condition:
        targeted = ""
    else:
        targeted = "select deviceId from devices where capabilities.iotEdge = true"
        targeted += "" if condition == "*" else f" and {condition}"
    applied = (
        "select deviceId from devices.modules where moduleId = '$edgeAgent' and "
        f"configurations.[[{configuration.id}]].status = 'Applied'"
    )
    reported = (
        f"{applied} and properties.desired.$version = properties.reported.lastDesiredVersion "
        "and properties.reported.lastDesiredStatus.code"
    )
    return {
        "targetedCount": targeted,
        "appliedCount": applied,
        "reportedSuccessfulCount": f"{reported} = 200",
        "reportedFailedCount": f"{reported} != 200",
    }


def _targeted(table: str, condition: str) -> str:
    if not condition:
        return ""
    if condition == "*":
        return f"select deviceId from {table}"
    if condition.lower().lstrip().startswith("from "):
        return f"select deviceId {condition}"
    return f"select deviceId from {table} where {condition}"


def _scopes(identity: Identity) -> Json:
    shown: Json = {}
    if identity.scope is not None:
        shown["deviceScope"] = identity.scope
    if identity.parent_scopes:
        shown["parentScopes"] = list(identity.parent_scopes)
    return shown
