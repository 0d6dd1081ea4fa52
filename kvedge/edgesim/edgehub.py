"""The edge hub as a part of the runtime: its settings from the hub, its listener, its report."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim.certificates import server_context
from kvedge.edgesim.reporting import RUNTIME_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvedge.edgesim.certificates import EdgeCertificates
    from kvedge.edgesim.keeping import Keeper
    from kvedge.edgesim.listening import Listener
    from kvedge.edgesim.relay import Relay
    from kvedge.edgesim.settings import Settings

__all__ = ["EdgeHub"]

_LOG = logging.getLogger("edgeHub")
_TICK_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 3.0
_SCHEMA: Final = "1.2"
_DOCUMENT: Final = "edgehub.json"


class EdgeHub:
    """Listens for modules from when it can until it is closed."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        keeper: Keeper,
        *,
        address: Callable[[], tuple[str, int]],
        certificates: Callable[[], EdgeCertificates],
        known: Callable[[], set[str]],
        module_key: Callable[[str], str],
        register: Callable[[str], None],
        report: Callable[[dict[str, Any]], None],
        on_listening: Callable[[], None],
    ) -> None:
        """Make an edge hub; `start` begins its work.

        Args:
            folder: where its queue is.
            address: where to listen; may fail while the container engine is away.
            known: names of the modules that may connect.
            report: takes `$edgeHub`'s reported properties.
            on_listening: called once modules can connect.
        """
        self._settings = settings
        self._folder = folder
        self._keeper = keeper
        self._address = address
        self._certificates = certificates
        self._known = known
        self._module_key = module_key
        self._register = register
        self._report = report
        self._on_listening = on_listening
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._relay: Relay | None = None
        self._listener: Listener | None = None
        self._desired: dict[str, Any] = keeper.recall(_DOCUMENT, {})
        self._status: dict[str, Any] = {"code": 200, "description": ""}

    @property
    def runtime_status(self) -> str:
        """Return its runtimeStatus."""
        return "running" if self._listener is not None else "stopped"

    @property
    def waiting(self) -> int:
        """Return the number of messages on disk."""
        relay = self._relay
        return sum(relay.store.endpoints().values()) if relay is not None else 0

    def start(self) -> None:
        """Begin to listen as soon as that is possible."""
        threading.Thread(target=self._run, name="edgehub", daemon=True).start()

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._stopping.set()
        if self._listener is not None:
            self._listener.close()
        if self._relay is not None:
            self._relay.close()
            self._relay.store.close()

    def follow(self, desired: dict[str, Any]) -> None:
        """Take desired properties over."""
        if not desired.get("schemaVersion"):
            return
        with self._lock:
            self._desired = desired
            self._keeper.keep(_DOCUMENT, desired)
            self._configure()
        self._tell()

    def _configure(self) -> None:
        from kvedge.edgesim.routing import RouteError, parse_hub_config

        if not self._desired:
            return
        try:
            config = parse_hub_config(self._desired)
        except RouteError as error:
            # The routes before stay in force.
            self._status = {"code": error.code, "description": str(error)}
            return
        self._status = {"code": 200, "description": ""}
        if self._relay is not None:
            self._relay.config = config

    def _tell(self) -> None:
        version = int(self._desired.get("$version", 0))
        if not version:
            return
        self._report(
            {
                "schemaVersion": _SCHEMA,
                "version": RUNTIME_VERSION,
                "lastDesiredVersion": version,
                "lastDesiredStatus": self._status,
                "clients": self._relay.clients() if self._relay is not None else {},
            }
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._listener is None:
                    self._listen()
                    self._on_listening()
                elif self._relay is not None:
                    self._relay.tick()
            except Exception as error:  # noqa: BLE001 - tried again at the next tick
                _LOG.warning("edge hub: %s", error or type(error).__name__)
            self._stopping.wait(_TICK_SECONDS if self._listener is not None else _RETRY_SECONDS)

    def _listen(self) -> None:
        from kvedge.edgesim.listening import Listener
        from kvedge.edgesim.relay import Relay
        from kvedge.edgesim.storing import Store

        files = self._certificates()
        address = self._address()
        if self._relay is None:
            with self._lock:
                self._relay = Relay(
                    self._settings,
                    Store(self._folder / "edgehub.db"),
                    module_key=self._module_key,
                    register=self._register,
                    on_change=self._tell,
                )
                self._configure()
        self._listener = Listener(
            self._relay, address=address, context=server_context(files), known=self._known
        )
        self._listener.start()
        self._relay.resume()
        _LOG.info("edge hub listens on %s:%s", *self._listener.address)
