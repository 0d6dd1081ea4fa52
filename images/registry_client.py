"""One connection to one repository of an OCI registry (distribution-spec v1.1).

Knows requests, logins, what passes and is tried again, and broken transfers that go on where they
stopped; `images.registry` knows images, `images.registry_login` credentials.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import ssl
import time
import urllib.parse
import urllib.request
from typing import IO, TYPE_CHECKING, Any

from images import oci, registry_login
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from images.registry_login import Reference

__all__ = ["Client"]

_ATTEMPTS = 5
_CHUNK = 1 << 20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LIMIT_SECONDS = 60.0
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


class Client:
    """One connection to one repository, with a token when the registry wants one."""

    def __init__(self, where: Reference, ca_file: Path | None, *, doing: str) -> None:
        self._where = where
        self._doing = doing
        """Begin of every error, such as `push to`."""
        self._base = f"/v2/{where.repository}/"
        self._context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._plain = where.host.split(":")[0] in {"localhost", "127.0.0.1"} and ca_file is None
        self._connection: http.client.HTTPConnection | None = None
        self._authorization = ""

    def close(self) -> None:
        """End the connection; the next request opens another."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def has(self, what: str) -> bool:
        """Whether the repository has `blobs/…` or `manifests/…`."""
        accept = {"Accept": oci.MANIFEST} if what.startswith("manifests/") else {}
        status, _, _ = self._ask("HEAD", self._base + what, headers=accept, fine={200, 404})
        return status == 200

    def put_manifest(self, name: str, raw: bytes, *, media_type: str = oci.MANIFEST) -> bool:
        """Put a manifest; return whether the registry took note of its subject."""
        _, head, _ = self._ask(
            "PUT", f"{self._base}manifests/{name}", headers={"Content-Type": media_type},
            body=raw, fine={201, 202},
        )  # fmt: skip
        return "oci-subject" in head

    def manifest(self, name: str) -> tuple[str, bytes] | None:
        """Return media type and bytes of a manifest by tag or digest, or None."""
        accept = {"Accept": f"{oci.MANIFEST}, {oci.INDEX}, {_DOCKER_MANIFEST}, {_DOCKER_LIST}"}
        status, head, raw = self._ask(
            "GET", f"{self._base}manifests/{name}", headers=accept, fine={200, 404}
        )
        if status == 404:
            return None
        if name.startswith("sha256:") and name != f"sha256:{hashlib.sha256(raw).hexdigest()}":
            raise self._other(name)
        return head.get("content-type", oci.MANIFEST).partition(";")[0], raw

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Return descriptors of the manifests whose subject is a manifest."""
        status, _, raw = self._ask("GET", f"{self._base}referrers/{digest}", fine={200, 404, 405})
        if status != 200:
            found = self.manifest(digest.replace(":", "-"))
            raw = found[1] if found else b"{}"
        try:
            return list(json.loads(raw).get("manifests", ()))
        except (ValueError, AttributeError):
            return []

    def download(self, digest: str, size: int, target: Path, told: Callable[[int], None]) -> None:
        """Get a blob into a file; a broken download goes on where it stopped."""
        with target.open("wb") as sink:
            for attempt in range(_ATTEMPTS):
                try:
                    self._fetch(f"{self._base}blobs/{digest}", sink, size, told)
                except (OSError, http.client.HTTPException, _Passing) as cause:
                    self.close()
                    if attempt == _ATTEMPTS - 1:
                        raise self._failed(f"get blob {digest[:19]}", cause) from cause
                    time.sleep(min(0.2 * 2**attempt, 5.0))
                else:
                    break
        self.close()
        with target.open("rb") as file:
            if digest != f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}":
                target.unlink()
                raise self._other(digest)

    def _fetch(self, url: str, sink: IO[bytes], size: int, told: Callable[[int], None]) -> None:
        sink.flush()
        offset = sink.tell()
        if offset >= size:
            return
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with contextlib.closing(self._open(url, headers)) as answer:
            if answer.status == 401 and self._login(answer.getheader("WWW-Authenticate", "")):
                answer.read()
                self._fetch(url, sink, size, told)
                return
            if answer.status in _REDIRECTS:
                where = urllib.parse.urljoin(self._url(url), answer.getheader("Location", ""))
                answer.read()
                # Elsewhere, such as a content network, the registry's credentials are not sent.
                request = urllib.request.Request(where, headers=headers)  # noqa: S310
                with urllib.request.urlopen(  # noqa: S310 - a registry's own redirect
                    request, timeout=_LIMIT_SECONDS, context=self._context
                ) as body:
                    _copy(body, sink, body.status == 206, size, told)
                    return
            if answer.status not in {200, 206}:
                head = {k.lower(): v for k, v in answer.getheaders()}
                self._check("GET", url, answer.status, head, answer.read(), {200, 206})
            _copy(answer, sink, answer.status == 206, size, told)

    def _other(self, digest: str) -> errors.RemoteError:
        return errors.RemoteError(
            f"{self._doing} {self._where}",
            reason="digest",
            details=f"what came as {digest[:19]}… has another digest",
            hint="the registry or a proxy in between is damaged or lies",
        )

    def upload(self, file: Path, digest: str, size: int, told: Callable[[int], None]) -> None:
        """Send a blob; a broken upload goes on where it stopped."""
        _, head, _ = self._ask("POST", f"{self._base}blobs/uploads/", body=b"", fine={202})
        location = head.get("location", "")
        with file.open("rb") as source:
            for attempt in range(_ATTEMPTS):
                try:
                    location, offset = self._resume(location, attempt)
                    if offset == 0:
                        # One request for the whole blob; what the registry kept of a broken one is
                        # continued by the next.
                        self._send(location, source, 0, size, digest, told)
                    else:
                        location = self._patch(location, source, offset, size, told)
                        self._commit(location, digest)
                except (OSError, http.client.HTTPException, _Passing) as cause:
                    self.close()
                    if self._has_quietly(digest):
                        return
                    if attempt == _ATTEMPTS - 1:
                        raise self._failed(f"send blob {digest[:19]}", cause) from cause
                    time.sleep(min(0.2 * 2**attempt, 5.0))
                else:
                    return

    def _has_quietly(self, digest: str) -> bool:
        try:
            return self.has(f"blobs/{digest}")
        except errors.RemoteError:
            return False

    def _resume(self, location: str, attempt: int) -> tuple[str, int]:
        if attempt == 0:
            return location, 0
        status, head, _ = self._ask("GET", location, fine={204, 404})
        if status == 404:
            _, head, _ = self._ask("POST", f"{self._base}blobs/uploads/", body=b"", fine={202})
            return head.get("location", ""), 0
        kept = int(head.get("range", "0-0").rpartition("-")[2] or 0)
        return head.get("location", location), kept + 1 if kept else 0

    def _send(
        self, location: str, source: IO[bytes], offset: int, size: int, digest: str,
        told: Callable[[int], None],
    ) -> None:  # fmt: skip
        status, head, body = self._once(
            "PUT", _with_query(location, digest=digest),
            {"Content-Type": "application/octet-stream", "Content-Length": str(size - offset)},
            _Part(source, offset, size, told),
        )  # fmt: skip
        self._check("PUT", location, status, head, body, {201})

    def _patch(
        self, location: str, source: IO[bytes], offset: int, size: int,
        told: Callable[[int], None],
    ) -> str:  # fmt: skip
        status, head, body = self._once(
            "PATCH", location,
            {"Content-Type": "application/octet-stream", "Content-Length": str(size - offset),
             "Content-Range": f"{offset}-{size - 1}"},
            _Part(source, offset, size, told),
        )  # fmt: skip
        self._check("PATCH", location, status, head, body, {202})
        return head.get("location", location)

    def _commit(self, location: str, digest: str) -> None:
        status, head, body = self._once(
            "PUT", _with_query(location, digest=digest), {"Content-Length": "0"}, b""
        )
        self._check("PUT", location, status, head, body, {201})

    def _ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        fine: set[int],
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask once and again while the fault passes."""
        for attempt in range(_ATTEMPTS):
            try:
                status, head, data = self._once(method, url, dict(headers or {}), body)
                if status == 401 and self._login(head.get("www-authenticate", "")):
                    status, head, data = self._once(method, url, dict(headers or {}), body)
                self._check(method, url, status, head, data, fine)
            except _Passing as cause:
                if attempt == _ATTEMPTS - 1:
                    raise self._failed(f"{method} {_path(url)}", cause) from cause
                time.sleep(min(cause.pause or 0.2 * 2**attempt, 10.0))
            except ssl.SSLError as cause:
                raise errors.RemoteError(
                    f"{self._doing} {self._where}",
                    reason="TLS",
                    details=str(cause),
                    hint="--ca-file names the authority that signed the registry's certificate",
                ) from cause
            except (OSError, http.client.HTTPException) as cause:
                self.close()
                refused = isinstance(cause, ConnectionRefusedError)
                if attempt == _ATTEMPTS - 1 or refused:
                    raise self._failed(f"{method} {_path(url)}", cause) from cause
                time.sleep(0.2 * 2**attempt)
            else:
                return status, head, data
        raise AssertionError("the last attempt raises")

    def _url(self, path: str) -> str:
        return f"http{'' if self._plain else 's'}://{self._where.host}{path}"

    def _open(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Ask for something large on a connection that is used for nothing else afterwards."""
        self.close()
        connection = self._connected()
        if self._authorization:
            headers = {**headers, "Authorization": self._authorization}
        connection.request("GET", url, headers=headers)
        return connection.getresponse()

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host = self._where.host
            self._connection = (
                http.client.HTTPConnection(host, timeout=_LIMIT_SECONDS)
                if self._plain
                else http.client.HTTPSConnection(
                    host, timeout=_LIMIT_SECONDS, context=self._context
                )
            )
        return self._connection

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = self._connected()
        if self._authorization:
            headers["Authorization"] = self._authorization
        if "://" in url:
            parts = urllib.parse.urlsplit(url)
            url = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, url, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data

    def _login(self, challenge: str) -> bool:
        """Answer a challenge; return whether there is something new to try."""
        fresh = registry_login.authorization(
            challenge, self._where, doing=self._doing, context=self._context
        )
        changed = bool(fresh) and fresh != self._authorization
        self._authorization = fresh
        return changed

    def _check(
        self,
        method: str,
        url: str,
        status: int,
        head: Mapping[str, str],
        body: bytes,
        fine: set[int],
    ) -> None:
        if status in fine:
            return
        if status in _PASSING:
            raise _Passing(status, _retry_after(head.get("retry-after", "")))
        kind = {401: errors.Unauthorized, 403: errors.Unauthorized, 404: errors.NotFound}.get(
            status, errors.RemoteError
        )
        reason = _reason(body)
        hint = f"docker login {self._where.host}" if kind is errors.Unauthorized else ""
        if reason.startswith("DIGEST_INVALID"):
            hint = "the cached image is damaged: kvedge image gc --keep 0, then build it again"
        raise kind(
            f"{self._doing} {self._where}: {method} {_path(url)}",
            status=status,
            reason=reason,
            hint=hint,
        )

    def _failed(self, attempt: str, cause: Exception) -> errors.RemoteError:
        passing = isinstance(cause, _Passing)
        kind = errors.Throttled if passing and cause.status == 429 else errors.RemoteError
        return kind(
            f"{self._doing} {self._where}: {attempt}",
            status=cause.status if passing else 0,
            details="" if passing else f"{type(cause).__name__}: {cause}",
            hint="" if passing else "is the registry up? kvedge site status",
        )


class _Passing(Exception):
    def __init__(self, status: int, pause: float) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.pause = pause


class _Part:
    """A range of a file as http.client wants bodies: with read()."""

    def __init__(
        self, source: IO[bytes], start: int, end: int, told: Callable[[int], None]
    ) -> None:
        source.seek(start)
        self._source, self._at, self._end, self._told = source, start, end, told

    def read(self, size: int = -1) -> bytes:
        room = self._end - self._at
        data = self._source.read(min(_CHUNK if size < 0 else max(size, _CHUNK), room))
        self._at += len(data)
        self._told(self._at)
        return data


def _copy(
    source: Any, sink: IO[bytes], onward: bool, size: int, told: Callable[[int], None]
) -> None:
    if not onward:
        sink.seek(0)
        sink.truncate()
    while chunk := source.read(_CHUNK):
        sink.write(chunk)
        told(min(sink.tell(), size))
    if sink.tell() < size:
        raise http.client.IncompleteRead(b"", size - sink.tell())


def _with_query(url: str, **more: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urllib.parse.urlencode(more)}"


def _path(url: str) -> str:
    return urllib.parse.urlsplit(url).path


def _reason(body: bytes) -> str:
    try:
        first = json.loads(body)["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


def _retry_after(text: str) -> float:
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
