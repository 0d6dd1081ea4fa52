"""One module's own connection to the hub, kept by the edge hub on the module's behalf."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.edgesim.settings import Settings

__all__ = ["Upstream"]

_LOG = logging.getLogger("edgeHub")
_PORT: Final = 8883
_KEEPALIVE_SECONDS: Final = 60
_API: Final = "2019-10-01"
_LONGEST_RETRY_SECONDS: Final = 20


class Upstream:
    """Passes a module's packets to the hub and the hub's to the module; connects by itself."""

    def __init__(
        self,
        settings: Settings,
        module: str,
        key: str,
        *,
        on_connected: Callable[[], None],
        on_message: Callable[[str, bytes], None],
        on_arrived: Callable[[int], None],
        on_refused: Callable[[], None],
    ) -> None:
        """Make a connection; `start` begins it.

        Args:
            on_connected: called after each connect.
            on_message: gets topic and body of what the hub sends.
            on_arrived: gets the packet id of a publish that the hub took.
            on_refused: called when the hub does not take the module's key.
        """
        from paho.mqtt import client as mqtt

        client_id = f"{settings.device_id}/{module}"
        self._module = module
        self._username = f"{settings.hub}/{client_id}/?api-version={_API}"
        self._resource = f"{settings.hub}/devices/{settings.device_id}/modules/{module}"
        self._key = key
        self._on_connected = on_connected
        self._on_refused = on_refused
        self._host = settings.hub_host
        self._subscriptions: set[str] = set()
        self._lock = threading.Lock()
        self._client = mqtt.Client(client_id=client_id, clean_session=False, protocol=mqtt.MQTTv311)
        self._client.tls_set_context(identity.tls_context(settings.trust_bundle))
        self._client.max_inflight_messages_set(64)
        self._client.reconnect_delay_set(min_delay=1, max_delay=_LONGEST_RETRY_SECONDS)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = lambda _client, _data, message: on_message(
            message.topic, message.payload
        )
        self._client.on_publish = lambda _client, _data, packet_id: on_arrived(packet_id)
        self.connected = False

    def start(self) -> None:
        """Begin to connect; it goes on trying by itself."""
        self._renew()
        self._client.connect_async(self._host, _PORT, keepalive=_KEEPALIVE_SECONDS)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect and end the connection's thread."""
        self.connected = False
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, body: bytes, *, qos: int) -> int:
        """Send a message and return its packet id, 0 when it could not be handed over."""
        if not self.connected:
            return 0
        return int(self._client.publish(topic, body, qos=qos).mid)

    def subscribe(self, topic: str) -> None:
        """Subscribe now and after each connect."""
        with self._lock:
            if topic in self._subscriptions:
                return
            self._subscriptions.add(topic)
        if self.connected:
            self._client.subscribe(topic, qos=1)

    def unsubscribe(self, topic: str) -> None:
        """Undo a subscription."""
        with self._lock:
            self._subscriptions.discard(topic)
        if self.connected:
            self._client.unsubscribe(topic)

    def _renew(self) -> None:
        self._client.username_pw_set(self._username, identity.sas_token(self._resource, self._key))

    def _connected(self, _client: Any, _data: Any, _flags: Any, code: int) -> None:
        if code:
            _LOG.warning("hub does not take module %s (code %s)", self._module, code)
            self._renew()
            self._on_refused()
            return
        with self._lock:
            topics = [(topic, 1) for topic in sorted(self._subscriptions)]
        if topics:
            self._client.subscribe(topics)
        self.connected = True
        _LOG.info("module %s is connected to the hub", self._module)
        self._on_connected()

    def _disconnected(self, _client: Any, _data: Any, code: int) -> None:
        if self.connected:
            _LOG.info("module %s lost the hub (code %s)", self._module, code)
        self.connected = False
        # The token may have run out; the client reconnects with this one.
        self._renew()
