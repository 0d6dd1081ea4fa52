"""The edge hub's routes: which message goes to the hub, which to another module's input.

Taken are `FROM <source> INTO $upstream` and `… INTO BrokeredEndpoint("/modules/m/inputs/i")`;
a condition (WHERE) is refused, since it would need the vendor's query language.
https://learn.microsoft.com/azure/iot-edge/module-composition#declare-routes
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final

__all__ = ["HubConfig", "Route", "RouteError", "parse_hub_config"]

_ROUTE: Final = re.compile(
    r"\s*(?:SELECT\s+\*\s+)?FROM\s+(?P<source>\S+)(?P<where>\s+WHERE\s+.*?)?\s+INTO\s+"
    r"(?:(?P<upstream>\$upstream)|BrokeredEndpoint\(\s*[\"']"
    r"/modules/(?P<module>[^/\"']+)/inputs/(?P<input>[^/\"']+)[\"']\s*\))\s*",
    re.IGNORECASE | re.DOTALL,
)
_DEFAULT_SECONDS: Final = 7200.0
_LOWEST_PRIORITY: Final = 9
_SCHEMAS: Final = frozenset({"1.0", "1.1", "1.2", "1.3"})


class RouteError(Exception):
    """The edge hub's desired properties cannot be used; `code` is what it reports."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route."""

    name: str
    source: str
    upstream: bool
    module: str = ""
    input: str = ""
    priority: int = _LOWEST_PRIORITY
    seconds: float = _DEFAULT_SECONDS
    """Time to live of its messages; 0 means for ever."""

    def matches(self, path: str) -> bool:
        """Tell whether the route takes messages of a path such as /messages/modules/m/outputs/o."""
        source = self.source.rstrip("/")
        if source.endswith("*"):
            prefix = source[:-1].rstrip("/").lower()
            return path.lower() == prefix or path.lower().startswith(f"{prefix}/")
        return path.lower() == source.lower()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """The edge hub's settings."""

    version: int = 0
    routes: tuple[Route, ...] = ()


def parse_hub_config(desired: dict[str, Any]) -> HubConfig:
    """Return what `$edgeHub`'s desired properties say.

    Raises:
        RouteError: with the code to report.
    """
    schema = str(desired.get("schemaVersion", ""))
    if schema not in _SCHEMAS:
        raise RouteError(412, f"The edge hub's schema version {schema!r} is not supported")
    storage = desired.get("storeAndForwardConfiguration") or {}
    default = float(storage.get("timeToLiveSecs", _DEFAULT_SECONDS))
    routes = [
        _route(name, value, default)
        for name, value in sorted((desired.get("routes") or {}).items())
        if value
    ]
    return HubConfig(version=int(desired.get("$version", 0)), routes=tuple(routes))


def _route(name: str, value: Any, default_seconds: float) -> Route:
    settings = value if isinstance(value, dict) else {"route": value}
    text = str(settings.get("route", ""))
    found = _ROUTE.fullmatch(text)
    if not found:
        raise RouteError(400, f"route {name!r} cannot be read: {text!r}")
    if found["where"]:
        raise RouteError(400, f"route {name!r} has a condition, which the stand-in does not know")
    return Route(
        name=name,
        source=found["source"],
        upstream=bool(found["upstream"]),
        module=found["module"] or "",
        input=found["input"] or "",
        priority=int(settings.get("priority", _LOWEST_PRIORITY)),
        seconds=float(settings.get("timeToLiveSecs") or default_seconds),
    )
