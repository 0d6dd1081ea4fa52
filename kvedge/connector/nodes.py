"""The virtual nodes of one process: one from options, or several from a file.

nodes:
- name: iot-edge-connector-hub0
  connectionStringFile: /run/kvedge/hubs/hub0-cs
  units: 1
  targetCondition: tags.line='north'
  labels: {line: north}
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NodeOptions", "nodes_from_file", "read_secret"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KEYS = {"name", "connectionStringFile", "units", "targetCondition", "labels"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """One virtual node on one hub; several nodes may be on the same hub."""

    name: str
    connection_string: Secret
    connection_string_file: Path | None = None
    """Where it is from; read again when the hub refuses it."""
    hub_units: int = 1
    """Units of the hub, for its request quotas; 0 for a hub without quotas."""
    default_condition: str = ""
    """Target condition of pods that name none; empty refuses them."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def nodes_from_file(path: Path) -> tuple[NodeOptions, ...]:
    """Read the nodes of a file.

    Raises:
        SpecError: holds every mistake with its path.
        KvedgeError: a file cannot be read.
    """
    import yaml

    try:
        found = yaml.safe_load(_text(path, "the file with the nodes"))
    except yaml.YAMLError as cause:
        raise errors.KvedgeError(f"{str(path)!r} is not YAML: {cause}") from cause
    problems: list[errors.Problem] = []
    listed = found.get("nodes") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not listed:
        problems.append(errors.Problem(path="nodes", message="is not a list of nodes"))
        listed = []
    nodes = [_node(entry, f"nodes[{index}]", problems) for index, entry in enumerate(listed)]
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node and node.name in seen:
            message = f"{node.name!r} is there twice"
            problems.append(errors.Problem(path=f"nodes[{index}].name", message=message))
        seen.add(node.name if node else "")
    if problems:
        raise errors.SpecError(f"cannot read {str(path)!r}", problems)
    return tuple(node for node in nodes if node)


def _node(entry: Any, path: str, problems: list[errors.Problem]) -> NodeOptions | None:
    def bad(field: str, message: str) -> None:
        problems.append(errors.Problem(path=f"{path}.{field}", message=message))

    before = len(problems)
    if not isinstance(entry, dict):
        problems.append(errors.Problem(path=path, message="is not a mapping"))
        return None
    for key in sorted(entry.keys() - _KEYS):
        bad(str(key), f"is not one of {', '.join(sorted(_KEYS))}")
    name, units = entry.get("name"), entry.get("units", 1)
    labels = entry.get("labels") or {}
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        bad("name", f"{name!r} is not the name of a node")
    if not isinstance(units, int) or isinstance(units, bool) or units < 0:
        bad("units", f"{units!r} is not a whole number from 0")
    if not isinstance(entry.get("targetCondition", ""), str):
        bad("targetCondition", "is not text")
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        bad("labels", "is not a mapping of text to text")
    file = entry.get("connectionStringFile")
    if not isinstance(file, str) or not file:
        bad("connectionStringFile", "is missing: the file with the hub's connection string")
    if len(problems) > before:
        return None
    return NodeOptions(
        name=str(name),
        connection_string=read_secret(Path(str(file))),
        connection_string_file=Path(str(file)),
        hub_units=int(units),
        default_condition=str(entry.get("targetCondition") or ""),
        labels=labels,
    )


def read_secret(path: Path) -> Secret:
    """Return a hub's connection string from its file."""
    return Secret(_text(path, "the file with the hub's connection string").strip())


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot read {str(path)!r}: {cause.strerror}", hint=f"it is {what}"
        ) from cause
