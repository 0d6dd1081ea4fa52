"""A device that provisions itself: the topics `$dps/registrations/…` on one connection."""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import TYPE_CHECKING

import orjson

from kvedge.emulator import catalogue
from kvedge.emulator.mqtt import packets, wires

if TYPE_CHECKING:
    from kvedge.emulator.clientcerts import Chain
    from kvedge.emulator.provisioning import Provisioning
    from kvedge.emulator.records import Json

__all__ = ["is_registration", "serve"]

_IDLE_SECONDS = 120.0
_RETRY_SECONDS = 1
_ACCEPTED, _WRONG_ID, _NOT_AUTHORIZED = 0, 2, 5


def is_registration(connect: packets.Connect) -> bool:
    """Tell a provisioning client by its user name, `{idScope}/registrations/{id}/api-version=…`."""
    parts = connect.username.split("/")
    return len(parts) > 3 and parts[1] == "registrations"


async def serve(
    provisioning: Provisioning,
    wire: wires.Wire,
    connect: packets.Connect,
    chain: Chain | None,
) -> None:
    """Serve a provisioning client until it goes; raises Malformed."""
    scope, _, registration_id, *_ = connect.username.split("/")
    if connect.client_id != registration_id:
        wire.write(packets.connack(_WRONG_ID))
        return
    enrollment = provisioning.admitted(scope, registration_id, connect.password, chain)
    if enrollment is None:
        wire.write(packets.connack(_NOT_AUTHORIZED))
        return
    wire.write(packets.connack(_ACCEPTED))
    while True:
        async with asyncio.timeout(_IDLE_SECONDS):
            kind, flags, body = await wires.read_packet(wire)
        match kind:
            case packets.Kind.PUBLISH:
                message = packets.parse_publish(flags, body)
                if message.qos:
                    wire.write(packets.puback(message.packet_id))
                wire.write(
                    _answered(provisioning, registration_id, enrollment, message.topic, chain)
                )
            case packets.Kind.SUBSCRIBE:
                wanted = packets.parse_subscribe(flags, body)
                codes = [
                    min(qos, 1) if topic == "$dps/registrations/res/#" else 0x80
                    for topic, qos in wanted.filters
                ]
                wire.write(packets.suback(wanted.packet_id, codes))
            case packets.Kind.UNSUBSCRIBE:
                wire.write(packets.unsuback(packets.parse_unsubscribe(flags, body)[0]))
            case packets.Kind.PINGREQ:
                wire.write(bytes((packets.Kind.PINGRESP << 4, 0)))
            case packets.Kind.DISCONNECT:
                return
            case packets.Kind.PUBACK:
                continue
            case _:
                raise packets.Malformed(f"packet type {kind} is not expected here")


def _answered(
    provisioning: Provisioning,
    registration_id: str,
    enrollment: Json,
    topic: str,
    chain: Chain | None,
) -> bytes:
    path, _, query = topic.partition("?")
    fields = urllib.parse.parse_qs(query)
    request_id = fields.get("$rid", [""])[0]
    retry = ""
    try:
        match path:
            case "$dps/registrations/PUT/iotdps-register/":
                status, body = 202, provisioning.register(registration_id, enrollment, chain)
                retry = f"&retry-after={_RETRY_SECONDS}"
            case "$dps/registrations/GET/iotdps-get-operationstatus/":
                operation_id = fields.get("operationId", [""])[0]
                status, body = 200, provisioning.operation(registration_id, operation_id)
            case _:
                raise packets.Malformed("published to a topic that provisioning does not have")
    except catalogue.HubError as error:
        status = error.code.status
        body = {"errorCode": error.code.number, "message": error.text}
    return packets.publish(
        packets.Publish(
            topic=f"$dps/registrations/res/{status}/?$rid={request_id}{retry}",
            payload=orjson.dumps(body),
        )
    )
