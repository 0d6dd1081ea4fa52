"""Direct methods: from the service to a connected device or module, and back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from kvedge.emulator import catalogue

if TYPE_CHECKING:
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.records import Json

__all__ = ["invoke"]

_PAYLOAD_BYTES = 128 * 1024


async def invoke(presence: Presence, key: str, body: Any) -> Json:
    """Call a method and return `{"status", "payload"}`; raises HubError as the service answers."""
    if (
        not isinstance(body, dict)
        or not isinstance(name := body.get("methodName"), str)
        or not name
    ):
        raise catalogue.HubError("ArgumentInvalid", "'methodName' is missing.")
    response = _seconds(body, "responseTimeoutInSeconds", default=30, lowest=5)
    connect = _seconds(body, "connectTimeoutInSeconds", default=0, lowest=0)
    if connect > response:
        raise catalogue.HubError(
            "ArgumentInvalid", "connectTimeoutInSeconds must not exceed responseTimeoutInSeconds."
        )
    payload = body.get("payload")
    if len(orjson.dumps(payload)) > _PAYLOAD_BYTES:
        raise catalogue.HubError("MessageTooLarge", "The payload is larger than 128 KB.")
    session = presence.session(key)
    if session is None or not session.takes_methods():
        session = await presence.with_methods(key, connect) if connect else None
    if session is None:
        raise catalogue.method_error("DeviceNotOnline", timeout_seconds=connect)
    try:
        async with asyncio.timeout(response):
            status, answer = await session.invoke(name, payload)
    except TimeoutError as error:
        raise catalogue.method_error(
            "GatewayTimeout",
            timeout_seconds=response,
            text="Timed out waiting for the response from device.",
        ) from error
    except ConnectionError as error:
        raise catalogue.method_error("DeviceNotOnline", timeout_seconds=connect) from error
    return {"status": status, "payload": answer}


def _seconds(body: Json, name: str, *, default: int, lowest: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 300:
        raise catalogue.HubError("ArgumentInvalid", f"{name} must lie between {lowest} and 300.")
    return value
