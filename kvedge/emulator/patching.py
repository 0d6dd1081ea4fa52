"""Merge, difference and limits of twin properties; pure.

A document is the wire form of desired or reported properties: the values, `$version` and
`$metadata`. Tags are plain values without both. Limits:
https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins#device-twin-size
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue

if TYPE_CHECKING:
    from kvedge.emulator.records import Json

__all__ = [
    "LIMITS",
    "check",
    "check_size",
    "difference",
    "empty",
    "merged",
    "merged_values",
    "replaced",
    "values",
]

LIMITS = {"Tags": 8 * 1024, "Properties.Desired": 32 * 1024, "Properties.Reported": 32 * 1024}
"""Largest size of each section in bytes, as the service counts it."""
_VALUE_BYTES = 4096
_KEY_BYTES = 1024
_DEPTH = 10
_INTEGERS = 2**52
_META = ("$metadata", "$version")
_FORBIDDEN = frozenset(".$# ") | {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}


def empty(stamp: str) -> Json:
    """Return the properties of a twin that nobody has written yet."""
    return {"$metadata": {"$lastUpdated": stamp}, "$version": 1}


def values(document: Json) -> Json:
    """Return a document without `$version` and `$metadata`."""
    return {name: value for name, value in document.items() if name not in _META}


def merged(document: Json, patch: Json, stamp: str, *, versioned: bool) -> Json:
    """Return the document after a merge-patch: objects merge, null removes, arrays are replaced.

    `versioned` puts `$lastUpdatedVersion` into the metadata, as desired properties have it.
    """
    version = document["$version"] + 1
    mark: Json = {"$lastUpdated": stamp}
    if versioned:
        mark["$lastUpdatedVersion"] = version
    kept, metadata = _merge(values(document), document["$metadata"], values(patch), mark)
    return {**kept, "$metadata": metadata, "$version": version}


def replaced(document: Json, new: Json, stamp: str, *, versioned: bool) -> Json:
    """Return a document that has only the new values, at the next version."""
    blank = {"$metadata": {}, "$version": document["$version"]}
    return merged(blank, new, stamp, versioned=versioned)


def merged_values(old: Json, patch: Json) -> Json:
    """Return plain values (tags) after a merge-patch."""
    return _merge(old, {}, patch, {})[0]


def difference(old: Json, new: Json) -> Json:
    """Return the merge-patch that leads from old values to new ones."""
    patch: Json = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            if inner := difference(before, value):
                patch[name] = inner
        elif name not in old or before != value or type(before) is not type(value):
            patch[name] = value
    return patch


def check(section: str, patch: Any) -> Json:
    """Return the patch if its names and values are allowed, else raise HubError."""
    if not isinstance(patch, dict):
        raise catalogue.HubError("IotHubFormatError", f"'{section}' must be a JSON object.")
    for name, value in values(patch).items():
        _check_name(name)
        _check_value(name, value, 1)
    return patch


def check_size(section: str, document: Json) -> None:
    """Raise HubError if a whole section is larger than the service allows."""
    limit = LIMITS[section]
    if _size(values(document)) >= limit:
        raise catalogue.HubError(
            "DeviceModelMaxPropertiesExceeded",
            f"'{section}' size should be less than {limit} bytes.",
        )


def _merge(old: Json, metadata: Json, patch: Json, mark: Json) -> tuple[Json, Json]:
    kept, meta = dict(old), {**metadata, **mark}
    for name, value in patch.items():
        if value is None:
            kept.pop(name, None)
            meta.pop(name, None)
        elif isinstance(value, dict):
            before = kept.get(name)
            inner = before if isinstance(before, dict) else {}
            inner_meta = meta.get(name, {}) if isinstance(before, dict) else {}
            kept[name], meta[name] = _merge(inner, inner_meta, value, mark)
        else:
            kept[name] = value
            meta[name] = mark
    return kept, meta


def _check_name(name: str) -> None:
    if not name or _FORBIDDEN.intersection(name) or len(name.encode()) > _KEY_BYTES:
        shown = name if len(name) < 100 else f"{name[:100]}…"
        raise catalogue.HubError(
            "ArgumentInvalid",
            "Property or Tag name is limited to 1024 bytes and must not hold control "
            f"characters, '.', '$', '#' or a space. Error in Property/Tag {shown}",
        )


def _check_value(name: str, value: Any, depth: int) -> None:
    if isinstance(value, str):
        if len(value) > _VALUE_BYTES // 4 and len(value.encode()) > _VALUE_BYTES:
            raise catalogue.HubError(
                "ArgumentInvalid",
                f"Property or Tag value should be maximum 4096 bytes. Error in Property/Tag {name}",
            )
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) > _INTEGERS:
            raise catalogue.HubError(
                "ArgumentInvalid",
                "Integers must lie between -4503599627370496 and 4503599627370496. "
                f"Error in Property/Tag {name}",
            )
    elif isinstance(value, dict | list):
        if depth >= _DEPTH:
            raise catalogue.HubError(
                "ArgumentInvalid",
                f"Maximum depth of 10 is exceeded. Error in Property/Tag {name}",
            )
        if isinstance(value, dict):
            for inner, item in value.items():
                _check_name(inner)
                _check_value(inner, item, depth + 1)
        else:
            for item in value:
                _check_value(name, item, depth + 1)


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(name.encode()) + _size(item) for name, item in value.items())
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bool):
        return 4
    return 8
