"""Automatic device and module configurations: which ones hit a twin, and what they write; pure.

Each configuration sets paths of desired properties; on a conflict the higher priority wins (the
newer one on a tie). What no configuration names stays, also after a configuration has gone
(https://learn.microsoft.com/azure/iot-hub/iot-hub-automatic-device-management).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kvedge.emulator import patching, query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvedge.emulator.records import Configuration, Json, Twin

__all__ = ["Rules", "set_path"]

_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    id: str
    holds: Callable[[Json], bool]
    settings: list[tuple[_Path, object]]


class Rules:
    """The configurations of one kind, `deviceContent` or `moduleContent`."""

    def __init__(self, kind: str, configurations: Iterable[Configuration]) -> None:
        chosen = [item for item in configurations if kind in item.content and item.target_condition]
        chosen.sort(key=lambda item: (item.priority, item.sequence))
        self._rules = [
            _Rule(id=item.id, holds=_holds(item.target_condition), settings=_settings(item, kind))
            for item in chosen
        ]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def outcome(self, twin: Twin) -> tuple[Json, Json]:
        """Return a twin's desired values as they shall be, and each configuration's status.

        A configuration is `Applied` if at least one of its settings is not overruled.
        """
        desired = patching.values(twin.desired)
        hits = [rule for rule in self._rules if rule.holds(_row(twin))]
        owners: dict[_Path, str] = {}
        for rule in hits:
            for path, value in rule.settings:
                desired = set_path(desired, path, value)
                overruled = [known for known in owners if known[: len(path)] == path]
                for known in overruled:
                    del owners[known]
                owners[path] = rule.id
        applied = set(owners.values())
        statuses = {
            rule.id: {"status": "Applied" if rule.id in applied else "Targeted"} for rule in hits
        }
        return desired, statuses


def set_path(document: Json, path: _Path | list[str], value: object) -> Json:
    """Return the document with a value at a path; what is there is replaced."""
    if not path:
        return value if isinstance(value, dict) else {}
    inner = document.get(path[0])
    return {
        **document,
        path[0]: set_path(inner if isinstance(inner, dict) else {}, path[1:], value)
        if path[1:]
        else value,
    }


def _settings(configuration: Configuration, kind: str) -> list[tuple[_Path, object]]:
    """Return what a configuration sets; a whole `properties.desired` sets each of its members."""
    found: list[tuple[_Path, object]] = []
    for text, value in sorted(configuration.content[kind].items()):
        path = tuple(text.split(".")[2:])
        if path:
            found.append((path, value))
        else:
            found += [((name,), item) for name, item in value.items()]
    return found


def _holds(condition: str) -> Callable[[Json], bool]:
    if condition.strip() == "*":
        return lambda _row: True
    if condition.lower().lstrip().startswith("from "):
        where = query.parse_query(f"SELECT * {condition}").where
        return query.holds(where) if where is not None else lambda _row: True
    return query.holds(query.parse_condition(condition))


def _row(twin: Twin) -> Json:
    row: Json = {
        "deviceId": twin.device_id,
        "tags": twin.tags,
        "properties": {"reported": twin.reported, "desired": twin.desired},
    }
    return row | ({"moduleId": twin.module_id} if twin.module_id else {})
