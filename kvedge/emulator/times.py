"""The hub's spellings of time."""

from __future__ import annotations

import datetime
import time

__all__ = ["NEVER", "american", "now", "parse", "span", "stamp"]

NEVER = "0001-01-01T00:00:00Z"
"""How the service writes that something has not happened yet."""


def now() -> float:
    """Return seconds since 1970."""
    return time.time()


def stamp(moment: float | None = None) -> str:
    """Return an ISO time with seven digits of a second, as the service writes it."""
    seconds = now() if moment is None else moment
    whole = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{whole.microsecond:06d}0Z"


def parse(text: str) -> float:
    """Return the seconds since 1970 of an ISO time; raises ValueError."""
    moment = datetime.datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def american() -> str:
    """Return the time as tracking ids have it."""
    return datetime.datetime.now(datetime.UTC).strftime("%m/%d/%Y %H:%M:%S")


def span(seconds: float) -> str:
    """Return a duration as `hh:mm:ss`."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
