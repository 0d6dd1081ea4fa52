"""Twin documents: merge patches, their inverse, and the `$` keys that the hub adds."""

from __future__ import annotations

from typing import Any

__all__ = ["difference", "merged", "without_metadata"]


def merged(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return a document with a merge patch applied: null removes, objects merge, others replace."""
    result = dict(document)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = merged(old if isinstance(old, dict) else {}, value)
        else:
            result[key] = value
    return result


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the smallest merge patch that turns one document into the other."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if key in old and before == value and type(before) is type(value):
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            patch[key] = difference(before, value)
        else:
            patch[key] = value
    return patch


def without_metadata(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document without `$version`, `$metadata` and other top-level `$` keys of the hub."""
    return {key: value for key, value in document.items() if key not in {"$version", "$metadata"}}
