"""The edge hub's listener for modules: MQTT 3.1.1 over TLS, one thread a connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import TYPE_CHECKING, Final

from kvedge.edgesim import packets
from kvedge.edgesim.identity import token_is_valid

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from kvedge.edgesim.relay import Relay

__all__ = ["Listener"]

_LOG = logging.getLogger("edgeHub")
_HANDSHAKE_SECONDS: Final = 60
_LONGEST_KEEPALIVE_SECONDS: Final = 1767


class Listener:
    """Accepts modules' connections."""

    def __init__(
        self,
        relay: Relay,
        *,
        address: tuple[str, int],
        context: ssl.SSLContext,
        known: Callable[[], set[str]],
    ) -> None:
        """Bind the address; `start` begins to accept.

        Args:
            known: names of the modules that may connect.
        """
        self._relay = relay
        self._context = context
        self._known = known
        self._socket = socket.create_server(address, backlog=16)
        self._sessions: set[_Session] = set()
        self._thread = threading.Thread(target=self._accept, name="edgehub-listen", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens."""
        return self._socket.getsockname()[:2]

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end all connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for session in list(self._sessions):
            session.close()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(raw,), name="edgehub-module", daemon=True
            ).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.settimeout(_HANDSHAKE_SECONDS)
            with self._context.wrap_socket(raw, server_side=True) as link:
                session = self._greet(link)
                if session is None:
                    return
                self._sessions.add(session)
                self._relay.attach(session)
                try:
                    session.run()
                finally:
                    self._sessions.discard(session)
                    self._relay.detach(session)
        except (OSError, packets.PacketError, ValueError) as error:
            _LOG.info("a module's connection ended: %s", error or type(error).__name__)
        finally:
            raw.close()

    def _greet(self, link: ssl.SSLSocket) -> _Session | None:
        stream = link.makefile("rb")
        first = packets.read_packet(stream)
        if first is None or first[0] != packets.CONNECT:
            return None
        connect = packets.parse_connect(first[2])
        settings = self._relay.settings
        device, _, module = connect.client_id.partition("/")
        resource = f"{settings.hub}/devices/{settings.device_id}/modules/{module}"
        allowed = device == settings.device_id and module in self._known()
        if not allowed or not token_is_valid(
            connect.password, resource=resource, key=self._relay.module_key(module)
        ):
            _LOG.warning("refused a connection of %r", connect.client_id)
            link.sendall(packets.connack(5))
            return None
        link.sendall(packets.connack(0))
        keepalive = connect.keepalive or _LONGEST_KEEPALIVE_SECONDS
        # A peer that is silent for one and a half times its keep-alive is gone (MQTT 3.1.2.10).
        link.settimeout(min(keepalive * 1.5, _LONGEST_KEEPALIVE_SECONDS))
        return _Session(self._relay, module, link)


class _Session:
    """One module's connection."""

    def __init__(self, relay: Relay, module: str, link: ssl.SSLSocket) -> None:
        self.module = module
        self._relay = relay
        self._link = link
        self._stream = link.makefile("rb")
        self._lock = threading.Lock()
        self._topics: set[str] = set()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._next_id = 0
        self._events = f"devices/{relay.settings.device_id}/modules/{module}/messages/events/"

    def run(self) -> None:
        """Serve the module until it leaves."""
        while True:
            packet = packets.read_packet(self._stream)
            if packet is None:
                return
            kind, flags, body = packet
            if kind == packets.PUBLISH:
                self._published(packets.parse_publish(flags, body))
            elif kind == packets.PUBACK:
                done = self._waiting.pop(int.from_bytes(body[:2], "big"), None)
                if done is not None:
                    done()
            elif kind == packets.SUBSCRIBE:
                self._subscribed(body)
            elif kind == packets.UNSUBSCRIBE:
                packet_id, topics = packets.parse_unsubscribe(body)
                self._topics.difference_update(topics)
                self._write(packets.unsuback(packet_id))
            elif kind == packets.PINGREQ:
                self._write(packets.PINGRESP_BYTES)
            elif kind == packets.DISCONNECT:
                return
            else:
                raise packets.PacketError(f"unexpected packet type {kind}")

    def send(self, topic: str, body: bytes) -> None:
        """Send a message that may be lost."""
        with contextlib.suppress(OSError):
            self._write(packets.publish(topic, body))

    def deliver(self, topic: str, body: bytes, done: Callable[[], None]) -> None:
        """Send a message and call back when the module has taken it."""
        self._next_id = self._next_id % 65535 + 1
        self._waiting[self._next_id] = done
        with contextlib.suppress(OSError):
            self._write(packets.publish(topic, body, packet_id=self._next_id))

    def subscribed(self, topic: str) -> bool:
        """Tell whether the module has a subscription for a topic."""
        return topic in self._topics or any(
            packets.topic_matches(pattern, topic) for pattern in self._topics
        )

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def _published(self, message: packets.Publish) -> None:
        if message.topic.startswith(self._events):
            properties = message.topic.removeprefix(self._events)
            taken = self._relay.take(self.module, properties, message.body)
            if message.qos and taken:
                self._write(packets.puback(message.packet_id))
            elif not taken:
                # Not acknowledged: the module sends it again after its next connect.
                self.close()
            return
        if message.qos:
            self._write(packets.puback(message.packet_id))
        if message.topic.startswith("$iothub/"):
            self._relay.link(self.module).from_module(message.topic, message.body)

    def _subscribed(self, body: bytes) -> None:
        packet_id, topics = packets.parse_subscribe(body)
        self._topics.update(topic for topic, _ in topics)
        self._write(packets.suback(packet_id, [min(qos, 1) for _, qos in topics]))
        for topic, _ in topics:
            self._relay.link(self.module).subscribe(topic)
        self._relay.flush_inputs(self.module)

    def _write(self, data: bytes) -> None:
        with self._lock:
            self._link.sendall(data)
