"""A small client of the Docker Engine API over its unix socket (API 1.41: Debian 12's docker.io).

The docker program is not used: each start of it costs about a second in an emulated VM.
https://docs.docker.com/engine/api/v1.41/
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import struct
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Docker", "DockerError", "split_image"]

_API: Final = "/v1.41"
_TIMEOUT_SECONDS: Final = 300
"""Long: in an emulated VM on a busy machine an engine needs minutes for its first network."""
_PULL_SILENCE_SECONDS: Final = 600
_STOP_SECONDS: Final = 10
_FRAME: Final = struct.Struct(">BxxxI")


class DockerError(Exception):
    """The engine refused a call or is not there; status 0 means no answer."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or message
        """The engine's own words."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def split_image(reference: str) -> tuple[str, str]:
    """Return repository and tag (or digest) of an image reference."""
    name, at, digest = reference.partition("@")
    if at:
        return name, digest
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag or "latest"


class Docker:
    """The engine's calls that the runtime needs; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def info(self) -> dict[str, Any]:
        """Return the engine's version object."""
        return self._json("GET", "/version")

    def ensure_network(self, name: str) -> str:
        """Return the gateway address of a bridge network, creating the network when missing."""
        try:
            found = self._json("GET", f"/networks/{name}")
        except DockerError as error:
            if error.status != http.client.NOT_FOUND:
                raise
            body = {"Name": name, "Driver": "bridge", "CheckDuplicate": True}
            self._json("POST", "/networks/create", body=body)
            found = self._json("GET", f"/networks/{name}")
        for pool in (found.get("IPAM") or {}).get("Config") or ():
            if pool.get("Gateway"):
                return str(pool["Gateway"]).partition("/")[0]
        raise DockerError(f"network {name!r} has no gateway address")

    def containers(self, label: str) -> dict[str, dict[str, Any]]:
        """Return what the engine tells of each container with a label, by container name."""
        filters = json.dumps({"label": [label]})
        listed = self._json("GET", "/containers/json", query={"all": "true", "filters": filters})
        names = [str(entry["Names"][0]).lstrip("/") for entry in listed]
        found = {name: self.inspect(name) for name in names}
        return {name: details for name, details in found.items() if details}

    def inspect(self, name: str) -> dict[str, Any]:
        """Return a container's details, or nothing when it is gone."""
        try:
            return self._json("GET", f"/containers/{name}/json")
        except DockerError as error:
            if error.status == http.client.NOT_FOUND:
                return {}
            raise

    def pull(self, reference: str, credentials: Mapping[str, str] | None = None) -> None:
        """Pull an image; credentials are username, password and serveraddress."""
        repository, tag = split_image(reference)
        headers = {}
        if credentials:
            text = json.dumps(dict(credentials)).encode()
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(text).decode("ascii")
        try:
            with self._call(
                "POST",
                "/images/create",
                query={"fromImage": repository, "tag": tag},
                headers=headers,
                timeout=_PULL_SILENCE_SECONDS,
            ) as answer:
                # The call may answer 200 before the work begins; a failure is a later line then.
                problems = [json.loads(line).get("error") for line in answer if line.strip()]
        except DockerError as error:
            raise DockerError(
                f"pulling {reference!r}: {error.reason}", status=error.status
            ) from error
        for problem in filter(None, problems):
            raise DockerError(f"pulling {reference!r}: {problem}", status=500)

    def create(self, name: str, body: dict[str, Any]) -> None:
        """Create a container."""
        self._json("POST", "/containers/create", query={"name": name}, body=body)

    def start(self, name: str) -> None:
        """Start a container; one that runs already stays as it is."""
        self._json("POST", f"/containers/{name}/start")

    def stop(self, name: str) -> None:
        """Stop a container, by force after ten seconds."""
        query = {"t": str(_STOP_SECONDS)}
        self._json("POST", f"/containers/{name}/stop", query=query)

    def restart(self, name: str) -> None:
        """Stop and start a container."""
        self._json("POST", f"/containers/{name}/restart", query={"t": str(_STOP_SECONDS)})

    def remove(self, name: str) -> None:
        """Remove a container and its anonymous volumes; one that is gone is no error."""
        try:
            self._json("DELETE", f"/containers/{name}", query={"force": "true", "v": "true"})
        except DockerError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def logs(
        self,
        name: str,
        *,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        follow: bool = False,
    ) -> Iterator[bytes]:
        """Yield a container's output, both streams in the order of writing.

        Args:
            tail: only this many last lines.
            since: seconds since the epoch.
            until: seconds since the epoch.
            follow: go on until the container ends.
        """
        query = {"stdout": "true", "stderr": "true", "tail": "all" if tail is None else str(tail)}
        query |= {
            key: f"{value:.6f}" for key, value in (("since", since), ("until", until)) if value
        }
        if follow:
            query["follow"] = "true"
        raw = bool((self.inspect(name).get("Config") or {}).get("Tty"))
        path = f"/containers/{name}/logs"
        with self._call(
            "GET", path, query=query, timeout=None if follow else _TIMEOUT_SECONDS
        ) as answer:
            while True:
                if raw:
                    data = answer.read1(65536)
                else:
                    head = answer.read(_FRAME.size)
                    data = answer.read(_FRAME.unpack(head)[1]) if len(head) == _FRAME.size else b""
                if not data:
                    return
                yield data

    def events(self, label: str) -> Iterator[dict[str, Any]]:
        """Yield what happens to containers with a label, until the engine ends the stream."""
        filters = json.dumps({"type": ["container"], "label": [label]})
        with self._call("GET", "/events", query={"filters": filters}, timeout=None) as answer:
            for line in answer:
                if line.strip():
                    yield json.loads(line)

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        with self._call(method, path, query=query, body=body) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else {}

    @contextlib.contextmanager
    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = _TIMEOUT_SECONDS,
    ) -> Iterator[http.client.HTTPResponse]:
        target = _API + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        sent = dict(headers or {})
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection = _UnixConnection(self._path, timeout)
        try:
            connection.request(method, target, json.dumps(body) if body is not None else None, sent)
            answer = connection.getresponse()
            if answer.status >= http.client.BAD_REQUEST:
                reason = _message(answer.read())
                raise DockerError(f"{method} {path}: {reason}", status=answer.status, reason=reason)
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise DockerError(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            connection.close()


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode(errors="replace")
