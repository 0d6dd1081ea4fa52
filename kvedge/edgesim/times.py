"""Time stamps as the engine and the twin write them."""

from __future__ import annotations

import datetime
import re
import time
from typing import Final

__all__ = ["NEVER", "boot_time", "moment_text", "now_text", "seconds", "twin_text"]

NEVER: Final = "0001-01-01T00:00:00Z"
_RFC3339: Final = re.compile(
    r"(?P<head>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(\.(?P<fraction>\d+))?"
    r"(?P<zone>[zZ]|[+-]\d\d:\d\d)?"
)
_SPAN: Final = re.compile(
    r"(\d+)\s*(d|days?|h|hours?|hrs?|m|min|mins|minutes?|s|sec|secs|seconds?)\b"
)
_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds(text: str) -> float:
    """Return an RFC 3339 time of any precision in seconds since the epoch, 0.0 for never.

    Raises:
        ValueError: the text is no such time.
    """
    if not text or text.startswith("0001-"):
        return 0.0
    found = _RFC3339.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no RFC 3339 time")
    zone = found["zone"] or "Z"
    moment = datetime.datetime.fromisoformat(
        found["head"].replace(" ", "T") + ("+00:00" if zone in "zZ" else zone)
    )
    return moment.timestamp() + float(f"0.{found['fraction'] or 0}")


def twin_text(text: str) -> str:
    """Return an engine's time with the seven decimals that the real agent writes."""
    moment = seconds(text)
    return now_text(moment) if moment else NEVER


def now_text(moment: float | None = None) -> str:
    """Return a time, by default now, as the twin writes it."""
    value = time.time() if moment is None else moment
    parts = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(value))
    return f"{parts}.{int(value % 1 * 10_000_000):07}Z"


def boot_time() -> float:
    """Return when the machine started, in seconds since the epoch."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def moment_text(text: str, *, now: float) -> float | None:
    """Return a filter's moment: RFC 3339, seconds since the epoch, or a span back such as `2h 5m`.

    Raises:
        ValueError: the text is none of these.
    """
    text = text.strip()
    if not text:
        return None
    if text.isdigit():
        return float(text)
    spans = _SPAN.findall(text)
    if spans and not _SPAN.sub("", text).strip():
        return now - sum(int(number) * _UNITS[unit[0].lower()] for number, unit in spans)
    return seconds(text)
