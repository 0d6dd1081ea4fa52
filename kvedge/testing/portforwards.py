"""KubeVirt's portforward behind a real aggregating API server, leading to given addresses.

It stands in for virt-api where no VM runs: the same path, subprotocol and frames, so what is
tested is all of our side and the API server's. Limits: portforward, discovery, a console that
echoes, a screen that only greets, and acts (start, stop, restart) that are noted and answered but
not done; it checks no rights and no certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from kvedge.testing.servers import serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["api_objects", "running_portforwards"]

_GROUP, _VERSION = "subresources.kubevirt.io", "v1"


def api_objects(port: int) -> list[dict[str, object]]:
    """Return what makes an API server lead the group to a local port."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubevirt"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "virt-api", "namespace": "kubevirt"},
            "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{_VERSION}.{_GROUP}"},
            "spec": {
                "group": _GROUP,
                "version": _VERSION,
                "groupPriorityMinimum": 1000,
                "versionPriority": 15,
                "insecureSkipTLSVerify": True,
                "service": {"name": "virt-api", "namespace": "kubevirt", "port": port},
            },
        },
    ]


@contextlib.contextmanager
def running_portforwards(
    guests: Mapping[str, tuple[str, int]],
    certificates: tuple[Path, Path, Path],
    *,
    acts: list[tuple[str, str, Any]] | None = None,
) -> Iterator[int]:
    """Serve in a thread and yield the port.

    Args:
        guests: VM name -> where its port 22 is; looked up at each connection.
        certificates: authority, certificate, key.
        acts: gets (VM, act, body) of each act; one on a VM that is no guest is refused as KubeVirt
            refuses it.
    """

    async def discovery(request: web.Request) -> web.Response:
        del request
        body = {"kind": "APIResourceList", "apiVersion": "v1", "resources": [],
                "groupVersion": f"{_GROUP}/{_VERSION}"}  # fmt: skip
        return web.json_response(body)

    async def portforward(request: web.Request) -> web.StreamResponse:
        place = guests.get(request.match_info["name"])
        if place is None:
            body = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
                    "message": "virtualmachineinstance not found"}  # fmt: skip
            return web.json_response(body, status=404)
        reader, writer = await asyncio.open_connection(*place)
        stream = web.WebSocketResponse(protocols=("plain.kubevirt.io",), compress=False)
        await stream.prepare(request)

        async def down() -> None:
            while data := await reader.read(10240):
                await stream.send_bytes(data)
            await stream.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(down(), name="guest-down")
            async for message in stream:
                if message.type is WSMsgType.BINARY:
                    writer.write(message.data)
                    await writer.drain()
            writer.close()
        return stream

    async def console(request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse(protocols=("plain.kubevirt.io",), compress=False)
        await stream.prepare(request)
        await stream.send_bytes(b"login: ")
        async for message in stream:
            if message.type is WSMsgType.BINARY:
                await stream.send_bytes(b"<" + message.data + b">")
        return stream

    async def screen(request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse(protocols=("plain.kubevirt.io",), compress=False)
        await stream.prepare(request)
        await stream.send_bytes(b"RFB 003.008\n")
        await stream.receive()
        return stream

    async def act(request: web.Request) -> web.Response:
        name, asked = request.match_info["name"], request.match_info["act"]
        if name not in guests:
            what = f'virtualmachine.kubevirt.io "{name}"'
            text = f"Operation cannot be fulfilled on {what}: VM is not running"
            body = {"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409,
                    "message": text}  # fmt: skip
            return web.json_response(body, status=409)
        if acts is not None:
            acts.append((name, asked, await request.json()))
        return web.Response(status=202)

    app = web.Application()
    root = f"/apis/{_GROUP}/{_VERSION}"
    app.router.add_get(root, discovery)
    guest = root + "/namespaces/{namespace}/virtualmachineinstances/{name}"
    app.router.add_get(guest + "/portforward/22/tcp", portforward)
    app.router.add_get(guest + "/console", console)
    app.router.add_get(guest + "/vnc", screen)
    app.router.add_put(root + "/namespaces/{namespace}/virtualmachines/{name}/{act}", act)
    with serving(app, *certificates[1:]) as port:
        yield port
