"""Digital twins, the plug-and-play view of a twin: properties by component, commands as methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, patching

if TYPE_CHECKING:
    from kvedge.emulator.records import Json, Twin

__all__ = ["desired_patch", "shown"]

_COMPONENT = {"__t": "c"}


def shown(twin: Twin) -> Json:
    """Return the digital twin of a device twin: reported values, and what is desired of them."""
    reported = patching.values(twin.reported)
    view: Json = {"$dtId": twin.device_id, "$metadata": {"$model": twin.model_id}}
    for name, value in reported.items():
        if isinstance(value, dict) and value.get("__t") == "c":
            inner = {key: item for key, item in value.items() if key != "__t"}
            view[name] = {**inner, "$metadata": {}}
        else:
            view[name] = value
            view["$metadata"][name] = {"lastUpdateTime": _updated(twin.reported["$metadata"], name)}
    for name, value in patching.values(twin.desired).items():
        if not (isinstance(value, dict) and value.get("__t") == "c"):
            view["$metadata"].setdefault(name, {})["desiredValue"] = value
    return view


def desired_patch(operations: Any) -> Json:
    """Return the merge-patch of desired properties that a JSON Patch (RFC 6902) stands for."""
    if not isinstance(operations, list) or not operations:
        raise catalogue.HubError("IotHubFormatError", "The body must be a JSON Patch.")
    patch: Json = {}
    for operation in operations:
        if not isinstance(operation, dict):
            raise catalogue.HubError("IotHubFormatError", "An operation must be an object.")
        act, path = operation.get("op"), operation.get("path")
        if act not in ("add", "replace", "remove") or not isinstance(path, str):
            raise catalogue.HubError("ArgumentInvalid", f"Operation {act!r} is not supported.")
        names = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
        if not 1 <= len(names) <= 2:
            raise catalogue.HubError("ArgumentInvalid", f"Path {path!r} is not supported.")
        value = None if act == "remove" else operation.get("value")
        if len(names) == 1:
            patch[names[0]] = value
        else:
            component = patch.setdefault(names[0], dict(_COMPONENT))
            component[names[1]] = value
    return {"properties": {"desired": patch}}


def _updated(metadata: Json, name: str) -> str:
    return metadata.get(name, {}).get("$lastUpdated", "")
