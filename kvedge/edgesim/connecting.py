"""A module identity's connection to the hub, by the vendor's device client.

One thread does all calls of the client; the rest of the runtime hands it documents to report and
gets desired properties and methods by callbacks. It connects for as long as it takes, and starts
over with a fresh client when the client's own retries do not come through.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import merging, slimming

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.edgesim.settings import Settings

__all__ = ["ModuleConnection"]

_REPORT_INTERVAL_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 45.0
"""After so long without a connection the client is replaced."""
_RETRY_SECONDS: Final = 3
_LONGEST_PAUSE_SECONDS: Final = 30.0


class ModuleConnection:
    """Keeps one module identity (`$edgeAgent`, `$edgeHub`) at the hub."""

    def __init__(
        self,
        settings: Settings,
        module: str,
        *,
        prepare: Callable[[], str],
        on_desired: Callable[[dict[str, Any]], None],
        on_method: Callable[[str, Any], tuple[int, Any]] | None = None,
        on_fatal: Callable[[Exception], None],
    ) -> None:
        """Make a connection; `start` begins it.

        Args:
            prepare: registers the identity and returns its key; HubRefused ends the runtime.
            on_desired: gets the whole desired properties after each change.
            on_method: answers direct methods.
            on_fatal: told once when the hub is refused.
        """
        self._settings = settings
        self._module = module
        self._prepare = prepare
        self._on_desired = on_desired
        self._on_method = on_method
        self._on_fatal = on_fatal
        self._log = logging.getLogger(f"hub.{module.lstrip('$')}")
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._wanted: dict[str, Any] | None = None
        self._reported: dict[str, Any] | None = None
        self._desired: dict[str, Any] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hub{module}", daemon=True)
        self.connected = False
        """Whether the hub is there now."""

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Disconnect and end the thread."""
        self._stopping.set()
        self._events.put(("stop", None))
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def report(self, document: dict[str, Any]) -> None:
        """Make a document the reported properties, as soon as the hub is there."""
        self._wanted = document
        self._events.put(("report", None))

    def _run(self) -> None:
        from kvedge.edgesim.identity import HubRefused, HubUnreachable

        pause = 1.0
        while not self._stopping.is_set():
            try:
                key = self._prepare()
                self._session(key)
                pause = 1.0
            except HubRefused as error:
                self._on_fatal(error)
                return
            except HubUnreachable as error:
                self._log.warning("%s", error)
            except Exception as error:  # noqa: BLE001 - the client raises many kinds; all mean retry
                self._log.warning(
                    "connection of %s: %s", self._module, error or type(error).__name__
                )
            self._stopping.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _session(self, key: str) -> None:
        """Live with one client until it has been without a connection for too long."""
        client = self._client(key)
        lost = threading.Timer(_SILENCE_SECONDS, client.shutdown)
        lock = threading.Lock()

        def state_changed() -> None:
            nonlocal lost
            with lock:
                self.connected = bool(client.connected)
                lost.cancel()
                if not self.connected and not self._stopping.is_set():
                    # Shutting the client down frees calls that wait for a connection.
                    lost = threading.Timer(_SILENCE_SECONDS, client.shutdown)
                    lost.daemon = True
                    lost.start()
            self._events.put(("state", self.connected))

        try:
            client.on_connection_state_change = state_changed
            client.connect()
            client.on_twin_desired_properties_patch_received = lambda patch: self._events.put(
                ("patch", patch)
            )
            if self._on_method is not None:
                client.on_method_request_received = lambda request: self._answer(client, request)
            self._refresh(client)
            self._log.info("%s is connected to %s", self._module, self._settings.hub)
            self._serve(client)
        finally:
            with lock:
                lost.cancel()
            self.connected = False
            client.shutdown()

    def _client(self, key: str) -> Any:
        slimming.leave_out_requests()
        from azure.iot.device import IoTHubModuleClient

        settings = self._settings
        text = (
            f"HostName={settings.hub};DeviceId={settings.device_id};ModuleId={self._module};"
            f"SharedAccessKey={key}"
        )
        if settings.hub != settings.hub_host:
            # The client knows no other MQTT port than 8883 and takes none in the host name.
            text += f";GatewayHostName={settings.hub_host}"
        more = {"server_verification_cert": settings.trust_bundle} if settings.trust_bundle else {}
        return IoTHubModuleClient.create_from_connection_string(
            text, connection_retry_interval=_RETRY_SECONDS, keep_alive=30, **more
        )

    def _refresh(self, client: Any) -> None:
        twin = client.get_twin()
        self._reported = merging.without_metadata(twin.get("reported") or {})
        self._take(twin.get("desired") or {})

    def _take(self, desired: dict[str, Any]) -> None:
        desired = {key: value for key, value in desired.items() if key != "$metadata"}
        self._desired = desired
        self._on_desired(desired)

    def _serve(self, client: Any) -> None:
        last = 0.0
        self._events.put(("report", None))
        while not self._stopping.is_set():
            kind, value = self._events.get()
            if kind == "state":
                if value:
                    self._refresh(client)
                    self._events.put(("report", None))
                elif not client.connected:
                    # Waits for the client's own retry or, when that fails, for its replacement.
                    self._await_connection(client)
            elif kind == "patch":
                version = int(value.get("$version", 0))
                if version == int(self._desired.get("$version", 0)) + 1:
                    self._take(merging.merged(self._desired, value))
                elif version > int(self._desired.get("$version", 0)):
                    self._refresh(client)
            elif kind == "report" and self._wanted is not None:
                rest = last + _REPORT_INTERVAL_SECONDS - time.monotonic()
                if rest > 0:
                    self._stopping.wait(rest)
                self._send(client)
                last = time.monotonic()

    def _await_connection(self, client: Any) -> None:
        deadline = time.monotonic() + _SILENCE_SECONDS
        while not client.connected and not self._stopping.is_set():
            if time.monotonic() > deadline:
                raise TimeoutError("no connection for too long")
            self._stopping.wait(0.25)

    def _send(self, client: Any) -> None:
        wanted = self._wanted
        if wanted is None or self._reported is None:
            return
        patch = merging.difference(self._reported, wanted)
        if patch:
            client.patch_twin_reported_properties(patch)
            self._reported = wanted

    def _answer(self, client: Any, request: Any) -> None:
        from azure.iot.device import MethodResponse

        if self._on_method is None:
            return
        status, payload = self._on_method(request.name, request.payload)
        client.send_method_response(MethodResponse(request.request_id, status, payload))
