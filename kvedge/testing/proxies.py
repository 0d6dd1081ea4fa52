"""A proxy in front of an API server, as Arc's Cluster Connect puts one there.

Its kubeconfig names the proxy's address with a path of its own and a token that only the proxy
knows; `rotate()` changes token and path and writes the kubeconfig again, as `az connectedk8s proxy`
does. Limits: one process, no Azure; a request that has begun goes on after a rotation.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import secrets
import time
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from kvedge.testing.servers import serving

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from kvedge import kube

__all__ = ["Proxy", "running_proxy"]

_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: arc, cluster: {{server: "{server}", certificate-authority: "{ca}"}}}}]
users: [{{name: arc, user: {{token: {token}}}}}]
contexts: [{{name: arc, context: {{cluster: arc, user: arc}}}}]
current-context: arc
"""
_HOP = {"host", "connection", "transfer-encoding", "content-length", "authorization", "date"}


class Proxy:
    """A running proxy."""

    def __init__(self, upstream: kube.Config, kubeconfig: Path, ca: Path, shift: float) -> None:
        self.kubeconfig = kubeconfig
        self.refused = 0
        """Requests with an old token or path."""
        self.port = 0
        self._upstream, self._ca, self._shift = upstream, ca, shift
        self._token = self._path = ""

    def rotate(self) -> None:
        """Make a new token and path; the old ones are refused from now on."""
        self._token, self._path = secrets.token_hex(16), f"/proxies/{secrets.token_hex(8)}"
        text = _KUBECONFIG.format(
            server=f"https://localhost:{self.port}{self._path}", ca=self._ca, token=self._token
        )
        fresh = self.kubeconfig.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.kubeconfig)

    def rotate_token(self) -> None:
        """Make a new token at the same address."""
        path = self._path
        self.rotate()
        text = self.kubeconfig.read_text().replace(self._path, path)
        self._path = path
        fresh = self.kubeconfig.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.kubeconfig)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Check who asks and pass the request on."""
        path = request.path_qs
        if not path.startswith(f"{self._path}/"):
            self.refused += 1
            return web.Response(status=404, text="no such proxy")
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            self.refused += 1
            return web.Response(status=401, text="token expired")
        url = self._upstream.server + path.removeprefix(self._path)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        token = self._upstream.token()  # an upstream may know us by a client certificate instead
        own = {"Authorization": f"Bearer {token}"} if token else {}
        trust = self._upstream.ssl_context or True
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await _websocket(session, request, url, own, trust)
            async with session.request(
                request.method,
                url,
                headers=headers | own,
                data=await request.read() or None,
                ssl=trust,
            ) as answer:
                back = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                back["Date"] = email.utils.formatdate(time.time() + self._shift, usegmt=True)
                response = web.StreamResponse(status=answer.status, headers=back)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response


async def _websocket(
    session: aiohttp.ClientSession,
    request: web.Request,
    url: str,
    headers: Mapping[str, str],
    trust: ssl.SSLContext | bool,
) -> web.StreamResponse:
    asked = request.headers.get("Sec-WebSocket-Protocol", "").replace(" ", "").split(",")
    try:
        far = await session.ws_connect(url, protocols=asked, headers=headers, ssl=trust, compress=0)
    except aiohttp.WSServerHandshakeError as refused:
        return web.Response(status=refused.status, text=refused.message)
    near = web.WebSocketResponse(protocols=asked, compress=False)
    await near.prepare(request)

    async def carry(source: object, sink: object) -> None:
        async for message in source:  # type: ignore[attr-defined]
            if message.type is aiohttp.WSMsgType.BINARY:
                await sink.send_bytes(message.data)  # type: ignore[attr-defined]
            elif message.type is aiohttp.WSMsgType.TEXT:
                await sink.send_str(message.data)  # type: ignore[attr-defined]
        await sink.close()  # type: ignore[attr-defined]

    async with asyncio.TaskGroup() as group:
        group.create_task(carry(far, near), name="proxy-down")
        group.create_task(carry(near, far), name="proxy-up")
    return near


@contextlib.contextmanager
def running_proxy(
    upstream: kube.Config,
    folder: Path,
    certificates: tuple[Path, Path, Path],
    *,
    shift_seconds: float = 0.0,
) -> Iterator[Proxy]:
    """Run a proxy in a thread.

    Args:
        upstream: the API server behind it.
        folder: where its kubeconfig is written.
        certificates: authority, certificate for `localhost`, key.
        shift_seconds: how far the Date of its answers is ahead of the true time.
    """
    ca, certificate, key = certificates
    proxy = Proxy(upstream, folder / "arc.kubeconfig", ca, shift_seconds)
    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    with serving(app, certificate, key) as proxy.port:
        proxy.rotate()
        yield proxy
