"""Readiness and liveness probes, run as the kubelet runs them.

https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kvedge.site.host.monitor import GuestAgent

__all__ = ["AgentTarget", "Probe", "Target", "parse_probe", "passes", "watch_probe"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe's times in seconds, its thresholds and what it looks at."""

    delay: float
    period: float
    timeout: float
    successes: int
    failures: int
    handler: Mapping[str, Any]
    """One of httpGet, tcpSocket, exec, guestAgentPing."""


class Target(Protocol):
    """What is probed."""

    address: str
    ports: Mapping[str, int]
    """Port numbers by name."""

    async def run(self, argv: Sequence[str], seconds: float) -> bool:
        """Run a command inside; whether it ended with 0."""
        ...

    async def ping(self, seconds: float) -> bool:
        """Whether the guest agent answers."""
        ...


def parse_probe(raw: Mapping[str, Any] | None) -> Probe | None:
    """Return the probe of a container or a VMI, None when it has none."""
    if not raw:
        return None
    handlers = ("httpGet", "tcpSocket", "exec", "guestAgentPing")
    return Probe(
        delay=raw.get("initialDelaySeconds") or 0,
        period=raw.get("periodSeconds") or 10,
        timeout=raw.get("timeoutSeconds") or 1,
        successes=raw.get("successThreshold") or 1,
        failures=raw.get("failureThreshold") or 3,
        handler={key: raw[key] for key in handlers if raw.get(key) is not None},
    )


async def watch_probe(
    probe: Probe, target: Target, on_result: Callable[[bool], None], *, good: bool = False
) -> None:
    """Probe for ever; call `on_result` when the thresholds turn the result around.

    Args:
        good: the result to begin from, which is not told.
    """
    await asyncio.sleep(probe.delay)
    row = 0
    while True:
        if await passes(probe, target) == good:
            row = 0
        else:
            row += 1
            if row >= (probe.failures if good else probe.successes):
                good, row = not good, 0
                on_result(good)
        await asyncio.sleep(probe.period)


async def passes(probe: Probe, target: Target) -> bool:
    """Run the probe once."""
    try:
        async with asyncio.timeout(probe.timeout):
            return await _once(probe, target)
    except (TimeoutError, OSError, aiohttp.ClientError, errors.KvedgeError):
        return False


async def _once(probe: Probe, target: Target) -> bool:
    kind, detail = next(iter(probe.handler.items()), ("", {}))
    if kind == "guestAgentPing":
        return await target.ping(probe.timeout)
    if kind == "exec":
        return await target.run(detail.get("command") or (), probe.timeout)
    if kind == "tcpSocket":
        _, writer = await asyncio.open_connection(
            detail.get("host") or target.address, _port(detail["port"], target)
        )
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True
    if kind == "httpGet":
        return await _http(detail, target)
    return False


async def _http(detail: Mapping[str, Any], target: Target) -> bool:
    scheme = (detail.get("scheme") or "HTTP").lower()
    host = detail.get("host") or target.address
    path = "/" + (detail.get("path") or "/").lstrip("/")
    url = f"{scheme}://{host}:{_port(detail['port'], target)}{path}"
    headers = {item["name"]: item["value"] for item in detail.get("httpHeaders") or ()}
    # The kubelet does not verify certificates of probes either.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.get(url, headers=headers, allow_redirects=False) as answer,
    ):
        return 200 <= answer.status < 400


def _port(port: str | int, target: Target) -> int:
    if isinstance(port, int) or port.isdigit():
        return int(port)
    found = target.ports.get(port)
    if found is None:
        raise errors.SiteError(f"probe names port {port!r}, which is not declared")
    return found


@dataclasses.dataclass(slots=True, kw_only=True)
class AgentTarget:
    """A guest, reached at its VM's address and through its agent."""

    address: str
    ports: Mapping[str, int]
    agent: GuestAgent

    async def ping(self, seconds: float) -> bool:
        """Whether the guest agent answers."""
        await self.agent.command("guest-ping", seconds)
        return True

    async def run(self, argv: Sequence[str], seconds: float) -> bool:
        """Run a command in the guest."""
        begun = await self.agent.command(
            "guest-exec", seconds, path=argv[0], arg=list(argv[1:]), **{"capture-output": False}
        )
        while True:
            state = await self.agent.command("guest-exec-status", seconds, pid=begun["pid"])
            if state["exited"]:
                return state.get("exitcode") == 0
            await asyncio.sleep(0.1)
