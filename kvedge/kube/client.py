"""Requests and watches on raw dicts.

There is no client-side rate limit: the API server's priority and fairness answers 429 with
Retry-After, and that is honoured here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self
from urllib.parse import quote, urlencode

import orjson

from kvedge import errors
from kvedge.kube.exchanging import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    import aiohttp

    from kvedge.kube.config import Config

__all__ = ["Client", "Event"]

_PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
_STATUS_ERRORS = {
    401: errors.Unauthorized,
    403: errors.Unauthorized,
    404: errors.NotFound,
    409: errors.Conflict,
}
_SAFE = "/:@!$&'()*+,;=~%"
_MAX_LINE = 64 * 1024 * 1024
_THROTTLE_TRIES = 8
_WATCH_SECONDS = 300
_SILENT_SECONDS = 150
"""A server sends a bookmark a minute, so a longer silence is a broken connection."""


class Event(NamedTuple):
    """One step of a watch; unpacks as `kind, obj`."""

    kind: Literal["ADDED", "MODIFIED", "DELETED", "SYNCED"]
    """SYNCED comes once, after the objects of the first list."""
    obj: Any
    """The object as the API server sent it; None for SYNCED."""


class Client:
    """A connection to one cluster; an async context manager."""

    def __init__(self, config: Config, *, connections: int = 128) -> None:
        self.config = config
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._pool: Pool | None = None
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}

    async def __aenter__(self) -> Self:
        self._pool = Pool(self.config.server, self.config.ssl_context or True, self._connections)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool:
            self._pool.close()
            self._pool = None
        if self._session:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The HTTP session, for streams that are more than request and answer."""
        if self._pool is None:
            raise RuntimeError("the client is not entered")
        if self._session is None:
            # A third of what a short command takes to start would be this import.
            import aiohttp

            tls = self.config.ssl_context or True
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0))
        return self._session

    def headers(self) -> dict[str, str]:
        """Return the headers that prove who we are."""
        token = self.config.token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        timeout: float = 60.0,
        raw: bool = False,
        accept: str = "application/json",
    ) -> Any:
        """Send one request and return the answer's JSON (bytes with `raw`).

        Args:
            path: below the server, such as `/api/v1/namespaces/default/pods`.
            params: query parameters; None values are left out, booleans become true/false.
            timeout: seconds for the whole exchange, waiting out 429s not included.
            accept: form of the answer; KubeVirt's subresources offer no JSON.

        Raises:
            NotFound, Conflict, Unauthorized, Throttled, RemoteError: as the server answered;
                status 0 when it did not answer at all.
        """
        attempt = f"{method} {path}"
        headers = {"Accept": accept, **self.headers()}
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            headers["Content-Type"] = content_type
        target = quote(path, safe=_SAFE)
        if query := _query(params):
            target += "?" + urlencode(query, quote_via=quote)
        if self._pool is None:
            raise RuntimeError("the client is not entered")
        tries = 0
        while True:
            try:
                async with asyncio.timeout(timeout):
                    answer = await self._pool.exchange(method, target, headers, data)
            except TimeoutError as cause:
                raise errors.RemoteError(
                    attempt, reason="Timeout", details=f"no answer within {timeout:g} s"
                ) from cause
            except OSError as cause:
                raise errors.RemoteError(
                    attempt,
                    reason="Unreachable",
                    details=str(cause),
                    hint=f"is the cluster of {self.config.source} running?",
                ) from cause
            status, retry_after = answer.status, answer.headers.get("retry-after")
            content = answer.body
            tries += 1
            if status != 429 or tries == _THROTTLE_TRIES:
                break
            await asyncio.sleep(float(retry_after or 1) * (0.5 + random.random()))  # noqa: S311
        if status >= 300:
            raise _error(attempt, status, content, retry_after)
        if raw:
            return content
        return orjson.loads(content) if content else {}

    async def get(self, path: str, **params: Any) -> Any:
        """Read an object or a list."""
        return await self.request("GET", path, params=params)

    async def post(self, path: str, body: Any, **params: Any) -> Any:
        """Create an object."""
        return await self.request("POST", path, body, params=params)

    async def put(self, path: str, body: Any, **params: Any) -> Any:
        """Replace an object."""
        return await self.request("PUT", path, body, params=params)

    async def delete(self, path: str, body: Any = None, **params: Any) -> Any:
        """Delete an object or a collection; `body` is a DeleteOptions."""
        return await self.request("DELETE", path, body, params=params)

    async def patch(
        self,
        path: str,
        body: Any,
        kind: Literal["merge", "strategic", "json", "apply"] = "merge",
        **params: Any,
    ) -> Any:
        """Change an object in place."""
        return await self.request("PATCH", path, body, params=params, content_type=_PATCHES[kind])

    async def apply(
        self,
        obj: Mapping[str, Any],
        *,
        field_manager: str = "kvedge",
        force: bool = True,
        dry_run: bool = False,
    ) -> Any:
        """Create or change an object by server-side apply."""
        metadata = obj["metadata"]
        path = await self.path_of(
            obj["apiVersion"], obj["kind"], metadata.get("namespace"), metadata["name"]
        )
        return await self.patch(
            path,
            dict(obj),
            "apply",
            fieldManager=field_manager,
            force=force,
            dryRun="All" if dry_run else None,
        )

    async def path_of(
        self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None
    ) -> str:
        """Return the path of an object, or of its collection, by asking the server's discovery.

        Raises:
            NotFound: the server does not serve this kind.
        """
        plural, namespaced = await self._resource(api_version, kind)
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if namespaced and (namespace or name):
            root += f"/namespaces/{quote(namespace or self.config.namespace, safe='')}"
        return f"{root}/{plural}" + (f"/{quote(name, safe='')}" if name else "")

    async def _resource(self, api_version: str, kind: str) -> tuple[str, bool]:
        found = self._resources.get((api_version, kind))
        if found is None:
            root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
            for entry in (await self.get(root)).get("resources", ()):
                if "/" not in entry["name"]:
                    key = (api_version, entry["kind"])
                    self._resources[key] = (entry["name"], entry["namespaced"])
            found = self._resources.get((api_version, kind))
        if found is None:
            raise errors.NotFound(f"find kind {kind!r} of {api_version!r}", status=404)
        return found

    async def watch(
        self,
        path: str,
        *,
        start: str | None = None,
        page: int | None = None,
        keep: Callable[[Any], Any] = lambda obj: obj,
        **params: Any,
    ) -> AsyncGenerator[Event, None]:
        """List, then watch for ever; a broken watch goes on where it ended, or lists again.

        After a new list, objects that vanished meanwhile come as DELETED with the last known form.

        Args:
            path: of a collection.
            start: resourceVersion to begin from, without a list (no SYNCED is sent then).
            page: objects per request of the list; None asks for all at once.
            keep: what to remember of an object, at least its metadata's uid and resourceVersion.
            params: fieldSelector, labelSelector and so on.

        Raises:
            Unauthorized, NotFound: the very first list was refused.
        """
        known: dict[str, Any] = {}
        version = start
        synced = start is not None
        pause = 0.1
        while True:
            try:
                if version is None:
                    fresh: dict[str, Any] = {}
                    first_version = ""
                    async for listed in self._pages(path, page, params):
                        first_version = listed["metadata"]["resourceVersion"]
                        for event in _additions(known, fresh, listed, keep):
                            yield event
                    for uid in known.keys() - fresh.keys():
                        yield Event("DELETED", known[uid])
                    known, version = fresh, first_version
                    if not synced:
                        synced = True
                        yield Event("SYNCED", None)
                async with contextlib.aclosing(self._stream(path, version, params)) as stream:
                    async for kind, obj in stream:
                        pause = 0.1
                        version = obj["metadata"]["resourceVersion"]
                        if kind == "BOOKMARK":
                            continue
                        uid = obj["metadata"]["uid"]
                        if kind == "DELETED":
                            known.pop(uid, None)
                        else:
                            known[uid] = keep(obj)
                        yield Event(kind, obj)
            except _Expired:
                version = None
            except (errors.Unauthorized, errors.NotFound):
                if not synced:
                    raise
                version = None
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            except errors.RemoteError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _pages(
        self, path: str, page: int | None, params: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        token: str | None = None
        while True:
            asked = {**params, "limit": page, "continue": token}
            listed = await self.request("GET", path, params=asked)
            token = listed["metadata"].get("continue")
            yield listed
            if not token:
                return

    async def _stream(
        self, path: str, version: str, params: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        import aiohttp

        query = _query(
            {
                **params,
                "watch": True,
                "allowWatchBookmarks": True,
                "resourceVersion": version,
                "timeoutSeconds": int(_WATCH_SECONDS * (1 + random.random())),  # noqa: S311
            }
        )
        attempt = f"WATCH {path}"
        try:
            async with self.session.get(
                self.config.server + path,
                params=query,
                headers={"Accept": "application/json", **self.headers()},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=30, sock_read=_SILENT_SECONDS
                ),
                read_bufsize=1024 * 1024,
            ) as answer:
                if answer.status == 410:
                    raise _Expired
                if answer.status >= 400:
                    raise _error(attempt, answer.status, await answer.read(), None)
                rest = b""
                async for chunk in answer.content.iter_any():
                    lines = (rest + chunk).split(b"\n")
                    rest = lines.pop()
                    if len(rest) > _MAX_LINE:
                        raise errors.RemoteError(attempt, reason="LineTooLong")
                    for line in lines:
                        if not line:
                            continue
                        event = orjson.loads(line)
                        if event["type"] == "ERROR":
                            if event["object"].get("code") == 410:
                                raise _Expired
                            raise _error(attempt, 500, orjson.dumps(event["object"]), None)
                        yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as cause:
            raise errors.RemoteError(attempt, reason="Unreachable", details=str(cause)) from cause


class _Expired(Exception):
    """The resourceVersion is too old: list again."""


def _additions(
    known: Mapping[str, Any],
    fresh: dict[str, Any],
    listed: Mapping[str, Any],
    keep: Callable[[Any], Any],
) -> Iterator[Event]:
    """Yield what a page of a list adds to what was known, and note its objects in `fresh`."""
    kind = str(listed.get("kind", "")).removesuffix("List")
    api_version = listed.get("apiVersion", "")
    for obj in listed.get("items") or ():
        # Items of a list come without kind and apiVersion; those of a watch have them.
        obj.setdefault("kind", kind)
        obj.setdefault("apiVersion", api_version)
        uid = obj["metadata"]["uid"]
        old = known.get(uid)
        fresh[uid] = keep(obj)
        if old is None:
            yield Event("ADDED", obj)
        elif old["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
            yield Event("MODIFIED", obj)


def _query(params: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (params or {}).items()
        if value is not None
    }


def _error(
    attempt: str, status: int, content: bytes, retry_after: str | None
) -> errors.RemoteError:
    reason = details = ""
    try:
        body = orjson.loads(content)
        reason, details = str(body.get("reason", "")), str(body.get("message", ""))
    except (orjson.JSONDecodeError, AttributeError):
        details = content[:256].decode(errors="replace").strip()
    if status == 429:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        return errors.Throttled(
            attempt, retry_after=seconds, status=status, reason=reason, details=details
        )
    return _STATUS_ERRORS.get(status, errors.RemoteError)(
        attempt, status=status, reason=reason, details=details
    )
