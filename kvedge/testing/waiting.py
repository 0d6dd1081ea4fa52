"""Waiting for a fact instead of sleeping: `until` for functions, `until_async` in an event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["until", "until_async"]

_SECONDS = 30.0
_NOT_YET = (AssertionError, LookupError, ValueError)
"""What a fact raises when what it looks at is not there yet."""


def until(
    fact: Callable[[], Any], what: str = "", *, seconds: float = _SECONDS, pause: float = 0.1
) -> Any:
    """Call a fact until it gives something true, and return that.

    A fact that raises AssertionError, LookupError or ValueError is not true yet.

    Args:
        what: names the fact in the failure.
        seconds: the deadline.
        pause: seconds between two calls.

    Raises:
        AssertionError: it was not true in time; tells what was seen last.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            last = fact()
        except _NOT_YET as error:
            last = error
        else:
            if last:
                return last
        assert time.monotonic() < end, _failure(fact, what, seconds, last)
        time.sleep(pause)


async def until_async(
    fact: Callable[[], Any], what: str = "", *, seconds: float = _SECONDS, pause: float = 0.02
) -> Any:
    """Do as `until`, for a function or a coroutine function, without blocking the loop."""
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    last = fact()
                    if inspect.isawaitable(last):
                        last = await last
                except _NOT_YET as error:
                    last = error
                else:
                    if last:
                        return last
                await asyncio.sleep(pause)
    except TimeoutError as cause:
        raise AssertionError(_failure(fact, what, seconds, last)) from cause


def _failure(fact: Callable[[], Any], what: str, seconds: float, last: Any) -> str:
    return f"not within {seconds:g} s: {what or fact}; last seen: {last!r}"
