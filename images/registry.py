"""Pushing an OCI layout to a registry, by digest (distribution-spec v1.1).

Blobs that the registry has are skipped, a broken upload goes on where it stopped, passing faults
are tried again. Credentials are docker's own (`~/.docker/config.json`).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email.utils
import http.client
import json
import os
import re
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from images import oci
from kvedge import errors
from kvedge.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvedge.progress import Progress

__all__ = ["Reference", "credentials", "parse_reference", "push"]

_NAME = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ATTEMPTS = 5
_CHUNK = 1 << 20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_LIMIT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an image is."""

    host: str
    """With port if there is one."""
    repository: str
    tag: str = ""

    def __str__(self) -> str:
        """Return it as people write it."""
        return f"{self.host}/{self.repository}" + (f":{self.tag}" if self.tag else "")


def parse_reference(text: str) -> Reference:
    """Parse `host[:port]/repository[:tag]`.

    Raises:
        SpecError: it is no such text.
    """
    host, slash, rest = text.partition("/")
    repository, _, tag = rest.partition(":")
    if (
        not slash
        or not host
        or not _NAME.fullmatch(repository)
        or (tag and not _TAG.fullmatch(tag))
    ):
        raise errors.SpecError(
            "image destination",
            [errors.Problem(path=text, message="must be host[:port]/repository[:tag]")],
        )
    return Reference(host=host, repository=repository, tag=tag)


def push(
    layout: Path,
    destination: str,
    *,
    ca_file: Path | None = None,
    tag: str = "",
    progress: Progress = silent,
) -> str:
    """Push the layout's image and return it as `host/repository@sha256:…`.

    Args:
        layout: an OCI layout folder with one image.
        destination: `host[:port]/repository`, or with `:tag`.
        ca_file: PEM of the authority that signed the registry's certificate; else the system's.
        tag: a name to give the image beside its digest.

    Raises:
        Unauthorized: the registry wants other credentials.
        RemoteError: it cannot be reached or refuses the image.
    """
    image = oci.read_layout(layout)
    where = parse_reference(destination)
    tag = tag or where.tag
    blobs = [*image.manifest["layers"], image.manifest["config"]]
    total = sum(blob["size"] for blob in blobs)
    task = f"push {where.repository}"
    client = _Client(where, ca_file)
    done = 0
    with contextlib.closing(client):
        progress(task, 0, total)
        for blob in blobs:
            start = done

            def told(sent: int, start: int = start) -> None:
                progress(task, start + sent, total)

            if not client.has(f"blobs/{blob['digest']}"):
                client.upload(image.blob(blob["digest"]), blob["digest"], blob["size"], told)
            done += blob["size"]
            progress(task, done, total)
        raw = image.blob(image.digest).read_bytes()
        for name in [image.digest, *([tag] if tag else [])]:
            if name != image.digest or not client.has(f"manifests/{name}"):
                client.put_manifest(name, raw)
        if image.attached:
            _push_attached(client, image)
    return f"{where.host}/{where.repository}@{image.digest}"


def _push_attached(client: _Client, image: oci.Layout) -> None:
    """Push the documents beside an image (distribution-spec v1.1, manifests with a subject).

    A registry that does not know referrers gets their list under the tag that the specification
    names for this case.
    """
    missing = [one for one in image.attached if not client.has(f"manifests/{one['digest']}")]
    if not missing:
        return
    known = False
    for one in missing:
        raw = image.blob(one["digest"]).read_bytes()
        manifest = json.loads(raw)
        for blob in [manifest["config"], *manifest["layers"]]:
            if not client.has(f"blobs/{blob['digest']}"):
                client.upload(image.blob(blob["digest"]), blob["digest"], blob["size"], _untold)
        known = client.put_manifest(one["digest"], raw)
    if not known:
        index = {
            "schemaVersion": 2,
            "mediaType": oci.INDEX,
            "manifests": list(image.attached),
        }
        raw = json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        client.put_manifest(image.digest.replace(":", "-"), raw, media_type=oci.INDEX)


def _untold(sent: int) -> None:
    """Say nothing: these are small."""


def credentials(host: str, *, config: Path | None = None) -> tuple[str, str] | None:
    """Return user and password of a registry from docker's configuration."""
    folder = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    file = config or folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as cause:
        raise errors.KvedgeError(f"cannot read {str(file)!r}: {cause}") from cause
    entry = raw.get("auths", {}).get(host) or raw.get("auths", {}).get(f"https://{host}")
    if not entry:
        return None
    if "auth" in entry:
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return user, password
    if "username" in entry:
        return entry["username"], entry.get("password", "")
    return None


class _Client:
    """One connection to one repository, with a token when the registry wants one."""

    def __init__(self, where: Reference, ca_file: Path | None) -> None:
        self._where = where
        self._base = f"/v2/{where.repository}/"
        self._context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._plain = where.host.split(":")[0] in {"localhost", "127.0.0.1"} and ca_file is None
        self._connection: http.client.HTTPConnection | None = None
        self._authorization = ""

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def has(self, what: str) -> bool:
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

    def upload(self, file: Path, digest: str, size: int, told: Callable[[int], None]) -> None:
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
                    f"push to {self._where}",
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

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self._connection is None:
            host = self._where.host
            self._connection = (
                http.client.HTTPConnection(host, timeout=_LIMIT_SECONDS)
                if self._plain
                else http.client.HTTPSConnection(
                    host, timeout=_LIMIT_SECONDS, context=self._context
                )
            )
        if self._authorization:
            headers["Authorization"] = self._authorization
        if "://" in url:
            parts = urllib.parse.urlsplit(url)
            url = parts.path + (f"?{parts.query}" if parts.query else "")
        self._connection.request(method, url, body=body, headers=headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data

    def _login(self, challenge: str) -> bool:
        known = credentials(self._where.host)
        basic = ""
        if known:
            basic = "Basic " + base64.b64encode(f"{known[0]}:{known[1]}".encode()).decode()
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            fresh = basic
        elif kind.lower() == "bearer":
            fresh = self._token(dict(re.findall(r'(\w+)="([^"]*)"', rest)), basic)
        else:
            fresh = ""
        changed = bool(fresh) and fresh != self._authorization
        self._authorization = fresh
        return changed

    def _token(self, ask: dict[str, str], basic: str) -> str:
        realm = urllib.parse.urlsplit(ask.get("realm", ""))
        scope = ask.get("scope") or f"repository:{self._where.repository}:pull,push"
        query = urllib.parse.urlencode({"service": ask.get("service", ""), "scope": scope})
        kind = http.client.HTTPSConnection if realm.scheme == "https" else None
        if kind is None:
            raise errors.Unauthorized(
                f"push to {self._where}", status=401, details=f"token realm {realm.geturl()!r}"
            )
        with contextlib.closing(
            kind(realm.netloc, timeout=_LIMIT_SECONDS, context=self._context)
        ) as connection:
            headers = {"Authorization": basic} if basic else {}
            connection.request("GET", f"{realm.path}?{query}", headers=headers)
            answer = connection.getresponse()
            data = answer.read()
        if answer.status != 200:
            return ""
        found = json.loads(data)
        return f"Bearer {found.get('token') or found.get('access_token', '')}"

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
        hint = f"docker login {self._where.host}" if kind is errors.Unauthorized else ""
        raise kind(
            f"push to {self._where}: {method} {_path(url)}",
            status=status,
            reason=_reason(body),
            hint=hint,
        )

    def _failed(self, attempt: str, cause: Exception) -> errors.RemoteError:
        passing = isinstance(cause, _Passing)
        kind = errors.Throttled if passing and cause.status == 429 else errors.RemoteError
        return kind(
            f"push to {self._where}: {attempt}",
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
