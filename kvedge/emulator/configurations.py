"""Automatic deployments and device management configurations: what the service lets be written.

Content is immutable: a PUT with other content is answered 200 and keeps the old one. If-Match
counts only when quoted; without one, or with a bare one, an existing id is a conflict.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, documents, patching, query, times
from kvedge.emulator.records import AGENT, Configuration, Json

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.emulator.store import Store

__all__ = ["Configurations", "check_content", "check_target", "is_edge"]

_ID = re.compile(r"[a-z0-9\-+%_*!']{1,128}")
_KINDS = ("modulesContent", "deviceContent", "moduleContent")
_MODULES = 50
_METRICS = 5
_DESIRED = "properties.desired"


class Configurations:
    """All configurations of the hub."""

    def __init__(self, store: Store, changed: Callable[[], None], *, limit: int = 100) -> None:
        """Keep at most `limit` of each kind; `changed` hears of every write."""
        self._store = store
        self._changed = changed
        self._limit = limit

    def all(self) -> list[Json]:
        """Return every configuration; the service ignores `top`."""
        found = sorted(self._store.configurations.values(), key=lambda item: item.id)
        return [documents.configuration_json(item) for item in found]

    def find(self, name: str) -> Configuration:
        """Return a record; raises ConfigurationNotFound."""
        found = self._store.configurations.get(name)
        if found is None:
            raise catalogue.HubError(
                "ConfigurationNotFound", f"Configuration with id '{name}' does not exist on IotHub."
            )
        return found

    def put(self, name: str, body: Any, if_match: str | None) -> tuple[bool, Configuration]:
        """Make or change one; returns whether it is new."""
        if not isinstance(body, dict):
            raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")
        if not _ID.fullmatch(name) or body.get("id", name) != name:
            raise catalogue.HubError(
                "ArgumentInvalid",
                "A configuration id has 1 to 128 characters of a-z, 0-9 and -+%_*!'.",
            )
        old = self._store.configurations.get(name)
        if old is None and if_match is not None:
            self.find(name)
        if old is not None:
            _match(if_match, old)
        content: Any = body.get("content")
        kind = check_content(content)
        fields = _checked(body, kind)
        stamp = times.stamp()
        if old is not None:
            # The service answers 200 to other content and keeps what it has.
            new = dataclasses.replace(old, updated=stamp, writes=old.writes + 1, **fields)
        else:
            self._check_room(kind)
            new = Configuration(
                id=name,
                content=content,
                created=stamp,
                updated=stamp,
                sequence=1
                + max((item.sequence for item in self._store.configurations.values()), default=0),
                **fields,
            )
        with self._store.transaction() as transaction:
            transaction.put(new)
        self._changed()
        return old is None, new

    def delete(self, name: str, if_match: str | None) -> None:
        """Remove one; If-Match is optional."""
        found = self.find(name)
        if if_match is not None and if_match.startswith('"'):
            _match(if_match, found)
        with self._store.transaction() as transaction:
            transaction.delete("configuration", name)
        self._changed()

    def test(self, body: Any) -> Json:
        """Return what is wrong with a target condition and with metric queries."""
        if not isinstance(body, dict):
            raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")
        condition = body.get("targetCondition")
        queries = body.get("customMetricQueries") or {}
        wrong = ""
        if condition is not None:
            try:
                # Unlike PUT, the service's test does not know `*`.
                check_target(str(condition), star=False)
            except catalogue.HubError as error:
                wrong = error.text
        errors = {}
        for name, text in queries.items():
            try:
                query.parse_query(str(text))
            except query.QueryError as error:
                errors[name] = str(error)
        return {"targetConditionError": wrong or None, "customMetricQueryErrors": errors}

    def _check_room(self, kind: str) -> None:
        edge = kind == "modulesContent"
        count = sum(is_edge(item) is edge for item in self._store.configurations.values())
        if count >= self._limit:
            raise catalogue.HubError(
                "ConfigurationCountLimitExceeded",
                f"Number of {'deployments' if edge else 'configurations'} exceed the maximum "
                f"quota {self._limit} for this IotHub.",
            )


def is_edge(configuration: Configuration) -> bool:
    """Tell whether it is an IoT Edge deployment."""
    return "modulesContent" in configuration.content


def check_content(content: Any) -> str:
    """Return the kind of a configuration's content; raises InvalidConfigurationContent."""
    kinds = [kind for kind in _KINDS if isinstance(content, dict) and content.get(kind)]
    if len(kinds) != 1 or not isinstance(content[kinds[0]], dict):
        raise catalogue.HubError("InvalidConfigurationContent")
    kind = kinds[0]
    inner = content[kind]
    sections = inner if kind == "modulesContent" else {"": inner}
    if kind == "modulesContent" and (AGENT not in inner or len(inner) > _MODULES + 2):
        raise catalogue.HubError("InvalidConfigurationContent")
    for section in sections.values():
        _check_section(section)
    return kind


def check_target(condition: str, *, modules: bool = False, star: bool = True) -> None:
    """Raise InvalidConfigurationTargetCondition for what the service would not take."""
    if not condition or (star and condition.strip() == "*"):
        return
    try:
        if modules:
            parsed = query.parse_query(f"SELECT * {condition}")
            node = parsed.where if parsed.table == "devices.modules" else None
        else:
            node = query.parse_condition(condition)
    except query.QueryError as error:
        raise catalogue.HubError(
            "InvalidConfigurationTargetCondition", f"Invalid targetCondition. {error}"
        ) from error
    for names in query.places(node) if node is not None else ():
        allowed = names[0] in ("deviceId", "tags") or names[:2] == ("properties", "reported")
        if not allowed and not (modules and names[0] == "moduleId"):
            raise catalogue.HubError(
                "InvalidConfigurationTargetCondition",
                "Invalid targetCondition. It must be a filter condition based on 'deviceId', "
                f"'tags', or 'properties.reported'. It contains: {'.'.join(names)}",
            )


def _match(if_match: str | None, old: Configuration) -> None:
    if if_match is None or not (if_match == "*" or if_match.startswith('"')):
        raise catalogue.HubError(
            "ConfigurationAlreadyExists",
            f"Configuration with id '{old.id}' already exist on IotHub.",
        )
    if if_match not in ("*", '"*"', f'"{old.etag}"'):
        raise catalogue.HubError(
            "PreconditionFailed", "Precondition failed: the etag does not match."
        )


def _checked(body: Json, kind: str) -> dict[str, Any]:
    """Return the changeable fields of a Configuration."""
    condition = body.get("targetCondition") or ""
    labels = body.get("labels") or {}
    metrics = (body.get("metrics") or {}).get("queries") or {}
    priority = body.get("priority", 0) or 0
    if not isinstance(condition, str):
        raise catalogue.HubError("InvalidConfigurationTargetCondition")
    check_target(condition, modules=kind == "moduleContent")
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise catalogue.HubError("ArgumentInvalid", "Labels must be texts.")
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority < 2**31:
        raise catalogue.HubError("ArgumentInvalid", "The priority must be a whole number from 0.")
    if not isinstance(metrics, dict) or len(metrics) > _METRICS:
        raise catalogue.HubError(
            "InvalidConfigurationCustomMetricsQuery", "At most 5 custom metrics are allowed."
        )
    for name, text in metrics.items():
        try:
            query.parse_query(str(text))
        except query.QueryError as error:
            raise catalogue.HubError(
                "InvalidConfigurationCustomMetricsQuery", f"Metric {name!r}: {error}"
            ) from error
    return {
        "schema_version": str(body.get("schemaVersion") or "1.0"),
        "labels": labels,
        "target_condition": condition,
        "priority": priority,
        "metric_queries": metrics,
    }


def _check_section(section: Any) -> None:
    if not isinstance(section, dict):
        raise catalogue.HubError("InvalidConfigurationContent")
    for path, value in section.items():
        if path != _DESIRED and not path.startswith(f"{_DESIRED}."):
            raise catalogue.HubError("InvalidConfigurationContent")
        names = path.split(".")[2:]
        wrapped = value
        for name in reversed(names):
            wrapped = {name: wrapped}
        try:
            patching.check("Properties.Desired", wrapped)
        except catalogue.HubError as error:
            text = f"{catalogue.CODES['InvalidConfigurationContent'].text}. {error.text}"
            raise catalogue.HubError("InvalidConfigurationContent", text) from error
