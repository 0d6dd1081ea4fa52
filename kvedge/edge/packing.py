"""Layers of several pods as one deployment: a pack.

A hub holds 100 deployments, layers included, so pods with equal target and priority can share one
(https://learn.microsoft.com/azure/iot-edge/iot-edge-limits-and-restrictions). A pack's content is
the union of its pods' parts; what is in the hub therefore tells which pods a pack already has.
"""

from __future__ import annotations

import collections
import hashlib
import json
from typing import TYPE_CHECKING, Any

from kvedge.edge.face import Face
from kvedge.edge.revision import (
    LABEL_CLUSTER,
    LABEL_NODE,
    LABEL_WORKLOAD,
    SLOTS,
    TWIN_LIMIT,
    Revision,
    module_names,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from kvedge.wire import Configuration

__all__ = [
    "Pack",
    "Parts",
    "held_by",
    "names_of",
    "pack_of",
    "pack_revision",
    "parts_of",
    "room_for",
]

Parts = dict[tuple[str, str], Any]
"""A layer's content, flat: value by module and key, such as `properties.desired.modules.camera`."""
Pack = tuple[str, int, int]
"""Target condition, the user's priority, number among the packs of these two."""

_MODULES = 50
"""Modules of one deployment at most."""
_PREFIX = "pack-"
_MODULE_KEY = "properties.desired.modules."


def parts_of(content: Mapping[str, Mapping[str, Any]]) -> Parts:
    """Return a layer's content as parts."""
    return {
        (module, key): value
        for module, section in content.items()
        for key, value in section.items()
    }


def room_for(parts: Parts) -> bool:
    """Tell whether one deployment can hold these parts."""
    modules = sum(key.startswith(_MODULE_KEY) for module, key in parts if module == "$edgeAgent")
    sections = _content(parts).values()
    sizes = (len(json.dumps(part, separators=(",", ":")).encode()) for part in sections)
    return modules <= _MODULES and all(size <= TWIN_LIMIT for size in sizes)


def held_by(parts: Parts, names: Collection[str]) -> set[tuple[str, str]]:
    """Return the keys of the parts that belong to modules of these names."""
    return {
        (module, key)
        for module, key in parts
        if module in names
        or (module == "$edgeAgent" and key.removeprefix(_MODULE_KEY) in names)
        or (
            module == "$edgeHub"
            and any(key.startswith(f"properties.desired.routes.{name}-") for name in names)
        )
    }


def _content(parts: Parts) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for module, key in sorted(parts):
        content[module][key] = parts[module, key]
    return dict(content)


def _workload(pack: Pack, node: str) -> str:
    condition, priority, number = pack
    digest = hashlib.sha256(json.dumps([node, condition, priority]).encode()).hexdigest()[:8]
    return f"{_PREFIX}{digest}-{number}"


def pack_revision(pack: Pack, parts: Parts, *, cluster: str, node: str) -> Revision:
    """Return a pack's deployment with this content."""
    condition, priority, _ = pack
    content, workload = _content(parts), _workload(pack, node)
    text = json.dumps([cluster, workload, content], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Revision(
        id=f"{cluster[:8].lower()}-{workload}-{digest}",
        face=Face(
            condition=condition, priority=priority, kind="layered", legacy=False, packed=True,
            min_ready="all", rollback_seconds=0, workload=workload,
        ),
        namespace="",
        labels={LABEL_CLUSTER: cluster, LABEL_NODE: node, LABEL_WORKLOAD: workload},
        content=content,
        modules={},
        images={},
    )  # fmt: skip


def pack_of(entry: Configuration) -> Pack | None:
    """Return which pack a deployment of the hub is; None if it is none."""
    workload = (entry.get("labels") or {}).get(LABEL_WORKLOAD, "")
    number = workload.rpartition("-")[2]
    if not workload.startswith(_PREFIX) or not number.isdigit():
        return None
    if "kvedge-namespace" in (entry.get("labels") or {}):
        return None
    return entry.get("targetCondition", ""), entry.get("priority", 0) // SLOTS, int(number)


def names_of(pods: Iterable[dict[str, Any]]) -> set[str]:
    """Return the modules that these pods are or would be."""
    return {name for pod in pods for name in module_names(pod)}
