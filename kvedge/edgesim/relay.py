"""The edge hub: takes modules' messages, keeps them on disk and passes them on.

Telemetry goes by the routes into the store and from there, as the module's own identity, to the
hub, or to another module's input. Twins and methods pass through while the hub is there; while it
is away twins are answered from the last known state and reported changes are kept.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvedge.edgesim import merging, times
from kvedge.edgesim.settings import split_fields
from kvedge.edgesim.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.edgesim.routing import HubConfig
    from kvedge.edgesim.settings import Settings
    from kvedge.edgesim.storing import Store

__all__ = ["ModuleSession", "Relay"]

_LOG = logging.getLogger("edgeHub")
_UNDER_WAY: Final = 48
"""Messages of one module that are sent and not yet acknowledged."""
_OWN: Final = "edgehub-"
"""Prefix of request ids that are the relay's own."""
_TWIN_ANSWER: Final = "$iothub/twin/res/"
_TWIN_GET: Final = "$iothub/twin/GET/"
_TWIN_REPORT: Final = "$iothub/twin/PATCH/properties/reported/"
_TWIN_DESIRED: Final = "$iothub/twin/PATCH/properties/desired/"
_METHODS: Final = "$iothub/methods/"
_PASSED_SUBSCRIPTIONS: Final = ("$iothub/methods/POST/#", "$iothub/twin/PATCH/properties/desired/#")


class ModuleSession(Protocol):
    """A connected module."""

    module: str

    def send(self, topic: str, body: bytes) -> None:
        """Send a message that may be lost."""
        ...

    def deliver(self, topic: str, body: bytes, done: Callable[[], None]) -> None:
        """Send a message and call back when the module has taken it."""
        ...

    def subscribed(self, topic: str) -> bool:
        """Tell whether the module has a subscription for a topic."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Relay:
    """All modules' links."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        module_key: Callable[[str], str],
        register: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        """Make a relay.

        Args:
            module_key: a module's key.
            register: makes a module known to the hub.
            on_change: called when a module came or went.
        """
        self.settings = settings
        self.store = store
        self.module_key = module_key
        self.register = register
        self._on_change = on_change
        self._links: dict[str, _Link] = {}
        self._clients: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._acts: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="edgehub-arrivals", daemon=True)
        self._worker.start()
        self.config: HubConfig | None = None
        """Routes; without any, nothing is taken from modules."""

    def link(self, module: str) -> _Link:
        """Return a module's link, made when it is first asked for."""
        with self._lock:
            return self._links.setdefault(module, _Link(self, module))

    def attach(self, session: ModuleSession) -> None:
        """Take a module's new connection; an older one of the same module ends."""
        self._note(session.module, "Connected", "lastConnectedTimeUtc")
        self.link(session.module).attach(session)
        self.flush_inputs(session.module)

    def detach(self, session: ModuleSession) -> None:
        """Note that a module's connection ended."""
        if self.link(session.module).detach(session):
            self._note(session.module, "Disconnected", "lastDisconnectedTimeUtc")

    def clients(self) -> dict[str, Any]:
        """Return `$edgeHub`'s reported `clients`."""
        with self._lock:
            return {name: dict(entry) for name, entry in self._clients.items()}

    def resume(self) -> None:
        """Begin to send what waits on disk from before."""
        for endpoint in self.store.endpoints():
            kind, _, module = endpoint.partition(":")
            if kind == "upstream":
                self.link(module).pump()

    def tick(self) -> None:
        """Do what is due now and then: drop old messages, end idle connections."""
        dropped = self.store.expire()
        if dropped:
            _LOG.warning("%s messages were dropped, their time to live is over", dropped)
        waiting = self.store.endpoints()
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.tidy(idle=f"upstream:{link.module}" not in waiting)

    def later(self, act: Callable[[], None]) -> None:
        """Do something soon on the relay's own thread."""
        self._acts.put(act)

    def _work(self) -> None:
        while (act := self._acts.get()) is not None:
            try:
                act()
            except Exception:  # noqa: BLE001 - one failed act must not end the thread
                _LOG.exception("relaying failed")

    def close(self) -> None:
        """End all connections to the hub."""
        self._acts.put(None)
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.close()

    def take(self, module: str, properties: str, body: bytes) -> bool:
        """Keep a module's message for its routes; false when no routes are known yet."""
        config = self.config
        if config is None:
            return False
        bag = dict(urllib.parse.parse_qsl(properties.strip("/?"), keep_blank_values=True))
        output = bag.get("$.on", "")
        path = f"/messages/modules/{module}" + (f"/outputs/{output}" if output else "")
        routes = [route for route in config.routes if route.matches(path)]
        endpoints = {
            f"upstream:{module}" if route.upstream else f"input:{route.module}/{route.input}": (
                route.priority,
                route.seconds,
            )
            for route in routes
        }
        if endpoints:
            self.store.put(
                endpoints=[(name, *rest) for name, rest in endpoints.items()],
                module=module,
                properties=properties,
                body=body,
            )
        for route in routes:
            if not route.upstream:
                self.flush_inputs(route.module)
        if f"upstream:{module}" in endpoints:
            self.link(module).pump()
        return True

    def flush_inputs(self, module: str) -> None:
        """Hand waiting messages to a connected module's inputs."""
        for endpoint in self.store.endpoints():
            kind, _, target = endpoint.partition(":")
            name, _, port = target.partition("/")
            if kind == "input" and name == module:
                self.link(module).deliver_inputs(endpoint, port)

    def _note(self, module: str, status: str, key: str) -> None:
        with self._lock:
            entry = self._clients.setdefault(f"{self.settings.device_id}/{module}", {})
            entry |= {"status": status, key: times.now_text()}
        self._on_change()


class _Link:
    """One module: its session below, its connection above, and what is under way between."""

    def __init__(self, relay: Relay, module: str) -> None:
        self.module = module
        self._relay = relay
        self._lock = threading.RLock()
        self._session: ModuleSession | None = None
        self._upstream: Upstream | None = None
        self._refused = False
        self._under_way: dict[int, int] = {}
        """Message number by packet id on the way up."""
        self._delivering: set[int] = set()
        twin, pending = relay.store.twin(module)
        self._twin: dict[str, Any] = twin
        self._pending: dict[str, Any] = pending

    def attach(self, session: ModuleSession) -> None:
        with self._lock:
            old, self._session = self._session, session
            self._delivering.clear()
            self._connect()
        if old is not None:
            old.close()

    def detach(self, session: ModuleSession) -> bool:
        with self._lock:
            if self._session is not session:
                return False
            self._session = None
            self._delivering.clear()
            if self._upstream is not None:
                # Nobody answers methods now, so the hub has to know.
                for topic in _PASSED_SUBSCRIPTIONS:
                    self._upstream.unsubscribe(topic)
            return True

    def tidy(self, *, idle: bool) -> None:
        with self._lock:
            refused, self._refused = self._refused, False
            upstream = None
            if idle and self._session is None and not self._pending:
                upstream, self._upstream = self._upstream, None
                self._under_way.clear()
        if upstream is not None:
            upstream.stop()
        if refused:
            try:
                self._relay.register(self.module)
            except Exception as error:  # noqa: BLE001 - the next tick tries again
                _LOG.warning("module %s cannot be registered: %s", self.module, error)
        if not idle:
            self.pump()

    def close(self) -> None:
        with self._lock:
            upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.stop()

    def subscribe(self, topic: str) -> None:
        """Pass a module's subscription on when the hub has to know of it."""
        with self._lock:
            if topic in _PASSED_SUBSCRIPTIONS and self._upstream is not None:
                self._upstream.subscribe(topic)

    def pump(self) -> None:
        """Send waiting messages up, as many as may be under way."""
        with self._lock:
            upstream = self._connect()
            if not upstream.connected:
                return
            room = _UNDER_WAY - len(self._under_way)
            if room <= 0:
                return
            messages = self._relay.store.waiting(
                f"upstream:{self.module}", without=list(self._under_way.values()), limit=room
            )
            base = (
                f"devices/{self._relay.settings.device_id}/modules/{self.module}/messages/events/"
            )
            for message in messages:
                packet_id = upstream.publish(base + message.properties, message.body, qos=1)
                if not packet_id:
                    return
                self._under_way[packet_id] = message.number

    def deliver_inputs(self, endpoint: str, port: str) -> None:
        with self._lock:
            session = self._session
            device = self._relay.settings.device_id
            base = f"devices/{device}/modules/{self.module}/inputs/{port}/"
            if session is None or not session.subscribed(base):
                return
            for message in self._relay.store.waiting(
                endpoint, without=list(self._delivering), limit=_UNDER_WAY
            ):
                self._delivering.add(message.number)
                session.deliver(
                    base + message.properties,
                    message.body,
                    lambda number=message.number: self._delivered(number, endpoint, port),
                )

    def from_module(self, topic: str, body: bytes) -> None:
        """Handle a module's twin requests and method answers."""
        upstream = self._upstream
        up = upstream is not None and upstream.connected
        if topic.startswith(_METHODS):
            if up and upstream is not None:
                upstream.publish(topic, body, qos=0)
            return
        request = _request_id(topic)
        if topic.startswith(_TWIN_GET):
            if up and upstream is not None:
                upstream.publish(topic, body, qos=0)
            elif self._twin:
                self._answer(200, request, self._twin)
            else:
                self._answer(504, request, {})
            return
        if topic.startswith(_TWIN_REPORT):
            try:
                patch = json.loads(body)
            except ValueError:
                self._answer(400, request, {})
                return
            with self._lock:
                if self._twin:
                    reported = self._twin.get("reported") or {}
                    self._twin = {**self._twin, "reported": merging.merged(reported, patch)}
                if not up:
                    self._pending = _joined(self._pending, patch)
                self._keep()
            if up and upstream is not None:
                upstream.publish(topic, body, qos=0)
            else:
                version = (self._twin.get("reported") or {}).get("$version", 1)
                self._answer(204, request, {}, version=version)

    def _connect(self) -> Upstream:
        if self._upstream is None:
            self._upstream = Upstream(
                self._relay.settings,
                self.module,
                self._relay.module_key(self.module),
                on_connected=self._hub_came,
                on_message=self._from_hub,
                # The client calls with its own locks held, which `pump` takes in the other order.
                on_arrived=lambda number: self._relay.later(lambda: self._arrived(number)),
                on_refused=self._was_refused,
            )
            self._upstream.subscribe(f"{_TWIN_ANSWER}#")
            self._upstream.start()
        for topic in _PASSED_SUBSCRIPTIONS:
            if self._session is not None and self._session.subscribed(topic):
                self._upstream.subscribe(topic)
        return self._upstream

    def _was_refused(self) -> None:
        self._refused = True

    def _hub_came(self) -> None:
        with self._lock:
            upstream = self._upstream
            pending = dict(self._pending)
        if upstream is None:
            return
        if pending:
            upstream.publish(
                f"{_TWIN_REPORT}?$rid={_OWN}report", json.dumps(pending).encode(), qos=0
            )
        if self._twin:
            # Desired properties may have changed while nobody was listening.
            upstream.publish(f"{_TWIN_GET}?$rid={_OWN}get", b" ", qos=0)
        self.pump()

    def _from_hub(self, topic: str, body: bytes) -> None:
        session = self._session
        if topic.startswith(_TWIN_ANSWER):
            request = _request_id(topic)
            status = topic.removeprefix(_TWIN_ANSWER).partition("/")[0]
            if request == f"{_OWN}report":
                if status == "204":
                    with self._lock:
                        self._pending = {}
                        self._keep()
                return
            if status == "200" and body.strip():
                self._take_twin(json.loads(body), tell=request == f"{_OWN}get")
            if request.startswith(_OWN):
                return
        elif topic.startswith(_TWIN_DESIRED):
            patch = json.loads(body)
            with self._lock:
                if self._twin:
                    desired = merging.merged(self._twin.get("desired") or {}, patch)
                    self._twin = {**self._twin, "desired": desired}
                    self._keep()
        if session is not None and session.subscribed(topic):
            session.send(topic, body)

    def _take_twin(self, twin: dict[str, Any], *, tell: bool) -> None:
        """Remember a twin; tell the module what changed in its desired properties if asked to."""
        with self._lock:
            before = self._twin.get("desired") or {}
            self._twin = twin
            self._keep()
            session = self._session
        after = twin.get("desired") or {}
        if not tell or session is None or before.get("$version") == after.get("$version"):
            return
        topic = f"{_TWIN_DESIRED}?$version={after.get('$version', 1)}"
        if session.subscribed(topic):
            patch = {**merging.difference(before, after), "$version": after.get("$version", 1)}
            session.send(topic, json.dumps(patch).encode())

    def _arrived(self, packet_id: int) -> None:
        with self._lock:
            number = self._under_way.pop(packet_id, None)
            if number is not None:
                self._relay.store.done(number)
                if len(self._under_way) <= _UNDER_WAY // 2:
                    self.pump()

    def _delivered(self, number: int, endpoint: str, port: str) -> None:
        with self._lock:
            self._relay.store.done(number)
            self._delivering.discard(number)
            if not self._delivering:
                self.deliver_inputs(endpoint, port)

    def _answer(
        self, status: int, request: str, body: dict[str, Any], *, version: int | None = None
    ) -> None:
        session = self._session
        if session is not None:
            topic = f"{_TWIN_ANSWER}{status}/?$rid={request}"
            topic += f"&$version={version}" if version is not None else ""
            session.send(topic, json.dumps(body).encode() if body else b"")

    def _keep(self) -> None:
        self._relay.store.keep_twin(self.module, self._twin, self._pending)


def _request_id(topic: str) -> str:
    query = topic.partition("?")[2]
    return split_fields(query, "&").get("$rid", "")


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return one merge patch that does what two do one after the other; nulls are kept."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        result[key] = (
            _joined(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
        )
    return result
