"""How far a server's clock is from ours, by the Date header of its answer (RFC 9110)."""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING, Any

from kvedge.survey.findings import Finding

if TYPE_CHECKING:
    import aiohttp

__all__ = ["finding", "skew"]

_WARN_SECONDS = 5
_FAIL_SECONDS = 60


async def skew(session: aiohttp.ClientSession, url: str, **options: Any) -> float:
    """Return the seconds that the server's clock is ahead of ours; 0 if it tells no time."""
    import aiohttp

    before = time.time()
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=10), **options) as answer:
        date = answer.headers.get("Date", "")
        await answer.read()
    after = time.time()
    told = email.utils.parsedate_to_datetime(date).timestamp() if date else after
    # The header has whole seconds and was written at some time between request and answer.
    return 0.0 if before - 1 <= told <= after else told - (before + after) / 2


def finding(check: str, skew_seconds: float) -> Finding:
    """Judge a skew: 5 s are told, from 60 s on tokens are refused."""
    size = abs(skew_seconds)
    if size < _WARN_SECONDS:
        return Finding(check=check, state="ok", found=f"within {_WARN_SECONDS} s of ours")
    side = "ahead of" if skew_seconds > 0 else "behind"
    return Finding(
        check=check,
        state="fail" if size >= _FAIL_SECONDS else "warn",
        found=f"{size:.0f} s {side} this machine's",
        fix="set both by NTP (timedatectl set-ntp true): tokens and certificates are refused "
        "outside their time",
    )
