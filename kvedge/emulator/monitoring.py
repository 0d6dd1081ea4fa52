"""Calling an emulator's own routes: telemetry, as Event Hubs clients read it, and the rest."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from kvedge import errors
from kvedge.emulator import tokens
from kvedge.emulator.rest.serving import EMULATOR_HEADER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kvedge.emulator.records import Json

__all__ = ["ask", "connection_parts", "events"]

_WAIT_SECONDS = 25


async def events(
    connection_string: str, *, ca: Path | None, after: int = -1, device_id: str = ""
) -> AsyncIterator[Json]:
    """Yield messages as they arrive; `after=0` begins with the oldest, -1 with the next one."""
    while True:
        path = f"events?after={after}&wait={_WAIT_SECONDS}"
        answer = await ask(connection_string, "GET", path, ca=ca)
        after = answer["next"]
        for event in answer["events"]:
            if not device_id or event["deviceId"] == device_id:
                yield event


async def ask(
    connection_string: str, method: str, path: str, *, ca: Path | None, body: Any = None
) -> Any:
    """Call one of the emulator's own routes below /kvedge/v1/; raises RemoteError."""
    host, policy, key = connection_parts(connection_string)
    attempt = f"asking the hub {host!r} for {path.partition('?')[0]}"
    context = ssl.create_default_context(cafile=ca)
    token = tokens.issue(host, key, expiry=int(time.time()) + 3600, policy=policy)
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method,
                f"https://{host}/kvedge/v1/{path}",
                json=body,
                headers={"Authorization": token},
                ssl=context,
            ) as response,
        ):
            if EMULATOR_HEADER not in response.headers:
                raise errors.RemoteError(
                    attempt,
                    status=response.status,
                    reason="not the emulator",
                    hint="a real hub is read with az iot hub",
                )
            answer = await response.json()
            if response.status != 200:
                raise errors.RemoteError(
                    attempt,
                    status=response.status,
                    reason=response.headers.get("iothub-errorcode", ""),
                    details=str(answer.get("Message", "")),
                )
            return answer
    except aiohttp.ClientError as cause:
        raise errors.RemoteError(
            attempt, details=str(cause), hint="is the hub up, and is its CA given with --ca?"
        ) from cause


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
