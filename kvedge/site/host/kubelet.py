"""The node's port 10250: logs of guests' consoles and of local processes.

Only the API server comes in, with its kubelet client certificate.
"""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from kvedge import errors
from kvedge.site.host import qemu
from kvedge.site.host.endpoints import peer_names
from kvedge.site.host.pods import LauncherPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from kvedge.site.host.pods import Pods

__all__ = ["kubelet_app", "tail"]

_CLIENT = "kube-apiserver-kubelet-client"
_CONSOLE = "guest-console-log"
_CHUNK = 64 * 1024
_POLL_SECONDS = 0.3


def kubelet_app(pods: Pods) -> web.Application:
    """Return the application; serve it with the cluster authority's server context."""

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if _CLIENT not in peer_names(request):
            return web.Response(status=403, text="only the API server may call this node")
        try:
            return await handler(request)
        except errors.KvedgeError as error:
            return web.Response(status=400, text=error.message)

    async def logs(request: web.Request) -> web.StreamResponse:
        return await _logs(pods, request)

    async def running(request: web.Request) -> web.Response:
        del request
        items = [actor.pod for actor in pods.actors]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": items})

    async def healthz(request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok")

    async def unknown(request: web.Request) -> web.Response:
        act = request.match_info["act"].split("/")[0]
        return web.Response(status=501, text=f"{act} is not done by this node")

    app = web.Application(middlewares=[guard])
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/pods", running)
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    app.router.add_route("*", "/{act:.*}", unknown)
    return app


def _file(pods: Pods, request: web.Request) -> Path:
    namespace, name = request.match_info["namespace"], request.match_info["pod"]
    container = request.match_info["container"]
    for actor in pods.actors:
        metadata = actor.pod["metadata"]
        if (metadata["namespace"], metadata["name"]) != (namespace, name):
            continue
        if isinstance(actor, LauncherPod):
            guest = pods.guests.get(actor.vmi_uid)
            if container != _CONSOLE or guest is None:
                raise errors.SiteError(
                    f"container {container!r} has no process here",
                    hint=f"kubectl logs -c {_CONSOLE}",
                )
            return guest.directory / qemu.CONSOLE_LOG
        workload = pods.workloads.find(namespace, name)
        if workload is None or container not in workload.runs:
            break
        restarts = workload.runs[container].restarts
        if request.query.get("previous") == "true":
            if not restarts:
                raise errors.SiteError(f"container {container!r} was not restarted")
            return workload.log(container, restarts - 1)
        file = workload.log(container, restarts)
        # Between two lives the last one's log is what people want to read.
        return file if file.exists() or not restarts else workload.log(container, restarts - 1)
    raise web.HTTPNotFound(text=f"pod {namespace}/{name} has no container {container!r} here")


async def _logs(pods: Pods, request: web.Request) -> web.StreamResponse:
    query = request.query
    for field in ("sinceSeconds", "sinceTime"):
        if query.get(field):
            raise errors.SiteError(f"{field}: lines of this node's logs carry no time")
    file = _file(pods, request)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    lines = query.get("tailLines")
    limit = query.get("limitBytes")
    left = int(limit) if limit else None
    stamped = query.get("timestamps") == "true"
    async for chunk in _read(file, tail(file, int(lines) if lines else None), query.get("follow")):
        data = _stamp(chunk) if stamped else chunk
        if left is not None:
            data = data[:left]
            left -= len(data)
        await response.write(data)
        if left == 0:
            break
    return response


def _stamp(chunk: bytes) -> bytes:
    """Put the time of reading before each line; none was kept when it was written."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode()
    return b"".join(now + line for line in chunk.splitlines(keepends=True))


def tail(file: Path, lines: int | None) -> int:
    """Return the offset at which the last `lines` lines begin."""
    if lines is None or not file.exists():
        return 0
    size = file.stat().st_size
    if lines == 0:
        return size
    with file.open("rb") as source:
        position, seen = size, 0
        while position > 0:
            step = min(_CHUNK, position)
            position -= step
            source.seek(position)
            chunk = source.read(step)
            at = len(chunk)
            while (at := chunk.rfind(b"\n", 0, at)) >= 0:
                # The newline that ends the file begins no line.
                if position + at == size - 1:
                    continue
                seen += 1
                if seen == lines:
                    return position + at + 1
    return 0


async def _read(file: Path, offset: int, follow: Any) -> AsyncIterator[bytes]:
    while True:
        if file.exists():
            with file.open("rb") as source:
                source.seek(offset)
                while chunk := source.read(_CHUNK):
                    offset += len(chunk)
                    yield chunk
        if follow != "true":
            return
        await asyncio.sleep(_POLL_SECONDS)
