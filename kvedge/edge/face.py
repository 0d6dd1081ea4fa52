"""What a pod's annotations say about its deployment: the own face and the predecessor's.

Own keys begin with `kvedge.io/`. The archived connector's keys (isEdgeDeployment, targetCondition,
priority, loggingOptions) keep their meaning; a pod that sets both differently is refused.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal

from kvedge import errors
from kvedge.names import ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONTAINER_KEYS", "OWN_KEYS", "TARGET_KEYS", "Face", "face_of", "workload_of"]

_DEFAULT_PRIORITY = 10
_MAX_PRIORITY = 999
OWN_KEYS: Mapping[str, tuple[str, str]] = {
    f"{ANNOTATION}/{name}": told
    for name, told in {
        "target-condition": (
            "the hub's own language",
            "the devices, such as `tags.kvedge.site='lille'`",
        ),
        "devices": ("`a,b`", "the devices by name"),
        "selector": ("`site=lille,line!=3`", "the devices by twin tags"),
        "priority": ("0 to 999, default 10", "which deployment wins where two meet"),
        "deployment": (
            "`layered` (default), `full`",
            "a layer above the environment's base, or a whole manifest",
        ),
        "min-ready": (
            "`all` (default), `3`, `80%`",
            "how many devices must run the pod before it is Ready, and before its predecessor is "
            "retired",
        ),
        "rollback-after": (
            "`90s`, `10m`, `2h`",
            "a new revision that is not ready after this time, and that a device reports as "
            "failing, gives way to the last good one",
        ),
        "packed": (
            "`true`, `false`",
            "share a deployment with other pods of the same target and priority; by default only "
            "when the hub has 80 deployments or more",
        ),
    }.items()
}
"""Annotations of a pod, each with its values and its meaning as the page on pods tells them."""
TARGET_KEYS = (
    f"{ANNOTATION}/target-condition", "targetCondition",
    f"{ANNOTATION}/devices", f"{ANNOTATION}/selector",
)  # fmt: skip
"""Annotations that say which devices are meant."""
CONTAINER_KEYS: Mapping[str, tuple[str, str]] = {
    "module": ("a name", "the module's name; default `<workload>-<container>`"),
    "create-options": (
        "JSON object",
        "Docker create options, merged over the translated ones",
    ),
    "desired-properties": ("JSON object", "desired properties of the module's twin"),
    "routes": ("JSON object", "routes of the edge hub, by name"),
}
"""The same of annotations that begin with a container's name."""
_DEVICE = re.compile(r"[A-Za-z0-9\-.+%_#*?!(),=@$]{1,128}")
_DURATION = re.compile(r"([0-9]{1,6})([smh])")
_TAG_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A pod's wishes about its deployment."""

    condition: str
    """The hub's target condition."""
    priority: int
    """0 to 999, as the user counts."""
    kind: Literal["layered", "full"]
    legacy: bool
    """The pod is written for the archived connector: module names are container names."""
    packed: bool | None
    """Share a deployment with other pods of the same target; None leaves it to the hub's room."""
    min_ready: str
    """`all`, a count or a percentage of the targeted devices."""
    rollback_seconds: float
    """So long a new revision has to become ready before the last good one returns; 0: for ever."""
    workload: str
    """What the pod belongs to: a Deployment's name, or the pod's own."""


def workload_of(pod: dict[str, Any]) -> str:
    """Return the name that stays the same over a rolling update."""
    metadata = pod["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller"):
            name = owner["name"]
            template = (metadata.get("labels") or {}).get("pod-template-hash")
            if owner.get("kind") == "ReplicaSet" and template:
                return name.removesuffix(f"-{template}")
            return name
    return metadata.get("name") or metadata.get("generateName", "").rstrip("-")


def face_of(
    pod: dict[str, Any], problems: list[errors.Problem], default_condition: str = ""
) -> Face:
    """Read a pod's annotations; mistakes are appended to `problems`."""
    notes: dict[str, str] = pod["metadata"].get("annotations") or {}
    legacy = notes.get("isEdgeDeployment") == "true"
    own = [key for key in notes if key in OWN_KEYS]
    _check_unknown(pod, notes, problems)
    kind = _kind(notes, legacy and not own, problems)
    rollback = _rollback(notes, problems)
    return Face(
        condition=_condition(notes, problems, default_condition),
        priority=_priority(notes, problems),
        kind=kind,
        legacy=legacy and not own,
        packed=_packed(notes, kind, rollback, problems),
        min_ready=_min_ready(notes, problems),
        rollback_seconds=rollback,
        workload=workload_of(pod),
    )


def _path(key: str) -> str:
    return f"metadata.annotations[{key}]"


def _check_unknown(
    pod: dict[str, Any], notes: dict[str, str], problems: list[errors.Problem]
) -> None:
    spec = pod.get("spec", {})
    names = {c["name"] for c in [*spec.get("containers", ()), *spec.get("initContainers", ())]}
    for key in notes:
        prefix, _, name = key.partition("/")
        if prefix == ANNOTATION and key not in OWN_KEYS:
            problems.append(errors.Problem(path=_path(key), message="is not a key of kvedge"))
        elif prefix.endswith(f".{ANNOTATION}"):
            container = prefix.removesuffix(f".{ANNOTATION}")
            if container not in names:
                message = f"the pod has no container {container!r}"
                problems.append(errors.Problem(path=_path(key), message=message))
            elif name not in CONTAINER_KEYS:
                message = f"is not one of {', '.join(sorted(CONTAINER_KEYS))}"
                problems.append(errors.Problem(path=_path(key), message=message))


def _condition(notes: dict[str, str], problems: list[errors.Problem], default: str) -> str:
    found: dict[str, str] = {}
    if text := notes.get("targetCondition", "").strip():
        found["targetCondition"] = text
    if text := notes.get(f"{ANNOTATION}/target-condition", "").strip():
        found[f"{ANNOTATION}/target-condition"] = text
    key = f"{ANNOTATION}/devices"
    if key in notes:
        devices = [part.strip() for part in notes[key].split(",") if part.strip()]
        wrong = [device for device in devices if not _DEVICE.fullmatch(device)]
        if wrong or not devices:
            message = f"{wrong[0]!r} is not a device id" if wrong else "names no device"
            problems.append(errors.Problem(path=_path(key), message=message))
        elif len(devices) == 1:
            found[key] = f"deviceId='{devices[0]}'"
        else:
            found[key] = "deviceId IN [" + ", ".join(f"'{device}'" for device in devices) + "]"
    key = f"{ANNOTATION}/selector"
    if key in notes:
        found[key] = _selector(notes[key], key, problems)
    if len(set(found.values())) > 1:
        for key in found:
            message = "the pod says differently in another annotation"
            problems.append(errors.Problem(path=_path(key), message=message))
    condition = next(iter(found.values()), default)
    if not condition and not any(p.path.startswith("metadata.annotations") for p in problems):
        problems.append(
            errors.Problem(
                path=_path(f"{ANNOTATION}/target-condition"),
                message="is missing, so the pod belongs to no device",
                hint=f"set it, or {ANNOTATION}/devices, or {ANNOTATION}/selector",
            )
        )
    return condition


def _selector(text: str, key: str, problems: list[errors.Problem]) -> str:
    parts = []
    for term in (part.strip() for part in text.split(",")):
        negative = "!=" in term
        name, _, value = term.partition("!=" if negative else "=")
        name, value = name.strip(), value.lstrip("=").strip()
        if not _TAG_PATH.fullmatch(name) or not value:
            message = f"{term!r} is not of the form tag=value"
            problems.append(errors.Problem(path=_path(key), message=message))
            continue
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        parts.append(f"tags.{name}{'!=' if negative else '='}'{escaped}'")
    return " AND ".join(parts)


def _priority(notes: dict[str, str], problems: list[errors.Problem]) -> int:
    key = f"{ANNOTATION}/priority"
    if key in notes:
        text = notes[key].strip()
        if text.isdigit() and int(text) <= _MAX_PRIORITY:
            legacy = notes.get("priority", "").strip()
            if legacy.isdigit() and int(legacy) != int(text):
                message = "the pod says differently in another annotation"
                problems.append(errors.Problem(path=_path(key), message=message))
            return int(text)
        message = f"{text!r} is not a whole number from 0 to {_MAX_PRIORITY}"
        problems.append(errors.Problem(path=_path(key), message=message))
        return _DEFAULT_PRIORITY
    # The archived connector took 10 for text that is no number.
    text = notes.get("priority", "").strip()
    if not text.isdigit():
        return _DEFAULT_PRIORITY
    if int(text) > _MAX_PRIORITY:
        message = f"{text} is above {_MAX_PRIORITY}"
        problems.append(errors.Problem(path=_path("priority"), message=message))
        return _DEFAULT_PRIORITY
    return int(text)


def _kind(
    notes: dict[str, str], legacy: bool, problems: list[errors.Problem]
) -> Literal["layered", "full"]:
    key = f"{ANNOTATION}/deployment"
    text = notes.get(key, "full" if legacy else "layered").strip()
    if text == "full":
        return "full"
    if text != "layered":
        message = f"{text!r} is neither layered nor full"
        problems.append(errors.Problem(path=_path(key), message=message))
    return "layered"


def _min_ready(notes: dict[str, str], problems: list[errors.Problem]) -> str:
    key = f"{ANNOTATION}/min-ready"
    text = notes.get(key, "all").strip()
    if text == "all":
        return text
    number = text.removesuffix("%")
    if not number.isdigit() or (text.endswith("%") and int(number) > 100):
        message = f"{text!r} is neither a count nor a percentage nor all"
        problems.append(errors.Problem(path=_path(key), message=message))
        return "all"
    return text


def _rollback(notes: dict[str, str], problems: list[errors.Problem]) -> float:
    key = f"{ANNOTATION}/rollback-after"
    text = notes.get(key, "").strip()
    if not text:
        return 0
    match = _DURATION.fullmatch(text)
    if match is None or not int(match[1]):
        message = f"{text!r} is not a time such as 90s, 10m or 2h"
        problems.append(errors.Problem(path=_path(key), message=message))
        return 0
    return float(int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]])


def _packed(
    notes: dict[str, str], kind: str, rollback: float, problems: list[errors.Problem]
) -> bool | None:
    """Return whether the pod shares a deployment; a full or guarded one cannot."""
    key = f"{ANNOTATION}/packed"
    text = notes.get(key, "").strip()
    alone = kind == "full" or rollback > 0
    if text not in ("", "true", "false"):
        message = f"{text!r} is neither true nor false"
        problems.append(errors.Problem(path=_path(key), message=message))
    if text == "true" and alone:
        why = "a full deployment is one pod's" if kind == "full" else "a pack is not rolled back"
        hint = "take one of the two annotations away"
        problems.append(errors.Problem(path=_path(key), message=why, hint=hint))
    if alone or text == "false":
        return False
    return True if text == "true" else None
