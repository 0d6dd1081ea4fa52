"""Tells whether a part is ready: an HTTP answer, open ports, or a file that the part writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from typing import Self

import aiohttp

from kvedge.site.parts import Check

__all__ = ["Check", "Checker"]

_PATIENCE = aiohttp.ClientTimeout(total=5.0)


class Checker:
    """Runs checks; an async context manager."""

    def __init__(self) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # A kept connection would hide that the process behind it is a new one.
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def problem(self, check: Check, pid: int) -> str:
        """Return what still is in the way, or an empty string."""
        try:
            for target in check.listen:
                await _connect(target)
            if check.url:
                return await self._fetch(check)
        except (aiohttp.ClientError, OSError, TimeoutError) as cause:
            return str(cause) or type(cause).__name__
        if check.file:
            return _owner_problem(Path(check.file), pid)
        return ""

    async def _fetch(self, check: Check) -> str:
        assert self._session is not None
        async with self._session.get(check.url, ssl=self._context(check.ca)) as answer:
            text = await answer.text(errors="replace")
            if answer.status != 200:
                return f"{check.url} answers {answer.status}: {text[:200]}"
            if check.expect not in "".join(text.split()):
                return f"{check.url} says {text[:200]!r}"
        return ""

    def _context(self, authority: str) -> ssl.SSLContext | bool:
        if not authority:
            return False
        if authority not in self._contexts:
            self._contexts[authority] = ssl.create_default_context(cafile=authority)
        return self._contexts[authority]


async def _connect(target: str) -> None:
    address, _, port = target.rpartition(":")
    async with asyncio.timeout(2.0):
        _, writer = await asyncio.open_connection(address, int(port))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _owner_problem(path: Path, pid: int) -> str:
    try:
        owner = json.loads(path.read_bytes()).get("pid")
    except (OSError, ValueError):
        owner = None
    return "" if owner == pid else f"{path.name} is not written yet"
