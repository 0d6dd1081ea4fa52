"""One connection of a device or module, from CONNECT to its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import urllib.parse
from typing import TYPE_CHECKING, Any

import orjson

from kvedge.emulator import catalogue, patching, records, times
from kvedge.emulator.mqtt import packets, registering, topics, wires

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.emulator.access import Access
    from kvedge.emulator.clientcerts import Chain
    from kvedge.emulator.messaging import Commands, Telemetry
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.provisioning import Provisioning
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Services", "Session"]

_LOG = logging.getLogger(__name__)
_KEEP_ALIVE_CAP = 1767.0
_UNSENT_BYTES = 4 * 1024 * 1024
_ANSWER_BYTES = 128 * 1024
_LONGEST_SESSION = 365 * 86400.0
_ACCEPTED, _WRONG_LEVEL, _WRONG_ID, _UNAVAILABLE, _NOT_AUTHORIZED = 0, 1, 2, 3, 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What sessions need of the hub."""

    store: Store
    access: Access
    presence: Presence
    twins: Twins
    telemetry: Telemetry
    commands: Commands
    provisioning: Provisioning
    takes_connection: Callable[[], bool]
    """Tells whether one more client may connect now, and counts it."""


class _Closed(Exception):
    """The hub ends the connection; the message says why."""


class Session:
    """The hub's end of one MQTT connection; implements `presence.Session`."""

    def __init__(self, services: Services, wire: wires.Wire, chain: Chain | None) -> None:
        """Serve a connection whose client has shown these certificates, or none."""
        self._hub = services
        self._wire = wire
        self._chain = chain
        self._key = ""
        self._device_id = ""
        self._module_id = ""
        self._clean = True
        self._subscribed: dict[str, int] = {}
        self._calls: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._call_ids = itertools.count(1)
        self._unconfirmed: dict[int, int] = {}
        self._packet_ids = itertools.cycle(range(1, 65536))
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    async def run(self, patience_seconds: float) -> None:
        """Serve the connection until either side ends it; CONNECT must come in time."""
        will: packets.Publish | None = None
        try:
            async with asyncio.timeout(patience_seconds):
                kind, flags, body = await wires.read_packet(self._wire)
            connect = packets.parse_connect(kind, flags, body)
            if registering.is_registration(connect):
                await registering.serve(self._hub.provisioning, self._wire, connect, self._chain)
                return
            will = self._accept(connect)
            limit = connect.keep_alive * 1.5 or _KEEP_ALIVE_CAP
            while True:
                async with asyncio.timeout(min(limit, _KEEP_ALIVE_CAP)):
                    kind, flags, body = await wires.read_packet(self._wire)
                if kind == packets.Kind.DISCONNECT:
                    will = None
                    break
                self._handle(kind, flags, body)
        except (packets.Malformed, _Closed) as reason:
            _LOG.info("connection of %r closed: %s", self._key or "?", reason)
        except TimeoutError:
            _LOG.info("connection of %r closed: nothing heard in time", self._key or "?")
        except (asyncio.IncompleteReadError, OSError):
            _LOG.debug("connection of %r lost", self._key or "?")
        finally:
            self._end(will)

    def close(self, reason: str) -> None:
        """End the connection from the hub's side."""
        _LOG.info("connection of %r closed: %s", self._key, reason)
        self._wire.close()

    def takes_methods(self) -> bool:
        """Tell whether the client has subscribed to direct methods."""
        return topics.METHODS in self._subscribed

    def notify_desired(self, patch: records.Json) -> None:
        """Send changed desired properties if the client has subscribed to them."""
        if topics.DESIRED in self._subscribed:
            self._publish(topics.desired_topic(patch["$version"]), orjson.dumps(patch))

    async def invoke(self, name: str, payload: Any) -> tuple[int, Any]:
        """Call a method; raises ConnectionError if the connection ends first."""
        call_id = f"{next(self._call_ids):x}"
        call: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = call
        try:
            self._publish(topics.method_topic(name, call_id), orjson.dumps(payload))
            return await call
        finally:
            self._calls.pop(call_id, None)

    def deliver(self, message: records.Message) -> bool:
        """Send a cloud-to-device message if the client has subscribed to them."""
        qos = self._subscribed.get(topics.MESSAGES)
        if qos is None:
            return False
        system = {"$.to": f"/devices/{self._device_id}/messages/devicebound"}
        topic = topics.message_topic(self._device_id, system | message.properties)
        if qos == 0:
            self._publish(topic, message.payload)
            self._hub.commands.complete(message.sequence)
            return True
        packet_id = next(number for number in self._packet_ids if number not in self._unconfirmed)
        self._unconfirmed[packet_id] = message.sequence
        self._wire.write(
            packets.publish(
                packets.Publish(topic=topic, payload=message.payload, qos=1, packet_id=packet_id)
            )
        )
        return True

    def _accept(self, connect: packets.Connect) -> packets.Publish | None:
        """Answer CONNECT; returns the will."""
        if connect.level != 4:
            self._wire.write(packets.connack(_WRONG_LEVEL))
            raise _Closed("not MQTT 3.1.1")
        host, _, rest = connect.username.partition("/")
        client_id, _, query = rest.partition("/?")
        device_id, slash, module_id = client_id.partition("/")
        if not self._hub.access.is_audience(host) or "api-version=" not in query:
            self._wire.write(packets.connack(_NOT_AUTHORIZED))
            raise _Closed("the user name is not one of this hub's")
        if client_id != connect.client_id or (slash and not module_id) or "/" in module_id:
            self._wire.write(packets.connack(_WRONG_ID))
            raise _Closed("client id and user name differ")
        key = records.key_of(device_id, module_id)
        if connect.password:
            expiry = self._hub.access.device_expiry(key, connect.password)
        else:
            expiry = self._hub.access.certificate_expiry(key, self._chain)
        if expiry is None:
            self._wire.write(packets.connack(_NOT_AUTHORIZED))
            raise _Closed("the token or certificate is missing, wrong or expired")
        if not self._hub.takes_connection():
            self._wire.write(packets.connack(_UNAVAILABLE))
            raise _Closed("too many connections a second for the hub's tier")
        self._key, self._device_id, self._module_id = key, device_id, module_id
        self._clean = connect.clean
        stored = f"subscriptions/{key}"
        present = stored in self._hub.store.values and not connect.clean
        if present:
            self._subscribed = dict(self._hub.store.values[stored])
        elif stored in self._hub.store.values:
            with self._hub.store.transaction() as transaction:
                transaction.delete("value", stored)
        self._timer = asyncio.get_running_loop().call_later(
            min(expiry - times.now(), _LONGEST_SESSION), self.close, "its credentials expired"
        )
        model = urllib.parse.parse_qs(query).get("model-id", [""])[0]
        self._hub.twins.set_model(key, model)
        self._wire.write(packets.connack(_ACCEPTED, session_present=present))
        self._hub.presence.arrive(key, self)
        _LOG.info("%r connected", key)
        self._deliver_waiting()
        return connect.will

    def _handle(self, kind: int, flags: int, body: bytes) -> None:
        self._hub.presence.touch(self._key)
        match kind:
            case packets.Kind.PUBLISH:
                self._published(packets.parse_publish(flags, body))
            case packets.Kind.SUBSCRIBE:
                self._subscribe(packets.parse_subscribe(flags, body))
            case packets.Kind.UNSUBSCRIBE:
                packet_id, unwanted = packets.parse_unsubscribe(flags, body)
                for topic in unwanted:
                    what = topics.subscription(topic, self._device_id, self._module_id)
                    self._subscribed.pop(what, None)
                self._remember()
                self._wire.write(packets.unsuback(packet_id))
            case packets.Kind.PUBACK:
                sequence = self._unconfirmed.pop(packets.parse_id(body), None)
                if sequence is not None:
                    self._hub.commands.complete(sequence)
            case packets.Kind.PINGREQ:
                self._wire.write(bytes((packets.Kind.PINGRESP << 4, 0)))
            case _:
                raise packets.Malformed(f"packet type {kind} is not expected here")

    def _published(self, message: packets.Publish) -> None:
        if message.qos == 2:
            raise _Closed("QoS 2 is not supported")
        match topics.parse_published(message.topic):
            case topics.Telemetry() as meant:
                self._telemetry(meant, message)
            case topics.TwinRequest(request_id=request_id):
                twin = self._hub.twins.find(self._device_id, self._module_id)
                body = {
                    "desired": _versioned(twin.desired),
                    "reported": _versioned(twin.reported),
                }
                self._publish(topics.response_topic(200, request_id), orjson.dumps(body))
            case topics.Report(request_id=request_id):
                self._report(request_id, message.payload)
            case topics.MethodAnswer(request_id=request_id, status=status):
                self._answered(request_id, status, message.payload)
            case _:
                raise _Closed("published to a topic that the hub does not have")
        if message.qos:
            self._wire.write(packets.puback(message.packet_id))

    def _telemetry(self, meant: topics.Telemetry, message: packets.Publish) -> None:
        own = (self._device_id, self._module_id)
        # The edge hub relays what its device's modules send.
        relays = self._module_id == records.EDGE_HUB and meant.device_id == self._device_id
        if (meant.device_id, meant.module_id) != own and not relays:
            raise _Closed("published in the name of another device")
        if len(message.payload) > 256 * 1024:
            raise _Closed("the message is larger than 256 KB")
        properties = meant.properties
        if message.retain:
            properties = properties | {"mqtt-retain": "true"}
        self._hub.telemetry.receive(meant.device_id, meant.module_id, properties, message.payload)

    def _report(self, request_id: str, payload: bytes) -> None:
        try:
            version = self._hub.twins.report(self._key, _parsed(payload))
        except catalogue.HubError as error:
            body = orjson.dumps({"errorCode": error.code.number, "message": error.text})
            self._publish(topics.response_topic(error.code.status, request_id), body)
        else:
            self._publish(topics.response_topic(204, request_id, version), b"")

    def _answered(self, request_id: str, status: int, payload: bytes) -> None:
        call = self._calls.get(request_id)
        if call is None or call.done():
            return
        if len(payload) > _ANSWER_BYTES:
            raise _Closed("the method's answer is larger than 128 KB")
        try:
            answer = orjson.loads(payload) if payload else None
        except orjson.JSONDecodeError:
            raise _Closed("the method's answer is not JSON") from None
        call.set_result((status, answer))

    def _subscribe(self, wanted: packets.Subscribe) -> None:
        codes = []
        for topic, qos in wanted.filters:
            what = topics.subscription(topic, self._device_id, self._module_id)
            if what:
                self._subscribed[what] = min(qos, 1)
            codes.append(min(qos, 1) if what else 0x80)
        self._remember()
        self._wire.write(packets.suback(wanted.packet_id, codes))
        self._hub.presence.wake(self._key)
        self._deliver_waiting()

    def _remember(self) -> None:
        """Keep the subscriptions for the next connection: clients rely on it (CleanSession 0)."""
        stored = f"subscriptions/{self._key}"
        if self._clean or self._hub.store.values.get(stored) == self._subscribed:
            return
        with self._hub.store.transaction() as transaction:
            transaction.put_value(stored, dict(self._subscribed))

    def _deliver_waiting(self) -> None:
        if topics.MESSAGES not in self._subscribed:
            return
        sent = set(self._unconfirmed.values())
        for message in self._hub.commands.waiting(self._device_id):
            if message.sequence not in sent:
                self.deliver(message)

    def _publish(self, topic: str, payload: bytes) -> None:
        if self._wire.unsent() > _UNSENT_BYTES:
            self.close("the client does not read")
            return
        self._wire.write(packets.publish(packets.Publish(topic=topic, payload=payload)))

    def _end(self, will: packets.Publish | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for call in self._calls.values():
            if not call.done():
                call.set_exception(ConnectionError("the device went away"))
        if self._key:
            if will is not None and self._key in self._hub.store.identities:
                self._send_will(will)
            self._hub.presence.leave(self._key, self)
        self._wire.close()

    def _send_will(self, will: packets.Publish) -> None:
        meant = topics.parse_published(will.topic)
        if isinstance(meant, topics.Telemetry):
            meant.properties["iothub-MessageType"] = "Will"
            with contextlib.suppress(_Closed):
                self._telemetry(meant, will)


def _versioned(document: records.Json) -> records.Json:
    return {**patching.values(document), "$version": document["$version"]}


def _parsed(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise catalogue.HubError("IotHubFormatError", "The patch is not JSON.") from error
