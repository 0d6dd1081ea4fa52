"""The direct methods of `$edgeAgent`: ping, RestartModule, GetModuleLogs.

Answers and codes are the real agent's: 400 for arguments and unknown commands, 500 for the rest.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MAX_LOG_BYTES", "AgentMethods"]

MAX_LOG_BYTES: Final = 127_000
_SYSLOG_LEVEL: Final = re.compile(r"^<(\d)>")


class _BadRequest(Exception):
    """The caller's payload is wrong."""


class AgentMethods:
    """Answers direct methods."""

    def __init__(
        self,
        *,
        modules: Callable[[], Iterable[str]],
        read_logs: Callable[..., Iterable[bytes]],
        restart: Callable[[str], None],
    ) -> None:
        """Make the table of methods.

        Args:
            modules: names of all modules, with edgeAgent and edgeHub.
            read_logs: yields a module's output; takes name, tail, since, until.
            restart: restarts a module; LookupError when it cannot.
        """
        self._modules = modules
        self._read_logs = read_logs
        self._restart = restart
        self._handlers: dict[str, Callable[[dict[str, Any] | None], Any]] = {
            "ping": lambda _: None,
            "RestartModule": self._restart_module,
            "GetModuleLogs": self._get_logs,
        }

    def call(self, name: str, payload: Any) -> tuple[int, Any]:
        """Return status and payload of a method; never raises."""
        known = {key.lower(): handler for key, handler in self._handlers.items()}
        handler = known.get(name.lower())
        if handler is None:
            supported = ",".join(self._handlers)
            return 400, {
                "message": f"Command '{name}' not found. The supported commands are - {supported}"
            }
        try:
            return 200, handler(_object(payload))
        except _BadRequest as error:
            return 400, {"message": str(error)}
        except Exception as error:  # noqa: BLE001 - a method call must be answered
            return 500, {"message": str(error)}

    def _restart_module(self, payload: dict[str, Any] | None) -> None:
        request = _checked(payload)
        name = request.get("id")
        if not isinstance(name, str) or not name:
            raise _BadRequest("Request payload has no id")
        self._restart(name)

    def _get_logs(self, payload: dict[str, Any] | None) -> list[dict[str, Any]]:
        request = _checked(payload)
        items = request.get("items")
        if isinstance(items, dict):
            items = [items]
        if not isinstance(items, list) or not items:
            raise _BadRequest("Request payload has no items")
        encoding = _choice(request, "encoding", {"none", "gzip"}, "none")
        content_type = _choice(request, "contentType", {"text", "json"}, "text")
        wanted: dict[str, dict[str, Any]] = {}
        for item in items:
            if not isinstance(item, dict) or not isinstance(item.get("id"), str):
                raise _BadRequest("each item needs an id")
            pattern = _pattern(item["id"])
            for name in self._modules():
                if pattern.search(name):
                    wanted.setdefault(name, item.get("filter") or {})
        return [
            self._one(name, filters, encoding, content_type) for name, filters in wanted.items()
        ]

    def _one(
        self, name: str, filters: dict[str, Any], encoding: str, content_type: str
    ) -> dict[str, Any]:
        now = time.time()
        try:
            tail = int(filters["tail"]) if filters.get("tail") is not None else None
            since = times.moment_text(str(filters.get("since") or ""), now=now)
            until = times.moment_text(str(filters.get("until") or ""), now=now)
            level = int(filters["loglevel"]) if filters.get("loglevel") is not None else None
        except ValueError as error:
            raise _BadRequest(str(error)) from error
        pattern = _pattern(str(filters["regex"])) if filters.get("regex") else None
        raw = b"".join(self._read_logs(name, tail=tail, since=since, until=until))
        lines = raw.decode("utf-8", "replace").splitlines(keepends=True)
        kept = [line for line in lines if _passes(line, level, pattern)]
        text = _as_json(name, kept) if content_type == "json" else "".join(kept)
        if encoding == "gzip":
            packed = gzip.compress(text.encode())
            if len(packed) > MAX_LOG_BYTES:
                return {"id": name, "payload": _too_large(len(packed))}
            return {"id": name, "payloadBytes": base64.b64encode(packed).decode("ascii")}
        size = len(text.encode())
        return {"id": name, "payload": _too_large(size) if size > MAX_LOG_BYTES else text}


def _object(payload: Any) -> dict[str, Any] | None:
    if isinstance(payload, str):
        try:
            payload = json.loads(payload) if payload.strip() else None
        except ValueError:
            return None
    return payload if isinstance(payload, dict) else None


def _checked(payload: dict[str, Any] | None) -> dict[str, Any]:
    if payload is None:
        raise _BadRequest("Request payload not found")
    version = str(payload.get("schemaVersion", ""))
    if version.partition(".")[0] != "1":
        raise _BadRequest(f"schema version {version!r} does not match expected 1.0")
    return payload


def _choice(request: dict[str, Any], key: str, allowed: set[str], default: str) -> str:
    value = str(request.get(key) or default).lower()
    if value not in allowed:
        raise _BadRequest(f"{key} {value!r} is not one of {', '.join(sorted(allowed))}")
    return value


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise _BadRequest(f"{text!r} is no regular expression: {error}") from error


def _passes(line: str, level: int | None, pattern: re.Pattern[str] | None) -> bool:
    if level is not None:
        found = _SYSLOG_LEVEL.match(line)
        if (int(found[1]) if found else 6) != level:
            return False
    return pattern is None or bool(pattern.search(line))


def _as_json(name: str, lines: list[str]) -> str:
    entries = []
    for line in lines:
        found = _SYSLOG_LEVEL.match(line)
        text = line.rstrip("\n")
        entries.append(
            {
                "iothub": "",
                "device": "",
                "id": name,
                "stream": "",
                "loglevel": int(found[1]) if found else 6,
                "text": text,
                "timestamp": None,
            }
        )
    return json.dumps(entries)


def _too_large(size: int) -> str:
    return (
        "The payload is too large for a direct method."
        f" GetModuleLogs supports up to {MAX_LOG_BYTES} bytes of logs;"
        f" the request returned {size} bytes. Use 'tail', 'since' and 'until' to get less."
    )
