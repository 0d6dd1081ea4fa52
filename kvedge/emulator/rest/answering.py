"""What handlers share: reading a request and packing an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from kvedge.emulator import catalogue

if TYPE_CHECKING:
    from kvedge.emulator.records import Json

__all__ = ["answer", "body_of", "ids", "number", "tagged"]


def answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON response."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )


def tagged(body: Json, *, status: int = 200) -> web.Response:
    """Return a JSON response with the body's own etag as its header."""
    return answer(body, status=status, headers={"ETag": f'"{body["etag"]}"'})


def ids(request: web.Request) -> tuple[str, str]:
    """Return the device and the module (or "") of the address."""
    return request.match_info["device"], request.match_info.get("module", "")


def number(request: web.Request, name: str, default: int) -> int:
    """Return a number of the address's query; raises HubError."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.lstrip("-").isdigit() and len(text) < 19):
        raise catalogue.HubError("ArgumentInvalid", f"{name!r} must be a number.")
    return int(text)


async def body_of(request: web.Request) -> Any:
    """Return the request's JSON; raises HubError."""
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise catalogue.HubError("IotHubFormatError", "The body is not JSON.") from error
