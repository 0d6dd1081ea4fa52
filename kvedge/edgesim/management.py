"""The management socket: what `iotedge list`, `logs` and `restart` ask the running daemon.

HTTP over a unix socket as in the real daemon, with its paths and JSON for these three.
"""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Management", "ManagementServer"]


class Management:
    """What the socket offers; each member is given by the daemon."""

    def __init__(
        self,
        *,
        modules: Callable[[], list[dict[str, Any]]],
        read_logs: Callable[..., Iterable[bytes]],
        restart: Callable[[str], None],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self.modules = modules
        self.read_logs = read_logs
        self.restart = restart
        self.status = status


class ManagementServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves the socket on threads of its own."""

    daemon_threads = True

    def __init__(self, path: Path, management: Management) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.management = management
        self.path = path
        super().__init__(str(path), _Handler)
        path.chmod(0o660)
        self._thread = threading.Thread(target=self.serve_forever, name="management", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()
        self.path.unlink(missing_ok=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ManagementServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the CLI's calls are no news."""

    def do_GET(self) -> None:
        """Answer /modules, /modules/<name>/logs and /systeminfo."""
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        query = dict(urllib.parse.parse_qsl(url.query))
        match parts:
            case ["modules"]:
                self._json(200, {"modules": self.server.management.modules()})
            case ["systeminfo"]:
                self._json(200, self.server.management.status())
            case ["modules", name, "logs"]:
                self._logs(name, query)
            case _:
                self._json(404, {"message": "not found"})

    def do_POST(self) -> None:
        """Answer /modules/<name>/restart."""
        parts = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
        if len(parts) != 3 or parts[0] != "modules" or parts[2] != "restart":
            self._json(404, {"message": "not found"})
            return
        try:
            self.server.management.restart(urllib.parse.unquote(parts[1]))
        except Exception as error:  # noqa: BLE001 - the caller gets the reason
            self._json(404 if isinstance(error, LookupError) else 500, {"message": str(error)})
        else:
            self.send_response(204)
            self.end_headers()

    def _logs(self, name: str, query: dict[str, str]) -> None:
        tail = query.get("tail", "all")
        try:
            pieces = self.server.management.read_logs(
                name,
                tail=None if tail == "all" else int(tail),
                since=float(query["since"]) if "since" in query else None,
                until=float(query["until"]) if "until" in query else None,
                follow=query.get("follow") == "true",
            )
            iterator = iter(pieces)
            first = next(iterator, b"")
        except Exception as error:  # noqa: BLE001 - the caller gets the reason
            self._json(404, {"message": str(error)})
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(first)
        for piece in iterator:
            self.wfile.write(piece)
            self.wfile.flush()

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
