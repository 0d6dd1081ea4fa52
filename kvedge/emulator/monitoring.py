"""Reading telemetry out of an emulator, as Event Hubs clients do from the service."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import aiohttp

from kvedge import errors
from kvedge.emulator import tokens
from kvedge.emulator.rest.serving import EMULATOR_HEADER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kvedge.emulator.records import Json

__all__ = ["connection_parts", "events"]

_WAIT_SECONDS = 25


async def events(
    connection_string: str, *, ca: Path | None, after: int = -1, device_id: str = ""
) -> AsyncIterator[Json]:
    """Yield messages as they arrive; `after=0` begins with the oldest, -1 with the next one."""
    host, policy, key = connection_parts(connection_string)
    context = ssl.create_default_context(cafile=ca)
    async with aiohttp.ClientSession() as session:
        while True:
            token = tokens.issue(host, key, expiry=int(time.time()) + 3600, policy=policy)
            query = {"after": str(after), "wait": str(_WAIT_SECONDS)}
            try:
                async with session.get(
                    f"https://{host}/kvedge/v1/events",
                    params=query,
                    headers={"Authorization": token},
                    ssl=context,
                ) as response:
                    if EMULATOR_HEADER not in response.headers:
                        raise errors.RemoteError(
                            f"reading events from {host!r}",
                            status=response.status,
                            reason="not the emulator",
                            hint="a real hub's messages are read with its Event Hubs endpoint",
                        )
                    if response.status != 200:
                        raise errors.RemoteError(
                            f"reading events from {host!r}",
                            status=response.status,
                            reason=response.headers.get("iothub-errorcode", ""),
                        )
                    answer = await response.json()
            except aiohttp.ClientError as cause:
                raise errors.RemoteError(
                    f"reading events from {host!r}",
                    details=str(cause),
                    hint="is the hub up, and is its CA given with --ca?",
                ) from cause
            after = answer["next"]
            for event in answer["events"]:
                if not device_id or event["deviceId"] == device_id:
                    yield event


def connection_parts(connection_string: str) -> tuple[str, str, str]:
    """Return host, policy and key of a service connection string; raises SpecError."""
    fields: dict[str, str] = {}
    for part in connection_string.strip().split(";"):
        name, _, value = part.partition("=")
        fields[name] = value
    try:
        return fields["HostName"], fields["SharedAccessKeyName"], fields["SharedAccessKey"]
    except KeyError as missing:
        raise errors.SpecError(
            "hub connection string",
            [errors.Problem(path=str(missing.args[0]), message="is missing")],
        ) from missing
