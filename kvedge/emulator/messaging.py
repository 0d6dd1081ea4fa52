"""Messages: telemetry from devices, kept in a bounded log, and messages to devices."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

from kvedge.emulator import catalogue, times
from kvedge.emulator.records import Json, Message, message_key

if TYPE_CHECKING:
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.store import Store

__all__ = ["Commands", "Telemetry"]

_COMMAND_BYTES = 64 * 1024
_PENDING = 50
_SYSTEM = {
    "$.mid": "message-id",
    "$.cid": "correlation-id",
    "$.uid": "user-id",
    "$.ct": "content-type",
    "$.ce": "content-encoding",
    "$.on": "output-name",
    "$.ctime": "iothub-creation-time-utc",
    "$.ifid": "iothub-interface-id",
    "$.sub": "dt-subject",
}


class Telemetry:
    """What devices and modules have sent to the cloud."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: list[asyncio.Future[None]] = []

    def receive(
        self, device_id: str, module_id: str, properties: dict[str, str], payload: bytes
    ) -> int:
        """Keep a message and return its number; it is stored when this returns."""
        system = {
            "iothub-connection-device-id": device_id,
            "iothub-enqueuedtime": times.stamp(),
            "iothub-message-source": "Telemetry",
        }
        if module_id:
            system["iothub-connection-module-id"] = module_id
        own = {}
        for name, value in properties.items():
            if name in _SYSTEM:
                system[_SYSTEM[name]] = value
            else:
                own[name] = value
        event: Json = {"deviceId": device_id}
        if module_id:
            event["moduleId"] = module_id
        event |= {"systemProperties": system, "properties": own}
        try:
            event["body"] = payload.decode()
        except UnicodeDecodeError:
            event |= {"body": base64.b64encode(payload).decode(), "bodyEncoding": "base64"}
        sequence = self._store.append_event(event)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return sequence

    async def after(self, sequence: int, *, limit: int, wait_seconds: float) -> list[Json]:
        """Return messages with a higher number; wait for one if there is none yet."""
        found = self._store.events_after(sequence, limit=limit)
        if found or wait_seconds <= 0:
            return found
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await asyncio.wait([waiter], timeout=wait_seconds)
        return self._store.events_after(sequence, limit=limit)


class Commands:
    """Cloud-to-device messages: each waits until its device has confirmed it."""

    def __init__(self, store: Store, presence: Presence) -> None:
        self._store = store
        self._presence = presence

    def send(
        self, device_id: str, payload: bytes, properties: dict[str, str], seconds: float = 0
    ) -> int:
        """Keep a message for a device and send it if the device listens; returns its number."""
        if len(payload) > _COMMAND_BYTES:
            raise catalogue.HubError("MessageTooLarge", "A message takes at most 64 KB.")
        if len(self.waiting(device_id)) >= _PENDING:
            raise catalogue.HubError("DeviceMaximumQueueDepthExceeded")
        message = Message(
            sequence=int(self._store.values.get("message-sequence", 0)) + 1,
            device_id=device_id,
            payload=payload,
            properties=properties,
            expires=times.now() + seconds if seconds else 0.0,
        )
        with self._store.transaction() as transaction:
            transaction.put(message)
            transaction.put_value("message-sequence", message.sequence)
        if (session := self._presence.session(device_id)) is not None:
            session.deliver(message)
        return message.sequence

    def waiting(self, device_id: str) -> list[Message]:
        """Return a device's messages, oldest first."""
        moment = times.now()
        with self._store.transaction() as transaction:
            for message in self._store.messages_of(device_id):
                if message.expires and message.expires <= moment:
                    transaction.delete("message", message.key)
        return self._store.messages_of(device_id)

    def complete(self, sequence: int) -> None:
        """Forget a message that its device has confirmed."""
        with self._store.transaction() as transaction:
            transaction.delete("message", message_key(sequence))

    def purge(self, device_id: str) -> int:
        """Forget all messages of a device and return how many there were."""
        found = self.waiting(device_id)
        with self._store.transaction() as transaction:
            for message in found:
                transaction.delete("message", message.key)
        return len(found)
