"""Module logs through the edge agent's direct method GetModuleLogs.

(https://learn.microsoft.com/azure/iot-edge/how-to-retrieve-iot-edge-logs)
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import re
import time
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from kvedge.iothub import Hub
    from kvedge.node.provider import LogOptions

__all__ = ["stream"]

_FOLLOW_SECONDS = 2.0


async def stream(
    hub: Hub, devices: Sequence[str], module: str, options: LogOptions
) -> AsyncIterator[bytes]:
    """Yield a module's log; lines begin with the device's name if there are several.

    Raises:
        Unsupported: something is asked that edge agents do not keep.
        RemoteError: no device could be asked.
    """
    if options.previous:
        raise errors.Unsupported("previous", "the edge agent keeps no log of an earlier run")
    if not devices:
        raise errors.NotFound("read logs", status=404, details="the pod targets no device")
    left = options.limit_bytes
    since: str | None = None
    if options.since_seconds is not None:
        since = str(int(time.time()) - options.since_seconds)
    elif options.since_time:
        since = options.since_time
    tail = options.tail
    while True:
        asked = int(time.time())
        answers = await asyncio.gather(
            *(_fetch(hub, device, module, tail, since) for device in devices)
        )
        for device, text in zip(devices, answers, strict=True):
            data = _prefixed(text, device if len(devices) > 1 else "")
            if left is not None:
                data = data[:left]
                left -= len(data)
            if data:
                yield data
        if not options.follow or left == 0:
            return
        await asyncio.sleep(_FOLLOW_SECONDS)
        since, tail = str(asked), None


async def _fetch(hub: Hub, device: str, module: str, tail: int | None, since: str | None) -> str:
    wanted: dict[str, Any] = {}
    if tail is not None:
        wanted["tail"] = tail
    if since is not None:
        wanted["since"] = since
    payload = {
        "schemaVersion": "1.0",
        "items": [{"id": f"^{re.escape(module)}$", "filter": wanted}],
        "encoding": "none",
        "contentType": "text",
    }
    try:
        status, answer = await hub.invoke_method(
            device, "GetModuleLogs", payload, module_id="$edgeAgent"
        )
    except errors.RemoteError as error:
        return f"(no answer: {error.details or error.reason})\n"
    if status != 200:
        message = answer.get("message") if isinstance(answer, dict) else answer
        return f"(edge agent answered {status}: {message})\n"
    return "".join(_text(item) for item in answer or ())


def _text(item: dict[str, Any]) -> str:
    if item.get("payloadBytes"):
        raw = base64.b64decode(item["payloadBytes"])
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode(errors="replace")
    return str(item.get("payload") or "")


def _prefixed(text: str, device: str) -> bytes:
    if text and not text.endswith("\n"):
        text += "\n"
    if device:
        text = "".join(f"[{device}] {line}" for line in text.splitlines(keepends=True))
    return text.encode()
