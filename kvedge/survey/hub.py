"""Checks of an IoT Hub: reachable, clock, each right that kvedge uses, room for deployments.

Rights to write are tried on a device that does not exist: who may is told that it is not found, who
may not is refused, and nothing changes.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from typing import TYPE_CHECKING

import aiohttp

from kvedge import errors
from kvedge.survey import clocks
from kvedge.survey.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from kvedge import iothub

__all__ = ["check_hub"]

_DEPLOYMENTS = 100
"""A hub takes no more (10 in the free tier).
(https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling)"""
_CROWDED = 80
_AGAIN = "run it again; if it stays, look at the hub's metrics for throttling and errors"


async def check_hub(hub: iothub.Hub, *, ca_file: Path | None = None) -> list[Finding]:
    """Check the hub and what the connection string's policy may do there."""
    try:
        skew = await _skew(hub.host, ca_file)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return [
            Finding(
                check="hub", state="fail", found=f"{hub.host!r} does not answer: {error}",
                fix="is the name in the connection string right, and port 443 open to it?",
            )
        ]  # fmt: skip
    findings = [
        Finding(check="hub", state="ok", found=hub.host),
        clocks.finding("clock of the hub", skew),
    ]
    nobody = f"kvedge-doctor-{secrets.token_hex(6)}"
    tried: tuple[tuple[str, str, Awaitable[object]], ...] = (
        ("read identities", "RegistryRead", hub.statistics()),
        ("write identities", "RegistryWrite", hub.delete_device(nobody)),
        ("read twins", "ServiceConnect", hub.get_twin(nobody)),
        ("write twins", "ServiceConnect", hub.update_twin(nobody, {"tags": {}})),
        ("call methods", "ServiceConnect", hub.invoke_method(nobody, "ping")),
    )
    outcomes = await asyncio.gather(*(_tried(attempt) for _, _, attempt in tried))
    for (what, right, _), error in zip(tried, outcomes, strict=True):
        findings.append(_right(what, right, error))
    findings.append(await _room(hub))
    return findings


async def _tried(attempt: Awaitable[object]) -> errors.RemoteError | None:
    try:
        await attempt
    except errors.NotFound:
        return None
    except errors.RemoteError as error:
        return error
    return None


def _right(what: str, right: str, error: errors.RemoteError | None) -> Finding:
    check = f"hub right to {what}"
    if error is None:
        return Finding(check=check, state="ok", found="allowed")
    if isinstance(error, errors.Unauthorized):
        return Finding(
            check=check, state="fail", found=f"the policy lacks {right}",
            fix=f"use a policy with {right}: az iot hub policy create --hub-name HUB --name kvedge "
            "--permissions RegistryRead RegistryWrite ServiceConnect",
        )  # fmt: skip
    return Finding(check=check, state="fail", found=error.message, fix=error.hint or _AGAIN)


async def _room(hub: iothub.Hub) -> Finding:
    check = "hub deployments"
    try:
        count = len(await hub.configurations())
    except errors.RemoteError as error:
        return Finding(check=check, state="fail", found=error.message, fix=error.hint or _AGAIN)
    found = f"{count} of {_DEPLOYMENTS}"
    if count < _CROWDED:
        return Finding(check=check, state="ok", found=found)
    return Finding(
        check=check, state="warn" if count < _DEPLOYMENTS else "fail", found=found,
        fix="remove deployments that nobody needs: az iot edge deployment list; let pods share one "
        "(docs/reference/pods.md)",
    )  # fmt: skip


async def _skew(host: str, ca_file: Path | None) -> float:
    trust = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    async with aiohttp.ClientSession() as session:
        return await clocks.skew(session, f"https://{host}/", ssl=trust)
