"""IoT Hub's topics: what a client may subscribe to and what a publish means; no I/O."""

from __future__ import annotations

import dataclasses
import urllib.parse

__all__ = [
    "DESIRED",
    "INPUTS",
    "MESSAGES",
    "METHODS",
    "RESPONSES",
    "MethodAnswer",
    "Report",
    "Telemetry",
    "TwinRequest",
    "desired_topic",
    "message_topic",
    "method_topic",
    "parse_published",
    "response_topic",
    "subscription",
]

METHODS = "methods"
DESIRED = "desired"
RESPONSES = "responses"
MESSAGES = "messages"
INPUTS = "inputs"

_FIXED = {
    "$iothub/methods/POST/#": METHODS,
    "$iothub/twin/PATCH/properties/desired/#": DESIRED,
    "$iothub/twin/res/#": RESPONSES,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """A message to the cloud."""

    device_id: str
    module_id: str
    properties: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TwinRequest:
    """The client wants its twin."""

    request_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The client changes its reported properties."""

    request_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodAnswer:
    """The client answers a direct method."""

    request_id: str
    status: int


def subscription(topic: str, device_id: str, module_id: str) -> str:
    """Return what a subscription gives, "" if the client may not have it."""
    if topic in _FIXED:
        return _FIXED[topic]
    parts = [urllib.parse.unquote(part) for part in topic.split("/")]
    if not module_id and parts == ["devices", device_id, "messages", "devicebound", "#"]:
        return MESSAGES
    if module_id and parts[:5] == ["devices", device_id, "modules", module_id, "inputs"]:
        return INPUTS
    return ""


def parse_published(topic: str) -> Telemetry | TwinRequest | Report | MethodAnswer | None:
    """Return what a publish means, None if IoT Hub has no such topic."""
    path, _, query = topic.partition("?")
    parts = path.split("/")
    match parts:
        case ["$iothub", "twin", "GET", ""]:
            return TwinRequest(request_id=_request_id(query))
        case ["$iothub", "twin", "PATCH", "properties", "reported", ""]:
            return Report(request_id=_request_id(query))
        case ["$iothub", "methods", "res", status, ""] if status.isascii() and (
            status.lstrip("-").isdigit() and len(status) < 10
        ):
            return MethodAnswer(request_id=_request_id(query), status=int(status))
    parts = topic.split("/")
    match parts:
        case ["devices", device, "messages", "events", *rest] if len(rest) < 2:
            return _telemetry(device, "", rest)
        case ["devices", device, "modules", module, "messages", "events", *rest] if len(rest) < 2:
            return _telemetry(device, module, rest)
    return None


def response_topic(status: int, request_id: str, version: int | None = None) -> str:
    """Return the topic of the answer to a twin request."""
    topic = f"$iothub/twin/res/{status}/?$rid={_quote(request_id)}"
    return topic if version is None else f"{topic}&$version={version}"


def desired_topic(version: int) -> str:
    """Return the topic that tells changed desired properties."""
    return f"$iothub/twin/PATCH/properties/desired/?$version={version}"


def method_topic(name: str, request_id: str) -> str:
    """Return the topic that calls a method."""
    return f"$iothub/methods/POST/{_quote(name)}/?$rid={request_id}"


def message_topic(device_id: str, properties: dict[str, str]) -> str:
    """Return the topic of a message to a device."""
    bag = "&".join(f"{_quote(name)}={_quote(value)}" for name, value in properties.items())
    return f"devices/{device_id}/messages/devicebound/{bag}"


def _telemetry(device: str, module: str, rest: list[str]) -> Telemetry:
    properties: dict[str, str] = {}
    for pair in rest[0].lstrip("?").split("&") if rest else ():
        name, _, value = pair.partition("=")
        if name:
            properties[urllib.parse.unquote(name)] = urllib.parse.unquote(value)
    return Telemetry(
        device_id=urllib.parse.unquote(device),
        module_id=urllib.parse.unquote(module),
        properties=properties,
    )


def _request_id(query: str) -> str:
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name == "$rid":
            return urllib.parse.unquote(value)
    return ""


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")
