"""A guest's port, console or screen as a byte stream, through the API server's websocket.

KubeVirt reaches the guest by itself, so only the Kubernetes API has to be reachable from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

from kvedge import errors, kube

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    import aiohttp

    from kvedge.access.targets import Channel, Target

__all__ = ["forward", "local_socket", "serve_stdio"]

_PROTOCOL = "plain.kubevirt.io"
_CHUNK = 10240
"""virt-api's own buffer size; larger frames are cut there anyway."""


@contextlib.asynccontextmanager
async def _websocket(
    client: kube.Client, target: Target, channel: Channel
) -> AsyncGenerator[aiohttp.ClientWebSocketResponse, None]:
    """Open the websocket, with the server's own words when it refuses."""
    import aiohttp

    path = target.path(channel)
    attempt = f"reach the {channel.name} of {target.alias!r}"
    url = client.config.server + path
    try:
        async with client.session.ws_connect(
            url, protocols=(_PROTOCOL,), headers=client.headers(), compress=0, max_msg_size=0
        ) as stream:
            yield stream
    except aiohttp.WSServerHandshakeError as cause:
        # The answer's body is gone here; a plain GET of the same path tells the reason.
        try:
            await client.get(path)
        except errors.RemoteError as told:
            raise type(told)(
                attempt,
                status=told.status,
                reason=told.reason,
                details=told.details,
                hint=f"is the VM running? kubectl get vmi {target.name} -n {target.namespace}",
            ) from cause
        raise errors.RemoteError(attempt, status=cause.status, details=cause.message) from cause
    except aiohttp.ClientError as cause:
        raise errors.RemoteError(
            attempt,
            reason="Unreachable",
            details=str(cause),
            hint=f"is the cluster of {client.config.source} running?",
        ) from cause


async def _pump(
    stream: aiohttp.ClientWebSocketResponse,
    reader: asyncio.StreamReader,
    write: Callable[[bytes], None],
    drain: Callable[[], object],
) -> None:
    """Carry bytes both ways until the guest's side ends; our end of input does not end it."""
    from aiohttp import WSMsgType

    async def upward() -> None:
        while data := await reader.read(_CHUNK):
            await stream.send_bytes(data)

    async def downward() -> None:
        async for message in stream:
            if message.type is WSMsgType.BINARY:
                write(message.data)
                waited = drain()
                if asyncio.iscoroutine(waited):
                    await waited

    async with asyncio.TaskGroup() as group:
        up = group.create_task(upward(), name="tunnel-up")
        down = group.create_task(downward(), name="tunnel-down")
        done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if down in done:
            up.cancel()
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(down), 5)
            await stream.close()


async def serve_stdio(client: kube.Client, target: Target, channel: Channel) -> None:
    """Join this process's stdin and stdout to the channel (for OpenSSH's ProxyCommand)."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    out = sys.stdout.fileno()

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]

    async with _websocket(client, target, channel) as stream:
        await _pump(stream, reader, write, lambda: None)


@contextlib.asynccontextmanager
async def forward(
    client: kube.Client,
    target: Target,
    channel: Channel,
    *,
    local: tuple[str, int] = ("127.0.0.1", 0),
) -> AsyncGenerator[int, None]:
    """Listen on a local address and carry each connection to the channel; yields our port.

    Raises:
        KvedgeError: the local address is taken.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with _websocket(client, target, channel) as stream:
                await _pump(stream, reader, writer.write, writer.drain)
        except (errors.RemoteError, ConnectionError, ExceptionGroup) as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 - one connection failed, the others go on
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(serve, *local)
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot listen on {local[0]}:{local[1]}: {cause.strerror}", hint="choose another port"
        ) from cause
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.contextmanager
def local_socket(
    config: kube.Config, target: Target, channel: Channel
) -> Generator[socket.socket, None]:
    """Give blocking code (paramiko) a socket whose other end is the channel.

    The websocket lives on an event loop of a thread of its own; its error, if the API server
    refuses, is raised when the socket's user sees the end of the stream and leaves the context.
    """
    ours, theirs = socket.socketpair()
    failure: list[BaseException] = []
    opened = threading.Event()

    async def carry() -> None:
        reader, writer = await asyncio.open_connection(sock=theirs)
        try:
            async with (
                kube.Client(config) as client,
                _websocket(client, target, channel) as stream,
            ):
                opened.set()
                await _pump(stream, reader, writer.write, writer.drain)
        finally:
            writer.close()

    def work() -> None:
        import aiohttp

        try:
            asyncio.run(carry())
        except* errors.KvedgeError as group:
            failure.extend(group.exceptions)
        except* (OSError, aiohttp.ClientError):
            pass  # the connection ended; whoever reads the socket sees that
        finally:
            opened.set()

    thread = threading.Thread(target=work, name=f"tunnel-{target.name}", daemon=True)
    thread.start()
    opened.wait()
    try:
        if failure:
            raise failure[0]
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        thread.join(5)
